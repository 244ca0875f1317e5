"""Rows that dfm holds out by itself: the latest, or by lot; the same on any cluster, and each row on one side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.errors import SettingsError

N_ROWS = 6_000


def write_log(folder: Path, n_shards: int = 3, **more: Any) -> Path:
    """Clicks that two categories decide together."""
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 8, N_ROWS), rng.integers(0, 8, N_ROWS)
    label = (rng.random(N_ROWS) < np.where((a + b) % 2, 0.8, 0.2)).astype(np.int64)
    columns = {"a": [f"a{n}" for n in a], "b": [f"b{n}" for n in b], "label": label, **more}
    for number, rows in enumerate(np.array_split(np.arange(N_ROWS), n_shards)):
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns).take(rows), folder / f"{number}.parquet")
    return folder


def tables_of(log: Path, folder: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """A job that names nothing to validate on, and leaves all else to dfm."""
    return {
        "data": {"train": str(log), **changes.get("data", {})},
        "schema": {"label": "label", "categorical": ["a", "b"], **changes.get("schema", {})},
        "model": {"hash_bits": 12},
        "training": {"n_replicas": 2, "n_epochs": 4, **changes.get("training", {})},
        "cluster": {"cache": str(folder / "cache")},
        "output": {"directory": str(folder / "out")},
    }


def test_a_tenth_is_held_out_by_lot_and_the_same_on_any_cluster(
    client: Client, two_workers: Client, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log")
    told: list[dict[str, Any]] = []
    result = jobs.train(tables_of(log, tmp_path / "one"), client, on_event=told.append)
    again = jobs.train(tables_of(log, tmp_path / "two"), two_workers)
    assert again.parameters_sha256 == result.parameters_sha256
    held_out = result.validation["rows"]
    assert held_out == pytest.approx(1_000, rel=0.1)  # at least a thousand
    assert result.rows.accepted + held_out == N_ROWS
    plan = next(event for event in told if event["event"] == "plan")
    assert plan["held_out"].startswith("about 1,000 of these rows, chosen by shard and row number")
    assert plan["schedule"] == "plateau"


def test_the_latest_rows_are_held_out_where_there_is_a_time(client: Client, tmp_path: Path) -> None:
    hours = np.random.default_rng(6).permutation(np.arange(N_ROWS) // 100)
    log = write_log(tmp_path / "log", hour=hours)
    told: list[dict[str, Any]] = []
    tables = tables_of(log, tmp_path, schema={"time": "hour"})
    result = jobs.train(tables, client, on_event=told.append)
    assert (result.validation["rows"], result.rows.accepted) == (1_000, 5_000)
    bound = {"validation_from": "50"}
    named = jobs.train(tables_of(log, tmp_path / "named", schema={"time": "hour"}, data=bound), client)
    assert named.parameters_sha256 == result.parameters_sha256
    assert {event["stage"] for event in told if event["event"] == "progress"} >= {"latest", "hash"}


def test_the_latest_folder_is_held_out_as_a_whole(client: Client, tmp_path: Path) -> None:
    log = write_log(tmp_path / "flat", n_shards=6)
    for number in range(6):
        day = tmp_path / "log" / f"day=2026-11-0{number + 1}"
        day.mkdir(parents=True)
        (tmp_path / "flat" / f"{number}.parquet").rename(day / "0.parquet")
    result = jobs.train(tables_of(tmp_path / "log", tmp_path, schema={"time": "day"}), client)
    assert (result.validation["rows"], result.rows.accepted) == (1_000, 5_000)
    assert not log.joinpath("0.parquet").exists()


def test_times_without_an_order_and_days_that_are_too_long_leave_it_to_the_lot(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = write_log(tmp_path / "odd", when=["1.2.26" if n % 2 else "12.12.25" for n in range(N_ROWS)])
    result = jobs.train(tables_of(odd, tmp_path / "1", schema={"time": "when"}), client)
    assert result.validation["rows"] == pytest.approx(1_000, rel=0.1)
    assert "held out by lot" in caplog.text
    assert "its values have no common order" in caplog.text
    one_day = write_log(tmp_path / "day", when=[7] * N_ROWS)
    result = jobs.train(tables_of(one_day, tmp_path / "2", schema={"time": "when"}), client)
    assert result.validation["rows"] == pytest.approx(1_000, rel=0.1)
    assert "one of its moments has too many of the rows" in caplog.text


def test_a_part_that_the_job_asks_for_is_the_latest_however_large(client: Client, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", hour=np.random.default_rng(6).permutation(np.arange(N_ROWS) // 100))
    tables = tables_of(log, tmp_path, schema={"time": "hour"}, data={"validation_fraction": 0.6})
    result = jobs.train(tables, client)
    assert (result.validation["rows"], result.rows.accepted) == (3_600, 2_400)


@pytest.mark.parametrize("knobs", [{"data": {"validation_fraction": 0}}, {"training": {"early_stopping": False}}])
def test_nothing_is_held_out_where_nobody_asks_for_it(client: Client, tmp_path: Path, knobs: dict[str, Any]) -> None:
    result = jobs.train(tables_of(write_log(tmp_path / "log"), tmp_path, **knobs), client)
    assert result.validation == {}
    assert result.rows.accepted == N_ROWS


def test_a_plateau_without_rows_to_validate_on_is_refused(client: Client, tmp_path: Path) -> None:
    knobs = {"data": {"validation_fraction": 0}, "training": {"schedule": "plateau"}}
    with pytest.raises(SettingsError, match=r'training.schedule = "plateau" needs rows to validate on'):
        jobs.train(tables_of(write_log(tmp_path / "log"), tmp_path, **knobs), client)
