"""What a schema may say of values: which are missing, how lists are written and weighed, what is made from moments."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm import jobs
from dfm.data import canonical
from dfm.data.canonical import arrow_array
from dfm.data.columns import parse_numbers
from dfm.data.derive import FUNCTIONS, derive, parse
from dfm.data.encoding import Encoded, encode_batch
from dfm.data.row_encoder import RowEncoder
from dfm.data.schema import ResolvedSchema, infer, resolve
from dfm.errors import DataError, SettingsError
from dfm.model.export import export, hashed_inputs
from dfm.model.fm_model import FMModel
from dfm.model.manifest import check_manifest
from dfm.model.rows import batches_of, in_columns, numeric_of
from dfm.settings.job import load_job
from dfm.settings.tables import Schema
from tests.support.small_jobs import in_process_client
from tests.support.tokens import bucket, category, cross

BITS = 20


def encoded(columns: dict[str, Any], **schema: Any) -> Encoded:
    data = pa.record_batch(columns)
    return encode_batch(data, resolve(Schema(**schema), ["label", *data.schema.names]), BITS, {}, None)


def entries(found: Encoded) -> list[list[tuple[int, float]]]:
    """Feature and value of every entry of every good row, to six digits."""
    rows = found.rows
    values = rows.values if rows.values.size else np.ones(len(rows.indices))
    return [
        [(int(rows.indices[i]), round(float(values[i]), 6)) for i in range(start, stop)]
        for start, stop in zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
    ]


# --------------------------------------------------------------------------------------------- missing ----

TEXTS = ["a", "NA", "\\N", "", None]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), "dictionary"])
def test_texts_that_mean_missing_are_missing_in_every_kind_of_text(kind):
    array = pa.array(TEXTS).dictionary_encode() if kind == "dictionary" else pa.array(TEXTS).cast(kind)
    found = encoded(
        {"x": array, "n": array, "l": [[text] for text in TEXTS]}, categorical=["x"], lists=["l"], missing=["NA", "\\N"]
    )
    for row, text in zip(entries(found), ["a", None, None, None, None], strict=True):
        assert row == [(category("x", text), 1.0), (category("l", text), 1.0)]


def test_texts_that_mean_missing_are_missing_numbers_and_labels_and_nothing_else():
    numbers = pa.array(["3", "NA", "many"])
    found = encoded({"n": numbers}, numeric=["n"], missing=["NA"])
    assert entries(found) == [[(bucket("n", 5 + 1), 1.0)], [(bucket("n", 0), 1.0)]]
    assert [problem.reason for problem in found.problems] == ["not a number"]
    data = pa.record_batch({"label": ["1", "NA"], "w": ["1", "1"], "n": ["1", "1"]})
    schema = resolve(Schema(weight="w", numeric=["n"], missing=["NA"]), data.schema.names)
    assert [p.reason for p in encode_batch(data, schema, BITS, {}, "classification").problems] == ["label is missing"]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.string()])
def test_nan_is_a_missing_number_where_the_schema_says_so(kind):
    array = pa.array([1.0, math.nan, None]).cast(kind)
    assert [problem.reason for problem in encoded({"n": array}, numeric=["n"]).problems] == ["not finite"]
    found = encoded({"n": array}, numeric=["n"], nan="missing")
    assert entries(found) == [[(bucket("n", 3), 1.0)], [(bucket("n", 0), 1.0)], [(bucket("n", 0), 1.0)]]
    infinite = encoded({"n": pa.array([math.inf])}, numeric=["n"], nan="missing")
    assert [problem.reason for problem in infinite.problems] == ["not finite"]


def test_the_row_encoder_knows_what_is_missing():
    schema = resolve(Schema(categorical=["c"], numeric=["n"], missing=["NA"], nan="missing"), ["label", "c", "n"])
    encoder = RowEncoder(schema, BITS, {})
    assert encoder.usable
    for value in ("NA", None, "", math.nan, "nan"):
        rows = encoder.encode({"c": ["NA"], "n": [value]}, 1)
        assert rows.indices.tolist() == [category("c", None), bucket("n", 0)]


MIXED = {
    "categories": ["7", 0, "0", None],
    "floats": ["7", 0.0, "0", math.nan],
    "decimals": [Decimal("0.0"), 0.0, "0", 1.5],
    "truths": ["x", False, "0", True],
    "lists": [["7"], [0], ["0", "b"], None],
}


@pytest.mark.parametrize("form", [dict, pd.DataFrame])
@pytest.mark.parametrize("values", MIXED.values(), ids=MIXED)
def test_a_number_is_never_missing_whatever_stands_beside_it(values: list[Any], form: Callable[[Any], Any]) -> None:
    settings = {"lists": ("x",)} if isinstance(values[0], list) else {"categorical": ("x",)}
    schema = resolve(Schema(**settings, missing=("0", "false")), ["label", "x"])
    together = entries_in_rows(schema, form({"x": values}))
    alone = [entries_in_rows(schema, form({"x": [value]}))[0] for value in values]
    assert together == alone
    assert len(set(map(str, alone))) > 2


def test_a_number_in_a_categorical_of_pandas_is_never_missing() -> None:
    schema = resolve(Schema(categorical=("x",), missing=("0",)), ["label", "x"])
    together = entries_in_rows(schema, pd.DataFrame({"x": pd.Series([0, "7", "0"], dtype="category")}))
    assert together == [[(category("x", text), 1.0)] for text in ("0", "7", None)]


GAPS_IN_TEXT = {
    "NaN": ["a", math.nan, "NA"] * 5,
    "pandas' missing value": ["a", pd.NA, "NA"] * 5,
    "None": ["a", None, "NA"] * 5,
    "lists": [["a", None], None, ["NA", "b"]] * 5,
    "another number": ["a", 7, "NA"] * 5,
}


@pytest.mark.parametrize("values", GAPS_IN_TEXT.values(), ids=GAPS_IN_TEXT)
def test_texts_are_written_again_only_where_a_number_is_one_that_means_missing(
    values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of Python are the slowest part of a prediction."""
    written, value_text = [], canonical.value_text
    column = np.array([*values, None], object)[:-1]
    array = pa.chunked_array([arrow_array(column)]).combine_chunks()
    monkeypatch.setattr(canonical, "value_text", lambda value: written.append(value) or value_text(value))
    assert canonical.texts_apart(column, array, ("NA",), False) is None
    assert canonical.texts_apart(values, array, ("NA",), False) is None
    assert {*written} <= {7}
    assert len(written) <= 2


