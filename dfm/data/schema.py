"""From the [schema] table of a job to the fields of a concrete data set: which column becomes which feature.

The record of the table is `Schema` (its knobs stand in `dfm.settings`). `infer` fills it from column types
where it names no features, `resolve` matches it with the columns found. Fields are numbered in a fixed order:
categorical, numeric, lists, crosses; within each in the order of the job file, and what one pattern matches
in the order of the data's columns.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfm.data.derive import Derived, derived_columns
from dfm.data.transforms import TRANSFORMS
from dfm.errors import SettingsError
from dfm.settings.tables import Schema

__all__ = ["Field", "ResolvedSchema", "Schema", "check_once", "infer", "resolve"]

FEATURE_ROLES = ("categorical", "numeric", "lists")
CATEGORY_KINDS = ("int", "string", "dictionary", "bool", "null")
WIDENED, SHORTEST = "widened", "shortest"
NUMBER_FORMS = (WIDENED, SHORTEST)
"""Numbers as they are, widened to float64 (models that do not say), or by their shortest text (see `canonical`)."""
CROSS_SIGN = "&"
"""Joins the columns of a cross to its field name."""


@dataclass(frozen=True, slots=True)
class Field:
    """One feature column of the model: a column of the data, or a cross of several.

    kind: "categorical", "numeric", "list", "cross" of several columns, or "vector" (the columns of a numeric
    matrix, one feature each). transform: of a numeric field one of TRANSFORMS, of a list its weight ("sqrt" or
    "one"), else "". index: the field's number, 0 first.
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    transform: str
    index: int

    @property
    def kind_text(self) -> str:
        """The kind, with the transform where there is one: "numeric, quantile"."""
        return f"{self.kind}, {self.transform}" if self.transform else self.kind

    @property
    def bucketed(self) -> bool:
        """A numeric field whose feature is a category (a bucket) instead of a value."""
        return self.kind == "numeric" and TRANSFORMS[self.transform].makes_buckets


