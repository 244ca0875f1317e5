"""Statistics of numeric columns: means, deviations and quantiles of all rows, from parts of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dfm.data.draw import Draw
from dfm.data.number_sketches import glance_at_numbers, merge_sketches, sketch_numbers
from dfm.data.parquet import Unit, describe_shard
from dfm.data.reading import Reading
from dfm.data.schema import Schema, resolve
from dfm.data.transforms import NumberStatistics, standardized
from tests.data.test_preparation import HASH_BITS
from tests.support.shards import write_shard


def sketched(tmp_path: Path, parts: Sequence[Any], n_buckets: int = 10) -> NumberStatistics:
    """Statistics of a column whose values lie in several shards, each sketched on its own."""
    sketches = []
    schema = resolve(Schema(numeric=["x"], numeric_transform="quantile", quantile_buckets=n_buckets), ["label", "x"])
    reading = Reading(schema, HASH_BITS, "classification", cache=str(tmp_path / "cache"))
    for number, part in enumerate(parts):
        column = part if isinstance(part, pa.Array) else pa.array(part)
        table = pa.table({"label": pa.array([0] * len(column), pa.int64()), "x": column})
        shard = describe_shard(write_shard(tmp_path / f"{number}.parquet", table, 500))
        sketches.append(sketch_numbers(reading, [Unit(shard, 0, shard.n_rows)])["x"])
    return merge_sketches(sketches, n_buckets)


def test_mean_and_deviation_are_those_of_all_rows_whatever_the_parts(tmp_path):
    random = np.random.default_rng(1)
    values = random.normal(1e6, 3.0, 4000)
    learnt = sketched(tmp_path, [values[:10], values[10:1500], values[1500:1501], values[1501:]])
    assert learnt.mean == pytest.approx(values.mean(), rel=1e-12)
    assert learnt.stdev == pytest.approx(values.std(), rel=1e-9)


@pytest.mark.parametrize("cuts", [[], [500], [100, 200, 3000]])
def test_quantiles_are_those_of_all_rows_to_a_thousandth(tmp_path, cuts):
    values = np.random.default_rng(2).lognormal(0, 2, 6000)
    learnt = sketched(tmp_path, np.split(values, cuts))
    ranks = np.searchsorted(np.sort(values), learnt.boundaries) / len(values)
    np.testing.assert_allclose(ranks, np.arange(1, 10) / 10, atol=1e-3)


def test_quantiles_of_few_rows_are_exact(tmp_path):
    values = np.arange(1, 101, dtype=np.float64)
    learnt = sketched(tmp_path, [values[::-1]], 4)
    assert learnt.boundaries == tuple(np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf").tolist())


def test_heavy_values_give_fewer_boundaries_and_never_the_same_twice(tmp_path):
    assert sketched(tmp_path, [[0.0] * 950 + [1.0] * 30 + [2.0] * 20]).boundaries == (0.0,)
    assert sketched(tmp_path, [[3.0] * 10]).boundaries == (3.0,)


@pytest.mark.parametrize("value", [0.1, 3.3, 19.99, 1e6 + 0.1, -0.7])
@pytest.mark.parametrize("cuts", [[], [3, 400, 1999]])
def test_numbers_that_are_all_alike_deviate_by_nothing(tmp_path, value, cuts):
    learnt = sketched(tmp_path, np.split(np.full(5000, value), cuts))
    assert learnt.stdev == 0.0, "the rounding error of the mean would be the unit of what comes later"
    np.testing.assert_allclose(standardized(np.array([value, value + 1]), learnt), [0.0, 1.0], atol=1e-9)


def test_missing_and_unreadable_numbers_do_not_count(tmp_path):
    learnt = sketched(tmp_path, [["1", "", "3", None, "nan", "inf", "many"], [None, None], pa.nulls(3, pa.float64())])
    assert (learnt.mean, learnt.stdev) == (2.0, 1.0)
    assert sketched(tmp_path, [pa.nulls(3)]) == NumberStatistics()


def test_statistics_are_learnt_only_where_a_transform_needs_them(tmp_path):
    schema = resolve(
        Schema(
            numeric=["a", "b", "c", "d"],
            transforms={"a": "log2-bucket", "b": "raw", "c": "standardize", "d": "quantile"},
        ),
        ["label", "a", "b", "c", "d"],
    )
    table = {name: [1.0, 3.0] for name in ("label", "a", "b", "c", "d")}
    shard = describe_shard(write_shard(tmp_path / "a.parquet", table))
    reading = Reading(schema, HASH_BITS, "regression", cache=str(tmp_path / "cache"))
    assert set(sketch_numbers(reading, [Unit(shard, 0, 2)])) == {"c", "d"}


def test_rows_after_the_split_in_time_teach_no_statistics(tmp_path):
    columns = {"label": [0, 1, 0, 1], "x": [1.0, 3.0, 500.0, 700.0], "day": ["1", "1", "2", "2"]}
    shard = describe_shard(write_shard(tmp_path / "a.parquet", columns))
    schema = resolve(Schema(time="day", numeric=["x"], numeric_transform="standardize"), list(columns))
    reading = Reading(schema, HASH_BITS, "classification", time_until="2", cache=str(tmp_path / "cache"))
    assert merge_sketches([sketch_numbers(reading, [Unit(shard, 0, 4)])["x"]], 10).mean == 2.0


TOLD = {
    "label": ["1", "0", "0", "2", None, "many", "1", "0", "1", "0"],
    "w": [1.0, 0.5, 0.0, 1.0, 1.0, 1.0, -1.0, np.nan, None, 1e-60],
    "x": [1.0, 3.0, *[1e9] * 8],
}
"""A table whose first two rows alone can be trained on."""


@pytest.mark.parametrize("on_bad_rows", ["skip", "error"])
def test_rows_of_weight_0_and_of_no_label_or_weight_teach_no_statistics(tmp_path, on_bad_rows):
    shard = describe_shard(write_shard(tmp_path / "a.parquet", TOLD, 3))
    schema = resolve(Schema(weight="w", numeric=["x"], numeric_transform="standardize"), list(TOLD))
    reading = Reading(schema, HASH_BITS, "classification", on_bad_rows=on_bad_rows, cache=str(tmp_path / "c"))
    for seen in (
        sketch_numbers(reading, [Unit(shard, 0, 10)]),
        glance_at_numbers(reading, [Unit(shard, 0, 10)], ["x"], 1),
    ):
        assert (seen["x"].count, seen["x"].mean) == (2, 2.0)


def test_without_weights_rows_of_no_label_teach_none_where_they_are_skipped(tmp_path):
    shard = describe_shard(write_shard(tmp_path / "a.parquet", TOLD, 3))
    schema = resolve(Schema(numeric=["x"], label_positive=["1"]), ["label", "x"])
    reading = Reading(schema, HASH_BITS, "classification", on_bad_rows="skip", cache=str(tmp_path / "c"))
    assert glance_at_numbers(reading, [Unit(shard, 0, 10)], ["x"], 1)["x"].count == 9, "one has no label"
    counts = dataclasses.replace(reading, schema=resolve(Schema(numeric=["x"]), ["label", "x"]), label_kind="counts")
    assert glance_at_numbers(counts, [Unit(shard, 0, 10)], ["x"], 1)["x"].count == 8, "a count of 2 is legal"


def test_many_rows_of_weight_0_at_the_beginning_are_not_what_is_glanced_at(tmp_path):
    weighs = np.repeat([0.0, 1.0], 30_000)
    table = {"label": np.zeros(60_000), "w": weighs, "x": np.where(weighs, np.arange(60_000), -1.0)}
    shard = describe_shard(write_shard(tmp_path / "a.parquet", table, 30_000))
    reading = Reading(
        resolve(Schema(weight="w", numeric=["x"]), list(table)), HASH_BITS, "regression", cache=str(tmp_path / "c")
    )
    seen = glance_at_numbers(reading, [Unit(shard, 0, 60_000)], ["x"], 1000)["x"]
    assert (seen.count, seen.order_statistics[0] >= 30_000) == (1 << 12, True)


def test_labels_are_not_read_for_statistics_where_every_row_is_trained_on(tmp_path):
    shard = describe_shard(write_shard(tmp_path / "a.parquet", {"x": [1.0, 3.0]}))
    schema = resolve(Schema(numeric=["x"]), ["label", "x"])
    reading = Reading(schema, HASH_BITS, "classification", cache=str(tmp_path / "c"))
    assert glance_at_numbers(reading, [Unit(shard, 0, 2)], ["x"], 1)["x"].count == 2


@pytest.mark.parametrize("group_rows", [30_000, 100])
@pytest.mark.parametrize(("n_tasks", "n_seen"), [(1, 20_000), (2, 20_000), (16, 1 << 13), (1000, 1 << 12)])
def test_many_tasks_glance_at_a_few_rows_each(tmp_path, n_tasks, n_seen, group_rows):
    table = {"label": [0, 1] * 10_000, "x": np.arange(20_000, dtype=np.float64)}
    shard = describe_shard(write_shard(tmp_path / "a.parquet", table, group_rows))
    reading = Reading(resolve(Schema(numeric=["x"]), list(table)), HASH_BITS, "regression", cache=str(tmp_path / "c"))
    seen = glance_at_numbers(reading, [Unit(shard, 0, shard.n_rows)], ["x"], n_tasks)["x"]
    assert (seen.count, seen.mean) == (n_seen, (n_seen - 1) / 2)


def test_rows_that_others_train_on_are_not_glanced_at(tmp_path):
    table = {"label": [0, 1] * 10_000, "x": np.arange(20_000, dtype=np.float64)}
    shard = describe_shard(write_shard(tmp_path / "a.parquet", table, 30_000))
    schema, draw = resolve(Schema(numeric=["x"]), list(table)), Draw(0.0, 0.9, False)
    reading = Reading(schema, HASH_BITS, "regression", draw=draw, cache=str(tmp_path / "c"))
    assert glance_at_numbers(reading, [Unit(shard, 0, shard.n_rows)], ["x"], 128)["x"].count == pytest.approx(2000, 0.1)
    reading = dataclasses.replace(reading, draw=Draw(0.0, 0.5, False))
    assert glance_at_numbers(reading, [Unit(shard, 0, shard.n_rows)], ["x"], 128)["x"].count == 1 << 12
