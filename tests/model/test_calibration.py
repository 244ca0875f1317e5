"""Platt's and isotonic calibration: as defined, the same for any partition of the rows, and never a loss."""

from __future__ import annotations

import functools
import itertools
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm.model.calibration import KINDS, MOST_KNOTS, Calibration, fitted, gain_of, pooled
from dfm.model.metrics import ClassificationTally
from tests import reference

LINE = Calibration("platt", (0.0,), (-0.4,), 0.7)
RISING = Calibration("isotonic", (-3.0, -1.0, 2.0), (-2.5, -1.5, 0.5))


def drawn(seed: int, n_rows: int, slope: float = 1.0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a model, and labels whose true logit is slope · logit + shift."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, 1.5, n_rows)
    return logits, (rng.random(n_rows) < 1 / (1 + np.exp(-slope * logits - shift))).astype(float)


def fit(kind: str, logits: np.ndarray, labels: np.ndarray) -> Calibration:
    found = fitted(kind, ClassificationTally.from_scores(logits, labels))
    assert isinstance(found, Calibration)
    return found


def test_platt_is_the_line_of_least_log_loss() -> None:
    logits, labels = drawn(1, 3_000, slope=0.6, shift=-0.3)
    found = fit("platt", logits, labels)
    slope, intercept = reference.platt(logits, labels)
    assert (found.slope, found.logits[0]) == pytest.approx((slope, intercept), abs=2e-4)  # bins are 1/2048 wide
    assert found(2.0) == pytest.approx(found.slope * 2.0 + found.logits[0])


def test_platt_of_rows_that_can_be_told_apart_is_finite() -> None:
    found = fit("platt", np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1.0]))
    assert 0 < found.slope < 10


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.5, 4)), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_pools_are_those_of_the_rising_least_squares_fit(pairs: list[tuple[float, float]]) -> None:
    values, weights = map(np.array, zip(*pairs, strict=True))
    starts = pooled(values, weights)
    means = np.add.reduceat(values * weights, starts) / np.add.reduceat(weights, starts)
    sizes = np.diff(np.append(starts, len(values)))
    np.testing.assert_allclose(np.repeat(means, sizes), reference.isotonic(values, weights), atol=1e-9)
    assert (np.diff(means) > 0).all()


def test_isotonic_finds_a_function_that_no_line_is() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, 60_000)
    truth = np.where(logits > 0, 0.2 * logits, 1.5 * logits)
    labels = (rng.random(60_000) < 1 / (1 + np.exp(-truth))).astype(float)
    found = fit("isotonic", logits, labels)
    for at in (-2.0, -1.0, 1.0, 3.0):
        expected = 0.2 * at if at > 0 else 1.5 * at
        assert found(at) == pytest.approx(expected, abs=0.2)
    assert len(found.scores) <= MOST_KNOTS


@pytest.mark.parametrize("calibration", [LINE, RISING])
def test_order_is_kept_and_pieces_say_the_same(calibration: Calibration) -> None:
    scores = np.linspace(-8, 8, 400)
    found = calibration(scores)
    assert (np.diff(found) > 0).all()
    low, high, start, slopes = calibration.pieces
    runs = np.clip(scores[:, None], low, high) - start
    np.testing.assert_allclose(calibration.logits[0] + runs @ slopes, found, atol=1e-12)
    assert Calibration.from_dict(calibration.to_dict()) == calibration


