"""Rows read are rows trained plus rows rejected by reason, exactly, wherever a run tells of them."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm import jobs
from dfm.errors import RunCancelled
from dfm.runs.record import read_run
from tests.support.shards import write_shard

KINDS = {"label": pa.float64(), "w": pa.float64(), "C": pa.string(), "I": pa.string(), "t": pa.int64()}
BOUND = 7
"""Rows of time 7 and later validate."""
GOOD = {"label": [0.0, 1.0], "w": [1.0, 0.0, 2.5], "I": ["1", "", "30", None]}
BAD = {"label": [None, 2.0, float("nan")], "w": [-1.0, None, float("inf")], "I": ["many", "inf"]}


def reason(row: dict[str, Any]) -> str:
    """Why a row is rejected, or nothing; the first of several problems counts."""
    label, weight, number = row["label"], row["w"], row["I"]
    if label is None:
        return "label: label is missing"
    if label != label:
        return "label: label is not finite"
    if label not in (0.0, 1.0):
        return "label: label is neither 0 nor 1"
    if weight is None:
        return "w: weight is missing or not a number"
    if weight == float("inf"):
        return "w: weight is not finite"
    if weight < 0:
        return "w: weight is negative"
    return {"many": "I: not a number", "inf": "I: not finite"}.get(number, "")


@st.composite
def logs(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Rows of up to four shards; a few rows, or most of them, are bad, each in one or more columns."""
    often = draw(st.sampled_from([0.02, 0.1, 0.6]))
    random = draw(st.randoms(use_true_random=False))

    def row(time: int | None) -> dict[str, Any]:
        values = {
            name: random.choice(BAD[name] if random.random() < often / 2 else good) for name, good in GOOD.items()
        }
        return {**values, "C": random.choice("abcde"), "t": time}

    # Every span of time has good rows of both classes.
    sound = [{"label": float(n % 2), "w": 1.0, "I": "3", "C": "a", "t": t} for n in range(4) for t in (0, BOUND)]
    shards = [sound]
    for _ in range(draw(st.integers(0, 3))):
        shards.append([row(random.choice([None, 0, 3, BOUND - 1, BOUND, 9])) for _ in range(draw(st.integers(0, 90)))])
    return shards


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The account of some rows, by the definition."""
    reasons = Counter(filter(None, map(reason, rows)))
    return {
        "read": len(rows),
        "trained": len(rows) - reasons.total(),
        "rejected": reasons.total(),
        "reasons": dict(reasons),
    }


def job_of(folder: Path, shards: list[list[dict[str, Any]]], split: bool, **output: Any) -> dict[str, Any]:
    """The job that skips bad rows; its first shard is named twice, in full and by the folder."""
    for number, rows in enumerate(shards):
        columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in KINDS.items()}
        write_shard(folder / "data" / f"{number}.parquet", {"n": [number] * len(rows), **columns}, 16)
    train = [f"{folder}/data/0.parquet", f"{folder}/data", f"{folder}/data/../data/*.parquet"]
    return {
        "data": {
            "train": train, "on_bad_rows": "skip", "max_bad_fraction": 1.0, "validation_from": BOUND if split else "",
        },
        "schema": {"weight": "w", "time": "t", "categorical": ["C"], "numeric": ["I"]},
        "model": {"n_factors": 2, "hash_bits": 10, "min_count": 1, "min_count_factors": 1},
        "training": {"n_replicas": 2, "n_epochs": 1, "averages_per_epoch": 2},
        "cluster": {"cache": f"{folder}/cache"},
        "output": {"directory": f"{folder}/out", **output},
    }  # fmt: skip


@given(logs(), st.booleans())
@settings(max_examples=12)
def test_every_row_is_trained_or_rejected_for_a_reason_wherever_the_run_tells_of_it(
    client: Client, shards: list[list[dict[str, Any]]], split: bool
) -> None:
    everything = [row for rows in shards for row in rows]
    held_out = [row for row in everything if split and row["t"] is not None and row["t"] >= BOUND]
    trained = told([row for row in everything if not any(row is other for other in held_out)])
    validated = told(held_out)
    folder = Path(tempfile.mkdtemp())
    try:
        events: list[dict[str, Any]] = []
        result = jobs.train(job_of(folder, shards, split), client, on_event=events.append)
        done = events[-1]
        record, metadata = read_run(f"{folder}/out"), result.model.metadata
        assert record is not None
        assert done["rows"] == metadata["rows"] == record.rows == trained
        assert done["validation_rows"] == metadata["validation_rows"] == validated
        assert (result.rows.read, result.rows.accepted, result.rows.rejected, result.rows.by_reason()) == tuple(
            trained.values()
        )
        for stage in ("hash", "build"):
            ends = [(e["done"], e["total"]) for e in events if e["event"] == "progress" and e["stage"] == stage][-1:]
            assert ends == [(len(everything), len(everything))]  # also where a shard is read for both sides
        plan, vocabulary = (next(e for e in events if e["event"] == name) for name in ("plan", "vocabulary"))
        assert plan["validation_rows"] == (None if split else 0)
        assert (vocabulary["rows"], vocabulary["validation_rows"]) == (trained, validated)
        for event in events:
            if event["event"] == "epoch":
                assert round(event["rows_per_second"] * event["seconds"]) == trained["trained"]
        if split:
            assert result.validation["rows"] == validated["trained"]
    finally:
        shutil.rmtree(folder)


def test_a_resumed_run_has_the_account_of_one_that_was_never_stopped(client: Client, tmp_path: Path) -> None:
    rows = [
        {"label": float(n % 2) if n % 17 else 5.0, "w": 1.0 if n % 19 else -1.0, "I": "1", "C": "ab"[n % 2], "t": n % 9}
        for n in range(120)
    ]
    tables = job_of(tmp_path, [rows], False)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop)
    events: list[dict[str, Any]] = []
    result = jobs.train(tables, client, on_event=events.append)
    assert "resumed" in {event["event"] for event in events}
    assert events[-1]["rows"] == result.model.metadata["rows"] == told(rows)
