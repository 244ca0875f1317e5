"""Which rows belong to which replica, decided from the shards and the job alone.

Nothing here knows how many workers there are: the same job gives the same replicas on any cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfm.averaging import automatic_averages
from dfm.ingest import Shard, Unit

PIECE_ROWS = 1 << 17
"""Rows that stay together when shards are dealt out: about one row group of a well-written file."""
TASK_ROWS = 1 << 18
"""Rows that one hashing task puts together: 40 MB of indices at 39 fields."""
MOST_TASK_ROWS = 1 << 20
"""Only row groups beyond this are cut, because whoever reads the end of a row group decodes its beginning too."""
_MANY_ROWS = 500_000
"""From so many rows a replica on, half the averages cost 0.0001 of log loss and save a third of the time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The reading tasks of every replica, and into how many slices (rounds of an epoch) its rows are dealt."""

    replicas: tuple[tuple[tuple[Unit, ...], ...], ...]
    n_rounds: int
    seed: int

    @property
    def n_replicas(self) -> int:
        """Number of local models."""
        return len(self.replicas)

    def rows_of(self, replica: int) -> int:
        """Rows of one replica."""
        return sum(unit.n_rows for task in self.replicas[replica] for unit in task)


def plan_training(
    shards: Sequence[Shard], n_replicas: int, averages_per_epoch: int | str, seed: int, rows_per_round: int = 0
) -> Plan:
    """Deal the rows out to replicas of equal size (to one row).

    Pieces of shards are put in a seeded order first: neighbouring shards are often alike (one day, one site), and
    replicas that see different rows of one mixture average better.
    """
    pieces = [piece for shard in shards for piece in _pieces(shard)]
    order = np.random.default_rng([seed, 1]).permutation(len(pieces))
    shuffled = [pieces[i] for i in order]
    total = sum(piece.n_rows for piece in pieces)
    bounds = [total * r // n_replicas for r in range(n_replicas + 1)]
    replicas = tuple(tuple(group_units(_cut(shuffled, bounds[r], bounds[r + 1]))) for r in range(n_replicas))
    return Plan(replicas, rounds_per_epoch(total, n_replicas, averages_per_epoch, rows_per_round), seed)


def rounds_per_epoch(n_rows: int, n_replicas: int, averages_per_epoch: int | str, rows_per_round: int = 0) -> int:
    """The number asked for, or for "auto" one from the size of the data: never from a clock.

    rows_per_round: rows that a replica walks between two averages; where it is given, it decides.
    """
    if rows_per_round:
        averages_per_epoch = max(1, round(n_rows / n_replicas / rows_per_round))
    if averages_per_epoch != "auto":
        return max(1, min(int(averages_per_epoch), max(n_rows // n_replicas, 1)))
    automatic = automatic_averages(n_rows, n_replicas)
    return -(-automatic // 2) if n_rows // n_replicas >= _MANY_ROWS else automatic


def plan_reading(shards: Sequence[Shard]) -> list[tuple[Unit, ...]]:
    """Tasks that read all rows of the shards in order (validation, scoring)."""
    return group_units([piece for shard in shards for piece in _pieces(shard)])


def _pieces(shard: Shard) -> list[Unit]:
    """The shard cut at row groups, into runs of at most PIECE_ROWS rows where row groups are that small."""
    pieces: list[Unit] = []
    start = stop = 0
    for n_rows in shard.row_groups:
        if stop > start and stop - start + n_rows > PIECE_ROWS:
            pieces.append(Unit(shard, start, stop))
            start = stop
        stop += n_rows
    if stop > start:
        pieces.append(Unit(shard, start, stop))
    return pieces


def _cut(pieces: Sequence[Unit], start: int, stop: int) -> list[Unit]:
    """Rows [start, stop) of the pieces laid end to end."""
    cut, position = [], 0
    for piece in pieces:
        first, last = max(start - position, 0), min(stop - position, piece.n_rows)
        if first < last:
            cut.append(Unit(piece.shard, piece.start + first, piece.start + last))
        position += piece.n_rows
    return cut


def group_units(units: Sequence[Unit]) -> list[tuple[Unit, ...]]:
    """Neighbouring units put together into tasks of about TASK_ROWS rows; units beyond MOST_TASK_ROWS are cut."""
    cut = [
        Unit(unit.shard, start, min(start + MOST_TASK_ROWS, unit.stop))
        for unit in units
        for start in range(unit.start, unit.stop, MOST_TASK_ROWS)
    ]
    tasks: list[tuple[Unit, ...]] = []
    current: list[Unit] = []
    for unit in cut:
        if current and sum(u.n_rows for u in current) + unit.n_rows > TASK_ROWS:
            tasks.append(tuple(current))
            current = []
        current.append(unit)
    return [*tasks, tuple(current)] if current else tasks
