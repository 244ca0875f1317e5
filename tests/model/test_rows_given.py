"""Rows are given as lists, or one row as a dict of values; text is never taken for a list of its letters."""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dfm.data.canonical import arrow_array, value_text
from dfm.data.schema import resolve
from dfm.errors import DataError
from dfm.model.export import hashed_inputs
from dfm.model.fm_model import FMModel
from dfm.settings.tables import Schema
from tests.support.small_models import EVERY_KIND, PLAIN, make_model, model_of_schema, random_table

ROW: dict[str, Any] = {"site": "site 1", "zone": 4, "visits": 12, "price": 2.5, "age": 40.0, "tags": ["t1", "t2"]}


@pytest.fixture(scope="module", params=["plain", "every kind"])
def model(request: pytest.FixtureRequest) -> FMModel:
    return make_model(PLAIN if request.param == "plain" else EVERY_KIND)


@pytest.mark.parametrize("changes", [{}, {"site": None}, {"zone": "4"}, {"visits": np.int64(12), "tags": []}])
def test_a_dict_of_values_is_one_row(model: FMModel, changes: dict[str, Any]) -> None:
    row = {**ROW, **changes}
    np.testing.assert_array_equal(model.predict(row), model.predict({column: [value] for column, value in row.items()}))


@pytest.mark.parametrize("n_rows", [1, 3, 100])
def test_a_list_of_dicts_is_a_row_each(model: FMModel, n_rows: int) -> None:
    rows = [{**ROW, "zone": number % 7, "unused": "x"} for number in range(n_rows)]
    expected = model.predict({column: [row[column] for row in rows] for column in ROW})
    np.testing.assert_array_equal(model.predict(rows), expected)
    np.testing.assert_array_equal(hashed_inputs(model, rows)[0][-1], hashed_inputs(model, rows[-1])[0][0])
    assert model.predict([]).shape == (0,)
    with pytest.raises(DataError, match="row 0 lacks column 'zone', which other rows have; give every row"):
        model.predict([{name: value for name, value in ROW.items() if name != "zone"}, ROW])
    with pytest.raises(DataError, match="lack column 'zone', which the model needs"):
        model.predict([{name: value for name, value in ROW.items() if name != "zone"}] * 2)


def test_a_row_may_hold_structs_as_a_table_does() -> None:
    table = random_table(400)
    fields = {"st.site": table["site"], "st.in.zone": table["zone"], "price": table["price"], "tags": table["tags"]}
    schema = resolve(
        Schema(categorical=("st.site", "st.in.zone"), numeric=("price",), lists=("tags",)), ["label", *fields]
    )
    model = model_of_schema(schema, pa.table(fields))
    flat = {"st.site": "site 1", "st.in.zone": 4, "price": 2.5, "tags": ["t1"]}
    nested = {"st": {"site": "site 1", "in": {"zone": 4}}, "price": 2.5, "tags": ["t1"], "unused": {"a": 1}}
    assert model.predict_one(nested) == model.predict_one(flat) == float(model.predict([nested])[0])
    assert model.predict({name: [value] for name, value in nested.items()}).tolist() == model.predict(flat).tolist()
    assert model.explain(nested) == model.explain(flat)
    assert model.predict_one({**nested, "st": None}) == model.predict_one({**flat, "st.site": None, "st.in.zone": None})


def test_a_row_of_a_frame_is_a_row(model: FMModel) -> None:
    frame = pd.DataFrame([ROW, {**ROW, "site": None, "price": float("nan")}])
    for number in (0, 1):
        row = frame.iloc[number]
        np.testing.assert_array_equal(model.predict(row), model.predict(frame[number : number + 1]))
    with pytest.raises(DataError, match="lack column 'site'"):
        model.predict(frame["zone"])


def test_one_prediction_is_a_number_of_python(model: FMModel) -> None:
    assert type(model.predict_one(ROW)) is float
    assert model.predict_one(ROW) == float(model.predict([ROW])[0])
    assert json.loads(json.dumps({"p": model.predict_one(pd.Series(ROW))}))["p"] == model.predict_one(ROW)
    for rows, count in (([ROW, ROW], 2), ([], 0)):
        with pytest.raises(DataError, match=f"{count} rows where one is expected; `predict` takes several"):
            model.predict_one(rows)


