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

from dfm.data.joining import joined
from dfm.data.parquet import find_shards
from dfm.errors import DataError, SettingsError
from dfm.estimators import FMClassifier, FMRegressor
from dfm.estimators.shards import Wanted, read_shards

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


def test_categories_of_pandas_are_joined_however_many_there_are_together(tmp_path: Path) -> None:
    """Up to 127 of them have codes of one byte in each file."""
    rows = frame().assign(site=[f"s{number // 2}" for number in range(N)])
    halves = [rows[: N // 2], rows[N // 2 :]]
    shards = written(tmp_path, *(half.assign(site=half["site"].astype("category")) for half in halves))
    roles = {"categorical": ["site", "ad"], "numeric": ["price"]}
    learnt = FMClassifier(**roles, **KNOBS).fit(shards, "clicked")
    same = FMClassifier(**roles, **KNOBS).fit(rows.drop(columns="clicked"), rows["clicked"])
    np.testing.assert_array_equal(learnt.predict_proba(shards), same.predict_proba(rows))


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
