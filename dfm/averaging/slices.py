"""The rows of a replica's round: one slice of its rows or several, and the features they touch together."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.partition import SparsePartition


class Touched(Protocol):
    """The facts that merging needs of a replica's rows."""

    @property
    def features(self) -> NDArray[np.uint32]:
        """Touched features, as ascending rows of the table: uint32[n]."""

    @property
    def n_factored(self) -> int:
        """Features that own factors: the first ones."""

    @property
    def total_weight(self) -> float:
        """Sum of the rows' weights."""

    def occurrences(self) -> NDArray[np.int64]:
        """Occurrences of each feature in the rows."""


@dataclass(frozen=True)
class Slices:
    """Slices that are walked one after the other.

    features uint32[n]: rows of the parameter table that any of them touches, ascending; the first `n_factored` own
    factors. positions: of each slice's features in `features`.
    """

    slices: tuple[SparsePartition, ...]
    features: NDArray[np.uint32]
    n_factored: int
    positions: tuple[NDArray[np.uint32], ...]

    @classmethod
    def of(cls, slices: Sequence[SparsePartition]) -> Slices:
        """The slices in their order; one at least."""
        united, parts = unite([each.features for each in slices])
        owners = [
            int(part[each.n_factored - 1]) + 1 for part, each in zip(parts, slices, strict=True) if each.n_factored
        ]
        return cls(tuple(slices), united, max(owners, default=0), tuple(parts))

    @cached_property
    def total_weight(self) -> float:
        """Sum of the rows' weights."""
        return sum(each.total_weight for each in self.slices)

    def occurrences(self) -> NDArray[np.int64]:
        """Occurrences of each feature in the rows: int64[len(features)]."""
        total = np.zeros(len(self.features), np.int64)
        for each, position in zip(self.slices, self.positions, strict=True):
            total[position] += each.occurrences()
        return total


_Union = tuple[NDArray[np.uint32], list[NDArray[np.uint32]]]


def unite(lists: Sequence[NDArray[np.uint32]]) -> _Union:
    """The union of ascending lists, ascending, and for each list where in the union its members stand.

    It is remembered as long as the lists are there, which nobody changes: those of slices are united again in every
    epoch.
    """
    return _UNIONS.of(lists)


class _Unions:
    """Unions of lists that are still there; no more than `most_bytes` of them."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._n_bytes = most_bytes, 0
        self._kept: dict[tuple[int, ...], tuple[list[weakref.ref[NDArray[np.uint32]]], _Union]] = {}
        self._lock = threading.RLock()  # which a list asks for that is collected while this thread has it

    def of(self, lists: Sequence[NDArray[np.uint32]]) -> _Union:
        """The union, from memory where these very lists were united before."""
        key = tuple(map(id, lists))
        references, union = self._kept.get(key, ([], None))
        if union is not None and all(found() is wanted for found, wanted in zip(references, lists, strict=True)):
            return union
        union = _united(lists)
        n_bytes = _bytes_of(union)
        references = [weakref.ref(each, lambda _: self._forget(key)) for each in lists]
        with self._lock:
            self._forget(key)  # of lists that lay there before, should anybody have missed their end
            if self._n_bytes + n_bytes <= self._most_bytes:
                self._n_bytes += n_bytes
                self._kept[key] = references, union
        return union

    def _forget(self, key: tuple[int, ...]) -> None:
        """Forget a union, of which a list is gone. Others may be united from it, and are forgotten as it goes."""
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is not None:
                n_bytes = _bytes_of(kept[1])
                self._n_bytes -= n_bytes
        del kept


_UNIONS = _Unions(1 << 26)


def _bytes_of(union: _Union) -> int:
    united, positions = union
    return united.nbytes + sum(each.nbytes for each in positions)


def _united(lists: Sequence[NDArray[np.uint32]]) -> _Union:
    joined = np.concatenate(lists)
    offsets = np.cumsum([0] + [len(each) for each in lists])
    united, positions = np.empty(len(joined) + 1, np.uint32), np.empty(len(joined), np.uint32)
    size = _unite(joined, offsets[:-1].copy(), offsets[1:], (united, positions), _notes())
    united, positions = united[:size].copy(), positions
    for each in (united, positions):
        each.setflags(write=False)  # whoever asks for them again gets the same
    return united, [positions[start:stop] for start, stop in pairwise(offsets)]


_CHUNK, _SMALLEST_CHUNK = 1 << 14, 16
"""Rows of the table that are looked at together, where features stand close and where they are far apart: what is noted
of them stays in the first cache, and few rows are looked at in vain."""


def _notes() -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Notes of the rows of a chunk: whether a list has them, and their place in the union."""
    return np.zeros(_CHUNK, np.uint8), np.empty(_CHUNK, np.uint32)


@compiled
def _unite(features, cursors, ends, found, notes):  # type: ignore[no-untyped-def]
    """Unites ascending lists, one after the other in `features`, list i from cursors[i], which moves, to ends[i].

    found: arrays for the ascending union (room for one more than all features), and for where in it each feature
    stands. notes: of `_notes`. Returns the length of the union.
    """
    n_lists, (united, positions), (seen, ranks) = ends.size, found, notes
    at, chunk = np.int64(0), np.int64(_SMALLEST_CHUNK)
    while True:
        start = np.int64(1) << 40
        for each in range(n_lists):
            if cursors[each] < ends[each]:
                start = min(start, np.int64(features[cursors[each]]))
        if start == np.int64(1) << 40:
            return at
        before = at
        for each in range(n_lists):
            i = cursors[each]
            while i < ends[each] and np.int64(features[i]) < start + chunk:
                seen[np.int64(features[i]) - start] = 1
                i += 1
        for row in range(chunk):
            ranks[row] = at
            united[at] = start + row
            at += np.int64(seen[row])
            seen[row] = 0
        for each in range(n_lists):
            i = cursors[each]
            while i < ends[each] and np.int64(features[i]) < start + chunk:
                positions[i] = ranks[np.int64(features[i]) - start]
                i += 1
            cursors[each] = i
        if 8 * (at - before) > chunk:
            chunk = min(2 * chunk, np.int64(_CHUNK))
        elif 32 * (at - before) < chunk:
            chunk = max(chunk // 2, np.int64(_SMALLEST_CHUNK))
