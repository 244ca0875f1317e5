"""Tokens: values of single columns as a model sees them, by the ids that they are hashed to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.canonical import value_text
from dfm.data.columns import with_values
from dfm.data.encoding import encode_batch
from dfm.data.matrices import is_vector
from dfm.data.schema import Field, ResolvedSchema
from dfm.data.transforms import NumberStatistics
from dfm.errors import DataError, SettingsError
from dfm.model.rows import table_of_columns

MISSING = "(missing)"
"""The name of what stands for no value."""


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
        numbers = [column] if entry.kind == "numeric" else []
        table = table_of_columns(_columns(entry, listed), numbers, self.schema.missing)
        ids, good = self.indices(entry, table.combine_chunks().to_batches()[0])
        if not good.all():
            wrong = listed[int(np.flatnonzero(~good)[0])]
            raise DataError(f"{wrong!r} is no value of {column!r}; pass finite numbers, or None where one is missing")
        return ids

    def indices(self, entry: Field, rows: pa.RecordBatch) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Indices uint32[n_good] of a field in some rows, and which rows are good, bool[n_rows].

        rows: the field's columns, one value a row; of a list, one element.
        """
        parts = [each for each in self.schema.fields if each.name in rows.schema.names and each.kind != "cross"]
        own = [*parts, entry] if entry.kind == "cross" else parts
        fields = tuple(dataclasses.replace(each, index=index) for index, each in enumerate(own))
        schema = dataclasses.replace(self.schema, fields=fields, derived=(), weight="", time="")
        for name in (each.name for each in parts if each.kind == "list"):
            rows = with_values(rows, name, _wrapped(rows.column(name)))
        encoded = encode_batch(rows, schema, self.hash_bits, self.statistics, None)
        return encoded.rows.indices.reshape(encoded.rows.n_rows, len(fields))[:, -1], encoded.good


def _columns(entry: Field, values: Sequence[Any]) -> dict[str, list[Any]]:
    """Values of a field by its columns. DataError where a value of a cross does not have one of each."""
    if entry.kind != "cross":
        return {entry.name: list(values)}
    for value in values:
        if isinstance(value, str | bytes) or not hasattr(value, "__len__") or len(value) != len(entry.columns):
            raise DataError(
                f"{value!r} is no value of the cross of {' and '.join(entry.columns)}; pass one value of each"
            )
    return {name: list(part) for name, part in zip(entry.columns, zip(*values, strict=True), strict=True)}


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
