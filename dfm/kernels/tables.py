"""The parameter table: bias, linear weights and factors with their optimizer state, as rows of float32 records.

Rows are features of the vocabulary, most frequent first; only the leading ones own factors. Linear records and factor
records live in two tables: a rare feature then costs a few bytes, and the weights of hot features share cache lines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.storage.arrays import read_only

Floats = NDArray[np.float32]

CACHE_LINE = 64
MAX_FACTORS = 256

LINEAR_STATE = {"sgd": 0, "adagrad": 1, "adagrad-row": 2, "ftrl": 2, "adam": 4}
"""Numbers of state after w, by optimizer: the accumulator; that and the accumulator of the factor row; z and n; both
moments and the weight of the gradients in each."""

FACTOR_STATE = {"sgd": 0, "adagrad": 1, "adagrad-row": 0, "ftrl": 1, "adam": 2}
"""Numbers of state per factor, by optimizer: accumulators, or both moments."""


def padded_lanes(n_factors: int) -> int:
    """Factors rounded up to what a vector register takes: 4, 8, or a multiple of 16."""
    if n_factors <= 0:
        return 0
    if n_factors <= 8:
        return 4 if n_factors <= 4 else 8
    return (n_factors + 15) // 16 * 16


@dataclass(frozen=True)
class Layout:
    """Which columns the records have. The layout of "sgd" has no state: a finished model is stored in it.

    A linear record is [w, state...]: accumulator ("adagrad"), accumulator and the factors' accumulator
    ("adagrad-row"), z and n ("ftrl"), moments m and v and the weights of the gradients in them, c1 and c2 ("adam").
    A factor record is [V padded with zeros to `lanes`, accumulators, or m and then v, of the same shape if any].
    """

    optimizer: str
    n_factors: int

    def __post_init__(self) -> None:
        if self.optimizer not in LINEAR_STATE:
            raise ValueError(f"optimizer = {self.optimizer!r}; choose one of {', '.join(LINEAR_STATE)}")
        if not 0 <= self.n_factors <= MAX_FACTORS:
            raise ValueError(f"n_factors = {self.n_factors}; it must lie in 0 … {MAX_FACTORS}")

    @property
    def lanes(self) -> int:
        """Columns of a factor record that hold V."""
        return padded_lanes(self.n_factors)

    @property
    def linear_width(self) -> int:
        """float32 columns of a linear record."""
        return 1 + LINEAR_STATE[self.optimizer]

    @property
    def factor_width(self) -> int:
        """float32 columns of a factor record."""
        return self.lanes * (1 + FACTOR_STATE[self.optimizer])

    @property
    def stateless(self) -> Layout:
        """The same model without optimizer state."""
        return Layout("sgd", self.n_factors)


@dataclass(frozen=True)
class InitialValues:
    """What a table holds before training: the bias, factors uniform with mean 0 and this deviation, and AdaGrad's
    accumulators.

    FTRL's z and n start at 0, and so does the bias that it makes of them; its `ftrl_beta` has the part of
    `initial_accumulator`. Adam's state starts at 0.
    """

    seed: int
    init_stdev: float = 0.01
    initial_accumulator: float = 1.0
    bias: float = 0.0


@dataclass(frozen=True)
class ParameterTable:
    """bias float32[linear_width]; linear float32[n_features, linear_width]; factors float32[n_factored, factor_width].

    Rows of both tables are C-contiguous; `factors` starts on a cache line. Feature j owns factors if j < n_factored.
    """

    layout: Layout
    bias: Floats
    linear: Floats
    factors: Floats

    @property
    def n_features(self) -> int:
        """Rows of the linear table."""
        return len(self.linear)

    @property
    def n_factored(self) -> int:
        """Rows of the factor table."""
        return len(self.factors)

    @property
    def nbytes(self) -> int:
        """Bytes of all three arrays."""
        return self.bias.nbytes + self.linear.nbytes + self.factors.nbytes

    @property
    def bias_value(self) -> np.float32:
        """w0."""
        return self.bias[0]

    @property
    def linear_weights(self) -> Floats:
        """View float32[n_features] of w."""
        return self.linear[:, 0]

    @property
    def factor_weights(self) -> Floats:
        """View float32[n_factored, n_factors] of V, without padding."""
        return self.factors[:, : self.layout.n_factors]

    def copy(self) -> ParameterTable:
        """An aligned, writable copy. Training works in place, and a table received from elsewhere is shared."""
        result = empty_table(self.layout, self.n_features, self.n_factored)
        for target, source in zip(_arrays(result), _arrays(self), strict=True):
            target[...] = source
        return result

    def without_state(self) -> ParameterTable:
        """A compact copy for scoring: [w] and [V] only."""
        layout = self.layout.stateless
        result = allocate(layout, self.n_features, self.n_factored)
        for target, source in zip(_arrays(result), _arrays(self), strict=True):
            target[...] = source[..., : target.shape[-1]]
        return result


def _arrays(table: ParameterTable) -> tuple[Floats, Floats, Floats]:
    return table.bias, table.linear, table.factors


def aligned_zeros(shape: tuple[int, ...]) -> Floats:
    """float32 zeros that start on a cache line. NumPy allocates, since it asks for huge pages above 4 MB."""
    return _on_cache_line(np.zeros(math.prod(shape) + CACHE_LINE // 4, np.float32), shape)


def aligned_room(shape: tuple[int, ...]) -> Floats:
    """As `aligned_zeros`, but with any contents: for what is overwritten as a whole."""
    return _on_cache_line(np.empty(math.prod(shape) + CACHE_LINE // 4, np.float32), shape)


def _on_cache_line(room: Floats, shape: tuple[int, ...]) -> Floats:
    start = (-room.ctypes.data % CACHE_LINE) // 4
    return room[start : start + math.prod(shape)].reshape(shape)


def empty_table(layout: Layout, n_features: int, n_factored: int) -> ParameterTable:
    """A table with any contents, for what is overwritten as a whole."""
    n_rows = n_factored if layout.n_factors else 0
    return ParameterTable(
        layout,
        aligned_room((layout.linear_width,)),
        aligned_room((n_features, layout.linear_width)),
        aligned_room((n_rows, layout.factor_width)),
    )


def allocate(layout: Layout, n_features: int, n_factored: int) -> ParameterTable:
    """A table of zeros. A model without factors has none for any feature."""
    n_rows = n_factored if layout.n_factors else 0
    return ParameterTable(
        layout,
        aligned_zeros((layout.linear_width,)),
        aligned_zeros((n_features, layout.linear_width)),
        aligned_zeros((n_rows, layout.factor_width)),
    )


def initialise(layout: Layout, ids: NDArray[np.uint32], n_factored: int, initial: InitialValues) -> ParameterTable:
    """Table of the features with hashed ids uint32[n_features], of which the first `n_factored` own factors.

    Factor f of a feature depends on (seed, id, f) alone: every replica, block and machine starts from the same bytes.
    """
    table = allocate(layout, len(ids), n_factored)
    if layout.optimizer != "ftrl":
        table.bias[0] = initial.bias
    if layout.optimizer in ("adagrad", "adagrad-row"):
        table.bias[1:] = initial.initial_accumulator
        table.linear[:, 1:] = initial.initial_accumulator
    if layout.optimizer != "adam":
        table.factors[:, layout.lanes :] = initial.initial_accumulator
    half_width = np.float32(initial.init_stdev * 3.0**0.5)  # a uniform variable on [-a, a] has deviation a / sqrt(3)
    owners = np.ascontiguousarray(ids[:n_factored], np.uint32)
    with np.errstate(over="ignore"):  # matters where NUMBA_DISABLE_JIT leaves the wrapping products to NumPy
        _fill_factors(table.factors, owners, layout.n_factors, np.uint64(initial.seed), half_width)
    return table


@compiled
def _mix(state):  # type: ignore[no-untyped-def]
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): uint64 to well-mixed uint64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


_STEP = np.uint64(0x9E3779B97F4A7C15)


@compiled
def _fill_factors(factors, ids, n_factors, seed, half_width):  # type: ignore[no-untyped-def]
    """Writes V of every row: odd multiples of 2^-23 in (-1, 1), exact in float32, times `half_width`."""
    for row in range(factors.shape[0]):
        stream = _mix(_mix(seed + _STEP) + np.uint64(ids[row]) * _STEP)
        for factor in range(n_factors):
            draw = np.int64(_mix(stream + np.uint64(factor + 1) * _STEP) >> np.uint64(41))
            factors[row, factor] = np.float32(2 * draw + 1 - (1 << 23)) * np.float32(2.0**-23) * half_width


@compiled
def gather_rows(source, rows, first_row, target):  # type: ignore[no-untyped-def]
    """Copies source[rows - first_row] into target. source, target float32[:, width]; rows uint32[len(target)]."""
    if target.shape[1] == 2:  # linear records of most models; a loop over two columns costs more than they do
        for position in range(target.shape[0]):
            row = np.intp(rows[position]) - first_row
            target[position, 0] = source[row, 0]
            target[position, 1] = source[row, 1]
        return
    for position in range(target.shape[0]):
        row = np.intp(rows[position]) - first_row
        for column in range(target.shape[1]):
            target[position, column] = source[row, column]


def pull_plan(
    blocks: Sequence[ParameterTable], features: NDArray[np.uint32], n_factored: int | None
) -> tuple[list[int], list[int], int]:
    """For `pull`: rows at which blocks begin in both tables, with their ends, and how many features own factors."""
    starts = [0, *itertools.accumulate(block.n_features for block in blocks)]
    factor_starts = [0, *itertools.accumulate(block.n_factored for block in blocks)]
    if len(features) and int(features[-1]) >= starts[-1]:
        raise IndexError(f"feature {int(features[-1])} is beyond the table's {starts[-1]} rows")
    owning = int(np.searchsorted(features, factor_starts[-1])) if n_factored is None else n_factored
    if owning and int(features[owning - 1]) >= factor_starts[-1] and blocks[0].layout.n_factors:
        raise IndexError(f"feature {int(features[owning - 1])} is beyond the {factor_starts[-1]} rows that own factors")
    return starts, factor_starts, owning


def pull(
    blocks: Sequence[ParameterTable], features: NDArray[np.uint32], n_factored: int | None = None
) -> ParameterTable:
    """Local table of the touched features, uint32[n] ascending rows of the table that the blocks make up in order.

    The first `n_factored` of the features own factors; None counts them from the blocks.
    """
    starts, factor_starts, owning = pull_plan(blocks, features, n_factored)
    local = empty_table(blocks[0].layout, len(features), owning)  # every row is copied from one of the blocks
    local.bias[:] = blocks[0].bias
    for block, start, factor_start in zip(blocks, starts[:-1], factor_starts[:-1], strict=True):
        _pull_range(block.linear, features, start, local.linear)
        if local.n_factored:
            _pull_range(block.factors, features[:owning], factor_start, local.factors)
    return local


def _pull_range(source: Floats, features: NDArray[np.uint32], first_row: int, target: Floats) -> None:
    """Fills the part of `target` whose features lie in [first_row, first_row + len(source)), in place."""
    start, stop = np.searchsorted(features, [first_row, first_row + len(source)])
    if stop > start:
        gather_rows(read_only(source), read_only(features[start:stop]), first_row, target[start:stop])


def put(local: ParameterTable, rows: NDArray[np.uint32], table: ParameterTable) -> None:
    """Write a local table back into the rows, uint32[n] ascending, of the table that `pull` took it from, in place."""
    table.bias[:] = local.bias
    _scatter_rows(local.linear, rows, table.linear)
    _scatter_rows(local.factors, rows[: local.n_factored], table.factors)


@compiled
def _scatter_rows(source, rows, target):  # type: ignore[no-untyped-def]
    """Copies source into target[rows]. source, target float32[:, width]; rows uint32[len(source)]."""
    for position in range(source.shape[0]):
        row = np.intp(rows[position])
        for column in range(source.shape[1]):
            target[row, column] = source[position, column]
