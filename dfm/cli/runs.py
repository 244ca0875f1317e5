"""Commands about runs that go on without a terminal: submit, status, logs, cancel, list, drive."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dfm.cli import kubernetes as on_kubernetes
from dfm.cli import standing
from dfm.cli.console import metric_text, show_plan, wide_console
from dfm.cli.options import check_scheduler, json_option, kubernetes_options, storage_option, tls_options
from dfm.events import line_of
from dfm.runs.display import Reporter

if TYPE_CHECKING:
    from dfm.runs.outcome import Outcome
    from dfm.runs.record import RunRecord

_follow = click.option("--follow", is_flag=True, help="Show its progress until it is over; Ctrl-C leaves it running.")
_overrides = click.option("--set", "overrides", metavar="TABLE.KEY=VALUE", multiple=True, help="Override a knob.")
_scheduler = click.option("--scheduler", metavar="ADDRESS", help="The Dask scheduler that RUN was submitted to.")
_run_argument = click.argument("run")
_RUN_THERE = "On Kubernetes: RUN is the name of a DaskJob."
_CLUSTER = "scheduler", "tls"
"""The parameters that name a Dask cluster, and not Kubernetes."""
WHERE = """RUN is its output directory or URL, its job file, or, with --scheduler, the id that submitting gave."""
_PATIENCE = 8.0
"""Seconds for a scheduler to answer a question."""


@dataclass(frozen=True)
class Place:
    """The place of a run's record, options to read there, and the run's id ("": whichever run it is)."""

    directory: str
    options: dict[str, Any]
    run_id: str = ""


def _place(run: str, scheduler: str | None, tls: dict[str, Any], options: Mapping[str, Any]) -> Place:
    from dfm.settings.job import load_job
    from dfm.storage.credentials import merged

    check_scheduler(scheduler, tls)
    if os.path.isfile(run):
        job = load_job(run)
        return Place(job.output.directory, merged(job.data.storage_options, options))
    if scheduler:
        return Place(_directory_of(run, scheduler, tls), dict(options), run)
    return Place(run, dict(options))


def _outcome_at(place: Place) -> Outcome:
    from dfm.runs import outcome

    return outcome.outcome_of(place.directory, place.options, place.run_id)


def _record_of(found: Outcome) -> RunRecord:
    """The record of a run. SettingsError where there is none."""
    from dfm.errors import SettingsError

    if found.record is None:
        raise SettingsError(f"there is {found.reason}; check the path")
    return found.record


def _tell_where_nothing_is(place: Place) -> None:
    """Say on standard error that there is no record yet to wait for: the path may be mistyped."""
    from dfm.errors import StorageError

    with contextlib.suppress(OSError, StorageError):  # a store that is away: who waits for it tells that
        found = _outcome_at(place)
        if found.record is None:
            click.echo(f"{found.reason} yet; waiting", err=True)


def _runs_of(scheduler: str, tls: Mapping[str, Any]) -> dict[str, str]:
    """Directories of the runs that were submitted to a Dask scheduler, by their ids."""
    from dfm.distributed.cluster import connect
    from dfm.launch.on_dask import submitted_to
    from dfm.settings.tables import ClusterSettings

    settings = ClusterSettings(scheduler=scheduler, worker_timeout=_PATIENCE, **tls)
    asking = f"asking {escape(scheduler)} for its runs (at most {_PATIENCE:.0f} s)"
    with Console(stderr=True).status(asking), connect.connect(settings) as client:
        return submitted_to(client)


def _directory_of(run_id: str, scheduler: str, tls: Mapping[str, Any]) -> str:
    from dfm.errors import SettingsError

    known = _runs_of(scheduler, tls)
    if run_id not in known:
        found = ", ".join(sorted(known)) or "none"
        raise SettingsError(
            f"run {run_id!r} was not submitted to {scheduler}; known there: {found}. Name its directory instead"
        )
    return known[run_id]


def cluster_overrides(
    scheduler: str | None, factory: str | None = None, tls: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Overrides of a job that put it on the cluster of the command line, in place of the job file's own."""
    certificates = tuple(f"cluster.{name}={path}" for name, path in (tls or {}).items())
    if scheduler and factory:
        raise click.UsageError("--scheduler and --cluster-factory name two clusters; give one of them")
    if scheduler:
        return f"cluster.scheduler={scheduler}", "cluster.factory=", *certificates
    return (f"cluster.factory={factory}", "cluster.scheduler=") if factory else certificates


