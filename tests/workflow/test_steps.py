"""The steps of a nightly run do their work once, refuse what they must, and agree on what was published."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from distributed import Client

from dfm.cli import publish
from dfm.data.parquet import find_shards
from dfm.data.reading import fingerprint
from dfm.errors import (
    ClusterError,
    DataError,
    GateError,
    ModelError,
    RunCancelled,
    SettingsError,
    StorageError,
    SupersededError,
)
from dfm.launch import process
from dfm.model.calibration import Calibration
from dfm.model.fm_model import FMModel
from dfm.model.report import report_training
from dfm.pages.page import write_report
from dfm.runs import record as runs
from dfm.settings.job import Job, load_job
from dfm.workflow import data_check, registry, steps, unseen_rows
from dfm.workflow.gate import Gate
from tests.support.small_jobs import LAST_DAY, job_tables
from tests.support.small_models import turned

DAYS = ["2026-11-14", "2026-11-15", "2026-11-16"]
GATE = Gate(calibration_low=0.5, calibration_high=2.0)


def day(log: Path, name: str) -> str:
    return str(log / f"day={name}")


def job_on(log: Path, folder: Path, days: list[str], **changes: Any) -> Job:
    data = {"train": [day(log, name) for name in days], "validation_from": ""}
    return load_job(job_tables(log, folder, data=data, **changes))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nights")


@pytest.fixture(scope="module")
def where(client: Client) -> steps.Where:
    return steps.Where(client)


@pytest.fixture(scope="module")
def candidate(log: Path, work: Path, where: steps.Where) -> dict[str, Any]:
    """A model of three days."""
    return steps.train_once(job_on(log, work, DAYS), "night-1", where)


# --- training -------------------------------------------------------------------------------------------


def test_a_finished_job_is_found_again(candidate, log: Path, work: Path, where: steps.Where):
    job = job_on(log, work, DAYS)
    ended = runs.read_run(str(work / "out"))
    assert steps.train_once(job, "night-1", where) == candidate
    assert runs.read_run(str(work / "out")) == ended
    assert candidate["model"] == str(work / "out" / "model")
    assert candidate["rows"]["trained"] == 6000


def test_another_job_or_other_data_is_not_finished(
    candidate, log: Path, work: Path, tmp_path: Path, where: steps.Where
):
    assert steps.finished_run(job_on(log, work, DAYS)) is not None
    assert steps.finished_run(job_on(log, work, DAYS, training={"n_epochs": 3})) is None
    copy = tmp_path / "log"
    for name in DAYS:
        (copy / f"day={name}").mkdir(parents=True)
        for path in (log / f"day={name}").glob("*.parquet"):
            (copy / f"day={name}" / path.name).write_bytes(path.read_bytes())
    job = job_on(copy, tmp_path, DAYS)
    steps.train_once(job, "night-1", where)
    assert steps.finished_run(job) is not None
    shard = next((copy / "day=2026-11-14").glob("*.parquet"))
    pq.write_table(pq.ParquetFile(shard).read().slice(1), shard)
    assert steps.finished_run(job) is None


def test_other_rows_that_validate_are_other_work(log: Path, tmp_path: Path, where: steps.Where):
    held_out = tmp_path / "held out"
    shutil.copytree(log / f"day={LAST_DAY}", held_out)
    tables = job_tables(log, tmp_path, data={"train": day(log, DAYS[0]), "validation": str(held_out)})
    tables["data"]["validation_from"], tables["model"]["calibration"] = "", "platt"
    job = load_job(tables)
    steps.train_once(job, "night-1", where)
    assert steps.finished_run(job) is not None
    known = json.loads((tmp_path / "out/model/model.json").read_text())["metadata"]
    shards = find_shards([str(held_out)])
    own = {"validation_fingerprint": fingerprint([shard.identity for shard in shards])}
    assert steps._validated_on({**known, **own}, shards)
    shard = next(held_out.glob("*.parquet"))
    pq.write_table(pq.ParquetFile(shard).read().slice(1), shard)
    assert steps.finished_run(job) is None, "a row less"
    pq.write_table(pq.ParquetFile(next((log / f"day={LAST_DAY}").glob("*.parquet"))).read(), shard, compression="gzip")
    assert not steps._validated_on({**known, **own}, find_shards([str(held_out)])), "as many rows"


def test_a_model_outlives_the_log_that_it_was_trained_on(log: Path, work: Path, tmp_path: Path, where: steps.Where):
    copy = tmp_path / "day=2026-11-14"
    copy.mkdir()
    for path in (log / "day=2026-11-14").glob("*.parquet"):
        (copy / path.name).write_bytes(path.read_bytes())
    job = job_on(tmp_path, tmp_path, ["2026-11-14"])
    steps.train_once(job, "night-1", where)
    for path in copy.glob("*.parquet"):
        path.unlink()
    assert steps.finished_run(job) is not None


def test_a_run_that_failed_hands_its_error_on(tmp_path: Path):
    def record(state: str, error: dict[str, Any] | None = None) -> runs.RunRecord:
        return runs.RunRecord("r", state, error=error)

    with pytest.raises(DataError, match="run r in here is failed: bad label"):
        steps.raise_unless_finished(record("failed", {"message": "bad label", "exit_code": 3}), "here")
    with pytest.raises(RunCancelled):
        steps.raise_unless_finished(record("cancelled", {"message": "on request", "exit_code": 7}), "here")
    with pytest.raises(ClusterError, match="no run in here"):
        steps.raise_unless_finished(None, "here")


def at_work(job: Job, run_id: str, state: str = "running") -> runs.RunRecord:
    """The record of a run whose driver is this process, left in the output location of a job."""
    host, pid = socket.gethostname(), os.getpid()
    record = runs.RunRecord(run_id, state, job.fingerprint(), host=host, pid=pid, updated=runs.now())
    runs.write_run(job.output.directory, record)
    return record


TAKEN = r"run night-2 took the place of this run in .*; give each interval its own output.directory"


def test_a_run_whose_place_another_one_takes_does_not_hand_on_the_model_of_that_one(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = job_on(log, tmp_path, DAYS)
    at_work(job, "night-1")
    threading.Timer(0.3, at_work, (job, "night-2", "finished")).start()
    with pytest.raises(SettingsError, match=TAKEN):  # while it waits for its driver
        steps.train_once(job, "night-1", steps.Where(), poll=0.05)
    runs.write_run(job.output.directory, runs.RunRecord("night-0", "finished"))
    monkeypatch.setattr(steps.jobs, "train", lambda *_, **__: at_work(job, "night-2", "finished"))
    with pytest.raises(SettingsError, match=TAKEN):  # while it is the driver itself
        steps.train_once(job, "night-1", steps.Where())


def test_a_run_that_another_one_overtakes_while_it_trains_is_not_tried_again(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = job_on(log, tmp_path, DAYS)

    def overtaken(*_: Any, **__: Any) -> None:
        finished = dataclasses.replace(at_work(job, "night-2", "finished"), model="out/model")
        runs.write_run(job.output.directory, finished)
        raise SupersededError("run night-2 has taken the place of run night-1")

    monkeypatch.setattr(steps.jobs, "train", overtaken)
    with pytest.raises(SettingsError, match="run night-2 took the place of this run"):
        steps.train_once(job, "night-1", steps.Where())


def test_a_run_does_not_begin_where_another_one_is_at_work(log: Path, tmp_path: Path):
    job = job_on(log, tmp_path, DAYS)
    other = at_work(job, "night-2")
    assert steps.running_driver(job) == other
    assert steps.running_driver(job, run_id="night-1") is None
    with pytest.raises(SettingsError, match=r"holds run night-2, which is running .*another output.directory"):
        steps.train_once(job, "night-1", steps.Where())
    assert runs.read_run(job.output.directory) == other


def test_a_driver_that_was_asked_to_stop_is_waited_for_and_another_one_goes_on(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(steps, "_LOOK", 0.05)
    job = job_on(log, tmp_path, DAYS)
    at_work(job, "night-1")
    runs.request_cancel(job.output.directory)
    threading.Timer(0.3, at_work, (job, "night-1", "cancelled")).start()
    seen: list[bool] = []

    def train(*_: Any, **__: Any) -> None:
        seen.append(runs.is_cancelled(job.output.directory, "night-1"))
        at_work(job, "night-1", "finished")

    monkeypatch.setattr(steps.jobs, "train", train)
    assert steps.train_once(job, "night-1", steps.Where(), poll=0.05)["run_id"] == "night-1"
    assert seen == [False], "another driver began, and nobody asks it to stop"


def test_a_driver_of_the_job_as_it_was_before_it_was_changed_is_stopped_before_another_one_begins(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(steps, "_LOOK", 0.05)
    before, job = (job_on(log, tmp_path, DAYS, training={"n_epochs": n}) for n in (2, 3))
    at_work(before, "night-1")
    told: list[Any] = []

    def stop() -> None:
        told.append(runs.is_cancelled(job.output.directory, "night-1"))
        at_work(before, "night-1", "cancelled")

    def train(*_: Any, **__: Any) -> None:
        told.append("another begins")
        at_work(job, "night-1", "finished")

    monkeypatch.setattr(steps.jobs, "train", train)
    end = threading.Timer(0.3, stop)
    end.start()
    steps.train_once(job, "night-1", steps.Where(), poll=0.05)
    end.join()
    assert told == [True, "another begins"]
    at_work(before, "night-2")
    assert steps.running_driver(job, run_id="night-1") is None
    assert not runs.is_cancelled(job.output.directory, "night-2"), "another run is left alone"


def test_a_run_that_trained_another_job_is_no_success():
    record = runs.RunRecord("r", "finished", "of the job before")
    assert steps.raise_unless_finished(record, "here", "r", "of the job before") == record
    with pytest.raises(ClusterError, match=r"run r in here is finished with another job, as .*; start it again"):
        steps.raise_unless_finished(record, "here", "r", "of the job now")


def test_the_wait_for_a_driver_that_was_asked_to_stop_has_an_end(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(steps, "_LOOK", 0.01)
    monkeypatch.setattr(steps, "STOP_SECONDS", 0.1)
    job = job_on(log, tmp_path, DAYS)
    record = at_work(job, "night-1")
    runs.request_cancel(job.output.directory)
    with pytest.raises(ClusterError, match=r"night-1 in .* was asked to stop and is still running .*; try again once"):
        steps.running_driver(job)
    at_work(job, "night-1", "submitted")
    assert steps.running_driver(job) is None, "its driver never began"
    at_work(job, "night-1")
    (tmp_path / "out" / runs.CANCEL).unlink()
    found = steps.running_driver(job)
    assert found is not None
    assert (found.run_id, found.state) == (record.run_id, "running")


@pytest.mark.patient
def test_a_detached_driver_trains_and_leaves_no_order_behind(log: Path, tmp_path: Path, candidate):
    job = job_on(log, tmp_path, DAYS)
    process.start(job, "night-2")
    record = steps.wait_for(job, 0.2)
    assert record is not None
    assert (record.state, record.run_id) == ("finished", "night-2")
    assert record.parameters_sha256 == candidate["parameters_sha256"]
    assert (tmp_path / "out" / process.LOG).exists()


def test_the_death_of_a_process_is_the_end_of_its_driver(tmp_path: Path):
    import subprocess
    import sys

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = runs.RunRecord("r", "running", host=socket.gethostname(), pid=ended.pid, updated=runs.now())
    assert process.is_lost(here)
    assert not process.is_lost(here, by_process=False)
    elsewhere = runs.RunRecord("r", "running", host="elsewhere", pid=ended.pid, updated=runs.now())
    assert not process.is_lost(elsewhere)
    silent = runs.RunRecord("r", "running", host="elsewhere", updated="2026-11-14T00:00:00+00:00")
    assert process.is_lost(silent)


def test_the_start_of_a_run_is_decided_once(candidate, tmp_path: Path):
    model, later = candidate["model"], tmp_path / "later"
    assert steps.pin_start(str(tmp_path / "a"), str(later)) == ""
    shutil.copytree(model, later)
    assert steps.pin_start(str(tmp_path / "a"), str(later)) == ""
    assert steps.pin_start(str(tmp_path / "b"), str(later)) == str(later)
    alias = str(tmp_path / "champion")
    assert steps.pin_start(str(tmp_path / "c"), alias) == ""
    registry.promote(alias, model, registry.Verdict((), {}))
    assert steps.pin_start(str(tmp_path / "c"), alias) == ""
    assert steps.pin_start(str(tmp_path / "d"), alias) == model


def test_another_run_in_the_same_place_and_a_setting_that_was_changed_decide_anew(candidate, tmp_path: Path):
    model, place = candidate["model"], str(tmp_path / "fixed")
    assert steps.pin_start(place, "", None, "night-1", "previous") == ""
    assert steps.pin_start(place, model, None, "night-1", "previous") == "", "found since, by the same setting"
    assert steps.pin_start(place, model, None, "night-2", "previous") == model
    assert steps.pin_start(place, "", None, "night-2", "previous") == model
    assert steps.pin_start(place, str(tmp_path / "corrected"), None, "night-2", str(tmp_path / "corrected")) == ""
    runs.write_run(place, runs.RunRecord("night-2", "running", updated=runs.now()))
    with pytest.raises(SettingsError, match="holds run night-2, which is running"):
        steps.pin_start(place, model, None, "night-3", "previous")
    (tmp_path / "fixed" / steps.START).write_text('{"begin": "of somebody else"}')
    with pytest.raises(SettingsError, match=r"start.json is there and was not made by dfm"):
        steps.pin_start(place, model, None, "night-2", model)


# --- evaluation, publication, scoring -------------------------------------------------------------------


def test_a_model_is_evaluated_once_and_never_on_what_it_was_trained_on(
    candidate, log: Path, where: steps.Where, monkeypatch: pytest.MonkeyPatch
):
    metrics = steps.evaluate_once(candidate["model"], [day(log, LAST_DAY)], where, unseen=True)
    assert metrics["rows"] == 2000
    with pytest.raises(DataError, match=r"was trained on .*day=2026-11-16.* and 1 more; evaluate it on rows"):
        steps.evaluate_once(candidate["model"], [day(log, "2026-11-16")], where, unseen=True)
    monkeypatch.setattr("dfm.jobs.evaluate", None)
    assert steps.evaluate_once(candidate["model"], [day(log, LAST_DAY)], where) == metrics


def test_the_gate_decides_and_the_alias_follows(candidate, log: Path, work: Path, tmp_path: Path, where: steps.Where):
    alias, window = str(tmp_path / "champion"), [day(log, LAST_DAY)]
    first = steps.publish(candidate["model"], alias, window, GATE, where, order="20261117")
    assert (first["promoted"], first["version"], first["champion_metrics"]) == (True, 1, {})
    assert steps.publish(candidate["model"], alias, window, GATE, where, order="20261117")["version"] == 1
    weak = steps.train_once(
        job_on(log, work, DAYS[:1], training={"n_epochs": 1}, output={"directory": str(tmp_path / "weak")}), "w", where
    )
    refused = steps.publish(weak["model"], alias, window, GATE, where, order="20261118", enforce=False)
    assert not refused["promoted"]
    assert "times the champion's" in refused["refusals"][0]
    assert refused["champion_metrics"] == first["candidate_metrics"]
    with pytest.raises(GateError):
        steps.publish(weak["model"], alias, window, GATE, where, order="20261118")
    assert registry.model_of(alias) == candidate["model"]


def test_a_champion_that_was_trained_on_the_window_is_told_and_a_refusal_says_so(
    candidate, log: Path, work: Path, tmp_path: Path, where: steps.Where, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    alias, seen = str(tmp_path / "champion"), [day(log, DAYS[2])]
    steps.publish(candidate["model"], alias, [day(log, LAST_DAY)], GATE, where)
    training, output = {"n_epochs": 1}, {"directory": str(tmp_path / "fresh")}
    fresh = steps.train_once(job_on(log, work, DAYS[:1], training=training, output=output), "fresh", where)
    training, output = {**training, "warm_start": candidate["model"]}, {"directory": str(tmp_path / "next")}
    later = steps.train_once(job_on(log, work, DAYS[:1], training=training, output=output), "next", where)
    caplog.clear()
    told = r"the comparison favours the champion: .* was trained on .*day=2026-11-16.*rows that neither has seen"
    with pytest.raises(GateError, match=rf"times the champion's.*; {told}"):
        steps.publish(fresh["model"], alias, seen, GATE, where)
    assert caplog.text.count("the comparison favours the champion") == 1
    caplog.clear()
    alone, overtaken = registry.promote, iter([registry.Overtaken("judge again")])

    def promote(*arguments: Any, **more: Any) -> registry.Version:
        for error in overtaken:
            raise error
        return alone(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(registry, "promote", promote)
        refused = steps.publish(fresh["model"], alias, seen, GATE, where, enforce=False)
    assert not refused["promoted"]
    assert caplog.text.count("the comparison favours the champion") == 1, "told of the comparison that decided alone"
    refused = steps.publish(fresh["model"], alias, seen, GATE, where, enforce=False)
    assert "favours the champion" in refused["refusals"][0]
    caplog.clear()
    steps.publish(later["model"], alias, [day(log, LAST_DAY)], GATE, where, enforce=False)
    assert "favours" not in caplog.text


def test_a_champion_whose_data_cannot_be_read_is_compared_all_the_same(
    candidate, log: Path, tmp_path: Path, where: steps.Where, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    alias, later, check = str(tmp_path / "champion"), str(tmp_path / "later"), unseen_rows.check
    first = steps.publish(candidate["model"], alias, [day(log, LAST_DAY)], GATE, where)
    shutil.copytree(candidate["model"], later)

    def denied(model: str, *others: Any) -> None:
        if model != later:
            raise StorageError("s3://elsewhere/log: access denied")
        check(model, *others)

    monkeypatch.setattr(unseen_rows, "check", denied)
    told = steps.publish(later, alias, [day(log, LAST_DAY)], GATE, where)
    assert (first["promoted"], told["promoted"]) == (True, True)
    assert "could not be found out: s3://elsewhere/log: access denied" in caplog.text


def test_a_gate_may_leave_out_bad_rows_of_its_window_and_says_so(
    candidate, log: Path, tmp_path: Path, where: steps.Where, caplog: pytest.LogCaptureFixture, client: Client
):
    """A label that is none stops the command, with a remedy that it has; both models are judged by the other rows."""
    window, alias, later = tmp_path / "window", str(tmp_path / "champion"), str(tmp_path / "later")
    shutil.copytree(day(log, LAST_DAY), window)
    shutil.copytree(candidate["model"], later)
    shard = next(window.glob("*.parquet"))
    rows = pq.ParquetFile(shard).read()
    labels = pa.array([7, *rows["label"].to_pylist()[1:]], rows["label"].type)
    pq.write_table(rows.set_column(rows.column_names.index("label"), "label", labels), shard)
    with pytest.raises(DataError, match="predict, publish: --on-bad-rows skip"):
        steps.publish(candidate["model"], alias, [str(window)], GATE, where)
    assert steps.publish(candidate["model"], alias, [str(window)], GATE, where, on_bad_rows="skip")["promoted"]
    assert "1 of 2,000 rows to judge by left out as bad: label" in caplog.text
    arguments = [later, str(window), "--alias", alias, "--scheduler", client.scheduler.address, "--json"]
    wide = ["--gate", "calibration_low=0.5", "--gate", "calibration_high=2"]
    done = CliRunner().invoke(publish.publish, [*arguments, *wide, "--on-bad-rows", "skip"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output.splitlines()[-1])
    assert (told["version"], told["champion_metrics"]["rows"]) == (2, 1999)


def test_an_order_that_is_a_date_and_no_moment_is_refused_before_any_work(where: steps.Where):
    with pytest.raises(SettingsError, match=r"order '30\.11\.2026' holds a date"):
        steps.publish("nothing", "there", [], GATE, where, order="30.11.2026")


def test_a_candidate_in_the_place_of_the_champion_is_not_compared_with_itself(
    candidate, log: Path, tmp_path: Path, where: steps.Where
):
    """Every night is trained into the same folder, as `output.overwrite` allows."""
    alias, window, place = str(tmp_path / "champion"), [day(log, LAST_DAY)], str(tmp_path / "out" / "model")
    shutil.copytree(candidate["model"], place)
    steps.publish(place, alias, window, GATE, where, order="2026-11-17")
    steps.train_once(job_on(log, tmp_path, DAYS[:1], training={"n_epochs": 1}), "night-2", where)
    for enforce in (True, False):
        with pytest.raises(ModelError, match=r"version 1 of .* was overwritten .*compared.* a folder of its own"):
            steps.publish(place, alias, window, GATE, where, order="2026-11-18", enforce=enforce)
    with pytest.raises(ModelError, match="was overwritten"):
        steps.predict_once(alias, window, str(tmp_path / "scores"), where)
    with pytest.raises(ModelError, match="was overwritten"):
        steps.pin_start(str(tmp_path / "next"), alias)
    assert len(registry.versions(alias)) == 1


@pytest.fixture
def replacing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let another model take the place of a model once a function has been called."""

    def patch(place: str, owner: Any, name: str) -> None:
        called = getattr(owner, name)

        def meanwhile(*given: Any, **named: Any) -> Any:
            found = called(*given, **named)
            turned(FMModel.load(place)).save(place)
            return found

        monkeypatch.setattr(owner, name, meanwhile)

    return patch


