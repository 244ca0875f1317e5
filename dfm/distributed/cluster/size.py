"""The number of local workers where nobody says."""

from __future__ import annotations

from dataclasses import replace

from dfm.distributed.cluster.remote import is_remote
from dfm.distributed.processes import n_processes
from dfm.settings.constraints import parse_bytes
from dfm.settings.tables import ClusterSettings

_LEAST_MEMORY = 2 << 30
"""Bytes of this machine for each worker."""


def sized(settings: ClusterSettings, memory: int = 0) -> ClusterSettings:
    """The settings, which tell how many local workers there are, where the cluster is a local one.

    One for each processor, as far as there is memory for them; but two, where there are two processors. memory: bytes
    that a worker needs, as far as is known.
    """
    if settings.workers != "auto" or is_remote(settings):
        return settings
    from distributed.system import MEMORY_LIMIT

    if settings.memory_limit != "auto":
        memory = parse_bytes(settings.memory_limit)
    with_processor = max(1, n_processes() // settings.threads_per_worker)
    with_memory = MEMORY_LIMIT // max(memory, _LEAST_MEMORY)
    return replace(settings, workers=min(with_processor, max(2, with_memory)))