@pytest.mark.parametrize("form", [dict, pd.DataFrame])
def test_a_quantity_is_never_missing_whatever_stands_beside_it(form: Callable[[Any], Any]) -> None:
    schema = resolve(Schema(numeric=("x", "y"), derive={"h": "hour(t)"}, missing=("0",)), ["label", "x", "y", "t"])
    moments = ["2026-11-20 07:05:00"] * 4
    data = form({"x": ["7", 0, "0", None], "y": ["0", True, 0, "1"], "t": moments})
    assert entries_in_rows(schema, data) == entries_in_rows(
        schema, {"x": [7.0, 0.0, None, None], "y": [None, 1.0, 0.0, 1.0], "t": moments}
    )


def entries_in_rows(schema: ResolvedSchema, data: Any) -> list[list[tuple[int, float]]]:
    """The entries that a model sees in rows."""
    (batch,) = batches_of(data, schema.columns, numeric_of(schema), schema.missing)
    return entries(encode_batch(batch, schema, BITS, {}, None))


# ----------------------------------------------------------------------------------------------- lists ----


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), "dictionary"])
def test_text_is_split_at_the_separator(kind):
    texts = pa.array(["a|b", "c", "", None])
    array = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
    found = encoded({"l": array}, lists=["l"], list_separator="|")
    half = round(2**-0.5, 6)
    assert entries(found) == [
        [(category("l", "a"), half), (category("l", "b"), half)],
        *([(category("l", text), 1.0)] for text in ("c", None, None)),
    ]
    with pytest.raises(DataError, match=r'schema\.list_separator = "\|"'):
        encoded({"l": array}, lists=["l"])


@pytest.mark.parametrize("beside", ["b", None, 0, 3, "0"])
def test_elements_of_text_that_mean_missing_are_missing_whatever_stands_beside_the_row(beside: Any) -> None:
    schema = resolve(Schema(lists=("l",), list_separator="|", missing=("0",)), ["label", "l"])
    half = round(2**-0.5, 6)
    assert entries_in_rows(schema, {"l": ["a|0", beside]})[0] == [
        (category("l", "a"), half),
        (category("l", None), half),
    ]


