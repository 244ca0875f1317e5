"""training.solver = "als" and "mcmc" as jobs: the same bytes on any cluster and after any stop, and their model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed import checkpointing, diagnose
from dfm.errors import ModelError, RunCancelled, SettingsError
from dfm.events import faults_of
from dfm.export import export
from dfm.model.fm_model import FMModel
from dfm.model.inspection import describe_model
from dfm.training.diagnosis import Finding, model_findings
from tests.support.small_jobs import in_process_client, stop_after

Events = list[dict[str, Any]]
ROWS, VALIDATES = 1_600, 400
MCMC = {"solver": "mcmc", "n_epochs": 8, "burn_in": 2, "draws": 3, "n_replicas": 5}


def table_of(n_rows: int) -> pa.Table:
    """Rows of two columns, whose many values share indices of a small hash table, and a list."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 300, n_rows), rng.integers(0, 200, n_rows)
    tags = [rng.choice(6, rng.integers(0, 4), replace=False).tolist() for _ in range(n_rows)]
    effects, w, v = rng.normal(size=6), rng.normal(size=(2, 300)), rng.normal(size=(2, 300, 2))
    score = w[0, a] + w[1, b] + (v[0, a] * v[1, b]).sum(axis=1) + np.array([effects[each].sum() for each in tags])
    return pa.table(
        {
            "rating": 3 * score + rng.normal(size=n_rows) + 50,
            "click": (score + rng.normal(size=n_rows) > 0).astype(np.int64),
            "a": [f"a{value}" for value in a],
            "b": [f"b{value}" for value in b],
            "tags": [[f"t{value}" for value in each] for each in tags],
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found, table = tmp_path_factory.mktemp("ratings"), table_of(ROWS + VALIDATES)
    for number in range(4):
        pq.write_table(table.slice(number * ROWS // 4, ROWS // 4), found / f"train-{number}.parquet")
    pq.write_table(table.slice(ROWS), found / "validation.parquet")
    return found


def tables_of(folder: Path, where: Path, training: dict[str, Any], task: str = "regression") -> dict[str, Any]:
    return {
        "data": {"train": str(folder / "train-*.parquet"), "validation": str(folder / "validation.parquet")},
        "schema": {
            "label": "rating" if task == "regression" else "click",
            "categorical": ["a", "b"],
            "lists": ["tags"],
        },
        "model": {"task": task, "n_factors": 2, "hash_bits": 10, "min_count": 1, "min_count_factors": 3},
        "training": training,
        "cluster": {"cache": str(where / "cache"), "workers": 1},
        "output": {"directory": str(where / "out"), "report": False},
    }


@pytest.fixture(scope="module")
def drawn(folder: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Events]:
    told: Events = []
    where = tmp_path_factory.mktemp("drawn")
    return jobs.train(tables_of(folder, where, MCMC), client, on_event=told.append), told


def test_a_job_tells_what_it_does_and_validates_what_it_publishes(drawn: tuple[Any, Events], folder: Path) -> None:
    result, told = drawn
    assert [fault for event in told for fault in faults_of(event)] == []
    (event,) = [event for event in told if event["event"] == "solving"]
    assert (event["solver"], event["iterations"], event["burn_in"], event["draws"]) == ("mcmc", 8, 2, 3)
    assert [event["epoch"] for event in told if event["event"] == "epoch"] == list(range(1, 9))
    validation = pq.read_table(folder / "validation.parquet")
    errors = result.model.predict(validation) - validation["rating"].to_numpy()
    assert np.sqrt(np.mean(np.square(errors, dtype=float))) == pytest.approx(result.validation["rmse"], rel=1e-5)
    spread = validation["rating"].to_numpy().std()
    assert result.validation["rmse"] < 0.9 * spread


def test_the_model_is_its_draws_on_disk_too(drawn: tuple[Any, Events], folder: Path, tmp_path: Path) -> None:
    result, _ = drawn
    model, rows = FMModel.load(result.model_url), pq.read_table(folder / "validation.parquet")
    assert model.draws is not None
    assert (model.draws.number, model.table.layout.n_factors) == (3, 6)
    assert "with 2 factors in each of 3 draws" in repr(model)
    summary = describe_model(model)["summary"]
    assert [summary[name] for name in ("solver", "draws", "n_factors", "link")] == ["mcmc", 3, 2, "identity"]
    assert model.parameters_sha256() == result.parameters_sha256
    bounds, ratings = model.predict_interval(rows, 0.9), rows["rating"].to_numpy()
    assert np.all(bounds[:, 0] < model.predict(rows))
    assert np.all(model.predict(rows) < bounds[:, 1])
    assert np.mean((bounds[:, 0] <= ratings) & (ratings <= bounds[:, 1])) > 0.8
    assert np.all(model.predict_interval(rows, 0.5)[:, 0] > bounds[:, 0])
    one = {name: rows[name][0].as_py() for name in ("a", "b", "tags")}
    assert model.predict_one(one) == pytest.approx(float(model.predict(rows)[0]), rel=1e-5)
    assert model.explain(one).prediction == pytest.approx(model.predict_one(one), rel=1e-4), "the mean is a machine"
    with pytest.raises(SettingsError, match=r"coverage = 1\.5"):
        model.predict_interval(rows, 1.5)
    assert export(model, "libfm", str(tmp_path))


def test_no_more_draws_are_announced_than_are_kept(folder: Path, client: Client, tmp_path: Path) -> None:
    told: Events = []
    tables = tables_of(folder, tmp_path, {"solver": "mcmc", "n_epochs": 5, "burn_in": 2, "n_replicas": 2})
    tables["model"]["n_factors"] = 0
    model = jobs.train(tables, client, on_event=told.append).model
    (event,) = [event for event in told if event["event"] == "solving"]
    assert model.draws is not None
    assert event["draws"] == model.draws.number == model.metadata["automatic"]["draws"] == 3


def test_a_manifest_with_impossible_draws_is_refused(drawn: tuple[Any, Events], tmp_path: Path) -> None:
    model = FMModel.load(drawn[0].model_url)
    model.save(str(tmp_path))
    path = tmp_path / "model.json"
    text = path.read_text()
    assert '"draws": 3' in text
    assert '"format": 9' in text
    for wrong in ('"draws": 4', '"draws": 0', '"draws": "3"', '"draws": 6'):
        path.write_text(text.replace('"draws": 3', wrong, 1))
        with pytest.raises(ModelError, match="damaged"):
            FMModel.load(str(tmp_path))


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_any_cluster_gives_the_same_bytes(folder: Path, client: Client, tmp_path: Path, task: str) -> None:
    one = jobs.train(tables_of(folder, tmp_path / "one", MCMC, task), client)
    with in_process_client(3) as three:
        other = jobs.train(tables_of(folder, tmp_path / "three", MCMC, task), three)
    assert one.parameters_sha256 == other.parameters_sha256
    assert one.validation == other.validation


@pytest.mark.parametrize("solver", ["als", "mcmc"])
def test_stopped_after_every_iteration_in_turn_it_ends_with_the_same_bytes(
    folder: Path, client: Client, two_workers: Client, tmp_path: Path, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    training = MCMC if solver == "mcmc" else {"solver": "als", "n_epochs": 5, "n_replicas": 3, "patience": 2}
    expected = jobs.train(tables_of(folder, tmp_path / "whole", training), client)
    tables, starts = tables_of(folder, tmp_path / "parts", training), 0

    for attempt in range(12):
        starts += 1
        try:
            result = jobs.train(tables, two_workers if attempt % 2 else client, on_event=stop_after(1))
            break
        except RunCancelled:
            continue
    assert starts > 4
    assert result.parameters_sha256 == expected.parameters_sha256
    assert result.validation == expected.validation


def test_a_checkpoint_of_another_rule_for_penalties_is_refused(
    folder: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of before had none, and would go on with numbers that they did not begin with."""
    tables = tables_of(folder, tmp_path, {"solver": "als", "n_epochs": 5, "n_replicas": 1})

    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop_after(1))
    monkeypatch.setattr("dfm.distributed.loops._PRIORS", "another")
    with pytest.raises(SettingsError, match=r'automatic penalties and priors is "another" now and "by columns" there'):
        jobs.train(tables, client)


def test_a_probit_gives_probabilities_and_no_single_machine(folder: Path, client: Client, tmp_path: Path) -> None:
    training = {"solver": "als", "n_epochs": 4, "n_replicas": 2}
    model = jobs.train(tables_of(folder, tmp_path, training, "classification"), client).model
    rows = pq.read_table(folder / "validation.parquet")
    assert model.draws is not None
    assert model.draws.number == 1
    summary = describe_model(model)["summary"]
    assert [summary[name] for name in ("solver", "draws", "n_factors", "link")] == ["als", 1, 2, "probit"]
    p = model.predict(rows)
    assert 0.0 < p.min() < p.max() < 1.0
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-model.decision_function(rows))), rtol=1e-4)
    assert model.metadata["validation"]["auc"] > 0.6
    one = {name: rows[name][0].as_py() for name in ("a", "b", "tags")}
    for refused in (
        lambda: model.explain(one),
        lambda: model.candidates(rows.select(["a"])),
        lambda: model.vectors(rows.select(["a"]), rows.select(["b", "tags"])),
        lambda: export(model, "onnx", str(tmp_path / "onnx")),
        lambda: model.predict_interval(rows),
    ):
        with pytest.raises(SettingsError, match="solver"):
            refused()
    later = tables_of(folder, tmp_path / "later", {"warm_start": str(tmp_path / "out" / "model")}, "classification")
    with pytest.raises(SettingsError, match="is a model of draws"):
        jobs.train(later, client)


@pytest.mark.parametrize("solver", ["als", "mcmc"])
def test_exact_solvers_are_compared_with_their_linear_part_too(
    folder: Path, client: Client, tmp_path: Path, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[float, float]] = []

    def spied(objective: Any, metrics: Any, linear: Any, used: str) -> list[Finding]:
        compared.append((metrics["log_loss"], linear["log_loss"]))
        return model_findings(objective, metrics, linear, used)

    monkeypatch.setattr(diagnose, "model_findings", spied)
    held = {"l2_factors": 1e6} if solver == "als" else {"n_epochs": 8, "draws": 3}
    told: Events = []
    tables = tables_of(folder, tmp_path, {"solver": solver, "n_replicas": 2, **held}, "classification")
    jobs.train(tables, client, on_event=told.append)
    ((whole, linear),) = compared
    findings = [each for event in told if event["event"] == "diagnosis" for each in event["findings"]]
    kinds, knobs = [each["kind"] for each in findings], {knob for each in findings for knob in each["knobs"]}
    assert ("training.l2_factors" in knobs) == (solver == "als")
    assert ("training.draws" in knobs) == (solver == "mcmc")
    assert linear == pytest.approx(whole, rel=1e-6) if solver == "als" else linear < whole
    assert "factors-add-nothing" in kinds


def test_clicks_that_are_rare_begin_at_their_rate(folder: Path, client: Client, tmp_path: Path) -> None:
    """By the weights of rows, so that one iteration is enough for their mean prediction to be right."""
    log = pq.read_table(folder / "train-0.parquet")
    click = (np.arange(log.num_rows) % 40 == 0).astype(np.int64)
    weights = np.where(click, 2.0, 1.0)
    log = log.set_column(1, "click", pa.array(click)).append_column("weight", pa.array(weights))
    pq.write_table(log, tmp_path / "train-0.parquet")
    pq.write_table(log.slice(1), tmp_path / "validation.parquet")
    tables = tables_of(tmp_path, tmp_path, {"solver": "als", "n_replicas": 1, "n_epochs": 1}, "classification")
    tables["schema"]["weight"] = "weight"
    result = jobs.train(tables, client)
    assert result.validation["calibration"] == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(("training", "knobs"), [({"solver": "als"}, "l2_factors"), (MCMC, "n_epochs, training.draws")])
def test_a_search_of_learning_rates_is_refused_with_settings_that_the_solver_takes(
    folder: Path, client: Client, tmp_path: Path, training: dict[str, Any], knobs: str
) -> None:
    told = rf"training.solver = \"{training['solver']}\" has no learning .* of training.{knobs} or model.n_factors by"
    with pytest.raises(SettingsError, match=told):
        jobs.search(tables_of(folder, tmp_path, training), client)


def test_folds_are_made_of_exact_solvers_too(folder: Path, client: Client, tmp_path: Path) -> None:
    tables = tables_of(folder, tmp_path, {**MCMC, "n_epochs": 4, "burn_in": 1, "n_replicas": 2})
    tables["data"] = {"train": tables["data"]["train"]}
    folds = jobs.cross_validate(tables, 2, client=client)
    assert folds.mean["rmse"] > 0


@pytest.mark.parametrize(
    ("solver", "task"), [("mcmc", "regression"), ("mcmc", "classification"), ("als", "classification")]
)
def test_linear_models_are_drawn_and_published(
    folder: Path, client: Client, tmp_path: Path, solver: str, task: str
) -> None:
    tables = tables_of(folder, tmp_path, {"solver": solver, "n_replicas": 2, "n_epochs": 4}, task)
    tables["model"]["n_factors"] = 0
    result = jobs.train(tables, client)
    model = FMModel.load(result.model_url)
    rows = pq.read_table(folder / "validation.parquet")
    found = model.predict(rows)
    assert np.isfinite(found).all()
    assert np.ptp(found) > 0
