"""model.calibration: fitted on rows that judge no epoch, kept where it helps, and part of every prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from rich.console import Console

import dfm
from dfm import jobs
from dfm.distributed import diagnose
from dfm.errors import SettingsError
from dfm.events import faults_of
from dfm.model.export import export
from dfm.model.fm_model import FMModel
from dfm.runs.display import Reporter
from tests.distributed.test_held_out import tables_of
from tests.model.test_export import run_onnx
from tests.support.extras import needs_onnx

N_ROWS = 24_000


def clicks(seed: int, n_rows: int = N_ROWS, shift: float = 0.0) -> pa.Table:
    """Clicks by two categories, whose odds are e^shift times those of the first log."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 12, (2, n_rows))
    of_a, of_b = np.random.default_rng(1).normal(0, 1.0, (2, 12))
    label = rng.random(n_rows) < 1 / (1 + np.exp(1.0 - of_a[a] - of_b[b] - shift))
    return pa.table({"a": [f"a{n}" for n in a], "b": [f"b{n}" for n in b], "label": label.astype(np.int64)})


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows to train on; rows to validate on, which the years have made half as likely to be clicked; and later ones."""
    folder = tmp_path_factory.mktemp("log")
    tables = {"train": clicks(2), "validation": clicks(3, shift=-0.7), "later": clicks(4, shift=-0.7)}
    for name, table in tables.items():
        (folder / name).mkdir()
        for number in range(2):
            pq.write_table(table.slice(number * N_ROWS // 2, N_ROWS // 2), folder / name / f"{number}.parquet")
    return folder


def tables(log: Path, folder: Path, kind: str, **more: Any) -> dict[str, Any]:
    data = {"validation": str(log / "validation"), **more.pop("data", {})}
    found = tables_of(log / "train", folder, data=data, **more)
    return {**found, "model": {"hash_bits": 12, "calibration": kind}}


@pytest.fixture(scope="module")
def results(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By kind: what training gave, and the events it told."""
    found = {}
    for kind in ("none", "platt", "isotonic"):
        told: list[dict[str, Any]] = []
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = jobs.train(tables(log, folder, kind), client, on_event=told.append), told
    return found


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_later_rows_are_predicted_better(results: dict[str, Any], log: Path, client: Client, kind: str) -> None:
    (plain, _), (result, told) = results["none"], results[kind]
    before, after = (jobs.evaluate(each.model_url, str(log / "later"), client=client) for each in (plain, result))
    assert after["log_loss"] < before["log_loss"] - 0.02
    assert after["calibration"] == pytest.approx(1.0, abs=0.05)
    assert before["calibration"] > 1.3
    (event,) = [each for each in told if each["event"] == "calibrated"]
    assert event["kept"]
    assert event["kind"] == kind
    assert event["log_loss_after"] == result.validation["log_loss"] < event["log_loss_before"]
    assert event["rows"] + event["judged_rows"] == N_ROWS
    assert event["rows"] == pytest.approx(N_ROWS / 3, rel=0.03)
    assert result.model.metadata["calibration"]["kept"]


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_the_rows_that_fit_it_judge_no_epoch(results: dict[str, Any], kind: str) -> None:
    (plain, _), (result, _) = results["none"], results[kind]
    assert {epoch["rows"] for epoch in plain.history} == {N_ROWS}
    assert {epoch["rows"] for epoch in result.history} == {result.validation["rows"]}
    assert result.validation["rows"] == pytest.approx(2 * N_ROWS / 3, rel=0.03)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_the_same_on_any_number_of_workers(
    results: dict[str, Any], log: Path, two_workers: Client, tmp_path: Path, kind: str
) -> None:
    result, (again, _) = jobs.train(tables(log, tmp_path, kind), two_workers), results[kind]
    assert result.model.calibration == again.model.calibration is not None
    assert result.validation == again.validation


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_all_ways_to_predict_agree(results: dict[str, Any], log: Path, tmp_path: Path, kind: str) -> None:
    model: FMModel = results[kind][0].model  # loading has scored the golden rows
    rows = pq.read_table(log / "later").slice(0, 500)
    predicted = model.predict(rows)
    raw = 1 / (1 + np.exp(-model.decision_function(rows)))
    assert np.abs(predicted - raw).max() > 0.05
    assert model.predict_one(rows.slice(0, 1)) == predicted[0]
    assert model.explain(rows.slice(7, 1)).prediction == pytest.approx(predicted[7], abs=1e-6)
    assert model.calibration is not None
    assert (np.argsort(predicted, kind="stable") == np.argsort(raw, kind="stable")).mean() > 0.99
    for text in ("libfm", "xlearn"):
        with pytest.raises(SettingsError, match="cannot say that logits are calibrated"):
            export(model, text, str(tmp_path))


