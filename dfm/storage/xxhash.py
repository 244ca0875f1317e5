"""XXH64, a hash of bytes that runs at the speed of memory: of the values of columns, and of files' contents.

Collet's xxHash specification, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from dfm.compilation import compiled, part

_P1, _P2, _P3 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)
_P4, _P5 = np.uint64(0x85EBCA77C2B2AE63), np.uint64(0x27D4EB2F165667C5)


def _load(width: int) -> Any:
    """A function (bytes, offset) -> uint64: `width` little-endian bytes, unaligned, in one machine load."""
    if numba.config.DISABLE_JIT:
        return lambda data, offset: np.uint64(int.from_bytes(bytes(data[offset : offset + width]), "little"))

    @intrinsic
    def load(typing_context, data, offset):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            array_type = signature.args[0]
            array = context.make_array(array_type)(context, builder, arguments[0])
            pointer = cgutils.get_item_pointer(context, builder, array_type, array, [arguments[1]], wraparound=False)
            word = ir.IntType(8 * width)
            loaded = builder.load(builder.bitcast(pointer, word.as_pointer()), align=1)
            return loaded if width == 8 else builder.zext(loaded, ir.IntType(64))

        return types.uint64(data, types.intp), codegen

    return load


_load8, _load4 = _load(8), _load(4)


@part
def _rotate(x, bits):  # type: ignore[no-untyped-def]
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@part
def _round(accumulator, lane):  # type: ignore[no-untyped-def]
    return _rotate(accumulator + lane * _P2, 31) * _P1


@part
def _merge_round(hashed, accumulator):  # type: ignore[no-untyped-def]
    return (hashed ^ _round(np.uint64(0), accumulator)) * _P1 + _P4


@compiled
def xxh64(data, start, stop, seed):  # type: ignore[no-untyped-def]
    """XXH64 of data[start:stop] (uint8 array), uint64."""
    position = start
    if stop - start >= 32:
        a, b, c, d = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
        while position + 32 <= stop:
            a = _round(a, _load8(data, position))
            b = _round(b, _load8(data, position + 8))
            c = _round(c, _load8(data, position + 16))
            d = _round(d, _load8(data, position + 24))
            position += 32
        hashed = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        hashed = _merge_round(_merge_round(_merge_round(_merge_round(hashed, a), b), c), d)
    else:
        hashed = seed + _P5
    hashed += np.uint64(stop - start)
    while position + 8 <= stop:
        hashed = _rotate(hashed ^ _round(np.uint64(0), _load8(data, position)), 27) * _P1 + _P4
        position += 8
    if position + 4 <= stop:
        hashed = _rotate(hashed ^ (_load4(data, position) * _P1), 23) * _P2 + _P3
        position += 4
    while position < stop:
        hashed = _rotate(hashed ^ (np.uint64(data[position]) * _P5), 11) * _P1
        position += 1
    return _avalanche(hashed)


@part
def _avalanche(hashed):  # type: ignore[no-untyped-def]
    hashed = (hashed ^ (hashed >> np.uint64(33))) * _P2
    hashed = (hashed ^ (hashed >> np.uint64(29))) * _P3
    return hashed ^ (hashed >> np.uint64(32))


@part
def xxh64_of_words(left, right, seed):  # type: ignore[no-untyped-def]
    """XXH64 of the 16 bytes of two words, little endian, each uint64."""
    hashed = seed + _P5 + np.uint64(16)
    hashed = _rotate(hashed ^ _round(np.uint64(0), left), 27) * _P1 + _P4
    hashed = _rotate(hashed ^ _round(np.uint64(0), right), 27) * _P1 + _P4
    return _avalanche(hashed)


def hash_bytes(value: bytes | NDArray[np.uint8], seed: int = 0) -> int:
    """XXH64 of some bytes, as an unsigned 64-bit integer."""
    data = np.frombuffer(value, np.uint8) if len(value) else np.zeros(1, np.uint8)
    data = data.view()
    data.flags.writeable = False  # one kernel for what may be written and what may not
    return int(xxh64(data, 0, len(value), np.uint64(seed)))
