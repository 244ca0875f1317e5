"""The common part of all estimators: data become rows, training goes on from where it stood, tables give scores."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from dfm.data.canonical import value_text
from dfm.data.hashed_rows import HashedRows
from dfm.data.matrices import column_names, is_sparse
from dfm.data.units import LabelUnit
from dfm.errors import DataError, SettingsError
from dfm.estimators.features import (
    Features,
    MatrixFeatures,
    TableFeatures,
    as_arrow,
    column_of,
    is_arrow,
    is_columns,
    is_dask,
    is_frame,
    is_path,
    is_table,
    n_rows_of,
    named_in,
    names_of,
)
from dfm.estimators.labels import NOTHING_WEIGHS, LabelEncoding, LabelSummary, check_present, summarise_labels
from dfm.estimators.notes import tell_what_says_nothing, tell_worse_than_mean
from dfm.estimators.outputs import AsFitted, Output, shown, teller, unpacked
from dfm.estimators.recipes import Parametrised, RowsToFit
from dfm.estimators.shards import (
    Wanted,
    check_names,
    paths_of,
    read_evaluation,
    read_labelled,
    read_shards,
    read_to_fit,
    validation_paths,
)
from dfm.estimators.sources import ArrayRows, Relabel, RowSource
from dfm.events import history_frame
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.tables import ParameterTable
from dfm.model.figures import plot_history
from dfm.model.fm_model import FMModel
from dfm.model.objective import LossInfo, Objective
from dfm.model.outputs import NUMPY, PREDICTION, check_output, handed_out
from dfm.model.rows import arrived, none_for_nan, numeric_of
from dfm.model.token_names import TokenNames
from dfm.solvers.posterior import Draws, mean_scores
from dfm.training.executor import Event
from dfm.training.fitting import Fit, Recipe, fit, grown_fit, initial_table, solve
from dfm.version import __version__

_PLAIN = bool | int | float | str | None


class BaseFactorizationMachine(Parametrised):
    """Common parts of all estimators; not for use by itself."""

    _features: Features
    _encoding: LabelEncoding
    _outputs: list[Output]
    _tables: list[ParameterTable]
    _draws: list[Draws | None]
    _as_fitted: AsFitted

    # ------------------------------------------------------------------------------ what subclasses say ----

    def _encode(self, summary: LabelSummary) -> LabelEncoding:
        """The classes or the unit of labels, learnt from a summary of all of them; public attributes are set."""
        raise NotImplementedError

    def _weighed(self, encoding: LabelEncoding, summary: LabelSummary) -> LabelEncoding:
        """The encoding with weights relative to the mean of the rows of this summary."""
        return dataclasses.replace(encoding, mean_weight=summary.mean_weight)

    def _mean_labels(self, summary: LabelSummary) -> list[float]:
        """Mean label of every machine, as it is trained."""
        raise NotImplementedError

    def _relabel(self, number: int) -> Relabel | None:
        """From stored labels to what machine `number` is trained on; None where they are the same."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------- data ----

    def _training_data(self, X: Any, goes_on: bool) -> Any:
        """A table, or a checked matrix, to train on: with the columns of the last fit where training goes on."""
        if goes_on:
            return self._known_data(X)
        options = self._table_options()
        if is_table(X, options):
            return as_arrow(X, named_in(X, options.numeric), options.missing)
        self._feature_options().table.check_matrix()
        return self._validated(X, reset=True)

    def _record_columns(self, n_columns: int, names: Sequence[str] | None) -> None:
        self.n_features_in_ = n_columns
        if names is not None:
            self.feature_names_in_ = np.array(names, object)

    def _validated(self, X: Any, reset: bool) -> Any:
        """A checked array or sparse matrix of floats; names and number of columns are recorded or compared."""
        if is_arrow(X) or is_columns(X):
            X = as_arrow(X)  # scikit-learn knows its names without pandas
        kinds, accepted = [np.float64, np.float32], ("csr", "csc", "coo")
        return validate_data(self, X, accept_sparse=accepted, dtype=kinds, reset=reset, ensure_min_samples=int(reset))

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
        return {name: none_for_nan(array[:, j].tolist()) for j, name in enumerate(names)}

    def _known_columns(self) -> Wanted:
        """The columns of shards that the features of the fit are made of; of a matrix without names all."""
        names = getattr(self, "feature_names_in_", None)
        if isinstance(self._features, TableFeatures):
            wanted = Wanted.by_schema(self._features.schema, self._features.schema.columns)
        elif names is None:
            wanted = Wanted()
        else:
            wanted = Wanted(list(names), frozenset(names), self._table_options().missing)
        return dataclasses.replace(wanted, labels=self._encoding.stored_as)

    def _by_name(self, X: Any) -> Any:
        """The columns that the fit knows, of a dict or an Arrow table."""
        if not (is_columns(X) or is_arrow(X)) or not hasattr(self, "feature_names_in_"):
            return X
        names = list(self.feature_names_in_)
        table = as_arrow(X, names, self._table_options().missing)
        if missing := [name for name in names if name not in table.column_names]:
            raise DataError(f"the rows lack column {missing[0]!r}; the fit needs {', '.join(names)}")
        return table.select(names)

    def _required(self, y: Any) -> Any:
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        return y

    def _checked_labels(self, X: Any, y: Any) -> NDArray[Any]:
        """One finite label a row."""
        y = column_of(self._required(y))
        if np.asarray(y).dtype.kind == "O" and np.ndim(y) == 1:
            check_present(y)
        y = column_or_1d(y, warn=True)
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
        given = column_of(sample_weight)
        checked: NDArray[np.float64] = _check_sample_weight(given, np.empty((n_rows, 1)), dtype=np.float64)
        if (checked < 0).any():
            raise ValueError("Negative values in data passed to sample_weight: expected 0 or more")
        if not checked.any():
            raise ValueError(NOTHING_WEIGHS)
        return checked

    # ---------------------------------------------------------------------------------------- training ----

    def _fit(self, X: Any, y: Any, sample_weight: Any, eval_set: Any, client: Any) -> Self:
        """Fit anew, or with warm_start from where the last fit ended: here, or on a cluster."""
        X = arrived(X)
        if client is None and not is_dask(X):
            return self._fit_rows(X, y, sample_weight, eval_set, None)
        from dfm.estimators.on_dask import told_to_a_fit  # loads Dask, which a fit on an array does not need

        with told_to_a_fit():
            return self._fit_rows(X, y, sample_weight, eval_set, client)

    def _fit_rows(self, X: Any, y: Any, sample_weight: Any, eval_set: Any, client: Any) -> Self:
        self._on_cluster = is_dask(X) or (is_path(X) and client is not None)
        self._check_exact()
        self._draw_seed()
        if is_path(X):
            check_names(y, sample_weight)
            if client is not None:
                return self._fit_job(X, y, sample_weight, validation_paths(eval_set, y, sample_weight), client)
        goes_on = self.warm_start and hasattr(self, "_outputs")
        if is_path(X) and goes_on:
            X, y, sample_weight = read_labelled(X, y, sample_weight, self._known_columns())
        elif is_path(X):
            X, y, sample_weight = read_to_fit(X, y, sample_weight, self._table_options())
        return self._fit_source(self._source(X, y, sample_weight, client, goes_on), eval_set, goes_on)

    def _fit_source(self, source: RowSource, eval_set: Any, goes_on: bool) -> Self:
        """Fit to the rows of a source."""
        summary = self._learn(source, goes_on)
        held_out = self._held_out(source, eval_set)
        share = self._holds_out(source.n_rows, held_out is not None)
        validates, entries = held_out is not None or bool(share), source.entries
        if share:
            source.hold_out(share, self._seed)
        rows = RowsToFit(source.n_rows, entries, validates, False, goes_on, self._chosen(goes_on))
        return self._train(source, held_out, self._recipes(rows, summary), rows)

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any) -> Self:
        """One epoch over these rows, from where the last call or fit ended."""
        if is_dask(X) or is_path(X):
            raise SettingsError(
                "partial_fit takes rows of this process: fit a collection or shards as a whole, or several times with "
                "warm_start = True"
            )
        X, self._on_cluster = arrived(X), False
        self._draw_seed()
        goes_on = hasattr(self, "_outputs")
        source = self._source(X, y, sample_weight, None, goes_on)
        summary = self._learn(source, goes_on, are_all=False)
        rows = RowsToFit(source.n_rows, source.entries, False, True, goes_on, self._chosen(goes_on))
        return self._train(source, None, self._recipes(rows, summary), rows)

    def _source(self, X: Any, y: Any, sample_weight: Any, client: Any, goes_on: bool) -> RowSource:
        """The rows to train on, checked, with their labels and weights."""
        if is_dask(X):
            from dfm.estimators.on_dask import CollectionRows  # loads Dask, which a fit on an array does not need

            return CollectionRows.of(X, self._required(y), sample_weight, client)
        labels = self._checked_labels(X, y)
        weights = self._checked_weights(sample_weight, len(labels))
        data, n_threads = self._training_data(X, goes_on), effective_n_jobs(self.n_jobs)
        if client is None:
            return ArrayRows(data, labels, weights, names_of(X), n_threads)
        from dfm.estimators.on_dask import SentRows

        return SentRows(data, labels, weights, names_of(X), client=client)

    def _learn(self, source: RowSource, goes_on: bool, are_all: bool = True) -> LabelSummary:
        """Features and classes of the rows; where training goes on, those of the last fit, and new categories."""
        if goes_on:
            self._check_goes_on()
        summary = source.summarise(self._task == "classification")
        if not goes_on:
            # Tables of other features: if this fit fails, there is no model.
            for name in ("_outputs", "_tables", "_as_fitted"):
                self.__dict__.pop(name, None)
        encoding = self._encoding if goes_on else self._encode(summary)
        encoding.check(summary)
        encoding = self._weighed(encoding, summary)
        self._encoding = encoding if are_all else dataclasses.replace(encoding, mean_weight=1.0)
        if goes_on:
            source.encode(self._features, self._encoding)
            self._grow(source, summary)
            return summary
        options = self._feature_options()
        self._features = source.learn(options, self._encoding)
        if isinstance(self._features, TableFeatures):
            known = self._features
            tell_what_says_nothing(known.schema, known.statistics, known.vocabulary, options.table.min_count)
        if source.columns is not None:
            self._record_columns(*source.columns)
        return summary

    def _grow(self, source: RowSource, summary: LabelSummary) -> None:
        """Let in the categories that are new in these rows, untrained; columns of a matrix are as many as ever."""
        features = self._features
        if isinstance(features, TableFeatures):
            rows = RowsToFit(source.n_rows, source.entries, False, goes_on=True, chosen=self._chosen(True))
            recipes = self._recipes(rows, summary)
            options = self._feature_options()
            grown = features.grown(source.counts(features.vocabulary), options.table, options.n_factors)
            before, after = features.vocabulary, grown.vocabulary
            if before.ids is not after.ids:
                # Before training, which may fail: features and tables belong together.
                self._outputs = [
                    Output(grown_fit(own.fit, recipe, before, after), own.unit)
                    for own, recipe in zip(self._outputs, recipes, strict=True)
                ]
                self._tables = [output.table() for output in self._outputs]
            self._features = grown

    def _held_out(self, source: RowSource, eval_set: Any) -> Any:
        """Rows of eval_set as the source takes them; classes do not reweigh them."""
        if eval_set is None:
            return None
        given = read_evaluation(unpacked(eval_set), self._known_columns())
        rows = given if is_dask(given[0]) else self._evaluation_rows(*given)
        return source.evaluation(rows, self._features, self._encoding)

    def _evaluation_rows(self, X: Any, y: Any, sample_weight: Any) -> HashedRows:
        X = arrived(X)
        y = self._checked_labels(X, y)
        self._encoding.check(summarise_labels(y, None, self._task == "classification"))
        labels = self._encoding.labels(y)
        given = self._checked_weights(sample_weight, len(y))
        weights = np.zeros(0, np.float32) if given is None else given.astype(np.float32)
        return dataclasses.replace(self._features.rows(self._known_data(X)), labels=labels, weights=weights)

    def _chosen(self, goes_on: bool) -> str:
        """The choice of the pilot of the fit that training goes on from."""
        return self._outputs[0].fit.chosen if goes_on else ""

    def _recipes(self, rows: RowsToFit, summary: LabelSummary) -> list[Recipe]:
        unit = LabelUnit(self._encoding.mean, self._encoding.scale)
        return [self._recipe(rows, mean, unit) for mean in self._mean_labels(summary)]

    def _check_goes_on(self) -> None:
        """SettingsError where parameters changed too much to go on from the last fit."""
        layout = self._outputs[0].fit.table.layout
        wanted = self._spec(self._objective(), self._settings()[0].n_factors, self.optimizer).layout
        if layout != wanted:
            raise SettingsError(
                f"training cannot go on from a model of {layout} with {wanted}: keep family, n_factors and optimizer, "
                "or fit anew with warm_start = False (a model that was fitted on shards has no optimizer state at all)"
            )
        loss, before = self._objective().info, self._as_fitted.loss
        if loss != before:
            raise SettingsError(
                f"training cannot go on from a model of loss {_told(before)} with loss {_told(loss)}, as scores mean "
                "something else: keep loss and loss_parameter, or fit anew with warm_start = False"
            )

    def _train(self, source: RowSource, held_out: Any, recipes: Sequence[Recipe], rows: RowsToFit) -> Self:
        """Train every machine on the rows of the source, and keep what comes out."""
        placed = source.place(self._features, self._deal(rows), held_out)

        def train(number: int) -> Output:
            recipe, begins = recipes[number], not rows.goes_on
            start = Fit(initial_table(recipe, self._features.vocabulary)) if begins else self._outputs[number].fit
            executor = placed.executor(self._relabel(number))
            if self._is_exact:
                exact, table = executor.exact(self._features.vocabulary), start.table
                return Output(solve(recipe, exact, table, teller(number, len(recipes))), recipe.work.unit)
            return Output(fit(recipe, executor, start, teller(number, len(recipes))), recipe.work.unit)

        n_threads = effective_n_jobs(self.n_jobs)
        with shown(bool(self.verbose)), ThreadPoolExecutor(n_threads) as pool:
            threaded = n_threads > 1 and len(recipes) > 1
            outputs = list((pool.map if threaded else map)(train, range(len(recipes))))
        if not rows.is_part:
            remedy = "a smaller init_stdev" if self._is_exact else "a smaller learning_rate"
            tell_worse_than_mean(outputs[0].fit.history, outputs[0].unit.scale, remedy)
        return self._keep(outputs)

    def _fit_job(self, X: Any, y: str, sample_weight: str | None, validation: list[str], client: Any) -> Self:
        """A job on the client's cluster, with these parameters, for two classes or numbers. validation: shards."""
        from dfm import jobs  # loads Dask
        from dfm.estimators.on_dask import classes_in_shards

        if self.warm_start:
            raise SettingsError(
                "warm_start = True does not reach shards on a cluster: leave it out, or save model_ and name its "
                "folder in training.warm_start of the tables that job() gives, for dfm.train"
            )
        with tempfile.TemporaryDirectory(prefix="dfm-") as folder:
            job, classes = self._job_of_shards(paths_of(X), (y, sample_weight), validation, folder), None
            if self._task == "classification":
                classes, positive = classes_in_shards([*paths_of(X), *validation], y, client)
                job = dataclasses.replace(job, schema=dataclasses.replace(job.schema, label_positive=positive))
            own = self.loss if callable(self.loss) else None
            result = jobs.train(job, client, loss=own, regularizer=self.regularizer)
            model = result.model
        self._features = TableFeatures(model.schema, model.vocabulary, model.statistics)
        names = list(model.schema.columns)
        self._record_columns(len(names), names)
        if classes is not None:
            self.classes_ = classes
        self._encoding = LabelEncoding(classes)
        return self._keep([Output(Fit(model.table, result.history, draws=model.draws), LabelUnit())])

    def _keep(self, outputs: list[Output]) -> Self:
        self._outputs = outputs
        self._tables = [output.table() for output in outputs]
        self._draws = [output.draws() for output in outputs]
        self.n_iter_ = max(len(output.fit.history) for output in outputs)
        self.history_ = self._history()
        self._as_fitted = self._as_they_are()
        return self

    def _as_they_are(self) -> AsFitted:
        """The parameters of this moment, as the fit that ends keeps them."""
        objective = self._objective()
        spec = self._spec(objective, self._tables[0].layout.n_factors, self.optimizer)
        given = {key: value if isinstance(value, _PLAIN) else repr(value) for key, value in self.get_params().items()}
        return AsFitted(objective.info, spec, given)

    def _objective_of_fit(self) -> Objective:
        """The objective of the last fit; before the first one that of the parameters."""
        return Objective.of_info(self._task, self._as_fitted.loss) if hasattr(self, "_as_fitted") else self._objective()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The attributes; of pickles of dfm 0.2.0 and before, the parameters are those of the fit."""
        super().__setstate__(state)
        if hasattr(self, "_tables") and not hasattr(self, "_as_fitted"):
            self._as_fitted = self._as_they_are()

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the features, object[n_features], in the order of `coef_` and `factors_`.

        Of a matrix those of its columns. Of a table "site=a.example", "price=3 to 4", "site=(missing)": categories are
        hashed, so that rows have to name them, a table as `fit` takes it, passed as input_features; those that do not
        occur there are "site=#" and their hash.
        """
        check_is_fitted(self)
        features = self._features
        if isinstance(features, MatrixFeatures):
            return self._names_of_columns(features, input_features)
        assert isinstance(features, TableFeatures)
        names = TokenNames(features.model(self._tables[0], self._objective_of_fit(), {}))
        if input_features is not None:
            schema = features.schema
            named = as_arrow(input_features, numeric_of(schema), schema.missing)
            for batch in named.combine_chunks().to_batches():
                names.add(batch)
        vocabulary, fields = features.vocabulary, [entry.name for entry in features.schema.fields]
        return np.array(
            [
                f"{fields[field]}={names.names.get(row, f'#{hashed}')}"
                for row, (field, hashed) in enumerate(zip(vocabulary.fields, vocabulary.ids, strict=True))
            ],
            object,
        )

    def _names_of_columns(self, features: MatrixFeatures, given: Any) -> NDArray[np.object_]:
        known = features.names or column_names(features.vocabulary.n_features)
        if given is not None and (len(given) != len(known) or (features.names and [*given] != [*known])):
            raise ValueError(f"input_features is not equal to the {len(known)} columns of the fit: {', '.join(known)}")
        return np.array(known if given is None else list(given), object)

    def history_frame(self) -> Any:
        """`history_` as a flat DataFrame of pandas: an epoch a row (of several classes, a row for each)."""
        check_is_fitted(self)
        return history_frame(self.history_)

    def plot_history(self, axes: Any = None) -> Any:
        """`history_` as a plot of matplotlib (extra `plots`): losses by epoch, on these axes or on new ones, which are
        returned.
        """
        check_is_fitted(self)
        return plot_history(self.history_, axes)

    def _history(self) -> list[Event]:
        return [dict(event) for event in self._outputs[0].fit.history]

    # ------------------------------------------------------------------------------------------ scores ----

    def _scores(self, X: Any) -> NDArray[np.float64]:
        """Raw scores of every machine, float64[n_machines, n_rows]."""
        check_is_fitted(self)
        tables = self._fitted_tables()
        partition = self._features.scoring(self._known_data(arrived(X)))
        if (draws := self._draws)[0] is not None:
            each = [
                mean_scores(partition, table, own, self._task) for table, own in zip(tables, draws, strict=True) if own
            ]
            return np.stack(each).astype(np.float64)
        # Of the fit's own kernels, which this process has compiled: scores do not depend on loss or optimizer.
        kernels = numba_cpu.compile_kernels(self._as_fitted.spec)
        return np.stack([kernels.scores(partition, table).astype(np.float64) for table in tables])

    def _judged(self: Any, X: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Predictions of rows wherever they lie, computed, and their labels and weights; y and sample_weight are names
        of columns where X is a path of shards, and may be arrays or collections otherwise.
        """
        if is_dask(X):
            from dfm.estimators.on_dask import judged  # loads Dask, which a fit on an array does not need

            return judged(self, X, y, sample_weight)
        if is_path(X):
            check_is_fitted(self)
            check_names(y, sample_weight)
            X, y, sample_weight = read_labelled(X, y, sample_weight, self._known_columns())
        return self.predict(X), y, sample_weight

    def _elsewhere(self, X: Any, method: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """The method on a Dask collection (lazily) or on shards; None where X lies in this process."""
        if not (is_dask(X) or is_path(X)):
            return None
        check_is_fitted(self)
        if is_path(X):
            return getattr(self, method)(read_shards(X, self._known_columns()))
        from dfm.estimators import on_dask  # loads Dask, which a fit on an array does not need

        slim = copy.copy(self)
        for name in ("_outputs", "history_"):  # a scorer travels without what it does not need
            slim.__dict__.pop(name, None)
        wanted = on_dask.Scores(method, shape, dtype, on_dask.truths_of(self._features, X))
        return on_dask.predict_lazily(X, slim, wanted)

    def _handed_out(self, found: Any, output: str, X: Any, names: Sequence[str] = (PREDICTION,)) -> Any:
        """Predictions in the form that was asked for. SettingsError for a Dask collection, whose are still to come."""
        check_output(output)
        if output != NUMPY and is_dask(X):
            raise SettingsError(
                f'output = "{output}" is for rows of this process: map it over the partitions of a collection'
            )
        return handed_out(found, output, X, names)

    def _fitted_tables(self) -> list[ParameterTable]:
        if not hasattr(self, "_tables"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        return self._tables

    @staticmethod
    def _factors(table: ParameterTable) -> NDArray[np.float32]:
        """V of every feature, zeros for those without factors."""
        dense = np.zeros((table.n_features, table.layout.row_factors), np.float32)
        dense[: table.n_factored] = table.factor_weights
        return dense

    def _model(self, number: int = 0) -> FMModel:
        metadata = {
            "dfm_version": __version__,
            "estimator": type(self).__name__,
            "settings": {"estimator": dict(self._as_fitted.settings)},
            "history": self.history_,
        }
        model = self._features.model(self._tables[number], self._objective_of_fit(), metadata)
        schema = dataclasses.replace(model.schema, label_positive=self._positive(number))
        return dataclasses.replace(model, schema=schema, draws=self._draws[number])

    def _positive(self, number: int) -> tuple[str, ...]:
        """The label that machine `number` takes for 1, for a schema; none where labels are 0 and 1, or numbers."""
        classes = getattr(self, "classes_", None)
        if classes is None or classes.tolist() == [0, 1]:
            return ()
        text = value_text(classes[number if len(classes) > 2 else 1])
        return (text,) if text else ()

    def to_local(self) -> Self:
        """This estimator as a plain one: the fit brought its parameters here, and no cluster is needed."""
        check_is_fitted(self)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _told(loss: LossInfo) -> str:
    """A loss by its name and what else tells it from others."""
    own = f" (sha256 {loss.sha256[:8]})" if loss.sha256 else ""
    return f'"{loss.name}"{own}' if loss.parameter is None else f'"{loss.name}" of loss_parameter {loss.parameter:g}'


class LoneMachine(BaseFactorizationMachine):
    """Common parts of estimators whose fit is one machine; not for use by itself."""

    @property
    def coef_(self) -> NDArray[np.float32]:
        """w, float32[n_features]."""
        return self._fitted_tables()[0].linear_weights.copy()

    @property
    def factors_(self) -> NDArray[np.float32]:
        """V, float32[n_features, n_factors]."""
        return self._factors(self._fitted_tables()[0])

    @property
    def model_(self) -> FMModel:
        """The model to serve."""
        self._fitted_tables()
        return self._model()

    def _relabel(self, number: int) -> Relabel | None:
        return None
