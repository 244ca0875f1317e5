"""The passes over one row of which the CPU kernels consist, built for a shape and compiled into one walk.

`gather` copies a row's linear records into contiguous scratch and lists the entries that own factors. `pairs`, of the
family, and `linear_part` give the logit. After the slope is known, `step_number` (for the bias), `step_linear` and
`step_factors`, of the optimizer, change parameters in place, by the gradients of the family; `own_step` changes what
the family alone has. No pass allocates, branches on settings, counts references or calls Python.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dfm.kernels.contract import KernelSpec
from dfm.kernels.cpu.shape import Shape
from dfm.kernels.cpu.step_passes import OWN_LANES, WIDTH, called, inlined
from dfm.kernels.families.registry import family_of
from dfm.kernels.losses import resolve_loss
from dfm.kernels.optimizers import resolve_optimizer
from dfm.kernels.simd import address, every, fma, load, prefetch, read, reduce_add, splat, store, write
from dfm.kernels.tables import CACHE_LINE, Layout

PREFETCH_ENTRIES = 128
"""Distance at which table rows are asked for ahead: see the decision record on prefetching."""
PREFETCH_FEWER = 48
"""The same where a family has numbers of its own, which want the nearest cache too, and rows take twice as long."""


class Rows(NamedTuple):
    """The arrays of a partition, read-only, and where rows with stored values begin."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    fields: NDArray[np.uint16]
    ends: NDArray[np.uint16]
    n_implicit: int


class Table(NamedTuple):
    """The arrays of a parameter table; own float32[n, m]: a family's own blocks as `Family.unfold` gives them.

    l2_scales float32[n_features, 2]: what l2_linear and l2_factors are multiplied with; without rows where nobody asks.
    """

    bias: NDArray[np.float32]
    linear: NDArray[np.float32]
    factors: NDArray[np.float32]
    own: NDArray[np.float32]
    l2_scales: NDArray[np.float32]


class RowsView(NamedTuple):
    """Addresses of `Rows`. `first_value`: entries before the first stored value."""

    indptr: Any
    indices: Any
    values: Any
    labels: Any
    weights: Any
    fields: Any
    ends: Any
    n_entries: int
    first_value: int
    has_weights: bool
    has_ends: bool


class TableView(NamedTuple):
    """Addresses of `Table`, and the widths of its records. own_last: where the last row of `own` begins."""

    bias: Any
    linear: Any
    factors: Any
    own: Any
    l2_scales: Any
    own_width: int
    own_last: int
    linear_width: int
    factor_width: int
    n_factored: int


class Scratch(NamedTuple):
    """Working memory of one thread, or its addresses, for rows of up to `capacity` - WIDTH entries.

    linear float32[widest record * capacity]: gathered linear records; values float32[capacity]; owners int64[capacity]
    and owner_values float32[capacity]: feature and x of the entries that own factors; sums: what a family's score
    leaves for its gradients; room: more that it wants, see `Family.room`; logits float32[BLOCK_ROWS]: of the rows of a
    block.

    With groups the owners stand group by group, those of group g at [first_owners[g], first_owners[g + 1]), in the
    order of the row within. first_owners int64[n_groups + 1]; groups uint16[n_fields]: of each field; spare
    int64[capacity] and spare_values float32[capacity]: for rows that come in another order. Of a pair of rows
    spare_values are z of the owners, of the second row, and values the differences. l2_scales float32[capacity]: of the
    linear weights of entries, where each feature has its own.
    """

    linear: NDArray[np.float32]
    values: NDArray[np.float32]
    owners: NDArray[np.int64]
    owner_values: NDArray[np.float32]
    sums: NDArray[np.float32]
    room: tuple[NDArray[Any], ...]
    logits: NDArray[np.float32]
    first_owners: NDArray[np.int64]
    groups: NDArray[np.uint16]
    spare: NDArray[np.int64]
    spare_values: NDArray[np.float32]
    l2_scales: NDArray[np.float32]


def _make_each(n: int, of_one: Any) -> Any:
    """each(arrays): what `of_one` makes of each of the first n of a tuple of arrays, as a tuple."""
    if n == 0:
        return inlined(lambda _arrays: ())
    before, last = _make_each(n - 1, of_one), n - 1

    @inlined
    def each(arrays):  # type: ignore[no-untyped-def]
        return before(arrays) + (of_one(arrays[last]),)  # noqa: RUF005  Numba unpacks no tuples here

    return each


