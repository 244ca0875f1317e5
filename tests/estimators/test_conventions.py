"""Estimators keep scikit-learn's conventions and work inside its tools."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import VotingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dfm.estimators import FMClassifier, FMRanker, FMRegressor, LinearClassifier, LinearRegressor

WEIGHTS = (
    "rows are learnt from one after the other: a row of weight 2 is one step of twice the size, the same row twice is "
    "two steps, the second from where the first one led (scikit-learn's own SGD estimators are excepted likewise)"
)
WEIGHTS_OF_EXACT = {
    "als": (
        "weights count relative to their mean, and penalties beside the sum over rows: the same rows twice are more "
        "rows against one penalty (in proportion they are the same fit: tests/estimators/test_exact_solvers.py)"
    ),
    "mcmc": "a fit is made of draws, and rows that stand twice are more rows, which draw more labels",
}


def expected_failures(estimator: Any) -> dict[str, str]:
    """Every check of scikit-learn that fails, and why."""
    reason = WEIGHTS_OF_EXACT.get(getattr(estimator, "solver", ""), WEIGHTS)
    return {f"check_sample_weight_equivalence_on_{kind}_data": reason for kind in ("dense", "sparse")}


@parametrize_with_checks(
    [
        *(FMClassifier(), FMRegressor(), LinearClassifier(), LinearRegressor(), FMRanker(n_epochs=20)),
        *(FMClassifier(solver="mcmc", n_factors=2, n_epochs=8), FMRegressor(solver="als", n_factors=2, n_epochs=8)),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_finds_nothing_else_to_complain_of(estimator: Any, check: Any):
    check(estimator)


@pytest.fixture(scope="module")
def tumours() -> tuple[np.ndarray, np.ndarray]:
    return load_breast_cancer(return_X_y=True)


def test_raw_columns_of_any_unit_are_learnt_as_well_as_by_logistic_regression(tumours):
    assert cross_val_score(FMClassifier(), *tumours).mean() > 0.965
    assert cross_val_score(LinearClassifier(), *tumours).mean() > 0.965
    assert cross_val_score(FMRegressor(), *load_diabetes(return_X_y=True)).mean() > 0.45


def test_they_work_in_a_pipeline_and_a_grid_search(tumours):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), FMClassifier(n_epochs=20)), {"fmclassifier__n_factors": [0, 4]}, cv=3
    )
    search.fit(*tumours)
    assert search.best_score_ > 0.95
    assert search.predict_proba(tumours[0]).shape == (569, 2)


def test_text_goes_through_a_vectorizer():
    texts = ["free prize call now", "win cash now", "see you at home", "are you home"] * 10
    model = make_pipeline(TfidfVectorizer(), FMClassifier(n_factors=4)).fit(texts, [1, 1, 0, 0] * 10)
    assert model.predict(["call now for cash", "at home"]).tolist() == [1, 0]


def test_their_probabilities_can_be_calibrated_and_put_to_the_vote(tumours):
    calibrated = CalibratedClassifierCV(FMClassifier(loss="hinge", n_epochs=20), cv=3).fit(*tumours)
    assert calibrated.predict_proba(tumours[0])[:, 1].mean() == pytest.approx(tumours[1].mean(), abs=0.05)
    votes = VotingClassifier([("fm", FMClassifier(n_epochs=5)), ("linear", LinearClassifier())], voting="soft")
    assert votes.fit(*tumours).score(*tumours) > 0.95


def test_one_against_the_rest_may_also_be_left_to_scikit_learn():
    features, species = load_iris(return_X_y=True)
    ours = FMClassifier(n_epochs=30).fit(features, species)
    theirs = OneVsRestClassifier(FMClassifier(n_epochs=30)).fit(features, species)
    np.testing.assert_array_equal(ours.decision_function(features), theirs.decision_function(features))


def test_a_clone_is_not_fitted_and_a_pickle_predicts_the_same(tumours):
    fitted = FMClassifier(n_epochs=3, n_factors=2).fit(*tumours)
    assert clone(fitted).get_params() == fitted.get_params()
    with pytest.raises(AttributeError, match="not fitted yet"):
        clone(fitted).coef_  # noqa: B018 (the access itself is the test)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.decision_function(tumours[0]), fitted.decision_function(tumours[0]))
    again.set_params(warm_start=True).fit(*tumours)
    assert again.n_iter_ == 6


def test_the_same_fit_gives_the_same_bytes(tumours):
    first, second = (FMClassifier(n_epochs=3, random_state=7).fit(*tumours) for _ in range(2))
    assert first.factors_.tobytes() == second.factors_.tobytes()
    other = FMClassifier(n_epochs=3, random_state=8).fit(*tumours)
    assert other.factors_.tobytes() != first.factors_.tobytes()
