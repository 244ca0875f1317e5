"""Rows are given as lists, or one row as a dict of values; text is never taken for a list of its letters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dfm.errors import DataError
from dfm.model.fm_model import FMModel
from tests.support.small_models import EVERY_KIND, PLAIN, make_model

ROW: dict[str, Any] = {"site": "site 1", "zone": 4, "visits": 12, "price": 2.5, "age": 40.0, "tags": ["t1", "t2"]}


@pytest.fixture(scope="module", params=["plain", "every kind"])
def model(request: pytest.FixtureRequest) -> FMModel:
    return make_model(PLAIN if request.param == "plain" else EVERY_KIND)


@pytest.mark.parametrize("changes", [{}, {"site": None}, {"zone": "4"}, {"visits": np.int64(12), "tags": []}])
def test_a_dict_of_values_is_one_row(model: FMModel, changes: dict[str, Any]) -> None:
    row = {**ROW, **changes}
    np.testing.assert_array_equal(model.predict(row), model.predict({column: [value] for column, value in row.items()}))


def test_a_value_beside_a_list_is_refused(model: FMModel) -> None:
    with pytest.raises(DataError, match=r"column 'site' holds one value, 'web', and column 'zone' a list"):
        model.predict({**ROW, "site": "web", "zone": [4]})


def test_a_text_is_no_list_of_letters() -> None:
    rows = {**{column: [value, value] for column, value in ROW.items()}, "site": ["a", "b"]}
    model = make_model(EVERY_KIND)
    with pytest.raises(DataError, match="column 'tags' holds one value, 'ab'"):
        model.predict({**rows, "tags": "ab"})
