"""The parameter table: arrays by block, rows of float32 records of parameters and their optimizer state.

Rows are features of the vocabulary, most frequent first; only the leading ones own factors. Linear records and factor
records live in two arrays: a rare feature then costs a few bytes, and the weights of hot features share cache lines.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.kernels.blocks import LABELS, MAX_FACTORS, MAX_ROW_FACTORS, RANDOM, Block
from dfm.kernels.families.registry import DEFAULT, family_of
from dfm.kernels.optimizers import OPTIMIZERS, STATELESS
from dfm.kernels.optimizers.record import Optimizer
from dfm.storage.arrays import read_only
from dfm.storage.transfers import checked_on_its_way

Floats = NDArray[np.float32]

CACHE_LINE = 64


@dataclass(frozen=True)
class Layout:
    """A family's blocks with the columns that an optimizer wants. That of STATELESS has none: finished models have it.

    A record of one number is [w, state...], one of a vector [V padded with zeros to `lanes`, state of the same shape if
    any]: as many numbers as the optimizer's record says. What it keeps once for a vector, the number record of the same
    feature holds.

    groups: the group of each field, where the family has a vector of n_factors for each group; they lie in V one after
    the other. Empty: one group.

    order: how many features meet, where the family has orders, which may have several vectors of n_factors for it; 0
    stands for the family's default, and is the order of families that have none.
    """

    optimizer: str
    n_factors: int
    family: str = DEFAULT
    groups: tuple[int, ...] = ()
    order: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer = {self.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
        if not 0 <= self.n_factors <= self.most_factors:
            raise ValueError(f"n_factors = {self.n_factors}; it must lie in 0 … {self.most_factors}")
        family = family_of(self.family)
        object.__setattr__(self, "order", self.order or family.order_of("auto"))
        if self.order not in (family.orders or (0,)):
            raise ValueError(f'order = {self.order}; family = "{self.family}" has {family.orders or "none"}')
        if self.groups and not family.has_groups:
            raise ValueError(f'groups = {self.groups}; family = "{self.family}" has none')
        if {*self.groups} != {*range(self.n_groups)} and self.groups:
            raise ValueError(f"groups = {self.groups}; they must be numbered from 0 without gaps")
        if self.row_factors > MAX_ROW_FACTORS:
            raise ValueError(
                f"{len(self.degrees)} vectors of {self.n_factors} factors; a feature has {MAX_ROW_FACTORS} numbers"
            )

    @property
    def most_factors(self) -> int:
        """Numbers that a vector may have: more where nothing is trained, for a finished model may be a mean of many."""
        return MAX_ROW_FACTORS if self.optimizer == STATELESS else MAX_FACTORS

    @property
    def n_groups(self) -> int:
        """Groups of fields, at least 1."""
        return 1 + max(self.groups, default=0)

    @property
    def row_factors(self) -> int:
        """Numbers of V of a feature."""
        return self.n_factors * len(self.degrees)

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degrees of each vector of a feature, in their order in V: see `Family`."""
        return family_of(self.family).degrees(self.order) * self.n_groups

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The family's blocks."""
        return _blocks_of(self.family, self.row_factors)

    def block(self, name: str) -> Block:
        """The block of that name."""
        return next(block for block in self.blocks if block.name == name)

    @property
    def shared(self) -> tuple[Block, ...]:
        """Blocks whose rows belong to no feature."""
        return tuple(block for block in self.blocks if block.is_shared)

    @property
    def own(self) -> tuple[Block, ...]:
        """Blocks that the family alone has: shared ones of no linear weights."""
        return tuple(block for block in self.shared if not block.is_linear)

    @property
    def touched(self) -> tuple[Block, ...]:
        """Blocks whose rows belong to features: numbers, then vectors."""
        return tuple(sorted((block for block in self.blocks if not block.is_shared), key=lambda b: b.is_vector))

    @property
    def carrier(self) -> Block:
        """The block of numbers whose records also hold what the optimizer keeps once for a feature's vector."""
        return self.touched[0]

    @property
    def rule(self) -> Optimizer:
        """The record of the optimizer."""
        return OPTIMIZERS[self.optimizer]

    def rule_of(self, block: Block) -> Optimizer:
        """The record of the optimizer that steps a block."""
        lone = block.is_shared and not block.is_linear
        return (self.rule.alone or self.rule) if lone else self.rule

    def n_states(self, block: Block) -> int:
        """Numbers of state per number."""
        return self.rule.factor_state if block.is_vector else self.rule_of(block).linear_state

    def width(self, block: Block) -> int:
        """float32 columns of a block's records."""
        return block.lanes * (1 + self.n_states(block))

    def shape(self, block: Block, n_features: int, n_factored: int, n_fields: int) -> tuple[int, ...]:
        """Shape of a block's array in a table of so many features, the first of which own factors, and of fields."""
        width = self.width(block)
        return (width,) if block.rows == "model" else (block.n_rows(n_features, n_factored, n_fields), width)

    def shapes(self, n_features: int, n_factored: int, n_fields: int = 0) -> dict[str, tuple[int, ...]]:
        """Shapes of all arrays, by block."""
        return {block.name: self.shape(block, n_features, n_factored, n_fields) for block in self.blocks}

    def n_numbers(self, n_features: int, n_factored: int, n_fields: int = 0) -> int:
        """float32 numbers of a table."""
        return sum(math.prod(shape) for shape in self.shapes(n_features, n_factored, n_fields).values())

    @property
    def lanes(self) -> int:
        """Columns of a factor record that hold V."""
        return self.block("factors").lanes

    @property
    def linear_width(self) -> int:
        """float32 columns of a linear record."""
        return self.width(self.carrier)

    @property
    def factor_width(self) -> int:
        """float32 columns of a factor record."""
        return self.width(self.block("factors"))

    @property
    def stateless(self) -> Layout:
        """The same model without optimizer state."""
        return layout_of(STATELESS, self.n_factors, self.family, self.groups, self.order)


