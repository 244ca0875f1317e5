"""solver = "als" and "mcmc" of the estimators."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn", minversion="1.6")

import scipy.sparse
from distributed import Client
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.model_selection import cross_val_score, train_test_split

from dfm.errors import SettingsError
from dfm.estimators import FMClassifier, FMRegressor, LinearRegressor, recipes
from dfm.settings.job import Job
from tests.support.small_jobs import in_process_client

ROWS, PROGRESSION = load_diabetes(return_X_y=True)


def ratings(n_rows: int, seed: int = 0) -> tuple[dict[str, list[str]], np.ndarray]:
    """Rows of two categories with effects, and pairs of them with more."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(9)
    users, films = rng.integers(0, 40, n_rows), rng.integers(0, 30, n_rows)
    w, v = truth.normal(size=(2, 40)), truth.normal(size=(2, 40, 2))
    score = w[0, users] + w[1, films] + (v[0, users] * v[1, films]).sum(axis=1)
    columns = {"user": [f"u{each}" for each in users], "film": [f"f{each}" for each in films]}
    return columns, 2 * score + 20 + 0.5 * rng.normal(size=n_rows)


@pytest.fixture(scope="module")
def sampled() -> FMRegressor:
    return FMRegressor(solver="mcmc", n_factors=2, n_epochs=60, draws=24).fit(*ratings(3000))


def test_sampling_finds_the_noise_and_needs_no_penalty(sampled: FMRegressor):
    rows, labels = ratings(1000, seed=1)
    assert np.sqrt(np.mean((sampled.predict(rows) - labels) ** 2)) < 0.6, "0.5 of it is noise"
    model = sampled.model_
    assert model.draws is not None
    np.testing.assert_allclose(model.draws.noise, 0.5, atol=0.1)
    np.testing.assert_allclose(model.predict(rows), sampled.predict(rows), rtol=1e-5)


def test_intervals_hold_as_many_new_labels_as_they_say(sampled: FMRegressor):
    rows, labels = ratings(2000, seed=2)
    for coverage in (0.5, 0.9):
        bounds = sampled.predict_interval(rows, coverage)
        assert np.mean((bounds[:, 0] <= labels) & (labels <= bounds[:, 1])) == pytest.approx(coverage, abs=0.04)
    with pytest.raises(SettingsError, match=r"coverage = 0 .*between 0 and 1"):
        sampled.predict_interval(rows, 0)
    assert not hasattr(FMRegressor(), "predict_interval")


def test_least_squares_of_rows_that_stand_twice_is_that_of_weights_with_penalties_in_proportion():
    rng = np.random.default_rng(0)
    X, weights = rng.normal(size=(45, 5)), rng.integers(0, 5, 45)
    y = X @ rng.normal(size=5) + X[:, 0] * X[:, 1] + rng.normal(size=45)

    def predictions(rows: Any, labels: Any, share: float, sample_weight: Any = None) -> np.ndarray:
        fit = FMRegressor(
            n_factors=2, solver="als", n_epochs=8, standardize=False, l2_linear=5 * share, l2_factors=10 * share,
            init_stdev=0.1,
            random_state=0,
        )  # fmt: skip
        return fit.fit(rows, labels, sample_weight=sample_weight).predict(X)

    weighted = predictions(X, y, 1.0, weights)
    repeated = np.repeat(X, weights, axis=0), np.repeat(y, weights)
    mean = weights.sum() / np.count_nonzero(weights)  # a row of weight 0 stands nowhere
    np.testing.assert_allclose(predictions(*repeated, mean), weighted, atol=1e-5)
    assert np.abs(predictions(*repeated, 1.0) - weighted).max() > 0.1


def test_a_fit_travels_and_gives_the_same_bytes_again(sampled: FMRegressor):
    rows, labels = ratings(3000)
    other = FMRegressor(solver="mcmc", n_factors=2, n_epochs=60, draws=24).fit(rows, labels)
    assert other.factors_.tobytes() == sampled.factors_.tobytes()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(sampled)).predict(rows), sampled.predict(rows))


