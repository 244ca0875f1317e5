"""The contract of kernel backends, and the records that go in and out.

A backend is a module with `compile_kernels(spec: KernelSpec) -> Kernels`; the result is cached per process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dfm.errors import SettingsError
from dfm.kernels.families.registry import DEFAULT, family_of
from dfm.kernels.losses import is_paired
from dfm.kernels.optimizers import parameters
from dfm.kernels.records import with_fields_of
from dfm.kernels.tables import Layout, ParameterTable, layout_of

if TYPE_CHECKING:
    from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer


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
    @property
    def fields(self) -> NDArray[np.uint16]:
        """The field of each feature of the table; empty where nobody asks for it."""

    @property
    def ends(self) -> NDArray[np.uint16]:
        """Ends of the entries of each group in each row; empty where they do not stand group by group."""

    @property
    def group_ids(self) -> NDArray[np.uint64]:
        """The group of each row, within which pairs are made; empty where nobody asks for it."""


@dataclass(frozen=True)
class KernelSpec:
    """The compile key of kernels, hashable and picklable.

    loss: a name in `losses.LOSSES`, or what `CustomLoss.of(function)` makes of a user's loss(score, y). optimizer: a
    name in `optimizers.OPTIMIZERS`. loss_parameter: of a loss that has one; None for its default. regularizer: None for
    L2, w² / 2 of each weight, or what `CustomRegularizer.of(function)` makes of a user's regularizer(w), which takes
    the place of w² / 2; a step's l2_linear and l2_factors are the strengths of either. With a factor_dtype of 16 bits
    ("bfloat16", "float16"; GPUs only) V is trained in a copy of that kind. groups, order: as in `Layout`. l2_by_field:
    whether a step's `l2_scales` are read.
    """

    loss: str | CustomLoss
    optimizer: str
    n_factors: int
    loss_parameter: float | None = None
    regularizer: CustomRegularizer | None = None
    factor_dtype: str = "float32"
    family: str = DEFAULT
    groups: tuple[int, ...] = ()
    order: int = 0
    l2_by_field: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", self.order or family_of(self.family).order_of("auto"))

    @property
    def is_paired(self) -> bool:
        """Whether a step is that of a clicked and an unclicked row of one group."""
        return is_paired(self.loss)

    @property
    def layout(self) -> Layout:
        """Layout of the tables that the kernels train."""
        return layout_of(self.optimizer, self.n_factors, self.family, self.groups, self.order)


class Rates(NamedTuple):
    """Step sizes and penalties of one round, float32 each, as kernels take them; own: the optimizer's parameters."""

    learning_rate: np.float32
    factor_learning_rate: np.float32
    l2_linear: np.float32
    l2_factors: np.float32
    own: tuple[np.float32, ...]


@dataclass(frozen=True)
@with_fields_of(parameters(), after="l2_factors")
class Step:
    """Numbers of one round; penalties count per touch (see formulas). `seed` decides the order of row blocks.

    rate_factor: what the replicas and the schedule multiply step sizes with; that of blocks with a rate of their own.
    Behind l2_factors stand the parameters of all optimizers, as their records have them; each reads its own.

    With `n_threads` > 1 threads share the table without locks (Hogwild): faster, but not the same bytes each time. A
    GPU always does so, unless `deterministic`, which walks one row after the other. `device_bytes`: of a GPU's memory
    that rows may take, 0: what there is. `l2_scales`: what l2_linear and l2_factors are multiplied with, of each field;
    empty: nothing.
    """

    learning_rate: float
    factor_learning_rate: float
    l2_linear: float = 0.0
    l2_factors: float = 0.0
    rate_factor: float = 1.0
    seed: int = 0
    n_threads: int = 1
    deterministic: bool = False
    device_bytes: int = 0
    l2_scales: tuple[tuple[float, float], ...] = ()

    if TYPE_CHECKING:

        def __init__(  # what is injected is known by name only when this runs
            self,
            learning_rate: float,
            factor_learning_rate: float,
            l2_linear: float = 0.0,
            l2_factors: float = 0.0,
            **others: Any,
        ) -> None: ...

    def __post_init__(self) -> None:
        for own in parameters():
            if not own.allows(getattr(self, own.name)):
                raise SettingsError(f"{own.name} = {getattr(self, own.name)}; it must be {own.legal}")
        for field in fields(self):
            value, least = getattr(self, field.name), 1 if field.name == "n_threads" else 0
            if field.name != "l2_scales" and not least <= value < float("inf"):
                raise SettingsError(f"{field.name} = {value}; it must be finite and at least {least}")
        if not all(0 <= scale < float("inf") for pair in self.l2_scales for scale in pair):
            raise SettingsError(f"l2_scales = {self.l2_scales}; all must be finite and at least 0")


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
    """The rows that a round saw. `loss` is the weighted sum over rows, each before its own update (nats, for log loss);
    of a loss of pairs, `weight` and `loss` are those of the pairs.

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

    `run_round(rows, table, step, following)` walks all rows once, in seeded block order, and changes `table` in place;
    with a loss of pairs each clicked row beside an unclicked one of its group (see `dfm.kernels.pairs`).
    `scores(rows, table)` gives float32[n_rows] logits; tables without optimizer state are legal there.
    """

    spec: KernelSpec
    run_round: RunRound
    scores: Callable[[RowsLike, ParameterTable], NDArray[np.float32]]


