"""The process that local workers are forked from: it ends with the command, and workers do not outlive it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dfm import jobs
from tests.support.real_processes import disturbed_job, finish, kill, start_training, wait_until, write_job

pytestmark = [
    pytest.mark.patient,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are started anew"),
]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files, whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="dfm-test-", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


def family_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def are_gone(family: list[psutil.Process]) -> bool:
    return not any(lives(each) for each in family)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def n_children(process: psutil.Process) -> int:
    try:
        return len(process.children())
    except psutil.NoSuchProcess:
        return 0


def test_nothing_of_a_command_that_is_killed_stays(log: Path, tmp_path: Path, folder: Path) -> None:
    training = start_training(
        write_job(tmp_path / "job.toml", disturbed_job(log, tmp_path)), "--set", "cluster.workers=2"
    )
    family: list[psutil.Process] = []

    def has_workers() -> bool:
        family[:] = family_of(training.pid)
        return sum(map(n_children, family)) >= 2

    try:
        wait_until(has_workers)
        assert [*folder.glob("pymp-*")], "the folder of a socket"
        training.kill()
        wait_until(lambda: are_gone(family))
        assert not [*folder.glob("pymp-*")]
    finally:
        kill(training)


def test_workers_whose_server_is_killed_are_started_again(
    log: Path, tmp_path: Path, undisturbed: jobs.TrainResult
) -> None:
    training = start_training(
        write_job(tmp_path / "job.toml", disturbed_job(log, tmp_path)), "--set", "cluster.workers=2"
    )
    assert training.stdout
    next(line for line in training.stdout if '"event": "epoch"' in line)
    (server,) = (each for each in family_of(training.pid) if n_children(each) == 2)
    workers = server.children()
    server.kill()
    wait_until(lambda: are_gone(workers))
    assert finish(training)["parameters_sha256"] == undisturbed.parameters_sha256
