"""What a run finds by itself: the same on any cluster, after a stop, and for the model that goes on from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed import checkpointing, tuning
from dfm.errors import RunCancelled
from dfm.training import pilot
from tests.distributed.test_held_out import tables_of, write_log
from tests.support.small_jobs import in_process_client

Events = list[dict[str, Any]]


CHOSEN = "cautious"
"""The better challenger on this log."""


@pytest.fixture(scope="module", autouse=True)
def any_challenger() -> Iterator[None]:
    """The better challenger wins, however it compares with the default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pilot, "MARGIN", -1.0)
        yield


def pilot_of(told: Events) -> dict[str, Any]:
    (event,) = [event for event in told if event["event"] == "pilot"]
    return event


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clicks that only pairs explain."""
    return write_log(tmp_path_factory.mktemp("pairs") / "log")


@pytest.fixture(scope="module")
def trained(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Events]:
    told: Events = []
    return jobs.train(tables_of(log, tmp_path_factory.mktemp("one")), client, on_event=told.append), told


def test_settings_and_choice_are_told_and_kept_with_the_model(trained: tuple[Any, Events]) -> None:
    result, told = trained
    (settings,) = [event for event in told if event["event"] == "settings"]
    assert (settings["mean_squares"], settings["learning_rate"]) == (2.0, pytest.approx(0.8))
    event = pilot_of(told)
    assert event["losses"].keys() == {"default", "cautious", "bold"}
    assert event["chosen"] == CHOSEN
    automatic = result.model.metadata["automatic"]
    assert (automatic["chosen"], automatic["pilot"]) == (CHOSEN, event["losses"])
    assert (automatic["learning_rate"], automatic["factor_rate_scale"]) == (pytest.approx(0.4), 0.3)


def test_the_choice_and_the_bytes_are_those_of_any_cluster(
    trained: tuple[Any, Events], log: Path, two_workers: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, told = trained
    others: Events = []
    with in_process_client(5) as five:
        result = jobs.train(tables_of(log, tmp_path / "five"), five, on_event=others.append)
    assert pilot_of(others) == pilot_of(told)
    assert result.parameters_sha256 == expected.parameters_sha256
    monkeypatch.setattr(tuning, "least_memory", lambda client: 1)  # no room for candidates beside each other
    narrow = jobs.train(tables_of(log, tmp_path / "narrow"), two_workers)
    assert narrow.parameters_sha256 == expected.parameters_sha256


def test_stopped_after_the_pilot_it_goes_on_with_what_was_chosen(
    trained: tuple[Any, Events], log: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        jobs.train(tables_of(log, tmp_path), client, on_event=stop)
    told: Events = []
    result = jobs.train(tables_of(log, tmp_path), client, on_event=told.append)
    assert "resumed" in {event["event"] for event in told}
    assert "pilot" not in {event["event"] for event in told}
    assert result.parameters_sha256 == trained[0].parameters_sha256
    assert result.model.metadata["automatic"]["chosen"] == CHOSEN


def test_a_model_that_goes_on_from_another_takes_over_its_choice(
    trained: tuple[Any, Events], log: Path, client: Client, tmp_path: Path
) -> None:
    told: Events = []
    tables = tables_of(log, tmp_path, training={"warm_start": trained[0].model_url})
    result = jobs.train(tables, client, on_event=told.append)
    assert "pilot" not in {event["event"] for event in told}
    (settings,) = [event for event in told if event["event"] == "settings"]
    assert settings["learning_rate"] == pytest.approx(0.4)
    assert result.model.metadata["automatic"]["chosen"] == CHOSEN


def test_a_given_rate_has_no_pilot_and_is_used_as_it_is(log: Path, client: Client, tmp_path: Path) -> None:
    told: Events = []
    result = jobs.train(tables_of(log, tmp_path, training={"learning_rate": 0.3}), client, on_event=told.append)
    assert "pilot" not in {event["event"] for event in told}
    assert result.model.metadata["automatic"]["learning_rate"] == 0.3
