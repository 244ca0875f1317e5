"""Losses as users write them: the built-in ones again, and functions with every construct that has a derivative."""

from __future__ import annotations

import math

import numpy as np

LEVEL, WIDTH = 0.8, 0.7


def logistic(score, y):
    margin = score if y > 0.5 else -score
    return math.log1p(math.exp(-margin))


def squared(score, y):
    return (score - y) ** 2 / 2


def hinge(score, y):
    return max(0.0, 1 - (2 * y - 1) * score)


def poisson(score, y):
    return np.exp(score) - y * score


def quantile(score, y):
    return np.maximum(LEVEL * (y - score), (LEVEL - 1) * (y - score))


def huber(score, y):
    error = abs(score - y)
    if error <= WIDTH:
        return 0.5 * error * error
    return WIDTH * (error - 0.5 * WIDTH)


BUILT_IN = {
    "logistic": (logistic, None),
    "squared": (squared, None),
    "hinge": (hinge, None),
    "poisson": (poisson, None),
    "quantile": (quantile, LEVEL),
    "huber": (huber, WIDTH),
}
"""A user's version of each built-in loss, and the parameter that it has."""


def clipped_probability(score):
    """A helper that a loss calls."""
    return min(max(1 / (1 + math.exp(-score)), 1e-6), 1 - 1e-6)


def focal(score, y):
    p = clipped_probability(score) if y > 0.5 else 1 - clipped_probability(score)
    return -((1 - p) ** 2) * math.log(p)


def asymmetric(score, y, miss=5.0):
    loss = np.logaddexp(0.0, -score if y else score)
    return miss * loss if y else loss


def by_parts(score, y):
    total = 0
    for power in range(4):
        total += score**power / (power + 1)
    total -= y
    total *= 0.1
    if not total:
        return 0.0
    return 0 if total > 40 else total


def nested(score, y):
    def smooth(x):
        return math.sqrt(x * x + 0.25)

    return smooth(score - y) + (lambda z: z / 3)(score)


def smooth_functions(score, y):
    x = score / 4 + 0.1
    return (
        math.tanh(x) + np.arctan(x) + math.erf(x) - math.erfc(x) + math.sin(x) * np.cos(x) + np.sinh(x) + math.cosh(x)
        + math.expm1(x) + np.log1p(x * x) + math.log2(x * x + 1) + np.log10(x * x + 2) + np.square(x) + math.pow(2.0, x)
    )  # fmt: skip


def powers(score, y):
    x = score * score + 0.5
    return x**1.5 + x**-2 + 2**score + x**x / (1 + x**x) + x**0 + np.power(x, y + 0.5) + (+x) * (-1.0)


def choices(score, y):
    x = np.where(score > y, score, 2 * score) + np.clip(score, -1.0, 0.5) + min(score, 3.0, y) + max(score, y, -1)
    return x + np.sign(score) * score + math.fabs(score) + (0.0 if math.isnan(score) else float(score))


EVERY_CONSTRUCT = (
    focal,
    asymmetric,
    by_parts,
    nested,
    smooth_functions,
    powers,
    choices,
    *(f for f, _ in BUILT_IN.values()),
)


def half_square(weight):
    return weight * weight / 2
