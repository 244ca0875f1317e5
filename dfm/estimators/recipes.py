"""From the parameters of an estimator to the numbers of a fit; ranges are those of a job file's knobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from dfm.averaging.rules import MergeRule, automatic_averages, automatic_weights, scaled_rate
from dfm.data.units import LabelUnit
from dfm.errors import SettingsError
from dfm.estimators.features import TableOptions
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.kernels.families.registry import DEFAULT
from dfm.kernels.optimizers import DEFAULT_OPTIMIZER, OPTIMIZERS, owners
from dfm.kernels.tables import InitialValues
from dfm.model.objective import Objective
from dfm.settings.tables import ModelSettings, TrainingSettings
from dfm.training.fitting import Recipe, make_work

_MODEL_KNOBS = ("family", "n_factors", "hash_bits", "min_count", "min_count_factors", "init_stdev")
_TRAINING_KNOBS = (
    *("n_replicas", "n_epochs", "averages_per_epoch", "optimizer", "learning_rate", "factor_rate_scale"),
    *("initial_accumulator", "l2_linear", "l2_factors", "schedule", "merge", "patience", "backend"),
    *owners(),
)
"""Parameters that mean what the knob of that name means in a job file; averages_per_epoch is of every epoch."""


def store(estimator: Any, given: Mapping[str, Any]) -> None:
    """Set the arguments of an __init__ as attributes, which is all that scikit-learn wants done there."""
    for name, value in given.items():
        if name not in ("self", "__class__"):
            setattr(estimator, name, value)


class Parametrised(BaseEstimator):  # type: ignore[misc]
    """An estimator's parameters, read."""

    _task: str
    _on_cluster: bool = False
    """Whether the fit under way, or the last one, was of rows that lie on a cluster or in shards."""

    def _settings(self) -> tuple[ModelSettings, TrainingSettings]:
        """The parameters as tables of a job, which check their ranges."""
        given = {"n_factors": 0, **self.get_params(deep=False)}
        given["n_replicas"] = self._n_replicas()
        if self.learning_rate is None:
            given["learning_rate"] = OPTIMIZERS.get(self.optimizer, OPTIMIZERS[DEFAULT_OPTIMIZER]).learning_rate
        given = self._without_foreign_knobs(given)
        model = {key: given[key] for key in _MODEL_KNOBS if key in given}
        training = {key: given[key] for key in _TRAINING_KNOBS if key in given}
        return ModelSettings(**model, task=self._task, seed=self._seed()), TrainingSettings(**training)

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
        return {key: value for key, value in given.items() if key not in foreign}

    def _n_replicas(self) -> int:
        """Local models; None is one here, and as many as a job has where the rows lie on a cluster."""
        if self.n_replicas is None:
            return int(TrainingSettings.knobs()["n_replicas"].default) if self._on_cluster else 1
        return self.n_replicas

    def _seed(self) -> int:
        state = self.random_state
        if isinstance(state, int | np.integer) and not isinstance(state, bool):
            return int(state)
        return int(check_random_state(state).randint(2**31 - 1))

    def _table_options(self) -> TableOptions:
        given = self.get_params(deep=False)

        def named(key: str) -> tuple[Any, ...]:
            value = given[key]
            return (value,) if isinstance(value, str) else tuple(value or ())

        return TableOptions(
            named("categorical"),
            named("numeric"),
            named("lists"),
            tuple(tuple(cross) for cross in given["crosses"] or ()),
            given["numeric_transform"],
            given["hash_bits"],
            given["min_count"],
            given.get("min_count_factors", 1),
        )

    def _objective(self) -> Objective:
        """The loss by name or of a user's function. SettingsError where it is not for this kind of estimator."""
        loss = CustomLoss.of(self.loss) if callable(self.loss) else self.loss
        return Objective.of(self._task, loss, self.loss_parameter)

    def _loss_knobs(self) -> dict[str, Any]:
        """The loss as a job file names it; a user's function is passed beside the job."""
        parameter = "auto" if self.loss_parameter is None else self.loss_parameter
        return {"loss": "auto" if callable(self.loss) else self.loss, "loss_parameter": parameter}

    def _spec(self, objective: Objective, n_factors: int, optimizer: str) -> KernelSpec:
        """What kernels are compiled for."""
        regularizer = None if self.regularizer is None else CustomRegularizer.of(self.regularizer)
        name = objective.loss if isinstance(objective.loss, CustomLoss) else objective.info.name
        family = self.get_params(deep=False).get("family", DEFAULT)
        return KernelSpec(name, optimizer, n_factors, self.loss_parameter, regularizer, family=family)

    def _recipe(self, n_rows: int, mean_label: float, unit: LabelUnit, n_epochs: int | None = None) -> Recipe:
        """The numbers of a fit of that many rows; mean_label: of the labels as they are trained."""
        model, training = self._settings()
        rate = scaled_rate(training.learning_rate, training.rate_scaling, training.n_replicas)
        step = Step(
            learning_rate=rate,
            factor_learning_rate=rate * training.factor_rate_scale,
            l2_linear=training.l2_linear,
            l2_factors=training.l2_factors,
            n_threads=training.threads_per_replica,
            **training.own_knobs,
        )
        objective = self._objective()
        automatic = automatic_weights(training.optimizer)
        rule = MergeRule(automatic if training.merge == "auto" else training.merge, training.accumulators)
        return Recipe(
            make_work(
                self._spec(objective, model.n_factors, training.optimizer),
                rule,
                step,
                training.n_replicas,
                training.backend,
            ),
            InitialValues(model.seed, model.init_stdev, training.initial_accumulator, objective.link.start(mean_label)),
            training.n_epochs if n_epochs is None else n_epochs,
            self._n_rounds(training, n_rows),
            # Of one call after another nobody knows the end that a decay would lead to.
            "constant" if n_epochs is not None and training.schedule == "final-decay" else training.schedule,
            float(self.tol),
            training.patience,
            objective,
            unit,
            model.seed,
        )

    def _n_rounds(self, training: TrainingSettings, n_rows: int) -> int:
        """Rounds of an epoch."""
        if training.n_replicas == 1:
            return 1
        if training.averages_per_epoch == "auto":
            return automatic_averages(n_rows, training.n_replicas)
        return max(1, min(int(training.averages_per_epoch), n_rows // training.n_replicas))

    def _holds_out(self, n_rows: int, has_eval_set: bool) -> float:
        """The share of the rows to hold out for early stopping; 0 for none."""
        stopping, share = self.early_stopping, self.validation_fraction
        if stopping not in (True, False, "auto"):
            raise SettingsError(f'early_stopping = {stopping!r} is not legal: expected True, False or "auto"')
        if not 0 < share < 1:
            raise SettingsError(f"validation_fraction = {share} is not legal: expected a number between 0 and 1")
        if has_eval_set or not stopping or (stopping == "auto" and n_rows < MANY_ROWS):
            return 0.0
        return float(share)


MANY_ROWS = 10_000
"""From so many rows on, early_stopping = "auto" holds some of them out."""
