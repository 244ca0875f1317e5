"""Numeric transforms: how a number becomes a feature. One record each; nothing else in dfm lists their names.

A transform makes a bucket (an integer code, hashed like a category; code 0 is a missing number) or a value (the number
that the column's one feature carries). To add one, write its function and its record here, and its definition in the
tests.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Codes = NDArray[np.int32]

BOUNDARIES, MOMENTS = "boundaries", "moments"
"""The kinds of facts that a transform may have to learn of its column before it can be used."""


@dataclass(frozen=True)
class NumberStatistics:
    """The facts that a transform learnt of one numeric column: quantile boundaries, or mean and standard deviation."""

    boundaries: tuple[float, ...] = ()
    mean: float = 0.0
    stdev: float = 1.0

    @functools.cached_property
    def bounds(self) -> Floats:
        """The boundaries as an array: a served row has no time to make it."""
        return np.array(self.boundaries, np.float64)


NOTHING_KNOWN = NumberStatistics()


def _absent(*_: Any) -> Any:
    raise TypeError("a transform makes buckets or values, not both")


@dataclass(frozen=True, slots=True)
class Transform:
    """One way from a number to a feature.

    meaning: for help texts. makes_buckets: its feature is a category, made by `codes`; else a value, made by `values`.
    statistics: BOUNDARIES, MOMENTS or nothing. codes: numbers float64[n] (0 where missing), which are present bool[n],
    statistics -> int32[n], below `n_codes(statistics)`. names: of the codes, in order, which numbers each holds.
    values: numbers, statistics -> float64[n].
    """

    name: str
    meaning: str
    makes_buckets: bool
    statistics: str = ""
    codes: Callable[[Floats, Flags, NumberStatistics], Codes] = _absent
    n_codes: Callable[[NumberStatistics], int] = _absent
    names: Callable[[NumberStatistics], list[str]] = _absent
    values: Callable[[Floats, NumberStatistics], Floats] = _absent


# ------------------------------------------------------------------------------------------ log2-bucket ----

LOG2_BUCKETS = 2048
"""Codes: missing, negative, zero, (0, 1], (1, 2], then floor(ln(x)**2); the last holds x > e**45."""


def _log2_buckets(numbers, present, out):  # type: ignore[no-untyped-def]
    """Bucket code of each number; writes `out`, int32."""
    for i in range(out.size):
        x = numbers[i]
        if not present[i]:
            out[i] = 0
        elif x < 0.0:
            out[i] = 1
        elif x == 0.0:
            out[i] = 2
        elif x <= 2.0:
            out[i] = 3 if x <= 1.0 else 4
        else:
            out[i] = min(5 + int(np.log(x) ** 2), LOG2_BUCKETS - 1)


@functools.cache
def _kernel(function: Callable[..., None]) -> Any:
    """A function as machine code. It is imported when first used: settings read this module for its names."""
    from dfm.compilation import compiled

    return compiled(function)


def _log2_codes(numbers: Floats, present: Flags, known: NumberStatistics) -> Codes:
    codes = np.empty(len(numbers), np.int32)
    _kernel(_log2_buckets)(numbers, present, codes)
    return codes


def _log2_names(known: NumberStatistics) -> list[str]:
    edges = np.exp(np.sqrt(np.arange(LOG2_BUCKETS - 5 + 1)))
    edges[0] = 2.0  # a number is above 2 where its logarithm counts
    spans = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges[:-1])]
    return ["missing", "below 0", "0", "0 to 1", "1 to 2", *spans, f"{edges[-2]:.4g} or more"]


# --------------------------------------------------------------------------------------------- quantile ----


def _quantile_codes(numbers: Floats, present: Flags, known: NumberStatistics) -> Codes:
    """1 + number of boundaries below or at x, 0 where missing."""
    return np.where(present, 1 + np.searchsorted(known.bounds, numbers, side="right"), 0).astype(np.int32)


def _quantile_names(known: NumberStatistics) -> list[str]:
    edges = [f"{bound:.6g}" for bound in known.boundaries]
    if not edges:
        return ["missing", "any number"]
    spans = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
    return ["missing", f"below {edges[0]}", *spans, f"{edges[-1]} or more"]


# ------------------------------------------------------------------------------------------------- auto ----


def _chosen_codes(numbers: Floats, present: Flags, known: NumberStatistics) -> Codes:
    return (_quantile_codes if known.boundaries else _log2_codes)(numbers, present, known)


def _n_quantiles(known: NumberStatistics) -> int:
    return len(known.boundaries) + 2


def _n_chosen(known: NumberStatistics) -> int:
    return _n_quantiles(known) if known.boundaries else LOG2_BUCKETS


def _chosen_names(known: NumberStatistics) -> list[str]:
    return (_quantile_names if known.boundaries else _log2_names)(known)


# -------------------------------------------------------------------------------- hash-of-rounded-value ----

_DIGITS = range(10, 100)
_SMALLEST, _LARGEST = -15, 30
"""Decimal exponents that are told apart: smaller numbers are zero, larger ones share the last bucket of their sign."""
_ROUNDED_CODES = 2 + 2 * len(_DIGITS) * (_LARGEST - _SMALLEST + 1)
_POWERS = np.array([float(f"1e{exponent}") for exponent in range(_SMALLEST, _LARGEST + 1)])


def _rounded_codes(numbers: Floats, present: Flags, known: NumberStatistics) -> Codes:
    """A code for each number of two digits: 0.123 and 0.12 share one, 0.13 and 1.2 and -0.12 have others; 1 is zero."""
    sizes = np.minimum(np.abs(numbers), 9.9 * _POWERS[-1])
    place = np.searchsorted(_POWERS, sizes, side="right") - 1
    digits = np.rint(sizes / _POWERS[np.maximum(place, 0)] * _DIGITS.start).astype(np.int64)
    place, digits = place + digits // _DIGITS.stop, np.where(digits == _DIGITS.stop, _DIGITS.start, digits)
    codes = 2 + 2 * (place * len(_DIGITS) + digits - _DIGITS.start) + (numbers < 0)
    return np.where(present, np.where(place < 0, 1, codes), 0).astype(np.int32)


def _rounded_names(known: NumberStatistics) -> list[str]:
    sizes = [digits / _DIGITS.start * power for power in _POWERS for digits in _DIGITS]
    return ["missing", "0", *(f"about {sign * size:.2g}" for size in sizes for sign in (1, -1))]


# ----------------------------------------------------------------------------------------------- values ----


def beyond_rounding(deviation: Floats | float, mean: Floats | float) -> Floats:
    """A deviation, or an array of them, as it was computed; 0 where it is no more than the rounding error of the mean
    of numbers that are all alike.
    """
    return np.where(deviation > 1e-12 * np.abs(mean), deviation, 0.0)


def standardized(numbers: Floats, known: NumberStatistics) -> Floats:
    """(x - mean) / deviation; a column of one value is 0."""
    with np.errstate(over="ignore"):
        return (numbers - known.mean) / (known.stdev or 1.0)


# ---------------------------------------------------------------------------------------------- records ----

TRANSFORMS = {
    transform.name: transform
    for transform in (
        Transform(
            "auto",
            "log2-bucket, or quantile where that would leave few buckets",
            True,
            BOUNDARIES,
            _chosen_codes,
            _n_chosen,
            _chosen_names,
        ),
        Transform(
            "log2-bucket",
            "bucket of floor(ln(x)**2)",
            True,
            "",
            _log2_codes,
            lambda known: LOG2_BUCKETS,
            _log2_names,
        ),
        Transform(
            "quantile",
            "bucket, all of as many rows",
            True,
            BOUNDARIES,
            _quantile_codes,
            _n_quantiles,
            _quantile_names,
        ),
        Transform(
            "hash-of-rounded-value",
            "bucket of all numbers of the same two leading digits",
            True,
            "",
            _rounded_codes,
            lambda known: _ROUNDED_CODES,
            _rounded_names,
        ),
        Transform("standardize", "number at mean 0, deviation 1", False, MOMENTS, values=standardized),
        Transform("raw", "number as it is", False, values=lambda numbers, known: numbers),
    )
}
AUTO, LOGARITHMS = "auto", "log2-bucket"
"""Decided by the training rows (`dfm.data.bucketing`): it knows boundaries where it chose quantiles."""
DEFAULT_TRANSFORM = AUTO
"""For columns of shards."""
QUANTILE, SCALED = "quantile", "standardize"
"""For columns of tables that estimators are given; the remedy for numbers too large to learn from."""
RAW = "raw"
"""For those that are not to be standardized."""


def described_transforms() -> str:
    """All transforms, for a help text."""
    return "; ".join(f"{transform.name}: {transform.meaning}" for transform in TRANSFORMS.values())
