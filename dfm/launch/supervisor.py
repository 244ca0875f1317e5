"""A driver that outlives its accidents: `dfm train` in a process of its own, started again when it was lost.

Where a job runs unattended nobody is there to type the command again. A driver that ran out of memory, or whose
scheduler was replaced, goes on from its checkpoint; one whose data or settings are wrong would fail again and is left.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from dfm.errors import DfmError
from dfm.events import line_of
from dfm.runs import lifecycle
from dfm.runs import record as runs
from dfm.runs.heartbeat import Pulse
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

    SIGTERM and SIGINT are passed on and end the attempts. tell: takes a line of JSON about each new attempt. heartbeat:
    a file that the command touches; when it stops doing so it is killed, which is one way of being lost.
    """
    for attempt in range(1, attempts + 1):
        code, asked = _run(command, heartbeat, attempts - attempt)
        lost = code > _SIGNALLED and not asked
        if asked or attempt == attempts or not (lost or code in lifecycle.WORTH_ANOTHER_TRY):
            break
        pause = min(FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
        event = {"event": "driver_lost", "attempt": attempt, "of": attempts, "exit_code": code, "pause": pause}
        tell(line_of(event))
        _settle(job, run_id, "retrying", _why(code, attempt), code)
        time.sleep(pause)
    if code:
        _settle(job, run_id, "interrupted" if asked else "failed", _why(code, attempt), code)
    return code


def _why(code: int, attempts: int) -> str:
    """What ended a command that may not have said so itself."""
    if code <= _SIGNALLED:
        return f"the driver ended with exit code {code} before its run began; its log tells more"
    name = signal.Signals(code - _SIGNALLED).name
    return f"the driver was ended by {name} {attempts} times; it may need more memory"


def _settle(job: Job, run_id: str, state: str, message: str, code: int) -> None:
    """Bring the record up to date after a command that ended; one that wrote its own end is left as it is."""
    error = {"type": "DriverLost", "message": message, "exit_code": code}
    try:
        runs.settle(job, run_id, state, lifecycle.SUPERVISOR, error)
    except (OSError, DfmError) as away:
        logger.warning("the record of run %s cannot be written: %s", run_id, away)


def train_command(job: str, run_id: str, options: Sequence[str] = ()) -> list[str]:
    """The command that trains a job file as a run, with this interpreter."""
    return [sys.executable, "-m", "dfm", "train", job, "--run-id", run_id, "--json", *options]


def _run(command: Sequence[str], heartbeat: str, attempts_left: int) -> tuple[int, bool]:
    """Exit code as a shell gives it (128 + signal), and whether somebody asked this process to stop meanwhile."""
    if heartbeat:
        Path(heartbeat).touch()  # a probe looks for it before the command can
    process = subprocess.Popen(command, env={**os.environ, ATTEMPTS_LEFT: str(attempts_left)})
    asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = _wait(process, heartbeat)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (code if code >= 0 else _SIGNALLED - code), bool(asked)


def _wait(process: subprocess.Popen[bytes], heartbeat: str) -> int:
    """The return code of a process, which is killed when its heartbeat stops."""
    pulse = Pulse(heartbeat) if heartbeat else None
    while True:
        try:
            return process.wait(_LOOK if pulse else None)
        except subprocess.TimeoutExpired:
            if pulse and pulse.has_stopped():
                process.kill()
