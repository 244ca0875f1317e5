"""Pairs of entries weighted by a number for each pair of their fields: a row at a time, in tiles that fit registers.

A row's entries are slots with S = x_i V_i; neighbours of one field are one slot, with their sum. With the strength r of
two fields, what an entry i of field f meets is

    g_i = Σ_h r_fh S_h − r_ff x_i V_i

over all slots h, and the pairs of the row are ½ Σ_i <x_i V_i, g_i>. The slope of r_fh is <S_f, S_h>, that of r_ff is
½ (|S_f|² − Σ x_i² |V_i|²), of slots in the order of fields. Both are small dense products, of TILE slots at a time with
one other after the other, and with LANES others abreast, which are turned beforehand so that they lie side by side.

Strengths are worked on unfolded, float32[n_fields + 1, width]: a row for each field, in blocks of LANES fields, of each
block their strengths, then the state of these, column by column. What two fields have stands in both rows, and is
stepped in both: the same numbers are added in the same order, so that it stays the same. The r_ff have the last row.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.kernels.cpu.step_passes import OWN_LANES as LANES
from dfm.kernels.cpu.step_passes import called, inlined
from dfm.kernels.simd import fma, load, read, reduce_add, splat, store, write
from dfm.kernels.tables import Floats, Layout, ParameterTable, aligned_zeros

if TYPE_CHECKING:
    from dfm.kernels.cpu.shape import Shape

TILE = 6
"""Slots that are taken at a time: with 16 lanes they fill twelve of AVX2's sixteen registers."""


class Room(NamedTuple):
    """Working memory of a row. vectors float32[capacity * lanes]: S of the slots, zeros behind them; bases and places
    int64[capacity]: where the row of a slot's field begins, and the column of the field; firsts int64[capacity]: where
    there are fewer slots than entries, the first entry of each.

    For steps: turned float32: of each block of fields that are there, LANES of each of n_factors numbers, then 1 where
    a field is there; blocks int64: columns of the blocks; products float32: of a tile with all blocks; counts int64[3]:
    slots, rows until the next step, rows between steps.
    """

    vectors: Floats
    bases: NDArray[np.int64]
    places: NDArray[np.int64]
    firsts: NDArray[np.int64]
    turned: Floats
    blocks: NDArray[np.int64]
    products: Floats
    counts: NDArray[np.int64]


def _padded(n_fields: int) -> int:
    return (n_fields + LANES - 1) // LANES * LANES


