"""How many workers a job wants and how large its pods must be, from the plan that `dfm train --dry-run` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dfm.footprint import GIB, MIB, rounded, worker_memory
from dfm.settings import KubernetesSettings, parse_bytes

ROWS_PER_WORKER = 2_000_000
"""A rule of thumb, not a measurement: at about a million rows a second and core, an epoch of a few seconds."""


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
    workers = int(settings.workers) if settings.workers != "auto" else workers_for(plan or {})
    memory = settings.worker_memory
    return Sizing(
        workers,
        settings.worker_cpus,
        worker_memory(plan or {}, settings.worker_cpus) if memory == "auto" else parse_bytes(memory),
        driver_memory(plan or {}) if settings.driver_memory == "auto" else parse_bytes(settings.driver_memory),
        parse_bytes(settings.scheduler_memory),
        scratch(plan or {}, workers) if settings.scratch == "auto" else parse_bytes(settings.scratch),
    )


def workers_for(plan: Mapping[str, Any]) -> int:
    """One worker per two million rows, and none without a replica of its own."""
    return max(1, min(int(plan["replicas"]), math.ceil(plan["rows"] / ROWS_PER_WORKER)))


def driver_memory(plan: Mapping[str, Any]) -> int:
    """Bytes of the driver's pod: the model passes through it at most once."""
    return rounded(GIB + 1.5 * plan["parameter_bytes_at_most"], 256 * MIB)


def scratch(plan: Mapping[str, Any], workers: int) -> int:
    """Bytes of a worker's disk: hashed rows and partitions, and those of a neighbour that was lost."""
    return rounded(GIB + 2.5 * plan["partition_cache_bytes"] / workers, GIB)


def quantity(size: int) -> str:
    """A size as Kubernetes writes it."""
    return f"{size // GIB}Gi" if size % GIB == 0 else f"{math.ceil(size / MIB)}Mi"
