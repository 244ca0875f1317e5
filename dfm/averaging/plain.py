"""Merging of plain records: numbers, each with one sum of squared gradients, by a rule that asks for no more.

Nearly all models and rules are so. A record is float32[2 lanes]: values, then their sums; so are summands, of the a Δ
and the F of each lane. Notation: see `dfm.averaging.merge`, whose general kernels do the same arithmetic.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from dfm.compilation import compiled, part
from dfm.kernels.blocks import lanes_together
from dfm.kernels.simd import address, load, maximum, read, splat, store, write

TINY = np.float32(np.finfo(np.float32).tiny)
"""The least divisor: where there is 0, the numerator is too."""
_SPAN = 16
"""Numbers of partial sums that are added at once: there is room for whole ones."""


@part(error_model="numpy")
def _change(shares, before, after):  # type: ignore[no-untyped-def]
    """Summands of values and sums that a replica found and left."""
    (value, start), (left, reached) = before, after
    growth = reached - start
    share = shares.base + shares.history * start + shares.growth * growth
    return share * (left - value), growth


@part(error_model="numpy")
def _moved(numbers, quotients, before, total):  # type: ignore[no-untyped-def]
    """Values and sums after the merge, of those before and of the summands' totals."""
    (fixed, per_row), (value, start), (move, growth) = quotients, before, total
    _, weights, accumulators, outer = numbers
    divisor = fixed + weights.history * start + weights.growth * growth
    value = value + outer.rate * (move / maximum(TINY, divisor))
    divisor = per_row + accumulators.history * start + accumulators.growth * growth
    return value, start + growth / maximum(TINY, divisor)


@functools.cache
def contribute_plain(lanes: int) -> Any:
    """contribute(before, after, shares, out): writes summands of all rows, float32[n, 2 lanes] each."""
    together = lanes_together(lanes)

    @compiled(error_model="numpy")
    def contribute(before, after, shares, out):  # type: ignore[no-untyped-def]
        old, new, summands = address(before), address(after), address(out)
        for row in range(out.shape[0]):
            for lane in range(0, lanes, together):
                at = 2 * lanes * row + lane
                found = load(old, at, together), load(old, at + lanes, together)
                left = load(new, at, together), load(new, at + lanes, together)
                move, growth = _change(shares, found, left)
                store(summands, at, move)
                store(summands, at + lanes, growth)

    return contribute


@functools.cache
def finish_plain(lanes: int) -> Any:
    """finish(features, start, summands, numbers, records): moves the rows features - start of `records`, in place.

    features: uint32[m]; summands: float32[m or fewer, 2 lanes], of the leading ones.
    """
    together = lanes_together(lanes)

    @compiled(error_model="numpy")
    def finish(features, start, summands, numbers, records):  # type: ignore[no-untyped-def]
        totals, table = address(summands), address(records)
        quotients = numbers.weights.fixed, numbers.accumulators.fixed
        for position in range(summands.shape[0]):
            row = np.intp(features[position]) - start
            for lane in range(0, lanes, together):
                at, there = 2 * lanes * row + lane, 2 * lanes * position + lane
                before = load(table, at, together), load(table, at + lanes, together)
                total = load(totals, there, together), load(totals, there + lanes, together)
                value, reached = _moved(numbers, quotients, before, total)
                store(table, at, value)
                store(table, at + lanes, reached)

    return finish


@part
def _place(features, start, size, row):  # type: ignore[no-untyped-def]
    """The first place at or behind a row, in a list of `features`."""
    low, high = np.intp(start), np.intp(start + size)
    while low < high:
        middle = (low + high) // 2
        if np.intp(features[middle]) < row:
            low = middle + 1
        else:
            high = middle
    return low


@part
def _clear(sums, at, n_numbers):  # type: ignore[no-untyped-def]
    for offset in range(0, n_numbers, _SPAN):
        store(sums, at + offset, splat(np.float32(0), _SPAN))


@part
def _fold(sums, depth, n_summed, is_last, level, n_numbers):  # type: ignore[no-untyped-def]
    """Add sums of equally many replicas, or, behind the last replica, all that there are; returns how many are left.

    sums: `depth` of them, `level` numbers apart. n_summed: replicas that are in them.
    """
    pairs = n_summed // 2 if n_summed % 2 == 0 else 0
    while depth > 1 and (is_last or (pairs and pairs % 2 == 0)):
        depth -= 1
        right = depth * level
        left = right - level
        for offset in range(0, n_numbers, _SPAN):
            both = load(sums, left + offset, _SPAN) + load(sums, right + offset, _SPAN)
            store(sums, left + offset, both)
        pairs //= 2
    return depth


