"""The log of a run, kept by its driver: record and events in the output location, rewritten while it works."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from dfm.errors import DfmError, RunCancelled, SettingsError, SupersededError
from dfm.events import is_passing, json_ready, line_of
from dfm.model.folder import read_manifest
from dfm.runs import lifecycle, termination
from dfm.runs.record import (
    EVENTS,
    RunRecord,
    forget_request,
    is_cancelled,
    make_room,
    new_run_id,
    now,
    read_run,
    taken,
    write_run,
)
from dfm.settings.job import Job
from dfm.storage import files
from dfm.version import __version__

HEARTBEAT_SECONDS = 3.0
_LAST_PAUSES = (0.0, 0.2, 1.0, 3.0)
"""Seconds before each attempt to write how a run ended."""
_LOOK = 0.5
_GRACE = 1.0
"""Seconds that a driver which was told to stop gets to say how it ended, before its record says so for it."""
_LONGEST_MESSAGE = 4_000
_BEFORE_WORKERS = ("progress", "plan", "log")
"""Events that a driver may tell while it still waits for its cluster."""
_KNOW_THE_END = ("plan", "settings", "solving")
"""Events that may say how many epochs there are at most."""
PUBLISHED = ("saved", "done")
"""Events of a model that is published."""
_PASSED_ON = ("stage", "done", "total", "epoch", "round", "rounds", "rows_per_second", "rows", "replicas", "best_epoch")
AttemptsLeft = int | Callable[[], int]
"""The times that a supervisor would start a driver again, or a function that tells them when the driver has failed."""

logger = logging.getLogger(__name__)


class RunLog:
    """Keeps the record of a run while its driver works: a context manager around the driver.

        with RunLog(job) as log:
            train(job, client, log.on_event)

    A thread rewrites the record every few seconds, as long as the process lives. A request to cancel makes the next
    `on_event` raise RunCancelled; another run that took the place of this one, and has published, SupersededError. At
    the event "publishing" that is asked once more: nothing replaces the model of that run. Where both publish at the
    same moment the record is of the run whose model lies there, and the block of the other one ends with a
    SupersededError. The state is "starting" until the driver has a cluster to train on. The block's end decides it:
    "finished" after an event "saved" or "done", whatever came after it; else "interrupted" after Ctrl-C, "cancelled"
    after RunCancelled, "failed" after any other error, or "retrying" where a supervisor has `attempts_left` and another
    attempt may do better; one that only knows by then whether it has any gives a function.

    In a process that can be stopped (`dfm.runs.termination`) a request to cancel ends the wait for a cluster too, and
    SIGTERM puts "interrupted" (of a model that is published, "finished") into the record at once, whatever the driver
    can still publish.
    """

    def __init__(self, job: Job, run_id: str = "", scheduler: str = "", attempts_left: AttemptsLeft = 0) -> None:
        self._job, self._directory, self._options = job, job.output.directory, job.data.storage_options
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._events: list[bytes] = []
        self._unwritten = self._cancelled = self._complained = False
        self._is_there = False
        self._superseded_by = self._published_by = self._rival = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="dfm-heartbeat", daemon=True)
        self._handler = _LogLines(self._note)
        self._attempts_left = attempts_left
        self._record = RunRecord(
            run_id or new_run_id(), "starting", job.fingerprint(), __version__, socket.gethostname(), os.getpid(),
            scheduler or job.cluster.scheduler, started=now(), updated=now(), progress=_expected(job),
        )  # fmt: skip

    @property
    def record(self) -> RunRecord:
        """The state of the run."""
        return self._record

    @property
    def rival(self) -> str:
        """Sentences about another run that was alive in the output location when this one began; empty: none was."""
        return self._rival

    def __enter__(self) -> Self:
        try:
            self._take_over()
            write_run(self._directory, self._record, self._options)
            self._is_there = True
            logging.getLogger("dfm").addHandler(self._handler)
            self._thread.start()
        except KeyboardInterrupt as error:  # before the block, whose end would say so
            self._end(error)
            self._write()
            raise
        except (OSError, ImportError, ValueError) as error:
            raise SettingsError(
                f"output.directory = {self._directory!r} cannot be written: {error}; choose another folder or URL"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._wake.set()
        self._thread.join()
        logging.getLogger("dfm").removeHandler(self._handler)
        self._end(error)
        for pause in _LAST_PAUSES:  # nobody writes after this, and a record that says less counts as lost
            time.sleep(pause)
            if self._write():
                break
        self._clear_request()
        if self._record.state == "cancelled" and isinstance(error, KeyboardInterrupt):
            raise RunCancelled(self._cancellation()) from error
        if error is None and self._published_by and self._publisher() == self._published_by:
            raise SupersededError(self._supersession())

    def _clear_request(self) -> None:
        """A request that was obeyed is not there for the next run; a driver that starts again has to find it."""
        if lifecycle.of(self._record.state).is_final and self._record.state != "failed" and not self._superseded_by:
            try:
                if self._is_cancelled():
                    forget_request(self._directory, self._options)
            except Exception as trouble:  # nothing that would turn a finished run into a failed one
                logger.warning("the request to cancel run %s stays: %s", self._record.run_id, trouble)

    def on_event(self, event: dict[str, Any]) -> None:
        """Take note of an event of training. RunCancelled where somebody asked this run to stop, SupersededError where
        another one in its place has published.
        """
        self._note(event)
        if event["event"] == "publishing":
            self._is_superseded()
        if event["event"] in PUBLISHED:
            return
        if self._published_by:
            raise SupersededError(self._supersession())
        if self._cancelled:
            raise RunCancelled(self._cancellation())

    def _supersession(self) -> str:
        return (
            f"run {self._published_by} has taken the place of run {self._record.run_id} in {self._directory}, and "
            "its model is published and stays: two runs share one output.directory. Give each its own"
        )

    def _cancellation(self) -> str:
        return (
            f"run {self._record.run_id} was cancelled on request; run the same job again to go on from its checkpoint"
        )

    # ------------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Go on with the record of a driver that had the same run_id before."""
        before, events = make_room(self._job, self._record.run_id)
        self._events = [_line(event) for event in events]
        if before is not None and before.run_id != self._record.run_id:
            self._rival = taken(self._directory, before) if before.is_alive else ""
        elif before is not None:
            self._record = dataclasses.replace(
                self._record, submitted=before.submitted, started=before.started or self._record.started
            )
            self._cancelled = self._is_cancelled()

    def _note(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        with self._lock:
            if not is_passing(event):  # of a passing one the record holds what matters
                stamp = {"time": now(), "run_id": self._record.run_id}
                self._events.append(_line({**event, **stamp}))
                self._unwritten = True
            self._record = dataclasses.replace(self._record, **_changes(self._record, event))
            if self._record.state == "starting" and kind not in _BEFORE_WORKERS:
                self._become("running")
        if not is_passing(event) and kind != "log":
            self._wake.set()

    def _beat(self) -> None:
        while True:
            self._wait_for_news()
            self._wake.clear()
            if self._stopping.is_set():
                return
            if (termination.seconds_since() or 0.0) >= _GRACE and not self._record.is_over:
                self._end(KeyboardInterrupt("told to stop by SIGTERM"))
            self._write()
            try:
                self._cancelled = self._cancelled or self._is_cancelled()
            except Exception as error:
                self._complain(error)
            if self._cancelled and self._record.state == "starting":  # no event is near
                termination.interrupt()

    def _wait_for_news(self) -> None:
        """Return when something is to be written: an event, a heartbeat, or the word of a process told to stop."""
        deadline = time.monotonic() + HEARTBEAT_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            # A signal's handler must not set an event that its own thread may be setting: so it is looked for.
            if self._wake.wait(min(_LOOK, left)):
                return
            if (termination.seconds_since() or 0.0) >= _GRACE and not self._record.is_over:
                return

    def _write(self) -> bool:
        """Bring record and events up to date; a store that is away for a moment does not end a run of hours.

        Whether that went well.
        """
        if self._is_superseded():
            return True
        with self._lock:
            self._record = dataclasses.replace(self._record, updated=now())
            record, events = self._record, b"".join(self._events) if self._unwritten else b""
            self._unwritten = False
        troubles: list[Exception] = []
        try:
            if events:
                files.write_bytes(files.join(self._directory, EVENTS), events, self._options)
        except Exception as error:  # the state of the run is known all the same
            self._unwritten = True
            troubles.append(error)
        try:
            write_run(self._directory, record, self._options)
        except Exception as error:
            troubles.append(error)
        self._complained = bool(troubles) and self._complained
        for trouble in troubles:
            self._complain(trouble)
        return not troubles

    def _is_superseded(self) -> bool:
        """Whether another run has taken the place of this one: its record and its events are not to be replaced, nor
        is a request to cancel it to be taken away.

        While that one trains, both go on: it may fail, which gives this one its place back, and their checkpoints tell
        which of them ends. Where both have published, it is the one whose model was replaced.
        """
        if not self._is_there:
            return False
        try:
            found = read_run(self._directory, self._options)
        except Exception as error:  # what cannot be read now may well be written
            self._complain(error)
            return bool(self._superseded_by)
        if found is not None and found.run_id != self._record.run_id:
            if self._has_its_place_back(found):
                self._superseded_by, self._published_by, self._unwritten = "", "", True
                return False
            if not self._superseded_by:
                logger.warning(
                    "run %s has taken the place of run %s in %s, whose record ends here",
                    *(found.run_id, self._record.run_id, self._directory),
                )
            self._superseded_by, self._published_by = found.run_id, found.run_id if found.model else ""
        return bool(self._superseded_by)

    def _has_its_place_back(self, found: RunRecord) -> bool:
        """Whether the record of the run that took the place of this one gives way: that run has ended without a model,
        and this one is at work; or it has published, or ended, and the model that lies there is of this one.
        """
        if found.is_over and not found.model and not self._record.is_over:
            return found.age > lifecycle.STALE_SECONDS  # who waits for that run has seen how it ended
        return (found.is_over or bool(found.model)) and self._publisher() == self._record.run_id

    def _publisher(self) -> str:
        """The run whose model lies where this one has published its own; empty before that, and where none can tell."""
        if not self._record.model:
            return ""
        try:
            manifest = read_manifest(self._record.model, self._options)
        except (DfmError, OSError):
            return ""
        return str(manifest.get("metadata", {}).get("run_id", ""))

    def _complain(self, error: BaseException) -> None:
        """Once for every time that the store goes away."""
        if not self._complained:
            self._complained = True
            logger.warning("the record of run %s cannot be written: %s", self._record.run_id, error)

    def _is_cancelled(self) -> bool:
        return is_cancelled(self._directory, self._record.run_id, self._options)

    def _become(self, state: str, **changes: Any) -> None:
        """Enter a state, with the lock held."""
        if not lifecycle.may_follow(state, self._record.state, lifecycle.DRIVER):
            raise ValueError(f"a driver may not put {state!r} in place of {self._record.state!r}")
        self._record = dataclasses.replace(self._record, state=state, **changes)

    def _end(self, error: BaseException | None) -> None:
        if self._record.is_over:  # it was told to stop, and its record said so before it had ended
            return
        state = "interrupted" if self._record.progress.get("interrupted") else "finished"
        told = None
        if error is not None and self._record.model:
            told = _told(error)
        elif error is not None and termination.seconds_since() is not None:
            # What it meets now is the end of its cluster, which is told to stop at the same moment.
            state = "cancelled" if self._cancelled else "interrupted"
            told = _told(RunCancelled(self._cancellation()) if self._cancelled else KeyboardInterrupt(f"{error}"))
        elif error is not None:
            state, told = _state_after(error), _told(error)
        elif not self._record.model:
            state, told = "failed", {"type": "", "message": "the driver ended without a model", "exit_code": 1}
        if state == "failed" and told and told["exit_code"] in lifecycle.WORTH_ANOTHER_TRY and self._is_tried_again():
            state = "retrying"
        with self._lock:
            self._become(state, error=told, ended=now() if lifecycle.of(state).is_final else "")
            ending = {"event": "ended" if self._record.is_over else "retrying", "state": state, "error": told}
            self._events.append(_line({**ending, "time": now(), "run_id": self._record.run_id}))
            self._unwritten = True

    def _is_tried_again(self) -> bool:
        return (self._attempts_left() if callable(self._attempts_left) else self._attempts_left) > 0


class _LogLines(logging.Handler):
    """Turns what the library logs into events. Python prints warnings where nobody handles them, and still does."""

    def __init__(self, note: Any) -> None:
        super().__init__(logging.WARNING)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note({"event": "log", "level": record.levelname, "message": record.getMessage()})
        there = [*logging.getLogger("dfm").handlers, *logging.getLogger().handlers]
        first = next((handler for handler in there if isinstance(handler, _LogLines)), self)  # of several runs
        if logging.lastResort and first is self and all(isinstance(handler, _LogLines) for handler in there):
            logging.lastResort.handle(record)


def _changes(record: RunRecord, event: dict[str, Any]) -> dict[str, Any]:
    """Fields of the record that an event changes."""
    progress = {**record.progress, **{key: event[key] for key in _PASSED_ON if key in event}}
    kind = event["event"]
    if kind in _KNOW_THE_END and "epochs" in event:
        progress["epochs"] = event["epochs"]
    if kind == "progress":
        return {"progress": progress}
    if kind == "log":
        return {}
    for key in ("stage", "done", "total"):
        progress.pop(key, None)
    progress["event"] = kind
    if kind == "epoch":
        progress["metrics"] = {k: v for k, v in event.items() if isinstance(v, int | float) and k != "epoch"}
    if kind == "plan":
        return {"progress": json_ready(progress), "tables": json_ready(event.get("tables", []))}
    if kind not in PUBLISHED:
        return {"progress": json_ready(progress)}
    progress["interrupted"] = bool(event.get("interrupted"))
    return {
        "progress": json_ready(progress),
        "model": event["model"],
        "parameters_sha256": event["parameters_sha256"],
        "validation": json_ready(event["validation"]),
        "rows": json_ready(event["rows"]),
    }


def _expected(job: Job) -> dict[str, Any]:
    """The most epochs, where the job says so itself."""
    return {"epochs": job.training.n_epochs} if isinstance(job.training.n_epochs, int) else {}


def _line(event: dict[str, Any]) -> bytes:
    return line_of(event).encode() + b"\n"


def _state_after(error: BaseException) -> str:
    if isinstance(error, RunCancelled):
        return "cancelled"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def _told(error: BaseException) -> dict[str, Any]:
    code = error.exit_code if isinstance(error, DfmError) else 1
    if isinstance(error, KeyboardInterrupt):
        code = lifecycle.INTERRUPTED_CODE
    message = "; ".join(filter(None, [str(error), *getattr(error, "__notes__", ())]))
    return {"type": type(error).__name__, "message": message[:_LONGEST_MESSAGE], "exit_code": code}
