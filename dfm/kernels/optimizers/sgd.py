"""Plain stochastic gradient descent: θ - η g."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfm.kernels.optimizers.record import Optimizer, Steps

if TYPE_CHECKING:
    from dfm.kernels.cpu.shape import Shape
    from dfm.kernels.custom.functions import CustomRegularizer


def _steps(shape: Shape, regularizer: CustomRegularizer | None) -> Steps:
    from dfm.kernels.cpu.formulas import descend, fma, formula
    from dfm.kernels.cpu.step_passes import make_step_coordinates, make_steps

    @formula
    def linear(weight, first, second, gradient, sample_weight, rates):  # type: ignore[no-untyped-def]
        gradient = fma(weight, sample_weight * rates.l2_linear, gradient)
        return descend(weight, gradient, rates.learning_rate), first, second

    @formula
    def factor(weight, state, gradient, _sample_weight, rates):  # type: ignore[no-untyped-def]
        return descend(weight, gradient, rates.factor_learning_rate), state

    return make_steps(shape, regularizer, linear, make_step_coordinates(shape, regularizer, factor, has_state=False))


SGD = Optimizer(
    name="sgd",
    steps=_steps,
    learning_rate=0.01,
    row_rate=0.4,
    cuda="""
__device__ inline void move_linear(float *record, float gradient, float squares, bool is_bias, const Rates &rates) {
    atomicAdd(record, -rates.learning_rate * gradient);
}
""",
)
