"""The log of a run: its record tells the truth while the driver works and however it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dfm.errors import DataError, RunCancelled, SettingsError, SupersededError
from dfm.runs import lifecycle
from dfm.runs import log as logs
from dfm.runs import record as runs
from dfm.runs.log import RunLog
from dfm.runs.record import read_events, read_run, request_cancel
from dfm.settings.job import Job
from dfm.storage import files
from tests.support.real_processes import wait_until
from tests.support.small_jobs import run_of
from tests.support.small_models import make_model

DONE = {
    "event": "done", "model": "out/model", "parameters_sha256": "abc", "interrupted": False,
    "validation": {"log_loss": 0.4, "auc": float("nan")}, "rows": {"read": 9, "trained": 8, "rejected": 1},
}  # fmt: skip
EPOCH = {"event": "epoch", "epoch": 1, "log_loss": 0.5, "rows_per_second": 1e6}


@pytest.fixture(params=["folder", "memory"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    """A job that puts its output in a folder, or in an object store."""
    directory = f"{tmp_path}/out" if request.param == "folder" else f"memory://runs/{tmp_path.name}"
    return Job.from_dict({"data": {"train": "x"}, "output": {"directory": directory}})


def test_a_finished_run_tells_what_it_made(job: Job) -> None:
    assert read_run(job.output.directory) is None
    with RunLog(job, scheduler="tcp://one:8786") as log:
        assert run_of(job).state == "starting"
        assert not run_of(job).is_over
        log.on_event({"event": "plan"})
        assert log.record.state == "starting"
        for event in ({"event": "progress", "stage": "hash", "done": 1, "total": 9}, EPOCH, DONE):
            log.on_event(event)
    record = run_of(job)
    assert (record.state, record.is_over, record.error) == ("finished", True, None)
    assert (record.model, record.parameters_sha256) == ("out/model", "abc")
    assert record.validation == {"log_loss": 0.4, "auc": None}
    assert record.rows == DONE["rows"]
    assert record.job_fingerprint == job.fingerprint()
    assert (record.pid, record.scheduler) == (os.getpid(), "tcp://one:8786")
    assert record.progress["metrics"]["log_loss"] == 0.5
    assert record.started <= record.ended <= runs.now()
    events = read_events(job.output.directory)
    assert [event["event"] for event in events] == ["plan", "epoch", "done", "ended"]
    assert {event["run_id"] for event in events} == {record.run_id}


def test_a_run_whose_model_is_saved_is_finished_whatever_stops_it_then(job: Job) -> None:
    def drive() -> None:
        with RunLog(job) as log:
            log.on_event({**DONE, "event": "saved"})
            log._cancelled = True
            log.on_event({**DONE, "event": "saved"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive()
    record = run_of(job)
    assert (record.state, record.model, record.rows["read"]) == ("finished", "out/model", 9)


def test_a_run_whose_place_another_took_leaves_its_record_alone(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    with RunLog(job) as first:
        with RunLog(job) as second:
            second.on_event(DONE)
        first.on_event({**DONE, "model": "out/other"})
    record = run_of(job)
    assert (record.run_id, record.state, record.model) == (second.record.run_id, "finished", "out/model")
    assert {event["run_id"] for event in read_events(job.output.directory)} == {second.record.run_id}
    assert f"run {second.record.run_id} has taken the place of run {first.record.run_id}" in caplog.text


def test_a_run_whose_place_another_took_leaves_the_request_to_cancel_that_one(job: Job) -> None:
    with RunLog(job) as first:
        with contextlib.suppress(ZeroDivisionError), RunLog(job):
            request_cancel(job.output.directory)
            raise ZeroDivisionError
        first.on_event(DONE)
    assert runs.CANCEL in files.names_in(job.output.directory)


def test_a_run_whose_place_a_published_one_took_trains_no_longer(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "HEARTBEAT_SECONDS", 0.02)

    def drive() -> None:
        with RunLog(job, "night-1") as first:
            with RunLog(job, "night-2") as second:
                second.on_event(DONE)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                first.on_event(EPOCH)
                time.sleep(0.01)

    with pytest.raises(SupersededError, match="run night-2 has taken the place of run night-1"):
        drive()
    assert (run_of(job).run_id, run_of(job).state) == ("night-2", "finished")


def test_before_it_publishes_a_run_looks_whether_another_one_has(job: Job) -> None:
    publishing = {"event": "publishing"}
    with RunLog(job, "night-1") as first:
        first.on_event(publishing)
        with contextlib.suppress(ZeroDivisionError), RunLog(job, "night-2") as second:
            second.on_event(EPOCH)
            first.on_event(publishing)  # it may fail, and does
            raise ZeroDivisionError
        first.on_event(publishing)
        with RunLog(job, "night-3") as third:
            third.on_event(DONE)
        with pytest.raises(SupersededError, match="run night-3 has taken the place of run night-1"):
            first.on_event(publishing)


def publish(log: RunLog) -> None:
    """Put a model of a run in place, and say so."""
    url = f"{log._directory}/model"
    dataclasses.replace(make_model(), metadata={"run_id": log.record.run_id}).save(url)
    log.on_event({**DONE, "event": "saved", "model": url})


@pytest.mark.parametrize(("replaced", "stays"), [("night-1", "night-2"), ("night-2", "night-1")])
def test_of_two_runs_that_publish_at_the_same_moment_the_record_is_of_the_one_whose_model_lies_there(
    job: Job, monkeypatch: pytest.MonkeyPatch, replaced: str, stays: str
) -> None:
    """Neither has published when they ask; the other one ends with an error."""
    monkeypatch.setattr(logs, "HEARTBEAT_SECONDS", 0.02)

    def both_publish() -> None:
        with RunLog(job, "night-1") as first, RunLog(job, "night-2") as second:
            logs_of = {log.record.run_id: log for log in (first, second)}
            for log in logs_of.values():
                log.on_event({"event": "publishing"})
            publish(logs_of[replaced])
            if replaced == "night-2":
                wait_until(lambda: run_of(job).model)
            publish(logs_of[stays])
            wait_until(lambda: run_of(job).run_id == stays and run_of(job).model)

    with pytest.raises(SupersededError, match=f"run {stays} has taken the place of run {replaced}"):
        both_publish()
    record = run_of(job)
    assert (record.run_id, record.state) == (stays, "finished")
    assert {event["run_id"] for event in read_events(job.output.directory)} == {stays}


def fail_in_its_place(job: Job) -> RunLog:
    """Begin another run in the output of one that is at work, which ends without a model."""
    with contextlib.suppress(DataError), RunLog(job, "night-2") as second:
        raise DataError("its checkpoint is of another job")
    return second


def test_a_run_whose_place_another_took_has_its_record_back_once_that_one_has_failed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLog(job, "night-1") as first:
        first.on_event(EPOCH)
        wait_until(lambda: run_of(job).state == "running")
        monkeypatch.setattr(logs, "HEARTBEAT_SECONDS", 0.02)
        assert "holds run night-1, which is running" in fail_in_its_place(job).rival
        first.on_event(EPOCH)
        time.sleep(0.3)
        assert (run_of(job).run_id, run_of(job).state) == ("night-2", "failed"), "who waits for it has yet to see that"
        monkeypatch.setattr(lifecycle, "STALE_SECONDS", 0.02)
        first.on_event(EPOCH)
        wait_until(lambda: run_of(job).run_id == "night-1")
        assert run_of(job).state == "running"
        first.on_event(DONE)
    assert (run_of(job).run_id, run_of(job).state) == ("night-1", "finished")
    assert {event["run_id"] for event in read_events(job.output.directory)} == {"night-1"}
    with RunLog(job, "night-3") as third:
        assert third.rival == ""


def test_a_run_that_has_published_has_its_record_back_from_one_that_failed_later(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLog(job, "night-1") as first:
        publish(first)
        first._stopping.set()  # nothing is written but by its end
        first._wake.set()
        first._thread.join()
        fail_in_its_place(job)
    record = run_of(job)
    assert (record.run_id, record.state, record.model) == ("night-1", "finished", f"{job.output.directory}/model")


def test_ctrl_c_before_the_first_record_is_in_the_record(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(ZeroDivisionError), RunLog(job) as before:
        raise ZeroDivisionError
    write, calls = runs.write_run, []

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(logs, "write_run", interrupted)
    with pytest.raises(KeyboardInterrupt), RunLog(job):
        pytest.fail("the block begins")
    record = run_of(job)
    assert (record.state, record.run_id != before.record.run_id) == ("interrupted", True)
    assert read_events(job.output.directory)[-1]["state"] == "interrupted"


def test_the_end_of_a_run_is_written_though_the_disk_is_full_for_a_moment(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_LAST_PAUSES", (0.0, 0.0, 0.0))
    write, refusals = files.write_bytes, [2]

    def full(url: str, *rest: Any) -> None:
        if refusals[0] and url.endswith("run.json"):
            refusals[0] -= 1
            raise OSError(errno.ENOSPC, "no room")
        write(url, *rest)

    with RunLog(job) as log:
        log.on_event(DONE)
        monkeypatch.setattr(files, "write_bytes", full)
    assert (refusals, run_of(job).state) == ([0], "finished")


def test_events_that_cannot_be_written_do_not_keep_the_state_of_a_run_from_its_record(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_LAST_PAUSES", (0.0,))
    write = files.write_bytes

    def full(url: str, *rest: Any) -> None:
        if url.endswith("events.jsonl"):
            raise OSError(errno.ENOSPC, "no room")
        write(url, *rest)

    monkeypatch.setattr(files, "write_bytes", full)
    with RunLog(job) as log:
        log.on_event(DONE)
    assert run_of(job).state == "finished"


def with_note(error: BaseException) -> BaseException:
    error.add_note("what was trained is kept")
    return error


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (DataError("day 3 is empty"), "failed", 3),
        (ZeroDivisionError("by zero"), "failed", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (with_note(KeyboardInterrupt()), "interrupted", 130),
        (RunCancelled("enough"), "cancelled", 7),
    ],
)
def test_an_error_ends_the_record_with_its_type_and_exit_code(
    job: Job, error: BaseException, state: str, code: int
) -> None:
    def drive() -> None:
        with RunLog(job):
            raise error

    with pytest.raises(type(error)):
        drive()
    record = run_of(job)
    assert (record.state, record.model) == (state, "")
    message = "".join(getattr(error, "__notes__", ())) or str(error)
    assert record.error == {"type": type(error).__name__, "message": message, "exit_code": code}
    assert read_events(job.output.directory)[-1]["error"] == record.error


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_driver_that_is_started_again_has_not_failed(job: Job, left: int, is_known: bool) -> None:
    asked = []
    known_by_then = lambda: asked.append(run_of(job).state) or left  # noqa: E731
    with contextlib.suppress(ZeroDivisionError), RunLog(job, attempts_left=left if is_known else known_by_then):
        raise ZeroDivisionError
    assert run_of(job).state == ("retrying" if left else "failed")
    assert asked == ([] if is_known else ["starting"])
    with contextlib.suppress(DataError), RunLog(job, attempts_left=left if is_known else known_by_then):
        raise DataError("day 3 is empty")  # and will be
    assert run_of(job).state == "failed"


def test_a_driver_that_ends_without_a_model_has_failed(job: Job) -> None:
    with RunLog(job) as log:
        log.on_event(EPOCH)
    assert run_of(job).state == "failed"
    with RunLog(job) as log:
        log.on_event({**DONE, "interrupted": True})
    assert run_of(job).state == "interrupted"


def test_the_record_is_rewritten_while_nothing_happens(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "HEARTBEAT_SECONDS", 0.02)
    with RunLog(job) as log:
        first = run_of(job).updated
        wait_until(lambda: run_of(job).updated > first)
        log.on_event({"event": "progress", "stage": "hash", "done": 5, "total": 9})
        wait_until(lambda: run_of(job).progress.get("done") == 5)


def test_a_cancel_request_stops_the_run_at_its_next_event(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "HEARTBEAT_SECONDS", 0.02)

    def drive() -> None:
        with RunLog(job, "run-1") as log:
            asked = request_cancel(job.output.directory)
            assert asked is not None
            assert asked.run_id == "run-1"
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                log.on_event(EPOCH)
                time.sleep(0.01)

    with pytest.raises(RunCancelled, match="run run-1 was cancelled on request; run the same job again"):
        drive()
    assert run_of(job).state == "cancelled"
    with RunLog(job) as log:  # the request was for that run alone
        time.sleep(0.1)
        log.on_event(EPOCH)
        log.on_event(DONE)
    assert run_of(job).state == "finished"
    finished = request_cancel(job.output.directory)
    assert finished == run_of(job)
    assert runs.CANCEL not in files.names_in(job.output.directory)


def test_a_run_cancelled_before_its_driver_starts_never_begins(job: Job) -> None:
    runs.submitted(job, "run-2", "tcp://one:8786")
    assert run_of(job).state == "submitted"
    request_cancel(job.output.directory)
    with pytest.raises(RunCancelled), RunLog(job, "run-2") as log:
        log.on_event({"event": "plan"})
    assert run_of(job).state == "cancelled"


def test_a_driver_that_starts_again_goes_on_with_its_record(job: Job) -> None:
    runs.submitted(job, "run-3")
    submitted = run_of(job).submitted
    with contextlib.suppress(ZeroDivisionError), RunLog(job, "run-3") as log:
        log.on_event(EPOCH)
        raise ZeroDivisionError
    assert run_of(job).state == "failed"
    with RunLog(job, "run-3") as log:
        log.on_event(DONE)
    assert (run_of(job).state, run_of(job).submitted) == ("finished", submitted)
    assert [e["event"] for e in read_events(job.output.directory)] == ["epoch", "ended", "done", "ended"]
    with RunLog(job, "run-4") as log:
        log.on_event(DONE)
    assert [e["event"] for e in read_events(job.output.directory)] == ["done", "ended"]


RESUMED = {"event": "resumed", "epoch": 2, "round": 1, "rounds": 4}


@pytest.mark.parametrize("how", ["train", "submit"])
@pytest.mark.parametrize("kept", ["kept", "no checkpoint", "another job", "no resume"])
def test_the_log_of_a_run_that_goes_on_from_a_checkpoint_begins_at_the_first_epoch(
    job: Job, how: str, kept: str
) -> None:
    with contextlib.suppress(ZeroDivisionError), RunLog(job, "first") as log:
        log.on_event(EPOCH)
        raise ZeroDivisionError
    if kept != "no checkpoint":
        files.write_bytes(files.join(job.output.checkpoints, "state"), b"x")
    if kept == "another job":
        job = dataclasses.replace(job, model=dataclasses.replace(job.model, seed=7))
    if kept == "no resume":
        job = dataclasses.replace(job, output=dataclasses.replace(job.output, resume=False))
    if how == "submit":
        runs.submitted(job, "second")
    with RunLog(job, "second") as log:
        log.on_event(RESUMED)
        log.on_event({**EPOCH, "epoch": 2})
        log.on_event(DONE)
    events = read_events(job.output.directory)
    told = [(event["run_id"], event["event"], event.get("epoch")) for event in events]
    own = [("second", "resumed", 2), ("second", "epoch", 2), ("second", "done", None), ("second", "ended", None)]
    earlier = [("first", "epoch", 1), ("first", "ended", None)]
    assert told == ([*earlier, *own] if kept == "kept" else own)
    assert run_of(job).run_id == "second"


def test_a_store_that_goes_away_does_not_end_the_run(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logs, "HEARTBEAT_SECONDS", 0.02)
    write = runs.write_run

    def fail(*arguments: Any) -> None:
        raise ConnectionError("no route to the store")

    with RunLog(job) as log:
        monkeypatch.setattr(logs, "write_run", fail)
        log.on_event(EPOCH)
        wait_until(lambda: "no route to the store" in caplog.text)
        monkeypatch.setattr(logs, "write_run", write)
        log.on_event(DONE)
    assert run_of(job).state == "finished"
    assert caplog.text.count("no route to the store") == 1
    kinds = [event["event"] for event in read_events(job.output.directory)]
    assert kinds == ["epoch", "log", "done", "ended"]


def test_warnings_of_a_run_are_printed_once_where_the_program_does_not_log(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, other = logging.getLogger(), dataclasses.replace(job.output, directory=str(tmp_path / "other"))
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("dfm"), "handlers", [])
    with RunLog(job), RunLog(dataclasses.replace(job, output=other)):
        logging.getLogger("dfm.data").warning("a column is left out")
        logging.getLogger("dfm.data").info("nothing to speak of")
        assert capsys.readouterr().err == "a column is left out\n"
        monkeypatch.setattr(root, "handlers", [logging.NullHandler()])
        logging.getLogger("dfm.data").warning("the program has a handler for this")
        assert capsys.readouterr().err == ""
    lines = [event["message"] for event in read_events(job.output.directory) if event["event"] == "log"]
    assert lines == ["a column is left out", "the program has a handler for this"]


def test_an_output_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = Job.from_dict({"output": {"directory": f"{tmp_path}/file/out"}})
    with pytest.raises(SettingsError, match=r"output\.directory = .* cannot be written"), RunLog(job):
        pass


def test_events_without_the_one_that_was_cut_short_are_read(job: Job) -> None:
    with RunLog(job) as log:
        log.on_event(EPOCH)
        log.on_event(DONE)
    url = files.join(job.output.directory, runs.EVENTS)
    whole, data = read_events(job.output.directory), files.read_bytes(url)
    files.write_bytes(url, data[:-20])
    assert read_events(job.output.directory) == whole[:-1]
    files.write_bytes(url, b"nothing\n" + data)
    with pytest.raises(SettingsError, match="lines that are no events"):
        read_events(job.output.directory)
