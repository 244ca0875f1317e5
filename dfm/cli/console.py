"""Tables of the command line, and the console that they are printed on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dfm.events import compared
from dfm.pages.numbers import number_form, number_text
from dfm.runs.display import bytes_text
from dfm.settings.job import differing
from dfm.settings.toml import to_toml

Event = dict[str, Any]
_UNBOUNDED = 10_000
"""Columns of a console that is none."""
_UNITS = "learning rate, l2 linear and init scale: times what dfm finds by itself"
"""The units of a search's settings."""
_MOST_LINES = 3
"""Lines of a cell into which a list may be folded."""
_FRAME = 3
"""Columns that a cell takes beside its text: a line and two blanks."""


def metrics_table(metrics: Event, title: str = "") -> Table:
    """Metrics of one evaluation, as a table of name and value; calibration bins follow."""
    table = Table("metric", "value", title=title or None)
    for name, value in metrics.items():
        if name not in ("calibration_bins", "account", "slices", "drift"):
            table.add_row(name, metric_text(value, is_count=name in ("rows", "weight")))
    for number, one in enumerate(metrics.get("calibration_bins") or [], start=1):
        table.add_row(f"calibration bin {number}", f"predicted {one['predicted']:.4f}, observed {one['observed']:.4f}")
    return table


def metric_text(value: object, is_count: bool) -> str:
    """A metric for people, "-" where there is none: a sum of weights that are 1 is a count like that of the rows."""
    if is_count and isinstance(value, int | float) and float(value).is_integer():
        return f"{value:,.0f}"
    return number_text(value, ",.5f") if value is None or isinstance(value, float) else f"{value}"


def drift_table(records: Sequence[Event]) -> Table | None:
    """The columns that differ most from training, with the shares of values by what the model knows of them; None
    where it knows nothing of training.
    """
    shown = [record for record in records if record["training_missing"] is not None][:_MOST_DRIFTED]
    if not shown:
        return None
    numbers = [Column(title, justify="right", no_wrap=True) for title in _DRIFT.values()]
    table = Table(Column("column", overflow="fold"), *numbers, title="drift", box=SIMPLE, padding=(0, 0, 0, 1))
    for record in shown:
        cells = ["-" if record[name] is None else f"{record[name]:.4f}" for name in _DRIFT]
        table.add_row(escape(record["column"]), *cells)
    return table


_DRIFT = {
    "psi": "PSI",
    "missing": "missing",
    "rare": "rare",
    "unseen": "unseen",
    "training_missing": "training\nmissing",
    "training_rare": "training\nrare",
}
"""Numbers of a column that drifted and their titles, short enough for 80 columns."""
_MOST_PAIRS = 10
"""Pairs of fields that are shown, the strongest."""
_MOST_DRIFTED = 10
"""Columns that are shown of those that drifted."""
_BAR = 24
"""Characters of the longest bar."""


def importance_table(found: Event) -> Table:
    """The columns of a model, the most important first, each with a bar of what it is worth."""
    table = Table(
        Column("column", overflow="fold"), Column("rise of the loss", justify="right", no_wrap=True),
        Column("missing", justify="right", no_wrap=True), Column("", overflow="crop"),
        title=f"without a column the loss rises from {number_text(found['loss'])} ({found['rows']:,} rows)",
    )  # fmt: skip
    most = max((record["permuted"] for record in found["columns"]), default=0.0)
    form = number_form(record[name] for record in found["columns"] for name in ("permuted", "missing"))
    for record in found["columns"]:
        error, missing = record["permuted_error"], record["missing"]
        rise = f"{record['permuted']:{form}}" + ("" if error is None else f" ± {error:{form}}")
        bar = "█" * round(_BAR * max(record["permuted"], 0.0) / most) if most > 0 else ""
        table.add_row(escape(record["column"]), rise, "-" if missing is None else f"{missing:{form}}", bar)
    return table


