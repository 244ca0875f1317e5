"""The columns of shards by all their footers: names, types, and which of them are no features."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dfm.data.arrow_types import column_kind, flat_schema, kind_of_field
from dfm.data.canonical import integer_text, is_integer
from dfm.data.derive import derived_columns
from dfm.data.parquet import HIVE_NULL, Shard, feature_schema, no_column, stored_schema
from dfm.data.schema import CATEGORY_KINDS, FEATURE_ROLES, ResolvedSchema, infer, resolve
from dfm.errors import SettingsError
from dfm.settings.tables import Schema

logger = logging.getLogger(__name__)
_THREADS = 16
_INDEX = re.compile(r"__null_dask_index__|__index_level_\d+__")
"""Names of indexes that pandas and Dask make up where a frame's index has none."""
_PATTERN = re.compile(r"[*?\[]")
_SCALARS = (*CATEGORY_KINDS, "float")
_MOST_NAMED = 20
HOLDS = "it holds "
"""The reason why a column of a type that no feature has is left out, in front of that type."""
_NAMELESS = ""
"""The name of a column that nobody can name, nor is read."""


@dataclass(frozen=True)
class Columns:
    """The columns of some shards.

    names: each as often as one shard has it. kinds: the word for its type in all shards (`encoding.column_kind`).
    set_aside: columns that become a feature only where they are named in full, with the reason. mixed: columns of
    integers in some shards and of floats in others, with the URLs of two of them.
    """

    names: list[str]
    kinds: dict[str, str]
    set_aside: dict[str, str]
    mixed: dict[str, tuple[str, str]] = field(default_factory=dict)


def resolve_shards(
    schema: Schema,
    shards: Sequence[Shard],
    storage_options: Mapping[str, Any] | None = None,
    tell: Callable[[Mapping[str, str]], None] | None = None,
) -> ResolvedSchema:
    """The schema on the columns of shards that hold rows.

    The first shard decides where the schema names all its columns; otherwise the footers of all. What is left out is
    passed to `tell`, with the reason: told in a warning unless that says otherwise.
    """
    known = columns_of(shards if _asks_for_all(schema) else shards[:1], storage_options)
    try:
        resolved = resolve_told(schema, known, tell or tell_left_out)
    except SettingsError:
        _check_first(schema, known, shards, storage_options)
        raise
    return dataclasses.replace(resolved, integers=_integers(resolved, known, shards, storage_options))


def _check_first(
    schema: Schema, known: Columns, shards: Sequence[Shard], storage_options: Mapping[str, Any] | None
) -> None:
    """DataError where the first shard, of known columns, lacks one that the schema names and another shard has."""
    lacking = [name for name in _named(schema) if name not in {*known.names, *schema.derive}]
    if not lacking:
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        for names in pool.map(lambda shard: feature_schema(shard, storage_options).names, shards[1:]):
            if found := next((name for name in lacking if name in names), ""):
                raise no_column(shards[0], found, known.names)


