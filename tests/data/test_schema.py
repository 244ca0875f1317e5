"""A schema meets the columns of a data set: what becomes which field, and which misfits are refused."""

from __future__ import annotations

import json
import pickle

import pytest

from dfm.data.schema import Field, ResolvedSchema, Schema, infer, resolve
from dfm.errors import SettingsError

CRITEO = ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
COLUMNS = ["day", "label", "w", "C1", "C2", "I1", "I2", "genres", "price"]
EVERYTHING = Schema(
    weight="w",
    time="day",
    label_positive=["click"],
    categorical=["C*"],
    numeric=["I*", "price"],
    transforms={"I2": "quantile", "price": "raw"},
    lists="genres",
    crosses=[["C2", "C1"], ["C1", "I2"]],
)


def names(resolved: ResolvedSchema) -> list[str]:
    return [entry.name for entry in resolved.fields]


def test_the_criteo_schema_has_39_fields_in_the_order_of_job_file_and_data():
    resolved = resolve(Schema(categorical=["C*"], numeric=["I*"]), CRITEO)
    assert names(resolved) == [f"C{n}" for n in range(1, 27)] + [f"I{n}" for n in range(1, 14)]
    assert [entry.index for entry in resolved.fields] == list(range(39))
    assert {entry.transform for entry in resolved.fields if entry.kind == "numeric"} == {"auto"}


def test_every_kind_of_field_has_its_columns_and_transform():
    resolved = resolve(EVERYTHING, COLUMNS)
    assert resolved.fields == (
        Field("C1", "categorical", ("C1",), "", 0),
        Field("C2", "categorical", ("C2",), "", 1),
        Field("I1", "numeric", ("I1",), "auto", 2),
        Field("I2", "numeric", ("I2",), "quantile", 3),
        Field("price", "numeric", ("price",), "raw", 4),
        Field("genres", "list", ("genres",), "sqrt", 5),
        Field("C2&C1", "cross", ("C2", "C1"), "", 6),
        Field("C1&I2", "cross", ("C1", "I2"), "", 7),
    )
    assert resolved.columns == ("C1", "C2", "I1", "I2", "price", "genres")
    assert {entry.name for entry in resolved.fields if entry.bucketed} == {"I1", "I2"}
    assert (resolved.label, resolved.weight, resolved.time) == ("label", "w", "day")


def test_a_resolved_schema_survives_json_and_pickle():
    resolved = resolve(EVERYTHING, COLUMNS)
    assert ResolvedSchema.from_dict(json.loads(json.dumps(resolved.to_dict()))) == resolved
    assert pickle.loads(pickle.dumps(resolved)) == resolved
    assert Schema.from_dict(json.loads(json.dumps(EVERYTHING.to_dict()))) == EVERYTHING


def test_a_full_name_beats_a_pattern_and_patterns_pass_over_label_weight_and_time():
    schema = Schema(weight="w", time="day", categorical=["*"], numeric=["price", "I1"], lists=["genres"])
    resolved = resolve(schema, COLUMNS)
    assert names(resolved) == ["C1", "C2", "I2", "price", "I1", "genres"]


def test_the_order_of_the_job_file_decides_and_repeats_count_once():
    resolved = resolve(Schema(categorical=["C2", "C*", "C1"]), COLUMNS)
    assert names(resolved) == ["C2", "C1"]


def test_a_column_whose_name_looks_like_a_pattern_is_found_by_that_name():
    resolved = resolve(Schema(categorical=["a[b]"]), ["label", "a[b]", "ab"])
    assert names(resolved) == ["a[b]"]


