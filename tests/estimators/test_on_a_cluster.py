"""Collections, shards and rows sent to a cluster are trained there, to the bytes that the rows decide."""

# ruff: noqa: E402 (what may be missing is looked for first)
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse

pytest.importorskip("sklearn", minversion="1.6")
pd = pytest.importorskip("pandas")

import dask
import dask.array as da
from distributed import Client
from sklearn.metrics import accuracy_score, r2_score

from dfm.errors import ClusterError, DataError, SettingsError
from dfm.estimators import FMClassifier, FMRanker, FMRegressor, LinearClassifier
from dfm.estimators.shards import validation_paths
from dfm.factorization import matrix_factorization
from tests.support.small_jobs import in_process_client

RNG = np.random.default_rng(2)
X = RNG.normal(size=(900, 4)) * [1, 10, 100, 1] + [0, 5, 0, 0]
Y = (X[:, 0] * (X[:, 1] - 5) > 0).astype(int)
FRAME = pd.DataFrame({"site": RNG.choice(list("abc"), 900), "price": X[:, 1]})
FRAME["kind"] = np.where(FRAME.site == "a", "low", np.where(FRAME.price > 5, "mid", "top"))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with in_process_client(2) as client:
        yield client


def test_rows_of_this_process_train_on_a_cluster_to_the_same_bytes(client):
    here = FMClassifier(n_replicas=3, n_epochs=4).fit(X, Y)
    there = FMClassifier(n_replicas=3, n_epochs=4).fit(X, Y, client=client)
    assert there.factors_.tobytes() == here.factors_.tobytes()
    assert there.coef_.tobytes() == here.coef_.tobytes()


def test_an_array_of_dask_trains_where_it_lies_and_predicts_when_it_is_asked(client):
    collection, labels = da.from_array(X, chunks=(200, 3)), da.from_array(Y, chunks=200)
    model = FMClassifier(n_factors=4, n_epochs=30).fit(collection, labels, client=client)
    probabilities = model.predict_proba(collection)
    assert isinstance(probabilities, da.Array)
    assert probabilities.shape == (900, 2)
    plain = model.to_local()
    np.testing.assert_array_equal(probabilities.compute(scheduler="sync"), plain.predict_proba(X))
    np.testing.assert_array_equal(model.predict(collection).compute(scheduler="sync"), plain.predict(X))
    assert plain.score(X, Y) > 0.93
    assert model.model_.statistics["x1"].mean == pytest.approx(X[:, 1].mean())
    again = FMClassifier(n_factors=4, n_epochs=30).fit(collection, labels, client=client)
    assert again.factors_.tobytes() == model.factors_.tobytes()


def test_columns_are_standardized_by_the_weights_of_classes_wherever_they_lie(client):
    settings = {"n_factors": 2, "n_epochs": 1, "class_weight": {False: 1.0, True: 3.0}}
    here = FMClassifier(**settings).fit(X, Y).model_.statistics
    collection, labels = da.from_array(X, chunks=(200, 3)), da.from_array(Y, chunks=200)
    there = FMClassifier(**settings).fit(collection, labels, client=client).model_.statistics
    for column, known in here.items():
        assert (there[column].mean, there[column].stdev) == pytest.approx((known.mean, known.stdev)), column


def test_sparse_blocks_stay_sparse(client):
    blocks = [scipy.sparse.csr_matrix(np.abs(X[i : i + 300])) for i in range(0, 900, 300)]
    parts = [da.from_delayed(dask.delayed(block), block.shape, float) for block in blocks]
    collection, labels = da.concatenate(parts), da.from_array(Y.astype(float), chunks=300)
    model = FMRegressor(n_replicas=2, n_epochs=2).fit(collection, labels, client=client)
    assert model.model_.statistics == {}
    lazily = model.predict(collection).compute(scheduler="sync")
    np.testing.assert_array_equal(lazily, model.predict(scipy.sparse.vstack(blocks)))


def test_a_frame_of_dask_is_hashed_and_may_hold_its_labels(client):
    dd = pytest.importorskip("dask.dataframe")
    frame = dd.from_pandas(FRAME, npartitions=3)
    weights = dd.from_pandas(pd.Series(np.ones(900)), npartitions=3)
    model = LinearClassifier(n_replicas=2, n_epochs=20, class_weight="balanced")
    model.fit(frame, "kind", weights, eval_set=(frame, "kind"), client=client)
    assert model.classes_.tolist() == ["low", "mid", "top"]
    assert model.feature_names_in_.tolist() == ["site", "price"]
    assert model.score(FRAME[["site", "price"]], FRAME.kind) > 0.95
    assert model.history_[-1]["rows"] == 900
    lazily = model.predict(frame).compute(scheduler="sync")
    np.testing.assert_array_equal(lazily, model.predict(FRAME))


