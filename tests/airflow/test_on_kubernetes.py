"""A night whose training is a DaskJob: created once, awaited in the triggerer, its end proven by storage."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfm.airflow import runtime
from dfm.errors import ClusterError, SettingsError
from dfm.runs import lifecycle
from dfm.runs import record as runs
from dfm.runs.log import RunLog
from dfm.settings.job import Job
from dfm.storage import files
from dfm.workflow import steps
from tests.support.api_server import ApiServer, api_server

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("kubernetes")
JOBS = "/apis/kubernetes.dask.org/v1/namespaces/team/daskjobs"
PODS = "/api/v1/namespaces/team/pods"
RUN_ID = "ctr.train.20261116T000000"
CONTEXT = {
    "ti": SimpleNamespace(dag_id="ctr", task_id="train"),
    "data_interval_start": datetime.datetime(2026, 11, 16, tzinfo=datetime.UTC),
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    from dfm.kubernetes import api, follow, submit

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(api, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(follow, "LAST_WORD", 0.2)
    for module in (follow, submit):
        monkeypatch.setattr(module, "PAUSE", 0.05)
    with api_server(tmp_path / "kubeconfig") as store:
        yield store


@pytest.fixture
def job(tmp_path: Path) -> Job:
    sizes = {"workers": 2, "worker_memory": "4GiB", "driver_memory": "2GiB", "scratch": "20GiB"}
    output = {"directory": f"memory://airflow-kubernetes/{tmp_path.name}"}
    return Job.from_dict({"data": {"train": "s3://in/x"}, "output": output, "kubernetes": sizes})


def name_of(server: ApiServer) -> str:
    (name,) = [body["metadata"]["name"] for body in server.objects.values() if body["kind"] == "DaskJob"]
    return str(name)


def put_driver(server: ApiServer, phase: str) -> None:
    name = name_of(server)
    labels = {"dask.org/cluster-name": name, "dask.org/component": "job-runner"}
    server.objects[f"{JOBS}/{name}"]["status"] = {"jobStatus": "Running"}
    server.put(
        PODS, {"kind": "Pod", "metadata": {"name": f"{name}-runner", "labels": labels}, "status": {"phase": phase}}
    )


def finish(job: Job) -> None:
    """Leave what a driver leaves that succeeded."""
    model = files.join(job.output.directory, "model")
    manifest = {"format": 1, "files": {"parameters": {"name": "p"}}, "metadata": {"job_fingerprint": job.fingerprint()}}
    with RunLog(job, RUN_ID) as log:
        files.write_bytes(files.join(model, "p"), b"parameters")
        files.write_bytes(files.join(model, "model.json"), json.dumps(manifest).encode())
        log.on_event({"event": "epoch", "epoch": 1, "log_loss": 0.4, "seconds": 2.0})
        log.on_event({"event": "done", "model": model, "parameters_sha256": "x", "validation": {}, "rows": {}})


def lose_the_scheduler_and_finish(job: Job) -> None:
    try:
        with RunLog(job, RUN_ID, "", 4):
            raise ClusterError("the scheduler is gone")
    except ClusterError:
        pass
    threading.Timer(0.5, finish, [job]).start()


def fired(trigger: Any) -> dict[str, Any]:
    async def first() -> Any:
        return (await asyncio.wait_for(anext(again(trigger).run()), 60)).payload

    return dict(asyncio.run(first()))


def again(trigger: Any) -> Any:
    """The trigger as another triggerer makes it."""
    path, arguments = trigger.serialize()
    module, name = path.rsplit(".", 1)
    return getattr(__import__(module, fromlist=[name]), name)(**arguments)


def operator(job: Job, **changes: Any) -> Any:
    from dfm.airflow import DfmTrainOperator

    settings = {"task_id": "train", "job": job, "target": "kubernetes", "dask_conn_id": None, "poll_interval": 0.1}
    return DfmTrainOperator(**{**settings, **changes})


@pytest.mark.parametrize("drive", [finish, lose_the_scheduler_and_finish])
def test_a_deferred_task_waits_for_its_dask_job_and_is_not_misled_by_an_attempt_that_failed(
    server: ApiServer, job: Job, drive: Callable[[Job], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfm.model.report.report_training", lambda *_: "https://report")
    task = operator(job, deferrable=True)
    trigger = task._trigger(job, RUN_ID)
    put_driver(server, "Running")
    first = name_of(server)
    assert task._trigger(job, RUN_ID).dask_job == first  # a try after the first one finds the driver at work
    drive(job)
    event = fired(trigger)
    assert (event["state"], event["run_id"]) == ("finished", RUN_ID)
    assert task.execute_complete(CONTEXT, event)["parameters_sha256"] == "x"


def test_a_driver_that_is_gone_is_another_try_which_gets_a_new_job(server: ApiServer, job: Job) -> None:
    from airflow.sdk.exceptions import AirflowException

    task = operator(job, deferrable=True)
    trigger = task._trigger(job, RUN_ID)
    put_driver(server, "Failed")
    event = fired(trigger)
    assert event["state"] == "lost"
    with pytest.raises(AirflowException, match=r"lost its driver.*another try goes on from its checkpoint"):
        task.execute_complete(CONTEXT, event)
    assert task._trigger(job, RUN_ID).dask_job != trigger.dask_job
    assert name_of(server) != trigger.dask_job


def test_a_triggerer_that_reaches_no_cluster_ends_the_wait_with_the_reason(
    server: ApiServer, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = operator(job, deferrable=True)._trigger(job, RUN_ID)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    event = fired(trigger)
    assert (event["state"], event["directory"]) == ("lost", job.output.directory)
    assert event["reason"].startswith("no Kubernetes cluster is configured")


def test_a_user_who_kills_the_task_ends_the_job_for_good(server: ApiServer, job: Job) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    task = operator(job, deferrable=True)
    trigger = task._trigger(job, RUN_ID)
    asyncio.run(trigger.on_kill())
    assert server.kinds() == []
    record = runs.read_run(job.output.directory)
    assert record is not None
    assert record.state == "cancelled"
    with pytest.raises(AirflowFailException, match="is cancelled; clear the task"):
        task.execute_complete(CONTEXT, {"state": "cancelled", "run_id": RUN_ID, "directory": job.output.directory})


def test_a_task_that_is_cleared_waits_until_its_job_has_stopped_and_makes_another(
    server: ApiServer, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_LOOK", 0.05)
    first = runtime.dask_job_of(job, RUN_ID)
    put_driver(server, "Running")
    runs.request_cancel(job.output.directory)

    def stop() -> None:
        assert name_of(server) == first
        assert runs.settle(job, RUN_ID, "cancelled", lifecycle.CANCELLER)

    threading.Timer(0.5, stop).start()
    assert runtime.dask_job_of(job, RUN_ID) == name_of(server) != first
    record = runs.read_run(job.output.directory)
    assert record is not None
    assert record.state == "submitted"
    assert not runs.is_cancelled(job.output.directory, RUN_ID)
    put_driver(server, "Running")
    monkeypatch.setattr(steps, "STOP_SECONDS", 0.2)
    runs.request_cancel(job.output.directory)
    with pytest.raises(ClusterError, match=r"was asked to stop and is still there after .* s; try again once it has"):
        runtime.dask_job_of(job, RUN_ID)


def test_a_wait_that_takes_too_long_ends_the_job(server: ApiServer, job: Job) -> None:
    from airflow.sdk.bases.operator import TriggerFailureReason
    from airflow.sdk.exceptions import TaskDeferralTimeout

    operator(job, deferrable=True)._trigger(job, RUN_ID)
    with pytest.raises(TaskDeferralTimeout):
        operator(job, deferrable=True).resume_execution(
            "__fail__", {"error": TriggerFailureReason.TRIGGER_TIMEOUT}, CONTEXT
        )
    assert server.kinds() == []
    assert runs.read_run(job.output.directory).state == "cancelled"


def test_a_job_that_was_changed_is_trained_by_a_dask_job_of_its_own(server: ApiServer, job: Job) -> None:
    first = runtime.dask_job_of(job, RUN_ID)
    put_driver(server, "Pending")
    changed = dataclasses.replace(job, training=dataclasses.replace(job.training, n_epochs=3))
    assert runtime.dask_job_of(changed, RUN_ID) == name_of(server) != first
    record = runs.read_run(job.output.directory)
    assert record is not None
    assert (record.state, record.job_fingerprint) == ("submitted", changed.fingerprint())


def test_the_job_of_another_night_that_is_at_work_in_the_same_place_is_left_alone(server: ApiServer, job: Job) -> None:
    first = runtime.dask_job_of(job, RUN_ID)
    with pytest.raises(SettingsError, match=f"holds run {RUN_ID}, which is submitted"):
        runtime.dask_job_of(job, "ctr.train.20261117T000000")
    assert name_of(server) == first


def test_a_task_that_waits_itself_follows_the_job_and_logs_its_epochs(
    server: ApiServer, job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dfm.airflow import tasks
    from dfm.kubernetes import follow

    monkeypatch.setattr(follow, "SETTLING", 0.1)
    monkeypatch.setattr(steps, "finished_run", lambda job: None)
    server.on_create = lambda body: finish(job) if body["kind"] == "DaskJob" else None
    told = tasks.EventLog()
    with caplog.at_level("INFO", logger="dfm"):
        assert tasks.train_here(job, RUN_ID, None, 0.1, "kubernetes", told)["model"].endswith("/model")
    assert "epoch 1: log_loss 0.40000" in caplog.messages
    assert told.epochs == {1}


def test_a_target_that_there_is_not_is_refused_when_the_dag_is_parsed(job: Job) -> None:
    with pytest.raises(SettingsError, match="target = 'mars' is not legal: expected auto or kubernetes"):
        operator(job, target="mars")
