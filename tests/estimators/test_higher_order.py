"""Higher-order machines and polynomial networks by what they are for, after the published tests of polylearn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dfm.errors import SettingsError
from dfm.estimators import FMClassifier, FMRegressor

FAMILY_OF_DEGREE = {2: {"family": "polynomial", "order": 2}, 3: {"family": "hofm"}}
SETTINGS: dict[str, Any] = {
    "n_factors": 4, "init_stdev": 0.3, "early_stopping": False, "random_state": 0, "min_count_factors": 1,
    "learning_rate": 0.3, "l2_linear": 0.0, "l2_factors": 0.0, "tune": "none", "schedule": "constant", "tol": 0.0,
}  # fmt: skip


def planted(degree: int, n_rows: int = 60, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows of four numbers, and for each the sum over all sets of so many of them of two products of their weights."""
    rng = np.random.default_rng(seed)
    X, weights = rng.normal(size=(n_rows, 4)), np.random.default_rng(0).normal(size=(2, 4))
    sets = [list(each) for each in itertools.combinations(range(4), degree)]
    return X, sum(
        (np.prod(X[:, each], axis=1) * np.prod(weights[:, each], axis=1).sum() for each in sets), 0.0 * X[:, 0]
    )


def model_of(degree: int, **changes: Any) -> FMRegressor:
    return FMRegressor(**{**SETTINGS, **FAMILY_OF_DEGREE[degree], **changes})


def error_of(model: FMRegressor, X: np.ndarray, y: np.ndarray) -> float:
    """Mean squared error as a share of the labels' variance."""
    return float(np.mean((model.predict(X) - y) ** 2) / y.var())


@pytest.mark.parametrize("degree", [2, 3])
def test_a_planted_function_of_its_degree_is_fitted_and_more_epochs_fit_better(degree: int) -> None:
    X, y = planted(degree)
    errors = [error_of(model_of(degree, n_epochs=n).fit(X, y), X, y) for n in (5, 10, 1000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_a_function_of_three_is_beyond_a_factorization_machine() -> None:
    X, y = planted(3)
    assert error_of(FMRegressor(**SETTINGS, n_epochs=1000).fit(X, y), X, y) > 0.2


def test_more_penalty_fits_the_rows_less_and_others_better() -> None:
    """Noisy labels of few rows, whose noise a model without penalty learns."""
    X, y = planted(3, 20)
    others, truth = planted(3, 400, seed=2)
    noisy = y + np.random.default_rng(5).normal(0.0, y.std(), len(y))
    loose, firm = (model_of(3, n_epochs=300, l2_factors=l2, l2_linear=l2).fit(X, noisy) for l2 in (0.0, 0.003))
    assert error_of(loose, X, noisy) < error_of(firm, X, noisy)
    assert error_of(loose, others, truth) > 1.1 * error_of(firm, others, truth)


@pytest.mark.parametrize("degree", [2, 3])
def test_five_epochs_and_five_more_are_ten(degree: int) -> None:
    X, y = planted(degree)
    whole, parts = model_of(degree, n_epochs=10).fit(X, y), model_of(degree, n_epochs=5, warm_start=True)
    parts.fit(X, y).fit(X, y)
    np.testing.assert_allclose(parts.predict(X), whole.predict(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [{"family": "polynomial", "order": 2}, {"family": "hofm"}])
def test_noisy_exclusive_or_is_told_apart(family: dict[str, Any]) -> None:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(300, 2))
    labels = (X[:, 0] > 0) != (X[:, 1] > 0)
    model = FMClassifier(**{**SETTINGS, **family}, n_epochs=60).fit(X + rng.normal(0.0, 0.1, X.shape), labels)
    assert model.score(X, labels) > 0.93
    corners = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]])
    np.testing.assert_array_equal(model.predict(corners), [False, False, True, True])
    assert FMClassifier(**SETTINGS | {"n_factors": 0}, n_epochs=60).fit(X, labels).score(X, labels) < 0.7


def test_triples_of_categories_are_learnt_with_the_settings_of_everybody() -> None:
    """Whether the sum of three digits is odd: no single one and no two say anything of it."""
    rng = np.random.default_rng(6)
    digits = rng.integers(0, 2, (4000, 5))
    labels = digits[:, :3].sum(axis=1) % 2
    data = pd.DataFrame(digits.astype(str), columns=[f"c{number}" for number in range(5)])
    higher = FMClassifier(family="hofm", n_factors=4, random_state=0).fit(data[:3000], labels[:3000])
    assert higher.score(data[3000:], labels[3000:]) > 0.95
    plain = FMClassifier(n_factors=4, random_state=0).fit(data[:3000], labels[:3000])
    assert plain.score(data[3000:], labels[3000:]) < 0.6


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"order": 3}, r'order = 3 does not go with .*family = "fm": it has no order.*the family hofm or polynomial'),
        ({"family": "hofm", "order": 2}, r'order = 2 does not .* "hofm": it takes 3 to 5.*the family polynomial'),
        ({"family": "hofm", "order": 6}, r"order = 6 is not legal"),
        ({"family": "hofm", "solver": "als"}, r"family = 'hofm' does not go with solver = 'als'"),
    ],
)
def test_orders_and_solvers_that_a_family_has_not_are_refused(settings: dict[str, Any], told: str) -> None:
    X, y = planted(2)
    with pytest.raises(SettingsError, match=told):
        FMRegressor(**settings).fit(X, y)
