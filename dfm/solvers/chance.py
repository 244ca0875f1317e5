"""Random numbers by counter: a draw is a function of its key, whoever makes it and when.

splitmix64 (Steele, Lea and Flood 2014) of key and counter; normal numbers by Box and Muller, gamma by Marsaglia and
Tsang (2000), normal numbers above a bound by Robert (1995).
"""

from __future__ import annotations

import math

import numpy as np

from dfm.compilation import compiled
from dfm.kernels.tables import mixed

_STEP = np.uint64(0x9E3779B97F4A7C15)
_SQRT_HALF, _LOG_SQRT_2PI = math.sqrt(0.5), 0.5 * math.log(2 * math.pi)
_FAR = -25.0
"""Below this the normal distribution is told by the first terms of its asymptotic series, to 1e-8."""


@compiled
def key_of(key, number):  # type: ignore[no-untyped-def]
    """The key of what has this number below another key: uint64."""
    return mixed(mixed(np.uint64(key) + _STEP) ^ (np.uint64(number) * _STEP + np.uint64(0x632BE59BD9B4E019)))


@compiled
def uniform(key, counter):  # type: ignore[no-untyped-def]
    """A number in (0, 1)."""
    return (np.float64(mixed(key + np.uint64(counter + 1) * _STEP) >> np.uint64(12)) + 0.5) * 2.0**-52


@compiled
def normal(key, counter):  # type: ignore[no-untyped-def]
    """A standard normal number."""
    radius = math.sqrt(-2.0 * math.log(uniform(key, 2 * counter)))
    return radius * math.cos(2.0 * math.pi * uniform(key, 2 * counter + 1))


@compiled
def gamma(key, shape):  # type: ignore[no-untyped-def]
    """A gamma number of rate 1. shape: any above 0."""
    boost, d = 1.0, shape - 1.0 / 3.0
    if shape < 1.0:
        boost, d = uniform(key, 0) ** (1.0 / shape), shape + 2.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    counter = 1
    while True:
        z = normal(key, counter)
        v = (1.0 + c * z) ** 3
        if v > 0.0 and math.log(uniform(key, 2 * counter + 2)) < 0.5 * z * z + d - d * v + d * math.log(v):
            return boost * d * v
        counter += 2


@compiled
def normal_above(key, bound):  # type: ignore[no-untyped-def]
    """A standard normal number above a bound."""
    counter = 0
    if bound <= 0.0:
        while True:
            z = normal(key, counter)
            if z > bound:
                return z
            counter += 1
    rate = 0.5 * (bound + math.sqrt(bound * bound + 4.0))
    while True:
        z = bound - math.log(uniform(key, 2 * counter)) / rate
        if math.log(uniform(key, 2 * counter + 1)) < -0.5 * (z - rate) ** 2:
            return z
        counter += 1


@compiled
def log_phi(x):  # type: ignore[no-untyped-def]
    """ln Φ(x)."""
    if x > _FAR:
        return math.log(0.5 * math.erfc(-x * _SQRT_HALF))
    return -0.5 * x * x - math.log(-x) - _LOG_SQRT_2PI + math.log1p(-1.0 / (x * x) + 3.0 / x**4)


@compiled
def mean_above(bound):  # type: ignore[no-untyped-def]
    """The mean of a standard normal number above a bound."""
    return math.exp(-0.5 * bound * bound - _LOG_SQRT_2PI - log_phi(-bound))
