"""The steps of a nightly run, each of which does its work once: what is finished is found again and returned.

A workflow engine may call a step twice, retry it after a crash, or run many days at once. Truth lies in storage alone:
the record of the run, the manifest of the model, and small files named by what they were made of.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Client

from dfm import jobs
from dfm.data.discovery import NoRows, NothingFound
from dfm.data.parquet import Shard, find_shards
from dfm.data.reading import fingerprint
from dfm.distributed.predict import DONE, Overwrite
from dfm.errors import (
    ClusterError,
    DataError,
    DfmError,
    GateError,
    ModelError,
    RunCancelled,
    SettingsError,
    StorageError,
    SupersededError,
)
from dfm.events import to_json
from dfm.kernels.losses import is_paired
from dfm.launch.process import is_lost
from dfm.model.fm_model import FMModel
from dfm.model.folder import MANIFEST, read_manifest
from dfm.pages.page import REPORT
from dfm.runs import record as runs
from dfm.runs.display import rejected_text
from dfm.runs.record import RunRecord
from dfm.settings.arguments import check_bad_rows, texts
from dfm.settings.job import Job
from dfm.settings.tables import ClusterSettings
from dfm.storage import files, ownership
from dfm.training.inputs import find_inputs, resolve_schema
from dfm.workflow import data_check, registry, unseen_rows
from dfm.workflow.gate import Gate, Verdict, judge
from dfm.workflow.moments import check_order

logger = logging.getLogger(__name__)
OnEvent = Callable[[dict[str, Any]], None]
START = "start.json"
"""The model that a run goes on from, beside its results."""
SCORED = ".scored.json"
"""The record of what predictions were made of; hidden from readers of the folder."""
MOST_SLICES = 10_000
"""Slices of a kind that a gate looks at, the worst first."""
_ATTEMPTS = 3
"""Publications that may overtake one of ours before it gives up."""
STOP_SECONDS = 120.0
"""Seconds in which a driver that was asked to stop has to do so: it looks every few seconds, and ends at an event."""
_LOOK = 1.0
"""Seconds between two looks at a driver that was asked to stop."""


@dataclass(frozen=True)
class Where:
    """The means of a step: a client, or the settings of a cluster; and how storage is reached."""

    client: Client | None = None
    settings: ClusterSettings = field(default_factory=ClusterSettings)
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    on_event: OnEvent | None = None


# --- training --------------------------------------------------------------------------------------------


def pin_start(directory: str, wanted: str, options: files.Options = None, run_id: str = "", setting: str = "") -> str:
    """The model that a run goes on from: the wanted one, or the champion of an alias; "" for none.

    Decided once for a run and kept in its directory. A second try then trains the same job, though the earlier model
    may have appeared, or the champion changed, since the first one. Another run in the same directory, and one whose
    setting was changed, decide anew. setting: the text that the wanted one was found by; by default itself.
    SettingsError where another run is at work in the directory, or the file there is somebody else's.
    """
    kept, decided = files.join(directory, START), {"run_id": run_id, "setting": setting or wanted}
    ownership.check_replaceable(kept, _is_start, options)
    with contextlib.suppress(FileNotFoundError):
        known = json.loads(files.read_bytes(kept, options))
        if decided.items() <= known.items():
            return str(known["model"])
        runs.check_free(directory, options, run_id)
        files.remove(kept, options)
    url = registry.model_of(wanted, options) if wanted else ""
    choice = url if url and files.exists(files.join(url, MANIFEST), options) else ""
    try:
        files.create_bytes(kept, to_json({**decided, "wanted": wanted, "model": choice}).encode(), options)
    except FileExistsError:
        choice = str(json.loads(files.read_bytes(kept, options))["model"])
    return choice


def _is_start(url: str, options: files.Options) -> bool:
    return ownership.is_record(url, ("wanted", "model"), options)


def finished_run(job: Job) -> RunRecord | None:
    """The record of a run that ended with this job's model on this data; None where there is work to do."""
    options = job.data.storage_options
    record = runs.read_run(job.output.directory, options)
    if record is None or record.state != "finished" or record.job_fingerprint != job.fingerprint():
        return None
    try:
        manifest = read_manifest(files.join(job.output.directory, "model"), options)["metadata"]
    except ModelError:
        return None
    if manifest.get("job_fingerprint") != job.fingerprint():
        return None
    try:
        inputs = find_inputs(job)
    except DataError:  # the log may be gone by now; the model is there
        return record
    if manifest.get("data_fingerprint") != fingerprint(_identities(inputs.train)):
        return None
    return record if _validated_on(manifest, inputs.validation) else None


