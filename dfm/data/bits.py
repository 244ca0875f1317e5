"""Instructions on bits that Numba has no name for."""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _trailing_zeros() -> Any:
    """A function (uint64) -> int64: the zeros below the lowest bit that is set; 64 of zero."""
    if numba.config.DISABLE_JIT:
        return lambda word: (int(word) & -int(word)).bit_length() - 1 if word else 64

    @intrinsic
    def count(typing_context, word):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

        return types.int64(types.uint64), codegen

    return count


trailing_zeros = _trailing_zeros()
