"""From shards to partitions on a cluster: statistics, hashing, the vocabulary, one list of partitions per replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from distributed import Client, Future, get_worker

from dfm.data.accounting import RowAccount
from dfm.data.parquet import Unit
from dfm.data.partition import SparsePartition
from dfm.data.preparation import (
    NumberSketch,
    Reading,
    Seed,
    check_labels,
    columns_for_quantiles,
    columns_with_statistics,
    fingerprint,
    glance_at_numbers,
    hash_units,
    load_slices,
    sketch_numbers,
    statistics_of,
    units_key,
)
from dfm.data.transforms import AUTO
from dfm.data.units import RowUnits, units_of
from dfm.data.vocabulary import FeatureCounts, Vocabulary, build_vocabulary, merge_counts, row_lookup
from dfm.distributed.cluster.watch import Watch
from dfm.model.objective import takes_any_unit
from dfm.settings.job import Job
from dfm.training.plan import Plan

Progress = Callable[[str, int, int], None]
"""Called with stage, rows done, rows in all."""
_FAN_IN = 16
_NEVER = 2**62
"""More occurrences than any feature has: a linear model gives factors to none."""


@dataclass(frozen=True)
class Hashed:
    """What one hashing task tells: counts of features, the row account; the rows lie in the worker's cache."""

    counts: FeatureCounts
    account: RowAccount


@dataclass(frozen=True)
class Prepared:
    """Futures of everything that training walks, and what is known of it.

    replicas: per replica a list of SparsePartition, one per slice; validation: lists of SparsePartition.
    """

    reading: Reading
    vocabulary: Future
    vocabulary_key: str
    summary: VocabularySummary
    replicas: list[Future]
    validation: list[Future]
    account: RowAccount
    validation_account: RowAccount


@dataclass(frozen=True)
class VocabularySummary:
    """Sizes that the driver needs; the vocabulary itself stays on the workers."""

    n_features: int
    n_factored: int
    n_distinct: int


