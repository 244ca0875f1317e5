"""Losses, update formulas and schedules, each against its mathematics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numba import njit

from dfm.errors import SettingsError
from dfm.kernels.arithmetic import exponential, log_of_one_plus
from dfm.kernels.contract import Step
from dfm.kernels.cpu.derived_weights import refresh_bias, refresh_rows
from dfm.kernels.cpu.formulas import reciprocal_root
from dfm.kernels.losses import LINKS, LOSSES, resolve_loss
from dfm.kernels.schedule import SCHEDULES, rate_factor, scheduled
from dfm.kernels.tables import Layout, ParameterTable, allocate


def test_our_exponential_and_logarithm_are_exact_to_many_digits() -> None:
    for distance in np.concatenate([np.linspace(0, 2, 201), np.geomspace(1e-9, 63, 300)]):
        assert exponential(distance) == pytest.approx(math.exp(-distance), rel=2e-14)
    assert exponential(1e6) == pytest.approx(math.exp(-64), rel=1e-14)
    for u in np.concatenate([np.linspace(0, 1, 201), np.geomspace(1e-30, 1, 50)]):
        assert log_of_one_plus(u) == pytest.approx(math.log1p(u), rel=2e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_the_slope_is_the_derivative_of_the_loss(name: str) -> None:
    loss, step = resolve_loss(name), 1e-5
    for score in np.linspace(-8, 8, 33) + 0.03:  # beside the kinks
        for label in (0.0, 1.0):
            numeric = (loss.value(score + step, label) - loss.value(score - step, label)) / (2 * step)
            assert loss.slope(score, label) == pytest.approx(numeric, rel=1e-9, abs=1e-9)


def test_log_loss_stays_finite_and_exact_for_huge_scores_and_shows_nan() -> None:
    loss = resolve_loss("logistic")
    assert loss.value(1e5, 0.0) == pytest.approx(1e5)
    assert 0 <= loss.value(1e5, 1.0) < 1e-20
    assert loss.slope(-1e5, 1.0) == pytest.approx(-1.0)
    assert math.isnan(loss.value(math.nan, 1.0))


def test_links_turn_scores_into_predictions() -> None:
    scores = np.array([-200, -1, 0, 1, 200], np.float32)
    likely = LINKS["sigmoid"].predict(scores)
    assert likely.dtype == np.float32
    np.testing.assert_allclose(likely, [0, 0.268941, 0.5, 0.731059, 1], atol=1e-6)
    assert LINKS["identity"].predict(scores) is scores
    with pytest.raises(SettingsError, match="'focal'"):
        resolve_loss("focal")


def test_the_reciprocal_root_is_exact_to_float32_rounding_and_finite_at_zero() -> None:
    @njit
    def fill(x, out):  # type: ignore[no-untyped-def]
        for i in range(x.size):
            out[i] = reciprocal_root(x[i])

    x = np.concatenate([np.geomspace(1e-37, 1e37, 20_000), np.linspace(1, 4, 20_000)]).astype(np.float32)
    out = np.empty_like(x)
    fill(x, out)
    np.testing.assert_allclose(out, x.astype(float) ** -0.5, rtol=1.2e-7)
    zero = np.empty(1, np.float32)
    fill(np.zeros(1, np.float32), zero)
    assert np.isfinite(zero[0])


def test_schedules_start_at_one_and_never_rise() -> None:
    for schedule in SCHEDULES:
        factors = [rate_factor(schedule, number, 20) for number in range(20)]
        assert factors[0] == (1 if schedule != "plateau" else pytest.approx(1 - 0.95 * 0.5 / 20))
        assert all(later <= earlier for earlier, later in itertools.pairwise(factors))
        assert factors[-1] > 0
    assert rate_factor("inverse-sqrt", 3, 20) == 0.5
    assert rate_factor("plateau", 3, 0) == 1  # rounds are counted from where the plateau was left
    assert rate_factor("final-decay", 13, 20) == 1
    assert rate_factor("final-decay", 19, 20) == pytest.approx(0.1)
    assert rate_factor("final-decay", 0, 1) == 1
    with pytest.raises(SettingsError, match="cosine"):
        rate_factor("cosine", 0, 1)


def test_a_schedule_scales_both_rates_but_not_the_one_that_defines_ftrls_z() -> None:
    step = Step(0.4, 0.2, l2_linear=0.3)
    assert scheduled(step, "adagrad", 0.5) == Step(0.2, 0.1, l2_linear=0.3, rate_factor=0.5)
    assert scheduled(step, "ftrl", 0.5) == Step(0.4, 0.1, l2_linear=0.3, rate_factor=0.5)


def refresh_weights(table: ParameterTable, step: Step) -> None:
    refresh_rows(table.layout, step, np.arange(len(table.linear), dtype=np.uint32), 0, table.linear)
    refresh_bias(table.layout, step, table.bias.reshape(1, -1))


def test_averaged_ftrl_state_gives_weights_with_exact_zeros() -> None:
    table = allocate(Layout("ftrl", 0), 3, 0)
    table.linear[:] = [[9, 0.2, 1], [9, -0.8, 4], [9, 0, 0]]
    table.bias[:] = [9, 0.2, 4]
    refresh_weights(table, Step(0.1, 0.1, l1_linear=0.5, l2_linear=2.0, ftrl_beta=1.0))
    np.testing.assert_allclose(table.linear_weights, [0, 0.3 / (3 / 0.1 + 2), 0], rtol=1e-6)
    assert np.count_nonzero(table.linear_weights) == 1
    assert table.bias_value == pytest.approx(-0.2 / (3 / 0.1))
    adagrad = allocate(Layout("adagrad", 0), 2, 0)
    adagrad.linear[:] = 3
    refresh_weights(adagrad, Step(0.1, 0.1))
    assert (adagrad.linear == 3).all()


def test_an_untouched_feature_stays_finite_without_beta() -> None:
    table = allocate(Layout("ftrl", 0), 2, 0)
    refresh_weights(table, Step(0.1, 0.1, ftrl_beta=0.0))
    assert not table.linear.any()
