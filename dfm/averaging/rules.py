"""The rule by which replicas become one, as a record of numbers: checks, rates and how often to average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from dfm.errors import SettingsError
from dfm.kernels.optimizers import DEFAULT_OPTIMIZER, resolve_optimizer

Coefficients = tuple[float, float, float]


@dataclass(frozen=True)
class Weighting:
    """Weights of replicas' changes of a coordinate: Σ a_k Δ_k / D (notation: see `merge`).

    share(P): (base, history, growth) of a_k = base + history G0 + growth F_k. divisor(P, W): (fixed, history, growth)
    of D = fixed + history G0 + growth ΣF. per: "touches", how many replicas touched the feature, or "occurrences" of
    the feature in their rows, takes the place of `fixed`; occurrences multiply a_k too. by_accumulators: it needs sums
    of squared gradients. uses_precision: it reads P.
    """

    name: str
    share: Callable[[float], Coefficients]
    divisor: Callable[[float, int], Coefficients]
    per: str = ""
    by_accumulators: bool = False
    uses_precision: bool = False


def _alike(_precision: float) -> Coefficients:
    return 1.0, 0.0, 0.0


def _counted(_precision: float, _n_replicas: int) -> Coefficients:
    return 0.0, 0.0, 0.0


WEIGHT_RULES = {
    rule.name: rule
    for rule in (
        Weighting("mean", _alike, lambda _precision, n_replicas: (n_replicas, 0.0, 0.0)),
        Weighting(
            "weighted",
            lambda _precision: (0.0, 1.0, 1.0),
            lambda _precision, n_replicas: (0.0, n_replicas, 1.0),
            by_accumulators=True,
        ),
        Weighting("touched", _alike, _counted, per="touches"),
        Weighting("count", _alike, _counted, per="occurrences"),
        Weighting(
            "precision",
            lambda precision: (precision, 0.0, 1.0),
            lambda precision, _n_replicas: (precision, 0.0, 1.0),
            by_accumulators=True,
            uses_precision=True,
        ),
    )
}
"""The merge rules of weights, by name."""


@dataclass(frozen=True)
class StateRule:
    """Rule by which replicas' optimizer state becomes one: G0 + Σ F_k / D, or of their squares Σ G_k² / Σ G_k.

    divisor(W): (fixed, history, growth) of D, with `per` as in `Weighting`. fits_means: whether it suits running means,
    which may have either sign and do not add up.
    """

    name: str
    divisor: Callable[[int], Coefficients]
    per: str = ""
    of_squares: bool = False
    fits_means: bool = False


ACCUMULATOR_RULES = {
    rule.name: rule
    for rule in (
        StateRule("mean", lambda n_replicas: (n_replicas, 0.0, 0.0), fits_means=True),
        StateRule("vw", lambda n_replicas: (0.0, n_replicas, 1.0), of_squares=True),
        StateRule("touched", lambda _n_replicas: (0.0, 0.0, 0.0), per="touches", fits_means=True),
        StateRule("sum", lambda _n_replicas: (1.0, 0.0, 0.0)),
    )
}
"""The merge rules of optimizer state, by name."""
RATE_SCALINGS: dict[str, Callable[[int], float]] = {
    "none": lambda _n_replicas: 1.0,
    "sqrt": lambda n_replicas: n_replicas**0.5,
    "linear": float,
}
"""Factors of the step size by the number of replicas, by name."""
LARGEST_OUTER_STEP = 4.0
"""From this value of outer_rate / (1 - outer_momentum) on, training diverged or got much worse."""
LARGEST_PRECISION = 200.0
"""Bound of precision × n_replicas. Beyond it log losses exploded: P = 30 with 8 replicas, 10 with 32 or 64."""


@dataclass(frozen=True, slots=True)
class MergeRule:
    """The rule by which replicas become one model. `weights`: how their Δ_k are weighted (notation: see the module).

    "mean": Σ Δ_k / W. "touched": Σ Δ_k / t. "count": by occurrences of the feature in the replica's rows.
    "weighted": by G_k, and an untouched replica weighs G0 (Vowpal Wabbit's rule, on deltas).
    "precision": (P + F_k) / (P + Σ F_j), P = `precision`; sums what is rare, averages what is frequent.

    `accumulators` merges the optimizer's state: "mean" G0 + Σ F_k / W; "touched" G0 + Σ F_k / t; "sum" G0 + Σ
    F_k; "vw" Σ G_k² / Σ G_k over all W replicas. State that stays with its replica is not offered: rounds
    would then not be functions of the parameters alone, and a lost worker or a resumed job could not
    reproduce them.

    The merged step is multiplied by `outer_rate`, after Nesterov momentum `outer_momentum` over the rounds
    (0: none).
    """

    weights: str = "mean"
    accumulators: str = "mean"
    precision: float = 1.0
    outer_rate: float = 1.0
    outer_momentum: float = 0.0

    def __post_init__(self) -> None:
        _check_word("merge", self.weights, WEIGHT_RULES)
        _check_word("accumulators", self.accumulators, ACCUMULATOR_RULES)
        _check_range("precision", self.precision, 0.0, np.inf)
        _check_range("outer_rate", self.outer_rate, 0.0, np.inf)
        if not 0.0 <= self.outer_momentum < 1.0:
            raise SettingsError(f"outer_momentum = {self.outer_momentum}; it must lie in [0, 1); 0.5 is a mild one")
        outer_step = self.outer_rate / (1.0 - self.outer_momentum)
        if outer_step >= LARGEST_OUTER_STEP:
            raise SettingsError(
                f"outer_rate = {self.outer_rate} with outer_momentum = {self.outer_momentum} multiplies "
                f"the merged step by {outer_step:.3g}, and from {LARGEST_OUTER_STEP:g} on it diverges; "
                "try outer_rate = 1 with outer_momentum = 0.5"
            )

    @property
    def weighting(self) -> Weighting:
        """The record of `weights`."""
        return WEIGHT_RULES[self.weights]

    @property
    def state_rule(self) -> StateRule:
        """The record of `accumulators`."""
        return ACCUMULATOR_RULES[self.accumulators]

    def check_optimizer(self, optimizer: str) -> None:
        """SettingsError where the rule weighs by accumulators that the optimizer does not have, or adds up averages."""
        record = resolve_optimizer(optimizer)
        if self.weighting.by_accumulators and not record.weighs_replicas:
            others = _listed(name for name, rule in WEIGHT_RULES.items() if not rule.by_accumulators)
            raise SettingsError(
                f'merge = "{self.weights}" weighs replicas by accumulators, and optimizer = "{optimizer}" has none; '
                f'use merge = {others}, or optimizer = "{DEFAULT_OPTIMIZER}"'
            )
        if record.state == "means" and not self.state_rule.fits_means:
            others = _listed(name for name, rule in ACCUMULATOR_RULES.items() if rule.fits_means)
            raise SettingsError(
                f'accumulators = "{self.accumulators}" merges sums of squared gradients, and the state of '
                f'optimizer = "{optimizer}" is running means, of either sign; use accumulators = {others}, or '
                f'optimizer = "{DEFAULT_OPTIMIZER}"'
            )

    def check_replicas(self, n_replicas: int) -> None:
        """SettingsError where the rule is known to diverge with so many replicas."""
        if self.weighting.uses_precision and self.precision * n_replicas > LARGEST_PRECISION:
            legal = LARGEST_PRECISION / n_replicas
            raise SettingsError(
                f'merge = "{self.weights}" with precision = {self.precision} diverges with n_replicas = {n_replicas}: '
                f"what few rows taught is added up too often; use precision = {legal:.3g} or less"
            )


def automatic_weights(optimizer: str) -> str:
    """The merge rule where the job leaves it to dfm: by accumulators where the optimizer has them."""
    return "weighted" if resolve_optimizer(optimizer).weighs_replicas else "mean"


def _listed(names: Iterable[str]) -> str:
    """Names in quotes, the last one after "or"."""
    quoted = [f'"{name}"' for name in names]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _check_word(name: str, value: str, legal: Iterable[str]) -> None:
    if value not in legal:
        hint = ""
        if value == "local":
            hint = '; state that stays with a replica could not be resumed or recomputed, use "mean"'
        raise SettingsError(f"{name} = {value!r}; choose one of {', '.join(legal)}{hint}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise SettingsError(f"{name} = {value}; it must be above {low:g} and finite; 1 is a good start")


def scaled_rate(learning_rate: float, rate_scaling: str, n_replicas: int) -> float:
    """The local step size: an average divides what each replica learnt, so replicas may step further."""
    _check_word("rate_scaling", rate_scaling, RATE_SCALINGS)
    return learning_rate * RATE_SCALINGS[rate_scaling](n_replicas)


LEAST_ROUND_ROWS = 100
"""Rows per replica and round below which another average costs more than it can be worth."""
MOST_AVERAGES = 32
"""Per epoch. With more than 64 replicas the tasks and the wire of further averages outweigh what they gain."""


def automatic_averages(n_rows: int, n_replicas: int) -> int:
    """Averages per epoch where the job leaves it to dfm: 4 sqrt(W), from rows and replicas, never from a clock.

    More replicas need more averages; more rows do not: beyond this, shorter rounds gained little on every log tried.
    """
    if n_replicas == 1:
        return 1
    wanted = min(math.ceil(4 * n_replicas**0.5), MOST_AVERAGES)
    return max(1, min(wanted, n_rows // (n_replicas * LEAST_ROUND_ROWS)))
