"""RMSprop (Tieleman and Hinton 2012): θ - η g / sqrt(v), where v is a running mean of squared gradients.

v begins at `initial_accumulator` and moves when a row touches the feature: a first step is then of the gradient's size,
and never longer than η / sqrt(1 - decay).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfm.kernels.optimizers.record import Optimizer, Steps
from dfm.kernels.records import Parameter

if TYPE_CHECKING:
    from dfm.kernels.cpu.shape import Shape
    from dfm.kernels.custom.functions import CustomRegularizer


def _steps(shape: Shape, regularizer: CustomRegularizer | None) -> Steps:
    import numpy as np

    from dfm.kernels.cpu.formulas import descend, fma, formula, maximum, reciprocal_root, running_mean
    from dfm.kernels.cpu.step_passes import make_step_coordinates, make_steps

    zero, one = np.float32(0), np.float32(1)

    @formula
    def moved(weight, mean_square, gradient, sample_weight, rate_and_decay):  # type: ignore[no-untyped-def]
        rate, decay = rate_and_decay
        kept = decay if sample_weight > zero else one  # a row without weight says nothing of the gradients' size
        # Never below 0, where an average over replicas may round to.
        mean_square = maximum(running_mean(mean_square, gradient * gradient, kept), zero)
        return descend(weight, gradient * reciprocal_root(mean_square), rate), mean_square

    @formula
    def linear(weight, first, second, gradient, sample_weight, rates):  # type: ignore[no-untyped-def]
        gradient = fma(weight, sample_weight * rates.l2_linear, gradient)
        weight, first = moved(weight, first, gradient, sample_weight, (rates.learning_rate, rates.own[0]))
        return weight, first, second

    @formula
    def factor(weight, state, gradient, sample_weight, rates):  # type: ignore[no-untyped-def]
        return moved(weight, state, gradient, sample_weight, (rates.factor_learning_rate, rates.own[0]))

    return make_steps(shape, regularizer, linear, make_step_coordinates(shape, regularizer, factor))


RMSPROP = Optimizer(
    name="rmsprop",
    steps=_steps,
    learning_rate=0.01,
    row_rate=0.0,
    linear_state=1,
    factor_state=1,
    linear_starts=True,
    factors_start=True,
    state="means",
    parameters=(Parameter("rmsprop_decay", 0.99, "decay of the mean of squared gradients", high=1.0, open_high=True),),
)
