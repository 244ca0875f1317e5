"""Exponentials and logarithms in float64, made of arithmetic only, so that every machine gives the same bytes.

The C library's functions differ between machines in the last bit. These are scalar functions that Numba compiles; none
raises, nan gives nan.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

_LOG2_E = 1.4426950408889634
# ln 2 in two parts: multiples of the first are exact in float64, the second is the rest (Cody and Waite, 1980).
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
_LARGEST = 64.0
_POWERS = 2.0 ** -np.arange(int(_LARGEST * _LOG2_E) + 2, dtype=np.float64)
_inlined = njit(nogil=True, forceinline=True, error_model="numpy")


@njit(nogil=True, forceinline=True, no_cfunc_wrapper=True)
def exponential(distance: float) -> Any:
    """exp(-distance) for distance >= 0, within 1e-14 relative; beyond 64, or for nan, exp(-64)."""
    distance = distance if distance < _LARGEST else _LARGEST
    n = np.int64(distance * _LOG2_E + 0.5)
    r = (n * _LN2_HIGH - distance) + n * _LN2_LOW
    # Taylor series on |r| <= ln(2) / 2, even and odd powers apart, since two short chains are faster than a long one.
    s = r * r
    even = 1.0 + s * (1 / 2 + s * (1 / 24 + s * (1 / 720 + s * (1 / 40320 + s * (1 / 3628800)))))
    odd = 1.0 + s * (1 / 6 + s * (1 / 120 + s * (1 / 5040 + s * (1 / 362880 + s * (1 / 39916800)))))
    return (even + r * odd) * _POWERS[n]


@njit(nogil=True, forceinline=True, no_cfunc_wrapper=True)
def log_of_one_plus(u: float) -> Any:
    """log(1 + u) for u in [0, 1], within 1e-13: 2 artanh(u / (2 + u)) as a series."""
    s = u / (2.0 + u)
    t = s * s
    low = 1.0 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11)))))
    high = 1 / 13 + t * (1 / 15 + t * (1 / 17 + t * (1 / 19 + t * (1 / 21 + t * (1 / 23)))))
    cubed = t * t * t
    return 2.0 * s * (low + cubed * cubed * high)


_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -1080, 1030
_ALL_POWERS = np.ldexp(1.0, np.arange(_LOWEST_EXPONENT // 2 - 1, _HIGHEST_EXPONENT // 2 + 2))
_ZERO_POWER = -(_LOWEST_EXPONENT // 2 - 1)
_SQRT_HALF = 0.7071067811865476


@_inlined
def _reduced(x: float) -> Any:
    """(n, r) with x = n ln 2 + r and |r| <= ln(2) / 2, for finite x of moderate size."""
    n = math.floor(x * _LOG2_E + 0.5)
    return n, (x - n * _LN2_HIGH) - n * _LN2_LOW


@_inlined
def _expm1_series(r: float) -> Any:
    """exp(r) - 1 for |r| <= ln(2) / 2: Taylor, even and odd powers apart."""
    s = r * r
    even = 1 / 24 + s * (1 / 720 + s * (1 / 40320 + s * (1 / 3628800 + s * (1 / 479001600))))
    odd = 1 / 6 + s * (1 / 120 + s * (1 / 5040 + s * (1 / 362880 + s * (1 / 39916800 + s * (1 / 6227020800)))))
    return r + s * (0.5 + (r * odd + s * even))


@_inlined
def _times_power(x: float, n: int) -> Any:
    """x 2^n, in two steps, so that the power is neither infinite nor zero where the product is not."""
    half = n // 2
    return x * _ALL_POWERS[half + _ZERO_POWER] * _ALL_POWERS[n - half + _ZERO_POWER]


@_inlined
def exp(x: float) -> Any:
    """exp(x) within 1e-15 relative; inf above 709.79, 0 below -745.2."""
    if not -746.0 < x < 710.0:
        return math.inf if x >= 710.0 else x if x != x else 0.0
    n, r = _reduced(x)
    return _times_power(1.0 + _expm1_series(r), n)


@_inlined
def expm1(x: float) -> Any:
    """exp(x) - 1, exact for small x too."""
    return _expm1_series(x) if abs(x) < 0.34 else exp(x) - 1.0


@_inlined
def _artanh_series(s: float) -> Any:
    """2 artanh(s) for |s| <= 0.1716."""
    t = s * s
    low = 1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11))))
    high = 1 / 13 + t * (1 / 15 + t * (1 / 17 + t * (1 / 19 + t * (1 / 21 + t * (1 / 23)))))
    power = t * t
    return 2.0 * s + 2.0 * s * (t * (low + power * power * t * high))


@_inlined
def log(x: float) -> Any:
    """Natural logarithm within 1e-15; -inf at 0, nan below."""
    if not 0.0 < x < math.inf:
        return -math.inf if x == 0.0 else x if x > 0.0 else math.nan
    mantissa, exponent = math.frexp(x)
    if mantissa < _SQRT_HALF:
        mantissa, exponent = 2.0 * mantissa, exponent - 1
    rest = _artanh_series((mantissa - 1.0) / (mantissa + 1.0))
    return exponent * _LN2_HIGH + (exponent * _LN2_LOW + rest)


@_inlined
def log1p(x: float) -> Any:
    """log(1 + x), exact for small x too."""
    return _artanh_series(x / (2.0 + x)) if -0.29 < x < 0.41 else log(1.0 + x)


@_inlined
def tanh(x: float) -> Any:
    """Hyperbolic tangent."""
    shrunk = expm1(-2.0 * abs(x))
    size = -shrunk / (2.0 + shrunk)
    return size if x > 0.0 else -size if x < 0.0 else x
