"""The passes that change parameters once the slope of a row is known; built for a shape, parts of the walk.

`step_linear` updates 16 linear weights at a time in the scratch and scatters them (no feature stands twice in a row, so
this is safe); `step_factors` updates each factor record in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from dfm.kernels.custom.functions import CustomRegularizer
from dfm.kernels.optimizers import adagrad, reciprocal_root, sgd, without_l2_linear
from dfm.kernels.simd import every, fma, interleave, load, map_lanes, read, reduce_add, splat, store, write

WIDTH = 16
"""Linear weights that are updated at a time."""


@dataclass(frozen=True)
class Shape:
    """Compile-time numbers of the passes.

    lanes: floats of V in a record; n_factors of them are not padding. touched: floats of a factor record that a walk
    reads. gathered: floats of a linear record that a walk reads and writes. implicit: all values are 1, none is stored.
    """

    n_factors: int
    lanes: int
    touched: int
    gathered: int
    implicit: bool

    @property
    def vector(self) -> int:
        """Lanes of one vector: long factor rows are walked in several, so that sums stay in registers."""
        return self.lanes if self.lanes <= 64 else next(n for n in (64, 48, 32, 16) if self.lanes % n == 0)


# Passes become part of the walk that calls them; wrappers for other callers would take a quarter of the compile time.
inlined = njit(nogil=True, forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def make_penalty_slope(regularizer: CustomRegularizer | None) -> Any:
    """penalty_slope(weights, count): derivative of the penalty of each of the first `count` lanes; None is w² / 2."""
    if regularizer is None:
        return inlined(lambda weights, _count: weights)
    in_float64 = regularizer.slope

    @inlined
    def of_one(weight):  # type: ignore[no-untyped-def]
        return np.float32(in_float64(np.float64(weight)))

    @inlined
    def of_lanes(weights, count):  # type: ignore[no-untyped-def]
        return map_lanes(of_one, weights, count)

    return of_lanes


def with_penalty(update: Any, regularizer: CustomRegularizer | None) -> Any:
    """A rule of linear weights whose penalty is the user's; as it is without one."""
    if regularizer is None:
        return update
    penalty_slope = make_penalty_slope(regularizer)

    @inlined
    def penalised(weights, first, second, gradient, sample_weight, rates):  # type: ignore[no-untyped-def]
        gradient = fma(penalty_slope(weights, WIDTH), sample_weight * rates.l2_linear, gradient)
        return update(weights, first, second, gradient, sample_weight, without_l2_linear(rates))

    return penalised


def make_step_linear(shape: Shape, update: Any) -> Any:
    """step_linear(rows, table, rates, scratch, row_step): updates w of every entry of the row, in place."""
    implicit, gathered, lanes = shape.implicit, shape.gathered, WIDTH * shape.gathered
    # A rule with less state than two gets w again for the rest, and what it gives back for it is dropped.
    first_column, second_column = min(1, gathered - 1), min(2, gathered - 1)

    @inlined
    def step_linear(rows, table, rates, scratch, row_step):  # type: ignore[no-untyped-def]
        start, n_entries, sample_weight, slope = row_step
        for position in range(0, n_entries, WIDTH):
            gradient = splat(slope, WIDTH)
            if not implicit:
                gradient = gradient * load(scratch.values, position, WIDTH)
            records = load(scratch.linear, position * gathered, lanes)
            weights, first, second = update(
                every(records, 0, gathered),
                every(records, first_column, gathered),
                every(records, second_column, gathered),
                gradient,
                sample_weight,
                rates,
            )
            store(scratch.linear, position * gathered, interleave(weights, first, second, gathered))
        for position in range(n_entries):
            feature = np.intp(read(rows.indices, start + position))
            record = load(scratch.linear, position * gathered, gathered)
            store(table.linear, feature * table.linear_width, record)

    return step_linear


def make_step_bias(update: Any) -> Any:
    """step_bias(table, rates, sample_weight, slope): updates w0, in place. `rates` without penalties."""

    @inlined
    def step_bias(table, rates, sample_weight, slope):  # type: ignore[no-untyped-def]
        bias, last = table.bias, table.linear_width - 1
        weight, first, second = update(
            read(bias, 0), read(bias, min(1, last)), read(bias, min(2, last)), slope, sample_weight, rates
        )
        # Backwards: a rule with less state than two gave back what it was given for the rest.
        write(bias, min(2, last), second)
        write(bias, min(1, last), first)
        write(bias, 0, weight)

    return step_bias


@inlined
def no_step(_table, _rates, _scratch, _n_owners, _row_step):  # type: ignore[no-untyped-def]
    """step_factors of a model without factors."""
    return


