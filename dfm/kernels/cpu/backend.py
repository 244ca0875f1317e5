"""The CPU backend: checks what comes in, cuts a round into row blocks, and runs the compiled walks of `row_passes`."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from dfm.compilation import keep_on_disk
from dfm.errors import SettingsError
from dfm.kernels.contract import (
    Following,
    Kernels,
    KernelSpec,
    RoundTally,
    RowsLike,
    Step,
    check_fields,
    check_rows,
    check_table,
)
from dfm.kernels.cpu.row_passes import Rows, Scratch, Table, make_score_all, make_walk
from dfm.kernels.cpu.shape import Shape
from dfm.kernels.cpu.step_passes import WIDTH
from dfm.kernels.families.registry import check_pairs, family_of
from dfm.kernels.losses import DEFAULT_LOSSES, resolve_loss
from dfm.kernels.optimizers import DEFAULT_OPTIMIZER, OPTIMIZERS, resolve_optimizer
from dfm.kernels.pairs import pair_rows, sampled_pairs
from dfm.kernels.rates import all_rates, check_penalties
from dfm.kernels.row_order import BLOCK_ROWS, row_blocks
from dfm.kernels.tables import Layout, ParameterTable, aligned_zeros, allocate
from dfm.storage.arrays import read_only

_WIDEST = 1 + max(optimizer.linear_state for optimizer in OPTIMIZERS.values())
"""float32 columns of the longest linear record."""
_NOTHING = np.zeros((0, 0), np.float32)
_NO_SCALES = np.zeros((0, 2), np.float32)


def rows_record(rows: RowsLike) -> Rows:
    """The arrays of a partition, as kernels take them."""
    return Rows(
        read_only(rows.indptr),
        read_only(rows.indices),
        read_only(rows.values),
        read_only(rows.labels),
        read_only(rows.weights),
        read_only(rows.fields),
        read_only(rows.ends),
        int(rows.n_implicit),
    )


def table_record(table: ParameterTable) -> Table:
    """The arrays of a table, as kernels take them."""
    unfold = family_of(table.layout.family).unfold
    own = _NOTHING if unfold is None else unfold(table)
    return Table(table.bias, table.linear, table.factors, own, _NO_SCALES)


def new_scratch(longest_row: int, table: ParameterTable, seed: int | None = None) -> Scratch:
    """Working memory for rows of up to that many entries, of a walk with that seed, or of scoring."""
    capacity = (longest_row + WIDTH - 1) // WIDTH * WIDTH + WIDTH
    layout = table.layout
    family, grouped = family_of(layout.family), capacity if layout.n_groups > 1 else 0
    return Scratch(
        aligned_zeros((_WIDEST * capacity,)),
        aligned_zeros((capacity,)),
        np.zeros(capacity, np.int64),
        aligned_zeros((capacity,)),
        family.sums(capacity, layout),
        family.room(capacity, layout, table.n_fields, seed) if family.room is not None and layout.lanes else (),
        aligned_zeros((BLOCK_ROWS,)),
        np.zeros(layout.n_groups + 1, np.int64),
        np.array(layout.groups, np.uint16),
        np.zeros(grouped, np.int64),
        aligned_zeros((capacity,)),
        aligned_zeros((capacity,)),
    )


def _check_door(rows: RowsLike, table: ParameterTable, spec: KernelSpec, with_state: bool) -> int:
    """Number of entries of the longest row; raises where kernels could read or write outside of the arrays."""
    check_table(table, spec, with_state)
    largest = check_rows(rows)
    if largest >= table.n_features:
        raise IndexError(f"index {largest} is beyond the table's {table.n_features} features")
    check_fields(rows, table)
    return int(np.diff(rows.indptr).max(initial=0))


def _train(
    spec: KernelSpec,
    rows: RowsLike,
    table: ParameterTable,
    step: Step,
    following: Following | None = None,
) -> RoundTally:
    """One walk over all rows, in place on `table`."""
    check_penalties(step, spec.optimizer)
    if step.deterministic and step.n_threads > 1:
        raise SettingsError(f"n_threads = {step.n_threads} threads that share a table are not deterministic; use 1")
    longest = _check_door(rows, table, spec, with_state=True)
    if spec.l2_by_field and (len(rows.fields) != table.n_features or rows.fields.max(initial=0) >= len(step.l2_scales)):
        raise ValueError(f"{len(step.l2_scales)} scales of penalties, and rows that do not say which is whose")
    if spec.is_paired:
        return _train_pairs(spec, rows, table, step, 2 * longest)
    return _walk(spec, rows, table, step, longest, row_blocks(len(rows.labels), rows.n_implicit, step.seed))


def _train_pairs(spec: KernelSpec, rows: RowsLike, table: ParameterTable, step: Step, longest: int) -> RoundTally:
    """The same over all pairs. longest: entries of a pair, at most."""
    pairs = sampled_pairs(rows.group_ids, rows.labels, rows.weights, step.seed)
    total = RoundTally(0, 0.0, 0.0, True)
    for part in pair_rows(rows, pairs, table.n_features, step.seed):
        starts = np.arange(0, len(part.labels), BLOCK_ROWS)
        blocks = np.stack([starts, np.minimum(starts + BLOCK_ROWS, len(part.labels))], axis=1)
        total += _walk(spec, part, table, step, longest, blocks)
        if not total.is_finite:
            break
    return replace(total, rows=len(rows.labels))


def _walk(
    spec: KernelSpec,
    rows: RowsLike,
    table: ParameterTable,
    step: Step,
    longest: int,
    blocks: NDArray[np.int64],
) -> RoundTally:
    """One walk over row blocks int64[n, 2], in this order."""
    worked_on, fold = table_record(table), family_of(spec.family).fold
    if spec.l2_by_field:
        worked_on = worked_on._replace(l2_scales=np.array(step.l2_scales, np.float32)[rows.fields])
    walk = _kept(_walk_of, _with_any_fields(spec))
    records = rows_record(rows), worked_on, all_rates(step, spec.layout, table.n_fields)

    def walk_share(share: NDArray[np.int64]) -> tuple[int, float, float]:
        return walk(*records, new_scratch(longest, table, step.seed), np.ascontiguousarray(share))

    if step.n_threads == 1:
        parts = [walk_share(blocks)]
    else:
        shares = [blocks[thread :: step.n_threads] for thread in range(step.n_threads)]
        with ThreadPoolExecutor(step.n_threads) as pool:
            parts = list(pool.map(walk_share, shares))
    if fold is not None:
        fold(worked_on.own, table)
    n_rows, weight, loss = (sum(numbers) for numbers in zip(*parts, strict=True))
    return RoundTally(int(n_rows), float(weight), float(loss), bool(np.isfinite(loss)))


def _score(spec: KernelSpec, rows: RowsLike, table: ParameterTable) -> NDArray[np.float32]:
    longest = _check_door(rows, table, spec, with_state=False)
    scores = np.empty(len(rows.labels), np.float32)
    score_all = _kept(_score_all_of, _scored_by(spec))
    score_all(rows_record(rows), _read_only(table_record(table)), new_scratch(longest, table), scores)
    return scores


def _read_only(table: Table) -> Table:
    return Table(*(read_only(array) for array in table))


Scores = Callable[[RowsLike, ParameterTable], NDArray[np.float32]]
_lock = threading.Lock()


def _kept(make: Callable[[Any], Any], key: Any) -> Any:
    """A kernel of this process; one thread makes it while others wait."""
    with _lock:
        return make(key)


@functools.cache
def sources() -> str:
    """Fingerprint (hex) of the source text of the kernel modules and of the records that they walk."""
    digest = hashlib.sha256()
    for module in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()


@functools.cache
def compile_kernels(spec: KernelSpec) -> Kernels:
    """Kernels of a spec, each compiled at its first call in this process (some seconds).

    SettingsError where there are none.
    """
    optimizer = resolve_optimizer(spec.optimizer)
    resolve_loss(spec.loss, spec.loss_parameter)
    if spec.factor_dtype != "float32":
        raise SettingsError(
            f'factor_dtype = "{spec.factor_dtype}" is for GPUs; use "float32", or training.backend = "cupy"'
        )
    if spec.regularizer is not None and optimizer.derives_weights:
        raise SettingsError(
            f'the regularizer {spec.regularizer.name} does not fit optimizer "{optimizer.name}", whose weights are '
            f'made of L1 and L2 in closed form; choose "{DEFAULT_OPTIMIZER}", or leave the regularizer out'
        )
    if spec.l2_by_field and optimizer.derives_weights:
        raise SettingsError(
            f'optimizer "{optimizer.name}" makes weights of one L2 in closed form, and takes no penalties by field; '
            f'choose "{DEFAULT_OPTIMIZER}", or leave training.l2_groups out'
        )
    check_pairs(spec.loss, spec.family)
    return Kernels(spec, partial(_train, spec), partial(_score, spec))


def _with_any_fields(spec: KernelSpec) -> KernelSpec:
    """The spec of the same code: which field is in which group the kernels read, only how many there are they know."""
    return replace(spec, groups=tuple(range(spec.layout.n_groups)) if spec.groups else ())


@functools.cache
def _walk_of(spec: KernelSpec) -> Any:
    layout = spec.layout
    shape = replace(_shape(layout), paired=spec.is_paired, scaled_l2=spec.l2_by_field)
    walk = make_walk(shape, layout, spec, _n_arrays(layout))
    if not numba.config.DISABLE_JIT:
        keep_on_disk(walk, f"{sources()} {spec!r}")
    _compile(walk, example_arguments(layout, for_training=True))
    return walk


def _n_arrays(layout: Layout) -> int:
    return len(new_scratch(0, allocate(layout, 0, 0)).room)


def _shape(layout: Layout) -> Shape:
    sizes = layout.row_factors, layout.lanes, layout.factor_width, layout.linear_width
    return Shape(
        *sizes,
        implicit=True,
        family=layout.family,
        own_width=_own_width(layout),
        n_groups=layout.n_groups,
        order=layout.order,
    )


def _own_width(layout: Layout) -> int:
    return max((layout.width(block) for block in layout.own), default=0)


@functools.cache
def compile_scores(layout: Layout) -> Scores:
    """`Kernels.scores` of finished models of a layout without optimizer state: nothing is compiled for training."""
    spec = KernelSpec(
        DEFAULT_LOSSES["regression"],
        layout.optimizer,
        layout.n_factors,
        family=layout.family,
        groups=layout.groups,
        order=layout.order,
    )
    return partial(_score, spec)


@functools.lru_cache(maxsize=1024)
def _scored_by(spec: KernelSpec) -> tuple[Layout, int]:
    """By which code tables of a spec are scored."""
    layout = _with_any_fields(spec).layout
    return layout.stateless, _own_width(layout)


@functools.cache
def _score_all_of(scored: tuple[Layout, int]) -> Any:
    """The code for tables of any optimizer, which asks the arrays how far their records stand apart. scored: the layout
    without state, and the width of a family's own records, which has to be known.
    """
    layout, own_width = scored
    shape = replace(_shape(layout), own_width=own_width, touched=layout.lanes, gathered=1, only_scores=True)
    score_all = make_score_all(shape, _n_arrays(layout))
    if not numba.config.DISABLE_JIT:
        keep_on_disk(score_all, f"{sources()} {layout} {own_width}")
    _compile(score_all, example_arguments(layout, for_training=False))
    return score_all


def example_arguments(layout: Layout, for_training: bool) -> tuple[Any, ...]:
    """Arguments of the types that `_train` and `_score` pass: kernels are compiled for these and no others."""
    floats = read_only(np.zeros(0, np.float32))
    offsets, indices, fields = (
        read_only(np.zeros(n, kind)) for n, kind in ((1, np.int64), (0, np.uint32), (0, np.uint16))
    )
    rows, example = Rows(offsets, indices, floats, floats, floats, fields, fields, 0), allocate(layout, 0, 0)
    table, scratch = table_record(example), new_scratch(0, example)
    if for_training:
        return rows, table, all_rates(Step(1.0, 1.0), layout, 0), scratch, np.zeros((0, 2), np.int64)
    return rows, _read_only(table), scratch, np.zeros(0, np.float32)


def _compile(kernel: Any, arguments: tuple[Any, ...]) -> None:
    if numba.config.DISABLE_JIT:
        return
    kernel.compile(tuple(numba.typeof(argument) for argument in arguments))
    kernel.disable_compile()
