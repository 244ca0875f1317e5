"""FMRanker: the order within groups that pairs of rows teach, given as groups or one by one."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("sklearn", minversion="1.6")

import dask.array as da
from scipy import sparse

from dfm.errors import DataError, SettingsError
from dfm.estimators import FMClassifier, FMRanker
from dfm.estimators.rankers import cut_by_group, group_ids
from dfm.model.group_auc import group_sums, rows_by_group
from tests.support.ranking_log import RankingLog

SETTINGS: dict[str, Any] = {"n_factors": 2, "n_epochs": 10, "early_stopping": False}


def group_auc(scores: np.ndarray, log: RankingLog) -> float:
    table = rows_by_group(log.groups.astype(np.uint64), scores, log.labels, np.ones(len(scores)))
    return float(group_sums(table).metrics()["group_auc"])


def test_pairs_find_the_order_that_effects_of_whole_groups_hide_from_log_loss() -> None:
    log, later = RankingLog.draw(1, 0), RankingLog.draw(2, 1_000)
    ranker = FMRanker(**SETTINGS).fit(log.columns, log.labels, log.groups)
    classifier = FMClassifier(**SETTINGS).fit(log.columns, log.labels)
    ours, theirs = ranker.predict(later.columns), classifier.decision_function(later.columns)
    assert group_auc(ours, later) > group_auc(theirs, later) + 0.05
    assert ranker.score(later.columns, later.labels, later.groups) == pytest.approx(group_auc(ours, later))
    both = [user for user in range(300) if len(set(log.labels[log.groups == user])) == 2]
    assert ranker.rows_in_pairs_ == np.isin(log.groups, both).sum()
    assert ranker.pairs_ == log.labels[np.isin(log.groups, both)].sum()
    model = ranker.model_
    np.testing.assert_allclose(model.predict(later.columns), ours, rtol=1e-5, atol=1e-6)
    assert model.table.bias_value == 0


def test_whole_groups_are_held_out_and_the_epoch_of_the_best_order_is_kept() -> None:
    log, later = RankingLog.draw(1, 0, n_users=200), RankingLog.draw(2, 1_000, n_users=50)
    fits = [FMRanker(n_factors=2, n_epochs=4, n_replicas=n).fit(log.columns, log.labels, log.groups) for n in (1, 1, 2)]
    assert fits[0].coef_.tobytes() == fits[1].coef_.tobytes() != fits[2].coef_.tobytes()
    for fitted in fits:
        assert {"group_auc", "ndcg_10", "mrr", "auc", "train_loss"} <= fitted.history_[0].keys()
        assert "calibration" not in fitted.history_[0]
        assert 15 <= fitted.history_[0]["groups"] + fitted.history_[0]["groups_of_one_class"] <= 21
    judged = FMRanker(n_factors=2, n_epochs=4).fit(
        log.columns, log.labels, log.groups, eval_set=(later.columns, later.labels, later.groups)
    )
    best = max(epoch["group_auc"] for epoch in judged.history_)
    assert judged.score(later.columns, later.labels, later.groups) == pytest.approx(best, abs=1e-12)


def test_groups_stay_whole_in_parts_of_about_equal_size() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(1, 9, 60)).astype(np.uint64)
    rng.shuffle(groups)
    bounds = [len(groups) * part // 5 for part in range(6)]
    parts = cut_by_group(groups, bounds, [3, 7])
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    assert sum(len(set(groups[part].tolist())) for part in parts) == 60
    assert all(abs(len(part) - len(groups) / 5) < 9 for part in parts)
    assert [len(part) for part in cut_by_group(np.zeros(10, np.uint64), [0, 5, 10], [3])] == [5, 5], "one cannot stay"


def test_given_pairs_are_groups_of_two_rows() -> None:
    rng = np.random.default_rng(4)
    X, weights = rng.normal(size=(60, 5)), np.array([2.0, -1.0, 0.5, 0.0, 1.0])
    drawn = rng.integers(0, 60, (400, 2))
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]
    pairs = np.where((X @ weights)[drawn[:, :1]] > (X @ weights)[drawn[:, 1:]], drawn, drawn[:, ::-1])
    settings = {"standardize": False, **SETTINGS, "n_epochs": 3}
    given = FMRanker(**settings).fit_pairs(X, pairs)
    assert np.mean(np.diff(given.predict(X)[pairs], axis=1) < 0) > 0.9
    assert given.pairs_ == len(pairs)
    labels, groups = np.tile([1, 0], len(pairs)), np.repeat(np.arange(len(pairs)), 2)
    written_out = FMRanker(**settings).fit(X[pairs.ravel()], labels, groups)
    np.testing.assert_array_equal(given.coef_, written_out.coef_)
    last = np.setdiff1d(pairs[:, 1], pairs[:, 0])
    assert len(last), "rows that come first in no pair, whose weights say nothing"
    unheard = FMRanker(**settings).fit_pairs(X, pairs, np.where(np.isin(np.arange(60), last), 0.0, 1.0))
    np.testing.assert_array_equal(unheard.coef_, given.coef_)
    frame, silent = pa.table({"a": X[:, 0], "b": X[:, 1], "site": list("abcdef") * 10}), np.isin(np.arange(60), last)
    for data in (X, frame):
        alike = FMRanker(n_epochs=1).fit_pairs(data, pairs)
        less = FMRanker(n_epochs=1).fit_pairs(data, pairs, np.where(silent, 0.0, 1.0))
        assert less.model_.statistics == alike.model_.statistics, "second rows are trained on, too"
    of_sparse = FMRanker(**settings).fit_pairs(sparse.csr_matrix(X), pairs)
    np.testing.assert_allclose(of_sparse.coef_, given.coef_, rtol=1e-6)
    for wrong, told in (
        (pairs[:, :1], r"expected integers \[n_pairs, 2\]"),
        (pairs + 0.5, "expected integers"),
        ([[0, 60]], "name row 60; X has rows 0 to 59"),
        ([[3, 3]], "a row beside itself"),
    ):
        with pytest.raises(ValueError, match=told):
            FMRanker().fit_pairs(X, wrong)


def test_what_makes_no_pairs_is_refused() -> None:
    X, y = np.eye(6), np.array([0, 1, 0, 1, 0, 1])
    with pytest.raises(DataError, match="no group has both"):
        FMRanker().fit(X, y, np.arange(6))
    with pytest.raises(ValueError, match="group has 5 rows, X has 6"):
        FMRanker().fit(X, y, np.arange(5))
    with pytest.raises(ValueError, match="y has 3 distinct values"):
        FMRanker().fit(X, [0, 1, 2, 0, 1, 2])
    with pytest.raises(SettingsError, match="'logistic' is not of pairs of rows"):
        FMRanker(loss="logistic").fit(X, y)
    with pytest.raises(SettingsError, match='optimizer = "Adam" is not legal'):
        FMRanker(optimizer="Adam").fit(X, y)
    with pytest.raises(SettingsError, match=r"expected \(X, y, group\)"):
        FMRanker().fit(X, y, eval_set=(X, y))
    columns = {"a": ["x", "y"] * 3, "b": ["z"] * 6}
    with pytest.raises(SettingsError, match="is of pairs of rows, which family = 'ffm' does not know"):
        FMRanker(family="ffm").fit(columns, y)
    with pytest.raises(SettingsError, match="does not go with solver"):
        FMRanker(solver="als").fit(X, y)


@pytest.mark.parametrize("rows", ["log/*.parquet", da.zeros((6, 6))])
def test_rows_elsewhere_are_judged_by_an_evaluation(rows: Any) -> None:
    ranker = FMRanker(n_epochs=1).fit(np.eye(6), np.array([0, 1] * 3))
    with pytest.raises(SettingsError, match=r"takes rows of this process: dfm\.evaluate\(ranker\.model_"):
        ranker.score(rows, "clicked")


def test_text_and_missing_groups_are_told_apart() -> None:
    X, y = np.eye(6), np.array([0, 1, 0, 1, 0, 1])
    assert FMRanker(n_epochs=1).fit(X, y, ["a", "a", None, None, "b", "c"]).pairs_ == 2
    assert FMRanker(n_epochs=1).fit(X, y).pairs_ == 3


def test_groups_may_be_dictionaries_of_arrow_and_categories_of_pandas() -> None:
    pd = pytest.importorskip("pandas")
    X, y, groups = np.eye(6), np.array([0, 1, 0, 1, 0, 1]), ["a", "a", None, None, "b", "c"]
    encoded = pa.array(groups).dictionary_encode()
    others = pa.chunked_array([pa.array(groups[:3]).dictionary_encode(), pa.array(groups[3:]).dictionary_encode()])
    expected = group_ids(groups, 6)
    for given in (encoded, others, pd.Series(groups).astype("category"), pd.Categorical(groups)):
        np.testing.assert_array_equal(group_ids(given, 6), expected)
        assert FMRanker(n_epochs=1).fit(X, y, given).pairs_ == 2


def test_groups_may_be_the_only_column_of_any_table() -> None:
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    groups = ["a", "a", "b", "b", "c", "c"]
    expected = group_ids(groups, 6)
    table = pa.table({"user": groups})
    for given in (table, *table.to_batches(), pd.DataFrame({"user": groups}), pl.DataFrame({"user": groups})):
        np.testing.assert_array_equal(group_ids(given, 6), expected)
    with pytest.raises(DataError, match="a DataFrame of 2 columns is no column"):
        group_ids(pd.DataFrame({"user": groups, "day": groups}), 6)


def test_groups_that_are_no_values_are_told_in_words() -> None:
    for given in ([1, "a"] * 3, [(1, 2)] * 6, np.zeros((6, 1)), [uuid.UUID(int=1)] * 6, [object()] * 6):
        with pytest.raises(DataError, match=r"group cannot be read .*; pass one value a row: numbers, or text"):
            group_ids(given, 6)


def test_a_job_takes_its_parameters_and_the_column_of_groups() -> None:
    tables = FMRanker(n_factors=4).job("log/*.parquet", "clicked", "out", group="user")
    assert (tables["model"]["loss"], tables["schema"]["group"]) == ("bpr", "user")
    with pytest.raises(SettingsError, match=r"needs schema\.group"):
        FMRanker().job("log/*.parquet", "clicked", "out")