def _make_views(n_arrays: int, widths: tuple[int, int] | None) -> Any:
    """views(rows, table, scratch): addresses of their arrays.

    n_arrays: of the family's room. widths: of a linear and a factor record, where those are known, so that offsets are
    shifts, not products.
    """
    linear_width, factor_width = widths or (0, 0)
    known = widths is not None
    addresses = _make_each(n_arrays, inlined(lambda array: address(array)))

    @inlined
    def views(rows, table, scratch):  # type: ignore[no-untyped-def]
        return (
            RowsView(
                address(rows.indptr),
                address(rows.indices),
                address(rows.values),
                address(rows.labels),
                address(rows.weights),
                address(rows.fields),
                address(rows.ends),
                rows.indices.size,
                rows.indptr[rows.n_implicit],
                rows.weights.size > 0,
                rows.ends.size > 0,
            ),
            TableView(
                address(table.bias),
                address(table.linear),
                address(table.factors),
                address(table.own),
                address(table.l2_scales),
                table.own.shape[1],
                (table.own.shape[0] - 1) * table.own.shape[1],
                linear_width if known else table.linear.shape[1],
                factor_width if known else table.factors.shape[1],
                table.factors.shape[0],
            ),
            Scratch(
                address(scratch.linear),
                address(scratch.values),
                address(scratch.owners),
                address(scratch.owner_values),
                address(scratch.sums),
                addresses(scratch.room),
                address(scratch.logits),
                address(scratch.first_owners),
                address(scratch.groups),
                address(scratch.spare),
                address(scratch.spare_values),
                address(scratch.l2_scales),
            ),
        )

    return views


def _make_gather(shape: Shape) -> Any:
    """gather(rows, table, scratch, row, start, stop): number of entries of the row that own factors."""
    gathered, no_weights, n_groups = shape.gathered, WIDTH * shape.gathered, shape.n_groups
    has_groups, put_in_order, take = n_groups > 1, _make_put_in_order(shape), _make_take(shape)

    @inlined
    def gather(rows, table, scratch, row, start, stop):  # type: ignore[no-untyped-def]
        n_owners = np.intp(0)  # a plain 0 would be a type of its own, for which `take` is compiled once more
        if has_groups and rows.has_ends:
            position = 0
            for group in range(n_groups):
                end = np.intp(read(rows.ends, row * n_groups + group))
                while position < end:
                    n_owners += take(rows, table, scratch, start, position, n_owners)
                    position += 1
                write(scratch.first_owners, group + 1, n_owners)
        else:
            for position in range(stop - start):
                n_owners += take(rows, table, scratch, start, position, n_owners)
            if has_groups:
                put_in_order(rows, scratch, n_owners)
        # The last vector of the row reaches beyond it: these lanes must add nothing.
        store(scratch.linear, (stop - start) * gathered, splat(np.float32(0), no_weights))
        store(scratch.values, stop - start, splat(np.float32(0), WIDTH))
        return n_owners

    return gather


def _make_take(shape: Shape) -> Any:
    """take(rows, table, scratch, start, position, n_owners): copies one entry; 1 if it owns factors, else 0."""
    implicit, gathered = shape.implicit, shape.gathered
    if shape.paired:
        return _make_take_both(shape)

    @inlined
    def take(rows, table, scratch, start, position, n_owners):  # type: ignore[no-untyped-def]
        feature = np.intp(read(rows.indices, start + position))
        store(scratch.linear, position * gathered, load(table.linear, feature * table.linear_width, gathered))
        write(scratch.owners, n_owners, feature)
        if not implicit:
            value = read(rows.values, start - rows.first_value + position)
            write(scratch.values, position, value)
            write(scratch.owner_values, n_owners, value)
        return 1 if feature < table.n_factored else 0

    return take


