"""Calibration: logits of a finished model become logits that agree with how often rows were positive.

A calibration is fitted on rows that chose nothing, from the tally that judges them as well: it adds up over partitions,
and is the same on any cluster. Platt's is a line through the logits (Platt 1999). The isotonic one pools the violators
of order among groups of rows (Ayer et al. 1955) and joins what is left at the mean logit of each pool, which keeps the
order of all rows (centred isotonic regression, Oron and Flournoy 2017).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfm.model.metrics import ClassificationTally, LogitHistogram

Floats = NDArray[np.float64]
MOST_KNOTS = 256
_ROWS_OF_A_GROUP = 100
"""Rows, as many as their weights make count, that a group of the isotonic calibration has at least: its share of
positives is then worth something.
"""
_ERRORS = 2.0
"""Standard errors that a gain is more than, to be one: of no gain at all, chance gives that in one of 40 cases."""


@dataclass(frozen=True)
class Calibration:
    """A rising function of logits: straight between its knots (scores[i], logits[i]), of `slope` before and beyond."""

    kind: str
    scores: tuple[float, ...]
    logits: tuple[float, ...]
    slope: float = 1.0

    def __call__(self, scores: ArrayLike) -> Floats:
        """Calibrated logits of raw ones, float64[n_rows]."""
        found = np.asarray(scores, np.float64)
        beyond = np.minimum(found - self.scores[0], 0.0) + np.maximum(found - self.scores[-1], 0.0)
        calibrated: Floats = np.interp(found, self.scores, self.logits) + self.slope * beyond
        return calibrated

    def moved(self, by: float) -> Calibration:
        """The same of a model whose logits are all higher by this much, as its calibrated ones are to be."""
        scores, logits = (tuple(number + by for number in each) for each in (self.scores, self.logits))
        return dataclasses.replace(self, scores=scores, logits=logits)

    @property
    def pieces(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Ends, beginnings and slopes of its straight pieces: calibrated = logits[0] + Σ slopes · (score within
        [low, high] − from), float64[n_knots + 1] each of low, high, from, slopes.
        """
        at, most = np.array(self.scores), np.finfo(np.float64).max
        slopes = np.diff(self.logits) / np.diff(at)
        low, high = np.append(-most, at), np.append(at, most)
        return low, high, np.append(at[:1], at), np.concatenate([[self.slope], slopes, [self.slope]])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` takes it back."""
        return {"kind": self.kind, "scores": [*self.scores], "logits": [*self.logits], "slope": self.slope}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration of a manifest."""
        scores, logits = (tuple(map(float, values[key])) for key in ("scores", "logits"))
        return cls(str(values["kind"]), scores, logits, float(values["slope"]))


@dataclass(frozen=True)
class Gain:
    """The mean fall of the log loss by a calibration, nats, and its standard error."""

    mean: float = 0.0
    error: float = 0.0

    @property
    def is_one(self) -> bool:
        """Whether it is more than chance would give."""
        return self.mean > _ERRORS * self.error


def gain_of(calibration: Calibration, seen: ClassificationTally) -> Gain:
    """By how much the log loss of these rows falls, each of them compared with itself."""
    histogram = seen.histogram
    raw = _logits(histogram)
    calibrated = calibration(raw)
    up, down = (np.logaddexp(0, sign * raw) - np.logaddexp(0, sign * calibrated) for sign in (-1, 1))
    mean = float((histogram.positives * up + histogram.negatives * down).sum()) / seen.weight
    square = float((histogram.positives * up**2 + histogram.negatives * down**2).sum()) / seen.weight
    return Gain(mean, math.sqrt(max(square - mean**2, 0.0) / seen.effective_rows))


def fitted(kind: str, rows: ClassificationTally) -> Calibration | str:
    """The calibration of a kind in KINDS that these rows ask for; or why there is none."""
    if not 0 < rows.positives < rows.weight:
        return f"the {rows.rows} rows to fit it on are not of both classes"
    found = KINDS[kind](_logits(rows.histogram), *_counts(rows))
    return found if found is not None else _why_none(kind, rows)


def _why_none(kind: str, rows: ClassificationTally) -> str:
    n_rows, least = rows.rows, 2 * _ROWS_OF_A_GROUP
    if kind != "isotonic":
        return "it would turn the order of the rows round"
    if rows.effective_rows < least:
        by_weight = f", which count for {rows.effective_rows:.0f} by their weights," if n_rows >= least else ""
        return f"the {n_rows} rows to fit it on{by_weight} are too few: expected {least}, for two groups of rows"
    return f"no share of positives among the {n_rows} rows to fit it on rises with the logits: all fall into one pool"


def _logits(histogram: LogitHistogram) -> Floats:
    """The mean logit of each bin, which is 1/2048 wide: that of its mean probability."""
    weight = histogram.positives + histogram.negatives
    share = histogram.probability / weight
    with np.errstate(divide="ignore"):
        logits = np.log(share) - np.log1p(-share)
    return np.clip(logits, histogram.lowest, histogram.highest)


def _counts(rows: ClassificationTally) -> tuple[Floats, Floats]:
    """Positive and negative rows by bin, as many in all as the weights make count."""
    unit = rows.effective_rows / rows.weight
    return rows.histogram.positives * unit, rows.histogram.negatives * unit


# --- Platt -----------------------------------------------------------------------------------------------


def platt(logits: Floats, positives: Floats, negatives: Floats) -> Calibration | None:
    """The line a z + b of least log loss, by Newton's method (Lin, Lin and Weng 2007); None where it would fall.

    Labels are (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2), as Platt has them, so that rows which can be told apart without a
    mistake give a finite line. float64[n] each: logits, and how many rows of either class have them.
    """
    n_up, n_down = positives.sum(), negatives.sum()
    up = positives * (n_up + 1) / (n_up + 2) + negatives / (n_down + 2)
    rows = positives + negatives
    design = np.stack([logits, np.ones(len(logits))])
    line = np.array([0.0, math.log((n_up + 1) / (n_down + 1))])
    for _ in range(100):
        share = 1 / (1 + np.exp(-(line @ design)))
        slope = design @ (rows * share - up)
        curvature = (design * (rows * share * (1 - share))) @ design.T + 1e-12 * np.eye(2)
        line, moved = _stepped(line, np.linalg.solve(curvature, slope), lambda at: _loss(at @ design, up, rows))
        if moved < 1e-10:
            break
    return Calibration("platt", (0.0,), (float(line[1]),), float(line[0])) if line[0] > 0 else None


def _stepped(line: Floats, step: Floats, loss: Callable[[Floats], float]) -> tuple[Floats, float]:
    """The line after a step, halved until the loss does not rise, and how far that was."""
    before = loss(line)
    for halvings in range(50):
        taken = step * 0.5**halvings
        if loss(line - taken) <= before:
            return line - taken, float(np.abs(taken).max())
    return line, 0.0


def _loss(logits: Floats, up: Floats, rows: Floats) -> float:
    return float((rows * np.logaddexp(0, logits) - up * logits).sum())


# --- isotonic --------------------------------------------------------------------------------------------


def isotonic(logits: Floats, positives: Floats, negatives: Floats) -> Calibration | None:
    """The rising function through the pools of groups of rows; None where all rows are one pool.

    Groups of rising logit are of 100 rows or more, and at most as many as there are knots. Each has one more row, of
    the mean label, so that none is without hope. float64[n] each, as `platt` takes them.
    """
    rows = positives + negatives
    n_groups = int(min(max(rows.sum() // _ROWS_OF_A_GROUP, 1), MOST_KNOTS))
    group = np.minimum((np.cumsum(rows) - rows / 2) * n_groups / rows.sum(), n_groups - 1).astype(np.int64)
    base, found = positives.sum() / rows.sum(), np.unique(group)
    count, up, total = (np.bincount(group, each, n_groups)[found] for each in (rows, positives, rows * logits))
    starts = pooled((up + base) / (count + 1), count + 1)
    if len(starts) < 2:
        return None
    sizes = np.diff(np.append(starts, len(found)))
    count, up, total = (np.add.reduceat(each, starts) for each in (count, up, total))
    share = (up + sizes * base) / (count + sizes)
    at, values = total / count, np.log(share) - np.log1p(-share)
    return Calibration("isotonic", tuple(at.tolist()), tuple(values.tolist()))


def pooled(values: Floats, weights: Floats) -> NDArray[np.int64]:
    """The beginnings of the pools of a rising least-squares fit, int64[n_pools]: what does not rise shares a pool."""
    starts: list[int] = []
    means: list[float] = []
    masses: list[float] = []
    for number, (mean, mass) in enumerate(zip(values.tolist(), weights.tolist(), strict=True)):
        start = number
        while means and means[-1] >= mean:
            mean = (means[-1] * masses[-1] + mean * mass) / (masses[-1] + mass)
            mass += masses.pop()
            start = starts.pop()
            means.pop()
        starts.append(start)
        means.append(mean)
        masses.append(mass)
    return np.array(starts, np.int64)


KINDS: dict[str, Callable[[Floats, Floats, Floats], Calibration | None]] = {"platt": platt, "isotonic": isotonic}
"""By name: what fits a calibration."""