@pytest.mark.parametrize("enforce", [True, False])
@pytest.mark.parametrize(("moment", "done"), [("evaluate", "evaluated"), ("judge", "judged")])
def test_a_candidate_that_is_replaced_while_it_is_judged_does_not_become_the_champion(
    candidate, log: Path, tmp_path: Path, where: steps.Where, replacing, moment: str, done: str, enforce: bool
):
    alias, window, place = str(tmp_path / "champion"), [day(log, LAST_DAY)], str(tmp_path / "model")
    shutil.copytree(candidate["model"], place)
    replacing(place, steps.jobs if moment == "evaluate" else steps, moment)
    with pytest.raises(ModelError, match=rf"{place} was replaced while it was {done}.* a folder of its own"):
        steps.publish(place, alias, window, GATE, where, enforce=enforce)
    assert registry.versions(alias) == []
    assert [*tmp_path.glob("model-evaluations/*")] == [] or done == "judged"


def test_a_champion_that_is_replaced_while_a_candidate_is_compared_with_it_decides_nothing(
    candidate, log: Path, tmp_path: Path, where: steps.Where, replacing
):
    alias, window, place = str(tmp_path / "champion"), [day(log, LAST_DAY)], str(tmp_path / "model")
    shutil.copytree(candidate["model"], place)
    registry.promote(alias, place, registry.Verdict((), {}))
    replacing(place, steps, "judge")
    with pytest.raises(ModelError, match=r"version 1 of .* was overwritten"):
        steps.publish(candidate["model"], alias, window, GATE, where)
    assert len(registry.versions(alias)) == 1


