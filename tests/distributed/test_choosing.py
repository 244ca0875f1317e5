"""model.choose = "best": the linear model where factors learn noise, the other one where pairs decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.errors import RunCancelled, SettingsError
from dfm.events import faults_of
from dfm.model.inspection import choice_of, describe_model
from tests.distributed.test_held_out import tables_of, write_log

Events = list[dict[str, Any]]
BEST = {"hash_bits": 12, "choose": "best"}
NOISY = {"factor_rate_scale": 4.0, "l2_factors": 0.0}
"""Factors that learn the training rows by heart."""


def write_linear_log(folder: Path) -> Path:
    """Clicks in which every category speaks for itself."""
    rng = np.random.default_rng(7)
    a, b = rng.integers(0, 300, 6_000), rng.integers(0, 300, 6_000)
    odds = rng.normal(size=300)[a] + rng.normal(size=300)[b]
    label = (rng.random(6_000) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    folder.mkdir(parents=True)
    columns = {"a": [f"a{n}" for n in a], "b": [f"b{n}" for n in b], "label": label}
    pq.write_table(pa.table(columns), folder / "0.parquet")
    return folder


@pytest.fixture(scope="module")
def linear_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_log(tmp_path_factory.mktemp("linear") / "log")


def trained(log: Path, folder: Path, client: Client, on_event: Any = None, **model: Any) -> Any:
    tables = tables_of(log, folder, training=NOISY) | {"model": {**BEST, **model}}
    return jobs.train(tables, client, on_event=on_event)


@pytest.fixture(scope="module")
def chosen(linear_log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Events]:
    told: Events = []
    return trained(linear_log, tmp_path_factory.mktemp("one"), client, told.append), told


def test_where_factors_learn_noise_the_linear_model_is_published(chosen: tuple[Any, Events]) -> None:
    result, told = chosen
    (choice,) = [event for event in told if event["event"] == "chosen"]
    assert choice["chosen"] == "linear"
    assert choice["losses"]["linear"] < choice["losses"]["factors"]
    assert result.validation["log_loss"] == choice["losses"]["linear"]
    model = result.model
    assert model.vocabulary.n_factored == 0
    assert model.metadata["choice"] == {"losses": choice["losses"], "metric": "log_loss", "chosen": "linear"}
    assert "factors-add-nothing" not in [finding["kind"] for finding in model.metadata["diagnosis"]]
    assert len(model.metadata["history"]) == len(result.history)
    assert [fault for event in told for fault in faults_of(event)] == []


def test_the_page_and_the_description_of_the_model_tell_of_the_choice(chosen: tuple[Any, Events]) -> None:
    result, _ = chosen
    losses = result.model.metadata["choice"]["losses"]
    told = describe_model(result.model)["summary"]
    assert told["choice_chosen"] == "linear"
    assert (told["choice_with_factors"], told["choice_without_factors"]) == (losses["factors"], losses["linear"])
    page = Path(result.report_url).read_text()
    section = page.split("<h2>choice between factors and none</h2>")[1].split("<h2>")[0]
    for text in ("linear", f"{losses['factors']:.5f}", f"{losses['linear']:.5f}"):
        assert text in section


@pytest.mark.parametrize(
    ("metric", "told", "worth"),
    [({}, "loss", 0.4), ({"metric": "log_loss"}, "log_loss", 0.4), ({"metric": "group_auc"}, "group_auc", 0.6)],
)
def test_a_choice_is_told_with_what_its_numbers_are(metric: dict[str, str], told: str, worth: float) -> None:
    choice = {"losses": {"factors": 0.4, "linear": None}, "chosen": "factors", **metric}
    found = choice_of({"choice": choice})
    assert found == {"chosen": "factors", "compared_by": told, "with_factors": worth, "without_factors": None}
    assert choice_of({}) == {}


def test_where_pairs_decide_the_model_is_that_of_the_job_without_a_choice(client: Client, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log")
    best = jobs.train(tables_of(log, tmp_path / "best") | {"model": BEST}, client)
    given = jobs.train(tables_of(log, tmp_path / "given"), client)
    assert best.model.metadata["choice"]["chosen"] == "factors"
    assert best.parameters_sha256 == given.parameters_sha256
    assert "choice" not in given.model.metadata


def test_any_cluster_chooses_the_same(
    chosen: tuple[Any, Events], linear_log: Path, two_workers: Client, tmp_path: Path
) -> None:
    assert trained(linear_log, tmp_path, two_workers).parameters_sha256 == chosen[0].parameters_sha256


def test_stopped_while_the_rival_trains_it_goes_on_to_the_same_choice(
    chosen: tuple[Any, Events], linear_log: Path, client: Client, tmp_path: Path
) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event.get("stage") == "linear":
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        trained(linear_log, tmp_path, client, stop)
    told: Events = []
    result = trained(linear_log, tmp_path, client, told.append)
    assert result.parameters_sha256 == chosen[0].parameters_sha256
    assert [event for event in told if event["event"] == "resumed"]
    assert not [event for event in told if event["event"] == "epoch"]


def test_ctrl_c_in_the_rival_publishes_the_model_that_is_there(
    linear_log: Path, client: Client, tmp_path: Path
) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event.get("stage") == "linear":
            raise KeyboardInterrupt

    result = trained(linear_log, tmp_path, client, interrupt)
    assert result.interrupted
    assert result.model.vocabulary.n_factored > 0
    assert "choice" not in result.model.metadata


def test_a_choice_that_nothing_can_make_is_refused(linear_log: Path, client: Client, tmp_path: Path) -> None:
    tables = tables_of(linear_log, tmp_path, data={"validation_fraction": 0}) | {"model": BEST}
    with pytest.raises(SettingsError, match=r'model\.choose = "best" needs rows to validate on'):
        jobs.train(tables, client)
    with pytest.raises(SettingsError, match=r"with model\.n_factors = 0 it is one"):
        trained(linear_log, tmp_path, client, n_factors=0)
