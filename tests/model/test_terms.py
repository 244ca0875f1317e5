"""Scores taken apart: terms that add up to them, candidates ranked by them, vectors whose products they are."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dfm.data.schema import resolve
from dfm.errors import DataError, SettingsError
from dfm.kernels.families.registry import FAMILIES, family_of
from dfm.model.fm_model import FMModel
from dfm.settings.tables import Schema
from tests.model.test_families import moved, of_family
from tests.support import small_models
from tests.support.small_models import EVERY_KIND, make_model, model_of_schema, random_table

ITEM = ["zone", "visits", "tags"]
"""Columns of candidates; with those of EVERY_KIND one cross is theirs, the other has a column of each side."""
APART = {**EVERY_KIND, "crosses": (("zone", "visits"),)}


@pytest.fixture(params=[(family, bits) for family in FAMILIES for bits in (18, 6)], ids=lambda p: f"{p[0]}-{p[1]}")
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FMModel:
    """Of every family, in a roomy hash table and in one where most values share their parameters."""
    family, bits = request.param
    monkeypatch.setattr(small_models, "HASH_BITS", bits)
    return moved(of_family(make_model(APART), family))


def rows_of(n_rows: int, seed: int = 3) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = random_table(n_rows, seed).drop_columns(["label"]).to_pylist()
    return rows


def test_terms_add_up_to_the_score(model: FMModel) -> None:
    for row in rows_of(40):
        explained = model.explain(row)
        score = float(model.decision_function([row])[0])
        total = explained.bias + sum(term.amount for term in explained.terms()) + explained.higher
        assert bool(explained.higher) != family_of(model.table.layout.family).is_pairwise
        assert explained.score == pytest.approx(total, abs=1e-9)
        assert explained.score == pytest.approx(score, abs=1e-5)
        assert explained.prediction == pytest.approx(model.predict_one(row), abs=1e-6)


def test_terms_are_named_by_column_and_raw_value() -> None:
    row = {"site": "site 1", "zone": 3, "visits": 7, "price": None, "age": 41.5, "tags": ["t1", "t4"]}
    explained = make_model(EVERY_KIND).explain(row)
    names = [name for term in explained.linear for name in term.names]
    expected = [
        "site=site 1",
        "zone=3",
        "visits=7",
        "price=(missing)",
        "age=41.5",
        "tags=t1",
        "tags=t4",
        "site&zone=site 1&3",
    ]
    assert names[: len(expected)] == expected
    assert explained.pairs[0].name == " x ".join(explained.pairs[0].names)
    amounts = [abs(term.amount) for term in explained.pairs]
    assert amounts == sorted(amounts, reverse=True)
    assert "more terms" in repr(explained)
    frame = explained.frame()
    assert frame.amount.sum() == pytest.approx(explained.score)


@pytest.mark.parametrize(("cross", "name"), [(("zone", "tags"), "3&{}"), (("tags", "zone"), "{}&3")])
def test_an_element_of_a_list_has_one_name_alone_and_in_crosses(cross: tuple[str, str], name: str) -> None:
    """Named as what is hashed: all that is missing alike, and the element of each list that stands in a cross."""
    model = make_model({"categorical": ("zone",), "lists": ("tags",), "crosses": (cross,)}, min_count=1)
    explained = model.explain({"zone": 3, "tags": ["t1", "t2", None, ""]})
    for prefix, suffix in ("tags=", "{}"), (f"{'&'.join(cross)}=", name):
        own = [term for term in explained.linear if term.name.startswith(prefix)]
        tags = ["t1", "t2", "(missing)", "(missing)"]
        assert [term.name for term in own] == [prefix + suffix.format(tag) for tag in tags][: len(own)]
        for term, tag in zip(own[:2], tags, strict=False):
            value = (3, tag) if cross[0] == "zone" else (tag, 3)
            weight = model.weights(*(("tags", [tag]) if prefix == "tags=" else ("&".join(cross), [value])))[0]
            assert term.amount == pytest.approx(weight / 2)
    for empty in ([], [None], [""], None):
        assert "tags=(missing)" in [term.name for term in model.explain({"zone": 3, "tags": empty}).linear]


def test_two_lists_in_a_cross_are_named_pair_by_pair() -> None:
    rows = pa.table({"left": [["a", "b"], ["c"]], "right": [["x", "y", "z"], ["x"]], "label": [1, 0]})
    schema = resolve(Schema(lists=("left", "right"), crosses=(("left", "right"),)), rows.column_names)
    model = model_of_schema(schema, rows)
    names = [term.name for term in model.explain(rows.slice(0, 1)).linear if term.name.startswith("left&right")]
    assert names == [f"left&right={left}&{right}" for left in "ab" for right in "xyz"]


def test_numbers_are_named_by_all_their_digits() -> None:
    model, row = make_model(EVERY_KIND), rows_of(1)[0]

    def named(column: str, value: Any) -> str:
        terms = model.explain({**row, column: value}).linear
        return next(term.name for term in terms if term.name.startswith(f"{column}="))

    names = [named("visits", value) for value in (20231234.0, 20231235.0, 0.1234567, 3.0, np.float32(0.1), True)]
    assert names == [f"visits={text}" for text in ("20231234", "20231235", "0.1234567", "3", "0.1", "true")]
    assert named("zone", 1e15) == "zone=1000000000000000"


def test_an_explanation_is_of_one_row() -> None:
    with pytest.raises(DataError, match="2 rows where one is expected"):
        make_model().explain(rows_of(2))


def test_candidates_are_ranked_by_the_scores_of_whole_rows(model: FMModel) -> None:
    context, *_ = rows_of(1, seed=8)
    items = [{name: row[name] for name in ITEM} for row in rows_of(50)]
    whole = [{**context, **item} for item in items]
    scores = model.decision_function(whole)
    known = pickle.loads(pickle.dumps(model.candidates(items)))
    asked = {name: value for name, value in context.items() if name not in ITEM}
    ranking = model.rank(asked, known, top=7)
    np.testing.assert_allclose(known.scores(model, asked), scores, atol=2e-6, rtol=1e-5)
    assert np.all(np.diff(ranking.scores) <= 0)
    np.testing.assert_allclose(np.sort(scores)[::-1][:7], ranking.scores, atol=2e-6, rtol=1e-5)
    np.testing.assert_allclose(ranking.predictions, model.predict([whole[at] for at in ranking.positions]), atol=1e-6)


def test_a_cross_of_both_sides_is_scored_by_whole_rows() -> None:
    model = make_model(EVERY_KIND)
    context, *_ = rows_of(1, seed=8)
    items = [{name: row[name] for name in ITEM} for row in rows_of(20)]
    asked = {name: value for name, value in context.items() if name not in ITEM}
    expected = model.decision_function([{**context, **item} for item in items])
    np.testing.assert_allclose(model.candidates(items).scores(model, asked), expected, atol=1e-6)
    with pytest.raises(SettingsError, match="the cross 'site&zone' has columns of contexts and of items"):
        model.vectors([asked], items)


def test_products_of_vectors_are_scores_but_for_a_number_of_each_context() -> None:
    for family in FAMILIES:
        if not family_of(family).is_pairwise:
            continue
        model = moved(of_family(make_model(APART), family))
        contexts, items = rows_of(5, seed=8), [{name: row[name] for name in ITEM} for row in rows_of(30)]
        asked = [{name: value for name, value in row.items() if name not in ITEM} for row in contexts]
        queries, vectors = model.vectors(asked, items)
        for context, query in zip(contexts, queries, strict=True):
            differences = model.decision_function([{**context, **item} for item in items]) - vectors @ query
            assert np.ptp(differences) < 5e-6


def test_terms_of_more_than_two_features_are_told_together_and_have_no_vectors() -> None:
    model, (row,) = moved(of_family(make_model(APART), "hofm")), rows_of(1)
    explained = model.explain(row)
    assert f"{explained.higher:+9.5f}  several values together" in repr(explained)
    assert explained.frame().amount.sum() == pytest.approx(explained.score)
    item = {name: row[name] for name in ITEM}
    with pytest.raises(SettingsError, match='of family "hofm" has terms of more than two features'):
        model.vectors([{name: value for name, value in row.items() if name not in ITEM}], [item])
    (alone,) = model.candidates([row]).scores(model, {})
    assert alone == pytest.approx(model.decision_function([row])[0])


def test_columns_are_on_one_side() -> None:
    model, row = make_model(APART), rows_of(1)[0]
    items = [{name: row[name] for name in ITEM}]
    with pytest.raises(DataError, match="column 'tags' is in the context and in the candidates"):
        model.rank({**row}, items)
    with pytest.raises(DataError, match="column 'site' is neither in the context nor in the candidates"):
        model.rank({"age": 3.0, "price": 1.0}, items)
    with pytest.raises(DataError, match="the candidates have no column of the model"):
        model.candidates([{"other": 1}])
    for top in (0, 2.5, "3", None):
        with pytest.raises(DataError, match=f"top = {top!r}; expected a whole number, at least 1"):
            model.rank({name: row[name] for name in ("site", "price", "age")}, items, top=top)
    with pytest.raises(DataError, match="2 rows of context where one is expected"):
        model.rank([{name: row[name] for name in ("site", "price", "age")}] * 2, items)


@pytest.mark.parametrize("fields", [APART, EVERY_KIND], ids=["sums", "whole rows"])
def test_of_no_candidates_none_is_ranked_and_no_context_is_told(fields: dict[str, Any]) -> None:
    model, row = make_model(fields), rows_of(1)[0]
    asked = {name: row[name] for name in ("site", "price", "age")}
    item = {name: row[name] for name in ITEM}
    frame = pa.Table.from_pylist([item]).to_pandas()
    for none in ([], {name: [] for name in ITEM}, pa.Table.from_pylist([item])[:0], frame.iloc[:0]):
        assert [len(each) for each in model.rank(asked, none)] == [0, 0, 0]
        assert len(model.candidates(none)) == 0
    for context in ([], {name: [] for name in asked}, pa.Table.from_pylist([asked])[:0]):
        with pytest.raises(DataError, match="0 rows of context where one is expected"):
            model.rank(context, [item])
    if fields is APART:
        queries, vectors = model.vectors([asked], frame.iloc[:0])
        assert vectors.shape == (0, queries.shape[1])


def test_a_bad_value_is_told_with_its_row() -> None:
    model, row = make_model(APART), rows_of(1)[0]
    items = [{name: row[name] for name in ITEM}, {"zone": 1, "visits": float("inf"), "tags": ["t1"]}]
    with pytest.raises(DataError, match="row 1: column 'visits': not finite"):
        model.candidates(items)


def test_a_model_of_a_matrix_explains_its_columns() -> None:
    from dfm.estimators import FMRegressor

    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    model = FMRegressor(n_factors=2).fit(X, X[:, 0] * X[:, 1])._model()
    row = dict(zip(model.schema.columns, [0.5, 0.0, -1.0], strict=True))
    explained = model.explain(row)
    assert explained.linear[0].name == f"{model.schema.columns[0]}=0.5"
    assert explained.prediction == pytest.approx(model.predict_one(row), abs=1e-6)
