"""Integers, truths and days that lie close together are codes of a span: the same features and counts as one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm.data import known_tables
from dfm.data.encoding import Coded, code_batch, encode_batch
from dfm.data.known_tables import KnownTables
from dfm.data.schema import Schema, resolve
from dfm.data.vocabulary import FeatureTally
from tests.data.test_preparation import assert_same_arrays

BITS, MOST = 14, known_tables.MOST_CODES - 1
"""Bits of features, and most integers of a span."""
SCHEMA = resolve(Schema(categorical=["c"]), ["c", "label"])
BOUNDS = {
    pa.int8(): (-128, 127),
    pa.int16(): (-(2**15), 2**15 - 1),
    pa.int32(): (-(2**31), 2**31 - 1),
    pa.int64(): (-(2**63), 2**63 - 1),
    pa.uint8(): (0, 255),
    pa.uint16(): (0, 2**16 - 1),
    pa.uint32(): (0, 2**32 - 1),
    pa.date32(): (-700_000, 2_000_000),
    pa.bool_(): (0, 1),
    pa.float32(): (-(2**24), 2**24),
    pa.float64(): (-(2**53), 2**53),
}


def batch_of(values: pa.Array) -> pa.RecordBatch:
    return pa.record_batch({"c": values, "label": pa.array(np.arange(len(values)) % 2)})


def coded(values: pa.Array, known: KnownTables, tally: FeatureTally | None = None) -> Coded:
    return code_batch(batch_of(values), SCHEMA, BITS, {}, "classification", tally, known)


def codes_of(values: pa.Array, known: KnownTables) -> np.ndarray | None:
    """The table of a column that was coded; None where it was not."""
    return coded(values, known).rows.tables[0]


@st.composite
def columns(draw: st.DrawFn) -> list[pa.Array]:
    """Batches of a column, as shards have it in one type or in several: near the least, the greatest or zero of that
    type, within a width that may be too large.
    """
    kinds = draw(st.lists(st.sampled_from(list(BOUNDS)), min_size=1, max_size=2))
    width = draw(st.sampled_from([1, 70, 300, 60_000]))
    found = []
    for size in draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)):
        kind = draw(st.sampled_from(kinds))
        least, greatest = BOUNDS[kind]
        start = draw(st.sampled_from([least, max(least, min(greatest, 0)), greatest]))
        near = st.integers(max(least, start - width), min(greatest, start + width))
        drawn = draw(st.lists(st.none() | near, min_size=size, max_size=size))
        found.append(of_kind(drawn * 120, kind))
    return found


def of_kind(values: Sequence[int | None], kind: pa.DataType) -> pa.Array:
    """Integers as values of a type."""
    return pa.array(values, pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)


def assert_same_features(batches: Sequence[pa.Array]) -> list[Coded]:
    """The batches coded one after the other have the features and counts of each value by itself."""
    known, mine, theirs, found = KnownTables(), FeatureTally(BITS), FeatureTally(BITS), []
    for values in batches:
        found.append(coded(values, known, mine))
        others = encode_batch(batch_of(values), SCHEMA, BITS, {}, "classification", theirs)
        assert_same_arrays(found[-1].rows.hashed(), others.rows)
    assert_same_arrays(mine.counts(), theirs.counts())
    return found


@given(batches=columns())
def test_features_and_counts_are_those_of_the_integers_one_by_one(batches):
    assert_same_features(batches)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(BOUNDS, 2)), ids=str)
def test_shards_that_hold_a_column_in_two_types_have_the_features_of_each(first, second):
    """Truths and days are other categories than the integers that they are kept as; integers of all widths are one."""
    ends = {kind: [max(BOUNDS[kind][0], -50), min(BOUNDS[kind][1], 120), None, 1] for kind in (first, second)}
    found = assert_same_features([of_kind(values * 60, kind) for kind, values in ends.items()])
    assert all(each.rows.tables[0] is not None for each in found)


def test_integers_of_all_widths_and_whole_numbers_share_a_table():
    known = KnownTables()
    tables = [codes_of(of_kind([1, 2, None] * 9, kind), known) for kind in (pa.int8(), pa.uint32(), pa.float64())]
    assert tables[0] is not None
    assert all(table is tables[0] for table in tables)


def test_a_batch_of_many_codes_has_the_features_of_each_value():
    values = np.random.default_rng(0).permutation(45_000) - 3_000
    (found,) = assert_same_features([pa.array(values)])
    assert int(found.rows.columns[0].max()) >= 1 << 15


def test_whole_numbers_with_gaps_are_the_integers_that_they_were():
    """pandas makes floating numbers of integers with gaps."""
    numbers = pa.array([1.0, np.nan, 3.0, -0.0] * 20)
    integers = pa.array([1, None, 3, 0] * 20)
    ours, theirs = coded(numbers, KnownTables()).rows, coded(integers, KnownTables()).rows
    assert ours.columns[0].dtype == np.uint16
    np.testing.assert_array_equal(ours.columns[0], theirs.columns[0])
    assert_same_arrays(ours.hashed(), theirs.hashed())


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint32(), pa.date32(), pa.bool_(), pa.float64()], ids=str)
def test_close_values_of_each_type_have_codes(kind):
    values = pa.array([None, 1, 0, 1] * 20, pa.int32()).cast(kind)
    table = codes_of(values, KnownTables())
    assert table is not None
    assert coded(values, KnownTables()).rows.columns[0].dtype == np.uint16


@pytest.mark.parametrize(
    "values",
    [
        pa.array([0, MOST] * 40_000),
        pa.array([0, 100]),
        pa.array([2**63 - 1] * 9),
        pa.array([-(2**63)] * 9),
        pa.array([1, 2] * 9, pa.uint64()),
        pa.array([1.0, 2.5] * 9),
        pa.array([1e30] * 9),
        pa.array(["1", "2"] * 9),
    ],
    ids=["far apart", "more than rows", "greatest", "least", "64 bits without a sign", "parts", "too large", "text"],
)
def test_what_has_no_span_stays_as_it_is(values):
    assert codes_of(values, KnownTables()) is None


def tables_of(spans: Sequence[tuple[int, int] | None], n_rows: int = 10_000) -> tuple[list[np.ndarray | None], int]:
    """The table of each batch of one column, by the bounds of its values, and how many were made."""
    known, made = KnownTables(), []

    def make(first: int, length: int) -> np.ndarray:
        made.append(np.arange(first, first + length + 1).astype(np.uint32))
        return made[-1]

    found = []
    for bounds in spans:
        span = known.of_span("column", bounds, n_rows, make)
        if span is not None and bounds is not None:
            assert span[0] <= bounds[0]
            assert bounds[1] < span[0] + len(span[1]) - 1
        found.append(None if span is None else span[1])
    return found, len(made)


def test_a_table_is_made_again_only_where_values_leave_its_span():
    (first, again, gaps, wider, within), made = tables_of([(3, 40), (0, 63), None, (3, 64), (10, 20)])
    assert first is again is gaps
    assert wider is within is not first
    assert made == 2


def test_a_span_that_grows_value_by_value_is_seldom_made_again():
    found, made = tables_of([(0, top) for top in range(8000)])
    assert all(table is not None for table in found)
    assert made < 40


def test_a_span_may_have_as_many_integers_as_there_are_codes():
    (inside,), _ = tables_of([(7, 7 + MOST - 1)], 10**5)
    (outside,), _ = tables_of([(7, 7 + MOST)], 10**5)
    assert inside is not None
    assert len(inside) <= MOST + 1, "one for missing ones beside them, though round numbers would be more"
    assert outside is None


def test_few_rows_later_may_widen_a_span():
    known = KnownTables()
    for bounds, n_rows in (((0, 20_000), 30_000), ((500, 40_000), 2)):
        assert known.of_span("column", bounds, n_rows, lambda _, length: np.zeros(length + 1, np.uint32)) is not None


def test_a_span_of_nothing_is_no_part_of_the_span_that_follows():
    (nothing, again, far), made = tables_of([None, None, (10**6, 10**6 + 9)])
    assert nothing is again
    assert far is not None
    assert made == 2


def test_a_column_that_left_its_span_has_no_codes_from_then_on():
    known = KnownTables()
    near, far = pa.array([1, 2, None] * 9), pa.array([10**6, 10**6 + 1] * 9)
    assert codes_of(near, known) is not None
    assert codes_of(far, known) is None
    assert codes_of(near, known) is None


def test_rows_that_are_all_missing_have_codes_too():
    (found,) = assert_same_features([pa.array([None] * 9, pa.int64())])
    table = found.rows.tables[0]
    assert table is not None
    assert set(found.rows.columns[0].tolist()) == {len(table) - 1}
