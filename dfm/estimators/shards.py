"""Fits on Parquet shards: read into this process, or trained as a job on a cluster."""

from __future__ import annotations

import decimal
import functools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.arrow_types import decoded, is_number, is_text, plain, shown, type_of_values
from dfm.data.canonical import value_text
from dfm.data.columns import LOOKED_UP, parse_numbers
from dfm.data.derive import without_missing
from dfm.data.duplicates import check_named_once
from dfm.data.footers import HOLDS, resolve_shards
from dfm.data.joining import joined, joined_texts, without_dictionary
from dfm.data.parquet import Batch, Shard, Unit, feature_schema, find_shards, naming_shard, read_unit
from dfm.data.schema import ResolvedSchema, Schema
from dfm.errors import DataError, SettingsError
from dfm.estimators.features import TableOptions, is_path
from dfm.estimators.labels import NUMBERS, TEXTS, one_class_only
from dfm.estimators.notes import naming_parameters, tell_left_out
from dfm.model.rows import numeric_of
from dfm.training.plan import plan_reading

_NUMBERS = (bool, int, float, decimal.Decimal)


def paths_of(given: Any) -> list[str]:
    """A path or paths, as a list."""
    return [os.fspath(given)] if isinstance(given, str | os.PathLike) else [os.fspath(path) for path in given]


@dataclass(frozen=True)
class Wanted:
    """Columns to read, in order (None: all that the first shard has), and how.

    numbers: those that are read as numbers. missing: texts that mean a missing value. split: columns whose text is
    split into a list, in which these texts are looked up later. label: the column of labels; "" for none. labels: what
    they are to be, NUMBERS or TEXTS, where a fit knows them; else "".
    """

    columns: Sequence[str] | None = None
    numbers: Collection[str] = ()
    missing: tuple[str, ...] = ()
    split: Collection[str] = ()
    label: str = ""
    labels: str = ""

    @classmethod
    def by_schema(cls, schema: ResolvedSchema, columns: Sequence[str]) -> Self:
        """Columns of a schema, read as it says."""
        lists = {entry.name for entry in schema.fields if entry.kind == "list"} if schema.list_separator else set()
        return cls(columns, numeric_of(schema), schema.missing, lists)


def read_shards(paths: Any, wanted: Wanted = Wanted()) -> pa.Table:
    """All rows of shards as one table, of columns of theirs or of their paths. DataError as of `read_unit`, and where a
    column is stored as types that do not go together.
    """
    return _read(_found(paths), wanted)


def _found(paths: Any) -> list[Shard]:
    """The shards that have rows."""
    shards = find_shards(paths_of(paths))
    check_named_once(shards)
    return [shard for shard in shards if shard.n_rows]


def _read(shards: Sequence[Shard], wanted: Wanted) -> pa.Table:
    units = [unit for task in plan_reading(shards) for unit in task]
    names = feature_schema(shards[0]).names if wanted.columns is None else list(wanted.columns)
    batches = [batch for unit in units for batch in read_unit(unit, names)]
    columns = {name: _column(name, batches, wanted) for name in names}
    fields = [pa.field(name, column.type, metadata=mark) for name, (column, mark) in columns.items()]
    return pa.Table.from_arrays([column for column, _ in columns.values()], schema=pa.schema(fields))


def _column(
    name: str, batches: Sequence[Batch], wanted: Wanted
) -> tuple[pa.ChunkedArray, Mapping[bytes, bytes] | None]:
    """A column of all batches, in a type that holds what each has: numbers as they are read, categories as hashed; and
    its metadata. Texts that mean a missing value are looked up before numbers become text, which could be one of them.
    """
    arrays = [batch.data.column(name) for batch in batches]
    if name == wanted.label and any(_is_another(array.type, wanted.labels) for array in arrays):
        return _labels(name, batches) if wanted.labels == NUMBERS else _joined_texts(name, batches), None
    try:
        return joined(arrays), None
    except pa.ArrowException:
        if name in wanted.numbers:
            return pa.chunked_array([_numbers(name, batch, wanted.missing) for batch in batches], pa.float64()), None
    if name == wanted.label:
        return _labels(name, batches), None
    missing = () if name in wanted.split else wanted.missing
    return _joined_texts(name, batches, missing), LOOKED_UP if missing else None


def _is_another(kind: pa.DataType, labels: str) -> bool:
    """Whether labels of this type are something else than those of the fit, if it knows."""
    kind = type_of_values(kind)
    return is_text(kind) if labels == NUMBERS else labels == TEXTS and is_number(kind) and not is_text(kind)


