"""Rates, scores and shares of views are learnt from with the defaults of every knob."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from rich.console import Console

from dfm import jobs
from dfm.data.transforms import AUTO
from dfm.distributed import diagnose
from dfm.errors import RunCancelled, SettingsError
from dfm.model.report import report_training
from dfm.runs.display import Reporter
from tests.support.small_jobs import job_tables, stop_after

N_ROWS = 4_000
RNG = np.random.default_rng(3)
RATE = RNG.random(N_ROWS)
CLICK = (RNG.random(N_ROWS) < RATE).astype(int)
SITE = RNG.integers(0, 6, N_ROWS)


def trained(folder: Path, client: Client, table: pa.Table, **schema: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.slice(0, 3_000), folder / "train.parquet")
    pq.write_table(table.slice(3_000), folder / "validation.parquet")
    tables = job_tables(folder, folder)
    tables["data"] = {"train": str(folder / "train.parquet"), "validation": str(folder / "validation.parquet")}
    tables["schema"], tables["model"], tables["training"] = schema, {}, {"n_replicas": 2}
    return jobs.train(tables, client)


@pytest.fixture(scope="module")
def twin(client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Metrics of the rate times 1,000, which buckets of the logarithm suit."""
    table = pa.table({"label": CLICK, "x": 1_000 * RATE, "site": SITE})
    result = trained(tmp_path_factory.mktemp("twin"), client, table)
    assert not result.model.statistics
    return dict(result.validation)


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 0.0), (-10.0, -0.5), (3.15e10, 1.7e12)], ids=["a rate", "negative", "milliseconds"]
)
def test_a_column_is_learnt_from_in_any_unit(
    scale: float, shift: float, twin: dict[str, Any], client: Client, tmp_path: Path
) -> None:
    table = pa.table({"label": CLICK, "x": scale * RATE + shift, "site": SITE})
    result = trained(tmp_path, client, table)
    assert result.model.schema.fields[1].transform == AUTO
    assert result.model.statistics["x"].boundaries, "the choice is the model's"
    assert result.validation["log_loss"] <= twin["log_loss"] + 1e-3
    one_by_one = [result.model.predict({"x": [x], "site": [s]})[0] for x, s in zip([0.1, 0.9], [1, 2], strict=True)]
    np.testing.assert_array_equal(one_by_one, result.model.predict({"x": [0.1, 0.9], "site": [1, 2]}))


@pytest.mark.parametrize("transform", [AUTO, "standardize", "quantile"])
def test_rows_that_count_for_nothing_have_no_part_in_what_is_learnt_of_numbers(
    transform: str, client: Client, tmp_path: Path
) -> None:
    """Their numbers would leave one bucket, no deviation or a tiny learning rate to all others."""
    rows = pa.table({"label": CLICK, "x": RATE, "site": SITE, "w": np.ones(N_ROWS)})
    silent = pa.table({"label": CLICK, "x": np.full(N_ROWS, 1e9), "site": SITE, "w": np.zeros(N_ROWS)})
    bad = pa.table({"label": pa.array([None] * 9, pa.int64()), "x": [1e30] * 9, "site": [0] * 9, "w": [1.0] * 9})
    for name, table in (("rows", rows), ("silent", silent), ("bad", bad)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    found, told = [], []
    for names in (["rows"], ["rows", "silent", "bad"]):
        tables = job_tables(tmp_path, tmp_path / names[-1])
        tables["data"] = {"train": [str(tmp_path / f"{name}.parquet") for name in names], "on_bad_rows": "skip"}
        tables["schema"] = {"weight": "w", "numeric": ["x"], "categorical": ["site"], "numeric_transform": transform}
        tables["data"]["validation_fraction"], tables["training"] = 0, {"n_replicas": 1, "n_epochs": 1}
        found.append(jobs.train(tables, client, on_event=told.append).model)
    alone, among = found
    assert among.statistics == alone.statistics
    scales = [event["mean_squares"] for event in told if "mean_squares" in event]
    assert scales[1] == pytest.approx(scales[0])
    assert alone.statistics["x"].mean == pytest.approx(RATE.mean())


def test_a_checkpoint_of_statistics_of_other_rows_is_refused(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"label": CLICK, "x": RATE, "w": np.ones(N_ROWS)}), tmp_path / "rows.parquet")
    tables = job_tables(tmp_path, tmp_path)
    tables["data"], tables["schema"] = {"train": str(tmp_path / "rows.parquet")}, {"weight": "w", "numeric": ["x"]}

    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop_after(1))
    monkeypatch.setattr("dfm.distributed.loops._STATISTICS_OF", "all")
    with pytest.raises(SettingsError, match=r'schema\.statistics\.rows is "all" now and "sound ones .*" there'):
        jobs.train(tables, client)


