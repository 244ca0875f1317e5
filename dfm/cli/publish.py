"""Commands about the champion: publish a model behind the gate, go back to the one before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dfm.cli.options import (
    bad_rows_option,
    cluster_settings,
    json_option,
    scheduler_option,
    storage_option,
    tls_options,
    with_options,
    workers_option,
)
from dfm.errors import GateError
from dfm.events import line_of
from dfm.pages.numbers import number_text
from dfm.runs.display import Reporter
from dfm.workflow.gate import Gate


@click.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--alias", required=True, metavar="URL", help="Folder or URL that names the champion.")
@click.option("--gate", "thresholds", metavar="NAME=NUMBER", multiple=True, help="A threshold of the gate.")
@click.option(
    "--gate-by", "slices", metavar="COLUMNS", multiple=True, help="Refuse where one slice got worse: --gate-by site."
)
@click.option(
    "--order", default="", help="When the model's data ended (2026-11-30); it never replaces one of later data."
)
@with_options(bad_rows_option, workers_option, scheduler_option, tls_options, storage_option, json_option)
def publish(
    model: str, data: tuple[str, ...], alias: str, thresholds: tuple[str, ...], slices: tuple[str, ...], order: str,
    on_bad_rows: str, workers: int | None, scheduler: str | None, tls: dict[str, Any], options: dict[str, Any],
    as_json: bool,
) -> None:  # fmt: skip
    """Compare MODEL with the champion on labelled DATA that it has not seen; promote it where the gate lets it.

    Thresholds: log_loss_ratio, calibration_low, calibration_high, normalized_entropy, min_rows and, of slices,
    slice_loss_ratio, slice_min_rows. Refused, or left alone since it comes before the champion: exit code 9.
    """
    from dfm.workflow import steps

    gate = Gate.from_dict({**dict(_threshold(text) for text in thresholds), **({"slices": slices} if slices else {})})
    console = Console()
    with Reporter(console, as_json) as reporter:
        settings = cluster_settings(scheduler, workers, tls)
        where = steps.Where(settings=settings, storage_options=options, on_event=reporter)
        result = steps.publish(model, alias, data, gate, where, order=order, enforce=False, on_bad_rows=on_bad_rows)
        if as_json:
            reporter({"event": "published" if result["promoted"] else "refused", "model": model, **result})
    if not as_json:
        console.print(_comparison(result))
    if not result["promoted"]:
        raise GateError(result["refusals"][0])
    if not as_json:
        console.print(
            f"version {result['version']} of {alias} is {model}", highlight=False, markup=False, soft_wrap=True
        )


def _threshold(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise click.UsageError(f"--gate {text!r} is not legal: write NAME=NUMBER") from None


def _comparison(result: dict[str, Any]) -> Table:
    table = Table("metric", "candidate", "champion", title=escape(f"on the same rows, for {result['alias']}"))
    for name, value in result["candidate_metrics"].items():
        table.add_row(name, _shown(value), _shown(result["champion_metrics"].get(name)))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return number_text(value, ",.5f") if isinstance(value, float) else f"{value:,}"


@click.command()
@click.argument("alias")
@click.option("--reason", default="", help="Why; it stays in the history of the alias.")
@storage_option
@json_option
def rollback(alias: str, reason: str, options: dict[str, Any], as_json: bool) -> None:
    """Make the champion before the present one of ALIAS the champion again, and withdraw the present one."""
    from dfm.workflow import registry

    entry = registry.rollback(alias, reason, options)
    if as_json:
        click.echo(line_of({"event": "rolled_back", "alias": alias, **dataclasses.asdict(entry)}))
    else:
        click.echo(f"{alias} is version {entry.number} now: {entry.model}")


def register(add: Callable[[click.Command], None]) -> None:
    """Add the commands to a group."""
    for command in (publish, rollback):
        add(command)
