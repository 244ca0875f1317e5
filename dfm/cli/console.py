"""Tables of the command line, and the console that they are printed on."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dfm.runs.display import bytes_text, number_text
from dfm.settings.job import differing
from dfm.settings.toml import to_toml

Event = dict[str, Any]
_UNBOUNDED = 10_000
"""Columns of a console that is none."""


def metrics_table(metrics: Event, title: str = "") -> Table:
    """Metrics of one evaluation, as a table of name and value; calibration bins follow."""
    table = Table("metric", "value", title=title or None)
    for name, value in metrics.items():
        if name not in ("calibration_bins", "account", "slices"):
            table.add_row(name, f"{value:,.5f}" if isinstance(value, float) else f"{value}")
    for number, one in enumerate(metrics.get("calibration_bins") or [], start=1):
        table.add_row(f"calibration bin {number}", f"predicted {one['predicted']:.4f}, observed {one['observed']:.4f}")
    return table


_BAR = 24
"""Characters of the longest bar."""


def importance_table(found: Event) -> Table:
    """The columns of a model, the most important first, each with a bar of what it is worth."""
    table = Table(
        "column", Column("rise of the loss", justify="right"), Column("missing", justify="right"), "",
        title=f"without a column the loss rises from {found['loss']:.5f} ({found['rows']:,} rows)",
    )  # fmt: skip
    most = max((record["permuted"] for record in found["columns"]), default=0.0)
    for record in found["columns"]:
        error = record["permuted_error"]
        rise = f"{record['permuted']:.5f}" + ("" if error is None else f" ± {error:.5f}")
        bar = "█" * round(_BAR * max(record["permuted"], 0.0) / most) if most > 0 else ""
        table.add_row(escape(record["column"]), rise, f"{record['missing']:.5f}", bar)
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
    for record in records:
        table.add_row(*map(escape, record["slice"].values()), *(_metric_cell(record, key) for key, _ in metrics))
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


def _metric_cell(record: Event, metric: str) -> str:
    value = record[metric]
    if metric == "calibration_low":
        high = record["calibration_high"]
        return f"{value:.2f} … {'' if high is None else f'{high:.2f}'}" if value is not None else "-"
    if isinstance(value, int):
        return f"{value:,}"
    digits = 4 if metric in ("log_loss", "rmse", "auc") else 3
    return "-" if value is None else f"{value:.{digits}f}"


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
            f"{record['trial']}", f"{record['rung']}", f"{record['epochs']}", number_text(record["loss"]), *values
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


def show_plan(planned: Event) -> None:
    """Print a dry run's findings, then what of the job is not at its default, as it stands in a job file."""
    console = wide_console()
    console.print(_plan_table(planned))
    console.print("[bold]what differs from the defaults[/] (dfm knobs lists all knobs)", highlight=False)
    console.print(to_toml(differing(planned["job"])).rstrip(), highlight=False, markup=False, soft_wrap=True)


def _plan_table(planned: Event) -> Table:
    table = Table("planned", "value", title="what this job would do")
    for name, value in planned.items():
        if name not in ("job", "columns"):
            table.add_row(name.replace("_", " "), escape(_planned_text(name, value)))
    for column, transform in planned["columns"].items():
        table.add_row(escape(f"field {column}"), transform)
    return table


def _planned_text(name: str, value: Any) -> str:
    if value is None:
        return "counted while they are read"
    if isinstance(value, str):
        return value or "-"
    return bytes_text(value) if "bytes" in name else f"{value:,}"
