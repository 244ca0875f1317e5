"""Seven ratings are learnt, and shown by name."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from pipelines.rendle_toy import run


def test_the_seven_ratings_are_learnt():
    machine, names, stars, predicted = run.train(n_epochs=200)
    assert np.mean((predicted - stars) ** 2) < 0.05
    assert len(names) == len(machine.coef_) == len(machine.factors_) == 15


def test_a_row_has_the_features_of_the_paper():
    assert run.row("Alice", "NH", 14, "TI") == {
        "user Alice": 1.0,
        "movie Notting Hill": 1.0,
        "time": 14 / 12,
        "rated Titanic": 1 / 3,
        "rated Notting Hill": 1 / 3,
        "rated Star Wars": 1 / 3,
        "last Titanic": 1.0,
    }
    assert not any(name.startswith("last") for name in run.row("Bob", "SW", 5, ""))


def test_the_command_shows_every_weight_by_name_and_saves_the_plot(tmp_path):
    done = CliRunner().invoke(run.main, ["--epochs", "5", "--output", str(tmp_path)], catch_exceptions=False)
    for name in ("user Charlie", "movie Star Trek", "rated Titanic", "last Notting Hill", "time"):
        assert f"\n{name} " in done.output
    assert (tmp_path / "rendle_toy.png").stat().st_size > 10_000
