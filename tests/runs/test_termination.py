"""A driver that is told to stop leaves a record of that at once, whatever it is doing and whatever it meets then."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfm.runs import log as logs
from dfm.runs import record as runs
from dfm.runs import termination
from dfm.runs.log import RunLog
from dfm.runs.record import read_events, read_run
from dfm.settings.job import Job

DRIVER = """
import sys, time
from dfm.errors import ClusterError
from dfm.runs.log import RunLog
from dfm.runs.termination import stoppable
from dfm.settings.job import Job
job = Job.from_dict({tables!r})
with stoppable(), RunLog(job, "run-1") as log:
    {body}
"""
WAITS = 'log.on_event({"event": "plan"}); time.sleep(600)'
TRAINS = 'log.on_event({"event": "epoch", "epoch": 1}); time.sleep(600)'
LOSES_ITS_CLUSTER = """log.on_event({"event": "epoch", "epoch": 1})
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        raise ClusterError("the scheduler is gone too")"""
PUBLISHES_FOR_LONG = """log.on_event({"event": "epoch", "epoch": 1})
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        time.sleep(6)
        log.on_event({"event": "done", "model": "m", "parameters_sha256": "x", "validation": {}, "rows": {},
                      "interrupted": True})"""


@pytest.fixture(autouse=True)
def heard_ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, also where tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.from_dict({"data": {"train": "x"}, "output": {"directory": f"{tmp_path}/out"}})


@contextlib.contextmanager
def driver(job: Job, body: str, state: str) -> Iterator[subprocess.Popen[bytes]]:
    """A driver in a process of its own, once its record has come to a state."""
    statement = DRIVER.format(tables=job.to_dict(), body=body)
    with subprocess.Popen([sys.executable, "-c", statement], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(job, state, 60)
            yield process
        finally:
            process.kill()


def wait_for(job: Job, state: str, seconds: float) -> runs.RunRecord:
    deadline = time.monotonic() + seconds
    while (record := read_run(job.output.directory)) is None or record.state != state:
        assert time.monotonic() < deadline, record
        time.sleep(0.05)
    return record


@pytest.mark.parametrize(("body", "state"), [(WAITS, "starting"), (TRAINS, "running"), (LOSES_ITS_CLUSTER, "running")])
def test_a_signal_ends_the_run_as_interrupted(job: Job, body: str, state: str) -> None:
    with driver(job, body, state) as process:
        process.terminate()
        process.terminate()  # an init and a supervisor both pass it on
        record = wait_for(job, "interrupted", 5)
        process.wait(30)
    assert record.error is not None
    assert record.error["exit_code"] == 130
    assert read_events(job.output.directory)[-1]["state"] == "interrupted"


def test_a_driver_that_takes_long_to_publish_is_interrupted_at_once_and_has_its_model_later(job: Job) -> None:
    with driver(job, PUBLISHES_FOR_LONG, "running") as process:
        process.terminate()
        assert wait_for(job, "interrupted", 5).model == ""
        assert process.wait(60) == 0
    record = read_run(job.output.directory)
    assert record is not None
    assert (record.state, record.model) == ("interrupted", "m")
    assert [event["event"] for event in read_events(job.output.directory)].count("ended") == 1


@pytest.mark.parametrize("body", [WAITS])
def test_a_request_ends_the_wait_for_a_cluster(job: Job, body: str) -> None:
    with driver(job, body, "starting") as process:
        runs.request_cancel(job.output.directory)
        record = wait_for(job, "cancelled", 8)
        process.wait(30)
    assert record.error is not None
    assert record.error["exit_code"] == 7


@pytest.mark.parametrize("how", [lambda: os.kill(os.getpid(), signal.SIGTERM), termination.interrupt])
def test_only_the_first_signal_interrupts_and_the_handler_goes_with_the_block(how: Callable[[], None]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.3, how)
    with termination.stoppable():
        assert termination.seconds_since() is None
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert (termination.seconds_since() or 0.0) > 0
    assert termination.seconds_since() is None
    assert signal.getsignal(signal.SIGTERM) is before
    termination.interrupt()  # nothing to interrupt


def test_ctrl_c_that_a_supervisor_passes_on_interrupts_once_and_pressed_again_once_more() -> None:
    def sent(number: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.2)

    before = signal.getsignal(signal.SIGINT)
    with termination.stoppable():
        with pytest.raises(KeyboardInterrupt):
            sent(signal.SIGINT)
        sent(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            sent(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


class Waits:
    """Its finalizer takes a while, in which Python passes no exception on."""

    def __init__(self, begun: threading.Event, seconds: float) -> None:
        self._begun, self._seconds = begun, seconds

    def __del__(self) -> None:
        self._begun.set()
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("seconds", [0.2, 30.0], ids=["a short finalizer", "a long one"])
def test_a_signal_that_comes_while_a_finalizer_runs_is_not_lost(seconds: float, number: signal.Signals) -> None:
    begun, hook = threading.Event(), sys.unraisablehook

    def stop_it() -> None:
        begun.wait()
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_it, daemon=True).start()
    interrupted, started = 0, time.monotonic()
    with termination.stoppable():
        try:
            waits = Waits(begun, seconds)
            del waits
            time.sleep(30)
        except KeyboardInterrupt:
            interrupted += 1
        since = time.monotonic() - started
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # not twice
    assert (interrupted, since < 10) == (1, True)
    assert sys.unraisablehook is hook


def test_a_signal_that_was_lost_as_one_block_ended_does_not_interrupt_the_next() -> None:
    begun = threading.Event()

    def stop_it() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_it, daemon=True).start()
    with termination.stoppable():
        waits = Waits(begun, 30.0)
        del waits
    with termination.stoppable():
        time.sleep(0.3)
        assert termination.seconds_since() is None


def test_outside_a_stoppable_block_a_request_waits_for_the_next_event(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "HEARTBEAT_SECONDS", 0.02)
    with contextlib.suppress(KeyboardInterrupt), RunLog(job) as log:
        runs.request_cancel(job.output.directory)
        time.sleep(0.3)
        assert log.record.state == "starting"
        raise KeyboardInterrupt
    record = read_run(job.output.directory)
    assert record is not None
    assert record.state == "interrupted"