def test_matrices_are_fitted_as_well_as_by_steps():
    for solver in ("als", "mcmc"):
        assert cross_val_score(FMRegressor(solver=solver, n_factors=2), ROWS, PROGRESSION).mean() > 0.45
    assert LinearRegressor(solver="als", l2_linear=1e-3).fit(ROWS, PROGRESSION).score(ROWS, PROGRESSION) > 0.51


def test_a_sparse_matrix_of_categories_is_as_a_table_of_them():
    rows, labels = ratings(1000)
    codes = np.array([[int(text[1:]) for text in rows[name]] for name in ("user", "film")])
    columns = np.stack([codes[0], 40 + codes[1]], axis=1).ravel()
    X = scipy.sparse.csr_matrix((np.ones(2000), columns, np.arange(0, 2001, 2)), shape=(1000, 70))
    fitted = FMRegressor(solver="mcmc", n_factors=2, n_epochs=40).fit(X, labels)
    assert fitted.score(X, labels) > 0.9


def test_classes_are_told_apart_and_their_probabilities_are_honest():
    X, y = load_breast_cancer(return_X_y=True)
    parts = train_test_split(X, y, random_state=0)
    for solver in ("als", "mcmc"):
        fitted = FMClassifier(solver=solver, n_factors=2, n_epochs=30).fit(parts[0], parts[2])
        assert fitted.score(parts[1], parts[3]) > 0.93
        p = fitted.predict_proba(parts[1])[:, 1]
        np.testing.assert_allclose(fitted.model_.predict(parts[1].astype(np.float32)), p, atol=1e-3)
    X, y = load_iris(return_X_y=True)
    assert FMClassifier(solver="mcmc", n_factors=2, n_epochs=20).fit(X, y).score(X, y) > 0.93


def people() -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """Numbers of any size, which a sparse matrix leaves as they are, and labels that follow one of them."""
    rng = np.random.default_rng(0)
    age, weight = np.round(40 + 12 * rng.normal(size=1_000)), np.round(100 + 30 * rng.normal(size=1_000))
    spend = np.round(np.exp(6 + rng.normal(size=1_000)))
    return scipy.sparse.csr_matrix(np.c_[age, weight, spend]), (age - 40) / 12 + 0.5 * rng.normal(size=1_000)


@pytest.mark.parametrize("solver", ["als", "mcmc"])
def test_numbers_that_are_not_standardized_are_learnt_from(solver: str, caplog: pytest.LogCaptureFixture):
    """Scores of thousands at the start are not unlearnt: factors begin smaller where x is larger."""
    X, y = people()
    assert FMRegressor(solver=solver, n_factors=2, n_epochs=30).fit(X, y).score(X, y) > 0.7
    assert "worse than" not in caplog.text


@pytest.mark.parametrize("solver", ["als", "mcmc"])
def test_a_fit_that_is_worse_than_a_constant_is_told(solver: str, caplog: pytest.LogCaptureFixture):
    X, y = people()
    assert FMRegressor(solver=solver, n_factors=2, n_epochs=5, init_stdev=0.3).fit(X, y).score(X, y) < -1
    assert "worse than always answering the mean label (r2 -" in caplog.text
    assert "or try a smaller init_stdev" in caplog.text


@pytest.mark.parametrize("machine", [FMRegressor, FMClassifier])
def test_rows_of_weight_zero_are_no_evidence(machine: Any):
    rng = np.random.default_rng(0)
    X, some = rng.integers(0, 2, (1_000, 8)).astype(float), slice(0, 100)
    score = X @ rng.normal(size=8) + rng.normal(size=1_000)
    y, weights = score if machine is FMRegressor else score > score.mean(), np.zeros(1_000)
    weights[some] = 1.0
    given = {"solver": "als", "n_factors": 2, "n_epochs": 10, "standardize": False, "early_stopping": False}
    alone = machine(**given).fit(X[some], y[some])
    among = machine(**given).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(among.coef_, alone.coef_, atol=1e-4)


