"""A user's loss or regulariser: what is refused and how, what travels to workers, and that kernels learn the same."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dfm.errors import SettingsError
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.kernels.losses import check_task
from dfm.kernels.row_order import row_blocks
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from tests import reference
from tests.support import user_functions

N_FEATURES, N_FACTORED = 60, 45
SCALES = {"click": 1.0}
STEEP = 2.0


class Callable:
    def __call__(self, score, y):
        return score


def calls_itself(score, y):
    return score if score > 0 else calls_itself(score + 1, y)


def uses_a_dict(score, y):
    return SCALES["click"] * score


def has_no_rule(score, y):
    return math.gamma(score) + y


def forgets_to_return(score, y):
    if y > 0.5:
        return score * score


def returns_text(score, y):
    return "large" if score > 0 else "small"


def mixes_text(score, y):
    result = "none"
    if score > 0:
        result = score
    return result


def imports_inside(score, y):
    import math

    return math.exp(score)


def opens_a_file(score, y):
    with open("x") as file:
        return score + len(file.read())


def misspells(score, y):
    return math.exq(score)


def raises(score, y):
    if score > 1:
        raise ValueError("too large")
    return score


def counts_up(score, y):
    yield score


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("logistic", "is a str; pass a function"),
        (Callable(), "is a Callable; pass a function"),
        (lambda score: score, r"\(score\) cannot be called with 2 numbers; it must be of score and y"),
        (lambda score, y, more: score, "cannot be called with 2 numbers"),
        (lambda *numbers: numbers[0], "any number of arguments"),
        (counts_up, "yields"),
        (calls_itself, "calls itself"),
        (uses_a_dict, "uses SCALES, a dict"),
        (has_no_rule, r"uses gamma\(score\), which has no derivative here, line \d+: return math.gamma"),
        (lambda score, y: score // 2, r"uses floordiv\(score, .*no derivative"),
        (lambda score, y: score.real, "uses .real of the score"),
        (lambda score, y: not_there(score), "uses not_there, which is not defined"),  # noqa: F821
        (misspells, "uses math.exq, which does not exist"),
        (imports_inside, "imports inside"),
        (opens_a_file, "uses with|uses a construct"),
        (mixes_text, "makes result a str in one branch and a number in another"),
        (forgets_to_return, "returns None for some score: does a branch lack its return"),
        (returns_text, "return one number"),
        (lambda score, y: (score, y), "return one number"),
        (lambda score, y: np.array([score, score]), "array"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name_with_a_way_out(function, reason):
    with pytest.raises(SettingsError, match=reason):
        CustomLoss.of(function)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda score, y: math.log(score), "is nan at score = -30, y = 0; it must be finite"),
        (lambda score, y: math.sqrt(score * score), "slope of the loss .* is nan at score = 0"),
        (lambda score, y: 1 / y * score, "inf at score = -30, y = 0"),
        (lambda score, y: y * 3.0, "slope 0 at score .* nothing can be learnt"),
        (lambda score, y: 1.0 if score > y else 0.0, "slope 0"),
        (raises, "raises ValueError.* at score = 2"),
    ],
)
def test_what_cannot_be_trained_with_is_refused_at_the_door(function, reason):
    with pytest.raises(SettingsError, match=reason):
        check_task(CustomLoss.of(function), "classification")


def test_a_regression_loss_may_be_undefined_for_a_label_of_zero():
    gamma = CustomLoss.of(lambda score, y: score + y * math.exp(-score) - math.log(y))
    check_task(gamma, "regression")
    with pytest.raises(SettingsError, match="y = 0"):
        check_task(gamma, "classification")


def test_a_regulariser_is_a_function_of_one_weight_that_is_defined_at_zero():
    with pytest.raises(SettingsError, match="it must be of w"):
        CustomRegularizer.of(lambda w, v: w)
    with pytest.raises(SettingsError, match=r"regularizer .* at w = 0"):
        CustomRegularizer.of(lambda w: math.sqrt(abs(w)))


def test_the_same_code_is_the_same_loss_and_another_constant_another():
    def made(factor):
        return CustomLoss.of(lambda score, y: factor * (score - y) ** 2)

    assert made(2.0) == made(2.0)
    assert hash(made(2.0)) == hash(made(2.0))
    assert made(2.0) != made(3.0)
    assert CustomLoss.of(user_functions.asymmetric) != CustomLoss.of(user_functions.logistic)
    plain, squashed = CustomLoss.of(user_functions.squared), CustomLoss.of(user_functions.squared, link="exp")
    assert plain != squashed


def test_a_loss_is_taken_as_it_is_now(monkeypatch):
    taken = CustomLoss.of(lambda score, y: STEEP * score + y)
    monkeypatch.setattr(sys.modules[__name__], "STEEP", 50.0)
    assert taken.slope(0.5, 1.0) == 2.0


def test_a_loss_travels_to_a_process_that_has_none_of_its_files(tmp_path):
    """focal calls a helper of its module, which the other process cannot import."""
    loss = CustomLoss.of(user_functions.focal)
    (tmp_path / "loss.pickle").write_bytes(pickle.dumps(loss))
    script = "import pickle; l = pickle.load(open('loss.pickle', 'rb')); print(l.fingerprint, l.slope(0.7, 1.0).hex())"
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [loss.fingerprint, loss.slope(0.7, 1.0).hex()]


# --- kernels --------------------------------------------------------------------------------------------


def make_table(optimizer: str, n_factors: int) -> ParameterTable:
    ids = np.arange(N_FEATURES, dtype=np.uint32)
    return initialise(Layout(optimizer, n_factors), ids, N_FACTORED, InitialValues(seed=7, init_stdev=0.3))


def test_kernels_learn_the_same_from_a_loss_that_a_user_wrote():
    rows = reference.random_rows(300, N_FEATURES, 25, n_implicit=150, weighted=True)
    step = Step(0.05, 0.02, l2_linear=0.02, l2_factors=0.05)
    tables, tallies = [], []
    for loss in ("logistic", pickle.loads(pickle.dumps(CustomLoss.of(user_functions.logistic)))):
        tables.append(make_table("adagrad", 3))
        tallies.append(compile_kernels(KernelSpec(loss, "adagrad", 3)).run_round(rows, tables[-1], step))
    assert tallies[1].loss == pytest.approx(tallies[0].loss, rel=1e-12)
    np.testing.assert_allclose(tables[1].linear, tables[0].linear, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(tables[1].factors, tables[0].factors, rtol=1e-6, atol=1e-7)


def absolute(w):
    return math.sqrt(w * w + 0.01) + 0.1 * w


def absolute_slope(w):
    return w / math.sqrt(w * w + 0.01) + 0.1


@pytest.mark.parametrize(("optimizer", "n_factors"), [("adagrad", 3), ("adam", 3), ("rmsprop", 3), ("adagrad-row", 20)])
def test_a_users_regulariser_agrees_with_the_definition_and_leaves_padding_alone(optimizer, n_factors):
    """Its slope at 0 is not 0, so it would pull on padding."""
    rows = reference.random_rows(160, N_FEATURES, 25, n_implicit=90, weighted=True)
    step = Step(0.02, 0.01, l2_linear=0.02, l2_factors=0.05)
    rule = reference.Rule("logistic", optimizer, 0.02, 0.01, 0.02, 0.05, penalty_slope=absolute_slope)
    spec = KernelSpec("logistic", optimizer, n_factors, regularizer=CustomRegularizer.of(absolute))
    table = make_table(optimizer, n_factors)
    machine = reference.Machine(float(table.bias_value), table.linear_weights * 1.0, table.factor_weights * 1.0)
    machine = dataclasses.replace(machine, linear=machine.linear.astype(float), factors=machine.factors.astype(float))
    compile_kernels(spec).run_round(rows, table, step)
    reference.train(machine, rows, [r for first, last in row_blocks(160, 90, 0) for r in range(first, last)], rule)
    np.testing.assert_allclose(table.bias_value, machine.bias, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(table.linear_weights, machine.linear, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(table.factor_weights, machine.factors, rtol=1e-4, atol=2e-6)
    assert not table.factors[:, n_factors : table.layout.lanes].any()


def test_a_regulariser_does_not_fit_ftrl():
    with pytest.raises(SettingsError, match="does not fit optimizer"):
        compile_kernels(KernelSpec("logistic", "ftrl", 3, regularizer=CustomRegularizer.of(absolute)))


def test_users_kernels_come_from_disk_in_the_next_process(tmp_path):
    """Also where that has compiled other functions before: Numba numbers functions by process."""
    script = (
        "import sys, numba\n"
        "from tests.support import user_functions\n"
        "from dfm.kernels.contract import KernelSpec\n"
        "from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer\n"
        "from dfm.kernels.cpu.backend import _walk_of\n"
        "for number in range(int(sys.argv[1])): numba.njit(lambda x: x + number)(1.0)\n"
        "penalty = CustomRegularizer.of(user_functions.half_square)\n"
        "walk = _walk_of(KernelSpec(CustomLoss.of(user_functions.squared), 'sgd', 0, regularizer=penalty))\n"
        "print(sum(walk.stats.cache_hits.values()), sum(walk.stats.cache_misses.values()))\n"
    )

    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    folder = Path(__file__).parents[2]
    runs = [
        subprocess.run(
            [sys.executable, "-c", script, str(before)], env=environment, cwd=folder, capture_output=True, text=True
        )
        for before in (0, 3)
    ]
    assert [run.stdout.split() for run in runs] == [["0", "1"], ["1", "0"]], [run.stderr for run in runs]
