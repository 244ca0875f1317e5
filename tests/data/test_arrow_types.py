"""Each type of Arrow: a category, a number, a list, or refused by name with what to do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dfm.data.arrow_types import column_kind, flat
from dfm.data.columns import parse_numbers
from dfm.data.encoding import encode_batch
from dfm.data.guess import guess
from dfm.data.hashing import hash_category
from dfm.data.lists import lists_of
from dfm.data.parquet import Unit, feature_schema, find_shards, read_unit
from dfm.data.schema import resolve
from dfm.errors import DataError
from dfm.estimators import FMClassifier
from dfm.model.fm_model import batches_of
from dfm.settings.job import Job
from dfm.settings.tables import Schema
from dfm.training.inputs import find_inputs
from tests.support.arrow_cases import BITS, CASES, attempt, markdown_table
from tests.support.site import made
from tests.support.tokens import category

NOT_IN_PARQUET = ("run_end_encoded", "interval", "union")
EACH = [pytest.param(case, array, id=str(array.type)) for case in CASES for array in case.arrays]


def as_list(array: pa.Array) -> list[int]:
    schema = resolve(Schema(lists=("x",), list_weight="one"), ["label", "x"])
    return encode_batch(pa.record_batch({"x": array}), schema, BITS, {}, None).rows.indices.tolist()


@pytest.mark.parametrize(("case", "array"), EACH)
def test_a_value_is_the_same_category_in_each_type_that_holds_it_or_is_refused_by_name(case, array):
    found, refused = attempt(lambda: hash_category(array, "x", BITS).tolist())
    if case.text is None or case.is_list:
        assert refused.startswith("column 'x' holds "), refused
        assert "; " in refused
        return
    assert found == [category("x", case.text or None), category("x", None)], refused
    assert hash_category(array.slice(1), "x", BITS).tolist() == [category("x", None)]


@pytest.mark.parametrize(("case", "array"), EACH)
def test_a_value_is_the_same_number_in_each_type_that_holds_it_or_is_refused_by_name(case, array):
    if pa.types.is_null(array.type) or case.number is not None:
        values, present, unparsed = parse_numbers(array, "x")
        assert values.tolist() == [case.number or 0.0, 0.0]
        assert present.tolist() == [case.number is not None, False]
        assert not unparsed.any()
        return
    found, refused = attempt(lambda: parse_numbers(array, "x"))
    if found is not None:
        assert found[2][0], "text that is no number makes its row a bad one"
        return
    assert refused.startswith("column 'x' holds "), refused
    assert any(word in refused for word in ("categorical", "lists", "x.a", "columns of their own")), refused


@pytest.mark.parametrize(("case", "array"), EACH)
def test_lists_of_each_type_hold_its_categories(case, array):
    if case.is_list:
        assert as_list(array) == [category("x", case.text), category("x", None)]
        return
    listed = pa.ListArray.from_arrays(pa.array([0, 1, 1], pa.int32()), array)
    found, refused = attempt(lambda: as_list(listed))
    if case.text is None:
        assert refused.startswith("column 'x' holds "), refused
    else:
        assert found == [category("x", case.text or None), category("x", None)]


@pytest.mark.parametrize(("case", "array"), EACH)
def test_a_shard_keeps_what_the_table_was(case, array, tmp_path):
    """Types that Parquet has: what is read back is the same feature."""
    if (
        case.title.startswith(NOT_IN_PARQUET)
        or "values=string_view" in str(array.type)
        or "values=binary_view" in str(array.type)
    ):
        with pytest.raises(pa.ArrowNotImplementedError):
            pq.write_table(pa.table({"x": array}), tmp_path / "part.parquet")
        return
    pq.write_table(pa.table({"x": array}), tmp_path / "part.parquet")
    (shard,) = find_shards([str(tmp_path)])
    if pa.types.is_struct(array.type):
        assert feature_schema(shard).names == ["x.a"]
        (batch,) = read_unit(Unit(shard, 0, 2), ["x.a"])
        assert batch.data.column("x.a").to_pylist() == [1, None]
        return
    (batch,) = read_unit(Unit(shard, 0, 2), ["x"])
    hashed = as_list if case.is_list else lambda column: hash_category(column, "x", BITS).tolist()
    assert hashed(batch.data.column("x")) == hashed(array)


@pytest.mark.parametrize(
    ("kind", "is_feature"),
    [
        (pa.list_(pa.string()), True),
        (pa.large_list(pa.dictionary(pa.int8(), pa.string())), True),
        (pa.list_(pa.struct([("key", pa.string()), ("weight", pa.float32())])), True),
        (pa.map_(pa.string(), pa.float32()), True),
        (pa.list_(pa.list_(pa.string())), False),
        (pa.list_(pa.map_(pa.string(), pa.float32())), False),
        (pa.map_(pa.string(), pa.list_(pa.string())), False),
        (pa.list_(pa.struct([("id", pa.string()), ("price", pa.float64()), ("n", pa.int64())])), False),
        (pa.list_(pa.struct([("id", pa.string()), ("sizes", pa.list_(pa.int64()))])), False),
        (pa.list_(pa.struct([("id", pa.string())])), False),
    ],
    ids=str,
)
def test_lists_of_more_than_categories_and_weights_become_no_feature_by_themselves(kind, is_feature, tmp_path):
    assert (column_kind(kind) == "list") == is_feature
    table = pa.table({"label": [0, 1] * 9, "site": ["a", "b", "c"] * 6, "items": pa.array([[]] * 18, kind)})
    pq.write_table(table, tmp_path / "part.parquet")
    job = Job.from_dict({"data": {"train": str(tmp_path)}, "training": {"n_replicas": 1}})
    fields = [entry.name for entry in find_inputs(job).schema.fields]
    assert fields == (["site", "items"] if is_feature else ["site"])
    assert ("# left out: items: it holds" in guess(tmp_path)) != is_feature


def test_lists_of_lists_that_a_job_names_are_to_be_flattened():
    with pytest.raises(DataError, match=r"'items' holds lists of list<.*flatten it"):
        lists_of(pa.array([[["a"], ["b"]]]), "items", "")


@pytest.mark.parametrize("is_known", [True, False], ids=["known to Arrow", "as pandas has not named it"])
def test_periods_in_a_shard_of_pandas_are_left_out_or_refused_for_their_numbers_are_no_days(is_known, tmp_path):
    """Arrow reads them as integers until pandas has registered their type, which is not undone in a process."""
    days = pd.period_range("2026-11-01", periods=18, freq="D")
    array = pa.array(days) if is_known else pa.array(days.astype("int64"))
    named = None if is_known else {"ARROW:extension:name": "pandas.period", "ARROW:extension:metadata": '{"freq": "D"}'}
    fields = [pa.field("label", pa.int64()), pa.field("day", array.type, metadata=named), pa.field("site", pa.string())]
    table = pa.table([pa.array([0, 1] * 9), array, pa.array(["a", "b", "c"] * 6)], schema=pa.schema(fields))
    pq.write_table(table, tmp_path / "part.parquet")
    (shard,) = find_shards([str(tmp_path / "part.parquet")])
    job = Job.from_dict({"data": {"train": shard.url}, "training": {"n_replicas": 1}})
    assert [entry.name for entry in find_inputs(job).schema.fields] == ["site"]
    assert "# left out: day: it holds pandas.period" in guess(shard.url)
    (batch,) = read_unit(Unit(shard, 0, 18), ["day", "site"])
    for role in ("categorical", "numeric", "lists"):
        schema = resolve(Schema(**{role: ("day",)}), table.column_names)
        for data in (batch.data, table.to_batches()[0]):
            with pytest.raises(
                DataError, match=r"column 'day' holds pandas' periods, .* \(.dt.to_timestamp\(\)\), or text"
            ):
                encode_batch(data, schema, BITS, {}, None)


# --------------------------------------------------------------------------------------------- structs ----

NESTED = pa.table(
    {
        "label": [0, 1, 0],
        "user": pa.array([{"age": 3, "home": {"city": "x"}}, {"age": None, "home": None}, None]),
        "site.a": ["a", "b", "c"],
    }
)


def test_fields_of_structs_have_dotted_names_everywhere(tmp_path):
    pq.write_table(NESTED, tmp_path / "part.parquet")
    (shard,) = find_shards([str(tmp_path)])
    names = ["label", "user.age", "user.home.city", "site.a"]
    assert feature_schema(shard).names == flat(NESTED).column_names == names
    wanted = ("user.home.city", "site.a", "user.age")
    (batch,) = read_unit(Unit(shard, 0, 3), list(wanted))
    assert set(batch.data.schema.names) == set(wanted)
    expected = {"user.home.city": ["x", None, None], "site.a": ["a", "b", "c"], "user.age": [3, None, None]}
    served = {"user": NESTED["user"].to_pylist(), "site.a": ["a", "b", "c"]}
    for data in (NESTED, flat(NESTED), NESTED.to_pandas(), served, expected):
        (found,) = batches_of(data, wanted)
        assert found.to_pydict() == expected
    assert batch.data.select(list(wanted)).to_pydict() == expected
    with pytest.raises(DataError, match=r"no column 'user\.name': it has label, user\.age, user\.home\.city"):
        list(read_unit(Unit(shard, 0, 3), ["user.name"]))


def test_a_struct_named_whole_is_refused_with_the_names_of_its_fields():
    with pytest.raises(DataError, match=r"name its fields instead: user\.age, user\.home"):
        hash_category(NESTED["user"].combine_chunks(), "user", BITS)


class Foreign:
    """A table of another library of Arrow, as polars hands itself over: text as views, categories as dictionaries."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.columns, self.dtypes = table.column_names, [str(kind) for kind in table.schema.types]

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return self._table.num_rows


