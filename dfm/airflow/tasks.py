"""The steps as functions for `@task`: they find out from Airflow which interval they work for.

    check = task(tasks.check_day)(job=JOB, day="s3://…/day={{ data_interval_start | ds }}", before=[…])

Each does its work once: what is finished for the interval is found in storage and returned.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dfm.airflow import runtime
from dfm.errors import DivergenceError, GateError, RunCancelled, SettingsError
from dfm.events import is_passing
from dfm.runs import record as runs
from dfm.settings.job import Job, load_job
from dfm.workflow.gate import Gate

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger(__name__)
_MOST_DRIFTED = 5
"""Columns whose drift a task hands on."""


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """Errors that another try would meet again fail the task without one; so does the end of a run on request, which
    another try would undo.
    """
    try:
        yield
    except RunCancelled as error:
        raise AirflowFailException(f"RunCancelled: {error} (clear the task to go on with it)") from error
    except (SettingsError, DivergenceError, GateError) as error:
        if isinstance(error, GateError) and _is_overtaken(error):
            raise
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error


def _for_taskflow(step: Callable[P, R]) -> Callable[P, R]:
    """The step, failing at once where another try is in vain. Airflow reads the annotations of a function by the names
    of the module that it was made in: so it is made here.
    """

    @functools.wraps(step)
    def as_task(*values: P.args, **named: P.kwargs) -> R:
        with failing_at_once():
            return step(*values, **named)

    return as_task


def _is_overtaken(error: GateError) -> bool:
    """Whether other models became the champion while this one was judged: not its fault."""
    from dfm.workflow.registry import Overtaken

    return isinstance(error, Overtaken)


def job_of(
    job: Mapping[str, Any],
    models: str,
    context: Mapping[str, Any],
    dask_conn_id: str | None = "dask_default",
    warm_start: str = "",
) -> Job:
    """The job of this interval, checked: output location and cluster are filled in.

    models: root of all models; the job's own output.directory wins. warm_start: "previous" for the model of the latest
    interval before (below models), or the URL of a model or an alias; where there is none yet, training starts from the
    beginning.
    """
    from dfm.workflow import steps

    tables = runtime.numbers_again(dict(job))
    runtime.check_start(tables, warm_start)
    directory = tables.get("output", {}).get("directory") or runtime.run_directory(
        models, context, runtime.interval_key(context)
    )
    options = runtime.options_of(tables.get("data", {}).get("storage_options"))
    tables["output"] = {**tables.get("output", {}), "directory": directory}
    if dask_conn_id:
        hook = runtime.hook_of(dask_conn_id)
        tables["cluster"] = {**tables.get("cluster", {}), **hook.cluster()}
        tables["kubernetes"] = {**tables.get("kubernetes", {}), **(hook.kubernetes() or {})}
    runtime.tell_of_empty_interval(context)
    if warm_start:
        found = runtime.previous_model(models, context, options) if warm_start == runtime.PREVIOUS else warm_start
        start = steps.pin_start(directory, found, options, runtime.run_id(context), warm_start)
        logger.info("warm_start = %r: training starts from %s", warm_start, start or "nothing: no model is there yet")
        tables["training"] = {**tables.get("training", {}), "warm_start": start}
    return load_job(tables)


@_for_taskflow
def train(
    job: Mapping[str, Any],
    models: str = "",
    overrides: Sequence[str] = (),
    dask_conn_id: str | None = "dask_default",
    warm_start: str = "",
    poll_interval: float = 5.0,
    target: str = "auto",
) -> dict[str, Any]:
    """Train the job of this interval in this process, unless that is done or being done. Returns model and metrics.

    target: "kubernetes" for a DaskJob of the job's [kubernetes], whose end is waited for here.
    """
    context = get_current_context()
    tables = runtime.rendered_tables_of(job, overrides)
    resolved = job_of(tables, models, context, dask_conn_id, warm_start)
    return train_here(resolved, runtime.run_id(context), dask_conn_id, poll_interval, target)


def train_here(
    job: Job,
    run_id: str,
    dask_conn_id: str | None,
    poll_interval: float,
    target: str = "auto",
    log: EventLog | None = None,
) -> dict[str, Any]:
    """Train a job and wait for it in this process: it drives the run itself, but for one on Kubernetes."""
    from dfm.workflow import steps

    log = log or EventLog()
    if runtime.on_kubernetes(target, dask_conn_id):
        if record := steps.finished_run(job):
            return steps.outcome(record)
        runtime.follow_dask_job(job, runtime.dask_job_of(job, run_id), log)
        record = runs.read_run(job.output.directory, job.data.storage_options)
        return steps.outcome(steps.raise_unless_finished(record, job.output.directory, run_id, job.fingerprint()))
    with runtime.working_on(dask_conn_id, job.data.storage_options, on_event=log) as where:
        return steps.train_once(job, run_id, where, poll_interval)


@_for_taskflow
def evaluate(
    model: str,
    data: str | Sequence[str],
    dask_conn_id: str | None = "dask_default",
    storage_options: Mapping[str, Any] | None = None,
    on_bad_rows: str = "error",
    unseen: bool = True,
) -> dict[str, Any]:
    """Metrics of a model, or the champion of an alias, on labelled shards.

    unseen: refuse shards that it, or a model that it goes on from, was trained on.
    """
    from dfm.workflow import registry, steps

    with runtime.working_on(dask_conn_id, storage_options, on_event=EventLog()) as where:
        url = registry.model_of(model, where.storage_options)
        metrics = steps.evaluate_once(url, _listed(data), where, on_bad_rows=on_bad_rows, unseen=unseen)
    logger.info("%s: %s", url, runtime.metrics_text(metrics))
    return {"model": url, **_shortened({name: value for name, value in metrics.items() if name != "calibration_bins"})}


@_for_taskflow
def publish(
    candidate: str,
    alias: str,
    data: str | Sequence[str],
    gate: Mapping[str, Any] | None = None,
    dask_conn_id: str | None = "dask_default",
    storage_options: Mapping[str, Any] | None = None,
    order: str = "",
    enforce: bool = True,
    on_bad_rows: str = "error",
) -> dict[str, Any]:
    """Compare a candidate with the champion on the same shards and make it the champion where the gate lets it.

    order: when its data ended, by default the end of the data interval; a template that renders to native objects may
    make a number of a day. enforce: a refusal fails the task without another try, else it is in the answer.
    """
    from dfm.workflow import steps

    order = str(order or runtime.order_of(get_current_context()))
    with runtime.working_on(dask_conn_id, storage_options, on_event=EventLog()) as where:
        chosen = Gate.from_dict(gate or {})
        result = steps.publish(
            candidate, alias, _listed(data), chosen, where, order=order, enforce=enforce, on_bad_rows=on_bad_rows
        )
    for line in runtime.lines_of_publication(candidate, result):
        logger.info("%s", line)
    return result


@_for_taskflow
def predict(
    model: str,
    data: str | Sequence[str],
    output: str,
    keep: str | Sequence[str] = (),
    dask_conn_id: str | None = "dask_default",
    storage_options: Mapping[str, Any] | None = None,
    on_bad_rows: str = "error",
    beside: bool = False,
) -> dict[str, Any]:
    """Score shards with a model, or the champion of an alias, into Parquet parts below `output`.

    Earlier scores there are replaced. beside: whether files that dfm did not make may lie there; they stay.
    """
    from dfm.workflow import steps

    with runtime.working_on(dask_conn_id, storage_options, on_event=EventLog()) as where:
        scored = steps.predict_once(
            model, _listed(data), output, where, keep=keep, on_bad_rows=on_bad_rows, beside=beside
        )
    counts = f"{scored['predicted']:,} of {scored['rows']:,} rows scored, {scored['rejected']:,} rejected"
    logger.info("%s; by %s, in %s", counts, scored["model"], output)
    return _shortened(scored)


def _shortened(found: dict[str, Any]) -> dict[str, Any]:
    """The findings, of drift only the columns that drifted most: XComs are small."""
    return {**found, "drift": found["drift"][:_MOST_DRIFTED]} if "drift" in found else found


@_for_taskflow
def is_model(url: str, storage_options: Mapping[str, Any] | None = None) -> bool:
    """Whether there is a model at a URL, or a champion behind an alias."""
    from dfm.model.folder import MANIFEST
    from dfm.storage import files
    from dfm.workflow import registry

    options = runtime.options_of(storage_options)
    return files.exists(files.join(registry.model_of(url, options), MANIFEST), options)


@_for_taskflow
def rollback(alias: str, reason: str = "", storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make the champion before the present one the champion again, and withdraw the present one."""
    from dfm.workflow import registry

    entry = registry.rollback(alias, reason, runtime.options_of(storage_options))
    return {"alias": alias, "version": entry.number, "champion": entry.model}


