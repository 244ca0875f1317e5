"""Labels of any kind, as the kernels take them: numbers of classes, or numbers in a unit of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets

from dfm.errors import DataError

_NO_FLOATS = np.zeros(0, np.float32)
NOTHING_WEIGHS = "all sample weights are 0: there is nothing to learn from; pass a positive one"


def one_class_only(label: Any) -> str:
    """The error of labels that are all this one."""
    return f"y has one class only, {label!r}: a classifier needs two to tell apart"


NUMBERS, TEXTS = "numbers", "texts"


@dataclass(frozen=True)
class LabelEncoding:
    """Encoding of labels as trained: classes (their numbers are stored) or a unit and the least legal number; weights
    by class, if any.
    """

    classes: NDArray[Any] | None = None
    mean: float = 0.0
    scale: float = 1.0
    class_weights: NDArray[np.float64] | None = None
    mean_weight: float = 1.0
    least: float = -math.inf

    @property
    def stored_as(self) -> str:
        """NUMBERS or TEXTS, as which labels that files have as either are read; "" where the fit does not tell."""
        if self.classes is None:
            return ""
        kind = self.classes.dtype.kind
        texts = kind in "US" or (kind == "O" and all(isinstance(each, str) for each in self.classes))
        return TEXTS if texts else NUMBERS if kind in "iuf" else ""

    def check(self, summary: LabelSummary) -> None:
        """DataError where a label is none of the classes, or less than is legal."""
        if self.classes is not None:
            self.codes(summary.classes)
        elif summary.least < self.least:
            raise DataError(f"y holds {summary.least:g}, and the loss is for counts: expected {self.least:g} or more")

    def codes(self, labels: NDArray[Any]) -> NDArray[np.intp]:
        """Numbers of the classes of labels, intp[n]. DataError where one is none of them."""
        assert self.classes is not None
        known = self.classes.tolist()
        try:
            found = np.minimum(np.searchsorted(self.classes, labels), len(known) - 1)
        except TypeError as error:  # objects of several types have no order
            raise DataError(f"y does not fit the classes {known} ({error}); make it of their type") from error
        unknown = labels[self.classes[found] != labels]
        if len(unknown):
            raise DataError(f"y holds {unknown[:1].tolist()[0]!r}, which is none of the classes {known}")
        return found

    def labels(self, y: Any) -> NDArray[np.float32]:
        """Labels as rows store them."""
        y = np.asarray(y)
        if self.classes is None:
            return ((y.astype(np.float64) - self.mean) / self.scale).astype(np.float32)
        return self.codes(y).astype(np.float32)

    def weights(self, codes: NDArray[np.float32], given: Any) -> NDArray[np.float32]:
        """Weights of rows relative to the mean of those that weigh anything; empty where all count the same."""
        masses = None if given is None else np.asarray(given, np.float64)
        if self.class_weights is not None:
            own = self.class_weights[codes.astype(np.intp)]
            masses = own if masses is None else own * masses
        return _NO_FLOATS if masses is None else (masses / self.mean_weight).astype(np.float32)


@dataclass(frozen=True)
class LabelSummary:
    """Labels of a chunk: rows, distinct values and their weights, or weight, mean and squared deviations. counted: of
    the rows that weigh anything how many, by class; of numbers one amount.
    """

    n_rows: int
    classes: NDArray[Any]
    counts: NDArray[np.int64]
    counted: NDArray[np.int64]
    masses: NDArray[np.float64]
    weight: float
    mean: float
    squares: float
    least: float = 0.0
    """The smallest of numbers."""

    @property
    def mean_weight(self) -> float:
        """The mean weight of rows that weigh anything; 1 where there are none."""
        return self.weight / int(self.counted.sum()) if self.weight else 1.0

    @property
    def deviation(self) -> float:
        """Standard deviation of numbers; 1 where they are constant."""
        return 1.0 if self.is_constant else self._spread

    @property
    def is_constant(self) -> bool:
        """Whether numbers differ by no more than the rounding error of their mean."""
        return self._spread <= 1e-12 * abs(self.mean)

    @property
    def _spread(self) -> float:
        return float((self.squares / self.weight) ** 0.5) if self.weight else 0.0


def summarise_labels(y: Any, weights: Any, is_classification: bool) -> LabelSummary:
    """Summary of the labels of some rows, needed before any can be trained on."""
    labels = np.asarray(y)
    masses = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    if len(masses) != len(labels) or not np.isfinite(masses).all() or (masses < 0).any():
        raise DataError("sample_weight must have one finite number, 0 or more, for every row")
    if is_classification:
        classes, codes = np.unique(labels, return_inverse=True)
        counts = np.bincount(codes, minlength=len(classes)).astype(np.int64)
        counted = np.bincount(codes[masses > 0], minlength=len(classes)).astype(np.int64)
        sums = np.bincount(codes, masses, minlength=len(classes)).astype(np.float64)
        return LabelSummary(len(labels), classes, counts, counted, sums, float(masses.sum()), 0.0, 0.0)
    numbers = labels.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise DataError("y holds NaN or infinity; drop these rows")
    weight = float(masses.sum())
    mean = float(masses @ numbers / weight) if weight else 0.0
    nothing = np.zeros(0)
    squares = float(masses @ (numbers - mean) ** 2)
    no_counts, counted = np.zeros(0, np.int64), np.array([np.count_nonzero(masses)])
    least = float(numbers.min(initial=np.inf))
    return LabelSummary(len(labels), nothing, no_counts, counted, nothing, weight, mean, squares, least)


def check_present(y: Any) -> None:
    """DataError where a label is missing, or infinite."""
    labels = np.asarray(y)
    missing = _missing(y, labels)
    if missing.any():
        row = int(missing.argmax())
        raise DataError(f"y holds {labels[row]} in row {row}, which is no label; drop such rows, or fill them in")


def _missing(y: Any, labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows whose label is missing or infinite, bool[n_rows]. labels: y as an array."""
    kind = labels.dtype.kind
    if kind == "f":
        return ~np.isfinite(labels)
    if kind in "mM":
        return np.isnat(labels)
    if kind != "O":
        return np.zeros(len(labels), bool)
    if hasattr(y, "isna"):
        return np.asarray(y.isna(), bool)
    # Whether NaN is itself, Python denies, and the NA of pandas answers NA.
    return np.array([label is None or str(label == label) != "True" for label in labels], bool)


