"""Types of columns that footers tell are refused for the same reason, and only where, their rows would be."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa
import pytest

from dfm.data.arrow_types import without_views
from dfm.data.column_types import check_types
from dfm.data.encoding import encode_batch
from dfm.data.schema import resolve
from dfm.data.texts import texts_of
from dfm.errors import DataError
from dfm.settings.tables import Schema
from tests.support.arrow_cases import BITS, CASES, Case, attempt

ROLES: dict[str, dict[str, Any]] = {
    "category": {"categorical": ["x"]},
    "number": {"numeric": ["x"]},
    "list": {"lists": ["x"]},
    "split text": {"lists": ["x"], "list_separator": "|"},
    "hour": {"derive": {"hour": "hour(x)"}},
    "weekday": {"derive": {"weekday": "weekday(x)"}},
    "hours": {"derive": {"hours": "hours(x, x)"}},
    "label": {"label": "x"},
    "positive label": {"label": "x", "label_positive": ["1"]},
    "weight": {"weight": "x"},
}
OF_VALUES = "interval (month_day_nano)", "positive label"
"""A label that is refused for its values, as Parquet holds none of them."""
PAIRS = [(case, role) for case in CASES for role in ROLES if (case.title, role) != OF_VALUES]


@pytest.mark.parametrize(("case", "role"), [pytest.param(*pair, id=f"{pair[0].title} as {pair[1]}") for pair in PAIRS])
def test_types_are_refused_whose_rows_would_be_for_the_same_reason(case: Case, role: str) -> None:
    for array in case.arrays:
        ones = pa.array([1] * len(array))
        data = pa.RecordBatch.from_arrays([ones, ones, array], ["label", "one", "x"])
        named = {"label": "label", "categorical": ["one"], **ROLES[role]}
        schema = resolve(Schema(**named), data.schema.names)
        found = attempt(partial(check_types, schema, data.schema))[1]
        assert found == attempt(partial(encode_batch, without_views(data), schema, BITS, {}, "regression"))[1]


@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_columns_that_group_and_order_rows_have_one_value_a_row(case: Case) -> None:
    schema = resolve(Schema(categorical=["one"]), ["label", "one"])
    for array in case.arrays:
        data = without_views(pa.RecordBatch.from_arrays([array], ["x"]))
        told = attempt(partial(check_types, schema, data.schema, group="x"))[1]
        assert not told or told == attempt(partial(texts_of, data.column("x"), "x"))[1]
        assert bool(told) == (case.is_list or pa.types.is_struct(array.type))
        told = attempt(partial(check_types, schema, data.schema, time="x"))[1]
        assert ("has no order in time; name another column as schema.time" in told) == case.is_list


def test_a_bound_that_cannot_be_compared_with_the_time_is_refused() -> None:
    schema = resolve(Schema(categorical=["one"]), ["label", "one"])
    check_types(schema, pa.schema([("x", pa.timestamp("us"))]), time="x", bound="2026-11-20")
    with pytest.raises(DataError, match=r"data\.validation_from = '2026-11-20' cannot be compared with column 'x'"):
        check_types(schema, pa.schema([("x", pa.int64())]), time="x", bound="2026-11-20")


@pytest.mark.parametrize("role", ["label", "weight"])
@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.map_(pa.string(), pa.int64()), pa.time32("s")])
def test_a_label_or_weight_of_another_type_is_to_be_another_column(kind: pa.DataType, role: str) -> None:
    schema = resolve(Schema(**{"label": "label", "categorical": ["one"], role: "x"}), ["label", "one", "x"])
    with pytest.raises(DataError, match=rf"not numeric; write numbers, or .* name another column as schema\.{role}$"):
        check_types(schema, pa.schema([("x", kind)]))
