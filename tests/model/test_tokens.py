"""What a model knows of a value, by its name: weights and factors that score, buckets that hold their numbers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dfm.data.schema import resolve
from dfm.data.transforms import TRANSFORMS, NumberStatistics
from dfm.errors import DataError, SettingsError
from dfm.model.fm_model import FMModel
from dfm.model.inspection import describe_token, top_tokens
from dfm.model.rows import batches_of
from dfm.model.token_names import PER_UNIT, RARE, TokenNames
from dfm.model.tokens import MISSING
from dfm.settings.tables import Schema
from tests.support.small_models import EVERY_KIND, make_model, model_of_schema, random_table

NOTHING: dict[str, Any] = {"site": None, "zone": None, "visits": None, "price": None, "age": None, "tags": []}
KNOWN = NumberStatistics((-2.0, 1.0, 2.5), 0.0, 1.0)
NUMBERS = [*np.linspace(-9, 9, 73).tolist(), *(x * s for x in np.geomspace(1e-16, 1e30, 150) for s in (1, -1)), math.e]


@pytest.fixture(scope="module")
def model() -> FMModel:
    """Of every kind of field."""
    return make_model(EVERY_KIND)


def holds(name: str, x: float) -> bool:
    """Whether a bucket of this name holds a number, by the name alone, to its digits."""
    first, _, rest = name.partition(" ")
    near = 1e-3 * abs(x)
    if first == "below":
        return x < float(rest)
    if first == "about":
        return abs(x - float(rest)) <= 0.051 * abs(x) or abs(x) > 9e30
    if rest.startswith("to "):
        return float(first) - near <= x <= float(rest[3:]) + near
    if rest == "or more":
        return x >= float(first) - near
    return name == "any number" or abs(x - float(name)) < 1e-14


@pytest.mark.parametrize("name", [name for name, transform in TRANSFORMS.items() if transform.makes_buckets])
@pytest.mark.parametrize("known", [KNOWN, NumberStatistics(), NumberStatistics((3.0,))])
def test_the_name_of_a_bucket_says_which_numbers_it_holds(name: str, known: NumberStatistics) -> None:
    transform = TRANSFORMS[name]
    names = transform.names(known)
    assert len(names) == transform.n_codes(known)
    numbers = np.array(NUMBERS)
    codes = transform.codes(numbers, np.ones(len(numbers), np.bool_), known)
    for code, x in zip(codes, numbers, strict=True):
        assert holds(names[code], float(x)), (names[code], x)
    assert names[transform.codes(np.zeros(1), np.zeros(1, np.bool_), known)[0]] == "missing"


@pytest.mark.parametrize(
    ("column", "value", "row"),
    [
        ("site", "site 1", {"site": "site 1"}),
        ("site", None, {}),
        ("site", "never seen", {"site": "never seen"}),
        ("zone", 4, {"zone": 4}),
        ("visits", 12, {"visits": 12}),
        ("price", 2.0, {"price": 2.0}),
        ("tags", "t1", {"tags": ["t1"]}),
    ],
)
def test_weights_and_factors_are_those_that_score(model: FMModel, column: str, value: Any, row: dict[str, Any]) -> None:
    """Beside a row of nothing, whose tokens are known, by the formula of the machine."""
    given = {**NOTHING, **row}
    tokens = [(name, given[name] if name != "tags" else None) for name in ("site", "zone", "visits", "price", "tags")]
    tokens = [(name, value if name == column else own) for name, own in tokens]
    tokens.append(("site&zone", (given["site"], given["zone"])))
    tokens.append(("zone&visits", (given["zone"], given["visits"])))
    weights = [float(model.weights(name, [own])[0]) for name, own in tokens]
    factors = [model.factors(name, [own])[0].astype(float) for name, own in tokens]
    weights.append(float(model.weights("age", [None])[0]))
    factors.append(model.factors("age", [None])[0].astype(float))
    pairs = sum(float(left @ right) for left, right in itertools.combinations(factors, 2))
    score = float(model.table.bias_value) + sum(weights) + pairs
    assert float(model.decision_function(given)[0]) == pytest.approx(score, abs=1e-5)


def test_shapes_types_and_values_without_factors(model: FMModel) -> None:
    assert model.weights("site", []).shape == (0,)
    assert model.factors("site", np.array(["site 1", "never"])).shape == (2, 3)
    assert model.weights("zone", [4]).dtype == model.factors("zone", [4]).dtype == np.float32
    rows = model.parameter_rows("site", [f"site {number}" for number in range(1, 400)])
    without = model.factors("site", [f"site {number}" for number in range(1, 400)])[rows >= model.table.n_factored]
    assert len(without)
    assert not without.any()
    assert model.weights("age", [3.0, 4.0]).tolist() == [model.weights("age", [1.0])[0]] * 2


@pytest.mark.parametrize("kind", ["categorical", "lists"])
def test_a_number_whose_text_means_a_missing_value_is_a_value(kind: str) -> None:
    rows = pa.table({"a": ["0", "7", "b", None] * 5})
    rows = rows if kind == "categorical" else pa.table({"a": [[text] for text in rows["a"].to_pylist()]})
    known = model_of_schema(resolve(Schema(**{kind: ("a",)}), ["label", "a"]), rows, min_count=1)
    named = dataclasses.replace(known, schema=dataclasses.replace(known.schema, missing=("0",)))
    expected = known.parameter_rows("a", ["7", "0", None, "b"]).tolist()
    assert len({*expected}) == 4
    assert named.parameter_rows("a", ["7", 0, "0", "b"]).tolist() == expected
    np.testing.assert_array_equal(named.factors("a", [0, "7"]), known.factors("a", ["0", "7"]))
    names = TokenNames(named)
    values = ["7", 0, "b"] if kind == "categorical" else [["7"], [0], ["b"]]
    for batch in batches_of({"a": values}, ("a",), (), named.schema.missing):
        names.add(batch)
    assert {*names.names.values()} == {"7", "0", "b", MISSING}


def test_what_is_no_field_or_no_value_is_refused(model: FMModel) -> None:
    with pytest.raises(SettingsError, match="'label' is no field of the model; it has site, zone, visits"):
        model.weights("label", [1])
    with pytest.raises(DataError, match="'many' is no value of 'visits'"):
        model.weights("visits", [1, "many"])
    with pytest.raises(DataError, match="'site 1' is no value of the cross of site and zone; pass one value of each"):
        model.weights("site&zone", ["site 1"])
    for of_values in (model.weights, model.factors, model.parameter_rows):
        with pytest.raises(DataError, match=r"values = 's1' is one value of 'site'; pass a list of them: \['s1'\]"):
            of_values("site", "s1")


def test_top_tokens_have_the_names_of_the_rows(model: FMModel) -> None:
    rows = random_table(400)
    found = top_tokens(model, rows.to_batches(150), 1000)
    by_field: dict[str, dict[str, dict[str, Any]]] = {}
    for record in found:
        assert record["value"] not in by_field.setdefault(record["field"], {})
        by_field[record["field"]][record["value"]] = record
    assert list(by_field) == [entry.name for entry in model.schema.fields]
    assert len(found) == model.vocabulary.n_features, "these rows made the model, so every feature has a name"
    for name, record in by_field["site"].items():
        if name not in (RARE, MISSING):
            assert record["w"] == float(model.weights("site", [name])[0])
            assert record["factors"] == [x for x in model.factors("site", [name])[0].tolist() if record["factors"]]
    assert by_field["age"].keys() <= {PER_UNIT, MISSING, RARE}
    assert {"t0", "t1", "t2"} <= by_field["tags"].keys()
    assert "1 to 2.5" in by_field["price"]
    crossed = next(name for name in by_field["site&zone"] if name not in (RARE, MISSING) and MISSING not in name)
    site, zone = crossed.split(" & ")
    assert by_field["site&zone"][crossed]["w"] == float(model.weights("site&zone", [(site, zone)])[0])
    weights = [abs(record["w"]) for record in found if record["field"] == "site"]
    assert weights == sorted(weights, reverse=True)
    assert [r["value"] for r in top_tokens(model, rows.to_batches(), 2) if r["field"] == "site"] == [
        record["value"] for record in found if record["field"] == "site"
    ][:2]


def test_lists_in_crosses_are_named_by_element() -> None:
    crossed = make_model({"categorical": ("zone",), "lists": ("tags",), "crosses": (("tags", "zone"),)}, min_count=1)
    names = TokenNames(crossed)
    rows = random_table(400)
    for batch in rows.to_batches():
        names.add(batch)
    assert len(names.names) == crossed.vocabulary.n_features
    for row, name in names.of_field(crossed.schema.fields[2]).items():
        tag, zone = (None if part == MISSING else part for part in name.split(" & "))
        assert crossed.parameter_rows("tags&zone", [(tag, zone)])[0] == row


def test_a_token_on_the_command_line_may_be_a_number_or_a_cross(model: FMModel) -> None:
    bucket = describe_token(model, "price=1.5")
    assert (bucket["value"], bucket["treated_as"]) == ("1 to 2.5", "itself")
    assert bucket["factors"] == model.factors("price", [1.5])[0].tolist()
    assert describe_token(model, "price=")["value"] == MISSING
    crossed = describe_token(model, "site&zone=site 1&4")
    assert crossed["w"] == float(model.weights("site&zone", [("site 1", 4)])[0])
    with pytest.raises(SettingsError, match="'nothing=1' names no value: write COLUMN=VALUE"):
        describe_token(model, "nothing=1")


def test_the_name_of_a_missing_value_is_taken_for_one_unless_a_text_is_called_so(model: FMModel) -> None:
    for column in ("site", "zone", "visits", "price", "tags"):
        named, empty = describe_token(model, f"{column}={MISSING}"), describe_token(model, f"{column}=")
        assert named["seen"] > 0
        assert {**named, "token": ""} == {**empty, "token": ""}
    for cross, value in (("site&zone", f"{MISSING}&4"), ("zone&visits", f"4&{MISSING}")):
        found = describe_token(model, f"{cross}={value}")
        zone = describe_token(model, f"{cross}={value.replace(MISSING, '')}")
        assert found["index"] == zone["index"]
    rows = pa.table({"label": [0, 1, 0, 1], "site": [MISSING, None, None, "a"]})
    called_so = model_of_schema(resolve(Schema(categorical=("site",)), rows.column_names), rows)
    assert describe_token(called_so, f"site={MISSING}")["seen"] == 1
    assert describe_token(called_so, "site=")["seen"] == 2


def test_columns_of_a_matrix_are_their_own_tokens() -> None:
    from sklearn.datasets import make_classification

    from dfm.estimators import FMClassifier

    X, y = make_classification(200, 4, random_state=0)
    fitted = FMClassifier(n_factors=2, n_epochs=2).fit(X, y).model_
    columns = fitted.schema.columns
    np.testing.assert_array_equal([fitted.weights(name, [1.0])[0] for name in columns], fitted.table.linear_weights)
    assert sorted(TokenNames(fitted).names.values()) == sorted(columns)


def test_a_model_without_features_names_nothing(model: FMModel) -> None:
    empty = dataclasses.replace(
        model.vocabulary,
        ids=model.vocabulary.ids[:0],
        counts=model.vocabulary.counts[:0],
        fields=model.vocabulary.fields[:0],
        rare=np.full_like(model.vocabulary.rare, -1),
        n_factored=0,
    )
    names = TokenNames(dataclasses.replace(model, vocabulary=empty))
    names.add(random_table(5).to_batches()[0])
    assert names.names == {}
