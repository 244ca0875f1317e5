"""Options that commands of several modules share, each written once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dfm.settings.tables import ClusterSettings


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
_CERTIFICATES = {
    "tls_ca": "Certificate authority (PEM file) of a tls:// scheduler.",
    "tls_cert": "This client's certificate (PEM file).",
    "tls_key": "This client's private key (PEM file).",
}


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options for the certificates of --scheduler, handed to the command as one dict `tls` of knobs of [cluster]."""

    @functools.wraps(command)
    def with_tls(*arguments: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in _CERTIFICATES}
        return command(*arguments, **options, tls={name: path for name, path in given.items() if path})

    for name, meaning in reversed(_CERTIFICATES.items()):
        option = click.option(f"--{name.replace('_', '-')}", name, metavar="FILE", default="", help=meaning)
        with_tls = option(with_tls)
    return with_tls


_ON_KUBERNETES = {
    "namespace": "With --kubernetes: default: the kubeconfig's.",
    "context": "With --kubernetes: another context of the kubeconfig.",
}


def kubernetes_options(
    meaning: str, *, only: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> Callable[..., Callable[..., Any]]:
    """A decorator that gives a command --kubernetes (whose help is `meaning`), --namespace and --context.

    only, without: parameters of the command that are of use only with --kubernetes, or only without it; UsageError
    where one is given that nothing would read.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def checked(*arguments: Any, **options: Any) -> Any:
            if options["kubernetes"]:
                if idle := [name for name in without if options[name]]:
                    given = _spelled(idle[0], options[idle[0]])
                    raise click.UsageError(f"{given} is of no use with --kubernetes; leave one of them out")
            elif idle := [name for name in (*_ON_KUBERNETES, *only) if options[name]]:
                raise click.UsageError(f"--{idle[0]} is of use with --kubernetes alone; give both, or leave it out")
            return command(*arguments, **options)

        for name, help_text in reversed(_ON_KUBERNETES.items()):
            checked = click.option(f"--{name}", default="", help=help_text)(checked)
        return click.option("--kubernetes", is_flag=True, help=meaning)(checked)

    return decorate


def check_scheduler(scheduler: str | None, tls: dict[str, Any]) -> None:
    """UsageError where there are certificates for a scheduler that is not named."""
    if tls and not scheduler:
        raise click.UsageError(f"{_spelled('tls', tls)} is of use with --scheduler alone; give both, or leave it out")


def _spelled(name: str, value: Any) -> str:
    """A parameter that was given, as the command line spells it."""
    if name == "tls":
        return f"--{next(iter(value)).replace('_', '-')}"
    return {"as_json": "--json", "options": "--storage-option", "locations": "LOCATION"}.get(name, f"--{name}")


def with_options(*options: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that gives a command these options, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


scheduler_option = click.option("--scheduler", metavar="ADDRESS", help="Run on this Dask scheduler (tcp://…, tls://…).")
workers_option = click.option(
    "--workers", type=click.IntRange(1), help='Local workers; without it as cluster.workers = "auto" says.'
)
processes_option = click.option(
    "--workers", type=click.IntRange(1), help="Processes; without it one a processor, 16 at most."
)
bad_rows_option = click.option(
    "--on-bad-rows", type=click.Choice(["error", "skip"]), default="error", show_default=True,
    help="Stop at a row that breaks the schema, or count it and go on.",
)  # fmt: skip


def cluster_settings(scheduler: str | None, workers: int | None, tls: dict[str, Any]) -> ClusterSettings:
    """The cluster of the command line."""
    from dfm.settings.tables import ClusterSettings

    return ClusterSettings(scheduler=scheduler or "", workers=workers or "auto", **tls)
