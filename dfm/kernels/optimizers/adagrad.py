"""AdaGrad (Duchi, Hazan, Singer 2011): G + g², θ - η g / sqrt(G), with an accumulator per factor or per factor row."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dfm.kernels.optimizers.record import Optimizer, Steps

if TYPE_CHECKING:
    from dfm.kernels.cpu.shape import Shape
    from dfm.kernels.custom.functions import CustomRegularizer


@functools.cache
def _linear() -> Any:
    from dfm.kernels.cpu.formulas import descend_by_root, fma, formula

    @formula
    def linear(weight, first, second, gradient, sample_weight, rates):  # type: ignore[no-untyped-def]
        gradient = fma(weight, sample_weight * rates.l2_linear, gradient)
        weight, first = descend_by_root(weight, first, gradient, rates.learning_rate)
        return weight, first, second

    return linear


def _steps(shape: Shape, regularizer: CustomRegularizer | None) -> Steps:
    from dfm.kernels.cpu.step_passes import descend_factor_by_root, make_step_coordinates, make_steps

    return make_steps(shape, regularizer, _linear(), make_step_coordinates(shape, regularizer, descend_factor_by_root))


def _row_steps(shape: Shape, regularizer: CustomRegularizer | None) -> Steps:
    """The row's accumulator is fed with the mean of the squared gradients of its factors."""
    from dfm.kernels.cpu.step_passes import make_step_rows, make_steps

    return make_steps(shape, regularizer, _linear(), make_step_rows(shape, regularizer))


_CUDA = """
__device__ inline void move_linear(float *record, float gradient, float squares, bool is_bias, const Rates &rates) {
    float total = atomicAdd(record + 1, squares) + squares;
    atomicAdd(record, -rates.learning_rate * gradient * reciprocal_root(total));
}
"""

ADAGRAD = Optimizer(
    name="adagrad",
    steps=_steps,
    learning_rate=0.1,
    linear_state=1,
    factor_state=1,
    linear_starts=True,
    factors_start=True,
    state="sums",
    is_default=True,
    cuda=_CUDA,
)

ADAGRAD_ROW = Optimizer(
    name="adagrad-row",
    steps=_row_steps,
    learning_rate=0.1,
    linear_state=2,
    has_row_state=True,
    linear_starts=True,
    state="sums",
    alone=ADAGRAD,
    cuda=_CUDA,
)
