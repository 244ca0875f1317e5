"""Summands that replicas send to be averaged: records per touched feature, added along one fixed binary tree.

The result has the same bytes whoever adds what and when: what a record does not have counts as +0, and the tree is over
replica numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.slices import unite
from dfm.compilation import compiled
from dfm.kernels.tables import Floats, first_at, of_width
from dfm.storage.arrays import read_only
from dfm.storage.transfers import checked_on_its_way

T = TypeVar("T")


Summands = NDArray[Any]
"""float32, or uint16 where halved."""


@checked_on_its_way("changes of parameters")
@dataclass(frozen=True, slots=True)
class Contribution:
    """Summands of one or more replicas, for the features they touched. Arrays may be read-only.

    features uint32[m], rows of the parameter table, ascending. touched: by block with a row per feature, a summand for
    each of them, or for the leading ones that own factors. Numbers float32[m, *]: a Δ of w (or of what w is made of), F
    of every accumulator, the squares of F ("vw" only), then the counts that the rule divides by. Vectors float32[m_f,
    *]: a Δ of V, F and squares, `lanes` columns each. shared: by block whose rows belong to no feature, float64[n_rows,
    *]: Δ and F times `rows`, the sum of the weights of the replicas' rows.

    Notation: see `dfm.averaging`. Where `is_halved`, touched are uint16: the upper halves of float32.
    """

    features: NDArray[np.uint32]
    touched: Mapping[str, Summands]
    shared: Mapping[str, NDArray[np.float64]]
    rows: float

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.touched[name] if name in self.touched else self.shared[name]

    @property
    def is_halved(self) -> bool:
        """Whether the summands are bfloat16."""
        return any(array.dtype == np.uint16 for array in self.touched.values())

    def halved(self) -> Contribution:
        """With summands rounded to bfloat16: half the bytes, and each off by at most 2^-8 of itself.

        Beyond 3.39e38 they become infinite, below 1.2e-38 the error may be larger.
        """
        return replace(self, touched={name: _upper_halves(array) for name, array in self.touched.items()})

    def whole(self) -> Contribution:
        """With float32 summands."""
        if not self.is_halved:
            return self
        return replace(self, touched={name: _from_upper_halves(array) for name, array in self.touched.items()})

    def select(self, start: int, stop: int) -> Contribution:
        """The part that falls into rows [start, stop) of the parameter table, as views."""
        first, last = first_at(self.features, [start, stop])
        touched = {name: array[first:last] for name, array in self.touched.items()}
        return Contribution(self.features[first:last], touched, self.shared, self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays: what travels."""
        return sum(array.nbytes for array in (self.features, *self.touched.values(), *self.shared.values()))


def _upper_halves(array: Summands) -> NDArray[np.uint16]:
    halves = np.empty(array.shape, np.uint16)
    _round_bits(read_only(array).view(np.uint32).reshape(-1), halves.reshape(-1))
    return halves


def _from_upper_halves(halves: Summands) -> Floats:
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


@compiled
def _round_bits(bits, halves):  # type: ignore[no-untyped-def]
    """Writes float32, as uint32[n], rounded to its upper half, to the nearest and ties to even."""
    for i in range(bits.size):
        word = bits[i]
        is_finite = (word & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
        up = np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1)) if is_finite else np.uint32(0)
        halves[i] = np.uint16((word + up) >> np.uint32(16))


_FAN_IN = 8
"""Contributions that are summed at a time, a power of two: so many are held at once."""
_CHUNK_BYTES = 1 << 18
"""Bytes of partial sums that are worked on together: they stay in a core's own cache."""


def combine(left: Contribution, right: Contribution) -> Contribution:
    """The sum of two contributions, over the union of their features."""
    return _sum([left, right])


def combine_all(contributions: Iterable[Contribution]) -> Contribution:
    """The sum of contributions in the order of their replica numbers, along the fixed tree; at least one is
    needed.

    The tree of n replicas splits them at the largest power of two below n. So it does not matter whether the
    input is replicas, or the sums of `aligned_groups` of them: the bytes are the same. The input may be a
    generator; a few contributions and about log2(n) partial sums are held at a time.
    """
    waiting: list[tuple[int, Contribution]] = []
    batch: list[Contribution] = []
    for contribution in contributions:
        batch.append(contribution)
        if len(batch) < _FAN_IN:
            continue
        size, total = 1, _sum(batch)
        batch = []
        while waiting and waiting[-1][0] == size:
            total = combine(waiting.pop()[1], total)
            size *= 2
        waiting.append((size, total))
    total = _sum(batch) if batch else waiting.pop()[1]
    while waiting:
        total = combine(waiting.pop()[1], total)
    return total


