"""Integers, truths and days that lie close together are codes of a span: the same features and counts as one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm.data import coded_rows
from dfm.data.coded_rows import KnownTables
from dfm.data.encoding import Coded, code_batch, encode_batch
from dfm.data.schema import Schema, resolve
from dfm.data.vocabulary import FeatureTally
from tests.data.test_preparation import assert_same_arrays

BITS = 14
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
    """Batches of a column of one type: near its least, its greatest or zero, within a width that may be too large."""
    kind = draw(st.sampled_from(list(BOUNDS)))
    least, greatest = BOUNDS[kind]
    start = draw(st.sampled_from([least, max(least, min(greatest, 0)), greatest]))
    width = draw(st.sampled_from([1, 70, 300, 60_000]))
    near = st.integers(max(least, start - width), min(greatest, start + width))
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    found = []
    for size in sizes:
        drawn = draw(st.lists(st.none() | near, min_size=size, max_size=size))
        numbers = pa.array(drawn * 120, pa.int32() if kind == pa.date32() else pa.int64())
        found.append(numbers.cast(kind))
    return found


@given(batches=columns())
def test_features_and_counts_are_those_of_the_integers_one_by_one(batches):
    known, mine, theirs = KnownTables(), FeatureTally(BITS), FeatureTally(BITS)
    for values in batches:
        ours = coded(values, known, mine)
        others = encode_batch(batch_of(values), SCHEMA, BITS, {}, "classification", theirs)
        assert_same_arrays(ours.rows.hashed(), others.rows)
    assert_same_arrays(mine.counts(), theirs.counts())


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
        pa.array([0, coded_rows.MOST_CODES] * 40_000),
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


def test_a_column_that_left_its_span_for_good_keeps_the_one_it_had():
    (near, far, back), made = tables_of([(0, 9), (10**6, 10**6 + 9), (0, 9)])
    assert far is None
    assert near is back
    assert made == 1


def test_rows_that_are_all_missing_have_codes_too():
    table = codes_of(pa.array([None] * 9, pa.int64()), KnownTables())
    assert table is not None
    rows = coded(pa.array([None] * 9, pa.int64()), KnownTables()).rows
    assert set(rows.columns[0].tolist()) == {len(table) - 1}
