"""The latest rows of a log: about as many as are wanted, whatever type a system wrote the time in."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dfm.data.latest import bound_of, counted_moments, latest_moments, latest_of, latest_or_why
from dfm.data.parquet import Unit, describe_shard
from dfm.data.reading import Reading
from dfm.data.schema import resolve
from dfm.data.time_split import at_or_after
from dfm.errors import DataError
from dfm.settings.tables import Schema
from tests.support.shards import write_shard

START = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
HOURS = [START + datetime.timedelta(hours=n) for n in range(240)]
KINDS: dict[str, pa.Array] = {
    "whole numbers": pa.array(range(240)),
    "numbers as text": pa.array([str(n) for n in range(240)]),
    "floats": pa.array([n / 4 for n in range(240)]),
    "days": pa.array([moment.date() for moment in HOURS]),
    "text of moments": pa.array([f"{moment:%Y-%m-%dT%H:%M:%S}" for moment in HOURS]),
    "text with a zone": pa.array([f"{moment:%Y-%m-%d %H:%M}+00:00" for moment in HOURS]),
    "dictionary": pa.array([f"{moment:%Y-%m-%d %H}" for moment in HOURS]).dictionary_encode(),
    **{f"timestamps in {unit}": pa.array([m.replace(tzinfo=None) for m in HOURS], pa.timestamp(unit)) for unit in "s"},
    **{f"timestamps in {unit}": pa.array(HOURS, pa.timestamp(unit, "UTC")) for unit in ("ms", "us", "ns")},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_parts", [1, 7])
def test_the_bound_leaves_as_many_rows_as_are_wanted(kind: str, n_parts: int) -> None:
    moments = KINDS[kind]
    length = -(-len(moments) // n_parts)
    parts = [moments.slice(start, length) for start in range(0, len(moments), length)]
    counted = [latest_of([counted_moments(part)], 24, "t") for part in parts]
    bound, n_rows = bound_of(latest_of(counted[::-1], 24, "t"), 24, 96)
    later = at_or_after(moments, bound, "t").to_pylist()
    assert sum(later) == n_rows == 24
    assert later == [False] * 216 + [True] * 24


def test_rows_of_one_moment_stay_together() -> None:
    moments = pa.array([1] * 50 + [2] * 30 + [3] * 20)
    latest = latest_of([counted_moments(moments)], 10, "t")
    assert bound_of(latest, 10, 40)[0] == "3"
    assert bound_of(latest_of([counted_moments(moments)], 45, "t"), 45, 60)[0] == "2"


@pytest.mark.parametrize(
    ("moments", "why"),
    [([7] * 100, "one moment has all rows"), ([None] * 100, "no moment is known"), ([1] * 99 + [2], "too few or all")],
)
def test_where_no_moment_suits_there_is_no_bound(moments: list[Any], why: str) -> None:
    latest = latest_of([counted_moments(pa.array(moments, pa.int64()))], 10, "t")
    assert bound_of(latest, 10, 40) == ("", 0), why


def test_lists_are_no_moments(tmp_path: Path) -> None:
    columns = {"label": [0], "c": ["x"], "t": [["a", "b"]]}
    shard = describe_shard(write_shard(tmp_path / "a.parquet", columns))
    reading = Reading(resolve(Schema(time="t", categorical=["c"]), [*columns]), 10, "classification")
    with pytest.raises(DataError, match=r"a\.parquet: column 't' holds list<.*>, which has no order in time; name "):
        latest_moments(reading, [Unit(shard, 0, 1)], 1)


def test_rows_are_counted_where_the_path_gives_the_moment() -> None:
    days = pa.array(["2026-11-01", None, "2026-11-03", "2026-11-02"])
    latest = latest_of([counted_moments(days, pa.array([10, 5, 30, 20]))], 25, "day")
    assert latest.to_pydict() == {"moment": ["2026-11-03"], "rows": [30]}
    assert bound_of(latest, 25, 40)[0] == "2026-11-03"


def test_missing_moments_are_the_earliest() -> None:
    latest = latest_of([counted_moments(pa.array([None, 5, 6, None]))], 2, "t")
    assert latest.to_pydict() == {"moment": [6, 5], "rows": [1, 1]}


EPOCH_DAYS = pa.array([90 + row // 10 for row in range(1000)])
DAYS = [datetime.date(1970, 1, 1) + datetime.timedelta(days=day) for day in EPOCH_DAYS.to_pylist()]


def held_out(*parts: pa.Array, n_rows: int = 100) -> tuple[str, int, list[int]]:
    """The bound of some shards' moments, how many rows it was found to hold out, and how many it does of each."""
    latest = latest_of([counted_moments(part) for part in parts], n_rows, "t")
    bound, found = bound_of(latest, n_rows, 250)
    return bound, found, [sum(at_or_after(part, bound, "t").to_pylist()) for part in parts]


