"""Passes over the rows of a replica: scores and factor sums made, statistics of a visit added up, new values taken.

`lanes` numbers of a vector are worked on together (see `dfm.kernels.simd`); those beyond its own are zeros.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from dfm.compilation import compiled
from dfm.kernels.blocks import padded_lanes
from dfm.kernels.cpu.step_passes import inlined
from dfm.kernels.simd import fma, load, read, reduce_add, splat, store
from dfm.solvers.chance import key_of, log_phi, mean_above, normal_above

_LEAST_TOGETHER, _MOST_TOGETHER = 4, 16
_MOST_SINGLE = 1 << 14
"""Entries of a feature whose products are added up in float32 before they go to float64."""


@functools.cache
def score_rows(lanes: int) -> Any:
    """score(source, bias, linear, factors, rows): writes Σ_j V_j x_j and the score of every row, in `rows`.

    source: indptr, indices, values, n_implicit; linear, factors: records of a table without optimizer state, `lanes`
    columns of factors; rows float32[n_rows, lanes + 1].
    """
    vector = min(lanes, _MOST_TOGETHER) or _LEAST_TOGETHER
    n_vectors = lanes // vector

    @compiled
    def score(source, bias, linear, factors, rows):  # type: ignore[no-untyped-def]
        indptr, indices, values, n_implicit = source
        skipped, n_owners = indptr[n_implicit], factors.shape[0]
        for row in range(indptr.size - 1):
            total = np.float64(bias)
            start, stop = indptr[row], indptr[row + 1]
            for i in range(start, stop):
                x = values[i - skipped] if row >= n_implicit else np.float32(1)
                total += np.float64(x * linear[np.intp(indices[i]), 0])
            for number in range(n_vectors):
                column = number * vector
                sums, squares = splat(np.float32(0), vector), splat(np.float32(0), vector)
                for i in range(start, stop):
                    feature = np.intp(indices[i])
                    if feature < n_owners:
                        x = values[i - skipped] if row >= n_implicit else np.float32(1)
                        part = load(factors, feature * lanes + column, vector) * x
                        sums, squares = sums + part, fma(part, part, squares)
                store(rows, row * (lanes + 1) + column, sums)
                total += 0.5 * np.float64(reduce_add(fma(sums, sums, -squares)))
            rows[row, lanes] = total

    return score


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
def collect(n_columns: int, with_linear: bool, row_width: int) -> Any:
    """collect(column, weights, first, factors, rows, factored, lone): adds the statistics of a visit, in row order.

    column: rows, slots, values (see `Column`); factors float32[m_factored, lanes] of the part's columns, of which
    `first` is the first in `rows` float32[n_rows, row_width]; factored, lone: as in `Sums`, in place.

    Of a feature with h = [x (q − x V), x] the products ω h_a h go to float32 rows, a vector each, then ω x h and
    ω e h; of x² and x e there is no vector. After so many entries of the feature these are added to its sums, and begin
    at 0 again.
    """
    multiply, flush = _multiplication(n_columns), _flushing(n_columns, with_linear)
    lanes = padded_lanes(n_columns)
    stride = (n_columns + 2) * max(lanes, 1)

    @compiled
    def add(column, weights, first, factors, rows, factored, lone):  # type: ignore[no-untyped-def]
        which, slots, values = column
        n_factored = factored.shape[0]
        room = np.zeros((n_factored, stride), np.float32)
        alone, h = np.zeros((n_factored, 4)), np.empty(max(lanes, 1), np.float32)
        for i in range(slots.size):
            row, slot = np.intp(which[i]) if which.size else i, np.intp(slots[i])
            x = values[i] if values.size else np.float32(1)
            weight = weights[row] if weights.size else np.float32(1)
            e = rows[row, row_width - 1]
            if slot < n_factored:
                alone[slot, 0] += np.float64(weight * x) * x
                alone[slot, 1] += np.float64(weight * x) * e
                alone[slot, 2] += 1.0
                multiply((factors, rows, h, room), slot, row * row_width + first, (x, weight, e))
                if alone[slot, 2] == _MOST_SINGLE:
                    flush(room, alone, factored, slot)
            elif with_linear:
                lone[slot - n_factored, 0] += np.float64(weight * x) * x
                lone[slot - n_factored, 1] += np.float64(weight * x) * e
        for each in range(n_factored):
            flush(room, alone, factored, each)

    return add


def _multiplication(n_columns: int) -> Any:
    """multiply(arrays, slot, at, numbers): adds the products of one entry to the rows of its feature, in place.

    arrays: factors, rows, h, room, as `collect` has them; at: of the row's factor sums in `rows`; numbers: x, ω, e.
    """
    lanes = padded_lanes(n_columns)
    stride = (n_columns + 2) * lanes

    def multiply(arrays, slot, at, numbers):  # type: ignore[no-untyped-def]
        factors, rows, h, room = arrays
        x, weight, e = numbers
        slopes = (load(rows, at, lanes) - load(factors, slot * lanes, lanes) * x) * x
        store(h, 0, slopes)
        base = slot * stride
        for a in range(n_columns):
            here = base + a * lanes
            store(room, here, fma(slopes, splat(weight * read(h, a), lanes), load(room, here, lanes)))
        here = base + n_columns * lanes
        store(room, here, fma(slopes, splat(weight * x, lanes), load(room, here, lanes)))
        store(room, here + lanes, fma(slopes, splat(weight * e, lanes), load(room, here + lanes, lanes)))

    return inlined(multiply if lanes else lambda _arrays, _slot, _at, _numbers: None)


def _flushing(n_columns: int, with_linear: bool) -> Any:
    """flush(room, alone, factored, slot): adds what has come together to the sums of a feature, and makes it 0.

    alone: Σ ω x², Σ ω x e and the number of entries.
    """
    lanes = padded_lanes(n_columns)
    n_products = n_columns * (n_columns + 1) // 2

    @inlined
    def flush(room, alone, factored, slot):  # type: ignore[no-untyped-def]
        at, right = 0, n_products
        for a in range(n_columns):
            for b in range(a + 1):
                factored[slot, at + b] += room[slot, a * lanes + b]
            at += a + 1
        if with_linear:
            for b in range(n_columns):
                factored[slot, at + b] += room[slot, n_columns * lanes + b]
            factored[slot, at + n_columns] += alone[slot, 0]
            right += n_columns + 1
            factored[slot, right + n_columns] += alone[slot, 1]
        for b in range(n_columns):
            factored[slot, right + b] += room[slot, (n_columns + 1) * lanes + b]
        room[slot, :] = 0
        alone[slot, :] = 0

    return flush


@functools.cache
def take_values(n_columns: int, row_width: int) -> Any:
    """take(column, first, moves, linear_moves, factors, rows): residuals and factor sums after a visit's values moved.

    moves float32[m_factored, lanes] of columns [first, first + n_columns), with the values before, `factors`, alike;
    linear_moves float32[m], or empty where w stays; rows float32[n_rows, row_width], in place.
    """
    move_sums = _moving(n_columns)

    @compiled
    def take(column, first, moves, linear_moves, factors, rows):  # type: ignore[no-untyped-def]
        which, slots, values = column
        n_factored = moves.shape[0]
        for i in range(slots.size):
            row, slot = np.intp(which[i]) if which.size else i, np.intp(slots[i])
            x = values[i] if values.size else np.float32(1)
            change = x * linear_moves[slot] if linear_moves.size else np.float32(0)
            if slot < n_factored:
                change += move_sums(moves, factors, rows, slot, row * row_width + first, x)
            rows[row, row_width - 1] += change

    return take


def _moving(n_columns: int) -> Any:
    """move(moves, factors, rows, slot, at, x): moves the factor sums at `at` of rows; by how much the score changes."""
    lanes = padded_lanes(n_columns)

    def move(moves, factors, rows, slot, at, x):  # type: ignore[no-untyped-def]
        step, sums = load(moves, slot * lanes, lanes) * x, load(rows, at, lanes)
        store(rows, at, sums + step)
        return reduce_add((sums - load(factors, slot * lanes, lanes) * x) * step)

    return inlined(move if lanes else lambda _moves, _factors, _rows, _slot, _at, _x: np.float32(0))
