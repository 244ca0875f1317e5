"""Buckets of small whole numbers, looked up: most numbers of a log are counts, and few of these are large.

What a table cannot tell (large numbers, fractions, negative ones, NaN) is left to the caller.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data import hashing
from dfm.data.transforms import TRANSFORMS, NumberStatistics
from dfm.storage.arrays import read_only

_N_SMALL = 1 << 14
"""Numbers that are looked up, from 0 on: their buckets are 32 kB."""
_FEWEST = _N_SMALL // 8
"""Numbers from which on a table is worth making: fewer are computed sooner."""
_MOST_CODES = 1 << 16


def are_looked_up(array: pa.Array, transform: str, known: NumberStatistics) -> bool:
    """Whether there are many numbers, of a type that is read as it lies in memory, and not too many buckets."""
    kind, n_codes = array.type, TRANSFORMS[transform].n_codes(known)
    is_read = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    return bool(is_read) and len(array) >= _FEWEST and n_codes <= _MOST_CODES


def small_number_indices(
    array: pa.Array, table: NDArray[Any], transform: str, known: NumberStatistics
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Entries of the table for every small whole or missing number of an array ([n], of the table's type), and where
    the others stand (int64[at most n]), whose entries are not set.

    table: index or code of each bucket, [n_buckets], of a transform that gives whole numbers what it gives their text.
    """
    out, others = np.empty(len(array), table.dtype), np.empty(len(array), np.int64)
    if pa.types.is_int64(array.type) and table.dtype == np.uint16:
        whole = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array)]
        valid = hashing.validity_bits(array), array.offset
        n_others = _codes_of_small(read_only(whole), valid, _buckets_of_small(transform, known), out, others)
        return out, others[:n_others]
    numbers = array if pa.types.is_float64(array.type) else array.cast(pa.float64(), safe=False)
    values = np.frombuffer(numbers.buffers()[1], np.float64)[numbers.offset : numbers.offset + len(array)]
    valid = hashing.validity_bits(numbers), numbers.offset
    buckets = _buckets_of_small(transform, known)
    n_others = _indices_of_small(read_only(values), valid, buckets, read_only(table), out, others)
    return out, others[:n_others]


@functools.lru_cache(maxsize=1024)
def _buckets_of_small(transform: str, known: NumberStatistics) -> NDArray[np.uint16]:
    """Buckets of the numbers from 0 to `_N_SMALL` - 1."""
    numbers = np.arange(_N_SMALL, dtype=np.float64)
    return read_only(TRANSFORMS[transform].codes(numbers, np.ones(_N_SMALL, np.bool_), known).astype(np.uint16))


@compiled
def _indices_of_small(numbers, valid, buckets, table, out, others):  # type: ignore[no-untyped-def]
    """out[i] = table[buckets[numbers[i]]], table[0] where its bit is 0; writes `out` and the places of `others`.

    valid: bits uint8, empty where all are there, and the place of the first. Returns how many others there are.
    """
    validity, offset = valid
    n_others = 0
    for i in range(out.size):
        bit, number = offset + i, numbers[i]
        if validity.size and not validity[bit >> 3] >> (bit & 7) & 1:
            out[i] = table[0]
            continue
        if number >= 0.0 and number < buckets.size:
            place = np.uint32(number)
            if np.float64(place) == number:
                out[i] = table[buckets[place]]
                continue
        others[n_others] = i
        n_others += 1
    return n_others


@compiled
def _codes_of_small(numbers, valid, buckets, out, others):  # type: ignore[no-untyped-def]
    """The same of int64, where the table's entries are their own places."""
    validity, offset = valid
    n_others, end = 0, np.uint64(buckets.size)
    for i in range(out.size):
        bit, number = offset + i, np.uint64(numbers[i])
        is_there = not validity.size or validity[bit >> 3] >> (bit & 7) & 1
        is_small = number < end
        out[i] = buckets[number if is_small else np.uint64(0)] if is_there else np.uint16(0)
        others[n_others] = i
        n_others += is_there and not is_small
    return n_others