def _validated_on(known: Mapping[str, Any], shards: Sequence[Shard]) -> bool:
    """Whether these shards validated a model, as far as its metadata tell. Some tell the number of their rows alone."""
    if "validation_fingerprint" in known:
        return bool(known["validation_fingerprint"] == fingerprint(_identities(shards)))
    read = known.get("validation_rows", {}).get("read")
    return not (shards and read) or read == sum(shard.n_rows for shard in shards)


def running_driver(job: Job, by_process: bool = True, run_id: str = "") -> RunRecord | None:
    """The record of this job's driver where one is at work; None where it is over, or died without a word.

    One that was asked to stop is waited for until it is gone: whoever waited for its work would be told "cancelled".
    So is one that drives the run of this name with another job, as a job that was changed meanwhile leaves it; it is
    asked to stop here. ClusterError where it does not stop. by_process: whether the death of its process is its end
    (`dfm.launch.process.is_lost`). run_id: of the run that is meant; "": any of this job.
    """
    record = _driver_at_work(job, by_process, run_id)
    if record is None:
        return None
    if record.job_fingerprint != job.fingerprint():
        logger.info("run %s is at work on a job that was changed since; it is asked to stop", record.run_id)
        runs.request_cancel(job.output.directory, job.data.storage_options)
    elif not runs.is_cancelled(job.output.directory, record.run_id, job.data.storage_options):
        return record
    logger.info("run %s was asked to stop; waiting until it has", record.run_id)
    return _after_stop(job, by_process, run_id)


def _driver_at_work(job: Job, by_process: bool, run_id: str) -> RunRecord | None:
    """The record of the driver that has the run's name, whatever its job; where none is given, of one of the job."""
    record = runs.read_run(job.output.directory, job.data.storage_options)
    if record is None or record.is_over or is_lost(record, by_process):
        return None
    is_meant = record.run_id == run_id if run_id else record.job_fingerprint == job.fingerprint()
    return record if is_meant else None


def _after_stop(job: Job, by_process: bool, run_id: str) -> RunRecord | None:
    """The record of a driver once nobody asks it to stop any more; None once it is gone, or where it never began."""
    directory, options = job.output.directory, job.data.storage_options
    deadline = time.monotonic() + STOP_SECONDS
    record = _driver_at_work(job, by_process, run_id)
    while record and runs.is_cancelled(directory, record.run_id, options):
        if time.monotonic() > deadline:
            if record.state == "submitted":
                return None
            raise ClusterError(
                f"run {record.run_id} in {directory} was asked to stop and is still {record.state} after "
                f"{STOP_SECONDS:g} s; try again once it has ended"
            )
        time.sleep(_LOOK)
        record = _driver_at_work(job, by_process, run_id)
    time.sleep(_LOOK)  # the request goes after the last word, and a task of Dask, whose key is then free, after both
    return _driver_at_work(job, by_process, run_id)


def outcome(record: RunRecord) -> dict[str, Any]:
    """The result that a finished run hands on: small, JSON-ready."""
    keep = {name: value for name, value in record.validation.items() if name != "calibration_bins"}
    return {
        "run_id": record.run_id,
        "model": record.model,
        "report": files.join(record.model.rstrip("/").rpartition("/")[0] or ".", REPORT),
        "parameters_sha256": record.parameters_sha256,
        "validation": keep,
        "rows": record.rows,
    }


def superseded(run_id: str, directory: str) -> SettingsError:
    """The error of a run whose output location another run has taken."""
    return SettingsError(
        f"run {run_id} took the place of this run in {directory}; give each interval its own output.directory"
    )


