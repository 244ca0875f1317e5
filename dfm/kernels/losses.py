"""Losses of a raw score and a label: value, slope, and the link that turns scores into predictions.

Arithmetic only, so that every machine gives the same bytes (see `arithmetic`). A user's own loss is a `CustomLoss`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dfm.errors import SettingsError
from dfm.kernels.arithmetic import exp, exponential, log_of_one_plus
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.settings.tables import LOSS_PARAMETERS, LOSS_TASKS

__all__ = ["DEFAULT_LOSSES", "LINKS", "LOSSES", "CustomLoss", "CustomRegularizer", "Link", "Loss"]
__all__ += ["check_task", "exponentials", "identity", "link_of", "resolve_loss", "sigmoid"]

Scalar = Callable[[float, float], float]


def sigmoid(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of float32 logits, without overflow."""
    u = np.exp(-np.abs(scores))
    return np.where(scores > 0, 1 / (1 + u), u / (1 + u)).astype(np.float32)


def identity(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scores are the predictions."""
    return scores


def exponentials(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """exp of float32 scores; inf where that is beyond float32."""
    with np.errstate(over="ignore"):
        return np.exp(scores)


def _log_odds(mean_label: float) -> float:
    inside = min(max(mean_label, 1e-6), 1.0 - 1e-6)
    return math.log(inside / (1.0 - inside))


@dataclass(frozen=True)
class Link:
    """How raw scores become predictions: `predict(scores)`, float32 array in and out.

    `start(mean_label)` is the score that a model without features gives: where the bias begins.
    """

    name: str
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    start: Callable[[float], float]


LINKS = {
    link.name: link
    for link in (
        Link("sigmoid", sigmoid, _log_odds),
        Link("identity", identity, float),
        Link("exp", exponentials, lambda mean_label: math.log(max(mean_label, 1e-6))),
        # A margin is no probability: above 0 the row is predicted to be of class 1, and that is all it says.
        Link("margin", identity, lambda _mean_label: 0.0),
    )
}


@dataclass(frozen=True)
class Loss:
    """A loss and its derivative by the score, as scalar float64 functions that Numba can compile.

    `value(score, label)` and `slope(score, label)` = d value / d score. `link` is a name in LINKS. `task` is what it is
    for, `domain` says in words which labels are legal. `parameter` is None where the loss has none.
    """

    name: str
    value: Scalar
    slope: Scalar
    link: str
    task: str
    domain: str
    parameter: float | None = None


@njit(nogil=True, forceinline=True)
def logistic_value(score: float, label: float) -> Any:
    """−log probability of the label, in nats."""
    margin = score if label > 0.5 else -score
    loss = log_of_one_plus(exponential(abs(margin)))
    return loss if margin > 0.0 else loss - margin


@njit(nogil=True, forceinline=True)
def logistic_slope(score: float, label: float) -> Any:
    """Probability of label 1, minus the label."""
    u = exponential(abs(score))
    likely = 1.0 / (1.0 + u)
    probability = likely if score > 0.0 else u * likely
    return probability - label


@njit(nogil=True, forceinline=True)
def squared_value(score: float, label: float) -> Any:
    """Half the squared error."""
    return 0.5 * (score - label) * (score - label)


@njit(nogil=True, forceinline=True)
def squared_slope(score: float, label: float) -> Any:
    """Score minus label."""
    return score - label


@njit(nogil=True, forceinline=True)
def hinge_value(score: float, label: float) -> Any:
    """How far the score is from 1 on the label's side; 0 beyond."""
    return max(0.0, 1.0 - (score if label > 0.5 else -score))


@njit(nogil=True, forceinline=True)
def hinge_slope(score: float, label: float) -> Any:
    """-1 or 1 towards the label's side, 0 from a margin of 1 on."""
    sign = 1.0 if label > 0.5 else -1.0
    return -sign if sign * score < 1.0 else 0.0


@njit(nogil=True, forceinline=True)
def poisson_value(score: float, label: float) -> Any:
    """−log likelihood of a count with mean exp(score), without the part that depends on the count alone, in nats."""
    return exp(score) - label * score


@njit(nogil=True, forceinline=True)
def poisson_slope(score: float, label: float) -> Any:
    """Mean minus label."""
    return exp(score) - label


@functools.cache
def _quantile(level: float) -> Loss:
    """The pinball loss (Koenker and Bassett 1978): smallest for the quantile of that level."""

    @njit(nogil=True, forceinline=True)
    def value(score: float, label: float) -> Any:
        return level * (label - score) if score < label else (1.0 - level) * (score - label)

    @njit(nogil=True, forceinline=True)
    def slope(score: float, label: float) -> Any:
        return -level if score < label else 1.0 - level if score > label else 0.0

    return Loss("quantile", value, slope, "identity", "regression", "any finite number", level)


@functools.cache
def _huber(width: float) -> Loss:
    """Half the squared error up to `width`, linear beyond (Huber 1964)."""

    @njit(nogil=True, forceinline=True)
    def value(score: float, label: float) -> Any:
        distance = abs(score - label)
        return 0.5 * distance * distance if distance <= width else width * (distance - 0.5 * width)

    @njit(nogil=True, forceinline=True)
    def slope(score: float, label: float) -> Any:
        return min(max(score - label, -width), width)

    return Loss("huber", value, slope, "identity", "regression", "any finite number", width)


_ANY = "any finite number"
_PLAIN = {
    loss.name: loss
    for loss in (
        Loss("logistic", logistic_value, logistic_slope, "sigmoid", "classification", "0 or 1"),
        Loss("squared", squared_value, squared_slope, "identity", "regression", _ANY),
        Loss("hinge", hinge_value, hinge_slope, "margin", "classification", "0 or 1"),
        Loss("poisson", poisson_value, poisson_slope, "exp", "regression", "0 or more"),
    )
}


_FAMILIES = {"quantile": _quantile, "huber": _huber}
LOSSES = tuple(LOSS_TASKS)
"""Names of the built-in losses."""
DEFAULT_LOSSES = {"classification": "logistic", "regression": "squared"}
"""The loss of each task, where none is named."""


def resolve_loss(loss: str | Loss | CustomLoss, parameter: float | None = None) -> Loss:
    """The loss of that name and parameter; a Loss is handed through. SettingsError for what there is not."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, CustomLoss):
        _refuse_parameter(loss.name, parameter)
        return Loss(loss.name, loss.value, loss.slope, loss.link, "", _ANY)
    if loss in _PLAIN:
        _refuse_parameter(loss, parameter)
        return _PLAIN[loss]
    if loss not in _FAMILIES:
        raise SettingsError(
            f"loss = {loss!r}; choose one of {', '.join(LOSSES)}, or pass CustomLoss.of(a function of score and label)"
        )
    default, below = LOSS_PARAMETERS[loss]
    chosen = default if parameter is None else float(parameter)
    if not 0.0 < chosen < below:
        raise SettingsError(
            f'loss_parameter = {chosen} is not legal for loss = "{loss}": it must be above 0 and '
            f"{'finite' if below == math.inf else f'below {below:g}'}; the default is {default}"
        )
    return _FAMILIES[loss](chosen)


def _refuse_parameter(name: str, parameter: float | None) -> None:
    if parameter is not None:
        raise SettingsError(
            f'loss_parameter = {parameter} has no meaning for loss = "{name}": only {" and ".join(_FAMILIES)} have one'
        )


def link_of(loss: Loss | CustomLoss, task: str) -> Link:
    """The link of a loss; of a user's loss that names none, the one of the task's default loss."""
    name = loss.link or _PLAIN[DEFAULT_LOSSES[task]].link
    if name not in LINKS:
        raise SettingsError(f"link = {name!r}; choose one of {', '.join(LINKS)}")
    return LINKS[name]


def check_task(loss: Loss | CustomLoss, task: str) -> None:
    """SettingsError where a loss is not for this task, or a user's loss not fit for its labels."""
    if isinstance(loss, CustomLoss):
        loss.check_labels((0.0, 1.0) if task == "classification" else (1.0,))
        link_of(loss, task)
    elif loss.task != task:
        fitting = [name for name in LOSSES if resolve_loss(name).task == task]
        raise SettingsError(
            f'model.loss = "{loss.name}" needs model.task = "{loss.task}" (labels: {loss.domain}), and the task is '
            f'"{task}"; for that choose {" or ".join(fitting)}'
        )
