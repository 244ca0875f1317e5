"""Figures of a training: learning curves, calibration, ROC, precision and recall, made of what its metadata know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dfm.pages import charts
from dfm.pages.charts import Frame
from dfm.pages.page import fragment
from dfm.version import pip_install

_LONG = ("calibration_bins", "history", "columns")
_LOSSES = (
    ("train_log_loss", "log_loss"),
    ("train_rmse", "rmse"),
    ("train_loss", "loss"),
    ("train_loss", "log_loss"),
)
"""Names of losses, of training and of validation, in the records of jobs and of fits."""
_UNIT = (0.0, 1.0)


def notebook_html(title: str, metadata: Mapping[str, Any]) -> str:
    """A part of a notebook about a training: curves that its metadata know of, and the metrics of the rows that
    validated. metadata: history, validation.
    """
    history, validation = metadata.get("history", ()), metadata.get("validation", {})
    curves = charts.side_by_side(figures_of(history, validation, {}))
    return fragment(title, {"curves": curves, "validation": single_numbers(validation)})


def single_numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that are one number each."""
    return {name: value for name, value in metrics.items() if name not in _LONG}


def figures_of(
    history: Sequence[Mapping[str, Any]], validation: Mapping[str, Any], findings: Mapping[str, Any]
) -> list[str]:
    """Learning curves, and of a classification whose rows are known: calibration, ROC, precision and recall."""
    known = findings.get("curves", {})
    found = [_learning(history), _calibration(validation.get("calibration_bins") or (), known.get("predictions", ()))]
    if known:
        even = [(0.0, 0.0), (1.0, 1.0)]
        frame = Frame("false positive rate", "true positive rate", _UNIT, _UNIT)
        found.append(charts.lines("ROC", frame, {"model": known["roc"], "even": even}))
        points = known["precision_recall"]
        rate = validation.get("base_rate") or 0.0
        frame = Frame("recall", "precision", _UNIT, (0.0, charts.spanned([0.0, *(y for _, y in points)])[1]))
        by_chance = [(0.0, rate), (1.0, rate)]
        found.append(charts.lines("precision and recall", frame, {"model": points, "even": by_chance}))
    return [figure for figure in found if figure]


def plot_history(history: Sequence[Mapping[str, Any]], axes: Any = None) -> Any:
    """Losses by epoch, drawn by matplotlib (extra `plots`) on these axes, or on new ones; the axes are returned.

    Where there are several models (of seeds, or of classes) each has its lines. A dot is at the least validation loss.
    """
    if axes is None:
        axes = _pyplot().subplots(layout="constrained")[1]
    courses = _courses(history)
    for number, (of, epochs) in enumerate(courses.items()):
        name, series = _losses(epochs)
        axes.set(xlabel="epoch", ylabel=name.replace("_", " "))
        for title, points in series.items():
            is_training, colour = title == "training", f"C{number}" if len(courses) > 1 else ""
            style = {"color": colour or ("C0" if is_training else "C1"), "linestyle": "--" if is_training else "-"}
            axes.plot(*zip(*points, strict=True), label=f"{title} {of}".strip(), **style)
        if "validation" in series:
            axes.plot(*min(series["validation"], key=lambda point: point[1]), "o", color=colour or "C1")
    if courses:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    return axes


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"a plot of the history needs matplotlib: {pip_install('plots')}") from error
    return pyplot


def _courses(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The epochs of each model, by its name among several; "" of the only one."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for epoch in history:
        of = next((f"({key} {epoch[key]})" for key in ("seed", "class") if key in epoch), "")
        found.setdefault(of, []).append(epoch)
    return found


def _losses(epochs: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """The name of the loss that most is known of, and its points by epoch, of training and validation as far as there
    are any.
    """
    names = max(_LOSSES, key=lambda pair: sum(epoch.get(name) is not None for name in pair for epoch in epochs))
    series = {
        title: [(float(epoch["epoch"]), float(epoch[name])) for epoch in epochs if epoch.get(name) is not None]
        for title, name in zip(("training", "validation"), names, strict=True)
    }
    return names[1], {title: points for title, points in series.items() if points}


def _learning(history: Sequence[Mapping[str, Any]]) -> str:
    """Losses by epoch, of the first model where there are several; "" without any."""
    first = next(iter(_courses(history).values()), [])
    name, series = _losses(first)
    values = [y for points in series.values() for _, y in points]
    if not values:
        return ""
    last = max(float(epoch["epoch"]) for epoch in first)
    frame = Frame("epoch", name.replace("_", " "), (1.0, max(last, 2.0)), charts.spanned(values), counts=True)
    dots = [min(series["validation"], key=lambda point: point[1])] if "validation" in series else []
    return charts.lines("learning curves", frame, series, dots=dots)


def _calibration(bins: Sequence[Mapping[str, float]], predictions: Sequence[Mapping[str, float]]) -> str:
    """Observed by predicted rate in ten groups, before the histogram of predictions; "" without any."""
    points = [(each["predicted"], each["observed"]) for each in bins]
    if not points:
        return ""
    most = max(*(max(point) for point in points), *(each["to"] for each in predictions), 1e-9)
    highest = max((each["share"] for each in predictions), default=1.0) or 1.0
    areas = [(each["from"], each["to"], 0.9 * each["share"] / highest) for each in predictions]
    frame = Frame("predicted", "observed", (0.0, most), (0.0, most))
    series = {"observed": points, "even": [(0.0, 0.0), (most, most)]}
    caption = "calibration" + (" and histogram of predictions" if areas else "")
    return charts.lines(caption, frame, series, areas, dots=points)