WEIGHTED = [{"a": 3.0, "b": 4.0}, {"b": -2.0}, {}, None]
PAIRS = [None if row is None else list(row.items()) for row in WEIGHTED]
STRUCTS = [None if row is None else [{"tag": key, "share": value} for key, value in row.items()] for row in WEIGHTED]
STRUCT = pa.struct([("tag", pa.string()), ("share", pa.float32())])
LAYOUTS = {
    "map": pa.array(PAIRS, pa.map_(pa.string(), pa.float32())),
    "map of large types": pa.array(PAIRS, pa.map_(pa.large_string(), pa.float64())),
    "list of structs": pa.array(STRUCTS, pa.list_(STRUCT)),
    "large list of structs": pa.array(STRUCTS, pa.large_list(STRUCT)),
    "dicts": pa.array(WEIGHTED),
    "sliced": pa.array([[("x", 1.0)], *PAIRS], pa.map_(pa.string(), pa.float32())).slice(1),
}


@pytest.mark.parametrize("array", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("rule", "values"), [("one", (3.0, 4.0, -2.0)), ("sqrt", (0.6, 0.8, -1.0))])
def test_elements_have_the_weights_that_the_data_give_them(array, rule, values):
    found = encoded({"l": array}, lists=["l"], list_weight=rule)
    assert entries(found) == [
        [(category("l", "a"), values[0]), (category("l", "b"), values[1])],
        [(category("l", "b"), values[2])],
        [(category("l", None), 1.0)],
        [(category("l", None), 1.0)],
    ]


@pytest.mark.parametrize("form", [dict, tuple, list], ids=["dicts", "pairs", "pairs of JSON"])
def test_rows_of_python_have_weighted_elements_in_every_form_of_a_pair(form: Any) -> None:
    rows = [
        row if row is None else dict(row) if form is dict else [form(pair) for pair in row.items()] for row in WEIGHTED
    ]
    schema = resolve(Schema(lists=("l",)), ["label", "l"])
    expected = entries_in_rows(schema, {"l": LAYOUTS["map"]})
    assert entries_in_rows(schema, in_columns([{"l": row} for row in rows], schema)) == expected
    beside = [*rows, {"a": 3.0, "b": 4.0}]
    assert entries_in_rows(schema, in_columns([{"l": row} for row in beside], schema)) == [*expected, expected[0]]


def test_two_values_are_not_taken_for_a_value_and_its_weight() -> None:
    schema = resolve(Schema(lists=("l",), list_weight="one"), ["label", "l"])
    assert entries_in_rows(schema, {"l": [["u", 0.5]]}) == [[(category("l", text), 1.0) for text in ("u", "0.5")]]
    for row in ([[1, 2]], [["u", "v"]], [["u", True]]):
        with pytest.raises(DataError, match="column 'l'"):
            entries_in_rows(schema, {"l": [row]})


def test_dicts_without_any_key_are_lists_without_elements():
    found = encoded({"l": pa.array([{}, None])}, lists=["l"])
    assert entries(found) == [[(category("l", None), 1.0)]] * 2


@pytest.mark.parametrize("weight", [None, math.nan, math.inf])
def test_a_weight_that_is_no_number_makes_its_row_a_bad_one(weight):
    found = encoded({"l": pa.array([[("a", weight)], [("b", 1.0)]], pa.map_(pa.string(), pa.float64()))}, lists=["l"])
    assert entries(found) == [[(category("l", "b"), 1.0)]]
    assert [problem.reason for problem in found.problems] == ["weight of an element is missing or no finite number"]


def test_structs_that_are_no_pairs_are_refused_by_name():
    with pytest.raises(DataError, match="lists of structs of a, b, c; expected two fields"):
        encoded({"l": pa.array([[{"a": 1, "b": 2, "c": 3}]])}, lists=["l"])
    with pytest.raises(DataError, match="column 'l' holds struct<a: string>, which is no list"):
        encoded({"l": pa.array([{"a": "x"}])}, lists=["l"])


def test_a_cross_with_a_list_has_a_feature_for_each_element():
    columns = {
        "c": ["x", "y"],
        "l": pa.array([["a", "b"], None]),
        "m": pa.array([[("p", 3.0), ("q", 4.0)], [("p", 2.0)]], LAYOUTS["map"].type),
    }
    found = encoded(columns, categorical=["c"], lists=["l", "m"], crosses=[["c", "l"], ["l", "m"]])
    half = 2**-0.5
    first, second = entries(found)
    assert first[5:7] == [
        (cross("c&l", category("c", "x", 30), category("l", text, 30)), round(half, 6)) for text in "ab"
    ]
    expected = [(t, m, half * w) for t in "ab" for m, w in (("p", 0.6), ("q", 0.8))]
    assert first[7:] == [
        (cross("l&m", category("l", t, 30), category("m", m, 30)), round(v, 6)) for t, m, v in expected
    ]
    assert second[3:] == [
        (cross("c&l", category("c", "y", 30), category("l", None, 30)), 1.0),
        (cross("l&m", category("l", None, 30), category("m", "p", 30)), 1.0),
    ]


