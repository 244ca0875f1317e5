"""Splits in time: rows, folders and shards before a moment and from it on, however moments are written."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dfm.data.chunks import hash_units
from dfm.data.latest import latest_moments
from dfm.data.parquet import Unit, describe_shard
from dfm.data.reading import Reading
from dfm.data.schema import Schema, resolve
from dfm.data.time_split import at_or_after
from dfm.errors import DataError
from dfm.settings.job import Job
from dfm.training.inputs import find_inputs
from tests.data.test_preparation import COLUMNS, HASH_BITS, SPLIT, UNIFORM, columns_of
from tests.support.shards import write_shard

DAY = datetime.date(2026, 11, 1)
MOMENTS = [None if n % 7 == 0 else DAY + datetime.timedelta(days=n // 10) for n in range(60)]
TIMES = {
    "string": pa.array([None if day is None else str(day) for day in MOMENTS]),
    "large_string": pa.array([None if day is None else str(day) for day in MOMENTS], pa.large_string()),
    "date32": pa.array(MOMENTS, pa.date32()),
    "date64": pa.array(MOMENTS, pa.date64()),
    "timestamp": pa.array(MOMENTS, pa.date32()).cast(pa.timestamp("us")),
    "zoned": pa.array(MOMENTS, pa.date32()).cast(pa.timestamp("ms")).cast(pa.timestamp("ms", "UTC")),
    "dictionary": pa.array([None if day is None else str(day) for day in MOMENTS]).dictionary_encode(),
    "integer": pa.array([None if day is None else int(f"{day:%Y%m%d}") for day in MOMENTS]),
    "whole numbers as text": pa.array([None if day is None else f"{day:%Y%m%d}" for day in MOMENTS]),
}


def timed_reading(tmp_path: Path, time: pa.Array) -> tuple[Reading, Unit]:
    columns: Mapping[str, Any] = {
        "label": [0, 1] * 30,
        "w": [float(n) for n in range(60)],
        "C": ["a"] * 60,
        "day": time,
    }
    shard = describe_shard(write_shard(tmp_path / "timed.parquet", columns, 16))
    schema = resolve(Schema(weight="w", time="day", categorical=["C"]), list(columns))
    return Reading(schema, HASH_BITS, "classification", cache=str(tmp_path / "cache")), Unit(shard, 0, 60)


@pytest.mark.parametrize("time", TIMES.values(), ids=TIMES)
def test_a_split_in_time_is_exact_and_a_missing_time_is_the_earliest(tmp_path, time):
    reading, unit = timed_reading(tmp_path, time)
    bound = SPLIT if "-" in str(time[1]) else SPLIT.replace("-", "")
    before = hash_units(dataclasses.replace(reading, time_until=bound), [unit], 1, None)
    since = hash_units(dataclasses.replace(reading, time_from=bound), [unit], 1, None)
    late = [day is not None and str(day) >= SPLIT for day in MOMENTS]
    assert since.rows.weights.tolist() == [n for n in range(60) if late[n]]
    assert before.rows.weights.tolist() == [n for n in range(60) if not late[n]]
    assert before.account.read + since.account.read == 60


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "whole numbers as text"])
def test_a_text_that_means_no_value_is_a_missing_time(tmp_path, kind):
    plain = TIMES[kind].dictionary_decode() if kind == "dictionary" else TIMES[kind]
    filled = pc.fill_null(plain, "zz")
    named, unit = timed_reading(tmp_path, filled.dictionary_encode() if kind == "dictionary" else filled)
    named = dataclasses.replace(named, schema=dataclasses.replace(named.schema, missing=("NA", "zz")))
    bound = SPLIT if "-" in str(TIMES[kind][1]) else SPLIT.replace("-", "")
    since = hash_units(dataclasses.replace(named, time_from=bound), [unit], 1, None)
    assert since.rows.weights.tolist() == [n for n, day in enumerate(MOMENTS) if day and str(day) >= SPLIT]
    latest = latest_moments(named, [unit], 10)
    assert latest.column("moment").to_pylist() == [str(plain[59]), str(plain[48])]


def test_a_split_by_folders_is_exact(tmp_path):
    units = []
    for day in ("2026-11-03", "2026-11-04", "2026-11-05"):
        path = write_shard(tmp_path / f"day={day}" / "a.parquet", {"label": [0, 1], "C": [day, day]})
        units.append(Unit(describe_shard(path), 0, 2))
    schema = resolve(Schema(time="day", categorical=["C"]), ["label", "C", "day"])
    reading = Reading(schema, HASH_BITS, "classification", cache=str(tmp_path / "cache"))
    assert hash_units(dataclasses.replace(reading, time_from=SPLIT), units, 1, None).rows.n_rows == 4
    assert hash_units(dataclasses.replace(reading, time_until=SPLIT), units, 1, None).rows.n_rows == 2


def test_a_bound_that_the_time_column_cannot_hold_is_named(tmp_path):
    reading, unit = timed_reading(tmp_path, TIMES["integer"])
    message = (
        r"timed\.parquet: data\.validation_from = '2026-11-04' cannot be compared with .* 'day', which holds int64"
    )
    with pytest.raises(DataError, match=message):
        hash_units(dataclasses.replace(reading, time_from=SPLIT), [unit], 1, None)


def late(values: Any, bound: str, kind: pa.DataType | None = None) -> list[int]:
    """Which values are at or after the bound, by number."""
    array = values if isinstance(values, pa.Array) else pa.array(values, kind)
    return np.flatnonzero(at_or_after(array, bound, "t")).tolist()


def test_whole_numbers_are_compared_as_numbers_whatever_their_type():
    numbers = [9, None, 10, 100, -3]
    texts = [None if number is None else str(number) for number in numbers]
    for kind in (pa.int8(), pa.int64(), pa.uint8(), pa.float64(), pa.decimal128(9, 2)):
        in_range = [abs(n) if n is not None and pa.types.is_unsigned_integer(kind) else n for n in numbers]
        assert late(in_range, "10", kind) == [2, 3], kind
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())):
        assert late(pa.array(texts).cast(kind), "10") == [2, 3], kind


WRITTEN = ["2026-11-19T23:59:59.999", "2026-11-20", "2026-11-20 00:00", "2026-11-20T00:00:00.000000001", None, ""]


@pytest.mark.parametrize("bound", ["2026-11-20", "2026-11-20T00:00:00", "2026-11-20 00:00", "2026-11-20T00:00:00Z"])
def test_dates_and_times_are_compared_as_moments_however_they_are_written(bound):
    assert late(WRITTEN, bound) == [1, 2, 3]
    assert late([datetime.date(2026, 11, 19), datetime.date(2026, 11, 20)], bound) == [1]


def test_a_bound_with_a_zone_is_an_instant_and_one_without_is_in_the_zone_of_the_values():
    texts = ["2026-11-20T00:30+01:00", "2026-11-19T23:30Z", "2026-11-20T01:00:00", "2026-11-20 00:30:00.5+0100"]
    assert late(texts, "2026-11-20") == [0, 2, 3]
    assert late(texts, "2026-11-20T00:30:00+01:00") == [0, 1, 2, 3]
    assert late(texts, "2026-11-20T00:00:00Z") == [2]
    berlin = pa.array([datetime.datetime(2026, 11, 19, 22, 59), datetime.datetime(2026, 11, 19, 23)])
    for unit in ("s", "ms", "us", "ns"):
        moments = berlin.cast(pa.timestamp(unit)).cast(pa.timestamp(unit, "Europe/Berlin"))
        assert late(moments, "2026-11-20") == late(moments, "2026-11-19T23:00:00Z") == [1], unit
        assert late(moments.cast(pa.timestamp(unit)), "2026-11-19T23:00:00Z") == [1], unit


def test_what_is_neither_number_nor_moment_is_compared_as_text():
    assert late(["v1", "v2", None, "10"], "v2") == [1]
    assert late(["2026-W46", "2026-W47"], "2026-W47") == [1]


@pytest.mark.parametrize(
    ("values", "bound", "message"),
    [
        (["2026-11-19"], "20261120", "'20261120' is a whole number, but column 't' holds '2026-11-19'; write both the"),
        (["20261119"], "2026-11-20", r"is a date or time \(YYYY-MM-DD.*, but column 't' holds '20261119'"),
        (["2026-11-19"], "2026-13-01", r"cannot be compared .* string \(Failed to parse string: '2026-13-01'"),
        ([datetime.datetime(2026, 11, 19)], "10", r"which holds timestamp\[us\] \(expected YYYY-MM-DD"),
        ([[1]], "10", r"which holds list<item: int64> .*; write a value like those of t, or name another column"),
        ([{"a": 1}], "10", r"which holds struct<a: int64>"),
        ([b"\xff"], "10", r"'10' is a whole number, but column 't' holds '\\\\xff'"),
        ([300], "9" * 20, "which holds int64"),
    ],
)
def test_a_bound_and_values_that_cannot_be_compared_are_named(values, bound, message):
    with pytest.raises(DataError, match=message):
        late(values, bound)


def split_by_folders(
    tmp_path: Path, days: Sequence[str], bound: str, stored: Sequence[str] = (), missing: Sequence[str] = ()
) -> list[list[str]]:
    """Folders of the training and of the validation shards; days may be stored in the files too."""
    for day in days:
        columns = {"label": [0, 1], "C": ["a", "b"], **({"day": list(stored)} if stored else {})}
        write_shard(tmp_path / f"day={day}" / "a.parquet", columns)
    data = {"train": str(tmp_path), "validation_from": bound}
    schema = {"time": "day", "missing": [*missing]}
    inputs = find_inputs(Job.from_dict({"data": data, "schema": schema, "training": {"n_replicas": 1}}))
    assert inputs.split.is_needed == bool(stored)
    return [[dict(shard.partition)["day"] for shard in shards] for shards in (inputs.train, inputs.validation)]


NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"


@pytest.mark.parametrize(
    ("days", "bound"),
    [
        (["2026-11-19", "2026-11-20"], "2026-11-20T00:00:00"),
        (["2026-11-19 23%3A00%3A00", "2026-11-20 00%3A00%3A00"], "2026-11-20"),
        (["9", "10"], "10"),
        (["v1", "v2"], "v2"),
    ],
)
def test_folders_are_split_as_rows_are_and_the_null_folder_is_the_earliest(tmp_path, days, bound):
    before, after = (day.replace("%3A", ":") for day in days)
    assert split_by_folders(tmp_path, [*days, NULL_FOLDER], bound) == [sorted([NULL_FOLDER, before]), [after]]


def test_a_folder_that_means_no_value_is_the_earliest(tmp_path):
    days = ["2026-11-19", "2026-11-20", "unknown"]
    found = split_by_folders(tmp_path, days, "2026-11-20", missing=["unknown"])
    assert found == [["2026-11-19", "unknown"], ["2026-11-20"]]


def test_a_stored_time_wins_over_that_of_the_folder(tmp_path):
    days = ["2026-11-18", "2026-11-19"]
    assert split_by_folders(tmp_path, days, "2026-11-20", stored=["2026-11-19", "2026-11-20"]) == [days, []]


def test_a_split_that_leaves_nothing_names_the_end_of_the_folders(tmp_path):
    with pytest.raises(DataError, match="leaves no shard to validate on: day ends at 10; choose an earlier time"):
        split_by_folders(tmp_path, ["9", "10", NULL_FOLDER], "11")
    with pytest.raises(DataError, match="leaves no shard to validate on: day ends at a missing value"):
        split_by_folders(tmp_path / "alone", [NULL_FOLDER], "11")
    with pytest.raises(DataError, match="leaves no shard to train on: day begins at 9; choose a later time"):
        split_by_folders(tmp_path / "late", ["9", "10"], "3")


def test_a_bad_row_is_placed_in_its_row_group_although_earlier_rows_are_left_out(tmp_path):
    columns = columns_of(0, 60)
    columns["label"][47] = 7
    shard = describe_shard(write_shard(tmp_path / "a.parquet", columns, 30))
    reading = Reading(
        resolve(UNIFORM, COLUMNS), HASH_BITS, "classification", time_from="2026-11-03", cache=str(tmp_path / "cache")
    )
    with pytest.raises(DataError, match=r"row group 1, row 17: column 'label'"):
        hash_units(reading, [Unit(shard, 35, 60)], 1, None)
