"""Workers are killed, all at once too, or stall: the run ends by itself, with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed.cluster import connect
from dfm.errors import ClusterError
from dfm.settings.tables import ClusterSettings
from tests.support.real_processes import Cluster, disturbed_job, pids_of_workers, wait_until
from tests.support.shared_log import rounds_of_their_own as rounds_of_their_own

pytestmark = pytest.mark.patient

Event = dict[str, Any]


@pytest.fixture(scope="module")
def two_processes() -> Iterator[Client]:
    with connect.connect(ClusterSettings(workers=2, worker_timeout=60.0)) as client:
        yield client


@pytest.fixture(scope="module")
def four_processes() -> Iterator[Client]:
    with connect.connect(ClusterSettings(workers=4, worker_timeout=60.0)) as client:
        yield client


def killing(client: Client, n_killed: int, when: Callable[[Event], bool], times: int = 1) -> Callable[[Event], None]:
    """An observer that kills so many worker processes each time that `when` says so, at most `times` times."""
    left = times
    wait_until(lambda: len(pids_of_workers(client)) >= n_killed)  # those that a test before killed may still come back

    def observe(event: Event) -> None:
        nonlocal left
        if left and when(event):
            left -= 1
            for pid in random.Random(left).sample(pids_of_workers(client), n_killed):
                os.kill(pid, signal.SIGKILL)

    return observe


def in_hashing(event: Event) -> bool:
    return event["event"] == "progress" and event["stage"] == "hash" and event["done"] > 0


def in_building(event: Event) -> bool:
    return event["event"] == "progress" and event["stage"] == "build" and event["done"] > 0


def in_training(event: Event) -> bool:
    """At every fifth average: further rounds are under way then, and merges in their middle."""
    return event["event"] == "round" and event["round"] == 1 and event["epoch"] % 3 == 1


MOMENTS = {"hashing": (in_hashing, 1), "building": (in_building, 1), "training": (in_training, 3)}


def expect_the_same(result: jobs.TrainResult, undisturbed: jobs.TrainResult) -> None:
    assert result.parameters_sha256 == undisturbed.parameters_sha256
    assert result.rows == undisturbed.rows
    assert result.rows.read == result.rows.accepted == 6_000
    assert result.validation == undisturbed.validation
    assert [event["train_log_loss"] for event in result.history] == [
        event["train_log_loss"] for event in undisturbed.history
    ]


@pytest.mark.parametrize("moment", MOMENTS)
def test_one_of_two_workers_killed_changes_nothing(
    log: Path, undisturbed: jobs.TrainResult, two_processes: Client, tmp_path: Path, moment: str
) -> None:
    when, times = MOMENTS[moment]
    observe = killing(two_processes, 1, when, times)
    expect_the_same(jobs.train(disturbed_job(log, tmp_path), two_processes, on_event=observe), undisturbed)


@pytest.mark.parametrize("moment", MOMENTS)
def test_two_of_four_workers_killed_change_nothing(
    log: Path, undisturbed: jobs.TrainResult, four_processes: Client, tmp_path: Path, moment: str
) -> None:
    when, times = MOMENTS[moment]
    observe = killing(four_processes, 2, when, times)
    expect_the_same(jobs.train(disturbed_job(log, tmp_path), four_processes, on_event=observe), undisturbed)


@pytest.mark.parametrize("moment", MOMENTS)
def test_all_workers_killed_at_once_change_nothing(
    log: Path, undisturbed: jobs.TrainResult, two_processes: Client, tmp_path: Path, moment: str
) -> None:
    when, _ = MOMENTS[moment]
    observe = killing(two_processes, 2, when, 1)
    expect_the_same(jobs.train(disturbed_job(log, tmp_path), two_processes, on_event=observe), undisturbed)


def test_a_worker_that_stalls_is_replaced(log: Path, undisturbed: jobs.TrainResult, tmp_path: Path) -> None:
    stopped: list[int] = []
    settings = ClusterSettings(workers=2, worker_timeout=8.0)
    with connect.connect(settings) as client:

        def stall(event: Event) -> None:
            if event["event"] == "round" and not stopped:
                stopped.append(pids_of_workers(client)[0])
                os.kill(stopped[0], signal.SIGSTOP)

        expect_the_same(jobs.train(disturbed_job(log, tmp_path), client, on_event=stall), undisturbed)
        assert stopped[0] not in pids_of_workers(client)


def test_running_out_of_memory_is_told_with_what_would_have_been_needed(log: Path, tmp_path: Path) -> None:
    """A worker that has imported everything holds more than 250 MB: such a limit ends it in its first task."""
    tight = disturbed_job(log, tmp_path, cluster={"memory_limit": "250MB", "worker_timeout": 120.0})
    with pytest.raises(ClusterError, match=r"out of memory: .* at 95 % .*needs at most about [\d.]+ GiB"):
        jobs.train(tight)


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path / "cluster")
    yield started
    started.close()


def test_without_any_worker_left_the_run_ends_with_a_checkpoint_that_others_go_on_from(
    log: Path, undisturbed: jobs.TrainResult, commands: Cluster, tmp_path: Path
) -> None:
    job = disturbed_job(log, tmp_path, cluster={"worker_timeout": 3.0})
    commands.add_worker()

    def kill_the_worker(event: Event) -> None:
        if event["event"] == "epoch" and event["epoch"] == 3:
            wait_until(lambda: any((tmp_path / "out" / "checkpoint").glob("round-*.json")))
            os.killpg(commands.workers[0].pid, signal.SIGKILL)

    with commands.client(1) as client:
        started = time.monotonic()
        with pytest.raises(ClusterError, match=r"no worker, .*worker_timeout = 3 s; see that workers are started"):
            jobs.train(job, client, on_event=kill_the_worker)
        assert time.monotonic() - started < 120
    for _ in range(2):
        commands.add_worker()
    told: list[Event] = []
    with commands.client(2) as client:
        result = jobs.train(job, client, on_event=told.append)
    assert "resumed" in [event["event"] for event in told]
    expect_the_same(result, undisturbed)


def test_a_worker_that_joins_is_used(
    log: Path, undisturbed: jobs.TrainResult, commands: Cluster, tmp_path: Path
) -> None:
    commands.add_worker()
    joined = threading.Event()
    with commands.client(1) as client:
        (first,) = connect.worker_addresses(client)

        def add_a_worker(event: Event) -> None:
            if event["event"] == "epoch" and not joined.is_set():
                joined.set()
                commands.add_worker()
                client.wait_for_workers(2, timeout=60)

        result = jobs.train(disturbed_job(log, tmp_path), client, on_event=add_a_worker)
        executed = client.run(lambda dask_worker: dask_worker.state.executed_count)
        assert min(executed.values()) > 20
        assert len(executed) == 2
        assert first in executed
    expect_the_same(result, undisturbed)
