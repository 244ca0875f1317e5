"""Curves for a chart: few points of the exact ones."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from dfm.model.curves import curves_of
from dfm.model.metrics import ClassificationTally


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    logits = rng.normal(-2, 1.5, 5_000)
    return logits, (rng.random(5_000) < 1 / (1 + np.exp(-logits))).astype(int)


def test_points_lie_on_the_curves_of_scikit_learn(rows: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = rows
    found = curves_of(ClassificationTally.from_scores(logits, labels))
    roc = np.array(found["roc"])
    false, true, _ = roc_curve(labels, logits, drop_intermediate=False)
    distance = np.abs(np.stack([false, true], axis=1)[None] - roc[:, None]).max(axis=2).min(axis=1)
    assert distance.max() < 2e-3
    assert auc(roc[:, 0], roc[:, 1]) == pytest.approx(auc(false, true), abs=2e-3)
    assert roc[0].tolist() == [0, 0]
    assert roc[-1].tolist() == [1, 1]
    assert len(roc) <= 125
    points = np.array(found["precision_recall"])[5:]
    precision, recall, _ = precision_recall_curve(labels, logits)
    np.testing.assert_allclose(np.interp(points[:, 0], recall[::-1], precision[::-1]), points[:, 1], atol=0.01)


def test_bars_hold_all_predictions(rows: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = rows
    bars = curves_of(ClassificationTally.from_scores(logits, labels))["predictions"]
    predictions = 1 / (1 + np.exp(-logits))
    assert sum(each["share"] for each in bars) == pytest.approx(1.0, abs=1e-4)
    for bar in bars[:-1]:
        inside = (predictions >= bar["from"]) & (predictions < bar["to"])
        assert bar["share"] == pytest.approx(inside.mean(), abs=2e-3)
    assert (predictions > bars[-1]["to"]).mean() < 0.01


def test_rows_of_one_class_have_no_curves() -> None:
    assert curves_of(ClassificationTally.from_scores([0.0, 1.0], [1, 1])) == {}
    assert curves_of(ClassificationTally.empty()) == {}
