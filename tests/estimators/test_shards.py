"""Estimators on shards whose files store the same columns as other types, which a job takes, too."""

# ruff: noqa: E402 (what may be missing is looked for first)
from __future__ import annotations

import datetime
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("sklearn", minversion="1.6")
pd = pytest.importorskip("pandas")

from sklearn.exceptions import NotFittedError

from dfm.data.joining import joined
from dfm.data.parquet import find_shards
from dfm.errors import DataError, SettingsError
from dfm.estimators import FMClassifier, FMRegressor, notes
from dfm.estimators.shards import Wanted, classes_of, read_shards

KNOBS: dict[str, Any] = {"n_factors": 2, "n_epochs": 2, "random_state": 0, "early_stopping": False}
N = 300


def frame() -> Any:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"site": rng.choice(["a", "b", "c"], N), "ad": rng.integers(0, 9, N)})
    frame["price"] = rng.normal(size=N).astype(np.float32).astype(float)
    frame["device"] = rng.choice(["x", "y"], N)
    return frame.assign(clicked=(frame["site"] == "a").astype(int), day=datetime.date(2026, 11, 20))


OTHER_TYPES = {
    "integers with a gap": {"ad": lambda rows: rows["ad"].astype(float).where(np.arange(len(rows)) > 5)},
    "nothing but None": {"device": lambda rows: None},
    "narrow integers": {"ad": lambda rows: rows["ad"].astype("int32")},
    "narrow floats": {"price": lambda rows: rows["price"].astype("float32")},
    "a category": {"site": lambda rows: rows["site"].astype("category")},
    "floats as labels": {"clicked": lambda rows: rows["clicked"].astype(float)},
    "text in place of integers": {"ad": lambda rows: rows["ad"].astype(str)},
    "text in place of floats": {"price": lambda rows: rows["price"].astype(str)},
    "moments in place of days": {"day": lambda rows: pd.Timestamp("2026-11-20")},
}


def written(folder: Path, *parts: Any) -> str:
    for number, part in enumerate(parts):
        part.to_parquet(folder / f"{number}.parquet", index=False)
    return str(folder)


