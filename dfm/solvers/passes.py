"""Passes over the rows of a replica: scores and factor sums made, statistics of a visit added up, new values taken."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from dfm.compilation import compiled
from dfm.solvers.chance import key_of, log_phi, mean_above, normal_above


@compiled
def score_rows(source, bias, linear, factors, n_factors, rows):  # type: ignore[no-untyped-def]
    """Writes Σ_j V_j x_j and the score of every row to `rows` float32[n_rows, n_factors + 1].

    source: indptr, indices, values, n_implicit; linear, factors: records of a table without optimizer state.
    """
    indptr, indices, values, n_implicit = source
    skipped, n_owners = indptr[n_implicit], factors.shape[0]
    squares = np.zeros(max(n_factors, 1), np.float32)
    for row in range(indptr.size - 1):
        score = np.float64(bias)
        squares[:] = 0
        rows[row, :] = 0
        for i in range(indptr[row], indptr[row + 1]):
            feature = np.intp(indices[i])
            x = values[i - skipped] if row >= n_implicit else np.float32(1)
            score += np.float64(x * linear[feature, 0])
            if feature < n_owners:
                for f in range(n_factors):
                    part = x * factors[feature, f]
                    rows[row, f] += part
                    squares[f] += part * part
        for f in range(n_factors):
            score += 0.5 * (np.float64(rows[row, f]) ** 2 - np.float64(squares[f]))
        rows[row, n_factors] = score


@compiled
def take_targets(rows, labels, weights, is_probit, draws, key):  # type: ignore[no-untyped-def]
    """Scores become scores less their targets, in place. Returns Σ ω, Σ ω e, Σ ω e² and Σ ω loss.

    The target of a row is its label or, of a probit, a latent number with the label's sign: its mean or, with `draws`,
    a draw by `key` and row. A row of weight ω has the mean and the deviation of the average of ω draws.
    """
    last = rows.shape[1] - 1
    mass, first, second, loss = 0.0, 0.0, 0.0, 0.0
    for row in range(rows.shape[0]):
        weight = np.float64(weights[row]) if weights.size else 1.0
        score = np.float64(rows[row, last])
        if is_probit:
            sign = 1.0 if labels[row] > 0.5 else -1.0
            bound = -sign * score
            latent = mean_above(bound)
            loss -= weight * log_phi(-bound)
            if draws and weight > 0.0:
                drawn = normal_above(key_of(key, row), bound)
                latent = drawn if weight == 1.0 else latent + (drawn - latent) / math.sqrt(weight)
            residual = -sign * latent
        else:
            residual = score - np.float64(labels[row])
            loss += 0.5 * weight * residual * residual
        rows[row, last] = residual
        mass += weight
        first += weight * residual
        second += weight * residual * residual
    return mass, first, second, loss


@functools.cache
def collect(n_columns: int, with_linear: bool) -> Any:
    """collect(column, weights, first, factors, rows, factored, lone): adds the statistics of a visit, in row order.

    column: rows, slots, values (see `Column`); factors float32[m_factored, ≥ n_columns] of the part's columns, of which
    `first` is the first in `rows`; factored, lone: as in `Sums`, in place.
    """
    width = n_columns + with_linear
    n_products = width * (width + 1) // 2

    @compiled
    def add(column, weights, first, factors, rows, factored, lone):  # type: ignore[no-untyped-def]
        which, slots, values = column
        h = np.empty(width, np.float64)
        n_factored, last = factors.shape[0], rows.shape[1] - 1
        for i in range(slots.size):
            row = np.intp(which[i]) if which.size else i
            x = np.float64(values[i]) if values.size else 1.0
            weight = np.float64(weights[row]) if weights.size else 1.0
            e, slot = weight * np.float64(rows[row, last]), np.intp(slots[i])
            if slot >= n_factored:
                if with_linear:
                    lone[slot - n_factored, 0] += weight * x * x
                    lone[slot - n_factored, 1] += x * e
                continue
            for f in range(n_columns):
                h[f] = x * (np.float64(rows[row, first + f]) - x * np.float64(factors[slot, f]))
            if with_linear:
                h[n_columns] = x
            at = 0
            for a in range(width):
                weighted = weight * h[a]
                for b in range(a + 1):
                    factored[slot, at + b] += weighted * h[b]
                at += a + 1
            for a in range(width):
                factored[slot, n_products + a] += h[a] * e

    return add


@compiled
def take_values(column, first, moves, linear_moves, factors, rows):  # type: ignore[no-untyped-def]
    """Residuals and factor sums after a visit's values have moved, in place.

    moves float32[m_factored, n] of columns [first, first + n), with the values before, `factors`; linear_moves
    float32[m], or empty where w stays.
    """
    which, slots, values = column
    n_factored, n_columns, last = moves.shape[0], moves.shape[1], rows.shape[1] - 1
    for i in range(slots.size):
        row = np.intp(which[i]) if which.size else i
        x = values[i] if values.size else np.float32(1)
        slot = np.intp(slots[i])
        change = x * linear_moves[slot] if linear_moves.size else np.float32(0)
        if slot < n_factored:
            for f in range(n_columns):
                move = x * moves[slot, f]
                change += move * (rows[row, first + f] - x * factors[slot, f])
                rows[row, first + f] += move
        rows[row, last] += change
