"""One cluster for many jobs, one after the other and at once: nothing of a job stays, and none spoils another's."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

from dfm import jobs
from dfm.data import synthetic
from tests.support.real_processes import Cluster, wait_until
from tests.support.small_jobs import job_tables

JOBS = 200
AT_ONCE = 4
A_FEW = 2
"""Connections that a pool may hold more at one moment than at another; a leak of one a job would be 150."""
SETTLED = 40
"""Jobs until modules are loaded, kernels compiled and pools as large as they become."""


@pytest.fixture(scope="module")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small") / "log"
    synthetic.generate(directory, rows=1_200, days=3, shards_per_day=1, seed=3)
    return directory


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path / "cluster")
    found.add_worker()
    found.add_worker()
    yield found
    found.close()


def tables(log: Path, folder: Path, seed: int) -> dict[str, dict[str, Any]]:
    return job_tables(
        log, folder, data={"validation_from": "2026-11-16"}, model={"seed": seed},
        output={"directory": str(folder / "out"), "report": False},
        training={"n_replicas": 2, "n_epochs": 2, "averages_per_epoch": 1},
    )  # fmt: skip


def belongings(dask_scheduler: Any) -> dict[str, int]:
    """What a scheduler keeps, by kind."""
    return {
        "tasks": len(dask_scheduler.tasks),
        "clients": len(dask_scheduler.clients),
        "topics": sum(name.startswith("dfm") for name in dask_scheduler._broker._topics),
        "plugins": len(dask_scheduler.plugins),
        "worker plugins": len(dask_scheduler.worker_plugins),
        "extensions": len(dask_scheduler.extensions),
    }


def newcomers(dask_scheduler: Any) -> list[str]:
    """Plugins that hold newcomers for a job."""
    return [name for name in dask_scheduler.plugins if "newcomers" in name]


def sizes(pids: list[int]) -> dict[str, list[int]]:
    processes = [psutil.Process(pid) for pid in pids]
    return {
        "bytes": [process.memory_info().rss for process in processes],
        "files": [process.num_fds() for process in processes],
        "threads": [process.num_threads() for process in processes],
    }


@pytest.mark.slow
def test_two_hundred_jobs_leave_nothing_on_a_cluster(small_log: Path, cluster: Cluster, tmp_path: Path) -> None:
    seen: list[tuple[dict[str, int], dict[str, list[int]]]] = []
    digests = set()
    for number in range(JOBS):
        with cluster.client(2) as client:
            result = jobs.train(tables(small_log, tmp_path / str(number % 3), seed=1 + number % 2), client)
            digests.add((number % 2, result.parameters_sha256))
        if number >= SETTLED and number % 10 == 0:
            with cluster.client(2) as client:
                wait_until(lambda: (kept := client.run_on_scheduler(belongings))["tasks"] == kept["topics"] - 1 == 0)
                pids = [client.run_on_scheduler(os.getpid), *client.run(os.getpid).values()]
                seen.append((client.run_on_scheduler(belongings), sizes(sorted(pids))))
    assert len(digests) == 2
    kept = [belongs for belongs, _ in seen]
    assert kept == [kept[0]] * len(kept)
    for kind in ("files", "threads"):
        counts = [each[kind] for _, each in seen]
        for early, late in zip(zip(*counts[:3], strict=True), zip(*counts[-3:], strict=True), strict=True):
            assert max(late) <= max(early) + A_FEW, (kind, counts)
    early, late = ([max(each["bytes"][n] for _, each in part) for n in range(3)] for part in (seen[:4], seen[-4:]))
    print(f"bytes of scheduler and workers, early {early}, late {late}; kept {kept[-1]}")
    for before, after in zip(early, late, strict=True):
        assert after < before * 1.1 + 10e6, (early, late)


@pytest.mark.patient
def test_jobs_at_once_on_one_cluster_do_not_meet(small_log: Path, cluster: Cluster, tmp_path: Path) -> None:
    """They share scheduler, workers and cache; plugins of one go when the last job that needs them ends."""
    expected = {}
    with cluster.client(2) as client:
        for seed in range(AT_ONCE):
            expected[seed] = jobs.train(tables(small_log, tmp_path / f"alone-{seed}", seed=seed), client)
    told: dict[int, list[str]] = {seed: [] for seed in expected}
    together = threading.Barrier(AT_ONCE)

    def train(seed: int) -> jobs.TrainResult:
        job = tables(small_log, tmp_path / f"together-{seed}", seed=seed)
        job["cluster"]["cache"] = str(tmp_path / "cache of all")
        with Client(cluster.address, set_as_default=False) as client:
            together.wait(60)
            return jobs.train(job, client, on_event=lambda event: told[seed].append(event["event"]))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(expected, pool.map(train, expected), strict=True))
    for seed, result in found.items():
        assert result.parameters_sha256 == expected[seed].parameters_sha256
        assert result.rows == expected[seed].rows
        assert told[seed].count("done") == 1
        assert told[seed].count("epoch") == 2
    with cluster.client(2) as client:
        wait_until(lambda: (kept := client.run_on_scheduler(belongings))["tasks"] == kept["topics"] - 1 == 0)
        assert client.run_on_scheduler(newcomers) == []