def test_shares_of_views_are_learnt_as_their_clicks_would_be(client: Client, tmp_path: Path) -> None:
    views = 20
    share = RNG.binomial(views, 0.1 + 0.8 * (SITE / 5)) / views
    result = trained(tmp_path, client, pa.table({"label": share, "site": SITE}), categorical=["site"])
    predicted = result.model.predict({"site": list(range(6))}).astype(np.float64)
    np.testing.assert_allclose(predicted, 0.1 + 0.8 * np.arange(6) / 5, atol=0.05)
    p, y = predicted[SITE[3_000:]], share[3_000:]
    expected = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
    assert result.validation["log_loss"] == pytest.approx(expected, rel=1e-5)
    assert result.validation["base_rate"] == pytest.approx(y.mean())
    assert result.history[-1]["train_log_loss"] == pytest.approx(expected, abs=0.05)
    assert jobs.evaluate(result.model_url, str(tmp_path / "validation.parquet"), client=client)["rows"] == 1_000


def test_what_could_not_be_learnt_is_told(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[dict[str, Any]] = []
    train = jobs.train
    monkeypatch.setattr(jobs, "train", lambda tables, on: train(tables, on, on_event=told.append))
    row = [f"row {n}" for n in range(N_ROWS)]
    numbers = {"fee": np.full(N_ROWS, 0.1), "gap": pa.nulls(N_ROWS, pa.float64())}
    table = pa.table({"label": RNG.integers(0, 2, N_ROWS), "row": row, "one": ["a"] * N_ROWS, **numbers})
    result = trained(tmp_path, client, table, transforms={"fee": "standardize"})
    found = next(event for event in told if event["event"] == "diagnosis")["findings"]
    kinds = {(finding["kind"], finding["column"]) for finding in found}
    assert kinds >= {("never-seen-twice", "row"), ("one-value", "one"), ("no-better-than-a-constant", "")}
    assert kinds >= {("one-value", "fee"), ("no-value", "gap")}
    assert told[-1]["event"] == "done"
    manifest = json.loads((tmp_path / "out" / "model" / "model.json").read_text())
    assert manifest["metadata"]["diagnosis"] == found
    assert "leave it out" in Path(report_training(str(tmp_path / "out"), "night")).read_text()
    with Reporter(Console()) as reporter:
        reporter({"event": "diagnosis", "findings": found})
    assert "note: column 'one' has one value in all rows" in " ".join(capsys.readouterr().out.split())
    assert result.validation["rows"] == 1_000


def test_rows_of_one_class_that_chose_the_epoch_are_told(client: Client, tmp_path: Path) -> None:
    label = RNG.integers(0, 2, N_ROWS)
    label[3_000:] = 0
    trained(tmp_path, client, pa.table({"label": label, "site": SITE}), categorical=["site"])
    found = json.loads((tmp_path / "out" / "model" / "model.json").read_text())["metadata"]["diagnosis"]
    (judged,) = (finding for finding in found if finding["kind"] == "too-little-to-judge-by")
    assert judged["message"].startswith("1,000 rows validate, all of class 0")
    assert judged["knobs"] == ["data.validation_from", "data.validation"]


def test_who_listens_to_no_event_is_warned_of_a_column_in_one_bucket(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pa.table({"label": CLICK, "x": RATE, "site": SITE})
    with caplog.at_level("WARNING", "dfm"):
        trained(tmp_path, client, table, numeric=["x"], categorical=["site"], numeric_transform="log2-bucket")
    found = [text for text in caplog.messages if "all numbers of column 'x' are in one bucket (log2-bucket)" in text]
    assert len(found) == 1
    assert found[0].endswith(
        "choose quantile for it, or leave it out if it has but one number (schema.transforms.x, schema.numeric)"
    )


def test_a_diagnosis_that_fails_costs_a_warning(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(diagnose, "count_fields", lambda *_: 1 // 0)
    result = trained(tmp_path, client, pa.table({"label": CLICK, "site": SITE}), categorical=["site"])
    assert result.model_url
    assert any("there is no diagnosis of this training: ZeroDivisionError" in text for text in caplog.messages)
