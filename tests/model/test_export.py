"""An exported model gives what `predict` gives, once its reader has hashed the rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dfm.export
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import resolve
from dfm.data.vocabulary import FeatureCounts, build_vocabulary, count_features
from dfm.errors import DataError, SettingsError, StorageError
from dfm.kernels.families.registry import FAMILIES
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from dfm.model import onnx_graph
from dfm.model.export import export, hashed_inputs
from dfm.model.fm_model import FMModel
from dfm.model.hashing_explained import ids_explained
from dfm.model.objective import Objective
from dfm.settings.tables import Schema
from dfm.storage.ownership import Ledger
from tests.support.extras import needs_onnx
from tests.support.small_models import EVERY_KIND, HASH_BITS, make_model, random_table

ROWS = {
    "site": ["a", "b", None, "never seen", "a"],
    "visits": [1, 7, None, 300, 2],
    "tags": [["x", "y"], [], None, ["z", "x", "y"], ["x"]],
}


@pytest.fixture(scope="module")
def model() -> FMModel:
    """A small model with a rare bucket, lists, and features without factors."""
    schema = resolve(Schema(categorical=("site",), numeric=("visits",), lists=("tags",)), ["label", *ROWS])
    blank = build_vocabulary(count_features(np.zeros(0, np.uint32), np.zeros(0, np.uint16), 3, 12), [], 12, 1, 1)
    layout = Layout("sgd", 3)
    encoder = FMModel(schema, "classification", blank, initialise(layout, blank.ids, 0, InitialValues(0)))
    seen = encoder.encode(
        pa.RecordBatch.from_pydict({name: [*column[:3], column[4]] * 2 for name, column in ROWS.items()})
    )
    counts = count_features(seen.rows.indices, seen.rows.fields, 3, 12)
    vocabulary = build_vocabulary(counts, [field.name for field in schema.fields], 12, 2, 4)
    assert 0 < vocabulary.n_factored < vocabulary.n_features
    table = initialise(layout, vocabulary.ids, vocabulary.n_factored, InitialValues(1, init_stdev=0.5))
    table.bias[0] = -0.3
    table.linear[:, 0] = np.random.default_rng(2).normal(size=len(table.linear))
    return FMModel(schema, "classification", vocabulary, table)


def score(model: FMModel, weights: dict[int, float], vectors: dict[int, np.ndarray], bias: float) -> np.ndarray:
    """Predictions from tables of hashed index to w and V, by the formula."""
    ids, fields, values = hashed_inputs(model, ROWS)
    rare = model.vocabulary.ids[model.vocabulary.rare]
    scores = []
    for row in range(len(ids)):
        known = [int(i if int(i) in weights else rare[f]) for i, f in zip(ids[row], fields[row], strict=True)]
        x = values[row].astype(np.float64)
        linear = sum(weights[i] * value for i, value in zip(known, x, strict=True) if value)
        scaled = np.array([vectors[i] * value for i, value in zip(known, x, strict=True)], np.float64)
        scores.append(bias + linear + 0.5 * float((scaled.sum(0) ** 2 - (scaled**2).sum(0)).sum()))
    return 1 / (1 + np.exp(-np.array(scores)))


def test_the_parquet_table_scores_as_the_model(model: FMModel, tmp_path) -> None:
    table = pq.read_table(export(model, "parquet", str(tmp_path))[0]).to_pylist()
    features = [row for row in table if row["id"] >= 0]
    bias = next(row["w"] for row in table if row["id"] < 0)
    weights = {row["id"]: row["w"] for row in features}
    vectors = {row["id"]: np.array(row["V"] or [0.0] * 3) for row in features}
    np.testing.assert_allclose(score(model, weights, vectors, bias), model.predict(ROWS), atol=1e-6)
    assert {row["field"] for row in features} == {"site", "visits", "tags"}


def test_the_parquet_table_has_whole_ids_and_names_where_data_are_given(model: FMModel) -> None:
    frame = dfm.export.parquet_table(model).to_pandas()
    assert (frame["id"].dtype, frame["count"].dtype) == (np.int64, np.int64)
    assert frame["id"].tolist() == [*model.vocabulary.ids.tolist(), -1]
    known = frame[frame["field"] == "visits"]
    assert known["token"].notna().all(), "buckets of numbers have names without data"
    assert frame[(frame["field"] == "site") & ~frame["rare"]]["token"].dropna().isin(["(missing)"]).all()
    names = dfm.export.TokenNames(model)
    names.add(pa.RecordBatch.from_pydict(ROWS))
    named = dfm.export.parquet_table(model, names).to_pandas()
    assert named["token"].tolist()[:-1] == [names.names[row] for row in range(model.vocabulary.n_features)]
    assert {"a", "x"} <= {*named["token"]}
    for row in named[named["field"] == "tags"].itertuples():
        if row.token not in ("(missing)", "(rare)"):
            assert row.w == model.weights("tags", [row.token])[0]


def hashed_by_hand(column: str, text: bytes, bits: int) -> int:
    """An id by the rule that the graph tells, with another library's hash."""
    xxhash = pytest.importorskip("xxhash", reason="the extra `dev` is not installed")
    return int(xxhash.xxh64_intdigest(text, seed=xxhash.xxh64_intdigest(column.encode())) % 2**bits)


