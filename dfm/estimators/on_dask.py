"""Fits that do not start from rows in this process: Dask collections, Parquet shards, rows sent to a cluster."""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from joblib import effective_n_jobs

from dfm.data.parquet import find_shards, read_unit
from dfm.data.partition import SparsePartition
from dfm.data.units import LabelUnit
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.executor import DaskCrew, scatter_replicas, watch_of
from dfm.errors import SettingsError
from dfm.estimators import chunks as collections
from dfm.estimators.chunks import Wishes, chunks_of
from dfm.estimators.features import MatrixFeatures, TableFeatures, is_dask, is_path
from dfm.estimators.labels import NOTHING_WEIGHS, LabelEncoding, add_summaries
from dfm.estimators.outputs import Output, unpacked
from dfm.kernels.tables import ParameterTable
from dfm.settings.job import Job
from dfm.training.fitting import Crew, Progress
from dfm.training.plan import plan_reading

Estimator = Any
"""A `BaseFactorizationMachine`, whose module imports this one."""


def fit(estimator: Estimator, X: Any, y: Any, sample_weight: Any, eval_set: Any, client: Any) -> Any:
    """Fit on shards or on a Dask collection."""
    if is_path(X):
        return _fit_shards(estimator, X, y, sample_weight, eval_set, client)
    return _fit_collection(estimator, X, y, sample_weight, eval_set, watch_of(client))


def _fit_collection(estimator: Estimator, X: Any, y: Any, sample_weight: Any, eval_set: Any, watch: Watch) -> Any:
    """Chunks become partitions where they lie."""
    if isinstance(y, str):
        X, y = X.drop(columns=[y]), X[y]
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None."
        )
    goes_on, client = estimator.warm_start and hasattr(estimator, "_outputs"), watch.client
    chunks = chunks_of(client, X, y, sample_weight)
    summaries = collections.summaries_of(client, chunks, estimator._task == "classification")
    summary = add_summaries(summaries)
    if summary.n_rows and not summary.weight:
        raise ValueError(NOTHING_WEIGHS)
    if not goes_on:
        estimator._encoding = estimator._encode(summary)
    encoding, share = estimator._encoding, estimator._holds_out(summary.n_rows, eval_set is not None)
    model, training = estimator._settings()
    wishes = Wishes(
        estimator._table_options(),
        estimator.standardize,
        model.n_factors,
        training.n_replicas,
        estimator._seed(),
        share,
        estimator._n_rounds(training, summary.n_rows),
    )
    if goes_on:
        rows = collections.encode_chunks(client, collections.encoding_of(estimator._features, encoding), chunks)
    else:
        estimator._features, rows = collections.learn_features(client, X, chunks, wishes, encoding)
        _record(estimator, X)
    sizes = [part.n_rows for part in summaries]
    prepared = collections.prepare(watch, estimator._features, rows, sizes, wishes)
    held_out = prepared.held_out
    if eval_set is not None:
        held_out = _held_out(estimator, eval_set, client)
    recipes = estimator._recipes(summary.n_rows, summary)

    def crew(number: int) -> Crew:
        relabel = estimator._relabel(number)
        replicas, held = prepared.replicas, held_out
        if relabel is not None:
            replicas = [client.submit(relabel, part, pure=False) for part in replicas]
            held = [client.submit(relabel, part, pure=False) for part in held]
        return DaskCrew(watch, replicas, held)

    return estimator._train(
        recipes,
        estimator._starts(len(recipes), goes_on),
        crew,
        1 if len(recipes) == 1 else effective_n_jobs(estimator.n_jobs),
    )


def _record(estimator: Estimator, X: Any) -> None:
    """Number and names of the columns, as scikit-learn keeps them."""
    features = estimator._features
    if isinstance(features, TableFeatures):
        estimator._record_names([str(name) for name in X.columns])
        return
    assert isinstance(features, MatrixFeatures)
    estimator.n_features_in_ = features.vocabulary.n_features
    if features.names is not None:
        estimator.feature_names_in_ = np.array(features.names, object)


def _held_out(estimator: Estimator, eval_set: Any, client: Any) -> list[Any]:
    """Futures of the partitions of eval_set: a collection's where it lies, others sent to a worker."""
    X, y, sample_weight = unpacked(eval_set)
    features = estimator._features
    if is_dask(X):
        if isinstance(y, str):
            X, y = X.drop(columns=[y]), X[y]
        chunks = chunks_of(client, X, y, sample_weight)
        if sample_weight is not None and not _weight_of(estimator, client, chunks):
            raise ValueError(NOTHING_WEIGHS)
        plain = collections.encoding_of(features, _unweighted(estimator._encoding))
        return collections.whole_chunks(client, features, collections.encode_chunks(client, plain, chunks))
    rows = estimator._evaluation_rows(eval_set)
    assert rows is not None
    return collections.whole_chunks(client, features, [client.scatter(rows, hash=False)])


def _weight_of(estimator: Estimator, client: Any, chunks: Sequence[Any]) -> float:
    return add_summaries(collections.summaries_of(client, chunks, estimator._task == "classification")).weight