def raise_unless_finished(
    record: RunRecord | None, directory: str, run_id: str = "", job_fingerprint: str = ""
) -> RunRecord:
    """The record of a run that succeeded. Its error as a DfmError where it did not.

    run_id: of the run that is meant ("": any); SettingsError where another one has taken its place. job_fingerprint: of
    the job that is meant ("": any); ClusterError where the run trained another one.
    """
    if record is not None and run_id not in ("", record.run_id):
        raise superseded(record.run_id, directory)
    if record is not None and job_fingerprint not in ("", record.job_fingerprint):
        raise ClusterError(
            f"run {record.run_id} in {directory} is {record.state} with another job, as the job was changed meanwhile; "
            "start it again to train the job as it is now"
        )
    if record is not None and record.state == "finished":
        return record
    if record is None:
        raise ClusterError(f"there is no run in {directory}; start it again")
    told = (record.error or {}).get("message") or f"its last sign of life was at {record.updated}"
    if record.state == "cancelled":
        raise RunCancelled(told)
    known = {kind.exit_code: kind for kind in DfmError.__subclasses__()}
    code = int((record.error or {}).get("exit_code", 1))
    raise known.get(code, ClusterError)(f"run {record.run_id} in {directory} is {record.state}: {told}")


def train_once(job: Job, run_id: str, where: Where, poll: float = 5.0) -> dict[str, Any]:
    """Train a job unless that is done; where a driver of the same job is at work, wait for its end instead.

    A driver that died is replaced, and the new one goes on from its checkpoint. SettingsError where another run is at
    work in output.directory, or has taken the place of this one there.
    """
    directory, options = job.output.directory, job.data.storage_options
    if record := finished_run(job):
        logger.info("run %s is finished already; nothing to do", record.run_id)
        return outcome(record)
    if record := running_driver(job, run_id=run_id):
        logger.info("run %s is at work on %s; waiting for it", record.run_id, record.host or "a cluster")
        if record := wait_for(job, poll, run_id):
            return outcome(raise_unless_finished(record, directory, run_id, job.fingerprint()))
        logger.warning("the driver of run %s is gone; starting another one", run_id)
    runs.check_free(directory, options, run_id)
    runs.submitted(job, run_id, job.cluster.scheduler)
    with contextlib.suppress(SupersededError):  # the record tells which run it was
        jobs.train(job, where.client, on_event=where.on_event, run_id=run_id)
    record = runs.read_run(directory, options)
    return outcome(raise_unless_finished(record, directory, run_id, job.fingerprint()))


def wait_for(job: Job, poll: float, run_id: str = "") -> RunRecord | None:
    """The record of a run once it is over; None where its driver is gone.

    run_id: of the run that is meant ("": any); the record of another one, which took its place, ends the wait too.
    """
    while True:
        record = runs.read_run(job.output.directory, job.data.storage_options)
        if record is not None and (record.is_over or run_id not in ("", record.run_id)):
            return record
        if record is None or is_lost(record):
            return None
        time.sleep(poll)


# --- evaluation, publication, scoring --------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """More than the metrics of all rows: slices, and the order within groups (see `jobs.evaluate`)."""

    by: Sequence[str] = ()
    min_rows: int = 1000
    group: str = ""


def evaluate_once(
    model: str, data: Sequence[str], where: Where, *, on_bad_rows: str = "error", unseen: bool = False,
    asked: Asked = Asked(),
) -> dict[str, Any]:  # fmt: skip
    """Metrics of a model on labelled shards; kept beside the model, under a name made of model and shards.

    unseen: refuse (DataError) shards that the model, or one that it goes on from, was trained on. asked: more than the
    metrics of all rows; a model of pairs tells of the groups of its job where none are named. ModelError where the
    model is replaced meanwhile.
    """
    check_bad_rows(on_bad_rows)
    options = where.storage_options
    marks = registry.marks_of(model, options)
    shards = find_shards(list(data), options)
    if unseen:
        unseen_rows.check(model, shards, options)
    group = asked.group or group_of(model, options)
    sliced = [*([[list(asked.by), asked.min_rows]] if asked.by else []), *([group] if group else [])]
    key = fingerprint(marks, _identities(shards), on_bad_rows, *sliced)
    kept = f"{model.rstrip('/')}-evaluations/{key[:32]}.json"
    if files.exists(kept, options):
        return dict(json.loads(files.read_bytes(kept, options)))
    metrics = jobs.evaluate(
        model, data, settings=where.settings, client=where.client, on_bad_rows=on_bad_rows,
        storage_options=options, on_event=where.on_event, by=asked.by, min_rows=asked.min_rows, top=MOST_SLICES,
        group=group,
    )  # fmt: skip
    registry.check_unchanged(model, marks, "evaluated", options)
    files.write_bytes(kept, to_json(metrics, indent=1).encode(), options)
    return metrics