def test_patterns_in_transforms_apply_and_full_names_win_whatever_their_order():
    columns = ["label", "I1", "I2", "I3"]
    schema = Schema(numeric=["I*"], transforms={"I2": "raw", "I*": "quantile"})
    assert [entry.transform for entry in resolve(schema, columns).fields] == ["quantile", "raw", "quantile"]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"categorical": ["C*", "label"]}, r"schema\.label and in schema\.categorical.*predict itself"),
        (
            {"categorical": ["C1"], "numeric": ["C1"]},
            r'"C1" is in schema\.categorical and in schema\.numeric',
        ),
        (
            {"categorical": ["C*"], "numeric": ["?1"]},
            r'"C1" is in schema\.categorical and in schema\.numeric',
        ),
        ({"categorical": ["C*"], "lists": ["day"], "time": "day"}, r"schema\.time and in schema\.lists"),
        ({"categorical": ["genre"]}, r'schema\.categorical names "genre".*Did you mean "genres"'),
        ({"categorical": ["X*"]}, r'schema\.categorical names "X\*".*There are: day, w, C1'),
        ({"label": "lable", "categorical": ["C*"]}, r'schema\.label names "lable".*Did you mean "label"'),
        ({"weight": "weight", "categorical": ["C*"]}, r'schema\.weight names "weight"'),
        ({"categorical": ["label*"]}, r"leaves no feature"),
        ({}, r"leaves no feature"),
        ({"categorical": ["C*"], "transforms": {"C1": "raw"}}, r"schema\.transforms\.C1.*C1 is not numeric"),
        ({"numeric": ["I*"], "transforms": {"I11": "raw"}}, r'schema\.transforms names "I11".*Did you mean'),
        ({"categorical": ["C*"], "crosses": [["C1", "C3"]]}, r'schema\.crosses names "C3".*Did you mean "C'),
        ({"categorical": ["C*"], "crosses": [["C1", "label"]]}, r'names "label", which is not a feature'),
        ({"categorical": ["C*"], "crosses": [["C1", "C1"]]}, r"names a column twice"),
        ({"categorical": ["C*"], "crosses": [["C1", "C2"], ["C2", "C1"]]}, r"is there twice"),
        (
            {"categorical": ["C1"], "numeric": ["I1"], "numeric_transform": "raw", "crosses": [["C1", "I1"]]},
            r'names "I1", which is numeric, raw.*only categories can be combined',
        ),
    ],
)
def test_what_does_not_fit_the_columns_is_refused_with_the_reason(schema, said):
    with pytest.raises(SettingsError, match=said):
        resolve(Schema.from_dict(schema), COLUMNS)


def test_two_columns_of_one_name_are_refused_only_where_they_are_used():
    columns = ["label", "C1", "x", "x"]
    assert names(resolve(Schema(categorical=["C1"]), columns)) == ["C1"]
    with pytest.raises(SettingsError, match='2 columns called "x"'):
        resolve(Schema(categorical=["x"]), columns)


KINDS = {
    "label": "int",
    "when": "int",
    "shop": "string",
    "device": "dictionary",
    "mobile": "bool",
    "nothing": "null",
    "count": "int",
    "price": "float",
    "genres": "list",
    "stamp": "timestamp",
}


def test_types_choose_the_features_of_a_schema_that_names_none():
    inferred = infer(Schema(time="when"), KINDS)
    assert inferred.categorical == ("shop", "device", "mobile", "nothing", "count")
    assert (inferred.numeric, inferred.lists) == (("price",), ("genres",))
    resolved = resolve(inferred, list(KINDS))
    assert len(resolved.fields) == 7


def test_a_transform_makes_a_column_numeric_and_a_named_list_is_not_named_twice():
    inferred = infer(Schema(time="when", transforms={"coun*": "quantile"}, lists=["gen*"]), KINDS)
    assert inferred.numeric == ("count", "price")
    assert "count" not in inferred.categorical
    assert inferred.lists == ("gen*",)
    assert resolve(inferred, list(KINDS)).fields[-1].name == "genres"


@pytest.mark.parametrize("chosen", [{"categorical": ["shop"]}, {"numeric": ["price"]}])
def test_a_schema_that_names_features_is_left_alone(chosen):
    schema = Schema.from_dict(chosen)
    assert infer(schema, KINDS) == schema
