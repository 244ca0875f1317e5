"""Runs are ordered by time: by hand or by a timetable, in any zone, whatever the length of their intervals."""

from __future__ import annotations

import datetime
import itertools
import logging
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dfm.airflow import runtime
from dfm.errors import SettingsError
from dfm.storage import files
from dfm.workflow.moments import check_order, is_earlier, moment_of
from dfm.workflow.registry import Version, objections

BERLIN = ZoneInfo("Europe/Berlin")


HOURLY = (
    *("2026-11-29T08", "20261129T08", "2026-11-29T08Z", "2026-11-29T10+02:00", "2026-11-29 08", "2026-11-29-08"),
    *("2026-11-29_08", "2026-11-29/08", "s3://log/2026-11-29/08/model", "day=2026-11-29/hour=08"),
    *("s3://log/day=2026-11-29/hour=8/model", "manual__2026-11-29T08"),
    *("2026/11/29/08", "s3://log/2026/11/29/08/model", "2026.11.29-08"),
)
DAILY = (
    *("2026-11-29-05:00", "2026-11-29-08-15", "2026-11-29T08-15", "2026-11-29_45", "2026-11-29 12 models"),
    *("2026-11-29_08_ab12", "20261129_08", "day=2026-11-29/hour=24", "2026/11/29", "2026.11.29", "exp-2026/11/29/b"),
)
"""Texts in which what follows the day may be something else than an hour."""


def utc(*parts: int) -> datetime.datetime:
    return datetime.datetime(*parts, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-26", utc(2026, 11, 26)),
        ("2026-11", utc(2026, 11, 1)),
        ("20261126", utc(2026, 11, 26)),
        ("20261126T110000", utc(2026, 11, 26, 11)),
        ("2026-11-26T11:00:00+01:00", utc(2026, 11, 26, 10)),
        ("2026-11-26 11:00:30.123456Z", utc(2026, 11, 26, 11, 0, 30)),
        ("2026-11-26T11:00-0530", utc(2026, 11, 26, 16, 30)),
        ("manual__2026-11-26T11:00:00+00:00", utc(2026, 11, 26, 11)),
        ("manual__2026-11-26T110000+0000", utc(2026, 11, 26, 11)),
        ("asset_triggered__2026-11-27T110000.25+0000_ab12", utc(2026, 11, 27, 11)),
        *((text, utc(2026, 11, 29, 8)) for text in HOURLY),
        *((text, utc(2026, 11, 29)) for text in DAILY),
        *((text, None) for text in ("", "night 7", "1764028800", "2026-13-01", "2026-W48", "v12")),
    ],
)
def test_a_moment_is_found_in_any_text_that_holds_one(text: str, moment: datetime.datetime | None) -> None:
    assert moment_of(text) == moment


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2026-11-26", "2026-11-26T00:00:01Z"),
        ("2026-11-27T00:30:00+02:00", "2026-11-26T23:00:00+00:00"),
        ("manual__2026-11-26T11:00:00+00:00", "20261128T000000"),
        ("20261125T000000", "asset_triggered__2026-11-27T11:00:00+00:00_ab12"),
        ("2026-11-29T08", "2026-11-29T09"),
        ("day=2026-11-29/hour=08", "day=2026-11-29/hour=09"),
        ("2026-11-29/23", "2026-11-30/00"),
        ("2026/11/29", "2026-11-30"),
        ("9", "10"),
        ("week a", "week b"),
    ],
)
def test_orders_compare_as_moments_numbers_or_text(first: str, second: str) -> None:
    assert is_earlier(first, second)
    assert not is_earlier(second, first)


def test_what_cannot_be_compared_stands_in_nobodys_way() -> None:
    for first, second in (("week a", "2026-11-26"), ("7", "2026-11-26"), ("2026-11-26", "20261126")):
        assert not is_earlier(first, second)
        assert not is_earlier(second, first)


@pytest.mark.parametrize(
    "order",
    [
        *("30.11.2026", "01.12.2026", "11/30/2026", "30-11-2026", "2026/13/01", "2026.11.31", "30.11.26", "1.2.2026"),
        *("2026-13-01", "2026-02-30", "2026-1-5", "2026-9", "11/2026", "Nov 30, 2026", "30 November 2026", "30Nov2026"),
        *("sep-30", "day=30.11.2026/part", "Mon, 30 NOV 2026 20:15:00 GMT"),
    ],
)
def test_a_date_that_is_no_moment_is_no_order(order: str) -> None:
    with pytest.raises(
        SettingsError, match=r"order .* holds a date \(.*\) that is no moment .* Write it as 2026-11-30"
    ):
        check_order(order)


@pytest.mark.parametrize(
    "order",
    [
        *("", "9", "-3", "week a", "night 7", "v12", "v1.2.3", "1.2.34", "2026", "2026-W48", "1764028800.25", "0.2025"),
        *("v10.12.13", "a3dec9", "7dec4", "85mar-b", "2026/11/30", "2026.11.30", "exp-2026/11/30"),
        *("decision 7", "17 marches", "2026-11-30", "20261130", "manual__2026-11-26T11:00:00+00:00", "2026-11-29/23"),
    ],
)
def test_any_other_text_may_be_one(order: str) -> None:
    check_order(order)


def run(run_id: str = "x", **context: Any) -> dict[str, Any]:
    return {"run_id": run_id, "ti": SimpleNamespace(dag_id="dag", task_id="train", map_index=-1), **context}


def night(start: datetime.datetime, end: datetime.datetime) -> dict[str, Any]:
    return run(data_interval_start=start, data_interval_end=end, logical_date=start)


