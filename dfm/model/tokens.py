"""Tokens: values of single columns as a model sees them, by the ids that they are hashed to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.canonical import arrow_array, value_text
from dfm.data.encoding import encode_batch
from dfm.data.matrices import is_vector
from dfm.data.schema import Field, ResolvedSchema
from dfm.data.transforms import NumberStatistics
from dfm.errors import DataError, SettingsError

MISSING = "(missing)"
"""The name of what stands for no value."""
Arrays = Mapping[str, pa.Array]
"""By column of the model's fields, one value a row; of a list, one element."""


@dataclass(frozen=True)
class Tokens:
    """The hashing of a model, for values of one field at a time."""

    schema: ResolvedSchema
    hash_bits: int
    statistics: Mapping[str, NumberStatistics]

    def field(self, column: str) -> Field:
        """The field of this name, or the only one where the model is of a matrix. SettingsError where there is none."""
        fields, names = self.schema.fields, [entry.name for entry in self.schema.fields]
        if is_vector(self.schema):
            fields, names = fields * len(self.schema.columns), list(self.schema.columns)
        if column not in names:
            raise SettingsError(f"{column!r} is no field of the model; it has {', '.join(names)}")
        return fields[names.index(column)]

    def ids(self, column: str, values: Iterable[Any]) -> NDArray[np.uint32]:
        """Hashed index of each value of a field, uint32[n]; of a cross, a value is a tuple of values of its columns.

        DataError where a value is no value of the field, or a text stands in place of a list of them.
        """
        if isinstance(values, str | bytes):
            raise DataError(f"values = {values!r} is one value of {column!r}; pass a list of them: [{values!r}]")
        entry, listed = self.field(column), list(values)
        if entry.kind == "vector" or not listed:
            return np.full(len(listed), self.schema.columns.index(column) if listed else 0, np.uint32)
        ids, good = self.indices(entry, _columns(entry, listed))
        if not good.all():
            wrong = listed[int(np.flatnonzero(~good)[0])]
            raise DataError(f"{wrong!r} is no value of {column!r}; pass finite numbers, or None where one is missing")
        return ids

    def indices(self, entry: Field, arrays: Arrays) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Indices uint32[n_good] of a field in some rows, and which rows are good, bool[n_rows]."""
        parts = [each for each in self.schema.fields if each.name in arrays and each.kind != "cross"]
        own = [*parts, entry] if entry.kind == "cross" else parts
        fields = tuple(dataclasses.replace(each, index=index) for index, each in enumerate(own))
        schema = dataclasses.replace(self.schema, fields=fields, derived=(), weight="", time="")
        lists = {each.name for each in parts if each.kind == "list"}
        columns = [_wrapped(array) if name in lists else array for name, array in arrays.items()]
        batch = pa.RecordBatch.from_arrays(columns, names=list(arrays))
        encoded = encode_batch(batch, schema, self.hash_bits, self.statistics, None)
        return encoded.rows.indices.reshape(encoded.rows.n_rows, len(fields))[:, -1], encoded.good


def _columns(entry: Field, values: Sequence[Any]) -> dict[str, pa.Array]:
    """Values of a field by its columns. DataError where they make no array."""
    if entry.kind != "cross":
        return {entry.name: _array(entry.name, values, entry.kind == "numeric")}
    for value in values:
        if isinstance(value, str | bytes) or not hasattr(value, "__len__") or len(value) != len(entry.columns):
            raise DataError(
                f"{value!r} is no value of the cross of {' and '.join(entry.columns)}; pass one value of each"
            )
    return {name: _array(name, part) for name, part in zip(entry.columns, zip(*values, strict=True), strict=True)}


def _array(column: str, values: Sequence[Any], are_numbers: bool = False) -> pa.Array:
    try:
        array = arrow_array(list(values), are_numbers)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"values of {column!r} cannot be read ({error}); pass a list of values of one type") from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _wrapped(array: pa.Array) -> pa.Array:
    """Every value as a list of its own."""
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    return pa.LargeListArray.from_arrays(np.arange(len(array) + 1), array)


def shown(value: Any) -> str:
    """A value as it is read in names: the text that a category is hashed by."""
    if isinstance(value, bytes):
        return value.decode(errors="replace") or MISSING
    try:
        text = value_text(value)
    except TypeError:
        text = str(value)
    return MISSING if text in (None, "") else str(text)