def _make_take_both(shape: Shape) -> Any:
    """The same of an entry of a pair: its linear part has the difference of both values, factors have each of them."""
    gathered = shape.gathered

    @inlined
    def take(rows, table, scratch, start, position, n_owners):  # type: ignore[no-untyped-def]
        feature = np.intp(read(rows.indices, start + position))
        store(scratch.linear, position * gathered, load(table.linear, feature * table.linear_width, gathered))
        write(scratch.owners, n_owners, feature)
        value, other = read(rows.values, 2 * (start + position)), read(rows.values, 2 * (start + position) + 1)
        write(scratch.values, position, value - other)
        write(scratch.owner_values, n_owners, value)
        write(scratch.spare_values, n_owners, other)
        return 1 if feature < table.n_factored else 0

    return take


def _make_group_of() -> Any:
    """group_of(rows, scratch, feature): the group of the field of a feature."""

    @inlined
    def group_of(rows, scratch, feature):  # type: ignore[no-untyped-def]
        return np.intp(read(scratch.groups, np.intp(read(rows.fields, feature))))

    return group_of


def _make_put_in_order(shape: Shape) -> Any:
    """put_in_order(rows, scratch, n_owners): owners group by group, and where each group begins, in place."""
    n_groups, group_of, sort = shape.n_groups, _make_group_of(), _make_sort(shape)

    @inlined
    def put_in_order(rows, scratch, n_owners):  # type: ignore[no-untyped-def]
        group, falls = np.intp(0), np.intp(0)
        for each in range(n_groups + 1):
            write(scratch.first_owners, each, np.int64(0))
        for i in range(n_owners):
            before, group = group, group_of(rows, scratch, read(scratch.owners, i))
            falls |= group - before  # negative as soon as one of them is
            write(scratch.first_owners, group + 1, np.int64(i + 1))
        if falls < 0:
            sort(rows, scratch, n_owners)
        else:  # groups without an owner begin and end where the one before them ends
            for each in range(n_groups):
                begin, end = read(scratch.first_owners, each), read(scratch.first_owners, each + 1)
                write(scratch.first_owners, each + 1, begin if begin > end else end)

    return put_in_order


def _make_sort(shape: Shape) -> Any:
    """sort(rows, scratch, n_owners): as `put_in_order`, of owners in any order."""
    count, place = _make_count(shape), _make_place(shape)

    @called
    def sort(rows, scratch, n_owners):  # type: ignore[no-untyped-def]
        count(rows, scratch, n_owners)
        place(rows, scratch, n_owners)

    return sort


def _make_count(shape: Shape) -> Any:
    """count(rows, scratch, n_owners): where each group begins; the owners are copied into the spare arrays."""
    implicit, n_groups, group_of = shape.implicit, shape.n_groups, _make_group_of()

    @inlined
    def count(rows, scratch, n_owners):  # type: ignore[no-untyped-def]
        for group in range(n_groups + 1):
            write(scratch.first_owners, group, np.int64(0))
        for i in range(n_owners):
            owner = read(scratch.owners, i)
            after = group_of(rows, scratch, owner) + 1
            write(scratch.first_owners, after, read(scratch.first_owners, after) + 1)
            write(scratch.spare, i, owner)
            if not implicit:
                write(scratch.spare_values, i, read(scratch.owner_values, i))
        for group in range(n_groups):
            size = read(scratch.first_owners, group + 1)
            write(scratch.first_owners, group + 1, read(scratch.first_owners, group) + size)

    return count


def _make_place(shape: Shape) -> Any:
    """place(rows, scratch, n_owners): owners from the spare arrays to their groups, in their order."""
    implicit, n_groups, group_of = shape.implicit, shape.n_groups, _make_group_of()

    @inlined
    def place(rows, scratch, n_owners):  # type: ignore[no-untyped-def]
        for i in range(n_owners):
            owner = read(scratch.spare, i)
            group = group_of(rows, scratch, owner)
            at = np.intp(read(scratch.first_owners, group))
            write(scratch.first_owners, group, np.int64(at + 1))
            write(scratch.owners, at, owner)
            if not implicit:
                write(scratch.owner_values, at, read(scratch.spare_values, i))
        for group in range(n_groups, 0, -1):  # every start has become the next one
            write(scratch.first_owners, group, read(scratch.first_owners, group - 1))
        write(scratch.first_owners, 0, np.int64(0))

    return place


