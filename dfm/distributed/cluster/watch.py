"""A watch over work on a cluster: what is submitted, awaited and released while workers come and go."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

import cloudpickle
import distributed
from distributed import Client, Future, LocalCluster, Status, get_worker

from dfm.distributed.cluster import lost_workers
from dfm.distributed.cluster.paused import standing_still, takes_work
from dfm.distributed.cluster.remote import (
    LONGEST_ANSWER,
    check_client,
    install,
    task_that_waits,
    workers_of,
)
from dfm.distributed.cluster.versions import by_value
from dfm.errors import ClusterError
from dfm.training.backends import Workplaces

logger = logging.getLogger(__name__)
T = TypeVar("T")
MOST_REMEMBERED = 1 << 30
"""Bytes of values of this process that a scheduler, which has a few GB of its own, is asked to remember."""
_PIECE = 4 << 20
"""Bytes of a message to the scheduler; Dask warns of more than 10 MiB."""
_LOOK_AROUND = 2.0
"""Seconds between two looks at the workers while the driver waits."""
_BETWEEN_STARTS = 5.0
"""Seconds between two times that missing local workers are started."""
_PATIENCE = (1.0, 2.0, 4.0, 8.0, 30.0)
"""Seconds until a result is fetched anew: Dask tries for 30 s to reach a worker that is gone."""


def home_of(number: int, total: int, workers: Sequence[T]) -> T:
    """The worker that item `number` of `total` prefers: neighbours go together, every worker gets its share."""
    return workers[number * len(workers) // max(total, 1)]


class Watch:
    """A client whose waits end when the cluster is gone: when it had no worker, or only paused ones, for `timeout`
    seconds.

    Dask itself waits for ever by default, for workers as for a scheduler that does not answer.
    """

    def __init__(self, client: Client, timeout: float) -> None:
        check_client(client)
        self.client = client
        self._timeout = timeout
        # `_seen`: when the wait that goes on began, or last saw a cluster that can work.
        self._seen = self._next = self._next_start = time.monotonic()
        self._has_warned, self._here = False, _here()
        release_from_lost_workers(client)

    def addresses(self) -> list[str]:
        """Addresses of the workers alive, in a fixed order. Waits for the first one; ClusterError where none comes."""
        return list(self.threads())

    def threads(self) -> dict[str, int]:
        """The same, with the tasks that each runs at a time."""
        waits: Future | None = None
        self._seen = time.monotonic()
        while not (workers := self._workers()):
            self._check(workers)
            if waits is None and self.client.status == "running":
                waits = task_that_waits(self.client)
            time.sleep(0.1)
        return {address: int(workers[address]["nthreads"]) for address in sorted(workers)}

    def n_threads(self) -> int:
        """Tasks that the cluster runs at a time."""
        return max(1, sum(int(worker["nthreads"]) for worker in self._workers().values()))

    def workplaces(self) -> Workplaces:
        """Threads and workers that there are."""
        return Workplaces(self.n_threads(), len(self.addresses()))

    def submit(self, function: Callable[..., Any], *args: Any, near: str = "", **options: Any) -> Future:
        """A task of its own key, for any worker; `near`: where it had best run, as long as that worker is there.

        options: those of `Client.submit`.
        """
        if near:
            options |= {"workers": [near], "allow_other_workers": True}
        return self.client.submit(function, *args, pure=False, **options)

    def keep(self, value: Any, near: str = "") -> Future:
        """A value of this process on a worker, near the one of that address; sent again where it was lost.

        What is scattered lies on one worker (Dask takes away copies that nobody waits for) and goes with it, and with
        it all that was to be made of it. This comes from tasks that hold its pickle, in pieces small enough for the
        scheduler, which remembers them as long as the future is held. What is too much for that is scattered.
        """
        data = cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        if len(data) > MOST_REMEMBERED:
            workers = [near] if near in self.addresses() else None
            scattered: Future = self.client.scatter(value, workers=workers, hash=False)
            return scattered
        pieces = [self.submit(_piece, data[i : i + _PIECE], near=near) for i in range(0, len(data), _PIECE)]
        return self.submit(_joined, pieces, near=near)

    def results(self, futures: Sequence[Future]) -> list[Any]:
        """The results of tasks, small ones, in order."""
        return [self.result(future) for future in futures]

    def result(self, future: Future) -> Any:
        """The result of a task, a small one; its error is raised.

        A fetch that takes long is begun anew: the worker that had the result may be dead, and another compute it again.
        The slow one is left to itself, which ends when Dask gives that worker up.
        """
        self._seen = time.monotonic()
        for seconds in itertools.chain(_PATIENCE, itertools.repeat(_PATIENCE[-1])):
            self._wait(future)
            with contextlib.suppress(TimeoutError):
                return self.client.sync(_fetched, self.client, future, seconds)
            self._look_around()
        raise AssertionError("not reached")

    def wait(self, future: Future) -> None:
        """Return when a task is done; its error is raised. The result stays on the cluster."""
        self._seen = time.monotonic()
        self._wait(future)

    def _wait(self, future: Future) -> None:
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        while not done.wait(_LOOK_AROUND):
            self._look_around()
        _raise_if_failed(future)

    def as_completed(self, futures: Sequence[Future]) -> Iterator[Future]:
        """The tasks as they end; the first error is raised."""
        completed = distributed.as_completed(list(futures), loop=self.client.loop)
        left = len(futures)
        self._seen = time.monotonic()
        while left:
            if not completed.has_ready():
                time.sleep(0.01)
                if time.monotonic() > self._next:
                    self._look_around()
                continue
            for future in completed.next_batch(block=False):
                left -= 1
                _raise_if_failed(future)
                yield future
            self._seen = time.monotonic()

    def _look_around(self) -> None:
        self._next = time.monotonic() + _LOOK_AROUND
        self._check(self._workers())

    def _workers(self) -> Mapping[str, Any]:
        """The workers that take work. Local ones that Dask gave up on are started anew."""
        if self.client.status not in ("running", "newly-created"):
            return {}
        try:
            workers: Mapping[str, Any] = workers_of(self.client, min(LONGEST_ANSWER, self._timeout))
        except (OSError, ClusterError):
            return {}
        local = self.client.cluster
        if isinstance(local, LocalCluster) and len(workers) < len(local.worker_spec):
            self._start_missing(local)
        return {address: worker for address, worker in workers.items() if takes_work(worker)}

    def _start_missing(self, local: LocalCluster) -> None:
        if time.monotonic() > self._next_start:
            self._next_start = time.monotonic() + _BETWEEN_STARTS
            local.loop.add_callback(_start_missing, local)

    def _check(self, workers: Mapping[str, Any]) -> None:
        """ClusterError where the cluster has been without a worker, out of reach, or paused, for too long."""
        paused = standing_still(workers, self._here)
        waited = time.monotonic() - self._seen
        if workers and not paused:
            self._seen, self._has_warned = time.monotonic(), False
        elif self.client.status == "closed":
            raise ClusterError("the scheduler is gone; start it and its workers, and run the same command again")
        elif waited > self._timeout:
            raise ClusterError(self._trouble(paused))
        elif paused and waited > 2 * _LOOK_AROUND and not self._has_warned:
            self._has_warned = True
            logger.warning("all work waits for workers that are paused, being short of memory: %s", paused)

    def _trouble(self, paused: str) -> str:
        over = f"for cluster.worker_timeout = {self._timeout:g} s"
        again = "run the same command again: what is finished is not repeated"
        if paused:
            return (
                f"all work has waited {over} for workers that Dask has paused near their memory limit, which begin "
                f"nothing until memory is free: {paused}; start workers with a greater --memory-limit, or with "
                f"distributed.worker.memory.pause = false (deploy/distributed.yaml), and {again}"
            )
        return (
            f"the cluster had no worker, or its scheduler did not answer, {over}; see that workers are started and "
            f"have memory to spare, and {again}"
        )


def _here() -> str:
    """The address of the worker whose task this thread works on; "" where it is none."""
    try:
        return str(get_worker().address)
    except ValueError:
        return ""


def _start_missing(local: LocalCluster) -> None:
    """Start workers anew that Dask gave up on: those that were killed while they started, and those whose successor was
    refused, since the scheduler still had the killed one's name. The latter's nannies are closed, and it keeps them
    for good. Called by the cluster's event loop, which changes its workers, too.
    """
    for name, nanny in list(local.workers.items()):
        if name in local.worker_spec and nanny.status in (Status.closed, Status.failed):
            logger.warning("local worker %s ended for good; another is started", name)
            del local.workers[name]
    local.scale(len(local.worker_spec))


def _piece(data: bytes) -> bytes:
    return data


def _joined(pieces: Sequence[bytes]) -> Any:
    return pickle.loads(b"".join(pieces))


async def _fetched(client: Client, future: Future, seconds: float) -> Any:
    """The result of a task, or TimeoutError; the fetch is left alone then.

    `future.result(timeout)` cancels it. A client whose fetch was cancelled before it began, by a timeout or by Ctrl-C,
    attaches each later one to it, and all of them fail (https://github.com/dask/distributed/issues/8514).
    """
    fetch = asyncio.ensure_future(client.gather(future, asynchronous=True))
    fetch.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may be left to ask
    done, _ = await asyncio.wait({fetch}, timeout=seconds)
    if not done:
        raise TimeoutError
    return fetch.result()


def _raise_if_failed(future: Future) -> None:
    """A result that was lost with its worker is no failure: Dask computes it again."""
    if future.status == "error":
        error: Any = future.exception()
        raise error
    if future.status == "cancelled":
        raise CancelledError(future.key)


def release_from_lost_workers(client: Client) -> None:
    """Let tasks that prefer a worker which no longer exists run on any; registering it twice does no harm."""
    with by_value(lost_workers):
        install(client, lost_workers.ReleaseFromLostWorkers())