def group_of(model: str, options: files.Options = None) -> str:
    """The column of groups within which a model of pairs is judged; "" of any other."""
    manifest = read_manifest(model, options)
    tables = manifest["metadata"].get("settings") or {}
    return str(tables.get("schema", {}).get("group", "")) if is_paired(manifest.get("loss", {}).get("name", "")) else ""


def publish(
    candidate: str, alias: str, data: Sequence[str], gate: Gate, where: Where, *, order: str = "", enforce: bool = True,
    on_bad_rows: str = "error",
) -> dict[str, Any]:  # fmt: skip
    """Compare a candidate with the champion on the same shards, and make it the champion where the gate lets it.

    order: when the candidate's data ended; a model of earlier data than the champion's, or one that was the champion
    before, is left alone, and the answer says `older`: nothing is evaluated, unless a later one is promoted meanwhile.
    SettingsError where it is a date in another form than ISO 8601.
    GateError where it is refused, unless `enforce` is off: then the answer says so. ModelError where another model lies
    in the champion's place, since a model would be compared with itself, and where the candidate is replaced while it
    is judged. on_bad_rows: "error" or "skip"; SettingsError where it is neither, or the two models left out other rows.
    Warns where the champion was trained on the shards, and a refusal says so.
    """
    options = where.storage_options
    check_order(order)
    check_bad_rows(on_bad_rows)
    ownership.check_apart(alias, data, "alias", options)
    if older := _left_alone(candidate, alias, order, options):
        return older
    _champion_in_place(alias, options)
    marks = registry.marks_of(candidate, options)
    asked = Asked(gate.slices, gate.slice_min_rows, group_of(candidate, options))
    metrics = evaluate_once(candidate, data, where, on_bad_rows=on_bad_rows, unseen=True, asked=asked)
    if metrics["account"]["rejected"]:
        logger.warning("%s", rejected_text(metrics["account"], "judge by"))
    for attempt in range(1, _ATTEMPTS + 1):
        present = _champion_in_place(alias, options)
        doubt = _unfair(candidate, present.model, data, options) if present else ""
        rival = _rival(candidate, present.model, data, where, asked, on_bad_rows) if present else None
        verdict = judge(metrics, rival, gate)
        try:
            entry = registry.promote(
                alias, candidate, verdict, order=order, seen=present.number if present else 0, judged=marks,
                options=options,
            )  # fmt: skip
            _warn(doubt)
            return _publication(alias, entry.number, verdict, [])
        except GateError as refusal:
            if older := _left_alone(candidate, alias, order, options):  # by now: a later one was promoted meanwhile
                return older
            if isinstance(refusal, registry.Overtaken) and attempt < _ATTEMPTS:
                continue
            _warn(doubt)
            if isinstance(refusal, registry.Overtaken):
                raise
            told = f"{refusal}{doubt and '; '}{doubt}"
            if enforce:
                raise GateError(told) from refusal
            return _publication(alias, present.number if present else 0, verdict, [told])
    raise AssertionError("unreachable")


def _left_alone(candidate: str, alias: str, order: str, options: files.Options) -> dict[str, Any] | None:
    """The answer about a candidate that is older than the champion; None where it is not."""
    behind = registry.is_left_behind(alias, candidate, order, options)
    if not behind:
        return None
    present = registry.champion(alias, options)
    older = f"{candidate} is older than the champion of {alias} and left alone: {behind}"
    return _publication(alias, present.number if present else 0, Verdict((), {}), [older], older=True)


def _unfair(candidate: str, champion: str, data: Sequence[str], options: files.Options) -> str:
    """The doubt about a comparison where the champion was trained on the shards that it is compared on; else ""."""
    if unseen_rows.goes_on_from(candidate, champion, options):
        return ""  # which was looked at with the candidate
    try:
        unseen_rows.check(champion, find_shards(list(data), options), options)
    except DataError as error:
        return f"the comparison favours the champion: {error}; judge both models on rows that neither has seen"
    except StorageError as error:
        logger.warning(
            "whether the champion at %s was trained on the rows that judge could not be found out: %s", champion, error
        )
    return ""


def _warn(doubt: str) -> None:
    """Log a doubt about the comparison that decided; not of those that another champion overtook."""
    if doubt:
        logger.warning("%s", doubt)


