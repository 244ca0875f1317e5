"""The record of a run in its output location: what it is doing, how it ended, and a way to ask it to stop.

Whoever may read the output location can follow a run: `run.json` (rewritten as a whole every few seconds) says how it
stands, `events.jsonl` what happened, and `cancel.json` is where others ask the driver to stop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dfm.errors import DfmError, SettingsError
from dfm.events import to_json
from dfm.runs import lifecycle
from dfm.settings.job import Job
from dfm.storage import files, ownership
from dfm.version import __version__

Read = TypeVar("Read")
RECORD, EVENTS, CANCEL = "run.json", "events.jsonl", "cancel.json"
_PROOFS = {
    RECORD: ("run_id", "state", "job_fingerprint", "dfm_version"),
    EVENTS: ("run_id", "event", "time"),
    CANCEL: ("run_id", "host", "time"),
}
"""The keys by which each of these files is known to be dfm's."""
_READS, _BETWEEN_READS = 4, 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """The state of a run. Times are ISO 8601 in UTC, "" where not reached; `progress` is what the last events told."""

    run_id: str
    state: str
    job_fingerprint: str = ""
    dfm_version: str = ""
    host: str = ""
    pid: int = 0
    scheduler: str = ""
    submitted: str = ""
    start_seconds: float = lifecycle.START_SECONDS
    """Seconds that the driver of a run that is submitted may take to be heard of."""
    started: str = ""
    updated: str = ""
    ended: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    model: str = ""
    parameters_sha256: str = ""
    validation: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)
    tables: list[dict[str, Any]] = field(default_factory=list)
    """The states of the tables of Delta Lake and Iceberg that are read, as the event "plan" tells them."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return lifecycle.of(self.state).is_final

    @property
    def age(self) -> float:
        """Seconds since the record was written."""
        return (_utc_now() - datetime.datetime.fromisoformat(self.updated)).total_seconds() if self.updated else 0.0

    def is_stale(self, seconds: float | None = None) -> bool:
        """Whether nobody was heard of for longer (default: what the state allows) than a living driver leaves it."""
        allowed = self.start_seconds if self.state == "submitted" else lifecycle.of(self.state).silence
        return allowed is not None and self.age > (allowed if seconds is None else seconds)

    @property
    def is_alive(self) -> bool:
        """Whether a driver, or what starts it, was heard of lately."""
        return lifecycle.of(self.state).silence is not None and not self.is_stale()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def read_run(directory: str, storage_options: Mapping[str, Any] | None = None) -> RunRecord | None:
    """The record of the run that writes (or wrote) to an output directory; None where there is none. SettingsError
    where the file is no record.
    """
    url = files.join(directory, RECORD)
    try:
        return _whole(lambda: _parsed(files.read_bytes(url, storage_options)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise SettingsError(f"{url} is no record of a run ({error}); delete it and run the job again") from error


def _parsed(data: bytes) -> RunRecord:
    """The record in a file. ValueError or TypeError where it is none."""
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    known = {entry.name for entry in dataclasses.fields(RunRecord)}
    record = RunRecord(**{key: value for key, value in found.items() if key in known})
    if not all(isinstance(text, str) for text in (record.run_id, record.state, record.updated)):
        raise ValueError("its values are of other types")
    if record.updated:
        datetime.datetime.fromisoformat(record.updated)
    return record


def write_run(directory: str, record: RunRecord, storage_options: Mapping[str, Any] | None = None) -> None:
    """Replace the record; a reader sees the old one or the new one."""
    data = to_json(record.to_dict(), indent=1).encode()
    files.write_bytes(files.join(directory, RECORD), data, storage_options)


def read_events(directory: str, storage_options: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The events of a run, in order: each has "time" and "run_id". Empty where nothing was written; without the last
    one where that was cut short. SettingsError where others are damaged.
    """
    url = files.join(directory, EVENTS)

    def lines() -> list[bytes]:
        return files.read_bytes(url, storage_options).splitlines()

    try:
        return _whole(lambda: [json.loads(line) for line in lines()])
    except FileNotFoundError:
        return []
    except ValueError:
        try:
            return [json.loads(line) for line in lines()[:-1]]
        except ValueError as error:
            raise SettingsError(f"{url} holds lines that are no events of a run ({error}); delete it") from error


