"""A training that could learn nothing of something says so, with the knob to turn; of a good one there is no word."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dfm.data.hashing import MISSING, token_index
from dfm.data.schema import resolve
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import FeatureCounts, build_vocabulary
from dfm.model.objective import LossInfo, Objective
from dfm.settings.tables import SGD, SOLVERS, Schema
from dfm.training.diagnosis import (
    FieldCounts,
    column_findings,
    count_fields,
    model_findings,
    start_finding,
    table_finding,
    validation_findings,
)

SCHEMA = resolve(
    Schema(categorical=("user", "site"), numeric=("x",), transforms={"x": "raw"}), ["label", "user", "site", "x"]
)
BUCKETS = resolve(Schema(categorical=("user",), numeric=("x",)), ["label", "user", "x"])
USUAL = FieldCounts(500, 10_000, 30, 5)
CLICKS, NUMBERS = Objective.of("classification"), Objective.of("regression")
OWN_CLICKS, OWN_NUMBERS = (
    Objective(task, LossInfo("own", link, None, "e3b0c442"))
    for task, link in (("classification", "sigmoid"), ("regression", "identity"))
)
CONSTANT = ["no-better-than-a-constant"]
ORDER = dataclasses.replace(CLICKS, stop_on="auc")
UNFIT = {"log_loss": 0.7, "normalized_entropy": 1.2}
OFF = {"log_loss": 0.51, "normalized_entropy": 1.02, "calibration": 0.4, "base_rate": 0.2}
"""Predictions of another mean than that of the rows."""


def kinds(findings: list[Any]) -> list[tuple[str, str]]:
    assert all(finding.knobs and finding.message for finding in findings)
    return [(finding.kind, finding.column) for finding in findings]


@pytest.mark.parametrize("min_count", [1, 4])
def test_fields_are_counted_apart_from_what_was_too_rare(min_count: int) -> None:
    tokens = [("user", b"u%d" % n, 1) for n in range(30)] + [
        ("user", b"often", 9),
        ("site", b"a", 70),
        ("site", MISSING, 8),
    ]
    ids = np.array([token_index(column, value, 20) for column, value, _ in tokens], np.uint32)
    counts = np.array([count for *_, count in tokens], np.int64)
    fields = np.array([["user", "site"].index(column) for column, *_ in tokens], np.uint16)
    order = np.argsort(ids)
    seen = FeatureCounts(ids[order], counts[order], fields[order])
    found = count_fields(build_vocabulary(seen, ["user", "site"], 20, min_count, 1), ["user", "site"])
    expected = FieldCounts(31, 39, 0, 30) if min_count == 1 else FieldCounts(1, 39, 30, 0)
    assert found == [expected, FieldCounts(2, 78, 0, 0, 8)]


def test_rows_of_today_are_rare_by_what_the_vocabulary_knows_of_all_nights() -> None:
    def counts(values: dict[str, int]) -> FeatureCounts:
        ids = np.array([token_index("user", value.encode(), 20) for value in values], np.uint32)
        order = np.argsort(ids)
        return FeatureCounts(ids[order], np.array([*values.values()])[order], np.zeros(len(ids), np.uint16))

    everything = {"known": 9, "twice": 2, "once": 1, "of yesterday alone": 5}
    today = counts({"known": 1, "twice": 2, "once": 1})
    for min_count, expected in (
        (1, FieldCounts(3, 4, 0, 1)),
        (2, FieldCounts(2, 4, 1, 0)),
        (9, FieldCounts(1, 4, 3, 0)),
    ):
        vocabulary = build_vocabulary(counts(everything), ["user"], 20, min_count, 1)
        assert count_fields(vocabulary, ["user"], today) == [expected]
    nothing = build_vocabulary(counts({}), ["user"], 20, 1, 1)
    assert count_fields(nothing, ["user"], today) == [FieldCounts(0, 4, 4, 0)]


def test_columns_that_say_nothing_are_named() -> None:
    assert column_findings(SCHEMA, {}, [USUAL, USUAL, FieldCounts(1, 10_000, 0, 0)], 4, 0.0) == []
    one, never = FieldCounts(1, 10_000, 0, 0), FieldCounts(2, 10_000, 9_950, 0)
    assert kinds(column_findings(SCHEMA, {}, [never, one, one], 4, 0.0)) == [
        ("never-seen-twice", "user"),
        ("one-value", "site"),
    ]
    alone = FieldCounts(9_990, 10_000, 0, 9_985)
    assert kinds(column_findings(SCHEMA, {}, [alone, USUAL, one], 1, 0.0)) == [("never-seen-twice", "user")]
    collided = FieldCounts(894, 42_807, 40_323, 0)  # 42,000 ids of rows, some share an index with another, or a site
    assert kinds(column_findings(SCHEMA, {}, [collided, USUAL, USUAL], 2, 0.042)) == [("never-seen-twice", "user")]
    assert column_findings(SCHEMA, {}, [collided, USUAL, USUAL], 2, 0.0) == []
    assert column_findings(SCHEMA, {}, [FieldCounts(400, 10_000, 7_800, 0), USUAL, USUAL], 2, 0.4) == []
    found = column_findings(BUCKETS, {}, [USUAL, one], 4, 0.0)
    assert kinds(found) == [("one-bucket", "x")]
    assert "schema.transforms.x" in found[0].knobs


@pytest.mark.parametrize(
    ("transform", "known", "missing", "expected", "remedy"),
    [
        ("standardize", NumberStatistics((), 0.1, 0.0), 0, "one-value", "; leave it out"),
        ("standardize", NumberStatistics((), 0.1, 2.0), 0, "", ""),
        ("raw", None, 0, "", ""),
        ("quantile", NumberStatistics((3.3,), 3.3, 0.0), 0, "one-value", "; leave it out"),
        ("quantile", NumberStatistics((0.0,), 0.01, 0.2), 0, "one-bucket", "; choose log2-bucket for it"),
        ("auto", NumberStatistics((0.0,), 0.01, 0.2), 0, "one-bucket", "; choose log2-bucket for it"),
        ("auto", None, 0, "one-bucket", "; choose quantile for it"),
        ("log2-bucket", None, 0, "one-bucket", "; choose quantile for it"),
        *((transform, None, 10_000, "no-value", "; leave it out") for transform in ("auto", "quantile", "raw")),
    ],
)  # fmt: skip
def test_a_number_that_says_nothing_has_the_remedy_that_helps(
    transform: str, known: NumberStatistics | None, missing: int, expected: str, remedy: str
) -> None:
    schema = resolve(Schema(categorical=("user",), numeric=("x",), numeric_transform=transform), ["label", "user", "x"])
    statistics = {} if known is None else {"x": known}
    found = column_findings(schema, statistics, [USUAL, FieldCounts(1, 10_000, 0, 0, missing)], 4, 0.0)
    assert kinds(found) == ([(expected, "x")] if expected else [])
    assert all(remedy in finding.message for finding in found)


def test_a_full_table_is_told_from_a_tenth_of_collisions_on() -> None:
    assert table_finding(0.09, 18) == []
    found = table_finding(0.31, 18)
    assert kinds(found) == [("table-too-full", "")]
    assert found[0].knobs[0] == "model.hash_bits = 20"


@pytest.mark.parametrize(
    ("objective", "metrics", "linear", "expected"),
    [
        (CLICKS, {"log_loss": 0.4, "normalized_entropy": 0.8}, {"log_loss": 0.5}, []),
        (CLICKS, {"log_loss": 0.4, "normalized_entropy": 0.8}, {}, []),
        (CLICKS, {}, {}, []),
        (CLICKS, {"log_loss": 0.5, "normalized_entropy": 0.99995}, {"log_loss": 0.5}, ["no-better-than-a-constant"]),
        (CLICKS, {"log_loss": 0.4, "normalized_entropy": 0.8}, {"log_loss": 0.4}, ["factors-add-nothing"]),
        (CLICKS, {"log_loss": None, "normalized_entropy": None}, {"log_loss": None}, []),
        (NUMBERS, {"rmse": 2.0, "r2": -0.1}, {"rmse": 2.0}, ["no-better-than-a-constant"]),
        (NUMBERS, {"rmse": 2.0, "r2": 0.5}, {"rmse": 1.9}, ["factors-add-nothing"]),
        (NUMBERS, {"rmse": 2.0, "r2": 0.5}, {"rmse": 2.2}, []),
        (Objective.of("classification", "bpr"), {"group_auc": 0.7, "auc": 0.5}, {"group_auc": 0.6, "auc": 0.6}, []),
        (Objective.of("classification", "bpr"), {"group_auc": 0.6}, {"group_auc": 0.7}, ["factors-add-nothing"]),
        (Objective.of("classification", "hinge"), {"loss": 0.3, "error_rate": 0.1}, {"loss": 0.6}, []),
        (Objective.of("classification", "hinge"), {"error_rate": 0.15, "base_rate": 0.2}, {}, []),
        (
            Objective.of("classification", "hinge"),
            {"error_rate": 0.15, "base_rate": 0.15},
            {},
            ["no-better-than-a-constant"],
        ),
        (
            Objective.of("classification", "hinge"),
            {"error_rate": 0.4, "base_rate": 0.9},
            {},
            ["no-better-than-a-constant"],
        ),
        (Objective.of("regression", "quantile"), {"loss": 0.2, "r2": -0.9}, {}, []),
        (Objective.of("regression", "huber"), {"loss": 0.2, "r2": -0.9}, {}, ["no-better-than-a-constant"]),
        (OWN_CLICKS, {"loss": 0.2, "normalized_entropy": 1.4}, {"loss": 0.3}, []),
        (OWN_CLICKS, {"loss": 0.2, "normalized_entropy": 1.4}, {"loss": 0.2}, ["factors-add-nothing"]),
        (OWN_NUMBERS, {"loss": 0.2, "r2": -0.9}, {}, []),
        (ORDER, {"auc": 0.8, **UNFIT}, {"auc": 0.7, **UNFIT}, []),
        (ORDER, {"auc": 0.5, **UNFIT}, {"auc": 0.5, **UNFIT}, ["no-better-than-a-constant"]),
        (ORDER, {"auc": 0.8, "log_loss": 0.5}, {"auc": 0.8, "log_loss": 0.6}, ["factors-add-nothing"]),
        (ORDER, {"auc": 0.8, "log_loss": 0.5}, {"auc": 0.7, "log_loss": 0.4}, []),
        (dataclasses.replace(CLICKS, stop_on="group_auc"), {"group_auc": 0.4, "auc": 0.8}, {}, CONSTANT),
        (dataclasses.replace(CLICKS, stop_on="group_auc"), {"group_auc": 0.6, **UNFIT}, {}, []),
        (CLICKS, {"auc": 0.5, **OFF}, {}, CONSTANT),
        (CLICKS, {"auc": 0.8, **OFF}, {"auc": 0.8, **OFF}, ["another-rate"]),
        (ORDER, {"auc": 0.8, **OFF}, {"auc": 0.8, **OFF}, ["another-rate", "factors-add-nothing"]),
        (CLICKS, {"auc": 0.8, **OFF, "calibration": 0.9}, {}, CONSTANT),
        (CLICKS, {"auc": 0.8, **OFF, "normalized_entropy": 1.5}, {}, CONSTANT),
    ],
)
def test_a_model_is_compared_with_a_constant_and_with_its_linear_part(
    objective: Objective, metrics: dict[str, Any], linear: dict[str, Any], expected: list[str]
) -> None:
    assert [finding.kind for finding in model_findings(objective, metrics, linear)] == expected


@pytest.mark.parametrize("solver", SOLVERS)
def test_advice_is_of_knobs_that_the_solver_reads(solver: str) -> None:
    constant, factors, rate = (
        model_findings(*case, solver)[0].knobs
        for case in (
            (NUMBERS, {"rmse": 2.0, "r2": -0.1}, {}),
            (NUMBERS, {"rmse": 2.0, "r2": 0.5}, {"rmse": 1.9}),
            (CLICKS, {"auc": 0.8, **OFF}, {}),
        )
    )
    advice = {key.partition(".")[2] for key in (*constant, *factors) if key.startswith("training.")}
    if solver == SGD:
        assert advice == {"learning_rate", "n_epochs", "l2_linear", "l2_factors"}
        assert "model.calibration" in rate
        return
    assert advice == {"als": {"n_epochs", "l2_linear", "l2_factors"}, "mcmc": {"n_epochs", "draws"}}[solver]
    assert rate == ("data.validation",)


@pytest.mark.parametrize(
    ("metrics", "begin"),
    [
        ({"rows": 2, "base_rate": 0.0, "auc": None}, "2 rows validate, all of class 0: by them"),
        ({"rows": 40_000, "base_rate": 1.0}, "40,000 rows validate, all of class 1: by them"),
        ({"rows": 99, "base_rate": 0.5}, "99 rows validate: by them"),
        ({"rows": 5, "rmse": 2.0, "r2": None}, "5 rows validate: by them"),
        ({"rows": 100, "base_rate": 0.01}, ""),
        ({"rows": 100, "rmse": 2.0}, ""),
        ({}, ""),
    ],
)
def test_rows_that_are_few_or_of_one_class_judge_nothing(metrics: dict[str, Any], begin: str) -> None:
    found = validation_findings(metrics)
    assert bool(found) == bool(begin)
    assert all(finding.message.startswith(begin) for finding in found)


def test_predictions_of_another_rate_are_told_with_what_makes_them_that() -> None:
    (finding,) = model_findings(CLICKS, {"auc": 0.8, **OFF}, {})
    assert "ranks the validation rows (auc 0.8000), but predicts 0.4 times their click rate" in finding.message
    assert finding.knobs == ("data.validation", "data.negative_rate", "model.calibration")


@pytest.mark.parametrize(
    ("objective", "worth"),
    [
        (CLICKS, "log loss 0.84118"),
        (dataclasses.replace(CLICKS, stop_on="auc"), "auc 0.62190"),
        (dataclasses.replace(CLICKS, stop_on="log_loss"), "log loss 0.84118"),
        (Objective.of("classification", "bpr"), "group auc 0.59000"),
    ],
)
def test_a_start_that_no_epoch_beat_is_told_by_what_epochs_are_compared_by(objective: Objective, worth: str) -> None:
    finding = start_finding(objective, {"log_loss": 0.84118, "auc": 0.6219, "group_auc": 0.59})
    assert f"than the start ({worth}): " in finding.message
