"""The surroundings of every task: place of its results, ways to storage and Dask, what a job may hold in a DAG."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from dfm.errors import SettingsError
from dfm.pages.numbers import number_text
from dfm.runs import record as runs
from dfm.runs.display import rejected_text
from dfm.runs.record import RunRecord
from dfm.settings.constraints import TableOf
from dfm.settings.job import Job, load_job, read_override, read_tables
from dfm.settings.tables import TABLES
from dfm.storage import files, ownership
from dfm.storage.credentials import check_options
from dfm.workflow.moments import moment_of

if TYPE_CHECKING:
    from dfm.airflow.hooks import DaskHook
    from dfm.kubernetes.api import Api
    from dfm.workflow.steps import Where

Tables = dict[str, Any]
OnEvent = Callable[[dict[str, Any]], None]
logger = logging.getLogger(__name__)
MANIFEST = "model.json"
_INTERVAL = re.compile(r"\d{8}T\d{6}")
"""A key of an interval, and not of a run without one."""
DASK_JOB = "daskjob.txt"
"""Holds the name of the DaskJob that the latest try made."""
_LOOK = 1.0
"""Seconds between two looks at a DaskJob that was asked to stop."""
_KEPT_NAME = re.compile(rb"[a-z0-9-]+-[0-9a-f]{10}")
"""All that such a file holds."""


# --- names -----------------------------------------------------------------------------------------------


def interval_key(context: Mapping[str, Any]) -> str:
    """The start of the data interval (UTC), in a form that fits paths; a run without one is named by its run id."""
    start = context.get("data_interval_start") or context.get("logical_date")
    if start is None:
        return str(context["run_id"]).replace("/", "-").replace(":", "")
    return f"{_utc(start):%Y%m%dT%H%M%S}"


def order_of(context: Mapping[str, Any]) -> str:
    """When the data of a run ended, as an ISO moment in UTC: the end of its interval, else when it was due.

    A run by hand or of an asset has no interval; "" where even its run id does not tell a moment.
    """
    due = getattr(context.get("dag_run"), "run_after", None)
    ended = context.get("data_interval_end") or context.get("logical_date") or due
    found = _utc(ended) if ended is not None else moment_of(str(context.get("run_id", "")))
    return "" if found is None else found.isoformat(timespec="seconds")


def previous_model(models: str, context: Mapping[str, Any], options: files.Options) -> str:
    """The model of the latest run of an earlier interval that has one; "" where there is none.

    Found among the runs that are there, as intervals differ in length: months, weekends, the hour that a clock loses. A
    run without an interval (by hand, of an asset) goes on from earlier ones of its own kind, too.
    """
    key, root = interval_key(context), run_directory(models, context, "").rstrip("/")
    own = moment_of(key)
    if not models or own is None:
        return ""
    found = [(moment_of(name), name) for name in files.folders_in(root, options) if _may_precede(name, key)]
    for _, name in sorted(((start, name) for start, name in found if start is not None and start < own), reverse=True):
        model = f"{root}/{name}/model"
        if files.exists(files.join(model, MANIFEST), options):
            return model
    return ""


def _may_precede(name: str, key: str) -> bool:
    """Whether a run named by its start is of an interval, or of the kind of another run that has none itself."""
    kind, without_interval, _ = key.partition("__")
    return bool(_INTERVAL.fullmatch(name)) or (bool(without_interval) and name.startswith(f"{kind}__"))


PREVIOUS = "previous"
"""The setting of `warm_start` that means the model of the interval before."""


def check_start(tables: Mapping[str, Any], warm_start: str) -> None:
    """SettingsError where a task asks for the model of the interval before, and its models lie elsewhere."""
    own = tables.get("output", {}).get("directory")
    if warm_start == PREVIOUS and own:
        raise SettingsError(
            f"warm_start = {PREVIOUS!r} looks for runs below models/DAG/TASK, and output.directory = {own!r} puts this "
            "task's elsewhere; leave output.directory out and set models, or name a model or an alias in warm_start"
        )


def tell_of_empty_interval(context: Mapping[str, Any]) -> None:
    """Warn of a run whose data interval has no length: templates of its two ends name no day."""
    start, end = context.get("data_interval_start"), context.get("data_interval_end")
    if start is not None and start == end:
        logger.warning(
            "the data interval of this run begins and ends at %s: in Airflow 3 a schedule such as '@daily' gives runs "
            "without an interval. For the data of a day, schedule the DAG with CronDataIntervalTimetable('@daily', "
            "timezone='UTC')",
            start,
        )


def _utc(moment: datetime.datetime) -> datetime.datetime:
    """The moment in UTC: the hour that a clock has twice is two hours there."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC)


