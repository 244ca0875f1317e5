"""Estimators take the frames of polars and the relations of DuckDB, and answer in the form that is asked for."""

# ruff: noqa: E402 (what may be missing is looked for first)
from __future__ import annotations

import subprocess
import sys
import uuid

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("sklearn", minversion="1.6")
pl = pytest.importorskip("polars")
duckdb = pytest.importorskip("duckdb")
pd = pytest.importorskip("pandas")

from sklearn.model_selection import cross_val_score

from dfm.errors import DataError, SettingsError
from dfm.estimators import FMClassifier, FMRanker, FMRegressor

RNG = np.random.default_rng(1)
ROWS = pa.table(
    {
        "site": RNG.choice(["a", "b", "c", "d"], 600),
        "zone": RNG.integers(0, 3, 600),
        "price": RNG.exponential(5.0, 600),
    }
)
CLICKED = (np.asarray(ROWS["site"]) == "a") ^ (np.asarray(ROWS["zone"]) == 1)
FRAME = pl.from_arrow(ROWS)
GIVEN = {"n_factors": 4, "n_epochs": 30}


def relation(table: pa.Table) -> duckdb.DuckDBPyRelation:
    return duckdb.connect().from_arrow(table)


@pytest.fixture(scope="module")
def fitted() -> FMClassifier:
    return FMClassifier(**GIVEN).fit(ROWS, CLICKED)


def test_frames_and_relations_give_the_same_model_and_the_same_predictions(fitted: FMClassifier) -> None:
    expected = fitted.decision_function(ROWS)
    labels = relation(pa.table({"clicked": CLICKED}))
    for X, y in (
        (FRAME, pl.Series(CLICKED)),
        (relation(ROWS), labels),
        (ROWS.to_reader(50), pa.chunked_array([pa.array(CLICKED)])),
    ):
        model = FMClassifier(**GIVEN).fit(X, y)
        np.testing.assert_array_equal(model.decision_function(ROWS), expected)
        assert model.feature_names_in_.tolist() == ROWS.column_names
    for X in (FRAME, relation(ROWS), ROWS.to_reader(50)):
        np.testing.assert_array_equal(fitted.decision_function(X), expected)
    assert fitted.score(FRAME, pl.Series(CLICKED)) > 0.98
    assert len(fitted.get_feature_names_out(relation(ROWS))) == fitted.coef_.shape[1]


def test_a_query_is_run_once_for_a_fit() -> None:
    """Each time it could order its rows otherwise than the labels are."""
    runs = []

    class Counted:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            runs.append(1)
            return ROWS.__arrow_c_stream__(requested_schema)

    FMClassifier(n_epochs=2).fit(Counted(), CLICKED, eval_set=(Counted(), CLICKED))
    assert len(runs) == 2


def test_weights_groups_and_rows_to_validate_on_may_be_frames_too() -> None:
    weights, groups = pl.Series(RNG.random(600)), np.arange(600) // 10
    model = FMClassifier(**GIVEN).fit(FRAME, pl.Series(CLICKED), weights, eval_set=(FRAME, pl.Series(CLICKED), weights))
    same = FMClassifier(**GIVEN).fit(ROWS, CLICKED, weights.to_numpy(), eval_set=(ROWS, CLICKED, weights.to_numpy()))
    np.testing.assert_array_equal(model.decision_function(ROWS), same.decision_function(ROWS))
    ranker = FMRanker(**GIVEN).fit(relation(ROWS), pl.Series(CLICKED), relation(pa.table({"g": groups})))
    same = FMRanker(**GIVEN).fit(ROWS, CLICKED, groups)
    np.testing.assert_array_equal(ranker.predict(FRAME), same.predict(ROWS))
    by_category = FMRanker(**GIVEN).fit(FRAME, CLICKED, pl.Series(groups).cast(pl.String).cast(pl.Categorical))
    np.testing.assert_array_equal(by_category.predict(ROWS), same.predict(ROWS))
    assert ranker.score(ROWS.to_reader(50), CLICKED, groups) == same.score(ROWS, CLICKED, groups)
    with pytest.raises(DataError, match="of 3 columns is no column; select the one that is meant"):
        FMClassifier().fit(ROWS, relation(ROWS))


MISSING = {
    "a list": [None, "yes", "no"],
    "Arrow": pa.array([None, "yes", "no"]),
    "Arrow, booleans": pa.array([None, True, False]),
    "polars": pl.Series([None, "yes", "no"]),
    "polars, booleans": pl.Series([None, True, False]),
    "pandas": pd.Series([None, "yes", "no"]),
    "pandas, text": pd.Series([None, "yes", "no"], dtype="string"),
    "pandas, booleans": pd.Series([None, True, False], dtype="boolean"),
}


