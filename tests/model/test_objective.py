"""Task, loss and link belong together: metrics of any loss, what a manifest says of it, and marks instead of code."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dfm.errors import ModelError, SettingsError
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.kernels.losses import DEFAULT_LOSSES, LABELS, LINKS, LOSSES
from dfm.model.objective import LossInfo, Objective, kernel_spec, with_functions
from dfm.settings.job import Job, load_job
from dfm.settings.tables import TASKS
from tests.support import user_functions

RNG = np.random.default_rng(4)
SCORES = RNG.normal(0, 1.5, 500).astype(np.float32)
CLICKS = (RNG.random(500) < 0.4).astype(np.float32)
COUNTS = RNG.poisson(1.3, 500).astype(np.float32)
WEIGHTS = RNG.integers(0, 4, 500).astype(np.float32)


def labels_of(task: str) -> np.ndarray:
    return CLICKS if task == "classification" else COUNTS


def mean_loss(objective: Objective, labels: np.ndarray, weights: np.ndarray) -> float:
    values = [objective.loss.value(float(s), float(y)) for s, y in zip(SCORES, labels, strict=True)]
    return float(np.average(values, weights=weights))


def test_every_task_has_a_default_loss_and_every_link_and_kind_of_label_is_known():
    assert set(DEFAULT_LOSSES) == set(TASKS)
    for loss in LOSSES.values():
        assert loss.link in LINKS
        assert loss.labels in LABELS
        assert loss.task in TASKS


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"logistic", "squared", "bpr"}))
def test_a_loss_that_no_metric_stands_for_is_a_metric_itself(name):
    objective = Objective.of(LOSSES[name].task, name)
    labels = labels_of(objective.task)
    whole = objective.tally(SCORES, labels, WEIGHTS)
    parts = objective.empty() + objective.tally(SCORES[:123], labels[:123], WEIGHTS[:123])
    parts = parts + objective.tally(SCORES[123:], labels[123:], WEIGHTS[123:])
    assert objective.primary == "loss"
    assert whole.metrics()["loss"] == pytest.approx(mean_loss(objective, labels, WEIGHTS), rel=1e-12)
    assert parts.metrics()["loss"] == pytest.approx(whole.metrics()["loss"], rel=1e-12)
    assert objective.empty().metrics()["loss"] is None
    json.dumps(whole.metrics(), allow_nan=False)


def test_scores_of_pairs_are_judged_by_their_order_alone():
    objective = Objective.of("classification", "bpr")
    told = objective.tally(SCORES, CLICKS, WEIGHTS).metrics()
    assert told.keys() == {"auc", "auc_error", "pr_auc", "base_rate", "weight", "rows"}
    moved = objective.tally(SCORES + np.float32(3), CLICKS, WEIGHTS).metrics()
    assert told["auc"] == pytest.approx(moved["auc"], abs=told["auc_error"] + moved["auc_error"] + 1e-12)
    np.testing.assert_array_equal(objective.predict(SCORES), SCORES)
    assert objective.primary == "group_auc"
    assert objective.cost({"group_auc": 0.75}) == 0.25


def test_the_default_losses_keep_their_metrics():
    for task, primary in (("classification", "log_loss"), ("regression", "rmse")):
        objective = Objective.of(task, "auto")
        assert objective.primary == primary
        assert "loss" not in objective.tally(SCORES, labels_of(task)).metrics()
        assert list(objective.train_metric(0.5)) == [f"train_{primary}"]
    assert Objective.of("regression").train_metric(2.0) == {"train_rmse": 2.0}
    assert Objective.of("classification").has_exploded(21.0)
    assert not Objective.of("classification", "hinge").has_exploded(21.0)


def test_margins_are_judged_by_order_and_side_and_never_as_probabilities():
    metrics = Objective.of("classification", "hinge").tally(SCORES, CLICKS, WEIGHTS).metrics()
    wrong = (SCORES >= 0) != (CLICKS == 1)
    assert metrics["error_rate"] == pytest.approx(np.average(wrong, weights=WEIGHTS))
    assert not {"log_loss", "calibration", "calibration_bins", "normalized_entropy"} & set(metrics)
    assert {"auc", "pr_auc", "base_rate", "rows"} <= set(metrics)


def test_errors_of_counts_are_measured_on_predictions_not_on_scores():
    metrics = Objective.of("regression", "poisson").tally(SCORES, COUNTS).metrics()
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((np.exp(SCORES) - COUNTS) ** 2)), rel=1e-6)


@pytest.mark.parametrize(("link", "mean"), [("sigmoid", 0.3), ("identity", 4.2), ("exp", 4.2)])
def test_a_model_without_features_begins_at_the_mean_label(link, mean):
    start = np.float32(LINKS[link].start(mean))
    assert LINKS[link].predict(np.array([start]))[0] == pytest.approx(mean, rel=1e-6)
    assert np.isfinite(LINKS[link].start(0.0))


@pytest.mark.parametrize(
    ("task", "loss", "parameter", "reason"),
    [
        ("regression", "logistic", None, 'needs model.task = "classification".*squared or poisson'),
        ("classification", "poisson", None, "for that choose logistic or hinge"),
        ("regression", "quantile", 1.0, "below 1"),
        ("regression", "huber", 0.0, "above 0"),
        ("regression", "squared", 0.5, "has no meaning"),
        ("regression", "focal", None, "choose one of logistic, hinge"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(task, loss, parameter, reason):
    with pytest.raises(SettingsError, match=reason):
        Objective.of(task, loss, parameter)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"loss": "hinge", "task": "regression"}, 'needs model.task = "classification"'),
        ({"loss": "hing"}, 'Did you mean "hinge"'),
        ({"loss": "os.system"}, "model.loss"),
        ({"loss": "custom:f"}, "model.loss"),
        ({"loss": "quantile", "task": "regression", "loss_parameter": 1.5}, "below 1"),
        ({"loss_parameter": 0.5}, "needs model.loss = quantile or huber"),
    ],
)
def test_a_job_names_a_loss_that_there_is_for_its_task(model, reason):
    with pytest.raises(SettingsError, match=reason):
        load_job({"model": model})


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"adam_beta1": 0.5}, 'needs training.optimizer = "adam"'),
        ({"optimizer": "adam", "adam_beta2": 1.0}, "adam_beta2"),
        ({"optimizer": "ftrl", "regularizer": f"custom:f:{'0' * 64}"}, "closed form"),
        ({"regularizer": "l3"}, "regularizer"),
    ],
)
def test_a_job_sets_what_its_optimizer_reads(training, reason):
    with pytest.raises(SettingsError, match=reason):
        load_job({"training": training})


def test_a_job_holds_the_mark_of_a_function_and_runs_nothing():
    """Its fingerprint is that of the code; without the function, from a file or for another function, it is refused."""
    job, loss, regularizer = with_functions(Job(), user_functions.logistic, lambda w: w * w)
    assert job.model.loss == f"custom:logistic:{loss.fingerprint}"
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job
    assert job.fingerprint() != Job().fingerprint()
    objective, spec = kernel_spec(job, loss, regularizer)
    assert (spec.loss, spec.regularizer) == (loss, regularizer)
    assert objective.info == LossInfo("logistic", "sigmoid", None, loss.fingerprint)
    other = CustomLoss.of(user_functions.asymmetric)
    for arguments in ((), (loss,), (other, regularizer)):
        with pytest.raises(SettingsError, match="only Python can pass"):
            kernel_spec(job, *arguments)
    with pytest.raises(SettingsError, match="only Python can pass"):
        kernel_spec(Job(), None, CustomRegularizer.of(lambda w: w * w))


def test_a_name_takes_the_place_of_the_jobs_loss():
    job, loss, _ = with_functions(Job(), "hinge", None)
    assert loss is None
    assert kernel_spec(job)[1].loss == "hinge"


def test_what_a_manifest_says_of_a_loss_is_read_back_and_the_unknown_is_refused():
    for info in (LossInfo("quantile", "identity", 0.9), LossInfo("mine", "exp", None, "a" * 64)):
        assert LossInfo.from_dict(json.loads(json.dumps(info.to_dict())), "regression") == info
    assert Objective.of_info("regression", LossInfo("quantile", "identity", 0.9)).loss.parameter == 0.9
    for name, link in (("focal", "sigmoid"), ("logistic", "cauchit"), ("hinge", "sigmoid"), ("poisson", "exp")):
        with pytest.raises(ModelError, match="install a newer dfm"):
            LossInfo.from_dict(LossInfo(name, link).to_dict(), "classification")


def test_a_foreign_loss_is_judged_by_its_predictions_alone():
    objective = Objective.of_info("classification", LossInfo("mine", "sigmoid", None, "a" * 64))
    metrics = objective.tally(SCORES, CLICKS).metrics()
    assert "log_loss" in metrics
    assert "loss" not in metrics
