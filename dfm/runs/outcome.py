"""How a run ended, proven: by the record of the run and the manifest of the model, never by what a scheduler says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dfm.errors import DfmError
from dfm.model.fm_model import read_manifest
from dfm.runs import lifecycle
from dfm.runs.record import RunRecord, read_events, read_run
from dfm.storage import files


@dataclass(frozen=True)
class Outcome:
    """What can be said of a run now.

    state: one of `dfm.runs.lifecycle`: that of its record, or one that is concluded: "lost", "unproven", "unknown".
    reason: one sentence where there is something to explain.
    """

    state: str
    reason: str
    record: RunRecord | None

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
        """What a command should exit with that waited for the run."""
        error = self.record.error if self.record is not None else None
        known = lifecycle.of(self.state).exit_code
        return known if known is not None else int((error or {}).get("exit_code", 1))


def outcome_of(directory: str, options: Mapping[str, Any] | None = None, run_id: str = "") -> Outcome:
    """The outcome of the run in an output location. run_id: the run that is meant; another one's record is no news."""
    record = read_run(directory, options)
    if record is None or (run_id and record.run_id != run_id):
        other = f"; the record there is of run {record.run_id}" if record else ""
        return Outcome("unknown", f"no record of run {run_id or '(any)'} in {directory}{other}", None)
    if record.is_stale():
        reason = f"no word of the driver ({record.host}, process {record.pid}) since {record.updated}"
        return Outcome("lost", f"{reason}; run the same job again, it goes on from its checkpoint", record)
    if record.state == "finished":
        doubts = _doubts(record, options)
        return Outcome("unproven" if doubts else "finished", doubts, record)
    return Outcome(record.state, str(record.error["message"]) if record.error else "", record)


def follow(
    directory: str,
    options: Mapping[str, Any] | None,
    run_id: str,
    on_event: Callable[[dict[str, Any]], None],
    every: float = 1.0,
) -> Outcome:
    """Hand on the events of a run as they are written; returns when it is over."""
    told = 0
    while True:
        found = outcome_of(directory, options, run_id)  # before the events: the last ones are written with the end
        events = [event for event in read_events(directory, options) if run_id in ("", event["run_id"])]
        for event in events[told:]:
            on_event(event)
        told = max(told, len(events))
        if found.is_over:
            return found
        time.sleep(every)


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
