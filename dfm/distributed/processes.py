"""The number of processes that work on this machine where nobody says."""

from __future__ import annotations

MOST = 16
"""Processes that are started without being asked for."""


def n_processes() -> int:
    """One for each processor that this process may use, by its affinity and its container's quota; `MOST` at most."""
    from dask.system import cpu_count

    return min(cpu_count(), MOST)