@needs_onnx
@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_onnx_predicts_what_the_model_does(results: dict[str, Any], log: Path, tmp_path: Path, kind: str) -> None:
    model, rows = results[kind][0].model, pq.read_table(log / "later").slice(0, 2_000)
    (url,) = export(model, "onnx", str(tmp_path))
    np.testing.assert_allclose(run_onnx(url, model, rows), model.predict(rows), atol=1e-6)


def test_slices_and_importance_judge_calibrated_predictions(results: dict[str, Any], log: Path, client: Client) -> None:
    url = results["platt"][0].model_url
    found = jobs.evaluate(url, str(log / "later"), by=["a"], min_rows=1, client=client)
    records = found["slices"]["a"]
    assert sum(each["rows"] * each["log_loss"] for each in records) / N_ROWS == pytest.approx(found["log_loss"], 1e-6)
    assert jobs.importance(url, str(log / "later"), repeats=1, client=client)["loss"] == pytest.approx(
        found["log_loss"], abs=1e-6
    )


def test_the_linear_part_is_compared_with_the_same_calibration(log: Path, client: Client, tmp_path: Path) -> None:
    """These clicks have no pairs: without it the linear part would look worse by what the calibration gains."""
    told: list[dict[str, Any]] = []
    compared: list[tuple[float, float]] = []
    findings = diagnose.model_findings

    def spied(objective: Any, metrics: Any, linear: Any, solver: str) -> Any:
        compared.append((metrics["log_loss"], linear["log_loss"]))
        return findings(objective, metrics, linear, solver)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnose, "model_findings", spied)
        jobs.train(tables(log, tmp_path, "platt"), client, on_event=told.append)
    (event,) = [each for each in told if each["event"] == "calibrated"]
    ((whole, linear),) = compared
    assert event["kept"]
    assert event["log_loss_before"] - whole > 0.01
    assert linear == pytest.approx(whole, abs=0.002)


def test_none_is_kept_where_a_model_is_right_already(log: Path, client: Client, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    found = tables(log, tmp_path, "platt", data={"validation": str(log / "train"), "train": str(log / "later")})
    found["data"] = {"train": str(log / "later"), "validation_fraction": 0.3}
    result = jobs.train(found, client, on_event=told.append)
    (event,) = [each for each in told if each["event"] == "calibrated"]
    assert not event["kept"]
    assert event["reason"] == "it does not lower the log loss of rows that it has not seen"
    assert event["log_loss_before"] == result.validation["log_loss"]
    assert event["log_loss_after"] is None, "nothing is published with it"
    assert event["gain"] < 2 * event["gain_error"]
    assert faults_of(event) == []
    loss, other = f"{event['log_loss_before']:.5f}", f"{event['log_loss_before'] - event['gain']:.5f}"
    with Reporter(console := Console(width=200)) as reporter, console.capture() as capture:
        reporter(event)
    assert f"it has not seen (log loss {loss} without, {other} with it); none is kept" in capture.get()
    page = Path(dfm.report(result.model_url)).read_text()
    assert "<th>log_loss_before<" in page
    assert "<th>log_loss_after<" not in page
    assert result.model.calibration is None
    assert result.model.metadata["calibration"]["reason"] == event["reason"]


def test_a_down_sampled_log_is_calibrated_for_the_full_stream(
    results: dict[str, Any], log: Path, client: Client, tmp_path: Path
) -> None:
    found = tables(log, tmp_path, "platt", data={"negative_rate": 0.5})
    lower, plain = jobs.train(found, client).model, results["platt"][0].model
    rows = pq.read_table(log / "later").slice(0, 300)
    odds, half = (each / (1 - each) for each in (model.predict(rows) for model in (plain, lower)))
    np.testing.assert_allclose(half, odds / 2, rtol=1e-4)


def test_what_cannot_be_calibrated_is_refused(log: Path, client: Client, tmp_path: Path) -> None:
    plain = tables(log, tmp_path, "platt")
    for model in ({"task": "regression"}, {"loss": "hinge"}):
        with pytest.raises(SettingsError, match=r"model\.calibration = .platt. needs a model of probabilities"):
            jobs.train({**plain, "model": {**plain["model"], **model}}, client)
    without = {"train": str(log / "train"), "validation_fraction": 0}
    with pytest.raises(SettingsError, match="is fitted on rows to validate on, and there are none"):
        jobs.train({**plain, "data": without}, client)