@pytest.mark.parametrize("huge", [2**63, 2**64 - 1, 2**64, -(2**63) - 1])
@pytest.mark.parametrize("column", ["zone", "visits", "price"])
def test_an_integer_beyond_64_bits_is_one_value_however_it_is_sent(model: FMModel, column: str, huge: int) -> None:
    row = {**ROW, column: huge}
    sent = [row, [row], {name: [value] for name, value in row.items()}, {**row, column: str(huge)}]
    if 0 <= huge < 2**64:
        sent += [{**row, column: np.uint64(huge)}, {**row, column: np.array(huge, np.uint64)}]
        sent.append({name: [value] for name, value in ROW.items()} | {column: np.array([huge], np.uint64)})
        sent.append(pd.DataFrame([ROW]).assign(**{column: np.array([huge], np.uint64)}))
    np.testing.assert_array_equal([model.predict_one(each) for each in sent], model.predict_one(row))
    beside = model.predict([row, {**ROW, column: -1}, {**ROW, column: None}])
    assert beside[0] == model.predict(row)[0]


@pytest.mark.parametrize("nan", ["missing", "error"])
def test_nan_in_a_request_is_what_the_schema_says(nan: str) -> None:
    made = make_model({**PLAIN, "nan": nan})
    sent = [{**ROW, "price": value} for value in (float("nan"), np.float32("nan"), np.float64("nan"))]
    for row in sent:
        if nan == "missing":
            assert made.predict_one(row) == made.predict_one({**ROW, "price": None})
            continue
        with pytest.raises(DataError, match="column 'price': not finite"):
            made.predict(row)
    assert made.predict_one({**ROW, "zone": float("nan")}) == made.predict_one({**ROW, "zone": None})


class Exported:
    """A frame of a library of Arrow, which has rows and no method of pandas."""

    def __init__(self, table: pa.Table) -> None:
        self._table, self.columns = table, table.column_names

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def test_a_frame_of_polars_may_hold_lists(model: FMModel) -> None:
    as_polars_has_them = {
        "site": pa.string_view(),
        "zone": pa.int64(),
        "visits": pa.int64(),
        "price": pa.float64(),
        "age": pa.float64(),
        "tags": pa.large_list(pa.string_view()),
    }
    rows = [ROW, {**ROW, "tags": None, "site": None}, {**ROW, "tags": []}]
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in as_polars_has_them.items()}
    np.testing.assert_array_equal(model.predict(Exported(pa.table(columns))), model.predict(rows))
    series = {name: Exported(pa.table({name: column})) for name, column in columns.items()}
    with pytest.raises(DataError, match="column 'site' cannot be read"):
        model.predict(series)


def test_rows_that_are_still_to_be_computed_are_refused_in_a_sentence(model: FMModel) -> None:
    class LazyFrame:
        def collect(self) -> None: ...

    class Collection:
        def __dask_graph__(self) -> None: ...

    with pytest.raises(DataError, match=r"a LazyFrame has no rows yet: pass data.collect\(\)"):
        model.predict(LazyFrame())
    with pytest.raises(DataError, match=r'a Collection of Dask has no rows yet: pass .* meta=\(None, "f4"\)'):
        model.predict(Collection())


@pytest.mark.parametrize("gap", [pd.NaT, pd.NA])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_what_pandas_has_for_a_missing_moment_is_missing(gap: Any, zone: str | None) -> None:
    moments = [pd.Timestamp("2026-11-28", tz=zone), pd.Timestamp("2026-11-29 12:30", tz=zone), None]
    rows = pa.table({"moment": moments, "label": [0, 1, 1]})
    model = model_of_schema(resolve(Schema(categorical=("moment",)), rows.column_names), rows)
    given = [{"moment": moment} for moment in (*moments[:2], gap)]
    np.testing.assert_array_equal(model.predict(given), model.predict(rows))
    assert [model.predict_one(row) for row in given] == model.predict(rows).tolist()


@pytest.mark.parametrize("unit", ["D", "h"])
def test_a_period_of_pandas_is_refused_in_a_frame_as_in_a_row_and_its_moment_is_the_day(unit: str) -> None:
    days = pa.table({"day": pa.array(pd.date_range("2026-11-01", periods=3).date), "label": [0, 1, 1]})
    model = model_of_schema(resolve(Schema(categorical=("day",)), days.column_names), days)
    periods = pd.Series(pd.period_range("2026-11-01", periods=3, freq="D").asfreq(unit, "start"))
    frame = pd.DataFrame({"day": periods})
    for given in (frame, {"day": periods}, frame.astype("category"), pa.Table.from_pandas(frame)):
        with pytest.raises(DataError, match="column 'day' holds pandas' periods, of which Arrow has numbers alone"):
            model.predict(given)
    for given in (frame.to_dict("records"), frame.iloc[0], frame.astype(object)):
        with pytest.raises(DataError, match=r"column 'day' cannot be read .*Period"):
            model.predict(given)
    expected = model.predict(days).tolist()
    assert model.predict({"day": periods.dt.to_timestamp()}).tolist() == expected
    if unit == "D":
        assert model.predict(frame.astype(str)).tolist() == expected


