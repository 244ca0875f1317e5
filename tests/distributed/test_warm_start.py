"""A job that goes on from yesterday's model: ahead of a cold start, same bytes on any cluster, told in its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed.train import TrainResult
from dfm.errors import SettingsError
from dfm.model.fm_model import read_manifest
from tests.support.small_jobs import FIRST_DAY, LAST_DAY, job_tables

EPOCH = {"n_epochs": 1, "schedule": "constant"}


@pytest.fixture(scope="module")
def yesterday(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A model of the first three days."""
    return jobs.train(job_tables(log, tmp_path_factory.mktemp("yesterday"), training=EPOCH), client)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose cache all runs of today share."""
    return tmp_path_factory.mktemp("today")


def today(log: Path, work: Path, client: Client, name: str, **training: Any) -> TrainResult:
    """One epoch on the third day alone, validated on the fourth."""
    data = {"train": [str(log / f"day={day}") for day in ("2026-11-16", LAST_DAY)]}
    output = {"directory": str(work / name)}
    return jobs.train(job_tables(log, work, data=data, training={**EPOCH, **training}, output=output), client)


def test_a_warm_start_is_ahead_of_a_cold_one(log: Path, work: Path, client: Client, yesterday: TrainResult) -> None:
    cold = today(log, work, client, "cold")
    warm = today(log, work, client, "warm", warm_start=yesterday.model_url)
    assert warm.validation["log_loss"] < cold.validation["log_loss"] - 0.005
    assert warm.history[0]["train_log_loss"] < cold.history[0]["train_log_loss"]
    origin = read_manifest(warm.model_url)["metadata"]["warm_start"]
    assert origin["model"] == yesterday.model_url
    assert origin["sha256"] == read_manifest(yesterday.model_url)["files"]["parameters"]["sha256"]
    assert read_manifest(cold.model_url)["metadata"]["warm_start"] == {}


def test_to_forget_everything_is_a_cold_start(log: Path, work: Path, client: Client, yesterday: TrainResult) -> None:
    cold = today(log, work, client, "cold again")
    forgotten = today(log, work, client, "forgotten", warm_start=yesterday.model_url, warm_start_decay=1.0)
    assert forgotten.parameters_sha256 == cold.parameters_sha256


def test_two_workers_give_the_bytes_of_one(
    log: Path, work: Path, client: Client, two_workers: Client, yesterday: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfm.distributed.start._BLOCK_BYTES", 1 << 12)  # several blocks
    options = {"warm_start": yesterday.model_url, "warm_start_decay": 0.3}
    one = today(log, work, client, "one", **options)
    two = today(log, work, two_workers, "two", **options)
    assert one.parameters_sha256 == two.parameters_sha256


def test_numbers_keep_the_buckets_of_the_earlier_model(log: Path, work: Path, client: Client) -> None:
    quantiles = {"numeric_transform": "quantile", "quantile_buckets": 8}
    first = jobs.train(
        job_tables(
            log,
            work,
            data={"train": str(log / f"day={FIRST_DAY}"), "validation_from": ""},
            schema=quantiles,
            training=EPOCH,
            output={"directory": str(work / "quantiles")},
        ),
        client,
    )
    second = jobs.train(
        job_tables(
            log,
            work,
            schema=quantiles,
            training={**EPOCH, "warm_start": first.model_url},
            output={"directory": str(work / "quantiles again")},
        ),
        client,
    )
    assert second.model.statistics == first.model.statistics


def test_another_hashing_is_refused_before_any_row_is_read(
    log: Path, work: Path, client: Client, yesterday: TrainResult
) -> None:
    events: list[dict[str, Any]] = []
    tables = job_tables(log, work, model={"hash_bits": 15}, training={"warm_start": yesterday.model_url})
    with pytest.raises(SettingsError, match=r"hash_bits = 15, but .* has 16"):
        jobs.train(tables, client, on_event=events.append)
    assert not events
