"""Small jobs on small click logs, and a cluster inside this process, so that kernels are compiled once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client, LocalCluster

from dfm.errors import RunCancelled
from dfm.runs.record import RunRecord, read_run
from dfm.settings.job import Job

FIRST_DAY, LAST_DAY = "2026-11-14", "2026-11-17"
ROWS = 8_000
"""Rows of the log of four days that the tests of training share."""
EPOCH_KEYS = {"event", "epoch", "train_log_loss", "log_loss", "auc", "rows_per_second", "seconds", "averaging_seconds"}
"""What a line of an epoch holds at least."""


def job_tables(log: Path, folder: Path, **changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tables of a job of two epochs on a synthetic log, everything below `folder`; `changes` go into their tables."""
    tables: dict[str, dict[str, Any]] = {
        "data": {"train": str(log), "validation_from": LAST_DAY},
        "schema": {"label": "label", "time": "day", "numeric": ["I*"], "categorical": ["C*"]},
        "model": {"n_factors": 4, "hash_bits": 16},
        "training": {"n_replicas": 3, "n_epochs": 2, "averages_per_epoch": 2, "early_stopping": False},
        "cluster": {"cache": str(folder / "cache"), "workers": 1},
        "output": {"directory": str(folder / "out")},
    }
    for name, table in changes.items():
        tables[name] = {**tables[name], **table}
    return tables


@contextlib.contextmanager
def in_process_client(n_workers: int) -> Iterator[Client]:
    """A client of workers that are threads of this process, and do not pause where other tests took its memory."""
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=False,
            protocol="tcp://",
            dashboard_address=":0",
            memory_limit=0,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def read_log(log: Path, day: str = "*") -> pa.Table:
    """Rows of a synthetic log in the order of its shards, with the day as a column."""
    tables = []
    for path in sorted(log.glob(f"day={day}/*.parquet")):
        table = pq.ParquetFile(path).read()
        name = path.parent.name.removeprefix("day=")
        tables.append(table.append_column("day", pa.array([name] * table.num_rows)))
    return pa.concat_tables(tables)


def run_of(job: Job) -> RunRecord:
    record = read_run(job.output.directory)
    assert record is not None
    return record


def stop_after(rounds: int) -> Any:
    """An observer that cancels the run after so many averages in all."""
    seen = 0

    def observe(event: dict[str, Any]) -> None:
        nonlocal seen
        seen += event["event"] == "round"
        if seen == rounds and event["event"] == "round":
            raise RunCancelled("asked to stop")

    return observe
