"""What all estimators share: parameters become a recipe, data become rows, training goes on from where it stood."""

from __future__ import annotations

import dataclasses
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import assert_all_finite, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from dfm.averaging import MergeRule, automatic_averages, scaled_rate
from dfm.encoding import take_rows
from dfm.errors import DataError, SettingsError
from dfm.fitting import (
    Event,
    LabelUnit,
    LocalCrew,
    Progress,
    Recipe,
    deal,
    fit,
    initial_table,
    make_work,
    whole_partition,
)
from dfm.inputs import (
    Features,
    MatrixFeatures,
    TableFeatures,
    TableOptions,
    as_arrow,
    is_arrow,
    is_columns,
    is_frame,
    is_table,
    n_rows_of,
    names_of,
)
from dfm.kernels.contract import KernelSpec, Step
from dfm.matrices import is_sparse
from dfm.model import FMModel
from dfm.params import InitialValues, Layout, ParameterTable, allocate
from dfm.partition import HashedRows, SparsePartition, build_partition
from dfm.settings import ModelSettings, TrainingSettings
from dfm.vocabulary import RowLookup

logger = logging.getLogger("dfm.estimators")
_MANY_ROWS = 10_000
"""From so many rows on, early_stopping = "auto" holds some of them out."""
_SHOWN = ("train_loss", "train_rmse", "log_loss", "auc", "rmse", "mae")
"""Of an epoch's record, what `verbose` shows."""
_NO_FLOATS = np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Output:
    """One factorization machine of an estimator: of the label, or of one class against the rest."""

    progress: Progress
    unit: LabelUnit

    def table(self) -> ParameterTable:
        """Its parameters without optimizer state, in the labels' own unit.

        A score s of the training becomes s * scale + mean, which pairs of factors take as sqrt(scale) each.
        """
        trained, scale = self.progress.table, self.unit.scale
        table = allocate(trained.layout.stateless, trained.n_features, trained.n_factored)
        table.bias[0] = float(trained.bias_value) * scale + self.unit.mean
        table.linear[:, 0] = trained.linear_weights * np.float32(scale)
        table.factors[:, : trained.layout.n_factors] = trained.factor_weights * np.float32(scale**0.5)
        return table


def store(estimator: Any, given: Mapping[str, Any]) -> None:
    """Set the arguments of an __init__ as attributes, which is all that scikit-learn wants done there."""
    for name, value in given.items():
        if name not in ("self", "__class__"):
            setattr(estimator, name, value)


