"""The arithmetic of a walk on a GPU, without a GPU: pieces of rows, grids, how many rows at once, shared memory, bytes.

Rows in flight are rows that all see the same weights. Their steps add up, so a weight that n of them touch moves n
times as far as its gradient justified: from some n on, the walk oscillates and diverges. Accumulators bound
the step, so more rows may be in flight the longer a table has been trained. `calm_rows` is that bound; the decision
record on rows in flight has the log losses within and beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm.errors import ClusterError
from dfm.kernels.contract import KernelSpec, RowsLike, Step
from dfm.kernels.losses import LOSSES, Loss
from dfm.kernels.optimizers import OPTIMIZERS, resolve_optimizer
from dfm.kernels.row_order import BLOCK_ROWS, row_blocks
from dfm.kernels.tables import Layout

WARP = 32
WARPS_PER_BLOCK = 8
PIECE_ROWS = 512 * BLOCK_ROWS
"""Rows that are moved to the device, and evicted from its memory, together."""
SHARED_BYTES = 32 * 1024
"""Shared memory that hot features may take in a block: two blocks fit every GPU from compute capability 7 on."""
HOT_SHARE = 1 / 16
"""Features in more than this share of the rows are summed in shared memory before they are stepped."""
SEEN_SHARE = 1 / 200
"""Share of the rows that a table has seen which may be in flight."""
ROWS_PER_FLUSH = 2
"""Rows of a warp, where as many may be in flight as the device can take."""
_SAMPLE_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Rows [first, last) of a partition; its row blocks int64[n, 2], counted from `first`, in the order of the walk."""

    first: int
    last: int
    blocks: NDArray[np.int64]


def pieces(n_rows: int, n_implicit: int, seed: int) -> list[Piece]:
    """The pieces of a partition in seeded order; up to PIECE_ROWS rows are one, walked in the order of the CPU kernel.

    Neither order depends on what memory there is, so a deterministic walk gives the same bytes with any budget.
    """
    starts = np.arange(0, n_rows, PIECE_ROWS)
    result = []
    for number in row_blocks(len(starts) * BLOCK_ROWS, 0, seed)[:, 0] // BLOCK_ROWS:
        first = int(starts[number])
        last = min(first + PIECE_ROWS, n_rows)
        implicit = min(max(n_implicit - first, 0), last - first)
        result.append(Piece(first, last, row_blocks(last - first, implicit, seed + int(number))))
    return result


@dataclass(frozen=True)
class Facts:
    """Facts of a partition that are learnt once: bounds that were checked, and how its rows share features.

    largest: the largest index, -1 without entries. n_hot: leading features in more than HOT_SHARE of the rows.
    crowding: what the steps of one row add to the score of another, in steps of the bias: 1 + Σ_j p_j² / sqrt(p_j) for
    features in shares p_j of the rows, whose accumulators are p_j times that of the bias. largest_label: of the rows.
    """

    largest: int
    n_hot: int
    crowding: float
    largest_label: float = 1.0


def facts_of(rows: RowsLike, largest: int) -> Facts:
    """Facts of a partition whose arrays were checked; shares are counted in its first million entries."""
    n_rows = int(np.searchsorted(rows.indptr, _SAMPLE_ENTRIES, side="right")) - 1
    n_rows = min(max(n_rows, 1), len(rows.labels))
    largest_label = float(rows.labels.max(initial=0.0))
    if not n_rows or largest < 0:
        return Facts(largest, 0, 1.0, largest_label)
    shares = np.bincount(rows.indices[: rows.indptr[n_rows]], minlength=1) / n_rows
    frequent = np.flatnonzero(shares > HOT_SHARE)
    n_hot = int(frequent[-1]) + 1 if len(frequent) else 0
    return Facts(largest, n_hot, 1.0 + float((shares**1.5).sum()), largest_label)


def hot_width(layout: Layout) -> int:
    """float32 numbers of a hot feature in shared memory (HOT_WIDTH of the kernels)."""
    return 4 + layout.lanes * (1 + (layout.factor_width > layout.lanes))


def shared_bytes(layout: Layout, n_hot: int, warps: int) -> int:
    """Shared memory of a block: the bias' sums, those of hot features, and three float64 per warp."""
    return 4 * (4 + n_hot * hot_width(layout)) + 24 * warps


def most_hot(layout: Layout) -> int:
    """Number of features whose sums fit SHARED_BYTES."""
    return (SHARED_BYTES - shared_bytes(layout, 0, WARPS_PER_BLOCK)) // (4 * hot_width(layout))


@dataclass(frozen=True)
class Grid:
    """The launch of a walk: blocks of `warps` warps; each sums over rows_per_flush rows per warp before it steps."""

    blocks: int
    warps: int
    rows_per_flush: int
    n_hot: int
    shared_bytes: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * self.warps

    @property
    def rows_in_flight(self) -> int:
        """Rows whose steps may not yet be seen by others."""
        return self.blocks * self.warps * self.rows_per_flush


def calm_rows(spec: KernelSpec, step: Step, facts: Facts, bias: Sequence[float], seen: float) -> float:
    """Rows that may be in flight: a share of those `seen` so far, and their steps add up to less than Newton's.

    n rows with slopes s move their score by n × rate × s × crowding, while s changes by at most `curvature` of that; so
    n = 1 / (rate × curvature × crowding), where an accumulator divides the rate: by sqrt(G), or by β + sqrt(n). bias:
    its record in the table; it has the largest accumulator of all, as every row touches it.
    """
    optimizer = resolve_optimizer(spec.optimizer)
    curvature = _record_of(spec).curvature(facts.largest_label)
    rate = max(step.learning_rate, step.factor_learning_rate)
    if optimizer.accumulator is not None:
        damping = getattr(step, optimizer.damping) if optimizer.damping else 0.0
        rate /= max(damping + bias[optimizer.accumulator] ** 0.5, 1e-12)
    return min(seen * SEEN_SHARE, 1.0 / max(rate * curvature * facts.crowding, 1e-12))


