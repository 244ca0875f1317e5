"""The objective of a model: its task and loss, how scores become predictions, and by which metrics it is judged.

The metrics of a task's default loss are made of the loss itself. Any other loss is a metric of its own, `loss`, that
early stopping watches, beside the metrics of the task that make sense of its predictions.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfm.compilation import keep_on_disk
from dfm.errors import ModelError, SettingsError
from dfm.events import compared
from dfm.kernels.blocks import MAX_ROW_FACTORS
from dfm.kernels.contract import KernelSpec
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.kernels.families.registry import family_of
from dfm.kernels.losses import (
    DEFAULT_LOSSES,
    LINKS,
    LOSSES,
    CompiledLoss,
    Link,
    check_task,
    is_paired,
    link_of,
    resolve_loss,
)
from dfm.model.calibration import Calibration
from dfm.model.group_auc import GroupedTally
from dfm.model.metrics import (
    GROUP_AUC,
    TALLIES,
    ClassificationTally,
    MarginTally,
    RankTally,
    RegressionTally,
    Tally,
    checked_rows,
)
from dfm.settings.constraints import OWN, show
from dfm.settings.groups import Grouping, groups_of
from dfm.settings.job import Job

logger = logging.getLogger(__name__)
_TALLIES: dict[str, type[ClassificationTally]] = {"sigmoid": ClassificationTally, "rank": RankTally}
"""The tally of classifications with a link; with any other, scores are margins."""
_LEAST_DEVIATION, _MOST_DEVIATION = 0.3, 30.0
"""The deviations of labels that may be trained as they are: r2 of huber fell from 0.97 to 0.92 (0.2) and 0.82 (60)."""
_EXPLODED = 20.0
"""Mean log loss of a job's round, or of a fit's epoch, in nats, that only a model at odds with all of its rows has;
never answering 0.7.
"""


class UndefinedMetricError(SettingsError):
    """The rows to validate on do not define the metric by which parameters are compared. args: that, and a remedy."""

    def __str__(self) -> str:
        return ". ".join(self.args)


def label_kind_of(task: str, loss: str) -> str:
    """Which labels are legal, as `dfm.data.labels` names it. loss: a name, "auto", or what stands for a function."""
    record = LOSSES.get(DEFAULT_LOSSES[task] if loss in ("", "auto") else loss)
    return task if record is None else record.labels


@dataclass(frozen=True)
class LossInfo:
    """The loss as a published model names it: enough to predict. A user's function is named, never stored.

    link: a name in LINKS. sha256: of a user's function (hex), empty for a built-in loss.
    """

    name: str
    link: str
    parameter: float | None = None
    sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` takes it back."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], task: str) -> LossInfo:
        """The loss of a manifest. ModelError where this dfm cannot know what its scores mean."""
        parameter = values["parameter"]
        found = cls(
            str(values["name"]),
            str(values["link"]),
            None if parameter is None else float(parameter),
            str(values["sha256"]),
        )
        loss = LOSSES.get(found.name)
        built_in = loss is not None and (loss.task, loss.link) == (task, found.link)
        if found.link not in LINKS or not (found.sha256 or built_in):
            raise ModelError(
                f"the model's loss {found.name!r} with link {found.link!r} for {task} is unknown; this dfm knows "
                f"{', '.join(LOSSES)}: install a newer dfm"
            )
        return found


@dataclass(frozen=True)
class Objective:
    """Task and loss. `loss` is None where it is a user's function that is not at hand: of a loaded model."""

    task: str
    info: LossInfo
    loss: CompiledLoss | CustomLoss | None = None
    clip: tuple[float, float] | None = None
    """The range that predictions stay in; None: any."""
    calibration: Calibration | None = None
    """The function of logits that predictions are made of; None: the logits themselves."""
    stop_on: str = ""
    """The metric by which parameters are chosen; empty: the loss."""

    @classmethod
    def of(cls, task: str, loss: str | CustomLoss = "", parameter: float | None = None) -> Objective:
        """The objective of a loss by name ("" or "auto": the task's default) or of a user's. SettingsError as
        `check_task` says.
        """
        chosen = DEFAULT_LOSSES[task] if loss in ("", "auto") else loss
        known = chosen if isinstance(chosen, CustomLoss) else resolve_loss(chosen, parameter)
        check_task(known, task)
        return cls._unchecked(task, known)

    @classmethod
    def _unchecked(cls, task: str, loss: CompiledLoss | CustomLoss) -> Objective:
        link = link_of(loss, task).name
        if isinstance(loss, CustomLoss):
            return cls(task, LossInfo(loss.name, link, None, loss.fingerprint), loss)
        return cls(task, LossInfo(loss.name, link, loss.parameter), loss)

    @classmethod
    def of_spec(cls, task: str, spec: KernelSpec) -> Objective:
        """The objective of compiled kernels, which was checked before: that compiles a user's function once more."""
        known = spec.loss if isinstance(spec.loss, CustomLoss) else resolve_loss(spec.loss, spec.loss_parameter)
        return cls._unchecked(task, known)

    @classmethod
    def of_info(cls, task: str, info: LossInfo | None) -> Objective:
        """The objective of a published model; None is the task's default loss."""
        if info is None:
            return cls.of(task)
        return cls(task, info, None if info.sha256 else resolve_loss(info.name, info.parameter))

    def predict(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predictions of raw scores, float32[n_rows], calibrated and within `clip`."""
        predicted = self.link.predict(self.calibrated(scores))
        if self.clip is None:
            return predicted
        return np.clip(predicted, np.float32(self.clip[0]), np.float32(self.clip[1]))

    def calibrated(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores that predictions are made of, float32[n_rows]: raw ones, or calibrated logits."""
        return scores if self.calibration is None else self.calibration(scores).astype(np.float32)

    @property
    def link(self) -> Link:
        """The link, which makes predictions of scores."""
        return LINKS[self.info.link]

    @property
    def is_plain(self) -> bool:
        """Whether the metrics of the task say all about the loss."""
        return not self.info.sha256 and self.info.name == DEFAULT_LOSSES[self.task]

    @property
    def is_paired(self) -> bool:
        """Whether the loss is of pairs of rows, and says nothing of single ones."""
        return not self.info.sha256 and is_paired(self.info.name)

    @property
    def own_loss(self) -> CompiledLoss | CustomLoss | None:
        """The loss of single rows that is a metric of its own; None where the metrics of the task say all, of pairs of
        rows, and of a user's function that is not at hand.
        """
        return None if self.is_plain or self.is_paired else self.loss

    @property
    def label_kind(self) -> str:
        """Which labels are legal, as `encoding` names it."""
        return self.task if self.info.sha256 else LOSSES[self.info.name].labels

    @property
    def takes_any_unit(self) -> bool:
        """Whether labels are trained as numbers of mean 0 and deviation 1."""
        return not self.info.sha256 and LOSSES[self.info.name].unit_free

    def told_of_unit(self, deviation: float) -> str:
        """The warning of labels of this deviation that are trained as they are; "" where it suits."""
        is_free = self.task != "regression" or self.takes_any_unit or self.info.link != "identity"
        if is_free or not deviation or _LEAST_DEVIATION <= deviation <= _MOST_DEVIATION:
            return ""
        width = " and model.loss_parameter" if self.info.parameter is not None else ""
        return (
            f"labels have the deviation {deviation:.3g}, and the loss {self.info.name} takes them as they are: rates "
            f"and penalties suit one from {_LEAST_DEVIATION:g} to {_MOST_DEVIATION:g}. Divide labels{width} by a "
            "constant"
        )

    @property
    def primary(self) -> str:
        """The metric of the loss, less is better; of pairs of rows the AUC within groups."""
        if self.is_paired:
            return RankTally.loss_name
        return TALLIES[self.task].loss_name if self.is_plain else LossTally.loss_name

    @property
    def watched(self) -> str:
        """The metric by which parameters are compared: that to stop on, or that of the loss."""
        return self.stop_on or self.primary

    def cost(self, metrics: Mapping[str, Any]) -> float | None:
        """The number by which parameters are compared, less is better: the metric `watched` or, of one that is better
        where it is greater, 1 less it. None where the rows do not define it.
        """
        value = metrics.get(self.watched)
        return None if value is None else compared(self.watched, float(value))

    def check_watched(self, metrics: Mapping[str, Any]) -> None:
        """UndefinedMetricError where rows to validate on do not define the metric that the job wants to stop on; a
        warning where pairs of rows are learnt, and no such rows tell how well.
        """
        name = self.watched
        if not metrics or self.cost(metrics) is not None or not (self.stop_on or self.is_paired):
            return
        why = "no group has rows of both classes" if name == GROUP_AUC else "they are of one class, or there are none"
        what = f"{name} is not defined on the rows to validate on: {why}"
        if self.stop_on:
            raise UndefinedMetricError(what, "Name others in data.validation, or leave training.stop_on out")
        logger.warning("%s; the last epoch counts as the best. Let others validate", what)

    def train_metric(self, mean_loss: float, scale: float = 1.0) -> dict[str, float]:
        """The metric that tells the mean loss of training rows, in the unit of the labels, which were trained in
        `scale` of it.
        """
        if not self.is_plain:
            return {"train_loss": mean_loss * scale}
        if self.task == "classification":
            return {"train_log_loss": mean_loss}
        return {"train_rmse": (2 * mean_loss) ** 0.5 * scale}

    def has_exploded(self, mean_loss: float) -> bool:
        """Whether a finite mean loss is one that only diverging training has."""
        return self.is_plain and self.task == "classification" and mean_loss > _EXPLODED

    def empty(self) -> Tally:
        """The tally of no rows."""
        return self.tally((), ())

    def tally(self, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Tally:
        """Metrics of raw scores, labels, and weights or None, each float[n_rows]; refused as `metrics` says."""
        of_task = self._of_task(np.asarray(scores, np.float32), labels, weights)
        if self.own_loss is None:
            return of_task
        values, targets, masses = checked_rows(scores, labels, weights)
        total = total_loss(self.own_loss)(values, targets, masses)
        return LossTally(float(masses.sum()), float(total), of_task)

    def _of_task(self, scores: NDArray[np.float32], labels: ArrayLike, weights: ArrayLike | None) -> Tally:
        if self.task == "regression":
            return RegressionTally.from_scores(self.predict(scores), labels, weights)
        kind = _TALLIES.get(self.info.link, MarginTally)
        return kind.from_scores(self.calibrated(scores), labels, weights)


@dataclass(frozen=True, eq=False, slots=True)
class LossTally:
    """The weighted sum of a loss, beside the metrics of the task."""

    loss_name: ClassVar[str] = "loss"

    weight: float
    loss: float
    of_task: Tally

    def __add__(self, other: LossTally) -> LossTally:
        return LossTally(self.weight + other.weight, self.loss + other.loss, self.of_task + other.of_task)

    def metrics(self) -> dict[str, Any]:
        """JSON-ready: `loss`, the mean by weight, then the metrics of the task."""
        mean = self.loss / self.weight if self.weight else float("nan")
        return {"loss": mean if np.isfinite(mean) else None, **self.of_task.metrics()}


def classified(tally: Tally) -> ClassificationTally:
    """The tally of logits and labels, where the loss, or groups, have one of their own as well."""
    found = tally
    while isinstance(found, LossTally | GroupedTally):
        found = found.of_task
    assert isinstance(found, ClassificationTally)
    return found


@functools.cache
def total_loss(loss: CompiledLoss | CustomLoss) -> Callable[..., float]:
    """total(scores, labels, weights): Σ weight · loss, of float64[n_rows] each; compiled at the first call."""
    value = loss.value

    def total(scores, labels, weights):  # type: ignore[no-untyped-def]
        result = 0.0
        for row in range(scores.size):
            result += weights[row] * value(scores[row], labels[row])
        return result

    function = numba.njit(nogil=True, error_model="numpy")(total)
    if isinstance(loss, CustomLoss):
        keep_on_disk(function, f"{numba_cpu.sources()} {loss!r}")
    else:
        keep_on_disk(function, f"{numba_cpu.sources()} {loss.name} {loss.parameter}")
    return function


def kernel_spec(
    job: Job, loss: CustomLoss | None = None, regularizer: CustomRegularizer | None = None
) -> tuple[Objective, KernelSpec]:
    """The objective of a job and what kernels are compiled for. loss, regularizer: the user's functions it was marked
    with by `with_functions`; SettingsError where a mark has no function, since a job file cannot hold code.
    """
    model, training = job.model, job.training
    for knob, mark, function in (
        ("model.loss", model.loss, loss),
        ("training.regularizer", training.regularizer, regularizer),
    ):
        expected = mark_of(function) if function is not None else mark
        if mark != expected or (mark.startswith(OWN) and function is None):
            argument = knob.split(".")[1]
            raise SettingsError(
                f'{knob} = "{mark}" stands for a function that only Python can pass: '
                f"dfm.train(job, {argument}=function), with the function that the job was marked with"
            )
    parameter = None if model.loss_parameter == "auto" else float(model.loss_parameter)
    objective = Objective.of(model.task, loss or model.loss, parameter)
    name = loss or objective.info.name
    return objective, KernelSpec(
        name,
        training.optimizer,
        model.n_factors,
        loss_parameter=parameter,
        regularizer=regularizer,
        factor_dtype=training.factor_dtype,
        family=model.family,
        order=family_of(model.family).order_of(model.order),
    )


def with_fields(spec: KernelSpec, grouping: Grouping, fields: Sequence[str]) -> KernelSpec:
    """The spec for rows of these fields. SettingsError where its family cannot make use of them, or of the groups."""
    family = family_of(spec.family)
    family.check_fields(len(fields))
    if not family.has_groups:
        return spec
    groups = groups_of(grouping, fields)
    if (1 + max(groups)) * spec.n_factors > MAX_ROW_FACTORS:
        raise SettingsError(
            f"model.groups = {show(grouping)} makes {1 + max(groups)} groups, each with model.n_factors = "
            f"{spec.n_factors}; a feature has up to {MAX_ROW_FACTORS} numbers: take fewer groups, or shorter vectors"
        )
    return replace(spec, groups=groups)


def mark_of(function: CustomLoss | CustomRegularizer) -> str:
    """The mark of a user's function in a job: it enters fingerprints, and runs nothing."""
    return f"{OWN}{function.name}:{function.fingerprint}"


def with_functions(
    job: Job, loss: str | Callable[..., Any] | CustomLoss | None, regularizer: Callable[..., Any] | None
) -> tuple[Job, CustomLoss | None, CustomRegularizer | None]:
    """The job with a loss (name or function) and a regulariser in place of its own, and records of the functions."""
    own_loss = None if loss is None or isinstance(loss, str) else CustomLoss.of(loss)
    own_regularizer = None if regularizer is None else CustomRegularizer.of(regularizer)
    if loss is not None:
        mark = mark_of(own_loss) if own_loss is not None else str(loss)
        job = replace(job, model=replace(job.model, loss=mark))
    if own_regularizer is not None:
        job = replace(job, training=replace(job.training, regularizer=mark_of(own_regularizer)))
    return job, own_loss, own_regularizer