def task_name(context: Mapping[str, Any]) -> str:
    """The task within its DAG; each of several mapped ones has a number."""
    instance = context["ti"]
    index = getattr(instance, "map_index", -1)
    return str(instance.task_id) + (f"-{index}" if index is not None and index >= 0 else "")


def run_id(context: Mapping[str, Any]) -> str:
    """Name of the run of a task: the same on every try, another one for every interval."""
    return f"{context['ti'].dag_id}.{task_name(context)}.{interval_key(context)}"


def run_directory(models: str, context: Mapping[str, Any], key: str) -> str:
    """Output location of a task's run of one interval, below the root of all models."""
    return f"{models.rstrip('/')}/{context['ti'].dag_id}/{task_name(context)}/{key}"


# --- connections -----------------------------------------------------------------------------------------


def options_of(storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of the filesystem. SettingsError where they hold a secret: Airflow shows what tasks are given."""
    check_options(storage_options, "storage_options")
    return dict(storage_options or {})


@contextlib.contextmanager
def working_on(
    dask_conn_id: str | None, storage_options: Mapping[str, Any] | None, on_event: OnEvent | None = None
) -> Iterator[Where]:
    """The place of a step's work: the cluster of a connection, or local workers."""
    from dfm.settings.tables import ClusterSettings
    from dfm.workflow.steps import Where

    cluster = hook_of(dask_conn_id).cluster() if dask_conn_id else {}
    yield Where(None, ClusterSettings(**cluster), options_of(storage_options), on_event)


def hook_of(dask_conn_id: str) -> DaskHook:
    """The hook of a connection of type `dask`."""
    from dfm.airflow.hooks import DaskHook

    return DaskHook(dask_conn_id)


TARGETS = ("auto", "kubernetes")


def on_kubernetes(target: str, dask_conn_id: str | None) -> bool:
    """Whether jobs train as DaskJobs: where the task says so, or its connection has [kubernetes] settings."""
    return target == "kubernetes" or (bool(dask_conn_id) and hook_of(str(dask_conn_id)).kubernetes() is not None)


def drives_itself(job: Job) -> bool:
    """Whether `start_driver` makes a process of this machine, which nobody starts again when it dies."""
    return job.cluster.scheduler in ("", "local")


def as_driven_elsewhere(job: Job) -> Job:
    """The job as the record of a driver on a Dask cluster knows it: with local paths in full."""
    from dfm.launch.on_dask import with_absolute_paths

    return job if drives_itself(job) else with_absolute_paths(job)


def start_driver(job: Job, run_id: str) -> None:
    """Start a driver where it outlives this task: on the Dask cluster, or in a process of its own.

    SettingsError where another run is at work in the output location.
    """
    from dfm.launch import process

    runs.check_free(job.output.directory, job.data.storage_options, run_id)
    if drives_itself(job):
        process.start(job, run_id)
    else:
        from dfm.launch.on_dask import submit

        submit(job, run_id)


def ask_to_stop(directory: str, options: Mapping[str, Any], run_id: str) -> bool:
    """Ask the run of a directory to stop; false where another one has taken its place, which is left alone.

    run_id: of the run that is meant; "": any.
    """
    record = runs.read_run(directory, options)
    if record is not None and run_id not in ("", record.run_id):
        return False
    runs.request_cancel(directory, options)
    return True


def dask_job_of(job: Job, run_id: str) -> str:
    """The name of the DaskJob that trains a run, which is created unless one of an earlier try is still at work.

    One that was asked to stop is waited for until it is gone. ClusterError where it does not stop.
    """
    options = job.data.storage_options
    with contextlib.suppress(FileNotFoundError):
        name = files.read_bytes(files.join(job.output.directory, DASK_JOB), options).decode()
        if _is_at_work(name, job, run_id):
            return name
    return start_dask_job(job, run_id)


def _is_at_work(name: str, job: Job, run_id: str) -> bool:
    """Whether a DaskJob trains a run and goes on with it; its end is waited for where somebody asked for that. One that
    trains the job as it was before it was changed is ended.
    """
    from dfm.errors import ClusterError
    from dfm.kubernetes import follow, submit
    from dfm.kubernetes.api import Api
    from dfm.workflow.steps import STOP_SECONDS

    api, directory, options = Api(job.kubernetes.namespace), job.output.directory, job.data.storage_options
    record = runs.read_run(directory, options)
    if record and record.run_id == run_id and record.job_fingerprint != job.fingerprint():
        logger.info("DaskJob %s trains a job that was changed since; it is ended", name)
        with contextlib.suppress(follow.NoSuchJob):
            submit.cancel(api, name, dict(options))
        return False
    deadline, asked = time.monotonic() + STOP_SECONDS, False
    while _has_driver(api, name, run_id, options):
        # Looked at again without the request: it is taken away once the record tells of the end.
        if not runs.is_cancelled(directory, run_id, options):
            return _has_driver(api, name, run_id, options)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"DaskJob {name} was asked to stop and is still there after {STOP_SECONDS:g} s; try again once it has "
                f"ended, or end it (dfm cancel {name} --kubernetes)"
            )
        asked = True
        time.sleep(_LOOK)
    if asked:  # who asked looks once a second, and would take a record of the same name that comes next for this one
        time.sleep(2 * _LOOK)
    return False


