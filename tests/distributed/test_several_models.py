"""model.n_models: several trainings on rows that are hashed once, and one model that scores their mean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed import checkpointing, several
from dfm.errors import RunCancelled, SettingsError
from dfm.events import faults_of
from dfm.kernels.mean import part_of_mean
from dfm.model.fm_model import FMModel
from dfm.model.report import report_training
from dfm.training.automatic import CANDIDATES
from dfm.training.checkpoint import prefixes_in
from tests.distributed.test_held_out import tables_of, write_log
from tests.support.small_jobs import in_process_client

Events = list[dict[str, Any]]
SEVERAL = {"hash_bits": 12, "n_factors": 4, "n_models": 3}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("several") / "log")


def trained(log: Path, folder: Path, client: Client, on_event: Any = None, **changes: Any) -> Any:
    model, training = {**SEVERAL, **changes.pop("model", {})}, {"patience": 1, **changes.pop("training", {})}
    tables = tables_of(log, folder, training=training, **changes) | {"model": model}
    return jobs.train(tables, client, on_event=on_event)


@pytest.fixture(scope="module")
def mean(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Events]:
    told: Events = []
    return trained(log, tmp_path_factory.mktemp("one"), client, told.append), told


def test_the_model_is_the_mean_of_the_single_trainings(mean: tuple[Any, Events], log: Path, client: Client) -> None:
    result, told = mean
    model = result.model
    assert model.table.layout.n_factors == 12
    (event,) = [event for event in told if event["event"] == "mean"]
    assert [each["seed"] for each in event["models"]] == [0, 1, 2]
    assert len({each["validation"]["log_loss"] for each in event["models"]}) == 3, "each learnt something of its own"
    assert event["validation"] == result.validation == model.metadata["validation"]
    assert model.metadata["models"] == event["models"]
    assert [fault for event in told for fault in faults_of(event)] == []


def test_the_first_of_them_is_the_model_of_a_job_for_one(
    mean: tuple[Any, Events], log: Path, client: Client, tmp_path: Path
) -> None:
    lone = trained(log, tmp_path, client, model={"n_models": 1}).model
    part = part_of_mean(mean[0].model.table, 0, 3)
    np.testing.assert_allclose(part.factor_weights, lone.table.factor_weights, rtol=1e-6)
    assert mean[0].model.metadata["models"][0]["validation"] == lone.metadata["validation"]


def test_events_are_told_as_if_all_walked_in_step(mean: tuple[Any, Events]) -> None:
    result, told = mean
    epochs = [(event["epoch"], event["seed"]) for event in told if event["event"] == "epoch"]
    assert epochs == sorted(epochs)
    assert [(event["epoch"], event["seed"]) for event in result.history] == epochs
    assert {seed for _, seed in epochs} == {0, 1, 2}
    assert result.history_frame().index.names == ["seed", "epoch"]
    rounds = [(event["epoch"], event["round"]) for event in told if event["event"] == "round"]
    assert rounds == sorted(rounds), "progress never goes back"


def test_any_cluster_gives_the_same_bytes(
    mean: tuple[Any, Events], log: Path, two_workers: Client, tmp_path: Path
) -> None:
    told: Events = []
    two = trained(log, tmp_path / "two", two_workers, told.append)
    assert two.parameters_sha256 == mean[0].parameters_sha256
    kept = [event for event in told if event["event"] in ("epoch", "pilot", "stopped", "plateau")]
    assert [(e["event"], e["seed"]) for e in kept] == [
        (e["event"], e["seed"]) for e in mean[1] if e["event"] in ("epoch", "pilot", "stopped", "plateau")
    ]
    with in_process_client(5) as five:
        assert trained(log, tmp_path / "five", five).parameters_sha256 == mean[0].parameters_sha256


def test_stopped_and_started_again_each_goes_on_from_its_own_checkpoint(
    mean: tuple[Any, Events], log: Path, two_workers: Client, client: Client, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        trained(log, tmp_path, two_workers, stop)
    checkpoints = tmp_path / "out" / "checkpoint"
    assert prefixes_in(str(checkpoints), None) == ["model-0-", "model-1-", "model-2-"]
    with pytest.raises(SettingsError, match=r"model\.n_models is \(not known\) now and 3 there"):
        trained(log, tmp_path, client, model={"n_models": 1})
    told: Events = []
    result = trained(log, tmp_path, client, told.append)
    assert {event["seed"] for event in told if event["event"] == "resumed"} == {0, 1, 2}
    assert result.parameters_sha256 == mean[0].parameters_sha256
    assert result.history[-1]["epoch"] == mean[0].history[-1]["epoch"]
    assert not checkpoints.exists(), "they are deleted when the model is published"


def test_starting_afresh_deletes_the_checkpoints_of_another_number_of_models(
    log: Path, client: Client, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        trained(log, tmp_path, client, stop)
    tables = tables_of(log, tmp_path) | {"model": {**SEVERAL, "n_models": 1}}
    tables["output"]["resume"] = False
    jobs.train(tables, client)
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_an_error_in_one_of_them_ends_all_and_is_raised(log: Path, client: Client, tmp_path: Path) -> None:
    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["seed"] == 1:
            raise ValueError("a listener's own")

    with pytest.raises(ValueError, match="a listener's own"):
        trained(log, tmp_path, client, fail)


def test_ctrl_c_publishes_the_mean_of_the_best_so_far(log: Path, client: Client, tmp_path: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise KeyboardInterrupt

    result = trained(log, tmp_path, client, interrupt)
    assert result.interrupted
    assert len(result.model.metadata["models"]) == 3


def test_the_next_night_each_goes_on_from_its_own_part(
    mean: tuple[Any, Events], log: Path, client: Client, tmp_path: Path
) -> None:
    warm = {"warm_start": mean[0].model_url, "n_epochs": 1, "warm_start_decay": 0.0}
    told: Events = []
    result = trained(log, tmp_path / "next", client, told.append, training=warm)
    first = [event["log_loss"] for event in told if event["event"] == "epoch" and event["epoch"] == 1]
    fresh = [event["log_loss"] for event in mean[1] if event["event"] == "epoch" and event["epoch"] == 1]
    assert max(first) < min(fresh)
    metadata = result.model.metadata
    starts = [event["log_loss"] for event in told if event["event"] == "start"]
    assert [model["start"]["log_loss"] for model in metadata["models"]] == starts
    assert (len(starts), metadata["warm_start"]["validation"]) == (3, {})
    assert all(value > 0 for value in metadata["accumulators"]["by_field"]["linear"][0]), "the mean has no state"
    still = {**warm, "learning_rate": 1e-7}
    standing = trained(log, tmp_path / "still", client, training=still).model.table
    np.testing.assert_allclose(standing.factor_weights, mean[0].model.table.factor_weights, atol=1e-4)
    with pytest.raises(SettingsError, match=r"model\.n_models = 2, but the model of .* has 3"):
        trained(log, tmp_path / "other", client, training=warm, model={"n_models": 2})


def test_the_next_night_each_goes_on_with_what_its_own_pilot_chose(
    mean: tuple[Any, Events], log: Path, client: Client, tmp_path: Path
) -> None:
    last = tmp_path / "last"
    shutil.copytree(mean[0].model_url, last)
    manifest = json.loads((last / "model.json").read_text())
    chosen = [*CANDIDATES][:3]
    one = {"warm_start": str(last), "n_epochs": 1}
    losses = []
    for choices in ([chosen[0]] * 3, chosen):
        for model, choice in zip(manifest["metadata"]["models"], choices, strict=True):
            model["chosen"] = choice
        (last / "model.json").write_text(json.dumps(manifest))
        result = trained(log, tmp_path / f"next-{len(losses)}", client, training=one)
        assert [model["chosen"] for model in result.model.metadata["models"]] == choices
        losses.append([event["train_log_loss"] for event in result.history])
    assert [one == other for one, other in zip(*losses, strict=True)] == [True, False, False]


def test_blocks_of_trainings_that_are_cut_at_different_rows_come_together(
    mean: tuple[Any, Events], log: Path, client: Client, tmp_path: Path, monkeypatch: Any
) -> None:
    def as_one(run: Any, models: Any, bounds: Any) -> Any:
        return whole(run, models, [*bounds, [0]])

    whole = several._mean_blocks
    monkeypatch.setattr(several, "_mean_blocks", as_one)
    assert trained(log, tmp_path, client).parameters_sha256 == mean[0].parameters_sha256


def test_the_report_shows_the_single_models_beside_their_mean(mean: tuple[Any, Events]) -> None:
    directory = str(Path(mean[0].model_url).parent)
    page = Path(report_training(directory, "several")).read_text()
    assert "<td>seed 0<td class=n>" in page
    assert "<td>their mean<td><td class=n>" in page
    manifest = json.loads((Path(mean[0].model_url) / "model.json").read_text())
    assert f"{manifest['metadata']['models'][2]['validation']['log_loss']:.5f}" in page
    assert FMModel.load(mean[0].model_url).metadata["models"] == manifest["metadata"]["models"]


def test_linear_models_have_a_mean(log: Path, client: Client, tmp_path: Path) -> None:
    result = trained(log, tmp_path, client, model={"n_factors": 0, "n_models": 2}, training={"n_epochs": 2})
    assert FMModel.load(result.model_url).table.layout.n_factors == 0
