"""Labels of other habits are taken by value, or refused with the setting that says what they mean."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dfm.data.accounting import Rejection, RowAccount, bad_row_message
from dfm.data.encoding import encode_batch
from dfm.data.labels import advice
from dfm.data.schema import resolve
from dfm.settings.tables import Schema

SIGNS = [1, -1, 1]
ONES = [1.0, 0.0, 1.0]


def encoded(labels: pa.Array, kind: str = "shares", positive: tuple[str, ...] = ()) -> Any:
    batch = pa.record_batch({"label": labels, "C": ["a"] * len(labels)})
    schema = resolve(Schema(categorical=("C",), label_positive=positive), batch.schema.names)
    return encode_batch(batch, schema, 10, {}, kind)


@pytest.mark.parametrize("positive", ["1", "1.0", "1.00"])
@pytest.mark.parametrize(
    "labels",
    [
        pa.array(SIGNS),
        pa.array([float(n) for n in SIGNS]),
        pa.array([float(n) for n in SIGNS], pa.float32()),
        pa.array([decimal.Decimal(n) for n in SIGNS], pa.decimal128(5, 2)),
        pa.array([str(n) for n in SIGNS]),
        pa.array(SIGNS).dictionary_encode(),
    ],
)
def test_a_positive_label_is_one_by_value(labels: pa.Array, positive: str) -> None:
    found = encoded(labels, positive=(positive,))
    assert found.rows.labels.tolist() == ONES
    assert not found.problems


@pytest.mark.parametrize("positive", ["True", "true", "1"])
def test_a_flag_is_positive_in_any_spelling(positive: str) -> None:
    assert encoded(pa.array([True, False, True]), positive=(positive,)).rows.labels.tolist() == ONES


def test_words_are_compared_as_they_are_written() -> None:
    labels = pa.array(["yes", "no", "Yes", "", None])
    found = encoded(labels, positive=("yes",))
    assert found.rows.labels.tolist() == [1.0, 0.0, 0.0]
    assert [(problem.reason, problem.count) for problem in found.problems] == [("label is missing", 2)]


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (pa.array([1, -1]), '"1"'),
        (pa.array([1.0, -1.0]), '"1"'),
        (pa.array(["1", "-1"]), '"1"'),
        (pa.array(["true", "false"]), '"true"'),
        (pa.array(["False", "True"]), '"True"'),
        (pa.array(["NO", "YES"]), '"YES"'),
        (pa.array(["n", "y"]), '"y"'),
    ],
)
def test_labels_of_other_habits_are_refused_with_what_to_name(labels: pa.Array, named: str) -> None:
    problem = encoded(labels).problems[0]
    rejection = Rejection("a.parquet", 0, "label", problem.reason, problem.count, 0, problem.value)
    assert bad_row_message(rejection).endswith(f"Name what means 1: schema.label_positive = [{named}]")
    with pytest.raises(Exception, match="Name what means 1"):
        RowAccount(2, 2 - problem.count, (rejection,)).check("skip", 0.1)
    word = named.strip('"')
    assert encoded(labels, positive=(word,)).rows.labels.sum() == 1.0, "what is advised works"


@pytest.mark.parametrize(("reason", "value"), [("label is neither 0 nor 1", "7"), ("not a number", "'false'")])
def test_a_row_that_is_wrong_by_itself_is_to_be_repaired(reason: str, value: str) -> None:
    assert advice(reason, value) == ""
    assert "Repair the row" in bad_row_message(Rejection("a.parquet", 0, "label", reason, 1, 0, value))


def test_shares_of_views_are_labels_of_logistic_loss_alone() -> None:
    shares = pa.array([0.25, 0.0, 1.0, 1.25])
    found = encoded(shares)
    assert found.rows.labels.tolist() == [0.25, 0.0, 1.0]
    assert encoded(shares, "classification").rows.labels.tolist() == [0.0, 1.0]
    assert np.isfinite(encoded(shares, "regression").rows.labels).all()