@dataclass(frozen=True, slots=True)
class ResolvedSchema:
    """A schema without patterns.

    Empty `weight` or `time`: the data has none. Empty `label_positive`: labels are numbers.
    `numbers`: the form in which numbers are compared and hashed, one of NUMBER_FORMS; a model keeps its own.
    `integers`: columns of categories whose text is an integer, whatever its zeros: folders `hour=06` are the hour 6.
    """

    label: str
    label_positive: tuple[str, ...]
    weight: str
    time: str
    quantile_buckets: int
    fields: tuple[Field, ...]
    numbers: str = SHORTEST
    missing: tuple[str, ...] = ()
    nan: str = "error"
    list_separator: str = ""
    derived: tuple[Derived, ...] = ()
    integers: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read for the features, each once, in field order."""
        return tuple(self.sources(column for entry in self.fields for column in entry.columns))

    @property
    def reads_values_specially(self) -> bool:
        """Whether it says more of values than models could up to format 4."""
        lists = {entry.name for entry in self.fields if entry.kind == "list"}
        crossed = any(lists & set(entry.columns) for entry in self.fields if entry.kind == "cross")
        return crossed or bool(self._late_values())

    def sources(self, columns: Iterable[str]) -> list[str]:
        """The columns to read for some columns of the fields."""
        made = {entry.name: entry.columns for entry in self.derived}
        return list(dict.fromkeys(source for column in columns for source in made.get(column, (column,))))

    def _late_values(self) -> dict[str, Any]:
        """The values that are not at their defaults, JSON-ready: schemas that do not use it are written as ever."""
        derived = [[entry.name, entry.function, list(entry.columns)] for entry in self.derived]
        values = {
            "missing": list(self.missing),
            "nan": "" if self.nan == "error" else self.nan,
            "list_separator": self.list_separator,
            "derived": derived,
        }
        return {name: value for name, value in values.items() if value}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values that `from_dict` takes back."""
        fields = [
            {
                "name": entry.name,
                "kind": entry.kind,
                "columns": list(entry.columns),
                "transform": entry.transform,
            }
            for entry in self.fields
        ]
        return {
            "label": self.label,
            "label_positive": list(self.label_positive),
            "weight": self.weight,
            "time": self.time,
            "quantile_buckets": self.quantile_buckets,
            **({"numbers": self.numbers} if self.numbers != WIDENED else {}),
            **self._late_values(),
            **({"integers": list(self.integers)} if self.integers else {}),
            "fields": fields,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResolvedSchema:
        """The schema that `to_dict` wrote; a field's place in the list is its index."""
        fields = tuple(
            Field(entry["name"], entry["kind"], tuple(entry["columns"]), entry["transform"], index)
            for index, entry in enumerate(values["fields"])
        )
        given = {"numbers": WIDENED, **values, "fields": fields}
        for name in ("label_positive", "missing", "integers"):
            given[name] = tuple(values.get(name, ()))
        given["derived"] = tuple(Derived(name, word, tuple(read)) for name, word, read in values.get("derived", ()))
        return cls(**given)


def infer(schema: Schema, kinds: Mapping[str, str]) -> Schema:
    """The schema with features chosen by type where it names neither categorical nor numeric columns.

    kinds: column to "int", "float", "string", "dictionary", "bool", "null" or "list". Floats become numeric,
    and so does what schema.transforms names; lists become lists; the other five kinds categorical. Columns of
    any further kind, and label, weight, time and group, become no feature.
    """
    if schema.categorical or schema.numeric:
        return schema
    kinds = {**kinds, **{entry.name: entry.kind for entry in derived_columns(schema.derive)}}
    listed = set(_match_all(schema, "lists", list(kinds)))
    free = [column for column in kinds if column not in {*_reserved(schema), *listed}]
    scalars = [column for column in free if kinds[column] in (*CATEGORY_KINDS, "float")]
    numeric = [column for column in scalars if kinds[column] == "float" or is_named(column, schema.transforms)]
    return dataclasses.replace(
        schema,
        categorical=tuple(column for column in scalars if column not in numeric),
        numeric=tuple(numeric),
        lists=(*schema.lists, *(column for column in free if kinds[column] == "list")),
    )


def resolve(schema: Schema, columns: Sequence[str]) -> ResolvedSchema:
    """The fields of data with these columns. SettingsError where schema and columns do not fit each other.

    A column named in full keeps that role although patterns of other roles match it too, and patterns pass
    over label, weight, time and group; so `categorical = ["*"]`, `numeric = ["price"]` means what it says.
    """
    _check_special_columns(schema, columns)
    derived = derived_columns(schema.derive)
    _check_derived(schema, derived, columns)
    columns = [*columns, *(entry.name for entry in derived)]
    members = _members(schema, columns)
    for entry in derived:
        if not any(entry.name in named for named in members.values()):
            members["numeric" if entry.kind == "float" else "categorical"].append(entry.name)
    transforms = _transforms(schema, columns, members["numeric"])
    specifications = [
        *((column, "categorical", (column,), "") for column in members["categorical"]),
        *((column, "numeric", (column,), transforms[column]) for column in members["numeric"]),
        *((column, "list", (column,), schema.list_weight) for column in members["lists"]),
    ]
    if not specifications:
        raise SettingsError(
            "the schema leaves no feature: expected at least one column in schema.categorical, "
            f"schema.numeric or schema.lists. The data has: {_shown(columns)}."
        )
    singles = [Field(*entry, index) for index, entry in enumerate(specifications)]
    check_once(columns, [*_reserved(schema), *(entry.name for entry in singles)])
    crosses = _crosses(schema, columns, singles)
    return ResolvedSchema(
        schema.label,
        schema.label_positive,
        schema.weight,
        schema.time,
        schema.quantile_buckets,
        (*singles, *crosses),
        SHORTEST,
        schema.missing,
        schema.nan,
        schema.list_separator,
        derived,
    )


def _check_derived(schema: Schema, derived: Sequence[Derived], columns: Sequence[str]) -> None:
    for entry in derived:
        if entry.name in columns:
            raise SettingsError(
                f"schema.derive.{entry.name} has the name of a column that the data have; give it another name."
            )
        for column in entry.columns:
            if column not in columns:
                others = _without_labels(schema, columns)
                raise SettingsError(_unknown(f"schema.derive.{entry.name}", column, others))


def _reserved(schema: Schema) -> dict[str, str]:
    """Column to role of the columns that are no features."""
    roles = {schema.label: "label", schema.weight: "weight", schema.time: "time", schema.group: "group"}
    return {column: role for column, role in roles.items() if column}


def _check_special_columns(schema: Schema, columns: Sequence[str]) -> None:
    for column, role in _reserved(schema).items():
        if column not in columns:
            raise SettingsError(_unknown(f"schema.{role}", column, columns))


def _members(schema: Schema, columns: Sequence[str]) -> dict[str, list[str]]:
    """The columns of each feature role, in field order."""
    owners = _named_in_full(schema, columns)
    members: dict[str, list[str]] = {}
    by_pattern: dict[str, str] = {}
    for role in FEATURE_ROLES:
        matched = _match_all(schema, role, columns)
        members[role] = [column for column in matched if owners.get(column, role) == role]
        for column in members[role]:
            if by_pattern.setdefault(column, role) != role:
                raise SettingsError(_two_roles(column, by_pattern[column], role))
    return members


def _named_in_full(schema: Schema, columns: Sequence[str]) -> dict[str, str]:
    """Column to role of every column that the schema names without a pattern; each may have one role only."""
    owners = _reserved(schema)
    for role in FEATURE_ROLES:
        for name in getattr(schema, role):
            if owners.get(name) in ("time", "group") and role != "lists":
                owners[name] = role  # it orders or groups the rows, and may be a feature as well
            if name in columns and owners.setdefault(name, role) != role:
                raise SettingsError(_two_roles(name, owners[name], role))
    return owners


def _match_all(schema: Schema, role: str, columns: Sequence[str]) -> list[str]:
    """Every column that one of the patterns of a role names, once, in the order of the patterns."""
    found: dict[str, None] = {}
    for pattern in getattr(schema, role):
        matched = _match(pattern, columns)
        if not matched:
            raise SettingsError(_unknown(f"schema.{role}", pattern, _without_labels(schema, columns)))
        found.update(dict.fromkeys(matched))
    return list(found)


def _without_labels(schema: Schema, columns: Sequence[str]) -> list[str]:
    """The columns that may become features."""
    return [column for column in columns if column not in (schema.label, schema.weight)]


def _match(pattern: str, columns: Sequence[str]) -> list[str]:
    """A column of just this name (it may hold glob characters), else the columns that match it as a glob."""
    if pattern in columns:
        return [pattern]
    return [column for column in columns if fnmatch.fnmatchcase(column, pattern)]


def is_named(column: str, patterns: Iterable[str]) -> bool:
    """Whether one of the names, or of the patterns, is that of the column."""
    return any(column == pattern or fnmatch.fnmatchcase(column, pattern) for pattern in patterns)


def _transforms(schema: Schema, columns: Sequence[str], numeric: Sequence[str]) -> dict[str, str]:
    """Transform of each numeric column; a full name beats a pattern, and the later of two patterns wins."""
    chosen = dict.fromkeys(numeric, schema.numeric_transform)
    for pattern, transform in sorted(schema.transforms.items(), key=lambda entry: entry[0] in columns):
        if not (matched := _match(pattern, columns)):
            raise SettingsError(_unknown("schema.transforms", pattern, _without_labels(schema, columns)))
        affected = [column for column in matched if column in chosen]
        if not affected:
            raise SettingsError(
                f'schema.transforms.{pattern} = "{transform}" has no effect: '
                f"{_shown(matched)} is not numeric. Name it in schema.numeric, or leave the transform out."
            )
        chosen.update(dict.fromkeys(affected, transform))
    return chosen


def check_once(names: Sequence[str], wanted: Iterable[str] | None = None) -> None:
    """SettingsError where a table has two columns of one name, among those that are wanted (None: all)."""
    counts = collections.Counter(names)
    for name in counts if wanted is None else wanted:
        if counts[name] > 1:
            raise SettingsError(
                f'the data has {counts[name]} columns called "{name}", so the schema cannot tell which is meant. '
                "Rename all but one of them."
            )


def _crosses(schema: Schema, columns: Sequence[str], singles: Sequence[Field]) -> list[Field]:
    known = {entry.name: entry for entry in singles}
    fields: list[Field] = []
    seen: set[frozenset[str]] = set()
    for cross in schema.crosses:
        _check_cross(cross, columns, known)
        name = CROSS_SIGN.join(cross)
        if frozenset(cross) in seen or any(entry.name == name for entry in (*singles, *fields)):
            raise SettingsError(
                f"schema.crosses = {list(cross)} is there twice, or another field is called {name} already: "
                "expected every combination once. Leave one out."
            )
        seen.add(frozenset(cross))
        fields.append(Field(name, "cross", cross, "", len(singles) + len(fields)))
    return fields


def _check_cross(cross: Sequence[str], columns: Sequence[str], known: Mapping[str, Field]) -> None:
    for column in cross:
        if column not in columns:
            raise SettingsError(_unknown("schema.crosses", column, list(known)))
        own = known.get(column)
        if own is None or not (own.kind in ("categorical", "list") or own.bucketed):
            role = "not a feature" if own is None else f"{own.kind}, {own.transform}"
            bucketed = " or ".join(name for name, transform in TRANSFORMS.items() if transform.makes_buckets)
            raise SettingsError(
                f'schema.crosses names "{column}", which is {role}: expected a column of categories or lists, or '
                f"a numeric one with transform {bucketed}, "
                "because only categories can be combined."
            )
    if len(set(cross)) < len(cross):
        raise SettingsError(f"schema.crosses = {list(cross)} names a column twice. Name each once.")


def _two_roles(column: str, first: str, second: str) -> str:
    reason = " The label as a feature would predict itself." if first == "label" else ""
    return (
        f'the column "{column}" is in schema.{first} and in schema.{second}: expected one role per '
        f"column.{reason} Take it out of one of them; a column named in full beats a pattern."
    )


def _unknown(where: str, name: str, columns: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    hint = f'Did you mean "{nearest[0]}"?' if nearest else f"There are: {_shown(columns)}."
    return f'{where} names "{name}", which no column of the data matches. {hint}'


def _shown(columns: Sequence[str], most: int = 20) -> str:
    more = f" and {len(columns) - most} more" if len(columns) > most else ""
    return (", ".join(columns[:most]) or "no column") + more