def _unweighted(encoding: Any) -> Any:
    """The encoding for rows to validate on, which classes do not reweigh."""
    return dataclasses.replace(encoding, class_weights=None, mean_weight=1.0)


def crew_of_rows(client: Any, replicas: Sequence[list[SparsePartition]], held_out: list[SparsePartition]) -> Crew:
    """Trains partitions that lie here on the cluster of a client."""
    watch = watch_of(client)
    held = scatter_replicas(watch, [held_out]) if held_out else []
    return DaskCrew(watch, scatter_replicas(watch, replicas), held)


# --------------------------------------------------------------------------------------------- scores ----


def score(estimator: Estimator, X: Any, method: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """A method of a fitted estimator on a collection, lazily, or on the rows of shards, now."""
    if is_path(X):
        wanted = getattr(estimator, "feature_names_in_", None)
        return getattr(estimator, method)(read_shards(X, wanted))
    slim = copy.copy(estimator)
    for name in ("_outputs", "history_"):
        slim.__dict__.pop(name, None)
    return collections.predict_lazily(X, getattr(slim, method), shape, dtype)


# --------------------------------------------------------------------------------------------- shards ----


def _fit_shards(estimator: Estimator, X: Any, y: Any, sample_weight: Any, eval_set: Any, client: Any) -> Any:
    """Parquet: with a client a job on its cluster; without one the rows are read into this process."""
    if not isinstance(y, str) or not isinstance(sample_weight, str | None):
        raise SettingsError("X is a path of shards: y and sample_weight must be names of columns in them")
    if client is None:
        table, labels, weights = _read(estimator, X, y, sample_weight)
        evaluation = eval_set
        if eval_set is not None:
            shards, label, weight = unpacked(eval_set)
            evaluation = _read(estimator, shards, label, weight) if is_path(shards) else eval_set
        return estimator._fit(table, labels, weights, evaluation, None)
    return _fit_job(estimator, X, y, sample_weight, eval_set, client)


def _paths(given: Any) -> list[str]:
    return [os.fspath(given)] if isinstance(given, str | os.PathLike) else [os.fspath(path) for path in given]


def read_shards(paths: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of shards as one table."""
    shards = find_shards(_paths(paths))
    units = [unit for task in plan_reading(shards) for unit in task]
    names = list(columns) if columns is not None else collections.columns_of(shards[0])
    return pa.Table.from_batches([batch.data for unit in units for batch in read_unit(unit, names)])


def _read(estimator: Estimator, paths: Any, y: str, sample_weight: str | None) -> tuple[pa.Table, Any, Any]:
    table = read_shards(paths)
    for name in (y, sample_weight):
        if name is not None and name not in table.column_names:
            raise SettingsError(f"the shards have no column {name!r}; they have {', '.join(table.column_names)}")
    labels = table.column(y).to_numpy()
    weights = None if sample_weight is None else table.column(sample_weight).to_numpy()
    return table.drop_columns([name for name in (y, sample_weight) if name]), labels, weights


def _fit_job(estimator: Estimator, X: Any, y: str, sample_weight: str | None, eval_set: Any, client: Any) -> Any:
    """A job on the client's cluster, with these parameters; labels are 0 and 1, or numbers."""
    from dfm import jobs

    if getattr(estimator, "class_weight", None) is not None:
        raise SettingsError(
            "class_weight does not reach shards: write the weights into a column, sample_weight = its name"
        )
    validation = () if eval_set is None else (unpacked(eval_set)[0],)
    if not all(is_path(path) for path in validation):
        raise SettingsError("a job on shards validates on shards: eval_set = (path, y), or nothing")
    with tempfile.TemporaryDirectory(prefix="dfm-") as folder:
        job = _job_of(estimator, X, y, sample_weight, validation, folder)
        own = estimator.loss if callable(estimator.loss) else None
        result = jobs.train(job, client, loss=own, regularizer=estimator.regularizer)
        model = result.model
    estimator._features = TableFeatures(model.schema, model.vocabulary, model.statistics)
    estimator._record_names(model.schema.columns)
    if estimator._task == "classification":
        estimator.classes_ = np.array([0, 1])
    estimator._encoding = LabelEncoding(getattr(estimator, "classes_", None))
    table: ParameterTable = model.table
    return estimator._keep([Output(Progress(table, list(result.history)), LabelUnit())])


def _job_of(
    estimator: Estimator, X: Any, y: str, sample_weight: str | None, validation: Sequence[Any], folder: str
) -> Job:
    model, training = estimator._settings()
    options = estimator._table_options()
    return Job.from_dict(
        {
            "data": {"train": _paths(X), "validation": [path for paths in validation for path in _paths(paths)]},
            "schema": {
                "label": y,
                "weight": sample_weight or "",
                "categorical": options.categorical,
                "numeric": options.numeric,
                "lists": options.lists,
                "crosses": options.crosses,
                "numeric_transform": options.numeric_transform,
            },
            "model": {**model.to_dict(), **estimator._loss_knobs()},
            "training": {**training.to_dict(), "early_stopping": bool(estimator.early_stopping)},
            "cluster": {"cache": os.path.join(folder, "cache")},
            "output": {"directory": os.path.join(folder, "output")},
        }
    )
