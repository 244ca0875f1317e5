"""The whole job on S3: data, model, checkpoints, record and predictions there, under faults, and no secret anywhere."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

import dfm
from dfm import jobs
from dfm.cli import app
from dfm.data.parquet import Unit, find_shards, read_unit
from dfm.distributed import checkpointing
from dfm.errors import DataError, RunCancelled
from dfm.kernels.families.registry import DEFAULT, FAMILIES
from dfm.runs.record import read_run
from dfm.storage import files
from tests.support.flaky_proxy import ACCESS_KEY, KINDS, SECRET_KEY, Faults
from tests.support.small_jobs import LAST_DAY, job_tables

CANARIES = (SECRET_KEY.encode(), ACCESS_KEY.encode())


def s3_job(log: str, bucket: str, folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """A job whose rows and results lie in the bucket, and whose partitions lie below a folder."""
    tables = job_tables(folder, folder, **changes)
    tables["data"]["train"] = log
    tables["output"]["directory"] = f"{bucket}/out"
    return tables


class Recorder(SchedulerPlugin):
    """Everything that the scheduler is given to keep: graphs as they arrive, and what its tasks hold afterwards."""

    name = "recorder"

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def update_graph(self, scheduler: Any, **graph: Any) -> None:
        self.seen.append(repr(graph).encode())
        for task in list(scheduler.tasks.values()):
            specification = task.run_spec
            self.seen.append(repr(specification).encode())
            for part in vars(specification).values() if hasattr(specification, "__dict__") else ():
                self.seen.append(repr(part).encode())
            self.seen.append(pickle.dumps(specification))


@pytest.fixture
def recorded(client: Client) -> Iterator[Recorder]:
    recorder = Recorder()
    scheduler = client.cluster.scheduler
    scheduler.add_plugin(recorder)
    yield recorder
    scheduler.remove_plugin(recorder.name)


def texts_below(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def objects_of(bucket: str) -> dict[str, bytes]:
    filesystem = fsspec.filesystem("s3")
    filesystem.invalidate_cache()
    return {name: filesystem.cat_file(name) for name in filesystem.find(bucket)}


def test_a_job_on_a_store_gives_the_bytes_of_one_on_a_disk(
    local_log: Path, log: str, bucket: str, client: Client, tmp_path: Path
) -> None:
    on_disk = jobs.train(job_tables(local_log, tmp_path / "disk"), client)
    in_store = jobs.train(s3_job(log, bucket, tmp_path / "store"), client)
    assert in_store.model_url == f"{bucket}/out/model"
    assert in_store.parameters_sha256 == on_disk.parameters_sha256
    assert in_store.rows == on_disk.rows
    day = f"{log}/day={LAST_DAY}"
    metrics = jobs.evaluate(in_store.model_url, day, client=client)
    assert metrics["log_loss"] == pytest.approx(in_store.validation["log_loss"], rel=1e-6)
    summary = jobs.predict(in_store.model_url, day, f"{bucket}/scored", keep=["day"], client=client)
    assert summary["predicted"] == summary["rows"] == metrics["account"]["read"]
    assert files.exists(f"{bucket}/scored/_SUCCESS")
    (name,) = [n for n in files.names_in(f"{bucket}/scored") if n.endswith(".parquet")]
    with files.PatientStream(f"{bucket}/scored/{name}") as stream:
        assert pq.ParquetFile(stream).read().num_rows == summary["rows"]


def test_throttling_and_failures_of_the_store_change_no_byte_and_no_count(
    local_log: Path, log: str, bucket: str, faults: Faults, client: Client, tmp_path: Path
) -> None:
    expected = jobs.train(job_tables(local_log, tmp_path / "disk"), client)
    faults.kinds, faults.rate = KINDS, 0.15
    found = jobs.train(s3_job(log, bucket, tmp_path / "store"), client)
    summary = jobs.predict(found.model_url, log, f"{bucket}/scored", keep=["day"], client=client)
    faults.rate = 0.0
    assert sum(faults.counts[kind] for kind in KINDS) > 10
    assert found.parameters_sha256 == expected.parameters_sha256
    assert found.rows == expected.rows
    assert (summary["rows"], summary["predicted"]) == (3_000, 3_000)
    assert dfm.FMModel.load(found.model_url).parameters_sha256() == expected.parameters_sha256


def test_a_run_stopped_on_a_store_goes_on_from_its_checkpoint_there_under_faults(
    local_log: Path, log: str, bucket: str, faults: Faults, client: Client, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    expected = jobs.train(job_tables(local_log, tmp_path / "disk"), client)
    tables, told = s3_job(log, bucket, tmp_path / "store"), []

    def stop_after_three(event: dict[str, Any]) -> None:
        told.append(event["event"])
        if told.count("round") == 3:
            raise RunCancelled("asked to stop")

    faults.kinds, faults.rate = KINDS, 0.1
    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop_after_three)
    assert [name for name in files.names_in(f"{bucket}/out/checkpoint") if name.endswith(".json")]
    found = jobs.train(tables, client, on_event=lambda event: told.append(event["event"]))
    faults.rate = 0.0
    assert "resumed" in told
    assert found.parameters_sha256 == expected.parameters_sha256
    assert files.names_in(f"{bucket}/out/checkpoint") == []
    record = read_run(f"{bucket}/out")
    assert record is not None
    assert (record.state, record.parameters_sha256) == ("finished", expected.parameters_sha256)


def test_credentials_of_the_environment_are_in_no_task_log_file_or_output(
    log: str, bucket: str, client: Client, recorded: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG, "dfm")
    caplog.set_level(logging.DEBUG, "distributed")
    monkeypatch.setattr(logging.getLogger("dfm"), "handlers", [])
    tables = s3_job(log, bucket, tmp_path, data={"storage_options": {"default_block_size": 1 << 20}})
    told: list[Any] = []
    result = jobs.train(tables, client, on_event=told.append)
    jobs.evaluate(result.model_url, log, client=client)
    jobs.predict(result.model_url, log, f"{bucket}/scored", client=client)
    job = write_toml(tables, tmp_path / "job.toml")
    plan = ["train", str(job), "--dry-run"]
    for arguments in (plan, [*plan, "--json"], ["inspect", result.model_url]):
        monkeypatch.setattr(sys, "argv", ["dfm", "--verbose", *arguments])
        with pytest.raises(SystemExit, match="0"):
            app.main()
    printed = capsys.readouterr()
    objects = objects_of(bucket)
    assert {name.split("/")[2] for name in objects if "/out/" in name} >= {"model", "run.json", "events.jsonl"}
    haystack = [
        *recorded.seen, *texts_below(tmp_path), *objects.values(), caplog.text.encode(), printed.out.encode(),
        printed.err.encode(), json.dumps(told, default=str).encode(), repr(result).encode(),
        *(str(line).encode() for line in client.get_scheduler_logs()),
    ]  # fmt: skip
    assert len(recorded.seen) > 20
    assert len(objects) > 8
    assert any(b"default_block_size" in text for text in recorded.seen), "options do travel in tasks"
    for canary in CANARIES:
        assert not [text[:200] for text in haystack if canary in text]


def test_options_of_the_command_line_lead_to_the_store(
    log: str, bucket: str, client: Client, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], endpoint: tuple[str, Faults],
) -> None:  # fmt: skip
    result = jobs.train(s3_job(log, bucket, tmp_path), client)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(logging.getLogger("dfm"), "handlers", [])
    there = ["--storage-option", f"endpoint_url={endpoint[0]}"]
    scheduler = ["--scheduler", client.scheduler.address]
    for arguments in (
        ["inspect", result.model_url, *there],
        ["evaluate", result.model_url, log, *scheduler, *there],
        ["predict", result.model_url, log, "--output", f"{bucket}/scored", *scheduler, *there],
        ["export", result.model_url, "--format", "parquet", "--output", f"{bucket}/exported", *there],
    ):
        monkeypatch.setattr(sys, "argv", ["dfm", *arguments])
        with pytest.raises(SystemExit) as exited:
            app.main()
        assert exited.value.code == 0, capsys.readouterr().err
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint[0])
    assert files.exists(f"{bucket}/scored/_SUCCESS")
    assert files.names_in(f"{bucket}/exported")


def test_shards_that_arrive_between_two_looks_of_one_process_are_found(local_log: Path, log: str) -> None:
    """A filesystem object remembers listings for the life of its process."""
    before = find_shards([log])
    shard = next(local_log.rglob("*.parquet")).read_bytes()
    fsspec.filesystem("s3", use_listings_cache=False).pipe_file(f"{log[5:]}/day=2026-11-30/extra.parquet", shard)
    after = find_shards([f"{log}/day=2026-11-30", log])
    assert len(after) == len(before) + 1


def test_a_shard_that_was_replaced_in_the_store_is_not_read_as_the_one_that_was_found(log: str) -> None:
    first, second, *_ = find_shards([log])
    files.write_bytes(first.url, files.read_bytes(second.url))
    with pytest.raises(DataError, match=r"changed since the job began: .* restore it, or start the job again"):
        list(read_unit(Unit(first, 0, first.n_rows), ["label"]))


def write_toml(tables: dict[str, dict[str, Any]], path: Path) -> Path:
    """The job as a file; JSON's strings, numbers and lists are TOML's."""
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        for key, value in table.items():
            if not isinstance(value, dict):
                lines.append(f"{key} = {json.dumps(value)}")
        for key, value in table.items():
            if isinstance(value, dict):
                lines += [f"[{name}.{key}]", *(f"{inner} = {json.dumps(v)}" for inner, v in value.items())]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != DEFAULT])
def test_every_family_goes_on_from_a_checkpoint_in_the_store(
    family: str, local_log: Path, log: str, bucket: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    model = {"family": family, "n_factors": 4, "hash_bits": 16}
    on_disk = jobs.train(job_tables(local_log, tmp_path / "disk", model=model), client)
    tables, rounds = s3_job(log, bucket, tmp_path / "store", model=model), []

    def stop(event: dict[str, Any]) -> None:
        rounds.append(event["event"] == "round")
        if sum(rounds) == 3:
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop)
    told: list[dict[str, Any]] = []
    resumed = jobs.train(tables, client, on_event=told.append)
    assert any(event["event"] == "resumed" for event in told)
    assert resumed.parameters_sha256 == on_disk.parameters_sha256
    loaded = dfm.FMModel.load(resumed.model_url)
    assert loaded.parameters_sha256() == on_disk.parameters_sha256
    assert loaded.table.layout.family == family
