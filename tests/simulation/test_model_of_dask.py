"""The cluster that histories are played on behaves as Dask does: the same short programs, on both.

A program submits tasks that need each other, loses and adds workers, forgets results and waits, in an order drawn by a
seed. What is compared is all that a driver can see: values, errors, who sees a change of an object, how often a task
may lose its worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster, Worker
from distributed.scheduler import KilledWorker

from tests.support import simulated_cluster
from tests.support.real_processes import PATIENCE, wait_until
from tests.support.simulated_cluster import ALLOWED_FAILURES, Chances, SimulatedCluster


def _firsts(stop: int, step: int, quick: int) -> list[Any]:
    """Seeds that tests begin with; those of the first ones are not slow."""
    return [pytest.param(at, marks=[pytest.mark.slow] if at >= quick else []) for at in range(0, stop, step)]


def combined(number: int, *values: Any) -> list[Any]:
    return [number, *values]


def failed(number: int, *_values: Any) -> None:
    raise ValueError(number)


def marked(number: int, value: list[int]) -> int:
    value.append(number)
    return len(value)


def looked_at(_number: int, value: list[int]) -> tuple[int, ...]:
    return tuple(value)


@dataclass(frozen=True)
class Step:
    """Submit a function on the results of earlier steps, near a worker; or lose, join, forget, wait."""

    act: str
    number: int = 0
    function: Callable[..., Any] | None = None
    needs: tuple[int, ...] = ()
    near: int | None = None


class OnDask:
    """A real scheduler and real workers, which talk as over a network, in threads of this process."""

    are_wishes = True
    """Whether a task for a worker may run elsewhere."""

    def __init__(self) -> None:
        self._own, self._workers = contextlib.ExitStack(), list[Worker]()
        self._own.enter_context(
            dask.config.set(
                {
                    "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
                    "distributed.scheduler.active-memory-manager.start": False,  # copies stay, until a test is over
                }
            )
        )
        self.cluster = self._own.enter_context(
            LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=":0")
        )
        self.client = self._own.enter_context(Client(self.cluster, set_as_default=False))

    @property
    def addresses(self) -> list[str]:
        """Of the workers, as they joined."""
        return list(self.cluster.scheduler.workers)

    def begin(self, n_workers: int) -> None:
        """Exactly so many workers."""
        for address in self.addresses:
            self.lose(address)
        for _ in range(n_workers):
            self.join()

    def submit(self, function: Callable[..., Any], *args: Any, near: str | None = None) -> Any:
        """A task for a worker, or for any."""
        wish = {"workers": [near], "allow_other_workers": self.are_wishes} if near else {}
        return self.client.submit(function, *args, pure=False, **wish)

    def join(self) -> None:
        """A worker more."""

        async def start() -> None:
            self._workers.append(await Worker(self.cluster.scheduler_address, nthreads=1, dashboard=False))

        self.cluster.sync(start)

    def lose(self, address: str) -> None:
        """The scheduler takes a worker for dead."""
        self.cluster.sync(self.cluster.scheduler.remove_worker, address, stimulus_id="lost")

    def wait(self, future: Any) -> None:
        """Until it is done."""
        future.exception(timeout=PATIENCE)

    def at(self, future: Any) -> str:
        """The worker that is at a task."""
        task = self.cluster.scheduler.tasks.get(future.key)
        return task.processing_on.address if task and task.processing_on else ""

    def close(self) -> None:
        """End it all: first those who were lost, for whose threads the event loop waits longer than Dask for it."""

        async def end() -> None:
            await asyncio.gather(*(worker.close(nanny=False) for worker in self._workers), return_exceptions=True)

        self.cluster.sync(end)
        self._own.close()


class Played:
    """The same of the cluster that is played."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def begin(self, n_workers: int) -> None:
        """Exactly so many workers."""
        self.cluster = SimulatedCluster(self.seed, n_workers, Chances(joins=0.0))

    @property
    def addresses(self) -> list[str]:
        """Of the workers, as they joined."""
        return list(self.cluster.workers)

    def submit(self, function: Callable[..., Any], *args: Any, near: str | None = None) -> Any:
        """A task, which runs on a worker if that is there."""
        return self.cluster.submit(function, *args, workers=[near] if near else [], pure=False)

    def join(self) -> None:
        """A worker more."""
        self.cluster.join()

    def lose(self, address: str) -> None:
        """The scheduler takes a worker for dead."""
        self.cluster.lose(address)

    def wait(self, future: Any) -> None:
        """Until it is done."""
        self.cluster.wait(future)

    def at(self, future: Any) -> str:
        """The worker that is at a task."""
        self.cluster.step()
        return self.cluster.tasks[future.key].at


@pytest.fixture(scope="module")
def on_dask() -> Iterator[OnDask]:
    started = OnDask()
    yield started
    started.close()


def outcomes(place: OnDask | Played, program: Sequence[Step], n_workers: int) -> dict[int, Any]:
    """What a driver sees of the tasks that it still holds at the end: a value, or the name of an error."""
    place.begin(n_workers)
    held: dict[int, Any] = {}
    for step in program:
        if step.function is not None:
            there, needs = place.addresses, [held[need] for need in step.needs]
            near = None if step.near is None else there[step.near % len(there)]
            held[step.number] = place.submit(step.function, step.number, *needs, near=near)
        elif step.act == "lose" and len(place.addresses) > 1:
            place.lose(place.addresses[step.number % len(place.addresses)])
        elif step.act == "join":
            place.join()
        elif step.act == "forget":
            del held[step.number]
        elif step.act == "wait":
            place.wait(held[step.number])
    return {number: outcome(place, future) for number, future in held.items()}


