"""What all estimators share: data become rows, training goes on from where it stood, tables give scores."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import pyarrow as pa
from joblib import effective_n_jobs
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from dfm.data.encoding import take_rows
from dfm.data.matrices import is_sparse
from dfm.data.partition import HashedRows, SparsePartition, build_partition
from dfm.data.units import LabelUnit
from dfm.data.vocabulary import RowLookup
from dfm.errors import DataError, SettingsError
from dfm.estimators.features import (
    Features,
    MatrixFeatures,
    TableFeatures,
    as_arrow,
    is_arrow,
    is_columns,
    is_dask,
    is_frame,
    is_path,
    is_table,
    n_rows_of,
    names_of,
    warn_of_unknown,
)
from dfm.estimators.labels import NOTHING_WEIGHS, LabelEncoding, LabelSummary, summarise_labels
from dfm.estimators.outputs import Output, shown, teller, unpacked
from dfm.estimators.recipes import Parametrised
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.tables import ParameterTable
from dfm.model.fm_model import FMModel
from dfm.training.fitting import (
    Crew,
    Event,
    LocalCrew,
    Progress,
    Recipe,
    deal,
    fit,
    initial_table,
    whole_partition,
)
from dfm.version import __version__

_PLAIN = bool | int | float | str | None
Relabel = Callable[[Sequence[SparsePartition]], list[SparsePartition]]


class BaseFactorizationMachine(Parametrised):
    """Common parts of the four estimators; not for use by itself."""

    _features: Features
    _encoding: LabelEncoding
    _outputs: list[Output]
    _tables: list[ParameterTable]

    # ------------------------------------------------------------------------------ what subclasses say ----

    def _encode(self, summary: LabelSummary) -> LabelEncoding:
        """How labels are trained, learnt from a summary of all of them; public attributes of labels are set."""
        raise NotImplementedError

    def _mean_labels(self, summary: LabelSummary) -> list[float]:
        """Mean label of every machine, as it is trained."""
        raise NotImplementedError

    def _relabel(self, number: int) -> Relabel | None:
        """From stored labels to what machine `number` is trained on; None where they are the same."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------- data ----

    def _learn_features(self, X: Any, weights: NDArray[np.float32]) -> tuple[Features, HashedRows]:
        """Features of training data, and its rows without labels."""
        options = self._table_options()
        if is_table(X, options):
            table = as_arrow(X)
            self._record_names(table.column_names)
            return TableFeatures.learn(table, options, self._settings()[0].n_factors)
        matrix = self._validated(X, reset=True)
        return MatrixFeatures.learn(matrix, names_of(X), self._standardizes(is_sparse(matrix)), weights)

    def _record_names(self, names: Sequence[str]) -> None:
        self.n_features_in_ = len(names)
        self.feature_names_in_ = np.array(names, object)

    def _standardizes(self, sparse: bool) -> bool:
        if self.standardize not in (True, False, "auto"):
            raise SettingsError(f'standardize = {self.standardize!r} is not legal: expected True, False or "auto"')
        if self.standardize is True and sparse:
            raise SettingsError(
                "standardize = True would make a sparse matrix dense: scale it before (MaxAbsScaler), pass a dense "
                'array, or leave standardize at "auto"'
            )
        return bool(self.standardize) and not sparse

    def _validated(self, X: Any, reset: bool) -> Any:
        """A checked array or sparse matrix of floats; names and number of columns are recorded or compared."""
        if is_arrow(X) or is_columns(X):
            X = as_arrow(X).to_pandas()
        kinds, accepted = [np.float64, np.float32], ("csr", "csc", "coo")
        return validate_data(self, X, accept_sparse=accepted, dtype=kinds, reset=reset)

    def _known_data(self, X: Any) -> Any:
        """Data to score or to go on with, as the features of the fit take it."""
        if isinstance(self._features, MatrixFeatures):
            return self._validated(self._by_name(X), reset=False)
        if is_frame(X) or is_arrow(X) or is_columns(X):
            return X
        array = np.asarray(X.toarray() if is_sparse(X) else X)
        names = list(self.feature_names_in_)
        if array.ndim != 2 or array.shape[1] != len(names):
            given = array.shape[1] if array.ndim == 2 else 0
            raise ValueError(
                f"X has {given} features, but {type(self).__name__} is expecting {len(names)} features as input"
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

    def _checked_labels(self, X: Any, y: Any) -> NDArray[Any]:
        """One finite label a row."""
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        y = column_or_1d(y.to_numpy(zero_copy_only=False) if isinstance(y, pa.Array) else y, warn=True)
        assert_all_finite(y, input_name="y")
        if is_table(X, self._table_options()):
            if n_rows_of(X) != len(y):
                raise ValueError(f"X has {n_rows_of(X)} rows, y has {len(y)} labels: expected one label a row")
        else:
            check_consistent_length(X, y)
        if not len(y):
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
        return y

    def _checked_weights(self, sample_weight: Any, n_rows: int) -> NDArray[np.float64] | None:
        """One weight a row, 0 or more; None where all count the same."""
        if sample_weight is None:
            return None
        checked: NDArray[np.float64] = _check_sample_weight(sample_weight, np.empty((n_rows, 1)), dtype=np.float64)
        if (checked < 0).any():
            raise ValueError("Negative values in data passed to sample_weight: expected 0 or more")
        if not checked.any():
            raise ValueError(NOTHING_WEIGHS)
        return checked

    # ---------------------------------------------------------------------------------------- training ----

    def _fit(self, X: Any, y: Any, sample_weight: Any, eval_set: Any, client: Any) -> Self:
        """Fit anew, or with warm_start from where the last fit ended: here, or on a cluster."""
        self._on_cluster = is_dask(X) or (is_path(X) and client is not None)
        if is_dask(X) or is_path(X):
            from dfm.estimators import on_dask

            return on_dask.fit(self, X, y, sample_weight, eval_set, client)
        goes_on = self.warm_start and hasattr(self, "_outputs")
        rows, summary = self._training_rows(X, y, sample_weight, goes_on)
        held_out = self._evaluation_rows(eval_set)
        share = self._holds_out(rows.n_rows, held_out is not None)
        if share:
            order = np.random.default_rng([self._seed(), 11]).permutation(rows.n_rows)
            n_held_out = max(1, int(rows.n_rows * share))
            held_out = take_rows(rows, np.sort(order[:n_held_out]))
            rows = take_rows(rows, np.sort(order[n_held_out:]))
        recipes = self._recipes(rows.n_rows, summary)
        return self._train_here(recipes, self._starts(len(recipes), goes_on), rows, held_out, client)

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any) -> Self:
        """One epoch over these rows, from where the last call or fit ended."""
        if is_dask(X) or is_path(X):
            raise SettingsError(
                "partial_fit takes rows of this process: fit a collection or shards as a whole, or several times with "
                "warm_start = True"
            )
        self._on_cluster = False
        goes_on = hasattr(self, "_outputs")
        rows, summary = self._training_rows(X, y, sample_weight, goes_on, are_all=False)
        recipes = self._recipes(rows.n_rows, summary, 1)
        return self._train_here(recipes, self._starts(len(recipes), goes_on), rows, None)

    def _training_rows(
        self, X: Any, y: Any, sample_weight: Any, goes_on: bool, are_all: bool = True
    ) -> tuple[HashedRows, LabelSummary]:
        """Rows with labels and weights; features and classes are learnt from them, unless training goes on."""
        y = self._checked_labels(X, y)
        given = self._checked_weights(sample_weight, len(y))
        summary = summarise_labels(y, given, self._task == "classification")
        if not goes_on:
            encoding = self._encode(summary)
            self._encoding = encoding if are_all else dataclasses.replace(encoding, mean_weight=1.0)
        labels = self._encoding.labels(y)
        weights = self._encoding.weights(labels, given)
        if goes_on:
            rows = self._features.rows(self._known_data(X))
            warn_of_unknown(self._features, rows)
        else:
            self._features, rows = self._learn_features(X, weights)
        return dataclasses.replace(rows, labels=labels, weights=weights), summary

    def _evaluation_rows(self, eval_set: Any) -> HashedRows | None:
        """Rows of eval_set; classes do not reweigh them."""
        if eval_set is None:
            return None
        X, y, sample_weight = unpacked(eval_set)
        y = self._checked_labels(X, y)
        labels = self._encoding.labels(y)
        given = self._checked_weights(sample_weight, len(y))
        weights = np.zeros(0, np.float32) if given is None else given.astype(np.float32)
        return dataclasses.replace(self._features.rows(self._known_data(X)), labels=labels, weights=weights)

    def _recipes(self, n_rows: int, summary: LabelSummary, n_epochs: int | None = None) -> list[Recipe]:
        unit = LabelUnit(self._encoding.mean, self._encoding.scale)
        return [self._recipe(n_rows, mean, unit, n_epochs) for mean in self._mean_labels(summary)]

    def _starts(self, n_outputs: int, goes_on: bool) -> list[Progress | None]:
        """Where each machine stands. SettingsError where parameters changed too much to go on."""
        if not goes_on:
            return [None] * n_outputs
        layout = self._outputs[0].progress.table.layout
        wanted = self._spec(self._objective(), self._settings()[0].n_factors, self.optimizer).layout
        if layout != wanted:
            raise SettingsError(
                f"training cannot go on from a model of {layout} with {wanted}: keep family, n_factors and optimizer, "
                "or fit anew with warm_start = False (a model that was fitted on shards has no optimizer state at all)"
            )
        return [output.progress for output in self._outputs]

    def _train_here(
        self,
        recipes: Sequence[Recipe],
        starts: Sequence[Progress | None],
        rows: HashedRows,
        held_out: HashedRows | None,
        client: Any = None,
    ) -> Self:
        """Train every machine on rows of this process; with a client its cluster does the work."""
        features, n_threads = self._features, effective_n_jobs(self.n_jobs)
        partitions = self._partitions(rows, recipes[0].n_rounds)
        held = [] if held_out is None else [whole_partition(held_out, features.vocabulary, features.lookup)]

        def crew(number: int) -> Crew:
            relabel = self._relabel(number) or list
            replicas = [relabel(replica) for replica in partitions]
            if client is None:
                return LocalCrew(replicas, relabel(held), n_threads if len(recipes) == 1 else 1)
            from dfm.estimators import on_dask

            return on_dask.crew_of_rows(client, replicas, relabel(held))

        return self._train(recipes, starts, crew, n_threads)

    def _partitions(self, rows: HashedRows, n_rounds: int) -> list[list[SparsePartition]]:
        """The rows of each replica and round, shuffled."""
        n_replicas, features = self._settings()[1].n_replicas, self._features
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
        crew: Callable[[int], Crew],
        n_threads: int,
    ) -> Self:
        """Train every machine with a crew of its own, and keep what comes out."""

        def train(number: int) -> Output:
            recipe, start = recipes[number], starts[number]
            progress = start or Progress(initial_table(recipe, self._features.vocabulary))
            tell = teller(number, len(recipes))
            return Output(fit(recipe, crew(number), progress, tell), recipe.unit)

        with shown(bool(self.verbose)), ThreadPoolExecutor(n_threads) as pool:
            threaded = n_threads > 1 and len(recipes) > 1
            outputs = list((pool.map if threaded else map)(train, range(len(recipes))))
        return self._keep(outputs)

    def _keep(self, outputs: list[Output]) -> Self:
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
        # Of the fit's own kernels, which this process has compiled: scores do not depend on loss or optimizer.
        spec = self._spec(self._objective(), self._tables[0].layout.n_factors, self.optimizer)
        kernels = numba_cpu.compile_kernels(spec)
        return np.stack([kernels.scores(partition, table).astype(np.float64) for table in self._tables])

    def _elsewhere(self, X: Any, method: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """The method on a Dask collection (lazily) or on shards; None where X lies in this process."""
        if not (is_dask(X) or is_path(X)):
            return None
        check_is_fitted(self)
        from dfm.estimators import on_dask  # loads Dask, which a fit on an array does not need

        return on_dask.score(self, X, method, shape, dtype)

    def _fitted_tables(self) -> list[ParameterTable]:
        if not hasattr(self, "_tables"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        return self._tables

    @staticmethod
    def _factors(table: ParameterTable) -> NDArray[np.float32]:
        """V of every feature, zeros for those without factors."""
        dense = np.zeros((table.n_features, table.layout.n_factors), np.float32)
        dense[: table.n_factored] = table.factor_weights
        return dense

    def _model(self, number: int = 0) -> FMModel:
        given = {key: value if isinstance(value, _PLAIN) else repr(value) for key, value in self.get_params().items()}
        metadata = {
            "dfm_version": __version__,
            "estimator": type(self).__name__,
            "settings": {"estimator": given},
            "history": self.history_,
        }
        return self._features.model(self._tables[number], self._objective(), metadata)

    def to_local(self) -> Self:
        """This estimator as a plain one: the fit brought its parameters here, and no cluster is needed."""
        check_is_fitted(self)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
