"""A job file becomes a DaskJob, the DaskJob becomes processes, and these train and publish the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfm import jobs
from dfm.data import synthetic
from dfm.kubernetes import manifest, submit
from dfm.runs.outcome import outcome_of
from dfm.runs.record import read_events, read_run
from dfm.settings.job import Job
from tests.support.real_cluster import make_certificates, wait_until
from tests.support.small_jobs import in_process_client, job_tables
from tests.support.stand_in import StandIn

SIZES = {"workers": 2, "worker_memory": "1GiB", "driver_memory": "1GiB", "scratch": "1GiB"}
Make = Callable[..., tuple[StandIn, manifest.Submission]]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 rows of clicks on four days."""
    directory = tmp_path_factory.mktemp("clicks")
    synthetic.generate(directory, rows=4_000, days=4, shards_per_day=1, seed=3)
    return directory


@pytest.fixture
def make(log: Path, tmp_path: Path) -> Iterator[Make]:
    """A job with these settings of Kubernetes and of training, as processes that have just been started."""
    running: list[StandIn] = []

    def start(
        kubernetes: dict[str, Any], files: dict[str, dict[str, str]], **training: Any
    ) -> tuple[StandIn, manifest.Submission]:
        tables = job_tables(log, tmp_path, training=training)
        tables["data"]["train"] = f"file://{log}"
        tables["output"]["directory"] = f"file://{tmp_path}/out"
        job = Job.from_dict({**tables, "kubernetes": {**SIZES, **kubernetes}})
        submission = submit.prepare(job, stem="Clicks", namespace="team")
        # Kernels are compiled once for all tests, and what is ten seconds' work in a cluster is not waited for here.
        environment = {"NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", f"{tmp_path}/numba")}
        stand_in = StandIn(tmp_path / "pods", manifest.objects(submission), files, environment)
        running.append(stand_in)
        stand_in.start()
        return stand_in, submission

    yield start
    for each in running:
        each.stop()


TRAINING = {"n_epochs": 15, "averages_per_epoch": 2}


@pytest.fixture(scope="module")
def expected(log: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fingerprint of the parameters that the job gives anywhere else."""
    tables = job_tables(log, tmp_path_factory.mktemp("expected"), training=TRAINING)
    with in_process_client(1) as client:
        return jobs.train(tables, client).parameters_sha256


def test_a_rendered_job_trains_and_publishes_though_its_driver_is_killed(expected: str, make: Make) -> None:
    stand_in, submission = make({}, {}, **TRAINING)
    output = submission.job.output.directory
    wait_until(lambda: (found := read_run(output)) and found.progress.get("epoch", 0) >= 3, seconds=240)
    first = read_run(output)
    assert first is not None
    assert stand_in.probe("driver", stand_in.driver_spec, "startupProbe")
    assert stand_in.probe("driver", stand_in.driver_spec, "livenessProbe")
    assert stand_in.kill_driver_once() == first.pid
    assert stand_in.wait() == 0, stand_in.log("driver")
    found = outcome_of(output, run_id=submission.run_id)
    assert found.succeeded, found.reason
    assert '"event": "driver_lost"' in stand_in.log("driver")
    assert "resumed" in [event["event"] for event in read_events(output)]
    assert found.record is not None
    assert found.record.pid != first.pid
    assert found.record.parameters_sha256 == expected
    # Sixteen minutes after its last heartbeat.
    heartbeat = next(stand_in.folder.rglob("dfm-heartbeat"))
    os.utime(heartbeat, (heartbeat.stat().st_mtime - 960,) * 2)
    assert not stand_in.probe("driver", stand_in.driver_spec, "livenessProbe")


@pytest.mark.slow
def test_a_rendered_job_trains_under_tls_while_a_spot_worker_is_taken_away(make: Make, tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "tls")
    names = {"ca.crt": "ca", "tls.crt": "cert", "tls.key": "key"}
    secret = {file: Path(made[name]).read_text() for file, name in names.items()}
    settings = {"tls_secret": "dfm-tls", "spot": True}
    stand_in, submission = make(settings, {"dfm-tls": secret}, **TRAINING)
    output = submission.job.output.directory
    wait_until(lambda: (found := read_run(output)) and found.progress.get("epoch", 0) >= 2, seconds=240)
    assert "tls://" in stand_in.log("scheduler")
    pod = stand_in.worker_specs[0]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert "retired tls://" in stand_in.exec("worker-0", pod, hook)
    stand_in.processes["worker-0"].terminate()
    assert stand_in.wait() == 0, stand_in.log("driver")
    assert outcome_of(output, run_id=submission.run_id).succeeded


def test_a_job_that_cannot_succeed_fails_once_and_says_why(make: Make) -> None:
    stand_in, submission = make({"attempts": 5}, {}, learning_rate=1e30, optimizer="sgd")
    assert stand_in.wait() == 5
    found = outcome_of(submission.job.output.directory, run_id=submission.run_id)
    assert (found.state, found.exit_code) == ("failed", 5)
    assert "smaller training.learning_rate" in found.reason
    assert "driver_lost" not in stand_in.log("driver")
