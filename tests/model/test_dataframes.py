"""Rows of polars, DuckDB and whatever speaks Arrow's PyCapsule interface, and predictions in the form of libraries."""

# ruff: noqa: E402 (what may be missing is looked for first)
from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

pl = pytest.importorskip("polars")
duckdb = pytest.importorskip("duckdb")

import dfm
from dfm.errors import DataError, SettingsError
from dfm.model.export import hashed_inputs
from dfm.model.fm_model import FMModel
from tests.support.small_models import EVERY_KIND, PLAIN, make_model, random_table

ROWS = random_table(300, seed=5)


class OfArray:
    """A library that hands out one batch, and no stream."""

    def __init__(self, table: pa.Table) -> None:
        self._batch = table.combine_chunks().to_batches()[0]

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self._batch.__arrow_c_array__(requested_schema)


class OfStream:
    """A library that hands out a stream."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


FORMS: dict[str, Callable[[pa.Table], Any]] = {
    "polars": pl.from_arrow,
    "duckdb": lambda rows: duckdb.connect().from_arrow(rows),
    "a query of duckdb": lambda rows: duckdb.connect().from_arrow(rows).filter("true").select("*, 1 as more"),
    "a reader of batches": lambda rows: rows.to_reader(7),
    "an array of the interface": OfArray,
    "a stream of the interface": OfStream,
}


@pytest.fixture(scope="module", params=["plain", "every kind"])
def model(request: pytest.FixtureRequest) -> FMModel:
    return make_model(PLAIN if request.param == "plain" else EVERY_KIND)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_any_library_of_arrow_have_the_predictions_of_arrow(model: FMModel, form: str) -> None:
    expected = model.predict(ROWS)
    np.testing.assert_array_equal(model.predict(FORMS[form](ROWS)), expected)
    ids, _, _ = hashed_inputs(model, FORMS[form](ROWS))
    np.testing.assert_array_equal(ids, hashed_inputs(model, ROWS)[0])


def test_what_has_no_rows_yet_or_lacks_columns_says_what_to_do(model: FMModel) -> None:
    with pytest.raises(DataError, match=r"LazyFrame has no rows yet: pass data\.collect\(\)"):
        model.predict(pl.from_arrow(ROWS).lazy())
    for form in FORMS:
        with pytest.raises(DataError, match="lack column 'zone', which the model needs"):
            model.predict(FORMS[form](ROWS.drop(["zone"])))
    with pytest.raises(DataError, match=r"a Series is no table .*; pass a frame with named columns"):
        model.predict(pl.Series("zone", [1, 2]))
    with pytest.raises(DataError, match=r"cannot score a object: .*a relation of DuckDB"):
        model.predict(object())


IDS = [uuid.UUID(int=number) for number in range(4)]
OF_OBJECTS = pl.from_arrow(ROWS[:4]).with_columns(pl.Series("site", IDS), label=pl.lit(1))
ITS_TEXT = OF_OBJECTS.with_columns(pl.Series("site", list(map(str, IDS))))


@pytest.mark.parametrize(
    "score",
    [
        lambda model, frame: model.predict(frame),
        lambda model, frame: model.predict({name: frame[name] for name in frame.columns}),
        lambda model, frame: model.explain(frame.head(1)),
        lambda model, frame: dfm.evaluate(model, frame),
        lambda model, frame: hashed_inputs(model, frame),
    ],
    ids=["frame", "dict of Series", "explain", "evaluate", "hashed_inputs"],
)
def test_objects_in_a_column_of_polars_are_refused_for_they_come_as_addresses(
    model: FMModel, score: Callable[[FMModel, Any], Any]
) -> None:
    assert OF_OBJECTS["site"].dtype == pl.Object, "nobody asked for it"
    with pytest.raises(DataError, match=r"column 'site' cannot be read.* holds Python objects \(polars' Object\)"):
        score(model, OF_OBJECTS)
    score(model, ITS_TEXT)


@pytest.mark.parametrize("kind", [pl.Object, pl.List(pl.Object), pl.Struct({"a": pl.List(pl.Object)})], ids=str)
def test_objects_within_a_type_are_seen_and_names_are_no_types(model: FMModel, kind: Any) -> None:
    frame = OfStream(ROWS)
    frame.schema = {"label": pl.Enum(["Object"]), "site": kind, "zone": pl.Struct({"Object": pl.Int64})}
    with pytest.raises(DataError, match="column 'site' cannot be read: it holds Python objects"):
        model.predict(frame)


@pytest.mark.parametrize("kind", [pl.Int128, pl.List(pl.UInt128)], ids=str)
def test_a_type_that_arrow_does_not_know_is_named_with_its_column(model: FMModel, kind: Any) -> None:
    frame = pl.from_arrow(ROWS[:1])
    frame = frame.with_columns(zone=pl.lit([1] if kind.is_nested() else 1, kind))
    for given in (frame, {name: frame[name] for name in frame.columns}):
        with pytest.raises(
            DataError, match=r"column 'zone' cannot be read.* holds \S*Int128.*cast it, to Int64 or String"
        ):
            model.predict(given)
    if kind == pl.Int128:
        expected = model.predict(frame.with_columns(pl.col("zone").cast(pl.Int64)))
        assert model.predict(frame.with_columns(pl.col("zone").cast(pl.String))).tolist() == expected.tolist()


def test_predictions_come_in_the_form_that_is_asked_for(model: FMModel) -> None:
    expected = model.predict(ROWS)
    frame = ROWS.to_pandas().set_index(np.arange(300) * 2)
    polars = model.predict(pl.from_arrow(ROWS), output="polars")
    assert isinstance(polars, pl.Series)
    assert (polars.name, polars.dtype) == ("prediction", pl.Float32)
    assert polars.to_list() == expected.tolist()
    pandas = model.predict(frame, output="pandas")
    assert isinstance(pandas, pd.Series)
    assert (pandas.name, pandas.index.tolist()) == ("prediction", frame.index.tolist())
    assert pandas.tolist() == expected.tolist()
    assert model.predict(ROWS, output="pandas").index.tolist() == list(range(300))
    arrow = model.predict(ROWS, output="arrow")
    assert arrow.equals(pa.array(expected))
    assert isinstance(model.predict(ROWS, output="numpy"), np.ndarray)
    with pytest.raises(SettingsError, match="output = 'spark' is not legal: expected numpy, arrow, pandas, polars"):
        model.predict(ROWS, output="spark")


def test_a_library_that_is_not_there_is_named(model: FMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(SettingsError, match=r'output = "polars" needs polars: pip install polars'):
        model.predict(ROWS, output="polars")


def test_the_page_about_frames_runs_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks of DuckDB, too, which the site is built without."""
    pytest.importorskip("sklearn", minversion="1.6")
    page = Path(__file__).parents[2] / "deploy" / "docs" / "howto" / "dataframes.md"
    blocks = re.findall(r"```py(?:thon)?\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    table = names["table"]
    assert names["model"].score(table.drop(["clicked"]), table["clicked"].to_numpy()) > 0.99