def _rival(
    candidate: str, champion: str, data: Sequence[str], where: Where, asked: Asked, on_bad_rows: str
) -> dict[str, Any]:
    """Metrics of the champion; without its `loss` where that is another one than the candidate was trained for."""
    metrics = evaluate_once(champion, data, where, on_bad_rows=on_bad_rows, asked=asked)
    ours, theirs = (read_manifest(url, where.storage_options).get("loss") for url in (candidate, champion))
    return metrics if ours == theirs else {name: value for name, value in metrics.items() if name != "loss"}


def _champion_in_place(alias: str, options: files.Options) -> registry.Version | None:
    """The present entry of an alias. ModelError where its model is gone, or another one lies in its place."""
    present = registry.champion(alias, options)
    if present:
        registry.check_in_place(alias, present, options)
    return present


def _publication(
    alias: str, version: int, verdict: Verdict, refusals: list[str], older: bool = False
) -> dict[str, Any]:
    return {
        "promoted": not refusals,
        "older": older,
        "refusals": refusals,
        "alias": alias,
        "version": version,
        "candidate_metrics": verdict.candidate,
        "champion_metrics": verdict.champion,
    }


def predict_once(
    model: str, data: Sequence[str], output: str, where: Where, *, keep: str | Sequence[str] = (),
    on_bad_rows: str = "error", beside: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Score shards with a model, or the champion of an alias; scores of the same model and shards are left alone.

    Earlier scores in `output` are replaced. beside: whether files that dfm did not make may lie there; they stay.
    ModelError where the model is replaced meanwhile.
    """
    check_bad_rows(on_bad_rows)
    files.check_named(output, "output")
    options, kept = where.storage_options, list(texts("keep", keep))
    url = registry.model_of(model, options)
    marks, shards = registry.marks_of(url, options), find_shards(list(data), options)
    key = fingerprint(marks, _identities(shards), kept, on_bad_rows)
    record = files.join(output, SCORED)
    ownership.check_replaceable(record, _is_scored, options)
    if files.exists(record, options) and files.exists(files.join(output, DONE), options):
        known = json.loads(files.read_bytes(record, options))
        if known["key"] == key:
            return dict(known["summary"])
    ownership.remove_own(record, _is_scored, options)
    replaced: Overwrite = "beside" if beside else "own"
    scored = jobs.predict(
        url, data, output, keep=kept, overwrite=replaced, settings=where.settings, client=where.client,
        on_bad_rows=on_bad_rows, storage_options=options, on_event=where.on_event,
    )  # fmt: skip
    registry.check_unchanged(url, marks, "scored", options)
    summary = {**scored, "model": url}
    files.write_bytes(record, to_json({"key": key, "summary": summary}).encode(), options)
    return summary


def _is_scored(url: str, options: files.Options) -> bool:
    return ownership.is_record(url, ("key", "summary"), options)


def _identities(shards: Sequence[Shard]) -> list[list[Any]]:
    return [shard.identity for shard in shards]


# --- data ------------------------------------------------------------------------------------------------


def check_day(
    job: Job, day: str, before: Sequence[str], limits: data_check.Limits, keep: str = "", model: str = ""
) -> dict[str, Any]:
    """Compare a partition with those before it (oldest first; missing and empty ones are passed over). DataError where
    it is odd.

    keep: a folder for the profiles. model: one, or an alias with its champion, whose training the values of each column
    are compared with; passed over where there is none yet. Returns rows and click rate, and which of the earlier
    partitions have rows.
    """
    options = job.data.storage_options
    if keep:
        ownership.check_apart(keep, [day, *before], "the folder of profiles", options)
    there = [url for url in before if _has_rows(url, options)]
    shards = find_shards([day], options)
    schema = resolve_schema(job, *shards)
    earlier = [data_check.profile(url, job, schema, keep) for url in there]
    today = data_check.profile(day, job, schema, keep)
    url = registry.model_of(model, options) if model else ""
    drift: list[str] = []
    if url and files.exists(files.join(url, MANIFEST), options):
        drift = data_check.drifted(day, FMModel.load(url, options), limits, options)
    data_check.check(today, earlier, limits, drift)
    told = {name: getattr(today, name) for name in ("url", "rows", "bad_labels", "label_mean")}
    return {**told, "before": there}


def _has_rows(url: str, options: files.Options) -> bool:
    """Whether a partition has rows; a warning where it has none."""
    try:
        return bool(find_shards([url], options))
    except (NoRows, NothingFound) as error:
        logger.warning("an earlier partition is passed over: %s", error)
        return False
