"""Matrix factorization with missing entries: D ≈ P Q on the observed entries, as a factorization machine.

An observed entry (i, j) is a row with two features of value 1, "row i" and "column j". Their pair is the only one, so
the machine's score is w0 + w_i + w_j + <V_i, V_j>: P is V of the rows, Q that of the columns. Without biases the step
sizes of w0 and w are 0, and they stay 0.
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.rules import automatic_averages
from dfm.data.building import build_partition
from dfm.data.hashed_rows import HashedRows, take_rows
from dfm.data.matrices import is_sparse, vector_vocabulary
from dfm.data.partition import SparsePartition
from dfm.data.row_lookup import RowLookup
from dfm.data.units import LabelUnit
from dfm.data.vocabulary import Vocabulary
from dfm.errors import DataError, SettingsError
from dfm.kernels.contract import KernelSpec
from dfm.kernels.losses import DEFAULT_LOSSES
from dfm.kernels.optimizers import DEFAULT_OPTIMIZER, resolve_optimizer
from dfm.kernels.tables import InitialValues
from dfm.model.objective import Objective
from dfm.settings.constraints import Knob, Number
from dfm.settings.tables import TrainingSettings
from dfm.training.executor import Event
from dfm.training.fitting import Fit, FitExecutor, Recipe, deal, fit, initial_table, whole_partition
from dfm.training.local import LocalExecutor
from dfm.training.rounds import Work
from dfm.training.steps import work_of

_NO_FLOATS = np.zeros(0, np.float32)
_JOBS = TrainingSettings.knobs()
_LEGAL = {
    "learning_rate": Number(0, open_low=True),
    "l2": Number(0),
    "l2_biases": Number(0),
    **{name: _JOBS[name].constraint for name in ("schedule", "n_replicas", "backend")},
}
"""Legal values of parameters: no number is found by itself here, as it is in a job."""


@dataclass(frozen=True, eq=False)
class Factorization:
    """D[i, j] ≈ bias + row_biases[i] + column_biases[j] + Σ_f P[i, f] Q[f, j], in the unit of D.

    P float32[m, k]; Q float32[k, n]; row_biases float32[m] and column_biases float32[n], zeros where there are none;
    history: a record per epoch, with "train_rmse" in the unit of D.
    """

    P: NDArray[np.float32]
    Q: NDArray[np.float32]
    bias: float
    row_biases: NDArray[np.float32]
    column_biases: NDArray[np.float32]
    history: list[Event] = field(default_factory=list, repr=False)

    def predict(self, rows: NDArray[np.integer[Any]], columns: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Single entries float64[n] at int[n] rows and columns."""
        pairs = np.einsum("if,fi->i", self.P[rows].astype(np.float64), self.Q[:, columns].astype(np.float64))
        result: NDArray[np.float64] = self.bias + self.row_biases[rows] + self.column_biases[columns] + pairs
        return result

    def complete(self) -> NDArray[np.float64]:
        """All entries, float64[m, n]."""
        product = self.P.astype(np.float64) @ self.Q.astype(np.float64)
        result: NDArray[np.float64] = self.bias + self.row_biases[:, None] + self.column_biases[None, :] + product
        return result


def matrix_factorization(
    D: Any,
    n_factors: int,
    *,
    biases: bool = False,
    n_epochs: int = 200,
    learning_rate: float = 0.5,
    l2: float = 0.0,
    l2_biases: float = 0.0,
    optimizer: str = DEFAULT_OPTIMIZER,
    schedule: str = "constant",
    init_stdev: float | None = None,
    tol: float = 1e-7,
    patience: int = 5,
    n_replicas: int = 1,
    seed: int = 0,
    backend: str = "numba",
    client: Any = None,
) -> Factorization:
    """Factors of a matrix [m, n] of which only some entries are known.

    D: a masked array, an array with NaN where nothing is known, or a scipy.sparse matrix whose stored entries (zeros
    too) are what is known. l2, l2_biases: penalties per observed entry, for entries of deviation 1. init_stdev: of the
    factors at the start; None for one at which the product has a third of the deviation of D. tol, patience: training
    ends when the mean squared error, for entries of deviation 1, fell by less than tol in each of so many epochs.
    backend: "numba" trains on processors, "cupy" on NVIDIA GPUs, "auto" on GPUs where they are. client: a Dask client,
    to train the replicas on its cluster; without one they are trained here.

    SettingsError where a parameter is out of its range; DataError where nothing of D is known, or an entry is infinite.
    """
    _check_legal(
        learning_rate=learning_rate, l2=l2, l2_biases=l2_biases, schedule=schedule, n_replicas=n_replicas,
        backend=backend,
    )  # fmt: skip
    if n_factors < 1:
        raise SettingsError(f"n_factors = {n_factors}; a factorization needs at least 1")
    if schedule in ("auto", "plateau"):
        raise SettingsError(
            f'schedule = "{schedule}" needs entries to validate on, and a factorization holds none out; use "constant" '
            'or "final-decay"'
        )
    if resolve_optimizer(optimizer).derives_weights and not biases:
        raise SettingsError(
            f'optimizer = "{optimizer}" cannot leave biases out; use "{DEFAULT_OPTIMIZER}", or biases = True'
        )
    shape, rows, columns, values = _observed(D)
    unit = _unit(values, biases)
    training = TrainingSettings(
        n_replicas=n_replicas,
        optimizer=optimizer,
        learning_rate=learning_rate,
        factor_rate_scale=1.0,
        l2_linear=l2_biases,
        l2_factors=l2,
        schedule=schedule,
        backend=backend,
    )
    recipe = Recipe(
        work=_work(training, KernelSpec(DEFAULT_LOSSES["regression"], optimizer, n_factors), unit, biases),
        initial=InitialValues(seed, n_factors**-0.25 / 3**0.5 if init_stdev is None else init_stdev),
        objective=Objective.of("regression"),
        n_epochs=n_epochs,
        n_rounds=automatic_averages(len(values), n_replicas),
        schedule=schedule,
        tolerance=tol,
        patience=patience,
        seed=seed,
    )
    entries = _entries(shape, rows, columns, ((values - unit.mean) / unit.scale).astype(np.float32))
    vocabulary = vector_vocabulary(sum(shape), np.bincount(entries.indices, minlength=sum(shape)).astype(np.int64))
    with _told(client):
        executor = _executor(recipe, entries, vocabulary, client)
        done = fit(recipe, executor, Fit(initial_table(recipe, vocabulary)), lambda event: None)
    return _result(done, shape, unit)


