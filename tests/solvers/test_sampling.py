"""The sampler as a whole: it agrees with Gibbs sampling number by number, and with itself (Geweke 2004)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import scipy.stats

from dfm.data.hashed_rows import EntrySums
from dfm.data.vocabulary import spread_of
from dfm.distributed.diagnose import linear_part
from dfm.settings.tables import ModelSettings, TrainingSettings
from dfm.training import exact_rounds
from dfm.training.exact import ExactExecutor, Here
from dfm.training.exact_rounds import judge_draws
from dfm.training.exact_work import crowd_of, initial_bias, initial_stdev, of_rows
from tests.reference import Machine, Rows, Sampler, least_squares
from tests.support.exact_cases import (
    SCHEDULE,
    dense_of,
    executor_of,
    iterate,
    partition_of,
    rows_between,
    vocabulary_of,
    work_of,
)

SIZES, FIELDS = (3, 3), [0, 0, 0, 1, 1, 1]
PAIRS = np.concatenate([np.repeat(np.eye(3), 3, axis=0), np.tile(np.eye(3), (3, 1))], axis=1)
"""All pairs of values of the two fields."""
ONES = EntrySums(10_000, 390_000, 390_000.0)
"""Rows whose x are all 1."""


def planted(task: str, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Dense rows, and labels of a planted machine."""
    rng, X = np.random.default_rng(0), dense_of(SIZES, n_rows, seed=1)
    w, V = rng.normal(size=6), rng.normal(size=(6, 2))
    scores = 0.3 + X @ w + 0.5 * ((X @ V) ** 2 - X**2 @ V**2).sum(axis=1)
    noisy = scores + (3.0 if task == "classification" else 0.5) * rng.normal(size=n_rows)
    return X, (noisy > 0).astype(float) if task == "classification" else noisy


def scores_of(block: Any, X: np.ndarray) -> np.ndarray:
    """Scores of dense rows."""
    table = block.table
    w, V = table.linear_weights.astype(float), table.factor_weights.astype(float)
    return float(table.bias_value) + X @ w + 0.5 * ((X @ V) ** 2 - X**2 @ V**2).sum(axis=1)


LENGTHS = [1000, pytest.param(10_000, marks=pytest.mark.slow)]
"""Iterations: enough to see a wrong formula, and enough to see a slight one."""


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("crowd", [2.0, 4.0])
def test_draws_agree_with_gibbs_sampling_number_by_number(task: str, length: int, crowd: float):
    """In mean and deviation of w0 + w + <V, V> of every pair of values, which are what the rows can tell."""
    X, y = planted(task, 60 if task == "regression" else 150)  # of few, some pairs have one label, and scores no bound
    training = TrainingSettings(solver="mcmc", n_replicas=1, n_epochs=1000)
    work = of_rows(work_of(task, 2, solver="mcmc", n_replicas=1, n_epochs=1000), training, crowd)
    executor = executor_of(work, [partition_of(X, y, FIELDS)], vocabulary_of(FIELDS))
    ours = np.array([scores_of(iterate(executor, work, number), PAIRS) for number in range(length)])[200:]
    units = work.linear_unit, work.factor_unit
    sampler = Sampler(X, y, FIELDS, 2, task == "classification", np.random.default_rng(2), units)
    theirs = []
    for _ in range(length):
        sampler.iterate()
        theirs.append(sampler.scores(PAIRS))
    naive = np.array(theirs)[200:]
    spread = naive.std(axis=0)
    error = (1000 / length) ** 0.5
    assert np.abs(ours.mean(axis=0) - naive.mean(axis=0)).max() < 0.3 * error * spread.max()
    np.testing.assert_allclose(ours.std(axis=0), spread, rtol=0.3 * error)


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_sampler_passes_the_joint_distribution_test_of_geweke(
    task: str, length: int, monkeypatch: pytest.MonkeyPatch
):
    """Parameters that are drawn in turn with labels are distributed as they are before any row is seen: N(0, 1)."""
    fixed = lambda values, *_: np.stack([np.ones(values.shape[1]), np.zeros(values.shape[1])], axis=1)  # noqa: E731
    monkeypatch.setattr(exact_rounds, "draw_prior", fixed)
    monkeypatch.setattr(exact_rounds, "draw_precision", lambda *_: 1.0)
    rng, X = np.random.default_rng(3), dense_of(SIZES, 8, seed=4)
    work = work_of(task, 1, solver="mcmc", n_replicas=1, n_epochs=1000)
    partition = partition_of(X, np.zeros(8), FIELDS)
    executor = executor_of(work, [partition], vocabulary_of(FIELDS))
    kept = []
    for number in range(2 * length):
        block = executor.parameters[0]
        noisy = scores_of(block, X) + rng.normal(size=8)
        partition.labels[:] = noisy if task == "regression" else noisy > 0
        table = iterate(executor, work, number).table
        kept.append([float(table.bias_value), *table.linear_weights, *table.factor_weights[:, 0]])
    values = np.array(kept)[100:]
    for moments, expected in ((values, 0.0), (values**2, 1.0), (np.abs(values), (2 / np.pi) ** 0.5)):
        batches = np.stack([batch.mean(axis=0) for batch in np.array_split(moments, 20)])
        errors = batches.std(axis=0, ddof=1) / 20**0.5
        assert np.abs((moments.mean(axis=0) - expected) / errors).max() < 4.5


