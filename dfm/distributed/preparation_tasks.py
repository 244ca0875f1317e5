"""The tasks of preparing: what a worker does with a shard, with a replica's rows, with what other tasks counted.

Their names are what the dashboard shows.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import get_worker

from dfm.data.accounting import RowAccount
from dfm.data.chunks import Seed, check_chunk, hash_apart, hash_units
from dfm.data.coded_rows import CodedRows, lighter
from dfm.data.hashed_rows import HashedRows
from dfm.data.latest import latest_moments, latest_or_why
from dfm.data.number_sketches import (
    NumberSketch,
    columns_for_quantiles,
    glance_at_numbers,
    sketch_numbers,
    statistics_of,
)
from dfm.data.parquet import Unit
from dfm.data.partition import SparsePartition
from dfm.data.preparation import load_parts, load_slices, part_of_units
from dfm.data.reading import Reading
from dfm.data.row_lookup import row_lookup
from dfm.data.schema import ResolvedSchema
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import (
    FeatureCounts,
    Vocabulary,
    build_vocabulary,
    merge_counts,
    n_besides,
    spread_of,
    with_earlier,
)
from dfm.kernels.pairs import PairCount
from dfm.model.drift import Sights, Watcher, seen_bits
from dfm.training.diagnosis import FieldCounts, count_fields


@dataclass(frozen=True)
class Hashed:
    """The answer of a hashing task: counts of features, the row account; the rows lie in the worker's cache."""

    counts: FeatureCounts
    account: RowAccount
    held_out: RowAccount = field(default_factory=RowAccount)
    """The account of the rows that were held out of those."""


@dataclass(frozen=True)
class VocabularySummary:
    """Sizes that the driver needs; the vocabulary itself stays on the workers. spread: as `spread_of` has it;
    n_earlier: of the features, those that an earlier model had and no row of today; by_field: counts of today's rows
    alone, where the vocabulary has those of an earlier model, too, by which they are rare or seen once.
    """

    n_features: int
    n_factored: int
    n_distinct: int
    spread: float = 0.0
    n_earlier: int = 0
    by_field: Sequence[FieldCounts] = ()


def on_this_worker(reading: Reading) -> Reading:
    """The reading with its cache below this worker's own folder, where the path is relative."""
    if reading.cache.startswith("/"):
        return reading
    return replace(reading, cache=f"{get_worker().local_directory}/{reading.cache}")


def hash_shard(reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed) -> Hashed:
    """Hash the rows of one task into this worker's cache."""
    chunk = hash_units(on_this_worker(reading), units, n_slices, seed)
    return Hashed(chunk.counts, chunk.account)


def hash_and_hold_out(reading: Reading, held_out: Reading, units: Sequence[Unit], n_slices: int, seed: Seed) -> Hashed:
    """The same of the rows of a task that train; those that are held out go beside them."""
    chunk, others = hash_apart(on_this_worker(reading), on_this_worker(held_out), units, n_slices, seed)
    return Hashed(chunk.counts, chunk.account, others.account)


def merge_feature_counts(hashed: Sequence[Hashed], hash_bits: int) -> Hashed:
    """Sum of counts and accounts, in order."""
    counts = merge_counts([part.counts for part in hashed], hash_bits)
    return Hashed(counts, _sum(part.account for part in hashed), _sum(part.held_out for part in hashed))


def order_vocabulary(
    hashed: Hashed,
    columns: Sequence[str],
    hash_bits: int,
    min_count: int,
    min_count_factors: int,
    earlier: Vocabulary | None = None,
    fading: tuple[float, int] = (0.0, 0),
) -> Vocabulary:
    """The vocabulary of all training rows, and which indices they, or those of an earlier model, had at all.

    earlier: that of a model which training goes on from; fading: the share of its counts that counts on, and the lots
    by which that is rounded.
    """
    counts = hashed.counts if earlier is None else with_earlier(hashed.counts, earlier, *fading, hash_bits)
    found = build_vocabulary(counts, columns, hash_bits, min_count, min_count_factors)
    return replace(found, seen=seen_bits(hashed.counts, hash_bits, earlier.seen if earlier else None))


def summarise(
    vocabulary: Vocabulary, hashed: Hashed, columns: Sequence[str] = ()
) -> tuple[VocabularySummary, RowAccount, RowAccount]:
    """Sizes of the vocabulary, and the accounts of the rows that made it, and of those held out of them.

    columns: the names of the fields of one with features of an earlier model, too.
    """
    n_distinct, spread = len(hashed.counts.ids), spread_of(vocabulary.counts, hashed.account.accepted)
    summary = VocabularySummary(vocabulary.n_features, vocabulary.n_factored, n_distinct, spread)
    if columns:
        n_earlier = n_besides(vocabulary, hashed.counts)
        by_field = count_fields(vocabulary, columns, hashed.counts)
        summary = replace(summary, n_distinct=n_distinct + n_earlier, n_earlier=n_earlier, by_field=by_field)
    return summary, hashed.account, hashed.held_out


