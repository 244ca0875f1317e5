"""Real worker processes: the same bytes as one thread gives, also when a process is killed in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed.cluster.connect import connect, worker_addresses
from dfm.distributed.cluster.watch import Watch
from dfm.settings.tables import ClusterSettings
from tests.support.small_jobs import job_tables

pytestmark = pytest.mark.patient
FOUR_EPOCHS = {"n_epochs": 4, "averages_per_epoch": 2}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Two worker processes as a job without a scheduler gets them."""
    settings = ClusterSettings(workers=2, cache=str(tmp_path_factory.mktemp("processes")))
    with connect(settings) as client:
        yield client


@pytest.fixture(scope="module")
def expected(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fingerprint of the parameters that one worker inside this process gives."""
    job = job_tables(log, tmp_path_factory.mktemp("expected"), training=FOUR_EPOCHS)
    return jobs.train(job, client).parameters_sha256


def test_worker_processes_give_the_bytes_of_a_single_worker(
    log: Path, processes: Client, expected: str, tmp_path: Path
) -> None:
    assert len(worker_addresses(processes)) == 2
    assert Watch(processes, 60.0).n_threads() == 2
    result = jobs.train(job_tables(log, tmp_path, training=FOUR_EPOCHS), processes)
    assert result.parameters_sha256 == expected


def test_a_worker_killed_between_two_epochs_changes_nothing(
    log: Path, processes: Client, expected: str, tmp_path: Path
) -> None:
    killed = []

    def kill_a_worker(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and not killed:
            killed.append(next(iter(processes.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    result = jobs.train(job_tables(log, tmp_path, training=FOUR_EPOCHS), processes, on_event=kill_a_worker)
    assert killed
    assert result.parameters_sha256 == expected
    assert len(result.history) == 4
    assert result.rows.accepted == 6_000
