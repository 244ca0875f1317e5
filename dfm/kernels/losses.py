"""Losses of a raw score and a label, one record each, and the links that turn scores into predictions.

A loss is one entry of this file: its facts, its functions and its CUDA text. Settings, objectives, estimators and both
backends read the record; nothing else lists the names. Light: what a function is made of is imported when the loss is
compiled. Arithmetic only, so that every machine gives the same bytes (see `arithmetic`). A user's own loss is a
`CustomLoss`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dfm.errors import SettingsError
from dfm.kernels.records import Parameter

if TYPE_CHECKING:
    from dfm.kernels.custom.functions import CustomLoss

Scalar = Callable[[float, float], float]
Functions = tuple[Scalar, Scalar]


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
    """The way from raw scores to predictions: `predict(scores)`, float32 array in and out.

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
        # Scores of one group of rows may be compared with each other, and with nothing else.
        Link("rank", identity, lambda _mean_label: 0.0),
    )
}

LABELS = {
    "classification": "0 or 1",
    "shares": "0, 1 or a share between",
    "regression": "any finite number",
    "counts": "0 or more",
}
"""Kinds of labels, as `dfm.data.labels` names them, and which are legal."""


def _steepest_jump(_largest_label: float) -> float:
    """Jump of losses with a kink, whose slopes are 1 at most: rows in flight overshoot by one unit of score."""
    return 1.0


@dataclass(frozen=True)
class Loss:
    """The facts of a loss, and how its functions are made.

    task: what it is for; labels: a kind in LABELS; link: a name in LINKS. functions: makes value(score, label) and
    slope(score, label) = d value / d score, of float64 and yet to be compiled, for a parameter (nan where the loss has
    none). curvature: bound of the second derivative by the score, given the largest label of the rows; where the slope
    jumps, of that jump. steepness: by what an automatic learning rate is divided. unit_free: the best model scales with
    the labels, so that these may be brought to deviation 1.
    is_default: the loss of its task where none is named. is_paired: it is of how much higher a clicked row scores
    than an unclicked one of its group, and its functions are of that difference and a label of 1. cuda: `loss_value`
    and `loss_slope` of double, with LOSS_PARAMETER; None where the GPU has none.
    """

    name: str
    task: str
    labels: str
    link: str
    functions: Callable[[float], Functions]
    curvature: Callable[[float], float]
    parameter: Parameter | None = None
    steepness: float = 1.0
    unit_free: bool = False
    is_default: bool = False
    is_paired: bool = False
    cuda: str | None = None


@dataclass(frozen=True, eq=False)
class CompiledLoss:
    """A built-in loss, its parameter or None, and its functions, which are inlined where kernels call them."""

    record: Loss
    parameter: float | None
    value: Scalar
    slope: Scalar

    @property
    def name(self) -> str:
        """As settings have it."""
        return self.record.name

    @property
    def link(self) -> str:
        """A name in LINKS."""
        return self.record.link

    def __reduce__(self) -> tuple[Any, ...]:
        return resolve_loss, (self.name, self.parameter)


# --- the losses --------------------------------------------------------------------------------------------


def _logistic(_none: float) -> Functions:
    from dfm.kernels.arithmetic import exponential, log_of_one_plus

    def value(score: float, label: float) -> Any:
        loss = log_of_one_plus(exponential(abs(score)))
        return loss + (max(score, 0.0) - label * score)

    def slope(score: float, label: float) -> Any:
        u = exponential(abs(score))
        likely = 1.0 / (1.0 + u)
        probability = likely if score > 0.0 else u * likely
        return probability - label

    return value, slope


LOGISTIC = Loss(
    # −log probability of the label, in nats, of a share y the mean over y ones and 1 − y zeros; its slope: probability
    # of label 1, minus the label.
    name="logistic",
    task="classification",
    labels="shares",
    link="sigmoid",
    functions=_logistic,
    curvature=lambda _largest_label: 0.25,
    is_default=True,
    cuda="""
__device__ inline double loss_value(double score, double label) {
    return log1p(exp(-fabs(score))) + (fmax(score, 0.0) - label * score);
}

__device__ inline double loss_slope(double score, double label) {
    double u = exp(-fabs(score));
    double likely = 1.0 / (1.0 + u);
    return (score > 0.0 ? likely : u * likely) - label;
}
""",
)


def _hinge(_none: float) -> Functions:
    def value(score: float, label: float) -> Any:
        return max(0.0, 1.0 - (score if label > 0.5 else -score))

    def slope(score: float, label: float) -> Any:
        sign = 1.0 if label > 0.5 else -1.0
        return -sign if sign * score < 1.0 else 0.0

    return value, slope


