"""Metrics as mergeable tallies: each partition is tallied where it lies, and the tallies add up.

A tally is a pure value (NumPy arrays and numbers, picklable). `a + b` is the tally of both sets of rows;
adding in a fixed order gives fixed bytes. Losses and sums are exact up to float64 rounding. What needs rows
in the order of their scores (AUC, PR AUC, calibration bins) comes from a fixed histogram of logits: rows in
one of its 65,536 bins count as tied, and `auc_error` says how much that can matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfm.data.transforms import SCALED
from dfm.errors import DataError, DivergenceError
from dfm.storage.arrays import distinct

N_BINS = 1 << 16
MAX_LOGIT = 16.0
"""The histogram covers logits in [-16, 16), bins are 1/2048 wide; the outermost hold what lies outside."""
N_CALIBRATION_BINS = 10
_LEAST_LABEL = float(np.finfo(np.float32).tiny)
"""The least label, but for its sign, that errors are divided by: the least normal number of 32 bits."""
GROUP_AUC = "group_auc"
"""The metric of the order within groups, which needs all rows of a group at once (see `dfm.model.group_auc`)."""

Floats = NDArray[np.float64]


class Tally(Protocol):
    """The part of a tally that training needs; `loss_name` is the metric early stopping compares (less is better)."""

    loss_name: ClassVar[str]

    def __add__(self, other: Any) -> Any: ...

    def metrics(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False, slots=True)
class LogitHistogram:
    """Rows by logit; only bins that hold weight are stored.

    bins uint16[n], ascending; float64[n] each: positives, negatives, weight of the rows labelled 1 and 0;
    probability, weighted sum of predicted probabilities; lowest, highest, extreme logits in the bin.
    """

    bins: NDArray[np.uint16]
    positives: Floats
    negatives: Floats
    probability: Floats
    lowest: Floats
    highest: Floats

    @classmethod
    def from_rows(cls, logits: Floats, probability: Floats, labels: Floats, weights: Floats) -> LogitHistogram:
        """All arrays float64[n_rows]; labels from 0 to 1; rows of weight 0 leave no trace."""
        kept = weights > 0
        if not kept.all():
            logits, probability, labels, weights = (each[kept] for each in (logits, probability, labels, weights))
        inside = np.clip(logits, -MAX_LOGIT, MAX_LOGIT)
        row_bins = np.minimum((inside + MAX_LOGIT) * (N_BINS / (2 * MAX_LOGIT)), N_BINS - 1).astype(np.int64)
        lowest = np.full(N_BINS, np.inf)
        highest = np.full(N_BINS, -np.inf)
        np.minimum.at(lowest, row_bins, logits)
        np.maximum.at(highest, row_bins, logits)
        used = np.flatnonzero(np.isfinite(lowest))

        def total(amounts: Floats) -> Floats:
            return np.bincount(row_bins, amounts, N_BINS)[used].astype(np.float64)

        return cls(
            used.astype(np.uint16),
            total(weights * labels),
            total(weights * (1 - labels)),
            total(weights * probability),
            lowest[used],
            highest[used],
        )

    def __add__(self, other: LogitHistogram) -> LogitHistogram:
        bins = distinct(np.concatenate([self.bins, other.bins]))
        mine, theirs = np.searchsorted(bins, self.bins), np.searchsorted(bins, other.bins)

        def total(ours: Floats, others: Floats) -> Floats:
            sums = np.zeros(len(bins))
            sums[mine] = ours
            sums[theirs] += others
            return sums

        lowest, highest = np.full(len(bins), np.inf), np.full(len(bins), -np.inf)
        lowest[mine], highest[mine] = self.lowest, self.highest
        lowest[theirs] = np.minimum(lowest[theirs], other.lowest)
        highest[theirs] = np.maximum(highest[theirs], other.highest)
        return LogitHistogram(
            bins,
            total(self.positives, other.positives),
            total(self.negatives, other.negatives),
            total(self.probability, other.probability),
            lowest,
            highest,
        )

    def auc(self) -> tuple[float, float]:
        """ROC AUC with the rows of a bin as ties, and the most by which it can differ from the exact one.

        A pair of a positive and a negative counts 1 in the right order, 1/2 when tied, so a pair inside a
        bin is off by at most 1/2; where all logits of a bin are equal the ties are real. NaN for one class.
        """
        pairs = self.positives.sum() * self.negatives.sum()
        if pairs == 0:
            return math.nan, math.nan
        negatives_below = np.cumsum(self.negatives) - self.negatives
        ordered = (self.positives * negatives_below).sum()
        tied = self.positives * self.negatives
        blurred = tied[self.lowest < self.highest].sum()
        return float((ordered + tied.sum() / 2) / pairs), float(blurred / 2 / pairs)

    def pr_auc(self) -> float:
        """Average precision: Σ (recall_i − recall_{i−1}) · precision_i, one falling threshold per bin."""
        positives, negatives = self.positives[::-1], self.negatives[::-1]
        if positives.sum() == 0:
            return math.nan
        found = np.cumsum(positives)
        return float(np.sum(positives * found / (found + np.cumsum(negatives))) / found[-1])

    def at_threshold(self, probability: float) -> dict[str, float]:
        """Accuracy, precision, recall and F1 where rows from this probability on count as positive; NaN where a class
        of rows is empty. Where the threshold's logit is no multiple of 1/2048, rows of its bin count as below it.
        """
        logit = math.log(probability) - math.log1p(-probability)
        above = self.lowest >= logit
        found, false = (float(each[above].sum()) for each in (self.positives, self.negatives))
        missed, right = (float(each[~above].sum()) for each in (self.positives, self.negatives))
        return {
            "threshold": probability,
            "accuracy": _ratio(found + right, found + false + missed + right),
            "precision": _ratio(found, found + false),
            "recall": _ratio(found, found + missed),
            "f1": _ratio(2 * found, 2 * found + false + missed),
        }

    def calibration_bins(self) -> list[dict[str, float]]:
        """Ten groups of equal weight by rising logit: mean predicted probability, observed rate, weight.

        A bin of the histogram that crosses the border of two groups is shared out in proportion.
        """
        weight = np.concatenate([[0.0], np.cumsum(self.positives + self.negatives)])
        if weight[-1] == 0:
            return []
        borders = np.linspace(0, weight[-1], N_CALIBRATION_BINS + 1)
        mass = weight[-1] / N_CALIBRATION_BINS

        def means(amounts: Floats) -> Floats:
            running = np.concatenate([[0.0], np.cumsum(amounts)])
            shares: Floats = np.diff(np.interp(borders, weight, running)) / mass
            return shares

        pairs = zip(means(self.probability), means(self.positives), strict=True)
        return [{"predicted": float(p), "observed": float(y), "weight": float(mass)} for p, y in pairs]


@dataclass(frozen=True, eq=False, slots=True)
class ClassificationTally:
    """Rows, their weight, the sum of the squares of their weights, and sums of labels (positives), loss (nats) and
    probability; the histogram.
    """

    loss_name: ClassVar[str] = "log_loss"

    rows: int
    weight: float
    squares: float
    positives: float
    loss: float
    probability: float
    histogram: LogitHistogram

    @property
    def effective_rows(self) -> float:
        """Rows of one weight that would say as much (Kish 1965): (Σ weight)² / Σ weight²; 0 where none weighs any."""
        return self.weight * self.weight / self.squares if self.squares else 0.0

    @classmethod
    def empty(cls) -> Self:
        """The tally of no rows, which changes no sum."""
        return cls.from_scores((), ())

    @classmethod
    def from_scores(cls, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Self:
        """scores float[n_rows] are logits, labels 0, 1 or shares of 1; weights float[n_rows], None or empty: all 1."""
        logits, targets, masses = checked_rows(scores, labels, weights)
        if not np.all((targets >= 0) & (targets <= 1)):
            wrong = targets[(targets < 0) | (targets > 1)][0]
            raise DataError(f"the label {wrong} is not legal in classification: expected 0 or 1, or a share between.")
        # log(1 + e^z) − yz without overflow; e^{−|z|} serves loss and probability alike
        shrunk = np.exp(-np.abs(logits))
        losses = np.maximum(logits, 0) + np.log1p(shrunk) - targets * logits
        probability = np.where(logits >= 0, 1.0, shrunk) / (1 + shrunk)
        return cls(
            len(logits),
            _total(masses),
            _total(masses * masses),
            _total(masses * targets),
            _total(masses * losses),
            _total(masses * probability),
            LogitHistogram.from_rows(logits, probability, targets, masses),
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.rows + other.rows,
            self.weight + other.weight,
            self.squares + other.squares,
            self.positives + other.positives,
            self.loss + other.loss,
            self.probability + other.probability,
            self.histogram + other.histogram,
        )

    def metrics(self) -> dict[str, Any]:
        """JSON-ready metrics; None where the rows do not define one (no rows, a single class).

        normalized_entropy is the log loss over that of always answering base_rate (He et al. 2014);
        calibration is the sum of probabilities over the sum of labels; log losses are in nats.
        """
        base_rate = _ratio(self.positives, self.weight)
        log_loss = _ratio(self.loss, self.weight)
        auc, auc_error = self.histogram.auc()
        values = {
            "log_loss": log_loss,
            "auc": auc,
            "auc_error": auc_error,
            "pr_auc": self.histogram.pr_auc(),
            "normalized_entropy": _ratio(log_loss, _entropy(base_rate)),
            "calibration": _ratio(self.probability, self.positives),
            "base_rate": base_rate,
            "weight": self.weight,
        }
        return {
            **_finite_or_none(values),
            "rows": self.rows,
            "calibration_bins": self.histogram.calibration_bins(),
        }

    def at_threshold(self, probability: float) -> dict[str, float | None]:
        """As `LogitHistogram.at_threshold`, JSON-ready."""
        return _finite_or_none(self.histogram.at_threshold(probability))


class MarginTally(ClassificationTally):
    """The same of scores that stand for no probability: a row is predicted to be of class 1 where its score is not
    negative.
    """

    __slots__ = ()
    loss_name: ClassVar[str] = "error_rate"

    def metrics(self) -> dict[str, Any]:
        """JSON-ready: what follows from the order of the scores, and the share of rows on the wrong side of 0."""
        known = super().metrics()
        above = self.histogram.bins >= N_BINS // 2
        wrong = self.histogram.negatives[above].sum() + self.histogram.positives[~above].sum()
        kept = {name: known[name] for name in ("auc", "auc_error", "pr_auc", "base_rate", "weight", "rows")}
        return {**_finite_or_none({"error_rate": _ratio(float(wrong), self.weight)}), **kept}


class RankTally(MarginTally):
    """The same of scores that may be compared within a group of rows alone, so that they have no sides."""

    __slots__ = ()
    loss_name: ClassVar[str] = GROUP_AUC

    def metrics(self) -> dict[str, Any]:
        """JSON-ready: what follows from the order of the scores of all rows."""
        known = super().metrics()
        return {name: value for name, value in known.items() if name != MarginTally.loss_name}


@dataclass(frozen=True, eq=False, slots=True)
class RegressionTally:
    """Rows, their weight, and weighted sums of errors (prediction − label): plain, absolute, squared; relative: of
    absolute errors in parts of the label, over rows whose label is not 0, with their weight.

    label_mean and label_spread (weighted sum of squared distances from that mean) are merged by Chan et al.
    (1979): the difference of two large sums of squares would lose the digits that r2 needs.
    """

    loss_name: ClassVar[str] = "rmse"

    rows: int
    weight: float
    error: float
    absolute_error: float
    squared_error: float
    label_mean: float
    label_spread: float
    relative_error: float
    relative_weight: float

    @classmethod
    def empty(cls) -> RegressionTally:
        """The tally of no rows, which changes no sum."""
        return cls.from_scores((), ())

    @classmethod
    def from_scores(cls, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> RegressionTally:
        """scores, labels float[n_rows] in the label's unit; weights float[n_rows], None or empty: all 1."""
        predictions, targets, masses = checked_rows(scores, labels, weights)
        errors = predictions - targets
        weight = _total(masses)
        mean = _total(masses * targets) / weight if weight else 0.0
        known = np.abs(targets) >= _LEAST_LABEL
        return cls(
            len(errors),
            weight,
            _total(masses * errors),
            _total(masses * np.abs(errors)),
            _total(masses * errors**2),
            mean,
            _total(masses * (targets - mean) ** 2),
            _total(masses[known] * np.abs(errors[known] / targets[known])),
            _total(masses[known]),
        )

    def __add__(self, other: RegressionTally) -> RegressionTally:
        weight = self.weight + other.weight
        share = other.weight / weight if weight else 0.0
        distance = other.label_mean - self.label_mean
        return RegressionTally(
            self.rows + other.rows,
            weight,
            self.error + other.error,
            self.absolute_error + other.absolute_error,
            self.squared_error + other.squared_error,
            self.label_mean + distance * share,
            self.label_spread + other.label_spread + distance**2 * self.weight * share,
            self.relative_error + other.relative_error,
            self.relative_weight + other.relative_weight,
        )

    def metrics(self) -> dict[str, Any]:
        """JSON-ready metrics in the unit of the label; None where the rows do not define one."""
        # below this the spread is the rounding error of the mean: the labels are all the same
        spread = self.label_spread if self.label_spread > self.weight * (1e-12 * self.label_mean) ** 2 else 0.0
        values = {
            "rmse": math.sqrt(_ratio(self.squared_error, self.weight)),
            "mae": _ratio(self.absolute_error, self.weight),
            "mean_error": _ratio(self.error, self.weight),
            "mape": _ratio(self.relative_error, self.relative_weight),
            "r2": 1 - _ratio(self.squared_error, spread),
            "weight": self.weight,
        }
        return {**_finite_or_none(values), "rows": self.rows}


