"""Raw column values to feature indices: the part of a model that training and serving must share to the bit.

A token is (column, value). Its index is `XXH64(value bytes, seed=XXH64(column name)) mod 2**hash_bits`
(XXH64: Collet's xxHash specification, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
Values are hashed as text, so the integer 5, the float 5.0, the decimal 5.00 and the string "5" are the same category:
a log that one system writes as integers and another as strings gives one model. `canonical` says which text a number
is; a moment is its time in UTC, whatever its unit and zone, at midnight its day. Empty text is a missing value.
Distinct values are hashed once per Arrow dictionary.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data import arrow_types, canonical
from dfm.data.schema import SHORTEST
from dfm.errors import DataError
from dfm.storage.arrays import read_only
from dfm.storage.xxhash import hash_bytes, xxh64, xxh64_of_words

HASH_NAME = "xxh64"
MISSING = b"\x00missing"
"""Token of a null value (a byte string that no text column holds, so that the text "missing" stays its own value)."""
RARE = b"\x00rare"
"""Token of the bucket that all categories of a field rarer than `min_count`, or never seen, share."""
PRESENT = b"\x00value"
"""Token of the one feature that carries a number as its value (`raw` and `standardize`)."""

_NOTHING, _ALL_VALID = read_only(np.zeros(1, np.uint8)), read_only(np.zeros(0, np.uint8))


@functools.lru_cache(maxsize=65536)
def column_seed(column: str) -> np.uint64:
    """The seed of every token of a column: XXH64 of its name in UTF-8."""
    return np.uint64(hash_bytes(column.encode()))


@functools.lru_cache(maxsize=65536)
def token_index(column: str, value: bytes, hash_bits: int) -> int:
    """Feature index of one token, in [0, 2**hash_bits)."""
    return hash_bytes(value, int(column_seed(column))) & ((1 << hash_bits) - 1)


# ------------------------------------------------------------------------------- whole columns at a time ----


@compiled
def _hash_texts(data, offsets, seed, mask, missing, out):  # type: ignore[no-untyped-def]
    """out[i] = index of data[offsets[i]:offsets[i + 1]], `missing` where it is empty; writes `out`, uint32."""
    for i in range(out.size):
        start, stop = np.int64(offsets[i]), np.int64(offsets[i + 1])
        out[i] = xxh64(data, start, stop, seed) & mask if stop > start else missing


@compiled
def _hash_integers(numbers, seed, mask, out):  # type: ignore[no-untyped-def]
    """out[i] = index of the decimal text of numbers[i] (int64); writes `out`, uint32."""
    digits = np.empty(24, np.uint8)
    for i in range(out.size):
        number = numbers[i]
        magnitude = np.uint64(number) if number >= 0 else np.uint64(0) - np.uint64(number)
        position = 24
        while True:
            rest = magnitude // np.uint64(10)
            position -= 1
            digits[position] = np.uint8(48) + np.uint8(magnitude - rest * np.uint64(10))
            magnitude = rest
            if magnitude == 0:
                break
        if number < 0:
            position -= 1
            digits[position] = 45
        out[i] = xxh64(digits, position, 24, seed) & mask


@compiled
def gather(table, codes, out):  # type: ignore[no-untyped-def]
    """out[i] = table[codes[i]]; writes `out`."""
    for i in range(out.size):
        out[i] = table[codes[i]]


@compiled
def _gather_codes(table, codes, validity, offset, out, amounts):  # type: ignore[no-untyped-def]
    """The same, the table's last where bit `offset` + i of `validity` (empty: all are valid) is 0; adds to `amounts`
    uint32[table's size] how often each entry was taken.

    Returns how many codes are not below that of the last; these get what null gets. (A negative code is a large one.)
    """
    n_outside, end = 0, np.uint64(table.size - 1)
    for i in range(out.size):
        bit, code = offset + i, min(np.uint64(codes[i]), end)
        is_there = not validity.size or validity[bit >> 3] >> (bit & 7) & 1
        n_outside += is_there and code == end
        code = code if is_there else end
        out[i] = table[code]
        amounts[code] += np.uint32(1)
    return n_outside


@compiled
def _narrow_codes(codes, validity, offset, out, amounts):  # type: ignore[no-untyped-def]
    """`_gather_codes` of a table whose entries are their own places, uint16, of int32 codes."""
    n_outside, end = 0, np.uint32(amounts.size - 1)
    if validity.size:
        for i in range(out.size):
            bit, code = offset + i, min(np.uint32(codes[i]), end)
            is_there = validity[bit >> 3] >> (bit & 7) & 1
            n_outside += is_there and code == end
            out[i] = code if is_there else end
    else:
        for i in range(out.size):
            code = min(np.uint32(codes[i]), end)
            n_outside += code == end
            out[i] = code
    for i in range(out.size):
        amounts[out[i]] += np.uint32(1)
    return n_outside


def bucket_token(code: int) -> bytes:
    """The token of a numeric bucket: code 0 is a missing number."""
    return MISSING if code == 0 else b"\x00bucket %d" % code


@functools.lru_cache(maxsize=4096)
def bucket_table(column: str, n_buckets: int, hash_bits: int) -> NDArray[np.uint32]:
    """Feature index of every bucket code of a numeric column, uint32[n_buckets]."""
    tokens = pa.array([bucket_token(code) for code in range(n_buckets)], pa.binary())
    return hash_texts(tokens, column_seed(column), (1 << hash_bits) - 1, token_index(column, MISSING, hash_bits))


def hash_texts(array: pa.Array, seed: np.uint64, mask: int, missing: int) -> NDArray[np.uint32]:
    """Feature index of every value of a string or binary array, `missing` where null or empty (uint32[n])."""
    out = np.empty(len(array), np.uint32)
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    _, offset_buffer, data_buffer = array.buffers()
    if len(array):
        offsets = np.frombuffer(offset_buffer, np.int64 if wide else np.int32)
        offsets = offsets[array.offset : array.offset + len(array) + 1]
        data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None and data_buffer.size else _NOTHING
        _hash_texts(read_only(data), read_only(offsets), seed, np.uint64(mask), np.uint64(missing), out)
    if array.null_count:
        out[_null_mask(array)] = missing
    return out


def _null_mask(array: pa.Array) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return mask


def hash_category(array: pa.Array, column: str, hash_bits: int, form: str = SHORTEST) -> NDArray[np.uint32]:
    """Feature index of every value of a categorical array of any scalar type (uint32[n]).

    A dictionary array costs one hash per distinct value and one gather per row. form: the model's form of numbers.
    """
    mask = (1 << hash_bits) - 1
    missing = token_index(column, MISSING, hash_bits)
    seed = column_seed(column)
    array = arrow_types.plain(array)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return hash_dictionary(array, column, hash_bits, form)[0]
    if pa.types.is_null(kind):
        return np.full(len(array), missing, np.uint32)
    if pa.types.is_boolean(kind):
        return hash_texts(array.cast(pa.string()), seed, mask, missing)
    if pa.types.is_unsigned_integer(kind) and kind.bit_width == 64:
        return hash_texts(array.cast(pa.string()), seed, mask, missing)
    if pa.types.is_integer(kind):
        return _hash_integer_array(array, seed, mask, missing)
    if pa.types.is_floating(kind):
        return _hash_floats(array, form, seed, mask, missing)
    if arrow_types.is_text(kind):
        return hash_texts(array, seed, mask, missing)
    if pa.types.is_decimal(kind):
        return hash_category(canonical.decimal_texts(array, form), column, hash_bits)
    if arrow_types.is_moment(kind):
        return hash_texts(canonical.time_texts(array, form), seed, mask, missing)
    raise arrow_types.refusal(kind, column, arrow_types.NO_CATEGORY)


def hash_dictionary(
    array: pa.DictionaryArray, column: str, hash_bits: int, form: str = SHORTEST
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
    """`hash_category` of a dictionary array; the index of each distinct value and of a missing one (uint32[n_distinct +
    1]), and how many rows have each (uint32[n_distinct + 1]).
    """
    table = dictionary_table(array.dictionary, column, hash_bits, form)
    indices, amounts = _gathered(table, array.indices)
    return indices, table, amounts


def dictionary_table(dictionary: pa.Array, column: str, hash_bits: int, form: str = SHORTEST) -> NDArray[np.uint32]:
    """The index of each value of a dictionary, and at the end that of a missing one (uint32[n_distinct + 1])."""
    distinct = hash_category(dictionary, column, hash_bits, form)
    return np.append(distinct, np.uint32(token_index(column, MISSING, hash_bits)))


def dictionary_codes(array: pa.DictionaryArray) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """The place of each row's value in the table of its dictionary (uint16[n]), and how many rows have each
    (uint32[n_distinct + 1]), of fewer than 2^16 values.
    """
    indices, n_distinct = array.indices, len(array.dictionary)
    if not pa.types.is_int32(indices.type):
        return _gathered(small_codes(n_distinct + 1), indices)
    out, amounts = np.empty(len(indices), np.uint16), np.zeros(n_distinct + 1, np.uint32)
    if len(indices):
        codes = np.frombuffer(indices.buffers()[1], np.int32)[indices.offset : indices.offset + len(indices)]
        if _narrow_codes(read_only(codes), validity_bits(indices), indices.offset, out, amounts):
            check_codes(indices.drop_null().to_numpy(zero_copy_only=False), n_distinct)
    return out, amounts


@functools.lru_cache(maxsize=1024)
def small_codes(n_codes: int) -> NDArray[np.uint16]:
    """The codes from 0 on, uint16[n_codes]: what a table is whose entries are asked for by themselves."""
    return np.arange(n_codes, dtype=np.uint16)


def gather_codes(table: NDArray[Any], codes: pa.Array) -> NDArray[Any]:
    """table[codes]; the table's last where a code is null. DataError of a code that is not below that of the last."""
    return _gathered(table, codes)[0]


def _gathered(table: NDArray[Any], codes: pa.Array) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """The same, and how often each entry of the table was taken."""
    if codes.type.bit_width < 32:
        codes = codes.cast(pa.int32())
    out, amounts = np.empty(len(codes), table.dtype), np.zeros(len(table), np.uint32)
    if not len(codes):
        return out, amounts
    numbers = np.frombuffer(codes.buffers()[1], codes.type.to_pandas_dtype())[codes.offset : codes.offset + len(codes)]
    bits = validity_bits(codes)
    if _gather_codes(table, read_only(numbers), bits, codes.offset, out, amounts):
        check_codes(codes.drop_null().to_numpy(zero_copy_only=False), len(table) - 1)
    return out, amounts


def validity_bits(array: pa.Array) -> NDArray[np.uint8]:
    """The bits of an array's validity, from its buffer's start on; empty where all values are there."""
    return read_only(np.frombuffer(array.buffers()[0], np.uint8)) if array.null_count else _ALL_VALID


def check_codes(codes: NDArray[Any], n_distinct: int) -> None:
    """DataError where a code is outside its dictionary, as damaged files have them: `gather` reads without looking."""
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < n_distinct:
        raise DataError(
            f"a code of a dictionary is out of range ({codes.min()} to {codes.max()}, of {n_distinct} values): the "
            "data are damaged; replace the file or leave it out"
        )


def _hash_integer_array(array: pa.Array, seed: np.uint64, mask: int, missing: int) -> NDArray[np.uint32]:
    out = np.empty(len(array), np.uint32)
    filled = array.fill_null(0) if array.null_count else array
    _hash_integers(filled.cast(pa.int64()).to_numpy(), seed, np.uint64(mask), out)
    if array.null_count:
        out[_null_mask(array)] = missing
    return out


def _hash_floats(array: pa.Array, form: str, seed: np.uint64, mask: int, missing: int) -> NDArray[np.uint32]:
    """Whole numbers hash as integers (pandas makes floats of integers with gaps), others as text; NaN is missing."""
    numbers, whole = _whole_numbers(array, form)
    if pc.all(whole).as_py() is not False:
        return _hash_integer_array(numbers.cast(pa.int64()), seed, mask, missing)
    out = hash_texts(canonical.number_texts(numbers, form), seed, mask, missing)
    is_whole = whole.to_numpy(zero_copy_only=False)
    out[is_whole] = _hash_integer_array(numbers.filter(whole).cast(pa.int64()), seed, mask, missing)
    return out


def _whole_numbers(array: pa.Array, form: str) -> tuple[pa.Array, pa.Array]:
    """Floating categories, null where they are missing; and which are missing or integers of 64 bits."""
    numbers = canonical.category_numbers(array, form)
    fits = pc.and_(pc.greater_equal(numbers, -(2.0**63)), pc.less(numbers, 2.0**63))
    return numbers, pc.fill_null(pc.and_(pc.equal(pc.trunc(numbers), numbers), fits), True)


def integer_categories(array: pa.Array, form: str) -> tuple[pa.Array, pa.DataType] | None:
    """`arrow_types.integers_of`, and of floating numbers if all of them are integers."""
    if not pa.types.is_floating(array.type):
        return arrow_types.integers_of(array)
    numbers, whole = _whole_numbers(array, form)
    return None if pc.all(whole).as_py() is False else (numbers.cast(pa.int64()), pa.int64())


@compiled
def cross_indices(left, right, seed, mask, out):  # type: ignore[no-untyped-def]
    """Index of the pair (left[i], right[i]) of two columns' 64-bit token hashes; writes `out`, uint32.

    The pair is hashed as the 16 bytes left, right (little endian), so a cross needs no text of its own.
    """
    for i in range(out.size):
        out[i] = xxh64_of_words(np.uint64(left[i]), np.uint64(right[i]), seed) & mask


def expected_collisions(n_distinct: int, hash_bits: int) -> float:
    """Expected share of `n_distinct` features that share their index with another: 1 - (1 - 1/B)**(n - 1)."""
    if n_distinct < 2:
        return 0.0
    return float(-np.expm1((n_distinct - 1) * np.log1p(-(2.0**-hash_bits))))
