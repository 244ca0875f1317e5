"""Parts of update rules: formulas on vectors or float32 scalars, inlined into the passes that call them.

L2 is applied per touch: a row of weight c minimises c * (loss + l2/2 * sum of θ² over what the row touches). Frequent
features are so regularised in proportion to their evidence, as in libFM and xLearn. A lazy-exact decay of untouched
features would have to know the gap since the last touch, and with accumulators has no closed form.
"""

from __future__ import annotations

import numpy as np

from dfm.compilation import part
from dfm.kernels.simd import fma, maximum, minimum, rsqrt_guess, sqrt

__all__ = [
    "descend",
    "descend_by_root",
    "fma",
    "formula",
    "maximum",
    "minimum",
    "reciprocal_root",
    "running_mean",
    "sqrt",
]

formula = part()

_ONE = np.float32(1)
_SERIES = tuple(np.float32(c) for c in (0.49999833, 0.37500026, 0.31393564, 0.27410909))
"""(1 - e)^(-1/2) = 1 + e (c0 + c1 e + c2 e² + c3 e³) within 2.4e-8 for the |e| <= 0.0691 that `rsqrt_guess` leaves."""


@formula
def reciprocal_root(x):  # type: ignore[no-untyped-def]
    """1 / sqrt(x) within 1.2e-7 relative, of float32 x > 0 or a vector; finite at 0.

    Plain arithmetic instead of square root and division, which share one slow unit, and instead of the processor's
    estimate, which differs between vendors. One polynomial in e = 1 - x y² is shorter than two Newton steps.
    """
    guess = rsqrt_guess(x)
    e = fma(-(x * guess), guess, _ONE)
    series = fma(fma(fma(_SERIES[3], e, _SERIES[2]), e, _SERIES[1]), e, _SERIES[0])
    return fma(guess * e, series, guess)


@formula
def descend(weight, gradient, rate):  # type: ignore[no-untyped-def]
    """θ - η g."""
    return fma(-rate, gradient, weight)


@formula
def descend_by_root(weight, accumulator, gradient, rate):  # type: ignore[no-untyped-def]
    """G + g², θ - η g / sqrt(G) (Duchi, Hazan, Singer 2011); returns (θ, G)."""
    accumulator = fma(gradient, gradient, accumulator)
    return fma(-rate * gradient, reciprocal_root(accumulator), weight), accumulator


@formula
def running_mean(average, sample, decay):  # type: ignore[no-untyped-def]
    """β a + (1 - β) x, where the sample has the share 1 - β."""
    return fma(sample - average, _ONE - decay, average)
