"""A new partition is compared with those before it: columns, rows, click rate; each day is read once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm.data.parquet import find_shards
from dfm.errors import DataError, SettingsError
from dfm.settings.job import load_job
from dfm.training.inputs import resolve_schema
from dfm.workflow.data_check import Limits, Profile, check, compare, profile

JOB = load_job({"schema": {"label": "clicked", "categorical": ["site"], "numeric": ["price"], "time": "day"}})


def write_day(folder: Path, day: int, rows: int = 400, clicks: int = 100, **changes: pa.Array) -> str:
    """A partition of two shards; every row has a site and a price."""
    for part in range(2):
        n = rows // 2
        columns = {
            "clicked": pa.array([int(row < clicks // 2) for row in range(n)], pa.int8()),
            "site": pa.array([f"s{row % 7}" for row in range(n)]),
            "price": pa.array([float(row) for row in range(n)]),
            **changes,
        }
        path = folder / f"day=2026-11-{day:02d}" / f"part-{part}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
    return str(folder / f"day=2026-11-{day:02d}")


def profile_of(url: str, keep: str = "") -> Profile:
    return profile(url, JOB, resolve_schema(JOB, find_shards([url])[0]), keep)


def test_a_profile_tells_rows_click_rate_and_the_columns_in_use(tmp_path: Path):
    found = profile_of(write_day(tmp_path, 1))
    assert (found.rows, found.bad_labels, found.label_mean) == (400, 0, 0.25)
    assert found.columns == {"clicked": "int8", "site": "string", "price": "double", "day": "string"}


def test_labels_that_are_missing_or_illegal_are_counted_not_averaged(tmp_path: Path):
    labels = pa.array([None, 7] + [1] * 99 + [0] * 99, pa.int8())
    found = profile_of(write_day(tmp_path, 1, clicked=labels))
    assert (found.rows, found.bad_labels, found.label_mean) == (400, 4, 0.5)
    assert "4 of 400 labels are missing or illegal" in compare(found, [], Limits(max_bad_fraction=0.005))[0]
    assert compare(found, [], Limits()) == []


def test_a_day_like_those_before_it_passes_and_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    days = [write_day(tmp_path, day, rows=400 + 20 * day, clicks=100 + day) for day in range(1, 5)]
    keep = str(tmp_path / "profiles")
    profiles = [profile_of(url, keep) for url in days]
    check(profiles[-1], profiles[:-1], Limits())
    monkeypatch.setattr("dfm.workflow.data_check.read_unit", None)
    assert [profile_of(url, keep) for url in days] == profiles


def test_a_day_that_changed_is_read_again(tmp_path: Path):
    keep = str(tmp_path / "profiles")
    first = profile_of(write_day(tmp_path, 1), keep)
    assert profile_of(write_day(tmp_path, 1, rows=600), keep).rows == 600 != first.rows


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"rows": 100, "clicks": 26}, r"100 rows; 3 partitions before it have 400 \(median\)"),
        ({"rows": 1000, "clicks": 250}, "1,000 rows; .* 0.5 to 2 times as many"),
        ({"clicks": 150}, r"click rate\) is 0.3750; before it was 0.2500"),
        ({"clicks": 40}, "0.8 to 1.25 times that is expected"),
        ({"price": pa.array(["1"] * 200)}, "column 'price' is string; it was double in .*day=2026-11-03"),
    ],
)
def test_what_is_odd_is_told_with_both_numbers(tmp_path: Path, odd: dict, message: str):
    before = [profile_of(write_day(tmp_path, day)) for day in (1, 2, 3)]
    with pytest.raises(DataError, match=message):
        check(profile_of(write_day(tmp_path, 4, **odd)), before, Limits())


def test_a_column_that_a_pattern_no_longer_finds_is_missed(tmp_path: Path):
    job = load_job({"schema": {"label": "clicked", "categorical": ["s*"], "numeric": ["p*"]}})
    days = [write_day(tmp_path, 1, s2=pa.array(["x"] * 200)), write_day(tmp_path, 2)]
    yesterday, today = (profile(url, job, resolve_schema(job, find_shards([url])[0])) for url in days)
    assert compare(today, [yesterday], Limits()) == [f"column 's2' is missing; it was string in {days[0]}"]


def numbers_of(folder: Path, day: int, mean: float, stdev: float) -> Profile:
    """The profile of a day whose labels are numbers, half of them one deviation below the mean, half above."""
    labels = pa.array([mean - stdev, mean + stdev] * 100, pa.float64())
    url, job = write_day(folder, day, clicked=labels), load_job({**JOB.to_dict(), "model": {"task": "regression"}})
    return profile(url, job, resolve_schema(job, find_shards([url])[0]), str(folder / "profiles"))


@pytest.mark.parametrize(("mean", "stdev"), [(-5.0, 2.0), (0.01, 3.0), (-0.02, 1.0)])
def test_numbers_of_any_sign_are_compared_in_what_they_deviate(tmp_path: Path, mean: float, stdev: float):
    before = [numbers_of(tmp_path, day, mean + day * 0.01 * stdev, stdev) for day in (1, 2, 3)]
    usual = numbers_of(tmp_path, 4, mean - 0.1 * stdev, stdev)
    assert usual.label_stdev == pytest.approx(stdev)
    check(usual, before, Limits())
    for day, by in ((5, -2.0), (6, 2.0)):
        with pytest.raises(DataError, match=r"expected: the mean label is .*; before it was ") as refusal:
            check(numbers_of(tmp_path, day, mean + by * stdev, stdev), before, Limits())
        assert "click rate" not in str(refusal.value)


def test_numbers_that_are_never_negative_are_compared_as_shares_of_their_mean(tmp_path: Path):
    before = [numbers_of(tmp_path, 1, 10.0, 9.0)]
    assert compare(numbers_of(tmp_path, 2, 12.0, 9.0), before, Limits()) == []
    (odd,) = compare(numbers_of(tmp_path, 3, 13.0, 9.0), before, Limits())
    assert odd == "the mean label is 13; before it was 10, and 0.8 to 1.25 times that is expected"


def test_limits_are_checked():
    with pytest.raises(SettingsError, match="rows_low = 3 lies above rows_high = 2"):
        Limits(rows_low=3)
    with pytest.raises(SettingsError, match="min_rows = -1"):
        Limits(min_rows=-1)
