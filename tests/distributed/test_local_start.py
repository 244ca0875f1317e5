"""A worker that dies while the local cluster starts costs a second start; no start at all is told in a sentence."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, LocalCluster

from dfm.distributed import processes
from dfm.distributed.cluster import connect, size
from dfm.errors import ClusterError
from dfm.settings.constraints import parse_bytes
from dfm.settings.tables import ClusterSettings


@contextlib.contextmanager
def killing_the_first_worker() -> Iterator[list[int]]:
    """Ends the first worker process that this process starts within the block, at once; gives its number."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not (over.wait(0.005) or killed):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
                        killed.append(child.pid)
                        return

    thread = threading.Thread(target=kill)
    thread.start()
    yield killed
    over.set()
    thread.join()


@pytest.mark.filterwarnings("ignore")  # what Dask leaves of the cluster that it could not start
def test_a_worker_killed_while_the_cluster_starts_costs_a_second_start(caplog: pytest.LogCaptureFixture) -> None:
    settings = ClusterSettings(workers=2)
    caplog.set_level(logging.WARNING, logger="dfm")
    with killing_the_first_worker() as killed, connect.connect(settings) as client:
        assert client.submit(int, 5).result() == 5
        assert len(connect.worker_addresses(client)) == 2
    assert len(killed) == 1
    assert [text for text in caplog.messages if "they are started again" in text]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Nanny failed to start."), "Nanny failed to start."),
        (AssertionError(), "an event loop took more than 10 s to begin"),
    ],
)
def test_a_cluster_that_never_starts_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    starts: list[float] = []

    def fail(*_: object) -> None:
        starts.append(time.monotonic())
        raise error

    monkeypatch.setattr(connect, "_local_cluster", fail)
    with (
        pytest.raises(ClusterError, match=rf"did not start, 3 times in a row \({re.escape(reason)}\)") as told,
        connect.connect(ClusterSettings()),
    ):
        pass
    assert told.value.exit_code == 4
    assert len(starts) == 3


@pytest.mark.parametrize("dashboard", [False, True])
@pytest.mark.parametrize("safely", [False, True])
def test_workers_profile_for_a_dashboard_where_python_survives_it(
    monkeypatch: pytest.MonkeyPatch, dashboard: bool, safely: bool
) -> None:
    monkeypatch.setattr(connect, "_PROFILES_SAFELY", safely)
    monkeypatch.setattr(connect, "LocalCluster", lambda **_: dask.config.get("distributed.worker.profile.enabled"))
    assert connect._local_cluster(ClusterSettings(dashboard=dashboard), "") is (dashboard and safely)


def test_clusters_in_the_process_of_the_tests_do_not_profile(client: Client, two_workers: Client) -> None:
    for each in (client, two_workers):
        assert isinstance(each.cluster, LocalCluster)
        assert not [
            name for worker in each.cluster.workers.values() for name in worker.periodic_callbacks if "profile" in name
        ]


@pytest.mark.parametrize(
    ("processors", "gibibytes", "needs", "settings", "workers"),
    [
        (8, 64, 0, {}, 8),
        (64, 512, 0, {}, 16),
        (1, 64, 0, {}, 1),
        (8, 8, 0, {}, 4),
        (8, 64, 10, {}, 6),
        (8, 16, 100, {}, 2),
        (1, 1, 100, {}, 1),
        (8, 64, 0, {"threads_per_worker": 3}, 2),
        (2, 64, 0, {"threads_per_worker": 4}, 1),
        (64, 512, 0, {"threads_per_worker": 4}, 16),
        (8, 64, 32, {"memory_limit": "16GiB"}, 4),
        (8, 64, 0, {"workers": 3, "memory_limit": "1GB"}, 3),
    ],
)
def test_a_worker_for_each_processor_that_has_memory_and_two_at_least_where_there_are_two(
    monkeypatch: pytest.MonkeyPatch, processors: int, gibibytes: int, needs: int, settings: dict[str, Any], workers: int
) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: processors)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", gibibytes << 30)
    assert processes.n_processes() == min(processors, processes.MOST)
    found = size.sized(ClusterSettings(**settings), lambda n_workers: needs << 30)
    assert found.workers == workers
    if "memory_limit" not in settings:
        assert parse_bytes(found.memory_limit) == (gibibytes << 30) // workers, "they have what they were counted for"


def test_workers_that_share_what_they_need_are_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: 16)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 64 << 30)
    found = size.sized(ClusterSettings(), lambda n_workers: (4 << 30) + (24 << 30) // n_workers)
    assert found.workers == 10


@pytest.mark.parametrize(("gibibytes", "n"), [(64, 8), (3, 6), (1, 2)])
def test_processes_of_text_have_memory(monkeypatch: pytest.MonkeyPatch, gibibytes: int, n: int) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: 8)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", gibibytes << 30)
    assert processes.n_of_text() == n


def test_nothing_is_said_of_workers_that_others_start() -> None:
    settings = ClusterSettings(scheduler="tcp://somewhere:8786")
    assert size.sized(settings) == settings


def test_as_many_local_workers_start_as_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: 3)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 64 << 30)
    with connect.connect(ClusterSettings()) as client:
        assert len(connect.worker_addresses(client)) == 3
