"""One contract, every backend: scores, rounds and refusals of Numba's kernels and the GPU's, against `reference.py`.

The GPU's kernels run here on the processor (see `host_gpu`); where there is a GPU, `pytest -m gpu` runs them on it too.
Cases come from the records of families, losses and optimizers, so that a new one is tested as soon as it is there.
What is special to a backend is in test_kernel_behaviour.py and test_gpu_kernels.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from dfm.errors import SettingsError
from dfm.kernels.contract import Kernels, KernelSpec, Step
from dfm.kernels.families.registry import FAMILIES
from dfm.kernels.losses import LOSSES
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.row_order import BLOCK_ROWS
from dfm.kernels.tables import ParameterTable
from tests import reference
from tests.support.kernel_cases import (
    BACKENDS,
    MARKS,
    N_FEATURES,
    PENALTIES,
    Case,
    as_machine,
    assert_equal_parameters,
    assert_rounds_agree,
    compiled,
    has,
    make_rows,
    make_table,
    numbers_of,
    on_backends,
    spec_of,
)

CHOSEN: list[Case] = [
    ("fm", "logistic", "adagrad", 16),
    ("fm", "squared", "adagrad-row", 20),
    ("fm", "logistic", "ftrl", 3),
    ("fm", "logistic", "sgd", 80),
    ("fm", "logistic", "adagrad", 0),
    ("fm", "logistic", "adam", 16),
    ("fm", "poisson", "adam", 0),
    ("fwfm", "logistic", "adagrad", 8),
    ("fwfm", "squared", "adagrad-row", 5),
    ("fwfm", "logistic", "ftrl", 4),
    ("fwfm", "logistic", "sgd", 80),
    ("fwfm", "logistic", "adam", 4),
    ("fwfm", "logistic", "adagrad", 0),
    ("ffm", "logistic", "adagrad", 4),
    ("ffm", "squared", "adagrad-row", 5),
    ("ffm", "logistic", "ftrl", 2),
    ("ffm", "logistic", "sgd", 66),
    ("ffm", "logistic", "adam", 3),
    ("ffm", "logistic", "adagrad", 0),
    ("hofm", "logistic", "adagrad", 16),
    ("hofm", "squared", "adagrad-row", 5),
    ("hofm", "logistic", "ftrl", 4),
    ("hofm", "logistic", "adam", 3),
    ("polynomial", "logistic", "adagrad", 8),
    ("polynomial", "logistic", "adam", 3),
]
"""Widths of one vector register, of several, with and without padding, and none."""
OF_ROWS = [name for name, loss in LOSSES.items() if not loss.is_paired]
"""Losses of single rows; those of pairs are in test_pairs.py."""
CASES = [
    *CHOSEN,
    # With factors, whose numbers are drawn: from zeros on, scores hit the kinks of a loss exactly.
    *(("fm", loss, "adagrad", 2) for loss in OF_ROWS if loss not in {case[1] for case in CHOSEN}),
    *(("fm", "logistic", optimizer, 16) for optimizer in OPTIMIZERS if optimizer not in {case[2] for case in CHOSEN}),
    *((family, "logistic", "adagrad", 8) for family in FAMILIES if family not in {case[0] for case in CHOSEN}),
]
"""Every family, every loss and every optimizer is in one of these."""
MORE_CASES: list[Case] = [
    ("fm", "squared", "ftrl", 1),
    ("fm", "logistic", "adagrad-row", 256),
    ("fm", "hinge", "sgd", 5),
    ("fm", "squared-hinge", "sgd", 5),
    ("fm", "poisson", "adagrad", 2),
    ("fm", "quantile", "adagrad-row", 8),
    ("fm", "huber", "ftrl", 4),
]
"""Quick on the GPU's text, which is compiled as a whole; each of them takes Numba some seconds."""
SIZES = [0, 1, 2, 4, 7, 8, 12, 16, 17, 33, 48, 64, 65, 112, 128, 129, 160, 255, 256]


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, [])) for name in BACKENDS])
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every backend that this machine has."""
    return str(request.param)


@pytest.fixture
def kernels(backend: str) -> Kernels:
    """Kernels of a logistic loss with AdaGrad and 16 factors."""
    return compiled(backend, KernelSpec("logistic", "adagrad", 16))


# --- against the definition ------------------------------------------------------------------------------


def test_every_family_loss_and_optimizer_has_a_case() -> None:
    assert {case[0] for case in CASES} == {*FAMILIES}
    assert {case[1] for case in CASES} == {*OF_ROWS}
    assert {case[2] for case in CASES} == {*OPTIMIZERS}
    for loss in LOSSES:
        on_gpu = any(has("host", case) for case in [*CASES, *MORE_CASES] if case[1] == loss)
        assert on_gpu == has("host", ("fm", loss, "sgd", 0)), loss


@on_backends(CASES)
def test_rounds_agree_with_the_definition(backend: str, case: Case) -> None:
    assert_rounds_agree(compiled(backend, spec_of(case)), case, make_rows())


@on_backends(MORE_CASES, slow=["numba"])
def test_further_rounds_agree_with_the_definition(backend: str, case: Case) -> None:
    assert_rounds_agree(compiled(backend, spec_of(case)), case, make_rows())


@pytest.mark.slow
@on_backends(itertools.product(FAMILIES, OF_ROWS, OPTIMIZERS, [6]))
def test_every_family_loss_and_optimizer_together_agree_with_the_definition(backend: str, case: Case) -> None:
    assert_rounds_agree(compiled(backend, spec_of(case)), case, make_rows(60))


@pytest.mark.slow
@on_backends(itertools.product(FAMILIES, ["logistic", "squared"], OPTIMIZERS, SIZES))
def test_any_number_of_factors_agrees_with_the_definition(backend: str, case: Case) -> None:
    assert_rounds_agree(compiled(backend, spec_of(case)), case, make_rows(40))


@on_backends([("fm", "logistic", "adagrad", 16)])
def test_one_step_changes_only_what_the_row_touches(backend: str, case: Case) -> None:
    rows = reference.Rows(
        np.array([0, 3]), np.array([2, 50, 7], np.uint32), np.zeros(0, np.float32),
        np.ones(1, np.float32), np.zeros(0, np.float32), 1,
    )  # fmt: skip
    table = make_table()
    before, machine = table.copy(), as_machine(table)
    compiled(backend, spec_of(case)).run_round(rows, table, Step(0.1, 0.1, **PENALTIES, deterministic=True))
    reference.train(machine, rows, [0], reference.Rule(**PENALTIES))
    assert_equal_parameters(table, machine)
    assert np.flatnonzero((table.linear != before.linear).any(axis=1)).tolist() == [2, 7, 50]
    assert np.flatnonzero((table.factors != before.factors).any(axis=1)).tolist() == [2, 7]


@on_backends(CHOSEN[:4])
def test_the_state_of_the_optimizer_is_that_of_the_processor(backend: str, case: Case) -> None:
    rows, (rates, penalties) = make_rows(120), numbers_of(case)
    tables, losses = [], []
    for name in (backend, "numba"):
        table = make_table(*case[2:])
        step = Step(*rates, **penalties, seed=4, deterministic=True)
        losses.append(compiled(name, spec_of(case)).run_round(rows, table, step).loss)
        tables.append(table)
    for name in ("bias", "linear", "factors"):
        np.testing.assert_allclose(getattr(tables[0], name), getattr(tables[1], name), rtol=2e-5, atol=2e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


# --- promises beyond the formula -------------------------------------------------------------------------


def trained(kernels: Kernels, rows: reference.Rows, step: Step) -> bytes:
    table = make_table()
    kernels.run_round(rows, table, step)
    return table.bias.tobytes() + table.linear.tobytes() + table.factors.tobytes()


def test_two_rounds_give_the_same_bytes_and_another_seed_gives_others(kernels: Kernels) -> None:
    rows, step = make_rows(3 * BLOCK_ROWS, 12), Step(0.05, 0.03, 0.01, 0.02, seed=3, deterministic=True)
    assert trained(kernels, rows, step) == trained(kernels, rows, step)
    assert trained(kernels, rows, step) != trained(kernels, rows, dataclasses.replace(step, seed=4))


def test_a_table_scores_the_same_without_its_state_and_few_features_may_own_factors(kernels: Kernels) -> None:
    rows = make_rows()
    for n_factored in (0, 1, N_FEATURES):
        table = make_table(n_factored=n_factored)
        kernels.run_round(rows, table, Step(0.05, 0.05, deterministic=True))
        scores = kernels.scores(rows, table).tobytes()
        for other in (table.copy(), table.without_state()):
            for array in (other.bias, other.linear, other.factors):
                array.flags.writeable = False
            assert kernels.scores(rows, other).tobytes() == scores


def test_a_walk_that_leaves_the_finite_numbers_says_so_and_stops(kernels: Kernels) -> None:
    rows, table = make_rows(4 * BLOCK_ROWS, 12), make_table()
    table.linear[0, 0] = np.nan
    tally = kernels.run_round(rows, table, Step(0.05, 0.05, deterministic=True))
    assert not tally.is_finite
    assert tally.rows < 4 * BLOCK_ROWS


def test_rows_without_entries_and_no_rows_at_all_are_legal(kernels: Kernels) -> None:
    table = make_table()
    empty = reference.random_rows(3, N_FEATURES, 0, n_implicit=3)
    assert kernels.scores(empty, table).tolist() == [0.0, 0.0, 0.0]
    assert kernels.run_round(empty, table, Step(0.05, 0.05)).rows == 3
    none = reference.random_rows(0, N_FEATURES, 5, n_implicit=0)
    assert kernels.run_round(none, table, Step(0.05, 0.05)).rows == 0
    assert len(kernels.scores(none, table)) == 0


# --- the door --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": np.full(3, N_FEATURES, np.uint32)}, "beyond the table"),
        ({"indices": np.zeros(3, np.int64)}, "indices is int64"),
        ({"indices": np.zeros(6, np.uint32)[::2]}, "contiguous"),
        ({"indptr": np.array([0, 2, 4])}, "indptr"),
        ({"indptr": np.array([1, 2, 3])}, "indptr"),
        ({"n_implicit": 3}, "n_implicit"),
        ({"values": np.zeros(2, np.float32)}, "values"),
        ({"weights": np.zeros(1, np.float32)}, "weights"),
    ],
)
def test_rows_that_could_reach_outside_of_memory_are_refused(
    kernels: Kernels, change: dict[str, Any], message: str
) -> None:
    rows = reference.Rows(
        np.array([0, 2, 3]), np.array([0, 1, 2], np.uint32), np.zeros(0, np.float32),
        np.ones(2, np.float32), np.zeros(0, np.float32), 2,
    )  # fmt: skip
    table, step = make_table(), Step(0.05, 0.05)
    assert kernels.run_round(rows, table, step).rows == 2
    for call in (kernels.run_round, kernels.scores):
        with pytest.raises((TypeError, ValueError, IndexError), match=message):
            call(dataclasses.replace(rows, **change), table, *([step] if call == kernels.run_round else []))


def test_an_offset_that_goes_back_is_refused(kernels: Kernels) -> None:
    rows = dataclasses.replace(
        reference.random_rows(3, N_FEATURES, 20, n_implicit=3),
        indptr=np.array([0, 5, 2, 5]), indices=np.arange(5, dtype=np.uint32),
    )  # fmt: skip
    with pytest.raises(ValueError, match="decrease"):
        kernels.scores(rows, make_table())


def with_linear(table: ParameterTable, linear: np.ndarray) -> ParameterTable:
    return dataclasses.replace(table, arrays={**table.arrays, "linear": linear})


def test_tables_that_do_not_fit_are_refused(kernels: Kernels) -> None:
    table, rows, step = make_table(), make_rows(), Step(0.05, 0.05)
    with pytest.raises(ValueError, match="does not fit"):
        kernels.run_round(rows, make_table("adagrad-row"), step)
    table.factors.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        kernels.run_round(rows, table, step)
    with pytest.raises(TypeError, match="float64"):
        kernels.scores(rows, with_linear(table, table.linear.astype(float)))
    with pytest.raises(ValueError, match="shapes"):
        kernels.scores(rows, with_linear(table, table.linear[:30]))


def test_settings_that_nothing_reads_are_refused(backend: str, kernels: Kernels) -> None:
    with pytest.raises(SettingsError, match="ftrl"):
        kernels.run_round(make_rows(), make_table(), Step(0.05, 0.05, l1_linear=0.1))
    with pytest.raises(SettingsError, match="lion"):
        compiled(backend, KernelSpec("logistic", "lion", 4))
    with pytest.raises(SettingsError, match="focal"):
        compiled(backend, KernelSpec("focal", "sgd", 4))
