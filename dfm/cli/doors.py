"""Commands for data that come from elsewhere: text into shards, shards into a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from dfm.cli.options import json_option, processes_option, storage_option
from dfm.errors import SettingsError
from dfm.events import line_of
from dfm.runs.display import Reporter

if TYPE_CHECKING:
    from dfm.data.text.convert import Conversion

_FORMATS = ("auto", "libsvm", "libffm", "vw", "csv", "tsv", "criteo")
_RESULTS = "results"


def _typed(_context: click.Context, _parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    from dfm.data.text.tables import KINDS as kinds

    found = dict(pair.rpartition("=")[::2] for pair in pairs)
    wrong = next((pair for pair in pairs if pair.rpartition("=")[2] not in kinds or "=" not in pair[1:]), None)
    if wrong is not None:
        raise click.BadParameter(f"{wrong!r} is not COLUMN=KIND with a kind of {', '.join(kinds)}")
    return found


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--to", "directory", metavar="DIRECTORY", required=True, help="Folder or URL for the shards.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(_FORMATS),
    default="auto",
    show_default=True,
    help="Of all inputs; auto looks at the first lines.",
)
@click.option("--delimiter", default="", metavar="CHARACTER", help="Of csv or tsv: what stands between values.")
@click.option("--header/--no-header", default=True, help="Of csv or tsv: whether the first line names the columns.")
@click.option(
    "--names",
    metavar="A,B,…",
    default="",
    callback=lambda _context, _parameter, text: tuple(name.strip() for name in text.split(",") if name.strip()),
    help="Of csv or tsv: names of the columns, where the first line is a row.",
)
@click.option(
    "--type",
    "types",
    metavar="COLUMN=KIND",
    multiple=True,
    callback=_typed,
    help="Of csv or tsv: text, number or integer; otherwise as samples have it.",
)
@click.option("--missing", metavar="TEXT", multiple=True, help="Of csv or tsv: text that means a missing value, too.")
@click.option(
    "--on-bad-rows",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="Stop at a line that is no row, or count it and go on.",
)
@click.option(
    "--max-bad-fraction",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="With skip: stop when a larger part of the lines is bad.",
)
@processes_option
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace an earlier conversion, which is deleted first: after a bad line there is neither.",
)
@click.option(
    "--job", default="", metavar="FILE", help="Write a job file that trains on the shards; default: print it."
)
@storage_option
@json_option
def convert(
    inputs: tuple[str, ...], directory: str, kind: str, job: str, options: dict[str, Any], as_json: bool,
    workers: int | None, **wishes: Any,
) -> None:  # fmt: skip
    """Write text files (libsvm, libffm, Vowpal Wabbit, CSV, TSV, Criteo's log) as Parquet shards, and a job that trains
    on them.

    INPUTs are paths, folders, globs or URLs, plain or compressed (gzip, zstd, bz2).
    """
    from dfm.data.guess import MARK
    from dfm.data.guess import guess as guessed
    from dfm.data.text.convert import convert as convert_text
    from dfm.data.text.jobs import JOB_MARK, job_text
    from dfm.distributed.processes import n_of_text
    from dfm.runs.termination import stoppable
    from dfm.storage import files, ownership

    if job:
        ownership.check_replaceable(job, ownership.begins_with(JOB_MARK.encode(), MARK.encode()), options)
        if ownership.place_of(job.rpartition("/")[0] or ".", options) == ownership.place_of(directory, options):
            raise SettingsError(f"--job {job} lies among the shards in {directory}; write it beside that folder")
    with stoppable(), Reporter(Console(stderr=True), as_json) as reporter:

        def progress(done: int, total: int) -> None:
            reporter({"event": "progress", "stage": "convert", "done": done, "total": total})

        found = convert_text(
            inputs, directory, format=kind, processes=workers or n_of_text(), storage_options=options,
            progress=progress, **wishes,
        )  # fmt: skip
    is_table = found.format in ("csv", "tsv")
    missing = wishes["missing"]
    text = (
        guessed(directory, output=_RESULTS, storage_options=options, missing=missing)
        if is_table
        else job_text(found, _RESULTS, options)
    )
    if job:
        files.write_bytes(job, text.encode(), options)
    _tell(found, text, job, as_json)


def _tell(found: Conversion, text: str, job: str, as_json: bool) -> None:
    """Print what was done: the account to standard error, so that standard output is the job where that is printed."""
    from dfm.data.guess import NO_LABEL

    account = found.account.to_dict()
    if as_json:
        columns = {field.name: str(field.type) for field in found.reader.schema}
        click.echo(
            line_of(
                {
                    "event": "converted",
                    "directory": found.directory,
                    "format": found.format,
                    "shards": found.n_shards,
                    "columns": columns,
                    "lines": account["lines"],
                    "rows": account["rows"],
                    "rejected": account["rejected"],
                    "blank": account["blank"],
                    "reasons": account["reasons"],
                    "job": job,
                }
            )
        )
        return
    left_out = "".join(f"; {count:,} left out: {reason}" for reason, count in account["reasons"].items())
    click.echo(
        f"{account['rows']:,} rows of {account['lines']:,} lines of {found.format} in {found.n_shards} shards in "
        f"{found.directory}{left_out}",
        err=True,
    )
    if NO_LABEL in text and job:
        click.echo(f"next: name the label in {job}, then dfm train {job} --dry-run")
    else:
        click.echo(f"next: dfm train {job} --dry-run\n" if job else text, nl=False)


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--output", default=_RESULTS, show_default=True, metavar="DIR", help="The job's output.directory.")
@storage_option
def guess(data: tuple[str, ...], output: str, options: dict[str, Any]) -> None:
    """Print a commented job file for Parquet DATA (paths, folders, globs, URLs).

    `dfm guess DATA > job.toml` writes it. Roles of columns are guessed by their types, their names and a sample, with
    what speaks for them in comments.
    """
    from dfm.data.guess import guess as guessed

    click.echo(guessed(data, output=output, storage_options=options), nl=False)


def register(add: Callable[[click.Command], None]) -> None:
    """Add the commands to a group."""
    add(convert)
    add(guess)
