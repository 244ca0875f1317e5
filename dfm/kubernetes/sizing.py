"""How many workers a job wants and how large its pods must be, from the plan that `dfm train --dry-run` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dfm.settings import KubernetesSettings, parse_bytes

MIB, GIB = 1 << 20, 1 << 30
ROWS_PER_WORKER = 2_000_000
"""A rule of thumb, not a measurement: at about a million rows a second and core, an epoch of a few seconds."""
_PROCESS = 512 * MIB
"""A worker before any row: Python, Dask, Arrow, compiled kernels, and the nanny beside it."""
_TASK_ROWS = 1 << 18
_DECODED_CELL = 32
"""Bytes of a cell while its shard is read: Arrow values, hashes, indices and their dealt copies."""


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


def worker_memory(plan: Mapping[str, Any], threads: int) -> int:
    """Bytes of a worker pod: an upper bound, for the plan's counts of features are.

    Per task that runs at a time: a shard being read, a replica's partitions being built, or three copies of what a
    round touches (before, after, difference). Beside them two copies of the table. Mapped partitions are page cache,
    which the system takes back.
    """
    fields = len(plan["columns"])
    reading = _TASK_ROWS * fields * _DECODED_CELL
    building = 2 * plan["rows_per_replica"] * (4 * fields + 12)
    training = 3 * plan["round_bytes_per_replica_at_most"] // 2
    tables = 2 * plan["parameter_bytes_at_most"]
    return _rounded(1.25 * (_PROCESS + threads * max(reading, building, training) + tables), 256 * MIB)


def driver_memory(plan: Mapping[str, Any]) -> int:
    """Bytes of the driver's pod: the model passes through it at most once."""
    return _rounded(GIB + 1.5 * plan["parameter_bytes_at_most"], 256 * MIB)


def scratch(plan: Mapping[str, Any], workers: int) -> int:
    """Bytes of a worker's disk: hashed rows and partitions, and those of a neighbour that was lost."""
    return _rounded(GIB + 2.5 * plan["partition_cache_bytes"] / workers, GIB)


def _rounded(value: float, step: int) -> int:
    return math.ceil(value / step) * step


def quantity(size: int) -> str:
    """A size as Kubernetes writes it."""
    return f"{size // GIB}Gi" if size % GIB == 0 else f"{math.ceil(size / MIB)}Mi"
