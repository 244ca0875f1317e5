"""Adam (Kingma and Ba 2015, algorithm 1), lazy: a feature's moments move when a row touches it and stay otherwise.

A linear record is [w, m, v, c1, c2], a factor record [V, m of each, v of each]. c1 and c2 count what went into the
moments of that feature alone; its factors share them. A count of all steps, as TensorFlow's LazyAdam has, would take
the first gradient of a rare feature for the mean of thousands of zeros: its first step would be
(1 - β1) / sqrt(1 - β2) = 3.2 times too long.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dfm.kernels.optimizers.record import Optimizer, Steps
from dfm.kernels.records import Parameter

if TYPE_CHECKING:
    from dfm.kernels.cpu.shape import Shape
    from dfm.kernels.custom.functions import CustomRegularizer

COLUMNS = 5


@functools.cache
def _formulas() -> tuple[Any, Any, Any]:
    """advance, fill and moved: the moments and their weights after a gradient, and the parameter that they move."""
    import numpy as np

    from dfm.kernels.cpu.formulas import formula, maximum, running_mean, sqrt
    from dfm.kernels.cpu.step_passes import inlined

    zero = np.float32(0)

    @inlined
    def advance(moments, gradient, rates):  # type: ignore[no-untyped-def]
        """(m, v) after a gradient."""
        beta1, beta2, _epsilon = rates.own
        mean = running_mean(moments[0], gradient, beta1)
        return mean, running_mean(moments[1], gradient * gradient, beta2)

    @inlined
    def fill(filled, ones, rates):  # type: ignore[no-untyped-def]
        """(c1, c2) after a gradient."""
        beta1, beta2, _epsilon = rates.own
        return running_mean(filled[0], ones, beta1), running_mean(filled[1], ones, beta2)

    @formula
    def moved(weight, moments, filled, rate, epsilon):  # type: ignore[no-untyped-def]
        """θ - η m̂ / (sqrt(v̂) + ε), of moments (m, v) that this gradient went into.

        m̂ = m / c1 and v̂ = v / c2 are means of all gradients so far. The paper's c is 1 - β^t. Here it is kept, as
        `filled`: the running mean of ones with the same β. That is the same number, but one that averages over replicas
        just as m does.
        """
        mean, square = moments[0] / filled[0], maximum(moments[1], zero) / filled[1]  # an average may round below 0
        return weight - (rate * mean) / (sqrt(square) + epsilon)

    return advance, fill, moved


def _make_step_number(shape: Shape) -> Any:
    """step_number(records, at, rates, sample_weight, gradient): updates the number at a flat offset and its state.

    In place. A row of weight 0 does not.
    """
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import read, write

    advance, fill, moved = _formulas()
    apart = shape.apart

    @inlined
    def step_number(records, at, rates, sample_weight, gradient):  # type: ignore[no-untyped-def]
        if sample_weight > np.float32(0):
            moments = advance((read(records, at + apart), read(records, at + 2 * apart)), gradient, rates)
            filled = fill((read(records, at + 3 * apart), read(records, at + 4 * apart)), np.float32(1), rates)
            write(records, at, moved(read(records, at), moments, filled, rates.learning_rate, rates.own[2]))
            write(records, at + apart, moments[0])
            write(records, at + 2 * apart, moments[1])
            write(records, at + 3 * apart, filled[0])
            write(records, at + 4 * apart, filled[1])

    return step_number


def _make_step_linear(shape: Shape, regularizer: CustomRegularizer | None) -> Any:
    """step_linear(rows, table, rates, scratch, row_step): updates w of every entry of the row, in place."""
    import numpy as np

    from dfm.kernels.cpu.step_passes import WIDTH, inlined, make_penalties, make_penalty_slope
    from dfm.kernels.simd import every, fma, load, read, splat, store, write

    implicit, penalty_slope, lanes = shape.implicit, make_penalty_slope(regularizer), WIDTH * COLUMNS
    advance, fill, moved = _formulas()
    gather_penalties, penalties_of, _ = make_penalties(shape)

    @inlined
    def step_linear(rows, table, rates, scratch, row_step):  # type: ignore[no-untyped-def]
        start, n_entries, sample_weight, slope = row_step
        if sample_weight > np.float32(0):
            gather_penalties(rows, table, scratch, row_step)
            for position in range(0, n_entries, WIDTH):
                at = position * COLUMNS
                gradient = splat(slope, WIDTH)
                if not implicit:
                    gradient = gradient * load(scratch.values, position, WIDTH)
                records = load(scratch.linear, at, lanes)
                weights, own_rates = every(records, 0, COLUMNS), penalties_of(rates, scratch, position)
                gradient = fma(penalty_slope(weights, WIDTH), sample_weight * own_rates.l2_linear, gradient)
                moments = advance((every(records, 1, COLUMNS), every(records, 2, COLUMNS)), gradient, rates)
                filling = every(records, 3, COLUMNS), every(records, 4, COLUMNS)
                filled = fill(filling, splat(np.float32(1), WIDTH), rates)
                weights = moved(weights, moments, filled, rates.learning_rate, rates.own[2])
                # Column by column from here on: what is scattered next is one number of each.
                store(scratch.linear, at, weights)
                store(scratch.linear, at + WIDTH, moments[0])
                store(scratch.linear, at + 2 * WIDTH, moments[1])
                store(scratch.linear, at + 3 * WIDTH, filled[0])
                store(scratch.linear, at + 4 * WIDTH, filled[1])
            for position in range(n_entries):
                record = np.intp(read(rows.indices, start + position)) * table.linear_width
                source = position // WIDTH * lanes + position % WIDTH
                for column in range(COLUMNS):
                    write(table.linear, record + column, read(scratch.linear, source + column * WIDTH))

    return step_linear


def _make_step_factors(shape: Shape, regularizer: CustomRegularizer | None) -> Any:
    """step_factors(table, rates, scratch, n_owners, row_step): updates V of the row's entries, in place."""
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined, make_gradient, make_owners_of, make_penalties
    from dfm.kernels.simd import load, read, store

    penalties_of = make_penalties(shape)[2]
    vector, lanes, n_groups = shape.vector, shape.lanes, shape.n_groups
    (of_group, gradient_of), owners_of = make_gradient(shape, regularizer), make_owners_of(shape)
    advance, _fill, moved = _formulas()

    @inlined
    def step_owner(table, rates, scratch, owner, row_step, group):  # type: ignore[no-untyped-def]
        feature = read(scratch.owners, owner)
        record = feature * table.linear_width
        filled = read(table.linear, record + 3), read(table.linear, record + 4)  # of step_linear, just before
        own_rates = penalties_of(rates, table, feature)
        for column in range(0, lanes, vector):
            at = feature * table.factor_width + column
            factors, shared = load(table.factors, at, vector), of_group(rates, scratch, group, row_step, column)
            gradient = gradient_of(own_rates, scratch, owner, row_step, factors, column, shared)
            state = load(table.factors, at + lanes, vector), load(table.factors, at + 2 * lanes, vector)
            moments = advance(state, gradient, rates)
            factors = moved(factors, moments, filled, rates.factor_learning_rate, rates.own[2])
            store(table.factors, at, factors)
            store(table.factors, at + lanes, moments[0])
            store(table.factors, at + 2 * lanes, moments[1])

    @inlined
    def step_factors(table, rates, scratch, n_owners, row_step):  # type: ignore[no-untyped-def]
        if row_step[2] > np.float32(0):
            for group in range(n_groups):
                for owner in owners_of(scratch, group, n_owners):
                    step_owner(table, rates, scratch, owner, row_step, group)

    return step_factors


def _steps(shape: Shape, regularizer: CustomRegularizer | None) -> Steps:
    from dfm.kernels.cpu.step_passes import no_step

    step_factors = _make_step_factors(shape, regularizer) if shape.lanes else no_step
    return _make_step_number(shape), _make_step_linear(shape, regularizer), step_factors


ADAM = Optimizer(
    name="adam",
    steps=_steps,
    learning_rate=0.01,
    row_rate=0.0,
    linear_state=COLUMNS - 1,
    factor_state=2,
    state="means",
    parameters=(
        Parameter("adam_beta1", 0.9, "decay of Adam's mean of gradients", high=1.0, open_high=True),
        Parameter("adam_beta2", 0.999, "decay of Adam's mean of their squares", high=1.0, open_high=True),
        Parameter("adam_epsilon", 1e-8, "added to the root that Adam divides by"),
    ),
)
