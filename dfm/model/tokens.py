"""Tokens: a value of a column as the model sees it, the feature that it is, and its name for people.

A hash cannot be turned round: buckets of numbers are named by what they hold, all other features by rows in which they
occur.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data import hashing
from dfm.data.arrow_types import plain
from dfm.data.canonical import arrow_array, value_text
from dfm.data.encoding import encode_batch, feature_column, parse_numbers
from dfm.data.lists import lists_of
from dfm.data.matrices import is_vector
from dfm.data.schema import Field
from dfm.data.transforms import NOTHING_KNOWN, TRANSFORMS
from dfm.errors import DataError, SettingsError

if TYPE_CHECKING:
    from dfm.model.fm_model import FMModel

MISSING, RARE, PER_UNIT = "(missing)", "(rare)", "(per unit)"
"""Names of what stands for no value of its own; a number that is taken as it is weighs w a unit."""
Arrays = Mapping[str, pa.Array]
"""By column of the model's fields, one value a row; of a list, one element."""


def field_of(model: FMModel, column: str) -> Field:
    """The field of this name, or the only one where the model is of a matrix. SettingsError where there is none."""
    if is_vector(model.schema) and column in model.schema.columns:
        return model.schema.fields[0]
    for entry in model.schema.fields:
        if entry.name == column and entry.kind != "vector":
            return entry
    known = model.schema.columns if is_vector(model.schema) else [entry.name for entry in model.schema.fields]
    raise SettingsError(f"{column!r} is no field of the model; it has {', '.join(known)}")


def token_ids(model: FMModel, column: str, values: Iterable[Any]) -> NDArray[np.uint32]:
    """Hashed index of each value of a field, uint32[n]; of a cross, a value is a tuple of values of its columns.

    DataError where a value is no value of the field.
    """
    entry, listed = field_of(model, column), list(values)
    if entry.kind == "vector":
        return np.full(len(listed), model.schema.columns.index(column), np.uint32)
    if not listed:
        return np.zeros(0, np.uint32)
    names = entry.columns if entry.kind == "cross" else (entry.name,)
    parts = list(zip(*_tuples(listed, names), strict=True)) if entry.kind == "cross" else [listed]
    try:
        arrays = {name: _one_chunk(arrow_array(list(part))) for name, part in zip(names, parts, strict=True)}
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"values of {column!r} cannot be read ({error}); pass a list of values of one type") from error
    ids, good = _indices(model, entry, arrays)
    if not good.all():
        wrong = listed[int(np.flatnonzero(~good)[0])]
        raise DataError(f"{wrong!r} is no value of {column!r}; pass finite numbers, or None where one is missing")
    return ids


def _tuples(values: Sequence[Any], names: Sequence[str]) -> Sequence[Any]:
    for value in values:
        if isinstance(value, str | bytes) or not hasattr(value, "__len__") or len(value) != len(names):
            raise DataError(f"{value!r} is no value of the cross of {' and '.join(names)}; pass one value of each")
    return values