@_for_taskflow
def check_day(
    job: Mapping[str, Any],
    day: str,
    before: Sequence[str],
    limits: Mapping[str, Any] | None = None,
    keep: str = "",
    storage_options: Mapping[str, Any] | None = None,
    at_least: int = 1,
    model: str = "",
) -> dict[str, Any]:
    """Compare a partition with those before it (oldest first): columns, rows, click rate; and its values with those
    that a model (a folder, or an alias, which may have no champion yet) was trained on. DataError where it is odd.

    Returns rows, click rate, and under "before" the earlier partitions that are there. The task is skipped, and with it
    what needs it, where there are fewer than `at_least`. keep: a folder for the profiles.
    """
    from dfm.workflow import steps
    from dfm.workflow.data_check import Limits

    tables = runtime.rendered_tables_of(job)
    if storage_options:
        tables["data"] = {**tables.get("data", {}), "storage_options": runtime.options_of(storage_options)}
    found = steps.check_day(load_job(tables), day, list(before), Limits(**(limits or {})), keep, model)
    if len(found["before"]) < at_least:
        raise AirflowSkipException(f"{len(found['before'])} partitions before {day} are there; {at_least} needed")
    return found


@_for_taskflow
def report(
    url: str, title: str, sections: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write a page about the night; a section is what a task returned, or None where it did not run."""
    from dfm.pages.page import write_report

    present = {name: content for name, content in sections.items() if content}
    write_report(url, title, present, runtime.options_of(storage_options))
    return {"report": url, "sections": sorted(present)}


class EventLog:
    """Writes events into the task's log, as lines: what is told once, not every progress. epochs: that were told."""

    def __init__(self) -> None:
        self.epochs: set[int] = set()

    def __call__(self, event: dict[str, Any]) -> None:
        """Tell of an event."""
        if is_passing(event):
            return
        logger.info("%s", runtime.line_of_event(event))
        if event["event"] == "epoch":
            self.epochs.add(event["epoch"])


def _listed(data: str | Sequence[str]) -> list[str]:
    return [data] if isinstance(data, str) else list(data)
