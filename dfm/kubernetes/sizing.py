"""The number of workers and the sizes of pods of a job, from the plan that `dfm train --dry-run` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dfm.averaging.cost_model import job_times
from dfm.settings.constraints import parse_bytes
from dfm.settings.tables import KubernetesSettings
from dfm.training.memory import GIB, MIB, rounded, worker_memory

ENOUGH_SECONDS = 60.0
"""A job that is expected to take no longer gets no more workers: their pods take about as long to start."""
PAYS = 1.5
"""Twice as many workers are taken where they make the job so many times as fast, by the cost model."""


@dataclass(frozen=True)
class Sizing:
    """Pods of a job; sizes in bytes."""

    workers: int
    worker_cpus: int
    worker_memory: int
    driver_memory: int
    scheduler_memory: int
    scratch: int


def needs_plan(settings: KubernetesSettings) -> bool:
    """Whether something is to be derived from the data."""
    return "auto" in (settings.workers, settings.worker_memory, settings.driver_memory, settings.scratch)


def size(settings: KubernetesSettings, plan: Mapping[str, Any] | None) -> Sizing:
    """The pods: what the settings fix, the rest from the plan (None where nothing is "auto")."""
    workers = int(settings.workers) if settings.workers != "auto" else workers_for(plan or {}, settings.worker_cpus)
    memory = settings.worker_memory
    return Sizing(
        workers,
        settings.worker_cpus,
        worker_memory(plan or {}, settings.worker_cpus, workers) if memory == "auto" else parse_bytes(memory),
        driver_memory(plan or {}) if settings.driver_memory == "auto" else parse_bytes(settings.driver_memory),
        parse_bytes(settings.scheduler_memory),
        scratch(plan or {}, workers) if settings.scratch == "auto" else parse_bytes(settings.scratch),
    )


def workers_for(plan: Mapping[str, Any], cpus: int) -> int:
    """As many as pay by the cost model (dfm/averaging/cost_model.py), and no core without a replica of its own."""
    most, workers = math.ceil(plan["replicas"] / cpus), 1
    seconds = job_times(plan, workers, cpus).seconds
    while workers < most and seconds > ENOUGH_SECONDS:
        larger = min(2 * workers, most)
        shorter = job_times(plan, larger, cpus).seconds
        if seconds / shorter < PAYS ** math.log2(larger / workers):
            break
        workers, seconds = larger, shorter
    return workers


def driver_memory(plan: Mapping[str, Any]) -> int:
    """Bytes of the driver's pod: the model passes through it at most once."""
    return rounded(GIB + 1.5 * plan["parameter_bytes_at_most"], 256 * MIB)


def scratch(plan: Mapping[str, Any], workers: int) -> int:
    """Bytes of a worker's disk: hashed rows and partitions, and those of a neighbour that was lost."""
    return rounded(GIB + 2.5 * plan["partition_cache_bytes"] / workers, GIB)


def quantity(size: int) -> str:
    """A size as Kubernetes writes it."""
    return f"{size // GIB}Gi" if size % GIB == 0 else f"{math.ceil(size / MIB)}Mi"