def _integers(
    resolved: ResolvedSchema, known: Columns, shards: Sequence[Shard], storage_options: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """Categories whose text is an integer, whatever its zeros: those that are stored as integers, for folders `hour=06`
    that follow, and those that such folders give.
    """
    categories = [entry.name for entry in resolved.fields if entry.kind == "categorical"]
    return tuple(
        column
        for column in categories
        if known.kinds.get(column) == "int" or _are_integer_folders(column, shards, storage_options)
    )


def _are_integer_folders(column: str, shards: Sequence[Shard], storage_options: Mapping[str, Any] | None) -> bool:
    """Whether folders give a column, integers in all of them, and some with zeros in front: `hour=06`. Shards that lie
    in no such folder hold numbers.

    What reads such folders when serving hands over the integer 6. Without zeros, the text of both is the same.
    """
    if not padded_folders([column], shards) or not all(map(is_integer, _folders(column, shards))):
        return False
    return _hold_numbers(column, [shard for shard in shards if column not in dict(shard.partition)], storage_options)


def padded_folders(columns: Iterable[str], shards: Sequence[Shard]) -> list[str]:
    """Those of some columns that folders of shards give as integers with zeros in front."""
    return [name for name in columns if any(integer_text(text) != text for text in _folders(name, shards))]


def _folders(column: str, shards: Sequence[Shard]) -> set[bytes]:
    """The values that folders give a column, those that are missing aside."""
    values = {dict(shard.partition).get(column, HIVE_NULL) for shard in shards} - {HIVE_NULL}
    return {value.encode() for value in values}


def _hold_numbers(column: str, shards: Sequence[Shard], storage_options: Mapping[str, Any] | None) -> bool:
    """Whether the column holds numbers in the files of all these shards, whose text has no zeros in front."""

    def holds_numbers(shard: Shard) -> bool:
        types = {entry.name: entry.type for entry in feature_schema(shard, storage_options)}
        kind = types.get(column, pa.string())
        return column_kind(kind.value_type if pa.types.is_dictionary(kind) else kind) in ("int", "float", "null")

    with ThreadPoolExecutor(_THREADS) as pool:
        return all(pool.map(holds_numbers, shards))


def tell_left_out(left_out: Mapping[str, str]) -> None:
    """Warn of columns that become no feature, each with the reason."""
    if not left_out:
        return
    shown = [f"{name!r} ({why})" for name, why in list(left_out.items())[:_MOST_NAMED]]
    more = f" and {len(left_out) - len(shown)} more" if len(left_out) > len(shown) else ""
    logger.warning("columns that become no feature, unless [schema] names them: %s%s", ", ".join(shown), more)


def resolve_told(
    schema: Schema, known: Columns, tell: Callable[[Mapping[str, str]], None] = tell_left_out
) -> ResolvedSchema:
    """The schema on some columns; what inference leaves out, and why, is passed to `tell`."""
    named = {*_named(schema)}
    aside = {name: why for name, why in known.set_aside.items() if name not in named}
    kinds = {name: kind for name, kind in known.kinds.items() if name not in aside}
    inferred = infer(schema, kinds)
    resolved = resolve(inferred, [name for name in known.names if name not in aside])
    if inferred is not schema:
        used = {*resolved.columns, schema.label, schema.weight, schema.time, schema.group}
        unfit = {name: f"{HOLDS}{kind}" for name, kind in kinds.items() if name not in used}
        tell({**aside, **unfit})
        _tell_of_mixed(known, (name for name in inferred.numeric if not _is_among(name, named)))
    else:
        tell({name: why for name, why in aside.items() if _is_among(name, named)})
    return resolved


def _is_among(name: str, patterns: Iterable[str]) -> bool:
    return any(name == each or fnmatch.fnmatchcase(name, each) for each in patterns)


def _tell_of_mixed(known: Columns, numbers: Iterable[str]) -> None:
    """Warn of columns that are taken for numbers although some shards hold integers, which are categories."""
    for name in numbers:
        if name in known.mixed:
            logger.warning(
                "column %r holds integers in %s, and floats in %s, as pandas writes integers with gaps: it is taken "
                "for a number. If its values are codes, write that shard with integers (Int64 of pandas has gaps), or "
                "name the features by role, this one in categorical",
                name,
                *known.mixed[name],
            )


def _asks_for_all(schema: Schema) -> bool:
    return not (schema.categorical or schema.numeric) or _has_patterns(schema)


def _has_patterns(schema: Schema) -> bool:
    return any(_PATTERN.search(name) for name in _named(schema))


def _named(schema: Schema) -> list[str]:
    """All names and patterns in a schema."""
    roles = [name for role in FEATURE_ROLES for name in getattr(schema, role)]
    crossed = [name for cross in schema.crosses for name in cross]
    sources = [name for entry in derived_columns(schema.derive) for name in entry.columns]
    return [
        *roles,
        *crossed,
        *sources,
        *schema.transforms,
        *(n for n in (schema.label, schema.weight, schema.time, schema.group) if n),
    ]


def columns_of(shards: Sequence[Shard], storage_options: Mapping[str, Any] | None = None) -> Columns:
    """The columns of shards, by all their footers. SettingsError where one is of two kinds that do not meet."""
    with ThreadPoolExecutor(_THREADS) as pool:
        stored = list(pool.map(lambda shard: stored_schema(shard, storage_options), shards))
    schemas = [flat_schema(schema) for schema in stored]
    names: Counter[str] = Counter()
    kinds: dict[str, tuple[str, Shard]] = {}
    numbers: dict[str, dict[str, str]] = {"int": {}, "float": {}}
    aside: dict[str, str] = {}
    for shard, schema, written in zip(shards, schemas, stored, strict=True):
        there = Counter([*schema.names, *(name for name, _ in shard.partition if name not in schema.names)])
        names |= there
        for name, kind in ((each.name, kind_of_field(each)) for each in _with_path(schema, shard)):
            kinds[name] = _agreed(name, kinds.get(name), (kind, shard))
            numbers.get(kind, {}).setdefault(name, shard.url)
        aside |= dict.fromkeys(_index_columns(written), "it is the index of the frame that was written")
        given = [name for name in shard.given if name not in schema.names]
        aside |= dict.fromkeys(given, "it stands in the path that was given, not below it")
    aside |= _missing_somewhere(names, shards, schemas)
    if _NAMELESS in names:
        del names[_NAMELESS], kinds[_NAMELESS]
        aside[_NAMELESS] = "it has no name"
    mixed = {name: (url, numbers["float"][name]) for name, url in numbers["int"].items() if name in numbers["float"]}
    return Columns([*names.elements()], {name: kind for name, (kind, _) in kinds.items()}, aside, mixed)


def _with_path(schema: pa.Schema, shard: Shard) -> list[pa.Field]:
    return [*schema, *(pa.field(name, pa.string()) for name, _ in shard.partition if name not in schema.names)]


def _missing_somewhere(
    names: Mapping[str, int], shards: Sequence[Shard], schemas: Sequence[pa.Schema]
) -> dict[str, str]:
    """Columns that some shards lack: a row without them cannot be read."""
    found: dict[str, str] = {}
    for shard, schema in zip(shards, schemas, strict=True):
        there = {*schema.names, *dict(shard.partition)}
        for name in names.keys() - there - found.keys():
            found[name] = f"{shard.url} has none"
    return {name: found[name] for name in names if name in found}


def _index_columns(schema: pa.Schema) -> list[str]:
    """Columns that pandas or Dask wrote for the index of a frame."""
    found = [name for name in schema.names if _INDEX.fullmatch(name)]
    try:
        described = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    except (ValueError, RecursionError):
        return found
    listed = described.get("index_columns") if isinstance(described, dict) else None
    names = listed if isinstance(listed, list) else []
    return [*found, *(name for name in names if isinstance(name, str) and name in schema.names)]


def _agreed(name: str, known: tuple[str, Shard] | None, other: tuple[str, Shard]) -> tuple[str, Shard]:
    """The kind that holds what both shards have. SettingsError where there is none."""
    if known is None or known[0] == other[0] or other[0] == "null":
        return known or other
    first, second = known[0], other[0]
    if first == "null":
        return other
    if first in _SCALARS and second in _SCALARS:
        # A number among texts stays a number: text that is none is refused, not learnt as a name.
        return ("float" if "float" in (first, second) else "string"), other[1]
    if {first, second} == {"date", "timestamp"}:
        return "timestamp", other[1]
    raise SettingsError(
        f"column {name!r} is {first} in {known[1].url}, but {second} in {other[1].url}, and one feature cannot be "
        "both; write one of them anew, leave it out of data, or name the columns to use in [schema]"
    )
