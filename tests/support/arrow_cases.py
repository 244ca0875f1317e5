"""Each type of Arrow with what its values are: `tests/data/test_arrow_types.py` tries them, the site has the table."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dfm.data.arrow_types import column_kind
from dfm.data.columns import parse_numbers
from dfm.data.hashing import hash_category
from dfm.data.schema import infer
from dfm.errors import DataError
from dfm.settings.tables import Schema

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


def attempt(work: Callable[[], Any]) -> tuple[Any, str]:
    """What comes, or the message of the refusal."""
    try:
        return work(), ""
    except DataError as error:
        return None, str(error)


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
    """The table of the site."""
    head = ["| type of Arrow | by itself | where named | otherwise |", "|---|---|---|---|"]
    return "\n".join([*head, *(row_of(case).replace("'x'", "COLUMN").replace('"x"', '"COLUMN"') for case in CASES)])
