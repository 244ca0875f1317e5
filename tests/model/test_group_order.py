"""The order of rows within groups, against its definitions: every order of tied rows, written out."""

from __future__ import annotations

import numpy as np
import pytest

from dfm.model.group_auc import NDCG_AT, GroupedTally, GroupSums, group_sums, rows_by_group
from dfm.model.metrics import ClassificationTally
from tests import reference


def tied_log(seed: int, n_groups: int, longest: int) -> tuple[np.ndarray, ...]:
    """Groups, scores of four values, labels of two, and weights, of which some are 0."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups, dtype=np.uint64), rng.integers(1, longest + 1, n_groups))
    order = rng.permutation(len(groups))
    scores, labels = rng.integers(0, 4, len(groups)) / 4, (rng.random(len(groups)) < 0.4).astype(float)
    return groups[order], scores, labels, rng.integers(0, 3, len(groups)).astype(float)


def test_gain_and_rank_are_means_over_every_order_of_tied_rows() -> None:
    groups, scores, labels, weights = tied_log(1, 60, 7)
    found = group_sums(rows_by_group(groups, scores, labels, weights)).metrics()
    expected = []
    for group in np.unique(groups):
        rows = (groups == group) & (weights > 0)
        if len(set(labels[rows])) == 2:
            both = [reference.from_the_top(scores[rows], labels[rows], k) for k in NDCG_AT]
            expected.append([*(ndcg for ndcg, _ in both), both[0][1]])
    assert found["groups"] == len(expected) > 20
    assert [found["ndcg_5"], found["ndcg_10"], found["mrr"]] == pytest.approx(np.mean(expected, axis=0), rel=1e-12)


def test_gain_is_that_of_scikit_learn_for_labels_that_are_shares_too() -> None:
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    rng = np.random.default_rng(2)
    scores, labels = rng.integers(0, 9, (40, 30)) / 8, rng.random((40, 30)).round(1)
    table = rows_by_group(np.repeat(np.arange(40), 30), scores.ravel(), labels.ravel(), np.ones(1200))
    found = group_sums(table).metrics()
    for k in NDCG_AT:
        assert found[f"ndcg_{k}"] == pytest.approx(ndcg_score(labels, scores, k=k), rel=1e-12)


def test_groups_in_parts_give_what_they_give_together() -> None:
    rows = groups, *_ = tied_log(3, 50, 20)
    whole = group_sums(rows_by_group(*rows))
    halves = [tuple(each[groups % 2 == half] for each in rows) for half in (0, 1)]
    tallies = [GroupedTally(ClassificationTally.empty(), rows_by_group(*half)).settled() for half in halves]
    told = (tallies[0] + tallies[1]).metrics()
    assert {key: told[key] for key in whole.metrics()} == pytest.approx(whole.metrics(), rel=1e-12)
    assert GroupSums().metrics()["mrr"] is None


def test_a_score_that_says_nothing_stands_where_chance_puts_it() -> None:
    """One clicked row among n: 1 / place is on average the n-th harmonic number over n, and the walk to it ends."""
    n = 3_000
    labels = np.zeros(n)
    labels[7] = 1.0
    found = group_sums(rows_by_group(np.zeros(n, np.uint64), np.zeros(n), labels, np.ones(n))).metrics()
    assert found["mrr"] == pytest.approx((1 / np.arange(1, n + 1)).sum() / n, rel=1e-12)
    assert found["group_auc"] == 0.5
