"""The rows of a replica by visit: which of its features each row has, in row order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.partition import SparsePartition
from dfm.kernels.blocks import padded_lanes
from dfm.kernels.tables import ParameterTable
from dfm.solvers.visits import Visits
from dfm.storage.arrays import read_only

_NO_ROWS, _NO_VALUES = np.zeros(0, np.uint32), np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Column:
    """The entries of one visit, in row order.

    rows uint32[n], or empty where every row has one; slots uint32[n], positions in `features`; values float32[n], or
    empty where all are 1. features uint32[m]: of the partition, ascending; the first `n_factored` own factors. places
    uint32[m]: where they stand in the visit.
    """

    rows: NDArray[np.uint32]
    slots: NDArray[np.uint32]
    values: NDArray[np.float32]
    features: NDArray[np.uint32]
    places: NDArray[np.uint32]
    n_factored: int


@dataclass
class State:
    """The state of a replica's rows between two visits; it can be made again from the parameters.

    seed: of the iteration; step: visits that it has walked. rows float32[n_rows, lanes + 1]: Σ_j V_j x_j and its
    padding, then the score less its target. table: the partition's parameters as they are now. loss: Σ ω loss at the
    beginning; seconds: in kernels.
    """

    seed: int
    step: int
    rows: NDArray[np.float32]
    table: ParameterTable
    loss: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Replica:
    """The rows of a replica as exact solvers walk them. `state` stays where it is: it does not travel."""

    number: int
    partition: SparsePartition
    columns: tuple[Column, ...]
    n_factors: int
    state: State | None = field(default=None, compare=False)

    def __getstate__(self) -> tuple[int, SparsePartition, tuple[Column, ...], int]:
        return self.number, self.partition, self.columns, self.n_factors

    def __setstate__(self, parts: tuple[int, SparsePartition, tuple[Column, ...], int]) -> None:
        self.number, self.partition, self.columns, self.n_factors = parts
        self.state = None

    def __sizeof__(self) -> int:
        """Bytes in memory, those of the state included, whether it is there yet or not."""
        columns = sum(
            array.nbytes
            for each in self.columns
            for array in (each.rows, each.slots, each.values, each.features, each.places)
        )
        width = 1 + padded_lanes(self.n_factors)
        of_state = 4 * width * (self.partition.n_rows + len(self.partition.features))
        return columns + of_state + self.partition.__sizeof__()


def replica_of(number: int, partition: SparsePartition, visits: Visits, n_factors: int) -> Replica:
    """The rows of a partition, visit by visit."""
    visit = visits.number[partition.features]
    order = np.argsort(visit, kind="stable").astype(np.uint32)
    bounds = np.searchsorted(visit[order], np.arange(len(visits.visits) + 1))
    slot = np.empty(len(visit), np.uint32)
    slot[order] = np.arange(len(visit)) - np.repeat(bounds[:-1], np.diff(bounds))
    counts = np.bincount(visit, partition.occurrences(), len(visits.visits)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    n_entries = int(starts[-1])
    rows, slots, values = (
        np.empty(n_entries, np.uint32),
        np.empty(n_entries, np.uint32),
        np.empty(n_entries, np.float32),
    )
    source = read_only(partition.indptr), read_only(partition.indices), read_only(partition.values)
    _by_visit((*source, partition.n_implicit), visit, slot, starts[:-1].copy(), (rows, slots, values))
    columns = []
    for at in range(len(visits.visits)):
        here, features = slice(starts[at], starts[at + 1]), order[bounds[at] : bounds[at + 1]]
        is_whole = len(rows[here]) == partition.n_rows and bool(np.all(np.diff(rows[here].astype(np.int64)) == 1))
        columns.append(
            Column(
                _NO_ROWS if is_whole else rows[here].copy(),
                slots[here].copy(),
                _NO_VALUES if np.all(values[here] == 1) else values[here].copy(),
                features,
                visits.place[partition.features[features]],
                int(np.searchsorted(features, partition.n_factored)),
            )
        )
    return Replica(number, partition, tuple(columns), n_factors)


@compiled
def _by_visit(source, visit, slot, cursors, target):  # type: ignore[no-untyped-def]
    """Writes row, slot and value of every entry where its visit stands. source: indptr, indices, values, n_implicit."""
    indptr, indices, values, n_implicit = source
    rows, slots, xs = target
    skipped = indptr[n_implicit]
    for row in range(indptr.size - 1):
        for i in range(indptr[row], indptr[row + 1]):
            at = cursors[visit[indices[i]]]
            cursors[visit[indices[i]]] += 1
            rows[at], slots[at] = row, slot[indices[i]]
            xs[at] = values[i - skipped] if row >= n_implicit else np.float32(1.0)
