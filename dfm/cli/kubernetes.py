"""What the commands about runs do with --kubernetes."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dfm.cli.console import Reporter
from dfm.events import line_of


def submit(
    job: str, overrides: tuple[str, ...], name: str, namespace: str, context: str, dry_run: bool, follow: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Create the DaskJob of a job file, or print it."""
    from dfm.kubernetes import submit
    from dfm.kubernetes.api import Api
    from dfm.settings.job import load_job

    resolved = load_job(job, overrides)
    namespace = namespace or resolved.kubernetes.namespace
    submission = submit.prepare(resolved, name, submit.stem_of(job), namespace)
    if dry_run:
        click.echo(_as_yaml(submission))
        return 0
    done = submit.submit(Api(namespace, context), submission)
    if as_json:
        click.echo(line_of({"event": "submitted", **done.__dict__}))
    else:
        click.echo(f"{done.name}\nfollow it from anywhere: dfm status {done.directory}, or")
        click.echo(f"dfm status {done.name} --kubernetes --namespace {done.namespace} (also: logs, cancel)")
    if not follow:
        return 0
    return followed(done.name, done.namespace, context, dict(resolved.data.storage_options), as_json)


def _as_yaml(submission: Any) -> str:
    import yaml

    from dfm.kubernetes.manifest import objects

    return str(yaml.safe_dump_all(objects(submission), sort_keys=False, width=120))


def status(name: str, namespace: str, context: str, options: dict[str, Any], wait: bool, as_json: bool) -> int:
    """How a DaskJob stands: what Kubernetes says, and what is true."""
    from dfm.kubernetes import follow
    from dfm.kubernetes.api import Api
    from dfm.runs.outcome import outcome_of

    api = Api(namespace, context)
    if wait:
        found, state = follow.follow(api, name, options, lambda event: None)
    else:
        state = follow.state_of(api, name)
        found = outcome_of(state.directory, options, state.run_id)
    described = {**state.__dict__, "outcome": found.state, "reason": found.reason}
    if as_json:
        click.echo(line_of({"event": "status", **described}))
        return found.exit_code if wait else 0
    table = Table("DaskJob", escape(name))
    for key, value in described.items():
        if key not in ("name", "problems") and value != "":
            table.add_row(key, escape(str(value)))
    for problem in state.problems:
        table.add_row("problem", escape(problem))
    Console().print(table)
    return found.exit_code if wait else 0


def logs(name: str, namespace: str, context: str, follow: bool) -> int:
    """The lines of the driver's pod."""
    from dfm.kubernetes import submit
    from dfm.kubernetes.api import Api

    submit.driver_log(
        Api(namespace, context), name, follow, click.echo, lambda event: click.echo(event["reason"], err=True)
    )
    return 0


def cancel(name: str, namespace: str, context: str, options: dict[str, Any], as_json: bool) -> int:
    """Stop the driver, delete the job."""
    from dfm.kubernetes import submit
    from dfm.kubernetes.api import Api

    state = submit.cancel(Api(namespace, context), name, options)
    event = {"event": "cancel", "name": name, "state": state}
    click.echo(line_of(event) if as_json else f"DaskJob {name} is deleted; its run ended as: {state}")
    return 0


def followed(name: str, namespace: str, context: str, options: dict[str, Any], as_json: bool) -> int:
    """Show a job's progress to its end; its exit code."""
    from dfm.kubernetes import follow
    from dfm.kubernetes.api import Api

    api = Api(namespace, context)
    try:
        with Reporter(Console(), as_json) as reporter:
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
