"""Categories that come after the first call are learnt, and what was learnt of the others stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.exceptions import NotFittedError

from dfm.errors import DivergenceError, SettingsError
from dfm.estimators import FMClassifier, FMRegressor, LinearClassifier
from dfm.estimators.recipes import RowsToFit
from dfm.kernels.families.registry import FAMILIES
from dfm.training.fitting import initial_table
from tests.support.small_jobs import in_process_client

KINDS = [FMClassifier, FMRegressor]


def rows_of(users: list[str], n_rows: int = 400, seed: int = 0) -> tuple[dict[str, list[str]], np.ndarray]:
    """Rows of some users on two sites; a user of an even number clicks."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(users, n_rows)
    sites = rng.choice(["x", "y"], n_rows)
    return {"user": drawn.tolist(), "site": sites.tolist()}, np.array([int(user[1:]) % 2 == 0 for user in drawn], int)


EARLY, LATE = ["u0", "u1"], ["u2", "u3"]


def parameters(model: Any, token: str) -> np.ndarray:
    """Weight and factors of a user, with optimizer state."""
    rows = model._features.scoring({"user": [token], "site": ["never seen"]})
    table = model._outputs[0].fit.table
    row = int(rows.indices[0])
    return np.concatenate([table.linear[row], table.factors[row] if row < table.n_factored else np.zeros(0)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["partial_fit", "fit"])
@pytest.mark.parametrize("kind", KINDS)
def test_categories_that_come_later_are_learnt(kind: Any, way: str, family: str) -> None:
    model = kind(n_factors=4, n_epochs=15, warm_start=way == "fit", early_stopping=False, family=family)
    for users in (EARLY, LATE):
        for _ in range(15 if way == "partial_fit" else 1):
            getattr(model, way)(*rows_of(users))
    told = model.predict({"user": [*EARLY, *LATE], "site": ["x"] * 4})
    np.testing.assert_allclose(np.round(told), [1, 0, 1, 0])


@pytest.mark.parametrize("optimizer", ["adagrad", "adam", "ftrl"])
def test_what_was_learnt_stays_with_its_optimizer_state_and_newcomers_begin_untrained(optimizer: str) -> None:
    model = FMClassifier(n_factors=4, optimizer=optimizer).fit(*rows_of(EARLY))
    before = {user: parameters(model, user).copy() for user in EARLY}
    source = model._source(*rows_of([*LATE, "u0"]), None, None, True)
    model._learn(source, True, are_all=False)
    for user in EARLY:
        np.testing.assert_array_equal(parameters(model, user), before[user])
    fresh = FMClassifier(n_factors=4, optimizer=optimizer, n_epochs=1).fit(*rows_of(LATE))
    source = fresh._source(*rows_of(LATE), None, None, False)
    summary = fresh._learn(source, False)
    recipe = fresh._recipes(RowsToFit(400, source.entries, False), summary)[0]
    untrained = initial_table(recipe, fresh._features.vocabulary)
    row = int(fresh._features.scoring({"user": ["u2"], "site": ["x"]}).indices[0])
    np.testing.assert_array_equal(parameters(model, "u2"), np.append(untrained.linear[row], untrained.factors[row]))


@pytest.mark.parametrize("min_count", [1, 3])
def test_the_same_calls_give_the_same_bytes_and_one_that_brings_nothing_new_keeps_the_order(min_count: int) -> None:
    def trained() -> Any:
        model = FMClassifier(n_factors=4, min_count=min_count)
        for seed, users in enumerate([EARLY, LATE, ["u3", "u4", "u5"], EARLY]):
            model.partial_fit(*rows_of(users, seed=seed), classes=[0, 1])
        return model

    model, again = trained(), trained()
    assert model.model_.parameters_sha256() == again.model_.parameters_sha256()
    before = model._features
    model.partial_fit(*rows_of(EARLY, 100, seed=9))
    after = model._features
    assert after.vocabulary.ids is before.vocabulary.ids
    assert after.lookup is before.lookup
    assert after.vocabulary.counts.sum() == before.vocabulary.counts.sum() + 200


def test_rare_categories_wait_until_they_were_seen_often_enough_in_all_calls() -> None:
    model = FMClassifier(n_factors=4, min_count=3, min_count_factors=5)
    model.partial_fit(*rows_of(EARLY), classes=[0, 1])

    def is_known(user: str) -> bool:
        unknown = model._features.scoring({"user": ["never seen"], "site": ["x"]}).indices[0]
        return bool(model._features.scoring({"user": [user], "site": ["x"]}).indices[0] != unknown)

    for seen in range(1, 6):
        pooled = model._features.vocabulary.counts[model._features.vocabulary.rare].sum()
        model.partial_fit({"user": ["u7"], "site": ["x"]}, [0])
        vocabulary = model._features.vocabulary
        assert is_known("u7") == (seen >= 3)
        assert vocabulary.counts[vocabulary.rare].sum() == pooled + (seen < 3)
        assert vocabulary.n_factored == len(model._outputs[0].fit.table.factors)
    row = int(model._features.scoring({"user": ["u7"], "site": ["x"]}).indices[0])
    assert (vocabulary.counts[row], row < vocabulary.n_factored) == (5, True)


def test_a_feature_keeps_its_factors_whatever_the_knobs_say_later() -> None:
    model = FMClassifier(n_factors=4).fit(*rows_of(EARLY))
    model.set_params(min_count_factors=10_000, min_count=1).partial_fit(*rows_of(LATE))
    vocabulary = model._features.vocabulary
    assert vocabulary.n_factored == 4
    assert vocabulary.n_features == 6


def test_a_call_that_is_refused_leaves_a_model_that_predicts_as_before() -> None:
    model = FMClassifier(n_factors=4).fit(*rows_of(EARLY))
    before = model.predict_proba(rows_of(EARLY)[0])
    with pytest.raises(SettingsError, match="training cannot go on from a model of"):
        model.set_params(n_factors=5).partial_fit(*rows_of(LATE))
    model.set_params(n_factors=4)
    np.testing.assert_array_equal(model.predict_proba(rows_of(EARLY)[0]), before)


def test_a_new_fit_that_fails_leaves_no_tables_of_other_features() -> None:
    model = FMRegressor(n_epochs=2).fit(*rows_of(EARLY))
    with pytest.raises(DivergenceError):
        model.set_params(optimizer="sgd", learning_rate=1e20).fit(*rows_of([f"u{i}" for i in range(300)]))
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        model.predict(rows_of(LATE)[0])
    assert model.set_params(optimizer="adagrad", learning_rate=None).fit(*rows_of(LATE)).predict(rows_of(LATE)[0]).any()


def test_categories_of_later_collections_are_learnt_to_the_bytes_of_as_many_chunks() -> None:
    pd = pytest.importorskip("pandas")
    import dask

    dask_frame = pytest.importorskip("dask.dataframe", reason="dask.dataframe needs its extra")

    def trained(n_threads: int) -> Any:
        model = FMClassifier(n_factors=4, n_epochs=10, n_replicas=2, min_count=2, warm_start=True, early_stopping=False)
        with in_process_client(n_threads) as client, dask.config.set(scheduler="sync"):
            for users in (EARLY, LATE):
                rows, clicks = rows_of(users)
                frame = dask_frame.from_pandas(pd.DataFrame({**rows, "clicked": clicks}), npartitions=3)
                model.fit(frame, "clicked", client=client)
        return model

    model = trained(1)
    assert model.predict({"user": [*EARLY, *LATE], "site": ["x"] * 4}).tolist() == [1, 0, 1, 0]
    assert model.model_.parameters_sha256() == trained(2).model_.parameters_sha256()


def test_every_class_gets_the_newcomers() -> None:
    X, _ = rows_of(EARLY)
    model = LinearClassifier(n_epochs=5, warm_start=True).fit(X, [f"c{i % 3}" for i in range(400)])
    more, _ = rows_of(LATE)
    model.fit(more, ["c2" if user == "u2" else "c1" for user in more["user"]])
    assert model.predict({"user": LATE, "site": ["x", "x"]}).tolist() == ["c2", "c1"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_of_other_columns_is_refused_in_a_sentence(kind: Any) -> None:
    X, y = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 2
    model = kind(n_factors=4).partial_fit(X, y)
    with pytest.raises(ValueError, match=r"X has 4 features, but .* is expecting 3 features as input"):
        model.partial_fit(np.hstack([X, X[:, :1]]), y)
