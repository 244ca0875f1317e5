"""Families whose terms have more features than two: every order by enumeration, and what its arithmetic must keep."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.kernels.families.registry import FAMILIES, family_of
from dfm.kernels.row_order import row_blocks
from dfm.kernels.tables import Layout, ParameterTable
from tests import reference
from tests.kernels.test_families import logistic_loss
from tests.support.kernel_cases import N_FEATURES, as_machine, assert_equal_parameters, make_rows, make_table

ORDERED = [name for name in FAMILIES if family_of(name).orders]


def short_rows(n_rows: int = 24) -> reference.Rows:
    """Rows of up to 12 entries, some of them none: all sets of five of them are few enough."""
    return make_rows(n_rows, longest=12)


@pytest.mark.parametrize(("family", "order"), [("hofm", 4), ("hofm", 5), ("polynomial", 3)])
def test_scores_and_steps_of_any_order_are_those_of_every_choice_of_features(family: str, order: int) -> None:
    rows, rule = short_rows(), reference.Rule("squared", "sgd", 0.01, 0.01, 0.02, 0.05)
    table = make_table("sgd", 3, family=family, order=order)
    kernels, machine = compile_kernels(KernelSpec("squared", "sgd", 3, family=family, order=order)), as_machine(table)
    expected = [machine.score(rows.entries(row)) for row in range(len(rows.labels))]
    np.testing.assert_allclose(kernels.scores(rows, table), expected, rtol=1e-5, atol=1e-5)
    kernels.run_round(rows, table, Step(0.01, 0.01, 0.02, 0.05))
    order_of_rows = [row for first, last in row_blocks(24, rows.n_implicit, 0) for row in range(first, last)]
    reference.train(machine, rows, order_of_rows, rule)
    assert_equal_parameters(table, machine)


@pytest.mark.parametrize("family", ORDERED)
def test_the_derivatives_of_the_definition_are_its_differences(family: str) -> None:
    rows, step = short_rows(), 1e-5
    entries = max((rows.entries(row) for row in range(len(rows.labels))), key=len)
    for order in family_of(family).orders[:2]:
        machine = as_machine(make_table("sgd", 2, family=family, order=order))
        for j, x in entries:
            if j >= len(machine.factors):
                continue
            expected = machine.others(j, entries) * x
            for f in range(machine.factors.shape[1]):
                scores = []
                for sign in (1, -1):
                    machine.factors[j, f] += sign * step
                    scores.append(machine.score(entries))
                    machine.factors[j, f] -= sign * step
                assert (scores[0] - scores[1]) / (2 * step) == pytest.approx(expected[f], rel=1e-6, abs=1e-8)


def test_without_the_vectors_of_higher_orders_it_is_a_factorization_machine() -> None:
    rows, plain = make_rows(), make_table(n_factors=16)
    table = ParameterTable(Layout("adagrad", 16, "hofm"), dict(make_table(n_factors=16, family="hofm").arrays))
    table.factor_weights[:, :16], table.factor_weights[:, 16:] = plain.factor_weights, 0.0
    scores = compile_kernels(KernelSpec("logistic", "adagrad", 16, family="hofm")).scores(rows, table)
    expected = compile_kernels(KernelSpec("logistic", "adagrad", 16)).scores(rows, plain)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_a_gradient_keeps_its_digits_beside_a_much_larger_entry() -> None:
    """By subtraction, what an entry a hundred times the others meets would be off by a seventh in one number here."""
    order = 4  # as above, where it is compiled
    values = np.array([100.0, *np.linspace(0.5, 1.5, 11)], np.float32)
    rows = reference.Rows(
        np.array([0, 12]), np.arange(12, dtype=np.uint32), values, np.zeros(1, np.float32), np.zeros(0, np.float32), 0
    )
    table = make_table("sgd", 3, family="hofm", order=order)
    machine, before = as_machine(table), table.factor_weights.astype(float)
    score = machine.score(rows.entries(0))
    rate = 1e-3 / abs(score)
    expected = np.array([machine.others(j, rows.entries(0)) * values[j] for j in range(12)])
    kernels = compile_kernels(KernelSpec("squared", "sgd", 3, family="hofm", order=order))
    kernels.run_round(rows, table, Step(rate, rate))
    found = (before[:12] - table.factor_weights[:12]) / (rate * score)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def half_square(weight: float) -> float:
    """The penalty that everybody has, as a user would write it."""
    return weight * weight / 2


@pytest.mark.parametrize(("family", "n_factors"), [("hofm", 16), ("polynomial", 8)])
def test_a_loss_and_a_penalty_of_one_s_own_train_as_those_that_are_built_in(family: str, n_factors: int) -> None:
    rows, tables = make_rows(60, 12), []
    own = {"loss": CustomLoss.of(logistic_loss), "regularizer": CustomRegularizer.of(half_square)}
    for how in ({"loss": "logistic"}, own):
        kernels = compile_kernels(KernelSpec(**how, optimizer="adagrad", n_factors=n_factors, family=family))
        tables.append(make_table(n_factors=n_factors, family=family))
        kernels.run_round(rows, tables[-1], Step(0.02, 0.02, 0.01, 0.01))
    for block in tables[0].layout.blocks:
        np.testing.assert_allclose(tables[1][block.name], tables[0][block.name], rtol=1e-4, atol=1e-6)


def test_a_layout_refuses_an_order_that_the_family_has_not() -> None:
    assert Layout("sgd", 4, "hofm") == Layout("sgd", 4, "hofm", order=3)
    assert KernelSpec("squared", "sgd", 4, family="polynomial").order == 2
    for family, order in itertools.chain((("hofm", n) for n in (2, 6)), [("fm", 3), ("polynomial", 6)]):
        with pytest.raises(ValueError, match=f"order = {order}"):
            Layout("sgd", 4, family, order=order)


def test_a_vector_for_each_order_and_each_side() -> None:
    assert Layout("sgd", 4, "hofm", order=4).row_factors == 12
    assert Layout("sgd", 4, "polynomial", order=4).row_factors == 16
    assert make_table("sgd", 4, family="hofm", order=5).factors.shape == (45, 16)
    assert N_FEATURES > 45
