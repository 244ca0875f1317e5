"""Update rules, as formulas on vectors or float32 scalars, and the step size over the rounds.

L2 is applied per touch: a row of weight c minimises c * (loss + l2/2 * sum of θ² over what the row touches). Frequent
features are so regularised in proportion to their evidence, as in libFM and xLearn. A lazy-exact decay of untouched
features would have to know the gap since the last touch, and under AdaGrad has no closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from dfm.compilation import compiled
from dfm.errors import SettingsError
from dfm.kernels.contract import Step
from dfm.kernels.simd import fma, maximum, minimum, rsqrt_guess, sqrt
from dfm.kernels.tables import ParameterTable


class Rates(NamedTuple):
    """Step sizes and penalties of one round, float32 each, as kernels take them."""

    learning_rate: np.float32
    factor_learning_rate: np.float32
    l2_linear: np.float32
    l2_factors: np.float32
    l1_linear: np.float32
    ftrl_beta: np.float32


class AdamRates(NamedTuple):
    """The same for Adam's kernels."""

    learning_rate: np.float32
    factor_learning_rate: np.float32
    l2_linear: np.float32
    l2_factors: np.float32
    adam_beta1: np.float32
    adam_beta2: np.float32
    adam_epsilon: np.float32


def rates_of(step: Step) -> Rates:
    """The numbers of a step, for a kernel."""
    return Rates(*(np.float32(getattr(step, name)) for name in Rates._fields))


def unpenalised(rates: Rates) -> Rates:
    """The same step sizes without penalties: those of the bias."""
    return rates._replace(l2_linear=np.float32(0), l2_factors=np.float32(0), l1_linear=np.float32(0))


def both_rates(step: Step, optimizer: str) -> tuple[Rates, Rates] | tuple[AdamRates, AdamRates]:
    """The rates of features, and those of the bias, for the kernels of an optimizer."""
    if optimizer != "adam":
        return rates_of(step), unpenalised(rates_of(step))
    rates = AdamRates(*(np.float32(getattr(step, name)) for name in AdamRates._fields))
    return rates, rates._replace(l2_linear=np.float32(0), l2_factors=np.float32(0))


_ZERO, _ONE, _TINY = np.float32(0), np.float32(1), np.float32(1e-30)
_SERIES = tuple(np.float32(c) for c in (0.49999833, 0.37500026, 0.31393564, 0.27410909))
"""(1 - e)^(-1/2) = 1 + e (c0 + c1 e + c2 e² + c3 e³) within 2.4e-8 for the |e| <= 0.0691 that `rsqrt_guess` leaves."""


@njit(nogil=True, forceinline=True)
def reciprocal_root(x):  # type: ignore[no-untyped-def]
    """1 / sqrt(x) within 1.2e-7 relative, of float32 x > 0 or a vector; finite at 0.

    Plain arithmetic instead of square root and division, which share one slow unit, and instead of the processor's
    estimate, which differs between vendors. One polynomial in e = 1 - x y² is shorter than two Newton steps.
    """
    guess = rsqrt_guess(x)
    e = fma(-(x * guess), guess, _ONE)
    series = fma(fma(fma(_SERIES[3], e, _SERIES[2]), e, _SERIES[1]), e, _SERIES[0])
    return fma(guess * e, series, guess)


@njit(nogil=True, forceinline=True)
def sgd(weight, gradient, rate):  # type: ignore[no-untyped-def]
    """θ - η g."""
    return fma(-rate, gradient, weight)


@njit(nogil=True, forceinline=True)
def adagrad(weight, accumulator, gradient, rate):  # type: ignore[no-untyped-def]
    """G + g², θ - η g / sqrt(G) (Duchi, Hazan, Singer 2011); returns (θ, G)."""
    accumulator = fma(gradient, gradient, accumulator)
    return fma(-rate * gradient, reciprocal_root(accumulator), weight), accumulator


@njit(nogil=True, forceinline=True)
def ftrl_weight(z, n, rates):  # type: ignore[no-untyped-def]
    """The w that z and n stand for (McMahan et al. 2013, algorithm 1): exactly 0 where |z| <= l1."""
    clipped = minimum(maximum(z, -rates.l1_linear), rates.l1_linear)
    curvature = (sqrt(n) + rates.ftrl_beta) / rates.learning_rate + rates.l2_linear
    return (clipped - z) / maximum(curvature, _TINY)  # an untouched feature may have z, n, beta and l2 all 0


@njit(nogil=True, forceinline=True)
def _sgd_linear(weight, first, second, gradient, sample_weight, rates):  # type: ignore[no-untyped-def]
    gradient = fma(weight, sample_weight * rates.l2_linear, gradient)
    return sgd(weight, gradient, rates.learning_rate), first, second


@njit(nogil=True, forceinline=True)
def _adagrad_linear(weight, first, second, gradient, sample_weight, rates):  # type: ignore[no-untyped-def]
    gradient = fma(weight, sample_weight * rates.l2_linear, gradient)
    weight, first = adagrad(weight, first, gradient, rates.learning_rate)
    return weight, first, second


