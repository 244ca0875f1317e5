"""Arrays of one column, put together: files of one log store the same values as other types.

pandas writes integers with a gap as floats, a column of nothing but None as nulls, and a category as a dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from dfm.data.arrow_types import as_moments, decoded, is_moment, is_text, plain, type_of_moments
from dfm.data.canonical import time_texts, value_text
from dfm.data.schema import SHORTEST


def without_dictionary(array: pa.Array) -> pa.Array:
    """The values of a dictionary, row by row; any other array as it is."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def joined(arrays: Sequence[pa.Array]) -> pa.ChunkedArray:
    """The values of some arrays, of the type that holds all of them exactly: the wider one of numbers, their values of
    dictionaries, moments of days. pa.ArrowException where there is none.
    """
    arrays = [_with_room(array) for array in arrays]
    if len({array.type for array in arrays}) == 1:
        return pa.chunked_array(arrays)
    try:
        return _promoted(arrays)
    except pa.ArrowException:
        values = [without_dictionary(array) for array in arrays]
    kinds = {array.type for array in values if not pa.types.is_null(array.type)}
    if kinds and all(pa.types.is_date(kind) or pa.types.is_timestamp(kind) for kind in kinds):
        common = type_of_moments(kinds)
        values = [array if pa.types.is_null(array.type) else as_moments(array, common) for array in values]
    return _promoted(values)


def joined_texts(arrays: Sequence[pa.Array]) -> pa.ChunkedArray:
    """The values of some arrays as the texts that are hashed, which are those of a category whatever stores it.
    TypeError or pa.ArrowException where one holds something else than single values.
    """
    return pa.chunked_array([_texts(plain(without_dictionary(array))) for array in arrays])


def _with_room(array: pa.Array) -> pa.Array:
    """A dictionary with codes that hold the values of all arrays together; any other array as it is."""
    if not pa.types.is_dictionary(array.type) or array.type.index_type.bit_width >= 32:
        return array
    return pa.DictionaryArray.from_arrays(array.indices.cast(pa.int32()), array.dictionary, ordered=array.type.ordered)


def _promoted(arrays: Sequence[pa.Array]) -> pa.ChunkedArray:
    tables = [pa.table({"": array}) for array in arrays]
    return pa.concat_tables(tables, promote_options="permissive").column(0)


def _texts(array: pa.Array) -> pa.Array:
    if is_text(array.type):
        return decoded(array)
    if is_moment(array.type):
        return time_texts(array, SHORTEST).cast(pa.large_string())
    encoded = array.dictionary_encode()
    return pa.array(map(value_text, encoded.dictionary.to_pylist()), pa.large_string()).take(encoded.indices)
