"""Numbers that are looked up have the buckets of numbers that are computed: those of their text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm.data.encoding import Coded, Encoded, code_batch, encode_batch
from dfm.data.known_tables import KnownTables
from dfm.data.schema import Schema, resolve
from dfm.data.small_numbers import are_looked_up
from dfm.data.transforms import TRANSFORMS, NumberStatistics
from dfm.data.vocabulary import FeatureTally

STATISTICS = {"I": NumberStatistics(boundaries=(-2.0, 0.0, 0.5, 7.0, 20_000.0))}
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
SOME = [0, 1, 2, 3, 7, 8, 100, 127, 16_383, 16_384, 16_385, 32_767, 2**24, 2**24 + 1, 2**31 - 1, 10**18, -1, -5]
BUCKETS = [name for name, transform in TRANSFORMS.items() if transform.makes_buckets]


def many(array: pa.Array) -> pa.Array:
    """As many numbers as are looked up."""
    return pa.concat_arrays([array] * (3000 // max(len(array), 1) + 1))


def encoded(array: pa.Array, transform: str, nan: str = "error") -> Encoded:
    """A table of one numeric column."""
    schema = resolve(Schema(numeric=["I"], transforms={"I": transform}, nan=nan), ["label", "I"])
    data = pa.RecordBatch.from_arrays([array], names=["I"])
    return encode_batch(data, schema, 20, STATISTICS, None)


def coded(array: pa.Array, transform: str) -> Coded:
    """The same as codes, which are counted too."""
    schema = resolve(Schema(label="y", numeric=["I"], transforms={"I": transform}), ["y", "I"])
    data = pa.RecordBatch.from_arrays([pa.array([0] * len(array), pa.int8()), array], names=["y", "I"])
    tally = FeatureTally(20)
    found = code_batch(data, schema, 20, STATISTICS, "regression", tally, KnownTables())
    counts, expected = tally.counts(), np.unique(found.rows.indices_of(0), return_counts=True)
    assert (counts.ids.tolist(), counts.counts.tolist()) == tuple(part.tolist() for part in expected)
    return found


def assert_as_text(array: pa.Array, transform: str) -> None:
    texts = pa.array([None if number is None else repr(number) for number in array.to_pylist()], pa.string())
    found, expected = encoded(array, transform), encoded(texts, transform)
    assert found.rows.indices.tolist() == expected.rows.indices.tolist()
    assert found.good.tolist() == expected.good.tolist()
    codes = coded(array, transform)
    assert codes.rows.columns[0].dtype == np.uint16
    assert codes.rows.indices_of(0).tolist() == expected.rows.indices.tolist()
    assert codes.good.tolist() == expected.good.tolist()


@pytest.mark.parametrize("transform", BUCKETS)
@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_integers_of_any_type_have_the_bucket_of_their_text(kind, transform):
    low, high = (np.iinfo(kind.to_pandas_dtype()).min, np.iinfo(kind.to_pandas_dtype()).max)
    there = [number for number in SOME if low <= number <= high]
    array = pa.array([None, *there, None, low, high], kind)
    assert_as_text(array, transform)
    for numbers in (many(array), many(array).slice(3), many(array.drop_null())):
        assert_as_text(numbers, transform)


@pytest.mark.parametrize("transform", BUCKETS)
def test_every_small_number_has_the_bucket_of_its_text(transform):
    assert_as_text(pa.array(np.arange(20_000)), transform)


@pytest.mark.parametrize("transform", BUCKETS)
@given(
    st.lists(
        st.none()
        | st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.5, 16_383.0, 16_383.5, 16_384.0, -3.0, 1e300])
        | st.floats(width=32)
    ),
    st.sampled_from([pa.float32(), pa.float64()]),
)
def test_floats_have_the_bucket_of_their_text_and_bad_ones_reject_their_row(transform, numbers, kind):
    numbers = [x if x is None or kind == pa.float64() or abs(x) < 1e38 or x != x else 1e38 for x in numbers]
    array = pa.array(numbers, kind, from_pandas=False)
    array = many(array) if numbers else array
    found = encoded(array, transform)
    assert found.good.tolist() == [x is None or bool(np.isfinite(x)) for x in array.to_pylist()]
    assert_as_text(array.filter(pa.array(found.good)), transform)


def test_a_problem_among_numbers_is_told_with_its_place_and_value():
    fine = pa.array([5.0, None, 0.25] * 1000)
    problems = encoded(pa.concat_arrays([fine, pa.array([float("nan"), 3.0, float("inf")])]), "log2-bucket").problems
    assert [(p.reason, p.count, p.first_row, p.value) for p in problems] == [("not finite", 2, 3000, "nan")]
    missing = encoded(many(pa.array([5.0, float("nan"), None])), "log2-bucket", nan="missing")
    assert not missing.problems
    assert len(set(missing.rows.indices.tolist())) == 2


def test_few_numbers_and_very_many_buckets_are_computed():
    assert are_looked_up(pa.array(range(5000)), "quantile", STATISTICS["I"])
    assert not are_looked_up(pa.array(range(50)), "quantile", STATISTICS["I"])
    bounds = NumberStatistics(boundaries=tuple(map(float, range(70_000))))
    assert not are_looked_up(pa.array(range(5000)), "quantile", bounds)
    assert not are_looked_up(pa.array(map(str, range(5000))), "quantile", STATISTICS["I"])