# --------------------------------------------------------------------------------------------- moments ----

MOMENT = datetime.datetime(2026, 11, 20, 7, 5)  # a Friday
KOLKATA = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
FORMS = {
    "naive": pa.array([MOMENT]),
    **{unit: pa.array([MOMENT]).cast(pa.timestamp(unit)) for unit in ("s", "ms", "ns")},
    "elsewhere": pa.array([MOMENT.replace(tzinfo=datetime.UTC).astimezone(KOLKATA)]),
    "text": pa.array(["2026-11-20 07:05:00"]),
    "text with a zone": pa.array(["2026-11-20T12:35:00+05:30"]),
    "dictionary": pa.array(["2026-11-20T07:05:00Z"]).dictionary_encode(),
    "dictionary of moments": pa.array([MOMENT]).dictionary_encode(),
}
EXPECTED = {"hour(t)": 7, "weekday(t)": 4, "day(t)": 20, "month(t)": 11}


@pytest.mark.parametrize("array", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("text", "expected"), EXPECTED.items())
def test_parts_of_a_moment_are_the_same_in_each_type(array, text, expected):
    found, bad = derive(parse("x", text), {"t": array})
    assert found.to_pylist() == [expected]
    assert not bad.any()


def test_hours_between_moments_may_mix_types_and_be_negative_or_missing():
    earlier = pa.array(["2026-11-19", None, "2026-11-20 07:05:00"])
    later = pa.array([MOMENT, MOMENT, MOMENT - datetime.timedelta(minutes=30)])
    found, _ = derive(parse("x", "hours(a, b)"), {"a": earlier, "b": later})
    assert found.to_pylist() == [31 + 5 / 60, None, -0.5]


def test_dates_have_days_and_times_of_day_have_hours():
    date, time = pa.array([MOMENT.date()]), pa.array([MOMENT.time()])
    assert derive(parse("x", "day(d)"), {"d": date})[0].to_pylist() == [20]
    assert derive(parse("x", "hour(d)"), {"d": date})[0].to_pylist() == [0]
    assert derive(parse("x", "hour(t)"), {"t": time})[0].to_pylist() == [7]
    with pytest.raises(DataError, match="a time of day has an hour, but no weekday"):
        derive(parse("x", "weekday(t)"), {"t": time})
    with pytest.raises(DataError, match=r"holds int64, of which schema\.derive cannot tell the time"):
        derive(parse("x", "hour(t)"), {"t": pa.array([1_700_000_000])})


@pytest.mark.parametrize("text", ["hour", "hour()", "hour(a, b)", "hours(a)", "year(a)", "hour(a) + 1"])
def test_expressions_that_are_none_are_refused_with_those_that_are(text):
    with pytest.raises(
        SettingsError, match=r"schema\.derive\.x = .* expected hour\(COLUMN\) or .*hours\(COLUMN, COLUMN\)"
    ):
        parse("x", text)


def test_text_that_is_no_moment_makes_its_row_a_bad_one():
    found = encoded({"t": ["2026-11-20", "noon", "", None]}, categorical=["t"], derive={"d": "day(t)"})
    assert [(problem.column, problem.reason, problem.value) for problem in found.problems] == [
        ("t", "not a moment", "'noon'")
    ]
    assert [row[1] for row in entries(found)] == [(category("d", "20"), 1.0), *[(category("d", None), 1.0)] * 2]


def test_rows_whose_text_is_no_moment_are_refused_with_one_that_is(trained):
    model, log, _ = trained
    row = {**log.slice(0, 1).to_pylist()[0], "sent": "soon"}
    expected = r"row 0: column 'sent': not a moment \('soon'\); pass a moment such as 2026-11-20 07:05:00, or None"
    with pytest.raises(DataError, match=expected):
        model.predict([row])
    assert model.predict([{**row, "sent": "2026-11-20 07:05:00"}]).shape == (1,)


