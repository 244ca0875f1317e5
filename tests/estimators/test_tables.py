"""Tables with categories are hashed as shards are; tables of floats are matrices."""

# ruff: noqa: E402 (what may be missing is looked for first)
from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

pytest.importorskip("sklearn", minversion="1.6")
pd = pytest.importorskip("pandas")

from dfm import jobs
from dfm.data.encoding import encode_batch
from dfm.data.schema import Schema, resolve
from dfm.errors import DataError, SettingsError
from dfm.estimators import FMClassifier, FMRegressor, LinearClassifier
from dfm.estimators.notes import naming_parameters
from tests.support.small_jobs import in_process_client

RNG = np.random.default_rng(1)
FRAME = pd.DataFrame(
    {
        "site": RNG.choice(["a", "b", "c", "d"], 800),
        "zone": RNG.integers(0, 3, 800),
        "price": RNG.exponential(5.0, 800),
    }
)
CLICKED = ((FRAME.site == "a") ^ (FRAME.zone == 1)).to_numpy()
"""A pair of categories decides."""


@pytest.fixture(scope="module")
def fitted() -> FMClassifier:
    return FMClassifier(n_factors=4, n_epochs=60).fit(FRAME, CLICKED)


def test_categories_and_numbers_are_told_apart_by_their_types(fitted):
    kinds = {field.name: (field.kind, field.transform) for field in fitted.model_.schema.fields}
    assert kinds == {
        "site": ("categorical", ""),
        "zone": ("categorical", ""),
        "price": ("numeric", "standardize"),
    }
    assert fitted.feature_names_in_.tolist() == ["site", "zone", "price"]
    assert fitted.n_features_in_ == 3
    assert fitted.score(FRAME, CLICKED) > 0.98


def test_a_table_is_hashed_to_the_indices_of_a_shard(fitted):
    schema = resolve(
        Schema(label="y", categorical=("site", "zone"), numeric=("price",), numeric_transform="standardize"),
        [*FRAME.columns, "y"],
    )
    batch = pa.RecordBatch.from_pandas(FRAME, preserve_index=False)
    shard = encode_batch(batch, schema, 20, fitted.model_.statistics, None).rows
    rows = fitted._features.rows(FRAME)
    np.testing.assert_array_equal(rows.indices, shard.indices)
    np.testing.assert_array_equal(rows.values, shard.values)


def test_every_form_of_a_table_gives_the_same_model_and_the_same_predictions(fitted):
    expected = fitted.decision_function(FRAME)
    forms = [pa.Table.from_pandas(FRAME, preserve_index=False), {name: FRAME[name].tolist() for name in FRAME}]
    for form in [*forms, FRAME[["price", "zone", "site"]].assign(more="x")]:
        np.testing.assert_array_equal(fitted.decision_function(form), expected)
    for form in forms:
        again = FMClassifier(n_factors=4, n_epochs=60).fit(form, CLICKED)
        np.testing.assert_array_equal(again.decision_function(FRAME), expected)
    np.testing.assert_allclose(fitted.model_.predict(forms[1]), fitted.predict_proba(FRAME)[:, 1], atol=1e-6)


def test_an_array_is_taken_column_by_column_with_a_warning(fitted):
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        scores = fitted.decision_function(FRAME.to_numpy(object))
    np.testing.assert_array_equal(scores, fitted.decision_function(FRAME))
    with pytest.raises(ValueError, match="X has 2 features, but FMClassifier is expecting 3"):
        fitted.predict(np.zeros((4, 2)))


def test_a_number_that_an_array_of_a_frame_lacks_is_missing_as_it_is_in_the_frame(fitted):
    gaps = FRAME.assign(price=FRAME.price.where(FRAME.index % 7 > 0))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        scores = fitted.decision_function(gaps.to_numpy(object))
    np.testing.assert_array_equal(scores, fitted.decision_function(gaps))


def test_roles_of_columns_can_be_named(fitted):
    model = LinearClassifier(numeric=["zone", "price"], crosses=[["site", "zone"]], categorical=["site"])
    with pytest.raises(Exception, match="only categories can be combined"):
        model.fit(FRAME, CLICKED)
    model = LinearClassifier(categorical=["site", "zone"], crosses=[["site", "zone"]]).fit(FRAME, CLICKED)
    assert model.score(FRAME, CLICKED) > 0.98
    assert [field.name for field in model.model_.schema.fields] == ["site", "zone", "site&zone"]


