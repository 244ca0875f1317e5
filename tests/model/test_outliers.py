"""A number far beyond those of training makes a row a bad one, with its place, wherever a finished model scores."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm import jobs
from dfm.data.schema import resolve
from dfm.errors import DataError, DivergenceError, SettingsError
from dfm.model.fm_model import FMModel
from dfm.model.objective import Objective
from dfm.settings.tables import Schema
from dfm.workflow.gate import Gate, judge
from tests.support.small_jobs import in_process_client
from tests.support.small_models import model_of_schema

FIELDS = Schema(categorical=("site",), numeric=("age",), transforms={"age": "standardize"})
FAR = 1e6
"""An age whose exponential leaves float32."""


def counts_by_age(n_rows: int, **far: float) -> tuple[FMModel, pa.Table]:
    """A model of counts that grow with age, and rows of which those that are named by number have another age."""
    age = np.linspace(20.0, 60.0, n_rows)
    for row, value in far.items():
        age[int(row[1:])] = value
    rows = pa.table({"label": np.arange(n_rows) % 3, "site": ["a", "b"] * (n_rows // 2), "age": age})
    model = model_of_schema(resolve(FIELDS, rows.column_names), rows, task="regression")
    model.table.linear[:, 0] = np.abs(model.table.linear[:, 0]) + 0.1
    return dataclasses.replace(model, loss=Objective.of("regression", "poisson").info), rows


def test_an_outlier_is_a_bad_row_of_an_evaluation_with_its_place_and_what_bounds_it() -> None:
    model, rows = counts_by_age(400, r7=FAR, r11=2 * FAR)
    assert np.isinf(model.predict(rows)[[7, 11]]).all()
    with pytest.raises(
        DataError, match=r"row 7 and 1 more row like it: column 'age': so far .*1000000.*quantile.*clip"
    ):
        jobs.evaluate(model, rows)
    found = jobs.evaluate(model, rows, on_bad_rows="skip")
    others = jobs.evaluate(model, rows.filter(np.isfinite(model.predict(rows))))
    assert (found["account"]["evaluated"], found["account"]["rejected"]) == (398, 2)
    assert found["mae"] == pytest.approx(others["mae"])
    clipped = dataclasses.replace(model, clip=(0.0, 9.0))
    assert jobs.evaluate(clipped, rows)["account"]["rejected"] == 0


def test_a_long_text_that_an_outlier_is_read_from_is_told_in_short() -> None:
    model, rows = counts_by_age(400, r7=FAR)
    long = f"{FAR:f}".rjust(10_000, "0")
    texts = [long if age == FAR else str(age) for age in rows["age"].to_pylist()]
    with pytest.raises(DataError, match=r"row 7: column 'age': so far .*\('0{79}\)\. Repair"):
        jobs.evaluate(model, rows.set_column(2, "age", pa.array(texts)))


def test_an_outlier_is_a_bad_row_of_importance_too() -> None:
    model, rows = counts_by_age(400, r7=FAR)
    with pytest.raises(DataError, match=r"row 7: column 'age': .*\(evaluate, importance, publish: --on-bad-rows"):
        jobs.importance(model, rows)
    found = jobs.importance(model, rows, on_bad_rows="skip", repeats=2)
    (reason,) = found["account"]["reasons"]
    assert (found["account"]["good"], found["account"]["rejected"], found["rows"]) == (399, 1, 399)
    assert reason.startswith("age: so far from what the model learnt from")
    assert found["loss"] == jobs.importance(model, rows.filter(np.arange(400) != 7), repeats=2)["loss"]
    assert all(math.isfinite(record["permuted"]) for record in found["columns"])


def test_of_two_models_the_gate_tells_which_has_no_prediction_for_rows_of_the_same_window() -> None:
    champion, rows = counts_by_age(400, r7=FAR)
    candidate = dataclasses.replace(champion, clip=(0.0, 9.0))
    clipped, plain = (jobs.evaluate(model, rows, on_bad_rows="skip") for model in (candidate, champion))
    told = r"different rows \(rows is {} and {}\); rows without .*: {} of the candidate, {} of the champion\. Correct"
    with pytest.raises(SettingsError, match=told.format(400, 399, 0, 1)):
        judge(clipped, plain, Gate())
    with pytest.raises(SettingsError, match=told.format(399, 400, 1, 0)):
        judge(plain, clipped, Gate())
    assert judge(plain, plain, Gate(min_rows=1)).champion["rows"] == 399


@pytest.mark.parametrize("found", [jobs.evaluate, jobs.importance])
def test_where_many_rows_have_no_prediction_the_model_is_at_fault(found: Callable[..., Any]) -> None:
    model, rows = counts_by_age(400, **{f"r{number}": FAR for number in range(40)})
    with pytest.raises(DivergenceError, match=r"40 of 400 scores .*far beyond the others.*quantile or log2-bucket"):
        found(model, rows, on_bad_rows="skip")


def test_a_prediction_that_is_no_number_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, rows = counts_by_age(400, r7=FAR)
    model.save(str(tmp_path / "model"))
    pq.write_table(rows, tmp_path / "rows.parquet")
    with in_process_client(1) as client, caplog.at_level(logging.WARNING, "dfm"):
        jobs.predict(str(tmp_path / "model"), str(tmp_path / "rows.parquet"), str(tmp_path / "out"), client=client)
    told: list[Any] = [record.message for record in caplog.records if "not finite" in record.message]
    assert [text.split(":")[0] for text in told] == ["1 of 400 predictions are not finite numbers"]
    (part,) = (tmp_path / "out").glob("*.parquet")
    assert math.isinf(pq.read_table(part)["prediction"][7].as_py())
