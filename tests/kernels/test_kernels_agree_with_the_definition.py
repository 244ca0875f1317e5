"""Logits, one step and whole rounds of the compiled kernels against `reference.py`, to float32 rounding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.row_order import row_blocks
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from tests import reference

N_FEATURES, N_FACTORED = 60, 45
CASES = [
    ("logistic", "adagrad", 16),
    ("squared", "adagrad-row", 20),
    ("logistic", "ftrl", 3),
    ("logistic", "sgd", 80),
    ("logistic", "adagrad", 0),
    ("logistic", "adam", 16),
    ("poisson", "adam", 0),
    ("hinge", "sgd", 0),
    ("quantile", "sgd", 0),
    ("huber", "sgd", 0),
]
PARAMETERS = {"quantile": 0.8, "huber": 0.7}
ODD_SIZES = [1, 2, 7, 33, 64, 65, 112, 129, 256]
PENALTIES = {"l2_linear": 0.02, "l2_factors": 0.05}


def make_table(optimizer: str, n_factors: int) -> ParameterTable:
    ids = np.arange(N_FEATURES, dtype=np.uint32)
    return initialise(Layout(optimizer, n_factors), ids, N_FACTORED, InitialValues(seed=7, init_stdev=0.3))


def as_machine(table: ParameterTable) -> reference.Machine:
    return reference.Machine(
        float(table.bias_value), table.linear_weights.astype(float), table.factor_weights.astype(float)
    )


def assert_equal_parameters(table: ParameterTable, machine: reference.Machine) -> None:
    np.testing.assert_allclose(table.bias_value, machine.bias, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(table.linear_weights, machine.linear, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(table.factor_weights, machine.factors, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("loss", "optimizer", "n_factors"), CASES)
def test_rounds_agree_with_the_definition(loss: str, optimizer: str, n_factors: int) -> None:
    rows = reference.random_rows(160, N_FEATURES, 25, n_implicit=90, weighted=True)
    penalties = {**PENALTIES, "l1_linear": 0.3} if optimizer == "ftrl" else PENALTIES
    step = Step(learning_rate=0.05, factor_learning_rate=0.02, **penalties)
    parameter = PARAMETERS.get(loss)
    rule = reference.Rule(loss, optimizer, 0.05, 0.02, loss_parameter=parameter or 0.0, **penalties)
    kernels = compile_kernels(KernelSpec(loss, optimizer, n_factors, loss_parameter=parameter))
    table = make_table(optimizer, n_factors)
    machine = as_machine(table)

    expected = [machine.score(rows.entries(row)) for row in range(160)]
    np.testing.assert_allclose(kernels.scores(rows, table), expected, rtol=1e-5, atol=1e-5)

    for seed in range(2):
        order = [row for first, last in row_blocks(160, 90, seed) for row in range(first, last)]
        assert sorted(order) == list(range(160))
        tally = kernels.run_round(rows, table, dataclasses.replace(step, seed=seed))
        loss_sum = reference.train(machine, rows, order, rule)
        assert tally.rows == 160
        assert tally.is_finite
        assert tally.weight == sum(rows.weight(row) for row in range(160))
        np.testing.assert_allclose(tally.loss, loss_sum, rtol=2e-6)
        assert_equal_parameters(table, machine)


@pytest.mark.slow
@pytest.mark.parametrize("n_factors", ODD_SIZES)
@pytest.mark.parametrize("optimizer", ["adagrad", "adagrad-row"])
def test_any_number_of_factors_agrees_with_the_definition(optimizer: str, n_factors: int) -> None:
    test_rounds_agree_with_the_definition("logistic", optimizer, n_factors)


def test_one_step_changes_only_what_the_row_touches() -> None:
    kernels = compile_kernels(KernelSpec("logistic", "adagrad", 16))
    rows = reference.Rows(
        np.array([0, 3]), np.array([2, 50, 7], np.uint32), np.zeros(0, np.float32),
        np.ones(1, np.float32), np.zeros(0, np.float32), 1,
    )  # fmt: skip
    table = make_table("adagrad", 16)
    before, machine = table.copy(), as_machine(table)
    kernels.run_round(rows, table, Step(0.1, 0.1, **PENALTIES))
    reference.train(machine, rows, [0], reference.Rule(**PENALTIES))
    assert_equal_parameters(table, machine)
    changed = np.flatnonzero((table.linear != before.linear).any(axis=1))
    assert changed.tolist() == [2, 7, 50]
    assert np.flatnonzero((table.factors != before.factors).any(axis=1)).tolist() == [2, 7]