def _record_of(spec: KernelSpec) -> Loss:
    """The record of a built-in loss: a user's own has no code for GPUs, and so no rows there."""
    assert isinstance(spec.loss, str)
    return LOSSES[spec.loss]


def growth_per_row(spec: KernelSpec, walked: int, before: Sequence[float], now: Sequence[float]) -> float:
    """Growth of the bias' accumulator by each of `walked` rows; 0.0 where that is not known.

    before, now: the bias' record.
    """
    column = resolve_optimizer(spec.optimizer).accumulator
    return max(now[column] - before[column], 0.0) / walked if column is not None and walked else 0.0


def rows_seen(spec: KernelSpec, walked: int, before: Sequence[float], now: Sequence[float], known: float) -> float:
    """Number of rows that a table has been trained on, told from the size of the bias' accumulator and its growth.

    before, now: the bias' record, `walked` rows apart. known: the growth per row in an earlier walk of these rows, or
    0.0; it serves until some rows have been walked. Without an accumulator only the walked rows are known.
    """
    column = resolve_optimizer(spec.optimizer).accumulator
    if column is None:
        return float(walked)
    growth = growth_per_row(spec, walked, before, now) if walked else known
    if growth > 0:
        return max(float(walked), now[column] / growth)
    return float("inf") if walked else 0.0


def one_by_one(layout: Layout) -> Grid:
    """One block of one warp: rows in the order of the walk, and the same bytes every time."""
    return Grid(1, 1, 1, 0, shared_bytes(layout, 0, 1))


def side_by_side(layout: Layout, facts: Facts, n_blocks: int, most_blocks: int, calm: float) -> Grid:
    """A grid for n_blocks row blocks of which at most `calm` rows are in flight, on a device that runs most_blocks.

    Few rows in flight are better spent on more warps than on rows that wait to be flushed, and do not meet so often
    that sums of hot features would be worth their flushes.
    """
    calm = min(calm, 1e12)
    n_hot = min(facts.n_hot, most_hot(layout)) if calm >= most_blocks * WARPS_PER_BLOCK / 2 else 0
    turns = ROWS_PER_FLUSH if calm >= most_blocks * WARPS_PER_BLOCK * ROWS_PER_FLUSH else 1
    warps = int(min(max(calm, 1), WARPS_PER_BLOCK))
    blocks = int(min(max(calm // (warps * turns), 1), most_blocks, max(n_blocks, 1)))
    return Grid(blocks, warps, turns, n_hot, shared_bytes(layout, n_hot, warps))


def flat(n_items: int, most_blocks: int) -> Grid:
    """A grid for items that do not meet: rows to score (a warp each), or numbers to convert."""
    blocks = min(max(-(-n_items // WARPS_PER_BLOCK), 1), 8 * most_blocks)
    return Grid(blocks, WARPS_PER_BLOCK, 1, 0, 0)


def piece_bytes(rows: RowsLike, first: int, last: int) -> int:
    """Device memory that rows [first, last) take."""
    n_entries = int(rows.indptr[last] - rows.indptr[first])
    explicit = int(rows.indptr[last] - rows.indptr[max(first, min(last, rows.n_implicit))])
    n_rows = last - first
    return 8 * (n_rows + 1) + 4 * n_entries + 4 * explicit + 4 * n_rows * (2 if len(rows.weights) else 1)


def table_bytes(layout: Layout, n_features: int, n_factored: int, factor_dtype: str) -> int:
    """Device memory that a table takes, with its 16-bit copy of V if it has one."""
    halves = 0 if factor_dtype == "float32" else 2 * n_factored * layout.lanes
    return 4 * layout.n_numbers(n_features, n_factored) + halves


_SMALLEST = min((one for one in OPTIMIZERS.values() if one.has_row_state), key=lambda one: one.linear_state).name
FEWER_BYTES = (
    f'Fewer bytes per feature: a smaller model.n_factors, or training.optimizer = "{_SMALLEST}"; fewer features: a '
    "larger model.min_count_factors"
)
"""Advice where parameters do not fit a device."""


def row_budget(wanted: int, free: int, table: int, reserve: int, largest_piece: int, device: str) -> int:
    """Bytes that rows may take on the device. ClusterError where a round cannot run at all.

    wanted: what the settings say, 0: nine tenths of what the table leaves, and what will be wanted beside it (reserve).
    Two pieces must fit: one that is trained and the next one on its way.
    """
    least = 2 * largest_piece
    if table + least > free:
        raise ClusterError(
            f"{device} has {free:,} bytes of memory free, and this round needs {table + least:,}: {table:,} for the "
            f"parameters that its rows touch, {least:,} for two pieces of rows. {FEWER_BYTES}, or a "
            "larger training.n_replicas, so that a replica touches fewer of them"
        )
    budget = wanted or max((free - table - reserve) * 9 // 10, least)
    if budget < least:
        raise ClusterError(
            f"cluster.gpu_memory allows rows {budget:,} bytes of {device}, and streaming them needs {least:,} for two "
            f"pieces; raise it to that, or leave it out"
        )
    return min(budget, free - table)