class BaseFactorizationMachine(BaseEstimator):  # type: ignore[misc]
    """Common parts of the four estimators; not for use by itself."""

    _task: str
    _features: Features
    _outputs: list[Output]

    # ------------------------------------------------------------------------------------- parameters ----

    def _settings(self) -> tuple[ModelSettings, TrainingSettings]:
        """The parameters as tables of a job, which check their ranges."""
        given = self.get_params(deep=False)
        n_factors = given.get("n_factors", 0)
        model = {key: given[key] for key in ModelSettings.knobs() if key in given and key not in ("min_count",)}
        training = {
            key: given[key]
            for key in TrainingSettings.knobs()
            if key in given and key not in ("early_stopping", "loss")
        }
        if given["optimizer"] != "ftrl":
            training = {key: value for key, value in training.items() if key not in ("l1_linear", "ftrl_beta")}
            if given["l1_linear"]:
                raise SettingsError(
                    f'l1_linear = {given["l1_linear"]} needs optimizer = "ftrl", not {given["optimizer"]!r}'
                )
        chosen = {**model, "task": self._task, "n_factors": n_factors, "seed": self._seed()}
        return ModelSettings(**chosen), TrainingSettings(**training)

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

    def _recipe(self, n_rows: int, bias: float, unit: LabelUnit, n_epochs: int | None = None) -> Recipe:
        """The numbers of a fit of that many rows."""
        model, training = self._settings()
        rate = scaled_rate(training.learning_rate, training.rate_scaling, training.n_replicas)
        step = Step(
            learning_rate=rate,
            factor_learning_rate=rate * training.factor_rate_scale,
            l2_linear=training.l2_linear,
            l2_factors=training.l2_factors,
            l1_linear=training.l1_linear,
            ftrl_beta=training.ftrl_beta,
            n_threads=training.threads_per_replica,
        )
        automatic = "mean" if training.optimizer == "sgd" else "weighted"
        rule = MergeRule(
            automatic if training.merge == "auto" else training.merge,
            training.accumulators,
            training.precision,
            training.outer_rate,
            training.outer_momentum,
        )
        spec = KernelSpec(self.loss, training.optimizer, model.n_factors)
        return Recipe(
            make_work(spec, rule, step, training.n_replicas),
            InitialValues(model.seed, model.init_stdev, training.initial_accumulator, bias),
            training.n_epochs if n_epochs is None else n_epochs,
            self._n_rounds(training, n_rows),
            training.schedule,
            self.tol,
            training.patience,
            self._task,
            unit,
            model.seed,
        )

    def _n_rounds(self, training: TrainingSettings, n_rows: int) -> int:
        if training.n_replicas == 1:
            return 1
        if training.averages_per_epoch == "auto":
            return automatic_averages(n_rows, training.n_replicas)
        return max(1, min(int(training.averages_per_epoch), n_rows // training.n_replicas))

    # -------------------------------------------------------------------------------------------- data ----

    def _learn_features(self, X: Any, weights: NDArray[np.float32]) -> tuple[Features, HashedRows]:
        """Features of training data, and its rows without labels."""
        options = self._table_options()
        if is_table(X, options):
            names = list(as_arrow(X).column_names)
            self.n_features_in_ = len(names)
            self.feature_names_in_ = np.array(names, object)
            return TableFeatures.learn(X, options, self._settings()[0].n_factors)
        matrix = self._validated(X, reset=True)
        return MatrixFeatures.learn(matrix, names_of(X), self._standardizes(matrix), weights)

    def _standardizes(self, matrix: Any) -> bool:
        if self.standardize not in (True, False, "auto"):
            raise SettingsError(f'standardize = {self.standardize!r} is not legal: expected True, False or "auto"')
        if self.standardize is True and is_sparse(matrix):
            raise SettingsError(
                "standardize = True would make a sparse matrix dense: scale it before (MaxAbsScaler), pass a dense "
                'array, or leave standardize at "auto"'
            )
        return bool(self.standardize) and not is_sparse(matrix)

    def _validated(self, X: Any, reset: bool) -> Any:
        """A checked array or CSR matrix of floats; names and number of columns are recorded or compared."""
        if is_arrow(X):
            X = self._frame_like(X)
        return validate_data(
            self, X, accept_sparse=("csr", "csc", "coo"), dtype=[np.float64, np.float32], reset=reset,
        )  # fmt: skip

    def _frame_like(self, X: Any) -> Any:
        """An Arrow table of floats as scikit-learn takes it: a pandas frame, else an array in the order of columns."""
        return as_arrow(X).to_pandas()

    def _known_data(self, X: Any) -> Any:
        """Data to score, as the features of the fit take it."""
        if isinstance(self._features, MatrixFeatures):
            return self._validated(self._by_name(X), reset=False)
        if is_frame(X) or is_arrow(X) or is_columns(X):
            return X
        array = np.asarray(X.toarray() if is_sparse(X) else X)
        names = list(self.feature_names_in_)
        if array.ndim != 2 or array.shape[1] != len(names):
            n_given = array.shape[1] if array.ndim == 2 else array.ndim
            raise ValueError(
                f"X has {n_given} features, but {type(self).__name__} is expecting {len(names)} features as input"
            )
        warnings.warn(
            f"X does not have valid feature names, but {type(self).__name__} was fitted with feature names",
            UserWarning,
            stacklevel=3,
        )
        return {name: array[:, j].tolist() for j, name in enumerate(names)}

    def _by_name(self, X: Any) -> Any:
        """Of a dict or an Arrow table, the columns that the fit knows."""
        if not (is_columns(X) or is_arrow(X)) or not hasattr(self, "feature_names_in_"):
            return X
        names = list(self.feature_names_in_)
        table = as_arrow(X)
        if missing := [name for name in names if name not in table.column_names]:
            raise DataError(f"the rows lack column {missing[0]!r}; the fit needs {', '.join(names)}")
        return table.select(names)

    def _weights(self, sample_weight: Any, n_rows: int) -> NDArray[np.float32]:
        """Checked weights float32[n_rows]; empty where all rows count the same."""
        if sample_weight is None:
            return _NO_FLOATS
        rows = np.empty((n_rows, 1), np.float32)
        checked = _check_sample_weight(sample_weight, rows, dtype=np.float64)
        if (checked < 0).any():
            raise ValueError("Negative values in data passed to sample_weight: expected 0 or more")
        if not checked.any():
            raise ValueError("all sample weights are 0: there is nothing to learn from; pass a positive one")
        return checked.astype(np.float32)

    # ---------------------------------------------------------------------------------------- training ----

    def _split(self, rows: HashedRows, held_out: HashedRows | None) -> tuple[HashedRows, HashedRows | None]:
        """Training rows and validation rows: those given, or a part held out for early stopping."""
        stopping = self.early_stopping
        if stopping not in (True, False, "auto"):
            raise SettingsError(f'early_stopping = {stopping!r} is not legal: expected True, False or "auto"')
        if held_out is not None or not stopping or (stopping == "auto" and rows.n_rows < _MANY_ROWS):
            return rows, held_out
        if not 0 < self.validation_fraction < 1:
            raise SettingsError(f"validation_fraction = {self.validation_fraction}; expected a number between 0 and 1")
        order = np.random.default_rng([self._seed(), 11]).permutation(rows.n_rows)
        n_held_out = max(1, int(rows.n_rows * self.validation_fraction))
        return take_rows(rows, np.sort(order[n_held_out:])), take_rows(rows, np.sort(order[:n_held_out]))

    def _partitions(self, rows: HashedRows, n_rounds: int) -> list[list[SparsePartition]]:
        """The rows of each replica and round, shuffled."""
        n_replicas, features = self.n_replicas, self._features
        if rows.n_rows < n_replicas:
            raise SettingsError(f"n_replicas = {n_replicas} for {rows.n_rows} rows: expected one row each at least")
        parts = deal(rows.n_rows, n_replicas, n_rounds, self._seed())
        if n_replicas == 1:
            return [[whole_partition(take_rows(rows, part), features.vocabulary, features.lookup) for part in parts[0]]]
        lookup = features.lookup or RowLookup(features.vocabulary)
        return [
            [build_partition(take_rows(rows, part), features.vocabulary, lookup) for part in replica]
            for replica in parts
        ]

    def _train(
        self,
        recipes: Sequence[Recipe],
        starts: Sequence[Progress | None],
        rows: HashedRows,
        held_out: HashedRows | None,
    ) -> list[Output]:
        """One factorization machine per recipe, from where it stands or from scratch."""
        features = self._features
        partitions = self._partitions(rows, recipes[0].n_rounds)
        held = []
        if held_out is not None:
            held = [whole_partition(held_out, features.vocabulary, features.lookup)]
        n_threads = max(1, self.n_jobs or 1)

        def train(number: int) -> Output:
            recipe, start = recipes[number], starts[number]
            label = self._label_of(number, recipe)
            crew = LocalCrew(
                [[_labelled(part, label) for part in replica] for replica in partitions],
                [_labelled(part, label) for part in held],
                n_threads if len(recipes) == 1 else 1,
            )
            progress = start or Progress(initial_table(recipe, features.vocabulary))
            return Output(fit(recipe, crew, progress, self._tell(number, len(recipes))), recipe.unit)

        with _shown(bool(self.verbose)):
            if n_threads > 1 and len(recipes) > 1:
                with ThreadPoolExecutor(n_threads) as pool:
                    return list(pool.map(train, range(len(recipes))))
            return [train(number) for number in range(len(recipes))]

    def _fit_here(self, X: Any, y: Any, sample_weight: Any, eval_set: Any) -> Self:
        """Fit in this process; with warm_start it goes on from the last fit."""
        goes_on = self.warm_start and hasattr(self, "_outputs")
        y = self._checked_labels(X, y)
        weights = self._weights(sample_weight, len(y))
        labels, weights = self._learn_labels(y, weights, reset=not goes_on)
        if goes_on:
            rows = self._features.rows(self._known_data(X))
        else:
            self._features, rows = self._learn_features(X, weights)
        rows, held_out = self._split(with_labels(rows, labels, weights), self._evaluation_rows(eval_set))
        recipes = self._recipes(rows)
        return self._finish(self._train(recipes, self._starts(len(recipes), goes_on), rows, held_out))

    def _starts(self, n_outputs: int, goes_on: bool) -> list[Progress | None]:
        if not goes_on:
            return [None] * n_outputs
        self._check_same_shape()
        return [output.progress for output in self._outputs]

    def _check_same_shape(self) -> None:
        """SettingsError where parameters changed so much that training cannot go on from the last fit."""
        layout = self._outputs[0].progress.table.layout
        wanted = Layout(self.optimizer, self.get_params(deep=False).get("n_factors", 0))
        if layout != wanted:
            raise SettingsError(
                f"training cannot go on from a model of {layout} with {wanted}: keep n_factors and optimizer, or fit "
                "anew with warm_start = False"
            )

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any) -> Self:
        """One epoch over these rows, from where the last call or fit ended."""
        goes_on = hasattr(self, "_outputs")
        y = self._checked_labels(X, y)
        weights = self._weights(sample_weight, len(y))
        labels, weights = self._learn_labels(y, weights, reset=not goes_on)
        if goes_on:
            rows = self._features.rows(self._known_data(X))
        else:
            self._features, rows = self._learn_features(X, weights)
        rows = dataclasses.replace(rows, labels=labels, weights=weights)
        recipes = self._recipes(rows, 1)
        return self._finish(self._train(recipes, self._starts(len(recipes), goes_on), rows, None))

    def _checked_labels(self, X: Any, y: Any) -> NDArray[Any]:
        """One finite label a row."""
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        y = column_or_1d(y.to_numpy(zero_copy_only=False) if isinstance(y, pa.Array) else y, warn=True)
        assert_all_finite(y, input_name="y")
        if is_table(X, self._table_options()):
            n_rows = n_rows_of(X)
            if n_rows != len(y):
                raise ValueError(f"X has {n_rows} rows, y has {len(y)} labels: expected one label a row")
        else:
            check_consistent_length(X, y)
        if not len(y):
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
        return y

    def _evaluation_rows(self, eval_set: Any) -> HashedRows | None:
        """Rows of eval_set = (X, y) or (X, y, sample_weight), or of a list with one such tuple."""
        if eval_set is None:
            return None
        if isinstance(eval_set, list) and len(eval_set) == 1:
            eval_set = eval_set[0]
        if not isinstance(eval_set, tuple) or len(eval_set) not in (2, 3):
            raise SettingsError("eval_set is not legal: expected (X, y) or (X, y, sample_weight)")
        X, y, weights = (*eval_set, None)[:3]
        y = self._checked_labels(X, y)
        labels, masses = self._learn_labels(y, self._weights(weights, len(y)), reset=False, reweigh=False)
        return dataclasses.replace(self._features.rows(self._known_data(X)), labels=labels, weights=masses)

    def _learn_labels(
        self, y: NDArray[Any], weights: NDArray[np.float32], reset: bool, reweigh: bool = True
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Labels as they are stored in rows, and weights; `reset` learns classes or units from them first."""
        raise NotImplementedError

    def _recipes(self, rows: HashedRows, n_epochs: int | None = None) -> list[Recipe]:
        """What each machine is trained by."""
        raise NotImplementedError

    def _label_of(self, number: int, recipe: Recipe) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """From stored labels to what machine `number` is trained on."""
        raise NotImplementedError

    def _tell(self, number: int, n_outputs: int) -> Callable[[Event], None]:
        """What is logged of an epoch."""

        def tell(event: Event) -> None:
            shown = ", ".join(f"{key} {event[key]:.5f}" for key in _SHOWN if event.get(key) is not None)
            which = f" ({number + 1} of {n_outputs})" if n_outputs > 1 else ""
            logger.info("epoch %d%s: %s", event["epoch"], which, shown)

        return tell

    def _finish(self, outputs: list[Output]) -> Self:
        """Keep what was trained; the public attributes are made of it."""
        self._outputs = outputs
        self._tables = [output.table() for output in outputs]
        self.n_iter_ = max(len(output.progress.history) for output in outputs)
        self.history_ = self._history()
        return self

    def _history(self) -> list[Event]:
        return [dict(event) for event in self._outputs[0].progress.history]

    # ------------------------------------------------------------------------------------------ scores ----

    def _scores(self, X: Any) -> NDArray[np.float64]:
        """Raw scores of every machine, float64[n_machines, n_rows]."""
        check_is_fitted(self)
        partition = self._features.scoring(self._known_data(X))
        kernels = self._recipe(1, 0.0, LabelUnit()).work.kernels
        return np.stack([kernels.scores(partition, table).astype(np.float64) for table in self._tables])

    def _fitted_tables(self) -> list[ParameterTable]:
        if not hasattr(self, "_tables"):
            raise AttributeError(f"this {type(self).__name__} is not fitted yet: call fit first")
        return self._tables

    @staticmethod
    def _factors(table: ParameterTable) -> NDArray[np.float32]:
        """V of every feature, zeros for those without factors."""
        dense = np.zeros((table.n_features, table.layout.n_factors), np.float32)
        dense[: table.n_factored] = table.factor_weights
        return dense

    def _model(self, number: int = 0) -> FMModel:
        metadata = {"estimator": type(self).__name__, "history": self.history_}
        return self._features.model(self._tables[number], self._task, metadata)

    def to_local(self) -> Self:
        """This estimator by itself, without a cluster or collection that it was fitted on."""
        check_is_fitted(self)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _labelled(
    partition: SparsePartition, label: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> SparsePartition:
    return dataclasses.replace(partition, labels=np.ascontiguousarray(label(partition.labels), np.float32))


@contextmanager
def _shown(verbose: bool) -> Iterator[None]:
    """With verbose, the log of this fit goes to standard output, unless the program logs itself."""
    if not verbose or logger.isEnabledFor(logging.INFO):
        yield
        return
    handler, level = logging.StreamHandler(sys.stdout), logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def mean_of(values: NDArray[np.floating[Any]], weights: NDArray[np.float32]) -> float:
    """Weighted mean of numbers."""
    return float(np.average(values.astype(np.float64), weights=weights if weights.size else None))


def with_labels(rows: HashedRows, labels: NDArray[Any], weights: NDArray[np.float32]) -> HashedRows:
    """The rows with labels and weights; weights count relative to their mean."""
    if weights.size:
        weights = (weights / weights.mean(dtype=np.float64)).astype(np.float32)
    return dataclasses.replace(rows, labels=labels.astype(np.float32), weights=weights)
