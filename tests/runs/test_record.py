"""The record of a run: it tells the truth while the run works, when it ends in any way, and when its driver is gone."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dfm import jobs
from dfm.data import synthetic
from dfm.errors import ClusterError, SettingsError, SupersededError
from dfm.launch import on_dask, process
from dfm.runs import record as runs
from dfm.runs.record import RunRecord, read_run, request_cancel
from dfm.settings.job import Job
from dfm.storage import files
from tests.support.real_processes import wait_until
from tests.support.small_jobs import in_process_client, job_tables, run_of


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 rows of clicks on four days."""
    directory = tmp_path_factory.mktemp("clicks")
    synthetic.generate(directory, rows=4_000, days=4, shards_per_day=1, seed=3)
    return directory


def test_a_record_without_heartbeat_is_stale_only_while_it_says_running() -> None:
    old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=61)
    record = RunRecord("run", "running", updated=old.isoformat())
    assert record.is_stale()
    assert not record.is_stale(120)
    assert not dataclasses.replace(record, updated=runs.now()).is_stale()
    assert not dataclasses.replace(record, state="finished").is_stale()


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(SettingsError, match=f"{tmp_path}/run.json is no record of a run"):
        read_run(str(tmp_path))
    later = {**RunRecord("run", "finished").to_dict(), "a_field_of_tomorrow": 1}
    (tmp_path / "run.json").write_text(json.dumps(later))
    assert read_run(str(tmp_path)) == RunRecord("run", "finished")


def test_training_leaves_the_record_of_its_run(log: Path, tmp_path: Path) -> None:
    job = Job.from_dict(job_tables(log, tmp_path))
    with in_process_client(1) as client:
        result = jobs.train(job, client, run_id="run-5")
        record = run_of(job)
        assert (record.run_id, record.state, record.model) == ("run-5", "finished", result.model_url)
        assert record.scheduler == client.scheduler.address
        assert record.parameters_sha256 == result.parameters_sha256 == result.model.parameters_sha256()
        assert record.job_fingerprint == result.model.metadata["job_fingerprint"]
        assert record.run_id == result.model.metadata["run_id"]
        refused = dataclasses.replace(job, output=dataclasses.replace(job.output, overwrite=False))
        with pytest.raises(SettingsError, match="overwrite = false"):
            jobs.train(refused, client)
    assert run_of(job) == record


@pytest.mark.parametrize("output", [{"checkpoint_every": "never"}, {"resume": False}], ids=str)
def test_a_driver_that_goes_on_after_another_job_took_its_place_leaves_the_model_of_that_one(
    log: Path, tmp_path: Path, output: dict[str, Any]
) -> None:
    """The driver of the first night stalls after an epoch, while the second night begins and ends."""
    first = job_tables(log, tmp_path, output={"report": False, **output})
    second = job_tables(log, tmp_path, training={"n_epochs": 1}, output={"report": False, **output})
    published, told = [], list[int]()
    folder = Job.from_dict(first).output.checkpoints

    with in_process_client(1) as client:

        def stall(event: dict[str, Any]) -> None:
            if event["event"] == "epoch" and not published:
                if "checkpoint_every" not in output:  # else its writer may meet those of the second night
                    wait_until(lambda: f"round-{told[-1]:08d}.json" in files.names_in(folder))
                published.append(jobs.train(second, client, run_id="night-2", progress=False))

            told.extend([event["round"]] if event["event"] == "round" else [])

        with pytest.raises(SupersededError, match="two runs share one output"):
            jobs.train(first, client, run_id="night-1", on_event=stall)
    record, model = run_of(Job.from_dict(first)), published[0].model
    assert (record.run_id, record.state, record.error) == ("night-2", "finished", None)
    assert record.parameters_sha256 == published[0].parameters_sha256 == model.parameters_sha256()
    assert not files.names_in(folder)


