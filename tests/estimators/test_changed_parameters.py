"""Parameters that are set after a fit wait for the next one: until then nothing that is fitted changes."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone

from dfm.errors import SettingsError
from dfm.estimators import FMClassifier, FMRanker, FMRegressor, LinearClassifier

RNG = np.random.default_rng(6)
ROWS = {"site": RNG.choice(["a", "b", "c"], 300).tolist(), "price": RNG.normal(size=300).tolist()}
NUMBERS = np.exp(np.array(ROWS["price"]) + (np.array(ROWS["site"]) == "a"))
CLICKED = NUMBERS > 1.5
CHANGES: dict[str, dict[str, Any]] = {
    "loss": {"loss": "poisson"},
    "a function": {"loss": lambda score, y: (score - y) ** 4},
    "its parameter": {"loss": "huber", "loss_parameter": 2.0},
    "family": {"family": "ffm"},
    "groups": {"family": "ffm", "groups": [["site"], ["price"]]},
    "order": {"family": "hofm", "order": 3},
    "n_factors": {"n_factors": 3},
    "optimizer": {"optimizer": "ftrl"},
    "solver": {"solver": "mcmc"},
    "columns": {"categorical": ["price"], "hash_bits": 12},
    "nonsense": {"loss": "nonsense", "family": "none", "optimizer": "none"},
}


def fitted(kind: Any = FMRegressor, y: Any = NUMBERS, **given: Any) -> Any:
    return kind(n_factors=2, n_epochs=3, early_stopping=False, **given).fit(ROWS, y)


def told(model: Any) -> Any:
    """All that comes out of a fit."""
    served = model.model_
    return (
        *(model.predict(ROWS).tolist(), served.predict(ROWS).tolist(), served.loss, served.metadata),
        *(model.get_feature_names_out(ROWS).tolist(), hasattr(model, "predict_interval")),
    )


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_fitted_stays_as_it_is_until_the_next_fit(change: str) -> None:
    model = fitted()
    before = told(model)
    model.set_params(**CHANGES[change])
    assert told(model) == before
    if change != "a function":  # of this module's dict, which no pickle can name
        assert told(pickle.loads(pickle.dumps(model))) == before
    assert clone(model).get_params() == model.get_params()


def test_the_next_fit_takes_the_new_parameters() -> None:
    model = fitted().set_params(loss="poisson", family="ffm").fit(ROWS, NUMBERS)
    assert told(model)[:3] == told(fitted(loss="poisson", family="ffm"))[:3]
    assert model.model_.metadata["settings"]["estimator"]["loss"] == "poisson"


def test_margins_do_not_become_probabilities_by_a_name() -> None:
    model = fitted(FMClassifier, CLICKED, loss="hinge").set_params(loss="logistic")
    assert not hasattr(model, "predict_proba")
    assert model.model_.loss.name == "hinge"
    assert hasattr(model.fit(ROWS, CLICKED), "predict_proba")
    assert hasattr(model.set_params(loss="hinge"), "predict_proba")
    assert not hasattr(clone(model), "predict_proba"), "of what was never fitted, the parameters say it"


def test_draws_are_those_of_the_fit() -> None:
    model = fitted(solver="mcmc").set_params(solver="sgd")
    assert model.predict_interval(ROWS).shape == (300, 2)
    assert not hasattr(model.fit(ROWS, NUMBERS).set_params(solver="mcmc"), "predict_interval")


def test_a_ranker_and_a_function_keep_their_loss() -> None:
    ranker = fitted(FMRanker, CLICKED).set_params(loss="logistic")
    assert ranker.model_.loss.name == "bpr"
    own = fitted(loss=lambda score, y: (score - y) ** 4)
    sha256 = own.model_.loss.sha256
    assert sha256
    assert own.set_params(loss="squared").model_.loss.sha256 == sha256
    assert pickle.loads(pickle.dumps(own)).predict(ROWS).tolist() == own.predict(ROWS).tolist()


def test_predictions_of_a_collection_are_those_of_the_fit_too() -> None:
    pd, dd = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
    model = fitted(loss="poisson")
    expected = model.predict(ROWS)
    model.set_params(loss="squared", family="ffm")
    lazily = model.predict(dd.from_pandas(pd.DataFrame(ROWS), npartitions=2))
    np.testing.assert_array_equal(lazily.compute(scheduler="sync"), expected)


@pytest.mark.parametrize("way", ["partial_fit", "fit"])
@pytest.mark.parametrize("is_table", [True, False])
def test_training_does_not_go_on_with_a_loss_by_which_scores_mean_something_else(way: str, is_table: bool) -> None:
    X = ROWS if is_table else np.array(ROWS["price"])[:, None]
    model = FMRegressor(n_factors=2, n_epochs=2, warm_start=True, early_stopping=False).fit(X, NUMBERS)
    before = model.predict(X).tolist()
    refused = r'from a model of loss "squared" with loss "huber" of loss_parameter 2, .*: keep loss and loss_parameter'
    with pytest.raises(SettingsError, match=refused):
        getattr(model.set_params(loss="huber", loss_parameter=2.0), way)(X, NUMBERS)
    assert model.predict(X).tolist() == before
    getattr(model.set_params(loss="auto", loss_parameter=None), way)(X, NUMBERS)
    assert model.n_iter_ > 2


def test_training_does_not_go_on_with_another_function_or_family() -> None:
    model = LinearClassifier(loss=lambda score, y: (score - y) ** 2).partial_fit(ROWS, CLICKED)
    model.set_params(loss=lambda score, y: (score - y) ** 2).partial_fit(ROWS, CLICKED)  # the same code
    with pytest.raises(SettingsError, match=r'loss "<lambda>" \(sha256 \w{8}\) with loss "<lambda>" \(sha256 \w{8}\)'):
        model.set_params(loss=lambda score, y: (score - y) ** 4).partial_fit(ROWS, CLICKED)
    with pytest.raises(SettingsError, match="keep family, n_factors and optimizer"):
        fitted().set_params(family="ffm").partial_fit(ROWS, NUMBERS)


@pytest.mark.parametrize("way", ["partial_fit", "fit"])
def test_training_goes_on_with_the_class_weights_that_are_set_now(way: str) -> None:
    def share(first: Any, later: Any) -> float:
        model = LinearClassifier(n_epochs=2, warm_start=True, early_stopping=False, class_weight=first)
        getattr(model, way)(ROWS, CLICKED)
        model.set_params(class_weight=later)
        for _ in range(5):
            getattr(model, way)(ROWS, CLICKED)
        return float(model.predict_proba(ROWS)[:, 1].mean())

    towards_clicks = {False: 1, True: 20}
    assert share(None, towards_clicks) > share(None, None) + 0.2
    assert share(towards_clicks, None) < share(towards_clicks, towards_clicks) - 0.1
    with pytest.raises(ValueError, match="class_weight names 7, which is none of the classes"):
        share(None, {7: 1})


def test_a_pickle_that_does_not_say_it_was_made_with_the_parameters_it_has() -> None:
    model = fitted(loss="poisson")
    before = told(model)
    del model._as_fitted  # as dfm 0.2.0 pickled it
    again = pickle.loads(pickle.dumps(model))
    assert told(again) == before
    assert told(again.set_params(loss="squared")) == before