@pytest.mark.parametrize(
    "options",
    [
        {"categorical": ["zone"]},
        {"numeric": ["price"]},
        {"lists": ["site"]},
        {"crosses": [["site", "zone"]]},
        {"derive": {"hour": "hour(zone)"}},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("form", [np.array, scipy.sparse.csr_matrix])
def test_names_of_columns_are_refused_where_columns_have_none(options, form):
    (name,) = options
    told = rf'^{name} names columns, and X is an array.*set_output\(transform="pandas"\)'
    with pytest.raises(SettingsError, match=told):
        FMClassifier(n_epochs=1, **options).fit(form(np.arange(160.0).reshape(80, 2)), np.arange(80) % 2)


def test_ways_to_read_tables_are_refused_for_arrays_and_those_to_read_text_have_nothing_to_say():
    rows, y = np.arange(160.0).reshape(80, 2), np.arange(80) % 2
    with pytest.raises(SettingsError, match=r'nan = "missing" is for tables, and X is an array.*SimpleImputer'):
        FMClassifier(n_epochs=1, nan="missing").fit(rows, y)
    with pytest.raises(SettingsError, match='numeric_transform = "quantile" is for tables, and X is an array'):
        FMClassifier(n_epochs=1, numeric_transform="quantile").partial_fit(rows, y)
    FMClassifier(n_epochs=1, missing=["NA"], list_separator=";").fit(rows, y)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"derive": "hour(time)"}, r'derive = "hour\(time\)" is not legal: expected a dict, each value a string'),
        ({"crosses": "site"}, "crosses = 'site' is not legal: expected a list of crosses, each a list of columns"),
        ({"crosses": ["site", "device"]}, r"crosses = \['site', 'device'\] is not legal"),
    ],
)
def test_texts_in_the_place_of_lists_and_dicts_are_refused(given, told):
    with pytest.raises(SettingsError, match=told):
        FMClassifier(**given).fit(pd.DataFrame({"site": ["a", "b"], "device": ["c", "d"]}), [0, 1])


def test_a_column_that_is_not_there_is_told_in_words_of_estimators():
    told = r'^categorical names "unseen", which no column of the data matches. There are: site, zone, price.$'
    with pytest.raises(SettingsError, match=told):
        FMClassifier(categorical=["unseen"]).fit(FRAME, CLICKED)


def test_rare_categories_share_a_bucket_that_unseen_ones_fall_into():
    frame = FRAME.assign(user=[f"u{i}" for i in range(800)])
    model = FMClassifier(n_epochs=2, min_count=2, min_count_factors=10, hash_bits=24).fit(frame, CLICKED)
    unseen = frame.assign(user="never seen")
    np.testing.assert_array_equal(model.decision_function(unseen), model.decision_function(frame))
    alone = FMClassifier(n_epochs=2, hash_bits=24).fit(frame, CLICKED)
    assert alone.coef_.shape[1] == model.coef_.shape[1] - 4 + 800


def test_tables_of_floats_are_matrices_by_name():
    frame = pd.DataFrame(RNG.normal(size=(200, 3)), columns=["red", "green", "blue"])
    y = frame.red * frame.green
    model = FMRegressor(n_epochs=5).fit(frame, y)
    assert model.model_.schema.columns == ("red", "green", "blue")
    expected = model.predict(frame)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    np.testing.assert_array_equal(model.predict(table.select(["blue", "red", "green"])), expected)
    np.testing.assert_array_equal(FMRegressor(n_epochs=5).fit(table, y).predict(frame), expected)
    with pytest.raises(DataError, match="lack column 'green'"):
        model.predict({"red": [1.0], "blue": [2.0]})


def test_floats_of_arrow_in_a_frame_of_pandas_are_a_matrix_too():
    frame = pd.DataFrame(RNG.normal(size=(200, 3)), columns=["red", "green", "blue"])
    expected = FMRegressor(n_epochs=2).fit(frame, frame.red)
    for kind in ("double[pyarrow]", "float[pyarrow]"):
        model = FMRegressor(n_epochs=2).fit(frame.astype(kind), frame.red)
        assert model.model_.schema.fields == expected.model_.schema.fields
        np.testing.assert_allclose(model.predict(frame), expected.predict(frame), atol=1e-3)


