"""Numbers on pages and in tables: five decimals, or significant digits where these would show next to nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dfm.cli.console import folds_table, importance_table, metrics_table, pairs_table, slices_table, table_of
from dfm.pages.numbers import number_form, number_text
from dfm.pages.page import HeatMap, sections_html
from tests.support.small_models import make_model, random_table

SMALL = 1.5015e-7
"""A metric of a regression whose labels are of the order of 1e-6."""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00000"), (0.001, "0.00100"), (-0.41936271, "-0.41936"), (1234.5, "1234.50000"), (None, "-"),
        (math.nan, "nan"), (math.inf, "inf"), (SMALL, "1.5015e-07"), (-0.00012345678, "-0.00012346"),
    ],
)  # fmt: skip
def test_small_numbers_have_significant_digits_and_usual_ones_five_decimals(value: float | None, text: str) -> None:
    assert number_text(value) == text


def test_numbers_that_are_compared_have_one_form() -> None:
    assert number_form([0.4, SMALL, None, math.nan]) == ".5f"
    assert number_form([-SMALL, 0.0, None], ",.4f") == ",.4g"
    assert number_form([]) == number_form([0.0]) == ".5f"


def column(name: str, rise: float, missing: float | None) -> dict[str, Any]:
    return {"column": name, "permuted": rise, "permuted_error": rise / 10, "missing": missing}


def regression_slice(site: str, unit: float) -> dict[str, Any]:
    means = {"mean_label": 2 * unit, "mean_prediction": 3 * unit, "rmse": unit, "mean_error": -unit}
    return {"slice": {"site": site}, "rows": 1500, **means}


TABLES = {
    "metrics": lambda unit: metrics_table({"rmse": unit, "rows": 3}),
    "importance": lambda unit: importance_table(
        {"loss": unit, "rows": 9, "columns": [column("a", unit, None), column("b", unit / 1e6, unit)]}
    ),
    "pairs": lambda unit: pairs_table([{"first": "a", "second": "b", "strength": unit}]),
    "slices": lambda unit: slices_table("site", [regression_slice("x", unit), regression_slice("y", unit / 2)]),
    "folds": lambda unit: folds_table([("rmse", unit, unit / 10)], 5),
    "fields": lambda unit: table_of([{"field": "a", "spread": unit, "w": [unit, -unit]}], "fields"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_labels_in_a_small_unit_show_them_and_usual_ones_are_as_ever(name: str) -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(TABLES[name](SMALL))
    text = capture.get()
    assert "1.50" in text
    assert "e-07" in text
    assert "0.000" not in text
    with console.capture() as capture:
        console.print(TABLES[name](0.25))
    assert "0.25" in (text := capture.get())
    assert "e-" not in text


def test_a_page_shows_small_numbers_and_columns_of_one_form() -> None:
    page = sections_html(
        {"metrics": {"rmse": SMALL, "r2": 0.5}, "epochs": [{"rmse": 0.5, "bias": 2e-6}, {"rmse": 2e-5}]}
    )
    for text in ("1.5015e-07", "0.50000", "2e-06", "0.00002"):
        assert f">{text}<" in page
    assert "1.5e-07" in sections_html({"pairs": HeatMap(["a"], np.array([[SMALL]]))})


def test_models_and_explanations_show_small_numbers() -> None:
    model, rows = make_model(task="regression"), random_table(1)
    assert "rmse 1.5015e-07" in repr(dataclasses.replace(model, metadata={"validation": {"rmse": SMALL}}))
    told = dataclasses.replace(model.explain(rows), score=SMALL, prediction=SMALL)
    assert repr(told).startswith("score 1.5015e-07, prediction 1.5015e-07\n")
