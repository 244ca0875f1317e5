"""The step size over the rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from dfm.errors import SettingsError
from dfm.kernels.optimizers import resolve_optimizer

if TYPE_CHECKING:
    from dfm.kernels.contract import Step

_DECAYING_SHARE = 0.3
_LAST_FACTOR = 0.1
_LAST_OF_PLATEAU = 0.05


def _final_decay(round_number: float, n_rounds: int) -> float:
    begin = (1.0 - _DECAYING_SHARE) * n_rounds
    length = max(n_rounds - 1 - begin, 1.0)
    progress = min(max((round_number - begin) / length, 0.0), 1.0)
    return 1.0 - progress * (1.0 - _LAST_FACTOR)


def _after_plateau(round_number: float, n_rounds: int) -> float:
    progress = min(max((round_number + 0.5) / n_rounds, 0.0), 1.0) if n_rounds else 0.0
    return 1.0 - progress * (1.0 - _LAST_OF_PLATEAU)


SCHEDULES: dict[str, Callable[[float, int], float]] = {
    "constant": lambda _round_number, _n_rounds: 1.0,
    "inverse-sqrt": lambda round_number, _n_rounds: float((1.0 + round_number) ** -0.5),
    "final-decay": _final_decay,
    "plateau": _after_plateau,
}
"""By name: what the step size is multiplied with in a round of so many, see `rate_factor`."""


def rate_factor(schedule: str, round_number: float, n_rounds: int) -> float:
    """The factor of the step size in round `round_number` (from 0) of `n_rounds`; 1 at the start.

    Rounds are of equal length here; one that is longer counts as so many, and stands at their middle.

    "inverse-sqrt" is 1 / sqrt(1 + round). "final-decay" stays 1, then falls linearly to 0.1 over the last 30 %.
    "plateau" falls linearly to 0.05 over rounds that are counted from where the plateau was left; before that there are
    0 of them, and it is 1.
    """
    if schedule not in SCHEDULES:
        raise SettingsError(f"schedule = {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[schedule](round_number, n_rounds)


def scheduled(step: Step, optimizer: str, factor: float) -> Step:
    """The step with its rates multiplied, as far as the optimizer lets a schedule change them."""
    rate = step.learning_rate * factor if resolve_optimizer(optimizer).scales_linear_rate else step.learning_rate
    factors = step.factor_learning_rate * factor
    return replace(step, learning_rate=rate, factor_learning_rate=factors, rate_factor=step.rate_factor * factor)