def test_probabilities_of_the_probit_are_calibrated():
    X, y = planted("classification", 1500)
    work = work_of("classification", 2, solver="mcmc", n_replicas=1, n_epochs=120, burn_in=40, draws=80)
    executor = executor_of(work, [partition_of(X, y, FIELDS)], vocabulary_of(FIELDS), [partition_of(X, y, FIELDS)])
    for number in range(120):
        iterate(executor, work, number)
    metrics = executor.evaluate(SCHEDULE.work(work, 119, (0.0, 0)))
    assert metrics["calibration"] == pytest.approx(1.0, abs=0.02)
    found = np.mean([scipy.stats.norm.cdf(scores_of(draw, PAIRS)) for draw in executor.parameters[1:]], axis=0)
    rates = np.array([y[(X @ pair == 2)].mean() for pair in PAIRS])
    counts = np.array([np.count_nonzero(X @ pair == 2) for pair in PAIRS])
    assert np.abs(found - rates).max() < 4 * (0.25 / counts.min()) ** 0.5
    assert len(executor.parameters) == 81


# --------------------------------------------------------------------------------------------- defaults ----


def test_penalties_and_priors_grow_with_what_rows_do_not_share():
    rare, everywhere = np.full(39 * 1000, 10), np.full(39, 10_000)
    assert crowd_of(EntrySums(10_000, 390_000, 390_000.0), spread_of(rare, 10_000)) == pytest.approx(39.0, rel=2e-3)
    assert crowd_of(EntrySums(10_000, 390_000, 390_000.0), spread_of(everywhere, 10_000)) == 2.0, "a dense matrix"
    with_an_age = np.concatenate([rare[:3000], [10_000]])
    in_years = EntrySums(10_000, 40_000, 30_000 + 1e4 * 40.0**2)
    assert crowd_of(in_years, spread_of(with_an_age, 10_000)) == pytest.approx(3.0, rel=2e-3), "x has any scale"
    assert crowd_of(EntrySums(10_000, 390_000, 50_000.0), spread_of(rare, 10_000)) == 5.0, "lists that weigh 1 together"
    assert crowd_of(EntrySums(), spread_of(np.zeros(0, np.int64), 0)) == 2.0
    found = {}
    for crowd in (2.0, 6.0, 39.0):
        als, mcmc = TrainingSettings(solver="als"), TrainingSettings(solver="mcmc")
        work = of_rows(work_of("classification", 2, solver="als"), als, crowd)
        stdevs = [initial_stdev(ModelSettings(), each, ONES, crowd) for each in (als, mcmc)]
        found[crowd] = work.step.l2_linear, work.step.l2_factors, work.linear_unit, work.factor_unit, *stdevs
    assert found[2.0] == (5.0, 10.0, 1.0, 1.0, 0.1, 0.1), "libFM's"
    assert found[6.0][:2] == (5.0, 10.0)
    assert found[39.0] == pytest.approx((46.25, 577.6, 0.22646, 1 / 38, 0.013158, 0.1), rel=1e-4)
    given = TrainingSettings(solver="als", l2_linear=3.0, l2_factors=4.0)
    own = of_rows(work_of("classification", 2, solver="als"), given, 39.0).step
    assert (own.l2_linear, own.l2_factors) == (3.0, 4.0)
    assert initial_stdev(ModelSettings(), given, ONES, 39.0) == 0.1, "what the penalty in force allows"
    strict, free = (dataclasses.replace(given, l2_factors=each) for each in (1000.0, 0.0))
    assert [initial_stdev(ModelSettings(), each, ONES, 2.0) for each in (strict, free)] == pytest.approx([0.01, 0.1])
    assert initial_stdev(ModelSettings(init_stdev=0.5), given, ONES, 39.0) == 0.5


