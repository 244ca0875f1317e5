"""Numbers in a buffer of text, read where they lie: by compiled code, to the bit as Python's float() reads them.

A decimal of up to 18 digits and a small exponent is a whole number times or over a power of ten that float64 holds
exactly, and one rounding makes the nearest number of it (Clinger 1990). Whatever needs more is left to Arrow, whose
parser is exact too.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pyarrow as pa
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from dfm.compilation import compiled, part

NONE, EXACT, HARD = 0, 1, 2
"""No number; one that is known; one that Arrow has to read."""
_MOST_DIGITS, _MOST_EXPONENT = 18, 22
_POWERS = 10.0 ** np.arange(_MOST_EXPONENT + 1)
_EXACT_BELOW = 1 << 53
_FAR = 10_000
"""An exponent beyond which more of it changes nothing."""
TAB, LINE_END, RETURN, BLANK, HASH, QUOTE, PLUS, MINUS, POINT, ZERO, COLON, PIPE = b"\t\n\r #'+-.0:|"
_EXPONENT_SIGN = ord("e")
_LAST_ASCII = 127
_LOWER = 32


def _memory() -> tuple[Any, Any]:
    """address(array) and byte_at(address, place): a byte of uint8[n] as int64, unchecked.

    An array that is handed to a function is counted, atomically, which took nine tenths of the time of these kernels.
    """
    if numba.config.DISABLE_JIT:
        return lambda array: array, lambda array, place: int(array[place])

    @part
    def address(array):  # type: ignore[no-untyped-def]
        return array.ctypes.data

    @intrinsic
    def byte_at(typing_context, data, place):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
            return builder.zext(builder.load(builder.gep(pointer, [arguments[1]])), ir.IntType(64))

        return types.int64(types.uintp, types.intp), codegen

    return address, byte_at


address, byte_at = _memory()


@part
def is_blank(byte):  # type: ignore[no-untyped-def]
    """Whether a byte parts words of a line."""
    return byte in (BLANK, TAB, RETURN)


@part
def word_end(data, at, end):  # type: ignore[no-untyped-def]
    """The place of the first blank from `at` on, at most `end`."""
    while at < end and not is_blank(byte_at(data, at)):
        at += 1
    return at


@part
def word_start(data, at, end):  # type: ignore[no-untyped-def]
    """The place of the first byte from `at` on that is no blank, at most `end`."""
    while at < end and is_blank(byte_at(data, at)):
        at += 1
    return at


@part
def whole_number(data, at, end):  # type: ignore[no-untyped-def]
    """A number of up to 18 digits that begins at `at`, -1 without any or with more; and the place behind its digits."""
    start, found = at, np.int64(0)
    while at < end:
        digit = byte_at(data, at) - ZERO
        if digit < 0 or digit > 9:
            break
        if at - start < _MOST_DIGITS:
            found = found * 10 + digit
        at += 1
    return (found if 0 < at - start <= _MOST_DIGITS else np.int64(-1)), at


@part
def _digits(data, at, end, found, counted):  # type: ignore[no-untyped-def]
    """Digits behind `found`, of which `counted` count: number, how many count, how many do not, the place behind."""
    dropped = 0
    while at < end:
        digit = byte_at(data, at) - ZERO
        if digit < 0 or digit > 9:
            break
        if counted < _MOST_DIGITS:
            found = found * 10 + digit
            counted += 1 if found else 0
        else:
            dropped += 1
        at += 1
    return found, counted, dropped, at


@part
def _exponent(data, at, end):  # type: ignore[no-untyped-def]
    """The exponent behind an "e", clipped, and the place behind; the place is -1 where there is none."""
    negative = False
    if at < end and (byte_at(data, at) == MINUS or byte_at(data, at) == PLUS):
        negative = byte_at(data, at) == MINUS
        at += 1
    found, start = 0, at
    while at < end:
        digit = byte_at(data, at) - ZERO
        if digit < 0 or digit > 9:
            break
        found = min(found * 10 + digit, _FAR)
        at += 1
    return (-found if negative else found), (at if at > start else -1)


@part
def number(data, at, end):  # type: ignore[no-untyped-def]
    """A decimal number that begins at `at`: its value, the place behind it, and NONE, EXACT or HARD (value unknown)."""
    negative = False
    if at < end and (byte_at(data, at) == MINUS or byte_at(data, at) == PLUS):
        negative = byte_at(data, at) == MINUS
        at += 1
    first = at
    found, counted, dropped, at = _digits(data, at, end, np.int64(0), 0)
    n_digits, exponent = at - first, dropped
    if at < end and byte_at(data, at) == POINT:
        point = at + 1
        found, counted, dropped_behind, at = _digits(data, point, end, found, counted)
        exponent -= at - point - dropped_behind
        dropped += dropped_behind
        n_digits += at - point
    if n_digits == 0:
        return 0.0, at, NONE
    if at < end and (byte_at(data, at) | _LOWER) == _EXPONENT_SIGN:
        power, at = _exponent(data, at + 1, end)
        if at < 0:
            return 0.0, end, NONE
        exponent += power
    if found == 0 and dropped == 0:
        return (-0.0 if negative else 0.0), at, EXACT
    if dropped > 0 or found > _EXACT_BELOW or exponent < -_MOST_EXPONENT or exponent > _MOST_EXPONENT:
        return 0.0, at, HARD
    value = float(found) * _POWERS[exponent] if exponent >= 0 else float(found) / _POWERS[-exponent]
    return (-value if negative else value), at, EXACT


@compiled
def copy_pieces(data, starts, ends, offsets, out):  # type: ignore[no-untyped-def]
    """out[offsets[i]:offsets[i + 1]] = data[starts[i]:ends[i]], uint8; writes `out`."""
    for i in range(starts.size):
        to = offsets[i]
        for at in range(starts[i], ends[i]):
            out[to] = data[at]
            to += 1


def texts(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> pa.StringArray:
    """Pieces of a buffer, less than 2 GiB together, as text."""
    offsets = np.zeros(len(starts) + 1, np.int32)
    np.cumsum(ends - starts, out=offsets[1:])
    out = np.empty(int(offsets[-1]), np.uint8)
    copy_pieces(data, starts, ends, offsets, out)
    return pa.Array.from_buffers(pa.string(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(out)])


def read_hard(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """The numbers at data[starts[i]:ends[i]] as Arrow reads them, float64[n], beyond its range infinite."""
    starts = starts + (data[starts] == PLUS)  # Arrow knows no such sign
    return texts(data, starts, ends).cast(pa.float64()).to_numpy(zero_copy_only=False)


def line_starts(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The begin of each line of a buffer, which ends with one, and the end of the last one: int64[n_lines + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(data == LINE_END) + 1])


def is_utf8(block: NDArray[np.uint8]) -> bool:
    """Whether a buffer is UTF-8, without a copy of it."""
    ends = pa.py_buffer(np.array([0, len(block)], np.int64))
    try:
        pa.LargeStringArray.from_buffers(1, ends, pa.py_buffer(block)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def lines_of_no_utf8(block: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which lines of a block are no UTF-8, bool[n_lines]. A file in another encoding has many: halving the block until
    a parser refuses each of them alone would take minutes.
    """
    found = np.zeros(len(starts) - 1, np.bool_)
    if not is_utf8(block):
        for line in np.flatnonzero(np.maximum.reduceat(block, starts[:-1]) > _LAST_ASCII).tolist():
            raw = block[starts[line] : starts[line + 1]].tobytes()
            found[line] = raw.decode(errors="ignore").encode() != raw
    return found