def test_sparse_columns_of_a_frame_are_the_numbers_that_they_hold(fitted):
    dense = FRAME.assign(rare=np.where(RNG.random(800) < 0.9, np.nan, 1.5), flag=RNG.random(800) < 0.1)
    sparse = dense.assign(**{name: pd.arrays.SparseArray(dense[name]) for name in ("zone", "price", "rare", "flag")})
    model = LinearClassifier(n_epochs=2, nan="missing")
    expected = model.fit(dense, CLICKED).decision_function(dense)
    np.testing.assert_array_equal(model.decision_function(sparse), expected)
    np.testing.assert_array_equal(model.fit(sparse, CLICKED).decision_function(dense), expected)
    kinds = {field.name: field.kind for field in model.model_.schema.fields}
    assert (kinds["price"], kinds["rare"], kinds["zone"], kinds["flag"]) == ("numeric", "numeric", *["categorical"] * 2)
    np.testing.assert_array_equal(fitted.model_.predict(sparse), fitted.model_.predict(dense))


def test_a_transform_that_is_named_holds_for_tables_of_floats():
    frame = pd.DataFrame(RNG.normal(size=(200, 3)), columns=["red", "green", "blue"])
    model = FMRegressor(n_epochs=2, numeric_transform="quantile").fit(frame, frame.red)
    assert [field.transform for field in model.model_.schema.fields] == ["quantile"] * 3
    for X in (frame, frame.to_numpy(), FRAME):
        with pytest.raises(SettingsError, match="numeric_transform = 'cubic' is not legal: expected one of auto, "):
            FMRegressor(numeric_transform="cubic").fit(X, np.arange(len(X)))


def test_numbers_beside_categories_stay_as_they_are_where_none_are_to_be_standardized():
    for standardize, expected in ((False, "raw"), (True, "standardize"), ("auto", "standardize")):
        model = LinearClassifier(n_epochs=1, standardize=standardize).fit(FRAME, CLICKED).model_
        assert {field.name: field.transform for field in model.schema.fields}["price"] == expected


def test_models_know_the_labels_that_they_were_fitted_to():
    words = np.where(CLICKED, "yes", "no")
    model = FMClassifier(n_epochs=2).fit(FRAME, words).model_
    assert model.schema.label_positive == ("yes",)
    plain = FMClassifier(n_epochs=2).fit(FRAME, CLICKED).model_
    assert plain.schema.label_positive == ()
    expected = jobs.evaluate(plain, FRAME.assign(label=CLICKED))["auc"]
    assert jobs.evaluate(model, FRAME.assign(label=words))["auc"] == expected
    three = FMClassifier(n_epochs=5).fit(FRAME, FRAME.zone).models_
    assert [model.schema.label_positive for model in three] == [("0",), ("1",), ("2",)]
    for model in three:
        assert jobs.evaluate(model, FRAME.assign(label=FRAME.zone))["auc"] > 0.9


def test_a_number_that_is_none_stops_the_fit_with_its_row():
    frame = FRAME.assign(price=np.where(np.arange(800) == 7, np.inf, FRAME.price))
    with pytest.raises(DataError, match=r"row 7: column 'price': not finite"):
        FMClassifier().fit(frame, CLICKED)


def test_truths_among_the_numbers_of_a_column_are_numbers_in_every_call():
    """Arrow takes no list in which they stand before or after whole numbers."""
    values = RNG.integers(0, 3, 800)
    mixed = [bool(value) if value < 2 else int(value) for value in values]
    named = {"numeric": ("p*",), "categorical": ("site",), "n_epochs": 3}
    numbers, given = ({"site": FRAME.site.tolist(), "price": column} for column in (values.tolist(), mixed))
    fitted, same = (FMClassifier(**named).fit(data, CLICKED) for data in (numbers, given))
    expected = fitted.decision_function(numbers)
    for data in (given, pd.DataFrame({**given, "price": pd.Series(mixed, dtype=object)})):
        for model in (fitted, same):
            np.testing.assert_array_equal(model.decision_function(data), expected)
            assert len(model.get_feature_names_out(data)) == len(model.get_feature_names_out(numbers))
    matrix = FMRegressor(n_epochs=2).fit(pd.DataFrame({"price": values.astype(float)}), values)
    np.testing.assert_array_equal(matrix.predict({"price": mixed}), matrix.predict({"price": values.tolist()}))


