"""Each type of Arrow: a category, a number, a list, or refused by name with what to do; README's table is made here."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dfm.data.arrow_types import column_kind, flat
from dfm.data.encoding import encode_batch, parse_numbers
from dfm.data.hashing import hash_category
from dfm.data.parquet import Unit, feature_schema, find_shards, read_unit
from dfm.data.schema import infer, resolve
from dfm.errors import DataError
from dfm.estimators import FMClassifier
from dfm.model.fm_model import batches_of
from dfm.settings.tables import Schema
from tests.support.tokens import category

BITS = 20
MOMENT = datetime.datetime(2026, 11, 20, 7, 5)
ONE_AND_A_HALF = decimal.Decimal("1.50")


@dataclass(frozen=True)
class Case:
    """Types by name, arrays of them, and what their first value is: as text, as number (None: it is none)."""

    title: str
    arrays: list[pa.Array]
    text: str | None
    number: float | None = None
    is_list: bool = False


def dictionaries(values: pa.Array) -> list[pa.Array]:
    codes = pa.array([0, None], pa.int8())
    kinds = (pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64())
    return [pa.DictionaryArray.from_arrays(codes.cast(kind), values) for kind in kinds]


def texts(text: str) -> list[pa.Array]:
    plain = pa.array([text, None])
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    return [plain.cast(kind) for kind in kinds]


def moments(zones: tuple[str | None, ...]) -> list[pa.Array]:
    aware = pa.array([MOMENT.replace(tzinfo=datetime.UTC), None])
    units = [(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in zones]
    return [
        aware.cast(pa.timestamp(unit, zone)) if zone else aware.cast(pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit))
        for unit, zone in units
    ]


def lists(value: Any) -> list[pa.Array]:
    rows = [[value], None]
    inner = pa.array([value]).type
    kinds = (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)
    return [*(pa.array(rows, kind(inner)) for kind in kinds), pa.array(rows, pa.list_(inner, 1))]


def weighted(value: str) -> list[pa.Array]:
    maps = pa.array([[(value, 2.0)], None], pa.map_(pa.string(), pa.float32()))
    return [maps, pa.array([[{"tag": value, "share": 2}], None])]


INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32())
FLOATS = (pa.float16(), pa.float32(), pa.float64())
DATES = (pa.date32(), pa.date64())
TIMES = (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"))
DECIMALS = (pa.decimal32(5, 2), pa.decimal64(9, 2), pa.decimal128(20, 2), pa.decimal256(50, 2))
ID = uuid.UUID("00000000-0000-0000-0000-00000000002a")
LARGE = 2**63 + 1025
CASES = [
    Case("bool, arrow.bool8", [pa.array([True, None]), pa.array([1, None], pa.bool8())], "true", 1.0),
    Case("int8 to int64, uint8 to uint32", [pa.array([5, None], kind) for kind in INTEGERS], "5", 5.0),
    Case("uint64", [pa.array([LARGE, None], pa.uint64())], str(LARGE), float(LARGE)),
    Case("float16, float32, float64", [pa.array([0.1, None], kind) for kind in FLOATS], "0.1", 0.1),
    Case("decimal32 to decimal256", [pa.array([ONE_AND_A_HALF, None], kind) for kind in DECIMALS], "1.5", 1.5),
    Case("string, binary, each also large and view", texts("2.5"), "2.5", 2.5),
    Case("fixed_size_binary", [pa.array([b"ab", None], pa.binary(2))], "ab"),
    Case("arrow.uuid", [pa.array([ID.bytes, None], pa.uuid())], str(ID)),
    Case("arrow.json", [pa.array(['{"a":1}', None], pa.json_())], '{"a":1}'),
    Case("dictionary of text, any index", [d for t in texts("2.5") for d in dictionaries(t.slice(0, 1))], "2.5", 2.5),
    Case("dictionary of numbers, any index", dictionaries(pa.array([0.1, 7.0], pa.float32())), "0.1", 0.1),
    Case("dictionary of moments", dictionaries(pa.array([MOMENT])), "2026-11-20 07:05:00"),
    Case("null", [pa.nulls(2)], "", None),
    Case("date32, date64", [pa.array([MOMENT.date(), None], kind) for kind in DATES], "2026-11-20"),
    Case("timestamp, any unit and zone", moments((None, "UTC", "Asia/Kolkata", "+01:00")), "2026-11-20 07:05:00"),
    Case(
        "time32, time64",
        [pa.array([MOMENT.time(), None], kind) for kind in TIMES],
        "07:05:00",
    ),
    Case(
        "duration, any unit (seconds)",
        [pa.array([datetime.timedelta(hours=1), None], pa.duration(unit)) for unit in ("s", "ms", "us", "ns")],
        "3600", 3600.0,
    ),
    Case(
        "run_end_encoded", [pa.RunEndEncodedArray.from_arrays(pa.array([1, 2]), pa.array(["2.5", None]))], "2.5", 2.5
    ),
    Case("list, large, view, fixed size, of any of these", lists("a"), "a", is_list=True),
    Case("map, list of structs of two: weighted lists", weighted("a"), "a", is_list=True),
    Case("struct", [pa.array([{"a": 1}, None])], None),
    Case("interval (month_day_nano)", [pa.array([(1, 2, 3), None], pa.month_day_nano_interval())], None),
    Case("union", [pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])])], None),
]  # fmt: skip
NOT_IN_PARQUET = ("run_end_encoded", "interval", "union")
EACH = [pytest.param(case, array, id=str(array.type)) for case in CASES for array in case.arrays]


def attempt(work: Callable[[], Any]) -> tuple[Any, str]:
    """What comes, or the message of the refusal."""
    try:
        return work(), ""
    except DataError as error:
        return None, str(error)


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


# ----------------------------------------------------------------------------------------------- table ----


def role_by_itself(array: pa.Array) -> str:
    """What a column becomes where the schema names no features."""
    schema = infer(Schema(), {"label": "int", "x": column_kind(array.type)})
    found = {"category": schema.categorical, "number": schema.numeric, "list": schema.lists}
    return next((role for role, names in found.items() if "x" in names), "left out")


def row_of(case: Case) -> str:
    array = case.arrays[0]
    (role,) = {role_by_itself(array) for array in case.arrays}
    if pa.types.is_struct(array.type):
        return f"| {case.title} | its fields | by dotted names: `user.age` | |"
    as_category = "" if case.is_list else attempt(lambda: hash_category(array, "x", BITS))[1]
    as_number = attempt(lambda: parse_numbers(array, "x"))
    numeric = "" if as_number[0] is not None and not as_number[0][2].any() else as_number[1] or "text that is a number"
    refused = "" if case.is_list else as_category.partition("; ")[2]
    others = ["categorical"] if not as_category and not case.is_list and role != "category" else []
    others += ["numeric"] if not numeric and not case.is_list and role != "number" else []
    return f"| {case.title} | {role} | {', '.join(others)} | {refused or numeric.partition('; ')[2]} |"


def markdown_table() -> str:
    """README's table."""
    head = ["| type of Arrow | by itself | where named | otherwise |", "|---|---|---|---|"]
    return "\n".join([*head, *(row_of(case).replace("'x'", "COLUMN").replace('"x"', '"COLUMN"') for case in CASES)])


def test_the_table_of_the_readme_says_what_each_type_becomes():
    readme = Path(__file__).parents[2] / "README.md"
    assert markdown_table() in readme.read_text(encoding="utf-8"), markdown_table()
