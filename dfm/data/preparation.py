"""Partitions of hashed rows: pure functions of the shards, from cached files where they are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfm.data.building import Room, build_partition
from dfm.data.cache import cache_path, mark_used, tell_of_damage
from dfm.data.chunks import Seed, check_chunk, hash_units, no_rows
from dfm.data.coded_rows import CodedRows
from dfm.data.hashed_rows import HashedRows
from dfm.data.parquet import Unit
from dfm.data.partition import SparsePartition, by_group
from dfm.data.reading import Reading, units_key
from dfm.data.row_lookup import RowLookup
from dfm.data.units import RowUnits
from dfm.data.vocabulary import Vocabulary
from dfm.errors import DataError


def load_slices(
    reading: Reading,
    tasks: Sequence[Sequence[Unit]],
    n_slices: int,
    seed: Seed,
    vocabulary: Vocabulary,
    vocabulary_key: str,
    lookup: RowLookup,
) -> list[SparsePartition]:
    """The partitions of one replica, one per slice: from the cache, else from the chunks, else from the shards."""

    def of_tasks() -> list[list[HashedRows | CodedRows]]:
        found = [
            part_of_units(reading, units, (n_slices, None if seed is None else (*seed, number)), range(n_slices))
            for number, units in enumerate(tasks)
        ]
        return [list(parts) for parts in zip(*found, strict=True)] if found else [[] for _ in range(n_slices)]

    keys = reading.key(), [units_key(units) for units in tasks], n_slices, seed, vocabulary_key
    order = None if seed is None else (*seed, len(tasks))
    return _partitions(reading, (keys, n_slices, order), of_tasks, vocabulary, lookup)


def part_of_units(
    reading: Reading, units: Sequence[Unit], deal: tuple[int, Seed], wanted: range
) -> list[HashedRows | CodedRows]:
    """The rows of some slices of a reading task. deal: into how many it is dealt, and the seed of that."""
    chunk = hash_units(reading, units, *deal)
    check_chunk(chunk, reading, deal[0])
    return [chunk.rows.slice(int(chunk.offsets[s]), int(chunk.offsets[s + 1])) for s in wanted]


def load_parts(
    reading: Reading,
    parts: Sequence[Sequence[HashedRows | CodedRows]],
    keys: tuple[Any, ...],
    order: tuple[int, ...],
    vocabulary: Vocabulary,
    lookup: RowLookup,
) -> list[SparsePartition]:
    """The partitions of one replica, whose rows come from the reading tasks of all: parts[task][slice]. keys: all that
    makes them what they are; order: the seed of the order of rows.
    """
    n_slices = len(parts[0])
    by_slice = [[of_task[s] for of_task in parts] for s in range(n_slices)]
    return _partitions(reading, ((reading.key(), *keys), n_slices, order), lambda: by_slice, vocabulary, lookup)


def _partitions(
    reading: Reading,
    named: tuple[tuple[Any, ...], int, Seed],
    dealt_rows: Callable[[], Sequence[Sequence[HashedRows | CodedRows]]],
    vocabulary: Vocabulary,
    lookup: RowLookup,
) -> list[SparsePartition]:
    """Partitions from the cache, or of the rows that are dealt to each. named: what their files are named by, how many
    there are, and the seed of the order of rows, None for theirs.
    """
    keys, n_slices, seed = named
    if reading.units != RowUnits():
        keys = (*keys, dataclasses.asdict(reading.units))
    if reading.groups:
        keys = (*keys, reading.groups)
    paths = [cache_path(reading, "partition", *keys, s) for s in range(n_slices)]
    partitions = [_open_partition(path) for path in paths]
    if None not in partitions:
        return [partition for partition in partitions if partition is not None]
    built, room = [], Room()
    for s, (path, parts) in enumerate(zip(paths, dealt_rows(), strict=True)):
        rows = [reading.units.applied(part) for part in parts or [no_rows()]]
        order = None
        if seed is not None:
            order = np.random.default_rng((*seed, s)).permutation(sum(part.n_rows for part in rows))
        by_group(build_partition(rows, vocabulary, lookup, order, room), reading.groups).save(path)
        built.append(SparsePartition.open(path, just_saved=True))
    return built


def _open_partition(path: Path) -> SparsePartition | None:
    try:
        partition = SparsePartition.open(path)
        partition.check()
    except (DataError, KeyError, TypeError, ValueError) as error:
        tell_of_damage(path, error)
        return None
    mark_used(path)
    return partition
