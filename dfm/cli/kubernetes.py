"""The commands about runs with --kubernetes."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dfm.cli.console import wide_console
from dfm.events import line_of
from dfm.runs.display import Reporter


def submit(
    job: str, overrides: tuple[str, ...], name: str, namespace: str, context: str, dry_run: bool, follow: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Create the DaskJob of a job file, or print it."""
    from dfm.kubernetes import submit, upkeep
    from dfm.kubernetes.api import Api
    from dfm.settings.job import load_job

    resolved = load_job(job, overrides)
    namespace = namespace or resolved.kubernetes.namespace
    submission = submit.prepare(resolved, name, submit.stem_of(job), namespace)
    if dry_run:
        click.echo(_as_yaml(submission))
        return 0
    api = Api(namespace, context)
    done = submit.submit(api, submission)
    if as_json:
        click.echo(line_of({"event": "submitted", **done.__dict__}))
    else:
        click.echo(f"{done.name}\nfollow it from anywhere: dfm status {done.directory}, or")
        click.echo(f"dfm status {done.name} --kubernetes --namespace {done.namespace} (also: logs, cancel)")
    upkeep.tidy(api)  # after the name is told: it takes its time, and Ctrl-C leaves the job running
    if not follow:
        return 0
    return followed(done.name, done.namespace, context, dict(resolved.data.storage_options), as_json)


def _as_yaml(submission: Any) -> str:
    import yaml

    from dfm.kubernetes.manifest import objects

    return str(yaml.safe_dump_all(objects(submission), sort_keys=False, width=120))


def status(name: str, namespace: str, context: str, options: dict[str, Any], wait: bool, as_json: bool) -> int:
    """Show the state of a DaskJob: what Kubernetes says, and what is true."""
    from dfm.kubernetes import follow
    from dfm.kubernetes.api import Api

    api = Api(namespace, context)
    if wait:
        found, state = follow.follow(api, name, options, complain)
    else:
        state = follow.state_of(api, name)
        found = _outcome(state, options)
    described = {**state.to_dict(), "outcome": found.state, "reason": found.reason}
    if as_json:
        click.echo(line_of({"event": "status", **described}))
        return found.exit_code if wait else 0
    table = Table("DaskJob", Column(escape(name), overflow="fold"))
    for key, value in described.items():
        if key not in ("name", "problems") and value != "":
            table.add_row(key, escape(str(value)))
    for problem in state.problems:
        table.add_row("problem", escape(problem))
    wide_console().print(table)
    return found.exit_code if wait else 0


def logs(name: str, namespace: str, context: str, follow: bool) -> int:
    """The lines of the driver's pod."""
    from dfm.kubernetes import submit
    from dfm.kubernetes.api import Api

    submit.driver_log(Api(namespace, context), name, follow, click.echo, complain)
    return 0


def cancel(name: str, namespace: str, context: str, options: dict[str, Any], as_json: bool) -> int:
    """Stop the driver, delete the job."""
    from dfm.kubernetes import submit
    from dfm.kubernetes.api import Api

    state = submit.cancel(Api(namespace, context), name, options, tell=complain)
    event = {"event": "cancel", "name": name, "state": state}
    click.echo(line_of(event) if as_json else f"DaskJob {name} is deleted; its run ended as: {state}")
    return 0


def list_jobs(namespace: str, context: str, options: dict[str, Any], as_json: bool) -> None:
    """The DaskJobs of a namespace that dfm made: what Kubernetes says, and what storage proves."""
    from dfm.kubernetes import upkeep
    from dfm.kubernetes.api import Api

    table = Table(Column("DaskJob", no_wrap=True, overflow="fold"), "status", "outcome", "driver", "workers", "created",
                  Column("directory", overflow="fold"))  # fmt: skip
    for each in upkeep.jobs_in(Api(namespace, context)):
        state, outcome = each.state, _outcome(each.state, options).state
        if as_json:
            described = {**state.to_dict(), "outcome": outcome, "created": each.created, "ended": each.ended}
            click.echo(line_of({"event": "job", **described}))
        cells = (state.name, state.status, outcome, state.driver, f"{state.workers}/{state.wanted}", each.created)
        table.add_row(*map(escape, cells), escape(state.directory))
    if not as_json:
        wide_console().print(table)


def _outcome(state: Any, options: dict[str, Any]) -> Any:
    """The Outcome of a job by storage; who may see jobs need not have access to the storage of each."""
    from dfm.errors import DfmError
    from dfm.kubernetes import follow
    from dfm.runs.outcome import Outcome

    try:
        return follow.ending_of(state, options)
    except (OSError, DfmError, ImportError) as error:
        return Outcome("not readable here", f"{error}", None)


def prune(namespace: str, context: str, older_than: float | None, dry_run: bool, as_json: bool) -> None:
    """Delete jobs that ended long ago."""
    from dfm.kubernetes import upkeep
    from dfm.kubernetes.api import Api

    for name in upkeep.prune(Api(namespace, context), older_than, dry_run):
        event = {"event": "pruned", "object": name, "dry_run": dry_run}
        click.echo(line_of(event) if as_json else f"{'would delete' if dry_run else 'deleted'} {name}")


def complain(event: dict[str, Any]) -> None:
    """Say on standard error that something is away, of all that a wait tells."""
    if event["event"] == "waiting":
        click.echo(f"waiting: {event['reason']}", err=True)


def followed(name: str, namespace: str, context: str, options: dict[str, Any], as_json: bool) -> int:
    """Show a job's progress to its end; its exit code."""
    from dfm.kubernetes import follow
    from dfm.kubernetes.api import Api

    api = Api(namespace, context)
    try:
        with Reporter(Console(), as_json, tells_end=False) as reporter:
            found, state = follow.follow(api, name, options, reporter)
            state = follow.settle(api, state, reporter)
    except KeyboardInterrupt:
        click.echo(f"left running; dfm cancel {name} --kubernetes --namespace {namespace} ends it", err=True)
        return 130
    if not found.succeeded:
        click.echo(f"{found.state}: {found.reason}", err=True)
    if not state.is_noted:
        click.echo(
            f"the operator has not taken note of the end of DaskJob {name} (it says {state.status or 'nothing'}), so "
            f"that its workers may still be there; see that the operator runs, or delete the job: dfm cancel {name} "
            f"--kubernetes --namespace {namespace}",
            err=True,
        )
    return found.exit_code
