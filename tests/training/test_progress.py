"""Divergence is noticed, and its remedy is one that helps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from dfm.errors import DivergenceError
from dfm.kernels.contract import KernelSpec, RoundTally, Step
from dfm.model.objective import Objective
from dfm.settings.tables import READ_BY_EXACT, TrainingSettings
from dfm.training.exact_work import exact_work
from dfm.training.progress import EpochTotals, check_epoch, check_finite, check_round
from dfm.training.rounds import ReplicaReport, Work
from dfm.training.steps import work_of

CLICKS, SPEC = Objective.of("classification"), KernelSpec("logistic", "sgd", 4)


def sgd(rate: float, l2_linear: float, l2_factors: float) -> Work:
    given: dict[str, Any] = {"l2_linear": l2_linear, "l2_factors": l2_factors, "factor_rate_scale": 1.0}
    work = work_of(TrainingSettings(learning_rate=rate, n_replicas=1, **given), "classification", SPEC)
    return dataclasses.replace(work, step=Step(rate, rate, l2_linear, l2_factors))


def told(work: Work, mean_loss: float = math.inf, n_rows: int = 1_000) -> str:
    tally = RoundTally(n_rows, float(n_rows), mean_loss * n_rows, math.isfinite(mean_loss))
    with pytest.raises(DivergenceError) as error:
        check_round(CLICKS, work, 3, [ReplicaReport(1, tally, 0.1, "here", 8)])
    return str(error.value)


def test_where_the_penalty_is_what_diverges_less_of_it_is_the_remedy() -> None:
    begin = "training diverged in epoch 3, replica 1: the mean loss is no longer finite; try a smaller training."
    assert told(sgd(0.3, 0.01, 0.01)).startswith(begin + "learning_rate (it is 0.3; a tenth of it), more L2, or ")
    assert told(sgd(0.3, 0.01, 10.0)).startswith(begin + "learning_rate (it is 0.3; a tenth of it), less L2, or ")
    assert "less L2" in told(sgd(0.3, 5.0, 0.01))


@pytest.mark.parametrize("solver", ["als", "mcmc"])
def test_the_remedy_of_an_exact_solver_is_none_that_it_refuses(solver: str) -> None:
    text = told(exact_work(TrainingSettings(solver=solver), "classification", SPEC))
    assert "model.init_stdev" in text
    assert ("training.l2_factors" in text) == ("l2_factors" in READ_BY_EXACT[solver])
    assert "learning_rate" not in text


@pytest.mark.parametrize("scaling", ["none", "sqrt", "linear"])
def test_the_rate_of_the_remedy_is_the_knob_s_and_not_what_replicas_step(scaling: str) -> None:
    given: dict[str, Any] = {"l2_linear": 0.01, "l2_factors": 0.01, "factor_rate_scale": 1.0}
    training = TrainingSettings(learning_rate=0.5, n_replicas=100, rate_scaling=scaling, **given)
    assert "training.learning_rate (it is 0.5; " in told(work_of(training, "classification", SPEC))


def test_without_biases_the_rate_of_the_remedy_is_that_of_factors() -> None:
    work = dataclasses.replace(sgd(0.3, 0.01, 0.01), step=Step(0.0, 0.6, rate_factor=2.0))
    assert "learning_rate (it is 0.3; " in told(work)


def reports_of(n_rows: int, mean_loss: float) -> list[ReplicaReport]:
    return [ReplicaReport(1, RoundTally(n_rows, float(n_rows), mean_loss * n_rows, True), 0.1, "here", 8)]


@pytest.mark.parametrize("n_rows", [3, 99, 1_000])
def test_a_round_whose_log_loss_explodes_ends_a_job_however_few_rows_it_has(n_rows: int) -> None:
    assert "epoch 3, replica 1: the mean loss is 30; " in told(sgd(0.3, 0.01, 0.01), 30.0, n_rows)


def test_the_log_loss_of_a_fit_explodes_in_an_epoch_of_many_rows_alone() -> None:
    work, totals = sgd(0.3, 0.01, 0.01), EpochTotals()
    check_finite(CLICKS, work, 1, reports_of(1_000, 33.0), "")
    totals.add(reports_of(99, 33.0))
    check_epoch(CLICKS, work, 1, totals)
    totals.add(reports_of(1, 33.0))
    with pytest.raises(DivergenceError, match=r"diverged in epoch 1: the mean loss is 33; try a smaller learning_rate"):
        check_epoch(CLICKS, work, 1, totals)
    totals.add(reports_of(100, 0.7))
    check_epoch(CLICKS, work, 1, totals)
