"""What every kernel backend offers, and the records that go in and out.

A backend is a module with `compile_kernels(spec: KernelSpec) -> Kernels`; the result is cached per process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dfm.errors import SettingsError
from dfm.kernels.tables import ParameterTable

if TYPE_CHECKING:
    from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
    from dfm.kernels.losses import Loss


class RowsLike(Protocol):
    """Rows to walk: a SparsePartition, or anything with these attributes (see there for dtypes and shapes)."""

    @property
    def indptr(self) -> NDArray[np.int64]: ...
    @property
    def indices(self) -> NDArray[np.uint32]: ...
    @property
    def values(self) -> NDArray[np.float32]: ...
    @property
    def labels(self) -> NDArray[np.float32]: ...
    @property
    def weights(self) -> NDArray[np.float32]: ...
    @property
    def n_implicit(self) -> int: ...


@dataclass(frozen=True)
class KernelSpec:
    """What kernels are compiled for: the compile key, hashable and picklable.

    loss: a name in `losses.LOSSES`, or what `losses.CustomLoss.of(function)` makes of a user's loss(score, y).
    optimizer: a name in OPTIMIZERS. loss_parameter: the level of "quantile", the width of "huber"; None for their
    defaults, and for losses that have none. regularizer: None for L2, w² / 2 of each weight, or what
    `losses.CustomRegularizer.of(function)` makes of a user's regularizer(w), which takes the place of w² / 2; a step's
    l2_linear and l2_factors are the strengths of either. With a factor_dtype of 16 bits ("bfloat16", "float16"; GPUs
    only) V is trained in a copy of that kind.
    """

    loss: str | Loss | CustomLoss
    optimizer: str
    n_factors: int
    loss_parameter: float | None = None
    regularizer: CustomRegularizer | None = None
    factor_dtype: str = "float32"


@dataclass(frozen=True)
class Step:
    """Numbers of one round; penalties count per touch (see optimizers). `seed` decides the order of row blocks.

    With `n_threads` > 1 threads share the table without locks (Hogwild): faster, but not the same bytes each time. A
    GPU always does so, unless `deterministic`, which walks one row after the other. `device_bytes`: of a GPU's memory
    that rows may take, 0: what there is.
    """

    learning_rate: float
    factor_learning_rate: float
    l2_linear: float = 0.0
    l2_factors: float = 0.0
    l1_linear: float = 0.0
    ftrl_beta: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    seed: int = 0
    n_threads: int = 1
    deterministic: bool = False
    device_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("adam_beta1", "adam_beta2"):
            if getattr(self, name) >= 1.0:
                raise SettingsError(f"{name} = {getattr(self, name)}; it must be below 1: the average would never move")
        for field in fields(self):
            value, least = getattr(self, field.name), 1 if field.name == "n_threads" else 0
            if not least <= value < float("inf"):
                raise SettingsError(f"{field.name} = {value}; it must be finite and at least {least}")


@dataclass(frozen=True)
class Following:
    """The rows that are walked after these, and the seed of that walk: a GPU copies them meanwhile."""

    rows: RowsLike
    seed: int


class RunRound(Protocol):
    """See `Kernels`."""

    def __call__(
        self, rows: RowsLike, table: ParameterTable, step: Step, following: Following | None = None
    ) -> RoundTally: ...


@dataclass(frozen=True)
class RoundTally:
    """What a round saw. `loss` is the weighted sum over rows, each before its own update (nats, for log loss).

    Not `is_finite`: a loss was infinite or not a number; the walk stopped there and the table is of no more use.
    """

    rows: int
    weight: float
    loss: float
    is_finite: bool

    def __add__(self, other: RoundTally) -> RoundTally:
        return RoundTally(
            self.rows + other.rows,
            self.weight + other.weight,
            self.loss + other.loss,
            self.is_finite and other.is_finite,
        )

    @property
    def mean_loss(self) -> float:
        """Loss per unit of weight; nan without rows."""
        return self.loss / self.weight if self.weight else float("nan")


@dataclass(frozen=True)
class Kernels:
    """Compiled functions of one spec.

    `run_round(rows, table, step, following)` walks all rows once, in seeded block order, and changes `table` in place.
    `scores(rows, table)` gives float32[n_rows] logits; tables without optimizer state are legal there.
    """

    spec: KernelSpec
    run_round: RunRound
    scores: Callable[[RowsLike, ParameterTable], NDArray[np.float32]]
    compile_seconds: float


_DTYPES = {
    "indptr": np.int64,
    "indices": np.uint32,
    "values": np.float32,
    "labels": np.float32,
    "weights": np.float32,
}


def check_rows(rows: RowsLike) -> int:
    """The largest index, -1 if there is none. TypeError or ValueError where kernels could not walk the rows safely."""
    for name, dtype in _DTYPES.items():
        array = getattr(rows, name)
        if array.dtype != dtype or array.ndim != 1 or not array.flags.c_contiguous:
            raise TypeError(
                f"{name} is {array.dtype}[{array.ndim} dimensions]; pass a contiguous, "
                f"one-dimensional {np.dtype(dtype).name} array"
            )
    n_rows, n_entries = len(rows.labels), len(rows.indices)
    indptr = rows.indptr
    if len(indptr) != n_rows + 1 or indptr[0] != 0 or indptr[-1] != n_entries:
        raise ValueError(f"indptr must have {n_rows + 1} offsets from 0 to {n_entries}, the number of entries")
    if np.any(indptr[1:] < indptr[:-1]):
        raise ValueError("indptr must not decrease")
    if not 0 <= rows.n_implicit <= n_rows:
        raise ValueError(f"n_implicit = {rows.n_implicit}; it must lie in 0 … {n_rows}")
    expected = n_entries - int(indptr[rows.n_implicit])
    if len(rows.values) != expected:
        raise ValueError(f"{len(rows.values)} values; rows after n_implicit have {expected} entries")
    if len(rows.weights) not in (0, n_rows):
        raise ValueError(f"{len(rows.weights)} weights for {n_rows} rows; pass one each, or none")
    return int(rows.indices.max()) if n_entries else -1


def check_layout(table: ParameterTable, spec: KernelSpec, with_state: bool) -> None:
    """ValueError where a table's records do not fit the kernels."""
    if table.layout.n_factors != spec.n_factors or (with_state and table.layout.optimizer != spec.optimizer):
        raise ValueError(f"a table of {table.layout} does not fit kernels of {spec}")


def check_table(table: ParameterTable, spec: KernelSpec, with_state: bool) -> None:
    """TypeError or ValueError where a table does not fit the kernels."""
    for name in ("bias", "linear", "factors"):
        array = getattr(table, name)
        if array.dtype != np.float32 or not array.flags.c_contiguous or not array.flags.aligned:
            raise TypeError(f"table.{name} is {array.dtype}; pass a contiguous, aligned float32 array")
        if with_state and not array.flags.writeable:
            raise ValueError(f"table.{name} is read-only; a round trains in place, pass table.copy()")
    check_layout(table, spec, with_state)
    layout = table.layout
    if (
        table.bias.shape != (layout.linear_width,)
        or table.linear.shape != (table.n_features, layout.linear_width)
        or table.factors.shape != (table.n_factored, layout.factor_width)
        or table.n_factored > table.n_features
    ):
        raise ValueError(f"the shapes of a table do not fit its {layout}")