def test_scores_of_a_model_that_was_replaced_meanwhile_are_not_recorded_as_finished(
    candidate, log: Path, tmp_path: Path, where: steps.Where, replacing
):
    place, scores = str(tmp_path / "model"), tmp_path / "scores"
    shutil.copytree(candidate["model"], place)
    replacing(place, steps.jobs, "predict")
    with pytest.raises(ModelError, match=rf"{place} was replaced while it was scored"):
        steps.predict_once(place, [day(log, LAST_DAY)], str(scores), where)
    assert not (scores / steps.SCORED).exists()


def test_a_model_of_another_calibration_is_evaluated_and_scores_anew(
    candidate, log: Path, tmp_path: Path, where: steps.Where
):
    window, place, scores = [day(log, LAST_DAY)], str(tmp_path / "model"), str(tmp_path / "scores")
    shutil.copytree(candidate["model"], place)
    before, scored = steps.evaluate_once(place, window, where), steps.predict_once(place, window, scores, where)
    model = FMModel.load(place)
    dataclasses.replace(model, calibration=Calibration("platt", (0.0,), (-0.4,), 0.7)).save(place)
    assert FMModel.load(place).parameters_sha256() == model.parameters_sha256()
    assert steps.evaluate_once(place, window, where)["log_loss"] != before["log_loss"]
    old = pq.ParquetDataset(scores).read()["prediction"].to_pylist()
    assert steps.predict_once(place, window, scores, where)["predicted"] == scored["predicted"]
    assert pq.ParquetDataset(scores).read()["prediction"].to_pylist() != old