@pytest.mark.parametrize("form", MISSING)
def test_a_label_that_is_missing_is_told_with_its_row(form: str) -> None:
    with pytest.raises(DataError, match=r"y holds \S+ in row 0, which is no label; drop such rows, or fill them in"):
        FMClassifier().fit(np.eye(3), MISSING[form])


def test_what_is_no_table_of_rows_is_told_in_words(fitted: FMClassifier) -> None:
    with pytest.raises(DataError, match=r"a LazyFrame has no rows yet: pass data.collect\(\)"):
        FMClassifier().fit(FRAME.lazy(), CLICKED)
    with pytest.raises(DataError, match=r"a LazyFrame has no rows yet: pass data.collect\(\)"):
        fitted.predict(FRAME.lazy())
    with pytest.raises(ValueError, match=r"2-dimensional|2D array"):
        FMClassifier().fit(ROWS.to_pandas()["price"], CLICKED)


def test_objects_in_a_column_of_polars_are_refused_for_they_come_as_addresses(fitted: FMClassifier) -> None:
    ids = [uuid.UUID(int=number % 7) for number in range(600)]
    objects = FRAME.with_columns(pl.Series("site", ids))
    refused = r"column 'site' cannot be read.* holds Python objects \(polars' Object\)"
    for X in (objects, {name: objects[name] for name in objects.columns}):
        for use in (
            lambda X: FMClassifier(n_epochs=1).fit(X, CLICKED),
            lambda X: FMClassifier(n_epochs=1).fit(ROWS, CLICKED, eval_set=(X, CLICKED)),
            lambda X: FMClassifier(n_epochs=1).partial_fit(X, CLICKED),
            fitted.predict,
            fitted.get_feature_names_out,
        ):
            with pytest.raises(DataError, match=refused):
                use(X)
    with pytest.raises(DataError, match="column 'user' cannot be read"):
        FMRanker(n_epochs=1).fit(FRAME, CLICKED, pl.DataFrame({"user": ids}))
    assert len(fitted.predict(objects.with_columns(pl.Series("site", list(map(str, ids)))))) == 600


def test_predictions_come_in_the_form_that_is_asked_for(fitted: FMClassifier) -> None:
    classes = fitted.predict(FRAME, output="polars")
    assert classes.dtype == pl.Boolean
    assert classes.to_list() == fitted.predict(ROWS).tolist()
    shares = fitted.predict_proba(FRAME, output="polars")
    assert shares.columns == ["False", "True"]
    np.testing.assert_array_equal(shares.to_numpy(), fitted.predict_proba(ROWS))
    frame = ROWS.to_pandas().set_index(np.arange(600) + 7)
    assert fitted.predict_proba(frame, output="pandas").index.tolist() == frame.index.tolist()
    assert fitted.predict_proba(frame, output="arrow").column_names == ["False", "True"]
    named = FMClassifier(n_epochs=2).fit(FRAME, np.where(CLICKED, "yes", "no"))
    assert set(named.predict(FRAME, output="polars").to_list()) <= {"yes", "no"}
    assert named.predict(FRAME, output="pandas").name == "prediction"
    with pytest.raises(SettingsError, match="output = 'spark' is not legal"):
        fitted.predict(FRAME, output="spark")


def test_frames_of_floats_are_matrices() -> None:
    X = RNG.normal(size=(200, 3))
    frame = pl.DataFrame(X, schema=["red", "green", "blue"])
    y = pl.Series(X[:, 0] * X[:, 1])
    model = FMRegressor(n_epochs=5).fit(frame, y)
    assert model.feature_names_in_.tolist() == ["red", "green", "blue"]
    expected = model.predict(X_named := pd.DataFrame(X, columns=["red", "green", "blue"]))
    np.testing.assert_array_equal(model.predict(frame.select("blue", "red", "green")), expected)
    assert model.predict(relation(pa.Table.from_pandas(X_named)), output="polars").to_list() == expected.tolist()
    assert np.isfinite(cross_val_score(FMRegressor(n_epochs=2), frame, y.to_numpy(), cv=2)).all()


def test_collections_of_dask_keep_their_own_form(fitted: FMClassifier) -> None:
    dd = pytest.importorskip("dask.dataframe")
    with pytest.raises(SettingsError, match=r'output = "polars" is for rows of this process'):
        fitted.predict(dd.from_pandas(ROWS.to_pandas(), npartitions=2), output="polars")


def test_frames_of_polars_need_no_pandas() -> None:
    program = (
        "import sys\n"
        "class NoPandas:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pandas': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoPandas())\n"
        "import numpy as np, polars as pl\n"
        "from dfm.estimators import FMRegressor\n"
        "X = pl.DataFrame(np.random.default_rng(0).normal(size=(50, 2)), schema=['a', 'b'])\n"
        "print(FMRegressor(n_epochs=2).fit(X, X['a']).predict(X, output='polars').len())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "50\n", done.stderr