def make_step_factors(shape: Shape, rule: str, regularizer: CustomRegularizer | None) -> Any:
    """step_factors(table, rates, scratch, n_owners, row_step): updates V of the row's entries, in place."""
    gradient_of = make_gradient(shape, regularizer)
    return make_step_rows(shape, gradient_of) if rule == "row" else make_step_coordinates(shape, rule, gradient_of)


def make_gradient(shape: Shape, regularizer: CustomRegularizer | None) -> Any:
    """gradient(rates, scratch, owner, row_step, factors, column): of one vector of V_j.

    It is slope x_j (Σ − V_j x_j) + l2 V_j, taken as V_j (l2 − slope x_j²) + slope x_j Σ. x_j is spread over a vector
    first, so that explicit values take no scalar arithmetic.
    """
    implicit, vector = shape.implicit, shape.vector
    if regularizer is not None:
        return make_penalised_gradient(shape, make_penalty_slope(regularizer))

    @inlined
    def gradient(rates, scratch, owner, row_step, factors, column):  # type: ignore[no-untyped-def]
        _start, _n_entries, sample_weight, slope = row_step
        sums = load(scratch.sums, column, vector)
        penalty = sample_weight * rates.l2_factors
        if implicit:
            return fma(factors, penalty - slope, sums * slope)
        values = splat(read(scratch.owner_values, owner), vector)
        slope_x = values * slope
        return fma(factors, fma(-slope_x, values, penalty), sums * slope_x)

    return gradient


def make_penalised_gradient(shape: Shape, penalty_slope: Any) -> Any:
    """The gradient with a user's penalty in place of l2 V_j; padding stays without."""
    implicit, vector, n_factors = shape.implicit, shape.vector, shape.n_factors

    @inlined
    def gradient(rates, scratch, owner, row_step, factors, column):  # type: ignore[no-untyped-def]
        _start, _n_entries, sample_weight, slope = row_step
        sums = load(scratch.sums, column, vector)
        penalty = penalty_slope(factors, n_factors - column)
        if implicit:
            of_loss = fma(factors, -slope, sums * slope)
        else:
            values = splat(read(scratch.owner_values, owner), vector)
            slope_x = values * slope
            of_loss = fma(factors, -slope_x * values, sums * slope_x)
        return fma(penalty, sample_weight * rates.l2_factors, of_loss)

    return gradient


def make_step_coordinates(shape: Shape, rule: str, gradient_of: Any) -> Any:
    """Plain SGD, or AdaGrad with one accumulator per coordinate."""
    vector, lanes = shape.vector, shape.lanes
    with_accumulators = rule == "adagrad"

    @inlined
    def step_factors(table, rates, scratch, n_owners, row_step):  # type: ignore[no-untyped-def]
        rate = rates.factor_learning_rate
        width = table.factor_width
        for column in range(0, lanes, vector):
            for owner in range(n_owners):
                at = read(scratch.owners, owner) * width + column
                factors = load(table.factors, at, vector)
                gradient = gradient_of(rates, scratch, owner, row_step, factors, column)
                if with_accumulators:
                    accumulators = load(table.factors, at + lanes, vector)
                    factors, accumulators = adagrad(factors, accumulators, gradient, rate)
                    store(table.factors, at + lanes, accumulators)
                else:
                    factors = sgd(factors, gradient, rate)
                store(table.factors, at, factors)

    return step_factors


def make_step_rows(shape: Shape, gradient_of: Any) -> Any:
    """AdaGrad with one accumulator per factor row: the last column of its linear record."""
    vector, lanes = shape.vector, shape.lanes
    share = np.float32(1.0 / shape.n_factors)

    @inlined
    def step_factors(table, rates, scratch, n_owners, row_step):  # type: ignore[no-untyped-def]
        width, linear_width = table.factor_width, table.linear_width
        for owner in range(n_owners):
            feature = read(scratch.owners, owner)
            squares = splat(np.float32(0), vector)
            for column in range(0, lanes, vector):
                factors = load(table.factors, feature * width + column, vector)
                gradient = gradient_of(rates, scratch, owner, row_step, factors, column)
                squares = fma(gradient, gradient, squares)
            state_at = feature * linear_width + linear_width - 1
            accumulator = fma(reduce_add(squares), share, read(table.linear, state_at))
            write(table.linear, state_at, accumulator)
            rate = rates.factor_learning_rate * reciprocal_root(accumulator)
            for column in range(0, lanes, vector):
                at = feature * width + column
                factors = load(table.factors, at, vector)
                gradient = gradient_of(rates, scratch, owner, row_step, factors, column)
                store(table.factors, at, sgd(factors, gradient, rate))

    return step_factors