# A column of the file itself, so that one shard may have rows on both sides of the bound.
HOURS = ["2026-11-14T00", "2026-11-14T12", "2026-11-15T00", "2026-11-15T12"]


@pytest.fixture(scope="module")
def hourly(log: Path, work: Path, where: steps.Where) -> tuple[Path, str]:
    """Shards of rows before a bound, of which some have no moment, on both sides of it and after it, and a model that
    validated on those after it.
    """
    folder = work / "hourly"
    folder.mkdir()
    rows = pq.ParquetFile(next((log / "day=2026-11-14").glob("*.parquet"))).read().slice(0, 1000)
    for name, times in {"before": [*HOURS[:2], "NA"], "both": HOURS[1:3], "after": HOURS[2:]}.items():
        column = pa.array([times[row % len(times)] for row in range(1000)])
        pq.write_table(rows.append_column("moment", column), folder / f"{name}.parquet")
    job = job_tables(folder, work / "of hours", data={"validation_from": HOURS[2]})
    job["schema"] |= {"time": "moment", "missing": ["NA"]}
    return folder, steps.train_once(load_job(job), "hours", where)["model"]


def test_shards_before_the_bound_were_trained_on_and_those_after_it_were_not(
    hourly: tuple[Path, str], caplog: pytest.LogCaptureFixture
):
    folder, model = hourly
    with pytest.raises(DataError, match=r"was trained on .*/before.parquet; evaluate it on rows"):
        unseen_rows.check(model, find_shards([str(folder)]))
    caplog.clear()
    unseen_rows.check(model, find_shards([str(folder / "after.parquet")]))
    assert not caplog.records
    unseen_rows.check(model, find_shards([str(folder / "both.parquet")]))
    assert "trained on those rows of" in caplog.text
    assert "both.parquet that lie before 2026-11-15T00 by moment" in caplog.text