def test_the_start_of_the_factors_knows_the_unit_of_x():
    """A pair of columns says as much at the start in dollars as in cents."""
    for solver in ("als", "mcmc"):
        training = TrainingSettings(solver=solver)
        dollars, cents = EntrySums(100, 300, 300 * 4.0), EntrySums(100, 300, 300 * 4.0e4)
        alike = [initial_stdev(ModelSettings(), training, each, 2.0) for each in (dollars, cents)]
        assert alike == pytest.approx([0.05, 0.0005])
        assert initial_stdev(ModelSettings(), training, EntrySums(100, 300, 30.0), 2.0) == 0.1, "small x change nothing"
        assert initial_stdev(ModelSettings(), training, EntrySums(), 2.0) == 0.1
        assert initial_stdev(ModelSettings(init_stdev=0.5), training, cents, 2.0) == 0.5


def test_a_probit_begins_at_the_click_rate_and_numbers_at_their_mean():
    for rate in (0.03, 0.5, 0.9):
        assert scipy.stats.norm.cdf(initial_bias("classification", rate)) == pytest.approx(rate)
    assert np.isfinite([initial_bias("classification", rate) for rate in (0.0, 1.0)]).all()
    assert initial_bias("regression", 7.0) == 0.0


def test_the_linear_part_of_draws_is_their_mean_without_factors():
    X, y = planted("classification", 300)
    work = work_of("classification", 2, solver="mcmc", n_replicas=1, n_epochs=6, burn_in=2, draws=4)
    rows = partition_of(X, y, FIELDS)
    executor = executor_of(work, [rows], vocabulary_of(FIELDS), [rows])
    for number in range(6):
        iterate(executor, work, number)
    draws = executor.parameters[1:]
    whole = judge_draws(work, draws, [rows]).metrics()
    assert whole == executor.evaluate(SCHEDULE.work(work, 5, (0.0, 0)))
    p = np.mean([scipy.stats.norm.cdf(draw.table.bias_value + X @ draw.table.linear_weights) for draw in draws], axis=0)
    found = linear_part(work, draws, [rows]).metrics()
    assert found["log_loss"] == pytest.approx(-np.mean(np.log(np.where(y > 0, p, 1 - p))), rel=1e-5)
    assert found["log_loss"] != pytest.approx(whole["log_loss"], rel=1e-3)


# --------------------------------------------------------------------------------------- least squares ----


def reference_rows(partition: Any) -> Rows:
    return Rows(
        partition.indptr, partition.indices, partition.values, partition.labels, partition.weights, partition.n_implicit
    )


@pytest.mark.parametrize("kind", ["fields", "weighted lists", "more factors than are solved at a time"])
def test_least_squares_are_those_of_the_definition(kind: str):
    rng, n_rows = np.random.default_rng(5), 50
    dense, fields, n_factors, weights = dense_of([4, 3], n_rows, seed=6), [0] * 4 + [1] * 3, 2, None
    if kind == "weighted lists":
        lists = (rng.random((n_rows, 4)) < 0.4) * rng.choice([1.0, 0.5], (n_rows, 1))
        dense, fields = np.concatenate([dense, lists], axis=1), [*fields, 2, 2, 2, 2]
        weights = rng.integers(0, 3, n_rows)
    partition = partition_of(dense, rng.normal(size=n_rows), fields, len(fields) - 1, weights)
    vocabulary = vocabulary_of(fields, len(fields) - 1)
    if kind.startswith("more"):
        n_factors = 18
    work = work_of("regression", n_factors, solver="als", n_replicas=1, l2_linear=0.5, l2_factors=2.0)
    executor = executor_of(work, [partition], vocabulary)
    start = executor.parameters[0].table
    machine = Machine(0.0, start.linear_weights.astype(float), start.factor_weights.astype(float))
    before = np.square(errors_of(machine, partition)).sum()
    for number in range(2):
        iterate(executor, work, number)
    order = [int(j) for visit in executor._visits.visits for j in visit.features]
    if kind.startswith("more"):  # parts of a vector are solved after each other, so that only the sum falls for sure
        table = executor.parameters[0].table
        machine = Machine(
            float(table.bias_value), table.linear_weights.astype(float), table.factor_weights.astype(float)
        )
        assert np.square(errors_of(machine, partition)).sum() < 0.7 * before
        return
    for _ in range(2):
        least_squares(machine, reference_rows(partition), order, 0.5, 2.0)
    found = executor.parameters[0].table
    np.testing.assert_allclose(found.bias_value, machine.bias, atol=2e-4)
    np.testing.assert_allclose(found.linear_weights, machine.linear, atol=2e-4)
    np.testing.assert_allclose(found.factor_weights, machine.factors, atol=2e-4)