def home_of(number: int, total: int, homes: Sequence[str]) -> str:
    """The worker that item `number` of `total` prefers: neighbours go together, every worker gets its share."""
    return homes[number * len(homes) // max(total, 1)]


def _local(reading: Reading) -> Reading:
    """The reading with its cache below this worker's own folder, where the path is relative."""
    if reading.cache.startswith("/"):
        return reading
    return replace(reading, cache=f"{get_worker().local_directory}/{reading.cache}")


# The names of these functions are what the dashboard shows.


def hash_shard(reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed) -> Hashed:
    """Hash the rows of one task into this worker's cache."""
    chunk = hash_units(_local(reading), units, n_slices, seed)
    return Hashed(chunk.counts, chunk.account)


def merge_feature_counts(hashed: Sequence[Hashed], hash_bits: int) -> Hashed:
    """Sum of counts and accounts, in order."""
    account = sum((part.account for part in hashed), RowAccount())
    return Hashed(merge_counts([part.counts for part in hashed], hash_bits), account)


def order_vocabulary(
    hashed: Hashed, columns: Sequence[str], hash_bits: int, min_count: int, min_count_factors: int
) -> Vocabulary:
    """The vocabulary of all training rows."""
    return build_vocabulary(hashed.counts, columns, hash_bits, min_count, min_count_factors)


def summarise(vocabulary: Vocabulary, hashed: Hashed) -> tuple[VocabularySummary, RowAccount]:
    """Sizes of the vocabulary, and the account of the rows that made it."""
    return (
        VocabularySummary(vocabulary.n_features, vocabulary.n_factored, len(hashed.counts.ids)),
        hashed.account,
    )


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
    return load_slices(_local(reading), tasks, n_slices, seed, vocabulary, vocabulary_key, lookup)


def account_of(hashed: Sequence[Hashed]) -> RowAccount:
    """Sum of the accounts."""
    return sum((part.account for part in hashed), RowAccount())


def glance_at_shard(reading: Reading, units: Sequence[Unit], columns: Sequence[str]) -> dict[str, NumberSketch]:
    """Statistics of numeric columns over the first of some rows."""
    return glance_at_numbers(reading, units, columns)


def sketch_shard(reading: Reading, units: Sequence[Unit], columns: Sequence[str]) -> dict[str, NumberSketch]:
    """Statistics of numeric columns over some rows."""
    return sketch_numbers(reading, units, columns)


# ----------------------------------------------------------------------------------------------------------


def learn_statistics(watch: Watch, reading: Reading, plan: Plan, progress: Progress) -> Reading:
    """The reading with quantile boundaries, means and deviations of the training rows, where the schema needs them.

    Columns of transform "auto" are read as a whole only where the beginning of every task says that they may need it.
    """
    wanted = columns_with_statistics(reading.schema)
    tasks = [units for replica in plan.replicas for units in replica]
    glance = [column for column, transform in wanted.items() if transform == AUTO]
    if glance:
        futures = watch.client.map(glance_at_shard, [reading] * len(tasks), tasks, columns=glance, pure=False)
        seen = _gathered(watch, futures)
        chosen = columns_for_quantiles(seen, reading.schema.quantile_buckets)
        wanted = {column: kind for column, kind in wanted.items() if kind != AUTO or column in chosen}
    if not wanted:
        return reading
    futures = watch.client.map(sketch_shard, [reading] * len(tasks), tasks, columns=list(wanted), pure=False)
    follow(watch, futures, [_n_rows(units) for units in tasks], "statistics", progress)
    return replace(reading, statistics=statistics_of(_gathered(watch, futures), reading.schema))


def _gathered(watch: Watch, futures: Sequence[Future]) -> dict[str, list[NumberSketch]]:
    """The sketches of all tasks, by column."""
    for future in futures:
        watch.wait(future)
    sketches: list[dict[str, NumberSketch]] = watch.client.gather(futures)
    return {column: [sketch[column] for sketch in sketches] for column in sketches[0]}


def prepare(
    watch: Watch,
    job: Job,
    reading: Reading,
    plan: Plan,
    validation: tuple[Reading, list[tuple[Unit, ...]]],
    progress: Progress,
) -> Prepared:
    """Hash training and validation rows, agree on the vocabulary, build all partitions."""
    client, homes = watch.client, watch.addresses()
    validation_reading, validation_tasks = validation
    validation_reading = replace(validation_reading, statistics=reading.statistics)
    hashed, sizes = _hash_replicas(client, reading, plan, homes)
    held_out = [
        client.submit(
            hash_shard, validation_reading, units, 1, None, workers=[home_of(i, len(validation_tasks), homes)],
            allow_other_workers=True, pure=False,
        )
        for i, units in enumerate(validation_tasks)
    ]  # fmt: skip
    follow(watch, hashed + held_out, sizes + [_n_rows(units) for units in validation_tasks], "hash", progress)
    merged = _merge_all(client, hashed, job.model.hash_bits)
    vocabulary, key = _vocabulary(client, job, reading, plan, merged)
    summary, account = watch.result(client.submit(summarise, vocabulary, merged, pure=False))
    account.check(job.data.on_bad_rows, job.data.max_bad_fraction)
    check_labels(account, reading, [unit for units in plan.replicas[0] for unit in units])
    standardizes = takes_any_unit(job.model.task, job.model.loss)
    units = units_of(account, standardizes, bool(reading.schema.weight))
    reading = replace(reading, units=units, clip=account.labels.range if job.model.clip else None)
    validation_reading = replace(validation_reading, units=RowUnits(units.label))
    validation_account = RowAccount()
    if held_out:
        validation_account = watch.result(client.submit(account_of, held_out, pure=False))
        validation_account.check(job.data.on_bad_rows, job.data.max_bad_fraction)
    replicas = [
        client.submit(
            build_partition, reading, plan.replicas[r], plan.n_slices, (plan.seed, r), vocabulary, key,
            workers=[home_of(r, plan.n_replicas, homes)], allow_other_workers=True, pure=False,
        )
        for r in range(plan.n_replicas)
    ]  # fmt: skip
    scored = [
        client.submit(
            build_partition, validation_reading, [units], 1, None, vocabulary, key,
            workers=[home_of(i, len(validation_tasks), homes)], allow_other_workers=True, pure=False,
        )
        for i, units in enumerate(validation_tasks)
    ]  # fmt: skip
    sizes = [plan.rows_of(r) for r in range(plan.n_replicas)] + [_n_rows(units) for units in validation_tasks]
    follow(watch, replicas + scored, sizes, "build", progress)
    return Prepared(reading, vocabulary, key, summary, replicas, scored, account, validation_account)


def _hash_replicas(
    client: Client, reading: Reading, plan: Plan, homes: Sequence[str]
) -> tuple[list[Future], list[int]]:
    futures, sizes = [], []
    for r, tasks in enumerate(plan.replicas):
        for number, units in enumerate(tasks):
            futures.append(
                client.submit(
                    hash_shard, reading, units, plan.n_slices, (plan.seed, r, number),
                    workers=[home_of(r, plan.n_replicas, homes)], allow_other_workers=True, pure=False,
                )
            )  # fmt: skip
            sizes.append(_n_rows(units))
    return futures, sizes


def _merge_all(client: Client, hashed: list[Future], hash_bits: int) -> Future:
    """Sum along a tree, so that no worker holds the counts of all tasks at once."""
    while True:
        groups = [hashed[i : i + _FAN_IN] for i in range(0, len(hashed), _FAN_IN)]
        hashed = [client.submit(merge_feature_counts, group, hash_bits, pure=False) for group in groups]
        if len(hashed) == 1:
            return hashed[0]


def _vocabulary(client: Client, job: Job, reading: Reading, plan: Plan, merged: Future) -> tuple[Future, str]:
    columns = [entry.name for entry in reading.schema.fields]
    least = job.model.min_count_factors if job.model.n_factors else _NEVER
    knobs = job.model.hash_bits, job.model.min_count, least
    rows = sorted(units_key([unit for tasks in plan.replicas for units in tasks for unit in units]), key=str)
    future = client.submit(order_vocabulary, merged, columns, *knobs, pure=False)
    return future, fingerprint(reading.key(), knobs, rows)


def _n_rows(units: Sequence[Unit]) -> int:
    return sum(unit.n_rows for unit in units)


def follow(watch: Watch, futures: Sequence[Future], sizes: Sequence[int], stage: str, progress: Progress) -> None:
    """Report rows as tasks finish; the first error ends the wait and is raised here."""
    rows = dict(zip(futures, sizes, strict=True))
    done, total = 0, sum(sizes)
    progress(stage, 0, total)
    for future in watch.as_completed(futures):
        done += rows[future]
        progress(stage, done, total)