_DTYPES = {
    "indptr": np.int64,
    "indices": np.uint32,
    "values": np.float32,
    "labels": np.float32,
    "weights": np.float32,
    "fields": np.uint16,
    "ends": np.uint16,
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


def check_fields(rows: RowsLike, table: ParameterTable) -> None:
    """ValueError where a family needs the fields of a table's features, and they are not there or out of range."""
    family, groups = family_of(table.layout.family), table.layout.groups
    _check_ends(rows, table.layout.n_groups)
    if not family.knows_fields or (family.has_groups and not groups):
        return
    n_fields = len(groups) if family.has_groups else table.n_fields
    if len(rows.fields) != table.n_features or int(rows.fields.max(initial=0)) >= n_fields:
        raise ValueError(
            f"{len(rows.fields)} fields, up to {int(rows.fields.max(initial=0))}, for {table.n_features} features of "
            f"{n_fields} fields; pass rows that know the field of each feature of the table"
        )


def _check_ends(rows: RowsLike, n_groups: int) -> None:
    if not rows.ends.size or n_groups == 1:
        return
    lengths = np.diff(rows.indptr)
    fits = len(rows.ends) == len(lengths) * n_groups
    ends = rows.ends.reshape(-1, n_groups) if fits else rows.ends[:0].reshape(0, n_groups)
    if not fits or np.any(ends[:, -1] != lengths) or np.any(ends[:, 1:] < ends[:, :-1]):
        raise ValueError(f"the ends of groups are not those of {n_groups} groups in these rows; build them anew")


def check_layout(table: ParameterTable, spec: KernelSpec, with_state: bool) -> None:
    """ValueError where a table's records do not fit the kernels."""
    ours, theirs = table.layout, spec.layout
    if ours.stateless != theirs.stateless or (with_state and ours != theirs):
        raise ValueError(f"a table of {table.layout} does not fit kernels of {spec}")


def check_table(table: ParameterTable, spec: KernelSpec, with_state: bool) -> None:
    """TypeError or ValueError where a table does not fit the kernels."""
    check_layout(table, spec, with_state)
    layout = table.layout
    for block in layout.blocks:
        array = table[block.name]
        if array.dtype != np.float32 or not array.flags.c_contiguous or not array.flags.aligned:
            raise TypeError(f"table.{block.name} is {array.dtype}; pass a contiguous, aligned float32 array")
        if with_state and not array.flags.writeable:
            raise ValueError(f"table.{block.name} is read-only; a round trains in place, pass table.copy()")
    shapes = {block.name: table[block.name].shape for block in layout.blocks}
    if shapes != layout.shapes(table.n_features, table.n_factored, table.n_fields) or (
        table.n_factored > table.n_features
    ):
        raise ValueError(f"the shapes of a table do not fit its {layout}")
