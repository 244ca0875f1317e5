"""Averages made at once, without summands: the bytes of `contribute`, `combine_all` and `finalise`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm.averaging import at_once
from dfm.averaging.at_once import Abreast, is_at_once
from dfm.averaging.contributions import combine_all
from dfm.averaging.merge import contribute, finalise
from dfm.averaging.rules import ACCUMULATOR_RULES, WEIGHT_RULES, MergeRule
from dfm.data.partition import SparsePartition
from dfm.kernels.contract import Step
from dfm.kernels.tables import Layout, ParameterTable, allocate, pull

STEP = Step(0.1, 0.1)
N_FIELDS = 3
ALL_RULES = [
    MergeRule(weights, accumulators, precision=2.0) for weights in WEIGHT_RULES for accumulators in ACCUMULATOR_RULES
]
RULES = [rule for rule in ALL_RULES if is_at_once(rule, Layout("adagrad", 4))]
LAYOUTS = [
    Layout("adagrad", 0),
    Layout("adagrad", 3),
    Layout("adagrad", 8),
    Layout("adagrad", 100),  # lanes that are no one vector
    Layout("adagrad", 4, "ffm", (0, 1, 1)),
    Layout("adagrad", 4, "fwfm"),
]

Spread = Callable[..., Iterable[Any]]


def a_table(rng: np.random.Generator, layout: Layout, n_features: int, n_factored: int) -> ParameterTable:
    table = allocate(layout, n_features, n_factored, N_FIELDS)
    for block in layout.blocks:
        array = table[block.name]
        array[...] = rng.uniform(0.5, 2, array.shape)
        array[..., : block.lanes] *= rng.choice([-1, -0.0, 0.0, 1], array[..., : block.lanes].shape)
    return table


def rows_that_touch(rng: np.random.Generator, n_features: int, n_factored: int) -> SparsePartition:
    features = np.sort(rng.choice(n_features, rng.integers(0, n_features + 1), replace=False)).astype(np.uint32)
    n_rows = int(rng.integers(1, 6))
    return SparsePartition(
        np.linspace(0, len(features), n_rows + 1).astype(np.int64),
        np.arange(len(features), dtype=np.uint32),
        np.zeros(0, np.float32),
        np.zeros(n_rows, np.float32),
        rng.uniform(0.0, 2, n_rows).astype(np.float32) if rng.random() < 0.5 else np.zeros(0, np.float32),
        features,
        int(np.searchsorted(features, n_factored)),
        n_rows,
    )


def train(rng: np.random.Generator, table: ParameterTable) -> None:
    """What training does, in place: weights move, or stay, and sums grow."""
    for block in table.layout.blocks:
        array = table[block.name]
        moves = rng.uniform(-1, 1, array.shape) * rng.integers(0, 2, array.shape)
        moves[..., block.lanes :] = np.abs(moves[..., block.lanes :])
        array += moves.astype(np.float32)


def bytes_of(table: ParameterTable) -> list[bytes]:
    return [table[block.name].tobytes() for block in table.layout.blocks]


def both_ways(
    seed: int, n_replicas: int, layout: Layout, rule: MergeRule, n_features: int = 40, spread: Spread = map
) -> tuple[ParameterTable, ParameterTable]:
    """The average of random replicas by summands, and at once."""
    rng = np.random.default_rng(seed)
    n_factored = n_features * 2 // 5
    table = a_table(rng, layout, n_features, n_factored if layout.n_factors else 0)
    touched = [rows_that_touch(rng, n_features, n_factored) for _ in range(n_replicas)]
    abreast, trained, summands = Abreast(table, touched), [], []
    for replica, rows in enumerate(touched):
        local = abreast.pull(replica)
        before = pull([table], rows.features, rows.n_factored)
        assert bytes_of(local) == bytes_of(before)
        train(rng, local)
        trained.append(local)
        summands.append(contribute(rule, rows, before, local.copy()))
    expected, _ = finalise(rule, table, 0, combine_all(summands), n_replicas, STEP)
    return expected, abreast.average(rule, trained, STEP, spread)


def test_rules_that_need_no_more_than_parameters_and_their_sums_are_averaged_at_once() -> None:
    assert {rule.weights for rule in RULES} == {"mean", "weighted", "precision"}
    assert {rule.accumulators for rule in RULES} == {"mean", "sum"}
    assert not any(is_at_once(MergeRule(), Layout(other, 4)) for other in ("ftrl", "adam"))
    assert not is_at_once(MergeRule(outer_momentum=0.5), Layout("adagrad", 4))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.family} {layout.n_factors}")
@given(seed=st.integers(0, 2**32), n_replicas=st.integers(2, 20), rule=st.sampled_from(RULES))
@settings(max_examples=25, deadline=None)
def test_the_bytes_are_those_of_summands_and_their_merge(
    layout: Layout, seed: int, n_replicas: int, rule: MergeRule
) -> None:
    expected, found = both_ways(seed, n_replicas, layout, rule)
    assert bytes_of(found) == bytes_of(expected)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.weights} {rule.accumulators}")
def test_sums_of_squares_that_overflow_are_no_numbers_after_a_merge(rule: MergeRule) -> None:
    """So that a training that went astray is told."""
    rng, layout = np.random.default_rng(0), Layout("adagrad", 8)
    table = a_table(rng, layout, 8, 8)
    touched = [
        dataclasses.replace(rows_that_touch(rng, 8, 8), features=np.arange(8, dtype=np.uint32), n_factored=8)
    ] * 2
    abreast, before = Abreast(table, touched), pull([table], touched[0].features)
    trained = [abreast.pull(0), abreast.pull(1)]
    for local in trained:
        for block in layout.touched:
            local[block.name][:, block.lanes :] = 3e38
    summands = combine_all([contribute(rule, touched[0], before, local.copy()) for local in trained])
    with np.errstate(over="ignore", invalid="ignore"):
        for merged in (finalise(rule, table, 0, summands, 2, STEP)[0], abreast.average(rule, trained, STEP, map)):
            for block in layout.touched:
                assert np.isnan(merged[block.name][:, block.lanes :]).all()


@pytest.mark.parametrize("rows", [16, 48])
def test_the_bytes_are_the_same_however_the_table_is_cut(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    layout = Layout("adagrad", 8)
    monkeypatch.setattr(at_once, "_CHUNK_BYTES", 4 * layout.factor_width * rows)
    monkeypatch.setattr(at_once, "_PIECE_BYTES", 4 * layout.factor_width * (rows * 3 // 2 + 1))
    with ThreadPoolExecutor(3) as pool:
        expected, found = both_ways(rows, 5, layout, MergeRule("weighted"), 1_500, pool.map)
    assert bytes_of(found) == bytes_of(expected)


def test_tables_of_replicas_lie_on_cache_lines_and_apart_from_each_other() -> None:
    rng = np.random.default_rng(0)
    table = a_table(rng, Layout("adagrad", 8), 100, 40)
    touched = [rows_that_touch(rng, 100, 40) for _ in range(4)]
    abreast = Abreast(table, touched)
    tables = [abreast.pull(replica) for replica in range(4)]
    for replica, (local, rows) in enumerate(zip(tables, touched, strict=True)):
        for array in (local.linear, local.factors):
            assert array.ctypes.data % 64 == 0
            array[...] = replica
        assert math.prod(local.linear.shape) == 2 * len(rows.features)
    for replica, local in enumerate(tables):
        assert np.all(local.linear == replica)
        assert np.all(local.factors == replica)


def test_few_rows_of_a_large_table_and_many_large_tables_are_averaged_by_summands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    touched = [rows_that_touch(rng, 40, 40) for _ in range(6)]
    n_touched = sum(len(rows.features) for rows in touched)
    tables = {more: a_table(rng, Layout("adagrad", 8), n_touched + more, 40) for more in (0, 1)}
    assert at_once.is_worth_it(tables[0], touched)
    assert not at_once.is_worth_it(tables[1], touched)
    assert not at_once.is_worth_it(a_table(rng, Layout("adagrad", 8), 1, 1), touched[:1])
    monkeypatch.setattr(at_once, "_MOST_BYTES", 4 * (2 + 16) * n_touched - 1)
    assert not at_once.is_worth_it(tables[0], touched)
