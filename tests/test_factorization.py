"""Factors of matrices with missing entries."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import dfm
from dfm.errors import DataError, SettingsError
from dfm.factorization import matrix_factorization

RNG = np.random.default_rng(3)
LOW_RANK = RNG.normal(size=(200, 4)) @ RNG.normal(size=(4, 150))
HIDDEN = RNG.random(LOW_RANK.shape) < 0.6
OBSERVED = np.where(HIDDEN, np.nan, LOW_RANK)


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_a_planted_matrix_is_recovered_with_six_in_ten_entries_missing(mean):
    result = matrix_factorization(OBSERVED + mean, 5 if mean else 4)
    assert result.P.shape[0] == 200
    assert result.Q.shape[1] == 150
    assert relative_error(result.complete()[HIDDEN], LOW_RANK[HIDDEN] + mean) < 1e-3


def test_without_biases_there_are_none():
    result = matrix_factorization(OBSERVED + 1.0, 3, n_epochs=3)
    assert result.bias == 0.0
    assert not result.row_biases.any()
    assert not result.column_biases.any()
    np.testing.assert_allclose(result.complete(), result.P.astype(float) @ result.Q, atol=1e-5)


def test_biases_explain_what_is_no_product():
    rows, columns = RNG.normal(size=80), RNG.normal(size=60)
    sums = 1000 + 50 * (rows[:, None] + columns[None, :])
    seen = np.where(RNG.random(sums.shape) < 0.4, np.nan, sums)
    result = matrix_factorization(seen, 1, biases=True, l2=0.01)
    assert relative_error(result.complete(), sums) < 1e-3
    assert np.corrcoef(result.row_biases, rows)[0, 1] > 0.99


def test_masks_gaps_and_stored_entries_say_the_same():
    by_gaps = matrix_factorization(OBSERVED, 2, n_epochs=2)
    by_mask = matrix_factorization(np.ma.array(LOW_RANK, mask=HIDDEN), 2, n_epochs=2)
    there = np.nonzero(~HIDDEN)
    stored = scipy.sparse.coo_array((LOW_RANK[there], there), LOW_RANK.shape)
    by_entries = matrix_factorization(stored, 2, n_epochs=2)
    assert by_gaps.P.tobytes() == by_mask.P.tobytes() == by_entries.P.tobytes()


def test_a_stored_zero_is_observed():
    zeros = scipy.sparse.coo_array((np.array([0.0, 2.0, 2.0]), ([0, 0, 1], [0, 1, 0])), (2, 2))
    result = matrix_factorization(zeros, 2, n_epochs=500, tol=0)
    np.testing.assert_allclose(result.predict(np.array([0, 0]), np.array([0, 1])), [0.0, 2.0], atol=0.1)


def test_single_entries_are_those_of_the_whole():
    result = matrix_factorization(OBSERVED, 2, biases=True, n_epochs=2)
    rows, columns = np.array([3, 199]), np.array([0, 149])
    np.testing.assert_allclose(result.predict(rows, columns), result.complete()[rows, columns], rtol=1e-6)


def test_replicas_recover_the_matrix_too():
    result = matrix_factorization(OBSERVED, 4, n_replicas=2)
    assert relative_error(result.complete()[HIDDEN], LOW_RANK[HIDDEN]) < 1e-2


def test_history_is_in_the_unit_of_the_matrix():
    small, large = (matrix_factorization(scale * OBSERVED, 4, n_epochs=3) for scale in (1.0, 1000.0))
    ratio = large.history[-1]["train_rmse"] / small.history[-1]["train_rmse"]
    assert ratio == pytest.approx(1000.0, rel=1e-3)


def test_what_cannot_be_factorized_is_refused():
    with pytest.raises(DataError, match="no observed entry"):
        matrix_factorization(np.full((3, 3), np.nan), 2)
    with pytest.raises(DataError, match="infinity"):
        matrix_factorization(np.array([[1.0, np.inf]]), 1)
    with pytest.raises(DataError, match="expected a matrix"):
        matrix_factorization(np.ones(4), 1)
    with pytest.raises(SettingsError, match="n_factors = 0"):
        matrix_factorization(np.ones((2, 2)), 0)
    with pytest.raises(SettingsError, match="cannot leave biases out"):
        matrix_factorization(np.ones((2, 2)), 1, optimizer="ftrl")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"n_replicas": 0}, r"^n_replicas = 0 is not legal: expected an integer from 1 to 4096\. .* default, 1\.$"),
        ({"l2": -1.0}, r"^l2 = -1\.0 is not legal: expected a number, 0 or more\. .* default, 0\.0\.$"),
        (
            {"l2_biases": "auto"},
            r"^l2_biases = \"auto\" is not legal: expected a number, 0 or more\. .* default, 0\.0\.$",
        ),
        (
            {"learning_rate": "auto"},
            r"^learning_rate = \"auto\" is not legal: expected a number above 0\. .* default, 0\.5\.$",
        ),
        ({"backend": "gpu"}, r"^backend = \"gpu\" is not legal: .* default, \"numba\"\.$"),
    ],
)
def test_what_is_out_of_range_is_told_by_its_own_name_and_default(given, told):
    with pytest.raises(SettingsError, match=told):
        matrix_factorization(np.ones((3, 3)), 1, **given)


def test_infinity_is_no_gap_where_there_are_gaps():
    with pytest.raises(DataError, match="infinity"):
        matrix_factorization(np.array([[1.0, np.inf], [np.nan, 2.0]]), 1)


def test_it_is_one_of_the_names_of_the_package():
    assert dfm.matrix_factorization is matrix_factorization


@pytest.mark.parametrize("schedule", ["auto", "plateau"])
def test_a_schedule_that_validates_is_refused(schedule):
    with pytest.raises(SettingsError, match=f'schedule = "{schedule}" needs entries to validate on'):
        matrix_factorization(np.ones((3, 3)), 1, schedule=schedule)
