"""Questions of the scheduler to workers that join while a job runs. Sent as code: nothing of dfm is imported here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from distributed import SchedulerPlugin

Versions = dict[str, str | None]
_DISTRIBUTION = "dask-fm"
"""dfm, as pip and therefore Dask's question about versions know it (`dfm.version.DISTRIBUTION`)."""
ASKED_FOR = (_DISTRIBUTION, "numba", "pyarrow")
"""Facts of a worker that Dask does not tell by itself."""
COMPARED = ("python", "dfm", "dask", "distributed", "numba", "numpy", "pyarrow")
_OF_PYTHON = 2
"""Numbers of a Python version that must agree: 3.11.4 and 3.11.9 read each other's pickles."""
_STATUS = "worker-status-change"
_PATIENCE = 60.0
"""Seconds that a worker gets to answer, which it can do once it has started."""
_UNTIL_FORGOTTEN = 1.0

logger = logging.getLogger("distributed.scheduler.dfm")


def picked(packages: Mapping[str, str | None]) -> Versions:
    """Those of a process's versions that must agree."""
    found: Versions = {name: packages.get(_DISTRIBUTION if name == "dfm" else name) for name in COMPARED}
    found["python"] = ".".join(str(packages.get("python") or "?").split(".")[:_OF_PYTHON])
    return found


class AskNewcomers(SchedulerPlugin):
    """While a client's job runs, a worker that joins gets no work before it has told the versions of the job.

    One that has others stays paused until the client is gone. If it were ended, its nanny, its pod or an adaptive
    cluster would start it again and again; and the job of somebody else may be glad of it. `topic`: where refusals are
    told; `brought`: packages that a worker may lack, for they are sent to it; refuses: or are differences told only?
    """

    idempotent = True

    def __init__(self, topic: str, client: str, wanted: Versions, brought: tuple[str, ...], refuses: bool) -> None:
        self.name = topic
        self._client, self._wanted, self._brought, self._refuses = client, wanted, brought, refuses
        self.held_for_dfm: set[str] = set()
        self._asking: set[asyncio.Task[None]] = set()

    async def start(self, scheduler: Any) -> None:
        """Called once, when it is registered: a worker that is held does not become ready by saying so."""
        scheduler.subscribe_topic(self.name, self._client)  # its own word may come after the first newcomer
        change = scheduler.stream_handlers[_STATUS]

        def unless_held(*, status: str, worker: str, **more: Any) -> None:
            if status != "running" or not _is_held(scheduler, worker):
                change(status=status, worker=worker, **more)

        if getattr(change, "__name__", "") != unless_held.__name__:  # it stays, for all jobs
            scheduler.stream_handlers[_STATUS] = unless_held

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Called before the scheduler gives the worker any task; to be able to answer, it waits for this to return."""
        self.held_for_dfm.add(worker)
        _change(scheduler, worker, "paused")
        task = asyncio.ensure_future(self._ask(scheduler, worker))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Called when a worker has left."""
        self.held_for_dfm.discard(worker)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Called when a client has left, or its process was killed: whom it did not want may work for others."""
        if client == self._client:
            end(self.name, scheduler)

    async def _ask(self, scheduler: Any, worker: str) -> None:
        try:
            answer = await asyncio.wait_for(scheduler.rpc(worker).versions(packages=[*ASKED_FOR]), _PATIENCE)
            found = picked(dict(answer["packages"]))
        except Exception:  # whoever cannot tell is not known to fit
            found = dict.fromkeys(COMPARED)
        if worker not in self.held_for_dfm:  # it has left, or the job is over
            return
        excused = {name for name in self._brought if found[name] is None}
        differs = [name for name in COMPARED if found[name] != self._wanted[name] and name not in excused]
        if differs:
            told = {name: found[name] for name in differs}
            logger.warning("%s has other versions than a job of dfm that is running: %s", worker, told)
            scheduler.log_event(self.name, {"worker": worker, "versions": found})
        if not (differs and self._refuses):
            self.release(scheduler, worker)

    def release(self, scheduler: Any, worker: str) -> None:
        """Let a worker have work, unless another job holds it."""
        self.held_for_dfm.discard(worker)
        if not _is_held(scheduler, worker):
            _change(scheduler, worker, "running")


def end(name: str, dask_scheduler: Any) -> None:
    """Take the plugin of this name away; whom it held gets work."""
    plugin = dask_scheduler.plugins.pop(name, None)
    for worker in list(plugin.held_for_dfm) if plugin else ():
        plugin.release(dask_scheduler, worker)
    # A scheduler remembers every topic that there ever was; the client's word that it listens no more is on its way.
    dask_scheduler.loop.call_later(_UNTIL_FORGOTTEN, _forget, dask_scheduler, name)


def _forget(scheduler: Any, topic: str) -> None:
    with contextlib.suppress(AttributeError):  # of a Dask that keeps them elsewhere
        scheduler._broker._topics.pop(topic, None)


def _is_held(scheduler: Any, worker: str) -> bool:
    return any(worker in getattr(plugin, "held_for_dfm", ()) for plugin in scheduler.plugins.values())


def _change(scheduler: Any, worker: str, status: str) -> None:
    scheduler.handle_worker_status_change(status, worker, f"dfm-newcomer-{status}")