def build_partition(
    reading: Reading,
    tasks: Sequence[Sequence[Unit]],
    n_slices: int,
    seed: Seed,
    vocabulary: Vocabulary,
    vocabulary_key: str,
) -> list[SparsePartition]:
    """The partitions of one replica (or of some validation rows)."""
    lookup = row_lookup(vocabulary, vocabulary_key)
    return load_slices(on_this_worker(reading), tasks, n_slices, seed, vocabulary, vocabulary_key, lookup)


def with_factored(partitions: Sequence[SparsePartition], n_factored: int) -> list[SparsePartition]:
    """The partitions, in which the features of the first so many rows of the table own factors; nothing is copied."""
    return [replace(part, n_factored=int(np.searchsorted(part.features, n_factored))) for part in partitions]


def count_pairs(slices: Sequence[SparsePartition]) -> PairCount:
    """Pairs of a clicked and an unclicked row of one group in a replica's slices."""
    return sum((PairCount.of(partition) for partition in slices), PairCount())


def part_of_shard(
    reading: Reading, units: Sequence[Unit], deal: tuple[int, Seed], wanted: range
) -> list[HashedRows | CodedRows]:
    """The rows of some slices of one task, on their way to the replica whose slices they are."""
    parts = part_of_units(on_this_worker(reading), units, deal, wanted)
    coded = [part for part in parts if isinstance(part, CodedRows)]
    return [*lighter(coded)] if len(coded) == len(parts) else parts


def unite_parts(
    reading: Reading,
    parts: Sequence[Sequence[HashedRows | CodedRows]],
    keys: tuple[Any, ...],
    order: tuple[int, ...],
    vocabulary: Vocabulary,
    vocabulary_key: str,
) -> list[SparsePartition]:
    """The partitions of one replica, of the parts of all tasks."""
    named = (*keys, order, vocabulary_key)
    return load_parts(on_this_worker(reading), parts, named, order, vocabulary, row_lookup(vocabulary, vocabulary_key))


def sights_of_shard(
    reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed, vocabulary: Vocabulary, vocabulary_key: str
) -> Sights:
    """The values of the rows of a hashing task, as the model knows them."""
    chunk = hash_units(on_this_worker(reading), units, n_slices, seed)
    check_chunk(chunk, on_this_worker(reading), n_slices)
    lookup = row_lookup(vocabulary, vocabulary_key)
    return Watcher.of(vocabulary, reading.schema, reading.statistics, lookup).sights(chunk.rows)


def remember(vocabulary: Vocabulary, sights: Sequence[Sights]) -> Vocabulary:
    """The vocabulary, which knows how often values of training rows were missing, rare or frequent."""
    return replace(vocabulary, sights=functools.reduce(operator.add, sights).counts)


def account_of(hashed: Sequence[Hashed]) -> RowAccount:
    """Sum of the accounts."""
    return _sum(part.account for part in hashed)


def _sum(accounts: Iterable[RowAccount]) -> RowAccount:
    return sum(accounts, RowAccount())


def glance_at_shard(
    reading: Reading, units: Sequence[Unit], columns: Sequence[str], n_tasks: int
) -> dict[str, NumberSketch]:
    """Statistics of numeric columns over the first of some rows; n_tasks: that look at some."""
    return glance_at_numbers(reading, units, columns, n_tasks)


def quantile_columns(sketches: Sequence[Mapping[str, NumberSketch]], n_buckets: int) -> list[str]:
    """The columns of transform "auto" that get quantiles, by what all tasks saw of them."""
    return columns_for_quantiles(_by_column(sketches), n_buckets)


def merge_statistics(
    sketches: Sequence[Mapping[str, NumberSketch]], schema: ResolvedSchema
) -> dict[str, NumberStatistics]:
    """The statistics of columns, by what all tasks saw of them."""
    return statistics_of(_by_column(sketches), schema)


def _by_column(sketches: Sequence[Mapping[str, NumberSketch]]) -> dict[str, list[NumberSketch]]:
    return {column: [sketch[column] for sketch in sketches] for column in sketches[0]}


def latest_of_shard(reading: Reading, units: Sequence[Unit], n_rows: int) -> pa.Table | str:
    """The latest moments of some rows, and how many rows each has; or why they have no order."""
    return latest_moments(reading, units, n_rows)


def merge_latest(found: Sequence[pa.Table | str], n_rows: int, column: str) -> pa.Table | str:
    """The latest moments of them all; or why they have no order."""
    return latest_or_why(found, n_rows, column)


def sketch_shard(reading: Reading, units: Sequence[Unit], columns: Sequence[str]) -> dict[str, NumberSketch]:
    """Statistics of numeric columns over some rows."""
    return sketch_numbers(reading, units, columns)