def test_a_frame_of_dask_may_hold_its_weights_too(client):
    dd = pytest.importorskip("dask.dataframe")
    rows = FRAME.assign(weight=np.where(FRAME.kind == "low", 3.0, 0.5))
    frame = dd.from_pandas(rows, npartitions=3)
    X, y, weights = frame[["site", "price"]], frame.kind, frame.weight
    settings = {"n_replicas": 2, "n_epochs": 3}
    named = LinearClassifier(**settings).fit(frame, "kind", "weight", eval_set=(frame, "kind", "weight"), client=client)
    apart = LinearClassifier(**settings).fit(X, y, weights, eval_set=(X, y, weights), client=client)
    assert named.feature_names_in_.tolist() == ["site", "price"]
    assert named.coef_.tobytes() == apart.coef_.tobytes()
    assert named.score(frame, "kind", "weight") == apart.score(X, y, weights)
    assert LinearClassifier(**settings).fit(frame.drop(columns="kind"), y, "weight", client=client).n_features_in_ == 2
    with pytest.raises(DataError, match="X has no column 'w' of weights; it has site, price, kind, weight"):
        LinearClassifier().fit(frame, "kind", "w", client=client)


def test_shards_are_read_here_or_trained_as_a_job(client, tmp_path):
    FRAME.assign(rare=(FRAME.kind == "low").astype(int)).to_parquet(tmp_path / "rows.parquet")
    shards, others = str(tmp_path / "rows.parquet"), str(tmp_path / "others.parquet")
    FRAME[::3].assign(rare=(FRAME.kind == "low").astype(int)).to_parquet(others)
    here = FMClassifier(n_epochs=5, categorical=["site"], numeric=["price"]).fit(shards, "rare")
    assert here.score(FRAME, FRAME.kind == "low") == 1.0
    np.testing.assert_array_equal(here.predict(shards), here.predict(FRAME))
    job = FMClassifier(n_epochs=3, n_replicas=2, categorical=["site"], numeric=["price"])
    job.fit(shards, "rare", eval_set=(others, "rare"), client=client)
    assert job.score(FRAME, FRAME.kind == "low") == 1.0
    assert job.history_[-1]["auc"] == 1.0
    with pytest.raises(SettingsError, match="names of columns"):
        here.fit(shards, FRAME.kind)


@pytest.mark.parametrize(
    ("no", "yes", "positive"),
    [("no", "yes", "yes"), ("0", "1", "1"), (-1, 1, "1"), (False, True, ""), (0, 1, ""), (0.0, 1.0, "")],
    ids=["text", "digits", "signs", "truths", "integers", "floats"],
)
def test_a_job_of_a_classifier_learns_two_classes_of_any_kind(client, tmp_path, no, yes, positive):
    labels = [yes if kind == "low" else no for kind in FRAME.kind]
    rows = FRAME[["site", "price"]].assign(y=labels)
    for part in range(3):
        rows[part::3].sort_values("site").to_parquet(tmp_path / f"{part}.parquet", row_group_size=100)
    shards, others = str(tmp_path / "[01].parquet"), str(tmp_path / "2.parquet")
    settings = {"n_epochs": 3, "n_replicas": 2, "categorical": ["site"], "numeric": ["price"]}
    model = FMClassifier(**settings).fit(shards, "y", eval_set=(others, "y"), client=client)
    assert model.classes_.tolist() == FMClassifier(**settings).fit(shards, "y").classes_.tolist() == [no, yes]
    assert (model.classes_.dtype == bool) == isinstance(yes, bool)
    assert model.score(shards, "y") == model.score(rows, np.array(labels)) == 1.0
    assert model.model_.schema.label_positive == ((positive,) if positive else ())


def test_a_job_of_a_classifier_tells_what_labels_it_cannot_learn(client, tmp_path):
    shards, few = str(tmp_path / "rows.parquet"), str(tmp_path / "few.parquet")
    FRAME.to_parquet(shards)
    FRAME[FRAME.kind == "low"].to_parquet(few)
    with pytest.raises(DataError, match=r"column 'kind' holds 'low', 'mid', 'top', and a fit on shards.*leave client"):
        FMClassifier(n_epochs=1).fit(shards, "kind", client=client)
    with pytest.raises(ValueError, match="y has one class only, 'low'"):
        FMClassifier(n_epochs=1).fit(few, "kind", client=client)
    with pytest.raises(SettingsError, match="the shards have no column 'nope'; they have site, price, kind"):
        FMClassifier(n_epochs=1).fit(few, "nope", client=client)


