"""Learning from pairs of rows: which pairs there are, and that a step is the one of the definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dfm.errors import SettingsError
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.pairs import sampled_pairs
from dfm.kernels.row_order import BLOCK_ROWS, row_blocks
from tests import reference
from tests.support.kernel_cases import PENALTIES, as_machine, assert_equal_parameters, make_rows, make_table


def grouped(rows: reference.Rows, n_groups: int = 9) -> reference.Rows:
    ids = np.random.default_rng(5).integers(0, n_groups, len(rows.labels)).astype(np.uint64)
    return dataclasses.replace(rows, group_ids=ids)


def pairs_in_order(rows: reference.Rows, seed: int) -> list[tuple[int, int]]:
    pairs = sampled_pairs(rows.group_ids, rows.labels, rows.weights, seed).tolist()
    blocks = row_blocks(len(pairs), len(pairs), seed)
    return [(p, n) for first, last in blocks for p, n in pairs[first:last]]


def test_each_clicked_row_meets_some_unclicked_row_of_its_group() -> None:
    rows = grouped(make_rows(400))
    met: dict[int, list[int]] = {}
    for seed in range(300):
        for p, n in sampled_pairs(rows.group_ids, rows.labels, rows.weights, seed).tolist():
            met.setdefault(p, []).append(n)
    live = [row for row in range(400) if rows.weights[row] > 0]
    for p, found in met.items():
        legal = [n for n in live if not rows.labels[n] and rows.group_ids[n] == rows.group_ids[p]]
        assert rows.labels[p]
        assert rows.weights[p] > 0
        assert set(found) <= set(legal)
        counts = [found.count(n) for n in legal]
        assert max(counts) < 300 / len(legal) + 6 * (300 / len(legal)) ** 0.5, "no partner comes up more than by chance"
        assert len(found) == 300, "once in every walk"
    of_partners = {rows.group_ids[row] for row in live if not rows.labels[row]}
    assert {*met} == {row for row in live if rows.labels[row] and rows.group_ids[row] in of_partners}


@pytest.mark.parametrize(("optimizer", "n_factors"), [("adagrad", 16), ("sgd", 5)])
def test_rounds_of_pairs_agree_with_the_definition(optimizer: str, n_factors: int) -> None:
    """Rows with stored values and without meet in a pair; there are more pairs than a block has."""
    rows = grouped(make_rows(1800, 12))
    rates = (0.05, 0.02) if optimizer == "adagrad" else (0.004, 0.002)
    rule = reference.Rule("bpr", optimizer, *rates, **PENALTIES)
    table = make_table(optimizer, n_factors)
    machine, kernels = as_machine(table), numba_cpu.compile_kernels(KernelSpec("bpr", optimizer, n_factors))
    for seed in range(2):
        pairs = pairs_in_order(rows, seed)
        assert len(pairs) > BLOCK_ROWS
        tally = kernels.run_round(rows, table, Step(*rates, **PENALTIES, seed=seed, deterministic=True))
        loss = reference.train_pairs(machine, rows, pairs, rule)
        assert (tally.rows, tally.is_finite) == (1800, True)
        assert tally.weight == sum(rows.weight(p) for p, _ in pairs)
        np.testing.assert_allclose(tally.loss, loss, rtol=2e-6)
        assert_equal_parameters(table, machine)
    assert table.bias_value == 0, "what all rows have alike is not learnt from pairs"
    expected = [machine.score(rows.entries(row)) for row in range(1800)]
    np.testing.assert_allclose(kernels.scores(rows, table), expected, rtol=1e-4, atol=1e-4)


def two_rows(entries: tuple[list[tuple[int, float]], list[tuple[int, float]]]) -> reference.Rows:
    """A clicked and an unclicked row of one group, with stored values."""
    indices, values = zip(*(entry for row in entries for entry in row), strict=True)
    return reference.Rows(
        np.array([0, len(entries[0]), len(indices)]),
        np.array(indices, np.uint32),
        np.array(values, np.float32),
        np.array([1, 0], np.float32),
        np.zeros(0, np.float32),
        0,
        group_ids=np.zeros(2, np.uint64),
    )


PAIR = two_rows(([(0, 1.0), (1, 1.0), (2, 0.5), (3, 2.0)], [(1, 1.0), (4, 1.5), (0, 1.0), (2, -1.0)]))
"""Features 0 and 1 are equal in both rows, 2 differs, 3 and 4 are in one of them."""


def test_a_step_goes_down_the_gradient_that_finite_differences_give() -> None:
    """By SGD with a rate of 1, from a table whose linear weights are not 0."""
    kernels, table = numba_cpu.compile_kernels(KernelSpec("bpr", "sgd", 5)), make_table("sgd", 5)
    table.values(table.layout.block("linear"))[...] = np.random.default_rng(1).normal(size=len(table.linear))
    machine, before = as_machine(table), table.copy()
    kernels.run_round(PAIR, table, Step(1.0, 1.0))

    def loss() -> float:
        return reference.loss_of(reference.Rule(), reference.pair_difference(machine, PAIR, 0, 1), 1.0)

    def slope(array: np.ndarray, at: tuple[int, ...]) -> float:
        kept, found = array[at], []
        for side in (-1e-6, 1e-6):
            array[at] = kept + side
            found.append(loss())
        array[at] = kept
        return (found[1] - found[0]) / 2e-6

    for j in range(6):
        moved = before.linear_weights[j] - table.linear_weights[j]
        assert moved == pytest.approx(slope(machine.linear, (j,)), abs=2e-6)
        for f in range(5):
            moved = before.factor_weights[j, f] - table.factor_weights[j, f]
            assert moved == pytest.approx(slope(machine.factors, (j, f)), abs=2e-6)


def test_what_is_equal_in_both_rows_cancels() -> None:
    kernels, table = numba_cpu.compile_kernels(KernelSpec("bpr", "adagrad", 16)), make_table()
    before = table.copy()
    kernels.run_round(PAIR, table, Step(0.1, 0.1))
    moved = (table.linear_weights != before.linear_weights).nonzero()[0].tolist()
    assert moved == [2, 3, 4]
    assert (table.factor_weights != before.factor_weights).any(axis=1).nonzero()[0].tolist() == [0, 1, 2, 3, 4]
    alike = two_rows(([(0, 1.0), (1, 2.0)], [(1, 2.0), (0, 1.0)]))
    before = table.copy()
    tally = kernels.run_round(alike, table, Step(0.1, 0.1))
    assert tally.loss == pytest.approx(np.log(2))
    np.testing.assert_array_equal(table.factors, before.factors, "rows that are the same teach nothing")


def test_rows_without_groups_or_partners_and_gpus_are_told() -> None:
    kernels = numba_cpu.compile_kernels(KernelSpec("bpr", "adagrad", 16))
    with pytest.raises(ValueError, match="0 group ids for 160 rows"):
        kernels.run_round(make_rows(), make_table(), Step(0.1, 0.1))
    alone = dataclasses.replace(make_rows(), group_ids=np.arange(160, dtype=np.uint64))
    tally = kernels.run_round(alone, make_table(), Step(0.1, 0.1))
    assert (tally.rows, tally.weight, tally.is_finite) == (160, 0.0, True)
    with pytest.raises(SettingsError, match=r"the GPU has no code for the loss 'bpr'.*training\.backend = .numba"):
        cupy_gpu.source_of(KernelSpec("bpr", "adagrad", 16))
    with pytest.raises(SettingsError, match=r"'bpr' is of pairs of rows, which family = .ffm. does not know"):
        numba_cpu.compile_kernels(KernelSpec("bpr", "adagrad", 4, family="ffm", groups=(0, 1)))