@functools.lru_cache(maxsize=1024)
def layout_of(
    optimizer: str, n_factors: int, family: str = DEFAULT, groups: tuple[int, ...] = (), order: int = 0
) -> Layout:
    """The layout of these, checked once: scoring a row asks for it several times."""
    return Layout(optimizer, n_factors, family, groups, order)


@functools.cache
def _blocks_of(family: str, n_factors: int) -> tuple[Block, ...]:
    return family_of(family).blocks(n_factors)


@dataclass(frozen=True)
class InitialValues:
    """Numbers that a table holds before training: bias, accumulators, factors uniform with mean 0 and this deviation.

    higher_stdev: the least of vectors whose terms have more features than two (see `Family.degrees`), which near 0 are
    on a saddle.

    An optimizer's record says which of its state starts at `initial_accumulator`; the rest starts at 0. So does a bias
    that is made of state.
    """

    seed: int
    init_stdev: float = 0.01
    initial_accumulator: float = 1.0
    bias: float = 0.0
    higher_stdev: float = 0.0


@checked_on_its_way("parameters")
@dataclass(frozen=True)
class ParameterTable:
    """arrays: of each block, float32[n_rows, width], or [width] where the model has one row; see `Layout`.

    Rows are C-contiguous, arrays start on a cache line. Every family has the blocks `bias` float32[linear_width],
    `linear` float32[n_features, linear_width] and `factors` float32[n_factored, factor_width]; feature j owns factors
    if j < n_factored.
    """

    layout: Layout
    arrays: Mapping[str, Floats]

    def __getitem__(self, name: str) -> Floats:
        return self.arrays[name]

    @property
    def bias(self) -> Floats:
        """Record of w0."""
        return self["bias"]

    @property
    def linear(self) -> Floats:
        """Records of w."""
        return self["linear"]

    @property
    def factors(self) -> Floats:
        """Records of V."""
        return self["factors"]

    @property
    def n_features(self) -> int:
        """Rows of blocks that have one per feature."""
        return len(self.linear)

    @property
    def n_factored(self) -> int:
        """Rows of blocks that have one per feature with factors."""
        return len(self.factors)

    @property
    def n_fields(self) -> int:
        """Fields that its shared rows are of; 0 where none are."""
        return max((block.n_fields(len(self[block.name])) for block in self.layout.shared), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(self[block.name].nbytes for block in self.layout.blocks)

    @property
    def bias_value(self) -> np.float32:
        """w0."""
        return self.bias[0]

    @property
    def linear_weights(self) -> Floats:
        """View float32[n_features] of w."""
        return self.values(self.layout.block("linear"))

    @property
    def factor_weights(self) -> Floats:
        """View float32[n_factored, row_factors] of V, without padding."""
        return self.values(self.layout.block("factors"))

    def values(self, block: Block) -> Floats:
        """View of a block's numbers, without padding and state: float32[n_rows], of vectors float32[n_rows, width]."""
        array = self[block.name]
        if block.is_vector:
            return array[:, : block.width]
        return array[:1] if array.ndim == 1 else array[:, 0]

    def copy(self) -> ParameterTable:
        """An aligned, writable copy. Training works in place, and a table received from elsewhere is shared."""
        result = _any_contents(self.layout, {block.name: self[block.name].shape for block in self.layout.blocks})
        for name, target in result.arrays.items():
            target[...] = self[name]
        return result

    def without_state(self) -> ParameterTable:
        """A compact copy for scoring: the numbers of each block only."""
        return join([self])


def aligned_zeros(shape: tuple[int, ...]) -> Floats:
    """float32 zeros that start on a cache line. NumPy allocates, since it asks for huge pages above 4 MB."""
    return _on_cache_line(np.zeros(math.prod(shape) + CACHE_LINE // 4, np.float32), shape)


def aligned_room(shape: tuple[int, ...]) -> Floats:
    """As `aligned_zeros`, but with any contents: for what is overwritten as a whole."""
    return _on_cache_line(np.empty(math.prod(shape) + CACHE_LINE // 4, np.float32), shape)


def _on_cache_line(room: Floats, shape: tuple[int, ...]) -> Floats:
    start = (-room.ctypes.data % CACHE_LINE) // 4
    return room[start : start + math.prod(shape)].reshape(shape)


def _any_contents(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> ParameterTable:
    return ParameterTable(layout, {name: aligned_room(shape) for name, shape in shapes.items()})


def allocate(layout: Layout, n_features: int, n_factored: int, n_fields: int = 0) -> ParameterTable:
    """A table of zeros. A model without factors has none for any feature."""
    shapes = layout.shapes(n_features, n_factored, n_fields)
    return ParameterTable(layout, {name: aligned_zeros(shape) for name, shape in shapes.items()})


def initialise(
    layout: Layout, ids: NDArray[np.uint32], n_factored: int, initial: InitialValues, n_fields: int = 0
) -> ParameterTable:
    """Table of the features with hashed ids uint32[n_features], of which the first `n_factored` own factors.

    Factor f of a feature depends on (seed, id, f) alone: every replica, block and machine starts from the same bytes.
    """
    table = allocate(layout, len(ids), n_factored, n_fields)
    for block in layout.blocks:
        array, rule = table[block.name], layout.rule_of(block)
        if rule.factors_start if block.is_vector else rule.linear_starts:
            array[..., block.lanes :] = initial.initial_accumulator * block.accumulator
        if block.start == RANDOM:
            _fill(array, layout, np.ascontiguousarray(ids[: len(array)], np.uint32), initial)
        elif not (block.is_linear and rule.derives_weights):
            array[..., 0] = initial.bias if block.start == LABELS else block.start
    return table


def _fill(array: Floats, layout: Layout, owners: NDArray[np.uint32], initial: InitialValues) -> None:
    """Random numbers of features, in place."""
    of_pairs, of_more = initial.init_stdev, max(initial.init_stdev, initial.higher_stdev)
    deviations = [of_pairs if degree == 2 else of_more for degree in layout.degrees]
    # A uniform variable on [-a, a] has deviation a / sqrt(3).
    half_widths = np.repeat([np.float32(each * 3.0**0.5) for each in deviations], layout.n_factors)
    with np.errstate(over="ignore"):  # matters where NUMBA_DISABLE_JIT leaves the wrapping products to NumPy
        _fill_factors(array, owners, np.uint64(initial.seed), half_widths)


@compiled
def mixed(state):  # type: ignore[no-untyped-def]
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): uint64 to well-mixed uint64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


_STEP = np.uint64(0x9E3779B97F4A7C15)


@compiled
def _fill_factors(factors, ids, seed, half_widths):  # type: ignore[no-untyped-def]
    """Writes V of every row: odd multiples of 2^-23 in (-1, 1), exact in float32, times the half width of each."""
    for row in range(factors.shape[0]):
        stream = mixed(mixed(seed + _STEP) + np.uint64(ids[row]) * _STEP)
        for factor in range(half_widths.size):
            draw = np.int64(mixed(stream + np.uint64(factor + 1) * _STEP) >> np.uint64(41))
            factors[row, factor] = np.float32(2 * draw + 1 - (1 << 23)) * np.float32(2.0**-23) * half_widths[factor]


def of_width(make: Callable[[int], Any]) -> Callable[[int], Any]:
    """Kernels by the width of the records that they walk: make(2) for two columns, else make(0), which asks the array.

    Most rows of most models are a weight and its accumulator, and a loop over two columns costs more than they do,
    unless the compiler knows that there are two.
    """
    made = functools.cache(make)
    return lambda width: made(2 if width == 2 else 0)


@of_width
def gather_rows(width: int) -> Any:
    """gather(source, rows, first_row, target): copies source[rows - first_row] into target.

    source, target float32[:, width]; rows uint32[len(target)].
    """

    @compiled
    def gather(source, rows, first_row, target):  # type: ignore[no-untyped-def]
        n_columns = width if width else target.shape[1]
        for position in range(target.shape[0]):
            row = np.intp(rows[position]) - first_row
            for column in range(n_columns):
                target[position, column] = source[row, column]

    return gather


@of_width
def _scatter_rows(width: int) -> Any:
    """scatter(source, rows, target): copies source into target[rows], float32[:, width]; rows uint32[len(source)]."""

    @compiled
    def scatter(source, rows, target):  # type: ignore[no-untyped-def]
        n_columns = width if width else target.shape[1]
        for position in range(source.shape[0]):
            row = np.intp(rows[position])
            for column in range(n_columns):
                target[row, column] = source[position, column]

    return scatter


def first_at(features: NDArray[np.uint32], rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.intp]:
    """The first place in ascending features at or behind each of some rows of the table.

    NumPy would turn all features into the type that Python's integers have, to look up two of them.
    """
    return np.searchsorted(features, np.minimum(rows, _LAST).astype(np.uint32))


_LAST = np.iinfo(np.uint32).max
"""Behind the last row of any table."""


@dataclass(frozen=True)
class PullPlan:
    """The places of a pull's rows. starts, factor_starts: rows at which the parts of a table begin, with their ends;
    n_features, n_factored: rows of the local table.
    """

    starts: list[int]
    factor_starts: list[int]
    n_features: int
    n_factored: int

    def starts_of(self, block: Block) -> list[int]:
        """Rows at which the parts begin, of a block."""
        return self.factor_starts if block.is_vector else self.starts

    def n_rows(self, block: Block) -> int:
        """Number of a block's rows in the local table."""
        return self.n_factored if block.is_vector else self.n_features


def pull_plan(parts: Sequence[ParameterTable], features: NDArray[np.uint32], n_factored: int | None) -> PullPlan:
    """For `pull`: where the parts' rows begin, and how many features own factors."""
    starts = [0, *itertools.accumulate(part.n_features for part in parts)]
    factor_starts = [0, *itertools.accumulate(part.n_factored for part in parts)]
    if len(features) and int(features[-1]) >= starts[-1]:
        raise IndexError(f"feature {int(features[-1])} is beyond the table's {starts[-1]} rows")
    owning = int(first_at(features, factor_starts[-1:])[0]) if n_factored is None else n_factored
    if owning and int(features[owning - 1]) >= factor_starts[-1] and parts[0].layout.n_factors:
        raise IndexError(f"feature {int(features[owning - 1])} is beyond the {factor_starts[-1]} rows that own factors")
    return PullPlan(starts, factor_starts, len(features), owning if parts[0].layout.n_factors else 0)


def local_shapes(part: ParameterTable, plan: PullPlan) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a local table, which has all shared rows."""
    layout = part.layout
    return {
        block.name: part[block.name].shape if block.is_shared else (plan.n_rows(block), layout.width(block))
        for block in layout.blocks
    }


def pull(
    parts: Sequence[ParameterTable],
    features: NDArray[np.uint32],
    n_factored: int | None = None,
    room: Mapping[str, Floats] | None = None,
) -> ParameterTable:
    """Local table of the touched features, uint32[n] ascending rows of the table that the parts make up in order.

    The first `n_factored` of the features own factors; None counts them from the parts. room: arrays for some blocks of
    the local table, aligned as those that it makes.
    """
    plan, layout = pull_plan(parts, features, n_factored), parts[0].layout
    shapes, given = local_shapes(parts[0], plan), room or {}
    # Every row is copied from one of the parts.
    local = ParameterTable(layout, {n: given[n] if n in given else aligned_room(shapes[n]) for n in shapes})
    for block in layout.shared:
        local[block.name][...] = parts[0][block.name]
    for block in layout.touched:
        rows = features[: plan.n_rows(block)]
        for part, start in zip(parts, plan.starts_of(block), strict=False):
            _pull_range(part[block.name], rows, start, local[block.name])
    return local


def _pull_range(source: Floats, features: NDArray[np.uint32], first_row: int, target: Floats) -> None:
    """Fills the part of `target` whose features lie in [first_row, first_row + len(source)), in place."""
    start, stop = first_at(features, [first_row, first_row + len(source)])
    if stop > start:
        gather_rows(source.shape[1])(read_only(source), read_only(features[start:stop]), first_row, target[start:stop])


def put(local: ParameterTable, rows: NDArray[np.uint32], table: ParameterTable) -> None:
    """Write a table into the rows, uint32[n], of a larger one that `pull` took it from, or that it grew into, in place.

    The features of the smaller table that own factors are to own some in the larger one.
    """
    for block in local.layout.shared:
        table[block.name][...] = local[block.name]
    for block in local.layout.touched:
        source, target = local[block.name], table[block.name]
        _scatter_rows(source.shape[1])(source, read_only(rows[: len(source)]), target)


def join(parts: Sequence[ParameterTable]) -> ParameterTable:
    """The table that parts of its rows make up in order, without optimizer state."""
    layout, arrays = parts[0].layout.stateless, {}
    for block in layout.blocks:
        sources = [part[block.name][..., : block.lanes] for part in (parts[:1] if block.is_shared else parts)]
        whole = aligned_room((sum(map(len, sources)), *sources[0].shape[1:]))
        arrays[block.name] = np.concatenate(sources, out=whole)
    return ParameterTable(layout, arrays)