def test_a_value_beside_a_list_is_refused(model: FMModel) -> None:
    with pytest.raises(DataError, match=r"column 'site' holds one value, 'web', and column 'zone' a list"):
        model.predict({**ROW, "site": "web", "zone": [4]})


def test_a_text_is_no_list_of_letters() -> None:
    rows = {**{column: [value, value] for column, value in ROW.items()}, "site": ["a", "b"]}
    model = make_model(EVERY_KIND)
    with pytest.raises(DataError, match="column 'tags' holds one value, 'ab'"):
        model.predict({**rows, "tags": "ab"})


def test_a_list_in_a_row_may_be_an_array_of_numpy() -> None:
    """As a frame of pandas that was read from Parquet holds it."""
    model = make_model(EVERY_KIND)
    frame = pa.Table.from_pylist([ROW, {**ROW, "tags": ["t3"]}, {**ROW, "tags": []}]).to_pandas()
    expected = model.predict(frame)
    for row, value in zip(frame.to_dict("records"), expected, strict=True):
        assert isinstance(row["tags"], np.ndarray)
        for given in (row, [row], {**row, "zone": np.array(4)}):
            np.testing.assert_array_equal(model.predict(given), [value])
        assert model.explain(row).prediction == pytest.approx(value, abs=1e-6)
        item = {"tags": row.pop("tags")}
        assert model.rank(item, [row]).predictions == pytest.approx([value], abs=1e-6)
    mixed = [{**ROW, "tags": np.array([1, 2])}, ROW]
    np.testing.assert_array_equal(model.predict(mixed), model.predict([{**ROW, "tags": [1, 2]}, ROW]))


def test_a_moment_of_numpy_in_a_row_keeps_its_unit() -> None:
    fields = {"categorical": ("day",)}
    moments = [np.datetime64("2026-11-02", "ns"), np.datetime64("2026-11-03", "ns")]
    rows = pa.table({"day": pa.array(moments), "label": [0, 1]})
    model = model_of_schema(resolve(Schema(**fields), rows.column_names), rows)
    assert [model.predict_one({"day": moment}) for moment in moments] == model.predict(rows).tolist()


@pytest.mark.parametrize("others", [[1], ["2", 1.5], [1, None]])
@pytest.mark.parametrize("column", ["visits", "price", "age"])
def test_a_truth_among_numbers_is_the_number_that_it_is_alone(column: str, others: list[Any]) -> None:
    """Few rows and many take different ways."""
    model = make_model(EVERY_KIND)
    for values in ([True, *others], [*others, np.False_, True]):
        rows = [{**ROW, column: value} for value in values]
        expected = [model.predict_one(row) for row in rows]
        for given in (rows, {name: [row[name] for row in rows] for name in ROW}, pd.DataFrame(rows, dtype=object)):
            assert model.predict(given).tolist() == expected
        assert model.predict(rows * 20).tolist() == expected * 20
        assert model.weights(column, values).tolist() == [model.weights(column, [value])[0] for value in values]


DAY, MOMENT = datetime.date(2026, 11, 3), datetime.datetime(2026, 11, 4, 5)
AWARE = MOMENT.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=3)))
MIXED = {
    "days and moments": [DAY, MOMENT, datetime.datetime(2026, 11, 5), None],
    "days and moments of pandas": [DAY, pd.Timestamp(2026, 11, 5), pd.NaT],
    "days and moments with a zone": [DAY, AWARE, MOMENT],
    "moments with and without a zone": [AWARE, MOMENT],
    "days and integers": [DAY, 1, True],
    "days and floats": [DAY, 1.5, float("nan")],
    "days and gaps": [DAY, float("nan"), None, pd.NaT],
    "days and text": [DAY, "2026-11-04", "a"],
    "moments and integers": [MOMENT, 1, np.int64(7)],
    "moments and text": [MOMENT, pd.Timestamp(2026, 11, 5), "2026-11-03"],
    "moments of NumPy": [np.datetime64("2026-11-03"), DAY, MOMENT, 1],
    "times of day": [datetime.time(5), 1, DAY],
    "durations": [datetime.timedelta(seconds=3), 1, 2.5],
}


