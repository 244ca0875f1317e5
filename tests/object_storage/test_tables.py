"""A table of Delta Lake in a real S3 store: its log by the library, its files by dfm, and no secret anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from distributed import Client

from dfm import jobs
from dfm.data.parquet import find_shards
from dfm.errors import DataError
from dfm.storage import files
from tests.support.flaky_proxy import ACCESS_KEY, SECRET_KEY, Faults
from tests.support.small_jobs import job_tables, read_log

deltalake = pytest.importorskip("deltalake", reason="the extra `delta` is not installed")


@pytest.fixture
def table(local_log: Path, bucket: str, faults: Faults) -> str:
    """URL of a table of two versions in the store, of which the first holds the log."""
    url = f"{bucket}/delta"
    to_store = {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "AWS_ALLOW_HTTP": "true"}
    rows = read_log(local_log)
    deltalake.write_deltalake(url, rows, partition_by=["day"], storage_options=to_store)
    deltalake.write_deltalake(url, rows.slice(0, 100), mode="append", storage_options=to_store)
    return f"delta+{url}"


def test_a_job_trains_on_a_version_in_the_store(table: str, bucket: str, client: Client, tmp_path: Path) -> None:
    tables = job_tables(tmp_path, tmp_path, output={"directory": f"{bucket}/out"})
    tables["data"]["train"] = f"{table}@v0"
    result = jobs.train(tables, client)
    assert result.rows.read == 2_250, "three of four days"
    tables["data"]["train"] = [f"s3://{shard.url.removeprefix('s3://')}" for shard in find_shards([f"{table}@v0"])]
    tables["output"]["directory"] = f"{bucket}/again"
    assert jobs.train(tables, client).parameters_sha256 == result.parameters_sha256
    written = [files.read_bytes(f"{bucket}/out/{name}") for name in ("run.json", "events.jsonl", "model/model.json")]
    for data in written:
        assert table.encode() in data
        assert ACCESS_KEY.encode() not in data
        assert SECRET_KEY.encode() not in data


def test_the_endpoint_of_the_job_s_options_is_the_library_s_too(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = {"client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}
    assert sum(shard.n_rows for shard in find_shards([table], options)) == 3_100


def test_a_table_that_is_not_there_is_said_in_one_line(bucket: str) -> None:
    with pytest.raises(DataError, match="cannot be read as a table of Delta Lake") as refused:
        find_shards([f"delta+{bucket}/none"])
    assert "\n" not in str(refused.value)


def test_a_table_of_iceberg_in_the_store(
    local_log: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyiceberg", reason="the extra `iceberg` is not installed")
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config

    known = {
        "TYPE": "sql", "URI": f"sqlite:///{tmp_path}/c.db", "WAREHOUSE": f"{bucket}/warehouse",
        "S3__ENDPOINT": os.environ["AWS_ENDPOINT_URL"], "S3__REGION": "us-east-1",
    }  # fmt: skip
    for name, value in known.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__STORE__{name}", value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    catalogue, rows = load_catalog("store"), read_log(local_log)
    catalogue.create_namespace("ads")
    catalogue.create_table("ads.clicks", rows.schema).append(rows)
    shards = find_shards(["iceberg://store/ads.clicks"])
    assert [shard.n_rows for shard in shards] == [3_000]
    assert shards[0].url.startswith(f"{bucket}/warehouse/")
    catalogue.engine.dispose()
