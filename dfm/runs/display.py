"""The display of a run, in a terminal, a notebook or a file: a progress bar per stage and a line per epoch; or JSON."""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dfm.events import compared, is_passing, line_of
from dfm.pages.numbers import named_text, number_text

logger = logging.getLogger(__name__)
Event = dict[str, Any]
OnEvent = Callable[[Event], None]
STAGES = {
    "synth": "making the click log",
    "convert": "converting",
    "statistics": "statistics of numbers",
    "hash": "hashing shards",
    "build": "building partitions",
    "latest": "looking for the latest rows",
    "pilot": "trying settings",
    "linear": "without factors",
    "report": "looking at the model",
    "evaluate": "evaluating",
    "slices": "worst slices",
    "importance": "columns in turn",
    "predict": "predicting",
    "compile": "compiling kernels",
}
_UNITS = {"compile": "workers", "convert": "bytes"}
"""The things that a stage counts, where they are not rows."""
_BEGIN_WITH_KERNELS = ("hash", "evaluate", "predict")
"""Stages whose first rows wait until a worker has compiled the kernels for them, or found them on its disk."""
_REDRAWN_EVERY = 0.2
"""Seconds between two pictures of a bar in a notebook."""
_EPOCH_COLUMNS = (
    {"train_log_loss": "train loss", "log_loss": "log loss", "auc": "auc"},
    {"train_rmse": "train rmse", "rmse": "rmse", "mae": "mae"},
    {"train_loss": "train loss", "loss": "loss", "auc": "auc"},
    {"train_loss": "train loss", "loss": "loss", "rmse": "rmse"},
)
"""By what an epoch tells: the first of these of which most is there."""
_JUDGED_BY = ("loss", "log_loss", "rmse", "group_auc")
"""Metrics that say in one number how good parameters are, the first that there is; pairs of rows have no loss there."""


class _NotebookProgress(Progress):
    """Bars in the output of a notebook's cell, redrawn in place. Rich's own need ipywidgets, which few have."""

    _handle: Any = None
    _drawn = 0.0

    def start(self) -> None:
        """Show the bars that there are."""
        from IPython.display import display

        self._handle = display(self.make_tasks_table(self.tasks), display_id=True)

    def refresh(self) -> None:
        """Draw the bars anew."""
        if self._handle is not None:
            self._drawn = time.monotonic()
            self._handle.update(self.make_tasks_table(self.tasks))

    def update(self, *arguments: Any, **values: Any) -> None:
        """Move a bar; it is drawn a few times a second."""
        super().update(*arguments, **values)
        if time.monotonic() - self._drawn > _REDRAWN_EVERY:
            self.refresh()

    def stop(self) -> None:
        """Leave the bars as they are; those that vanish leave nothing."""
        from IPython.display import HTML

        if self._handle is not None and self.live.transient:
            self._handle.update(HTML(""))
        else:
            self.refresh()