@njit(nogil=True, forceinline=True)
def _ftrl_linear(weight, first, second, gradient, sample_weight, rates):  # type: ignore[no-untyped-def]
    """z and n are `first` and `second`; l1 and l2 act through ftrl_weight alone."""
    total = fma(gradient, gradient, second)
    sigma = (sqrt(total) - sqrt(second)) / rates.learning_rate
    first = fma(-sigma, weight, first + gradient)
    return ftrl_weight(first, total, rates), first, total


@njit(nogil=True, forceinline=True)
def running_mean(average, sample, decay):  # type: ignore[no-untyped-def]
    """β a + (1 - β) x, where the sample has the share 1 - β."""
    return fma(sample - average, _ONE - decay, average)


@njit(nogil=True, forceinline=True)
def adam(weight, moments, filled, rate, epsilon):  # type: ignore[no-untyped-def]
    """θ - η m̂ / (sqrt(v̂) + ε) (Kingma and Ba 2015, algorithm 1), of moments (m, v) that this gradient went into.

    m̂ = m / c1 and v̂ = v / c2 are means of all gradients so far. The paper's c is 1 - β^t. Here it is kept, `filled`,
    as the running mean of ones with the same β: the same number, but one that averages over replicas just as m does.
    """
    mean, square = moments[0] / filled[0], maximum(moments[1], _ZERO) / filled[1]  # an average may round below 0
    return weight - (rate * mean) / (sqrt(square) + epsilon)


@njit(nogil=True, forceinline=True)
def without_l2_linear(rates):  # type: ignore[no-untyped-def]
    """The rates for a rule whose gradient holds the penalty already."""
    factor_rate, zero = rates.factor_learning_rate, np.float32(0)
    return Rates(rates.learning_rate, factor_rate, zero, rates.l2_factors, rates.l1_linear, rates.ftrl_beta)


@dataclass(frozen=True)
class Optimizer:
    """How a local model steps.

    `linear(weight, first, second, gradient, sample_weight, rates)` returns the new (weight, first, second), where
    `gradient` is without penalties and the columns of a linear record are weight, first, second; None for "adam", whose
    records are longer. `factors` names the rule of V: "sgd", "adagrad" (per coordinate), "row" (one accumulator for the
    row, fed with the mean of the squared gradients, in the last column of the linear record), or "adam".
    """

    name: str
    linear: Callable[..., Any] | None
    factors: str


OPTIMIZERS = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("sgd", _sgd_linear, "sgd"),
        Optimizer("adagrad", _adagrad_linear, "adagrad"),
        Optimizer("adagrad-row", _adagrad_linear, "row"),
        Optimizer("ftrl", _ftrl_linear, "adagrad"),
        Optimizer("adam", None, "adam"),
    )
}


def resolve_optimizer(name: str) -> Optimizer:
    """The optimizer of that name. SettingsError for an unknown one."""
    if name not in OPTIMIZERS:
        raise SettingsError(f"optimizer = {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def refresh_weights(table: ParameterTable, step: Step) -> None:
    """Recomputes FTRL's w from z and n, in place, after those were averaged; other optimizers have nothing to redo.

    The mean of some w is not the w of the mean z and n, and has no exact zeros.
    """
    if table.layout.optimizer != "ftrl":
        return
    rates = rates_of(step)
    _refresh(table.linear, rates)
    _refresh(table.bias.reshape(1, -1), unpenalised(rates))


@compiled
def _refresh(linear, rates):  # type: ignore[no-untyped-def]
    for row in range(linear.shape[0]):
        linear[row, 0] = ftrl_weight(linear[row, 1], linear[row, 2], rates)


SCHEDULES = ("constant", "inverse-sqrt", "final-decay")
_DECAYING_SHARE = 0.3
_LAST_FACTOR = 0.1


def rate_factor(schedule: str, round_number: float, n_rounds: int) -> float:
    """What the step size is multiplied with in round `round_number` (from 0) of `n_rounds`; 1 at the start.

    Rounds are of equal length here; one that is longer counts as so many, and stands at their middle.

    "inverse-sqrt" is 1 / sqrt(1 + round). "final-decay" stays 1, then falls linearly to 0.1 over the last 30 %.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "inverse-sqrt":
        return float((1.0 + round_number) ** -0.5)
    if schedule == "final-decay":
        begin = (1.0 - _DECAYING_SHARE) * n_rounds
        length = max(n_rounds - 1 - begin, 1.0)
        progress = min(max((round_number - begin) / length, 0.0), 1.0)
        return 1.0 - progress * (1.0 - _LAST_FACTOR)
    raise SettingsError(f"schedule = {schedule!r}; choose one of {', '.join(SCHEDULES)}")


def scheduled(step: Step, optimizer: str, factor: float) -> Step:
    """The step with its rates multiplied. FTRL's linear rate stays: it is part of what z means, and decays anyway."""
    linear_rate = step.learning_rate if optimizer == "ftrl" else step.learning_rate * factor
    return replace(step, learning_rate=linear_rate, factor_learning_rate=step.factor_learning_rate * factor)
