"""The passes that change parameters once the slope of a row is known; built for a shape, parts of the walk.

`step_linear` updates 16 linear weights at a time in the scratch and scatters them (no feature stands twice in a row, so
this is safe); `step_factors` updates each factor record in place.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from dfm.compilation import part
from dfm.kernels.contract import Rates
from dfm.kernels.cpu.formulas import descend, descend_by_root, formula, reciprocal_root
from dfm.kernels.cpu.shape import Shape
from dfm.kernels.custom.functions import CustomRegularizer
from dfm.kernels.families.registry import family_of
from dfm.kernels.simd import every, fma, interleave, load, map_lanes, read, reduce_add, splat, store, write

WIDTH = 16
"""Linear weights that are updated at a time."""
OWN_LANES = 8
"""Numbers of a family's own block that are updated at a time: more would stand beyond the diagonal of its pairs."""


inlined = part(error_model="numpy")
called = part(error_model="numpy", forceinline=False)
"""A part that may stay a call where it is long."""


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


@formula
def _without_l2_linear(rates):  # type: ignore[no-untyped-def]
    """The rates for a rule whose gradient holds the penalty already."""
    return Rates(rates.learning_rate, rates.factor_learning_rate, np.float32(0), rates.l2_factors, rates.own)


def with_penalty(update: Any, regularizer: CustomRegularizer | None) -> Any:
    """A rule of linear weights whose penalty is the user's; as it is without one."""
    if regularizer is None:
        return update
    penalty_slope = make_penalty_slope(regularizer)

    @inlined
    def penalised(weights, first, second, gradient, sample_weight, rates):  # type: ignore[no-untyped-def]
        gradient = fma(penalty_slope(weights, WIDTH), sample_weight * rates.l2_linear, gradient)
        return update(weights, first, second, gradient, sample_weight, _without_l2_linear(rates))

    return penalised


def make_penalties(shape: Shape) -> tuple[Any, Any, Any]:
    """gather(rows, table, scratch, row_step), of_entries(rates, scratch, position) and of_owner(rates, table, feature):
    the rates with the penalties of WIDTH entries, once they were gathered, and of the factors of a feature.
    """
    if not shape.scaled_l2:
        return inlined(lambda _rows, _table, _scratch, _row_step: None), *[inlined(lambda rates, _1, _2: rates)] * 2

    @inlined
    def gather(rows, table, scratch, row_step):  # type: ignore[no-untyped-def]
        for position in range(row_step[1]):
            feature = np.intp(read(rows.indices, row_step[0] + position))
            write(scratch.l2_scales, position, read(table.l2_scales, 2 * feature))

    @inlined
    def of_entries(rates, scratch, position):  # type: ignore[no-untyped-def]
        penalties = load(scratch.l2_scales, position, WIDTH) * rates.l2_linear
        return Rates(rates.learning_rate, rates.factor_learning_rate, penalties, rates.l2_factors, rates.own)

    @inlined
    def of_owner(rates, table, feature):  # type: ignore[no-untyped-def]
        penalty = read(table.l2_scales, 2 * feature + 1) * rates.l2_factors
        return Rates(rates.learning_rate, rates.factor_learning_rate, rates.l2_linear, penalty, rates.own)

    return gather, of_entries, of_owner


def make_step_linear(shape: Shape, update: Any) -> Any:
    """step_linear(rows, table, rates, scratch, row_step): updates w of every entry of the row, in place."""
    implicit, gathered, lanes = shape.implicit, shape.gathered, WIDTH * shape.gathered
    gather_penalties, penalties_of, _ = make_penalties(shape)
    # A rule with less state than two gets w again for the rest, and what it gives back for it is dropped.
    first_column, second_column = min(1, gathered - 1), min(2, gathered - 1)

    @inlined
    def step_linear(rows, table, rates, scratch, row_step):  # type: ignore[no-untyped-def]
        start, n_entries, sample_weight, slope = row_step
        gather_penalties(rows, table, scratch, row_step)
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
                penalties_of(rates, scratch, position),
            )
            store(scratch.linear, position * gathered, interleave(weights, first, second, gathered))
        for position in range(n_entries):
            feature = np.intp(read(rows.indices, start + position))
            record = load(scratch.linear, position * gathered, gathered)
            store(table.linear, feature * table.linear_width, record)

    return step_linear


def _make_access(abreast: int) -> tuple[Any, Any]:
    """get(records, at) and put(records, at, numbers), of as many numbers as `step_number` takes at a time."""
    if abreast == 1:
        return read, write
    return inlined(lambda records, at: load(records, at, abreast)), store


@functools.cache
def _make_step_number(update: Any, gathered: int, abreast: int, apart: int) -> Any:
    """step_number(records, at, rates, sample_weight, gradient): updates the number at a flat offset and its state.

    In place. It belongs to no feature: `rates` are without penalties. Of several, all are vectors.
    """
    first_column, second_column = min(1, gathered - 1) * apart, min(2, gathered - 1) * apart
    get, put = _make_access(abreast)

    @inlined
    def step_number(records, at, rates, sample_weight, gradient):  # type: ignore[no-untyped-def]
        first, second = get(records, at + first_column), get(records, at + second_column)
        number, first, second = update(get(records, at), first, second, gradient, sample_weight, rates)
        # Backwards: a rule with less state than two gave back what it was given for the rest.
        put(records, at + second_column, second)
        put(records, at + first_column, first)
        put(records, at, number)

    return step_number