def _has_driver(api: Api, name: str, run_id: str, options: Mapping[str, Any]) -> bool:
    """Whether there is a DaskJob of a name, and its driver is at work on a run, or still may be."""
    from dfm.kubernetes import follow

    try:
        state = follow.state_of(api, name)
    except follow.NoSuchJob:
        return False
    found = follow.ending_of(state, options)
    return state.run_id == run_id and not state.driver_is_gone and (not found.is_over or found.state == "lost")


def follow_dask_job(job: Job, name: str, on_event: OnEvent) -> None:
    """Wait until a DaskJob's run is over, and its operator has noted that. ClusterError where it is lost."""
    from dfm.errors import ClusterError
    from dfm.kubernetes import follow
    from dfm.kubernetes.api import Api

    api = Api(job.kubernetes.namespace)
    found, state = follow.follow(api, name, job.data.storage_options, on_event)
    follow.settle(api, state, on_event)
    if found.state == "lost":
        raise ClusterError(found.reason)


def end_dask_job(directory: str, options: Mapping[str, Any], namespace: str) -> None:
    """End the DaskJob that the latest try made for the run of a directory."""
    from dfm.kubernetes import follow, submit
    from dfm.kubernetes.api import Api

    with contextlib.suppress(FileNotFoundError, follow.NoSuchJob):
        name = files.read_bytes(files.join(directory, DASK_JOB), options).decode()
        submit.cancel(Api(namespace), name, dict(options))


def start_dask_job(job: Job, run_id: str) -> str:
    """Create a DaskJob for a run; that of an earlier try, should it still be there, goes first. Its name.

    Each try's has a name of its own, kept beside the results: what Kubernetes collects late is then in nobody's way.
    SettingsError where another run is at work in the output location.
    """
    from dfm.kubernetes import submit, upkeep
    from dfm.kubernetes.api import Api
    from dfm.kubernetes.manifest import name_for

    api, kept = Api(job.kubernetes.namespace), files.join(job.output.directory, DASK_JOB)
    runs.check_free(job.output.directory, job.data.storage_options, run_id)  # before that run's DaskJob is deleted
    ownership.check_replaceable(kept, _is_kept_name, job.data.storage_options)
    with contextlib.suppress(FileNotFoundError):
        submit.delete(api, files.read_bytes(kept, job.data.storage_options).decode())
    name = name_for(run_id.split(".")[0], uuid.uuid4().hex[:10])
    files.write_bytes(kept, name.encode(), job.data.storage_options)
    submit.submit(api, dataclasses.replace(submit.prepare(job, name), run_id=run_id))
    upkeep.tidy(api)
    return name