@pytest.mark.parametrize(("kind", "metric"), [(FMClassifier, accuracy_score), (FMRegressor, r2_score)])
def test_rows_are_judged_wherever_they_lie(client, tmp_path, kind, metric):
    """scikit-learn's own `score` takes arrays alone."""
    dd = pytest.importorskip("dask.dataframe")
    names, shards = ["site", "price"], str(tmp_path / "rows.parquet")
    frame = FRAME.assign(rare=(FRAME.kind == "low") ^ (RNG.random(900) < 0.1), weight=RNG.integers(1, 4, 900))
    frame = frame.astype({"rare": int})
    frame.to_parquet(shards)
    model, lazy = kind(n_epochs=5).fit(frame[names], frame.rare), dd.from_pandas(frame, npartitions=3)
    plain = metric(frame.rare, model.predict(frame[names]))
    weighed = metric(frame.rare, model.predict(frame[names]), sample_weight=frame.weight)
    assert weighed != plain
    for rows in (
        (frame[names], frame.rare),
        (lazy[names], lazy.rare),
        (lazy[[*names, "rare"]], "rare"),
        (shards, "rare"),
    ):
        assert model.score(*rows) == pytest.approx(plain)
    for rows in ((lazy[names], lazy.rare, lazy.weight), (shards, "rare", "weight")):
        assert model.score(*rows) == pytest.approx(weighed)
    with pytest.raises(SettingsError, match="must be names of columns"):
        model.score(shards, frame.rare)


@pytest.mark.parametrize(
    ("weight", "eval_set", "told"),
    [
        (None, ("v", "rare", "w"), r"names the columns \('rare', 'w'\), and the fit \('rare', None\)"),
        ("w", ("v", "rare"), r"names the columns \('rare', None\), and the fit \('rare', 'w'\)"),
        (None, ("v", "price"), r"names the columns \('price', None\)"),
        (None, ("v",), r"eval_set = \(path, names of columns"),
        (None, (X, Y), r"eval_set = \(path, names of columns"),
    ],
)
def test_a_job_validates_by_the_columns_of_the_fit(client, weight, eval_set, told):
    with pytest.raises(SettingsError, match=told):
        FMClassifier().fit("log", "rare", weight, eval_set=eval_set, client=client)
    assert validation_paths([("v", "rare", "w")], "rare", "w") == ["v"]
    assert validation_paths((["a/v", "a/u"], "rare"), "rare", None) == ["a/v", "a/u"]


@pytest.mark.parametrize(
    ("weight", "eval_set", "told"),
    [
        (None, ("v", "clicked", "user", "w"), r"\('clicked', 'user', 'w'\), and the fit \('clicked', 'user', None\)"),
        ("w", ("v", "clicked", "user"), r"\('clicked', 'user', None\), and the fit \('clicked', 'user', 'w'\)"),
        ("w", ("v", "clicked"), r"\('clicked', 'user', None\), and the fit \('clicked', 'user', 'w'\)"),
        (None, ("v",), r"eval_set = \(path, names of columns"),
    ],
)
def test_a_job_that_ranks_validates_by_the_columns_of_the_fit(client, weight, eval_set, told):
    with pytest.raises(SettingsError, match=told):
        FMRanker().fit("log", "clicked", "user", sample_weight=weight, eval_set=eval_set, client=client)
    for named in (("v", "clicked"), ("v", "clicked", "user"), ("v", "clicked", "user", None)):
        assert validation_paths(named, "clicked", "user", None) == ["v"]
    assert validation_paths(("v", "clicked", "user", "w"), "clicked", "user", "w") == ["v"]


def test_what_a_fit_on_shards_cannot_do_is_refused(client, tmp_path):
    shards = str(tmp_path / "rows.parquet")
    FRAME[["site", "price"]].assign(rare=(FRAME.kind == "low").astype(int)).to_parquet(shards)
    for given, told in (
        ({"warm_start": True}, r"warm_start = True does not reach shards .* training\.warm_start"),
        ({"class_weight": "balanced"}, "class_weight = 'balanced' does not reach shards"),
    ):
        with pytest.raises(SettingsError, match=told):
            FMClassifier(**given).fit(shards, "rare", client=client)
    held_out = FMClassifier(n_factors=2, n_epochs=1, validation_fraction=0.5, tune="none")
    assert held_out.fit(shards, "rare", client=client).history_[-1]["rows"] == pytest.approx(450, abs=60)


