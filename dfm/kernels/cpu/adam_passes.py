"""The updates of Adam, whose state is longer than that of the other rules: passes as in `step_passes`.

A linear record is [w, m, v, c1, c2], a factor record [V, m of each, v of each]. Adam is lazy: a feature's moments move
when a row touches it and stay otherwise. c1 and c2 count what went into the moments of that feature alone; its factors
share them. A count of all steps, as TensorFlow's LazyAdam has, would take the first gradient of a rare feature for the
mean of thousands of zeros: its first step would be (1 - β1) / sqrt(1 - β2) = 3.2 times too long.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dfm.kernels.cpu.step_passes import WIDTH, Shape, inlined, make_gradient, make_penalty_slope
from dfm.kernels.custom.functions import CustomRegularizer
from dfm.kernels.optimizers import adam, running_mean
from dfm.kernels.simd import every, fma, load, read, splat, store, write

COLUMNS = 5
_LANES = WIDTH * COLUMNS


@inlined
def _advance(moments, gradient, rates):  # type: ignore[no-untyped-def]
    """(m, v) after a gradient."""
    mean = running_mean(moments[0], gradient, rates.adam_beta1)
    return mean, running_mean(moments[1], gradient * gradient, rates.adam_beta2)


@inlined
def _fill(filled, ones, rates):  # type: ignore[no-untyped-def]
    """(c1, c2) after a gradient."""
    return running_mean(filled[0], ones, rates.adam_beta1), running_mean(filled[1], ones, rates.adam_beta2)


def make_step_bias() -> Any:
    """step_bias(table, rates, sample_weight, slope): updates w0 and its state, in place. A row of weight 0 does not."""

    @inlined
    def step_bias(table, rates, sample_weight, slope):  # type: ignore[no-untyped-def]
        if sample_weight > np.float32(0):
            bias = table.bias
            moments = _advance((read(bias, 1), read(bias, 2)), slope, rates)
            filled = _fill((read(bias, 3), read(bias, 4)), np.float32(1), rates)
            write(bias, 0, adam(read(bias, 0), moments, filled, rates.learning_rate, rates.adam_epsilon))
            write(bias, 1, moments[0])
            write(bias, 2, moments[1])
            write(bias, 3, filled[0])
            write(bias, 4, filled[1])

    return step_bias


def make_step_linear(shape: Shape, regularizer: CustomRegularizer | None) -> Any:
    """step_linear(rows, table, rates, scratch, row_step): updates w of every entry of the row, in place."""
    implicit, penalty_slope = shape.implicit, make_penalty_slope(regularizer)

    @inlined
    def step_linear(rows, table, rates, scratch, row_step):  # type: ignore[no-untyped-def]
        start, n_entries, sample_weight, slope = row_step
        if sample_weight > np.float32(0):
            for position in range(0, n_entries, WIDTH):
                at = position * COLUMNS
                gradient = splat(slope, WIDTH)
                if not implicit:
                    gradient = gradient * load(scratch.values, position, WIDTH)
                records = load(scratch.linear, at, _LANES)
                weights = every(records, 0, COLUMNS)
                gradient = fma(penalty_slope(weights, WIDTH), sample_weight * rates.l2_linear, gradient)
                moments = _advance((every(records, 1, COLUMNS), every(records, 2, COLUMNS)), gradient, rates)
                ones = splat(np.float32(1), WIDTH)
                filled = _fill((every(records, 3, COLUMNS), every(records, 4, COLUMNS)), ones, rates)
                weights = adam(weights, moments, filled, rates.learning_rate, rates.adam_epsilon)
                # Column by column from here on: what is scattered next is one number of each.
                store(scratch.linear, at, weights)
                store(scratch.linear, at + WIDTH, moments[0])
                store(scratch.linear, at + 2 * WIDTH, moments[1])
                store(scratch.linear, at + 3 * WIDTH, filled[0])
                store(scratch.linear, at + 4 * WIDTH, filled[1])
            for position in range(n_entries):
                record = np.intp(read(rows.indices, start + position)) * table.linear_width
                source = position // WIDTH * _LANES + position % WIDTH
                for column in range(COLUMNS):
                    write(table.linear, record + column, read(scratch.linear, source + column * WIDTH))

    return step_linear


def make_step_factors(shape: Shape, regularizer: CustomRegularizer | None) -> Any:
    """step_factors(table, rates, scratch, n_owners, row_step): updates V of the row's entries, in place."""
    vector, lanes = shape.vector, shape.lanes
    gradient_of = make_gradient(shape, regularizer)

    @inlined
    def step_factors(table, rates, scratch, n_owners, row_step):  # type: ignore[no-untyped-def]
        if row_step[2] > np.float32(0):
            for owner in range(n_owners):
                feature = read(scratch.owners, owner)
                record = feature * table.linear_width
                filled = read(table.linear, record + 3), read(table.linear, record + 4)  # of step_linear, just before
                for column in range(0, lanes, vector):
                    at = feature * table.factor_width + column
                    factors = load(table.factors, at, vector)
                    gradient = gradient_of(rates, scratch, owner, row_step, factors, column)
                    state = load(table.factors, at + lanes, vector), load(table.factors, at + 2 * lanes, vector)
                    moments = _advance(state, gradient, rates)
                    factors = adam(factors, moments, filled, rates.factor_learning_rate, rates.adam_epsilon)
                    store(table.factors, at, factors)
                    store(table.factors, at + lanes, moments[0])
                    store(table.factors, at + 2 * lanes, moments[1])

    return step_factors
