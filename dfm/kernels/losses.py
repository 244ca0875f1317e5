"""Losses of a raw score and a label: value, slope, link. Arithmetic only, so that every machine gives the same bytes.

The C library's exp differs between machines in the last bit; `exponential` and `log_of_one_plus` below do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dfm.errors import SettingsError

Scalar = Callable[[float, float], float]


@dataclass(frozen=True)
class Loss:
    """A loss and its derivative by the score, as scalar float64 functions that Numba can compile.

    `value(score, label)` and `slope(score, label)` = d value / d score. `link(scores)` turns float32 scores into
    predictions (array in, array out, never compiled). `domain` says in words which labels are legal.
    """

    name: str
    value: Scalar
    slope: Scalar
    link: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    domain: str


_LOG2_E = 1.4426950408889634
# ln 2 in two parts: multiples of the first are exact in float64, the second is the rest (Cody and Waite, 1980).
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
_LARGEST = 64.0
_POWERS = 2.0 ** -np.arange(int(_LARGEST * _LOG2_E) + 2, dtype=np.float64)


@njit(nogil=True, forceinline=True)
def exponential(distance: float) -> Any:
    """exp(-distance) for distance >= 0, within 1e-14 relative; beyond 64, or for nan, exp(-64)."""
    distance = distance if distance < _LARGEST else _LARGEST
    n = int(distance * _LOG2_E + 0.5)
    r = (n * _LN2_HIGH - distance) + n * _LN2_LOW
    # Taylor series on |r| <= ln(2) / 2, even and odd powers apart, since two short chains are faster than a long one.
    s = r * r
    even = 1.0 + s * (1 / 2 + s * (1 / 24 + s * (1 / 720 + s * (1 / 40320 + s * (1 / 3628800)))))
    odd = 1.0 + s * (1 / 6 + s * (1 / 120 + s * (1 / 5040 + s * (1 / 362880 + s * (1 / 39916800)))))
    return (even + r * odd) * _POWERS[n]


@njit(nogil=True, forceinline=True)
def log_of_one_plus(u: float) -> Any:
    """log(1 + u) for u in [0, 1], within 1e-13: 2 artanh(u / (2 + u)) as a series."""
    s = u / (2.0 + u)
    t = s * s
    low = 1.0 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11)))))
    high = 1 / 13 + t * (1 / 15 + t * (1 / 17 + t * (1 / 19 + t * (1 / 21 + t * (1 / 23)))))
    cubed = t * t * t
    return 2.0 * s * (low + cubed * cubed * high)


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


def sigmoid(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of float32 logits, without overflow."""
    u = np.exp(-np.abs(scores))
    return np.where(scores > 0, 1 / (1 + u), u / (1 + u)).astype(np.float32)


def identity(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scores are the predictions."""
    return scores


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("logistic", logistic_value, logistic_slope, sigmoid, "0 or 1"),
        Loss("squared", squared_value, squared_slope, identity, "any finite number"),
    )
}


def resolve_loss(loss: str | Loss) -> Loss:
    """The loss of that name; a Loss is handed through. SettingsError for an unknown name."""
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise SettingsError(f"loss = {loss!r}; choose one of {', '.join(LOSSES)}, or pass a Loss")
    return LOSSES[loss]
