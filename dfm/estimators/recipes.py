"""From the parameters of an estimator to the numbers of a fit; ranges are those of a job file's knobs."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from dfm.averaging.rules import automatic_averages
from dfm.data.hashed_rows import EntrySums
from dfm.data.transforms import SCALED
from dfm.data.units import LabelUnit
from dfm.data.vocabulary import spread_of
from dfm.errors import SettingsError
from dfm.estimators.features import FeatureOptions, Features, TableOptions
from dfm.estimators.sources import Deal
from dfm.kernels.contract import KernelSpec
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.kernels.families.registry import DEFAULT as DEFAULT_FAMILY
from dfm.kernels.families.registry import family_of
from dfm.kernels.losses import DEFAULT_LOSSES, is_paired, names_for
from dfm.kernels.optimizers import DEFAULT_OPTIMIZER, owners, readers
from dfm.kernels.tables import InitialValues
from dfm.model.objective import Objective, with_fields
from dfm.settings.arguments import checked, pairs
from dfm.settings.constraints import Number, Text
from dfm.settings.job import Job, differing
from dfm.settings.tables import ALS, EPOCHS_TO_PLATEAU, MCMC, SGD, ModelSettings, Table, TrainingSettings
from dfm.training.automatic import (
    CANDIDATES,
    DEFAULT,
    LATE_REPLICAS,
    SLICES,
    Course,
    RowScale,
    higher_stdev,
    initial_stdev,
    n_pilot_slices,
    settled,
    told,
    wants_pilot,
)
from dfm.training.exact_work import ExactWork, crowd_of, exact_work, initial_bias, of_rows
from dfm.training.exact_work import initial_stdev as initial_exactly
from dfm.training.fitting import Recipe
from dfm.training.pilot import Pilot
from dfm.training.steps import step_of, work_of

DEFAULT_BACKEND = "numba"
"""This process; a job looks for GPUs."""
MANY_ROWS = 1_000
"""From so many rows on, early_stopping = "auto" holds some of them out."""
_SHARE = Number(0, 1, open_low=True, open_high=True)
_EPOCHS_UNTIL_TOLERANCE = 100
"""Most epochs where nothing validates: training ends when the loss of the training rows falls no more."""
_MODEL_KNOBS = ("family", "groups", "order", "n_factors", "hash_bits", "min_count", "min_count_factors", "init_stdev")
_TRAINING_KNOBS = (
    *("n_replicas", "n_epochs", "averages_per_epoch", "optimizer", "learning_rate", "factor_rate_scale"),
    *(
        "solver",
        "burn_in",
        "draws",
        "initial_accumulator",
        "l2_linear",
        "l2_factors",
        "schedule",
        "merge",
        "tune",
        "backend",
    ),
    *owners(),
)
"""Parameters that mean what the knob of that name means in a job file; averages_per_epoch is of every epoch."""


@dataclass(frozen=True)
class RowsToFit:
    """Facts that the numbers of a fit depend on. entries: of all rows, those held out included. is_part: of an epoch
    that others follow; goes_on: from where another fit ended, whose pilot chose `chosen`.
    """

    n_rows: int
    entries: EntrySums
    validates: bool
    is_part: bool = False
    goes_on: bool = False
    chosen: str = ""


def _crosses(given: Sequence[Sequence[str]] | None) -> tuple[tuple[str, ...], ...]:
    """The columns of each cross. SettingsError where a lone text stands for those of one."""
    listed = given or ()
    if isinstance(listed, str) or any(isinstance(cross, str) for cross in listed):
        raise SettingsError(
            f"crosses = {given!r} is not legal: expected a list of crosses, each a list of columns, such as "
            '[["site", "device"]]'
        )
    return tuple(tuple(cross) for cross in listed)


def takes_rows_apart(estimator: Any) -> bool:
    """Whether it can learn from some rows at a time."""
    return not estimator._is_exact


@dataclass(eq=False, repr=False, kw_only=True)
class Parametrised(BaseEstimator):  # type: ignore[misc]
    """Parameters that all estimators have, and how they are read. The __init__ of every estimator is made of them."""

    loss: Any = "auto"
    loss_parameter: float | None = None
    regularizer: Any = None
    optimizer: str = DEFAULT_OPTIMIZER
    learning_rate: float | str | None = "auto"
    tune: str = "pilot"
    n_epochs: int | str = "auto"
    solver: str = SGD
    burn_in: int | str = "auto"
    draws: int = 32
    schedule: str = "auto"
    l2_linear: float | str = "auto"
    l1_linear: float = 0.0
    ftrl_beta: float = 1.0
    initial_accumulator: float = 1.0
    standardize: bool | str = "auto"
    early_stopping: bool | str = "auto"
    validation_fraction: float = 0.1
    patience: int = 5
    tol: float | None = 1e-4
    warm_start: bool = False
    n_replicas: int | None = None
    averages_per_epoch: int | str = "auto"
    merge: str = "auto"
    categorical: Sequence[str] | None = None
    numeric: Sequence[str] | None = None
    lists: Sequence[str] | None = None
    crosses: Sequence[Sequence[str]] | None = None
    missing: Sequence[str] | None = None
    nan: str = "error"
    list_separator: str = ""
    derive: Mapping[str, str] | None = None
    numeric_transform: str = SCALED
    hash_bits: int = 20
    min_count: int = 1
    backend: str = DEFAULT_BACKEND
    random_state: Any = 0
    n_jobs: int | None = None
    verbose: int = 0

    _task = ""
    """The kind of estimator, as model.task names it."""
    _seed = 0
    _group_column = ""
    """The column of shards by whose values their rows are told apart into groups; empty: nobody asks for it."""
    _on_cluster = False
    """Whether the fit under way, or the last one, was of rows that lie on a cluster or in shards."""

    def _settings(self) -> tuple[ModelSettings, TrainingSettings]:
        """The parameters as tables of a job, which check their ranges."""
        given = {"n_factors": 0, **self.get_params(deep=False)}
        given["n_replicas"] = self._n_replicas()
        if self.learning_rate is None:
            given["learning_rate"] = "auto"
        given = self._without_foreign_knobs(given)
        model = self._checked(ModelSettings, {key: given[key] for key in _MODEL_KNOBS if key in given})
        training = self._checked(TrainingSettings, {key: given[key] for key in _TRAINING_KNOBS if key in given})
        return ModelSettings(**model, task=self._task, seed=self._seed), TrainingSettings(**training)

    def _checked(self, table: type[Table], given: Mapping[str, Any]) -> dict[str, Any]:
        """The values that knobs store of these parameters. SettingsError that names the parameter and its own default
        for one that is out of range.
        """
        own = {key: dataclasses.replace(table.knobs()[key], default=getattr(type(self), key, None)) for key in given}
        return {key: own[key].parse(key, value) for key, value in given.items()}

    def _without_foreign_knobs(self, given: dict[str, Any]) -> dict[str, Any]:
        """The parameters without those that only other optimizers read. SettingsError for their penalties."""
        foreign = {name: owner for name, owner in owners().items() if owner.name != self.optimizer and name in given}
        for name, owner in foreign.items():
            own = next(each for each in owner.parameters if each.name == name)
            if own.is_penalty and given[name]:
                raise SettingsError(
                    f'{name} = {given[name]} needs optimizer = "{owner.name}", not {self.optimizer!r}; leave it at '
                    f"{own.default:g}"
                )
        read_by = readers()
        return {key: value for key, value in given.items() if key not in read_by or self.optimizer in read_by[key]}

    @property
    def _is_exact(self) -> bool:
        """Whether parameters are solved for, or drawn."""
        return self.solver != SGD

    def _check_exact(self) -> None:
        """SettingsError where a parameter does not go with an exact solver."""
        if not self._is_exact:
            return
        given = self.get_params(deep=False)
        for key, legal in (("family", DEFAULT_FAMILY), ("loss", DEFAULT_LOSSES[self._task]), ("regularizer", None)):
            if key in given and given[key] != legal:
                raise SettingsError(
                    f"{key} = {given[key]!r} does not go with solver = {self.solver!r}, which takes {legal!r}; leave "
                    f"it out, or choose solver = {SGD!r}"
                )
        if self.warm_start:
            raise SettingsError(
                f"warm_start = True goes on from an earlier fit, and solver = {self.solver!r} begins anew; leave it out"
            )

    def _n_replicas(self) -> int:
        """Local models; None is one here, and as many as a job has where the rows lie on a cluster."""
        if self.n_replicas is None:
            return int(TrainingSettings.knobs()["n_replicas"].default) if self._on_cluster else 1
        return self.n_replicas

    def _draw_seed(self) -> None:
        """Settle what the fit that begins draws its rows and factors by."""
        state = self.random_state
        is_number = isinstance(state, int | np.integer) and not isinstance(state, bool)
        self._seed = int(state) if is_number else int(check_random_state(state).randint(2**31 - 1))

    def _feature_options(self) -> FeatureOptions:
        return FeatureOptions(self._table_options(), self._settings()[0].n_factors)

    def _table_options(self) -> TableOptions:
        given = self.get_params(deep=False)

        def named(key: str) -> tuple[Any, ...]:
            value = given[key]
            return (value,) if isinstance(value, str) else tuple(value or ())

        return TableOptions(
            categorical=named("categorical"),
            numeric=named("numeric"),
            lists=named("lists"),
            crosses=_crosses(given["crosses"]),
            missing=named("missing"),
            nan=given["nan"],
            list_separator=given["list_separator"],
            derive=pairs("derive", given["derive"], Text()),
            numeric_transform=given["numeric_transform"],
            standardize=self.standardize,
            hash_bits=given["hash_bits"],
            min_count=given["min_count"],
            min_count_factors=given.get("min_count_factors", 1),
        )

    def _check_loss(self) -> None:
        """SettingsError where the loss is no function, and no name of one of single rows with labels of this task."""
        own = [name for name in names_for(self._task) if not is_paired(name)]
        is_own_function = callable(self.loss) or isinstance(self.loss, CustomLoss)
        if not is_own_function and self.loss not in ("auto", *own):
            why = "is of pairs of rows: use FMRanker, or" if is_paired(self.loss) else f"is none of {self._task};"
            raise SettingsError(
                f"loss = {self.loss!r} {why} choose one of {', '.join(own)}, or pass a function of score and label"
            )

    def _objective(self) -> Objective:
        """The loss by name or of a user's function. SettingsError where it is not for this kind of estimator."""
        self._check_loss()
        loss = CustomLoss.of(self.loss) if callable(self.loss) else self.loss
        return Objective.of(self._task, loss, self.loss_parameter)

    def _spec(self, objective: Objective, n_factors: int, optimizer: str) -> KernelSpec:
        """The compile key of the kernels."""
        regularizer = None if self.regularizer is None else CustomRegularizer.of(self.regularizer)
        name = objective.loss if isinstance(objective.loss, CustomLoss) else objective.info.name
        given = self.get_params(deep=False)
        family = given.get("family", DEFAULT_FAMILY)
        order = family_of(family).order_of(given.get("order", "auto"))
        spec = KernelSpec(name, optimizer, n_factors, self.loss_parameter, regularizer, family=family, order=order)
        features: Features = vars(self)["_features"]  # learnt before
        return with_fields(spec, given.get("groups", "auto"), features.field_names)

    def _recipe(self, rows: RowsToFit, mean_label: float, unit: LabelUnit) -> Recipe:
        """The numbers of a fit of these rows; mean_label: of the labels as they are trained."""
        model, training = self._settings()
        objective = self._objective()
        spec = self._spec(objective, model.n_factors, training.optimizer)
        if training.is_exact:
            return self._exact_recipe(exact_work(training, self._task, spec, unit), rows, mean_label)
        scale = RowScale.of(rows.entries, objective)
        numbers = {name: settled(training, scale, candidate) for name, candidate in CANDIDATES.items()}
        work = work_of(numbers[rows.chosen or DEFAULT.name], self._task, spec, unit)
        start = objective.link.start(mean_label)
        course = self._course(training, rows)
        n_slices = self._n_slices(training, rows)
        return Recipe(
            work=work,
            initial=InitialValues(
                model.seed, initial_stdev(model, scale), training.initial_accumulator, start, higher_stdev(scale)
            ),
            objective=objective,
            n_epochs=course.n_epochs,
            n_slices=n_slices,
            n_rounds=self._n_rounds(training, rows.n_rows),
            schedule=course.schedule,
            **self._ending(),
            seed=model.seed,
            pilot=self._pilot(numbers, rows, n_slices),
        )

    def _exact_recipe(self, work: ExactWork, rows: RowsToFit, mean_label: float) -> Recipe:
        """The numbers of a fit by an exact solver."""
        model, training = self._settings()
        features: Features = vars(self)["_features"]  # learnt before
        crowd = crowd_of(rows.entries, spread_of(features.vocabulary.counts, rows.entries.n_counted))
        stdev, bias = initial_exactly(model, training, rows.entries, crowd), initial_bias(self._task, mean_label)
        return Recipe(
            work=of_rows(work, training, crowd),
            initial=InitialValues(model.seed, stdev, bias=bias),
            objective=self._objective(),
            n_epochs=training.n_iterations,
            **self._ending(),
            seed=model.seed,
        )

    def _patience(self) -> int:
        """Epochs without a better one that end training where no plateau does."""
        return int(self._checked(TrainingSettings, {"patience": self.patience})["patience"])

    def _ending(self) -> dict[str, Any]:
        """Fall of the loss below which an epoch counts as none, and how many of these end training; where tol is None,
        as in scikit-learn, no number of them does.
        """
        if self.tol is None:
            return {"patience": None}
        if not isinstance(self.tol, int | float | np.number):
            raise SettingsError(
                f"tol = {self.tol!r} is not legal: expected a number, or None to train to the last epoch"
            )
        return {"tolerance": float(self.tol), "patience": self._patience()}

    def _course(self, training: TrainingSettings, rows: RowsToFit) -> Course:
        """Schedule and last epoch. Without rows to validate on, the loss of the training rows says when to stop."""
        if rows.is_part:  # of one call after another nobody knows the end that a decay would lead to
            constant = training.schedule in ("auto", "plateau", "final-decay")
            return Course("constant" if constant else training.schedule, 1)
        schedule = training.schedule
        if schedule == "auto":
            schedule = "plateau" if rows.validates and self.tol is not None else "constant"
        if schedule == "plateau" and not rows.validates:
            raise SettingsError(
                'schedule = "plateau" needs rows to validate on: pass eval_set, or early_stopping = True to hold some '
                "out"
            )
        automatic = EPOCHS_TO_PLATEAU if schedule == "plateau" else _EPOCHS_UNTIL_TOLERANCE
        return Course(schedule, automatic if training.n_epochs == "auto" else int(training.n_epochs))

    def _n_rounds(self, training: TrainingSettings, n_rows: int) -> int:
        """Rounds of an epoch after the first."""
        if training.n_replicas == 1 or training.is_exact:
            return 1
        if training.averages_per_epoch == "auto":
            return automatic_averages(n_rows, training.n_replicas)
        return max(1, min(int(training.averages_per_epoch), n_rows // training.n_replicas))

    def _n_slices(self, training: TrainingSettings, rows: RowsToFit) -> int:
        """Rounds of the first epoch: more where a pilot is to compare some."""
        n_rounds = self._n_rounds(training, rows.n_rows)
        if not self._may_pilot(training, rows) or training.averages_per_epoch != "auto":
            return n_rounds
        return max(n_rounds, SLICES) if n_pilot_slices(SLICES, rows.n_rows // training.n_replicas) else n_rounds

    def _may_pilot(self, training: TrainingSettings, rows: RowsToFit) -> bool:
        return (
            wants_pilot(training) and not training.is_exact and rows.validates and not rows.is_part and not rows.goes_on
        )

    def _pilot(self, numbers: Mapping[str, TrainingSettings], rows: RowsToFit, n_slices: int) -> Pilot | None:
        """The candidates that a fit begins with; None where there is nothing to choose, or too few rows."""
        training = numbers[DEFAULT.name]
        n_walked = n_pilot_slices(n_slices, rows.n_rows // training.n_replicas)
        if not self._may_pilot(self._settings()[1], rows) or not n_walked:
            return None
        steps = {name: step_of(each) for name, each in numbers.items()}
        is_late = training.n_replicas > LATE_REPLICAS
        return Pilot(steps, {name: told(each) for name, each in numbers.items()}, n_walked, is_late)

    def _deal(self, rows: RowsToFit) -> Deal:
        """The way these rows are dealt out."""
        model, training = self._settings()
        groups = self._spec(self._objective(), model.n_factors, training.optimizer).groups
        return Deal(training.n_replicas, self._n_slices(training, rows), model.seed, groups)

    def _holds_out(self, n_rows: int, has_eval_set: bool) -> float:
        """The share of the rows to hold out for early stopping; 0 for none."""
        stopping, share = self.early_stopping, self.validation_fraction
        if stopping not in (True, False, "auto"):
            raise SettingsError(f'early_stopping = {stopping!r} is not legal: expected True, False or "auto"')
        share = checked("validation_fraction", share, Parametrised.validation_fraction, _SHARE)
        if stopping == "auto" and self.solver == MCMC:  # which does not stop early
            return 0.0
        if has_eval_set or not stopping or (stopping == "auto" and n_rows < MANY_ROWS):
            return 0.0
        return float(share)

    def job(
        self, train: str | Sequence[str], label: str, directory: str, *, weight: str = "", validation: Any = ()
    ) -> dict[str, dict[str, Any]]:
        """The tables of a job with these parameters, for `dfm.train`, or for a job file (dfm.settings.toml.to_toml).

        train, validation: paths or URLs of Parquet shards. label, weight: names of columns there. directory: of the
        model. What an estimator does otherwise than a job is spelled out; how many replicas there are, how many rows
        are held out and what trains is left to the job where it is left open here. A loss or regularizer of your own is
        passed to `dfm.train` beside the job.
        """
        own = copy.copy(self)
        own._on_cluster = True  # n_replicas is that of jobs
        own._draw_seed()
        paths = [[each] if isinstance(each, str) else list(each) for each in (train, validation)]
        job = own._job_of_shards(paths[0], (label, weight or None), paths[1], directory)
        tables = job.to_dict()
        tables["output"]["directory"] = directory
        del tables["cluster"]
        if tables["model"]["loss"] == DEFAULT_LOSSES[self._task]:
            del tables["model"]["loss"]
        if self.backend == DEFAULT_BACKEND:
            del tables["training"]["backend"]
        return differing(tables)

    def _job_of_shards(
        self, shards: list[str], columns: tuple[str, str | None], validation: list[str], folder: str
    ) -> Job:
        """A job with these parameters. columns: of labels, and of weights or None; its files lie in the folder.

        SettingsError where a parameter has no counterpart in a job.
        """
        if getattr(self, "class_weight", None) is not None:
            raise SettingsError(
                f"class_weight = {self.class_weight!r} does not reach shards: write the weights into a column, and "
                "name it (sample_weight of fit, weight of job)"
            )
        self._check_loss()
        model, training = self._settings()
        options = self._feature_options().table
        parameter = "auto" if self.loss_parameter is None else self.loss_parameter
        return Job.from_dict(
            {
                "data": {"train": shards, "validation": validation, **self._held_out_share(validation)},
                "schema": {
                    "label": columns[0],
                    "weight": columns[1] or "",
                    "group": self._group_column,
                    **options.of_schema(),
                },
                "model": {
                    **model.to_dict(),
                    "loss": "auto" if callable(self.loss) else self.loss,  # a user's function is passed beside the job
                    "loss_parameter": parameter,
                },
                "training": {**training.to_dict(), **self._stopping(training)},
                "cluster": {"cache": os.path.join(folder, "cache")},
                "output": {"directory": os.path.join(folder, "output")},
            }
        )

    def _held_out_share(self, validation: Sequence[str]) -> dict[str, Any]:
        """The share of the rows that a job holds out, where it is not what it would hold out by itself."""
        share = self._holds_out(MANY_ROWS, bool(validation))
        if self.solver == MCMC and not share and not validation:
            return {"validation_fraction": 0.0}
        usual = 0.0 if self._never_stops else Parametrised.validation_fraction
        return {"validation_fraction": share} if share and share != usual else {}

    @property
    def _never_stops(self) -> bool:
        """Whether all epochs are trained, for a tolerance of None."""
        return self.tol is None and self.schedule != "plateau"

    def _stopping(self, training: TrainingSettings) -> dict[str, Any]:
        """The knobs by which a job stops: a plateau has no patience, draws stop by themselves."""
        if not self.early_stopping or self._never_stops:
            return {"early_stopping": False}
        if training.solver == ALS:
            return {"patience": self._patience()}
        return {} if training.schedule in ("auto", "plateau") else {"patience": self._patience()}


@dataclass(eq=False, repr=False, kw_only=True)
class FactorParameters(Parametrised):
    """Parameters of factors, which linear models do not have."""

    n_factors: int | str = field(default="auto", kw_only=False)
    family: str = field(default=DEFAULT_FAMILY, kw_only=False)
    groups: Any = "auto"
    order: int | str = "auto"
    factor_rate_scale: float | str = "auto"
    l2_factors: float | str = "auto"
    init_stdev: float | str = "auto"
    min_count_factors: int = 10
