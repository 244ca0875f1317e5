"""A run has succeeded when record and model say so together; a lost driver starts again, a wrong job does not."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfm.errors import SettingsError, StorageError
from dfm.launch import supervisor
from dfm.runs import heartbeat, lifecycle, outcome
from dfm.runs import record as runs
from dfm.runs.log import RunLog
from dfm.runs.outcome import outcome_of
from dfm.runs.record import read_run, write_run
from dfm.settings.job import Job
from dfm.storage import files, retry


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.from_dict({"data": {"train": "x"}, "output": {"directory": f"{tmp_path}/out"}})


def publish(job: Job, fingerprint: str | None = None) -> str:
    """A model folder as far as its manifest."""
    model = files.join(job.output.directory, "model")
    metadata = {"job_fingerprint": fingerprint or job.fingerprint()}
    manifest = {"format": 1, "files": {"parameters": {"name": "p"}}, "metadata": metadata}
    files.write_bytes(files.join(model, "p"), b"")
    files.write_bytes(files.join(model, "model.json"), json.dumps(manifest).encode())
    return model


def finish(job: Job, run_id: str = "run-1") -> None:
    model = files.join(job.output.directory, "model")
    done = {"event": "done", "model": model, "parameters_sha256": "x", "validation": {}, "rows": {}}
    with RunLog(job, run_id) as log:
        log.on_event(done)


def test_a_finished_record_and_its_model_prove_success(job: Job) -> None:
    publish(job)
    finish(job)
    found = outcome_of(job.output.directory, run_id="run-1")
    assert (found.succeeded, found.is_over, found.exit_code, found.reason) == (True, True, 0, "")


def test_another_run_proves_nothing(job: Job) -> None:
    publish(job)
    finish(job)
    found = outcome_of(job.output.directory, run_id="run-2")
    assert (found.state, found.is_over) == ("unknown", False)
    assert "the record there is of run run-1" in found.reason
    assert outcome_of("memory://nothing/here").state == "unknown"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda job, model: files.remove(f"{model}/model.json"), "the record says finished, but no model at"),
        (lambda job, model: files.remove(f"{model}/p"), "lacks its parameters"),
        (lambda job, model: publish(job, "of another job"), "is of another job"),
    ],
)
def test_a_finished_record_without_its_model_is_no_success(
    job: Job, spoil: Callable[[Job, str], Any], told: str
) -> None:
    model = publish(job)
    finish(job)
    spoil(job, model)
    found = outcome_of(job.output.directory)
    assert (found.state, found.exit_code) == ("unproven", 6)
    assert told in found.reason


def test_a_driver_without_a_heartbeat_is_lost(job: Job) -> None:
    finish(job)
    record = read_run(job.output.directory)
    assert record is not None
    old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
    write_run(job.output.directory, replace(record, state="running", updated=old.isoformat()))
    found = outcome_of(job.output.directory)
    assert (found.state, found.exit_code, found.is_over) == ("lost", 4, True)
    assert "run the same job again, it goes on from its checkpoint" in found.reason


@pytest.mark.parametrize("wait", [outcome.wait, outcome.follow])
def test_a_run_whose_driver_never_began_is_lost_after_a_while(job: Job, wait: Callable[..., outcome.Outcome]) -> None:
    old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=lifecycle.START_SECONDS + 5)
    record = replace(runs.submitted(job, "run-1", "tcp://there:8786"), updated=old.isoformat())
    write_run(job.output.directory, record)
    found = wait(job.output.directory, None, "run-1", lambda event: None)
    assert (found.state, found.exit_code) == ("lost", 4)
    assert "handed over to tcp://there:8786 at" in found.reason
    assert "no driver has begun in 900 s; see whether workers or pods are missing" in found.reason
    runs.check_free(job.output.directory, None)
    write_run(job.output.directory, replace(record, start_seconds=3600.0))  # of a cluster that gives pods longer
    assert outcome_of(job.output.directory).state == "submitted"
    with pytest.raises(SettingsError, match="holds run run-1, which is submitted"):
        runs.check_free(job.output.directory, None)
    write_run(job.output.directory, replace(record, state="running", updated=runs.now()))
    assert not runs.settle_in(
        job.output.directory, None, "run-1", "cancelled", lifecycle.CANCELLER, only="submitted"
    ), "it has just begun"


# --- the supervisor -------------------------------------------------------------------------------------


@pytest.fixture
def drive(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Drive a Python statement: exit code, what was told, how often it ran."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)

    def call(statement: str, attempts: int = 3, heartbeat: str = "") -> tuple[int, list[dict[str, Any]], int]:
        told: list[dict[str, Any]] = []
        counted = f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); "
        command = [sys.executable, "-c", f"import os, signal, sys; {counted}{statement}"]
        code = supervisor.drive(job, command, "run-1", attempts, lambda line: told.append(json.loads(line)), heartbeat)
        return code, told, len((tmp_path / "starts").read_text())

    return call


@pytest.mark.parametrize("code", [0, 2, 3, 5, 6, 7, 130])
def test_an_end_that_another_start_cannot_change_is_taken(drive: Callable[..., Any], code: int) -> None:
    assert drive(f"sys.exit({code})") == (code, [], 1)


@pytest.mark.parametrize("code", [1, 4])
def test_trouble_that_may_pass_is_tried_again(drive: Callable[..., Any], code: int) -> None:
    found, told, starts = drive(f"sys.exit({code})")
    assert (found, starts) == (code, 3)
    assert [event["attempt"] for event in told] == [1, 2]


@contextlib.contextmanager
def watched_states(directory: str) -> Iterator[list[str]]:
    """The states that a reader sees while the block runs."""
    seen, over = list[str](), threading.Event()

    def watch() -> None:
        while True:
            ended, record = over.is_set(), read_run(directory)
            if record is not None and [record.state] != seen[-1:]:
                seen.append(record.state)
            if ended:
                return
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(watch)
        yield seen
        over.set()
        done.result()


@pytest.mark.parametrize("end", ["raise ClusterError('gone')", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_between_two_attempts_the_record_says_so_and_only_the_last_one_is_final(
    job: Job, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.3)
    runs.submitted(job, "run-1")
    statement = (
        "import os, signal, sys, time\nfrom dfm.errors import ClusterError\nfrom dfm.runs.log import RunLog\n"
        "from dfm.settings.job import Job\n"
        f"job = Job.from_dict({job.to_dict()!r})\n"
        "try:\n"
        f"    with RunLog(job, 'run-1', '', int(os.environ['DFM_ATTEMPTS_LEFT'])):\n"
        f"        time.sleep(0.1); {end}\n"
        "except ClusterError as error:\n    sys.exit(error.exit_code)"
    )
    command = [sys.executable, "-c", statement]
    with watched_states(job.output.directory) as seen:
        supervisor.drive(job, command, "run-1", 2, lambda line: None)
    assert seen == ["submitted", "starting", "retrying", "starting", "failed"]
    assert outcome_of(job.output.directory).exit_code in (4, 137)


@pytest.mark.parametrize(("end", "starts"), [("finished", 1), ("running", 1), ("failed", 2)])
def test_no_attempt_follows_where_another_run_has_taken_the_place(
    drive: Callable[..., Any], job: Job, end: str, starts: int
) -> None:
    runs.submitted(job, "run-1")
    model = "out/model" if end == "finished" else ""
    other = runs.RunRecord("run-2", end, job.fingerprint(), updated=runs.now(), model=model)
    statement = (
        "from dfm.runs import record; "
        f"record.write_run({job.output.directory!r}, record.RunRecord(**{other.to_dict()!r})); sys.exit(4)"
    )
    assert drive(statement, attempts=2)[::2] == (4, starts)
    found = read_run(job.output.directory)
    assert found is not None
    assert (found.run_id, found.state) == ("run-2", end)


def test_a_command_that_ends_before_its_run_begins_leaves_a_record_of_that(drive: Callable[..., Any], job: Job) -> None:
    runs.submitted(job, "run-1")
    assert drive("sys.exit(2)")[0] == 2
    record = read_run(job.output.directory)
    assert record is not None
    assert record.state == "failed"
    assert record.error is not None
    assert (record.error["exit_code"], record.error["message"][:33]) == (2, "the driver ended with exit code 2")


def test_a_driver_that_is_killed_every_time_ends_as_failed(drive: Callable[..., Any], job: Job) -> None:
    runs.submitted(job, "run-1")
    code, told, starts = drive("os.kill(os.getpid(), signal.SIGKILL)")
    assert (code, starts, len(told)) == (137, 3, 2)
    record = read_run(job.output.directory)
    assert record is not None
    assert (record.state, record.error and record.error["exit_code"]) == ("failed", 137)
    assert record.error is not None
    assert "ended by SIGKILL 3 times; it may need more memory" in record.error["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_supervisor_ends_driver_and_attempts(drive: Callable[..., Any], number: signal.Signals) -> None:
    """It is passed on as SIGTERM: a driver that a terminal has sent Ctrl-C, too, is interrupted once."""
    before = signal.getsignal(signal.SIGTERM)
    code, told, starts = drive(f"import time; os.kill(os.getppid(), {int(number)}); time.sleep(60)")
    assert (code, told, starts) == (128 + signal.SIGTERM, [], 1)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_driver_alone_ends_the_attempts_too_as_its_record_says(
    drive: Callable[..., Any], job: Job, number: signal.Signals
) -> None:
    """Followers of the run return when they read that it is interrupted."""
    statement = (
        "\nfrom dfm.runs.log import RunLog\nfrom dfm.runs.termination import stoppable\n"
        "from dfm.settings.job import Job\n"
        "try:\n"
        f"    with stoppable(), RunLog(Job.from_dict({job.to_dict()!r}), 'run-1', attempts_left=2):\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "        signal.pause()\n"
        "except KeyboardInterrupt:\n    sys.exit(130)"
    )
    assert drive(statement) == (130, [], 1)
    assert outcome_of(job.output.directory).exit_code == 130
    assert outcome_of(job.output.directory).state == "interrupted"


def test_a_driver_that_is_interrupted_before_its_run_begins_is_no_failure(drive: Callable[..., Any], job: Job) -> None:
    assert drive("signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGINT)") == (130, [], 1)
    found = outcome_of(job.output.directory)
    assert (found.state, found.reason) == ("interrupted", "the driver was told to stop")


def test_a_driver_that_stops_dead_is_killed_and_started_again(
    drive: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LOOK", 0.05)
    monkeypatch.setattr(heartbeat, "STALLED_SECONDS", 0.5)
    once = "os.path.getsize('starts') == 1 and os.kill(os.getpid(), signal.SIGSTOP)"
    monkeypatch.chdir(tmp_path)
    code, told, starts = drive(once, heartbeat=str(tmp_path / "heartbeat"))
    assert (code, starts) == (0, 2)
    assert [event["exit_code"] for event in told] == [137]


def test_a_heartbeat_goes_on_while_the_driver_is_busy_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "STALLED_SECONDS", 0.3)
    pulse = heartbeat.Pulse(str(tmp_path / "heartbeat"))
    with heartbeat.beating(str(tmp_path / "heartbeat")):
        for _ in range(10):
            time.sleep(0.06)
            assert not pulse.has_stopped()
        os.utime(tmp_path / "heartbeat", (0, 0))  # as a clock that is set makes it look
        assert not pulse.has_stopped()
    deadline = time.monotonic() + 30
    while not pulse.has_stopped():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with heartbeat.beating(""):
        pass


def test_a_heartbeat_in_a_folder_that_is_not_there_is_told_before_the_run_begins(
    drive: Callable[..., Any], job: Job, tmp_path: Path
) -> None:
    place = str(tmp_path / "missing" / "alive")
    told = r"the heartbeat .*missing/alive cannot be written \(.*No such file.*make its folder, or name a file in one"
    with pytest.raises(SettingsError, match=told):
        heartbeat.beating(place).__enter__()
    with pytest.raises(SettingsError, match=told):
        drive("sys.exit(0)", heartbeat=place)
    assert not (tmp_path / "starts").exists()
    assert runs.read_run(job.output.directory) is None


@pytest.mark.parametrize("told", ["signal", "request"])
def test_a_pause_between_two_attempts_ends_when_the_run_is_told_to_stop(
    drive: Callable[..., Any], job: Job, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 60.0)
    runs.submitted(job, "run-1")
    happens = {"signal": lambda: os.kill(os.getpid(), signal.SIGTERM), "request": lambda: ask(job)}[told]
    timer = threading.Timer(1.5, happens)
    timer.start()
    started = time.monotonic()
    code, _, starts = drive("sys.exit(4)")
    assert time.monotonic() - started < 10
    record = read_run(job.output.directory)
    assert record is not None
    assert (code, starts, record.state) == {"signal": (130, 1, "interrupted"), "request": (7, 1, "cancelled")}[told]


def ask(job: Job) -> None:
    runs.request_cancel(job.output.directory)


def test_a_run_that_nobody_submitted_has_a_record_too_and_waits_for_no_other(
    drive: Callable[..., Any], job: Job
) -> None:
    assert drive("sys.exit(2)")[0] == 2
    record = read_run(job.output.directory)
    assert record is not None
    assert (record.run_id, record.state, record.error and record.error["exit_code"]) == ("run-1", "failed", 2)
    runs.submitted(job, "run-0")
    with pytest.raises(SettingsError, match="holds run run-0, which is submitted"):
        drive("sys.exit(0)")
    runs.request_cancel(job.output.directory)
    assert drive("sys.exit(0)")[0] == 0


# --- a store that is away ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [outcome.wait, outcome.follow])
def test_who_waits_for_a_run_sits_out_a_store_that_is_away(
    job: Job, monkeypatch: pytest.MonkeyPatch, wait: Callable[..., outcome.Outcome]
) -> None:
    monkeypatch.setattr(outcome, "EVERY", 0.02)
    publish(job)
    runs.submitted(job, "run-1")
    read, told = files.read_bytes, list[dict[str, Any]]()

    def away(*_: Any) -> bytes:
        raise StorageError("s3://x does not answer")

    def come_back() -> None:
        monkeypatch.setattr(files, "read_bytes", read)
        finish(job)

    threading.Timer(0.3, monkeypatch.setattr, [files, "read_bytes", away]).start()
    timer = threading.Timer(0.8, come_back)
    timer.start()
    found = wait(job.output.directory, None, "run-1", told.append)
    timer.join()
    assert found.succeeded
    assert [event["event"] for event in told if event["event"] == "waiting"] == ["waiting"]


def test_a_store_that_never_answered_is_no_reason_to_wait(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> bytes:
        raise StorageError("access denied")

    monkeypatch.setattr(files, "read_bytes", denied)
    with pytest.raises(StorageError, match="access denied"):
        outcome.wait(job.output.directory, None, "run-1", lambda event: None)


@pytest.mark.parametrize("name", ["ConnectTimeoutError", "ReadTimeoutError", "EndpointConnectionError"])
def test_timeouts_of_the_client_library_are_asked_again_and_then_told_as_the_stores(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    monkeypatch.setattr(retry, "PATIENCE", 0.0)

    def time_out() -> None:
        raise getattr(exceptions, name)(endpoint_url="https://store", error="slow")

    with pytest.raises(StorageError, match="s3://x does not answer"):
        retry.retrying("s3://x", time_out)
