"""The command `dfm`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dfm.cli import knobs, publish, runs
from dfm.cli.console import (
    drift_table,
    folds_table,
    importance_table,
    metrics_table,
    pairs_table,
    show_plan,
    slices_table,
    summary_table,
    table_of,
    trials_table,
    wide_console,
)
from dfm.cli.options import json_option, storage_option, tls_options
from dfm.errors import DfmError, SettingsError
from dfm.events import line_of
from dfm.runs.display import Reporter
from dfm.version import __version__

EXIT_CODES = """\b
Exit codes: 0 success; 1 unexpected error; 2 wrong settings or usage;
3 bad data; 4 cluster trouble; 5 training diverged; 6 no usable model;
7 cancelled on request; 8 a disk is full, or a store does not answer;
9 refused by the gate;
130 interrupted (the best model so far was published)."""
INTERRUPTED = 130


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--verbose", is_flag=True, help="Log what the library does to standard error.")
def cli(verbose: bool) -> None:
    """Train factorization machines on click logs that do not fit one machine."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("dfm")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


runs.register(cli.add_command)
publish.register(cli.add_command)
knobs.register(cli.add_command)


def main() -> None:
    """Run the command; a DfmError becomes one line and its exit code."""
    try:
        result = cli.main(prog_name="dfm", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except DfmError as error:
        _fail(f"{error}", error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        kept = "; ".join(getattr(error, "__notes__", ()))
        _fail(f"interrupted, and nothing was published; {kept or 'no epoch was finished'}", INTERRUPTED)


def _fail(message: str, code: int) -> None:
    line = escape(" ".join(message.splitlines()))  # messages speak of [tables], which are no markup
    Console(stderr=True).print(f"[bold red]error:[/] {line}", highlight=False, soft_wrap=True)
    sys.exit(code)


def _with(*options: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS", help="Run on this Dask scheduler (tcp://…, tls://…)."
)
_workers_option = click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Local workers.")
_bad_rows_option = click.option(
    "--on-bad-rows", type=click.Choice(["error", "skip"]), default="error", show_default=True,
    help="Stop at a row that breaks the schema, or count it and go on.",
)  # fmt: skip


def _settings(scheduler: str | None, workers: int, tls: dict[str, Any]) -> Any:
    from dfm.settings.tables import ClusterSettings

    return ClusterSettings(scheduler=scheduler or "", workers=workers, **tls)


@cli.command()
@click.argument("job", type=click.Path(dir_okay=False))
@click.option("--set", "overrides", metavar="TABLE.KEY=VALUE", multiple=True, help="Override a knob of the job file.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show shards, replicas, memory, wire, and what the job sets; train nothing.",
)
@click.option("--run-id", envvar="DFM_RUN_ID", default="", help="Take over the record of a run that was submitted.")
@click.option("--attempts-left", envvar="DFM_ATTEMPTS_LEFT", type=click.IntRange(0), default=0, hidden=True)
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Go on from the checkpoint that an earlier run of the same job left (the default), or delete it.",
)
@click.option("--cluster-factory", metavar="MODULE:FUNCTION", help="Run on the Dask cluster that this function gives.")
@click.option("--heartbeat", default="", metavar="FILE", help="Touched every few seconds while this process lives.")
@_with(_scheduler_option, tls_options, json_option)
def train(
    job: str, overrides: tuple[str, ...], dry_run: bool, run_id: str, attempts_left: int, resume: bool | None,
    cluster_factory: str | None, heartbeat: str, scheduler: str | None, tls: dict[str, Any], as_json: bool,
) -> int:  # fmt: skip
    """Train the job of a TOML file and publish its model."""
    from dfm import jobs
    from dfm.runs.heartbeat import beating
    from dfm.runs.termination import stoppable

    overrides = (*overrides, *runs.cluster_overrides(scheduler, cluster_factory, tls))
    if resume is not None:
        overrides = (*overrides, f"output.resume={str(resume).lower()}")
    if dry_run:
        _show_plan(jobs.plan(job, overrides), as_json)
        return 0
    console = Console()
    with stoppable(), beating(heartbeat), Reporter(console, as_json) as reporter:
        result = jobs.train(job, overrides=overrides, on_event=reporter, run_id=run_id, attempts_left=attempts_left)
    if not as_json:
        console.print(metrics_table(result.validation, "validation")) if result.validation else None
        console.print(
            f"next: dfm inspect {result.model_url} · dfm evaluate {result.model_url} DATA · "
            f"dfm predict {result.model_url} DATA --output DIR",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    return INTERRUPTED if result.interrupted else 0


@cli.command()
@click.argument("job", type=click.Path(dir_okay=False))
@click.option("--set", "overrides", metavar="TABLE.KEY=VALUE", multiple=True, help="Override a knob of the job file.")
@click.option("--trials", type=click.IntRange(1), help="Settings to try (search.n_trials).")
@click.option(
    "--resume/--no-resume", default=None, help="Go on from the trials that an earlier run left (the default), or not."
)
@click.option("--folds", type=click.IntRange(2), help="Try nothing, but cross-validate the job in so many parts.")
@click.option("--by", type=click.Choice(["lot", "time"]), default="lot", show_default=True, help="How folds are cut.")
@click.option("--plot", metavar="FILE", help="Draw the trials: a .png, .svg or .pdf (needs the extra plots).")
@_with(_scheduler_option, tls_options, json_option)
def search(
    job: str, overrides: tuple[str, ...], trials: int | None, resume: bool | None, folds: int | None, by: str,
    plot: str | None, scheduler: str | None, tls: dict[str, Any], as_json: bool,
) -> int:  # fmt: skip
    """Try settings of a job beside each other, and write the best as a job file.

    All trials share one preparation of the rows; half of them go on after an epoch, a quarter of these to the end. The
    best is trained with several seeds against the default. What was tried is in search.jsonl of output.directory.
    """
    from dfm.runs.termination import stoppable

    overrides = (*overrides, *runs.cluster_overrides(scheduler, None, tls))
    overrides = (*overrides, f"search.n_trials={trials}") if trials else overrides
    if plot and folds:
        raise SettingsError("--plot draws the trials of a search, and --folds tries none; leave one of them out")
    if resume is not None:
        overrides = (*overrides, f"output.resume={str(resume).lower()}")
    with stoppable(), Reporter(Console(), as_json) as reporter:
        if folds:
            tables, closing = _folded(job, overrides, folds, by, reporter)
        else:
            tables, closing = _tried(job, overrides, plot, reporter)
    if not as_json:
        wide_console().print(tables)
        Console().print(closing, highlight=False, markup=False, soft_wrap=True)
    return 0


def _tried(job: str, overrides: tuple[str, ...], plot: str | None, reporter: Reporter) -> tuple[Any, str]:
    from dfm import jobs
    from dfm.cli.plots import check_plot, plot_trials

    if plot:
        check_plot(plot)
    result = jobs.search(job, overrides=overrides, on_event=reporter)
    if plot:
        plot_trials(result.trials, plot)
    return trials_table(result.trials, wide_console().width), f"next: dfm train {result.best}"


def _folded(job: str, overrides: tuple[str, ...], folds: int, by: str, reporter: Reporter) -> tuple[Any, str]:
    from dfm import jobs
    from dfm.distributed.folds import described

    found = jobs.cross_validate(job, folds, by=by, overrides=overrides, on_event=reporter)
    return folds_table(described(found), len(found.folds)), f"next: dfm train {job}"


def _show_plan(planned: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(line_of({"event": "plan", **planned}))
        return
    show_plan(planned)


@cli.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--by", metavar="COLUMNS", multiple=True, help="Also by slice: --by site --by device,hour.")
@click.option("--top", type=click.IntRange(1), default=50, show_default=True, help="Slices to show, the worst first.")
@click.option(
    "--min-rows", type=click.IntRange(1), default=1000, show_default=True, help="Rows that a slice has at least."
)
@click.option("--group", metavar="COLUMN", default="", help="AUC, NDCG, MRR within the rows of each user, query, …")
@click.option("--threshold", type=float, help="Accuracy, precision, recall, F1 from this probability on.")
@_with(_bad_rows_option, _workers_option, _scheduler_option, tls_options, storage_option, json_option)
def evaluate(
    model: str, data: tuple[str, ...], by: tuple[str, ...], top: int, min_rows: int, group: str,
    threshold: float | None, on_bad_rows: str, workers: int, scheduler: str | None, tls: dict[str, Any],
    options: dict[str, Any], as_json: bool,
) -> None:  # fmt: skip
    """Metrics of MODEL on labelled Parquet DATA (paths, folders, globs, URLs)."""
    from dfm import jobs

    console = Console()
    with Reporter(console, as_json) as reporter:
        metrics = jobs.evaluate(
            model, data, settings=_settings(scheduler, workers, tls), on_bad_rows=on_bad_rows, storage_options=options,
            on_event=reporter, by=by, group=group, threshold=threshold, top=top, min_rows=min_rows,
        )  # fmt: skip
        if as_json:
            reporter({"event": "evaluated", "model": model, **metrics})
    if not as_json:
        account = metrics["account"]
        left_out = f" ({account['rejected']:,} more left out as bad)" if account["rejected"] else ""
        console.print(metrics_table(metrics, f"{account['evaluated']:,} rows{left_out}"))
        for name, records in metrics.get("slices", {}).items():
            console.print(slices_table(name, records))
        if drifted := drift_table(metrics["drift"]):
            console.print(drifted)


@cli.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Times to permute each column.")
@click.option("--rows", type=click.IntRange(1), default=200_000, show_default=True, help="Rows to measure on.")
@_with(_bad_rows_option, _workers_option, _scheduler_option, tls_options, storage_option, json_option)
def importance(
    model: str, data: tuple[str, ...], repeats: int, rows: int, on_bad_rows: str, workers: int, scheduler: str | None,
    tls: dict[str, Any], options: dict[str, Any], as_json: bool,
) -> None:  # fmt: skip
    """The rise of MODEL's loss on labelled Parquet DATA without each of its columns: how much it needs them. And
    which pairs of fields make most of the score together.
    """
    from dfm import jobs

    console = Console()
    with Reporter(console, as_json) as reporter:
        found = jobs.importance(
            model, data, repeats=repeats, rows=rows, settings=_settings(scheduler, workers, tls),
            on_bad_rows=on_bad_rows, storage_options=options, on_event=reporter,
        )  # fmt: skip
        if as_json:
            reporter({"event": "importance", "model": model, **found})
    if not as_json:
        console.print(importance_table(found))
        if found["pairs"]:
            console.print(pairs_table(found["pairs"]))


@cli.command()
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
@_with(_bad_rows_option, _workers_option, _scheduler_option, tls_options, storage_option, json_option)
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
            overwrite=overwrite, settings=_settings(scheduler, workers, tls), on_bad_rows=on_bad_rows,
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
        if drifted := drift_table(summary["drift"]):
            console.print(drifted)


@cli.command()
@click.argument("model")
@click.option("--output", metavar="FILE", default="", help="The page; default: report.html beside MODEL.")
@_with(storage_option, json_option)
def report(model: str, output: str, options: dict[str, Any], as_json: bool) -> None:
    """Write the page about MODEL again: curves, slices, importance, rows, time, its job. No data are read."""
    from dfm import jobs

    page = jobs.report(model, output, storage_options=options)
    click.echo(line_of({"event": "reported", "model": model, "page": page}) if as_json else f"report: {page}")


@cli.command()
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
@_with(storage_option, json_option)
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
            console.print(table_of(described[name], title, console.width))


def _batches_of(data: tuple[str, ...], columns: tuple[str, ...], options: dict[str, Any]) -> Iterator[Any]:
    """The rows of shards, batch by batch (pyarrow.RecordBatch)."""
    from dfm.data.parquet import find_shards, read_unit
    from dfm.training.plan import plan_reading

    for units in plan_reading(find_shards(data, options)):
        for unit in units:
            yield from (batch.data for batch in read_unit(unit, columns, options))


@cli.command()
@click.argument("model")
@click.option("--format", "kind", type=click.Choice(["parquet", "onnx", "xlearn", "libfm"]), required=True)
@click.option("--output", required=True, metavar="DIR", help="Folder or URL for the exported file.")
@click.option("--tokens-from", "data", metavar="DATA", multiple=True, help="With parquet: name tokens by these shards.")
@_with(storage_option)
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


@cli.command()
@click.argument("output", metavar="DIRECTORY")
@click.option("--rows", type=click.IntRange(1), default=1_000_000, show_default=True)
@click.option("--days", type=click.IntRange(1), default=8, show_default=True)
@click.option("--shards-per-day", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier log.")
@_with(json_option)
def synth(
    output: str,
    rows: int,
    days: int,
    shards_per_day: int,
    seed: int,
    workers: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a click log with a planted factorization machine, as Parquet below DIRECTORY."""
    from dfm.data.synthetic import generate

    console = Console()
    with Reporter(console, as_json) as reporter:

        def progress(done: int) -> None:
            reporter({"event": "progress", "stage": "synth", "done": done, "total": rows})

        truth = generate(
            output, rows=rows, days=days, seed=seed, shards_per_day=shards_per_day, processes=workers,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    days_found = [
        {"day": day.day, "rows": day.rows, "clicks": day.clicks, "always_the_click_rate": day.click_rate_log_loss,
         "planted_truth": day.log_loss, "auc_of_truth": day.auc}
        for day in truth.days
    ]  # fmt: skip
    if as_json:
        click.echo(line_of({"event": "synthesised", "directory": output, "rows": truth.rows, "days": days_found}))
    else:
        console.print(table_of(days_found, f"{truth.rows:,} rows in {escape(output)} (log losses)"))


@cli.command()
@click.option("--output", default="demo-output", show_default=True, metavar="DIR", help="Everything is written here.")
@click.option("--rows", type=click.IntRange(2000), default=1_000_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_with(json_option)
def demo(output: str, rows: int, seed: int, as_json: bool) -> int:
    """Make a click log, train on it, evaluate on its last day, save, load and score."""
    from dfm.cli.demo import comparison, own_command, run_demo

    console, dfm = Console(), own_command()
    with Reporter(console, as_json) as reporter:
        result = run_demo(output, rows, seed, reporter)
    if as_json:
        return INTERRUPTED if result.run.interrupted else 0
    table = Table("who answers", "log loss", "AUC", title=f"the last day, {result.truth.rows:,} rows")
    for row in comparison(result):
        table.add_row(*row)
    console.print(table)
    console.print(
        f"{result.recovered:.0%} of the way from the click rate to the truth. The model was loaded again and scored "
        f"{result.rows_scored:,} rows; one row at a time takes {result.seconds_per_row * 1000:.2f} ms. "
        f"All in {result.seconds:.0f} s.",
        highlight=False,
    )
    console.print(
        f"\nTry next:\n"
        f"  {dfm} inspect {result.run.model_url}\n"
        f"  {dfm} train {output}/job.toml --set model.family=ffm --set output.directory={output}/ffm\n"
        f"  {dfm} evaluate {result.run.model_url} {output}/clicks/day={result.truth.day}\n"
        f"  {dfm} predict {result.run.model_url} {output}/clicks/day={result.truth.day} --output {output}/predictions",
        highlight=False, markup=False,
    )  # fmt: skip
    return INTERRUPTED if result.run.interrupted else 0


@cli.command()
def events() -> None:
    """Every event of --json and of a run's events.jsonl: its fields, their kind, unit and meaning."""
    from dfm.events import described

    name = Column("event and field", no_wrap=True, overflow="fold")  # it is to be copied
    table = Table(name, "emitted by", "kind", "meaning")
    for row in described():
        table.add_row(*[escape(cell) for cell in row])
    wide_console().print(table)