def _joined_texts(name: str, batches: Sequence[Batch], missing: tuple[str, ...] = ()) -> pa.ChunkedArray:
    """A column of all batches as text, null for texts that are listed. DataError where one holds no single values."""
    arrays = [batch.data.column(name) for batch in batches]
    try:
        return joined_texts([without_missing(array, missing) for array in arrays])
    except (pa.ArrowException, TypeError) as error:
        other = next(batch for batch in batches if batch.data.column(name).type != arrays[0].type)
        raise DataError(
            f"column {name!r} holds {arrays[0].type} in {batches[0].shard.url} and {other.data.column(name).type} in "
            f"{other.shard.url}, which no column holds together; write one of them as the other, or leave it out"
        ) from error


def _labels(name: str, batches: Sequence[Batch]) -> pa.ChunkedArray:
    """Labels of several types: numbers, whole ones as int64, where all lie from 0 to 1, and otherwise texts."""
    numbers = [_from_0_to_1(batch.data.column(name), name) for batch in batches]
    if any(array is None for array in numbers):
        return _joined_texts(name, batches)
    column = pa.chunked_array(numbers, pa.float64())
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:  # shares
        return column


def _from_0_to_1(array: pa.Array, name: str) -> pa.Array | None:
    """Labels as float64, null where missing; None where one is no number from 0 to 1."""
    try:
        values, present, unparsed = parse_numbers(array, name)
    except DataError:  # moments
        return None
    present &= ~np.isnan(values)
    is_legal = (values >= 0) & (values <= 1) & ~unparsed
    return pa.array(values, mask=~present) if is_legal[present].all() else None


def _numbers(name: str, batch: Batch, missing: tuple[str, ...]) -> pa.Array:
    """A column of a batch as float64, null where missing. DataError where it holds text that is no number."""
    array = without_missing(batch.data.column(name), missing)
    with naming_shard(batch):
        values, present, unparsed = parse_numbers(array, name)
        if unparsed.any():
            raise DataError(
                f"column {name!r} holds {shown(array[int(unparsed.argmax())])}, which is no number, and holds numbers "
                "in other shards; write a number or nothing, or name the column in categorical"
            )
    return pa.array(values, mask=~present)


def check_names(y: Any, sample_weight: Any) -> None:
    """SettingsError where labels, or weights that are not None, of shards are no names of columns."""
    if not isinstance(y, str) or not isinstance(sample_weight, str | None):
        raise SettingsError("X is a path of shards: y and sample_weight must be names of columns in them")


def read_to_fit(paths: Any, y: str, sample_weight: str | None, options: TableOptions) -> tuple[pa.Table, Any, Any]:
    """As `read_labelled`, of the columns that a job of these options makes features of: types of all shards decide.

    Columns whose type makes no feature are there without their values: in memory they, too, make a table of floats one
    that is no matrix.
    """
    shards = _found(paths)
    _check_there(shards[0], y, sample_weight)
    schema = Schema(label=y, weight=sample_weight or "", **options.of_schema())
    left_out: dict[str, str] = {}
    with naming_parameters():
        resolved = resolve_shards(schema, shards, tell=left_out.update)
    unfit = {name for name, why in left_out.items() if why.startswith(HOLDS)}
    # What is unfit is told by the fit, as of any table.
    tell_left_out({name: why for name, why in left_out.items() if name not in unfit})
    schema_of = functools.cache(lambda number: feature_schema(shards[number]))
    names, used = schema_of(0).names, {*resolved.columns}
    wanted = Wanted.by_schema(resolved, [name for name in names if name in used])
    table, labels, weights = _labelled(shards, y, sample_weight, wanted)
    for name in unfit:
        kinds = (schema_of(number).field(name).type for number in range(len(shards)))
        of_values = next(kind for kind in kinds if not pa.types.is_null(kind))
        table = table.append_column(name, pa.nulls(table.num_rows, of_values))
    return table.select([name for name in names if name in used | unfit]), labels, weights


def read_labelled(paths: Any, y: str, sample_weight: str | None, wanted: Wanted) -> tuple[pa.Table, Any, Any]:
    """The wanted columns of all rows of shards but those of labels and weights, and these. DataError as of
    `read_shards`, SettingsError where the column of labels or weights is missing.
    """
    shards = _found(paths)
    _check_there(shards[0], y, sample_weight)
    names = feature_schema(shards[0]).names if wanted.columns is None else wanted.columns
    others = [name for name in names if name not in (y, sample_weight)]
    return _labelled(shards, y, sample_weight, replace(wanted, columns=others))


def _labelled(shards: Sequence[Shard], y: str, sample_weight: str | None, wanted: Wanted) -> tuple[pa.Table, Any, Any]:
    special = [name for name in (y, sample_weight) if name]
    columns = [*dict.fromkeys([*(wanted.columns or ()), *special])]
    table = _read(shards, replace(wanted, columns=columns, label=y))
    weights = None if sample_weight is None else table.column(sample_weight).to_numpy()
    return table.select(wanted.columns), table.column(y).to_numpy(), weights


