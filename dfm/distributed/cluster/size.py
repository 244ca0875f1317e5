"""The number of local workers where nobody says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dfm.distributed.cluster.remote import is_remote
from dfm.distributed.processes import n_processes
from dfm.settings.constraints import parse_bytes
from dfm.settings.tables import ClusterSettings

_LEAST_MEMORY = 2 << 30
"""Bytes of this machine for each worker."""


def _nothing_more(n_workers: int) -> int:
    return 0


def sized(settings: ClusterSettings, needs: Callable[[int], int] = _nothing_more) -> ClusterSettings:
    """The settings, which tell how many local workers there are and what memory each has, where the cluster is a local
    one and nobody says.

    One for each processor, as far as there is memory for them; but two, where there are two processors. needs: bytes
    that each of so many workers needs, as far as is known.
    """
    if settings.workers != "auto" or is_remote(settings):
        return settings
    from distributed.system import MEMORY_LIMIT

    said = 0 if settings.memory_limit == "auto" else parse_bytes(settings.memory_limit)
    most = n_processes(settings.threads_per_worker)
    fitting = (n for n in range(most, 2, -1) if n * (said or max(needs(n), _LEAST_MEMORY)) <= MEMORY_LIMIT)
    n_workers = next(fitting, min(most, 2))
    return replace(settings, workers=n_workers, memory_limit=settings.memory_limit if said else _share(n_workers))


def _share(n_workers: int) -> str:
    from distributed.system import MEMORY_LIMIT

    return f"{MEMORY_LIMIT // n_workers}B"
