"""Plots of what a command found, by matplotlib (extra `plots`), without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfm.errors import SettingsError
from dfm.events import compared
from dfm.version import pip_install

SUFFIXES = ".png", ".svg", ".pdf"
_LOGARITHMIC = "learning_rate", "factor_rate_scale", "l2_factors", "l2_linear", "min_count_factors", "n_factors"
_PANEL = 3.2, 2.8
"""Width and height of a panel, in inches."""


def check_plot(path: str) -> None:
    """SettingsError where a plot cannot be drawn there: known before the work whose result it is to show."""
    where = Path(path)
    if where.suffix not in SUFFIXES:
        raise SettingsError(f"--plot {path}: the name must end in one of {', '.join(SUFFIXES)}")
    if not where.absolute().parent.is_dir():
        raise SettingsError(f"--plot {path}: there is no directory {where.absolute().parent}; make it")
    _pyplot()


def plot_trials(records: Sequence[Mapping[str, Any]], metric: str, path: str) -> None:
    """Draw the trials of a search: their metric by epoch, and at the furthest rung against every setting.

    records, metric: as `SearchResult` has them. Trials that diverged have no loss and are left out.
    """
    known = [
        {**record, "worth": compared(metric, record["loss"])}
        for record in records
        if record["rung"] and record["loss"] is not None
    ]
    furthest = {record["trial"]: record for record in sorted(known, key=lambda record: int(record["rung"]))}
    names = list(known[0]["settings"]) if known else []
    plt = _pyplot()
    n_columns = 4
    n_lines = -(-(len(names) + 1) // n_columns)
    figure, axes = plt.subplots(
        *(n_lines, n_columns), figsize=(n_columns * _PANEL[0], n_lines * _PANEL[1]), layout="constrained", squeeze=False
    )
    courses, *panels = axes.flat
    _draw_courses(courses, known)
    for name, panel in zip(names, panels, strict=False):
        _draw_setting(panel, name, list(furthest.values()))
    for drawn in (courses, *panels[: len(names)]):
        drawn.set_ylabel(metric.replace("_", " "))
    for unused in panels[len(names) :]:
        unused.set_axis_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_courses(axes: Any, known: Sequence[Mapping[str, Any]]) -> None:
    for trial in sorted({record["trial"] for record in known}):
        walked = sorted((record["epochs"], record["worth"]) for record in known if record["trial"] == trial)
        style = {"color": "C1", "label": "default", "zorder": 3} if trial == 0 else {"color": "0.7"}
        axes.plot(*zip(*walked, strict=True), "o-", markersize=3, linewidth=1, **style)
    axes.set(xlabel="epochs", title="trials")
    if known:
        axes.legend(frameon=False)


def _draw_setting(axes: Any, name: str, furthest: Sequence[Mapping[str, Any]]) -> None:
    for rung in sorted({record["rung"] for record in furthest}):
        there = [record for record in furthest if record["rung"] == rung]
        values, worths = [record["settings"][name] for record in there], [record["worth"] for record in there]
        axes.plot(values, worths, "o", markersize=4, color=f"C{rung - 1}", alpha=0.8, label=f"rung {rung}")
    if name in _LOGARITHMIC and all(record["settings"][name] > 0 for record in furthest):
        axes.set_xscale("log")
    axes.set(xlabel=name)
    axes.legend(frameon=False, fontsize="small")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise SettingsError(f"--plot needs matplotlib: {pip_install('plots')}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