@pytest.fixture
def training(log: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Job]]:
    """`dfm train` of 900 epochs in a process group of its own, after its first epoch."""
    tables = job_tables(log, tmp_path, training={"n_epochs": 900}, output={"overwrite": True})
    statement = f"from dfm import jobs\nif __name__ == '__main__': jobs.train({tables!r}, run_id='run-6')"
    process = subprocess.Popen([sys.executable, "-c", statement], start_new_session=True, text=True, stderr=-1)
    job = Job.from_dict(tables)
    try:
        wait_until(lambda: (record := read_run(job.output.directory)) and record.progress.get("epoch"))
        yield process, job
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_running_job_is_cancelled_from_outside(training: tuple[subprocess.Popen[str], Job]) -> None:
    process, job = training
    request_cancel(job.output.directory)
    _, err = process.communicate(timeout=90)
    assert "RunCancelled" in err
    record = run_of(job)
    assert (record.state, record.error and record.error["exit_code"]) == ("cancelled", 7)
    assert not files.exists(files.join(job.output.directory, "model"))


def test_a_run_whose_driver_has_not_begun_is_over_when_it_is_cancelled(tmp_path: Path) -> None:
    job = Job.from_dict({"data": {"train": "x"}, "output": {"directory": f"{tmp_path}/out"}})
    runs.submitted(job, "run-1", "tcp://there:8786")
    told = subprocess.run(
        [sys.executable, "-m", "dfm", "cancel", job.output.directory, "--wait"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout == "run run-1 is over: cancelled\n"
    record = run_of(job)
    assert (record.state, bool(record.ended)) == ("cancelled", True)
    assert on_dask.drive_run(job, "run-1") == "cancelled", "and does not begin later"


@pytest.mark.parametrize("launcher", [on_dask, process])
def test_a_driver_that_is_refused_before_it_has_the_record_tells_why(
    launcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(job: Job, *_: Any, run_id: str, **__: Any) -> None:
        raise ClusterError("client is closed")

    monkeypatch.setattr(jobs, "train", train)
    job = Job.from_dict({"data": {"train": "x"}, "output": {"directory": f"{tmp_path}/out"}})
    runs.submitted(job, "run-1")
    if launcher is on_dask:
        starts_left = [0, 1]
        monkeypatch.setattr(on_dask, "worker_client", lambda **_: contextlib.nullcontext())
        monkeypatch.setattr(on_dask, "_starts_left", lambda *_: starts_left.pop())
        with pytest.raises(ClusterError, match="client is closed"):  # for Dask, which starts it again
            on_dask.drive_run(job, "run-1")
        assert run_of(job).state == "submitted"
        assert on_dask.drive_run(job, "run-1") == "failed"
    else:
        order = tmp_path / "order.json"
        order.write_text(json.dumps({"job": job.to_dict(), "run_id": "run-1"}))
        assert process.main(str(order)) == ClusterError.exit_code
    record = run_of(job)
    assert (record.state, bool(record.ended)) == ("failed", True)
    assert record.error == {"type": "ClusterError", "message": "client is closed", "exit_code": 4}


def test_a_killed_driver_leaves_a_record_that_grows_stale(training: tuple[subprocess.Popen[str], Job]) -> None:
    process, job = training
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = run_of(job)
    assert left.state == "running"
    wait_until(lambda: left.is_stale(1.0))
    assert run_of(job) == left


@pytest.mark.parametrize(
    "content",
    ['{"id": 17}', "[]", '{"run_id": "a", "state": "running", "updated": "yesterday"}', '{"run_id": 1, "state": "x"}'],
)
def test_a_record_of_somebody_else_is_named_and_others_are_listed(tmp_path: Path, content: str) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.json").write_text(content)
    with pytest.raises(SettingsError, match="is no record of a run"):
        read_run(str(tmp_path / "foreign"))
    runs.write_run(str(tmp_path / "good"), RunRecord("run-7", "finished", updated=runs.now()))
    told = subprocess.run(
        [sys.executable, "-m", "dfm", "list", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "run-7" in told.stdout
    assert "foreign/run.json is no record of a run" in told.stderr


def test_a_cancel_of_no_run_leaves_nothing(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "dfm", "cancel", str(tmp_path / "typo")], capture_output=True, text=True, check=False
    )
    assert told.returncode == SettingsError.exit_code
    assert "there is no record of a run" in told.stderr
    assert not (tmp_path / "typo").exists()
