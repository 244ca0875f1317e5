"""A cluster of Dask that is played by one thread: whatever may happen next is drawn from a seed.

The tasks are real, and so is the driver; scheduler, workers and network are a model of Dask's documented behaviour:

- a task runs on any worker once what it depends on lies on some worker. On the worker where it lies a task gets the
  same object (one that changes it spoils it for others), elsewhere a pickled copy, which then lies there too;
- a worker is lost with all that lies on it. What is still needed is computed again, from whatever it depends on; a task
  that was under way there is run again, `ALLOWED_FAILURES` times, then it is an error (KilledWorker);
- a worker that is given up may live on: what it was at ends later, and its result is dropped;
- results are told in any order; workers join, leave, stall; the scheduler may end;
- the driver's disk may be full, a folder's listing that of before its last change, and the clock may jump.

The driver's own waits are where the play goes on: nothing happens between two of them.
"""

from __future__ import annotations

import datetime
import itertools
import pickle
import random
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
from distributed.scheduler import KilledWorker

from dfm.distributed.cluster.watch import Watch
from dfm.errors import ClusterError, StorageError
from dfm.storage import files

ALLOWED_FAILURES = 4
_MOST_STEPS = 200_000
_STRAYS = 0.01
"""Tasks that run elsewhere than they were wished to, though their worker is there."""
_JUMPS = 1.0, 60.0, 3_600.0, 86_400.0
"""Seconds by which a clock jumps."""
_NAMES_IN = files.names_in


class DriverDied(BaseException):
    """The driver's process is gone: no code of dfm is to catch it."""


@dataclass
class Chances:
    """How often each thing happens, per step of the play."""

    lost: float = 0.0
    """A worker is lost; half of them live on for a while."""
    joins: float = 0.1
    """A worker joins, where there are fewer than at the beginning or, rarely, beyond."""
    driver: float = 0.0
    scheduler: float = 0.0
    forgets: float = 0.0
    """A copy of a result is dropped, as Dask does where there are several."""
    rival: float = 0.0
    """Another driver of the same job begins, and comes to its end meanwhile."""
    full: float = 0.0
    """Per file that is written: the disk is full."""
    stale: float = 0.0
    """Per listing of a folder: it is that of before the folder's last change, once."""
    jumps: float = 0.0
    """The clock of the driver's machine jumps, by up to a day, ahead or back."""


@dataclass
class Task:
    """A task and where its result lies."""

    key: str
    function: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    needs: tuple[str, ...]
    near: tuple[str, ...] = ()
    at: str = ""
    """The worker that is at it."""
    error: BaseException | None = None
    holders: set[str] = field(default_factory=set)
    failures: int = 0


class SimulatedFuture:
    """What the driver holds of a task."""

    def __init__(self, cluster: SimulatedCluster, key: str) -> None:
        self.cluster, self.key = cluster, key
        cluster.held[key] += 1

    def __del__(self) -> None:
        self.cluster.held[self.key] -= 1

    @property
    def status(self) -> str:
        """As Dask's."""
        task = self.cluster.tasks[self.key]
        return "error" if task.error else "finished" if task.holders else "pending"

    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self.status != "pending"

    def exception(self) -> BaseException | None:
        """The error."""
        return self.cluster.tasks[self.key].error

    def result(self) -> Any:
        """A copy of the result, once it is there."""
        return self.cluster.fetch(self)


