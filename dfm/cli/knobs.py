"""The command that lists the knobs of a job file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from dfm.cli.options import json_option
from dfm.errors import SettingsError
from dfm.events import line_of

if TYPE_CHECKING:
    from dfm.settings.job import KnobDescription


@click.command()
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@json_option
def knobs(tables: tuple[str, ...], as_json: bool) -> None:
    """Every knob of a job file, or those of some TABLEs (data, training, …): default, meaning, legal values."""
    from dfm.settings.job import MATTER_FIRST, describe
    from dfm.settings.tables import TABLES

    _check(tables, TABLES)
    found = [one for one in describe() if not tables or one.name.split(".")[0] in tables]
    if as_json:
        for one in found:
            click.echo(line_of({"event": "knob", **vars(one), "matters_first": one.name in MATTER_FIRST}))
        return
    console = Console()
    first = [one for one in found if one.name in MATTER_FIRST]
    _print(console, "what matters first", sorted(first, key=lambda one: MATTER_FIRST.index(one.name)))
    for table in dict.fromkeys(one.name.split(".")[0] for one in found):
        _print(console, f"[{table}]", [one for one in found if one.name.split(".")[0] == table])


def _check(tables: Iterable[str], known: Iterable[str]) -> None:
    for table in tables:
        if table not in known:
            raise SettingsError(f"{table!r} is no table of a job; there are {', '.join(known)}")


def _print(console: Console, title: str, knobs: Iterable[KnobDescription]) -> None:
    """A line to copy for each knob, and below it, as wide as the terminal is, what it means."""
    for number, one in enumerate(knobs):
        if not number:
            console.print(Text(f"\n{title}", style="bold"))
        console.print(Text(f"{one.name} = {one.default}"), highlight=False, soft_wrap=True)
        console.print(Padding(Text(f"{one.help} ({one.legal})"), (0, 0, 0, 4), expand=False), highlight=False)


def register(add: Callable[[click.Command], None]) -> None:
    """Add the command to a group."""
    add(knobs)
