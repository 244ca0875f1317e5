"""Rows that dfm holds out by itself: the latest, or by lot; the same on any cluster, and each row on one side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed.executor import DaskExecutor
from dfm.distributed.loops import identity_of
from dfm.errors import DataError, SettingsError
from dfm.settings.job import Job
from dfm.training import loop
from dfm.training.executor import nothing
from dfm.training.inputs import find_inputs

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


@pytest.mark.parametrize("data", [{}, {"sample_negatives": 0.5, "validation_fraction": 0.0}], ids=str)
def test_a_checkpoint_of_rows_in_folders_knows_which_lots_they_drew(tmp_path: Path, data: dict[str, Any]) -> None:
    """Those of before drew by the file's name alone: who went on would train on rows that had been held out."""
    log, days = write_log(tmp_path / "flat"), tmp_path / "days"
    write_log(days / "day=1", 1)

    def drawn_by(train: Path, **more: Any) -> Any:
        job = Job.from_dict(tables_of(train, tmp_path, data={**data, **more}))
        return identity_of(job, find_inputs(job), None).tables["data"].get("lots of rows")

    assert drawn_by(days) == "by folders and names"
    assert drawn_by(log) is None
    assert drawn_by(days, validation=str(log), sample_negatives=1.0) is None


def test_a_checkpoint_of_folders_and_shards_with_one_integer_knows_that_they_share_it(tmp_path: Path) -> None:
    """Those of before had two features for it."""
    folders, stored = write_log(tmp_path / "log" / "hour=06", 1), write_log(tmp_path / "stored", 1, hour=[6] * N_ROWS)

    def told_of(*train: Path) -> Any:
        schema = {"categorical": ["a", "b", "hour"]}
        data = {"train": [str(path) for path in train], "validation_fraction": 0.0}
        job = Job.from_dict(tables_of(tmp_path, tmp_path, data=data, schema=schema))
        return identity_of(job, find_inputs(job), None).tables.get("schema.integers")

    assert told_of(folders.parent, stored) == {"hour": "of folders and shards"}
    assert told_of(folders.parent) is told_of(stored) is None


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


def test_a_folder_that_is_too_large_for_all_is_told_once_and_the_plan_says_who_validates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, client: Client
) -> None:
    write_log(tmp_path / "log" / "day=2026-11-01", 1)
    told: list[dict[str, Any]] = []
    tables = tables_of(tmp_path / "log", tmp_path, schema={"time": "day"})
    assert jobs.train(tables, client, on_event=told.append).validation["rows"] == pytest.approx(1_000, rel=0.1)
    plan = next(event for event in told if event["event"] == "plan")
    assert plan["held_out"].startswith("about 1,000 of these rows, chosen by shard and row number")
    assert caplog.text.count("rows are held out by lot") == 1


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


@pytest.mark.parametrize("stops", [False, True])
def test_averages_are_not_validated_where_nothing_is_held_out(client: Client, tmp_path: Path, stops: bool) -> None:
    training = {"validate": "average", "averages_per_epoch": 2, "n_epochs": 1, "early_stopping": stops}
    tables = tables_of(write_log(tmp_path / "log"), tmp_path, data={"validation_fraction": 0}, training=training)
    told: list[str] = []
    jobs.train(tables, client, on_event=lambda event: told.append(event["event"]))
    assert "average" not in told
    assert told.count("round") == 2


def test_a_plateau_without_rows_to_validate_on_is_refused(client: Client, tmp_path: Path) -> None:
    knobs = {"data": {"validation_fraction": 0}, "training": {"schedule": "plateau"}}
    with pytest.raises(SettingsError, match=r'training.schedule = "plateau" needs rows to validate on'):
        jobs.train(tables_of(write_log(tmp_path / "log"), tmp_path, **knobs), client)


def test_rounds_begun_before_an_epoch_was_judged_are_given_up_where_training_goes_back(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss counts as a rise here, so that the plateau is left after one epoch, which nobody can foresee."""
    monkeypatch.setattr(loop, "_MOST_RISE", -1.0)
    log, evaluate, begun = write_log(tmp_path / "log"), DaskExecutor.evaluate, list[int]()

    def waiting(self: DaskExecutor, work: Any, meanwhile: Callable[[], None] = nothing) -> Any:
        return evaluate(self, work)

    def ahead(self: DaskExecutor, work: Any, meanwhile: Callable[[], None] = nothing) -> Any:
        metrics = evaluate(self, work, meanwhile)
        begun.append(self.under_way)
        return metrics

    found = []
    for name, way in (("waiting", waiting), ("ahead", ahead)):
        monkeypatch.setattr(DaskExecutor, "evaluate", way)
        job = tables_of(log, tmp_path / name, training={"n_epochs": 6, "later_averages": 3, "averages_per_epoch": 3})
        found.append(jobs.train(job, client))
    assert found[0].parameters_sha256 == found[1].parameters_sha256
    assert [each["log_loss"] for each in found[0].history] == [each["log_loss"] for each in found[1].history]
    assert begun[0] == 2
    assert begun[-1] == 0


@pytest.mark.parametrize("side", ["trained", "held out", "of their own shards"])
def test_too_many_bad_rows_are_an_error_on_either_side(side: str, client: Client, tmp_path: Path) -> None:
    days = np.repeat(["2026-11-01", "2026-11-02"], N_ROWS // 2)
    is_bad = days == ("2026-11-01" if side == "trained" else "2026-11-02")
    labels = np.where(is_bad & (np.arange(N_ROWS) % 10 == 0), 7, np.arange(N_ROWS) % 2)
    log = write_log(tmp_path / "log", n_shards=2)
    for number in range(2):
        rows = slice(number * N_ROWS // 2, (number + 1) * N_ROWS // 2)
        table = pq.read_table(log / f"{number}.parquet").set_column(2, "label", pa.array(labels[rows]))
        pq.write_table(table.append_column("day", pa.array(days[rows])), log / f"{number}.parquet")
    split = {"validation_from": "2026-11-02"}
    if side == "of their own shards":
        split = {"train": str(log / "0.parquet"), "validation": str(log / "1.parquet")}
    data = {"on_bad_rows": "skip", "max_bad_fraction": 0.05, **split}
    with pytest.raises(DataError, match=r"300 of 3000 rows are bad, more than data\.max_bad_fraction = 0\.05 allows"):
        jobs.train(tables_of(log, tmp_path, schema={"time": "day"}, data=data), client)
