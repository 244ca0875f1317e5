"""The rule by which replicas become one, as a record of numbers: checks, rates and how often to average."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dfm.errors import SettingsError

WEIGHT_RULES = ("mean", "weighted", "touched", "count", "precision")
ACCUMULATOR_RULES = ("mean", "vw", "touched", "sum")
RATE_SCALINGS = ("none", "sqrt", "linear")
WITHOUT_ACCUMULATORS = ("sgd", "adam")
"""Optimizers whose state does not say how much a replica has seen of a feature."""
LARGEST_OUTER_STEP = 4.0
"""From this value of outer_rate / (1 - outer_momentum) on, training diverged or got much worse."""
LARGEST_PRECISION = 200.0
"""Of precision × n_replicas. Beyond it log losses exploded: P = 30 with 8 replicas, 10 with 32 or 64."""


@dataclass(frozen=True, slots=True)
class MergeRule:
    """How replicas become one model. `weights` says how their Δ_k are weighted (notation: see the module).

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

    def check_optimizer(self, optimizer: str) -> None:
        """SettingsError where the rule weighs by accumulators that the optimizer does not have, or adds up averages."""
        if optimizer in WITHOUT_ACCUMULATORS and self.weights in ("weighted", "precision"):
            raise SettingsError(
                f'merge = "{self.weights}" weighs replicas by accumulators, and optimizer = "{optimizer}" has none; '
                'use merge = "mean", "touched" or "count", or optimizer = "adagrad"'
            )
        if optimizer == "adam" and self.accumulators not in ("mean", "touched"):
            raise SettingsError(
                f'accumulators = "{self.accumulators}" merges sums of squared gradients, and the moments of '
                'optimizer = "adam" are averages of either sign; use accumulators = "mean" or "touched", or '
                'optimizer = "adagrad"'
            )

    def check_replicas(self, n_replicas: int) -> None:
        """SettingsError where the rule is known to diverge with so many replicas."""
        if self.weights == "precision" and self.precision * n_replicas > LARGEST_PRECISION:
            legal = LARGEST_PRECISION / n_replicas
            raise SettingsError(
                f'merge = "precision" with precision = {self.precision} diverges with n_replicas = {n_replicas}: '
                f"what few rows taught is added up too often; use precision = {legal:.3g} or less"
            )


def _check_word(name: str, value: str, legal: tuple[str, ...]) -> None:
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
    factors = {"none": 1.0, "sqrt": n_replicas**0.5, "linear": float(n_replicas)}
    _check_word("rate_scaling", rate_scaling, RATE_SCALINGS)
    return learning_rate * factors[rate_scaling]


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