def room(capacity: int, layout: Layout, n_fields: int, begin: int, between: int) -> Room:
    """Working memory for rows of up to that many entries. begin: rows before the first that steps strengths; between:
    rows from one to the next.
    """
    n_blocks = min(_padded(n_fields) // LANES, capacity)
    return Room(
        aligned_zeros((capacity * layout.lanes,)),
        np.zeros(capacity, np.int64),
        np.zeros(capacity, np.int64),
        np.zeros(capacity, np.int64),
        aligned_zeros((n_blocks * (layout.n_factors + 1) * LANES,)),
        np.zeros(n_blocks, np.int64),
        aligned_zeros((TILE * n_blocks * LANES,)),
        np.array([0, begin, between], np.int64),
    )


def unfold(table: ParameterTable, block: str) -> Floats:
    """The records of a block with a row for each pair of fields, as the kernels work on them."""
    records, n_fields = table[block], table.n_fields
    unfolded = aligned_zeros((n_fields + 1, _padded(n_fields) * records.shape[1]))
    if n_fields:
        _unfold(records, unfolded)
    return unfolded


def fold(unfolded: Floats, table: ParameterTable, block: str) -> None:
    """Write what kernels made of the records back into the table, in place."""
    if table.n_fields:
        _fold(unfolded, table[block])


@compiled
def _unfold(records, unfolded):  # type: ignore[no-untyped-def]
    """Writes the records of pairs of fields, float32[n_pairs, width], to where kernels have them."""
    n_fields, width = unfolded.shape[0] - 1, records.shape[1]
    for high in range(n_fields):
        for low in range(high + 1):
            pair = high * (high + 1) // 2 + low
            here = low // LANES * LANES * width + low % LANES
            there = high // LANES * LANES * width + high % LANES
            for column in range(width):
                value = records[pair, column]
                unfolded[high, here + column * LANES] = unfolded[low, there + column * LANES] = value
                if low == high:
                    unfolded[n_fields, here + column * LANES] = value


@compiled
def _fold(unfolded, records):  # type: ignore[no-untyped-def]
    """Writes the records of pairs of fields, float32[n_pairs, width], from where kernels have them."""
    n_fields, width = unfolded.shape[0] - 1, records.shape[1]
    for high in range(n_fields):
        for low in range(high + 1):
            pair, row = high * (high + 1) // 2 + low, high if low < high else n_fields
            at = low // LANES * LANES * width + low % LANES
            for column in range(width):
                records[pair, column] = unfolded[row, at + column * LANES]


def make_slots(shape: Shape) -> Any:
    """slots(rows, table, scratch, n_owners): makes the slots of a row; how many there are.

    Owners mostly come in the order of fields: two columns may share a feature, which has one field. Where strengths are
    to be stepped they are put in order first.
    """
    fill, sort, merge = _make_fill(shape), _make_sort(shape), _make_merge(shape.lanes, shape.vector)
    vector, lanes = shape.vector, shape.lanes

    @inlined
    def slots(rows, table, scratch, n_owners):  # type: ignore[no-untyped-def]
        room, n_slots = scratch.room, n_owners
        for _ in range(2):
            repeats, falls = fill(rows, table, scratch, n_owners)
            if repeats > 0 and (falls >= 0 or read(room[7], 1) > 0):
                n_slots = merge(room[:4], n_owners)
            if falls >= 0 or read(room[7], 1) > 0:
                break
            sort(rows, scratch, n_owners)
        for spare in range(n_slots, n_slots + TILE):
            write(room[1], spare, 0)
            write(room[2], spare, 0)
            for column in range(0, lanes, vector):
                store(room[0], spare * lanes + column, splat(np.float32(0), vector))
        write(room[7], 0, n_slots)
        return n_slots

    return slots


def _make_fill(shape: Shape) -> Any:
    """fill(rows, table, scratch, n_owners): a slot for each; how many have the field of the one before, and what is
    negative where one has a lesser field.
    """
    implicit, lanes, vector, width = shape.implicit, shape.lanes, shape.vector, shape.own_width

    @inlined
    def fill(rows, table, scratch, n_owners):  # type: ignore[no-untyped-def]
        vectors, bases, places = scratch.room[0], scratch.room[1], scratch.room[2]
        last, repeats, falls = np.intp(-1), np.intp(0), np.intp(0)
        for owner in range(n_owners):
            feature = read(scratch.owners, owner)
            field = np.intp(read(rows.fields, feature))
            for column in range(0, lanes, vector):
                factors = load(table.factors, feature * table.factor_width + column, vector)
                if not implicit:
                    factors = factors * read(scratch.owner_values, owner)
                store(vectors, owner * lanes + column, factors)
            lane = field & (LANES - 1)
            write(bases, owner, field * table.own_width)
            write(places, owner, (field - lane) * width + lane)
            repeats += field == last
            falls |= field - last
            last = field
        return repeats, falls

    return fill


def _make_sort(shape: Shape) -> Any:
    """sort(rows, scratch, n_owners): puts owners in the order of their fields; most stand there already."""
    implicit = shape.implicit

    @called
    def sort(rows, scratch, n_owners):  # type: ignore[no-untyped-def]
        for i in range(1, n_owners):
            owner, value = read(scratch.owners, i), read(scratch.owner_values, i)
            field, j = read(rows.fields, owner), i
            while j > 0 and read(rows.fields, read(scratch.owners, j - 1)) > field:
                write(scratch.owners, j, read(scratch.owners, j - 1))
                if not implicit:
                    write(scratch.owner_values, j, read(scratch.owner_values, j - 1))
                j -= 1
            write(scratch.owners, j, owner)
            if not implicit:
                write(scratch.owner_values, j, value)

    return sort


@functools.cache
def _make_merge(lanes: int, vector: int) -> Any:
    """merge(slots, n_owners): makes neighbours of one field one slot, in place; how many there are then."""

    @called
    def merge(slots, n_owners):  # type: ignore[no-untyped-def]
        vectors, bases, places, firsts = slots
        slot = np.intp(-1)
        for owner in range(n_owners):
            is_new = slot < 0 or read(places, owner) != read(places, slot)
            if is_new:
                slot += 1
                write(bases, slot, read(bases, owner))
                write(places, slot, read(places, owner))
                write(firsts, slot, owner)
            for column in range(0, lanes, vector):
                numbers = load(vectors, owner * lanes + column, vector)
                if not is_new:
                    numbers = numbers + load(vectors, slot * lanes + column, vector)
                store(vectors, slot * lanes + column, numbers)
        write(firsts, slot + 1, n_owners)
        return slot + 1

    return merge


@functools.cache
def make_met(lanes: int) -> Any:
    """met(own, slots, sums, n_slots): leaves what every slot meets in others in sums; returns ½ Σ of it times S.

    slots: vectors, bases and places. It is a call, and the same for all walks of so many lanes, since inlining it took
    some seconds more and gained nothing.
    """
    piece = min(lanes, 16)
    sums_of = (_make_sums_of if piece > 8 else _make_narrow_sums_of)(lanes, piece)

    @called
    def met(own, slots, sums, n_slots):  # type: ignore[no-untyped-def]
        vectors, bases, places = slots
        products = splat(np.float32(0), piece)
        for column in range(0, lanes, piece):
            for first in range(0, n_slots, TILE):
                tile = sums_of(own, slots, n_slots, first, column)
                for number in range(TILE):
                    at, diagonal = (first + number) * lanes + column, read(bases, first + number)
                    diagonal += read(places, first + number)
                    mine = load(vectors, at, piece)
                    others = fma(mine, splat(-read(own, diagonal), piece), tile[number])
                    products = fma(others, mine, products)
                    store(sums, at, others)
        return np.float32(0.5) * reduce_add(products)

    return met


def _make_sums_of(lanes: int, piece: int) -> Any:
    """sums_of(own, slots, n_slots, first, column): one piece of Σ_h r_fh S_h of TILE slots."""

    @inlined
    def sums_of(own, slots, n_slots, first, column):  # type: ignore[no-untyped-def]
        vectors, bases, places = slots
        place_a, place_b, place_c = read(places, first), read(places, first + 1), read(places, first + 2)
        place_d, place_e, place_f = read(places, first + 3), read(places, first + 4), read(places, first + 5)
        a = splat(np.float32(0), piece)
        b, c, d, e, f = a, a, a, a, a
        for other in range(n_slots):
            numbers, base = load(vectors, other * lanes + column, piece), read(bases, other)
            a = fma(numbers, splat(read(own, base + place_a), piece), a)
            b = fma(numbers, splat(read(own, base + place_b), piece), b)
            c = fma(numbers, splat(read(own, base + place_c), piece), c)
            d = fma(numbers, splat(read(own, base + place_d), piece), d)
            e = fma(numbers, splat(read(own, base + place_e), piece), e)
            f = fma(numbers, splat(read(own, base + place_f), piece), f)
        return a, b, c, d, e, f

    return sums_of


def _make_narrow_sums_of(lanes: int, piece: int) -> Any:
    """As `_make_sums_of`, of two others at a time: six sums of 8 lanes would wait for each other. Behind the last slot
    stand zeros.
    """

    @inlined
    def sums_of(own, slots, n_slots, first, column):  # type: ignore[no-untyped-def]
        vectors, bases, places = slots
        place_a, place_b, place_c = read(places, first), read(places, first + 1), read(places, first + 2)
        place_d, place_e, place_f = read(places, first + 3), read(places, first + 4), read(places, first + 5)
        a = splat(np.float32(0), piece)
        b, c, d, e, f = a, a, a, a, a
        a2, b2, c2, d2, e2, f2 = a, a, a, a, a, a
        for other in range(0, n_slots, 2):
            numbers, base = load(vectors, other * lanes + column, piece), read(bases, other)
            more, base2 = load(vectors, (other + 1) * lanes + column, piece), read(bases, other + 1)
            a = fma(numbers, splat(read(own, base + place_a), piece), a)
            a2 = fma(more, splat(read(own, base2 + place_a), piece), a2)
            b = fma(numbers, splat(read(own, base + place_b), piece), b)
            b2 = fma(more, splat(read(own, base2 + place_b), piece), b2)
            c = fma(numbers, splat(read(own, base + place_c), piece), c)
            c2 = fma(more, splat(read(own, base2 + place_c), piece), c2)
            d = fma(numbers, splat(read(own, base + place_d), piece), d)
            d2 = fma(more, splat(read(own, base2 + place_d), piece), d2)
            e = fma(numbers, splat(read(own, base + place_e), piece), e)
            e2 = fma(more, splat(read(own, base2 + place_e), piece), e2)
            f = fma(numbers, splat(read(own, base + place_f), piece), f)
            f2 = fma(more, splat(read(own, base2 + place_f), piece), f2)
        return a + a2, b + b2, c + c2, d + d2, e + e2, f + f2

    return sums_of


def make_spread(shape: Shape) -> Any:
    """spread(table, scratch, n_slots): what slots meet becomes what their entries meet, in scratch.sums; returns the
    pairs of entries of one slot. For rows that have fewer slots than entries.
    """
    lanes, vector, rest_of = shape.lanes, shape.vector, _make_rest_of(shape)

    @called
    def spread(table, scratch, n_slots):  # type: ignore[no-untyped-def]
        pairs, firsts = np.float32(0), scratch.room[3]
        for slot in range(n_slots - 1, -1, -1):  # backwards: an entry stands where its slot does, or behind
            first, stop = read(firsts, slot), read(firsts, slot + 1)
            if first == slot and stop == slot + 1:
                break
            strength = read(table.own, read(scratch.room[1], slot) + read(scratch.room[2], slot))
            for column in range(0, lanes, vector):
                met = load(scratch.sums, slot * lanes + column, vector)
                for owner in range(first, stop):
                    mine, rest = rest_of(table, scratch, slot, owner, column)
                    store(scratch.sums, owner * lanes + column, fma(rest, splat(strength, vector), met))
                    pairs += strength * reduce_add(mine * rest)
        return np.float32(0.5) * pairs

    return spread


def _make_rest_of(shape: Shape) -> Any:
    """rest_of(table, scratch, slot, owner, column): one vector of x_i V_i, and of S − x_i V_i."""
    implicit, lanes, vector = shape.implicit, shape.lanes, shape.vector

    @inlined
    def rest_of(table, scratch, slot, owner, column):  # type: ignore[no-untyped-def]
        mine = load(table.factors, read(scratch.owners, owner) * table.factor_width + column, vector)
        if not implicit:
            mine = mine * read(scratch.owner_values, owner)
        return mine, load(scratch.room[0], slot * lanes + column, vector) - mine

    return rest_of


def make_strength_step(shape: Shape, steps: tuple[Any, Any]) -> Any:
    """own_step(rows, table, rates, scratch, n_owners, row_step): steps the strengths of the pairs of fields in a row.

    In place, by the slope of the loss and of l2_factors / 2 (r − 1)², in one of `rows_between` rows. steps:
    `step_number` of one number whose state stands LANES behind it, and of LANES of them; the latter is None where a
    slope of 0 is a step too.
    """
    step_others = _make_step_others(shape.lanes, shape.n_factors, steps)
    step_same = _make_step_same(shape, steps[0])

    @inlined
    def own_step(_rows, table, rates, scratch, n_owners, row_step):  # type: ignore[no-untyped-def]
        counts = scratch.room[7]
        left = read(counts, 1)
        if left > 0:
            write(counts, 1, left - 1)
        else:
            write(counts, 1, read(counts, 2) - 1)
            step_others(table.own, rates[0], scratch.room, read(counts, 0), row_step)
            step_same(table, rates[0], scratch, (read(counts, 0), n_owners), row_step)

    return own_step


@functools.cache
def _make_step_others(lanes: int, n_factors: int, steps: tuple[Any, Any]) -> Any:
    """step_others(own, rates, room, n_slots, row_step): steps the strengths of each slot with all others.

    What it makes of those of a field with itself, which lie among them, is nothing: see `step_same`.
    """
    turn, multiply = _make_turn(lanes, n_factors), _make_multiply(lanes, n_factors)
    step_block = _make_step_block(n_factors, steps)

    @called
    def step_others(own, rates, room, n_slots, row_step):  # type: ignore[no-untyped-def]
        n_blocks = turn(room, n_slots)
        bases, blocks = room[1], room[5]
        for first in range(0, n_slots, TILE):
            multiply(room, first, n_blocks)
            for slot in range(first, min(first + TILE, n_slots)):
                base, source = read(bases, slot), (slot - first) * LANES
                for block in range(n_blocks):
                    where = (source + block * (TILE * LANES), block, base + read(blocks, block))
                    step_block(own, rates, room, where, row_step)

    return step_others


def _make_turn(lanes: int, n_factors: int) -> Any:
    """turn(room, n_slots): lists the blocks of fields that are there, and turns the vectors of their slots; returns
    how many blocks there are.
    """
    height = (n_factors + 1) * LANES

    @inlined
    def turn(room, n_slots):  # type: ignore[no-untyped-def]
        vectors, places, turned, blocks = room[0], room[2], room[4], room[5]
        n_blocks, last = np.intp(0), np.intp(-1)
        for slot in range(n_slots):
            place = read(places, slot)
            lane = place & (LANES - 1)
            if place - lane != last:
                last = place - lane
                write(blocks, n_blocks, last)
                for at in range(n_blocks * height, (n_blocks + 1) * height, LANES):
                    store(turned, at, splat(np.float32(0), LANES))
                n_blocks += 1
            at = (n_blocks - 1) * height + lane
            for factor in range(n_factors):
                write(turned, at + factor * LANES, read(vectors, slot * lanes + factor))
            write(turned, at + n_factors * LANES, np.float32(1))
        return n_blocks

    return turn


def _make_multiply(lanes: int, n_factors: int) -> Any:
    """multiply(room, first, n_blocks): <S_f, S_h> of TILE slots f and the LANES fields h of each block."""

    @inlined
    def multiply(room, first, n_blocks):  # type: ignore[no-untyped-def]
        vectors, turned, products = room[0], room[4], room[6]
        for block in range(n_blocks):
            a = splat(np.float32(0), LANES)
            b, c, d, e, f = a, a, a, a, a
            for factor in range(n_factors):
                others = load(turned, (block * (n_factors + 1) + factor) * LANES, LANES)
                at = first * lanes + factor
                a = fma(others, splat(read(vectors, at), LANES), a)
                b = fma(others, splat(read(vectors, at + lanes), LANES), b)
                c = fma(others, splat(read(vectors, at + 2 * lanes), LANES), c)
                d = fma(others, splat(read(vectors, at + 3 * lanes), LANES), d)
                e = fma(others, splat(read(vectors, at + 4 * lanes), LANES), e)
                f = fma(others, splat(read(vectors, at + 5 * lanes), LANES), f)
            tile = (a, b, c, d, e, f)
            for number in range(TILE):
                store(products, (block * TILE + number) * LANES, tile[number])

    return multiply


def _make_step_block(n_factors: int, steps: tuple[Any, Any]) -> Any:
    """step_block(own, rates, room, where, row_step): steps what one slot has with a block of fields.

    where: of its products, of the block in the list, of its records.
    """
    step_number, step_numbers = steps

    @inlined
    def step_block(own, rates, room, where, row_step):  # type: ignore[no-untyped-def]
        source, block, at = where
        _start, _n_entries, sample_weight, slope = row_step
        is_there = load(room[4], (block * (n_factors + 1) + n_factors) * LANES, LANES)
        away = (load(own, at, LANES) - np.float32(1)) * is_there
        gradients = fma(away, splat(rates.l2_factors * sample_weight, LANES), load(room[6], source, LANES) * slope)
        step_numbers(own, at, rates, sample_weight, gradients)

    @inlined
    def step_each(own, rates, room, where, row_step):  # type: ignore[no-untyped-def]
        source, block, at = where
        _start, _n_entries, sample_weight, slope = row_step
        for lane in range(LANES):
            if read(room[4], (block * (n_factors + 1) + n_factors) * LANES + lane) > np.float32(0):
                away = (read(own, at + lane) - np.float32(1)) * (rates.l2_factors * sample_weight)
                gradient = fma(read(room[6], source + lane), slope, away)
                step_number(own, at + lane, rates, sample_weight, gradient)

    return step_each if step_numbers is None else step_block


def _make_step_same(shape: Shape, step_number: Any) -> Any:
    """step_same(table, rates, scratch, counts, row_step): steps the strengths of fields that have several entries.

    counts: of slots and entries. All strengths of fields with themselves are put where rows read them.
    """
    lanes, vector, rest_of = shape.lanes, shape.vector, _make_rest_of(shape)

    @inlined
    def step_pairs(table, rates, scratch, slot, at, row_step):  # type: ignore[no-untyped-def]
        _start, _n_entries, sample_weight, slope = row_step
        products = splat(np.float32(0), vector)
        for owner in range(read(scratch.room[3], slot), read(scratch.room[3], slot + 1)):
            for column in range(0, lanes, vector):
                mine, rest = rest_of(table, scratch, slot, owner, column)
                products = fma(mine, rest, products)
        away = (read(table.own, at) - np.float32(1)) * (rates.l2_factors * sample_weight)
        gradient = fma(np.float32(0.5) * reduce_add(products), slope, away)
        step_number(table.own, at, rates, sample_weight, gradient)

    @called
    def step_same(table, rates, scratch, counts, row_step):  # type: ignore[no-untyped-def]
        n_slots, n_owners = counts
        firsts = scratch.room[3]
        for slot in range(n_slots):
            place = read(scratch.room[2], slot)
            if n_slots < n_owners and read(firsts, slot + 1) - read(firsts, slot) > 1:
                step_pairs(table, rates, scratch, slot, table.own_last + place, row_step)
            write(table.own, read(scratch.room[1], slot) + place, read(table.own, table.own_last + place))

    return step_same
