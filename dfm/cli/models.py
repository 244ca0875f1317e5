"""Commands about a model that is there: evaluate, importance, predict, report, inspect, export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click
from rich.console import Console

from dfm.cli.console import (
    drift_table,
    importance_table,
    metrics_table,
    pairs_table,
    slices_table,
    summary_table,
    table_of,
    wide_console,
)
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
from dfm.events import line_of
from dfm.runs.display import Reporter, rejected_text


@click.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--by", metavar="COLUMNS", multiple=True, help="Also by slice: --by site --by device,hour.")
@click.option("--top", type=click.IntRange(1), default=50, show_default=True, help="Slices to show, the worst first.")
@click.option(
    "--min-rows", type=click.IntRange(1), default=1000, show_default=True, help="Rows that a slice has at least."
)
@click.option("--group", metavar="COLUMN", default="", help="AUC, NDCG, MRR within the rows of each user, query, …")
@click.option("--threshold", type=float, help="Accuracy, precision, recall, F1 from this probability on.")
@with_options(bad_rows_option, workers_option, scheduler_option, tls_options, storage_option, json_option)
def evaluate(
    model: str, data: tuple[str, ...], by: tuple[str, ...], top: int, min_rows: int, group: str,
    threshold: float | None, on_bad_rows: str, workers: int | None, scheduler: str | None, tls: dict[str, Any],
    options: dict[str, Any], as_json: bool,
) -> None:  # fmt: skip
    """Metrics of MODEL on labelled Parquet DATA (paths, folders, globs, URLs)."""
    from dfm import jobs

    console = Console()
    with Reporter(console, as_json) as reporter:
        metrics = jobs.evaluate(
            model, data, settings=cluster_settings(scheduler, workers, tls), on_bad_rows=on_bad_rows,
            storage_options=options, on_event=reporter, by=by, group=group, threshold=threshold, top=top,
            min_rows=min_rows,
        )  # fmt: skip
        if as_json:
            reporter({"event": "evaluated", "model": model, **metrics})
    if not as_json:
        account = metrics["account"]
        _tell_rejected(console, account, "evaluate on")
        console.print(metrics_table(metrics, f"{account['evaluated']:,} rows"))
        for name, records in metrics.get("slices", {}).items():
            console.print(slices_table(name, records))
        if drifted := drift_table(metrics["drift"]):
            console.print(drifted)


@click.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Times to permute each column.")
@click.option("--rows", type=click.IntRange(1), default=200_000, show_default=True, help="Rows to measure on.")
@with_options(bad_rows_option, workers_option, scheduler_option, tls_options, storage_option, json_option)
def importance(
    model: str, data: tuple[str, ...], repeats: int, rows: int, on_bad_rows: str, workers: int | None,
    scheduler: str | None, tls: dict[str, Any], options: dict[str, Any], as_json: bool,
) -> None:  # fmt: skip
    """The rise of MODEL's loss (log loss, squared error, or its own) on labelled Parquet DATA without each of its
    columns: how much it needs them. And which pairs of fields make most of the score together.
    """
    from dfm import jobs

    console = Console()
    with Reporter(console, as_json) as reporter:
        found = jobs.importance(
            model, data, repeats=repeats, rows=rows, settings=cluster_settings(scheduler, workers, tls),
            on_bad_rows=on_bad_rows, storage_options=options, on_event=reporter,
        )  # fmt: skip
        if as_json:
            reporter({"event": "importance", "model": model, **found})
    if not as_json:
        _tell_rejected(console, found["account"], "measure on")
        console.print(importance_table(found))
        if found["pairs"]:
            console.print(pairs_table(found["pairs"]))
        if "pairs_left_out" in found:
            console.print(found["pairs_left_out"])


@click.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option(
    "--output",
    required=True,
    metavar="DIR",
    help="Folder or URL for the Parquet parts; file://… is a folder that workers on other machines share.",
)
@click.option("--keep", metavar="COLUMNS", default="", help="Input columns to keep, by commas; default: all.")
@click.option("--overwrite", is_flag=True, help="Replace the parts of an earlier prediction.")
@with_options(bad_rows_option, workers_option, scheduler_option, tls_options, storage_option, json_option)
def predict(
    model: str, data: tuple[str, ...], output: str, keep: str, overwrite: bool, on_bad_rows: str, workers: int,
    scheduler: str | None, tls: dict[str, Any], options: dict[str, Any], as_json: bool,
) -> None:  # fmt: skip
    """Score Parquet DATA with MODEL into Parquet parts with a column "prediction"."""
    from dfm import jobs

    console = Console()
    with Reporter(console, as_json) as reporter:
        summary = jobs.predict(
            model, data, output, keep=[name.strip() for name in keep.split(",") if name.strip()],
            overwrite=overwrite, settings=cluster_settings(scheduler, workers, tls), on_bad_rows=on_bad_rows,
            storage_options=options, on_event=reporter,
        )  # fmt: skip
        if as_json:
            reporter({"event": "predicted", "model": model, **summary})
    if not as_json:
        console.print(
            f"{summary['predicted']:,} of {summary['rows']:,} rows scored into {summary['output']}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        _tell_rejected(console, {**summary, "read": summary["rows"]}, "predict")
        if drifted := drift_table(summary["drift"]):
            console.print(drifted)


def _tell_rejected(console: Console, account: Mapping[str, Any], purpose: str) -> None:
    if account["rejected"]:
        console.print(rejected_text(account, purpose), style="yellow", highlight=False, markup=False, soft_wrap=True)


@click.command()
@click.argument("model")
@click.option("--output", metavar="FILE", default="", help="The page; default: report.html beside MODEL.")
@with_options(storage_option, json_option)
def report(model: str, output: str, options: dict[str, Any], as_json: bool) -> None:
    """Write the page about MODEL again: curves, slices, importance, rows, time, its job. No data are read."""
    from dfm import jobs

    page = jobs.report(model, output, storage_options=options)
    click.echo(line_of({"event": "reported", "model": model, "page": page}) if as_json else f"report: {page}")


@click.command()
@click.argument("model")
@click.option(
    "--token",
    "tokens",
    metavar="COLUMN=VALUE",
    multiple=True,
    help="Show what the model learnt of a value; of a cross: 'site&ad=a.example&7'.",
)
@click.option("--tokens-from", "data", metavar="DATA", multiple=True, help="Name tokens by these shards; show the top.")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="With --tokens-from: per field.")
@with_options(storage_option, json_option)
def inspect(
    model: str, tokens: tuple[str, ...], data: tuple[str, ...], top: int, options: dict[str, Any], as_json: bool
) -> None:
    """Describe a model: its settings, metrics, the weight of its fields, and of the values in DATA."""
    from dfm.model.fm_model import FMModel
    from dfm.model.inspection import describe_model, describe_token, top_tokens

    loaded = FMModel.load(model, options)
    described = describe_model(loaded)
    described["tokens"] = [describe_token(loaded, token) for token in tokens]
    if data:
        described["top"] = top_tokens(loaded, _batches_of(data, loaded.schema.columns, options), top)
    if as_json:
        click.echo(line_of({"event": "model", "model": model, **described}))
        return
    console = wide_console()
    console.print(summary_table(described["summary"], model))
    for name, title in {
        "tokens": "tokens",
        "top": f"values by field, up to {top} of the greatest weights each",
        "fields": "fields, by the spread of what they add to a score",
        "pairs": "pairs of fields, by how strong the model found them: the first and the last",
    }.items():
        if described.get(name):
            unknown = any(record.get("spread_of_wx", 0.0) is None for record in described[name])
            caption = "-: of numbers as they are the model knows no spread; they are the last, by the size of w"
            console.print(table_of(described[name], title, console.width, caption if unknown else ""))


def _batches_of(data: tuple[str, ...], columns: tuple[str, ...], options: dict[str, Any]) -> Iterator[Any]:
    """The rows of shards, batch by batch (pyarrow.RecordBatch)."""
    from dfm.data.parquet import find_shards, read_unit
    from dfm.training.plan import plan_reading

    for units in plan_reading(find_shards(data, options)):
        for unit in units:
            yield from (batch.data for batch in read_unit(unit, columns, options))


@click.command()
@click.argument("model")
@click.option("--format", "kind", type=click.Choice(["parquet", "onnx", "xlearn", "libfm"]), required=True)
@click.option("--output", required=True, metavar="DIR", help="Folder or URL for the exported file.")
@click.option("--tokens-from", "data", metavar="DATA", multiple=True, help="With parquet: name tokens by these shards.")
@with_options(storage_option)
def export(model: str, kind: str, output: str, data: tuple[str, ...], options: dict[str, Any]) -> None:
    """Write MODEL in a format that other systems read."""
    from dfm.model.export import export as write
    from dfm.model.fm_model import FMModel
    from dfm.model.token_names import TokenNames

    if data and kind != "parquet":
        raise click.UsageError("--tokens-from needs --format parquet: no other format has a place for names")
    loaded = FMModel.load(model, options)
    names = TokenNames(loaded)
    for batch in _batches_of(data, loaded.schema.columns, options) if data else ():
        names.add(batch)
    for url in write(loaded, kind, output, options, names):
        click.echo(url)


def register(add: Callable[[click.Command], None]) -> None:
    """Add the commands to a group."""
    for command in (evaluate, importance, predict, report, inspect, export):
        add(command)
