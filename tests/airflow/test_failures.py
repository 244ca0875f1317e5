"""What a retry does: it goes on from the checkpoint after a kill, waits for a driver at work, stops when asked to."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dfm
from dfm.errors import ClusterError, RunCancelled, SettingsError, StorageError
from dfm.launch import process
from dfm.runs import record as runs
from dfm.settings.job import Job, load_job
from dfm.workflow import steps
from tests.support.real_airflow import HOME, DaskCluster, run_dag, wait_until

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
OUTPUT = HOME / "output" / "long"


def job_for(log: Path, day: str, directory: Path, **training: Any) -> Job:
    """The job of the DAGs of long training, as they resolve it."""
    return load_job(
        {
            "data": {"train": str(log / f"day={day}")},
            "schema": {"label": "label", "numeric": ["I*"], "categorical": ["C*"]},
            "model": {"n_factors": 4, "hash_bits": 16},
            "training": {
                "n_replicas": 4, "n_epochs": 60, "averages_per_epoch": 4, "early_stopping": False, **training,
            },
            "cluster": {"workers": 1, "cache": str(HOME / "output" / "cache")},
            "output": {"directory": str(directory)},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(log: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Parameters (sha256) of the job on the 14th when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return dfm.train(job_for(log, "2026-11-14", folder)).parameters_sha256


@contextlib.contextmanager
def meanwhile(action) -> Iterator[list[BaseException]]:
    """Do something in a thread while the block runs; its errors are raised at the end."""
    errors: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    yield errors
    thread.join()
    if errors:
        raise errors[0]


def has_checkpoint(folder: Path) -> bool:
    return any(path.is_file() for path in (folder / "checkpoint").rglob("*.json"))


def events_of(folder: Path) -> list[str]:
    return [event["event"] for event in runs.read_events(str(folder))]


def record_of(folder: Path) -> runs.RunRecord:
    record = runs.read_run(str(folder))
    assert record is not None
    return record


def test_a_retry_after_all_workers_were_killed_goes_on_from_the_checkpoint(
    cluster: DaskCluster, log: Path, undisturbed: str
):
    folder = OUTPUT / "train_here" / "train" / "20261114T000000"

    def kill() -> None:
        wait_until(lambda: has_checkpoint(folder), "a checkpoint")
        cluster.kill_workers()
        wait_until(lambda: record_of(folder).state == "failed", "the run has failed")
        cluster.start_workers()

    with meanwhile(kill):
        assert run_dag("train_here", "2026-11-14") == {"train": "success"}
    assert "resumed" in events_of(folder)
    assert record_of(folder).parameters_sha256 == undisturbed


def test_a_worker_that_is_killed_while_another_lives_costs_no_try(cluster: DaskCluster, log: Path):
    folder = OUTPUT / "train_here" / "train" / "20261115T000000"

    def kill() -> None:
        wait_until(lambda: "epoch" in events_of(folder), "an epoch")
        cluster.kill_workers(1)

    try:
        with meanwhile(kill):
            assert run_dag("train_here", "2026-11-15") == {"train": "success"}
    finally:
        cluster.start_workers(1)
    assert "resumed" not in events_of(folder)


def test_a_retry_after_the_driver_was_killed_goes_on_from_the_checkpoint(log: Path, undisturbed: str):
    folder = OUTPUT / "train_away" / "train" / "20261114T000000"

    def kill() -> None:
        wait_until(lambda: has_checkpoint(folder), "a checkpoint")
        os.kill(record_of(folder).pid, signal.SIGKILL)

    with meanwhile(kill):
        assert run_dag("train_away", "2026-11-14") == {"train": "success"}
    assert "resumed" in events_of(folder)
    assert record_of(folder).parameters_sha256 == undisturbed
    assert record_of(folder).pid != os.getpid()


def test_a_task_waits_for_the_driver_that_is_at_work_instead_of_starting_another(log: Path, tmp_path: Path):
    job = job_for(log, "2026-11-14", tmp_path / "run")
    process.start(job, "the-run")
    wait_until(lambda: record_of(tmp_path / "run").state == "running", "the driver is at work")
    pid = record_of(tmp_path / "run").pid
    found = steps.train_once(job, "the-run", steps.Where(), poll=0.2)
    assert found["run_id"] == "the-run"
    assert record_of(tmp_path / "run").pid == pid
    assert events_of(tmp_path / "run").count("plan") == 1
    assert steps.train_once(job, "the-run", steps.Where())["parameters_sha256"] == found["parameters_sha256"]
    assert events_of(tmp_path / "run").count("plan") == 1


def test_the_trigger_tells_how_the_run_ended_and_a_kill_by_the_user_stops_the_run(log: Path, tmp_path: Path):
    from dfm.airflow import DfmRunTrigger

    folder = tmp_path / "run"
    job = job_for(log, "2026-11-14", folder, n_epochs=900)
    process.start(job, "the-run")
    wait_until(lambda: record_of(folder).state == "running" and "epoch" in events_of(folder), "an epoch")
    trigger = DfmRunTrigger(str(folder), None, 0.2)

    async def watch() -> dict[str, Any]:
        stream = trigger.run()
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        await trigger.on_kill()
        return (await asyncio.wait_for(waiting, 120)).payload

    assert asyncio.run(watch()) == {"state": "cancelled", "run_id": "the-run", "directory": str(folder)}
    assert has_checkpoint(folder)
    with pytest.raises(RunCancelled):
        steps.raise_unless_finished(record_of(folder), str(folder))


def test_a_trigger_waits_on_while_the_store_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from dfm.airflow import DfmRunTrigger, triggers

    answers: list[Any] = [OSError("no route"), StorageError("the store does not answer"), "cancelled"]

    def read_run(*_place: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(state=answer, run_id="the-run", is_over=True)

    monkeypatch.setattr(triggers.runs, "read_run", read_run)

    async def told() -> dict[str, Any]:
        return (await asyncio.wait_for(anext(DfmRunTrigger(str(tmp_path), None, 0.01).run()), 20)).payload

    assert asyncio.run(told())["state"] == "cancelled"
    assert not answers


def test_a_partition_is_awaited_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch):
    from dfm.airflow import triggers

    answers: list[Any] = [OSError("no route"), StorageError("the store does not answer"), False, True]

    def exists(*_place: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(triggers.files, "exists", exists)

    async def told() -> dict[str, Any]:
        trigger = triggers.PartitionTrigger("s3://bucket/day=1", poll_interval=0.01)
        return (await asyncio.wait_for(anext(trigger.run()), 20)).payload

    assert asyncio.run(told()) == {"partition": "s3://bucket/day=1"}
    assert not answers


OWN, OTHER = "ctr.train.20261101T000000", "ctr.train.20261102T000000"
TAKEN = f"run {OTHER} took the place of this run in .*; give each interval its own output.directory"


def night(directory: Path, day: int) -> tuple[Any, dict[str, Any]]:
    """A task that is deferred and whose output location does not follow from its interval, and its context."""
    from dfm.airflow import DfmTrainOperator

    job = {"data": {"train": "x"}, "cluster": {"scheduler": "local"}, "output": {"directory": str(directory)}}
    operator = DfmTrainOperator(task_id="train", job=job, deferrable=True, dask_conn_id=None, poll_interval=0.05)
    start = datetime.datetime(2026, 11, day, tzinfo=datetime.UTC)
    return operator, {"ti": SimpleNamespace(dag_id="ctr", task_id="train"), "data_interval_start": start}


def leave(directory: Path, run_id: str, state: str) -> Job:
    """Leave the record of a run of that task; its job."""
    job = load_job(night(directory, 1)[0].job)
    record = runs.RunRecord(run_id, state, job.fingerprint(), host="elsewhere", model="m", updated=runs.now())
    runs.write_run(str(directory), record)
    return job


@pytest.mark.parametrize("state", ["running", "finished", "cancelled", "failed"])
def test_a_night_does_not_hand_on_the_model_of_another_night_that_took_its_place(tmp_path: Path, state: str):
    from airflow.sdk.exceptions import AirflowFailException

    operator, context = night(tmp_path, 1)
    trigger = operator._trigger(leave(tmp_path, OWN, "running"), OWN)
    assert trigger.serialize()[1]["run_id"] == OWN
    leave(tmp_path, OTHER, state)

    async def told() -> dict[str, Any]:
        return (await asyncio.wait_for(anext(trigger.run()), 20)).payload

    event = asyncio.run(told())
    assert event == {"state": "superseded", "run_id": OTHER, "directory": str(tmp_path)}
    with pytest.raises(AirflowFailException, match=TAKEN):
        operator.execute_complete(context, event)


def test_an_event_of_another_night_is_no_success_whoever_sent_it(tmp_path: Path):
    from airflow.sdk.exceptions import AirflowFailException

    operator, context = night(tmp_path, 1)
    leave(tmp_path, OTHER, "finished")
    for run_id in (OTHER, OWN):  # of a trigger that an earlier version left; of a run that was replaced since
        with pytest.raises(AirflowFailException, match=TAKEN):
            operator.execute_complete(context, {"state": "finished", "run_id": run_id, "directory": str(tmp_path)})


def test_a_wait_knows_the_job_that_it_is_for_and_takes_no_model_of_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from airflow.sdk.exceptions import TaskDeferred

    operator, context = night(tmp_path, 1)
    monkeypatch.setattr(process, "start", lambda *_: None)
    with pytest.raises(TaskDeferred) as deferred:
        operator.work(context)
    job = leave(tmp_path, OWN, "finished")
    assert deferred.value.kwargs == {"job_fingerprint": job.fingerprint()}
    event = {"state": "finished", "run_id": OWN, "directory": str(tmp_path)}
    with pytest.raises(ClusterError, match="is finished with another job"):
        operator.execute_complete(context, event, job_fingerprint="of the job as it was changed")


def test_a_wait_knows_a_job_of_relative_paths_as_the_record_of_its_driver_on_dask_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from airflow.sdk.exceptions import TaskDeferred

    from dfm.launch.on_dask import with_absolute_paths

    operator, context = night(Path("out"), 1)
    operator.job["cluster"]["scheduler"] = "tcp://scheduler:8786"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(operator, "_trigger", lambda *_: SimpleNamespace(serialize=lambda: ("", {})))
    with pytest.raises(TaskDeferred) as deferred:
        operator.work(context)
    recorded = with_absolute_paths(load_job(operator.job))
    assert deferred.value.kwargs == {"job_fingerprint": recorded.fingerprint()}


def test_a_wait_that_takes_too_long_asks_its_run_to_stop_and_no_other(tmp_path: Path):
    from airflow.sdk.bases.operator import TriggerFailureReason
    from airflow.sdk.exceptions import TaskDeferralTimeout

    for of_run, asked in ((OTHER, False), (OWN, True)):
        operator, context = night(tmp_path, 1)
        leave(tmp_path, of_run, "running")
        with pytest.raises(TaskDeferralTimeout):
            operator.resume_execution("__fail__", {"error": TriggerFailureReason.TRIGGER_TIMEOUT}, context)
        assert runs.is_cancelled(str(tmp_path), of_run) == asked


def test_a_trigger_of_an_earlier_version_takes_any_run(tmp_path: Path):
    from dfm.airflow import DfmRunTrigger

    leave(tmp_path, OTHER, "finished")
    known = {"directory": str(tmp_path), "storage_options": {}, "poll_interval": 0.05, "by_process": True}

    async def told() -> dict[str, Any]:
        return (await asyncio.wait_for(anext(DfmRunTrigger(**known).run()), 20)).payload

    assert asyncio.run(told())["state"] == "finished"


def test_a_night_starts_no_driver_where_that_of_another_night_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    operator, _ = night(tmp_path, 1)
    job = leave(tmp_path, OTHER, "running")
    monkeypatch.setattr(process, "start", None)
    with pytest.raises(SettingsError, match=f"holds run {OTHER}, which is running"):
        operator._trigger(job, OWN)


def test_killing_a_night_leaves_another_one_that_took_its_place_alone(tmp_path: Path):
    operator, _ = night(tmp_path, 1)
    trigger = operator._trigger(leave(tmp_path, OWN, "running"), OWN)
    leave(tmp_path, OTHER, "running")
    asyncio.run(trigger.on_kill())
    operator._running, operator._run_id = (str(tmp_path), {}), OWN
    operator.on_kill()
    assert not (tmp_path / runs.CANCEL).exists()


@pytest.mark.parametrize("on_dask", [False, True])
def test_a_task_that_is_cleared_while_it_waits_goes_on_with_another_driver(
    log: Path, tmp_path: Path, cluster: DaskCluster, on_dask: bool
):
    folder = tmp_path / "run"
    job = job_for(log, "2026-11-14", folder, n_epochs=900)
    job = dataclasses.replace(
        job, cluster=dataclasses.replace(job.cluster, scheduler=cluster.address if on_dask else "local")
    )
    operator, _ = night(folder, 1)
    trigger = operator._trigger(job, OWN)
    wait_until(lambda: has_checkpoint(folder), "a checkpoint")
    asyncio.run(trigger.on_kill())
    assert operator._trigger(job, OWN).serialize() == trigger.serialize()
    assert record_of(folder).state in ("submitted", "starting", "running")
    wait_until(lambda: "resumed" in events_of(folder), "it goes on")
    assert record_of(folder).state == "running"
    runs.request_cancel(str(folder))
    wait_until(lambda: record_of(folder).is_over, "the end")


def test_a_trigger_that_is_made_again_elsewhere_goes_on_where_the_first_one_stopped(log: Path, tmp_path: Path):
    from dfm.airflow import DfmRunTrigger
    from dfm.airflow.triggers import PartitionTrigger

    folder = tmp_path / "run"
    job = job_for(log, "2026-11-14", folder, n_epochs=2)

    def again(trigger):
        path, arguments = trigger.serialize()
        module, name = path.rsplit(".", 1)
        return getattr(__import__(module, fromlist=[name]), name)(**arguments)

    async def restarted(trigger) -> Any:
        first = asyncio.ensure_future(anext(trigger.run()))
        await asyncio.sleep(0.5)
        first.cancel()  # a triggerer that shuts down
        return (await asyncio.wait_for(anext(again(trigger).run()), 120)).payload

    process.start(job, "the-run")
    assert asyncio.run(restarted(DfmRunTrigger(str(folder), None, 0.2)))["state"] == "finished"
    partition = tmp_path / "day=2026-11-20"
    partition.mkdir()
    timer = threading.Timer(1.0, (partition / "_SUCCESS").touch)
    timer.start()
    assert asyncio.run(restarted(PartitionTrigger(str(partition), poll_interval=0.1))) == {"partition": str(partition)}
    timer.join()


def test_the_steps_are_functions_for_taskflow(cluster: DaskCluster, log: Path):
    assert run_dag("train_flow", "2026-11-15") == {"train": "success", "judge": "success"}
    folder = HOME / "output" / "flow" / "train_flow" / "train" / "20261115T000000"
    assert record_of(folder).state == "finished"
    assert len(list((folder / "model-evaluations").iterdir())) == 1


def test_killing_a_task_asks_its_run_to_stop(tmp_path: Path):
    from dfm.airflow import DfmTrainOperator

    operator = DfmTrainOperator(task_id="train", job={}, models=str(tmp_path), dask_conn_id=None)
    operator.on_kill()  # before there is a run
    runs.write_run(str(tmp_path), runs.RunRecord("the-run", "running"))
    operator._running = str(tmp_path), {}
    operator.on_kill()
    assert (tmp_path / runs.CANCEL).exists()


def test_a_partition_may_be_awaited_by_its_rows(log: Path, caplog: pytest.LogCaptureFixture):
    from dfm.airflow.triggers import is_complete

    caplog.set_level("INFO", logger="dfm")
    assert is_complete(str(log / "day=2026-11-14"), "_SUCCESS", 6000, {})
    assert not is_complete(str(log / "day=2026-11-14"), "_SUCCESS", 6001, {})
    assert not is_complete(str(log / "day=2026-12-24"), "_SUCCESS", 1, {})
    assert not is_complete(str(log / "day=2026-12-24"), "_SUCCESS", 0, {})
    assert caplog.messages == [
        f"waiting for 6,001 rows in {log}/day=2026-11-14, which has 6,000",
        f"waiting for 1 rows in {log}/day=2026-12-24, which has 0",
        f"waiting for {log}/day=2026-12-24/_SUCCESS",
    ]


def test_the_connection_names_the_scheduler_or_the_size_of_a_cluster(
    cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
):
    from dfm.airflow import DaskHook

    assert DaskHook().cluster() == {"scheduler": cluster.address}
    working, message = DaskHook().test_connection()
    assert working, message
    assert "2 workers" in message
    monkeypatch.setenv("AIRFLOW_CONN_LOCAL", '{"conn_type": "dask", "extra": {"workers": 3, "memory_limit": "1GB"}}')
    assert DaskHook("local").cluster() == {"scheduler": "local", "workers": 3, "memory_limit": "1GB"}
    assert DaskHook("local").dashboard() == ""
    secure = '{"conn_type": "dask", "host": "h", "port": 1, "extra": {"protocol": "tls", "tls_ca": "/ca.pem"}}'
    monkeypatch.setenv("AIRFLOW_CONN_SECURE", secure)
    assert DaskHook("secure").cluster() == {"scheduler": "tls://h:1", "tls_ca": "/ca.pem"}
    assert DaskHook("secure").kubernetes() is None
    monkeypatch.setenv("AIRFLOW_CONN_PODS", '{"conn_type": "dask", "extra": {"kubernetes": {"namespace": "ctr"}}}')
    assert DaskHook("pods").kubernetes() == {"namespace": "ctr"}


def test_a_connection_given_as_a_uri_tells_kubernetes_in_json(monkeypatch: pytest.MonkeyPatch):
    from dfm.airflow import DaskHook

    monkeypatch.setenv("AIRFLOW_CONN_PODS", "dask://?kubernetes=%7B%22workers%22%3A2%7D")
    assert DaskHook("pods").kubernetes() == {"workers": 2}
    monkeypatch.setenv("AIRFLOW_CONN_PODS", "dask://?kubernetes=")
    assert DaskHook("pods").kubernetes() is None
    for uri in ("dask://?kubernetes=workers%3D2", "dask://?kubernetes=3", '{"extra": {"kubernetes": [1]}}'):
        monkeypatch.setenv("AIRFLOW_CONN_PODS", uri)
        with pytest.raises(SettingsError, match=r"connection 'pods' has the extra kubernetes = .*: expected .* JSON"):
            DaskHook("pods").kubernetes()