def test_training_on_new_rows_keeps_the_categories_of_the_first():
    model = FMClassifier(n_factors=4)
    for _ in range(30):
        model.partial_fit(FRAME[:400], CLICKED[:400]).partial_fit(FRAME[400:], CLICKED[400:])
    assert model.score(FRAME, CLICKED) > 0.95


MOMENTS = pd.date_range("2026-11-20", periods=600, freq="97min")
SAID = pd.DataFrame(
    {
        "site": RNG.choice(["a", "b", "NA", ""], 600),
        "price": np.where(RNG.random(600) < 0.3, np.nan, RNG.exponential(5.0, 600)),
        "tags": RNG.choice(["x|y", "y", "", "NA", "z|x|y"], 600),
        "sent": MOMENTS.astype(str),
        "seen": MOMENTS + pd.to_timedelta(RNG.integers(1, 9, 600), "h"),
    }
)
WORDS = {
    "categorical": ["site"],
    "numeric": ["price"],
    "lists": ["tags"],
    "missing": ["NA"],
    "nan": "missing",
    "list_separator": "|",
    "derive": {"hour": "hour(sent)", "wait": "hours(sent, seen)"},
    "numeric_transform": "standardize",
}


def test_values_are_read_as_a_job_with_the_same_words_reads_them(tmp_path):
    clicked = ((SAID.site == "a") ^ SAID.price.isna()).astype(int).to_numpy()
    rows = pa.Table.from_pandas(SAID, preserve_index=False, schema=pa.schema([
        ("site", pa.string()), ("price", pa.float64()), ("tags", pa.string()), ("sent", pa.string()),
        ("seen", pa.timestamp("us")),
    ]))  # fmt: skip
    nans = pa.array(SAID.price.to_numpy(), from_pandas=False)
    rows = rows.set_column(1, "price", nans)
    assert nans.null_count == 0
    pq.write_table(rows.append_column("label", pa.array(clicked)), tmp_path / "x.parquet")
    job = {
        "data": {"train": str(tmp_path / "x.parquet")},
        "schema": WORDS,
        "model": {"min_count": 1, "min_count_factors": 1},
        "training": {"n_replicas": 1, "n_epochs": 1},
        "cluster": {"cache": str(tmp_path / "cache")},
        "output": {"directory": str(tmp_path / "out")},
    }
    with in_process_client(1) as client:
        there = jobs.train(job, client).model
        collection = dask_frame(client, rows.to_pandas(), clicked)
    here = FMClassifier(n_epochs=30, **WORDS).fit(rows, clicked)
    for model in (here.model_, collection.model_):
        assert dataclasses.replace(model.schema, label="label") == there.schema
        assert sorted(model.vocabulary.ids) == sorted(there.vocabulary.ids)
        assert model.statistics.keys() == there.statistics.keys() == {"price", "wait"}
        for column, known in there.statistics.items():
            assert model.statistics[column].mean == pytest.approx(known.mean)
            assert model.statistics[column].stdev == pytest.approx(known.stdev)
        encoded, expected = model.encode(rows.to_batches()[0]).rows, there.encode(rows.to_batches()[0]).rows
        np.testing.assert_array_equal(encoded.indices, expected.indices)
        np.testing.assert_allclose(encoded.values, expected.values, rtol=1e-6)
    assert here.score(rows, clicked) > 0.98
    np.testing.assert_allclose(here.model_.predict(rows), here.predict_proba(SAID)[:, 1], atol=1e-6)


def dask_frame(client, frame, clicked):
    """A fit on the rows as a collection."""
    dd = pytest.importorskip("dask.dataframe", reason="dask.dataframe needs its extra")
    collection = dd.from_pandas(frame.assign(clicked=clicked), npartitions=2)
    return FMClassifier(n_epochs=1, n_replicas=1, **WORDS).fit(collection, "clicked", client=client)