@pytest.mark.parametrize("values", MIXED.values(), ids=MIXED)
def test_a_moment_beside_other_values_is_the_category_that_it_is_alone(values: list[Any]) -> None:
    """Arrow takes 1 beside a day for the day 1970-01-02, and a moment for its day."""
    texts = ["2026-11-03", "2026-11-04 05:00:00", "2026-11-04 02:00:00", "2026-11-05", "2026-11-04", "a", "1", "1.5"]
    known = pa.table({"value": [*texts, "7", "true", "05:00:00", "3", "2.5", None], "label": [0, 1] * 7})
    model = model_of_schema(resolve(Schema(categorical=("value",)), known.column_names), known)
    expected = [model.predict_one({"value": value}) for value in values]
    assert expected == [model.predict_one({"value": value_text(value)}) for value in values]
    assert len({*expected}) == len({value_text(value) for value in values})
    for given, wanted in ((values, expected), (values[::-1], expected[::-1])):
        rows = [{"value": value} for value in given]
        for form in (rows, {"value": given}, {"value": pd.Series(given, dtype=object)}, {"value": tuple(given)}):
            assert model.predict(form).tolist() == wanted
        assert model.predict(rows * 20).tolist() == wanted * 20


@pytest.mark.parametrize("missing", [float("nan"), np.float32("nan"), np.datetime64("NaT"), pd.NaT])
@pytest.mark.parametrize("values", [[MOMENT], [DAY], [MOMENT, DAY]])
def test_what_is_missing_beside_moments_leaves_them_moments(values: list[Any], missing: Any) -> None:
    """Text of each would be made by itself, a thousand times slower."""
    for given in ([*values, missing], [missing, *values]):
        array = arrow_array(given)
        assert pa.types.is_temporal(array.type)
        assert array.null_count == 1
    assert arrow_array([*values, missing]).drop_null() == arrow_array(values)


def test_moments_beside_other_values_in_a_list_are_the_categories_that_they_are_alone() -> None:
    known = pa.table({"tags": [["2026-11-03", "2026-11-04 05:00:00"], ["1", "a"]], "label": [0, 1]})
    model = model_of_schema(resolve(Schema(lists=("tags",)), known.column_names), known)
    for value, same in ((DAY, "2026-11-03"), (MOMENT, "2026-11-04 05:00:00")):
        for beside in (1, MOMENT, "a"):
            expected = model.predict([{"tags": [same, value_text(beside)]}, {"tags": [value_text(beside)]}]).tolist()
            assert model.predict([{"tags": [value, beside]}, {"tags": [beside]}]).tolist() == expected


def test_a_row_of_nothing_but_lists_is_a_row() -> None:
    model = make_model({"lists": ("tags",)}, min_count=1)
    one = model.predict_one([{"tags": ["t1", "t2"]}])
    for row in ({"tags": ["t1", "t2"]}, {"tags": ("t1", None, "t2")[::2]}, {"tags": np.array(["t1", "t2"])}):
        assert model.predict_one(row) == one
        assert model.explain(row).prediction == pytest.approx(one, abs=1e-6)
    assert model.predict_one({"tags": {"t1": 1.0, "t2": 1.0}}) == pytest.approx(one)
    assert model.predict({"tags": [["t1", "t2"], ["t1"], None]}).shape == (3,)
    assert model.predict({"tags": []}).shape == (0,), "where rows are meant, there are none"
    assert model.predict_one({"tags": []}) == model.predict_one([{"tags": []}])
    assert model.explain({"tags": []}).prediction == pytest.approx(model.predict_one([{"tags": []}]), abs=1e-6)
    separated = make_model({"lists": ("tags",), "list_separator": "|"}, min_count=1)
    assert separated.predict({"tags": ["t1|t2", "t1"]}).shape == (2,)
    with pytest.raises(DataError, match="2 rows where one is expected"):
        model.predict_one({"tags": [["t1"], ["t2"]]})
    assert model.predict_one({"tags": [["t1", "t2"]]}) == model.predict_one({"tags": [("t1", "t2")]}) == one
    assert model.predict_one({"tags": [["t1", None]]}) == model.predict_one([{"tags": ["t1", None]}])


@pytest.mark.parametrize("separator", ["", "|"])
@pytest.mark.parametrize(
    "tags", [{"t1": 3.0}, [("t1", 3.0)], [("t1", 3.0), ("t2", 0.5)], [["t1", 0.5]], {}, [], None, ["t1", "t2"]]
)
def test_one_row_of_lists_is_the_row_that_it_is_in_a_list_of_rows(separator: str, tags: Any) -> None:
    model = make_model({"lists": ("tags",), "list_separator": separator}, min_count=1)
    expected = float(model.predict([{"tags": tags}])[0])
    assert model.predict_one({"tags": tags}) == expected
    assert model.explain({"tags": tags}).prediction == pytest.approx(expected, abs=1e-6)
