"""Penalties of each field: kernels of every family and optimizer against the definition, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dfm.errors import SettingsError
from dfm.kernels.contract import Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.gpu.backend import source_of
from tests.support.kernel_cases import Case, assert_rounds_agree, make_rows, make_table, spec_of

SCALES = ((1.0, 1.0), (0.0, 3.0), (5.0, 0.5), (0.25, 0.0), (2.0, 4.0))
"""Of the linear weights and the factors of the five fields."""
CASES: list[Case] = [
    ("fm", "logistic", "adagrad", 5),
    ("fm", "logistic", "adagrad", 20),
    ("fm", "squared", "sgd", 0),
    ("fm", "logistic", "adam", 4),
    ("fm", "logistic", "rmsprop", 4),
    ("fm", "logistic", "adagrad-row", 4),
    ("ffm", "logistic", "adagrad", 3),
    ("fwfm", "logistic", "adagrad", 4),
    ("hofm", "logistic", "adagrad", 4),
    ("polynomial", "logistic", "adam", 4),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_each_field_has_its_own_penalties(case: Case) -> None:
    spec = dataclasses.replace(spec_of(case), l2_by_field=True)
    assert_rounds_agree(compile_kernels(spec), case, make_rows(), SCALES)


def test_scales_of_one_change_nothing() -> None:
    case, rows, step = CASES[0], make_rows(), Step(0.05, 0.02, l2_linear=0.02, l2_factors=0.05)
    plain, own = make_table("adagrad", 5), make_table("adagrad", 5)
    compile_kernels(spec_of(case)).run_round(rows, plain, step)
    spec = dataclasses.replace(spec_of(case), l2_by_field=True)
    compile_kernels(spec).run_round(rows, own, dataclasses.replace(step, l2_scales=((1.0, 1.0),) * 5))
    np.testing.assert_allclose(own.linear, plain.linear, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(own.factors, plain.factors, rtol=1e-5, atol=1e-7)


def test_what_does_not_fit_is_refused() -> None:
    spec = dataclasses.replace(spec_of(CASES[0]), l2_by_field=True)
    with pytest.raises(SettingsError, match="the GPU has no code for l2_by_field"):
        source_of(spec)
    with pytest.raises(SettingsError, match="takes no penalties by field"):
        compile_kernels(dataclasses.replace(spec, optimizer="ftrl"))
    with pytest.raises(ValueError, match="4 scales of penalties"):
        compile_kernels(spec).run_round(make_rows(), make_table("adagrad", 5), Step(0.1, 0.1, l2_scales=SCALES[:4]))
    without = make_rows(fields=np.zeros(0, np.uint16))
    with pytest.raises(ValueError, match="do not say which is whose"):
        compile_kernels(spec).run_round(without, make_table("adagrad", 5), Step(0.1, 0.1, l2_scales=SCALES))
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(SettingsError, match="l2_scales"):
            Step(0.1, 0.1, l2_scales=((1.0, scale),))
