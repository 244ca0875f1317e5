"""Tallies against the definitions of their metrics, and the laws that merging over partitions rests on."""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
)

from dfm.errors import DataError, DivergenceError
from dfm.model.metrics import TALLIES, ClassificationTally, RegressionTally

BIN_WIDTH = 1 / 2048
TASKS = sorted(TALLIES)
spread_logits = st.floats(-30, 30, width=32)
crowded_logits = st.integers(-6, 6).map(lambda steps: 0.5 + steps * BIN_WIDTH / 4)
quick = settings(max_examples=60, deadline=None)


@st.composite
def rows(draw, min_size=0, logits=spread_logits | crowded_logits):
    """Scores float32[n], labels float32[n] (0 or 1) and weights float32[n] (some of them 0)."""
    drawn = draw(st.lists(st.tuples(logits, st.booleans(), st.integers(0, 4)), min_size=min_size, max_size=60))
    columns = np.array(drawn, np.float32).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], columns[:, 2]


@st.composite
def two_class_rows(draw):
    scores, labels, weights = draw(rows(min_size=2))
    labels[:2], weights[:2] = (0, 1), np.maximum(weights[:2], 1)
    return scores, labels, weights


def assert_same_metrics(actual: dict, expected: dict, tolerance: float = 1e-9) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if name == "calibration_bins":
            assert len(actual[name]) == len(value)
            for ours, theirs in zip(actual[name], value, strict=True):
                assert_same_metrics(ours, theirs, tolerance)
        elif value is None:
            assert actual[name] is None, name
        else:
            assert actual[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("task", TASKS)
@quick
@given(rows(), st.lists(st.integers(0, 60), max_size=4))
def test_merging_any_split_equals_the_whole(task, data, cuts):
    tally = TALLIES[task]
    pieces = list(zip(*(np.split(column, sorted(cuts)) for column in data), strict=True))
    merged = functools.reduce(operator.add, (tally.from_scores(*piece) for piece in pieces), tally.empty())
    assert_same_metrics(merged.metrics(), tally.from_scores(*data).metrics())


@pytest.mark.parametrize("task", TASKS)
@quick
@given(rows(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(task, data, random):
    order = list(range(len(data[0])))
    random.shuffle(order)
    shuffled = [column[order] for column in data]
    assert_same_metrics(TALLIES[task].from_scores(*shuffled).metrics(), TALLIES[task].from_scores(*data).metrics())


@pytest.mark.parametrize("task", TASKS)
@quick
@given(rows())
def test_a_weight_counts_like_that_many_copies_of_the_row(task, data):
    copies = data[2].astype(int)
    repeated = TALLIES[task].from_scores(np.repeat(data[0], copies), np.repeat(data[1], copies)).metrics()
    weighted = TALLIES[task].from_scores(*data).metrics()
    assert (weighted.pop("rows"), repeated.pop("rows")) == (len(data[0]), copies.sum())
    assert_same_metrics(weighted, repeated)


@quick
@given(rows(min_size=1))
def test_log_loss_equals_its_definition(data):
    scores, labels, _ = data
    likelihoods = [1 / (1 + math.exp(-z if y else z)) for z, y in zip(scores.tolist(), labels.tolist(), strict=True)]
    expected = -sum(math.log(likelihood) for likelihood in likelihoods) / len(likelihoods)
    assert ClassificationTally.from_scores(scores, labels).metrics()["log_loss"] == pytest.approx(expected, rel=1e-9)


@quick
@given(two_class_rows())
def test_auc_is_within_its_stated_error_of_the_exact_one(data):
    scores, labels, weights = data
    values = ClassificationTally.from_scores(scores, labels, weights).metrics()
    exact = roc_auc_score(labels, scores, sample_weight=weights)
    assert abs(values["auc"] - exact) <= values["auc_error"] + 1e-9


def test_the_auc_error_is_reached_when_a_bin_hides_a_perfect_order():
    scores = np.float32([0.5, 0.5 + BIN_WIDTH / 2])
    values = ClassificationTally.from_scores(scores, [0, 1]).metrics()
    assert (values["auc"], values["auc_error"]) == (0.5, 0.5)
    below, above = (ClassificationTally.from_scores([score], [label]) for label, score in enumerate(scores))
    for merged in (below + above, above + below):
        assert merged.metrics()["auc_error"] == 0.5


@quick
@given(two_class_rows())
def test_auc_and_pr_auc_are_exact_where_a_bin_has_one_logit(data):
    scores, labels, weights = data
    scores = np.clip(np.round(scores * 8) / 8, -15, 15)
    values = ClassificationTally.from_scores(scores, labels, weights).metrics()
    assert values["auc_error"] == 0
    assert values["auc"] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-9)
    expected = average_precision_score(labels, scores, sample_weight=weights)
    assert values["pr_auc"] == pytest.approx(expected, abs=1e-9)


def test_the_error_of_auc_on_a_realistic_log_is_far_below_what_anybody_compares():
    rng = np.random.default_rng(7)
    scores = rng.normal(-1, 1, 20_000).astype(np.float32)
    labels = rng.random(20_000) < 1 / (1 + np.exp(-scores))
    values = ClassificationTally.from_scores(scores, labels).metrics()
    assert values["auc_error"] < 2e-4
    assert values["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=values["auc_error"] + 1e-12)
    assert values["calibration"] == pytest.approx(1, abs=0.03)
    for group in values["calibration_bins"]:
        assert group["weight"] == pytest.approx(2000)
        assert group["predicted"] == pytest.approx(group["observed"], abs=0.05)


def test_answering_the_click_rate_has_entropy_one_calibration_one_and_auc_one_half():
    labels = np.array([1, 0, 0, 0] * 50)
    values = ClassificationTally.from_scores(np.full(200, math.log(1 / 3)), labels).metrics()
    for name, expected in [
        ("normalized_entropy", 1),
        ("calibration", 1),
        ("auc", 0.5),
        ("auc_error", 0),
        ("pr_auc", 0.25),
    ]:
        assert values[name] == pytest.approx(expected, abs=1e-12), name
    assert (values["base_rate"], values["rows"], values["weight"]) == (0.25, 200, 200)
    assert len(values["calibration_bins"]) == 10
    assert all(
        group == pytest.approx({"predicted": 0.25, "observed": 0.25, "weight": 20})
        for group in values["calibration_bins"]
    )


@quick
@given(rows(min_size=1))
def test_calibration_bins_share_out_all_weight_predictions_and_labels(data):
    scores, labels, weights = data
    values = ClassificationTally.from_scores(scores, labels, weights).metrics()
    groups = values["calibration_bins"]
    assert len(groups) == (10 if weights.sum() else 0)
    probability = 1 / (1 + np.exp(-scores.astype(float)))
    for key, amounts in [("observed", labels), ("predicted", probability)]:
        total = sum(group[key] * group["weight"] for group in groups)
        assert total == pytest.approx((weights * amounts).sum(), rel=1e-9, abs=1e-9)
    predicted = [group["predicted"] for group in groups]
    assert all(low <= high + BIN_WIDTH for low, high in itertools.pairwise(predicted))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_leaves_undefined_metrics_out_instead_of_failing(label):
    values = ClassificationTally.from_scores([0.1, 2.0, -1.0], [label] * 3, [0.1, 0.2, 0.3]).metrics()
    assert values["auc"] is values["auc_error"] is values["normalized_entropy"] is None
    assert values["log_loss"] > 0
    assert (values["calibration"] is None) == (values["pr_auc"] is None) == (label == 0)


def test_extreme_logits_keep_a_finite_and_exact_loss():
    values = ClassificationTally.from_scores(np.float32([3e38, -800.0, 20.0]), [1, 1, 1]).metrics()
    assert values["log_loss"] == pytest.approx((800 + math.log1p(math.exp(-20))) / 3)
    assert values["calibration"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("task", TASKS)
def test_no_rows_are_json_without_numbers_and_change_no_sum(task):
    tally = TALLIES[task]
    empty = tally.empty().metrics()
    assert (empty["rows"], empty["weight"], empty[tally.loss_name]) == (0, 0, None)
    some = tally.from_scores([0.5, 1.0], [0, 1], [])
    assert (tally.empty() + some).metrics() == (some + tally.empty()).metrics() == some.metrics()
    for values in (empty, some.metrics()):
        assert json.loads(json.dumps(values, allow_nan=False)) == values


@pytest.mark.parametrize("task", TASKS)
def test_a_pickled_tally_gives_the_same_metrics(task):
    tally = TALLIES[task].from_scores([0.5, 1.0, -3.0], [0, 1, 1])
    assert pickle.loads(pickle.dumps(tally)).metrics() == tally.metrics()


@quick
@given(rows(min_size=2), st.floats(-1e6, 1e6))
def test_regression_metrics_equal_their_definitions_far_from_zero_too(data, offset):
    predictions, labels, weights = (column.astype(float) for column in data)
    weights = weights + 1
    labels[:2] = 0, 1
    values = RegressionTally.from_scores(predictions + offset, labels + offset, weights).metrics()
    errors = (predictions + offset) - (labels + offset)
    assert values["mae"] == pytest.approx(np.average(abs(errors), weights=weights), rel=1e-9)
    assert values["rmse"] == pytest.approx(np.sqrt(np.average(errors**2, weights=weights)), rel=1e-9)
    assert values["mean_error"] == pytest.approx(np.average(errors, weights=weights), rel=1e-9, abs=1e-9)
    expected = r2_score(labels + offset, predictions + offset, sample_weight=weights)
    assert values["r2"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_errors_in_parts_of_the_label_leave_out_labels_of_0():
    parts = [RegressionTally.from_scores([2.0, 5.0], [1.0, 0.0], [1, 9]), RegressionTally.from_scores([3.0], [-4.0])]
    assert (parts[0] + parts[1]).metrics()["mape"] == pytest.approx((1.0 + 7 / 4) / 2)
    assert RegressionTally.from_scores([1.0], [0.0]).metrics()["mape"] is None
    assert RegressionTally.from_scores([1.0], [2e-311]).metrics()["mape"] is None  # of 32 bits that is 0


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_decisions_at_a_threshold_are_those_of_scikit_learn(threshold):
    rng = np.random.default_rng(4)
    logits, weights = np.round(rng.normal(-1, 1.5, 400), 2), rng.integers(0, 4, 400)
    labels = (rng.random(400) < 1 / (1 + np.exp(-logits))).astype(int)
    tally = ClassificationTally.from_scores(logits[:99], labels[:99], weights[:99])
    found = (tally + ClassificationTally.from_scores(logits[99:], labels[99:], weights[99:])).at_threshold(threshold)
    decided = logits >= np.log(threshold / (1 - threshold))
    assert found["threshold"] == threshold
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, decided, sample_weight=weights))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, decided, sample_weight=weights, average="binary")
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((precision, recall, f1))


def test_nobody_beyond_the_threshold_has_no_precision():
    found = ClassificationTally.from_scores([-3.0, -2.0], [0, 1]).at_threshold(0.9)
    assert (found["precision"], found["recall"], found["accuracy"]) == (None, 0.0, 0.5)


def test_labels_that_are_all_the_same_leave_r2_undefined():
    values = RegressionTally.from_scores([0.1, 0.2, 0.4], [0.1, 0.1, 0.1]).metrics()
    assert values["r2"] is None
    assert values["rmse"] > 0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("scores", "labels", "weights", "error", "said"),
    [
        ([0.0, math.nan], [0, 1], None, DivergenceError, "1 of 2 scores .* smaller training.learning_rate"),
        ([math.inf, 0.0], [0, 1], None, DivergenceError, "not finite"),
        ([0.0], [math.nan], None, DataError, "label is not a finite number"),
        ([0.0], [1], [-1.0], DataError, "weight is negative"),
        ([0.0], [1], [math.nan], DataError, "weight is negative or not finite"),
        ([0.0, 1.0], [1], None, DataError, r"shapes \(2,\), \(1,\)"),
        ([0.0, 1.0], [1, 0], [1.0], DataError, r"\(1,\): expected one number of each per row"),
    ],
)
def test_rows_that_no_metric_can_use_are_refused(task, scores, labels, weights, error, said):
    with pytest.raises(error, match=said):
        TALLIES[task].from_scores(scores, labels, weights)


@pytest.mark.parametrize("label", [-1, 2, 1.5])
def test_a_class_outside_of_0_and_1_is_refused_with_its_value(label):
    with pytest.raises(DataError, match=rf"label {float(label)} is not legal .* expected 0 or 1"):
        ClassificationTally.from_scores([0.0, 0.0], [1, label])