def make_steps(
    shape: Shape, regularizer: CustomRegularizer | None, linear: Any, step_factors: Any
) -> tuple[Any, Any, Any]:
    """step_number, step_linear and step_factors of an optimizer with at most two numbers of state to a linear weight.

    linear(weight, first, second, gradient, sample_weight, rates): the new (weight, first, second), the columns of a
    linear record; `gradient` is without penalties.
    """
    return (
        _make_step_number(linear, shape.gathered, shape.abreast, shape.apart),
        make_step_linear(shape, with_penalty(linear, regularizer)),
        step_factors,
    )


@inlined
def no_step(_table, _rates, _scratch, _n_owners, _row_step):  # type: ignore[no-untyped-def]
    """step_factors of a model without factors."""
    return


def make_gradient(shape: Shape, regularizer: CustomRegularizer | None) -> Any:
    """of_group and gradient of the family, see there. Owners share no penalty where each has its own."""
    is_shared = regularizer is None and not shape.scaled_l2
    penalty_slope = None if is_shared else make_penalty_slope(regularizer)
    return family_of(shape.family).gradient(shape, penalty_slope)


def make_owners_of(shape: Shape) -> Any:
    """owners_of(scratch, group, n_owners): the range of the owners in a group."""
    has_groups = shape.n_groups > 1

    @inlined
    def owners_of(scratch, group, n_owners):  # type: ignore[no-untyped-def]
        if has_groups:
            return range(read(scratch.first_owners, group), read(scratch.first_owners, group + 1))
        return range(0, n_owners)

    return owners_of


@formula
def descend_factor_by_root(weight, accumulator, gradient, _sample_weight, rates):  # type: ignore[no-untyped-def]
    """A rule of V with an accumulator for each factor."""
    return descend_by_root(weight, accumulator, gradient, rates.factor_learning_rate)


def make_step_coordinates(
    shape: Shape, regularizer: CustomRegularizer | None, update: Any, has_state: bool = True
) -> Any:
    """step_factors of update(factors, state, gradient, sample_weight, rates): the new (factors, state), one per factor.

    A rule without state gets V again in its place, and what it gives back for it is dropped.
    """
    if not shape.lanes:
        return no_step
    vector, lanes, n_groups = shape.vector, shape.lanes, shape.n_groups
    (of_group, gradient_of), owners_of = make_gradient(shape, regularizer), make_owners_of(shape)
    penalties_of = make_penalties(shape)[2]

    @inlined
    def step_owner(table, rates, scratch, owner, row_step, place):  # type: ignore[no-untyped-def]
        column, shared = place
        feature = read(scratch.owners, owner)
        at = feature * table.factor_width + column
        factors = load(table.factors, at, vector)
        gradient = gradient_of(penalties_of(rates, table, feature), scratch, owner, row_step, factors, column, shared)
        if has_state:
            state = load(table.factors, at + lanes, vector)
            factors, state = update(factors, state, gradient, row_step[2], rates)
            store(table.factors, at + lanes, state)
        else:
            factors, _ = update(factors, factors, gradient, row_step[2], rates)
        store(table.factors, at, factors)

    @inlined
    def step_factors(table, rates, scratch, n_owners, row_step):  # type: ignore[no-untyped-def]
        for column in range(0, lanes, vector):
            for group in range(n_groups):
                place = (column, of_group(rates, scratch, group, row_step, column))
                for owner in owners_of(scratch, group, n_owners):
                    step_owner(table, rates, scratch, owner, row_step, place)

    return step_factors


def make_step_rows(shape: Shape, regularizer: CustomRegularizer | None) -> Any:
    """One accumulator per factor row, the last column of its linear record: the sum of the mean squared gradients."""
    if not shape.lanes:
        return no_step
    vector, lanes, n_groups = shape.vector, shape.lanes, shape.n_groups
    (of_group, gradient_of), owners_of = make_gradient(shape, regularizer), make_owners_of(shape)
    penalties_of = make_penalties(shape)[2]
    share = np.float32(1.0 / shape.n_factors)

    @inlined
    def gradient_at(table, rates, scratch, owner, row_step, place):  # type: ignore[no-untyped-def]
        group, column = place
        feature = read(scratch.owners, owner)
        factors = load(table.factors, feature * table.factor_width + column, vector)
        shared = of_group(rates, scratch, group, row_step, column)
        return factors, gradient_of(
            penalties_of(rates, table, feature), scratch, owner, row_step, factors, column, shared
        )

    @inlined
    def step_owner(table, rates, scratch, owner, row_step, group):  # type: ignore[no-untyped-def]
        feature, linear_width = read(scratch.owners, owner), table.linear_width
        squares = splat(np.float32(0), vector)
        for column in range(0, lanes, vector):
            _, gradient = gradient_at(table, rates, scratch, owner, row_step, (group, column))
            squares = fma(gradient, gradient, squares)
        state_at = feature * linear_width + linear_width - 1
        accumulator = fma(reduce_add(squares), share, read(table.linear, state_at))
        write(table.linear, state_at, accumulator)
        rate = rates.factor_learning_rate * reciprocal_root(accumulator)
        for column in range(0, lanes, vector):
            factors, gradient = gradient_at(table, rates, scratch, owner, row_step, (group, column))
            store(table.factors, feature * table.factor_width + column, descend(factors, gradient, rate))

    @inlined
    def step_factors(table, rates, scratch, n_owners, row_step):  # type: ignore[no-untyped-def]
        for group in range(n_groups):
            for owner in owners_of(scratch, group, n_owners):
                step_owner(table, rates, scratch, owner, row_step, group)

    return step_factors