def pairs_table(records: Sequence[Event]) -> Table:
    """The strongest pairs of fields, each with a bar of the mean absolute term that they make together."""
    has_r = "r" in records[0]
    learnt = [Column("r", justify="right", no_wrap=True)] if has_r else []
    title = "mean absolute part of the score that two fields make together"
    strength, bars = Column("strength", justify="right", no_wrap=True), Column("", overflow="crop")
    table = Table(Column("fields", overflow="fold"), strength, *learnt, bars, title=title)
    form = number_form(record["strength"] for record in records[:_MOST_PAIRS])
    for record in records[:_MOST_PAIRS]:
        bar = "█" * round(_BAR * record["strength"] / records[0]["strength"])
        cells = [f"{record['r']:.3f}"] if has_r else []
        fields = f"{record['first']} x {record['second']}"
        table.add_row(escape(fields), f"{record['strength']:{form}}", *cells, bar)
    return table


def slices_table(name: str, records: Sequence[Event]) -> Table:
    """The slices of one kind, a line each."""
    if not records:
        return Table(f"no slice of {escape(name)} has enough rows (--min-rows)")
    metrics = [(key, title) for key, title in _SLICE_METRICS.items() if key in records[0]]
    table = Table(title=f"by {escape(name)}, the worst first", box=SIMPLE, padding=(0, 0, 0, 1))
    for column in records[0]["slice"]:
        table.add_column(escape(column), overflow="fold", min_width=4)
    for _, title in metrics:
        table.add_column(title, justify="right", no_wrap=True)
    columns = [_metric_cells(records, key) for key, _ in metrics]
    for record, *cells in zip(records, *columns, strict=True):
        table.add_row(*map(escape, record["slice"].values()), *cells)
    return table


_SLICE_METRICS = {
    "rows": "rows",
    "mean_label": "label",
    "mean_prediction": "pred.",
    "log_loss": "loss",
    "normalized_entropy": "entropy",
    "rmse": "rmse",
    "mean_error": "error",
    "calibration": "calibr.",
    "calibration_low": "95 %",
    "auc": "AUC",
}
"""Metrics of a slice and their titles, short enough for 80 columns."""


def _metric_cells(records: Sequence[Event], metric: str) -> list[str]:
    """The cells of one metric, a slice each."""
    values = [record[metric] for record in records]
    if metric == "calibration_low":
        return [_span(low, record["calibration_high"]) for low, record in zip(values, records, strict=True)]
    form = ",d" if metric == "rows" else number_form(values, ".4f" if metric in ("log_loss", "rmse", "auc") else ".3f")
    return ["-" if value is None else f"{value:{form}}" for value in values]


def _span(low: float | None, high: float | None) -> str:
    """An interval, as far as it is known."""
    return "-" if low is None else f"{low:.2f} … {'' if high is None else f'{high:.2f}'}"


def folds_table(described: Sequence[tuple[str, float, float]], n_folds: int) -> Table:
    """Mean and spread of every metric over the folds."""
    table = Table("metric", "mean", "spread", title=f"over {n_folds} folds")
    for name, mean, spread in described:
        table.add_row(name, number_text(mean, ",.5f"), number_text(spread, ",.5f"))
    return table


def trials_table(records: Sequence[Event], metric: str, width: int = _UNBOUNDED) -> Table:
    """The trials of a search, each where it came furthest, the best first.

    records, metric: as `SearchResult` has them. width: columns of the terminal.
    """
    furthest: dict[int, Event] = {}
    for record in records:
        if record["rung"]:
            furthest[record["trial"]] = record
    ordered = sorted(furthest.values(), key=lambda each: (-each["rung"], _loss_of(each)))
    rows = [
        {
            **{name: record[name] for name in ("trial", "rung", "epochs")},
            metric: number_text(None if record["loss"] is None else compared(metric, record["loss"])),
            **{name: f"{value:.3g}" for name, value in record["settings"].items()},
        }
        for record in ordered
    ]
    return table_of(rows, "what was tried", width, _UNITS)


def _loss_of(record: Event) -> float:
    """The loss of a trial; inf where it diverged."""
    return math.inf if record["loss"] is None else float(record["loss"])


