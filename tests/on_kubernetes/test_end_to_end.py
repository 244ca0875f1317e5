"""A job file becomes a DaskJob, the DaskJob becomes processes, and these train and publish the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfm import jobs
from dfm.data import synthetic
from dfm.kubernetes import follow, manifest, submit
from dfm.kubernetes.api import Api
from dfm.runs.outcome import outcome_of
from dfm.runs.record import read_events, read_run
from dfm.settings.job import Job, load_job
from dfm.settings.toml import to_toml
from tests.support.cluster_in_miniature import JOBS, Miniature, miniature
from tests.support.real_cluster import make_certificates, wait_until
from tests.support.small_jobs import in_process_client, job_tables
from tests.support.stand_in import StandIn

pytestmark = pytest.mark.patient

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
        volumes = [{"mount": str(folder), "claim": "shared"} for folder in (log, tmp_path)]
        job = Job.from_dict({**tables, "kubernetes": {**SIZES, "volumes": volumes, **kubernetes}})
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


# --- with an API server, an operator and kubelets --------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Miniature]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    environment = {"NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", f"{tmp_path}/numba")}
    with miniature(tmp_path / "pods", tmp_path / "kubeconfig", environment) as running:
        yield running


@pytest.fixture
def job_path(log: Path, tmp_path: Path) -> Path:
    """The same job, from and to a store that pods and this process reach by its URLs."""
    tables = job_tables(log, tmp_path, training={**TRAINING, "n_epochs": 40})
    tables["data"] |= {"train": f"local://{log}", "storage_options": STORE}
    tables["output"]["directory"] = f"local://{tmp_path}/out"
    path = tmp_path / "clicks.toml"
    path.write_text(to_toml({**tables, "kubernetes": SIZES}))
    return path


STORE = {"auto_mkdir": True}


def running_job(cluster: Miniature, output: str, epoch: int) -> tuple[str, StandIn]:
    """Name and processes of the job, once it has come to an epoch."""
    wait_until(lambda: (found := read_run(output)) and found.progress.get("epoch", 0) >= epoch, seconds=240)
    ((name, stand_in),) = cluster.running.items()
    return name, stand_in


def test_a_scheduler_that_is_lost_under_a_follower_costs_an_attempt_and_no_more(
    cluster: Miniature, job_path: Path, log: Path, tmp_path: Path
) -> None:
    output = f"local://{tmp_path}/out"
    tables = job_tables(log, tmp_path / "expected", training={**TRAINING, "n_epochs": 40})
    with in_process_client(1) as client:
        expected = jobs.train(tables, client).parameters_sha256
    follower = subprocess.Popen(
        [sys.executable, "-m", "dfm", "submit", str(job_path), "--kubernetes", "--follow", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    name, stand_in = running_job(cluster, output, 3)
    stand_in.processes["scheduler"].kill()
    told, _ = follower.communicate(timeout=240)
    assert follower.returncode == 0, told
    events = [json.loads(line)["event"] for line in told.splitlines() if line.startswith("{")]
    assert "retrying" in events
    assert "resumed" in events
    found = outcome_of(output)
    assert found.succeeded, found.reason
    assert found.record is not None
    assert found.record.parameters_sha256 == expected
    assert cluster.complaints == []
    assert cluster.jobs()[name]["status"] == {"jobStatus": "Successful"}
    assert cluster.server.kinds() == ["ConfigMap", "DaskJob", "Pod", "PodDisruptionBudget"]  # the job's own
    cluster.server.delete(f"{JOBS}/{name}")
    assert cluster.server.kinds() == []


def test_a_job_that_is_deleted_in_mid_run_says_so_at_once_and_goes_on_when_it_is_submitted_again(
    cluster: Miniature, job_path: Path, tmp_path: Path
) -> None:
    output = f"local://{tmp_path}/out"
    job = load_job(job_path)
    api = Api()
    submit.submit(api, submit.prepare(job))
    name, _ = running_job(cluster, output, 3)
    cluster.server.delete(f"{JOBS}/{name}")
    wait_until(lambda: (found := read_run(output)) and found.state == "interrupted", seconds=5)
    wait_until(lambda: not cluster.running, seconds=60)
    left = read_run(output)
    assert left is not None
    assert left.state == "interrupted"
    submit.submit(api, submit.prepare(job))
    found, _ = follow.follow(api, next(iter(cluster.jobs())), STORE, lambda event: None)
    assert found.succeeded, found.reason
    assert "resumed" in [event["event"] for event in read_events(output)]
