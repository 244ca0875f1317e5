"""data.negative_rate: a log from which most negative rows were taken out gives a model of the full stream."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.errors import SettingsError
from dfm.model.calibration import Calibration
from dfm.model.report import FINDINGS
from dfm.training.label_units import of_full_stream, of_thinned_log
from tests.distributed.test_held_out import tables_of
from tests.support.small_models import make_model, random_table

N_ROWS, RATE = 60_000, 0.1


def stream(seed: int) -> pa.Table:
    """Clicks on one row in twelve, by two categories."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 20, N_ROWS), rng.integers(0, 20, N_ROWS)
    of_a, of_b = np.random.default_rng(1).normal(0, 0.8, (2, 20))
    label = rng.random(N_ROWS) < 1 / (1 + np.exp(2.8 - of_a[a] - of_b[b]))
    return pa.table({"a": [f"a{n}" for n in a], "b": [f"b{n}" for n in b], "label": label.astype(np.int64)})


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The full stream, the same with a tenth of its negative rows, and that with weights; and another full stream."""
    folder, full = tmp_path_factory.mktemp("logs"), stream(2)
    label = full["label"].to_numpy()
    kept = (label == 1) | (np.random.default_rng(3).random(N_ROWS) < RATE)
    sampled = full.filter(pa.array(kept))
    weights = np.where(sampled["label"].to_numpy() == 1, 1.0, 1 / RATE)
    tables = {
        "full": full,
        "sampled": sampled,
        "weighted": sampled.append_column("weight", pa.array(weights)),
        "later": stream(4),
    }
    for name, table in tables.items():
        (folder / name).mkdir()
        pq.write_table(table, folder / name / "0.parquet")
    return {name: folder / name for name in tables}


def trained(log: Path, folder: Path, client: Client, **changes: Any) -> Any:
    return jobs.train(tables_of(log, folder, **changes), client)


@pytest.fixture(scope="module")
def result(logs: dict[str, Path], client: Client, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(logs["sampled"], tmp_path_factory.mktemp("rate"), client, data={"negative_rate": RATE})


def test_predictions_are_calibrated_for_the_full_stream(
    result: Any, logs: dict[str, Path], client: Client, tmp_path: Path
) -> None:
    full = trained(logs["full"], tmp_path / "full", client)
    of_full, of_sampled = (jobs.evaluate(each.model_url, str(logs["later"]), client=client) for each in (full, result))
    assert of_sampled["calibration"] == pytest.approx(1.0, abs=0.15)  # of few rows; without the rate it is above 3
    assert of_sampled["log_loss"] == pytest.approx(of_full["log_loss"], abs=0.003)


def test_the_model_is_that_of_the_log_with_lower_logits(
    result: Any, logs: dict[str, Path], two_workers: Client, tmp_path: Path
) -> None:
    plain = trained(logs["sampled"], tmp_path, two_workers)
    rows = pq.read_table(logs["later"])
    scores, lower = (each.model.decision_function(rows) for each in (plain, result))
    np.testing.assert_allclose(lower, scores + np.log(RATE), atol=1e-5)
    assert jobs.evaluate(plain.model_url, str(logs["later"]), client=two_workers)["calibration"] > 3
    assert result.validation == plain.validation, "of the log as it is"
    assert result.model.metadata["settings"]["data"]["negative_rate"] == RATE


def test_slices_and_importance_of_the_report_are_of_the_log_like_its_metrics(result: Any) -> None:
    found, validation = json.loads((Path(result.model_url) / FINDINGS).read_text()), result.validation
    records = found["slices"]["records"]
    predicted, clicks = (
        sum(each["rows"] * each[name] for each in records) for name in ("mean_prediction", "mean_label")
    )
    assert sum(each["rows"] for each in records) == validation["rows"] == found["importance"]["rows"]
    assert predicted / clicks == pytest.approx(validation["calibration"], rel=1e-5)
    assert found["importance"]["loss"] == pytest.approx(validation["log_loss"], rel=1e-5)


@pytest.mark.parametrize("calibration", [None, Calibration("isotonic", (-3.0, -1.0, 2.0), (-2.5, -1.5, 0.5))])
def test_what_was_published_for_the_full_stream_predicts_for_the_log_again(calibration: Calibration | None) -> None:
    model, rows = dataclasses.replace(make_model(), calibration=calibration), random_table(50)
    moved = None if calibration is None else calibration.moved(np.log(RATE))
    published = dataclasses.replace(model, table=of_full_stream(model.table, RATE), calibration=moved)
    odds = [probabilities / (1 - probabilities) for probabilities in (published.predict(rows), model.predict(rows))]
    np.testing.assert_allclose(odds[0], RATE * odds[1], rtol=1e-4)
    np.testing.assert_allclose(of_thinned_log(published, RATE).predict(rows), model.predict(rows), rtol=1e-5)


def test_the_next_night_goes_on_from_where_the_log_stands(
    result: Any, logs: dict[str, Path], client: Client, tmp_path: Path
) -> None:
    warm = {"warm_start": result.model_url, "warm_start_decay": 0.0, "n_epochs": 1}
    told: list[dict[str, Any]] = []
    tables = tables_of(logs["sampled"], tmp_path, training=warm, data={"negative_rate": RATE})
    jobs.train(tables, client, on_event=told.append)
    (epoch,) = [event for event in told if event["event"] == "epoch"]
    assert epoch["calibration"] == pytest.approx(result.validation["calibration"], abs=0.1)
    assert epoch["train_log_loss"] < result.history[0]["train_log_loss"]


def test_what_says_it_twice_or_has_no_negatives_is_refused(
    logs: dict[str, Path], client: Client, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"and schema\.weight = .weight. may do so already"):
        trained(logs["weighted"], tmp_path, client, schema={"weight": "weight"}, data={"negative_rate": RATE})
    tables = tables_of(logs["sampled"], tmp_path, data={"negative_rate": RATE}) | {"model": {"task": "regression"}}
    with pytest.raises(SettingsError, match="needs a model of probabilities"):
        jobs.train(tables, client)
    with pytest.raises(SettingsError, match=r"with loss .hinge. has none"):
        jobs.train({**tables, "model": {"loss": "hinge"}}, client)
    with pytest.raises(SettingsError, match=r"data\.negative_rate = 0"):
        trained(logs["sampled"], tmp_path, client, data={"negative_rate": 0})