def view_dictionary(array: pa.Array) -> pa.Array:
    encoded = array.dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices.cast(pa.uint32()), encoded.dictionary.cast(pa.string_view()))


def foreign(table: pa.Table) -> Foreign:
    views = [array.cast(pa.string_view()) if pa.types.is_string(array.type) else array for array in table.columns]
    categories = pa.chunked_array([view_dictionary(chunk) for chunk in table["site"].chunks])
    views[table.column_names.index("site")] = categories
    return Foreign(pa.table(dict(zip(table.column_names, views, strict=True))))


def test_text_of_a_polars_frame_becomes_the_fields_that_it_is_in_pandas():
    rng = np.random.default_rng(0)
    table = pa.table(
        {"user": rng.choice(["a", "b", "c"], 300), "site": rng.choice(["x", "y"], 300), "price": rng.random(300)}
    )
    labels = (pc.equal(table["user"], "a").to_numpy() == pc.equal(table["site"], "x").to_numpy()).astype(int)
    frames = [foreign(table), table, table.to_pandas()]
    models = [FMClassifier(n_factors=4, n_epochs=3).fit(frame, labels) for frame in frames]
    for model in models:
        assert [field.name for field in model.model_.schema.fields] == ["user", "site", "price"]
        for frame in frames:
            np.testing.assert_array_equal(model.predict_proba(frame), models[0].predict_proba(table))
            np.testing.assert_array_equal(model.model_.predict(frame), model.model_.predict(table))
    one_column = {**{name: table[name] for name in ("site", "price")}, "user": table["user"].cast(pa.string_view())}
    np.testing.assert_array_equal(models[0].model_.predict(one_column), models[0].model_.predict(table))


def test_the_site_says_what_each_type_becomes():
    assert made("types") == markdown_table()
    assert all(f"| {case.title} | " in markdown_table() for case in CASES)
