"""The display of the command line: a progress bar per stage and a line per epoch, or one JSON object a line."""

from __future__ import annotations

import logging
import math
import os
import statistics
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from dfm.events import is_passing, line_of

logger = logging.getLogger(__name__)
Event = dict[str, Any]
_UNBOUNDED = 10_000
"""Columns of a console that is none."""
STAGES = {
    "synth": "making the click log",
    "statistics": "statistics of numbers",
    "hash": "hashing shards",
    "build": "building partitions",
    "latest": "looking for the latest rows",
    "pilot": "trying settings",
    "linear": "without factors",
    "evaluate": "evaluating",
    "predict": "predicting",
}
_EPOCH_COLUMNS = (
    {"train_log_loss": "train loss", "log_loss": "log loss", "auc": "auc"},
    {"train_rmse": "train rmse", "rmse": "rmse", "mae": "mae"},
    {"train_loss": "train loss", "loss": "loss", "auc": "auc"},
    {"train_loss": "train loss", "loss": "loss", "rmse": "rmse"},
)
"""By what an epoch tells: the first of these of which most is there."""


class Reporter:
    """Receives events; use it as a context manager, so that the progress bar is gone before other output."""

    def __init__(self, console: Console, as_json: bool = False) -> None:
        self._console, self._as_json = console, as_json
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._header_shown = self._muted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_progress()

    def __call__(self, event: Event) -> None:
        """Show an event, or print it as a line of JSON. Where that is no longer possible (`| head`, a full disk) the
        work goes on unseen.
        """
        if self._muted:
            return
        try:
            self._show(event)
        except (OSError, SystemExit) as error:  # rich ends the process where a pipe is gone
            self._muted = True
            logger.warning("nothing more is shown: %s: %s", type(error).__name__, error)

    def _show(self, event: Event) -> None:
        if self._as_json:
            if not is_passing(event):
                self._console.file.write(line_of(event) + "\n")
                self._console.file.flush()
            return
        show = getattr(self, f"_show_{event['event']}", None)
        if show is not None:
            show(event)

    def _show_progress(self, event: Event) -> None:
        self._advance(str(event["stage"]), event["done"], event["total"], "rows")

    def _show_round(self, event: Event) -> None:
        if not self._console.is_terminal:
            return  # a bar that vanishes would leave an empty line
        self._advance(f"training epoch {event['epoch']}", event["round"], event["rounds"], "averages", vanishes=True)

    def _advance(self, stage: str, done: int, total: int, unit: str, vanishes: bool = False) -> None:
        """Move the bar of a stage, which goes when all that are shown are full; one that `vanishes` leaves no line."""
        if vanishes and not self._console.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
                TimeElapsedColumn(), console=self._console, transient=vanishes,
            )  # fmt: skip
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(STAGES.get(stage, stage), total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)
        if all(task.finished for task in self._progress.tasks):
            self._stop_progress()

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._tasks = None, {}

    def _show_plan(self, event: Event) -> None:
        fewer = event.get("later_rounds_per_epoch", event["rounds_per_epoch"])  # older records lack it
        later = "per epoch" if fewer == event["rounds_per_epoch"] else f"in the first epoch, then {fewer}"
        self._console.print(
            f"{_count(event['rows'], 'row')} in {_count(event['shards'], 'shard')} "
            f"({_count(event['fields'], 'field')}) to train on, {event['validation_rows']:,} in "
            f"{event['validation_shards']} to validate; {_count(event['replicas'], 'replica')} of "
            f"{_count(event['rows_per_replica'], 'row')}, {_count(event['rounds_per_epoch'], 'average')} {later}"
        )
        if event.get("held_out"):
            self._line(f"validates on {event['held_out']} (data.validation_fraction)")

    def _show_placement(self, event: Event) -> None:
        workers = event["workers"]
        rows = [each["rows"] for each in workers]
        if len(workers) < 2:
            return
        idle = sum(not each["replicas"] for each in workers)
        idle_text = f"; {idle} have none: more replicas than workers would use them" if idle else ""
        self._line(
            f"{len(workers)} workers with {min(rows):,} to {max(rows):,} rows each, "
            f"{min(e['replicas'] for e in workers)} to {max(e['replicas'] for e in workers)} replicas{idle_text}"
        )

    def _show_settings(self, event: Event) -> None:
        self._line(
            f"learning rate {event['learning_rate']:.3g}, factors at {event['factor_rate_scale']:.3g} of it with L2 "
            f"{event['l2_factors']:.3g} from {event['init_stdev']:.2g} (Σ x² of a row: {event['mean_squares']:.3g}); "
            f"schedule {event['schedule']}, {event['epochs']} epochs at most"
        )

    def _show_pilot(self, event: Event) -> None:
        losses = ", ".join(f"{name} {_number(loss)}" for name, loss in event["losses"].items())
        self._line(
            f"pilot, {event['compared']}: {losses}; goes on with {event['chosen']} (learning rate "
            f"{event['learning_rate']:.3g}; another than the default must be {event['margin']:.0%} better)"
        )

    def _show_chosen(self, event: Event) -> None:
        self._stop_progress()
        with_factors, without = _number(event["losses"]["factors"]), _number(event["losses"]["linear"])
        kept = "the linear model is kept" if event["chosen"] == "linear" else "the factors stay"
        self._line(f"validation loss {with_factors} with factors, {without} without them: {kept}")

    def _show_trial(self, event: Event) -> None:
        self._stop_progress()
        where = f"rung {event['rung']}" if event["rung"] else f"to the end with seed {event['seed']}"
        which = f"trial {event['trial']}" if event["key"] != "default" else "the default"
        self._line(
            f"{which}, {where}: {_number(event['loss'])} after {event['epochs']} epochs ({event['seconds']:.1f} s)"
        )

    def _show_fold(self, event: Event) -> None:
        self._stop_progress()
        name = next(name for name in ("loss", "log_loss", "rmse") if name in event)
        rows = f"{event['rows']:,} rows, {event['epochs']} epochs"
        self._line(f"fold {event['fold']}: {name.replace('_', ' ')} {_number(event[name])} ({rows})")

    def _show_searched(self, event: Event) -> None:
        for name, losses in event["losses"].items():
            if losses and all(map(math.isfinite, losses)):
                mean, spread = statistics.fmean(losses), statistics.pstdev(losses)
                self._line(f"{name}: {mean:.5f} ± {spread:.5f} over {len(losses)} seeds")
            elif losses:
                self._line(f"{name}: diverged with one of {len(losses)} seeds")
        which = f"trial {event['trial']}" if event["trial"] else "the default, which nothing beat"
        self._line(escape(f"the best is {which}; its job is in {event['job']}"))

    def _show_plateau(self, event: Event) -> None:
        self._line(
            f"on a plateau: back to epoch {event['to_epoch']}, from there with a falling rate (at most "
            f"{event['epochs']} more)"
        )

    def _show_vocabulary(self, event: Event) -> None:
        rows = event["rows"]
        self._console.print(
            f"{event['distinct_features']:,} distinct features fill {event['table_load']:.1%} of the hash table "
            f"(about {event['collided_share']:.1%} share an index); {event['features']:,} are kept, "
            f"{event['features_with_factors']:,} with factors: {_bytes(event['parameter_bytes'])} of parameters"
        )
        if rows["rejected"]:
            reasons = escape(f"{rows['reasons']}")
            self._console.print(f"[yellow]{rows['rejected']:,} of {rows['read']:,} rows rejected:[/] {reasons}")

    def _show_prepared(self, event: Event) -> None:
        self._console.print(
            f"prepared in {event['seconds']:.1f} s (kernels compiled meanwhile, {event['compile_seconds']:.1f} s)"
        )
        self._line(str(event["backend_text"]))

    def _show_resumed(self, event: Event) -> None:
        self._line(
            f"going on from the checkpoint in epoch {event['epoch']}, average {event['round']} of {event['rounds']} "
            "(--no-resume starts afresh)"
        )

    def _show_epoch(self, event: Event) -> None:
        self._stop_progress()
        names = max(_EPOCH_COLUMNS, key=lambda columns: len(columns.keys() & event.keys()))
        if not self._header_shown:
            titles = "".join(f"{title:>12}" for title in names.values())
            self._line(f"epoch{titles}      rows/s  seconds  averaging", style="bold")
            self._header_shown = True
        values = "".join(f"{_number(event.get(name)):>12}" for name in names)
        self._line(
            f"{event['epoch']:5d}{values}{event['rows_per_second']:12,.0f}{event['seconds']:9.2f}"
            f"{event['averaging_seconds']:11.2f}"
        )

    def _line(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, highlight=False, soft_wrap=True)

    def _show_average(self, event: Event) -> None:
        name = next(name for name in ("loss", "log_loss", "rmse") if name in event)
        average = f"average {event['average']} of epoch {event['epoch']}"
        self._line(f"      {average}: {name.replace('_', ' ')} {_number(event[name])}")

    def _show_rolled_back(self, event: Event) -> None:
        self._line(
            f"validation got worse: back to the parameters of epoch {event['to_epoch']}, "
            f"step size times {event['rate_factor']:g} from here"
        )

    def _show_stopped(self, event: Event) -> None:
        self._console.print(
            f"validation got worse: stopped after epoch {event['epoch']}, epoch {event['best_epoch']} is kept"
        )

    def _show_retrying(self, event: Event) -> None:
        self._stop_progress()
        self._line(escape(f"the attempt failed ({event['error']['message']}); another one goes on from the checkpoint"))

    def _show_waiting(self, event: Event) -> None:
        self._line(escape(f"waiting: {event['reason']}"))

    def _show_diagnosis(self, event: Event) -> None:
        for finding in event["findings"]:
            self._line(f"[yellow]note:[/] {escape(finding['message'])} ({escape(', '.join(finding['knobs']))})")

    def _show_done(self, event: Event) -> None:
        state = "interrupted; the best parameters so far are" if event["interrupted"] else "the model is"
        self._line(escape(f"{state} in {event['model']} (epoch {event['best_epoch']})"))