BY_HAND = run("manual__2026-11-26T11:00:00+00:00")
OF_AN_ASSET = run("asset_triggered__2026-11-27T11:00:00+00:00_ab12")
NAMED_BY_SOMEBODY = run("again, please", dag_run=SimpleNamespace(run_after=utc(2026, 11, 26, 12)))
NIGHTS = [night(utc(2026, 11, day), utc(2026, 11, day + 1)) for day in (25, 26, 27, 28)]


def test_a_run_without_an_interval_neither_freezes_the_alias_nor_sets_it_back() -> None:
    in_time = [NIGHTS[0], BY_HAND, NAMED_BY_SOMEBODY, NIGHTS[1], OF_AN_ASSET, NIGHTS[2], NIGHTS[3]]
    orders = [runtime.order_of(context) for context in in_time]
    for number, order in enumerate(orders):
        champion = [Version(1, "m", "p", order=order)]
        assert not any(objections(champion, "q", later) for later in orders[number:])
        assert all(objections(champion, "q", earlier) for earlier in orders[:number])


def test_a_run_of_which_nothing_is_known_has_no_order() -> None:
    assert runtime.order_of(run("again, please")) == ""
    assert objections([Version(1, "m", "p", order="2026-11-26")], "q", "") == []


def test_the_hour_that_a_clock_has_twice_is_two_intervals() -> None:
    hours = [datetime.datetime(2026, 10, 25, 2, tzinfo=BERLIN, fold=fold) for fold in (0, 1)]
    keys = [runtime.interval_key(run(data_interval_start=hour)) for hour in hours]
    assert keys == ["20261025T000000", "20261025T010000"]


def starts(*days: tuple[int, int, int], zone: Any = datetime.UTC) -> list[datetime.datetime]:
    return [datetime.datetime(*day, tzinfo=zone) for day in days]


@pytest.mark.parametrize(
    "begins",
    [
        starts((2026, 1, 1), (2026, 2, 1), (2026, 3, 1), (2026, 4, 1)),
        starts((2026, 11, 19), (2026, 11, 20), (2026, 11, 23), (2026, 11, 24)),
        starts((2026, 3, 28), (2026, 3, 29), (2026, 3, 30), (2026, 3, 31), zone=BERLIN),
        starts((2026, 10, 24), (2026, 10, 25), (2026, 10, 26), (2026, 10, 27), zone=BERLIN),
    ],
    ids=["months", "weekdays", "the day of 23 hours", "the day of 25 hours"],
)
@pytest.mark.parametrize("store", ["folder", "memory"])
def test_the_run_before_is_found_whatever_the_length_of_intervals(
    begins: list[datetime.datetime], store: str, tmp_path: Path
) -> None:
    models = str(tmp_path) if store == "folder" else f"memory://{uuid.uuid4().hex}"
    before = ""
    for start, end in itertools.pairwise(begins):
        context = night(start, end)
        assert runtime.previous_model(models, context, None) == before
        before = runtime.run_directory(models, context, runtime.interval_key(context)) + "/model"
        files.write_bytes(f"{before}/model.json", b"{}")
    files.write_bytes(f"{models}/dag/train/{runtime.interval_key(BY_HAND)}/model/model.json", b"{}")
    files.write_bytes(f"{models}/dag/train/{runtime.interval_key(night(begins[-1], begins[-1]))}/run.json", b"{}")
    last = night(begins[-1] + datetime.timedelta(60), begins[-1] + datetime.timedelta(61))
    assert runtime.previous_model(models, last, None) == before, "neither one by hand, nor one without a model"
    assert runtime.previous_model(models, night(begins[0], begins[1]), None) == "", "a backfill looks back as well"


def test_a_run_by_hand_goes_on_from_the_night_before_it(tmp_path: Path) -> None:
    for context in NIGHTS:
        files.write_bytes(f"{tmp_path}/dag/train/{runtime.interval_key(context)}/model/model.json", b"{}")
    assert runtime.previous_model(str(tmp_path), BY_HAND, None) == f"{tmp_path}/dag/train/20261126T000000/model"


@pytest.mark.parametrize("kind", ["asset_triggered", "manual"])
def test_a_run_without_an_interval_goes_on_from_earlier_ones_of_its_kind(kind: str, tmp_path: Path) -> None:
    def in_turn(day: int, kind: str = kind) -> dict[str, Any]:
        return run(f"{kind}__2026-11-{day}T11:00:00+00:00_ab{40 - day}")

    def model_of(context: dict[str, Any]) -> str:
        return f"{tmp_path}/dag/train/{runtime.interval_key(context)}/model"

    before = night(utc(2026, 11, 24), utc(2026, 11, 25))
    for context in (before, in_turn(25), in_turn(26), in_turn(27, "backfill"), in_turn(28)):
        files.write_bytes(f"{model_of(context)}/model.json", b"{}")
    assert runtime.previous_model(str(tmp_path), in_turn(28), None) == model_of(in_turn(26))
    assert runtime.previous_model(str(tmp_path), in_turn(25), None) == model_of(before)


def test_an_interval_without_length_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for context in (*NIGHTS, BY_HAND):
        runtime.tell_of_empty_interval(context)
    assert caplog.records == []
    with caplog.at_level(logging.WARNING):
        runtime.tell_of_empty_interval(night(utc(2026, 11, 25), utc(2026, 11, 25)))
    assert "begins and ends at 2026-11-25 00:00:00+00:00" in caplog.text
    assert "CronDataIntervalTimetable" in caplog.text