TALLIES: dict[str, type[ClassificationTally] | type[RegressionTally]] = {
    "classification": ClassificationTally,
    "regression": RegressionTally,
}
"""The tally of each model.task."""


def checked_rows(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """Scores, labels and weights as float64[n_rows], refused where not finite or not of one length."""
    values, targets = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    masses = np.asarray(() if weights is None else weights, np.float64)
    if masses.size == 0:
        masses = np.ones(len(values))
    if not values.shape == targets.shape == masses.shape == (len(values),):
        raise DataError(
            f"scores, labels and weights have shapes {values.shape}, {targets.shape}, {masses.shape}: "
            "expected one number of each per row."
        )
    lost = int(np.count_nonzero(~np.isfinite(values)))
    if lost:
        raise not_finite(lost, len(values))
    if not np.all(np.isfinite(targets)):
        raise DataError("a label is not a finite number. Correct it, or skip bad rows with data.on_bad_rows.")
    if not np.all(np.isfinite(masses) & (masses >= 0)):
        raise DataError("a sample weight is negative or not finite: expected 0 or more. Correct that column.")
    return values, targets, masses


def not_finite(lost: int, n_rows: int) -> DivergenceError:
    """The error of a model that has no finite score for so many of some rows."""
    return DivergenceError(
        f"{lost} of {n_rows} scores are not finite numbers. Try a smaller training.learning_rate, or the transform "
        f"{SCALED} for numeric columns that are taken as they are. Where it is few rows whose numbers are far beyond "
        "the others', correct them, or choose quantile or log2-bucket, or model.clip."
    )


def _total(amounts: Floats) -> float:
    """NumPy's own pairwise sum: a BLAS dot product may differ with the number of threads."""
    return float(amounts.sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _entropy(rate: float) -> float:
    """Log loss of always answering the true rate, nats; 0 for one class alone."""
    return -sum(share * math.log(share) for share in (rate, 1 - rate) if share > 0)


def _finite_or_none(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
