"""Which buckets a numeric column gets where nobody says: the transform "auto".

Buckets of the logarithm suit what is counted: visits, prices, sizes. They put all of (0, 1] into one bucket, all that
is negative into another, and a year of timestamps into a third, so that a click rate, a score or a standardized number
would say nothing. Such columns get quantiles. The choice is made from the training rows, and a model keeps it as the
boundaries of the column: none means logarithms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dfm.data.transforms import LOGARITHMS, NOTHING_KNOWN, QUANTILE, TRANSFORMS, NumberStatistics

_FEW = 4.0
"""Fewer buckets than this are too few where quantiles would give more: numbers of mean 0 and deviation 1 have 2.6, ages
8, even numbers up to 10 have 7."""
_GAIN = 2.0
"""By how much quantiles must divide a column better: of small counts, and of numbers that are 0 but for a few, they
make no more."""


def wants_quantiles(values: NDArray[np.float64], weights: NDArray[np.float64], quantiles: NumberStatistics) -> bool:
    """Whether quantiles divide a column where logarithms do not. values, weights: float64[n] of its rows."""
    present = np.ones(len(values), np.bool_)
    coarse = effective_buckets(TRANSFORMS[LOGARITHMS].codes(values, present, NOTHING_KNOWN), weights)
    fine = effective_buckets(TRANSFORMS[QUANTILE].codes(values, present, quantiles), weights)
    return coarse < _FEW and fine >= _GAIN * coarse


def effective_buckets(codes: NDArray[np.int32], weights: NDArray[np.float64]) -> float:
    """As many equal buckets divide rows as well: 1 / Σ p², p the shares of the buckets; 1.0 for one bucket alone."""
    shares = np.bincount(codes, weights) / weights.sum()
    return float(1.0 / (shares**2).sum())
