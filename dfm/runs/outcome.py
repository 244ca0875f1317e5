"""The end of a run, proven: by the record of the run and the manifest of the model, never by what a scheduler says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dfm.errors import DfmError
from dfm.model.folder import read_manifest
from dfm.runs import lifecycle
from dfm.runs.patience import Patient
from dfm.runs.record import RunRecord, read_events, read_run
from dfm.storage import files

OnEvent = Callable[[dict[str, Any]], None]
EVERY = 1.0
"""Seconds between two looks at a run."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run as it can be told now.

    state: one of `dfm.runs.lifecycle`: that of its record, or one that is concluded: "lost", "unproven", "unknown".
    reason: one sentence where there is something to explain.
    """

    state: str
    reason: str
    record: RunRecord | None
    code: int = 1
    """Exit code of a run that failed and whose record cannot be read."""

    @property
    def succeeded(self) -> bool:
        """Whether the run's own model is published."""
        return self.state == "finished"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return lifecycle.of(self.state).is_final

    @property
    def exit_code(self) -> int:
        """The exit code of a command that waited for the run."""
        error = self.record.error if self.record is not None else None
        known = lifecycle.of(self.state).exit_code
        return known if known is not None else int((error or {}).get("exit_code", self.code))


def outcome_of(directory: str, options: Mapping[str, Any] | None = None, run_id: str = "") -> Outcome:
    """The outcome of the run in an output location. run_id: the run that is meant; another one's record is no news."""
    record = read_run(directory, options)
    if record is None or (run_id and record.run_id != run_id):
        other = f"; the record there is of run {record.run_id}" if record else ""
        return Outcome("unknown", f"no record of {f'run {run_id}' if run_id else 'a run'} in {directory}{other}", None)
    if record.is_stale():
        return Outcome("lost", _silence_of(record), record)
    if record.state == "finished":
        doubts = _doubts(record, options)
        return Outcome("unproven" if doubts else "finished", doubts, record)
    return Outcome(record.state, str(record.error["message"]) if record.error else "", record)


def follow(
    directory: str,
    options: Mapping[str, Any] | None,
    run_id: str,
    on_event: OnEvent,
) -> Outcome:
    """Hand on the events of a run as they are written; returns when it is over."""
    told, store = 0, Patient(on_event)
    while True:
        found = store.ask(
            outcome_of, directory, options, run_id
        )  # before the events: the last are written with the end
        events = store.ask(read_events, directory, options) or []
        mine = [event for event in events if run_id in ("", event["run_id"])]
        for event in mine[told:]:
            on_event(event)
        told = max(told, len(mine))
        if found is not None and found.is_over:
            return found
        time.sleep(EVERY)


def wait(
    directory: str, options: Mapping[str, Any] | None, run_id: str, tell: OnEvent, until_gone: bool = False
) -> Outcome:
    """The outcome of a run once it is over. tell: hears of a store that is away.

    until_gone: whether a record of another run, or none, ends the wait too.
    """
    store = Patient(tell)
    while True:
        found = store.ask(outcome_of, directory, options, run_id)
        if found is not None and (found.is_over or (until_gone and found.record is None)):
            return found
        time.sleep(EVERY)


def _silence_of(record: RunRecord) -> str:
    if record.state == "submitted":
        where = record.scheduler or "a process of its own"
        return (
            f"handed over to {where} at {record.submitted}, and no driver has begun in {record.start_seconds:g} s; see "
            "whether workers or pods are missing there, and submit the same job again"
        )
    reason = f"no word of the driver ({record.host}, process {record.pid}) since {record.updated}"
    return f"{reason}; run the same job again, it goes on from its checkpoint"


def _doubts(record: RunRecord, options: Mapping[str, Any] | None) -> str:
    """Why the published model is not the one of the record; empty where it is."""
    try:
        manifest = read_manifest(record.model, options)
        name = str(manifest["files"]["parameters"]["name"])
    except DfmError as error:
        return f"the record says finished, but {error}"
    found = manifest["metadata"].get("job_fingerprint")
    if found != record.job_fingerprint:
        return f"the model at {record.model} is of another job (fingerprint {found}, expected {record.job_fingerprint})"
    if not files.exists(files.join(record.model, name), options):
        return f"the model at {record.model} lacks its parameters ({name}); run the job again"
    return ""
