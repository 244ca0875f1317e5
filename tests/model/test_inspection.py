"""describe_model: the fields of a model, by what they add to its scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dfm.data.transforms import NumberStatistics
from dfm.estimators import FMRegressor
from dfm.model.fm_model import FMModel
from dfm.model.inspection import describe_model
from tests.support.small_models import STATISTICS, make_model, random_table

FIELDS = {
    "categorical": ("site", "zone"),
    "numeric": ("visits", "price", "age"),
    "transforms": {"visits": "raw", "age": "standardize"},
}
ROWS = random_table(400)


def model_of(age: NumberStatistics) -> FMModel:
    return dataclasses.replace(make_model(FIELDS, min_count=1), statistics={**STATISTICS, "age": age})


def described(model: FMModel) -> dict[str, dict[str, Any]]:
    return {record["field"]: record for record in describe_model(model)["fields"]}


def spread_in_rows(model: FMModel, column: str) -> float:
    """The deviation of what a column adds to scores by itself, row by row."""
    terms = [
        sum(term.amount for term in model.explain(row).linear if term.names[0].split("=")[0] == column)
        for row in ROWS.to_pylist()
    ]
    return float(np.std(terms))


def test_the_spread_of_a_field_is_that_of_what_it_adds_to_scores() -> None:
    ages = np.array([age for age in ROWS["age"].to_pylist() if age is not None])
    model = model_of(NumberStatistics((), float(ages.mean()), float(ages.std())))
    found = described(model)
    assert found["age"]["spread_of_wx"] > 1e-3
    for column in ("site", "zone", "price", "age"):
        assert found[column]["spread_of_wx"] == pytest.approx(spread_in_rows(model, column), rel=1e-3), column


def test_numbers_of_one_value_add_nothing_and_those_of_unknown_spread_are_the_last() -> None:
    found = described(model_of(NumberStatistics((), 40.0, 0.0)))
    ages, none = ROWS["age"], ROWS["age"].null_count
    w, of_missing = (float(model_of(NumberStatistics()).weights("age", [value])[0]) for value in (1.0, None))
    share = none / len(ages)
    assert w != of_missing
    assert found["age"]["spread_of_wx"] == pytest.approx(abs(of_missing) * np.sqrt(share * (1 - share)))
    assert [*found][-1] == "visits"
    assert found["visits"]["spread_of_wx"] is None


def test_columns_of_a_matrix_have_a_spread_where_they_were_standardized() -> None:
    rng = np.random.default_rng(0)
    flags = rng.integers(0, 2, 300)
    signs, ones = rng.permutation(np.repeat([-1.0, 1.0], 150)), np.ones(300)
    matrix = np.column_stack([rng.normal(3.0, 2.0, 300), flags, signs, ones])
    fitted = FMRegressor(n_factors=2, n_epochs=2).fit(matrix, matrix @ [1.0, 2.0, 3.0, 4.0])
    number, flag, sign, one = fitted.model_.table.linear_weights.astype(float)
    scaled = (matrix[:, 0] - matrix[:, 0].mean()) / matrix[:, 0].std()
    terms = np.concatenate([number * scaled, np.full(flags.sum(), flag), sign * signs, one * ones])
    assert described(fitted.model_)["vector"]["spread_of_wx"] == pytest.approx(terms.std(), rel=1e-3)
    sparse = dataclasses.replace(fitted.model_, statistics={})
    assert described(sparse)["vector"]["spread_of_wx"] is None


def test_entries_of_lists_count_as_one_each() -> None:
    model = make_model({"categorical": ("site",), "lists": ("tags",)}, min_count=1)
    own = model.vocabulary.fields == 1
    terms = np.repeat(model.table.linear_weights[own].astype(float), model.vocabulary.counts[own])
    assert described(model)["tags"]["spread_of_wx"] == pytest.approx(terms.std(), rel=1e-3)