@functools.cache
def _make_prefetch(touched: int, distance: int) -> Any:
    """prefetch_rows(rows, table, start, stop): asks for the table rows of entries that come later."""
    lines = (touched * 4 + CACHE_LINE - 1) // CACHE_LINE

    @inlined
    def prefetch_rows(rows, table, start, stop):  # type: ignore[no-untyped-def]
        rest = rows.n_entries - stop
        shift = rest if rest < distance else distance  # `min` would be a function of its own to compile
        for entry in range(start + shift, stop + shift):
            feature = np.intp(read(rows.indices, entry))
            prefetch(table.linear, feature * table.linear_width)
            owner = feature if feature < table.n_factored else 0
            for line in range(lines):
                prefetch(table.factors, owner * table.factor_width + line * (CACHE_LINE // 4))

    return prefetch_rows


def _make_linear_part(shape: Shape) -> Any:
    """linear_part(scratch, n_entries): Σ_j w_j x_j."""
    implicit, gathered, lanes = shape.implicit, shape.gathered, WIDTH * shape.gathered

    @inlined
    def linear_part(scratch, n_entries):  # type: ignore[no-untyped-def]
        total = splat(np.float32(0), WIDTH)
        for position in range(0, n_entries, WIDTH):
            weights = every(load(scratch.linear, position * gathered, lanes), 0, gathered)
            total = total + weights if implicit else fma(weights, load(scratch.values, position, WIDTH), total)
        return reduce_add(total)

    return linear_part


def _make_pairs(shape: Shape) -> Any:
    """pairs(rows, table, scratch, n_owners): what the family makes of the vectors of the entries that own some."""
    if shape.lanes == 0:
        return inlined(lambda _rows, _table, _scratch, _n_owners: np.float32(0))
    return family_of(shape.family).pairs(shape)


def _make_score(shape: Shape) -> Any:
    """score(views, row, start, stop): (logit of one row, number of entries that own factors)."""
    gather, linear_part, pairs_of = _make_gather(shape), _make_linear_part(shape), _make_pairs(shape)
    prefetch_rows = _make_prefetch(shape.touched, PREFETCH_FEWER if shape.own_width else PREFETCH_ENTRIES)
    has_bias = not shape.paired

    @inlined
    def score(views, row, start, stop):  # type: ignore[no-untyped-def]
        rows, table, scratch = views
        n_owners = gather(rows, table, scratch, row, start, stop)
        # The linear part comes second: its wide loads would wait for the narrow stores of `gather`.
        pairs = pairs_of(rows, table, scratch, n_owners)
        total = linear_part(scratch, stop - start)
        if has_bias:
            total = read(table.bias, 0) + total
        total += pairs
        # Work that does not depend on the score, to do while the slope is computed.
        prefetch_rows(rows, table, start, stop)
        return total, n_owners

    return score


def _make_logit(shape: Shape) -> Any:
    """logit(views, row): of one row."""
    score = _make_score(shape)

    @inlined
    def logit(views, row):  # type: ignore[no-untyped-def]
        indptr = views[0].indptr
        return score(views, row, read(indptr, row), read(indptr, row + 1))[0]

    return logit


def _make_own_step(shape: Shape, spec: KernelSpec) -> Any:
    """own_step(rows, table, rates, scratch, n_owners, row_step): steps the family's own blocks, in place."""
    make = family_of(shape.family).own_step
    if make is None or not shape.lanes:
        return inlined(lambda _rows, _table, _rates, _scratch, _n_owners, _row_step: None)
    return make(shape, _own_steps(spec.optimizer))


@functools.cache
def _own_steps(name: str) -> tuple[Any, Any]:
    """`step_number` of an optimizer for numbers of a family's own blocks: of one, and of OWN_LANES at a time.

    The latter is None for means, which move where a gradient is 0 too, so that each number has to be asked for.
    """
    optimizer = resolve_optimizer(name)
    rule = optimizer.alone or optimizer
    shapes = (Shape(0, 0, 0, 1 + rule.linear_state, True, abreast=n, apart=OWN_LANES) for n in (1, OWN_LANES))
    one, many = (rule.steps(shape, None)[0] for shape in shapes)
    return one, None if rule.state == "means" else many


def _make_train_rows(shape: Shape, spec: KernelSpec) -> Any:
    """train_rows(views, all_rates, first, last): walks rows [first, last), at most BLOCK_ROWS.

    Leaves their logits in scratch.logits.
    """
    slope_of = resolve_loss(spec.loss, spec.loss_parameter).slope
    score = _make_score(shape)
    step_number, step_linear, step_factors = resolve_optimizer(spec.optimizer).steps(shape, spec.regularizer)
    own_step, has_bias = _make_own_step(shape, spec), not shape.paired

    @inlined
    def train_rows(views, all_rates, first, last):  # type: ignore[no-untyped-def]
        rows, table, scratch = views
        rates, bias_rates, own_rates = all_rates
        for row in range(first, last):
            start, stop = read(rows.indptr, row), read(rows.indptr, row + 1)
            sample_weight = read(rows.weights, row) if rows.has_weights else np.float32(1)
            label = np.float64(read(rows.labels, row))
            logit, n_owners = score(views, row, start, stop)
            slope = np.float32(slope_of(np.float64(logit), label)) * sample_weight
            row_step = (start, stop - start, sample_weight, slope)
            write(scratch.logits, row - first, logit)
            if has_bias:
                step_number(table.bias, 0, bias_rates, sample_weight, slope)
            step_linear(rows, table, rates, scratch, row_step)
            own_step(rows, table, own_rates, scratch, n_owners, row_step)
            step_factors(table, rates, scratch, n_owners, row_step)

    return train_rows


def _make_tally(spec: KernelSpec) -> Any:
    """tally(views, first, last): (sum of weighted losses, sum of weights) of the rows just walked, from their logits.

    Apart from the walk, where the logarithm of each row would hold up the next one: it cost an eighth of the time.
    """
    value_of = resolve_loss(spec.loss, spec.loss_parameter).value

    @inlined
    def tally(views, first, last):  # type: ignore[no-untyped-def]
        rows, _table, scratch = views
        total_loss, total_weight = 0.0, 0.0
        for row in range(first, last):
            weight = np.float64(read(rows.weights, row)) if rows.has_weights else 1.0
            logit = np.float64(read(scratch.logits, row - first))
            total_loss += value_of(logit, np.float64(read(rows.labels, row))) * weight
            total_weight += weight
        return total_loss, total_weight

    return tally


def make_walk(shape: Shape, layout: Layout, spec: KernelSpec, n_arrays: int) -> Any:
    """walk(rows, table, all_rates, scratch, blocks): trains on row blocks int64[n, 2], in order and in place.

    n_arrays: of the family's room. Returns (rows walked, sum of weights, sum of losses). It stops after a block whose
    losses are not all finite: one comparison in hundreds of rows is the whole price of the divergence guard.
    """
    make_views = _make_views(n_arrays, (layout.linear_width, layout.factor_width))
    train_explicit = _make_train_rows(_with_values(shape, True), spec)
    train_implicit = train_explicit if shape.paired else _make_train_rows(_with_values(shape, False), spec)
    tally = _make_tally(spec)

    @njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)
    def walk(rows, table, all_rates, scratch, blocks):  # type: ignore[no-untyped-def]
        views = make_views(rows, table, scratch)
        n_rows, total_weight, total_loss = 0, 0.0, 0.0
        for block in range(blocks.shape[0]):
            first, last = blocks[block, 0], blocks[block, 1]
            if first < rows.n_implicit:
                train_implicit(views, all_rates, first, last)
            else:
                train_explicit(views, all_rates, first, last)
            loss, weight = tally(views, first, last)
            n_rows += last - first
            total_weight += weight
            total_loss += loss
            if not np.isfinite(total_loss):
                break
        return n_rows, total_weight, total_loss

    return walk


def make_score_all(shape: Shape, n_arrays: int) -> Any:
    """score_all(rows, table, scratch, scores): writes the logit of every row. n_arrays: of the family's room."""
    make_views = _make_views(n_arrays, None)
    score_implicit = _make_logit(_with_values(shape, False))
    score_explicit = _make_logit(_with_values(shape, True))

    @njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)
    def score_all(rows, table, scratch, scores):  # type: ignore[no-untyped-def]
        views = make_views(rows, table, scratch)
        logits = address(scores)
        for row in range(rows.n_implicit):
            write(logits, row, score_implicit(views, row))
        for row in range(rows.n_implicit, scores.size):
            write(logits, row, score_explicit(views, row))

    return score_all


def _with_values(shape: Shape, has_values: bool) -> Shape:
    return replace(shape, implicit=not has_values)
