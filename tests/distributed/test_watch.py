"""Results of tasks are fetched, whatever the driver does beside."""

import asyncio
import time
from collections.abc import Callable

import dask
import pytest
from distributed import Client, LocalCluster

from dfm.distributed.cluster import watch
from dfm.distributed.cluster.connect import connect
from dfm.distributed.cluster.watch import Watch
from dfm.settings.tables import ClusterSettings
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
