"""Jobs on tables with a log: one version from the plan to the model, the same bytes however the table goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from distributed import Client

from dfm import jobs
from dfm.cli import app
from dfm.distributed import checkpointing
from dfm.distributed.cluster import connect
from dfm.errors import DataError, RunCancelled, SettingsError
from dfm.estimators.shards import Wanted, read_shards
from dfm.launch import on_dask
from dfm.model.folder import read_manifest
from dfm.runs.record import read_events, read_run
from dfm.settings.job import load_job
from dfm.training.inputs import find_inputs
from dfm.workflow import steps
from tests.support.small_jobs import FIRST_DAY, LAST_DAY, job_tables, read_log, stop_after

deltalake = pytest.importorskip("deltalake", reason="the extra `delta` is not installed")


@pytest.fixture(scope="session")
def written(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log as a Delta table of one version, partitioned by day."""
    folder = tmp_path_factory.mktemp("delta") / "clicks"
    deltalake.write_deltalake(str(folder), read_log(log), partition_by=["day"])
    return folder


@pytest.fixture
def table(written: Path, tmp_path: Path) -> Path:
    """A copy of the table, which a test may go on with."""
    return Path(shutil.copytree(written, tmp_path / "clicks"))


def job_on(url: str, folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    tables = job_tables(folder, folder, **changes)
    tables["data"]["train"] = url
    return tables


def go_on(table: Path, log: Path) -> None:
    """A new version with more rows of the first day, then one of the same rows in other files."""
    again = read_log(log, LAST_DAY)
    day = pa.array([FIRST_DAY] * again.num_rows)
    deltalake.write_deltalake(
        str(table), again.set_column(again.schema.get_field_index("day"), "day", day), mode="append"
    )
    deltalake.DeltaTable(str(table)).optimize.compact()


def test_a_version_trains_the_same_bytes_as_its_files_and_for_ever(
    table: Path, log: Path, client: Client, two_workers: Client, tmp_path: Path
) -> None:
    named = deltalake.DeltaTable(str(table)).file_uris()
    by_name = jobs.train(job_on(named, tmp_path / "files"), client).parameters_sha256
    newest = jobs.train(job_on(f"delta://{table}", tmp_path / "newest"), client).parameters_sha256
    go_on(table, log)
    pinned = jobs.train(job_on(f"delta://{table}@v0", tmp_path / "pinned"), two_workers).parameters_sha256
    later = jobs.train(job_on(f"delta://{table}", tmp_path / "later"), client).parameters_sha256
    assert by_name == newest == pinned != later


def test_the_version_stands_in_the_plan_the_record_the_model_and_the_page(
    table: Path, client: Client, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []
    url = f"delta://{table}"
    result = jobs.train(
        job_on(url, tmp_path, output={"directory": str(tmp_path / "out")}), client, on_event=told.append
    )
    (record,) = next(event for event in told if event["event"] == "plan")["tables"]
    assert (record["asked"], record["url"], record["version"]) == (url, f"{url}@v0", "0")
    assert (record["kind"], record["table"]) == ("Delta Lake", str(table))
    assert record["timestamp"].startswith("20")
    run = read_run(str(tmp_path / "out"))
    assert run is not None
    assert run.tables == [record]
    assert next(event for event in read_events(str(tmp_path / "out")) if event["event"] == "plan")["tables"] == [record]
    assert read_manifest(result.model_url)["metadata"]["tables"] == [record]
    assert f"{url}@v0" in Path(result.report_url).read_text()
    assert jobs.plan(job_on(url, tmp_path))["tables"] == [record]


def test_a_run_that_was_stopped_goes_on_with_the_version_it_began_with(
    table: Path, log: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    expected = jobs.train(job_on(f"delta://{table}@v0", tmp_path / "whole"), client).parameters_sha256
    tables = job_on(f"delta://{table}", tmp_path / "parts")
    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop_after(1))
    go_on(table, log)
    told: list[dict[str, Any]] = []
    result = jobs.train(tables, client, on_event=told.append)
    assert any(event["event"] == "resumed" for event in told)
    assert next(event for event in told if event["event"] == "plan")["tables"][0]["version"] == "0"
    assert result.parameters_sha256 == expected
    told.clear()
    jobs.train(tables, client, on_event=told.append)
    assert next(event for event in told if event["event"] == "plan")["tables"][0]["version"] == "2", "a new run"


def test_a_run_whose_version_is_gone_says_so_and_how_to_start_afresh(
    table: Path, log: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    tables = job_on(f"delta://{table}", tmp_path)
    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop_after(1))
    go_on(table, log)
    deltalake.DeltaTable(str(table)).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(DataError, match=rf"is gone.*began with delta://{table}@v0; to start afresh.*--no-resume"):
        jobs.train(tables, client)
    told: list[dict[str, Any]] = []
    jobs.train(tables, client, overrides=["output.resume=false"], on_event=told.append)
    newest = deltalake.DeltaTable(str(table)).version()
    assert next(event for event in told if event["event"] == "plan")["tables"][0]["version"] == str(newest)


def test_a_table_is_looked_at_once_for_the_rows_to_train_and_to_validate_on(
    table: Path, log: Path, tmp_path: Path
) -> None:
    data = {"validation": f"delta://{table}@v0", "validation_from": ""}
    with pytest.raises(DataError, match="among the shards to train on and among those to validate on"):
        find_inputs(load_job(job_on(f"delta://{table}", tmp_path, data=data)))
    inputs = find_inputs(load_job(job_on(f"delta://{table}", tmp_path)))
    assert [each.version for each in inputs.snapshots] == ["0"]


def test_a_column_that_came_later_trains_with_the_rows_of_before(
    table: Path, log: Path, client: Client, tmp_path: Path
) -> None:
    more = read_log(log, LAST_DAY).append_column("late", pa.array(["x", "y"] * 1000))
    more = more.set_column(more.schema.get_field_index("day"), "day", pa.array(["2026-11-13"] * more.num_rows))
    deltalake.write_deltalake(str(table), more, mode="append", schema_mode="merge")
    schema = {"categorical": ["C*", "late"]}
    result = jobs.train(job_on(f"delta://{table}", tmp_path, schema=schema), client)
    fields = {field.name: field.kind for field in result.model.schema.fields}
    assert fields["late"] == "categorical"


# -------------------------------------------------------------------------------------------- every door ----


@pytest.fixture(scope="module")
def model(written: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return jobs.train(job_on(f"delta://{written}", folder), client).model_url


def test_tables_are_evaluated_predicted_and_looked_at_as_files_are(
    model: str, written: Path, client: Client, tmp_path: Path
) -> None:
    url, named = f"delta://{written}@v0", deltalake.DeltaTable(str(written)).file_uris()
    assert jobs.evaluate(model, url, client=client) == jobs.evaluate(model, named, client=client)
    found = [jobs.importance(model, data, repeats=1, rows=500, client=client)["loss"] for data in (url, named)]
    assert found[0] == found[1]
    for name, data in (("table", url), ("files", named)):
        jobs.predict(model, data, str(tmp_path / name), keep=["label", "day"], client=client)
    parts = [pq.read_table(tmp_path / name / "part-00000.parquet") for name in ("table", "files")]
    assert parts[0] == parts[1]
    with pytest.raises(SettingsError, match="lies inside the input"):
        jobs.predict(model, url, f"{written}/scored", client=client)


def test_the_command_line_takes_tables(model: str, written: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f'[data]\ntrain = "delta://{written}"\n[schema]\nlabel = "label"\n[output]\ndirectory = "{tmp_path}/out"\n'
    )
    planned = CliRunner(env={"COLUMNS": "400"}).invoke(app.cli, ["train", str(job), "--dry-run", "--json"])
    assert json.loads(planned.stdout)["tables"][0]["url"] == f"delta://{written}@v0"
    shown = CliRunner(env={"COLUMNS": "400"}).invoke(app.cli, ["train", str(job), "--dry-run"])
    assert "clicks@v0 (20" in shown.stdout
    scored = CliRunner(env={"COLUMNS": "400"}).invoke(app.cli, ["evaluate", model, f"delta://{written}@v0", "--json"])
    assert json.loads(scored.stdout.splitlines()[-1])["account"]["read"] == 8_000


def test_the_steps_of_a_night_know_versions_apart(table: Path, log: Path, client: Client, tmp_path: Path) -> None:
    job, where = load_job(job_on(f"delta://{table}", tmp_path)), steps.Where(client)
    first = steps.train_once(job, "night-1", where)
    assert steps.finished_run(job) is not None
    deltalake.write_deltalake(str(table), read_log(log), mode="overwrite", partition_by=["day"])
    assert steps.finished_run(job) is None, "the newest version is another one"
    with pytest.raises(DataError, match="was trained on"):
        steps.evaluate_once(first["model"], [f"delta://{table}@v0"], where, unseen=True)


def test_a_job_that_goes_elsewhere_names_its_table_in_full(
    table: Path, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = on_dask.with_absolute_paths(load_job(job_on("delta://clicks@v0", tmp_path)))
    assert job.data.train == (f"delta://{table}@v0",)
    monkeypatch.setattr(connect, "shares_disk", lambda client: False)
    away = dataclasses.replace(job.output, directory="s3://bucket/out")
    with pytest.raises(SettingsError, match=r"data.train = 'delta:.*is a path of this machine"):
        on_dask._check_paths(dataclasses.replace(job, output=away), client)
    for url in ("delta+file:///shared/clicks", "delta+s3://bucket/clicks", "iceberg://prod/ads.clicks"):
        data = dataclasses.replace(job.data, train=(url,))
        on_dask._check_paths(dataclasses.replace(job, output=away, data=data), client)


def test_a_search_goes_on_with_the_version_it_began_with(
    table: Path, log: Path, client: Client, tmp_path: Path
) -> None:
    tables = {**job_on(f"delta://{table}", tmp_path), "search": {"n_trials": 4, "n_seeds": 1}}
    seen: list[dict[str, Any]] = []

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "trial":
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        jobs.search(tables, client, on_event=stop)
    go_on(table, log)
    jobs.search(tables, client, on_event=seen.append)
    assert next(event for event in seen if event["event"] == "plan")["tables"][0]["version"] == "0"
    first = json.loads((tmp_path / "out/search.jsonl").read_text().splitlines()[0])
    assert first["tables"][0]["url"] == f"delta://{table}@v0"


def test_rows_for_an_estimator_come_from_a_version(table: Path, log: Path) -> None:
    go_on(table, log)
    wanted = Wanted(["label", "day"])
    assert read_shards(f"delta://{table}@v0", wanted).num_rows == 8_000
    assert read_shards(f"delta://{table}", wanted).num_rows == 10_000


def test_a_snapshot_of_iceberg_trains_the_same_bytes_for_ever(
    log: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyiceberg", reason="the extra `iceberg` is not installed")
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config

    for name, value in {
        "TYPE": "sql",
        "URI": f"sqlite:///{tmp_path}/c.db",
        "WAREHOUSE": f"file://{tmp_path}/w",
    }.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__HERE__{name}", value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    catalogue, rows = load_catalog("here"), read_log(log)
    catalogue.create_namespace("ads")
    table = catalogue.create_table("ads.clicks", rows.schema)
    table.append(rows.slice(0, 4_000))
    table.append(rows.slice(4_000))
    newest = jobs.train(job_on("iceberg://here/ads.clicks", tmp_path / "newest"), client)
    (record,) = read_manifest(newest.model_url)["metadata"]["tables"]
    assert record["url"] == f"iceberg://here/ads.clicks@{table.current_snapshot().snapshot_id}"
    assert record["kind"] == "Apache Iceberg"
    table.append(rows.slice(0, 1_000))
    pinned = jobs.train(job_on(record["url"], tmp_path / "pinned"), client)
    later = jobs.train(job_on("iceberg://here/ads.clicks", tmp_path / "later"), client)
    assert newest.parameters_sha256 == pinned.parameters_sha256 != later.parameters_sha256
    catalogue.engine.dispose()