def check_classes(classes: NDArray[Any]) -> None:
    """DataError where the distinct labels of a chunk are no classes, as scikit-learn has it: numbers with fractions."""
    found = np.array(classes.tolist()) if classes.dtype.kind == "O" else classes
    try:
        # Each stands twice, as scikit-learn warns where hardly any does.
        check_classification_targets(np.repeat(found, 2))
    except (TypeError, ValueError) as error:
        first = ", ".join(str(label) for label in classes[:3])
        raise DataError(f"its y holds {first}, …, which are no classes ({error})") from error


def add_summaries(parts: Sequence[LabelSummary]) -> LabelSummary:
    """The summary of all chunks."""
    classes = np.unique(np.concatenate([part.classes for part in parts]))
    counts, counted = np.zeros(len(classes), np.int64), np.zeros(max(len(classes), 1), np.int64)
    masses = np.zeros(len(classes))
    weight, mean, squares = 0.0, 0.0, 0.0
    for part in parts:
        at = np.searchsorted(classes, part.classes)
        counts[at] += part.counts
        counted[at if len(classes) else slice(len(part.counted))] += part.counted
        masses[at] += part.masses
        total = weight + part.weight
        share, delta = part.weight / total if total else 0.0, part.mean - mean
        squares += part.squares + delta**2 * weight * share
        weight, mean = total, mean + delta * share
    least = min(part.least for part in parts)
    n_rows = sum(part.n_rows for part in parts)
    return LabelSummary(n_rows, classes, counts, counted, masses, weight, mean, squares, least)