def test_derived_columns_are_features_of_their_kind_unless_they_are_named():
    kinds = {"label": "int", "t": "timestamp[us]", "sent": "timestamp[us]"}
    derive = {"h": "hour(t)", "age": "hours(sent, t)"}

    def fields(**schema: Any) -> list[tuple[str, str]]:
        found = resolve(infer(Schema(derive=derive, **schema), kinds), list(kinds))
        assert set(found.columns) >= {"t", "sent"}
        return [(entry.name, entry.kind) for entry in found.fields]

    assert fields() == [("h", "categorical"), ("age", "numeric")]
    assert fields(categorical=["t"]) == [("t", "categorical"), ("h", "categorical"), ("age", "numeric")]
    assert fields(numeric=["h"]) == [("h", "numeric"), ("age", "numeric")]
    assert fields(crosses=[["h", "age"]])[-1] == ("h&age", "cross")
    with pytest.raises(SettingsError, match=r"schema\.derive\.x names \"nothing\""):
        resolve(Schema(derive={"x": "hour(nothing)"}), list(kinds))
    with pytest.raises(SettingsError, match=r"schema\.derive\.t has the name of a column"):
        resolve(Schema(derive={"t": "hour(sent)"}), list(kinds))


def test_the_time_column_may_be_a_feature_too():
    columns = ["label", "t", "x"]
    assert [entry.name for entry in resolve(Schema(time="t", categorical=["t", "x"]), columns).fields] == ["t", "x"]
    assert [entry.name for entry in resolve(Schema(time="t", categorical=["*"]), ["t", "x", "label"]).fields] == ["x"]
    with pytest.raises(SettingsError, match="one role"):
        resolve(Schema(time="t", categorical=["t"], numeric=["t"]), columns)


def test_the_help_names_every_function():
    for name, function in FUNCTIONS.items():
        assert name in Schema.knobs()["derive"].help
        assert function.n_columns in (1, 2)


# ------------------------------------------------------------------------------------ the whole way ----

SCHEMA = {
    "time": "t",
    "categorical": ["site", "t"],
    "numeric": ["price"],
    "numeric_transform": "quantile",
    "quantile_buckets": 4,
    "lists": ["tags", "shares"],
    "list_separator": "|",
    "missing": ["NA", "\\N"],
    "nan": "missing",
    "derive": {"hour": "hour(t)", "weekday": "weekday(t)", "age": "hours(sent, t)"},
    "crosses": [["site", "tags"], ["site", "hour"]],
}