class Reporter:
    """Receives events; use it as a context manager, so that the progress bar is gone before other output.

    tells_end: whether people are shown why a run ended, too; not where whoever follows it says so himself.
    """

    def __init__(self, console: Console, as_json: bool = False, tells_end: bool = True) -> None:
        self._console, self._as_json, self._tells_end = console, as_json, tells_end
        self._has_bars = console.is_terminal or console.is_jupyter
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
            reason = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else "nobody reads the output"
            logger.warning("nothing more is shown (%s); the work goes on", reason)

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
        stage = str(event["stage"])
        task = self._task(stage, _UNITS.get(stage, "rows"))
        waits = stage in _BEGIN_WITH_KERNELS and not event["done"]
        text = STAGES.get(stage, stage) + " (kernels first)" * waits
        self._advance(task, event["done"], event["total"], text)

    def _show_round(self, event: Event) -> None:
        if self._has_bars:  # elsewhere a bar that vanishes would leave an empty line
            text = f"training epoch {event['epoch']}"
            self._advance(self._task(text, "averages", vanishes=True), event["round"], event["rounds"], text)

    def _task(self, name: str, unit: str, vanishes: bool = False) -> TaskID:
        """The bar of that name, made where there is none; one that `vanishes` leaves no line."""
        if self._progress is None:
            kind = _NotebookProgress if self._console.is_jupyter else Progress
            counted = TextColumn("{task.completed:,.0f}/{task.total:,.0f}"), TextColumn("{task.fields[unit]}")
            self._progress = kind(
                TextColumn("{task.description:24}"), BarColumn(), *counted, TimeElapsedColumn(),
                console=self._console, transient=vanishes,
            )  # fmt: skip
            self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, visible=False, unit=unit)
        return self._tasks[name]

    def _advance(self, task: TaskID, done: int, total: int, text: str) -> None:
        """Move a bar; when all that are shown are full they go."""
        assert self._progress is not None
        self._progress.update(task, completed=done, total=total, description=text, visible=True)
        if all(task.finished for task in self._progress.tasks):
            self._stop_progress()

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._tasks = None, {}

    def _show_plan(self, event: Event) -> None:
        fewer = event.get("later_rounds_per_epoch", event["rounds_per_epoch"])  # older records lack it
        later = "per epoch" if fewer == event["rounds_per_epoch"] else f"in the first epoch, then {fewer}"
        held_out = event.get("held_out", "")
        purpose = "to train and to validate on" if held_out else f"to train on, {_validation_text(event)}"
        most = ("up to " if held_out else "") + _count(event["rows_per_replica"], "row")
        self._line(
            f"{_count(event['rows'], 'row')} in {_count(event['shards'], 'shard')} "
            f"({_count(event['fields'], 'field')}) {purpose}; {_count(event['replicas'], 'replica')} of {most}, "
            f"{_count(event['rounds_per_epoch'], 'average')} {later}"
        )
        if held_out:
            self._line(escape(f"validates on {held_out}"))

    def _show_placement(self, event: Event) -> None:
        workers = event["workers"]
        rows = [each["rows"] for each in workers]
        if len(workers) < 2:
            return
        idle = sum(not each["replicas"] for each in workers)
        idle_text = f"; {idle} have none: more replicas than workers would use them" if idle else ""
        replicas = [each["replicas"] for each in workers]
        self._line(f"{len(workers)} workers with {_span(rows, 'row')} and {_span(replicas, 'replica')} each{idle_text}")

    def _show_settings(self, event: Event) -> None:
        self._line(
            f"learning rate {event['learning_rate']:.3g}, factors at {event['factor_rate_scale']:.3g} of it with L2 "
            f"{event['l2_factors']:.3g} from {event['init_stdev']:.2g} (Σ x² of a row: {event['mean_squares']:.3g}); "
            f"schedule {event['schedule']}, {_count(event['epochs'], 'epoch')} at most"
        )

    def _show_solving(self, event: Event) -> None:
        if "draws" in event:
            how = f"the first {event['burn_in']} not kept, {_count(event['draws'], 'draw')} of the others"
        else:
            how = f"L2 {event['l2_linear']:.3g} on weights and {event['l2_factors']:.3g} on factors"
        iterations = _count(event["iterations"], "iteration")
        self._line(f"solver {event['solver']}: {iterations}, {how}; factors from {event['init_stdev']:.2g}")

    def _show_pilot(self, event: Event) -> None:
        losses = ", ".join(f"{name} {number_text(loss)}" for name, loss in event["losses"].items())
        self._line(
            f"{_of_model(event)}pilot, {event['compared']}: {losses}; goes on with {event['chosen']} (learning rate "
            f"{event['learning_rate']:.3g}; another than the default must be {event['margin']:.0%} better)"
        )

    def _show_chosen(self, event: Event) -> None:
        self._stop_progress()
        metric = event.get("metric", "validation_loss")  # older records lack it
        with_factors, without = (_compared_text(metric, event["losses"][name]) for name in ("factors", "linear"))
        kept = "the linear model is kept" if event["chosen"] == "linear" else "the factors stay"
        self._line(f"{with_factors} with factors, {without} without them: {kept}")

    def _show_trial(self, event: Event) -> None:
        self._stop_progress()
        where = f"rung {event['rung']}" if event["rung"] else f"to the end with seed {event['seed']}"
        which = f"trial {event['trial']}" if event["key"] != "default" else "the default"
        loss = _compared_text(event["metric"], event["loss"]) if math.isfinite(event["loss"]) else "diverged"
        self._line(f"{which}, {where}: {loss} after {_count(event['epochs'], 'epoch')} ({event['seconds']:.1f} s)")

    def _show_fold(self, event: Event) -> None:
        self._stop_progress()
        rows = f"{_count(event['rows'], 'row')}, {_count(event['epochs'], 'epoch')}"
        self._line(f"fold {event['fold']}: {_judged(event)} ({rows})")

    def _show_searched(self, event: Event) -> None:
        for name, losses in event["losses"].items():
            if losses and all(map(math.isfinite, losses)):
                mean = _compared_text(event["metric"], statistics.fmean(losses))
                spread = number_text(statistics.pstdev(losses))
                self._line(f"{name}: {mean} ± {spread} over {_count(len(losses), 'seed')}")
            elif losses:
                self._line(f"{name}: diverged with one of {_count(len(losses), 'seed')}")
        which = f"trial {event['trial']}" if event["trial"] else "the default, which nothing beat"
        self._line(escape(f"the best is {which}; its job is in {event['job']}"))

    def _show_plateau(self, event: Event) -> None:
        self._line(
            f"{_of_model(event)}on a plateau: back to {_epoch(event['to_epoch'])}, from there with a falling rate "
            f"(at most {event['epochs']} more)"
        )

    def _show_vocabulary(self, event: Event) -> None:
        earlier = event.get("earlier_features")
        known = f" ({earlier:,} only by the model that training goes on from)" if earlier else ""
        self._line(
            f"{event['distinct_features']:,} distinct features fill {event['table_load']:.1%} of the hash table "
            f"(about {event['collided_share']:.1%} share an index); {event['features']:,} are kept{known}, "
            f"{event['features_with_factors']:,} with factors: {bytes_text(event['parameter_bytes'])} of parameters"
        )
        rows, held_out = event["rows"], event.get("validation_rows") or {"read": 0, "rejected": 0}
        if held_out["read"]:
            self._line(f"{_count(rows['trained'], 'row')} train, {_count(held_out['trained'], 'row')} validate")
        if rows.get("sampled_out"):
            self._line(f"{_count(rows['sampled_out'], 'negative row')} left out by lot (data.sample_negatives)")
        if "pairs" in rows:
            self._line(
                f"{_count(rows['in_pairs'], 'row')} in groups with both classes: {rows['pairs']:,} pairs an epoch"
            )
        for account, purpose in ((rows, "train on"), (held_out, "validate on")):
            if account["rejected"]:
                self._line(f"[yellow]{escape(rejected_text(account, purpose))}[/]")

    def _show_prepared(self, event: Event) -> None:
        self._line(
            f"prepared in {event['seconds']:.1f} s (kernels compiled meanwhile, {event['compile_seconds']:.1f} s)"
        )
        self._line(str(event["backend_text"]))

    def _show_resumed(self, event: Event) -> None:
        self._line(
            f"{_of_model(event)}going on from the checkpoint in epoch {event['epoch']}, average {event['round']} of "
            f"{event['rounds']} (--no-resume starts afresh)"
        )

    def _show_epoch(self, event: Event) -> None:
        self._stop_progress()
        names = max(_EPOCH_COLUMNS, key=lambda columns: len(columns.keys() & event.keys()))
        if "group_auc" in event:
            names = {**{name: title for name, title in names.items() if name in event}, "group_auc": "group auc"}
        if not self._header_shown:
            titles = "".join(f"{title:>12}" for title in names.values())
            self._line(
                f"{'seed ' if 'seed' in event else ''}epoch{titles}      rows/s  seconds  averaging", style="bold"
            )
            self._header_shown = True
        values = "".join(f"{number_text(event.get(name)):>12}" for name in names)
        seed = f"{event['seed']:4d} " if "seed" in event else ""
        self._line(
            f"{seed}{event['epoch']:5d}{values}{event['rows_per_second']:12,.0f}{event['seconds']:9.2f}"
            f"{event['averaging_seconds']:11.2f}"
        )

    def _line(self, text: str, style: str | None = None) -> None:
        """Print a line: wrapped between words in a terminal and a notebook; whole in a pipe, and with a word (a path)
        that is longer than a line.
        """
        has_width = self._console.is_terminal or self._console.is_jupyter
        wraps = has_width and all(len(word) < self._console.width for word in text.split())
        self._console.print(text, style=style, highlight=False, soft_wrap=not wraps)

    def _show_start(self, event: Event) -> None:
        self._line(f"{_of_model(event)}the start: {_judged(event)}")

    def _show_average(self, event: Event) -> None:
        average = f"{_of_model(event)}average {event['average']} of epoch {event['epoch']}"
        self._line(f"      {average}: {_judged(event)}")

    def _show_rolled_back(self, event: Event) -> None:
        self._line(
            f"{_of_model(event)}validation got worse: back to the parameters of {_epoch(event['to_epoch'])}, "
            f"step size times {event['rate_factor']:g} from here"
        )

    def _show_stopped(self, event: Event) -> None:
        self._line(
            f"{_of_model(event)}validation got worse: stopped after epoch {event['epoch']}, "
            f"{_epoch(event['best_epoch'])} is kept"
        )

    def _show_retrying(self, event: Event) -> None:
        self._stop_progress()
        self._line(escape(f"the attempt failed ({event['error']['message']}); another one goes on from the checkpoint"))

    def _show_log(self, event: Event) -> None:
        self._line(f"[yellow]{event['level'].lower()}:[/] {escape(event['message'])}")

    def _show_ended(self, event: Event) -> None:
        self._stop_progress()
        if event["error"] and self._tells_end:
            self._line(escape(f"{event['state']}: {event['error']['message']}"))

    def _show_waiting(self, event: Event) -> None:
        self._line(escape(f"waiting: {event['reason']}"))

    def _show_mean(self, event: Event) -> None:
        self._stop_progress()
        name = next((name for name in _JUDGED_BY if name in event["validation"]), None)
        if name is None:
            return
        singles = ", ".join(number_text(model["validation"][name]) for model in event["models"])
        mean = named_text(name, event["validation"][name])
        self._line(f"mean of {len(event['models'])} models: {mean} (alone {singles})")

    def _show_calibrated(self, event: Event) -> None:
        self._stop_progress()
        before, after, gain = (event[name] for name in ("log_loss_before", "log_loss_after", "gain"))
        if event["kept"]:
            told = f"kept: log loss {number_text(before)} without, {number_text(after)} with it, on "
            self._line(
                f"calibration ({event['kind']}) {told}{_count(event['judged_rows'], 'row')} that it has not seen"
            )
            return
        losses = (
            "" if gain is None else f" (log loss {number_text(before)} without, {number_text(before - gain)} with it)"
        )
        why = f"[yellow]calibration ({event['kind']}) refused: {escape(event['reason'])}[/]"
        self._line(f"{why}{losses}; none is kept")

    def _show_diagnosis(self, event: Event) -> None:
        for finding in event["findings"]:
            self._line(f"[yellow]note:[/] {escape(finding['message'])} ({escape(', '.join(finding['knobs']))})")

    def _show_done(self, event: Event) -> None:
        state = "interrupted; the best parameters so far are" if event["interrupted"] else "the model is"
        self._line(escape(f"{state} in {event['model']} ({_epoch(event['best_epoch'])})"))
        if event.get("report"):
            self._line(escape(f"report: {event['report']}"))