def test_bytes_are_the_text_that_they_are() -> None:
    texts = pa.array([f"{day}" for day in DAYS])
    for kind in (pa.binary(), pa.large_binary(), pa.large_string(), pa.string_view()):
        assert held_out(texts.cast(kind)) == held_out(texts) == ("1970-06-30", 100, [100])


def test_empty_text_is_a_missing_moment_wherever_it_stands() -> None:
    texts = EPOCH_DAYS.cast(pa.string()).to_pylist()
    assert held_out(pa.array(["", *texts])) == held_out(pa.array([*texts, ""])) == ("180", 100, [100])


@pytest.mark.parametrize(
    "kinds",
    [
        (pa.timestamp("ns"), pa.timestamp("us")),
        (pa.timestamp("s", "UTC"), pa.timestamp("ms", "Europe/Berlin")),
        (pa.timestamp("us"), pa.timestamp("ns", "UTC")),
        (pa.date32(), pa.timestamp("s")),
        (pa.date64(), pa.date32()),
        (pa.date32(), pa.timestamp("us", "UTC")),
    ],
    ids=str,
)
def test_shards_that_write_moments_in_several_types_are_cut_at_one_moment(kinds: tuple[pa.DataType, ...]) -> None:
    moments = pa.array(DAYS, pa.date32()).cast(pa.timestamp("ms"))
    early, late = moments.slice(0, 950).cast(kinds[0]), moments.slice(950).cast(kinds[1])
    assert held_out(early, late)[1:] == (100, [50, 50])
    assert held_out(late, early)[1:] == (100, [50, 50])


def test_counts_of_any_width_are_of_one_type_and_empty_shards_of_any() -> None:
    early, late = EPOCH_DAYS.slice(0, 950).cast(pa.int16()), EPOCH_DAYS.slice(950)
    assert held_out(early, late) == ("180", 100, [50, 50])
    assert held_out(early, late, pa.array([], pa.string()), pa.nulls(2, pa.int8())) == ("180", 100, [50, 50, 0, 0])


COUNTS = pa.array([90 + row // 10 for row in range(1000)], pa.int64())


@pytest.mark.parametrize(
    ("early", "late"),
    [
        (pa.int64(), pa.float64()),
        (pa.int64(), pa.float32()),
        (pa.float32(), pa.float64()),
        (pa.int64(), pa.uint64()),
        (pa.int32(), pa.decimal128(12, 0)),
        (pa.decimal128(12, 2), pa.float64()),
        (pa.decimal128(12, 2), pa.decimal128(20, 4)),
    ],
    ids=str,
)
def test_shards_that_write_numbers_in_several_types_are_cut_at_one_moment(
    early: pa.DataType, late: pa.DataType
) -> None:
    """A gap makes floats of the integers of one shard of pandas."""
    exact = COUNTS.cast(pa.decimal128(38, 4))
    first, second = exact.slice(0, 950).cast(early), exact.slice(950).cast(late)
    for order in ([first, second], [second, first]):
        bound, *found = held_out(*order)
        assert (float(bound), *found) == (180.0, 100, [50, 50])


def test_numbers_with_a_fraction_in_one_shard_cut_the_whole_ones_of_another() -> None:
    whole, fractions = COUNTS.slice(0, 950), pa.array([185.5 + row for row in range(50)])
    assert held_out(whole, fractions)[1:] == (100, [50, 50])
    decimals = whole.cast(pa.decimal128(20, 0))
    assert held_out(decimals, fractions)[1:] == (100, [50, 50])
    few_digits = pa.array([decimal.Decimal("90.25")] * 950, pa.decimal128(4, 2))
    assert held_out(few_digits, pa.array([10_000 + row // 10 for row in range(100)], pa.int64()))[1] == 100
    below_zero = pa.array([-200 + row // 10 for row in range(1000)], pa.int64())
    assert held_out(below_zero, pa.array([1] * 10, pa.uint64()))[0].startswith("-")
    assert held_out(whole, pa.array([183.5] * 100 + [float("nan")] * 7 + [None])) == ("183.5", 110, [10, 100])


@pytest.mark.parametrize("late", [pa.array(["2026-11-20"]), pa.array([1])], ids=["text", "numbers"])
def test_times_in_several_kinds_are_told_in_words(late: pa.Array) -> None:
    moments = pa.array([START.replace(tzinfo=None)], pa.timestamp("us"))
    for order in ([moments, late], [late, moments]):
        why = latest_or_why([counted_moments(each) for each in order], 1, "t")
        kind = "text" if pa.types.is_string(late.type) else "numbers"
        assert why == f"it holds {' in some shards, and in others '.join(sorted(['dates', kind]))}"


def test_times_of_day_have_no_order() -> None:
    clock = counted_moments(pa.array([1, 2], pa.time32("s")))
    assert latest_or_why([clock], 1, "t") == "times of day, without a day, have no order in time"
