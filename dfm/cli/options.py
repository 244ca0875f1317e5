"""Options that commands of several modules share, each written once."""

from __future__ import annotations

from typing import Any

import click


def _parsed(_context: click.Context, _parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    from dfm.storage.credentials import parse_options

    return parse_options(pairs)


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
storage_option = click.option(
    "--storage-option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_parsed,
    help="Option of the filesystem (endpoint_url=…, anon=true, client_kwargs.x=…); credentials: from the environment.",
)
"""Handed to the command as one dict: keys are nested, values parsed, secrets refused."""
