"""Categories that come after the first call are counted and told; those that are known are learnt without a word."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

from dfm.estimators import FMClassifier, FMRegressor

FIRST = {"user": ["a", "b"] * 50, "site": ["x"] * 100}
SECOND = {"user": ["a", "c", "d", "e"] * 25, "site": ["x"] * 100}
CLICKS = [0, 1] * 50


@pytest.mark.parametrize("kind", [FMClassifier, FMRegressor])
@pytest.mark.parametrize("way", ["partial_fit", "fit"])
def test_later_categories_are_counted_in_a_warning(kind: Any, way: str) -> None:
    model = kind(n_factors=2, n_epochs=2, warm_start=way == "fit", early_stopping=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(model, way)(FIRST, CLICKS)
        getattr(model, way)(FIRST, CLICKS)
    before = model.predict({"user": ["c"], "site": ["x"]})
    with pytest.warns(UserWarning, match=r"^3 categories, 37\.5% of the values of these rows, were not there"):
        getattr(model, way)(SECOND, CLICKS)
    unknown = model.predict({"user": ["c", "never seen"], "site": ["x", "x"]})
    np.testing.assert_array_equal(unknown[0], unknown[1])
    assert before.shape == (1,)
