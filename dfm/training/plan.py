"""Which rows belong to which replica, decided from the shards and the job alone.

Nothing here knows how many workers there are: the same job gives the same replicas on any cluster.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dfm.averaging.rules import automatic_averages
from dfm.data.parquet import Shard, Unit
from dfm.settings.tables import TrainingSettings
from dfm.training.automatic import SLICES, SLICES_OF_MANY_ROWS, n_pilot_slices, wants_pilot

PIECE_ROWS = 1 << 17
"""Rows that stay together when shards are dealt out: about one row group of a well-written file."""
TASK_ROWS = 1 << 18
"""Rows that one hashing task puts together: 40 MB of indices at 39 fields."""
_LEAST_VALIDATION_TASKS = 8
"""Tasks that read and judge the rows to validate on, where there are as many row groups, or as many tasks that train:
each epoch waits for them.
"""
_LEAST_VALIDATION_ROWS = 1 << 15
"""Rows below which they are no more divided."""
MOST_TASK_ROWS = 1 << 20
"""Only row groups beyond this are cut, because whoever reads the end of a row group decodes its beginning too."""
_MANY_ROWS = 500_000
"""From so many rows a replica on, half the averages cost 0.0001 of log loss and save a third of the time."""


@dataclass(frozen=True)
class RoundPlan:
    """When replicas are averaged: into how many slices the rows of each are dealt, and which slices a round walks.

    Between two averages a replica walks one slice in the first epoch; in later ones the slices are walked in
    `later_rounds` rounds. epochs_before, rounds_before: of the trainings that this one goes on from.
    """

    n_slices: int
    later_rounds: int
    epochs_before: int = field(default=0, kw_only=True)
    rounds_before: int = field(default=0, kw_only=True)

    def rounds(self, epoch: int) -> list[range]:
        """The slices that each round of an epoch (from 1) walks."""
        n_rounds = self.n_rounds(epoch)
        bounds = [self.n_slices * number // n_rounds for number in range(n_rounds + 1)]
        return [range(first, last) for first, last in itertools.pairwise(bounds)]

    def n_rounds(self, epoch: int) -> int:
        """Averages of an epoch (from 1)."""
        return self.n_slices if epoch == 1 + self.epochs_before else self.later_rounds

    def rounds_until(self, epoch: int) -> int:
        """Averages of all epochs up to and including this one."""
        return self.rounds_before + self.n_slices + (epoch - 1 - self.epochs_before) * self.later_rounds

    def standing(self, epoch: int, slices: range, n_epochs: int) -> tuple[float, int]:
        """The place of a round's middle among all slices, and how many there are: a schedule follows the rows.

        n_epochs: the number of the last epoch. A round of a training before counts as a slice.
        """
        before, epochs = self.rounds_before, self.epochs_before
        middle = (slices.start + slices.stop - 1) / 2
        return before + (epoch - 1 - epochs) * self.n_slices + middle, before + (n_epochs - epochs) * self.n_slices

    @property
    def longest_round(self) -> int:
        """The most slices that a round walks."""
        return -(-self.n_slices // self.later_rounds)


@dataclass(frozen=True)
class Plan(RoundPlan):
    """Rounds, and the reading tasks of every replica."""

    replicas: tuple[tuple[tuple[Unit, ...], ...], ...]
    seed: int

    @property
    def n_replicas(self) -> int:
        """Number of local models."""
        return len(self.replicas)

    def tasks(self, mixed: bool) -> list[tuple[Unit, ...]]:
        """The reading tasks of all replicas, one replica's after the other's; mixed: few, each with rows of many."""
        tasks = [units for of_replica in self.replicas for units in of_replica]
        return group_units([unit for units in tasks for unit in units]) if mixed else tasks

    def rows_of(self, replica: int) -> int:
        """Rows of one replica."""
        return sum(unit.n_rows for task in self.replicas[replica] for unit in task)


def plan_training(shards: Sequence[Shard], training: TrainingSettings, seed: int) -> Plan:
    """Deal the rows out to replicas of equal size (to one row).

    Pieces of shards are put in a seeded order first: neighbouring shards are often alike (one day, one site), and
    replicas that see different rows of one mixture average better.
    """
    n_replicas = training.n_replicas
    pieces = [piece for shard in shards for piece in _pieces(shard)]
    order = np.random.default_rng([seed, 1]).permutation(len(pieces))
    shuffled = [pieces[i] for i in order]
    total = sum(piece.n_rows for piece in pieces)
    bounds = [total * r // n_replicas for r in range(n_replicas + 1)]
    replicas = tuple(tuple(group_units(_cut(shuffled, bounds[r], bounds[r + 1]))) for r in range(n_replicas))
    n_slices, later_rounds = averages(total, training)
    return Plan(n_slices, later_rounds, replicas, seed)


def averages(n_rows: int, training: TrainingSettings) -> tuple[int, int]:
    """Averages in the first epoch and in each later one: as asked for, or from the size of the data, never from a
    clock.

    Left to dfm, a later epoch has one for every two replicas: what only one of them has seen, the first epoch spreads.
    """
    if training.is_exact:
        return 1, 1
    n_replicas = training.n_replicas
    rows_each = n_rows // n_replicas
    is_automatic = training.averages_per_epoch == "auto" and not training.rows_per_round
    if is_automatic:
        divisor = 2 if rows_each >= _MANY_ROWS else 1
        first, later = -(-automatic_averages(n_rows, n_replicas) // divisor), -(-n_replicas // (2 * divisor))
    elif training.rows_per_round:
        first = later = max(1, round(n_rows / n_replicas / training.rows_per_round))
    else:
        first = later = int(training.averages_per_epoch)
    if training.later_averages != "auto":
        later = int(training.later_averages)
    if is_automatic and wants_pilot(training) and n_pilot_slices(SLICES, rows_each):
        first = max(first, SLICES_OF_MANY_ROWS if rows_each >= _MANY_ROWS else SLICES)
    first = max(1, min(first, rows_each))
    return first, min(later, first)


def plan_reading(shards: Sequence[Shard]) -> list[tuple[Unit, ...]]:
    """Tasks that read all rows of the shards in order (scoring)."""
    return group_units([piece for shard in shards for piece in _pieces(shard)])


Tasks = tuple[tuple[Unit, ...], ...]
"""Reading tasks, whose rows become one partition."""


def plan_validation(shards: Sequence[Shard]) -> list[Tasks]:
    """A reading task for each partition of the rows of the shards in order, smaller ones where there are few rows."""
    most_rows = _most_validation_rows(sum(shard.n_rows for shard in shards))
    return [
        (units,) for units in group_units([piece for shard in shards for piece in _pieces(shard, most_rows)], most_rows)
    ]


def plan_held_out(tasks: Sequence[tuple[Unit, ...]]) -> list[Tasks]:
    """The reading tasks for each partition of the rows that are held out of some tasks in order: whoever reads rows to
    train on then has the others, too.
    """
    sizes = [sum(unit.n_rows for unit in units) for units in tasks]
    most_rows, found, n_rows = min(_most_validation_rows(sum(sizes)), TASK_ROWS), list[list[tuple[Unit, ...]]](), 0
    for units, size in zip(tasks, sizes, strict=True):
        if not found or n_rows + size > most_rows:
            found.append([])
            n_rows = 0
        found[-1].append(units)
        n_rows += size
    return [tuple(each) for each in found]


def _most_validation_rows(total: int) -> int:
    return max(_LEAST_VALIDATION_ROWS, total // _LEAST_VALIDATION_TASKS)


def _pieces(shard: Shard, most_rows: int = PIECE_ROWS) -> list[Unit]:
    """The shard cut at row groups, into runs of at most so many rows, and PIECE_ROWS, where they are that small."""
    most_rows = min(most_rows, PIECE_ROWS)
    pieces: list[Unit] = []
    start = stop = 0
    for n_rows in shard.row_groups:
        if stop > start and stop - start + n_rows > most_rows:
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


def group_units(units: Sequence[Unit], most_rows: int = TASK_ROWS) -> list[tuple[Unit, ...]]:
    """Neighbouring units put together into tasks of so many rows, and no more than TASK_ROWS; units beyond
    MOST_TASK_ROWS are cut.
    """
    most_rows = min(most_rows, TASK_ROWS)
    cut = [
        Unit(unit.shard, start, min(start + MOST_TASK_ROWS, unit.stop))
        for unit in units
        for start in range(unit.start, unit.stop, MOST_TASK_ROWS)
    ]
    tasks: list[tuple[Unit, ...]] = []
    current: list[Unit] = []
    for unit in cut:
        if current and sum(u.n_rows for u in current) + unit.n_rows > most_rows:
            tasks.append(tuple(current))
            current = []
        current.append(unit)
    return [*tasks, tuple(current)] if current else tasks