HINGE = Loss(
    name="hinge",  # how far the score is from 1 on the label's side; 0 beyond
    task="classification",
    labels="classification",
    link="margin",
    functions=_hinge,
    curvature=_steepest_jump,
    cuda="""
__device__ inline double loss_value(double score, double label) {
    double distance = 1.0 - (label > 0.5 ? score : -score);
    return distance <= 0.0 ? 0.0 : distance;
}

__device__ inline double loss_slope(double score, double label) {
    double sign = label > 0.5 ? 1.0 : -1.0;
    return sign * score < 1.0 ? -sign : 0.0;
}
""",
)


def _squared_hinge(_none: float) -> Functions:
    def value(score: float, label: float) -> Any:
        distance = max(0.0, 1.0 - (score if label > 0.5 else -score))
        return distance * distance

    def slope(score: float, label: float) -> Any:
        sign = 1.0 if label > 0.5 else -1.0
        return -2.0 * sign * max(0.0, 1.0 - sign * score)

    return value, slope


SQUARED_HINGE = Loss(
    name="squared-hinge",  # the square of how far the score is from 1 on the label's side: smooth, 0 beyond
    task="classification",
    labels="classification",
    link="margin",
    functions=_squared_hinge,
    curvature=lambda _largest_label: 2.0,
    steepness=4.0,
    cuda="""
__device__ inline double loss_value(double score, double label) {
    double distance = 1.0 - (label > 0.5 ? score : -score);
    return distance <= 0.0 ? 0.0 : distance * distance;
}

__device__ inline double loss_slope(double score, double label) {
    double sign = label > 0.5 ? 1.0 : -1.0, distance = 1.0 - sign * score;
    return distance <= 0.0 ? 0.0 : -2.0 * sign * distance;
}
""",
)


def _squared(_none: float) -> Functions:
    def value(score: float, label: float) -> Any:
        return 0.5 * (score - label) * (score - label)

    def slope(score: float, label: float) -> Any:
        return score - label

    return value, slope


SQUARED = Loss(
    name="squared",  # half the squared error
    task="regression",
    labels="regression",
    link="identity",
    functions=_squared,
    curvature=lambda _largest_label: 1.0,
    steepness=4.0,
    unit_free=True,
    is_default=True,
    cuda="""
__device__ inline double loss_value(double score, double label) { return 0.5 * (score - label) * (score - label); }

__device__ inline double loss_slope(double score, double label) { return score - label; }
""",
)


def _poisson(_none: float) -> Functions:
    from dfm.kernels.arithmetic import exp

    def value(score: float, label: float) -> Any:
        return exp(score) - label * score

    def slope(score: float, label: float) -> Any:
        return exp(score) - label

    return value, slope


POISSON = Loss(
    name="poisson",  # −log likelihood of a count with mean exp(score), without what depends on the count alone, in nats
    task="regression",
    labels="counts",
    link="exp",
    functions=_poisson,
    # exp(score) itself, which has no bound. Scores beyond the logarithm of the largest label fit no row.
    curvature=lambda largest_label: max(largest_label, 1.0),
    steepness=4.0,
    cuda="""
__device__ inline double loss_value(double score, double label) { return exp(score) - label * score; }

__device__ inline double loss_slope(double score, double label) { return exp(score) - label; }
""",
)


def _quantile(level: float) -> Functions:
    def value(score: float, label: float) -> Any:
        return level * (label - score) if score < label else (1.0 - level) * (score - label)

    def slope(score: float, label: float) -> Any:
        return -level if score < label else 1.0 - level if score > label else 0.0

    return value, slope


QUANTILE = Loss(
    name="quantile",  # the pinball loss (Koenker and Bassett 1978): smallest for the quantile of that level
    task="regression",
    labels="regression",
    link="identity",
    functions=_quantile,
    curvature=_steepest_jump,
    parameter=Parameter("level", 0.5, high=1.0, open_low=True, open_high=True),
    unit_free=True,
    steepness=8.0,
    cuda="""
__device__ inline double loss_value(double score, double label) {
    return score < label ? LOSS_PARAMETER * (label - score) : (1.0 - LOSS_PARAMETER) * (score - label);
}

__device__ inline double loss_slope(double score, double label) {
    return score < label ? -LOSS_PARAMETER : score > label ? 1.0 - LOSS_PARAMETER : 0.0;
}
""",
)


def _huber(width: float) -> Functions:
    def value(score: float, label: float) -> Any:
        distance = abs(score - label)
        return 0.5 * distance * distance if distance <= width else width * (distance - 0.5 * width)

    def slope(score: float, label: float) -> Any:
        return min(max(score - label, -width), width)

    return value, slope


