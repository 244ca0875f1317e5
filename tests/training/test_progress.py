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
from dfm.training.progress import check_finite
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
        check_finite(CLICKS, work, 3, [ReplicaReport(1, tally, 0.1, "here", 8)])
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


def test_a_log_loss_explodes_in_many_rows_alone() -> None:
    assert "the mean loss is 30; " in told(sgd(0.3, 0.01, 0.01), 30.0)
    few = RoundTally(3, 3.0, 90.0, True)
    check_finite(CLICKS, sgd(0.3, 0.01, 0.01), 1, [ReplicaReport(0, few, 0.1, "here", 8)])