@pytest.mark.parametrize("calibration", [LINE, RISING])
def test_a_model_of_higher_logits_is_calibrated_to_as_much_higher_ones(calibration: Calibration) -> None:
    scores = np.linspace(-6, 6, 50)
    np.testing.assert_allclose(calibration.moved(-2.3)(scores - 2.3), calibration(scores) - 2.3, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_does_not_depend_on_how_rows_are_dealt(kind: str) -> None:
    logits, labels = drawn(3, 5_050, slope=0.5)
    whole = fit(kind, logits, labels)
    cuts = np.split(np.arange(5_050), [700, 701, 3_000])
    parts = [ClassificationTally.from_scores(logits[rows], labels[rows]) for rows in cuts]
    summed = fitted(kind, functools.reduce(operator.add, parts))
    assert isinstance(summed, Calibration)
    np.testing.assert_allclose(summed.logits, whole.logits, rtol=1e-9)
    # A power of two: counts that round elsewhere put rows at the border of two groups into the other one.
    weighted = fitted(kind, ClassificationTally.from_scores(logits, labels, np.full(5_050, 2.0**-10)))
    assert isinstance(weighted, Calibration)
    np.testing.assert_allclose(weighted.logits, whole.logits, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_never_worsens_rows_that_nobody_has_seen(kind: str) -> None:
    """Ten seeds of models that are right, and of models that are too sure of themselves."""
    kept = {1.0: 0, 0.6: 0}
    for seed, slope in itertools.product(range(10), kept):
        tallies = [
            ClassificationTally.from_scores(*drawn(100 * seed + part, n_rows, slope))
            for part, n_rows in enumerate((2_000, 4_000))
        ]
        found = fitted(kind, tallies[0])
        assert isinstance(found, Calibration)
        if not gain_of(found, tallies[1]).is_one:
            continue
        kept[slope] += 1
        logits, labels = drawn(100 * seed + 50, 20_000, slope)
        before, after = (ClassificationTally.from_scores(each, labels).loss for each in (logits, found(logits)))
        assert after < before, (kind, seed, slope)
    assert kept[1.0] == 0, "a model that is right needs no calibration"
    assert kept[0.6] == 10


def test_the_gain_is_the_fall_of_the_log_loss() -> None:
    logits, labels = drawn(5, 4_000, slope=0.6)
    tally = ClassificationTally.from_scores(logits, labels)
    rows = np.logaddexp(0, logits) - labels * logits - np.logaddexp(0, LINE(logits)) + labels * LINE(logits)
    found = gain_of(LINE, tally)
    assert found.mean == pytest.approx(rows.mean(), abs=1e-5)
    assert found.error == pytest.approx(rows.std() / np.sqrt(4_000), rel=1e-3)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_error_of_the_gain_is_that_of_rows_drawn_anew_with_their_weights(share: float) -> None:
    """Most rows weigh nothing, and a few of the others a lot."""
    found = []
    for seed in range(200):
        logits, labels = drawn(seed, 2_000, slope=0.6)
        rng = np.random.default_rng(seed)
        weights = np.where(rng.random(2_000) < share, np.where(rng.random(2_000) < 0.1, 10.0, 1.0), 0.0)
        found.append(gain_of(LINE, ClassificationTally.from_scores(logits, labels, weights)))
    spread = np.std([gain.mean for gain in found])
    assert np.mean([gain.error for gain in found]) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_weight_zero_leave_no_trace(kind: str) -> None:
    logits, labels = drawn(4, 4_000, slope=0.6)
    weights = np.where(np.arange(4_000) < 500, 1.0, 0.0)
    some = fitted(kind, ClassificationTally.from_scores(logits[:500], labels[:500]))
    assert fitted(kind, ClassificationTally.from_scores(logits, labels, weights)) == some
    few = ClassificationTally.from_scores(logits, labels, np.where(np.arange(4_000) < 150, 1.0, 0.0))
    told = "the 4000 rows to fit it on, which count for 150 by their weights, are too few: expected 200, for two groups"
    assert kind == "platt" or str(fitted(kind, few)).startswith(told)


def test_rows_of_one_class_and_a_model_that_is_upside_down_give_none() -> None:
    assert "not of both classes" in str(fitted("platt", ClassificationTally.from_scores([0.0, 1.0], [1, 1])))
    assert "not of both classes" in str(fitted("platt", ClassificationTally.empty()))
    logits, labels = drawn(6, 3_000, slope=-1.0)
    reasons = {kind: str(fitted(kind, ClassificationTally.from_scores(logits, labels))) for kind in KINDS}
    assert reasons["platt"] == "it would turn the order of the rows round"
    assert reasons["isotonic"].endswith("the 3000 rows to fit it on rises with the logits: all fall into one pool")


@pytest.mark.parametrize("n_rows", [2, 150, 199])
def test_an_isotonic_calibration_of_too_few_rows_says_so(n_rows: int) -> None:
    logits = np.linspace(-2, 2, n_rows)
    few = ClassificationTally.from_scores(logits, (logits > 0).astype(float))
    expected = f"the {n_rows} rows to fit it on are too few: expected 200, for two groups of rows"
    assert fitted("isotonic", few) == expected
