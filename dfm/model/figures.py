"""Figures of a training: learning curves, calibration, ROC, precision and recall, made of what its metadata know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dfm.pages import charts
from dfm.pages.charts import Frame
from dfm.pages.page import fragment

_LONG = ("calibration_bins", "history", "columns")
_LOSSES = (("train_log_loss", "log_loss"), ("train_rmse", "rmse"), ("train_loss", "loss"))
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


def _learning(history: Sequence[Mapping[str, Any]]) -> str:
    """Losses by epoch, of the first model where there are several; "" without any."""
    first = [epoch for epoch in history if epoch.get("seed") == (history[0].get("seed") if history else None)]
    names = max(_LOSSES, key=lambda pair: sum(epoch.get(name) is not None for name in pair for epoch in first))
    series = {
        title: [(float(epoch["epoch"]), float(epoch[name])) for epoch in first if epoch.get(name) is not None]
        for title, name in zip(("training", "validation"), names, strict=True)
    }
    values = [y for points in series.values() for _, y in points]
    if not values:
        return ""
    last = max(float(epoch["epoch"]) for epoch in first)
    frame = Frame("epoch", names[1].replace("_", " "), (1.0, max(last, 2.0)), charts.spanned(values))
    best = min(series["validation"], key=lambda point: point[1], default=None)
    dots = [best] if best else []
    return charts.lines("learning curves", frame, {n: p for n, p in series.items() if p}, dots=dots)


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