def errors_of(machine: Machine, partition: Any) -> np.ndarray:
    rows = reference_rows(partition)
    return np.array([machine.score(rows.entries(row)) - rows.labels[row] for row in range(partition.n_rows)])


# ------------------------------------------------------------------------------------------ same bytes ----


def split(task: str = "regression") -> tuple[Any, list[Any], Any]:
    X, y = planted(task, 90)
    whole = partition_of(X, y, FIELDS)
    parts = [rows_between(whole, start, start + 30) for start in (0, 30, 60)]
    return work_of(task, 2, solver="mcmc", n_replicas=3, n_epochs=6, burn_in=1, draws=4), parts, vocabulary_of(FIELDS)


def bytes_of(executor: ExactExecutor) -> list[bytes]:
    return [block.table[name].tobytes() for block in executor.parameters for name in ("bias", "linear", "factors")]


class Forgetful(Here):
    """A place where the states of rows are lost before the task of that number, once."""

    def __init__(self, lost_at: int) -> None:
        self.left = lost_at

    def submit(self, function: Any, *args: Any, near: tuple[int, int] = (0, 1), late: bool = False) -> Any:
        """The result, without what was lost."""
        if function is exact_rounds.walk_visit:
            self.left -= 1
            if self.left == 0:
                for replica in args[-1]:
                    replica.state = None
        return super().submit(function, *args, near=near, late=late)

    def groups(self, n_replicas: int) -> list[range]:
        """A group for each replica."""
        return [range(n, n + 1) for n in range(n_replicas)]


@pytest.mark.parametrize("lost_at", [1, 5, 6, 13])
def test_rows_whose_state_is_lost_anywhere_change_nothing(lost_at: int):
    work, parts, vocabulary = split()
    expected, other = executor_of(work, parts, vocabulary), executor_of(work, parts, vocabulary)
    other.place = Forgetful(lost_at)
    for number in range(4):
        iterate(expected, work, number)
        iterate(other, work, number)
    assert other.place.left < 0, "tasks were made again"
    assert bytes_of(expected) == bytes_of(other)


class Unsettled(Here):
    """A place where the parameters are lost once between the last report and their way to the driver."""

    lost = 0

    def settle(self, handle: Any) -> Any:
        """The parameters; nothing, of the third iteration at first."""
        self.lost += 1
        return None if self.lost == 3 else handle


def test_parameters_that_are_lost_at_the_end_of_an_iteration_are_drawn_again():
    work, parts, vocabulary = split()
    expected, other = executor_of(work, parts, vocabulary), executor_of(work, parts, vocabulary)
    other.place = Unsettled()
    for number in range(4):
        iterate(expected, work, number)
        iterate(other, work, number)
    assert other.place.lost == 5
    assert bytes_of(expected) == bytes_of(other)


def test_parameters_go_on_from_where_they_were_saved():
    work, parts, vocabulary = split("classification")
    expected = executor_of(work, parts, vocabulary, parts)
    for number in range(6):
        iterate(expected, work, number)
    first = executor_of(work, parts, vocabulary, parts)
    for number in range(3):
        iterate(first, work, number)
    second = executor_of(work, parts, vocabulary, parts)
    second.restore(list(first.parameters), [0, 6])
    for number in range(3, 6):
        iterate(second, work, number)
    assert bytes_of(expected) == bytes_of(second)
    last = SCHEDULE.work(work, 5, (0.0, 0))
    assert expected.evaluate(last) == second.evaluate(last)


def test_kept_draws_are_spread_over_what_follows_the_burn_in():
    for n_draws, expected in ((1, [6]), (2, [4, 6]), (5, [2, 3, 4, 5, 6]), (9, [2, 3, 4, 5, 6])):
        work = work_of("regression", 2, solver="mcmc", n_epochs=6, burn_in=1, draws=n_draws)
        assert [iteration for iteration in range(1, 7) if work.solving.keeps(iteration)] == expected
    assert not work_of("regression", 2, solver="als").solving.keeps(3)


@pytest.mark.parametrize("least", [1, 4])
def test_owners_that_share_a_visit_or_leave_it_to_others_change_nothing(least: int, monkeypatch: pytest.MonkeyPatch):
    work, parts, vocabulary = split()
    expected, other = executor_of(work, parts, vocabulary), executor_of(work, parts, vocabulary)
    other.place = Forgetful(-1)
    monkeypatch.setattr(Forgetful, "least_owned", least)
    for number in range(3):
        iterate(expected, work, number)
        iterate(other, work, number)
    assert bytes_of(expected) == bytes_of(other)