def _is_kept_name(url: str, options: files.Options) -> bool:
    return _KEPT_NAME.fullmatch(files.read_head(url, 256, options)) is not None


REPORT = "dfm_report"
"""The XCom in which a task says where its report is: "url", "storage_options", and "lies_at" for people."""


def address_of_report(url: str, options: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """The address at which a browser finds a report: http(s) as it is, else the page of `dfm.airflow.pages`, for which
    the task leaves word. It is relative to Airflow's own address, which a worker need not know.
    """
    if url.startswith(("http://", "https://")):
        return url
    instance = context["ti"]
    place = {"url": files.absolute(url), "storage_options": dict(options), "lies_at": link_to(url, options)}
    instance.xcom_push(key=REPORT, value=place)
    known = {name: getattr(instance, name) for name in ("dag_id", "run_id", "task_id", "map_index")}
    return f"dfm/report?{urlencode(known)}"


def link_to(url: str, options: files.Options = None) -> str:
    """The place of a file, for people: in S3 and Google Cloud Storage the address of their own pages, of a local path
    also the machine.
    """
    protocol, _, path = url.partition("://")
    if not path or protocol == "file":
        return f"file://{socket.gethostname()}{quote(os.path.abspath(files.local_path(url)))}"
    bucket, _, key = path.partition("/")
    if protocol in ("gs", "gcs"):
        return f"https://storage.cloud.google.com/{bucket}/{quote(key)}"
    if protocol in ("s3", "s3a") and not _other_endpoint(options or {}):
        return f"https://s3.console.aws.amazon.com/s3/object/{bucket}?prefix={quote(key)}"
    return url


def _other_endpoint(options: Mapping[str, Any]) -> bool:
    """Whether s3:// means a store of somebody else."""
    own = options.get("endpoint_url") or dict(options.get("client_kwargs") or {}).get("endpoint_url")
    return bool(own or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


# --- jobs in DAG files -----------------------------------------------------------------------------------


def tables_of(job: str | os.PathLike[str] | Mapping[str, Any] | Job, overrides: Sequence[str]) -> Tables:
    """The tables of a job as a DAG file has them, templates included, after they were found to be legal.

    What holds a template is known when the task runs; until then its name is checked, and its value where that is text.
    """
    tables = read_tables(job, overrides)
    load_job(_without_unknown(tables))
    return tables


def rendered_tables_of(job: Mapping[str, Any], overrides: Sequence[str] = ()) -> Tables:
    """The same of a job in a task that runs: texts that templates left are read before they are checked."""
    return tables_of(numbers_again(read_tables(job, overrides)), ())


def _without_unknown(tables: Tables) -> Tables:
    """The tables without what only the running task knows."""
    known: Tables = {}
    for name, table in tables.items():
        if not isinstance(table, Mapping) or name not in TABLES:
            known[name] = table
            continue
        known[name] = {key: value for key, value in table.items() if not _is_unknown(name, key, value)}
    return known


def _is_unknown(table: str, key: str, value: Any) -> bool:
    own = TABLES[table].knobs().get(key)
    if own is None or not _is_templated(value):
        return False
    if _holds_reference(value):
        return True
    constraint = own.constraint.value if isinstance(own.constraint, TableOf) else own.constraint
    return not _accepts(constraint, value)


def _is_templated(value: Any) -> bool:
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, Mapping):
        return any(_is_templated(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(_is_templated(inner) for inner in value)
    return _holds_reference(value)


def _holds_reference(value: Any) -> bool:
    """Whether the output of another task is in there."""
    if isinstance(value, Mapping):
        return any(_holds_reference(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_reference(inner) for inner in value)
    return hasattr(value, "resolve") and not isinstance(value, str)


_FLAGS = {"True": True, "False": False}


def numbers_again(tables: Tables) -> Tables:
    """Rendered tables: a template gives text, and text that stands for a number or a flag is read as TOML, or as Jinja
    writes True and False.
    """
    result: Tables = {}
    for name, table in tables.items():
        if not isinstance(table, Mapping) or name not in TABLES:
            result[name] = table
            continue
        result[name] = {key: _as_meant(name, key, value) for key, value in table.items()}
    return result


def _as_meant(table: str, key: str, value: Any) -> Any:
    own = TABLES[table].knobs().get(key)
    if not isinstance(value, str) or own is None or _accepts(own.constraint, value):
        return value
    flag = _FLAGS.get(value)
    return read_override((table, key), value) if flag is None or not _accepts(own.constraint, flag) else flag


def _accepts(constraint: Any, value: Any) -> bool:
    try:
        constraint.parse(value)
    except ValueError:
        return False
    return True


REFUSAL = "dfm_refusal"
"""The key under which a task that skips itself leaves the reason in its context: Airflow hands none to callbacks."""


def reason_of(context: Mapping[str, Any]) -> str:
    """The reason why a task failed or was skipped, in a sentence; for callbacks (`on_failure_callback`, …)."""
    return str(context.get("exception") or context.get(REFUSAL) or "no reason was given")


_NO_METRICS = re.compile(r".*seconds|bytes_per_round|rows_per_second|epoch|event_version|weight")
"""Numbers of an epoch that say nothing of the model."""


def lines_of_run(record: RunRecord, events: Sequence[Mapping[str, Any]], directory: str) -> list[str]:
    """The story of a finished run for a task's log: epochs, metrics, the account of its rows, where everything is."""
    epochs = [line_of_event(event) for event in events if event["event"] == "epoch"]
    rows = record.rows
    counts = ", ".join(f"{rows[kind]:,} {kind}" for kind in ("read", "trained", "rejected") if kind in rows)
    done = next((event for event in events if event["event"] == "done"), {})
    accounts = {"train on": rows, "validate on": done.get("validation_rows", {})}
    return [
        *epochs,
        f"validation: {metrics_text(record.validation) or 'none'}",
        f"rows: {counts}",
        *(rejected_text(account, purpose) for purpose, account in accounts.items() if account.get("reasons")),
        f"model: {record.model}",
        f"all events: dfm logs {directory}",
    ]


def line_of_event(event: Mapping[str, Any]) -> str:
    """An event for a task's log: "epoch 3: log_loss 0.41940, auc 0.82620"; of others all numbers and texts."""
    if event["event"] == "epoch":
        seed = f", seed {event['seed']}" if "seed" in event else ""
        return f"epoch {event['epoch']}{seed}: {metrics_text(event)}"
    told = {name: value for name, value in event.items() if isinstance(value, int | float | str) and name != "event"}
    values = [f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}" for name, value in told.items()]
    return f"{event['event']}: {', '.join(values)}" if values else str(event["event"])


def lines_of_publication(candidate: str, result: Mapping[str, Any]) -> list[str]:
    """The comparison of the gate and its outcome, for a task's log; a refusal is told by its reason instead."""
    rows = result["candidate_metrics"].get("rows", 0)
    judged = {f"candidate, on {rows:,} rows": result["candidate_metrics"], "champion": result["champion_metrics"]}
    compared = [f"{who}: {metrics_text(metrics)}" for who, metrics in judged.items() if metrics]
    now = f"version {result['version']} of {result['alias']} is {candidate}"
    return [*compared, now] if result["promoted"] else compared


def metrics_text(values: Mapping[str, Any]) -> str:
    """Metrics for a task's log: "log_loss 0.41940, auc 0.82620"."""
    numbers = {name: value for name, value in values.items() if isinstance(value, float)}
    return ", ".join(
        f"{name} {number_text(value)}" for name, value in numbers.items() if not _NO_METRICS.fullmatch(name)
    )