def _check_there(shard: Shard, *columns: str | None) -> None:
    there = feature_schema(shard).names
    for name in columns:
        if name is not None and name not in there:
            raise SettingsError(f"the shards have no column {name!r}; they have {', '.join(there)}")


_MOST_SHOWN = 5


def distinct_labels(units: Sequence[Unit], column: str) -> set[Any]:
    """Distinct labels in a column of shards, as Python has them; where there are many, more than two of them."""
    found: set[Any] = set()
    for batch in (batch for unit in units for batch in read_unit(unit, [column])):
        values = decoded(plain(without_dictionary(batch.data.column(column).unique())))
        found.update(value for value in values.to_pylist() if value not in (None, "") and value == value)
        if len(found) > _MOST_SHOWN:
            break
    return found


def labels_by_task(paths: Sequence[str], column: str) -> list[tuple[Sequence[Unit], str]]:
    """Arguments of `distinct_labels`, one task each, for all rows of shards. SettingsError without such a column."""
    shards = _found(paths)
    _check_there(shards[0], column)
    return [(units, column) for units in plan_reading(shards)]


def classes_of(labels: set[Any], column: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The two classes that a job tells apart, of distinct labels in shards, and the text of the second one for its
    schema, unless labels are 0 and 1 or between: as numbers, or as texts of which there are more than two. ValueError
    where there is one label only, DataError where there are several.
    """
    numbers = _numbers_among(labels, column)
    are_alike = len({type(label) for label in labels}) == 1 or all(isinstance(label, _NUMBERS) for label in labels)
    known = sorted(numbers or (labels if are_alike else {value_text(label) for label in labels}))
    if len(known) == 1:
        raise ValueError(one_class_only(*known))
    if numbers is not None:
        is_truth = labels and all(isinstance(label, bool) for label in labels)
        return np.array([False, True] if is_truth else [0, 1]), ()
    if len(known) > 2:
        shown_first = ", ".join(map(repr, known[:_MOST_SHOWN]))
        raise DataError(
            f"column {column!r} holds {shown_first}{', …' if len(known) > _MOST_SHOWN else ''}, and a fit on shards on "
            "a cluster tells two classes apart: leave client out, so that rows are read into this process, or write a "
            "column of two labels for each class"
        )
    return np.array(known, object if isinstance(known[0], str) else None), (value_text(known[1]) or "",)


def _numbers_among(labels: set[Any], column: str) -> set[Any] | None:
    """Labels as numbers; None where one is no number from 0 to 1, and of two texts, which are classes as they are."""
    texts = {label for label in labels if isinstance(label, str)}
    others = labels - texts
    are_classes = not others and 0 < len(texts) < 3
    if are_classes or not all(isinstance(label, _NUMBERS) and 0 <= label <= 1 for label in others):
        return None
    parsed = _from_0_to_1(pa.array(texts, pa.string()), column)
    return None if parsed is None else others | {*parsed.drop_null().to_pylist()}


def read_evaluation(eval_set: tuple[Any, Any, Any], wanted: Wanted) -> tuple[Any, Any, Any]:
    """An eval_set (X, y, weights or None) of shards as one of rows; any other as it is. SettingsError where it names no
    columns of its shards.
    """
    shards, label, weight = eval_set
    if not is_path(shards):
        return eval_set
    if not isinstance(label, str) or not isinstance(weight, str | None):
        raise SettingsError("eval_set is of shards: y and sample_weight must be names of columns in them")
    return read_labelled(shards, label, weight, wanted)


def validation_paths(eval_set: Any, *columns: str | None) -> list[str]:
    """The shards that a job validates on. SettingsError where eval_set is something else, or names other columns than
    the fit: those of labels, of groups if it has any (which need not be named again), and of weights or None.
    """
    if eval_set is None:
        return []
    found = eval_set[0] if isinstance(eval_set, list) and len(eval_set) == 1 else eval_set
    if not isinstance(found, tuple) or not 1 < len(found) <= len(columns) + 1 or not is_path(found[0]):
        raise SettingsError("a job on shards validates on shards: eval_set = (path, names of columns …), or nothing")
    *others, _ = columns
    named = (*found[1:], *others[len(found) - 1 :], None)[: len(columns)]
    if named != columns:
        raise SettingsError(
            f"eval_set names the columns {named}, and the fit {columns}: a job has the same ones in all rows. Name "
            "these, or leave client out, so that rows are read into this process"
        )
    return paths_of(found[0])
