"""Numba's rounds beyond what every backend promises: rows that change nothing, threads, what optimizers are for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dfm.errors import SettingsError
from dfm.kernels.contract import Kernels, KernelSpec, Step
from dfm.kernels.cpu.backend import _score_all_of, compile_kernels, compile_scores
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.row_order import BLOCK_ROWS, row_blocks
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from tests import reference

N_FEATURES, N_FACTORED, N_FACTORS = 60, 45, 16
STEP = Step(0.05, 0.03, l2_linear=0.01, l2_factors=0.02)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compile_kernels(KernelSpec("logistic", "adagrad", N_FACTORS))


def make_table(optimizer: str = "adagrad") -> ParameterTable:
    ids = np.arange(N_FEATURES, dtype=np.uint32)
    layout = Layout(optimizer, N_FACTORS)
    return initialise(layout, ids, N_FACTORED, InitialValues(seed=7, init_stdev=0.3))


def make_rows(n_rows: int = 200, **changes: Any) -> reference.Rows:
    rows = reference.random_rows(n_rows, N_FEATURES, 20, n_implicit=n_rows)
    return dataclasses.replace(rows, **changes)


def trained(kernels: Kernels, rows: reference.Rows, step: Step = STEP) -> bytes:
    table = make_table()
    kernels.run_round(rows, table, step)
    return table.bias.tobytes() + table.linear.tobytes() + table.factors.tobytes()


def test_blocks_cover_every_row_once_and_never_mix_rows_with_and_without_values() -> None:
    for n_rows, n_implicit in ((0, 0), (1, 0), (5 * BLOCK_ROWS + 3, 2 * BLOCK_ROWS + 1), (BLOCK_ROWS, BLOCK_ROWS)):
        blocks = row_blocks(n_rows, n_implicit, seed=3)
        walked = [row for first, last in blocks for row in range(first, last)]
        assert sorted(walked) == list(range(n_rows))
        assert all(last <= n_implicit or first >= n_implicit for first, last in blocks)
        assert all(0 < last - first <= BLOCK_ROWS for first, last in blocks)
    orders = {tuple(row_blocks(20 * BLOCK_ROWS, 0, seed)[:, 0]) for seed in range(10)}
    assert len(orders) == 10


def test_rows_whose_values_are_stored_ones_train_like_rows_that_store_none(kernels: Kernels) -> None:
    rows = make_rows()
    stored = dataclasses.replace(rows, values=np.ones(len(rows.indices), np.float32), n_implicit=0)
    assert trained(kernels, rows) == trained(kernels, stored)
    table = make_table()
    assert kernels.scores(rows, table).tobytes() == kernels.scores(stored, table).tobytes()


def test_a_row_of_weight_zero_changes_nothing_not_even_by_regularisation(kernels: Kernels) -> None:
    rows = make_rows(100)
    weights = np.ones(100, np.float32)
    weights[50:] = 0
    half = reference.random_rows(100, N_FEATURES, 20, n_implicit=100)
    stop = int(half.indptr[50])
    first = dataclasses.replace(
        half, indptr=half.indptr[:51], indices=half.indices[:stop], labels=half.labels[:50], n_implicit=50
    )
    assert trained(kernels, dataclasses.replace(rows, weights=weights)) == trained(kernels, first)


def test_weights_of_one_are_no_weights(kernels: Kernels) -> None:
    rows = make_rows(weights=np.ones(200, np.float32))
    assert trained(kernels, rows) == trained(kernels, make_rows())


def test_adam_takes_a_step_of_the_learning_rate_whenever_a_feature_comes_for_the_first_time() -> None:
    """Its moments are corrected by what the feature has seen, not by the rows of others before."""
    kernels = compile_kernels(KernelSpec("logistic", "adam", 0))
    layout = Layout("adam", 0)
    table = initialise(layout, np.arange(2, dtype=np.uint32), 0, InitialValues(0))
    rows = reference.Rows(
        np.arange(1001), np.array([0] * 999 + [1], np.uint32), np.zeros(0, np.float32),
        np.array([0, 1] * 500, np.float32), np.zeros(0, np.float32), 1000,
    )  # fmt: skip
    kernels.run_round(rows, table, Step(0.01, 0.01))
    assert table.linear[1, 0] == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("optimizer", [name for name, one in OPTIMIZERS.items() if one.state == "means"])
def test_running_means_stay_where_a_row_weighs_nothing(optimizer: str) -> None:
    kernels = compile_kernels(KernelSpec("logistic", optimizer, 3))
    ids = np.arange(N_FEATURES, dtype=np.uint32)
    table = initialise(Layout(optimizer, 3), ids, N_FACTORED, InitialValues(0))
    kernels.run_round(make_rows(), table, STEP)
    before = table.copy()
    kernels.run_round(make_rows(weights=np.zeros(200, np.float32)), table, STEP)
    for name in ("linear", "factors", "bias"):
        assert getattr(table, name).tobytes() == getattr(before, name).tobytes()


def test_padding_stays_zero(kernels: Kernels) -> None:
    three = compile_kernels(KernelSpec("logistic", "ftrl", 3))
    layout = Layout("ftrl", 3)
    table = initialise(layout, np.arange(N_FEATURES, dtype=np.uint32), N_FACTORED, InitialValues(7, 0.3))
    three.run_round(make_rows(), table, STEP)
    assert table.factor_weights.any()
    assert not table.factors[:, 3 : layout.lanes].any()


def test_ftrl_leaves_exact_zeros_and_more_of_them_with_more_l1() -> None:
    kernels = compile_kernels(KernelSpec("logistic", "ftrl", 3))
    zeros = []
    for l1 in (0.0, 1.0, 5.0):
        ids = np.arange(N_FEATURES, dtype=np.uint32)
        table = initialise(Layout("ftrl", 3), ids, N_FACTORED, InitialValues(7, 0.3))
        kernels.run_round(make_rows(), table, dataclasses.replace(STEP, l1_linear=l1))
        zeros.append(int(np.count_nonzero(table.linear_weights == 0)))
    assert zeros[0] < zeros[1] < zeros[2]


def test_threads_that_share_a_table_walk_every_row_and_learn_as_well(kernels: Kernels) -> None:
    rows = make_rows(6 * BLOCK_ROWS)
    alone, shared = make_table(), make_table()
    for seed in range(3):
        step = dataclasses.replace(STEP, seed=seed)
        expected = kernels.run_round(rows, alone, step)
        tally = kernels.run_round(rows, shared, dataclasses.replace(step, n_threads=2))
        assert tally.rows == 6 * BLOCK_ROWS
    assert tally.mean_loss == pytest.approx(expected.mean_loss, rel=0.1)


def test_rounds_learn_an_interaction_that_no_linear_model_can(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 2000))
    rows = reference.Rows(
        np.arange(0, 4001, 2), np.stack([a, b + 2], 1).ravel().astype(np.uint32), np.zeros(0, np.float32),
        (a ^ b).astype(np.float32), np.zeros(0, np.float32), 2000,
    )  # fmt: skip
    layout, ids, initial = Layout("adagrad", N_FACTORS), np.arange(4, dtype=np.uint32), InitialValues(7, 0.3)
    losses = {}
    for n_factored in (0, 4):
        table = initialise(layout, ids, n_factored, initial)
        losses[n_factored] = [kernels.run_round(rows, table, Step(0.2, 0.2, seed=s)).mean_loss for s in range(4)]
    assert losses[4][-1] < 0.02
    assert losses[0][-1] > 0.69


def test_a_rate_below_zero_is_refused() -> None:
    with pytest.raises(SettingsError, match="learning_rate = -1"):
        Step(-1.0, 0.1)


def test_kernels_are_compiled_once_per_process(kernels: Kernels) -> None:
    assert compile_kernels(KernelSpec("logistic", "adagrad", N_FACTORS)) is kernels


def test_one_kernel_scores_tables_of_every_optimizer_and_those_without_state() -> None:
    rows = make_rows(n_rows=40)
    for optimizer in OPTIMIZERS:
        table = make_table(optimizer)
        scores = compile_kernels(KernelSpec("logistic", optimizer, N_FACTORS)).scores(rows, table)
        compiled = _score_all_of.cache_info().misses
        assert np.array_equal(scores, compile_scores(table.layout.stateless)(rows, table.without_state()))
        assert _score_all_of.cache_info().misses == compiled