HUBER = Loss(
    name="huber",  # half the squared error up to a width, linear beyond (Huber 1964)
    task="regression",
    labels="regression",
    link="identity",
    functions=_huber,
    curvature=lambda _largest_label: 1.0,
    steepness=4.0,
    parameter=Parameter("width", 1.0, open_low=True),
    cuda="""
__device__ inline double loss_value(double score, double label) {
    double distance = fabs(score - label);
    return distance > LOSS_PARAMETER ? LOSS_PARAMETER * (distance - 0.5 * LOSS_PARAMETER) : 0.5 * distance * distance;
}

__device__ inline double loss_slope(double score, double label) {
    double error = score - label;
    return error > LOSS_PARAMETER ? LOSS_PARAMETER : error < -LOSS_PARAMETER ? -LOSS_PARAMETER : error;
}
""",
)

BPR = Loss(
    # −log probability that a clicked row comes before an unclicked one of its group (Rendle et al. 2009), in nats: the
    # logistic loss of the difference of their scores.
    name="bpr",
    task="classification",
    labels="classification",
    link="rank",
    functions=_logistic,
    curvature=lambda _largest_label: 0.25,
    steepness=2.0,  # a pair has the entries of two rows, and its step moves both scores
    is_paired=True,
)

LOSSES = {value.name: value for value in list(globals().values()) if isinstance(value, Loss)}
"""The built-in losses by name, in the order of this file."""
DEFAULT_LOSSES = {loss.task: loss.name for loss in LOSSES.values() if loss.is_default}
"""The loss of each task, where none is named."""


def is_paired(loss: str | CompiledLoss | CustomLoss) -> bool:
    """Whether a loss, by name or compiled, is of pairs of rows; a user's is of single ones."""
    record = loss.record if isinstance(loss, CompiledLoss) else LOSSES.get(loss) if isinstance(loss, str) else None
    return record is not None and record.is_paired


# --- by name -----------------------------------------------------------------------------------------------


def names_for(task: str) -> list[str]:
    """Names of the losses of a task."""
    return [loss.name for loss in LOSSES.values() if loss.task == task]


def resolve_loss(loss: str | CompiledLoss | CustomLoss, parameter: float | None = None) -> CompiledLoss | CustomLoss:
    """The loss of that name and parameter, compiled when kernels first call it; a compiled or a user's one is handed
    through. SettingsError for what there is not.
    """
    if not isinstance(loss, str):
        if parameter is not None:
            raise SettingsError(_needless(loss.name, parameter))
        return loss
    if loss not in LOSSES:
        raise SettingsError(
            f"loss = {loss!r}; choose one of {', '.join(LOSSES)}, or pass CustomLoss.of(a function of score and label)"
        )
    return _compile(loss, _chosen(LOSSES[loss], parameter))


def _chosen(loss: Loss, parameter: float | None) -> float | None:
    """The parameter that a loss is made for. SettingsError where it is not legal."""
    own = loss.parameter
    if own is None:
        if parameter is not None:
            raise SettingsError(_needless(loss.name, parameter))
        return None
    chosen = own.default if parameter is None else float(parameter)
    if not own.allows(chosen):
        raise SettingsError(
            f'loss_parameter = {chosen} is not legal for loss = "{loss.name}": it must be {own.legal}; the default is '
            f"{own.default}"
        )
    return chosen


def _needless(name: str, parameter: float) -> str:
    having = " and ".join(loss.name for loss in LOSSES.values() if loss.parameter)
    return f'loss_parameter = {parameter} has no meaning for loss = "{name}": only {having} have one'


@functools.cache
def _compile(name: str, parameter: float | None) -> CompiledLoss:
    from numba import njit

    record = LOSSES[name]
    functions = record.functions(math.nan if parameter is None else parameter)
    value, slope = (njit(nogil=True, forceinline=True, no_cfunc_wrapper=True)(function) for function in functions)
    return CompiledLoss(record, parameter, value, slope)


def link_of(loss: CompiledLoss | CustomLoss, task: str) -> Link:
    """The link of a loss; of a user's loss that names none, the one of the task's default loss."""
    name = loss.link or LOSSES[DEFAULT_LOSSES[task]].link
    if name not in LINKS:
        raise SettingsError(f"link = {name!r}; choose one of {', '.join(LINKS)}")
    return LINKS[name]


def check_task(loss: CompiledLoss | CustomLoss, task: str) -> None:
    """SettingsError where a loss is not for this task, or a user's loss not fit for its labels."""
    if not isinstance(loss, CompiledLoss):
        loss.check_labels((0.0, 1.0) if task == "classification" else (1.0,))
        link_of(loss, task)
    elif loss.record.task != task:
        record = loss.record
        raise SettingsError(
            f'model.loss = "{loss.name}" needs model.task = "{record.task}" (labels: {LABELS[record.labels]}), and the '
            f'task is "{task}"; for that choose {" or ".join(names_for(task))}'
        )
