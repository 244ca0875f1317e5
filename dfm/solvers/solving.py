"""Solving and drawing: from the sums of a visit to new values, and hyperparameters from values."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.solvers.chance import gamma, key_of, normal

Doubles = NDArray[np.float64]


@compiled
def draw_prior(values, unit, key):  # type: ignore[no-untyped-def]
    """Precision and mean of each column of values float64[n, width], float64[width, 2], drawn from their posterior.

    λ ~ Gamma(½, rate ½ unit²), μ | λ ~ N(0, 1 / λ), values ~ N(μ, 1 / λ); both are drawn at once, so that they do not
    depend on those before. unit: the deviation that values are expected to have before any is seen (Rendle 2012 has
    α = β = γ = 1, μ₀ = 0, which are these in units of 1).
    """
    n, width = values.shape
    found = np.empty((width, 2))
    for column in range(width):
        total, squares = 0.0, 0.0
        for row in range(n):
            total += values[row, column]
        mean = total / n if n else 0.0
        for row in range(n):
            squares += (values[row, column] - mean) ** 2
        own = key_of(key, column)
        rate = 0.5 * (unit * unit + squares + n / (n + 1.0) * mean * mean)
        found[column, 0] = gamma(key_of(own, 0), 0.5 * (1.0 + n)) / rate
        found[column, 1] = total / (n + 1.0) + normal(key_of(own, 1), 0) / math.sqrt((n + 1.0) * found[column, 0])
    return found


@compiled
def solve(sums, old, precision, prior, chance, features, new):  # type: ignore[no-untyped-def]
    """Writes new values of features to `new` float32[n, width].

    sums float64[n, n_sums(width)] (see `Sums`), made with the values `old` float32[n, width]. Given these, θ has
    precision P = precision G + λ and mean P⁻¹ (precision (G θ_old − Σ h e) + λ μ); prior float64[width, 2]: λ and μ.
    chance: whether to draw, and the key by which, with features uint32[n]; else it is the mean.
    """
    draws, key = chance
    n, width = new.shape
    lower, right = np.empty((width, width)), np.empty(width)
    for row in range(n):
        if not _equations(sums[row], old[row], precision, prior, lower, right):
            # Least squares without a penalty, of a feature in no row, or in too few to tell.
            for a in range(width):
                new[row, a] = old[row, a] if np.any(sums[row] != 0.0) else 0.0
            continue
        own = key_of(key, features[row])
        for a in range(width - 1, -1, -1):
            if draws:
                right[a] += normal(own, a)
            for b in range(a + 1, width):
                right[a] -= lower[b, a] * right[b]
            right[a] /= lower[a, a]
            new[row, a] = right[a]


@compiled
def _equations(sums, old, precision, prior, lower, right):  # type: ignore[no-untyped-def]
    """Writes L and L⁻¹ b of P = L Lᵀ and P θ = b, of one feature; False where P is not definite."""
    width = right.size
    at, at_right = 0, width * (width + 1) // 2
    for a in range(width):
        right[a] = prior[a, 0] * prior[a, 1] - precision * sums[at_right + a]
        for b in range(a + 1):
            lower[a, b] = precision * sums[at + b]
        at += a + 1
    for a in range(width):
        for b in range(a + 1):
            right[a] += lower[a, b] * old[b]
            if b < a:
                right[b] += lower[a, b] * old[a]
        lower[a, a] += prior[a, 0]
    if not _factorise(lower):
        return False
    for a in range(width):
        for b in range(a):
            right[a] -= lower[a, b] * right[b]
        right[a] /= lower[a, a]
    return True


@compiled
def _factorise(lower):  # type: ignore[no-untyped-def]
    """The Cholesky factor of a matrix, in the lower triangle in which it comes; False where it is not definite."""
    for a in range(lower.shape[0]):
        for b in range(a + 1):
            left = lower[a, b]
            for c in range(b):
                left -= lower[a, c] * lower[b, c]
            if b < a:
                lower[a, b] = left / lower[b, b]
            elif not left > 1e-12 * lower[a, a]:
                return False
            else:
                lower[a, a] = math.sqrt(left)
    return True


@compiled
def draw_precision(mass, squares, key):  # type: ignore[no-untyped-def]
    """α of the labels around their scores: Gamma((1 + Σ ω) / 2, rate (1 + Σ ω e²) / 2)."""
    return gamma(key, 0.5 * (1.0 + mass)) / (0.5 * (1.0 + squares))


@compiled
def draw_bias(mass, residuals, precision, old, held, draws, key):  # type: ignore[no-untyped-def]
    """w0 given everything else, its prior N(0, 1 / held); a draw, or the mean."""
    total = precision * mass + held
    mean = precision * (mass * old - residuals) / total if total > 0 else old
    return mean + normal(key, 0) / math.sqrt(total) if draws else mean
