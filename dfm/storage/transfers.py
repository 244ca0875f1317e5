"""Arrays on their way to another process: dataclasses that, pickled, carry a checksum of their arrays."""

from __future__ import annotations

import dataclasses
import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.errors import DamagedTransferError

Array = NDArray[Any]
T = TypeVar("T")
logger = logging.getLogger(__name__)
_FEW = 1 << 17
"""Words that NumPy adds: for a megabyte nothing is compiled."""


@compiled
def _sum_of_many(words: NDArray[np.uint64]) -> np.uint64:
    """Words, added modulo 2^64: eight parts side by side, from as many places of memory, twice as fast as in a row."""
    size = words.size // 8
    a = b = c = d = e = f = g = h = np.uint64(0)
    for i in range(size):
        a += words[i]
        b += words[i + size]
        c += words[i + 2 * size]
        d += words[i + 3 * size]
        e += words[i + 4 * size]
        f += words[i + 5 * size]
        g += words[i + 6 * size]
        h += words[i + 7 * size]
    for i in range(8 * size, words.size):
        a += words[i]
    return a + b + c + d + e + f + g + h


def sum_of_bits(arrays: Iterable[Array]) -> int:
    """A number that another bit anywhere in the arrays changes for certain: their bytes as numbers, added modulo 2^64.

    Read at the speed of memory; unlike a CRC it does not see two words that change places.
    """
    total = 0
    for array in arrays:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        raw.flags.writeable = False  # one kernel for what may be written and what may not
        words = raw[: raw.size - raw.size % 8].view(np.uint64)
        added = np.add.reduce(words) if words.size < _FEW else _sum_of_many(words)
        total += int(added) + int.from_bytes(raw[words.nbytes :], "little")
    return total % 2**64


def checked_on_its_way(what: str) -> Callable[[type[T]], type[T]]:
    """A dataclass whose objects, pickled, carry a checksum of their arrays and of those in their mappings.

    Where it does not fit on arrival that is logged, and DamagedTransferError raised: a worker then fetches them again.
    """

    def with_checksum(kind: type[T]) -> type[T]:
        def reduced(self: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            values = tuple(getattr(self, each.name) for each in dataclasses.fields(self))
            return _arrived, (kind, what, values, sum_of_bits(_arrays_in(values)))

        kind.__reduce__ = reduced  # type: ignore[method-assign]
        return kind

    return with_checksum


def _arrays_in(values: Iterable[Any]) -> Iterator[Array]:
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, Mapping):
            yield from value.values()


def _arrived(kind: type[T], what: str, values: tuple[Any, ...], checksum: int) -> T:
    if sum_of_bits(_arrays_in(values)) == checksum:
        return kind(*values)
    message = (
        f"{what} arrived with other bits than they were sent with: a network or a memory on their way to "
        f"{platform.node()} is broken. Nothing was trained on them"
    )
    logger.warning("%s; they are sent again", message)
    raise DamagedTransferError(f"{message}; run the same command again, which goes on from the last checkpoint")
