"""Small data and executors for tests of the exact solvers, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.data.partition import SparsePartition
from dfm.data.vocabulary import Vocabulary
from dfm.kernels.contract import KernelSpec
from dfm.settings.tables import TrainingSettings
from dfm.training.exact import ExactExecutor, Here
from dfm.training.exact_rounds import first_block
from dfm.training.exact_work import ExactSchedule, ExactWork, exact_work

SCHEDULE = ExactSchedule("constant", 5)
LOSSES = {"regression": "squared", "classification": "logistic"}


def work_of(task: str, n_factors: int, **training: Any) -> ExactWork:
    """The work of an exact solver by some settings."""
    return exact_work(TrainingSettings(**training), task, KernelSpec(LOSSES[task], "sgd", n_factors))


def dense_of(sizes: Sequence[int], n_rows: int, seed: int) -> NDArray[np.float64]:
    """Dense rows with one feature of each field, float64[n_rows, n_features]."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.eye(size)[rng.integers(0, size, n_rows)] for size in sizes], axis=1)


def partition_of(
    dense: NDArray[np.float64],
    labels: NDArray[Any],
    fields: Sequence[int],
    n_factored: int | None = None,
    weights: NDArray[Any] | None = None,
) -> SparsePartition:
    """Dense rows as a partition on the whole table, whose features have these fields."""
    n_rows, n_features = dense.shape
    row, feature = np.nonzero(dense)
    values = dense[row, feature].astype(np.float32)
    is_implicit = bool(np.all(values == 1))
    return SparsePartition(
        np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n_rows))]),
        feature.astype(np.uint32),
        np.zeros(0, np.float32) if is_implicit else values,
        labels.astype(np.float32),
        np.zeros(0, np.float32) if weights is None else weights.astype(np.float32),
        np.arange(n_features, dtype=np.uint32),
        n_features if n_factored is None else n_factored,
        n_rows if is_implicit else 0,
        np.array(fields, np.uint16),
    )


def rows_between(partition: SparsePartition, start: int, stop: int) -> SparsePartition:
    """Rows [start, stop) of a partition, with the features that they touch."""
    dense = np.zeros((partition.n_rows, len(partition.features)))
    row = np.repeat(np.arange(partition.n_rows), np.diff(partition.indptr))
    dense[row, partition.indices] = partition.values if partition.values.size else 1.0
    touched = np.flatnonzero(dense[start:stop].any(axis=0))
    part = partition_of(
        dense[start:stop][:, touched],
        partition.labels[start:stop],
        partition.fields[touched].tolist(),
        int(np.searchsorted(touched, partition.n_factored)),
        partition.weights[start:stop] if partition.weights.size else None,
    )
    part.features[:] = touched
    return part


def vocabulary_of(fields: Sequence[int], n_factored: int | None = None) -> Vocabulary:
    """A vocabulary of features with these fields."""
    ids = np.arange(len(fields), dtype=np.uint32)
    n_factored = len(fields) if n_factored is None else n_factored
    rare = np.full(max(fields) + 1, -1, np.int64)
    return Vocabulary(ids, np.ones(len(fields), np.int64), np.array(fields, np.uint16), rare, n_factored, 10)


def executor_of(
    work: ExactWork, parts: Sequence[SparsePartition], vocabulary: Vocabulary, held_out: Sequence[SparsePartition] = ()
) -> ExactExecutor:
    """An executor in this process, a replica for each part, at the parameters before the first iteration."""
    n_rows = sum(part.n_rows for part in parts)
    executor = ExactExecutor(Here(), [[part] for part in parts], [held_out] if held_out else [], vocabulary, n_rows)
    executor.restore([first_block(work, vocabulary, 0.1, 0)], [0, vocabulary.n_features])
    return executor


def iterate(executor: ExactExecutor, work: ExactWork, number: int) -> Any:
    """Make the iteration that comes after so many others; the block that it leads to."""
    executor.submit([(SCHEDULE.work(work, number, (0.0, 0)), range(1))])
    executor.finish()
    return executor.parameters[0]