def _one_chunk(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _indices(model: FMModel, entry: Field, arrays: Arrays) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Indices uint32[n_good] of a field in some rows, and which rows are good, bool[n_rows]."""
    parts = [each for each in model.schema.fields if each.name in arrays and each.kind != "cross"]
    own = [*parts, entry] if entry.kind == "cross" else parts
    fields = tuple(dataclasses.replace(each, index=index) for index, each in enumerate(own))
    schema = dataclasses.replace(model.schema, fields=fields, derived=(), weight="", time="")
    lists = {each.name for each in parts if each.kind == "list"}
    columns = [_wrapped(array) if name in lists else array for name, array in arrays.items()]
    batch = pa.RecordBatch.from_arrays(columns, names=list(arrays))
    encoded = encode_batch(batch, schema, model.vocabulary.hash_bits, model.statistics, None)
    return encoded.rows.indices.reshape(encoded.rows.n_rows, len(fields))[:, -1], encoded.good


def _wrapped(array: pa.Array) -> pa.Array:
    """Every value as a list of its own."""
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    return pa.LargeListArray.from_arrays(np.arange(len(array) + 1), array)


# ---------------------------------------------------------------------------------------------- names ----


class TokenNames:
    """Names of features, by their row in the parameter table: of buckets at once, of others as rows are shown."""

    def __init__(self, model: FMModel) -> None:
        self._model, self.names = model, dict[int, str]()
        self._order = np.argsort(model.vocabulary.ids)
        self._sorted = model.vocabulary.ids[self._order]
        for entry in model.schema.fields:
            self._name_known(entry)

    def add(self, batch: pa.RecordBatch) -> None:
        """Name what occurs in some rows, which have the columns of the features."""
        for entry in self._model.schema.fields:
            if entry.kind in ("categorical", "list", "cross"):
                arrays = self._distinct(entry, batch)
                ids, good = _indices(self._model, entry, arrays)
                names = zip(*[self._names(name, array) for name, array in arrays.items()], strict=True)
                kept = [" & ".join(name) for name, is_good in zip(names, good, strict=True) if is_good]
                self._set(entry, ids, kept)

    def of_field(self, entry: Field) -> dict[int, str]:
        """Rows of a field that have names."""
        fields = self._model.vocabulary.fields
        return {row: name for row, name in self.names.items() if fields[row] == entry.index}

    def _name_known(self, entry: Field) -> None:
        model, bits = self._model, self._model.vocabulary.hash_bits
        rare = int(model.vocabulary.rare[entry.index])
        if rare >= 0:
            self.names[rare] = RARE
        if entry.kind == "vector":
            self._set(entry, np.arange(len(entry.columns), dtype=np.uint32), list(entry.columns))
            return
        missing = hashing.token_index(entry.name, hashing.MISSING, bits)
        if entry.bucketed:
            known = model.statistics.get(entry.name, NOTHING_KNOWN)
            names = TRANSFORMS[entry.transform].names(known)
            self._set(entry, hashing.bucket_table(entry.name, len(names), bits), [MISSING, *names[1:]])
        elif entry.kind == "numeric":
            present = hashing.token_index(entry.name, hashing.PRESENT, bits)
            self._set(entry, np.array([missing, present], np.uint32), [MISSING, PER_UNIT])
        elif entry.kind != "cross":
            self._set(entry, np.array([missing], np.uint32), [MISSING])

    def _set(self, entry: Field, ids: NDArray[np.uint32], names: Sequence[str]) -> None:
        """Give the rows of these ids their names; the first name of a row stays."""
        if not len(self._sorted):
            return
        places = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        rows, found = self._order[places], self._sorted[places] == ids
        own = self._model.vocabulary.fields[rows] == entry.index
        for at in np.flatnonzero(found & own):
            self.names.setdefault(int(rows[at]), names[at])

    def _names(self, column: str, array: pa.Array) -> list[str]:
        entry = field_of(self._model, column)
        if not entry.bucketed:
            return [_shown(value) for value in array.to_pylist()]
        values, present, _ = parse_numbers(array, column, self._model.schema.numbers)
        transform, known = TRANSFORMS[entry.transform], self._model.statistics.get(column, NOTHING_KNOWN)
        names = [MISSING, *transform.names(known)[1:]]
        return [names[code] for code in transform.codes(values, present, known)]

    def _distinct(self, entry: Field, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """The distinct values of a field's columns, those of a cross side by side; of lists, their elements."""
        rows = np.arange(batch.num_rows)
        arrays: dict[str, pa.Array] = {}
        for column in entry.columns:
            values, _ = feature_column(batch, column, self._model.schema)
            if field_of(self._model, column).kind != "list":
                arrays[column] = _groupable(values).take(pa.array(rows))
                continue
            starts, lengths, elements = _elements(values, column, self._model.schema.list_separator)
            again = np.repeat(np.arange(len(rows)), lengths[rows])
            arrays = {name: array.take(pa.array(again)) for name, array in arrays.items()}
            arrays[column] = elements.take(pa.array(_runs(starts[rows], lengths[rows])))
            rows = rows[again]
        table = pa.table(arrays).group_by(list(arrays), use_threads=False).aggregate([])
        return {name: _one_chunk(table.column(name)) for name in arrays}


def _elements(values: pa.Array, column: str, separator: str) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Array]:
    """Places of each row's first element, how many it has (int64[n_rows] each), and all elements. The last is missing:
    the one of an empty list.
    """
    found = lists_of(values, column, separator)
    elements = pa.concat_arrays([_groupable(found.elements), pa.nulls(1, _groupable(found.elements).type)])
    lengths = np.diff(found.offsets)
    return np.where(lengths > 0, found.offsets[:-1], len(elements) - 1), np.maximum(lengths, 1), elements


def _runs(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of runs one after the other: lengths[i] of them from starts[i] on."""
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths) + np.repeat(starts, lengths)


def _groupable(array: pa.Array) -> pa.Array:
    """Plain values, which Arrow can tell apart."""
    array = plain(array)
    array = plain(array.dictionary_decode()) if pa.types.is_dictionary(array.type) else array
    return array.cast(pa.float32()) if pa.types.is_float16(array.type) else array


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace") or MISSING
    try:
        text = value_text(value)
    except TypeError:
        text = str(value)
    return MISSING if text in (None, "") else str(text)