@pytest.mark.parametrize("is_first", [False, True], ids=["in a later shard", "in the first shard"])
@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_values_mean_the_same_whatever_type_a_shard_stores_them_in(tmp_path: Path, kind: str, is_first: bool) -> None:
    rows, roles = frame(), {"categorical": ["site", "ad", "device", "day"], "numeric": ["price"]}
    halves = [rows[: N // 2], rows[N // 2 :]]
    own = halves[not is_first]
    halves[not is_first] = own.assign(**{name: change(own) for name, change in OTHER_TYPES[kind].items()})
    shards = written(tmp_path, *halves)
    known = FMClassifier(**roles, **KNOBS).fit(rows.drop(columns="clicked"), rows["clicked"])
    apart = [known.predict_proba(str(tmp_path / f"{number}.parquet")) for number in range(2)]
    np.testing.assert_array_equal(known.predict_proba(shards), np.concatenate(apart))
    assert known.score(shards, "clicked") == 1.0
    learnt = FMClassifier(**roles, **KNOBS).fit(shards, "clicked", eval_set=(shards, "clicked"))
    if kind not in ("integers with a gap", "nothing but None"):
        same = FMClassifier(**roles, **KNOBS).fit(
            rows.drop(columns="clicked"), rows["clicked"], eval_set=(rows.drop(columns="clicked"), rows["clicked"])
        )
        np.testing.assert_array_equal(learnt.predict_proba(shards), same.predict_proba(rows))


def test_types_of_all_shards_decide_which_columns_are_numbers_as_in_a_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = frame().drop(columns="day")
    other = rows.assign(ad=rows["ad"] + 0.5, price=rows["price"].astype(str), extra=1)
    shards = written(tmp_path, rows, other)
    with caplog.at_level(logging.WARNING, "dfm"):
        fitted = FMClassifier(**KNOBS).fit(shards, "clicked")
    kinds = {entry.name: entry.kind for entry in fitted.model_.schema.fields}
    assert kinds == {"site": "categorical", "ad": "numeric", "price": "numeric", "device": "categorical"}
    assert list(fitted.feature_names_in_) == ["site", "ad", "price", "device"]
    assert re.search(r"no feature: 'extra' \(\S+0\.parquet has none\); name them in categorical=$", caplog.text, re.M)
    assert "'ad' holds integers in" in caplog.text
    assert "[schema]" not in caplog.text


def test_columns_that_a_fit_does_not_use_are_not_read(tmp_path: Path) -> None:
    rows = frame()
    other = rows.assign(ad=[[1]] * N).drop(columns=["price", "day"])
    shards = written(tmp_path, rows, other)
    fitted = FMClassifier(categorical=["site", "device"], **KNOBS).fit(shards, "clicked")
    assert list(fitted.feature_names_in_) == ["site", "device"]
    assert fitted.score(shards, "clicked") == 1.0
    assert FMRegressor(categorical=["site"], solver="mcmc", n_epochs=3, random_state=0).fit(
        shards, "clicked"
    ).predict_interval(shards).shape == (2 * N, 2)
    went_on = FMClassifier(categorical=["site", "device"], warm_start=True, **KNOBS).fit(shards, "clicked")
    assert went_on.fit(shards, "clicked").score(shards, "clicked") == 1.0


def mixed(folder: Path, integers: list[Any], texts: list[Any], column: str = "x") -> str:
    """Two shards that hold a column as integers and as text; label is 1 in every other row."""
    return written(
        folder, *(pd.DataFrame({column: part, "label": np.arange(len(part)) % 2}) for part in (integers, texts))
    )


def test_integers_among_texts_are_never_taken_for_a_text_that_means_missing(tmp_path: Path) -> None:
    shards = mixed(tmp_path, [0, 1] * 50, ["1", "0"] * 50)
    fitted = FMClassifier(categorical=["x"], missing=["0"], **{**KNOBS, "n_epochs": 20}).fit(shards, "label")
    rows = pd.DataFrame({"x": [0, 1]})
    in_memory = FMClassifier(categorical=["x"], missing=["0"], **{**KNOBS, "n_epochs": 20}).fit(
        {"x": [0, 1] * 50 + ["1", None] * 50}, [0, 1] * 100
    )
    np.testing.assert_allclose(fitted.predict_proba(rows), in_memory.predict_proba(rows), atol=1e-6)
    both = np.concatenate([fitted.predict_proba(str(tmp_path / f"{number}.parquet")) for number in range(2)])
    np.testing.assert_array_equal(fitted.predict_proba(shards), both)
    assert fitted.predict_proba(rows)[0, 0] > 0.8


def test_texts_that_mean_missing_are_looked_up_in_lists_that_a_separator_splits(tmp_path: Path) -> None:
    shards = mixed(tmp_path, [3, 1], ["1|NA", "3"])
    lists: dict[str, Any] = {"lists": ["x"], "list_separator": "|", "missing": ["NA"]}
    fitted = FMClassifier(**lists, **KNOBS).fit(shards, "label")
    same = FMClassifier(**lists, **KNOBS).fit({"x": ["3", "1", "1|NA", "3"]}, [0, 1, 0, 1])
    np.testing.assert_array_equal(fitted.model_.vocabulary.ids, same.model_.vocabulary.ids)


def test_texts_that_mean_missing_are_no_numbers_that_are_wrong(tmp_path: Path) -> None:
    shards = mixed(tmp_path, [3, 1, 2, 5], ["4", "NA", "2", "1"])
    fitted = FMClassifier(numeric=["x"], missing=["NA"], **KNOBS).fit(shards, "label")
    same = FMClassifier(numeric=["x"], missing=["NA"], **KNOBS).fit(
        {"x": [3, 1, 2, 5, 4, None, 2, 1]}, [0, 1, 0, 1, 0, 1, 0, 1]
    )
    rows = pd.DataFrame({"x": [1, 2, None]})
    np.testing.assert_array_equal(fitted.predict_proba(rows), same.predict_proba(rows))
    with pytest.raises(DataError, match="'NA', which is no number"):
        FMClassifier(numeric=["x"], **KNOBS).fit(shards, "label")


@pytest.mark.parametrize("late", [False, True], ids=["from the first shard on", "in a later shard"])
def test_floats_beside_a_column_that_is_no_feature_make_a_table_as_in_memory(
    tmp_path: Path, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = frame()[["price"]].assign(q=np.linspace(0, 1, N), when=pd.Timestamp("2026-11-20"))
    labels = (rows["q"] > 0.5).astype(int)
    parts = [rows[: N // 2].assign(when=None if late else rows["when"]), rows[N // 2 :]]
    shards = written(tmp_path, *(part.assign(label=labels[part.index]) for part in parts))
    notes._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, "dfm"):
        fitted = FMClassifier(**KNOBS).fit(shards, "label")
    assert caplog.text.count("'when' (it holds timestamp)") == 1
    same = FMClassifier(**KNOBS).fit(rows, labels)
    assert fitted.model_.schema == same.model_.schema
    np.testing.assert_array_equal(fitted.predict_proba(rows), same.predict_proba(rows))
    np.testing.assert_array_equal(fitted.predict_proba(shards), same.predict_proba(rows))


def test_categories_of_pandas_are_joined_however_many_there_are_together(tmp_path: Path) -> None:
    """Up to 127 of them have codes of one byte in each file."""
    rows = frame().assign(site=[f"s{number // 2}" for number in range(N)])
    halves = [rows[: N // 2], rows[N // 2 :]]
    shards = written(tmp_path, *(half.assign(site=half["site"].astype("category")) for half in halves))
    roles = {"categorical": ["site", "ad"], "numeric": ["price"]}
    learnt = FMClassifier(**roles, **KNOBS).fit(shards, "clicked")
    same = FMClassifier(**roles, **KNOBS).fit(rows.drop(columns="clicked"), rows["clicked"])
    np.testing.assert_array_equal(learnt.predict_proba(shards), same.predict_proba(rows))


def test_an_estimator_that_was_not_fitted_judges_no_shards(tmp_path: Path) -> None:
    shards = written(tmp_path, frame())
    for estimator in (FMClassifier(), FMRegressor()):
        with pytest.raises(NotFittedError):
            estimator.score(shards, "clicked")


@pytest.mark.parametrize(
    ("first", "second", "classes"),
    [
        ([0, 1], ["0.0", "1.0"], [0, 1]),
        ([True, False], ["1", "0"], [0, 1]),
        ([0.0, 1.0], ["1", "0.0"], [0, 1]),
        ([3, 1], ["3", "1"], ["1", "3"]),
        ([0, 1], ["no", "1"], ["0", "1", "no"]),
        ([20, 30], [datetime.date(2026, 11, 20)] * 2, ["20", "2026-11-20", "30"]),
    ],
)
def test_labels_of_several_types_are_the_numbers_that_a_job_reads_and_else_texts(
    tmp_path: Path, first: list[Any], second: list[Any], classes: list[Any]
) -> None:
    rows = frame()[["site", "price"]]
    parts = [rows[: N // 2].assign(y=first * (N // 4)), rows[N // 2 :].assign(y=second * (N // 4))]
    named = FMClassifier(categorical=["site"], numeric=["price"], **KNOBS)
    assert named.fit(written(tmp_path, *parts), "y").classes_.tolist() == classes
    if len(classes) == 2:
        on_a_cluster, positive = classes_of({*first, *second}, "y")
        assert on_a_cluster.tolist() == classes
        assert positive == (() if classes == [0, 1] else ("3",))


@pytest.mark.parametrize("labels", [{"0", "0.3", "1"}, {"0", "1", "0.0", "1.0"}, {0.5, "1"}, {0, 1}, set()])
def test_a_job_takes_texts_for_shares_where_they_are_no_two_classes(labels: set[Any]) -> None:
    classes, positive = classes_of(labels, "y")
    assert (classes.tolist(), positive) == ([0, 1], ())


def test_a_job_of_two_texts_or_of_dates_tells_them_apart_as_they_are() -> None:
    assert classes_of({"0", "1"}, "y")[1] == ("1",)
    assert classes_of({datetime.date(2026, 1, 2), 3}, "y")[0].tolist() == ["2026-01-02", "3"]
    with pytest.raises(ValueError, match="one class only"):
        classes_of({1, "1.0"}, "y")


@pytest.mark.parametrize("first", [0, "0"])
def test_labels_are_read_as_those_of_the_fit_whatever_a_file_has(tmp_path: Path, first: Any) -> None:
    rows = frame()[["site", "price"]]
    numbers = rows.assign(y=[0, 1] * (N // 2))
    texts = rows.assign(y=["0", "1"] * (N // 2))
    both = {0: numbers, "0": texts}
    fitted = FMClassifier(categorical=["site"], numeric=["price"], **KNOBS).fit(written(tmp_path, both[first]), "y")
    (tmp_path / "others").mkdir()
    for other in (numbers, texts):
        shards = written(tmp_path / "others", other)
        assert fitted.score(shards, "y") == fitted.score(rows, both[first]["y"])


def test_types_that_do_not_go_together_are_told_with_shard_and_column(tmp_path: Path) -> None:
    rows = frame()
    known = FMClassifier(categorical=["site"], numeric=["price"], **KNOBS).fit(rows[["site", "price"]], rows["clicked"])
    shards = written(tmp_path, rows, rows.assign(site=[["a"]] * N))
    told = r"column 'site' holds .* in .*0\.parquet and list<.*> in .*1\.parquet, which no column holds together"
    with pytest.raises(DataError, match=told):
        known.predict(shards)
    with pytest.raises(SettingsError, match=r"column 'site' is string in .*, but list in .* name the columns to use$"):
        FMClassifier(**KNOBS).fit(shards, "clicked")
    written(tmp_path, rows, rows.assign(price="cheap"))
    with pytest.raises(DataError, match=r"1\.parquet: column 'price' holds 'cheap', which is no number"):
        known.predict(shards)


def test_columns_are_told_apart_by_name_whatever_their_order(tmp_path: Path) -> None:
    rows = frame()
    shards = written(tmp_path, rows, rows[[*reversed(rows.columns)]])
    assert len(find_shards([shards])) == 2
    table = read_shards(shards, Wanted(["price", "site"], {"price"}))
    assert table.column("price").to_pylist() == 2 * rows["price"].tolist()


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (pa.array([1]), pa.array([1.5]), pa.float64()),
        (pa.array([1], pa.int32()), pa.nulls(1), pa.int32()),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), pa.string()),
        (pa.array([["a"]]), pa.array([[]], pa.list_(pa.null())), pa.list_(pa.string())),
        (pa.array([datetime.date(2026, 1, 2)]), pa.array([datetime.datetime(2026, 1, 2)]), pa.timestamp("us")),
    ],
)
def test_arrays_are_joined_in_the_type_that_holds_both(first: pa.Array, second: pa.Array, kind: pa.DataType) -> None:
    assert joined([first, second]).type == joined([second, first]).type == kind


def test_integers_that_floats_do_not_hold_are_not_joined_with_them() -> None:
    with pytest.raises(pa.ArrowInvalid, match="not in range"):
        joined([pa.array([2**53 + 1]), pa.array([0.5])])
