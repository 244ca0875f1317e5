"""Where there is nothing to learn, to evaluate or to predict, a command says so and fails; JSON never holds NaN."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.errors import DataError
from dfm.events import to_json
from dfm.runs.record import read_run
from tests.support.small_jobs import job_tables

N_ROWS = 400


def shard(folder: Path, name: str = "train", **columns: Any) -> str:
    """A shard of N_ROWS rows with a label, a category and a weight; `columns` replaces some of them."""
    rng = np.random.default_rng(len(name))
    known = {"label": rng.integers(0, 2, N_ROWS), "C": rng.integers(0, 9, N_ROWS), "w": np.ones(N_ROWS)}
    path = folder / f"{name}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**known, **columns}), path)
    return str(path)


def tables(folder: Path, train: str, task: str = "classification", **data: Any) -> dict[str, dict[str, Any]]:
    found = job_tables(folder, folder, model={"task": task})
    found["data"] = {"train": train, **data}
    found["schema"] = {"label": "label", "weight": "w", "categorical": ["C"]}
    return found


def strict(text: str | bytes) -> Any:
    """JSON that any reader takes."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"JSON holds {word}"))


NOTHING = np.zeros(N_ROWS)
FIRST_ROW = np.arange(N_ROWS) == 0
BAD = pa.array([None] * N_ROWS, pa.int64())
TRAINING = {
    "all weights are 0": ({"w": NOTHING}, r"all 400 rows to train on have the weight 0 \(column 'w'\)"),
    "all labels are negative": ({"label": np.zeros(N_ROWS, int)}, "all 400 rows to train on are negative"),
    "all that weigh are positive": (
        {"label": FIRST_ROW.astype(int), "w": FIRST_ROW.astype(float)},
        r"to train on that weigh anything \(column 'w'\) are positive",
    ),
    "all rows are bad": ({"label": BAD}, "all 400 training rows are bad"),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_nothing_to_learn_is_an_error(kind: str, client: Client, tmp_path: Path) -> None:
    columns, message = TRAINING[kind]
    skipping = {"on_bad_rows": "skip", "max_bad_fraction": 1.0}
    with pytest.raises(DataError, match=message):
        jobs.train(tables(tmp_path, shard(tmp_path, **columns), **skipping), client)
    assert not (tmp_path / "out" / "model").exists()
    record = read_run(str(tmp_path / "out"))
    assert record is not None
    assert record.state == "failed"


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"w": NOTHING}, r"all 400 rows to validate on have the weight 0"),
        (
            {"label": BAD},
            "there is no row to validate on: of 400 rows read, 400 are bad; the first: .*is missing",
        ),
    ],
)
def test_nothing_to_validate_on_is_an_error(
    task: str, columns: dict[str, Any], message: str, client: Client, tmp_path: Path
) -> None:
    held_out = shard(tmp_path, "validation", **columns)
    data = {"validation": held_out, "on_bad_rows": "skip", "max_bad_fraction": 1.0}
    with pytest.raises(DataError, match=message):
        jobs.train(tables(tmp_path, shard(tmp_path), task, **data), client)


def test_days_without_rows_do_not_validate(client: Client, tmp_path: Path) -> None:
    shard(tmp_path / "log" / "day=1")
    pq.write_table(pq.read_table(tmp_path / "log" / "day=1" / "train.parquet").slice(0, 0), tmp_path / "empty.parquet")
    (tmp_path / "log" / "day=2").mkdir()
    (tmp_path / "empty.parquet").rename(tmp_path / "log" / "day=2" / "train.parquet")
    job = tables(tmp_path, str(tmp_path / "log"), validation_from="2")
    job["schema"]["time"] = "day"
    with pytest.raises(DataError, match="there is no row to validate on: of 0 rows read, 0 are bad"):
        jobs.train(job, client)


def test_a_number_that_is_always_the_same_is_a_warning(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dfm"):
        result = jobs.train(tables(tmp_path, shard(tmp_path, label=np.full(N_ROWS, 7.0)), "regression"), client)
    assert "all labels to train on are 7: there is nothing to learn but that" in caplog.messages
    assert result.model.predict({"C": [1]})[0] == pytest.approx(7, abs=0.5)


@pytest.mark.parametrize("weight", [1.0, 1e-30])
def test_what_a_run_writes_is_json(weight: float, client: Client, tmp_path: Path) -> None:
    weights = np.where(np.arange(N_ROWS) < N_ROWS - 40, 0.0, weight)  # slices whose rows all weigh nothing
    data = tables(tmp_path, shard(tmp_path, w=weights), validation=shard(tmp_path, "validation"))
    jobs.train(data, client)
    for name in ("model/model.json", "run.json"):
        strict((tmp_path / "out" / name).read_bytes())
    for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines():
        strict(line)


def test_json_has_null_where_numbers_are_none() -> None:
    assert strict(to_json({"a": [math.nan, 1.0], "b": (math.inf, -math.inf), "c": np.float64("nan")})) == {
        "a": [None, 1.0], "b": [None, None], "c": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def model(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return jobs.train(tables(folder, shard(folder)), client).model_url


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"w": NOTHING}, "all 400 rows to evaluate on have the weight 0"),
        ({"label": BAD}, "there is no row to evaluate on: of 400 rows read, 400 are bad"),
    ],
)
def test_evaluating_on_nothing_is_an_error(
    columns: dict[str, Any], message: str, model: str, client: Client, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        jobs.evaluate(model, shard(tmp_path, **columns), client=client, on_bad_rows="skip")


def test_predicting_nothing_is_an_error_and_leaves_earlier_predictions(client: Client, tmp_path: Path) -> None:
    job = tables(tmp_path, shard(tmp_path, x=np.ones(N_ROWS)))
    job["schema"] |= {"categorical": [], "numeric": ["x"]}
    url = jobs.train(job, client).model_url
    output = str(tmp_path / "predictions")
    jobs.predict(url, shard(tmp_path, x=np.ones(N_ROWS)), output, client=client)
    before = {path.name for path in Path(output).glob("part-*")}
    bad = shard(tmp_path, "bad", x=np.full(N_ROWS, np.inf))
    with pytest.raises(DataError, match="there is no row to predict: of 400 rows read, 400 are bad"):
        jobs.predict(url, bad, output, client=client, on_bad_rows="skip", overwrite=True)
    assert {path.name for path in Path(output).glob("part-*")} == before