# --- commands --------------------------------------------------------------------------------------------


@click.command()
@click.argument("job", type=click.Path(dir_okay=False))
@_overrides
@click.option("--scheduler", metavar="ADDRESS", help="Hand the driver to this Dask cluster (tcp://…, tls://…).")
@tls_options
@kubernetes_options("As a DaskJob of Kubernetes.", only=("name",), without=_CLUSTER)
@click.option("--name", default="", help="Of the DaskJob; default: made of the job file's name and the run's id.")
@click.option("--dry-run", is_flag=True, help="Check, show the plan (Kubernetes: the objects), submit nothing.")
@_follow
@json_option
def submit(
    job: str, overrides: tuple[str, ...], scheduler: str | None, tls: dict[str, Any], kubernetes: bool, namespace: str,
    context: str, name: str, dry_run: bool, follow: bool, as_json: bool,
) -> int:  # fmt: skip
    """Hand JOB, driver and all, to a Dask cluster or to Kubernetes, and print the id of its run."""
    if kubernetes:
        return on_kubernetes.submit(job, overrides, name, namespace, context, dry_run, follow, as_json)
    overrides = (*overrides, *cluster_overrides(scheduler, tls=tls))
    return _plan_for_dask(job, overrides, as_json) if dry_run else _submit_to_dask(job, overrides, follow, as_json)


