"""Derivatives of users' functions: finite differences, formulas, and the same without compilation."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dfm.kernels import arithmetic
from dfm.kernels.custom.functions import CustomLoss
from dfm.kernels.losses import resolve_loss
from tests.support import user_functions

KINKS = 1e-3
"""No score nearer to a kink than this is drawn: a difference across it means nothing."""


@pytest.fixture(scope="module")
def losses() -> dict[str, CustomLoss]:
    """Each function compiled once."""
    return {function.__name__: CustomLoss.of(function) for function in user_functions.EVERY_CONSTRUCT}


@pytest.mark.parametrize("function", user_functions.EVERY_CONSTRUCT, ids=lambda function: function.__name__)
@settings(max_examples=60, deadline=None)
@given(score=st.floats(-6, 6), label=st.sampled_from([0.0, 1.0]))
def test_the_slope_is_what_finite_differences_say(losses, function, score, label):
    kinks = (-1.0, 0.0, 0.5, 1.0, 3.0, label, label - user_functions.WIDTH, label + user_functions.WIDTH)
    assume(all(abs(score - kink) > KINKS for kink in kinks))
    loss, step = losses[function.__name__], 1e-5
    numeric = (function(score + step, label) - function(score - step, label)) / (2 * step)
    assert loss.slope(score, label) == pytest.approx(numeric, rel=1e-6, abs=1e-7)
    assert loss.value(score, label) == pytest.approx(function(score, label), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", user_functions.BUILT_IN)
def test_a_built_in_loss_written_as_a_function_has_the_same_value_and_slope(losses, name):
    function, parameter = user_functions.BUILT_IN[name]
    own, built_in = losses[function.__name__], resolve_loss(name, parameter)
    for score in np.linspace(-9, 9, 61) + 0.013:
        for label in (0.0, 1.0):
            assert own.value(score, label) == pytest.approx(built_in.value(score, label), rel=1e-11)
            assert own.slope(score, label) == pytest.approx(built_in.slope(score, label), rel=1e-11, abs=1e-15)


def test_kinks_have_the_slope_of_one_side():
    at_zero = CustomLoss.of(lambda score, y: abs(score) + max(0.0, score) + min(score, 0.0))
    assert at_zero.slope(0.0, 1.0) == 0.0 + 0.0 + 1.0


def test_a_slope_is_exact_where_differences_would_cancel():
    far = CustomLoss.of(lambda score, y: (score - 1e8) ** 2)
    assert far.slope(1e8 + 1.0, 0.0) == 2.0


def test_infinite_branches_that_are_not_taken_do_not_spoil_the_slope():
    guarded = CustomLoss.of(lambda score, y: math.log(score) if score > 1 else score - 1)
    assert guarded.slope(-5.0, 0.0) == 1.0
    assert guarded.slope(4.0, 0.0) == 0.25


SCRIPT = """
import json, sys, numpy as np
from tests.support import user_functions
from dfm.kernels.custom.functions import CustomLoss
found = {}
for function in user_functions.EVERY_CONSTRUCT:
    loss = CustomLoss.of(function)
    found[function.__name__] = [
        [float(what(score, label)) for what in (loss.value, loss.slope)]
        for score in np.linspace(-6, 6, 25) for label in (0.0, 1.0)
    ]
print(json.dumps(found))
"""


def test_compiled_and_plain_dual_numbers_give_the_same(losses):
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name, expected in json.loads(run.stdout).items():
        points = [(score, label) for score in np.linspace(-6, 6, 25) for label in (0.0, 1.0)]
        found = [[losses[name].value(*point), losses[name].slope(*point)] for point in points]
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13, err_msg=name)


@settings(max_examples=300, deadline=None)
@given(st.floats(-800, 800) | st.floats(-1, 1))
def test_our_exponentials_are_those_of_the_c_library_to_fifteen_digits(x):
    with np.errstate(over="ignore"):
        assert arithmetic.exp(x) == pytest.approx(float(np.exp(x)), rel=1e-15, abs=5e-324)
        assert arithmetic.expm1(x) == pytest.approx(float(np.expm1(x)), rel=2e-15)
    assert arithmetic.tanh(x) == pytest.approx(math.tanh(x), rel=2e-15)


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1e308, exclude_min=True) | st.floats(0.5, 2))
def test_our_logarithms_are_those_of_the_c_library_to_fifteen_digits(x):
    assert arithmetic.log(x) == pytest.approx(math.log(x), rel=1e-15, abs=1e-300)
    assert arithmetic.log1p(x) == pytest.approx(math.log1p(x), rel=2e-15)
    assert arithmetic.log1p(-min(x, 0.99)) == pytest.approx(math.log1p(-min(x, 0.99)), rel=2e-15)


def test_the_ends_of_the_range_are_those_of_ieee():
    assert arithmetic.exp(math.inf) == math.inf
    assert arithmetic.exp(-math.inf) == 0.0
    assert arithmetic.log(0.0) == -math.inf
    assert arithmetic.log(math.inf) == math.inf
    assert all(math.isnan(f(math.nan)) for f in (arithmetic.exp, arithmetic.expm1, arithmetic.log, arithmetic.log1p))
    assert math.isnan(arithmetic.log(-1.0))