def test_a_shard_under_two_names_is_not_read_twice(tmp_path):
    FRAME.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "again.parquet").symlink_to("rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet is the same file as .*again\.parquet.* would count twice"):
        LinearClassifier(n_epochs=1).fit(str(tmp_path), "kind")


def test_rows_of_this_process_may_be_validated_on_shards(tmp_path):
    shards, X = str(tmp_path / "rows.parquet"), FRAME[["site", "price"]]
    FRAME.to_parquet(shards)
    model = LinearClassifier(n_epochs=1).fit(X, FRAME.kind, eval_set=(shards, "kind"))
    same = LinearClassifier(n_epochs=1).fit(X, FRAME.kind, eval_set=(X, FRAME.kind))
    assert model.history_[-1]["log_loss"] == same.history_[-1]["log_loss"]
    with pytest.raises(SettingsError, match="eval_set is of shards: y and sample_weight must be names of columns"):
        LinearClassifier().fit(X, FRAME.kind, eval_set=(shards, FRAME.kind))


def test_collections_that_have_no_such_labels_or_columns_are_refused(client):
    dd = pytest.importorskip("dask.dataframe")
    collection, y = da.from_array(X, chunks=(300, 4)), da.from_array(Y, chunks=300)
    with pytest.raises(DataError, match="X has no column 'nope' of labels; it has site, price, kind"):
        FMClassifier().fit(dd.from_pandas(FRAME, npartitions=3), "nope", client=client)
    with pytest.raises(DataError, match="X has no column 'y' of labels; it has no names of columns"):
        FMClassifier().fit(collection, "y", client=client)
    with pytest.raises(DataError, match=r"X has 1 dimensions: expected \[n_rows, n_features\]"):
        FMClassifier().fit(collection[:, 0], y, client=client)
    with pytest.raises(DataError, match="eval_set: y holds -1, and the loss is for counts"):
        FMRegressor(loss="poisson").fit(collection, y, eval_set=(collection, y - 1), client=client)


def test_roles_of_columns_are_refused_for_arrays_of_dask_too(client):
    collection, y = da.from_array(X, chunks=(300, 4)), da.from_array(Y, chunks=300)
    with pytest.raises(SettingsError, match="categorical names columns, and X is an array"):
        FMClassifier(categorical=["x0"]).fit(collection, y, client=client)


def test_chunks_that_do_not_match_are_refused(client):
    collection = da.from_array(X, chunks=(300, 4))
    with pytest.raises(DataError, match="y is 2 chunks"):
        FMClassifier().fit(collection, da.from_array(Y, chunks=450), client=client)
    with pytest.raises(DataError, match="no Dask collection"):
        FMClassifier().fit(collection, Y, client=client)
    with pytest.raises(ClusterError, match="pass client="):
        FMClassifier().fit(collection, da.from_array(Y, chunks=300))


def test_a_matrix_is_factorized_on_a_cluster_to_the_same_bytes(client):
    D = RNG.normal(size=(60, 3)) @ RNG.normal(size=(3, 50))
    D[RNG.random(D.shape) < 0.5] = np.nan
    here = matrix_factorization(D, 3, n_replicas=2, n_epochs=4)
    there = matrix_factorization(D, 3, n_replicas=2, n_epochs=4, client=client)
    assert (here.P.tobytes(), here.Q.tobytes()) == (there.P.tobytes(), there.Q.tobytes())


def test_rows_that_weigh_nothing_teach_nothing(client):
    dd = pytest.importorskip("dask.dataframe")
    frame = dd.from_pandas(pd.DataFrame({"x": np.arange(60.0), "kind": np.arange(60) % 2}), npartitions=3)
    nothing, something = (dd.from_pandas(pd.Series(np.full(60, w)), npartitions=3) for w in (0.0, 1.0))
    model = LinearClassifier(n_replicas=2, n_epochs=2)
    with pytest.raises(ValueError, match="all sample weights are 0"):
        model.fit(frame, "kind", nothing, client=client)
    with pytest.raises(ValueError, match="all sample weights are 0"):
        model.fit(frame, "kind", something, eval_set=(frame, "kind", nothing), client=client)