class SimulatedCluster:
    """Scheduler, workers and network."""

    def __init__(
        self, seed: int, n_workers: int, chances: Chances, listings: dict[str, list[str]] | None = None
    ) -> None:
        self.random, self.chances, self.n_workers = random.Random(seed), chances, n_workers
        self.listings = {} if listings is None else listings
        """Names in a folder before its last change, by URL: of all drivers of a history."""
        self.clock = datetime.timedelta(0)
        """What the clock of the driver's machine is ahead."""
        self.tasks: dict[str, Task] = {}
        self.workers: dict[str, dict[str, Any]] = {}
        self.held: Counter[str] = Counter()
        self.under_way: dict[str, Task] = {}
        self.zombies: list[Task] = []
        self.trace: list[str] = []
        self.between: list[Callable[[], None]] = []
        """What else may happen at a step: threads of the driver, each called at random."""
        self.rival: Callable[[], None] | None = None
        self._numbers = itertools.count()
        self._steps = 0
        self._in_between = self._is_over = False
        self.is_up = True
        for _ in range(n_workers):
            self.join()

    def change(self, act: Callable[..., None], needs_room: bool, *arguments: Any) -> None:
        """Write or delete a file. StorageError where the disk is full at that moment."""
        if self._is_over:
            raise DriverDied  # a process that was killed does not tidy up
        if needs_room and self.random.random() < self.chances.full:
            self._say(f"no room for {arguments[0]}")
            raise StorageError(f"{arguments[0]} cannot be written: the disk is full")
        folder = str(arguments[0]).rsplit("/", 1)[0]
        if self.chances.stale:
            self.listings[folder] = _NAMES_IN(folder)
        act(*arguments)

    def names_in(self, url: str, options: files.Options = None) -> list[str]:
        """Names in a folder, as they are or were."""
        folder = url.rstrip("/")
        if folder in self.listings and self.random.random() < self.chances.stale:
            self._say(f"{folder.rsplit('/', 1)[-1]} is listed as it was")
            return self.listings.pop(folder)
        return _NAMES_IN(url, options)

    def now(self) -> datetime.datetime:
        """The moment, by the clock of the driver's machine."""
        return datetime.datetime.now(datetime.UTC) + self.clock

    # ------------------------------------------------------------------------------- what a client does ----

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> SimulatedFuture:
        """A task. It runs where it is wished to, as long as that worker is there, and rarely elsewhere."""
        near = tuple(kwargs.get("workers") or ())
        for option in ("pure", "workers", "allow_other_workers", "priority", "resources"):
            kwargs.pop(option, None)
        key = f"{function.__name__}-{next(self._numbers)}"
        needs = tuple(dict.fromkeys(future.key for future in _futures((args, kwargs))))
        # As Dask pickles a graph at once: what the driver changes later is another object.
        frozen = cloudpickle.dumps((function, _to_keys(args), _to_keys(kwargs)))
        function, args, kwargs = pickle.loads(frozen)
        self.tasks[key] = Task(key, function, args, kwargs, needs, near)
        return SimulatedFuture(self, key)

    def fetch(self, future: SimulatedFuture) -> Any:
        """A copy of a result; its error is raised."""
        self.wait(future)
        task = self.tasks[future.key]
        if task.error:
            raise task.error
        holder = self.random.choice(sorted(task.holders))
        return _copied(self.workers[holder][future.key])

    def wait(self, future: SimulatedFuture) -> None:
        """Play until the task is done."""
        while not future.done():
            self.step()

    # ---------------------------------------------------------------------------------------- the play ----

    def step(self) -> None:
        """One thing happens."""
        self._steps += 1
        assert self._steps < _MOST_STEPS, f"hung: {self.trace[-20:]}"
        self._fate()
        if self.between and not self._in_between and self.random.random() < 0.3:
            self._in_between = True
            try:
                self.random.choice(self.between)()
            finally:
                self._in_between = False
            return
        choices = [*self.under_way.values(), *self._ready()]
        if self.zombies and self.random.random() < 0.1:
            self._run_late(self.zombies.pop(self.random.randrange(len(self.zombies))))
        elif choices:
            task = self.random.choice(choices)
            if task.at:
                self._end(task)
            else:
                self._begin(task)

    def _fate(self) -> None:
        draw = self.random.random
        if draw() < self.chances.driver:
            self._say("the driver dies")
            self._is_over = True
            raise DriverDied
        if draw() < self.chances.scheduler:
            self._say("the scheduler ends")
            self.is_up = False
            raise ClusterError("the scheduler is gone")
        if self.chances.jumps and draw() < self.chances.jumps:
            self.clock += self.random.choice([-1, 1]) * datetime.timedelta(seconds=self.random.choice(_JUMPS))
            self._say(f"the clock jumps, to {self.clock} from the truth")
        if self.rival and draw() < self.chances.rival:
            rival, self.rival = self.rival, None
            self._say("a rival begins")
            rival()
        if self.workers and draw() < self.chances.lost:
            self.lose(self.random.choice(sorted(self.workers)))
        missing = len(self.workers) < self.n_workers
        if draw() < (self.chances.joins if missing else self.chances.joins * 0.01):
            self.join()
        if draw() < self.chances.forgets:
            self._forget_a_copy()
        self._release()

    def join(self) -> None:
        address = f"worker-{next(self._numbers)}"
        self.workers[address] = {}
        self._say(f"{address} joins")

    def lose(self, address: str) -> None:
        self._say(f"{address} is lost")
        lives_on = self.random.random() < 0.5
        del self.workers[address]
        for task in self.tasks.values():
            task.holders.discard(address)
            if task.at == address:
                self._stop(task)
                task.failures += 1
                if lives_on:
                    self.zombies.append(task)
                if task.failures > ALLOWED_FAILURES:
                    task.error = KilledWorker(task.key, types.SimpleNamespace(address=address), ALLOWED_FAILURES)

    def _forget_a_copy(self) -> None:
        several = [task for task in self.tasks.values() if len(task.holders) > 1]
        if several:
            task = self.random.choice(several)
            address = self.random.choice(sorted(task.holders))
            task.holders.discard(address)
            self.workers[address].pop(task.key, None)

    def _wanted(self) -> set[str]:
        """Keys whose results are needed: held by the driver, or by a task that is needed and not done."""
        wanted: set[str] = set()
        open_ones = [key for key, count in self.held.items() if count > 0 and not self.tasks[key].error]
        while open_ones:
            key = open_ones.pop()
            if key in wanted:
                continue
            wanted.add(key)
            task = self.tasks[key]
            if not task.holders:
                open_ones += [need for need in task.needs if not self.tasks[need].error]
        return wanted

    def _ready(self) -> list[Task]:
        if not self.workers:
            return []
        ready = []
        for key in self._wanted():
            task = self.tasks[key]
            if task.holders or task.at or task.error:
                continue
            failed = next((self.tasks[need] for need in task.needs if self.tasks[need].error), None)
            if failed:
                task.error = failed.error
            elif all(self.tasks[need].holders for need in task.needs):
                ready.append(task)
        return sorted(ready, key=lambda task: task.key)

    def _stop(self, task: Task) -> str:
        address, task.at = task.at, ""
        del self.under_way[task.key]
        return address

    def _begin(self, task: Task) -> None:
        wished = [address for address in task.near if address in self.workers]
        task.at = self.random.choice(wished if wished and self.random.random() > _STRAYS else sorted(self.workers))
        self.under_way[task.key] = task
        self._say(f"{task.key} begins on {task.at}")

    def _end(self, task: Task) -> None:
        address = self._stop(task)
        if not all(self.tasks[need].holders for need in task.needs):
            return  # what it was to be made of is gone: it is begun again
        try:
            result = self._run(task, address)
        except Exception as error:
            task.error = error
            self._say(f"{task.key}: {type(error).__name__}: {error}")
            return
        if self.random.random() < self.chances.lost * 2:  # done, and not told
            self._say(f"{task.key} is done on {address}, which is lost before it tells")
            self.lose(address)
            return
        self.workers[address][task.key] = result
        task.holders.add(address)
        self._say(f"{task.key} is done on {address}")

    def _run(self, task: Task, address: str) -> Any:
        here = self.workers[address]
        for need in task.needs:
            if need not in here:
                holder = self.random.choice(sorted(self.tasks[need].holders))
                here[need] = _copied(self.workers[holder][need])
                self.tasks[need].holders.add(address)
        return task.function(*_to_values(task.args, here), **_to_values(task.kwargs, here))

    def _run_late(self, task: Task) -> None:
        """A worker that was given up ends what it was at: what it writes is written, its result is dropped."""
        if all(self.tasks[need].holders for need in task.needs):
            values = {need: _copied(self.workers[min(self.tasks[need].holders)][need]) for need in task.needs}
            self._say(f"{task.key} ends late")
            try:
                task.function(*_to_values(task.args, values), **_to_values(task.kwargs, values))
            except Exception as error:
                self._say(f"late: {type(error).__name__}: {error}")

    def _release(self) -> None:
        """Forget results that nobody needs."""
        wanted = self._wanted()
        needed = {need for key in wanted for need in self.tasks[key].needs if not self.tasks[key].holders}
        for key in {key for there in self.workers.values() for key in there} - needed:
            if self.held[key] <= 0:
                for address in self.tasks[key].holders:
                    self.workers[address].pop(key, None)
                self.tasks[key].holders.clear()
        for task in [task for task in self.under_way.values() if task.key not in wanted]:
            self._stop(task)  # nobody waits for it any more: Dask lets it end and drops what it gives
            self.zombies.append(task)

    def _say(self, text: str) -> None:
        self.trace.append(text)