def _epoch(number: int) -> str:
    """The name of an epoch whose parameters are kept; 0 stands for those of before."""
    return f"epoch {number}" if number else "the start"


def _of_model(event: Event) -> str:
    """Which model an event is about, where a job trains several."""
    return f"seed {event['seed']}: " if "seed" in event else ""


def _judged(metrics: Mapping[str, Any]) -> str:
    """One number that says how good parameters are: "log loss 0.41234"."""
    name = next((name for name in _JUDGED_BY if name in metrics), None)
    return "no metrics" if name is None else named_text(name, metrics[name])


def _compared_text(metric: str, loss: float | None) -> str:
    """The metric that something was compared by, of the number that stood for it: "log loss 0.41234", "auc 0.71234"."""
    return named_text(metric, None if loss is None else compared(metric, loss))


def rejected_text(account: Mapping[str, Any], purpose: str = "train on") -> str:
    """The fate of bad rows: "3 of 90 rows to train on left out as bad: label: label is missing (2), …"."""
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in account["reasons"].items())
    return f"{account['rejected']:,} of {_count(account['read'], 'row')} to {purpose} left out as bad: {reasons}"


def _validation_text(event: Event) -> str:
    """The number of rows that validate, of a plan whose validation rows have shards of their own."""
    if not event["validation_rows"]:
        return "none to validate on"
    shards = _count(event["validation_shards"], "shard")
    return f"{event['validation_rows']:,} in {shards} to validate on"


def _count(number: int, noun: str) -> str:
    """A number of things: "1 shard", "4 shards"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _span(numbers: Sequence[int], noun: str) -> str:
    """The least and the greatest of some numbers of things: "3 to 4 replicas", "4 replicas"."""
    least, most = min(numbers), max(numbers)
    return _count(most, noun) if least == most else f"{least:,} to {_count(most, noun)}"


def bytes_text(count: int) -> str:
    """A size for people."""
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:.{1 if power else 0}f} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"


@contextlib.contextmanager
def watched(on_event: OnEvent | None, progress: bool | None) -> Iterator[OnEvent | None]:
    """Whoever hears of the events of a call: the caller, and a display; None where nobody does.

    progress: whether there is a display; None: where standard output is a terminal or a notebook, and the caller has no
    on_event of his own.
    """
    console = Console()
    by_itself = on_event is None and (console.is_terminal or console.is_jupyter)
    if not (by_itself if progress is None else progress):
        yield on_event
        return
    with Reporter(console) as reporter:

        def both(event: Event) -> None:
            reporter(event)
            if on_event is not None:
                on_event(event)

        yield both
