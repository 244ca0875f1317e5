"""Every row that was read is accepted or rejected for a reason, and a job's limits hold."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from dfm.data.accounting import LabelMoments, Rejection, RowAccount, bad_row_message, rejections_of
from dfm.data.parquet import Batch, Shard
from dfm.data.row_checks import Problem
from dfm.errors import DataError

BAD = Rejection("day=1/a.parquet", 3, "label", "label is missing", 2, 17, "None")
WORSE = Rejection("day=1/b.parquet", 0, "I1", "not a number", 3, 5, "'x'")
SHARD = Shard("day=1/a.parquet", 100, "", (50, 50), ())


def test_accounts_add_up_over_shards():
    total = RowAccount(10, 8, (BAD,), 3.0) + RowAccount(5, 5) + RowAccount(7, 1, (WORSE, WORSE), 1.0)
    assert (total.read, total.accepted, total.rejected, total.label_sum) == (22, 14, 8, 4.0)
    assert total.by_reason() == {"label: label is missing": 2, "I1: not a number": 6}
    total.check("skip", 1.0)


@pytest.mark.parametrize("split", [0, 1, 37, 100])
def test_moments_of_parts_add_up_to_those_of_the_whole(split: int):
    rng = np.random.default_rng(0)
    labels, weights = rng.normal(1e6, 3, 100).astype(np.float32), rng.integers(0, 3, 100).astype(np.float32)
    total = LabelMoments.of(labels[:split], weights[:split]) + LabelMoments.of(labels[split:], weights[split:])
    counted = np.repeat(labels.astype(np.float64), weights.astype(int))
    assert (total.weight, total.least, total.greatest) == (len(counted), counted.min(), counted.max())
    assert total.mean == pytest.approx(counted.mean(), rel=1e-12)
    assert total.squares == pytest.approx(((counted - counted.mean()) ** 2).sum(), rel=1e-9)


def test_moments_of_rows_that_weigh_nothing_are_those_of_none():
    assert LabelMoments.of(np.ones(3, np.float32), np.zeros(3, np.float32)) == LabelMoments()
    assert LabelMoments.of(np.ones(3, np.float32), np.zeros(0, np.float32)).is_constant


@pytest.mark.parametrize("account", [RowAccount(10, 9), RowAccount(10, 10, (BAD,)), RowAccount(0, 1)])
def test_rows_that_went_astray_are_an_error(account):
    with pytest.raises(DataError, match="rows were lost"):
        account.check("skip", 1.0)


def test_any_bad_row_stops_a_job_that_says_error():
    with pytest.raises(DataError, match=r"day=1/a\.parquet, row group 3, row 17 and 1 more row like it"):
        RowAccount(10, 8, (BAD,)).check("error", 1.0)
    RowAccount(10, 10).check("error", 0.0)


def test_a_job_that_skips_bad_rows_takes_as_many_as_it_allows():
    account = RowAccount(10, 8, (BAD,))
    account.check("skip", 0.2)
    with pytest.raises(DataError, match=r"2 of 10 rows are bad, more than data\.max_bad_fraction = 0\.19 allows"):
        account.check("skip", 0.19)


def test_the_message_names_place_reason_value_and_remedy():
    alone = Rejection("a.parquet", 1, "w", "weight is negative", 1, 4, "-2.0")
    assert bad_row_message(alone) == (
        "a.parquet, row group 1, row 4: column 'w': weight is negative (-2.0). "
        'Repair the row, or set data.on_bad_rows = "skip" (evaluate, importance, predict, publish: --on-bad-rows skip) '
        "to leave such rows out"
    )


@pytest.mark.parametrize("limit", [None, 0.01])
@pytest.mark.parametrize(
    ("reason", "value", "helps"),
    [("not finite", "nan", True), ("not finite", "inf", False), ("label is not finite", "nan", False)],
)
def test_nan_in_a_feature_may_be_missing_which_the_message_says(
    reason: str, value: str, helps: bool, limit: float | None
) -> None:
    """As pandas writes what is missing; of infinity and of labels the knob says nothing."""
    bad = Rejection("a.parquet", 0, "price", reason, 1, 4, value)
    with pytest.raises(DataError) as error:
        RowAccount(10, 9, (bad,)).check("error" if limit is None else "skip", limit or 0.0)
    assert ('schema.nan = "missing"' in str(error.value)) == helps
    assert "Repair the" in str(error.value)


def test_accounts_survive_json():
    account = RowAccount(22, 14, (BAD, WORSE), 6.0)
    assert RowAccount.from_dict(json.loads(json.dumps(account.to_dict()))) == account


@pytest.mark.parametrize(("kept", "row"), [(None, 22), (np.array([0, 3, 9]), 29)])
def test_a_problem_of_a_batch_becomes_a_place_in_its_row_group(kept, row):
    batch = Batch(pa.record_batch({"n": [1, 2, 3]}), SHARD, 1, 20, kept)
    (rejection,) = rejections_of(batch, [Problem("n", "not finite", 1, 2, "nan")])
    assert rejection == Rejection("day=1/a.parquet", 1, "n", "not finite", 1, row, "nan")