class SimulatedClient:
    """What dfm asks of a client beside its `Watch`."""

    status, loop, cluster, id = "running", None, None, "simulated"

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self.submit = cluster.submit

    def gather(self, futures: Any) -> Any:
        """Copies of results, in whatever they were given."""
        return _mapped(futures, SimulatedFuture, self._cluster.fetch)

    def run(self, function: Callable[..., Any], *arguments: Any, **_options: Any) -> dict[str, Any]:
        """What a function gives on each worker."""
        return {address: function(*arguments) for address in self._cluster.workers}

    def register_plugin(self, _plugin: Any) -> None:
        """Nobody looks at metrics."""

    def cancel(self, futures: Any, force: bool = False) -> None:
        """Nothing is cancelled: what nobody holds is forgotten anyway."""


class SimulatedWatch(Watch):
    """A watch whose waits are where the play goes on."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.client = SimulatedClient(cluster)  # type: ignore[assignment]
        self._cluster = cluster

    def _workers(self) -> Any:
        return {address: {"nthreads": 1} for address in self._cluster.workers}

    def threads(self) -> dict[str, int]:
        """Addresses of the workers, once there is one; each runs one task at a time."""
        while not self._cluster.workers:
            self._cluster.step()
        return dict.fromkeys(sorted(self._cluster.workers), 1)

    def result(self, future: Any) -> Any:
        """A copy of a result."""
        return self._cluster.fetch(future)

    def wait(self, future: Any) -> None:
        """Until the task is done; its error is raised."""
        self._cluster.wait(future)
        if error := future.exception():
            raise error

    def as_completed(self, futures: Sequence[Any]) -> Iterator[Any]:
        """The tasks in the order in which they end, or as it is told."""
        waiting = list(futures)
        while waiting:
            done = [future for future in waiting if future.done()]
            if not done:
                self._cluster.step()
                continue
            future = self._cluster.random.choice(done)
            waiting.remove(future)
            self.wait(future)
            yield future


def _futures(value: Any) -> Iterator[SimulatedFuture]:
    if isinstance(value, SimulatedFuture):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _futures(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _futures(each)


@dataclass(frozen=True)
class _Key:
    key: str


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(each, kind, change) for name, each in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_mapped(each, kind, change) for each in value)
    return value


def _to_keys(value: Any) -> Any:
    return _mapped(value, SimulatedFuture, lambda future: _Key(future.key))


def _to_values(value: Any, values: dict[str, Any]) -> Any:
    return _mapped(value, _Key, lambda key: values[key.key])


def _copied(value: Any) -> Any:
    return pickle.loads(cloudpickle.dumps(value))