def test_rows_of_weight_zero_leave_penalties_and_priors_as_they_are(monkeypatch: pytest.MonkeyPatch):
    """Their features are counted, and so are they, where shares of rows are made of these counts."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"c{number}": rng.integers(0, 5, 300).astype(str) for number in range(10)})
    y, crowds, crowd_of = rng.random(300) < 0.5, [], recipes.crowd_of
    monkeypatch.setattr(recipes, "crowd_of", lambda *told: crowds.append(crowd_of(*told)) or crowds[-1])
    machine = FMClassifier(solver="als", n_factors=2, n_epochs=1, early_stopping=False)
    machine.fit(frame, y)
    machine.fit(pd.concat([frame] * 10), np.tile(y, 10), sample_weight=np.arange(3_000) < 300)
    assert crowds[0] == pytest.approx(8.0, rel=0.01)
    assert crowds[1] == pytest.approx(crowds[0])


def test_class_weights_of_zero_leave_the_mean_weight_to_the_other_rows():
    y, weights = np.repeat([0, 1, 2], 4), np.tile([2.0, 0.0, 4.0, 3.0], 3)
    fitted = FMClassifier(class_weight={0: 0.0}, n_epochs=1).fit(np.eye(12), y, sample_weight=weights)
    assert fitted._encoding.mean_weight == 3.0


def test_a_row_of_weight_two_counts_as_two_rows():
    rng = np.random.default_rng(0)
    X, weights = rng.normal(size=(120, 3)), rng.integers(1, 4, 120)
    y = X @ [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=120)
    twice = np.repeat(np.arange(120), weights)
    given = {
        "solver": "als",
        "n_factors": 1,
        "n_epochs": 20,
        "standardize": False,
        "l2_linear": 1e-3,
        "l2_factors": 1e-3,
    }
    weighted, repeated = FMRegressor(**given), FMRegressor(**given)
    weighted.fit(X, y, sample_weight=weights)
    repeated.fit(X[twice], y[twice])
    # But for the penalty: weights are relative to their mean, rows are not.
    assert np.abs(weighted.predict(X) - repeated.predict(X)).max() < 0.005 * y.std()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"family": "fwfm"}, r"family = 'fwfm' does not go with solver = 'mcmc'"),
        ({"loss": "huber"}, r"loss = 'huber' does not go with solver = 'mcmc', which takes 'squared'"),
        ({"regularizer": abs}, r"regularizer = .* does not go with"),
        ({"warm_start": True}, r"warm_start = True goes on from an earlier fit"),
        ({"learning_rate": 0.1}, r"training\.learning_rate = 0\.1 needs training\.solver"),
        ({"l2_factors": 0.1}, r"training\.l2_factors = 0\.1 needs training\.solver"),
    ],
)
def test_parameters_that_it_does_not_read_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        FMRegressor(**{"solver": "mcmc", **given}).fit(ROWS, PROGRESSION)


def test_it_learns_from_all_rows_at_once():
    assert not hasattr(FMRegressor(solver="als"), "partial_fit")
    assert hasattr(FMRegressor(), "partial_fit")


def test_a_cluster_gives_the_bytes_of_this_process_and_a_job_has_the_parameters():
    rows, labels = ratings(600)
    given = {"solver": "mcmc", "n_factors": 2, "n_epochs": 6, "draws": 3, "n_replicas": 3}
    here = FMRegressor(**given).fit(rows, labels)
    with in_process_client(2) as client:
        assert isinstance(client, Client)
        there = FMRegressor(**given).fit(rows, labels, client=client)
    assert here.factors_.tobytes() == there.factors_.tobytes()
    job = Job.from_dict(FMRegressor(**given).job("clicks/*.parquet", "y", "out"))
    assert (job.training.solver, job.training.draws, job.training.n_epochs) == ("mcmc", 3, 6)
