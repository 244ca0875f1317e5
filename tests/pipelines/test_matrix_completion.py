"""The loop is gradient descent on the stated objective; dfm comes to its error in far less time."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("matplotlib")

from pipelines.matrix_completion import run


def test_the_loop_learns_the_known_entries_of_the_tutorials_table():
    D = np.where(run.STARS > 0, run.STARS, np.nan)
    loop = run.gradient_descent(D, 2, steps=2000, seed=1)
    assert run.rmse(loop.product, D) < 0.3
    assert [error for _, error in loop.curve] == sorted((error for _, error in loop.curve), reverse=True)


def test_dfm_is_as_good_as_the_loop_in_a_small_part_of_its_time():
    _, D = run.planted(15, 12, rank=3, share=0.5, seed=0)
    loop = run.gradient_descent(D, 3, steps=1000, seed=1)
    machine = run.as_good(D, 3, run.rmse(loop.product, D))
    assert run.rmse(machine.product, D) <= run.rmse(loop.product, D)
    assert machine.seconds < 0.1 * loop.seconds  # 0.003 where nothing else runs


def test_most_of_a_planted_matrix_is_missing():
    whole, part = run.planted(60, 50, rank=3, share=0.4, seed=0)
    known = ~np.isnan(part)
    assert known.mean() == pytest.approx(0.4, abs=0.03)
    np.testing.assert_array_equal(part[known], whole[known])
    assert np.linalg.matrix_rank(whole) == 3


def test_the_command_prints_errors_and_times_and_saves_the_plot(tmp_path):
    arguments = ["--steps", "100", "--size", "8", "6", "--output", str(tmp_path)]
    done = CliRunner().invoke(run.main, arguments, catch_exceptions=False)
    assert done.output.count("gradient descent in a loop") == done.output.count("dfm, 100 epochs") == 2
    assert (tmp_path / "matrix_completion.png").stat().st_size > 10_000