def _whole(read: Callable[[], Read]) -> Read:
    """The contents of a file that may be half written: not every store replaces one in one step. ValueError where
    it stays so.
    """
    for _ in range(_READS - 1):
        with contextlib.suppress(ValueError):
            return read()
        time.sleep(_BETWEEN_READS)
    return read()


def submitted(job: Job, run_id: str, scheduler: str = "", start_seconds: float = lifecycle.START_SECONDS) -> RunRecord:
    """Leave the record of a run whose driver is still to start, in `start_seconds` at most. Cancel requests of old are
    gone, and so are events, but those of the run whose checkpoint it goes on from.
    """
    directory, options = job.output.directory, job.data.storage_options
    check_record(directory, options)
    gone = [CANCEL] if _goes_on(job, read_run(directory, options)) else [CANCEL, EVENTS]
    record = RunRecord(
        run_id, "submitted", job.fingerprint(), __version__, scheduler=scheduler, submitted=now(), updated=now(),
        start_seconds=start_seconds,
    )  # fmt: skip
    _forget(directory, options, gone)
    write_run(directory, record, options)
    return record


def _goes_on(job: Job, before: RunRecord | None) -> bool:
    """Whether a new run of the job goes on from the checkpoint that an earlier one of the same job has left."""
    if before is None or not job.output.resume or before.job_fingerprint != job.fingerprint():
        return False
    return bool(files.names_in(job.output.checkpoints, job.data.storage_options))


def check_record(directory: str, options: files.Options = None) -> None:
    """SettingsError where a file that is none of dfm's has the name of one that a run writes."""
    for name in _PROOFS:
        ownership.check_replaceable(files.join(directory, name), _proof(name), options)


def _proof(name: str) -> ownership.IsOwn:
    return lambda url, options: ownership.is_record(url, _PROOFS[name], options)


def _forget(directory: str, options: files.Options, names: Sequence[str]) -> None:
    """Delete the traces of an earlier run."""
    for name in names:
        ownership.remove_own(files.join(directory, name), _proof(name), options)


def make_room(job: Job, run_id: str) -> tuple[RunRecord | None, list[dict[str, Any]]]:
    """Make the output location ready for the driver of a run: the record that lies there, of a driver that had the same
    run_id before or of another run, and the events that this one goes on from.

    The traces of other runs are removed, but the events of one whose checkpoint this goes on from: the log of the
    training begins at its first epoch. SettingsError where files of others have their names.
    """
    directory, options = job.output.directory, job.data.storage_options
    check_record(directory, options)
    files.remove_abandoned(directory, _PROOFS)
    before = read_run(directory, options)
    is_own = before is not None and before.run_id == run_id
    goes_on = is_own or _goes_on(job, before)
    events = read_events(directory, options) if goes_on else []
    if not is_own:
        _forget(directory, options, [CANCEL] if goes_on else [CANCEL, EVENTS])
    return before, events


def forget_request(directory: str, options: files.Options = None) -> None:
    """Take away a request to cancel, which is obeyed."""
    _forget(directory, options, [CANCEL])


def submitted_since(seen: RunRecord | None, job: Job, run_id: str, scheduler: str, start_seconds: float) -> RunRecord:
    """The same, for a driver that may be up already: where there is a record of the run that was not seen, it stays.

    seen: the record that was there before the driver could start. SettingsError where another run was quicker.
    """
    present = check_free(job.output.directory, job.data.storage_options, run_id)
    if present is not None and present.run_id == run_id and present != seen:
        return present
    return submitted(job, run_id, scheduler, start_seconds)


