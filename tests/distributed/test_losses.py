"""Jobs with other losses, and with functions of the user: trained on a cluster, published without code, predicted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from distributed import Client

import dfm
from dfm import jobs
from dfm.cli import app
from dfm.distributed.train import TrainResult
from dfm.errors import DataError, DivergenceError, SettingsError
from dfm.model.fm_model import FMModel
from tests.support import user_functions
from tests.support.small_jobs import LAST_DAY, job_tables, read_log

KERNELS = {"n_factors": 0, "hash_bits": 16}
"""Linear models: their kernels compile in a moment."""


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    """What the run of `own` told."""
    return []


@pytest.fixture(scope="module")
def own(
    log: Path, client: Client, events: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> TrainResult:
    """The log's clicks, learnt with a user's own log loss, which calls nothing of dfm."""
    tables = job_tables(log, tmp_path_factory.mktemp("own"), model=KERNELS)
    return dfm.train(tables, client, loss=user_functions.logistic, on_event=events.append)


def test_a_users_log_loss_trains_as_the_built_in_one_does(
    own: TrainResult, log: Path, client: Client, tmp_path: Path
) -> None:
    built_in = jobs.train(job_tables(log, tmp_path, model=KERNELS), client)
    assert own.validation["loss"] == pytest.approx(built_in.validation["log_loss"], rel=1e-6)
    assert own.validation["log_loss"] == pytest.approx(own.validation["loss"], rel=1e-6)
    rows = read_log(log, LAST_DAY)
    np.testing.assert_allclose(own.model.predict(rows), built_in.model.predict(rows), rtol=1e-5)


def test_epochs_tell_of_the_users_loss(own: TrainResult, events: list[dict[str, Any]]) -> None:
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [event["train_loss"] > event["loss"] * 0.5 for event in epochs] == [True, True]
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
    json.dumps(events)


def test_a_published_model_names_the_function_and_holds_no_code_of_it(own: TrainResult) -> None:
    manifest = json.loads((Path(own.model_url) / "model.json").read_text())
    assert manifest["format"] == 3
    assert manifest["loss"]["name"] == "logistic"
    assert manifest["loss"]["link"] == "sigmoid"
    mark = f"custom:logistic:{manifest['loss']['sha256']}"
    assert manifest["metadata"]["settings"]["model"]["loss"] == mark
    everything = b"".join(path.read_bytes() for path in Path(own.model_url).iterdir())
    assert b"log1p" not in everything
    assert b"user_functions" not in everything


def test_a_model_of_a_users_loss_predicts_and_is_evaluated_without_the_function(
    own: TrainResult, log: Path, client: Client
) -> None:
    metrics = jobs.evaluate(own.model_url, str(log / f"day={LAST_DAY}"), client=client)
    assert metrics["log_loss"] == pytest.approx(own.validation["log_loss"], rel=1e-9)
    assert "loss" not in metrics
    summary = json.loads(CliRunner().invoke(app.cli, ["inspect", own.model_url, "--json"]).output)["summary"]
    assert (summary["loss"], summary["link"]) == ("logistic", "sigmoid")


def test_a_job_with_the_mark_of_a_function_trains_only_with_that_function(
    own: TrainResult, log: Path, client: Client, tmp_path: Path
) -> None:
    manifest = json.loads((Path(own.model_url) / "model.json").read_text())
    tables = job_tables(log, tmp_path, model={**KERNELS, "loss": manifest["metadata"]["settings"]["model"]["loss"]})
    with pytest.raises(SettingsError, match="only Python can pass"):
        jobs.train(tables, client)
    with pytest.raises(SettingsError, match="only Python can pass"):
        jobs.plan(tables)


def test_a_users_regulariser_and_adam_shrink_weights(log: Path, client: Client, tmp_path: Path) -> None:
    training = {"n_replicas": 3, "n_epochs": 1, "averages_per_epoch": 2, "optimizer": "adam", "learning_rate": 0.01}
    spreads = []
    for strength in (0.0, 3.0):
        changes = {**training, "l2_linear": strength, "regularizer": "l2"}
        tables = job_tables(log, tmp_path / str(strength), model=KERNELS, training=changes)
        result = dfm.train(tables, client, regularizer=lambda w: 0.5 * w * w + abs(w))
        assert strength or result.validation["auc"] > 0.6
        spreads.append(float(np.abs(result.model.table.linear_weights).mean()))
    assert spreads[1] < 0.5 * spreads[0]


def test_hinge_gives_margins_and_no_probabilities(log: Path, client: Client, tmp_path: Path) -> None:
    result = jobs.train(job_tables(log, tmp_path, model={**KERNELS, "loss": "hinge"}), client)
    assert {"loss", "auc", "error_rate"} <= set(result.validation)
    assert not {"log_loss", "calibration"} & set(result.validation)
    rows = read_log(log, LAST_DAY)
    margins = result.model.predict(rows)
    assert margins.min() < 0
    assert np.array_equal(margins, result.model.decision_function(rows))
    labels = rows.column("label").to_numpy()
    assert np.mean((margins >= 0) != (labels == 1)) == pytest.approx(result.validation["error_rate"])


def counts_log(folder: Path, least: int) -> Path:
    """Counts with a mean of 2 at one site and of 9 at the other; `least` stands in the first row."""
    rng = np.random.default_rng(1)
    site = rng.integers(0, 2, 4000)
    counts = rng.poisson(np.where(site == 1, 9.0, 2.0))
    counts[0] = least
    folder.mkdir()
    pq.write_table(pa.table({"site": site, "count": counts}), folder / "part.parquet", row_group_size=500)
    return folder


def counts_job(tmp_path: Path, least: int) -> dict[str, Any]:
    return {
        "data": {"train": str(counts_log(tmp_path / "log", least))},
        "schema": {"label": "count", "categorical": ["site"]},
        "model": {"task": "regression", "loss": "poisson", "n_factors": 0, "hash_bits": 10},
        "training": {"n_replicas": 2, "n_epochs": 5, "averages_per_epoch": 2, "l2_linear": 0.0},
        "cluster": {"cache": str(tmp_path / "cache")},
        "output": {"directory": str(tmp_path / "out")},
    }


def test_poisson_predicts_the_mean_count(client: Client, tmp_path: Path) -> None:
    result = jobs.train(counts_job(tmp_path, 3), client)
    predicted = result.model.predict({"site": [0, 1]})
    np.testing.assert_allclose(predicted, [2.0, 9.0], rtol=0.1)
    np.testing.assert_allclose(result.model.decision_function({"site": [0, 1]}), np.log(predicted), rtol=1e-5)
    assert FMModel.load(result.model_url).objective.info.link == "exp"


def test_a_negative_count_is_a_bad_row(client: Client, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label is negative"):
        jobs.train(counts_job(tmp_path, -1), client)


def test_a_users_loss_may_name_its_link(client: Client, tmp_path: Path) -> None:
    tables = counts_job(tmp_path, 3)
    tables["model"]["loss"] = "auto"
    result = jobs.train(tables, client, loss=dfm.CustomLoss.of(user_functions.poisson, link="exp"))
    np.testing.assert_allclose(result.model.predict({"site": [0, 1]}), [2.0, 9.0], rtol=0.1)
    assert FMModel.load(result.model_url).objective.info.link == "exp"


def test_a_loss_that_is_not_finite_for_some_label_stops_training_with_a_hint(client: Client, tmp_path: Path) -> None:
    tables = counts_job(tmp_path, 0)
    tables["model"]["loss"] = "auto"
    with pytest.raises(DivergenceError, match="your loss is not finite for one of the labels"):
        jobs.train(tables, client, loss=lambda score, y: (score - y) ** 2 * (1 + math.log(y)))
