"""The number of processes that work on this machine where nobody says."""

from __future__ import annotations

MOST = 16
"""Processes that are started without being asked for."""
_OF_TEXT = 512 << 20
"""Bytes of a process that reads or makes rows one batch at a time, with room to spare."""


def n_processes(threads: int = 1) -> int:
    """One of so many threads for each processor that this process may use, by its affinity and its container's quota;
    `MOST` at most.
    """
    from dask.system import cpu_count

    return max(1, min(cpu_count() // threads, MOST))


def n_of_text() -> int:
    """Processes that convert or make rows, as far as there is memory for them; two where there are two processors."""
    from distributed.system import MEMORY_LIMIT

    most = n_processes()
    return min(most, max(2, MEMORY_LIMIT // _OF_TEXT))
