"""Values go from task to task, worker to worker, in order; and nobody waits for a task that will not come."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker

from dfm import jobs
from dfm.distributed import exact as exact_places
from dfm.distributed import exchange
from dfm.distributed.cluster.watch import Watch, home_of
from dfm.distributed.exact import Workers, members_of
from dfm.distributed.exchange import Door, WorkersMeeting, open_door
from dfm.training import exact, exact_together
from dfm.training.exact import ExactExecutor
from dfm.training.exact_rounds import begin_rows, find_visits, first_block, lay_out
from dfm.training.exact_together import block_of, walk_together
from dfm.training.exact_work import ExactWork
from dfm.training.together import Exchange, MemberLost
from tests.distributed.test_exact_solvers import MCMC, folder, tables_of
from tests.support.exact_cases import (
    SCHEDULE,
    dense_of,
    executor_of,
    partition_of,
    rows_between,
    vocabulary_of,
    work_of,
)
from tests.support.real_processes import wait_until
from tests.support.small_jobs import in_process_client

folder = folder
N_MEMBERS = 3
Talk = Callable[[Exchange, int], Any]


@pytest.fixture(scope="module")
def workers() -> Iterator[Client]:
    with in_process_client(N_MEMBERS) as client:
        yield client


@pytest.fixture
def doors(workers: Client) -> Iterator[tuple[Door, ...]]:
    """Workers whose doors are open. Of no meeting anything is left."""
    addresses = sorted(workers.scheduler_info(n_workers=-1)["workers"])
    found = tuple(workers.submit(open_door, workers=[each], pure=False).result() for each in addresses)
    assert [door.address for door in found] == addresses
    yield found
    deadline = time.monotonic() + 10
    while exchange._MEMBERS and time.monotonic() < deadline:
        time.sleep(0.05)
    assert exchange._MEMBERS == {}


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ARRIVAL", 2.0)
    monkeypatch.setattr(exchange, "_LOOK_AROUND", 0.2)


def take_part(meeting: WorkersMeeting, number: int, talk: Talk) -> Any:
    with meeting.joined(number) as others:
        return talk(others, number)


def begun(client: Client, meeting: WorkersMeeting, talk: Talk, members: range = range(N_MEMBERS)) -> list[Any]:
    return [
        client.submit(take_part, meeting, number, talk, workers=[meeting.doors[number].address], pure=False)
        for number in members
    ]


def test_every_member_gets_what_all_gave_in_their_order(workers: Client, doors: tuple[Door, ...]) -> None:
    def talk(others: Exchange, number: int) -> list[Any]:
        time.sleep(0.1 * number)  # the first goes on with the next step while others are at this one
        found: list[Any] = [others.to_all(np.full(3, number)) for _ in range(4)]
        return [*found, others.to_each([(number, to) for to in range(others.n_members)]), others.to_all(None)]

    for number, told in enumerate(workers.gather(begun(workers, WorkersMeeting(doors), talk))):
        for values in told[:4]:
            np.testing.assert_array_equal(np.stack(values), [[0] * 3, [1] * 3, [2] * 3])
        assert told[4:] == [[(0, number), (1, number), (2, number)], [None] * N_MEMBERS]


def test_two_members_on_one_worker_meet_in_its_memory(workers: Client, doors: tuple[Door, ...]) -> None:
    meeting = WorkersMeeting((doors[0], doors[0]))

    def both() -> dict[int, Any]:
        worker, found = get_worker(), dict[int, Any]()

        def one(number: int) -> None:
            with exchange.as_member(meeting, number, worker) as others:
                found[number] = others.to_all(number)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return found

    assert workers.submit(both, workers=[doors[0].address], pure=False).result() == {0: [0, 1], 1: [0, 1]}


def test_a_meeting_of_one_asks_nobody(workers: Client, doors: tuple[Door, ...]) -> None:
    assert workers.gather(begun(workers, WorkersMeeting(doors[:1]), lambda others, _: others.to_all(5), range(1)))


def test_who_fails_is_not_waited_for(workers: Client, doors: tuple[Door, ...]) -> None:
    def talk(others: Exchange, number: int) -> None:
        others.to_all(number)
        if number == 1:
            raise MemoryError("of the second")
        others.to_all(number)

    started = time.monotonic()
    first, second, third = begun(workers, WorkersMeeting(doors), talk)
    assert isinstance(first.exception(), MemberLost)
    assert isinstance(second.exception(), MemoryError)
    assert isinstance(third.exception(), MemberLost)
    assert time.monotonic() - started < exchange._LOOK_AROUND, "they are told"


@pytest.mark.usefixtures("in_a_hurry")
def test_who_does_not_come_is_waited_for_a_while(workers: Client, doors: tuple[Door, ...]) -> None:
    meeting = WorkersMeeting(doors)
    there = begun(workers, meeting, lambda others, number: others.to_all(number), range(2))
    assert all(isinstance(each.exception(), MemberLost) for each in there)
    (late,) = begun(workers, meeting, lambda others, number: others.to_all(number), range(2, 3))
    assert isinstance(late.exception(), MemberLost), "it is told that all is over"


@pytest.mark.usefixtures("in_a_hurry")
def test_who_takes_long_is_waited_for(workers: Client, doors: tuple[Door, ...]) -> None:
    meeting = WorkersMeeting(doors)

    def all_are_here() -> bool:
        here = [key for key, member in dict(exchange._MEMBERS).items() if member.state == exchange._HERE]
        return all((meeting.name, number) in here for number in range(N_MEMBERS))

    def talk(others: Exchange, number: int) -> list[Any]:
        wait_until(all_are_here)  # whom a busy machine keeps away is not waited for that long
        if number == 2:
            time.sleep(1.5 * exchange.ARRIVAL)
        return others.to_all(number)

    assert workers.gather(begun(workers, meeting, talk)) == [[0, 1, 2]] * N_MEMBERS


def test_a_task_that_came_to_another_worker_takes_no_part(workers: Client, doors: tuple[Door, ...]) -> None:
    meeting = WorkersMeeting(doors)
    strayed = workers.submit(take_part, meeting, 0, lambda *_: None, workers=[doors[1].address], pure=False)
    assert isinstance(strayed.exception(), MemberLost)
    there = begun(workers, meeting, lambda others, number: others.to_all(number), range(1, N_MEMBERS))
    assert all(isinstance(each.exception(), MemberLost) for each in there)


@pytest.mark.usefixtures("in_a_hurry")
def test_meetings_that_wait_for_each_other_come_to_an_end(workers: Client, doors: tuple[Door, ...]) -> None:
    """Two trainings on workers of one thread: each has the thread that the other needs, until one gives up."""

    def say(others: Exchange, number: int) -> list[Any]:
        return others.to_all(number)

    one, other = WorkersMeeting(doors[:2]), WorkersMeeting(doors[:2])
    both = begun(workers, one, say, range(1)) + begun(workers, other, say, range(1, 2))
    time.sleep(0.2)
    both += begun(workers, other, say, range(1)) + begun(workers, one, say, range(1, 2))
    errors = [each.exception(timeout=20) for each in both]
    assert any(isinstance(error, MemberLost) for error in errors)
    assert all(error is None or isinstance(error, MemberLost) for error in errors)


def test_a_worker_whose_door_is_shut_is_not_waited_for(workers: Client, doors: tuple[Door, ...]) -> None:
    def shut() -> None:
        worker = get_worker()
        del worker.handlers[exchange._GIVE], worker.handlers[exchange._ASK]

    workers.submit(shut, workers=[doors[2].address], pure=False).result()
    first, _ = begun(workers, WorkersMeeting(doors), lambda others, number: others.to_all(number), range(2))
    assert isinstance(first.exception(timeout=20), MemberLost)


@pytest.mark.usefixtures("in_a_hurry")
def test_a_process_that_took_the_place_of_another_is_no_member(workers: Client, doors: tuple[Door, ...]) -> None:
    """A worker that was restarted keeps its address; who was there before had values that it never saw."""
    meeting = WorkersMeeting((doors[0], Door(doors[1].address, "the one before")))
    first, second = begun(workers, meeting, lambda others, number: others.to_all(number), range(2))
    assert isinstance(first.exception(timeout=20), MemberLost)
    assert isinstance(second.exception(timeout=20), MemberLost)
    about: dict[str, Any] = {"name": "not ended", "member": 1, "process": "the one before"}
    assert asyncio.run(exchange._give(**about, step=0, sender=0, value=5)) == exchange._OVER
    assert asyncio.run(exchange._ask(**about)) == exchange._OVER
    assert exchange._MEMBERS == {}, "nothing was kept for it"


def test_what_came_for_a_member_who_never_does_is_thrown_away(
    workers: Client, doors: tuple[Door, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"member": 0, "process": doors[0].process, "step": 0, "sender": 1, "value": None}
    assert asyncio.run(exchange._give(name="of yesterday", **about)) == exchange._EXPECTED
    monkeypatch.setattr(exchange, "_KEPT", 0.0)
    assert asyncio.run(exchange._give(name="of today", **about)) == exchange._EXPECTED
    assert [name for name, _ in exchange._MEMBERS] == ["of today"]
    exchange._MEMBERS.clear()


def test_a_value_that_did_not_arrive_breaks_the_meeting_up() -> None:
    sent: Future[str] = Future()
    assert not exchange._has_arrived(sent)
    sent.set_result(exchange._HERE)
    assert exchange._has_arrived(sent)
    lost: Future[str] = Future()
    lost.set_exception(OSError("connection lost"))
    over: Future[str] = Future()
    over.set_result(exchange._OVER)
    for each in (lost, over):
        with pytest.raises(MemberLost):
            exchange._has_arrived(each)


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_members_share_the_replicas_and_have_them_at_home(n_threads: int) -> None:
    for n_workers, n_replicas in itertools.product(range(1, 7), range(1, 70)):
        members = members_of(n_replicas, min(n_threads * n_workers, n_replicas))
        groups = [group for member in members for group in member]
        assert [number for group in groups for number in group] == list(range(n_replicas))
        sizes = {len(group) for group in groups[:-1]} or {len(groups[0])}
        assert len(sizes) == 1
        assert sizes.pop().bit_count() == 1 or len(groups) == 1
        homes = [home_of(member[0].start, n_replicas, range(n_workers)) for member in members]
        assert all(homes.count(home) <= n_threads for home in homes)
        assert homes == sorted(homes)
        share = n_replicas / len(members)
        assert max(sum(map(len, member)) for member in members) <= max(1.3 * share, share + 1)


def test_outside_a_worker_there_is_no_door() -> None:
    assert open_door() is None


@pytest.mark.parametrize("least_shared", [1, 4, 50])
def test_owners_of_shares_give_the_bytes_of_one_worker(
    folder: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least_shared: int
) -> None:
    expected = jobs.train(tables_of(folder, tmp_path / "one", MCMC), client)
    monkeypatch.setattr(exact_together, "_LEAST_SHARED", least_shared)
    shared = counted(monkeypatch, exact_together, "_owned")
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as four_threads,
    ):
        met = counted(monkeypatch, Workers, "members")
        result = jobs.train(tables_of(folder, tmp_path / "four", MCMC), four_threads)
    assert result.parameters_sha256 == expected.parameters_sha256
    assert len(met) == MCMC["n_epochs"]
    assert shared


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """A list that grows by one with each call of a function, which goes on to do what it did."""
    calls: list[None] = []
    function = getattr(owner, name)

    def counting(*arguments: Any) -> Any:
        calls.append(None)
        return function(*arguments)

    monkeypatch.setattr(owner, name, counting)
    return calls


@pytest.mark.parametrize("n_replicas", [1, 2])
def test_fewer_replicas_than_workers_meet_too(folder: Path, client: Client, tmp_path: Path, n_replicas: int) -> None:
    training = {**MCMC, "n_replicas": n_replicas}
    expected = jobs.train(tables_of(folder, tmp_path / "one", training), client)
    with in_process_client(3) as three:
        result = jobs.train(tables_of(folder, tmp_path / "three", training), three)
    assert result.parameters_sha256 == expected.parameters_sha256


def test_two_jobs_on_one_cluster_come_to_their_ends(folder: Path, client: Client, tmp_path: Path) -> None:
    expected = jobs.train(tables_of(folder, tmp_path / "alone", MCMC), client)
    with in_process_client(2) as two, ThreadPoolExecutor(2) as pool:
        both = [pool.submit(jobs.train, tables_of(folder, tmp_path / name, MCMC), two) for name in ("one", "other")]
        assert {each.result().parameters_sha256 for each in both} == {expected.parameters_sha256}


class Unattended:
    """A meeting that breaks up at once."""

    @contextlib.contextmanager
    def joined(self, number: int) -> Iterator[Exchange]:
        raise MemberLost
        yield


@pytest.mark.parametrize(
    ("lost", "alone", "meets"),
    [((3,), [3, 4, 5], [1, 2, 3, 6, 7, 8]), ((3, 4), [*range(3, 12)], [1, 2, 3, 6, 12])],
    ids=["once", "and as soon as they meet again"],
)
def test_an_iteration_whose_member_is_lost_is_made_task_by_task(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: tuple[int, ...],
    alone: list[int],
    meets: list[int],
) -> None:
    """…and so are some after it, twice as many after the next loss; then tasks meet again. The bytes are the same."""
    monkeypatch.setattr(exact, "_APART", 3)
    members, one_by_one = Workers.members, ExactExecutor._iteration
    together: list[Any] = []
    apart: list[int] = []

    def members_of(self: Workers, n_replicas: int) -> Any:
        found = members(self, n_replicas)
        assert found is not None
        together.append(len(found[1]))
        return (Unattended(), found[1]) if len(together) in lost else found

    def without_meeting(self: ExactExecutor, work: ExactWork, block: Any) -> Any:
        if isinstance(self.place, Workers):  # in this process kernels are compiled by an iteration
            apart.append(work.iteration)
        return one_by_one(self, work, block)

    training = {**MCMC, "n_epochs": meets[-1]}
    with in_process_client(2) as client:
        expected = jobs.train(tables_of(folder, tmp_path / "one", training), client)
        monkeypatch.setattr(Workers, "members", members_of)
        monkeypatch.setattr(ExactExecutor, "_iteration", without_meeting)
        result = jobs.train(tables_of(folder, tmp_path / "two", training), client)
    assert result.parameters_sha256 == expected.parameters_sha256
    assert (together, apart) == ([2] * len(meets), alone)


def test_too_many_members_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [f"tcp://{number}" for number in range(4)]
    doors = [Door(address, "a process") for address in addresses]
    place = Workers(cast("Watch", None), _addresses=addresses, _n_threads=2, _doors=doors)
    found = place.members(16)
    assert found is not None
    assert [door.address for door in found[0].doors] == sorted(2 * addresses)  # type: ignore[attr-defined]
    monkeypatch.setattr(exact_places, "_MOST_MEMBERS", 7)
    assert place.members(16) is None
    assert place.members(7) is not None, "fewer replicas"
    place._doors = []
    assert place.members(7) is None


@dataclass
class Alone:
    """A meeting of one, in whose middle something may happen."""

    happens: Callable[[int], None]
    n_members: int = 1
    exchanged: int = 0

    @contextlib.contextmanager
    def joined(self, number: int) -> Iterator[Exchange]:
        yield self

    def to_all(self, value: Any) -> list[Any]:
        self.exchanged += 1
        self.happens(self.exchanged)
        return [value]

    def to_each(self, values: Sequence[Any]) -> list[Any]:
        return list(values)


@pytest.mark.parametrize("at", [2, 4])
def test_rows_that_another_task_walks_meanwhile_are_begun_again(at: int) -> None:
    """As Dask does where it makes lost parameters again: wrong sums must not go to the others."""
    work, fields = work_of("regression", 3, solver="mcmc", n_replicas=2), [0] * 4 + [1] * 3 + [2] * 5
    labels = np.random.default_rng(1).normal(size=60)
    whole = partition_of(dense_of([4, 3, 5], 60, seed=4), labels, fields)
    parts, vocabulary = [rows_between(whole, 0, 30), rows_between(whole, 30, 60)], vocabulary_of(fields)
    visits, work = find_visits(work, vocabulary, []), SCHEDULE.work(work, 0, (0.0, 0))
    block = first_block(work, vocabulary, 0.1, 0)
    replicas = [lay_out(work, number, [part], visits) for number, part in enumerate(parts)]

    def begin_anew(exchanged: int) -> None:
        if exchanged == at:
            begin_rows(work, block, replicas[:1])

    undisturbed = walk_together(work, Alone(lambda _: None), 0, visits, block, [replicas])
    assert undisturbed is not None
    expected = executor_of(work, parts, vocabulary)
    expected.submit([(work, range(1))])
    expected.finish()
    np.testing.assert_array_equal(undisturbed.block.table.linear, expected.parameters[0].table.linear)
    disturbed = Alone(begin_anew)
    assert walk_together(work, disturbed, 0, visits, block, [replicas]) is None
    assert disturbed.exchanged == at
    assert walk_together(work, Alone(lambda _: None), 0, visits, None, [replicas]) is None
    assert block_of([undisturbed, None]) is None
    assert block_of([undisturbed, undisturbed]) is undisturbed.block


def test_who_has_all_values_stays_until_its_own_have_arrived(workers: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    give = exchange._give

    async def on_a_slow_way(**about: Any) -> str:
        if about["member"] == 1:
            await asyncio.sleep(1.5)
        return await give(**about)

    monkeypatch.setattr(exchange, "_give", on_a_slow_way)
    monkeypatch.setattr(exchange, "_LOOK_AROUND", 0.2)
    addresses = sorted(workers.scheduler_info(n_workers=-1)["workers"])
    slow = tuple(workers.submit(open_door, workers=[each], pure=False).result() for each in addresses)
    told = begun(workers, WorkersMeeting(slow[:2]), lambda others, number: others.to_all(number), range(2))
    assert workers.gather(told) == [[0, 1], [0, 1]]