@functools.cache
def _add_changes(lanes: int) -> Any:
    """add(rows, replica, old, shares, sums, at, seen): adds the summands of a replica's features among `rows` to sums.

    rows: first and number of them. replica: features, the place of its next one and its end among them, how much
    further on a feature's record is than the feature, and the records. Returns the place of the feature that is next.
    """
    width, together = 2 * lanes, lanes_together(lanes)

    @part(error_model="numpy")
    def add(rows, replica, old, shares, sums, at, seen):  # type: ignore[no-untyped-def]
        (first, n_rows), (features, place, end, shift, trained) = rows, replica
        while place < end:
            row = np.intp(read(features, place)) - first
            if row >= n_rows:
                break
            write(seen, row, np.uint8(1))
            for lane in range(0, lanes, together):
                here, there = width * (first + row) + lane, width * (place + shift) + lane
                found = load(old, here, together), load(old, here + lanes, together)
                left = load(trained, there, together), load(trained, there + lanes, together)
                move, growth = _change(shares, found, left)
                target = at + width * row + lane
                store(sums, target, load(sums, target, together) + move)
                store(sums, target + lanes, load(sums, target + lanes, together) + growth)
            place += 1
        return place

    return add


@functools.cache
def _finish_rows(lanes: int) -> Any:
    """finish(rows, old, new, numbers, sums, seen): writes `rows` of the average; those that nobody touched stay."""
    width, together = 2 * lanes, lanes_together(lanes)

    @part(error_model="numpy")
    def finish(rows, old, new, numbers, sums, seen):  # type: ignore[no-untyped-def]
        first, n_rows = rows
        quotients = numbers.weights.fixed, numbers.accumulators.fixed
        for row in range(n_rows):
            for lane in range(0, lanes, together):
                here, there = width * (first + row) + lane, width * row + lane
                value, reached = load(old, here, together), load(old, here + lanes, together)
                if read(seen, row):
                    total = load(sums, there, together), load(sums, there + lanes, together)
                    value, reached = _moved(numbers, quotients, (value, reached), total)
                store(new, here, value)
                store(new, here + lanes, reached)

    return finish


@functools.cache
def merge_plain(lanes: int) -> Any:
    """merge(bounds, lists, tables, records, numbers, room): writes rows [bounds[0], bounds[1]) of the average.

    lists: uint32 features of all replicas, where each replica's start, where the rows of its table start in `tables`,
    and how many it has. tables: float32[*, 2 lanes], trained. records: the block before and after. numbers: shares, and
    those of the merge. room: for partial sums float32[levels, rows worked on together, 2 lanes], whole spans of them;
    for whether somebody touched a row; for the place of each replica's next feature.
    """
    add_changes, finish_rows, width = _add_changes(lanes), _finish_rows(lanes), 2 * lanes

    @compiled(error_model="numpy")
    def merge(bounds, lists, tables, records, numbers, room):  # type: ignore[no-untyped-def]
        features, firsts, starts, sizes = lists
        partial, touched, cursors = room
        names, old, new, trained = address(features), address(records[0]), address(records[1]), address(tables)
        sums, seen, most = address(partial), address(touched), np.intp(touched.size)
        for each in range(sizes.size):
            cursors[each] = _place(features, firsts[each], sizes[each], bounds[0])
        for first in range(bounds[0], bounds[1], most):
            rows = first, min(most, bounds[1] - first)
            touched[:] = 0
            depth = np.intp(0)
            for each in range(sizes.size):
                if each % 2 == 0:
                    _clear(sums, depth * width * most, width * rows[1])
                    depth += 1
                replica = names, cursors[each], firsts[each] + sizes[each], starts[each] - firsts[each], trained
                at = (depth - 1) * width * most
                cursors[each] = add_changes(rows, replica, old, numbers[0], sums, at, seen)
                depth = _fold(sums, depth, each + 1, each + 1 == sizes.size, width * most, width * rows[1])
            finish_rows(rows, old, new, numbers[1], sums, seen)

    return merge