def check_free(directory: str, options: Mapping[str, Any] | None, run_id: str = "") -> RunRecord | None:
    """The record in an output location. SettingsError where a run is at work there, or about to begin.

    A new one would never be seen there. For people and for jobs of theirs; a scheduler of jobs that tries again must
    not wait until the last driver counts as lost. run_id: of the run that may be there.
    """
    record = read_run(directory, options)
    if record is None or record.run_id == run_id:
        return record
    is_given_up = record.state == "submitted" and is_cancelled(directory, record.run_id, options)
    if record.is_alive and not is_given_up:
        raise SettingsError(taken(directory, record))
    return record


def taken(directory: str, record: RunRecord) -> str:
    """The sentences about an output location that a run which is alive has."""
    return (
        f"output.directory = {directory!r} holds run {record.run_id}, which is {record.state} (last word "
        f"{record.updated}); wait for it, end it (dfm cancel {directory}), or choose another output.directory. "
        f"A driver that was killed counts as lost after {lifecycle.STALE_SECONDS:g} s"
    )


def settle(job: Job, run_id: str, state: str, writer: str, error: Mapping[str, Any] | None = None) -> bool:
    """Write the state of a run for a driver that could not do so itself; false where the table of states forbids it.

    writer: one of `dfm.runs.lifecycle`, not the driver. A record of another run, or none, is left as it is.
    """
    return settle_in(job.output.directory, job.data.storage_options, run_id, state, writer, error)


def refused(job: Job, run_id: str, error: DfmError) -> None:
    """Put an error into the record of a run that is still submitted: its driver failed before it had the record."""
    told = {"type": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
    try:
        options, writer = job.data.storage_options, lifecycle.SUPERVISOR
        settle_in(job.output.directory, options, run_id, "failed", writer, told, only="submitted")
    except (OSError, DfmError) as away:
        logger.warning("the record of run %s cannot be written: %s", run_id, away)


def settle_in(
    directory: str, options: Mapping[str, Any] | None, run_id: str, state: str, writer: str,
    error: Mapping[str, Any] | None = None, only: str = "",
) -> bool:  # fmt: skip
    """The same, where the output location of the run is all that is known. only: the state that it may replace; any
    that the table allows where this is empty.
    """
    record = read_run(directory, options)
    if record is None or record.run_id != run_id or not lifecycle.may_follow(state, record.state, writer):
        return False
    if only not in ("", record.state):
        return False
    told = record.error if record.state == state else dict(error) if error else None  # the driver's reason is better
    ended = now() if lifecycle.of(state).is_final else ""
    write_run(directory, dataclasses.replace(record, state=state, error=told, ended=ended, updated=now()), options)
    return True


def request_cancel(directory: str, storage_options: Mapping[str, Any] | None = None) -> RunRecord | None:
    """Ask the run that writes to a directory to stop; it does so at its next event and keeps its checkpoint.

    Returns the record of that run. A run that is over is left as it is. The request is for this run alone: the next one
    does not see it, while a driver that starts again under the same run_id does.
    """
    record = read_run(directory, storage_options)
    if record is None or not record.is_over:
        ownership.check_replaceable(files.join(directory, CANCEL), _proof(CANCEL), storage_options)
        request = {"run_id": record.run_id if record else "", "host": socket.gethostname(), "time": now()}
        files.write_bytes(files.join(directory, CANCEL), to_json(request).encode(), storage_options)
    return record


def is_cancelled(directory: str, run_id: str, storage_options: Mapping[str, Any] | None = None) -> bool:
    """Whether somebody asked a run to stop."""
    try:
        request = json.loads(files.read_bytes(files.join(directory, CANCEL), storage_options))
    except FileNotFoundError:
        return False
    except ValueError:
        return True  # somebody meant it, whatever is in the file
    return request.get("run_id", "") in ("", run_id)


def new_run_id() -> str:
    """A name that no other run has, sorted by time, legal in a Kubernetes object's name."""
    return f"{_utc_now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


def now() -> str:
    """The present moment, ISO 8601 in UTC, to the millisecond."""
    return _utc_now().isoformat(timespec="milliseconds")


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
