"""Values as text, whatever type a column has in a shard: by it slices are named and groups of rows are told apart."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data import arrow_types, canonical
from dfm.data.schema import SHORTEST
from dfm.errors import DataError
from dfm.storage.xxhash import xxh64

MISSING = "(missing)"


def check_single(kind: pa.DataType, column: str) -> None:
    """DataError where a row of this type has several values."""
    if arrow_types.is_list(kind) or pa.types.is_struct(kind):
        raise DataError(
            f"column {column!r} holds {kind}: slices and groups need one value a row; choose another column"
        )


def texts_of(array: pa.Array, column: str) -> pa.Array:
    """Values as the text that categories are compared by; a missing one is MISSING. DataError where they are lists."""
    array = arrow_types.plain(array)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    array = arrow_types.decoded(array)
    kind = array.type
    check_single(kind, column)
    if pa.types.is_floating(kind):
        numbers = canonical.category_numbers(array, SHORTEST).to_pylist()
        texts = pa.array([None if x is None else canonical.float_text(x) for x in numbers], pa.string())
    elif pa.types.is_decimal(kind):
        texts = canonical.decimal_texts(array, SHORTEST).dictionary_decode()
    elif arrow_types.is_moment(kind):
        texts = canonical.time_texts(array, SHORTEST)
    else:
        try:
            texts = array.cast(pa.string())
        except pa.ArrowNotImplementedError as error:
            raise DataError(f"column {column!r} holds {kind}, which has no text; choose another column") from error
    return pc.fill_null(texts.cast(pa.string()), MISSING)


def text_hashes(array: pa.Array, column: str) -> NDArray[np.uint64]:
    """XXH64 of the text of every value, uint64[n]: equal where `texts_of` is."""
    encoded = texts_of(array, column).dictionary_encode()
    texts = [text.encode() for text in encoded.dictionary.to_pylist()]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(text) for text in texts], dtype=np.int64)])
    hashes = np.empty(len(texts), np.uint64)
    _hash_each(np.frombuffer(b"".join(texts) or b"\0", np.uint8), offsets, hashes)
    return hashes[encoded.indices.to_numpy()]


@compiled
def _hash_each(data, offsets, out):  # type: ignore[no-untyped-def]
    """out[i] = hash of data[offsets[i]:offsets[i + 1]], uint8; writes `out` uint64."""
    for i in range(out.size):
        out[i] = xxh64(data, offsets[i], offsets[i + 1], np.uint64(0))