def _plan_for_dask(job: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """Plan of a submission, after all the checks that it would make."""
    from dfm import jobs
    from dfm.launch import on_dask
    from dfm.settings.job import load_job

    resolved = on_dask.with_absolute_paths(load_job(job, overrides))
    on_dask.check_free(resolved)
    address = on_dask.check(resolved)
    planned = jobs.plan(resolved)
    if as_json:
        click.echo(line_of({"event": "plan", **planned}))
        return 0
    show_plan(planned)
    click.echo(f"its driver would go to {address}, its results to {resolved.output.directory}; nothing was submitted")
    return 0


def _submit_to_dask(job: str, overrides: tuple[str, ...], follow: bool, as_json: bool) -> int:
    from dfm.launch import on_dask
    from dfm.settings.job import load_job

    resolved = on_dask.with_absolute_paths(load_job(job, overrides))
    on_dask.check_free(resolved)
    record = on_dask.submit(resolved)
    directory = resolved.output.directory
    _told(
        {"event": "submitted", "run_id": record.run_id, "directory": directory, "scheduler": record.scheduler}, as_json,
        f"{record.run_id}\nfollow it from anywhere: dfm status {directory} · dfm logs {directory} --follow · "
        f"dfm cancel {directory}",
    )  # fmt: skip
    place = Place(directory, dict(resolved.data.storage_options), record.run_id)
    return _followed(place, as_json) if follow else 0


@click.command(epilog=WHERE)
@_run_argument
@_scheduler
@tls_options
@kubernetes_options(_RUN_THERE, without=_CLUSTER)
@storage_option
@click.option("--wait", is_flag=True, help="Wait for its end, and exit with its exit code.")
@json_option
def status(
    run: str, scheduler: str | None, tls: dict[str, Any], kubernetes: bool, namespace: str, context: str,
    options: dict[str, Any], wait: bool, as_json: bool,
) -> int:  # fmt: skip
    """Show the state of RUN: progress, model, or why it failed. Exit code 2 where there is no record of it."""
    from dfm.runs import outcome

    if kubernetes:
        return on_kubernetes.status(run, namespace, context, options, wait, as_json)
    place = _place(run, scheduler, tls, options)
    if wait:
        _tell_where_nothing_is(place)
        found = outcome.wait(place.directory, place.options, place.run_id, on_kubernetes.complain)
    else:
        found = _outcome_at(place)
    record = found.record.to_dict() if found.record else {}
    described = {**record, "state": found.state, "reason": found.reason, "directory": place.directory}
    if as_json:
        click.echo(line_of({"event": "status", **described}))
    elif found.record is not None:
        _print_status(described)
    _record_of(found)
    return found.exit_code if wait else 0


@click.command(epilog=WHERE)
@_run_argument
@_scheduler
@tls_options
@kubernetes_options(_RUN_THERE, without=(*_CLUSTER, "options", "as_json"))
@storage_option
@_follow
@json_option
def logs(
    run: str, scheduler: str | None, tls: dict[str, Any], kubernetes: bool, namespace: str, context: str,
    options: dict[str, Any], follow: bool, as_json: bool,
) -> int:  # fmt: skip
    """Show the events of RUN so far: what `dfm train` would have shown, warnings, and why it failed; on Kubernetes, its
    driver's log.
    """
    from dfm.runs.record import read_events

    if kubernetes:
        return on_kubernetes.logs(run, namespace, context, follow)
    place = _place(run, scheduler, tls, options)
    if follow:
        return _followed(place, as_json)
    _record_of(_outcome_at(place))
    with Reporter(Console(), as_json) as reporter:
        for event in read_events(place.directory, place.options):
            reporter(event)
    return 0


@click.command(epilog=WHERE)
@_run_argument
@_scheduler
@tls_options
@kubernetes_options(_RUN_THERE, without=_CLUSTER)
@storage_option
@click.option("--wait", is_flag=True, help="Wait until it has stopped.")
@json_option
def cancel(
    run: str, scheduler: str | None, tls: dict[str, Any], kubernetes: bool, namespace: str, context: str,
    options: dict[str, Any], wait: bool, as_json: bool,
) -> int:  # fmt: skip
    """Ask RUN to stop at its next event; its checkpoint stays, the same job goes on from there."""
    from dfm.runs import lifecycle, outcome
    from dfm.runs.record import request_cancel, settle_in

    if kubernetes:
        return on_kubernetes.cancel(run, namespace, context, options, as_json)
    place = _place(run, scheduler, tls, options)
    record = _record_of(_outcome_at(place))
    record = request_cancel(place.directory, place.options) or record
    if record.state == "submitted":  # a driver that begins all the same finds this, or the request
        settle_in(place.directory, place.options, record.run_id, "cancelled", lifecycle.CANCELLER, only=record.state)
        record = _record_of(_outcome_at(place))
    if wait:
        found = outcome.wait(place.directory, place.options, record.run_id, on_kubernetes.complain, until_gone=True)
    else:
        found = outcome.outcome_of(place.directory, place.options, record.run_id)
    state = found.state
    over = f"run {record.run_id} is over: {state}"
    asked = f"run {record.run_id} ({state}) was asked to stop"
    event = {"event": "cancel", "run_id": record.run_id, "state": state, "directory": place.directory}
    _told(event, as_json, over if record.is_over or wait else asked)
    return 0


@click.command(name="list")
@click.argument("locations", nargs=-1, metavar="[LOCATION]...")
@click.option("--scheduler", metavar="ADDRESS", help="Those that were submitted to this Dask scheduler.")
@tls_options
@kubernetes_options("The DaskJobs of a namespace of Kubernetes.", without=(*_CLUSTER, "locations"))
@storage_option
@json_option
def list_runs(
    locations: tuple[str, ...], scheduler: str | None, tls: dict[str, Any], kubernetes: bool, namespace: str,
    context: str, options: dict[str, Any], as_json: bool,
) -> None:  # fmt: skip
    """The runs whose output lies in or directly below the LOCATIONs (folders, URLs; default: here), newest first."""
    from dfm.errors import SettingsError
    from dfm.runs.outcome import outcome_of

    if kubernetes:
        on_kubernetes.list_jobs(namespace, context, options, as_json)
        return
    check_scheduler(scheduler, tls)
    if scheduler and locations:
        raise click.UsageError("a scheduler knows the folders of its runs: give --scheduler or LOCATIONs, not both")
    if scheduler:
        directories = sorted(set(_runs_of(scheduler, tls).values()))
    else:
        directories = [found for location in locations or (".",) for found in _below(location, options)]
    outcomes = []
    for directory in directories:
        try:
            outcomes.append((directory, outcome_of(directory, options)))
        except SettingsError as error:  # a file of somebody else, maybe
            Console(stderr=True).print(f"passed over: {error}", highlight=False, markup=False, soft_wrap=True)
    runs = [(directory, found) for directory, found in outcomes if found.record is not None]
    runs.sort(key=lambda entry: entry[1].record.updated if entry[1].record else "", reverse=True)
    console = Console()
    for directory, found in runs:
        described = {**(found.record.to_dict() if found.record else {}), "state": found.state, "directory": directory}
        if as_json:
            click.echo(line_of({"event": "run", **described}))
            continue
        for line in standing.lines_of(described):
            console.print(line, highlight=False, markup=False, soft_wrap=True)  # names are to be copied


def _below(location: str, options: dict[str, Any]) -> list[str]:
    """Output directories with a record: the location itself, and the folders in it."""
    from dfm.runs.record import RECORD
    from dfm.storage import files

    below = files.folders_in(location, options)
    folders = [location, *(files.join(location, name) for name in below)]
    found = [folder for folder in folders if files.exists(files.join(folder, RECORD), options)]
    if not below and not files.exists(location, options):
        click.echo(f"passed over: there is nothing at {location}; check the path", err=True)
    elif not found:
        click.echo(
            f"no runs in or directly below {location}; name the folder that they are in (Airflow's: models/DAG/TASK)",
            err=True,
        )
    return found


@click.command()
@click.argument("job", type=click.Path(dir_okay=False))
@_overrides
@click.option("--attempts", type=click.IntRange(1), default=5, show_default=True, help="Starts of the driver.")
@click.option("--run-id", envvar="DFM_RUN_ID", default="", help="Take over the record of a run that was submitted.")
@click.option("--heartbeat", default="", metavar="FILE", help="Touched while the driver lives, for a liveness probe.")
def drive(job: str, overrides: tuple[str, ...], attempts: int, run_id: str, heartbeat: str) -> int:
    """Train JOB unattended: a driver that was lost is started again and goes on from its checkpoint."""
    from dfm.launch import supervisor
    from dfm.runs import record as runs
    from dfm.settings.job import load_job

    run_id = run_id or runs.new_run_id()
    options = [part for override in overrides for part in ("--set", override)]
    options += ["--heartbeat", heartbeat] if heartbeat else []
    command = supervisor.train_command(job, run_id, options)
    return supervisor.drive(load_job(job, overrides), command, run_id, attempts, click.echo, heartbeat)


@click.command()
@kubernetes_options("DaskJobs that dfm made, with all that belongs to them.")
@click.option(
    "--older-than", type=click.IntRange(0), metavar="SECONDS",
    help="Those that ended so long ago; default: each by its kubernetes.ttl_after_finished.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@json_option
def prune(kubernetes: bool, namespace: str, context: str, older_than: int | None, dry_run: bool, as_json: bool) -> None:
    """Delete what jobs that ended long ago have left in a cluster; their results stay."""
    if not kubernetes:
        raise click.UsageError("--kubernetes is needed: runs elsewhere leave nothing but their results")
    on_kubernetes.prune(namespace, context, older_than, dry_run, as_json)


COMMANDS: list[click.Command] = [submit, status, logs, cancel, list_runs, prune, drive]


# --- what they print -------------------------------------------------------------------------------------


def _followed(place: Place, as_json: bool) -> int:
    from dfm.runs.outcome import follow

    console = Console()
    _tell_where_nothing_is(place)
    try:
        with Reporter(console, as_json, tells_end=False) as reporter:
            found = follow(place.directory, place.options, place.run_id, reporter)
    except KeyboardInterrupt:
        click.echo(f"left running; dfm cancel {place.directory} ends it", err=True)
        return 130
    if not found.succeeded:
        click.echo(f"{found.state}: {found.reason}", err=True)
    return found.exit_code


def _told(event: dict[str, Any], as_json: bool, words: str) -> None:
    if as_json:
        click.echo(line_of(event))
        sys.stdout.flush()
    else:
        click.echo(words)


_SHOWN = ("state", "reason", "directory", "host", "scheduler", "submitted", "started", "updated", "ended", "model")
_MOMENTS = ("submitted", "started", "updated", "ended")


def _print_status(described: dict[str, Any]) -> None:
    table = Table("run", Column(escape(str(described.get("run_id", "-"))), overflow="fold"))
    for key in _SHOWN:
        if value := str(described.get(key) or ""):
            table.add_row(key, escape(standing.local_time(value) if key in _MOMENTS else value))
    progress = described.get("progress") or {}
    epoch = f"epoch {progress['epoch']} of {progress.get('epochs', '?')}" if "epoch" in progress else ""
    rounds = f"average {progress['round']} of {progress['rounds']}" if progress.get("rounds") else ""
    told = [standing.done_and_left(described["state"], progress), epoch, rounds]
    if any(told):
        table.add_row("progress", ", ".join(filter(None, told)))
    metrics: dict[str, Any] = described.get("validation") or progress.get("metrics") or {}
    for key, value in metrics.items():
        if isinstance(value, float):
            table.add_row(key, metric_text(value, is_count=key == "weight"))
    wide_console().print(table)


def register(add: Callable[[click.Command], None]) -> None:
    """Give every command of this module to a group."""
    for command in COMMANDS:
        add(command)