def outcome(place: OnDask | Played, future: Any) -> Any:
    place.wait(future)
    error = future.exception()
    return type(error).__name__ if error else future.result()


def with_losses(seed: int) -> list[Step]:
    draw, program, held = random.Random(seed), [], []
    for number in range(draw.randint(4, 12)):
        act = draw.choices(["submit", "fail", "lose", "join", "forget", "wait"], [6, 1, 2, 1, 1, 2])[0]
        if act in ("submit", "fail"):
            needs = tuple(sorted(draw.sample(held, min(len(held), draw.randint(0, 2)))))
            near = draw.choice([None, draw.randrange(4)])
            program.append(Step(act, number, combined if act == "submit" else failed, needs, near))
            held.append(number)
        elif act in ("lose", "join"):
            program.append(Step(act, draw.randrange(4)))
        elif held:
            program.append(Step(act, draw.choice(held)))
            if act == "forget":
                held.remove(program[-1].number)
    return program


@pytest.mark.parametrize("first", _firsts(400, 20, 60))
def test_values_and_errors_are_those_of_dask(first: int, on_dask: OnDask) -> None:
    for seed in range(first, first + 20):
        program = with_losses(seed)
        assert outcomes(Played(seed), program, 1 + seed % 3) == outcomes(on_dask, program, 1 + seed % 3), program


def of_changes(seed: int) -> list[Step]:
    """Lists that are changed in place and looked at, on two workers, each after the other."""
    draw, program, lists = random.Random(seed), [], [0]
    program.append(Step("submit", 0, combined, (), draw.randrange(2)))
    for number in range(1, 8):
        function = draw.choice([combined, marked, looked_at, looked_at])
        needs = () if function is combined else (draw.choice(lists),)
        lists += [number] if function is combined else []
        program += [Step("submit", number, function, needs, draw.randrange(2)), Step("wait", number)]
    return program


@pytest.mark.parametrize("first", _firsts(100, 20, 20))
def test_a_change_is_seen_on_the_worker_where_it_was_made_and_not_in_copies(
    first: int, on_dask: OnDask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated_cluster, "_STRAYS", 0.0)
    monkeypatch.setattr(on_dask, "are_wishes", False)
    seen = []
    for seed in range(first, first + 20):
        program = of_changes(seed)
        looks = [step.number for step in program if step.function in (marked, looked_at)]
        played, real = outcomes(Played(seed), program, 2), outcomes(on_dask, program, 2)
        assert [played[number] for number in looks] == [real[number] for number in looks], program
        seen += [real[number] for number in looks]
    assert any(isinstance(look, tuple) and len(look) > 1 for look in seen)


def test_what_the_driver_changes_later_no_task_sees(on_dask: OnDask) -> None:
    for place in (on_dask, Played(0)):
        place.begin(1)
        value = [1]
        future = place.submit(looked_at, 0, value)
        value.append(2)
        assert outcome(place, future) == (1,)


_may_end = threading.Event()
_runs: list[int] = []


def held_up(_number: int) -> int:
    """The first run ends when it may, later ones at once."""
    _runs.append(len(_runs))
    run = _runs[-1]
    if run == 0:
        _may_end.wait(PATIENCE)
    return run


def test_the_result_of_a_worker_that_was_given_up_is_dropped(on_dask: OnDask) -> None:
    _may_end.clear()
    _runs.clear()
    on_dask.begin(2)
    future = on_dask.submit(held_up, 0)
    wait_until(lambda: _runs == [0])
    on_dask.lose(on_dask.at(future))
    assert outcome(on_dask, future) == 1
    _may_end.set()
    time.sleep(0.2)
    assert outcome(on_dask, future) == 1

    _runs.clear()
    played = Played(0)
    played.begin(2)
    played.cluster.random.random = lambda: 0.2  # lives on, and does not end yet
    future = played.submit(held_up, 0)
    wait_until(lambda: bool(played.at(future)))
    played.lose(played.cluster.tasks[future.key].at)
    assert (outcome(played, future), _runs) == (0, [0])
    played.cluster.random.random = lambda: 0.05  # ends
    played.cluster.step()
    assert (outcome(played, future), _runs) == (0, [0, 1])


def test_a_task_loses_its_worker_as_often_before_it_is_an_error(on_dask: OnDask) -> None:
    losses = []
    for place in (on_dask, Played(1)):
        place.begin(1)
        _may_end.clear()
        future = place.submit(waits, 0)
        count = 0
        while future.status == "pending":
            wait_until(lambda place=place, future=future: bool(place.at(future)))
            place.join()
            place.lose(place.at(future) if place is on_dask else place.cluster.tasks[future.key].at)
            count += 1
            if place is on_dask and count > ALLOWED_FAILURES:
                wait_until(future.done)
        _may_end.set()
        assert isinstance(future.exception(), KilledWorker)
        losses.append(count)
    assert losses == [ALLOWED_FAILURES + 1] * 2


def waits(_number: int) -> None:
    _may_end.wait(PATIENCE)