def _sum(parts: Sequence[Contribution]) -> Contribution:
    """The sum of one contribution or more along their tree. What a part does not have counts as +0."""
    parts = [part.whole() for part in parts]
    if len(parts) == 1:
        return parts[0]
    features, positions = unite([part.features for part in parts])
    touched = {name: _sum_of_block([part.touched[name] for part in parts], positions) for name in parts[0].touched}
    shared = {name: fold([part.shared[name] for part in parts], np.add) for name in parts[0].shared}
    return Contribution(features, touched, shared, fold([part.rows for part in parts], operator.add))


def _sum_of_block(arrays: Sequence[Floats], positions: Sequence[NDArray[np.uint32]]) -> Floats:
    """The sum of one block's summands; those of part i belong to the rows that positions[i] begins with."""
    owners = [position[: len(array)] for array, position in zip(arrays, positions, strict=True)]
    # Features with factors lead in every list, so they lead in the union.
    n_rows = max((int(each[-1]) + 1 for each in owners if len(each)), default=0)
    total = np.empty((n_rows, arrays[0].shape[1]), np.float32)
    _add_tree(arrays, owners, total)
    return total


def fold(values: Sequence[T], add: Callable[[T, T], T]) -> T:
    """The sum of values along their tree."""
    if len(values) == 1:
        return values[0]
    middle = 1 << (len(values) - 1).bit_length() - 1
    return add(fold(values[:middle], add), fold(values[middle:], add))


def _add_tree(parts: Sequence[Floats], positions: Sequence[NDArray[np.uint32]], out: Floats) -> None:
    """Writes the sum of parts float32[m_i, width] along their tree; row r of part i belongs to out[positions[i][r]]."""
    add_rows = _add_rows(out.shape[1])
    chunk = max(1, _CHUNK_BYTES // max(4 * out.shape[1], 1))
    bounds = np.arange(0, len(out) + chunk, chunk)
    cuts = [first_at(each, bounds) for each in positions]
    room = np.empty((len(parts).bit_length(), chunk, out.shape[1]), np.float32)
    parts, positions = [read_only(part) for part in parts], [read_only(each) for each in positions]
    for number, start in enumerate(bounds[:-1]):
        rows = out[start : start + chunk]
        sums: list[Floats] = []  # of 2 parts or of 1, of 4, of 8 …: those that wait for a sum of as many
        for i in range(len(parts)):
            if i % 2 == 0:
                sums.append(room[len(sums), : len(rows)] if sums else rows)
                sums[-1].fill(0.0)
            mine = slice(cuts[i][number], cuts[i][number + 1])
            add_rows(parts[i][mine], positions[i][mine], start, sums[-1])
            pairs = (i + 1) // 2 if i % 2 else 0
            while pairs and pairs % 2 == 0:
                right = sums.pop()
                sums[-1] += right
                pairs //= 2
        while len(sums) > 1:
            right = sums.pop()
            sums[-1] += right


def aligned_groups(n_replicas: int, most: int) -> list[range]:
    """Replica numbers in at most `most` groups of one power of two each (the last may be smaller).

    Each group is a subtree of the tree of `combine_all`.
    """
    size = 1
    while -(-n_replicas // size) > most:
        size *= 2
    return [range(first, min(first + size, n_replicas)) for first in range(0, n_replicas, size)]


def balanced_groups(n_replicas: int, n_threads: int) -> list[range]:
    """Replica numbers in groups of one power of two each (the last may be smaller) for threads that take group after
    group: the largest with which no thread has more than its share, were all groups full. Each group is a subtree.
    """
    share = -(-n_replicas // n_threads)
    size = 1 << share.bit_length() - 1
    while -(-n_replicas // (size * n_threads)) * size > share:
        size //= 2
    return [range(first, min(first + size, n_replicas)) for first in range(0, n_replicas, size)]


def groups_at_home(n_replicas: int, n_homes: int) -> list[range]:
    """Replica numbers in groups of one power of two each (the last may be smaller), of which none has two homes.

    Home h of n has the replicas from ceil(h × n_replicas / n) on. Each group is a subtree, as of `aligned_groups`.
    """
    bounds = [-(-home * n_replicas // n_homes) for home in range(1, n_homes)]
    sizes = [bound & -bound for bound in bounds if 0 < bound < n_replicas]
    size = min(sizes, default=1 << (n_replicas - 1).bit_length())
    return [range(first, min(first + size, n_replicas)) for first in range(0, n_replicas, size)]


@of_width
def _add_rows(width: int) -> Any:
    """add(source, positions, start, target): target[positions - start] += source, rows of float32[width]."""

    @compiled
    def add(source, positions, start, target):  # type: ignore[no-untyped-def]
        n_columns = width if width else source.shape[1]
        for row in range(source.shape[0]):
            place = np.intp(positions[row]) - start
            for column in range(n_columns):
                target[place, column] += source[row, column]

    return add
