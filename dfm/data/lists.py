"""Columns of lists: their elements, how many a row has, and what each weighs.

A list may be a list of Arrow in any layout, text with a separator ("a|b|c"), or weighted: a map of category to number,
a list of structs of a category and a number, or a dict per row, as a service sends it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.data.arrow_types import elements_of, is_list, is_text, plain
from dfm.errors import DataError


@dataclass(frozen=True, slots=True)
class Lists:
    """Row i has the elements [offsets[i], offsets[i + 1]); offsets int64[n_rows + 1]. weights: of each, or None."""

    offsets: NDArray[np.int64]
    elements: pa.Array
    weights: pa.Array | None = None


def lists_of(array: pa.Array, column: str, separator: str) -> Lists:
    """The lists of a column; a missing one is empty. DataError where it holds none."""
    array = plain(array)
    if pa.types.is_dictionary(array.type):
        array = plain(array.dictionary_decode())
    if is_text(array.type):
        array = _split(array, column, separator)
    if pa.types.is_struct(array.type):
        return _of_structs(array, column)
    if not is_list(array.type) and not pa.types.is_null(array.type):
        raise DataError(
            f"column {column!r} holds {array.type}, but the schema calls it a list; write lists, or of a job "
            "name it in [schema] categorical"
        )
    array = elements_of(array)
    filled = array if not array.null_count else pc.if_else(pc.is_valid(array), array, pa.scalar([], array.type))
    offsets = filled.offsets.to_numpy()
    elements = filled.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    keys, weights = _keys_and_weights(plain(elements), column)
    return Lists(offsets - offsets[0], keys, weights)


def _split(array: pa.Array, column: str, separator: str) -> pa.Array:
    if not separator:
        raise DataError(
            f"column {column!r} holds {array.type}, but the schema calls it a list; write lists, or of a job "
            'name it in [schema] categorical, or say what parts its elements: schema.list_separator = "|"'
        )
    try:
        return pc.split_pattern(array.cast(pa.large_string()), separator)
    except pa.ArrowException as error:
        raise DataError(
            f"column {column!r} cannot be split at {separator!r}: it holds no UTF-8 text ({error})"
        ) from error


def _keys_and_weights(elements: pa.Array, column: str) -> tuple[pa.Array, pa.Array | None]:
    kind = elements.type
    if is_list(kind):
        raise DataError(
            f"column {column!r} holds lists of {kind}; flatten it: elements are single values; with weights they "
            'are a map, in Python a dict such as {"shoes": 0.5}'
        )
    if not pa.types.is_struct(kind):
        return elements, None
    if kind.num_fields != 2:
        names = ", ".join(entry.name for entry in kind)
        raise DataError(
            f"column {column!r} holds lists of structs of {names}; expected two fields, a category and its weight"
        )
    return pc.struct_field(elements, [0]), pc.struct_field(elements, [1])


def _of_structs(array: pa.Array, column: str) -> Lists:
    """A dict of category to weight per row, which Arrow takes for a struct: what is null is not in the dict."""
    names = [entry.name for entry in array.type]
    if not names:  # empty dicts, all of them
        return Lists(np.zeros(len(array) + 1, np.int64), pa.nulls(0, pa.string()), pa.nulls(0, pa.float64()))
    try:
        columns = [pc.struct_field(array, [i]).cast(pa.float64()) for i in range(len(names))]
    except pa.ArrowException as error:
        raise DataError(
            f"column {column!r} holds {array.type}, which is no list; pass lists, or dicts of category to weight"
        ) from error
    present = np.column_stack([column.is_valid().to_numpy(zero_copy_only=False) for column in columns])
    rows, places = np.nonzero(present)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(present.sum(axis=1, dtype=np.int64))])
    weights = pa.concat_arrays(columns).take(pa.array(places * len(array) + rows))
    return Lists(offsets, pa.array(names, pa.string()).take(pa.array(places)), weights)
