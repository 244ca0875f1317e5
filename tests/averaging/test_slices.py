"""Several slices walked between two averages: their features united, each trained from where the last one ended."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm.averaging import slices as slices_module
from dfm.averaging.at_once import Abreast
from dfm.averaging.merge import contribute
from dfm.averaging.rules import WEIGHT_RULES, MergeRule
from dfm.averaging.slices import Slices
from dfm.data.partition import SparsePartition
from dfm.kernels.contract import Following, KernelSpec, RoundTally, RowsLike, Step
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise, pull
from dfm.training import rounds
from dfm.training.backends import BACKENDS, NUMBA

FEATURES = st.lists(st.integers(0, 70_000), unique=True, max_size=60).map(sorted)


def partition_of(features: list[int], n_owners: int, rng: np.random.Generator) -> SparsePartition:
    """Rows of which each has every feature once in a while; the features below `n_owners` own factors."""
    n_rows = 40
    rows = [np.sort(rng.choice(len(features), min(5, len(features)), replace=False)) for _ in range(n_rows)]
    rows[: len(features)] = [np.array([number]) for number in range(min(len(features), n_rows))]
    return SparsePartition(
        np.cumsum([0] + [len(row) for row in rows]).astype(np.int64),
        np.concatenate(rows).astype(np.uint32),
        np.zeros(0, np.float32),
        rng.integers(0, 2, n_rows).astype(np.float32),
        rng.uniform(0.5, 2, n_rows).astype(np.float32),
        np.array(features, np.uint32),
        sum(feature < n_owners for feature in features),
        n_rows,
    )


def drawn(seed: int, n_slices: int, n_features: int = 50, n_owners: int = 20) -> list[SparsePartition]:
    rng = np.random.default_rng(seed)
    chosen = [sorted(rng.choice(n_features, int(rng.integers(5, 30)), replace=False)) for _ in range(n_slices)]
    return [partition_of([int(feature) for feature in each], n_owners, rng) for each in chosen]


# --- the union ------------------------------------------------------------------------------------------


@given(st.lists(FEATURES, min_size=1, max_size=5), st.integers(0, 70_000))
def test_the_union_holds_every_feature_once_and_knows_where_each_stands(lists: list[list[int]], n_owners: int) -> None:
    rng = np.random.default_rng(0)
    parts = [dataclasses.replace(partition_of([0], 0, rng), features=np.array(each, np.uint32),
                                 n_factored=sum(feature < n_owners for feature in each)) for each in lists]  # fmt: skip
    united = Slices.of(parts)
    assert united.features.tolist() == sorted({feature for each in lists for feature in each})
    assert united.n_factored == sum(feature < n_owners for feature in united.features.tolist())
    for each, position in zip(lists, united.positions, strict=True):
        assert united.features[position].tolist() == each


def test_features_at_the_end_of_the_range_of_indices_are_united_too() -> None:
    far = partition_of([2**32 - 20_000, 2**32 - 2], 0, np.random.default_rng(0))
    last = dataclasses.replace(far, features=np.array([3, 2**32 - 2], np.uint32))
    assert Slices.of([far, last]).features.tolist() == [3, 2**32 - 20_000, 2**32 - 2]


def test_close_features_and_far_ones_are_united_in_one_list() -> None:
    rng = np.random.default_rng(7)
    close, far = np.arange(100_000), rng.integers(200_000, 2**32 - 1, 3_000)
    more = np.arange(2**31, 2**31 + 50_000)
    lists = [
        np.unique(np.concatenate([rng.choice(close, 60_000), far[half::2], rng.choice(more, 20_000)])).astype(np.uint32)
        for half in (0, 1)
    ]
    united, positions = slices_module.unite(lists)
    np.testing.assert_array_equal(united, np.unique(np.concatenate(lists)))
    for each, position in zip(lists, positions, strict=True):
        np.testing.assert_array_equal(united[position], each)


def test_lists_longer_than_what_is_looked_at_together_are_united() -> None:
    long = [np.arange(start, 3 * slices_module._CHUNK, step, dtype=np.uint32) for start, step in ((0, 2), (1, 3))]
    some = partition_of([0], 0, np.random.default_rng(0))
    united = Slices.of([dataclasses.replace(some, features=each, n_factored=0) for each in long])
    np.testing.assert_array_equal(united.features, np.unique(np.concatenate(long)))


def test_a_union_is_remembered_as_long_as_its_lists_are_there() -> None:
    unions, lists = slices_module._Unions(1 << 10), [np.array(each, np.uint32) for each in ([1, 5], [2, 5], [])]
    first = unions.of(lists)
    assert unions.of(lists) is first
    assert unions.of(lists[:2]) is not first
    assert unions.of([lists[1], lists[0], lists[2]])[1][0].tolist() == [1, 2]
    assert unions._n_bytes == sum(slices_module._bytes_of(union) for _, union in unions._kept.values()) > 0
    del lists[2]
    assert len(unions._kept) == 1  # the one of the two that are left
    lists.clear()
    assert not unions._kept
    assert unions._n_bytes == 0


def test_unions_of_unions_are_forgotten_with_the_lists_of_the_first() -> None:
    unions = slices_module._Unions(1 << 20)
    for _ in range(3):
        lists = [[np.arange(start, start + 50, dtype=np.uint32) for start in starts] for starts in ((0, 9), (30, 70))]
        first = [unions.of(each) for each in lists]
        assert unions.of([united for united, _ in first])[0].tolist() == list(range(120))
        assert len(unions._kept) == 3
        del first
        lists.clear()
        assert not unions._kept
        assert unions._n_bytes == 0


def test_a_union_of_others_at_the_same_place_is_not_taken() -> None:
    unions, lists = slices_module._Unions(1 << 10), [np.array([1, 5], np.uint32), np.array([2], np.uint32)]
    others = [np.array([3], np.uint32), np.array([4, 6], np.uint32)]
    unions.of(lists)
    unions._kept = {tuple(map(id, others)): kept for kept in unions._kept.values()}  # as if nobody had seen their end
    assert unions.of(others)[0].tolist() == [3, 4, 6]
    assert unions._n_bytes == sum(slices_module._bytes_of(union) for _, union in unions._kept.values())


def test_nobody_can_change_a_union_that_others_get_too() -> None:
    united, positions = slices_module._Unions(1 << 10).of([np.array([1, 5], np.uint32), np.array([2], np.uint32)])
    assert not united.flags.writeable
    assert not any(each.flags.writeable for each in positions)


def test_no_more_unions_are_remembered_than_there_is_room_for() -> None:
    unions, lists = slices_module._Unions(100), [np.arange(10, dtype=np.uint32), np.arange(5, 15, dtype=np.uint32)]
    assert unions.of(lists)[0].tolist() == unions.of(lists)[0].tolist() == list(range(15))
    assert not unions._kept
    assert unions.of([lists[0][:3]]) is not unions.of([lists[0][:3]])


def test_a_list_at_the_place_of_one_that_is_gone_is_another() -> None:
    unions = slices_module._Unions(1 << 20)
    for number in range(100):  # most of them lie where one before lay
        assert unions.of([np.array([number], np.uint32), np.array([7], np.uint32)])[0].tolist() == sorted({number, 7})


def test_weights_and_occurrences_are_those_of_all_slices() -> None:
    parts = drawn(3, 3)
    united = Slices.of(parts)
    assert united.total_weight == pytest.approx(sum(float(part.weights.astype(np.float64).sum()) for part in parts))
    counts = dict.fromkeys(united.features.tolist(), 0)
    for part in parts:
        for feature in part.features[part.indices].tolist():
            counts[feature] += 1
    assert united.occurrences().tolist() == list(counts.values())


# --- a round --------------------------------------------------------------------------------------------


def work_of(optimizer: str, rule: MergeRule) -> rounds.Work:
    return rounds.Work(KernelSpec("logistic", optimizer, 3), rule, Step(0.1, 0.1, seed=5), 1)


def untrained(optimizer: str) -> ParameterTable:
    return initialise(Layout(optimizer, 3), np.arange(50, dtype=np.uint32), 20, InitialValues(1, 0.3))


def walked(table: ParameterTable, parts: list[SparsePartition], work: rounds.Work) -> ParameterTable:
    """By definition: one whole table, from which each slice takes what it touches, and to which it gives it back."""
    whole = table.copy()
    for number, part in enumerate(parts):
        local = pull([whole], part.features, part.n_factored)
        seed = work.step.seed + number * rounds._SEED_STRIDE
        work.kernels.run_round(part, local, dataclasses.replace(work.step, seed=seed))
        whole.bias[:] = local.bias
        whole.linear[part.features] = local.linear
        whole.factors[part.features[: local.n_factored]] = local.factors
    return whole


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_slices_are_trained_one_after_the_other_on_one_table(optimizer: str, n_blocks: int) -> None:
    work, parts, table = work_of(optimizer, MergeRule("mean")), drawn(1, 3), untrained(optimizer)
    bounds = [50 * number // n_blocks for number in range(n_blocks + 1)]
    blocks = [
        rounds.Block(start, pull([table], np.arange(start, stop, dtype=np.uint32)))
        for start, stop in itertools.pairwise(bounds)
    ]
    push = rounds.train_replicas(work, 0, range(3), blocks, [parts])
    merged = [rounds.merge_block(work, block, [push]) for block in blocks]
    expected = walked(table, parts, work)
    found = rounds.whole_table(merged)
    np.testing.assert_allclose(found.linear_weights, expected.linear_weights, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.factor_weights, expected.factor_weights, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.bias_value, expected.bias_value, rtol=1e-6)
    (report,) = push.reports
    assert report.tally.rows == sum(part.n_rows for part in parts)


@pytest.mark.parametrize("weights", WEIGHT_RULES)
def test_a_replica_contributes_what_all_its_slices_changed_in_all(weights: str) -> None:
    rule, parts, table = MergeRule(weights), drawn(2, 2), untrained("adagrad")
    work = work_of("adagrad", rule)
    (found,) = [rounds.train_replicas(work, 0, range(2), [rounds.Block(0, table)], [parts]).contribution]
    united = Slices.of(parts)
    after = pull([walked(table, parts, work)], united.features, united.n_factored)
    expected = contribute(rule, united, pull([table], united.features, united.n_factored), after)
    np.testing.assert_array_equal(found.features, expected.features)
    for name in ("linear", "factors", "bias"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert found.rows == expected.rows


def test_slices_of_one_round_are_walked_in_different_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    (part,), table = drawn(4, 1), untrained("adagrad")
    work = work_of("adagrad", MergeRule("mean"))
    kernels, seeds = work.kernels, []

    def run_round(rows: RowsLike, local: ParameterTable, step: Step, following: Following | None = None) -> RoundTally:
        seeds.append(step.seed)
        return kernels.run_round(rows, local, step)

    replaced = dataclasses.replace(kernels, run_round=run_round)
    monkeypatch.setitem(BACKENDS, "numba", dataclasses.replace(NUMBA, compiled=lambda _: replaced))
    rounds.train_replicas(work, 0, range(2), [rounds.Block(0, table)], [[part, part], [part, part]])
    assert len(seeds) == len(set(seeds)) == 4


@pytest.mark.parametrize("abreast", [False, True])
def test_a_walk_is_told_what_is_walked_after_it(monkeypatch: pytest.MonkeyPatch, abreast: bool) -> None:
    parts, table, work = drawn(4, 6), untrained("adagrad"), work_of("adagrad", MergeRule("mean"))
    kernels, walks, announced = work.kernels, [], []

    def run_round(rows: RowsLike, local: ParameterTable, step: Step, following: Following | None = None) -> RoundTally:
        walks.append((id(rows), step.seed))
        announced.append((id(following.rows), following.seed) if following else None)
        return kernels.run_round(rows, local, step)

    replaced = dataclasses.replace(kernels, run_round=run_round)
    monkeypatch.setitem(BACKENDS, "numba", dataclasses.replace(NUMBA, compiled=lambda _: replaced))
    block = rounds.Block(0, table)
    if abreast:
        walked = [parts[1:3], parts[4:]]
        tables = Abreast(table, [Slices.of(each) for each in walked])
        rounds.train_abreast(work, block, walked, tables, [range(2)], map)
    else:
        rounds.train_replicas(work, 3, range(1, 3), [block], [parts[:3], parts[3:]])
    assert announced == [*walks[1:], None]
    assert [walk for walk, _ in walks] == [id(part) for part in (parts[1], parts[2], parts[4], parts[5])]
