"""Curves of a classification for a chart: few points of what a tally knows, JSON-ready."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.model.metrics import ClassificationTally

_POINTS, _BARS = 120, 40
_TAIL = 0.005
"""Share of the rows that may lie beyond the last bar of the predictions."""


def curves_of(tally: ClassificationTally) -> dict[str, Any]:
    """roc: pairs of false and true positive rate; precision_recall: pairs of recall and precision; predictions:
    records of from, to, share, the last of which has all rows beyond it. Empty where one class has no row.
    """
    histogram = tally.histogram
    positives, negatives = histogram.positives[::-1], histogram.negatives[::-1]
    n_up, n_down = positives.sum(), negatives.sum()
    if not n_up or not n_down:
        return {}
    found, false = np.cumsum(positives), np.cumsum(negatives)
    chosen = _spread(found / n_up + false / n_down)
    recall, precision = found[chosen] / n_up, found[chosen] / (found[chosen] + false[chosen])
    roc = np.stack([false[chosen] / n_down, recall], axis=1)
    return {
        "roc": [[0.0, 0.0], *_rounded(roc)],
        "precision_recall": _rounded(np.stack([recall, precision], axis=1)),
        "predictions": _bars(tally),
    }


def _spread(travelled: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of about equally spaced points on a way, the last one among them."""
    goals = np.linspace(travelled[0], travelled[-1], _POINTS)
    return np.unique(np.append(np.searchsorted(travelled, goals), len(travelled) - 1).clip(max=len(travelled) - 1))


def _bars(tally: ClassificationTally) -> list[dict[str, float]]:
    histogram = tally.histogram
    weight = histogram.positives + histogram.negatives
    prediction = histogram.probability / weight
    share = weight / weight.sum()
    within = np.cumsum(share) <= 1 - _TAIL
    most = float(prediction[within].max()) if within.any() else float(prediction.max())
    borders = np.linspace(0.0, most, _BARS + 1)
    bar = np.minimum(np.searchsorted(borders[1:-1], prediction, side="right"), _BARS - 1)
    shares = np.bincount(bar, share, _BARS).tolist()
    return [
        {"from": float(low), "to": float(high), "share": round(each, 6)}
        for low, high, each in zip(borders, borders[1:], shares, strict=False)
    ]


def _rounded(points: NDArray[np.float64]) -> list[list[float]]:
    return [[round(x, 5), round(y, 5)] for x, y in points.tolist()]