@pytest.mark.parametrize("numeric_transform", ["auto", "standardize", "quantile"])
def test_rows_of_weight_0_have_no_part_in_what_is_learnt_of_numbers(numeric_transform):
    dd = pytest.importorskip("dask.dataframe", reason="dask.dataframe needs its extra")
    rows = FRAME.assign(price=FRAME.price / 100)
    more = pd.concat([rows.assign(price=1e9), rows], ignore_index=True)
    clicked, weights = np.tile(CLICKED, 2), np.repeat([0.0, 2.0], len(rows))
    model = FMClassifier(n_epochs=1, n_replicas=1, numeric_transform=numeric_transform)
    expected = dict(model.fit(rows, CLICKED).model_.statistics)
    assert expected["price"].mean == pytest.approx(rows.price.mean())
    assert model.fit(more, clicked, sample_weight=weights).model_.statistics == expected
    with in_process_client(1) as client:
        parts = dd.from_pandas(more.assign(clicked=clicked, weight=weights), npartitions=3)
        X, y, w = parts[list(rows.columns)], parts.clicked, parts.weight
        known = model.fit(X, y, sample_weight=w, client=client).model_.statistics["price"]
    assert known.mean == pytest.approx(expected["price"].mean)
    assert known.stdev == pytest.approx(expected["price"].stdev)
    np.testing.assert_allclose(known.boundaries, expected["price"].boundaries, rtol=0.1)


def test_numbers_that_are_not_there_need_a_word_for_them():
    with pytest.raises(DataError, match=r"column 'price': not finite \(nan\)"):
        FMClassifier(n_epochs=1, categorical=["site"], numeric=["price"]).fit(
            pa.table({"site": ["a", "b"], "price": pa.array([1.0, float("nan")])}), [0, 1]
        )
    matrix = pd.DataFrame({"x": [0.0, 1.0, np.nan, 3.0], "y": [1.0, 2.0, 3.0, np.nan]})
    with pytest.raises(ValueError, match="NaN"):
        FMClassifier(n_epochs=1).fit(matrix, [0, 1, 0, 1])
    assert FMClassifier(n_epochs=1, nan="missing").fit(matrix, [0, 1, 0, 1]).predict(matrix).shape == (4,)
    with pytest.raises(SettingsError, match=r"^nan = "):
        FMClassifier(n_epochs=1, nan="none").fit(matrix, [0, 1, 0, 1])


@pytest.mark.parametrize("form", [pd.DataFrame, dict])
def test_a_number_beside_text_that_means_missing_is_learnt_as_it_is_scored_alone(form):
    rng = np.random.default_rng(5)
    values = [("7", 0, "0", "b")[place] for place in rng.integers(0, 4, 400)]
    clicked = [value == 0 for value in values]
    model = FMClassifier(categorical=["x"], missing=["0"], n_factors=0, n_epochs=20).fit(form({"x": values}), clicked)
    zero, text = (float(model.model_.predict_one({"x": value})) for value in (0, "0"))
    assert zero > 0.8 > 0.2 > text
    for known in (model, model.model_):
        together = known.predict(form({"x": ["7", 0, "0", "b"]}))
        np.testing.assert_allclose(
            together,
            [
                *known.predict(form({"x": ["7"]})),
                *known.predict(form({"x": [0]})),
                *known.predict(form({"x": ["0", "b"]})),
            ],
            atol=1e-6,
        )


@pytest.mark.parametrize(
    ("of_a_job", "of_an_estimator"),
    [
        ('schema.categorical names "model.optimizer", which', 'categorical names "model.optimizer", which'),
        ("schema.derive.hour names 'schema.weight'", "derive.hour names 'schema.weight'"),
        (
            "in /data/model.loss/0.parquet, or lower model.n_factors",
            "in /data/model.loss/0.parquet, or lower n_factors",
        ),
        ("There are: model.year, schema.labels.", "There are: model.year, schema.labels."),
    ],
)
def test_errors_name_parameters_and_leave_names_of_columns_and_paths_as_they_are(of_a_job, of_an_estimator):
    with pytest.raises(SettingsError) as caught, naming_parameters():
        raise SettingsError(of_a_job)
    assert str(caught.value) == of_an_estimator


def test_a_column_is_told_by_its_whole_name():
    with pytest.raises(SettingsError, match=r'^categorical names "brand", .* There are: model\.year, model\.make\.$'):
        FMClassifier(categorical=["brand"]).fit({"model.year": [1, 2], "model.make": ["a", "b"]}, [0, 1])
