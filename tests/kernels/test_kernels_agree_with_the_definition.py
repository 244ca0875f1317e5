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
N_FIELDS = 5
CASES = [
    ("fm", "logistic", "adagrad", 16),
    ("fm", "squared", "adagrad-row", 20),
    ("fm", "logistic", "ftrl", 3),
    ("fm", "logistic", "sgd", 80),
    ("fm", "logistic", "adagrad", 0),
    ("fm", "logistic", "adam", 16),
    ("fm", "poisson", "adam", 0),
    ("fm", "hinge", "sgd", 0),
    ("fm", "squared-hinge", "sgd", 0),
    ("fm", "quantile", "sgd", 0),
    ("fm", "huber", "sgd", 0),
    ("fwfm", "logistic", "adagrad", 8),
    ("fwfm", "squared", "adagrad-row", 5),
    ("fwfm", "logistic", "ftrl", 4),
    ("fwfm", "logistic", "sgd", 80),
    ("fwfm", "logistic", "adam", 4),
    ("fwfm", "logistic", "adagrad", 0),
]
PARAMETERS = {"quantile": 0.8, "huber": 0.7}
ODD_SIZES = [1, 2, 7, 33, 64, 65, 112, 129, 256]
PENALTIES = {"l2_linear": 0.02, "l2_factors": 0.05}


FIELDS = np.random.default_rng(3).integers(0, N_FIELDS, N_FEATURES).astype(np.uint16)
PAIRS = [(low, high) for high in range(N_FIELDS) for low in range(high + 1)]


def make_table(optimizer: str, n_factors: int, family: str = "fm") -> ParameterTable:
    ids, initial = np.arange(N_FEATURES, dtype=np.uint32), InitialValues(seed=7, init_stdev=0.3)
    return initialise(Layout(optimizer, n_factors, family), ids, N_FACTORED, initial, N_FIELDS)


def as_machine(table: ParameterTable) -> reference.Machine:
    machine = reference.Machine(
        float(table.bias_value), table.linear_weights.astype(float), table.factor_weights.astype(float)
    )
    if table.layout.family == "fwfm":
        machine.fields, machine.strengths = FIELDS, dict(zip(PAIRS, strengths_of(table), strict=True))
    return machine


def strengths_of(table: ParameterTable) -> list[float]:
    return [float(number) for number in table.values(table.layout.block("strengths"))]


def assert_equal_parameters(table: ParameterTable, machine: reference.Machine) -> None:
    np.testing.assert_allclose(table.bias_value, machine.bias, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(table.linear_weights, machine.linear, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(table.factor_weights, machine.factors, rtol=1e-4, atol=2e-6)
    if machine.strengths:
        np.testing.assert_allclose(strengths_of(table), [machine.strengths[pair] for pair in PAIRS], rtol=1e-4)


def rows_with_fields() -> reference.Rows:
    rows = reference.random_rows(160, N_FEATURES, 25, n_implicit=90, weighted=True)
    return dataclasses.replace(rows, fields=FIELDS)


@pytest.mark.parametrize(("family", "loss", "optimizer", "n_factors"), CASES)
def test_rounds_agree_with_the_definition(family: str, loss: str, optimizer: str, n_factors: int) -> None:
    rows = rows_with_fields()
    penalties = {**PENALTIES, "l1_linear": 0.3} if optimizer == "ftrl" else PENALTIES
    step = Step(learning_rate=0.05, factor_learning_rate=0.02, **penalties)
    parameter = PARAMETERS.get(loss)
    rule = reference.Rule(loss, optimizer, 0.05, 0.02, loss_parameter=parameter or 0.0, **penalties)
    kernels = compile_kernels(KernelSpec(loss, optimizer, n_factors, loss_parameter=parameter, family=family))
    table = make_table(optimizer, n_factors, family)
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
    test_rounds_agree_with_the_definition("fm", "logistic", optimizer, n_factors)


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


def test_an_untrained_field_weighted_machine_is_a_factorization_machine() -> None:
    rows, scores = rows_with_fields(), {}
    for family in ("fm", "fwfm"):
        spec = KernelSpec("logistic", "adagrad", 16, family=family)
        scores[family] = compile_kernels(spec).scores(rows, make_table("adagrad", 16, family))
    np.testing.assert_allclose(scores["fwfm"], scores["fm"], rtol=1e-6, atol=1e-6)


def test_strengths_are_learnt_where_pairs_of_fields_matter_differently() -> None:
    """Only the pair of fields 0 and 1 decides; the others are noise."""
    rng = np.random.default_rng(5)
    features = np.stack([2 * field + rng.integers(0, 2, 4000) for field in range(3)], axis=1)
    labels = (features[:, 0] % 2 == features[:, 1] % 2).astype(np.float32)
    rows = reference.Rows(
        np.arange(0, 12001, 3), features.astype(np.uint32).reshape(-1), np.zeros(0, np.float32), labels,
        np.zeros(0, np.float32), 4000, np.repeat(np.arange(3), 2).astype(np.uint16),
    )  # fmt: skip
    spec = KernelSpec("logistic", "adagrad", 8, family="fwfm")
    table = initialise(spec.layout, np.arange(6, dtype=np.uint32), 6, InitialValues(1, 0.3), 3)
    kernels = compile_kernels(spec)
    for seed in range(5):
        kernels.run_round(rows, table, Step(0.1, 0.1, seed=seed))
    strengths = dict(zip(PAIRS[:6], strengths_of(table), strict=True))
    assert strengths[0, 1] > 1.1 > max(abs(strengths[0, 2]), abs(strengths[1, 2]))
    assert {strengths[field, field] for field in range(3)} == {1.0}, "no row has two of a field"


def test_rows_that_do_not_know_fields_are_refused_where_they_are_needed() -> None:
    spec = KernelSpec("logistic", "adagrad", 16, family="fwfm")
    kernels, table, rows = compile_kernels(spec), make_table("adagrad", 16, "fwfm"), rows_with_fields()
    for fields in (FIELDS[:0], FIELDS[:-1], np.full_like(FIELDS, N_FIELDS)):
        with pytest.raises(ValueError, match="the field of each feature"):
            kernels.scores(dataclasses.replace(rows, fields=fields), table)
