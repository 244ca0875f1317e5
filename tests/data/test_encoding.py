"""Rows by the definition, one Python loop per value; and what becomes of rows that break the schema."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm.data.encoding import Encoded, encode_batch
from dfm.data.hashed_rows import HashedRows, arranged, concatenate_rows, take_rows
from dfm.data.schema import Schema, resolve
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import FeatureTally, count_features
from dfm.errors import DataError
from tests.support.tokens import MISSING, PRESENT, bucket, category, cross, token

BITS = 20
ARRAYS = [entry.name for entry in dataclasses.fields(HashedRows)]
STATISTICS = {
    "price": NumberStatistics(mean=2.0, stdev=4.0),
    "age": NumberStatistics(boundaries=(18.0, 30.0, 65.0)),
}


def batch_of(columns: Mapping[str, Any]) -> pa.RecordBatch:
    arrays = {name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()}
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def encode(columns: Mapping[str, Any], task: str | None = "classification", **schema: Any) -> Encoded:
    """The rows of some columns; without a label among them, every label is 1."""
    n_rows = len(next(iter(columns.values())))
    batch = batch_of({"label": [1] * n_rows, **columns} if task else columns)
    resolved = resolve(Schema(**schema), list(dict.fromkeys(["label", *columns])))
    return encode_batch(batch, resolved, BITS, STATISTICS, task)


def encode_labels(label: pa.Array, task: str = "classification", **schema: Any) -> Encoded:
    return encode({"label": label, "C": ["a"] * len(label)}, task, categorical=["C"], **schema)


def reasons(encoded: Encoded) -> list[tuple[str, str, int, int, str]]:
    return [dataclasses.astuple(problem) for problem in encoded.problems]


def entries(rows: HashedRows, n_fields: int) -> list[list[tuple[int, int, float]]]:
    """(field, index, value) of every entry of every row."""
    fields = rows.fields if rows.fields.size else np.arange(len(rows.indices)) % n_fields
    values = rows.values if rows.values.size else np.ones(len(rows.indices), np.float32)
    assert len(rows.indices) == len(fields) == len(values) == rows.indptr[-1]
    flat = list(zip(fields.tolist(), rows.indices.tolist(), values.tolist(), strict=True))
    return [flat[start:stop] for start, stop in itertools.pairwise(rows.indptr)]


def indices_of(encoded: Encoded) -> list[list[int]]:
    return [[index for _, index, _ in row] for row in entries(encoded.rows, 1)]


def assert_same_rows(left: HashedRows, right: HashedRows) -> None:
    for name in ARRAYS:
        ours, theirs = getattr(left, name), getattr(right, name)
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


# --------------------------------------------------------------------------------------------------- labels ----

LABELS = {
    "int8": pa.array([1, 0, 1], pa.int8()),
    "uint64": pa.array([1, 0, 1], pa.uint64()),
    "bool": pa.array([True, False, True]),
    "float32": pa.array([1.0, 0.0, 1.0], pa.float32()),
    "float64": pa.array([1.0, -0.0, 1.0]),
    "decimal": pa.array([decimal.Decimal(1), decimal.Decimal(0), decimal.Decimal(1)]),
    "string": pa.array(["1", "0", "1"]),
    "string with point and spaces": pa.array(["1.0", " 0 ", "1e0"]),
    "large_string": pa.array(["1", "0", "1"], pa.large_string()),
    "binary": pa.array([b"1", b"0", b"1"]),
    "dictionary of strings": pa.array(["1", "0", "1"]).dictionary_encode(),
    "dictionary of bytes": pa.array([b"1", b"0", b"1"]).dictionary_encode(),
    "dictionary of integers": pa.array([1, 0, 1]).dictionary_encode(),
}


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_label_is_a_number_whatever_its_type(label, task):
    encoded = encode_labels(label, task)
    assert encoded.rows.labels.tolist() == [1.0, 0.0, 1.0]
    assert encoded.rows.labels.dtype == np.float32
    assert (encoded.problems, encoded.good.tolist()) == ([], [True] * 3)
    assert encode_labels(label.slice(1), task).rows.labels.tolist() == [0.0, 1.0]


BAD_LABELS = [
    (pa.array([1, None]), "label is missing", "None"),
    (pa.array([True, None]), "label is missing", "None"),
    (pa.array(["1", ""]), "label is missing", "''"),
    (pa.array(["1", "  "]), "label is missing", "'  '"),
    (pa.array(["1", None]).dictionary_encode(), "label is missing", "None"),
    (pa.array(["1", "yes"]), "label is not a number", "'yes'"),
    (pa.array([b"1", b"\xff"]), "label is not a number", "b'\\xff'"),
    (pa.array(["1", "1_0"]), "label is not a number", "'1_0'"),
    (pa.array(["1", "nan"]), "label is not finite", "'nan'"),
    (pa.array([1.0, math.nan]), "label is not finite", "nan"),
    (pa.array([1.0, -math.inf]), "label is not finite", "-inf"),
    (pa.array([1, 2]), "label is neither 0 nor 1", "2"),
    (pa.array([1, -1]), "label is neither 0 nor 1", "-1"),
    (pa.array(["1", "0.5"]), "label is neither 0 nor 1", "'0.5'"),
]


@pytest.mark.parametrize(("label", "reason", "shown"), BAD_LABELS)
def test_a_bad_label_rejects_its_row_with_reason_place_and_value(label, reason, shown):
    encoded = encode_labels(label)
    assert reasons(encoded) == [("label", reason, 1, 1, shown)]
    assert encoded.good.tolist() == [True, False]
    assert encoded.rows.labels.tolist() == [1.0]


def test_regression_takes_any_finite_label():
    encoded = encode_labels(pa.array([2.5, -1e30, math.nan, None, math.inf]), "regression")
    assert encoded.rows.labels.tolist() == [2.5, np.float32(-1e30)]
    assert [problem.reason for problem in encoded.problems] == ["label is missing", "label is not finite"]


def test_a_column_of_labels_that_are_all_missing_leaves_no_row():
    encoded = encode_labels(pa.nulls(3))
    assert reasons(encoded) == [("label", "label is missing", 3, 0, "None")]
    assert encoded.rows.n_rows == 0
    assert encoded.rows.indptr.tolist() == [0]


POSITIVE = {
    "string": (pa.array(["click", "view", "buy", None]), ["click", "buy"]),
    "empty text is missing": (pa.array(["click", "view", "buy", ""]), ["click", "buy"]),
    "dictionary": (pa.array(["click", "view", "buy", None]).dictionary_encode(), ["click", "buy"]),
    "bytes": (pa.array([b"click", b"view", b"buy", b""]), ["click", "buy"]),
    "large bytes": (pa.array([b"click", b"view", b"buy", b""], pa.large_binary()), ["click", "buy"]),
    "bytes of one length": (pa.array([b"yes", b"no ", b"oui", None], pa.binary(3)), ["yes", "oui"]),
    "views of bytes": (pa.array([b"click", b"view", b"buy", b""], pa.binary_view()), ["click", "buy"]),
    "dictionary of bytes": (pa.array([b"yes", b"no ", b"oui", None], pa.binary(3)).dictionary_encode(), ["yes", "oui"]),
    "integers": (pa.array([4, 1, 5, None]), ["4", "5"]),
    "booleans": (pa.array([True, False, True, None]), ["true"]),
}


@pytest.mark.parametrize(("label", "positive"), POSITIVE.values(), ids=POSITIVE)
def test_label_positive_names_the_values_that_are_ones(label, positive):
    encoded = encode_labels(label, label_positive=positive)
    assert encoded.rows.labels.tolist() == [1.0, 0.0, 1.0]
    assert [(problem.reason, problem.first_row) for problem in encoded.problems] == [("label is missing", 3)]
    assert encode_labels(label.slice(1, 2), label_positive=positive).rows.labels.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("label", [pa.array([["click"]]), pa.array([b"\xff\xfe"]), pa.array([b"\xff"], pa.binary(1))])
def test_a_label_without_text_cannot_be_compared_with_label_positive(label):
    with pytest.raises(DataError, match=r"column 'label' holds .* label_positive cannot be compared with"):
        encode_labels(label, label_positive=["click"])


# -------------------------------------------------------------------------------------------------- weights ----


def test_weights_follow_their_rows_and_bad_ones_reject_them():
    weights = ["0.5", None, "heavy", "inf", "-1", "0", " 2 ", ""]
    encoded = encode({"C": list("abcdefgh"), "w": weights}, categorical=["C"], weight="w")
    assert encoded.rows.weights.tolist() == [0.5, 0.0, 2.0]
    assert encoded.rows.weights.dtype == np.float32
    assert indices_of(encoded) == [[category("C", text)] for text in "afg"]
    assert reasons(encoded) == [
        ("w", "weight is missing or not a number", 3, 1, "None"),
        ("w", "weight is not finite", 1, 3, "'inf'"),
        ("w", "weight is negative", 1, 4, "'-1'"),
    ]


def test_without_a_weight_column_no_weights_are_stored():
    assert encode({"C": ["a", "b"]}, categorical=["C"]).rows.weights.size == 0


def test_scoring_reads_neither_label_nor_weight():
    columns = {"C": ["a"], "label": ["no number"], "w": ["none either"]}
    encoded = encode(columns, None, categorical=["C"], weight="w")
    assert (encoded.problems, encoded.rows.n_rows, encoded.rows.weights.size) == ([], 1, 0)


# ------------------------------------------------------------------------------------------------- bad rows ----


def test_a_row_with_several_problems_is_counted_once_under_the_first():
    columns = {
        "label": [1, None, 7, 0, 1, 0],
        "w": [1.0, -1.0, 1.0, -2.0, 1.0, 1.0],
        "I1": ["1", "x", "x", "x", "x", "3"],
        "I2": ["1", "y", "2", "2", "y", "y"],
    }
    encoded = encode(columns, numeric=["I*"], weight="w")
    assert reasons(encoded) == [
        ("label", "label is missing", 1, 1, "None"),
        ("label", "label is neither 0 nor 1", 1, 2, "7"),
        ("w", "weight is negative", 1, 3, "-2.0"),
        ("I1", "not a number", 1, 4, "'x'"),
        ("I2", "not a number", 1, 5, "'y'"),
    ]
    assert encoded.good.tolist() == [True] + [False] * 5
    assert sum(problem.count for problem in encoded.problems) == 5


def test_a_number_used_by_its_field_and_by_crosses_is_rejected_once():
    encoded = encode({"C": ["a", "b"], "I": ["1", "one"]}, categorical=["C"], numeric=["I"], crosses=[["C", "I"]])
    assert reasons(encoded) == [("I", "not a number", 1, 1, "'one'")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("transform", ["log2-bucket", "quantile", "standardize", "raw"])
def test_numbers_that_are_not_finite_reject_their_row(value, transform):
    for column in (pa.array([1.0, value]), pa.array(["1", str(value)])):
        encoded = encode({"I": column}, numeric=["I"], numeric_transform=transform)
        assert [(p.column, p.reason, p.count, p.first_row) for p in encoded.problems] == [("I", "not finite", 1, 1)]
        assert np.isfinite(encoded.rows.values).all()


@pytest.mark.parametrize("transform", ["raw", "standardize"])
def test_numbers_that_do_not_fit_32_bits_reject_their_row_where_they_are_trained_on(transform):
    numbers = [1.0, 1e39, None, -1e300, 3e38]
    encoded = encode({"x": numbers}, numeric=["x"], transforms={"x": transform})
    assert encoded.good.tolist() == [True, False, True, False, True]
    assert [p.reason for p in encoded.problems] == ["too large for a 32-bit number"]
    assert np.isfinite(encoded.rows.values).all()
    assert encode({"x": numbers}, numeric=["x"]).good.all(), "a bucket holds any number"


def test_labels_and_weights_that_do_not_fit_32_bits_reject_their_row():
    columns = {"label": [1.0, 1e39, 2.0], "w": [1.0, 1.0, 1e40], "x": ["a", "a", "a"]}
    schema = resolve(Schema(weight="w", categorical=["x"]), list(columns))
    encoded = encode_batch(batch_of(columns), schema, BITS, {}, "regression")
    assert encoded.good.tolist() == [True, False, False]
    assert [(p.column, p.reason) for p in encoded.problems] == [
        ("label", "label is too large for a 32-bit number"),
        ("w", "weight is too large for a 32-bit number"),
    ]


def test_text_that_is_no_utf8_is_no_number_and_can_be_shown():
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"7", b"\xff"]).buffers())
    for column in (bad, bad.dictionary_encode()):
        encoded = encode({"I": column}, numeric=["I"])
        assert reasons(encoded) == [("I", "not a number", 1, 1, "b'\\xff'")]


def test_a_long_bad_value_is_shortened_in_the_message():
    encoded = encode({"I": ["x" * 500]}, numeric=["I"])
    assert encoded.problems[0].value == "'" + "x" * 79


@pytest.mark.parametrize(
    ("columns", "schema", "message"),
    [
        ({"C": pa.array([["a"]])}, {"categorical": ["C"]}, "column 'C' holds lists .* calls it a single category"),
        ({"L": pa.array(["a"])}, {"lists": ["L"]}, "column 'L' holds string, but the schema calls it a list"),
        ({"I": pa.array([["1"]])}, {"numeric": ["I"]}, "column 'I' holds list.*, which is not numeric"),
        ({"I": pa.array([datetime.date(2026, 1, 1)])}, {"numeric": ["I"]}, "column 'I' holds date32.* not numeric"),
        ({"C": pa.array([{"a": 1}])}, {"categorical": ["C"]}, "column 'C' holds struct"),
    ],
)
def test_a_column_of_a_type_that_its_role_forbids_is_refused(columns, schema, message):
    with pytest.raises(DataError, match=message):
        encode(columns, **schema)


# -------------------------------------------------------------------------------------------------- numbers ----


def number_entries(column: Any, transform: str, name: str = "price") -> list[tuple[int, float]]:
    encoded = encode({name: column}, numeric=[name], numeric_transform=transform)
    assert encoded.problems == []
    return [(index, value) for [(_, index, value)] in entries(encoded.rows, 1)]


def test_raw_numbers_are_the_value_of_one_feature_and_missing_is_another():
    present, missing = token("price", PRESENT), token("price", MISSING)
    expected = [(present, -2.5), (missing, 1.0), (present, 0.0), (present, 4.0)]
    assert number_entries(["-2.5", "", "0", "4"], "raw") == expected
    assert number_entries([-2.5, None, 0.0, 4.0], "raw") == expected
    assert number_entries(pa.array(["-2.5", None, "0", "4"]).dictionary_encode(), "raw") == expected


def test_standardize_takes_mean_and_deviation_of_the_training_rows():
    present, missing = token("price", PRESENT), token("price", MISSING)
    assert number_entries([10.0, 2.0, None], "standardize") == [(present, 2.0), (present, 0.0), (missing, 1.0)]


def test_standardize_of_a_column_that_never_varied_or_was_never_seen_stays_finite():
    batch = batch_of({"price": [3.0, 5.0]})
    schema = resolve(Schema(numeric=["price"], numeric_transform="standardize"), ["label", "price"])
    constant = encode_batch(batch, schema, BITS, {"price": NumberStatistics(mean=3.0, stdev=0.0)}, None)
    assert constant.rows.values.tolist() == [0.0, 2.0]
    assert encode_batch(batch, schema, BITS, {}, None).rows.values.tolist() == [3.0, 5.0]


def test_bucketed_numbers_are_categories_without_values():
    encoded = encode({"I": [None, -1, 0, 1, 2, 3, 100]}, numeric=["I"])
    assert encoded.rows.values.size == 0
    codes = [0, 1, 2, 3, 4, 5 + math.floor(math.log(3) ** 2), 5 + math.floor(math.log(100) ** 2)]
    assert indices_of(encoded) == [[bucket("I", code)] for code in codes]


def test_quantile_buckets_count_the_boundaries_of_the_training_rows():
    encoded = encode({"age": [None, 17.9, 18.0, 29.0, 64.0, 65.0, 99.0]}, numeric=["age"], numeric_transform="quantile")
    assert indices_of(encoded) == [[bucket("age", code)] for code in (0, 1, 2, 2, 3, 4, 4)]


# ---------------------------------------------------------------------------------------- lists and crosses ----

LISTS = {
    "list": pa.array([["a", "b"], None, [], ["a", None, "a", ""]]),
    "large_list": pa.array([["a", "b"], None, [], ["a", None, "a", ""]], pa.large_list(pa.string())),
    "list of dictionaries": pa.array(
        [["a", "b"], None, [], ["a", None, "a", ""]], pa.list_(pa.dictionary(pa.int32(), pa.string()))
    ),
}
LISTED = [["a", "b"], [None], [None], ["a", None, "a", None]]


@pytest.mark.parametrize("column", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("weight", ["sqrt", "one"])
def test_every_element_of_a_list_is_a_category_and_no_element_is_missing(column, weight):
    share = {"one": lambda n: 1.0, "sqrt": lambda n: float(np.float32(1 / math.sqrt(n)))}[weight]
    expected = [[(0, category("L", text), share(len(row))) for text in row] for row in LISTED]
    for start in range(5):
        encoded = encode({"L": column.slice(start)}, lists=["L"], list_weight=weight)
        assert entries(encoded.rows, 1) == expected[start:]


def test_lists_of_fixed_size_and_of_numbers():
    pairs = pa.array([[9, 9], [1, 2], None, [3, None]], pa.list_(pa.int64(), 2)).slice(1)
    encoded = encode({"L": pairs}, lists=["L"], list_weight="one")
    assert indices_of(encoded) == [[category("L", text) for text in row] for row in (["1", "2"], [None], ["3", None])]


@pytest.mark.parametrize("column", [pa.nulls(2), pa.nulls(2, pa.list_(pa.string())), pa.array([[], []])])
def test_a_list_column_that_is_all_null_or_empty_is_all_missing(column):
    encoded = encode({"L": column}, lists=["L"])
    assert entries(encoded.rows, 1) == [[(0, token("L", MISSING), 1.0)]] * 2


def test_a_cross_is_a_category_of_the_pair():
    encoded = encode({"A": ["x", None], "I": [100, None]}, categorical=["A"], numeric=["I"], crosses=[["A", "I"]])
    logarithm = 5 + math.floor(math.log(100) ** 2)
    pairs = [("x", logarithm), (None, 0)]
    crossed = [cross("A&I", category("A", text, 30), bucket("I", code, 30)) for text, code in pairs]
    assert [row[2] for row in indices_of(encoded)] == crossed == [548276, 998934]


def test_a_cross_of_three_folds_from_the_left():
    columns = {"A": ["x", "x"], "B": ["y", "z"], "C": ["z", "y"]}
    encoded = encode(columns, categorical=["A", "B", "C"], crosses=[["A", "B", "C"]])
    name = "A&B&C"
    crossed = [
        cross(name, cross(name, category("A", a, 30), category("B", b, 30), 30), category("C", c, 30))
        for a, b, c in zip(*columns.values(), strict=True)
    ]
    assert [row[3] for row in indices_of(encoded)] == crossed
    assert crossed[0] != crossed[1]


# --------------------------------------------------------------------------------- rows by their definition ----

EVERYTHING = Schema(
    weight="w",
    categorical=["A", "B"],
    numeric=["I", "age", "price"],
    transforms={"age": "quantile", "price": "standardize"},
    lists=["L"],
    crosses=[["B", "A"], ["A", "age"]],
)
UNIFORM = Schema(categorical=["A", "B"], numeric=["I", "age"], transforms={"age": "quantile"}, crosses=[["B", "A"]])
ROW = st.fixed_dictionaries(
    {
        "label": st.sampled_from([0, 1, 1, 0, 2, None]),
        "w": st.sampled_from(["1", "2.5", "1", "-1"]),
        "A": st.sampled_from([None, "", "a", "b"]),
        "B": st.none() | st.integers(-3, 3),
        "I": st.sampled_from(["1", "77", "", "-3", "0", "many"]),
        "age": st.sampled_from([None, 3.0, 18.0, 40.5, 80.0]),
        "price": st.sampled_from([None, 1.0, -7.0]),
        "L": st.none() | st.lists(st.sampled_from([None, "p", "q"]), max_size=4),
    }
)
TYPES = {"label": pa.int64(), "w": pa.string(), "A": pa.string(), "B": pa.int64(), "I": pa.string()}
TYPES |= {"age": pa.float64(), "price": pa.float64(), "L": pa.list_(pa.string())}


def table_of(rows: Sequence[Mapping[str, Any]], dictionaries: bool) -> pa.RecordBatch:
    arrays = {name: pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()}
    if dictionaries:
        arrays = {name: a.dictionary_encode() if pa.types.is_string(a.type) else a for name, a in arrays.items()}
    return batch_of(arrays)


def is_good(row: Mapping[str, Any]) -> bool:
    return row["label"] in (0, 1) and float(row["w"]) >= 0 and row["I"] != "many"


def log2_code(text: str) -> int:
    number = float(text or 0)
    if number <= 0:
        return 0 if not text else 1 if number < 0 else 2
    return 3 if number <= 1 else 4 if number <= 2 else 5 + math.floor(math.log(number) ** 2)


def age_code(age: float | None) -> int:
    return 0 if age is None else 1 + sum(boundary <= age for boundary in STATISTICS["age"].boundaries)


def slow_row(row: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    """The entries of one row under EVERYTHING, by the definition."""
    number = None if row["B"] is None else str(row["B"])
    price = (1.0, MISSING) if row["price"] is None else ((row["price"] - 2.0) / 4.0, PRESENT)
    listed = row["L"] or [None]
    pair = category("B", number, 30), category("A", row["A"], 30)
    return [
        (0, category("A", row["A"]), 1.0),
        (1, category("B", number), 1.0),
        (2, bucket("I", log2_code(row["I"])), 1.0),
        (3, bucket("age", age_code(row["age"])), 1.0),
        (4, token("price", price[1]), price[0]),
        *((5, category("L", text), float(np.float32(len(listed) ** -0.5))) for text in listed),
        (6, cross("B&A", *pair), 1.0),
        (7, cross("A&age", pair[1], bucket("age", age_code(row["age"]), 30)), 1.0),
    ]


@given(st.lists(ROW, max_size=12), st.booleans())
def test_good_rows_are_the_definition_and_bad_ones_are_accounted_for(rows, dictionaries):
    encoded = encode_batch(
        table_of(rows, dictionaries), resolve(EVERYTHING, list(TYPES)), BITS, STATISTICS, "classification"
    )
    good = [row for row in rows if is_good(row)]
    assert encoded.good.tolist() == [is_good(row) for row in rows]
    assert sum(problem.count for problem in encoded.problems) == len(rows) - len(good)
    assert entries(encoded.rows, 8) == [slow_row(row) for row in good]
    assert encoded.rows.labels.tolist() == [row["label"] for row in good]
    assert encoded.rows.weights.tolist() == [float(row["w"]) for row in good]


@pytest.mark.parametrize("only_good", [True, False], ids=["good rows", "bad ones too"])
@given(st.lists(st.lists(ROW, max_size=12), max_size=3), st.booleans(), st.booleans())
def test_features_are_tallied_batch_by_batch_as_they_stand_in_the_good_rows(only_good, batches, dictionaries, uniform):
    batches = [[row for row in rows if is_good(row) or not only_good] for rows in batches]
    schema = resolve(UNIFORM if uniform else EVERYTHING, list(TYPES))
    tally = FeatureTally(BITS)
    all_rows = [
        encode_batch(table_of(rows, dictionaries), schema, BITS, STATISTICS, "classification", tally).rows
        for rows in [*batches, []]
    ]
    rows = concatenate_rows(all_rows)
    expected = count_features(rows.indices, rows.fields, len(schema.fields), BITS)
    for name in ("ids", "counts", "fields"):
        np.testing.assert_array_equal(getattr(tally.counts(), name), getattr(expected, name), err_msg=name)


@given(st.lists(ROW, max_size=12), st.booleans(), st.integers(0, 12), st.integers(0, 12))
def test_a_slice_of_a_batch_encodes_as_a_slice_of_its_rows(rows, dictionaries, start, length):
    for schema in (EVERYTHING, UNIFORM):
        resolved = resolve(schema, list(TYPES))
        rows = [row for row in rows if is_good(row)]
        batch = table_of(rows, dictionaries)
        whole = encode_batch(batch, resolved, BITS, STATISTICS, "classification").rows
        part = encode_batch(batch.slice(start, length), resolved, BITS, STATISTICS, "classification").rows
        first, last = min(start, len(rows)), min(start + length, len(rows))
        assert_same_rows(part, whole.slice(first, last))


@settings(max_examples=30)
@given(st.lists(ROW, max_size=12))
def test_rows_of_one_entry_per_field_store_no_fields_and_lists_do(rows):
    uniform = encode_batch(table_of(rows, True), resolve(UNIFORM, list(TYPES)), BITS, STATISTICS, None).rows
    assert uniform.fields.size == uniform.values.size == 0
    assert np.diff(uniform.indptr).tolist() == [5] * sum(row["I"] != "many" for row in rows)
    ragged = encode_batch(table_of(rows, True), resolve(EVERYTHING, list(TYPES)), BITS, STATISTICS, None).rows
    assert len(ragged.fields) == len(ragged.values) == len(ragged.indices)
    for row in entries(ragged, 8):
        assert [field for field, _, _ in row] == sorted(field for field, _, _ in row)


@pytest.mark.parametrize("n_rows", [0, 1, 15, 16, 17, 64])
def test_fields_stand_in_order_at_any_number_of_rows(n_rows):
    columns = {f"C{j}": pa.array([f"{j}.{i}" for i in range(n_rows)], pa.string()) for j in range(5)}
    encoded = encode(columns, categorical=["C*"])
    expected = [[(j, category(f"C{j}", f"{j}.{i}"), 1.0) for j in range(5)] for i in range(n_rows)]
    assert entries(encoded.rows, 5) == expected


def test_columns_of_nulls_are_missing_in_every_role():
    columns = {"A": pa.nulls(3), "I": pa.nulls(3), "p": pa.nulls(3), "L": pa.nulls(3)}
    encoded = encode(columns, categorical=["A"], numeric=["I", "p"], transforms={"p": "raw"}, lists=["L"])
    assert encoded.problems == []
    expected = [(field, token(name, MISSING), 1.0) for field, name in enumerate(columns)]
    assert entries(encoded.rows, 4) == [expected] * 3


@given(st.lists(st.integers(0, 9), max_size=15), st.booleans())
def test_taken_rows_are_the_rows_asked_for(order, uniform):
    plain = {"label": 1, "A": "a", "I": "1", "age": 1.0, "price": 1.0}
    rows = [{**plain, "label": i % 2, "w": str(i), "B": i, "L": ["p", "q"][: i % 3]} for i in range(10)]
    schema = resolve(UNIFORM if uniform else EVERYTHING, list(TYPES))
    encoded = encode_batch(table_of(rows, False), schema, BITS, STATISTICS, "classification").rows
    taken = take_rows(encoded, np.array(order, np.int64))
    n_fields = len(schema.fields)
    assert entries(taken, n_fields) == [entries(encoded, n_fields)[i] for i in order]
    assert taken.labels.tolist() == [i % 2 for i in order]
    assert taken.weights.tolist() == ([] if uniform else order)


@given(st.lists(st.integers(0, 10), max_size=4), st.booleans(), st.randoms(use_true_random=False))
def test_parts_in_a_new_order_are_as_if_joined_and_taken(sizes, uniform, random):
    plain = {"label": 1, "A": "a", "I": "1", "age": 1.0, "price": 1.0}
    rows = [{**plain, "label": i % 2, "w": str(i), "B": i, "L": ["p", "q"][: i % 3]} for i in range(10)]
    schema = resolve(UNIFORM if uniform else EVERYTHING, list(TYPES))
    parts = [
        encode_batch(table_of(rows[:n], False), schema, BITS, STATISTICS, "classification").rows for n in [3, *sizes]
    ]
    parts = [dataclasses.replace(part, group_ids=np.arange(part.n_rows, dtype=np.uint64)) for part in parts]
    order = np.array(random.sample(range(3 + sum(sizes)), 3 + sum(sizes)), np.int64)
    assert_same_rows(arranged(parts, order), take_rows(concatenate_rows(parts), order))
