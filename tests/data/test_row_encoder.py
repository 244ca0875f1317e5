"""A few rows of Python values are hashed as a table of them is; what only tables can take is left to them."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dfm.data.encoding import encode_batch
from dfm.data.row_encoder import MOST_ROWS, NotPlain, RowEncoder
from dfm.errors import DataError
from dfm.model.fm_model import FMModel
from tests.support.small_models import EVERY_KIND, HASH_BITS, PLAIN, STATISTICS, make_model, resolved

SCHEMA = resolved(PLAIN)
ENCODER = RowEncoder(SCHEMA, HASH_BITS, STATISTICS)
ONE_ROW: dict[str, list[Any]] = {"site": ["site 1"], "zone": [3], "visits": [12], "price": [2.5]}
WHOLE = st.integers(-(2**53) + 1, 2**53 - 1)
CATEGORIES = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "text": st.text(max_size=40),
    "numeric text": st.integers().map(str) | st.floats().map(str),
    "bool": st.booleans(),
    "whole float": st.integers(-(2**63), 2**63 - 1024).map(float),
}
OTHERS = [
    *(1.5, float("nan"), 2.0**63, b"bytes", np.int64(3), decimal.Decimal("5.00")),
    *(datetime.date(2026, 11, 20), datetime.datetime(2026, 11, 20, 7, 5)),
]
NUMBERS = {
    "int": WHOLE,
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "text": st.floats(allow_nan=False, allow_infinity=False).map(repr) | WHOLE.map(lambda n: f" {n}\t") | st.just(""),
}


@pytest.fixture(scope="module")
def model() -> FMModel:
    """A model that the fast path serves."""
    return make_model(PLAIN)


def as_array(values: list[Any]) -> pa.Array:
    """Arrow sees by itself that integers need 64 unsigned bits only where they come first."""
    numbers = [value for value in values if type(value) is int]
    return pa.array(values, pa.uint64() if max(numbers, default=0) >= 2**63 else None)


def encode_as_table(data: Mapping[str, list[Any]]) -> Any:
    batch = pa.table({name: as_array(values) for name, values in data.items()}).combine_chunks().to_batches()[0]
    return encode_batch(batch, SCHEMA, HASH_BITS, STATISTICS, None)


def assert_encoded_like_a_table(data: Mapping[str, list[Any]]) -> None:
    expected = encode_as_table(data)
    found = ENCODER.encode(data, len(data["site"]))
    assert expected.problems == []
    np.testing.assert_array_equal(found.indptr, expected.rows.indptr)
    np.testing.assert_array_equal(found.indices, expected.rows.indices)
    assert found.values.size == expected.rows.values.size == 0
    assert found.n_rows == expected.rows.n_rows


def columns(kinds: Mapping[str, st.SearchStrategy[Any]], n_rows: int) -> st.SearchStrategy[list[Any]]:
    """Columns of one kind each, with gaps."""
    return st.sampled_from(sorted(kinds)).flatmap(
        lambda kind: st.lists(st.none() | kinds[kind], min_size=n_rows, max_size=n_rows)
    )


PLAIN_ROWS = st.integers(1, 5).flatmap(
    lambda n: st.fixed_dictionaries(
        {
            "site": columns(CATEGORIES, n),
            "zone": columns(CATEGORIES, n),
            "visits": columns(NUMBERS, n),
            "price": columns(NUMBERS, n),
        }
    )
)


@given(PLAIN_ROWS)
@example({"site": [""], "zone": [None], "visits": [""], "price": [None]})
@example({"site": [-0.0], "zone": [-0.0], "visits": [-0.0], "price": [-0.0]})
@example({"site": ["0"], "zone": [False], "visits": [2.0], "price": [2.5]})
def test_plain_rows_are_hashed_as_a_table_of_them_is(data: dict[str, list[Any]]) -> None:
    assert_encoded_like_a_table(data)


@given(st.text("0123456789.eE+-_ \t\x1c\u00a0\u0661infaINX", max_size=6))
@example("1_000")
@example("\u0661")
@example("1e999")
@example("nan")
@example(" ")
def test_text_in_a_numeric_column_is_read_as_a_table_reads_it_or_left_to_it(text: str) -> None:
    data = {**ONE_ROW, "visits": [text]}
    try:
        ENCODER.encode(data, 1)
    except NotPlain:
        return
    assert_encoded_like_a_table(data)


@pytest.mark.parametrize("value", OTHERS)
def test_other_categories_are_left_to_the_table_and_score_the_same(model: FMModel, value: Any) -> None:
    data = {**ONE_ROW, "site": [value]}
    with pytest.raises(NotPlain):
        ENCODER.encode(data, 1)
    table = pa.table({name: pa.array(values) for name, values in data.items()})
    np.testing.assert_array_equal(model.predict(data), model.predict(table))


@pytest.mark.parametrize("value", [np.float64(7.0), np.int32(7), decimal.Decimal("7")])
def test_other_numbers_are_left_to_the_table_and_score_the_same(model: FMModel, value: Any) -> None:
    data = {**ONE_ROW, "visits": [value]}
    with pytest.raises(NotPlain):
        ENCODER.encode(data, 1)
    np.testing.assert_array_equal(model.predict(data), model.predict({**ONE_ROW, "visits": [7]}))


@pytest.mark.parametrize("value", ["many", "1_000", "\u0661", "nan", float("nan"), float("-inf"), "1e999"])
def test_bad_numbers_are_refused_as_in_a_table(model: FMModel, value: Any) -> None:
    data = {**ONE_ROW, "visits": [value]}
    with pytest.raises(NotPlain):
        ENCODER.encode(data, 1)
    with pytest.raises(DataError) as from_table:
        model.predict(pa.table({name: pa.array(values, from_pandas=False) for name, values in data.items()}))
    with pytest.raises(DataError) as from_rows:
        model.predict(data)
    assert str(from_rows.value) == str(from_table.value)


def test_only_categories_and_buckets_are_taken() -> None:
    assert ENCODER.usable
    assert not RowEncoder(resolved(EVERY_KIND), HASH_BITS, STATISTICS).usable
    assert not RowEncoder(resolved({"numeric": ("age",), "transforms": {"age": "raw"}}), HASH_BITS, {}).usable


def test_many_rows_score_as_few_do(model: FMModel) -> None:
    few = {name: values * MOST_ROWS for name, values in ONE_ROW.items()}
    many = {name: values * (MOST_ROWS + 1) for name, values in ONE_ROW.items()}
    assert set(model.predict(few)) == set(model.predict(many)) == set(model.predict(ONE_ROW))
    assert len(model.predict(many)) == MOST_ROWS + 1


def test_the_fast_path_is_the_one_that_serves(model: FMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.predict(ONE_ROW)
    monkeypatch.setattr(FMModel, "encode", lambda *_: pytest.fail("one plain row went through Arrow"))
    np.testing.assert_array_equal(model.predict(ONE_ROW), expected)
    np.testing.assert_array_equal(model.predict({**ONE_ROW, "unused": [object()]}), expected)