def log_of(n_rows: int) -> pa.Table:
    rng = np.random.default_rng(4)
    start = np.datetime64("2026-11-02T00:00:00", "us")
    times = start + (rng.integers(0, 14 * 86400, n_rows) * 10**6).astype("timedelta64[us]")
    sites = rng.choice(["a", "b", "NA", "\\N", "c"], n_rows)
    tags = ["|".join(rng.choice(["x", "y", "z"], rng.integers(0, 3), replace=False)) for _ in range(n_rows)]
    prices = rng.choice([0.1, 0.2, 0.7, np.nan, 3.0], n_rows).astype(np.float32)
    shares = [
        [(name, float(rng.random())) for name in rng.choice(["p", "q", "r"], 2, replace=False)] for _ in range(n_rows)
    ]
    hours = times.astype("datetime64[h]").astype(int) % 24
    clicks = (hours < 12) ^ (rng.random(n_rows) < 0.1)
    return pa.table(
        {
            "label": clicks.astype(np.int64), "t": times, "site": sites, "tags": tags, "price": prices,
            "sent": times - np.timedelta64(90, "m"), "shares": pa.array(shares, pa.map_(pa.string(), pa.float32())),
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[FMModel, pa.Table, str]:
    folder = tmp_path_factory.mktemp("values")
    log = log_of(3000)
    pq.write_table(log, folder / "log.parquet")
    job = {
        "data": {"train": str(folder / "log.parquet")},
        "schema": SCHEMA,
        "model": {"n_factors": 2, "hash_bits": 16},
        "training": {"n_replicas": 2, "n_epochs": 2},
        "cluster": {"cache": str(folder / "cache"), "workers": 1},
        "output": {"directory": str(folder / "out")},
    }
    with in_process_client(1) as client:
        result = jobs.train(job, client)
    return FMModel.load(result.model_url), log, result.model_url


def test_what_the_schema_says_of_values_holds_in_serving(trained):
    """A dict of columns, rows one by one, pandas, Arrow and a record batch give what the shard gives."""
    model, log, _ = trained
    rows = log.slice(0, 60)
    expected = model.predict(rows)
    assert len(set(expected.tolist())) > 40
    columns = {name: rows.column(name).to_pylist() for name in model.schema.columns}
    for data in (columns, rows.to_pandas(), rows.combine_chunks().to_batches()[0]):
        np.testing.assert_allclose(model.predict(data), expected, rtol=1e-6)
    singles = [model.predict({name: values[i : i + 1] for name, values in columns.items()})[0] for i in range(60)]
    np.testing.assert_allclose(singles, expected, rtol=1e-6)
    sent_as_json = {
        **columns,
        "t": [moment.isoformat() + "Z" for moment in columns["t"]],
        "sent": [moment.isoformat() for moment in columns["sent"]],
        "shares": [dict(pairs) for pairs in columns["shares"]],
    }
    derived_only = {
        **sent_as_json,
        "t": columns["t"],
    }  # the time is a category as well, and text of another form another one
    np.testing.assert_allclose(model.predict(derived_only), expected, rtol=1e-6)


def test_the_hour_is_learnt(trained):
    model, log, _ = trained
    labels = log["label"].to_numpy()
    predictions = model.predict(log)
    assert predictions[labels == 1].mean() > predictions[labels == 0].mean() + 0.3


def test_the_manifest_tells_and_checks_what_the_schema_says(trained):
    model, _, url = trained
    manifest = json.loads((Path(url) / "model.json").read_text())
    assert manifest["format"] == 5
    assert manifest["schema"]["derived"] == [
        ["hour", "hour", ["t"]],
        ["weekday", "weekday", ["t"]],
        ["age", "hours", ["sent", "t"]],
    ]
    assert (manifest["schema"]["missing"], manifest["schema"]["nan"]) == (["NA", "\\N"], "missing")
    assert ResolvedSchema.from_dict(manifest["schema"]) == model.schema
    assert manifest["files"]["golden"]
    for key, wrong in {"nan": "fine", "missing": [3], "derived": [["hour", "minute", ["t"]]]}.items():
        with pytest.raises(ValueError, match=r"its nan|text of its schema|derived column"):
            check_manifest({**manifest, "schema": {**manifest["schema"], key: wrong}})


def test_onnx_scores_what_the_encoder_makes_of_the_rows(trained, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    from onnx.reference import ReferenceEvaluator

    model, log, _ = trained
    rows = log.slice(0, 20)
    graph = onnx.load(export(model, "onnx", str(tmp_path))[0])
    ids, fields, values = hashed_inputs(model, rows)
    (prediction,) = ReferenceEvaluator(graph).run(None, {"ids": ids, "fields": fields, "values": values})
    np.testing.assert_allclose(prediction, model.predict(rows), atol=1e-6)


def test_jobs_that_say_nothing_of_values_keep_their_fingerprints_and_their_models_formats():
    plain = load_job({"data": {"train": "x"}, "output": {"directory": "y"}})
    assert not {"missing", "nan", "derive", "list_separator"} & plain.determining_tables()["schema"].keys()
    said = load_job({"data": {"train": "x"}, "output": {"directory": "y"}, "schema": {"nan": "missing"}})
    assert said.fingerprint() != plain.fingerprint()
    schema = resolve(Schema(categorical=["c"]), ["label", "c"])
    assert set(schema.to_dict()) == {
        "label",
        "label_positive",
        "weight",
        "time",
        "quantile_buckets",
        "numbers",
        "fields",
    }
    assert not schema.reads_values_specially


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([float("nan"), True, False], [None, "true", "false"]),
        ([True, float("nan"), False], ["true", None, "false"]),
        ([1.0, True], ["1", "true"]),
        ([0, np.True_], ["0", "true"]),
        (np.array([None, 2, True], object), [None, "2", "true"]),
    ],
)
def test_truths_among_numbers_are_the_same_in_every_order(values: Any, texts: list[str | None]) -> None:
    assert arrow_array(values).to_pylist() == texts
    assert arrow_array(values[::-1]).to_pylist() == texts[::-1]


@pytest.mark.parametrize("values", [[0.5, True, None], [1, np.True_, None], ["2", True, None], [True, 1, math.nan]])
def test_truths_among_numbers_stay_numbers_where_these_are_wanted(values: list[Any]) -> None:
    expected = [None if value is None or value != value else float(value) for value in values]
    for given, numbers in ((values, expected), (values[::-1], expected[::-1])):
        parsed, present, unparsed = parse_numbers(arrow_array(given, are_numbers=True), "x")
        assert [x if there else None for x, there in zip(parsed, present, strict=True) if x == x] == [
            x for x, value in zip(numbers, given, strict=True) if value == value
        ]
        assert not unparsed.any()
