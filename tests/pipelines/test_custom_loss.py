"""The changed click loss means what it says, and trains on the demo's shards."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from click.testing import CliRunner

from tests.support.small_jobs import in_process_client

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from pipelines.custom_loss import run


def test_a_missed_click_costs_four_times_a_false_alarm():
    for score in (-2.0, 0.0, 0.7):
        assert run.missed_clicks_cost_more(score, 1.0) == pytest.approx(4 * run.missed_clicks_cost_more(-score, 0.0))
    assert run.missed_clicks_cost_more(0.0, 0.0) == pytest.approx(math.log(2))


def test_odds_divided_by_the_cost_are_the_probability_behind_the_best_answer():
    p = np.array([0.1, 0.25, 0.6])
    best = 4 * p / (4 * p + 1 - p)  # minimises 4 p log(1 + exp(-s)) + (1 - p) log(1 + exp(s)), by 1 / (1 + exp(-s))
    np.testing.assert_allclose(run.recalibrated(best), p)


def test_the_cost_counts_missed_clicks_fourfold():
    found = run.measures(np.array([0.9, 0.2, 0.8, 0.1]), np.array([1.0, 1.0, 0.0, 0.0]))
    assert found["cost"] == pytest.approx((4 + 1) / 4)
    assert found["recall"] == found["precision"] == 0.5


def test_the_changed_loss_finds_more_clicks_at_a_smaller_cost(tmp_path, monkeypatch):
    arguments = ["--rows", "16000", "--epochs", "2", "--output", str(tmp_path)]
    with in_process_client(1) as client:
        monkeypatch.setattr(run, "answers", functools.partial(run.answers, client=client))
        done = CliRunner().invoke(run.main, arguments, catch_exceptions=False)
    rows = {line[:29].strip(): [float(cell) for cell in line[29:].split()] for line in done.stdout.splitlines()[2:5]}
    recall, _, cost, mean = rows["log loss"][:4]
    own_recall, _, own_cost, own_mean = rows["missed clicks cost more"][:4]
    assert own_recall > recall + 0.2
    assert own_cost < cost
    assert own_mean > mean + 0.1
    assert (tmp_path / "custom_loss.png").stat().st_size > 10_000
