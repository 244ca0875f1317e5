"""Workers are killed in the middle of an iteration of an exact solver: it is made again, and gives the same bytes."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed import checkpointing
from dfm.distributed import exact as on_workers
from dfm.distributed.cluster import connect
from dfm.distributed.exact import Workers
from dfm.settings.tables import ClusterSettings
from dfm.training import exact
from tests.support.real_processes import pids_of_workers
from tests.support.small_jobs import job_tables

pytestmark = pytest.mark.patient

EPOCHS = 6


@pytest.fixture(scope="module")
def two_processes() -> Iterator[Client]:
    with connect.connect(ClusterSettings(workers=2, worker_timeout=60.0)) as client:
        yield client


def drawn(log: Path, folder: Path, client: Client, on_event: Any = None) -> jobs.TrainResult:
    """A job by Gibbs sampling of 39 fields."""
    tables = job_tables(log, folder)
    tables["training"] = {"solver": "mcmc", "n_epochs": EPOCHS, "burn_in": 2, "draws": 2, "n_replicas": 4}
    tables["output"]["report"] = False
    return jobs.train(tables, client, on_event=on_event)


@pytest.fixture(scope="module")
def untouched(log: Path, two_processes: Client, tmp_path_factory: pytest.TempPathFactory) -> jobs.TrainResult:
    return drawn(log, tmp_path_factory.mktemp("untouched"), two_processes)


@pytest.mark.parametrize("n_killed", [1, 2])
def test_workers_killed_in_the_middle_of_an_iteration_change_nothing(
    log: Path,
    untouched: jobs.TrainResult,
    two_processes: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_killed: int,
) -> None:
    members_of, met = Workers.members, list[int]()

    def members(self: Workers, n_replicas: int) -> Any:
        found = members_of(self, n_replicas)
        met.append(len(found[1]) if found else 0)
        return found

    monkeypatch.setattr(Workers, "members", members)
    monkeypatch.setattr(exact, "_APART", 1)  # so that both losses are in meetings
    seconds = untouched.history[-1]["seconds"]
    killed: list[int] = []

    def kill() -> None:
        for pid in random.Random(len(killed)).sample(pids_of_workers(two_processes), n_killed):
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    def observe(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] in (2, 4):
            threading.Timer(0.4 * seconds, kill).start()

    result = drawn(log, tmp_path, two_processes, observe)
    assert len(killed) == 2 * n_killed
    assert met.count(2) >= EPOCHS - 2
    assert result.parameters_sha256 == untouched.parameters_sha256
    assert result.validation == untouched.validation


@pytest.mark.parametrize("epoch", [3, EPOCHS - 1, EPOCHS])
def test_draws_that_are_too_large_for_the_driver_are_made_again_from_a_checkpoint(
    log: Path,
    untouched: jobs.TrainResult,
    two_processes: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
) -> None:
    """Each lies on one worker only; all are killed after a draw, or after the last."""
    monkeypatch.setattr(on_workers, "_MOST_KEPT", 0)
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    killed: list[int] = []
    resumed: list[int] = []

    def observe(event: dict[str, Any]) -> None:
        if event["event"] == "resumed":
            resumed.append(event["epoch"])
        if event["event"] == "epoch" and event["epoch"] == epoch and not killed:
            killed.extend(pids_of_workers(two_processes))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    result = drawn(log, tmp_path, two_processes, observe)
    assert killed
    assert resumed, "the run went on from its checkpoint"
    assert result.parameters_sha256 == untouched.parameters_sha256
    assert result.validation == untouched.validation
