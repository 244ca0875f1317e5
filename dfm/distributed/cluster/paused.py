"""Workers that are there and take no work: Dask pauses those that are short of memory, and dfm refused newcomers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Workers = Mapping[str, Mapping[str, Any]]
"""Workers by address, as the scheduler describes them."""
_OUTSIDE = "long-running"
"""The state of tasks that gave their slot back and go on outside: checkpoints that are written, and the driver that
`dfm submit` starts."""
_NO_WORK = {"memory", "error", "released", _OUTSIDE}
"""States of tasks that wait for no slot."""


def takes_work(worker: Mapping[str, Any]) -> bool:
    """Whether a worker, as the scheduler describes it, is more than paused and empty, as a refused newcomer is."""
    return not _is_paused(worker) or bool(_tasks(worker))


def standing_still(workers: Workers, here: str = "") -> str:
    """The paused workers for which all work waits, with their memory, in words; "" as long as any worker works.

    here: the address of the worker whose task the asking driver is, which is no work; "" where it is none.
    """
    paused = {address: worker for address, worker in workers.items() if _is_paused(worker)}
    if any(_is_at_work(worker, address == here) for address, worker in workers.items()):
        return ""
    if len(paused) < len(workers) and not any(_tasks(worker) - _NO_WORK for worker in paused.values()):
        return ""  # the others are idle, and take what comes
    return ", ".join(f"{address} ({_memory_of(worker)})" for address, worker in sorted(paused.items()))


def _is_paused(worker: Mapping[str, Any]) -> bool:
    return bool(worker["status"] == "paused")


def _is_at_work(worker: Mapping[str, Any], has_driver: bool) -> bool:
    """Whether tasks get on there: a paused worker ends those that it has begun, and begins none."""
    tasks = _tasks(worker)
    if worker["metrics"].get("task_counts", {}).get(_OUTSIDE, 0) > has_driver:
        return True
    return "executing" in tasks if _is_paused(worker) else bool(tasks - _NO_WORK)


def _tasks(worker: Mapping[str, Any]) -> set[str]:
    """The states of the tasks that a worker has."""
    return {state for state, count in worker["metrics"].get("task_counts", {}).items() if count}


def _memory_of(worker: Mapping[str, Any]) -> str:
    used, limit = int(worker["metrics"].get("memory") or 0), int(worker.get("memory_limit") or 0)
    return f"{used / 2**30:.2f} of {limit / 2**30:.2f} GiB" if limit else f"{used / 2**30:.2f} GiB"