def _check_legal(**given: Any) -> None:
    """SettingsError that names a parameter, its range and its default where one is out of range."""
    own = inspect.signature(matrix_factorization).parameters
    for name, value in given.items():
        Knob(own[name].default, _LEGAL[name], "").parse(name, value)


def _told(client: Any) -> contextlib.AbstractContextManager[None]:
    """Trouble of the cluster, where there is one, is told as a ClusterError."""
    if client is None:
        return contextlib.nullcontext()
    from dfm.distributed import executor  # loads Dask

    return executor.told_to_a_fit()


def _observed(D: Any) -> tuple[tuple[int, int], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Shape; rows, columns and values of the observed entries. DataError without any, or where one is infinite."""
    if is_sparse(D):
        entries = D.tocoo().copy()
        entries.sum_duplicates()
        shape, rows, columns, values = entries.shape, entries.row, entries.col, entries.data
    else:
        unknown = np.isnan(np.ma.getdata(D).astype(np.float64))
        dense = np.ma.masked_where(unknown, D) if unknown.any() else np.ma.asarray(D)
        if dense.ndim != 2:
            raise DataError(f"D has {dense.ndim} dimensions; expected a matrix")
        there = ~np.ma.getmaskarray(dense)
        shape, (rows, columns), values = dense.shape, np.nonzero(there), np.ma.getdata(dense)[there]
    values = np.asarray(values, np.float64)
    if not len(values):
        raise DataError("D has no observed entry: nothing can be learnt from it")
    if not np.isfinite(values).all():
        raise DataError("D holds infinity; mask these entries, or set them to NaN")
    return (int(shape[0]), int(shape[1])), rows.astype(np.int64), columns.astype(np.int64), values


def _unit(values: NDArray[np.float64], biases: bool) -> LabelUnit:
    """Entries are trained with deviation 1; only with biases may a mean be taken out of them."""
    mean = float(values.mean()) if biases else 0.0
    return LabelUnit(mean, float(np.sqrt(((values - mean) ** 2).mean())) or 1.0)


def _work(training: TrainingSettings, spec: KernelSpec, unit: LabelUnit, biases: bool) -> Work:
    """Kernels and step sizes; without biases nothing but the factors moves."""
    work = work_of(training, "regression", spec, unit)
    return work if biases else replace(work, step=replace(work.step, learning_rate=0.0))


def _entries(
    shape: tuple[int, int], rows: NDArray[np.int64], columns: NDArray[np.int64], labels: NDArray[np.float32]
) -> HashedRows:
    """Observed entries as rows of a machine: the feature of column j comes after those of all rows."""
    indices = np.stack([rows, shape[0] + columns], axis=1).astype(np.uint32).reshape(-1)
    indptr = np.arange(len(labels) + 1, dtype=np.int64) * 2
    return HashedRows(indptr, indices, np.zeros(0, np.uint16), _NO_FLOATS, labels, _NO_FLOATS)


def _executor(recipe: Recipe, entries: HashedRows, vocabulary: Vocabulary, client: Any) -> FitExecutor:
    n_replicas = recipe.work.n_replicas
    if entries.n_rows < n_replicas:
        raise SettingsError(f"n_replicas = {n_replicas} for {entries.n_rows} observed entries: expected one each")
    parts = deal(entries.n_rows, n_replicas, recipe.n_rounds, recipe.seed)
    if n_replicas == 1 and client is None:
        return LocalExecutor([[whole_partition(take_rows(entries, part), vocabulary, None) for part in parts[0]]])
    lookup = RowLookup(vocabulary)
    replicas: list[list[SparsePartition]] = [
        [build_partition(take_rows(entries, part), vocabulary, lookup) for part in replica] for replica in parts
    ]
    if client is None:
        return LocalExecutor(replicas)
    from dfm.distributed import executor  # loads Dask

    watch = executor.watch_of(client)
    return executor.FitExecutor(watch, executor.scatter_replicas(watch, replicas))


def _result(done: Fit, shape: tuple[int, int], unit: LabelUnit) -> Factorization:
    """The factors in the unit of D: a product of pairs takes sqrt(scale) each."""
    table, scale = done.table, np.float32(unit.scale)
    factors = table.factor_weights * np.sqrt(scale)
    linear = table.linear_weights * scale
    return Factorization(
        factors[: shape[0]].copy(),
        factors[shape[0] :].T.copy(),
        float(table.bias_value) * unit.scale + unit.mean,
        linear[: shape[0]].copy(),
        linear[shape[0] :].copy(),
        list(done.history),
    )
