"""The driver or the scheduler is killed: the same command goes on from the last average, to the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dfm import jobs
from tests.support.real_processes import (
    PATIENCE,
    Cluster,
    disturbed_job,
    finish,
    kill,
    start_training,
    wait_until,
    write_job,
)

pytestmark = pytest.mark.patient


def job_file(log: Path, folder: Path, **changes: Any) -> Path:
    return write_job(folder / "job.toml", disturbed_job(log, folder, **changes))


def has_checkpoint(folder: Path) -> bool:
    return any((folder / "out" / "checkpoint").glob("round-*.json"))


def resume(job: Path, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The "resumed" and the "done" event of a training that goes on."""
    training = start_training(job, *options)
    out, err = training.communicate(timeout=PATIENCE)
    assert training.returncode == 0, err
    told = [json.loads(line) for line in out.splitlines()]
    (resumed,) = [event for event in told if event["event"] == "resumed"]
    return resumed, told[-1]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_driver_killed_with_kill_9_is_resumed_on_another_number_of_workers(
    log: Path, undisturbed: jobs.TrainResult, tmp_path: Path, workers: int
) -> None:
    job = job_file(log, tmp_path, cluster={"workers": 2})
    training = start_training(job)
    wait_until(lambda: has_checkpoint(tmp_path))
    training.kill()
    training.communicate(timeout=PATIENCE)
    resumed, done = resume(job, "--set", f"cluster.workers={workers}")
    assert (resumed["epoch"], resumed["round"]) > (1, 0)
    assert done["parameters_sha256"] == undisturbed.parameters_sha256
    assert done["rows"]["read"] == done["rows"]["trained"] == 6_000
    assert not has_checkpoint(tmp_path)


def test_workers_of_a_killed_driver_end(log: Path, tmp_path: Path) -> None:
    training = start_training(job_file(log, tmp_path, training={"n_epochs": 500}))
    wait_until(lambda: has_checkpoint(tmp_path))
    os.kill(training.pid, signal.SIGKILL)

    def group_is_gone() -> bool:
        try:
            os.killpg(training.pid, 0)
        except ProcessLookupError:
            return True
        return False

    training.communicate(timeout=PATIENCE)
    wait_until(group_is_gone, 60)


def test_a_scheduler_killed_with_kill_9_ends_the_run_with_a_clear_error_and_is_resumed(
    log: Path, undisturbed: jobs.TrainResult, tmp_path: Path
) -> None:
    job = job_file(log, tmp_path, cluster={"worker_timeout": 5.0})
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.add_worker()
        training = start_training(job, "--scheduler", cluster.address)
        wait_until(lambda: has_checkpoint(tmp_path))
        kill(cluster.scheduler)
        _, err = training.communicate(timeout=PATIENCE)
        assert training.returncode == 4, err
        assert "run the same command again" in err
        assert "Traceback" not in err, err
        cluster.start_scheduler()
        for _ in range(2):
            cluster.add_worker()
        _, done = resume(job, "--scheduler", cluster.address)
        assert done["parameters_sha256"] == undisturbed.parameters_sha256
    finally:
        cluster.close()


@pytest.mark.parametrize("moment", ["before", "training"])
def test_a_scheduler_that_takes_connections_and_says_nothing_ends_the_run(
    log: Path, tmp_path: Path, moment: str
) -> None:
    job = job_file(log, tmp_path, cluster={"worker_timeout": 5.0}, training={"n_epochs": 500})
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.add_worker()
        if moment == "training":
            training = start_training(job, "--scheduler", cluster.address)
            wait_until(lambda: has_checkpoint(tmp_path))
            cluster.scheduler.send_signal(signal.SIGSTOP)
        else:
            with cluster.client(1):
                pass
            cluster.scheduler.send_signal(signal.SIGSTOP)
            training = start_training(job, "--scheduler", cluster.address)
        _, err = training.communicate(timeout=PATIENCE)
        assert training.returncode == 4, err
        assert "does not answer" in err or "did not answer" in err
        assert "Traceback" not in err, err
    finally:
        cluster.scheduler.send_signal(signal.SIGCONT)
        cluster.close()


def test_two_drivers_of_one_output_do_not_both_win(log: Path, undisturbed: jobs.TrainResult, tmp_path: Path) -> None:
    job = job_file(log, tmp_path)
    first = start_training(job)
    wait_until(lambda: has_checkpoint(tmp_path))
    second = start_training(job)
    ended = [training.communicate(timeout=PATIENCE) for training in (first, second)]
    codes = [training.returncode for training in (first, second)]
    assert 0 in codes
    for code, (out, err) in zip(codes, ended, strict=True):
        if code == 0:
            assert json.loads(out.splitlines()[-1])["parameters_sha256"] == undisturbed.parameters_sha256
        else:
            assert code == 4
            assert "two runs share one output.directory" in " ".join(err.split())


@pytest.mark.slow
def test_twenty_random_kills_of_the_driver(log: Path, undisturbed: jobs.TrainResult, tmp_path: Path) -> None:
    choose = random.Random(7)
    job = job_file(log, tmp_path, output={"directory": str(tmp_path / "out")})
    kills = 0
    while kills < 20:
        training = start_training(job, "--set", f"cluster.workers={choose.randint(1, 3)}")
        time.sleep(choose.uniform(1.0, 9.0))
        if training.poll() is None:
            os.kill(training.pid, signal.SIGKILL)
            kills += 1
            training.communicate(timeout=PATIENCE)
            continue
        assert finish(training)["parameters_sha256"] == undisturbed.parameters_sha256
    assert finish(start_training(job))["parameters_sha256"] == undisturbed.parameters_sha256