def test_a_job_of_relative_paths_is_understood_from_elsewhere_or_a_warning_says_that_it_is_not(
    log: Path, tmp_path: Path, where: steps.Where, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    for name in DAYS[:2]:
        shutil.copytree(log / f"day={name}", tmp_path / "log" / f"day={name}")
    job = job_tables(log, tmp_path, data={"train": f"log/day={DAYS[0]}", "validation_from": ""})
    monkeypatch.chdir(tmp_path)
    model = steps.train_once(load_job({**job, "output": {"directory": "out"}}), "night", where)["model"]
    seen, other = (find_shards([f"log/day={name}"]) for name in DAYS[:2])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model, moved = str(tmp_path / model), shutil.copytree(tmp_path / model, tmp_path / "moved")
    with pytest.raises(DataError, match="was trained on"):
        unseen_rows.check(model, seen)
    caplog.clear()
    unseen_rows.check(model, other)
    assert not caplog.records
    unseen_rows.check(str(moved), seen)
    assert "could not be found out" in caplog.text
    assert f"log/day={DAYS[0]}" in caplog.text
    caplog.clear()
    shutil.copytree(tmp_path / "log", tmp_path / "elsewhere" / "log")
    unseen_rows.check(str(moved), seen)
    assert "relative paths, and other data are found there" in caplog.text


def test_a_night_older_than_the_champion_is_left_alone_and_nothing_is_compared(
    candidate, log: Path, tmp_path: Path, where: steps.Where, monkeypatch: pytest.MonkeyPatch
):
    alias, window = str(tmp_path / "champion"), [day(log, LAST_DAY)]
    other = str(tmp_path / "other")
    shutil.copytree(candidate["model"], other)
    registry.promote(alias, candidate["model"], registry.Verdict((), {}), order="2026-11-17")
    monkeypatch.setattr(steps, "evaluate_once", None)
    for enforce in (True, False):
        result = steps.publish(other, alias, window, GATE, where, order="2026-11-16", enforce=enforce)
        assert (result["promoted"], result["older"], result["version"]) == (False, True, 1)
        assert result["candidate_metrics"] == result["champion_metrics"] == {}
        assert "is older than the champion" in result["refusals"][0]
        assert "its data end at 2026-11-16, those of the champion at 2026-11-17" in result["refusals"][0]
    with pytest.raises(TypeError):  # a later one is compared
        steps.publish(other, alias, window, GATE, where, order="2026-11-18")


@pytest.mark.parametrize("moment", ["evaluation", "verdict"])
def test_a_night_that_a_later_one_overtakes_while_it_is_judged_is_left_alone_and_not_refused(
    candidate, log: Path, tmp_path: Path, where: steps.Where, monkeypatch: pytest.MonkeyPatch, moment: str
):
    alias, window, later = str(tmp_path / "champion"), [day(log, LAST_DAY)], str(tmp_path / "later")
    shutil.copytree(candidate["model"], later)
    name = {"evaluation": "evaluate_once", "verdict": "judge"}[moment]
    before = getattr(steps, name)

    def meanwhile(*given: Any, **named: Any) -> Any:
        found = before(*given, **named)
        if not registry.versions(alias):
            registry.promote(alias, later, registry.Verdict((), {}), order="2026-11-17")
        return found

    monkeypatch.setattr(steps, name, meanwhile)
    result = steps.publish(candidate["model"], alias, window, GATE, where, order="2026-11-16")
    assert (result["promoted"], result["older"], result["version"]) == (False, True, 1)
    assert "its data end at 2026-11-16, those of the champion at 2026-11-17" in result["refusals"][0]


def test_a_champion_of_before_is_left_alone_and_the_present_one_is_named(
    candidate, log: Path, tmp_path: Path, where: steps.Where, client: Client
):
    alias, window = str(tmp_path / "champion"), [day(log, LAST_DAY)]
    later = str(tmp_path / "later")
    shutil.copytree(candidate["model"], later)
    for model in (candidate["model"], later):
        registry.promote(alias, model, registry.Verdict((), {}))
    result = steps.publish(candidate["model"], alias, window, GATE, where)
    assert (result["promoted"], result["older"], result["version"]) == (False, True, 2)
    told = f"is older than the champion of {alias} and left alone: it was version 1, and the champion is version 2 now"
    assert told in result["refusals"][0]
    arguments = [candidate["model"], *window, "--alias", alias, "--scheduler", client.scheduler.address]
    done = CliRunner().invoke(publish.publish, arguments)
    assert isinstance(done.exception, GateError)
    assert told in str(done.exception)
    assert f"of {alias} is" not in done.output
    assert registry.model_of(alias) == later


def test_a_champion_of_another_loss_is_not_compared_by_loss(monkeypatch: pytest.MonkeyPatch, where: steps.Where):
    told = {"a": {"loss": {"name": "quantile", "parameter": 0.9}}, "b": {"loss": {"name": "quantile"}}, "c": {}}
    monkeypatch.setattr(steps, "read_manifest", lambda url, _: told[url])
    monkeypatch.setattr(steps, "evaluate_once", lambda *_, **__: {"loss": 0.3, "rmse": 2.0})
    for champion, known in (("a", ["loss", "rmse"]), ("b", ["rmse"]), ("c", ["rmse"])):
        assert [*steps._rival("a", champion, [], where, steps.Asked(), "error")] == known


def test_the_champion_scores_and_does_so_once(candidate, log: Path, tmp_path: Path, where: steps.Where):
    alias, scores = str(tmp_path / "champion"), str(tmp_path / "scores")
    registry.promote(alias, candidate["model"], registry.Verdict((), {}))
    summary = steps.predict_once(alias, [day(log, LAST_DAY)], scores, where, keep=["C1"])
    assert (summary["predicted"], summary["model"]) == (2000, candidate["model"])
    parts = {path.name: path.stat().st_mtime_ns for path in Path(scores).glob("*.parquet")}
    assert steps.predict_once(alias, [day(log, LAST_DAY)], scores, where, keep=["C1"]) == summary
    assert {path.name: path.stat().st_mtime_ns for path in Path(scores).glob("*.parquet")} == parts
    steps.predict_once(alias, [day(log, LAST_DAY)], scores, where, keep=["C2"])
    assert set(pq.ParquetDataset(scores).read().column_names) >= {"C2", "prediction"}


# --- data and reports -----------------------------------------------------------------------------------


def test_a_day_is_compared_with_those_before_it_that_are_there(log: Path, tmp_path: Path):
    job = job_on(log, tmp_path, DAYS)
    before = [day(log, name) for name in ("2026-11-12", *DAYS)]
    found = steps.check_day(job, day(log, LAST_DAY), before, data_check.Limits(), str(tmp_path / "profiles"))
    assert found["before"] == before[1:]
    assert found["rows"] == 2000
    assert len(list((tmp_path / "profiles").iterdir())) == 4
    with pytest.raises(DataError, match="is not as expected: 2000 rows, fewer than min_rows = 3000"):
        steps.check_day(job, day(log, LAST_DAY), before, data_check.Limits(min_rows=3000))


def test_earlier_days_may_be_globs(log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    before = [f"{day(log, name)}/*.parquet" for name in ("2026-11-12", *DAYS)]
    found = steps.check_day(job_on(log, tmp_path, DAYS), day(log, LAST_DAY), before, data_check.Limits())
    assert found["before"] == before[1:]
    assert f"an earlier partition is passed over: no Parquet file at '{before[0]}'" in caplog.text


def test_earlier_days_without_rows_are_passed_over(log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A night that wrote an empty shard, a folder, or labels that are all illegal does not stop the next one."""
    job, today = job_on(log, tmp_path, DAYS), day(log, LAST_DAY)
    table = pq.read_table(next(Path(day(log, DAYS[0])).glob("*.parquet")))
    bad = table.set_column(table.column_names.index("label"), "label", pa.array([7] * table.num_rows))
    for name, rows in (("empty", table[:0]), ("bad", bad), ("nothing", None)):
        (tmp_path / name).mkdir()
        if rows is not None:
            pq.write_table(rows, tmp_path / name / "0.parquet")
    empty, nothing, bad_labels = (str(tmp_path / name) for name in ("empty", "nothing", "bad"))
    found = steps.check_day(job, today, [empty, nothing, day(log, DAYS[0])], data_check.Limits())
    assert found["before"] == [day(log, DAYS[0])]
    assert "passed over: no rows in 1 shards" in caplog.text
    assert nothing in caplog.text
    assert steps.check_day(job, today, [empty], data_check.Limits())["before"] == []
    limits = data_check.Limits(rows_low=0.0, rows_high=1e9)
    with pytest.raises(DataError, match="is not as expected: column 'label'") as told:
        steps.check_day(job, today, [bad_labels], limits)
    assert "mean label" not in str(told.value)
    with pytest.raises(DataError, match="no rows in 1 shards"):
        steps.check_day(job, empty, [], limits)


def test_a_day_is_compared_with_what_a_model_was_trained_on(candidate, log: Path, work: Path, tmp_path: Path):
    job, today, model = job_on(log, tmp_path, DAYS), day(log, LAST_DAY), str(work / "out" / "model")
    assert steps.check_day(job, today, [], data_check.Limits(max_psi=10), model=model)["rows"] == 2000
    with pytest.raises(DataError, match=r"column '\w+' has drifted .* more than max_psi = 1e-06; .* never seen"):
        steps.check_day(job, today, [], data_check.Limits(max_psi=1e-6), model=model)
    nowhere = str(tmp_path / "alias")
    assert steps.check_day(job, today, [], data_check.Limits(max_psi=1e-6), model=nowhere)["rows"] == 2000


def test_the_report_shows_the_run_and_escapes_what_it_is_given(candidate, work: Path, tmp_path: Path):
    page = Path(report_training(str(work / "out"), "night <1>")).read_text()
    assert "<title>night &lt;1&gt;</title>" in page
    assert "<th>epoch<th>" in page
    assert "n_epochs = " in page
    url = write_report(
        str(tmp_path / "r.html"), "t", {"a": {"x": 1234, "calibration_bins": [1], "why": ["<b>", "c"]}, "none": None}
    )
    written = Path(url).read_text()
    assert "1,234" in written
    assert "&lt;b&gt;<br>c" in written
    assert "calibration_bins" not in written
    assert "<h2>none" not in written


def test_gate_settings_are_checked_before_any_work(candidate):
    with pytest.raises(SettingsError, match="no threshold"):
        Gate.from_dict({"accuracy": 1})
    for slices in (3.0, True, ["site", 3]):
        with pytest.raises(SettingsError, match=r"gate slices = .* is not legal: expected names of columns"):
            Gate.from_dict({"slices": slices})
    asked = CliRunner().invoke(publish.publish, ["model", "data", "--alias", "alias", "--gate", "slices=3"])
    assert isinstance(asked.exception, SettingsError)


def test_the_commands_publish_and_roll_back(candidate, log: Path, tmp_path: Path, client: Client):
    alias, scheduler = str(tmp_path / "champion"), ["--scheduler", client.scheduler.address, "--json"]
    wide = ["--gate", "calibration_low=0.5", "--gate", "calibration_high=2"]
    arguments = [candidate["model"], day(log, LAST_DAY), "--alias", alias, *scheduler]
    done = CliRunner().invoke(publish.publish, [*arguments, *wide, "--order", "2026-11-17"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output.splitlines()[-1])
    assert (told["event"], told["version"]) == ("published", 1)
    refused = CliRunner().invoke(
        publish.publish, [*arguments[:2], "--alias", str(tmp_path / "new"), *scheduler, "--gate", "min_rows=3000"]
    )
    assert isinstance(refused.exception, GateError)
    assert refused.exception.exit_code == 9
    assert "fewer than min_rows = 3000" in str(refused.exception)
    back = CliRunner().invoke(publish.rollback, [alias, "--reason", "none"])
    assert isinstance(back.exception, GateError)
    assert CliRunner().invoke(publish.publish, [*arguments, "--gate", "min_rows"]).exit_code == 2
