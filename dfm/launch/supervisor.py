"""A driver that outlives its accidents: `dfm train` in a process of its own, started again when it was lost.

Where a job runs unattended nobody is there to type the command again. A driver that ran out of memory, or whose
scheduler was replaced, goes on from its checkpoint; one whose data or settings are wrong would fail again and is left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from dfm.errors import DfmError, StorageError
from dfm.events import line_of
from dfm.runs import lifecycle
from dfm.runs import record as runs
from dfm.runs.heartbeat import Pulse, touch
from dfm.settings.job import Job

ATTEMPTS_LEFT = "DFM_ATTEMPTS_LEFT"
"""Variable by which the command learns how often it would be started again: then its failure is not the run's."""
FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 60.0
_LOOK = 5.0
_SIGNALLED = 128

logger = logging.getLogger(__name__)


def drive(
    job: Job, command: Sequence[str], run_id: str, attempts: int, tell: Callable[[str], None], heartbeat: str = ""
) -> int:
    """Run a command (the driver of `job` as `run_id`) up to `attempts` times; returns its last exit code.

    SIGTERM and SIGINT end the attempts and are passed on, both as SIGTERM: a terminal sends Ctrl-C to the command, too,
    which is to be interrupted once. So do the same signals to the command alone, whose record then says "interrupted"
    for good, and a request to cancel the run between two attempts.
    tell: takes a line of JSON about each new attempt. heartbeat: a file that the command touches; when it stops doing
    so it is killed, which is one way of being lost. SettingsError where another run is alive in the job's output, or
    the file cannot be there.
    """
    if heartbeat:
        touch(heartbeat)
    with _Attempts(job, run_id, heartbeat) as supervised:
        supervised.claim()
        for attempt in range(1, attempts + 1):
            code = supervised.run(command, attempts - attempt)
            asked = supervised.asked or code == lifecycle.INTERRUPTED_CODE
            if asked or attempt == attempts or not (code > _SIGNALLED or code in lifecycle.WORTH_ANOTHER_TRY):
                break
            if supervised.is_superseded():  # another attempt would replace its record, and its model
                break
            pause = min(FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
            event = {"event": "driver_lost", "attempt": attempt, "of": attempts, "exit_code": code, "pause": pause}
            tell(line_of(event))
            supervised.settle("retrying", _why(code, attempt), code)
            if stopped := supervised.pause(pause):
                supervised.settle(stopped, "told to stop between two attempts", lifecycle.of(stopped).exit_code or 1)
                return lifecycle.of(stopped).exit_code or 1
        if code and asked:
            supervised.settle("interrupted", "the driver was told to stop", code)
        elif code:
            supervised.settle("failed", _why(code, attempt), code)
    return code


def train_command(job: str, run_id: str, options: Sequence[str] = ()) -> list[str]:
    """The command that trains a job file as a run, with this interpreter."""
    return [sys.executable, "-m", "dfm", "train", job, "--run-id", run_id, "--json", *options]


def _why(code: int, attempts: int) -> str:
    """The end of a command that may not have told it itself."""
    if code <= _SIGNALLED:
        return f"the driver ended with exit code {code} before its run began; its log tells more"
    name = signal.Signals(code - _SIGNALLED).name
    return f"the driver was ended by {name} {attempts} times; it may need more memory"


class _Attempts:
    """Processes one after the other, while signals to this one are passed on: a context manager."""

    def __init__(self, job: Job, run_id: str, heartbeat: str) -> None:
        self._job, self._run_id, self._heartbeat = job, run_id, heartbeat
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}
        self.asked = False

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._process is not None:
            self._process.terminate()

    def claim(self) -> None:
        """Leave a record of the run where nobody submitted it, so that its end is told however early it comes."""
        directory, options = self._job.output.directory, self._job.data.storage_options
        try:
            record = runs.check_free(directory, options, self._run_id)
            if record is None or record.run_id != self._run_id:
                runs.submitted(self._job, self._run_id)
        except (OSError, StorageError) as away:
            logger.warning("the record of run %s cannot be written: %s", self._run_id, away)

    def run(self, command: Sequence[str], attempts_left: int) -> int:
        """Run a command to its end; its exit code as a shell gives it (128 + signal)."""
        if self._heartbeat:
            with contextlib.suppress(OSError):  # the command says what is wrong with it, and its end is on record
                Path(self._heartbeat).touch()  # a probe looks for it before the command can
        environment = {**os.environ, ATTEMPTS_LEFT: str(attempts_left)}
        self._process = subprocess.Popen(command, env=environment)
        if self.asked:  # while the process was being started
            self._process.terminate()
        code = _wait(self._process, self._heartbeat)
        return code if code >= 0 else _SIGNALLED - code

    def pause(self, seconds: float) -> str:
        """Wait before the next attempt; "interrupted" or "cancelled" where there shall be none, else empty."""
        deadline, next_look = time.monotonic() + seconds, 0.0
        while time.monotonic() < deadline:
            if self.asked:
                return "interrupted"
            if time.monotonic() >= next_look:
                if self._is_cancelled():
                    return "cancelled"
                next_look = time.monotonic() + 1.0
            time.sleep(min(0.1, seconds))
        return ""

    def _is_cancelled(self) -> bool:
        try:
            return runs.is_cancelled(self._job.output.directory, self._run_id, self._job.data.storage_options)
        except (OSError, DfmError) as away:
            logger.warning("whether run %s was cancelled cannot be read: %s", self._run_id, away)
            return False

    def is_superseded(self) -> bool:
        """Whether another run has taken the place of this one, and is at work or has published."""
        try:
            record = runs.read_run(self._job.output.directory, self._job.data.storage_options)
        except (OSError, DfmError) as away:
            logger.warning("the record of run %s cannot be read: %s", self._run_id, away)
            return False
        if record is None or record.run_id == self._run_id:
            return False
        return bool(record.model) or not (record.is_over or record.is_stale())

    def settle(self, state: str, message: str, code: int) -> None:
        """Bring the record up to date after a command that ended; one that wrote its own end is left as it is."""
        error = {"type": "DriverLost", "message": message, "exit_code": code}
        try:
            runs.settle(self._job, self._run_id, state, lifecycle.SUPERVISOR, error)
        except (OSError, DfmError) as away:
            logger.warning("the record of run %s cannot be written: %s", self._run_id, away)


def _wait(process: subprocess.Popen[bytes], heartbeat: str) -> int:
    """The return code of a process, which is killed when its heartbeat stops."""
    pulse = Pulse(heartbeat) if heartbeat else None
    while True:
        try:
            return process.wait(_LOOK if pulse else None)
        except subprocess.TimeoutExpired:
            if pulse and pulse.has_stopped():
                process.kill()