def _count(number: int, noun: str) -> str:
    """A number of things: "1 shard", "4 shards"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def _bytes(count: int) -> str:
    """A size for people."""
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:.{1 if power else 0}f} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"


def metrics_table(metrics: Event, title: str = "") -> Table:
    """Metrics of one evaluation, as a table of name and value; calibration bins follow."""
    table = Table("metric", "value", title=title or None)
    for name, value in metrics.items():
        if name not in ("calibration_bins", "account"):
            table.add_row(name, f"{value:,.5f}" if isinstance(value, float) else f"{value}")
    for number, one in enumerate(metrics.get("calibration_bins") or [], start=1):
        table.add_row(f"calibration bin {number}", f"predicted {one['predicted']:.4f}, observed {one['observed']:.4f}")
    return table


def folds_table(described: Sequence[tuple[str, float, float]], n_folds: int) -> Table:
    """Mean and spread of every metric over the folds."""
    table = Table("metric", "mean", "spread", title=f"over {n_folds} folds")
    for name, mean, spread in described:
        table.add_row(name, f"{mean:,.5f}", f"{spread:,.5f}")
    return table


def trials_table(records: Sequence[Event]) -> Table:
    """The trials of a search, each where it came furthest, the best first."""
    furthest: dict[int, Event] = {}
    for record in records:
        if record["rung"]:
            furthest[record["trial"]] = record
    table = Table("trial", "rung", "epochs", "loss", title="what was tried")
    names = list(next(iter(furthest.values()))["settings"]) if furthest else []
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for record in sorted(furthest.values(), key=lambda each: (-each["rung"], each["loss"] or math.inf)):
        values = [f"{record['settings'][name]:.3g}" for name in names]
        table.add_row(
            f"{record['trial']}", f"{record['rung']}", f"{record['epochs']}", _number(record["loss"]), *values
        )
    return table


def wide_console() -> Console:
    """Standard output for tables: as wide as they are where it is no terminal, so that nothing is cut in a pipe."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_UNBOUNDED)


def table_of(rows: list[Event], title: str) -> Table:
    """Records of the same keys as a table; a list of numbers is a row of them."""
    table = Table(*[Column(name.replace("_", " "), overflow="fold") for name in rows[0]], title=title)
    for row in rows:
        table.add_row(*[escape(_cell(value)) for value in row.values()])
    return table


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_cell(each) for each in value)
    return f"{value:.4f}" if isinstance(value, float) else f"{value}"


def plan_table(planned: Event) -> Table:
    """A dry run's findings."""
    table = Table("planned", "value", title="what this job would do")
    for name, value in planned.items():
        if name in ("job", "columns"):
            continue
        shown = value if isinstance(value, str) else _bytes(value) if "bytes" in name else f"{value:,}"
        table.add_row(name.replace("_", " "), escape(shown or "-"))
    for column, transform in planned["columns"].items():
        table.add_row(escape(f"field {column}"), transform)
    return table