def test_the_graph_says_how_ids_are_made_and_ids_made_so_are_right(model: FMModel, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    told = onnx.load(export(model, "onnx", str(tmp_path))[0]).doc_string
    for words in (
        "dfm.export.hashed_inputs",
        "id = XXH64(text, seed = XXH64(column name, seed = 0)) mod 2^12",
        "\n0. site: a category",
        "\n1. visits: the text is b'\\x00bucket 7'",
        "\n2. tags: every element is a value, of weight 1 / sqrt(number of elements)",
        "the bytes b'\\x00missing'",
    ):
        assert words in told, words
    ids, fields, _ = hashed_inputs(model, ROWS)
    assert ids[0, 0] == hashed_by_hand("site", b"a", 12)
    assert ids[2, 0] == hashed_by_hand("site", b"\x00missing", 12)
    assert ids[1, 1] == hashed_by_hand("visits", b"\x00bucket 8", 12)
    assert ids[3, fields[3] == 2].tolist() == [hashed_by_hand("tags", tag, 12) for tag in (b"z", b"x", b"y")]


def test_ids_of_crosses_are_made_as_the_graph_says() -> None:
    xxhash = pytest.importorskip("xxhash", reason="the extra `dev` is not installed")
    crossed = make_model(EVERY_KIND)
    told = ids_explained(crossed)
    assert "the ids of site and zone, made with 2^30 in place of the model's size" in told
    pair = [hashed_by_hand("site", b"site 1", 30), hashed_by_hand("zone", b"4", 30)]
    seed = xxhash.xxh64_intdigest(b"site&zone")
    by_hand = xxhash.xxh64_intdigest(b"".join(part.to_bytes(8, "little") for part in pair), seed=seed)
    assert crossed.tokens.ids("site&zone", [("site 1", 4)]).tolist() == [by_hand % 2**HASH_BITS]


@pytest.mark.parametrize("list_weight", ["sqrt", "one"])
def test_lists_and_missing_texts_are_made_as_the_graph_says(list_weight: str) -> None:
    """By the words: parted at the separator, texts that mean a missing value, and weights of elements."""
    own = {"missing": ("NA", "-"), "list_separator": "|", "list_weight": list_weight}
    schema = resolve(Schema(categorical=("site",), lists=("tags", "words"), **own), ["label", "site", "tags", "words"])
    rows: dict[str, Any] = {"site": ["NA"], "tags": [{"x": 3.0, "y": 4.0}], "words": ["a|-||b"]}
    listed = dataclasses.replace(make_model(), schema=schema, statistics={})
    told = ids_explained(listed)
    assert "A missing one (null, NaN, empty text; in columns of text and their lists 'NA', '-')" in told
    weighted = "or w where elements" if list_weight == "one" else "or w / sqrt(sum of the row's w^2) where elements"
    assert f"1. tags: every element is a value, of weight 1{'' if list_weight == 'one' else ' / sqrt(nu'}" in told
    assert told.count(weighted) == told.count("a text is parted at '|'") == 2
    ids, fields, values = hashed_inputs(listed, rows)
    by_hand = [("site", b"\x00missing"), ("tags", b"x"), ("tags", b"y")]
    by_hand += [("words", text) for text in (b"a", b"\x00missing", b"\x00missing", b"b")]
    assert ids[0].tolist() == [hashed_by_hand(*each, HASH_BITS) for each in by_hand]
    assert fields[0].tolist() == [0, 1, 1, 2, 2, 2, 2]
    expected = [1, 3, 4, 1, 1, 1, 1] if list_weight == "one" else [1, 0.6, 0.8, 0.5, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(values[0], expected, rtol=1e-6)


def test_xlearn_text_scores_as_the_model(model: FMModel, tmp_path) -> None:
    lines = Path(export(model, "xlearn", str(tmp_path))[0]).read_text().splitlines()
    read = dict(line.split(": ") for line in lines)
    weights = {int(name[2:]): float(text) for name, text in read.items() if name.startswith("i_")}
    vectors = {int(n[2:]): np.array(text.split(), float) for n, text in read.items() if n.startswith("v_")}
    np.testing.assert_allclose(score(model, weights, vectors, float(read["bias"])), model.predict(ROWS), atol=1e-6)


def test_libfm_text_scores_as_the_model(model: FMModel, tmp_path) -> None:
    path, ids_path = export(model, "libfm", str(tmp_path))
    ids = [int(line) for line in Path(ids_path).read_text().splitlines()]
    lines = Path(path).read_text().splitlines()
    assert lines[0] == "#global bias W0"
    assert lines[2] == "#unary interactions Wj"
    weights = dict(zip(ids, map(float, lines[3 : 3 + len(ids)]), strict=True))
    vectors = {i: np.array(line.split(), float) for i, line in zip(ids, lines[4 + len(ids) :], strict=True)}
    np.testing.assert_allclose(score(model, weights, vectors, float(lines[1])), model.predict(ROWS), atol=1e-6)


def run_onnx(url: str, model: FMModel, rows: Any) -> np.ndarray:
    """The predictions of an exported graph, by the definitions of its operators."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    ids, fields, values = hashed_inputs(model, rows)
    return ReferenceEvaluator(onnx.load(url)).run(None, {"ids": ids, "fields": fields, "values": values})[0]


@needs_onnx
def test_onnx_scores_as_the_model(model: FMModel, tmp_path) -> None:
    (url,) = export(model, "onnx", str(tmp_path))
    np.testing.assert_allclose(run_onnx(url, model, ROWS), model.predict(ROWS), atol=1e-6)


@needs_onnx
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_counts_a_category_that_stands_twice_in_a_row_once_with_both_values(
    model: FMModel, tmp_path, family: str
) -> None:
    layout = Layout("sgd", 3, family)
    fresh = initialise(layout, model.vocabulary.ids, model.vocabulary.n_factored, InitialValues(0, 0.5), 3)
    own = {name: array for name, array in model.table.arrays.items() if array.shape == fresh[name].shape}
    table = ParameterTable(layout, {**fresh.arrays, **own})
    for block in layout.own:
        table.values(block)[...] = np.random.default_rng(4).normal(size=len(table[block.name]))
    other = dataclasses.replace(model, table=table)
    tags = [["x", "x", "y"], ["x", "y", "x", "x"], ["q", "never", "seen", "x"], ["y", "y"], []]
    rows = {**ROWS, "tags": tags}  # two unknown tags are one feature as well, that of the rare
    assert not np.allclose(other.predict(rows), other.predict({**rows, "tags": [sorted(set(each)) for each in tags]}))
    (url,) = export(other, "onnx", str(tmp_path))
    np.testing.assert_allclose(run_onnx(url, other, rows), other.predict(rows), atol=1e-6)


def with_features(n_features: int, hash_bits: int, n_factors: int = 0, shift: int = 0) -> FMModel:
    """A regression on one column that answers w, which is another one for each feature."""
    ids = np.random.default_rng(n_features).choice(1 << 12, n_features, replace=False).astype(np.uint32)
    counts = FeatureCounts(
        np.sort(ids) << np.uint32(shift), np.arange(2, n_features + 2), np.zeros(n_features, np.uint16)
    )
    vocabulary = build_vocabulary(counts, ["c"], hash_bits, 2, 1)
    table = initialise(Layout("sgd", n_factors), vocabulary.ids, vocabulary.n_factored, InitialValues(0))
    table.linear[:, 0] = np.arange(1, vocabulary.n_features + 1)
    return FMModel(resolve(Schema(categorical=("c",)), ["label", "c"]), "regression", vocabulary, table)


@needs_onnx
@pytest.mark.parametrize("n_features", [1, 2, 700, 1 << 12])
@pytest.mark.parametrize("hash_bits", [12, 20])
def test_onnx_finds_every_index_and_no_other(tmp_path, n_features: int, hash_bits: int) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = with_features(n_features, hash_bits)
    graph = ReferenceEvaluator(onnx.load(export(model, "onnx", str(tmp_path))[0]))
    ids = np.append(np.arange(1 << 12), [(1 << hash_bits) - 1, -1])[:, None]
    values = np.full(ids.shape, 2.0, np.float32)
    (found,) = graph.run(None, {"ids": ids, "fields": np.zeros_like(ids), "values": values})
    lookup = RowLookup(model.vocabulary)
    rows = lookup.rows(ids[:-1, 0].astype(np.uint32), np.zeros(len(ids) - 1, np.uint16))
    np.testing.assert_array_equal(found, np.append(2.0 * (rows + 1.0), 0.0))


@needs_onnx
def test_onnx_is_as_large_as_the_features_are_many_in_whatever_space(tmp_path) -> None:
    small, large = (
        Path(export(with_features(700, bits, 4, bits - 12), "onnx", str(tmp_path / f"{bits}"))[0]).stat().st_size
        for bits in (12, 30)
    )
    assert abs(large - small) < 100
    assert large < 700 * (4 * (4 + 1 + 1 + 1 + 2)) + 5000


@needs_onnx
def test_onnx_beyond_the_limit_of_a_file_puts_its_large_arrays_into_a_second_one(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = make_model(), random_table(50)
    monkeypatch.setattr(onnx_graph, "LARGEST", 100)
    graph, data = (Path(url) for url in export(model, "onnx", str(tmp_path)))
    assert (graph.name, data.name) == ("model.onnx", "model.onnx.data")
    factors, axis = model.table.factor_weights.tobytes(), np.array([-1]).tobytes()
    assert factors in data.read_bytes()
    assert factors not in graph.read_bytes()
    assert axis in graph.read_bytes(), "runtimes refuse an axis that lies elsewhere"
    np.testing.assert_allclose(run_onnx(str(graph), model, rows), model.predict(rows), atol=1e-6)
    monkeypatch.undo()
    assert export(model, "onnx", str(tmp_path)) == [str(graph)]
    assert not data.exists(), "the numbers of the earlier graph belong to nothing any more"


@needs_onnx
def test_onnx_keeps_predictions_within_their_range(model: FMModel, tmp_path) -> None:
    clipped = dataclasses.replace(model, task="regression", clip=(-0.8, -0.5))
    (url,) = export(clipped, "onnx", str(tmp_path))
    prediction = run_onnx(url, clipped, ROWS)
    np.testing.assert_allclose(prediction, clipped.predict(ROWS), atol=1e-6)
    assert (prediction.min(), prediction.max()) == (np.float32(-0.8), np.float32(-0.5))


@needs_onnx
@pytest.mark.parametrize(("name", "task"), [("hinge", "classification"), ("poisson", "regression")])
def test_onnx_predicts_by_the_link_of_the_loss_and_text_that_cannot_is_refused(
    model: FMModel, tmp_path, name: str, task: str
) -> None:
    other = dataclasses.replace(model, task=task, loss=Objective.of(task, name).info)
    other.save(str(tmp_path / "model"))
    other = FMModel.load(str(tmp_path / "model"))
    prediction = run_onnx(export(other, "onnx", str(tmp_path))[0], other, ROWS)
    np.testing.assert_allclose(prediction, other.predict(ROWS), rtol=1e-5, atol=1e-6)
    assert not np.allclose(prediction, model.predict(ROWS))
    for kind in ("xlearn", "libfm"):
        if name == "poisson":
            with pytest.raises(SettingsError, match=r"cannot say that predictions are exp\(score\)"):
                export(other, kind, str(tmp_path))
        else:
            assert export(other, kind, str(tmp_path))


@pytest.mark.parametrize(("kind", "advice"), [("xlearn", "cut what xlearn_predict gives"), ("libfm", "libFM cuts its")])
def test_a_text_that_cannot_say_in_which_range_predictions_stay_warns(
    model: FMModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, advice: str
) -> None:
    number = dataclasses.replace(model, task="regression")
    assert export(number, kind, str(tmp_path))
    assert not caplog.records
    assert export(dataclasses.replace(number, clip=(-0.8, 5.0)), kind, str(tmp_path))
    (record,) = caplog.records
    assert f"stay within -0.8 to 5, which the text of {kind} cannot say: {advice}" in record.getMessage()


def test_an_export_that_was_overtaken_replaces_no_file_of_the_later_one(
    model: FMModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, other = Ledger.claim, make_model()

    def overtaken(*arguments: Any) -> str:
        monkeypatch.setattr(Ledger, "claim", claim)
        mark = claim(*arguments)
        export(other, "libfm", str(tmp_path))
        return mark

    export(other, "libfm", str(tmp_path / "alone"))
    monkeypatch.setattr(Ledger, "claim", overtaken)
    with pytest.raises(StorageError, match="another run claimed the same files"):
        export(model, "libfm", str(tmp_path))
    for path in (tmp_path / "alone").glob("[!.]*"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_rows_that_the_model_refuses_are_not_hashed_for_an_export_either():
    model = make_model(EVERY_KIND)
    rows = random_table(3).to_pylist()
    for bad in ({"price": "no number"}, {"age": float("inf")}):
        with pytest.raises(DataError, match=r"row 1: column '(price|age)'"):
            hashed_inputs(model, [rows[0], {**rows[1], **bad}, rows[2]])
