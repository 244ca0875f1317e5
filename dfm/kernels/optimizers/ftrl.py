"""FTRL-proximal (McMahan et al. 2013, algorithm 1) for linear weights, with AdaGrad for factors.

A linear record is [w, z, n]. w is made of z and n: its mean over replicas is not the w of the mean z and n, and would
have no exact zeros.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dfm.kernels.optimizers.adagrad import ADAGRAD
from dfm.kernels.optimizers.record import Optimizer, Steps
from dfm.kernels.records import Parameter

if TYPE_CHECKING:
    from dfm.kernels.cpu.shape import Shape
    from dfm.kernels.custom.functions import CustomRegularizer


@functools.cache
def _weight() -> Any:
    import numpy as np

    from dfm.kernels.cpu.formulas import formula, maximum, minimum, sqrt

    tiny = np.float32(1e-30)

    @formula
    def weight(z, n, rates):  # type: ignore[no-untyped-def]
        """The w that z and n stand for: exactly 0 where |z| <= l1."""
        l1, beta = rates.own
        clipped = minimum(maximum(z, -l1), l1)
        curvature = (sqrt(n) + beta) / rates.learning_rate + rates.l2_linear
        return (clipped - z) / maximum(curvature, tiny)  # an untouched feature may have z, n, beta and l2 all 0

    return weight


def _steps(shape: Shape, regularizer: CustomRegularizer | None) -> Steps:
    from dfm.kernels.cpu.formulas import fma, formula, sqrt
    from dfm.kernels.cpu.step_passes import descend_factor_by_root, make_step_coordinates, make_steps

    weight_of = _weight()

    @formula
    def linear(weight, first, second, gradient, sample_weight, rates):  # type: ignore[no-untyped-def]
        """z and n are `first` and `second`; l1 and l2 act through weight_of alone."""
        total = fma(gradient, gradient, second)
        sigma = (sqrt(total) - sqrt(second)) / rates.learning_rate
        first = fma(-sigma, weight, first + gradient)
        return weight_of(first, total, rates), first, total

    return make_steps(shape, regularizer, linear, make_step_coordinates(shape, regularizer, descend_factor_by_root))


FTRL = Optimizer(
    name="ftrl",
    steps=_steps,
    learning_rate=0.1,
    linear_state=2,
    factor_state=1,
    factors_start=True,  # z and n start at 0: beta has the part of the initial accumulator
    primary=1,
    state="sums",
    weight=_weight,
    parameters=(
        Parameter("l1_linear", 0.0, "L1 on linear weights", is_penalty=True),
        Parameter("ftrl_beta", 1.0, "beta of FTRL-proximal: larger starts slower"),
    ),
    scales_linear_rate=False,  # it is part of what z means, and decays anyway
    damping="ftrl_beta",
    alone=ADAGRAD,
    cuda="""
__device__ inline float derived_weight(float z, float n, bool is_bias, const Rates &rates) {
    float l1 = is_bias ? 0.0f : rates.l1_linear, l2 = is_bias ? 0.0f : rates.l2_linear;
    float clipped = fminf(fmaxf(z, -l1), l1);
    float curvature = (sqrtf(n) + rates.ftrl_beta) / rates.learning_rate + l2;
    return (clipped - z) / fmaxf(curvature, TINY);
}

__device__ inline void move_linear(float *record, float gradient, float squares, bool is_bias, const Rates &rates) {
    float weight = derived_weight(__ldcg(record + 1), __ldcg(record + 2), is_bias, rates);
    float n = atomicAdd(record + 2, squares);
    float sigma = (sqrtf(n + squares) - sqrtf(n)) / rates.learning_rate;
    atomicAdd(record + 1, fmaf(-sigma, weight, gradient));
}
""",
)
