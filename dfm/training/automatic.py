"""The numbers that dfm finds for a data set where the job says "auto": step sizes, initial factors, how long to train.

A row moves its own score by about rate · h, where h is the mean over rows of Σ x²: 39 in a row of 39 categories, 1 in a
row of tf-idf. Divided by h, and by the steepness of the loss, one rate suits all data that were tried; the evidence is
in benchmarks/decisions/2026-11-26-defaults-that-travel.md. All of it is a function of the data and the job alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dfm.data.hashed_rows import EntrySums
from dfm.kernels.custom.functions import CustomLoss
from dfm.kernels.families.registry import family_of
from dfm.kernels.losses import LOSSES
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.model.objective import Objective
from dfm.settings.tables import EPOCHS_ELSE, EPOCHS_TO_PLATEAU, ModelSettings, TrainingSettings

_STDEV = 0.02
HIGHER_STDEV = 0.6
L2_LINEAR = 0.005
"""L2 of linear weights whose x is 1."""
_STEEPNESS_OF_OWN = {"regression": 4.0, "classification": 1.0}
"""The steepness of a user's loss, about which nothing but its task is known."""

LEAST_ROWS = 500
"""Rows of a replica in a pilot below which its losses are noise."""
LATE_REPLICAS = 16
"""With more replicas the first rounds are dominated by the shock of rate · sqrt(replicas): it is decided later."""
_PILOTED_PART = 3
SLICES, SLICES_OF_MANY_ROWS = 12, 6
"""Slices of a first epoch that has a pilot, at least; of replicas with many rows fewer do."""


@dataclass(frozen=True)
class Candidate:
    """Settings that a pilot may choose: the learning rate in units of the automatic one, and how factors are held."""

    name: str
    rate: float
    factor_rate_scale: float
    l2_factors: float


DEFAULT = Candidate("default", 1.0, 0.4, 0.01)
CANDIDATES = {
    each.name: each for each in (DEFAULT, Candidate("cautious", 0.5, 0.3, 0.01), Candidate("bold", 2.0, 0.6, 0.005))
}
"""By name, the default first. One axis, boldness: where fast learning pays, little regularisation is needed."""


@dataclass(frozen=True)
class RowScale:
    """Facts that automatic numbers are made of. squares: mean over rows of Σ x², at least 1. steepness: of the loss.
    entry: mean of x² over entries, at most 1.
    """

    squares: float = 1.0
    steepness: float = 1.0
    entry: float = 1.0

    @classmethod
    def of(cls, sums: EntrySums, objective: Objective) -> RowScale:
        """The scale of rows with these sums."""
        of_rows, of_entries = sums.squares / max(sums.n_rows, 1), sums.squares / max(sums.n_entries, 1)
        return cls(max(of_rows, 1.0), steepness_of(objective), min(of_entries, 1.0))


def steepness_of(objective: Objective) -> float:
    """By what the learning rate of an objective is divided: 4 for squared errors, whose curvature is 4 times that of
    the log loss.
    """
    if objective.info.sha256 or isinstance(objective.loss, CustomLoss):
        return _STEEPNESS_OF_OWN[objective.task]
    return LOSSES[objective.info.name].steepness


def settled(training: TrainingSettings, scale: RowScale, candidate: Candidate = DEFAULT) -> TrainingSettings:
    """The settings with numbers in place of "auto"; a number that is given stays, whatever the candidate has."""
    optimizer = OPTIMIZERS[training.optimizer]
    rate = optimizer.row_rate / (scale.steepness * scale.squares) if optimizer.row_rate else optimizer.learning_rate
    found: dict[str, Any] = {
        "learning_rate": rate * candidate.rate,
        "factor_rate_scale": candidate.factor_rate_scale,
        "l2_factors": candidate.l2_factors,
        "l2_linear": automatic_l2_linear(scale),
    }
    return replace(training, **{key: value for key, value in found.items() if getattr(training, key) == "auto"})


def automatic_l2_linear(scale: RowScale) -> float:
    """L2 of linear weights. Where x is small a weight has to be large, and its penalty is felt 1 / x² times as much."""
    return L2_LINEAR * scale.entry


def initial_stdev(model: ModelSettings, scale: RowScale) -> float:
    """Standard deviation of the initial factors: with two fields a smaller one leaves them on the saddle at 0, with 39
    a larger one is noise that has to be unlearnt. A family may have one of its own.
    """
    if model.init_stdev != "auto":
        return float(model.init_stdev)
    return family_of(model.family).init_stdev or _STDEV / scale.squares**0.5


def higher_stdev(scale: RowScale) -> float:
    """The least deviation of vectors whose terms have more features than two: their slopes are products of the others'
    numbers, and from smaller ones they do not leave 0 (see the decision record on higher orders).
    """
    return HIGHER_STDEV / scale.squares**0.5


@dataclass(frozen=True)
class Course:
    """The schedule of a training, and its last epoch."""

    schedule: str
    n_epochs: int

    @classmethod
    def of(cls, training: TrainingSettings, validates: bool) -> Course:
        """validates: whether there are rows to validate on."""
        if training.is_exact:
            return cls("constant", training.n_iterations)
        schedule = training.schedule
        if schedule == "auto":
            schedule = "plateau" if validates and training.may_plateau else "final-decay"
        automatic = EPOCHS_TO_PLATEAU if schedule == "plateau" else EPOCHS_ELSE
        if training.warm_start and not validates:  # nothing would tell when a few new rows unlearn what all before said
            automatic = 1
        return cls(schedule, automatic if training.n_epochs == "auto" else int(training.n_epochs))


def told(training: TrainingSettings) -> dict[str, float]:
    """The numbers of a candidate by name. JSON-ready."""
    keys = "learning_rate", "factor_rate_scale", "l2_factors", "l2_linear"
    return {key: float(getattr(training, key)) for key in keys}


def described(model: ModelSettings, training: TrainingSettings, scale: RowScale) -> Mapping[str, Any]:
    """The numbers that were found, by name; those that the job gives are among them. JSON-ready."""
    return {"mean_squares": scale.squares, **told(training), "init_stdev": initial_stdev(model, scale)}


def wants_pilot(training: TrainingSettings) -> bool:
    """Whether the settings leave something to a pilot."""
    return training.tune == "pilot" and training.learning_rate == "auto" and not training.warm_start


def n_pilot_slices(n_slices: int, rows_each: int) -> int:
    """Slices of a pilot; 0 where there are too few slices or rows for one."""
    walked = n_slices // _PILOTED_PART
    return walked if rows_each * walked >= LEAST_ROWS * n_slices else 0
