"""Kernels of the exact solvers against definitions: random numbers, equations, sums, visits, draws."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import scipy.stats

from dfm.data.units import LabelUnit
from dfm.errors import DataError
from dfm.kernels.tables import Layout, allocate
from dfm.solvers import visits as visiting
from dfm.solvers.chance import gamma, key_of, log_phi, mean_above, normal, normal_above
from dfm.solvers.columns import State, replica_of
from dfm.solvers.passes import collect
from dfm.solvers.posterior import Draws, intervals, mean_scores, put_together
from dfm.solvers.solving import draw_prior, solve
from dfm.solvers.sums import n_sums, parts_of
from dfm.solvers.visits import meetings_of, visits_of
from dfm.storage.arrays import read_only
from dfm.training.exact_rounds import _sums_of, scored
from tests.reference import Machine
from tests.support.exact_cases import dense_of, partition_of, rows_between

N = 20_000


@numba.njit
def numbers(which, n, bound):  # type: ignore[no-untyped-def]
    """n numbers of a kind, by keys that follow each other."""
    found = np.empty(n)
    for i in range(n):
        key = key_of(np.uint64(7), np.uint64(i))
        if which == 0:
            found[i] = normal(key, i % 5)
        elif which == 1:
            found[i] = gamma(key, bound)
        else:
            found[i] = normal_above(key, bound)
    return found


def test_numbers_by_counter_have_the_distributions_that_they_are_named_by():
    assert scipy.stats.kstest(numbers(0, N, 0.0), "norm").pvalue > 0.01
    for shape in (0.5, 2.5, 40.0):
        assert scipy.stats.kstest(numbers(1, N, shape), scipy.stats.gamma(shape).cdf).pvalue > 0.01
    for bound in (-3.0, 0.0, 0.7, 6.0):
        found, wanted = numbers(2, N, bound), scipy.stats.truncnorm(bound, np.inf)
        assert scipy.stats.kstest(found, wanted.cdf).pvalue > 0.01
        assert mean_above(bound) == pytest.approx(wanted.mean(), rel=1e-8)


@pytest.mark.parametrize("x", [-300.0, -25.1, -24.9, -3.0, 0.0, 5.0, 40.0])
def test_the_logarithm_of_phi_is_exact_far_out(x: float):
    assert log_phi(x) == pytest.approx(scipy.stats.norm.logcdf(x), rel=1e-7, abs=1e-300)


def test_drawn_values_have_the_mean_and_the_covariance_of_their_equations():
    rng, width, n = np.random.default_rng(0), 4, 40_000
    H = rng.normal(size=(70, width))
    H[:, 1] = 1.5 * H[:, 0] + 0.2 * rng.normal(size=70)  # nearly collinear, where a wrong factor shows
    G, he, old = H.T @ H, 3 * rng.normal(size=width), rng.normal(size=width)
    sums = np.tile(np.concatenate([G[np.tril_indices(width)], he]), (n, 1))
    prior, new = np.stack([np.full(width, 0.1), np.full(width, 0.7)], axis=1), np.zeros((n, width), np.float32)
    features, many = np.arange(n, dtype=np.uint32), np.tile(old, (n, 1)).astype(np.float32)
    precision = 2 * G + 0.1 * np.eye(width)
    mean = np.linalg.solve(precision, 2 * (G @ old - he) + 0.07)
    solve(sums, many, 2.0, prior, (True, np.uint64(3)), features, new)
    spread = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert np.abs(new.mean(axis=0) - mean).max() < 4 * spread.max() / n**0.5
    whitened = np.linalg.cholesky(precision).T @ np.cov(new.T) @ np.linalg.cholesky(precision)
    np.testing.assert_allclose(whitened, np.eye(width), atol=0.05)
    solve(sums, many, 2.0, prior, (False, np.uint64(3)), features, new)
    np.testing.assert_allclose(new[0], mean, rtol=1e-4)


@pytest.mark.parametrize("unit", [1.0, 0.1])
def test_hyperparameters_pass_the_test_of_geweke(unit: float):
    """Drawn in turn with values, they are distributed as they are before any value is seen."""
    rng, tails = np.random.default_rng(1), []
    values = unit * rng.normal(size=(3, 1))
    for i in range(N):
        precision, mean = draw_prior(values, unit, np.uint64(i))[0]
        values = rng.normal(mean, precision**-0.5, size=(3, 1))
        tails.append((precision, mean * precision**0.5, values[0, 0] > 0))
    precisions, means, signs = np.array(tails[::10]).T
    assert scipy.stats.kstest(precisions, scipy.stats.gamma(0.5, scale=2.0 / unit**2).cdf).pvalue > 0.001
    assert scipy.stats.kstest(means, "norm").pvalue > 0.001
    assert signs.mean() == pytest.approx(0.5, abs=0.05)


# ---------------------------------------------------------------------------------------------- visits ----


def test_a_field_of_one_value_a_row_is_one_visit_and_values_that_meet_are_kept_apart():
    dense = dense_of([4, 3], 30, seed=0)
    dense = np.concatenate([dense, (np.random.default_rng(1).random((30, 5)) < 0.4)], axis=1)
    fields = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    partition = partition_of(dense, np.zeros(30), fields)
    visits = visits_of(partition.fields, 9, meetings_of(partition))
    assert [visit.field for visit in visits.visits][:2] == [0, 1]
    assert sorted(np.concatenate([visit.features for visit in visits.visits])) == list(range(12))
    for visit in visits.visits:
        assert {fields[j] for j in visit.features} == {visit.field}
        assert dense[:, visit.features].sum(axis=1).max() <= 1, "no two of a visit stand in one row"
        assert visit.n_factored == np.count_nonzero(visit.features < 9)
    apart = [(a, b) for a in range(7, 12) for b in range(7, a) if np.any(dense[:, a] * dense[:, b])]
    assert len(visits.visits) <= 2 + 5
    assert apart, "the list does hold values that meet"


def test_columns_of_a_matrix_that_never_meet_are_visited_together():
    dense = dense_of([30, 20], 400, seed=2)
    partition = partition_of(dense, np.zeros(400), [0] * 50)
    assert len(visits_of(partition.fields, 50, meetings_of(partition)).visits) == 2


def test_too_many_pairs_that_meet_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(visiting, "MOST_MEETINGS", 20)
    partition = partition_of(np.ones((2, 8)), np.zeros(2), [0] * 8)
    with pytest.raises(DataError, match=r"more than 20 different pairs .* leave the list out"):
        meetings_of(partition)


# ------------------------------------------------------------------------------------------------ sums ----


@pytest.mark.parametrize("n_factors", [0, 3, 18])
def test_sums_of_a_visit_are_those_of_its_definition_and_add_up_over_replicas(n_factors: int):
    rng, fields, n_rows = np.random.default_rng(3), [0] * 4 + [1] * 3, 40
    dense = dense_of([4, 3], n_rows, seed=4) * rng.choice([1.0, -0.5, 2.0], (n_rows, 7))
    weights, n_factored = rng.integers(0, 3, n_rows), 5 if n_factors else 0
    whole = partition_of(dense, rng.normal(size=n_rows), fields, n_factored, weights)
    visits = visits_of(whole.fields, n_factored, meetings_of(whole))
    table = allocate(Layout("sgd", n_factors), 7, n_factored)
    table.linear_weights[...], table.factor_weights[...] = rng.normal(size=7), rng.normal(size=(n_factored, n_factors))

    def sums(partition, part, visit):  # type: ignore[no-untyped-def]
        replica = replica_of(0, partition, visits, n_factors)
        own = allocate(table.layout, len(partition.features), partition.n_factored)
        own.linear[...], own.factors[...] = (
            table.linear[partition.features],
            table.factors[partition.features[: partition.n_factored]],
        )
        state = State(0, 0, scored(partition, own), own)
        return _sums_of(part, replica.columns[visit], partition, state)

    rows = scored(whole, table).astype(np.float64)
    for number, visit in enumerate(visits.visits):
        for part in parts_of(n_factors):
            first, second = (
                sums(rows_between(whole, 0, 17), part, number),
                sums(rows_between(whole, 17, 40), part, number),
            )
            found = [*sums(whole, part, number).spread(len(visit.features), visit.n_factored)]
            for one, both in zip(found, (first + second).spread(len(visit.features), visit.n_factored), strict=True):
                np.testing.assert_allclose(both, one, rtol=1e-5, atol=1e-5)
            for j, values in zip(visit.features, [*found[0], *found[1]], strict=True):
                x = dense[:, j]
                h = (
                    [x * (rows[:, f] - x * table.factors[j, f]) for f in range(part.first, part.last)]
                    if j < n_factored
                    else []
                )
                H = np.array([*h, x] if part.with_linear else h).reshape(-1, n_rows)
                expected = [*(H * weights @ H.T)[np.tril_indices(len(H))], *(H * weights @ rows[:, -1])]
                np.testing.assert_allclose(values[: len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_sums_of_a_feature_in_many_rows_are_as_exact_as_those_of_one_in_few():
    """Products are added up in float32 for a while; 200,000 of them in one float32 would be off by 1e-3 or more."""
    n_rows, slots = 200_000, np.zeros(200_000, np.uint32)
    slots[7::1000] = 1
    rows = np.full((n_rows, 9), 0.3, np.float32)
    factors, nothing = np.zeros((2, 8), np.float32), np.zeros(0, np.float32)
    factored, lone = np.zeros((2, n_sums(9))), np.zeros((0, n_sums(1)))
    add = collect(8, True, 9)
    add((np.zeros(0, np.uint32), slots, nothing), nothing, 0, *map(read_only, (factors, rows)), factored, lone)
    h = np.full(9, np.float64(np.float32(0.3)))
    h[8] = 1.0
    expected = np.array([*np.outer(h, h)[np.tril_indices(9)], *(h * h[0])])
    np.testing.assert_allclose(factored[0], expected * (n_rows - 200), rtol=2e-4)
    np.testing.assert_allclose(factored[1], expected * 200, rtol=1e-5)


def test_factors_beyond_sixteen_are_solved_part_by_part():
    assert [(part.first, part.last, part.with_linear) for part in parts_of(40)] == [
        (0, 16, True),
        (16, 32, False),
        (32, 40, False),
    ]
    assert n_sums(17) == 17 * 18 // 2 + 17


# --------------------------------------------------------------------------------------------- posterior ----


def several(task: str):  # type: ignore[no-untyped-def]
    """Four machines, the model that they make together, some rows, and their scores by definition."""
    rng, fields = np.random.default_rng(6), [0] * 4 + [1] * 3
    dense = dense_of([4, 3], 50, seed=7) * rng.choice([1.0, 2.0], (50, 1))
    partition = partition_of(dense, np.zeros(50), fields, 5)
    tables, scores = [], []
    for _ in range(4):
        table = allocate(Layout("sgd", 3), 7, 5)
        table.bias[0], table.linear_weights[...] = rng.normal(), rng.normal(size=7)
        table.factor_weights[...] = rng.normal(size=(5, 3))
        machine = Machine(float(table.bias[0]), table.linear_weights.astype(float), table.factor_weights.astype(float))
        scores.append([machine.score([(int(j), row[j]) for j in np.flatnonzero(row)]) for row in dense])
        tables.append(table)
    noises = [0.5, 0.6, 0.7, 0.8] if task == "regression" else [0.0] * 4
    return partition, *put_together(tables, noises), np.array(scores)


def test_a_model_of_draws_gives_the_mean_score_or_the_mean_probability():
    partition, table, draws, scores = several("regression")
    np.testing.assert_allclose(mean_scores(partition, table, draws, "regression"), scores.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(scored(partition, table)[:, -1], scores.mean(axis=0), rtol=1e-3, atol=1e-4)
    found = mean_scores(partition, table, draws, "classification")
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), scipy.stats.norm.cdf(scores).mean(axis=0), rtol=1e-4)


def test_intervals_are_quantiles_of_the_mixture_of_all_draws():
    partition, table, draws, scores = several("regression")
    found = intervals(partition, table, draws, 0.8)
    below = scipy.stats.norm.cdf((found.T[:, None] - scores) / draws.noise[:, None]).mean(axis=1)
    np.testing.assert_allclose(below, [[0.1] * 50, [0.9] * 50], atol=1e-4)


def test_draws_come_into_the_unit_of_the_labels():
    draws = Draws(np.array([1.0], np.float32), np.array([[2.0]], np.float32), np.array([0.5], np.float32))
    moved = draws.in_own_unit(LabelUnit(10.0, 3.0))
    assert (moved.bias[0], moved.linear[0, 0], moved.noise[0]) == (13.0, 6.0, 1.5)
