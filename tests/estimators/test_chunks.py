"""Chunks of a Dask collection: empty ones count for nothing, those of other types mean the same or are named."""

# ruff: noqa: E402 (what may be missing is looked for first)
from __future__ import annotations

import decimal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse

pytest.importorskip("sklearn", minversion="1.6")
pd = pytest.importorskip("pandas")

import dask
import dask.array as da
import dask.dataframe as dd
from distributed import Client

from dfm.errors import DataError
from dfm.estimators import FMClassifier, FMRegressor, LinearClassifier, LinearRegressor
from tests.support.small_jobs import in_process_client

RNG = np.random.default_rng(4)
SIZE, PARTS = 60, 4
X = RNG.normal(size=(SIZE * PARTS, 3))
LABELS = np.where(X[:, 0] * X[:, 1] > 0, "yes", "no")
FRAME = pd.DataFrame({"site": RNG.integers(0, 5, len(X)), "price": X[:, 1].round(2)})
EMPTY = {"the first": {0}, "one in the middle": {2}, "the last": {3}, "all but one": {0, 1, 3}}
"""Numbers of the chunks that are empty."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with in_process_client(2) as client:
        yield client


def rows_of(chunk: int, empty: set[int]) -> slice:
    return slice(chunk * SIZE, chunk * SIZE + (0 if chunk in empty else SIZE))


def as_frame(data: Any, empty: set[int]) -> Any:
    """A collection with some empty chunks, made of all rows."""
    return dd.from_delayed(
        [dask.delayed(data.iloc[rows_of(chunk, empty)]) for chunk in range(PARTS)], meta=data.iloc[:0]
    )


def as_array(data: Any, empty: set[int]) -> Any:
    """The same of an array or a sparse matrix."""
    parts = [
        da.from_delayed(dask.delayed(data[rows_of(chunk, empty)]), (np.nan, *data.shape[1:]), data.dtype)
        for chunk in range(PARTS)
    ]
    return da.concatenate(parts, allow_unknown_chunksizes=True)


FORMS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "array": (X, as_array),
    "sparse blocks": (scipy.sparse.csr_matrix(np.abs(X)), as_array),
    "frame": (FRAME, as_frame),
    "frame of numbers": (pd.DataFrame(X, columns=["a", "b", "c"]), as_frame),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("empty", EMPTY)
def test_empty_chunks_count_for_nothing(client: Client, form: str, empty: str) -> None:
    """As if they were not there: the same collection without them, and other rows to validate on with them."""
    data, make = FORMS[form]
    numbers, kept = EMPTY[empty], [chunk for chunk in range(PARTS) if chunk not in EMPTY[empty]]
    rows = np.concatenate([np.arange(chunk * SIZE, (chunk + 1) * SIZE) for chunk in kept])
    own = data.iloc[rows] if hasattr(data, "iloc") else data[rows]
    make_labels = as_frame if make is as_frame else as_array
    labels = pd.Series(LABELS) if make is as_frame else LABELS

    def fitted(X: Any, y: Any, eval_set: Any) -> Any:
        new = FMClassifier(n_factors=2, n_epochs=2, n_replicas=2)
        return new.fit(X, y, eval_set=eval_set, client=client)

    some = make(data, numbers), make_labels(labels, numbers)
    if make is as_frame:
        whole = dd.from_pandas(own, npartitions=len(kept), sort=False), dd.from_pandas(labels[rows], len(kept))
    else:
        blocks = [own[i : i + SIZE] for i in range(0, len(rows), SIZE)]
        whole = (
            da.concatenate([da.from_delayed(dask.delayed(block), block.shape, float) for block in blocks]),
            da.from_array(labels[rows], chunks=SIZE),
        )
    with_empty, without = fitted(*some, some), fitted(*whole, whole)
    assert with_empty.factors_.tobytes() == without.factors_.tobytes()
    assert with_empty.classes_.dtype == without.classes_.dtype
    timeless = [[{**event, "seconds": 0} for event in model.history_] for model in (with_empty, without)]
    assert timeless[0] == timeless[1]
    lazily = with_empty.predict(some[0]).compute(scheduler="sync")
    np.testing.assert_array_equal(lazily, without.predict(own))
    assert with_empty.predict_proba(some[0]).compute(scheduler="sync").shape == (len(rows), 2)


def test_without_any_row_there_is_nothing_to_learn_or_to_validate_on(client: Client) -> None:
    nothing, something = {*range(PARTS)}, {1}
    with pytest.raises(DataError, match="X has no rows: all its chunks are empty"):
        FMClassifier().fit(as_array(X, nothing), as_array(LABELS, nothing), client=client)
    given = as_array(X, nothing), as_array(LABELS, nothing)
    with pytest.raises(DataError, match="eval_set: X has no rows"):
        FMClassifier(n_replicas=2).fit(
            as_array(X, something), as_array(LABELS, something), eval_set=given, client=client
        )


def test_a_fit_that_goes_on_takes_empty_chunks_too(client: Client) -> None:
    model = FMRegressor(n_replicas=2, n_epochs=1, warm_start=True)
    for empty in ({0}, {2, 3}):
        model.fit(as_array(X, empty), as_array(X[:, 0], empty), client=client)
    assert model.n_iter_ == 2


def test_nothing_to_predict_gives_no_predictions() -> None:
    """Of tables, arrays and sparse matrices of this process."""
    of_table = LinearClassifier(n_epochs=1).fit(FRAME, LABELS)
    of_array = FMClassifier(n_epochs=1).fit(X, LABELS)
    assert of_table.predict(FRAME[:0]).shape == of_table.model_.predict(FRAME[:0]).shape == (0,)
    assert of_table.predict_proba(pa.Table.from_pandas(FRAME[:0])).shape == (0, 2)
    of_sparse = FMClassifier(n_epochs=1).fit(scipy.sparse.csr_matrix(X), LABELS)
    assert of_array.predict(X[:0]).shape == of_sparse.predict(scipy.sparse.csr_matrix(X[:0])).shape == (0,)
    assert of_array.decision_function(X[:0]).dtype == np.float64


# ---------------------------------------------------------------------------------------- other types ----


def collection(parts: Sequence[Any], meta: Any) -> Any:
    """Chunks that nobody compares with what the collection says of them, as of a reader of files."""
    return dd.from_map(_read, parts, meta=meta)


def _read(part: Any) -> Any:
    return part


def parts_with(column: str, *kinds: Any) -> list[Any]:
    """The frame in parts, of which the last ones hold a column in other types."""
    parts = [FRAME.iloc[chunk * SIZE : (chunk + 1) * SIZE].copy() for chunk in range(PARTS)]
    for part, kind in zip(parts[-len(kinds) :], kinds, strict=True):
        part[column] = part[column].astype(kind)
    return parts


SITES = {
    "floats": ["float64", "float32"],
    "text": [str, "string"],
    "Arrow's texts": [pd.ArrowDtype(pa.string()), pd.ArrowDtype(pa.large_string())],
    "categories": ["category", "int8"],
    "objects": [object, pd.ArrowDtype(pa.decimal128(24, 2))],
}


@pytest.mark.parametrize("kinds", SITES)
def test_categories_are_the_same_in_whatever_type_a_chunk_has_them(client: Client, kinds: str) -> None:
    drifting = parts_with("site", *SITES[kinds])
    labels = dd.from_pandas(pd.Series(LABELS), npartitions=PARTS)
    models = [
        LinearClassifier(n_replicas=2, n_epochs=2).fit(collection(parts, FRAME.iloc[:0]), labels, client=client)
        for parts in (parts_with("site", "int64"), drifting)
    ]
    assert models[0].coef_.tobytes() == models[1].coef_.tobytes()
    scores = models[0].decision_function(collection(drifting, FRAME.iloc[:0])).compute(scheduler="sync")
    np.testing.assert_array_equal(scores, models[0].decision_function(FRAME))


def test_text_with_or_without_the_conversion_of_dask_is_the_same_category(client: Client) -> None:
    named = FRAME.assign(site=FRAME.site.map(lambda number: f"site {number}"))
    labels = dd.from_pandas(pd.Series(LABELS), npartitions=PARTS)
    models = []
    for converts in (True, False):
        with dask.config.set({"dataframe.convert-string": converts}):
            frame = dd.from_pandas(named, npartitions=PARTS)
            models.append(LinearClassifier(n_replicas=2, n_epochs=2).fit(frame, labels, client=client))
    assert [field.name for field in models[1].model_.schema.fields] == ["site", "price"]
    assert models[0].coef_.tobytes() == models[1].coef_.tobytes()


N_ROWS = SIZE * PARTS
OBJECTS = pd.DataFrame(
    {
        "flag": [(True, None, False)[number % 3] for number in range(N_ROWS)],
        "tags": [None if number % 7 == 0 else [f"t{number % 5}", f"t{number % 3}"] for number in range(N_ROWS)],
        "cost": [None if number % 9 == 0 else decimal.Decimal(number % 11) / 4 for number in range(N_ROWS)],
    }
)
"""Columns of which Dask makes text."""
WAY_OUT = r'dask\.config\.set\(\{"dataframe\.convert-string": False\}\)'


def test_columns_of_objects_are_what_their_values_are(client: Client) -> None:
    here = LinearClassifier(n_replicas=2, n_epochs=2).fit(OBJECTS, LABELS)
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dd.from_pandas(OBJECTS, npartitions=PARTS)
        model = LinearClassifier(n_replicas=2, n_epochs=2).fit(frame, as_labels(), client=client)
    kinds = [(field.name, field.kind) for field in model.model_.schema.fields]
    assert kinds == [("flag", "categorical"), ("cost", "numeric"), ("tags", "list")]
    assert kinds == [(field.name, field.kind) for field in here.model_.schema.fields]
    np.testing.assert_array_equal(model.model_.vocabulary.ids, here.model_.vocabulary.ids)
    scores = model.decision_function(frame).compute(scheduler="sync")
    np.testing.assert_array_equal(scores, model.decision_function(OBJECTS))


def as_labels() -> Any:
    return dd.from_pandas(pd.Series(LABELS), npartitions=PARTS)


@pytest.mark.parametrize("column", ["flag", "tags"])
def test_text_that_dask_made_of_objects_is_not_scored_as_what_it_was_made_of(column: str) -> None:
    """Each would be a category that nobody has seen. Text that was learnt as such is."""
    texts = dd.from_pandas(OBJECTS[[column]], npartitions=PARTS)
    model = LinearClassifier(n_epochs=2).fit(OBJECTS[[column]], LABELS)
    with pytest.raises(DataError, match=f"column '{column}' of the frame holds .*{WAY_OUT}"):
        model.predict_proba(texts).compute(scheduler="sync")
    known = texts.compute()
    learnt = LinearClassifier(n_epochs=2).fit(known, LABELS)
    np.testing.assert_array_equal(learnt.predict(texts).compute(scheduler="sync"), learnt.predict(known))


def test_rows_to_validate_on_are_no_text_of_what_was_learnt(client: Client) -> None:
    texts = dd.from_pandas(OBJECTS[["flag"]], npartitions=PARTS)
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dd.from_pandas(OBJECTS[["flag"]], npartitions=PARTS)
    model = LinearClassifier(n_epochs=1, warm_start=True)
    with pytest.raises(DataError, match=f"column 'flag' of the frame holds .*{WAY_OUT}"):
        model.fit(frame, as_labels(), eval_set=(texts, as_labels()), client=client)
    model.fit(frame, as_labels(), client=client)
    with pytest.raises(DataError, match=f"column 'flag' of the frame holds .*{WAY_OUT}"):
        model.fit(texts, as_labels(), client=client)


def test_text_that_looks_like_objects_is_told_when_it_is_learnt(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    texts, model = dd.from_pandas(OBJECTS, npartitions=PARTS), LinearClassifier(n_epochs=1)
    with caplog.at_level("WARNING", "dfm.estimators"):
        model.fit(texts[["flag"]], as_labels(), client=client)
    assert "column 'flag' of the frame holds the texts True and False" in caplog.text
    with caplog.at_level("WARNING", "dfm.estimators"):
        model.fit(texts[["tags"]], as_labels(), client=client)
    assert "column 'tags' of the frame holds texts that look like lists" in caplog.text
    caplog.clear()
    in_brackets = dd.from_pandas(OBJECTS[["tags"]].assign(tags="[mobile]"), npartitions=PARTS)
    model.fit(in_brackets, as_labels(), client=client)
    assert "look like lists" not in caplog.text, "which are no list of Python"
    with pytest.raises(DataError, match=f"column 'tags' of the frame holds text in place of lists: .*{WAY_OUT}"):
        LinearClassifier(lists=["tags"]).fit(texts[["tags"]], as_labels(), client=client)
    named = LinearClassifier(n_epochs=1, categorical=["tags"]).fit(texts[["tags"]], as_labels(), client=client)
    assert [field.kind for field in named.model_.schema.fields] == ["categorical"]


def test_sparse_columns_of_a_collection_are_numbers_too(client: Client) -> None:
    sparse = FRAME.assign(price=pd.arrays.SparseArray(FRAME.price))
    models = [
        LinearClassifier(n_epochs=2).fit(dd.from_pandas(rows, npartitions=PARTS), as_labels(), client=client)
        for rows in (FRAME, sparse)
    ]
    assert models[0].coef_.tobytes() == models[1].coef_.tobytes()


def test_numbers_are_the_same_in_whatever_type_and_order_a_chunk_has_them(client: Client) -> None:
    names = ["a", "b", "c"]
    whole = pd.DataFrame(X.round(2), columns=names)
    parts = [whole.iloc[chunk * SIZE : (chunk + 1) * SIZE] for chunk in range(PARTS)]
    drifting = [parts[0], parts[1][["c", "a", "b"]], parts[2].astype({"b": object}), parts[3].astype({"b": str})]
    numbers = dd.from_pandas(pd.Series(X[:, 0]), npartitions=PARTS)
    models = [
        LinearRegressor(n_replicas=2, n_epochs=2).fit(collection(each, whole.iloc[:0]), numbers, client=client)
        for each in (parts, drifting)
    ]
    assert models[0].coef_.tobytes() == models[1].coef_.tobytes()


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "text": (lambda part: part.assign(price="dear"), r"chunk 2 of X: .*column 'price'"),
    "a column that is missing": (lambda part: part.drop(columns="price"), r"chunk 2 of X: there is no column 'price'"),
    "lists": (lambda part: part.assign(price=[[1.0]] * len(part)), r"chunk 2 of X: .*column 'price'"),
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("is_matrix", [True, False])
def test_a_chunk_that_does_not_fit_is_named_with_its_column(client: Client, how: str, is_matrix: bool) -> None:
    spoil, told = WRONG[how]
    frame = FRAME.astype(float) if is_matrix else FRAME
    parts = [frame.iloc[chunk * SIZE : (chunk + 1) * SIZE] for chunk in range(PARTS)]
    spoilt = [spoil(part) if number == 2 else part for number, part in enumerate(parts)]
    labels = dd.from_pandas(pd.Series(LABELS), npartitions=PARTS)
    with pytest.raises(DataError, match=told):
        LinearClassifier(n_replicas=2).fit(collection(spoilt, frame.iloc[:0]), labels, client=client)
    model = LinearClassifier(n_replicas=2, n_epochs=1).fit(collection(parts, frame.iloc[:0]), labels, client=client)
    with pytest.raises(DataError, match="chunk 2 of X"):
        model.predict(collection(spoilt, frame.iloc[:0])).compute(scheduler="sync")


MISSING: dict[str, Any] = {
    "NaN": pd.Series([0.0, np.nan] * 30),
    "infinity": pd.Series([0.0, np.inf] * 30),
    "None beside numbers": pd.Series([0, None] * 30, dtype=object),
    "None beside text": pd.Series(["0", None] * 30, dtype=object),
    "NA among integers": pd.Series([0, None] * 30, dtype="Int64"),
    "NA among truths": pd.Series([True, None] * 30, dtype="boolean"),
    "a category that is missing": pd.Series(["0", None] * 30, dtype="category"),
    "a moment that is missing": pd.Series(pd.to_datetime(["2026-01-01", None] * 30)),
    "NaN in an array": np.array([0.0, np.nan] * 30),
    "None in an array of objects": np.array([0, None] * 30, object),
    "NA in an array of objects": np.array([0, pd.NA] * 30, object),
    "NaN in an array of objects": np.array(["0", np.nan] * 30, object),
}
"""Labels of a chunk, of which the second is none."""


@pytest.mark.parametrize("what", MISSING)
@pytest.mark.parametrize("kind", [LinearClassifier, LinearRegressor])
def test_a_label_that_is_missing_is_told_with_its_chunk_and_row(client: Client, kind: Any, what: str) -> None:
    labels = MISSING[what]
    if isinstance(labels, np.ndarray):
        rows = da.from_array(X[: 2 * SIZE], chunks=(SIZE, 3))
        y = da.from_array(np.concatenate([labels[[0] * SIZE], labels]), SIZE)
    else:
        rows = dd.from_pandas(FRAME[: 2 * SIZE], npartitions=2)
        y = collection([pd.Series(labels.iloc[[0] * SIZE].to_numpy()), labels], labels.iloc[:0])
    with pytest.raises(DataError, match=r"chunk 1 of X: y holds \S+ in row 1, which is no label; drop such rows"):
        kind(n_replicas=1).fit(rows, y, client=client)


def test_a_missing_label_to_validate_on_is_the_eval_sets(client: Client) -> None:
    rows, y = da.from_array(X, chunks=(SIZE, 3)), da.from_array(np.arange(len(X)) % 2.0, SIZE)
    with pytest.raises(DataError, match="eval_set: chunk 3 of X: y holds nan in row 59, which is no label"):
        LinearClassifier().fit(rows, y, eval_set=(rows, da.where(da.arange(len(X)) < 239, y, np.nan)), client=client)


FRACTIONS: dict[str, Any] = {"numbers": X[:, 0], "as objects": X[:, 0].astype(object)}


@pytest.mark.parametrize("form", FRACTIONS)
def test_numbers_with_fractions_are_no_classes(client: Client, form: str) -> None:
    rows, y = da.from_array(X, chunks=(SIZE, 3)), da.from_array(FRACTIONS[form], SIZE)
    told = r"chunk \d of X: its y holds -.*, …, which are no classes \(Unknown label type: continuous\. Maybe you"
    with pytest.raises(DataError, match=told):
        LinearClassifier(n_epochs=1, n_replicas=1).fit(rows, y, client=client)
    many = da.from_array(np.arange(len(X)) % 40, SIZE)  # of a chunk alone scikit-learn would warn
    assert LinearClassifier(n_epochs=1, n_replicas=1).fit(rows, many, client=client).classes_.size == 40
    numbers = da.from_array(np.round(X[:, 0]).astype(object), SIZE)
    assert LinearClassifier(n_epochs=1, n_replicas=1).fit(rows, numbers, client=client).classes_.size > 2
    assert LinearRegressor(n_epochs=1, n_replicas=1).fit(rows, y, client=client).n_iter_ == 1


@pytest.mark.parametrize("kind", [LinearClassifier, LinearRegressor])
def test_labels_of_a_type_that_nothing_can_be_made_of_are_not_blamed_on_the_columns(client: Client, kind: Any) -> None:
    y = np.array([0, 1] * (len(X) // 2), object)
    y[-1] = "one"
    expected = "one type" if kind is LinearClassifier else "numbers"
    with pytest.raises(DataError, match=rf"chunk 3 of X: its y does not fit \(.*\); make it {expected} \(y.astype\)"):
        kind().fit(da.from_array(X, chunks=(SIZE, 3)), da.from_array(y, SIZE), client=client)


def test_labels_that_are_text_here_and_numbers_there_are_refused_with_the_chunks(client: Client) -> None:
    labels = [pd.Series([0, 1] * 30), pd.Series(["0", "1"] * 30), *[pd.Series([0, 1] * 30)] * 2]
    with pytest.raises(DataError, match=r"y holds text in chunk 1 and numbers in chunk 3: make it one type"):
        LinearClassifier().fit(
            dd.from_pandas(FRAME, npartitions=PARTS), collection(labels, pd.Series([0])), client=client
        )
    of_two_types = [pd.Series([0, 1] * 30), pd.Series([0.0, 1.0] * 30), *[pd.Series([False, True] * 30)] * 2]
    model = LinearClassifier(n_replicas=2, n_epochs=1)
    model.fit(dd.from_pandas(FRAME, npartitions=PARTS), collection(of_two_types, pd.Series([0])), client=client)
    assert model.classes_.tolist() == [0, 1]