def wide_console() -> Console:
    """Standard output for tables: as wide as they are where it is no terminal, so that nothing is cut in a pipe."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_UNBOUNDED)


def table_of(rows: Sequence[Event], title: str, width: int = _UNBOUNDED, caption: str = "") -> Table:
    """Records of the same keys as a table; a list of numbers is a row of them.

    width: columns of the terminal. Where they do not suffice, lists are left out (a caption says where they are), then
    lines between columns.
    """
    forms = {name: number_form(_floats(row[name] for row in rows), ".4f") for row in rows[:1] for name in row}
    texts = [{name: _cell(name, value, forms[name]) for name, value in row.items()} for row in rows]
    left_out = _lists_left_out(rows, texts, width)
    if left_out:
        caption = f"{', '.join(left_out)}: with --json, in a pipe or in a wider terminal"
    shown = [{name: text for name, text in row.items() if name not in left_out} for row in texts]
    lines: dict[str, Any] = {"title": title, "caption": caption or None}
    frame, widths = _FRAME, _widths(shown, width)
    if _total(widths) > width:
        frame, widths = 1, _widths(shown, width, 1)
        lines |= {"box": None, "padding": (0, 1, 0, 0)}
    fits = _total(widths) <= width + 1
    columns = [
        Column(name.replace("_", " "), overflow="fold", width=own - frame if fits else None)
        for name, own in widths.items()
    ]
    table = Table(*columns, **lines)
    for row in shown:
        table.add_row(*[escape(text) for text in row.values()])
    return table


def _lists_left_out(rows: Sequence[Event], texts: Sequence[dict[str, str]], width: int) -> list[str]:
    """Columns of lists for which a table of this width has no room."""
    lists = [name for row in rows[:1] for name, value in row.items() if isinstance(value, list | tuple)]
    widths, natural = _widths(texts, width), _widths(texts, _UNBOUNDED)
    return [name for name in lists if _total(widths) > width or _MOST_LINES * widths[name] < natural[name]]


def summary_table(summary: Event, model: str) -> Table:
    """The summary of a model, as a table of name and value."""
    table = Table("model", Column(escape(model), overflow="fold"), title="summary")
    for name, value in summary.items():
        is_count = name.startswith(("rows_", "features")) or name in ("validation_rows", "validation_weight")
        table.add_row(name.replace("_", " "), escape(metric_text(value, is_count)))
    return table


def _widths(texts: Sequence[dict[str, str]], width: int, frame: int = _FRAME) -> dict[str, int]:
    """The width of each column with its frame: as its cells are, less where words can go to the next line instead."""
    widest: dict[str, int] = {}
    least: dict[str, int] = {}
    for name in texts[0] if texts else ():
        cells = [name.replace("_", " "), *(row[name] for row in texts)]
        widest[name] = max(map(cell_len, cells)) + frame
        least[name] = max(cell_len(word) for cell in cells for word in cell.split(" ")) + frame
    while widest and _total(widest) > width:
        name = max(widest, key=lambda each: widest[each] - least[each])
        if widest[name] == least[name]:
            break
        widest[name] -= 1
    return widest


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + 1  # a line more than columns


def _floats(values: Iterable[object]) -> Iterator[float]:
    """The floats among some values, and in lists of them."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _floats(value)
        elif isinstance(value, float):
            yield value


def _cell(name: str, value: object, form: str) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_cell(name, each, form) for each in value)
    if isinstance(value, float):
        return f"{value:{form}}"
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and name != "index" else f"{value}"


def show_plan(planned: Event) -> None:
    """Print a dry run's findings, then what of the job is not at its default, as it stands in a job file."""
    console = wide_console()
    console.print(_plan_table(planned))
    console.print("[bold]what differs from the defaults[/] (dfm knobs lists all knobs)", highlight=False)
    console.print(to_toml(differing(planned["job"])).rstrip(), highlight=False, markup=False, soft_wrap=True)


def _plan_table(planned: Event) -> Table:
    table = Table(*(Column(name, overflow="fold") for name in ("planned", "value")), title="what this job would do")
    for name, value in planned.items():
        if name not in ("job", "columns"):
            table.add_row(name.replace("_", " "), escape(_planned_text(name, value)))
    for column, transform in planned["columns"].items():
        table.add_row(escape(f"field {column}"), transform)
    return table


def _planned_text(name: str, value: Any) -> str:
    if value is None:
        return "counted while they are read"
    if isinstance(value, list):
        return "\n".join(f"{each['url']} ({each['timestamp'] or 'of an unknown time'})" for each in value) or "-"
    if isinstance(value, str):
        return value or "-"
    return bytes_text(value) if "bytes" in name else f"{value:,}"
