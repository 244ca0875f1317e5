"""Duties of the scheduler when workers come and go. Sent to it as code: this module imports nothing of dfm.

So it reaches a scheduler of another version of dfm as well, or of none. A job does not run there, though: the scheduler
unpickles every graph that is submitted, and all graphs of dfm hold its functions.
"""

from __future__ import annotations

from typing import Any

from distributed import SchedulerPlugin


class ReleaseFromLostWorkers(SchedulerPlugin):
    """Tasks that merely prefer a worker run elsewhere when it is gone.

    Dask sees to that while other workers are there. When all are gone at once, the tasks wait for one of the addresses
    they preferred, and a restarted worker has a new one.
    """

    name = "dfm-release-from-lost-workers"
    idempotent = True

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Called before the scheduler looks which waiting tasks the new worker may run."""
        for task in scheduler.unrunnable:
            if task.loose_restrictions and task.worker_restrictions:
                task.worker_restrictions = {
                    address for address in task.worker_restrictions if address in scheduler.workers
                }
