"""The latest rows of a log: about as many as are wanted, whatever type a system wrote the time in."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
import pytest

from dfm.data.latest import bound_of, counted_moments, latest_of
from dfm.data.time_split import at_or_after

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


def test_rows_are_counted_where_the_path_gives_the_moment() -> None:
    days = pa.array(["2026-11-01", None, "2026-11-03", "2026-11-02"])
    latest = latest_of([counted_moments(days, pa.array([10, 5, 30, 20]))], 25, "day")
    assert latest.to_pydict() == {"moment": ["2026-11-03"], "rows": [30]}
    assert bound_of(latest, 25, 40)[0] == "2026-11-03"


def test_missing_moments_are_the_earliest() -> None:
    latest = latest_of([counted_moments(pa.array([None, 5, 6, None]))], 2, "t")
    assert latest.to_pydict() == {"moment": [6, 5], "rows": [1, 1]}
