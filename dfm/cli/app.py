"""The command `dfm`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dfm.cli import doors, knobs, models, publish, runs
from dfm.cli.console import (
    folds_table,
    metrics_table,
    show_plan,
    table_of,
    trials_table,
    wide_console,
)
from dfm.cli.options import (
    json_option,
    processes_option,
    scheduler_option,
    tls_options,
    with_options,
)
from dfm.distributed.cluster.endings import end_quickly
from dfm.errors import ClusterError, DfmError, want_of_memory
from dfm.events import line_of
from dfm.runs.display import Reporter
from dfm.version import __version__

EXIT_CODES = """\b
Exit codes: 0 success; 1 unexpected error; 2 wrong settings or usage;
3 bad data; 4 cluster trouble; 5 training diverged; 6 no usable model;
7 cancelled on request; 8 a disk is full, or a store does not answer;
9 refused by the gate;
130 interrupted (the best model so far, if any, was published)."""
INTERRUPTED = 130
OUT_OF_MEMORY = "this process has no more memory; give it more, or less to do, and run the same command again"


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
models.register(cli.add_command)
publish.register(cli.add_command)
knobs.register(cli.add_command)
doors.register(cli.add_command)


def main() -> None:
    """Run the command; a DfmError becomes one line and its exit code."""
    end_quickly()
    try:
        result = cli.main(prog_name="dfm", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except DfmError as error:
        _fail(f"{error}", error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:  # click makes the latter of the former
        kept = getattr(error if isinstance(error, KeyboardInterrupt) else error.__cause__, "__notes__", ())
        _fail(f"interrupted, and nothing was published; {'; '.join(kept)}" if kept else "interrupted", INTERRUPTED)
    except Exception as error:
        told = want_of_memory(error)
        if told is None:
            raise
        _fail(f"{OUT_OF_MEMORY} ({type(told).__name__}: {told})", ClusterError.exit_code)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.splitlines())
    try:  # messages speak of [tables], which are no markup
        Console(stderr=True).print(f"[bold red]error:[/] {escape(line)}", highlight=False, soft_wrap=True, emoji=False)
    except Exception:  # colours need modules that are imported only now, for which there may be no memory
        os.write(2, f"error: {line}\n".encode())
    sys.exit(code)


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
@with_options(scheduler_option, tls_options, json_option)
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
@click.option("--by", type=click.Choice(["lot", "time"]), help="How folds are cut.  [default: lot]")
@click.option("--plot", metavar="FILE", help="Draw the trials: a .png, .svg or .pdf (needs the extra plots).")
@with_options(scheduler_option, tls_options, json_option)
def search(
    job: str, overrides: tuple[str, ...], trials: int | None, resume: bool | None, folds: int | None,
    by: str | None, plot: str | None, scheduler: str | None, tls: dict[str, Any], as_json: bool,
) -> int:  # fmt: skip
    """Try settings of a job beside each other, and write the best as a job file.

    All trials share one preparation of the rows; half of them go on after an epoch, a quarter of these to the end. The
    best is trained with several seeds against the default. What was tried is in search.jsonl of output.directory.
    """
    from dfm.runs.termination import stoppable

    overrides = (*overrides, *runs.cluster_overrides(scheduler, None, tls))
    overrides = (*overrides, f"search.n_trials={trials}") if trials else overrides
    _check_purpose(folds, by, {"--trials": trials, "--resume or --no-resume": resume, "--plot": plot})
    with stoppable(), Reporter(Console(), as_json) as reporter:
        if folds:
            tables, closing = _folded(job, overrides, folds, by or "lot", reporter)
        else:
            tables, closing = _tried(job, overrides, plot, resume, reporter)
    if not as_json:
        wide_console().print(tables)
        Console().print(closing, highlight=False, markup=False, soft_wrap=True)
    return 0


def _check_purpose(folds: int | None, by: str | None, of_a_search: Mapping[str, Any]) -> None:
    """UsageError where an option is of no use: of folds without any, or of a search beside them."""
    if by and not folds:
        raise click.UsageError("--by says how folds are cut, and there are none; give --folds, or leave --by out")
    given = [name for name, value in of_a_search.items() if value is not None]
    if folds and given:
        raise click.UsageError(f"{given[0]} is of trials, and --folds tries no settings; leave one of them out")


def _tried(
    job: str, overrides: tuple[str, ...], plot: str | None, resume: bool | None, reporter: Reporter
) -> tuple[Any, str]:
    from dfm import jobs
    from dfm.cli.plots import check_plot, plot_trials

    if plot:
        check_plot(plot)
    result = jobs.search(job, overrides=overrides, on_event=reporter, resume=resume)
    if plot:
        plot_trials(result.trials, result.metric, plot)
    return trials_table(result.trials, result.metric, wide_console().width), f"next: dfm train {result.best}"


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
@click.argument("output", metavar="DIRECTORY")
@click.option("--rows", type=click.IntRange(1), default=1_000_000, show_default=True)
@click.option("--days", type=click.IntRange(1), default=8, show_default=True)
@click.option("--shards-per-day", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an earlier log.")
@with_options(processes_option, json_option)
def synth(
    output: str,
    rows: int,
    days: int,
    shards_per_day: int,
    seed: int,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a click log with a planted factorization machine, as Parquet below DIRECTORY."""
    from dfm.data.synthetic import generate
    from dfm.distributed.processes import n_of_text
    from dfm.runs.termination import stoppable

    console = Console()
    with stoppable(), Reporter(console, as_json) as reporter:

        def progress(done: int) -> None:
            reporter({"event": "progress", "stage": "synth", "done": done, "total": rows})

        truth = generate(
            output, rows=rows, days=days, seed=seed, shards_per_day=shards_per_day, processes=workers or n_of_text(),
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
@with_options(json_option)
def demo(output: str, rows: int, seed: int, as_json: bool) -> int:
    """Make a click log, train on it, evaluate on its last day, save, load and score."""
    from dfm.cli.demo import comparison, own_command, run_demo
    from dfm.runs.termination import stoppable

    console, dfm = Console(), own_command()
    with stoppable(), Reporter(console, as_json) as reporter:
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
        highlight=False, markup=False, soft_wrap=True,
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
