"""Results of tasks are fetched, whatever the driver does beside, and nobody waits for what will not come."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster, Status

from dfm.distributed.cluster import watch
from dfm.distributed.cluster.connect import connect
from dfm.distributed.cluster.paused import standing_still
from dfm.distributed.cluster.remote import workers_of
from dfm.distributed.cluster.watch import Watch
from dfm.errors import ClusterError
from dfm.settings.tables import ClusterSettings
from tests.support.real_cluster import real_cluster
from tests.support.real_processes import wait_until


def _turns_later(loop: asyncio.AbstractEventLoop, turns: int, act: Callable[[], object]) -> None:
    """Call `act` when the event loop has gone round `turns` times more."""
    if turns:
        loop.call_soon(_turns_later, loop, turns - 1, act)
    else:
        act()


@pytest.mark.parametrize("turns", range(8))
def test_a_fetch_that_times_out_at_any_moment_costs_no_later_one(
    client: Client, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    monkeypatch.setattr(watch, "_PATIENCE", (0.15, 5.0))
    future = client.submit(int, "7", pure=False)
    watched = Watch(client, 60.0)
    watched.wait(future)
    monkeypatch.setattr(watched, "wait", lambda future: None)  # so that the fetch begins at a known turn
    loop = client.loop.asyncio_loop  # type: ignore[attr-defined]
    client.loop.add_callback(time.sleep, 0.1)  # what is called meanwhile begins in one turn of the loop
    client.loop.add_callback(_turns_later, loop, turns, lambda: time.sleep(0.2))  # as a compiler that holds the GIL
    assert [watched.result(future), watched.result(future)] == [7, 7]


def test_a_local_worker_that_dask_gave_up_on_is_started_anew() -> None:
    """As where the scheduler refuses a killed worker's successor, because it still has its name."""
    with connect(ClusterSettings(workers=2, worker_timeout=60.0)) as local:
        cluster, watched = local.cluster, Watch(local, 60.0)
        assert isinstance(cluster, LocalCluster)
        before = watched.addresses()
        with dask.config.set(
            {"distributed.deploy.lost-worker-timeout": "600s"}
        ):  # Dask would forget it, too, after that
            cluster.sync(cluster.workers[1].close)
            wait_until(lambda: len(set(watched.addresses()) & set(before)) == 1 and len(watched.addresses()) == 2)
        assert local.submit(int, "7").result(timeout=60) == 7


def worker(status: str, **tasks: int) -> dict[str, Any]:
    """A worker as a scheduler describes it."""
    metrics = {"task_counts": tasks, "memory": 7 << 28}
    return {"status": status, "metrics": metrics, "memory_limit": 2 << 30}


@pytest.mark.parametrize(
    ("workers", "found"),
    [
        ([worker("running", memory=3)], False),
        ([worker("paused", memory=3, ready=0)], True),
        ([worker("paused", memory=3, ready=2)], True),
        ([worker("paused", executing=1, ready=2)], False),  # it ends what it has begun
        ([worker("paused", ready=2), worker("running", executing=1)], False),
        ([worker("paused", ready=2), worker("running", flight=1)], False),
        ([worker("paused", ready=2), worker("running", memory=1, executing=0)], True),
        ([worker("paused", memory=2), worker("running")], False),  # the other one takes what comes
        ([worker("paused", **{"long-running": 1, "memory": 1})], False),  # a checkpoint is written
    ],
)
def test_work_stands_still_where_whoever_has_it_is_paused(workers: list[dict[str, Any]], found: bool) -> None:
    told = standing_still({f"tcp://{number}": worker for number, worker in enumerate(workers)})
    assert told == ("tcp://0 (1.75 of 2.00 GiB)" if found else "")


def test_the_driver_that_was_handed_to_a_cluster_is_no_work_of_its_worker() -> None:
    for outside, found in ((1, True), (2, False)):
        workers = {"tcp://0": worker("paused", **{"long-running": outside, "ready": 1})}
        assert bool(standing_still(workers, here="tcp://0")) == found


def test_a_wait_for_paused_workers_ends_after_the_timeout() -> None:
    with (
        LocalCluster(n_workers=1, processes=False, memory_limit=0, dashboard_address=":0") as local,
        Client(local, set_as_default=False) as client,
    ):
        watched = Watch(client, 0.5)
        held = watched.submit(int, "1")
        assert watched.result(held) == 1
        client.run(lambda dask_worker: setattr(dask_worker, "status", Status.paused))
        with pytest.raises(ClusterError, match=r"all work has waited for cluster\.worker_timeout = 0\.5 s .* paused"):
            list(watched.as_completed([watched.submit(int, "7")]))


@pytest.mark.patient
def test_workers_that_pause_for_want_of_memory_are_told_and_not_waited_for_without_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeps = {f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}": "False" for name in ("TARGET", "SPILL")}
    with (
        real_cluster(tmp_path, 0, environment=keeps) as real,
        Client(real.address, set_as_default=False) as client,
    ):
        real.start_worker("small", "--no-nanny", "--memory-limit", "400MB")
        watched = Watch(client, 5.0)
        held = watched.submit("x".__mul__, 350_000_000)
        wait_until(lambda: [each["status"] for each in workers_of(client).values()] == ["paused"])
        with pytest.raises(ClusterError, match=r"worker_timeout = 5 s .* paused .*: tcp://.* of 0\.37 GiB\); start w"):
            watched.result(watched.submit(int, "7"))
        assert "all work waits for workers that are paused, being short of memory: tcp://" in caplog.text
        held.release()
        assert watched.result(watched.submit(int, "7")) == 7, "free memory ends a pause"


def test_the_clock_of_a_wait_begins_with_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that shrinks to nothing while the driver is busy by itself has as long as any other."""
    watched = Watch(client, 0.5)
    time.sleep(0.6)
    monkeypatch.setattr(watch, "_LOOK_AROUND", 0.05)
    looks = iter([{}, {}])
    look = watched._workers

    def seen() -> Any:
        found = next(looks, None)
        return look() if found is None else found

    monkeypatch.setattr(watched, "_workers", seen)
    assert watched.result(watched.submit(lambda: time.sleep(0.3) or 7)) == 7
