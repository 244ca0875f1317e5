"""From shards to partitions on a cluster: statistics, hashing, the vocabulary, one list of partitions per replica."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
from distributed import Future

from dfm.data.accounting import RowAccount
from dfm.data.chunks import Seed, check_labels
from dfm.data.draw import Draw, Sampling
from dfm.data.number_sketches import columns_with_statistics
from dfm.data.parquet import Unit
from dfm.data.reading import Reading, fingerprint, units_key
from dfm.data.transforms import AUTO, NumberStatistics
from dfm.data.units import RowUnits, units_of
from dfm.distributed.cluster.connect import cache_directory
from dfm.distributed.cluster.watch import Watch, home_of
from dfm.distributed.preparation_tasks import (
    VocabularySummary,
    account_of,
    build_partition,
    count_pairs,
    glance_at_shard,
    hash_and_hold_out,
    hash_shard,
    latest_of_shard,
    merge_feature_counts,
    merge_latest,
    merge_statistics,
    order_vocabulary,
    part_of_shard,
    quantile_columns,
    sights_of_shard,
    sketch_shard,
    summarise,
    unite_parts,
)
from dfm.distributed.progress import follow, progress_of
from dfm.distributed.run import Run
from dfm.errors import DataError
from dfm.kernels.pairs import PairCount
from dfm.model.accumulators import Growth
from dfm.model.warm_start import begun_growth
from dfm.training.inputs import bound_in, nothing_left

logger = logging.getLogger(__name__)
_FAN_IN = 16
_REMEMBERED_ROWS = 1_000_000
"""Training rows that are enough to know how frequent values are."""
ROWS_TO_LOOK_AT = 200_000
"""Rows that a report is made of, where more validate."""
_NEVER = 2**62
"""More occurrences than any feature has: a linear model gives factors to none."""


@dataclass(frozen=True)
class Prepared:
    """Futures of everything that training walks, and what is known of it.

    replicas: per replica a list of SparsePartition, one per slice; validation: lists of SparsePartition.
    vocabulary_key: its fingerprint, and part of the names of the partitions' files. origin: the rows that these are,
    with factors for other features; None where they have files of their own.
    """

    reading: Reading
    vocabulary: Future
    vocabulary_key: str
    summary: VocabularySummary
    replicas: list[Future]
    validation: list[Future]
    account: RowAccount
    validation_account: RowAccount
    held_out: Reading
    """The reading of the rows that validate."""
    sights: Sequence[Future] = ()
    """Counts of missing, rare and frequent values, task by task of some: what a model is to remember."""
    pairs: PairCount | None = None
    """The pairs of an epoch, and how many rows are in some, where the loss is of pairs."""
    begun: Growth | None = None
    """The growth that accumulators begin with, where that of an earlier model is handed on."""
    origin: Prepared | None = None
    opened: dict[str, list[Future]] = field(default_factory=dict)
    """The partitions of all replicas on single workers, by address (`stretches.brought_together`)."""
    judged: dict[str, list[Future]] = field(default_factory=dict)
    """Likewise those of rows that validate (`stretches.judged_together`)."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held by who looks for these, or adds some: trainings begin side by side."""


def prepare(run: Run) -> Prepared:
    """Hash training and validation rows, agree on the vocabulary, build all partitions."""
    training, validation = _readings(run)
    share = run.job.data.sample_negatives
    training = replace(training, sampling=Sampling(share, run.job.model.seed) if share < 1 else None)
    group = run.job.schema.group
    training = replace(training, group_column=group if run.work.spec.is_paired else "")
    training = replace(training, statistics=run.warm.statistics if run.warm else _learn_statistics(run, training))
    validation = replace(validation, statistics=training.statistics, group_column=group)
    hashed, judged = _hash_rows(run, training, validation)
    merged = _merge_all(run.watch, hashed, run.job.model.hash_bits)
    wanted = _wanted_of(run, training)
    vocabulary, key, begun = _vocabulary(run, training, merged, wanted)
    told = run.watch.submit(summarise, vocabulary, merged, wanted[0] if run.warm else ())
    summary, account, held_out = run.watch.result(told)
    if judged:
        held_out = run.watch.result(run.watch.submit(account_of, judged))
    _check_accounts(run, training, account, held_out)
    _check_rows(run, validation, account, held_out)
    units = units_of(account, run.order.objective.takes_any_unit, bool(training.schema.weight))
    training = replace(training, units=units, clip=account.labels.range if run.job.model.clip else None)
    validation = replace(validation, units=RowUnits(units.label))
    replicas, scored = _build_partitions(run, (training, validation), vocabulary, key)
    return Prepared(
        reading=training,
        vocabulary=vocabulary,
        vocabulary_key=key,
        summary=summary,
        replicas=replicas,
        validation=scored,
        account=account,
        validation_account=held_out,
        held_out=validation,
        sights=_sights(run, training, vocabulary, key),
        pairs=_pairs(run, replicas) if run.work.spec.is_paired else None,
        begun=run.watch.result(begun) if begun else None,
    )


def plain_reading(run: Run) -> Reading:
    """The reading of all rows of a shard."""
    job = run.job
    return Reading(
        run.inputs.schema,
        job.model.hash_bits,
        job.model.task,
        on_bad_rows=job.data.on_bad_rows,
        label_kind=run.order.objective.label_kind,
        cache=cache_directory(job.cluster, run.client),
        groups=run.work.spec.groups,
        storage_options=job.data.storage_options,
        negative_rate=job.data.negative_rate,
    )


def _readings(run: Run) -> tuple[Reading, Reading]:
    """The reading of training rows, and that of validation rows."""
    split, reading = run.inputs.split, plain_reading(run)
    lots = split.lots
    if not lots:
        bound, n_rows = split.bound, sum(shard.n_rows for shard in run.inputs.validation)
        if not bound and split.time:
            bound, n_rows = _latest_bound(run, reading)
        if bound or not split.n_rows:
            judged = replace(reading, share_aside=_share_aside(run, n_rows))
            return replace(reading, time_until=bound), replace(judged, time_from=bound, time_until=split.until)
        lots = 0.0, split.n_rows / run.inputs.n_rows
    group = run.job.schema.group if run.work.spec.is_paired else ""
    judged = replace(reading, share_aside=_share_aside(run, split.n_rows))
    return replace(reading, draw=Draw(*lots, False, group)), replace(judged, draw=Draw(*lots, True, group))


def _share_aside(run: Run, n_rows: int) -> float:
    """The share of so many rows that a report is to look at, or up to twice as much: a power of two, so that hashed
    rows stay what they are when some are added. 0 where no report is wanted, or nobody knows how many there will be.
    """
    if not n_rows or not run.job.output.report:
        return 0.0
    return min(1.0, 2.0 ** math.ceil(math.log2(ROWS_TO_LOOK_AT / n_rows)))


def _latest_bound(run: Run, reading: Reading) -> tuple[str, int]:
    """The moment from which on the rows lie that are held out, and how many; "" where there is none that suits."""
    split = run.inputs.split
    return bound_in([latest_rows(run, reading, split.n_rows)], split, run.inputs.n_rows)


def latest_rows(run: Run, reading: Reading, n_rows: int) -> pa.Table | str:
    """The moments of the latest so many rows of the training shards; or why they have no order."""
    tasks = [units for tasks in run.inputs.validation_tasks for units in tasks]
    found = [run.watch.submit(latest_of_shard, reading, units, n_rows) for units in tasks]
    follow(run.watch, found, [_n_rows(units) for units in tasks], "latest", progress_of(run))
    while len(found) > 1:
        groups = [found[i : i + _FAN_IN] for i in range(0, len(found), _FAN_IN)]
        found = [run.watch.submit(merge_latest, group, n_rows, reading.schema.time) for group in groups]
    latest: pa.Table | str = run.watch.result(found[0])
    return latest


def _learn_statistics(run: Run, reading: Reading) -> Mapping[str, NumberStatistics]:
    """Quantile boundaries, means and deviations of the training rows, of the columns whose transforms need them.

    Columns of transform "auto" are read as a whole only where the beginning of every task says that they may need it.
    """
    wanted = columns_with_statistics(reading.schema)
    tasks = [units for replica in run.inputs.plan.replicas for units in replica]
    glance = [column for column, transform in wanted.items() if transform == AUTO]
    if glance:
        seen = [run.watch.submit(glance_at_shard, reading, units, glance, len(tasks)) for units in tasks]
        chosen = run.watch.result(run.watch.submit(quantile_columns, seen, reading.schema.quantile_buckets))
        wanted = {column: kind for column, kind in wanted.items() if kind != AUTO or column in chosen}
    if not wanted:
        return reading.statistics
    futures = [run.watch.submit(sketch_shard, reading, units, list(wanted)) for units in tasks]
    follow(run.watch, futures, [_n_rows(units) for units in tasks], "statistics", progress_of(run))
    found: Mapping[str, NumberStatistics] = run.watch.result(
        run.watch.submit(merge_statistics, futures, reading.schema)
    )
    return found


@dataclass(frozen=True)
class _Task:
    """A hashing task: its place among how many, its rows, and into how many slices they are dealt, by which seed."""

    place: tuple[int, int]
    units: Sequence[Unit]
    deal: tuple[int, Seed]


def _tasks(run: Run) -> list[_Task]:
    """The tasks that hash training rows. Each deals the rows of a replica into its slices; where groups stay together,
    into those of all replicas, each task by the same lots: then they are few, since all replicas ask each of them.
    """
    plan, is_mixed = run.inputs.plan, run.work.spec.is_paired
    if not is_mixed:
        return [
            _Task((r, plan.n_replicas), units, (plan.n_slices, (plan.seed, r, number)))
            for r, tasks in enumerate(plan.replicas)
            for number, units in enumerate(tasks)
        ]
    every = plan.tasks(is_mixed)
    n_slices = plan.n_slices * plan.n_replicas
    return [_Task((i, len(every)), units, (n_slices, (plan.seed, i))) for i, units in enumerate(every)]


def _hash_rows(run: Run, training: Reading, validation: Reading) -> tuple[list[Future], list[Future]]:
    """Futures of what hashing told, task by task, once all of them are done: of training rows, with those held out of
    them, and of rows that only validate.
    """
    tasks, addresses = _tasks(run), run.watch.addresses()
    homes = [home_of(*task.place, addresses) for task in tasks]
    submit, sizes = run.watch.submit, [_n_rows(task.units) for task in tasks]
    judged: list[Future] = []
    if run.inputs.split.is_needed:
        hashed = [
            submit(hash_and_hold_out, training, validation, task.units, *task.deal, near=near)
            for task, near in zip(tasks, homes, strict=True)
        ]
    else:
        hashed = [
            submit(hash_shard, training, task.units, *task.deal, near=near)
            for task, near in zip(tasks, homes, strict=True)
        ]
        judged = [
            submit(hash_shard, validation, units, 1, None, near=home_of(*place, addresses))
            for units, place in tasks_to_judge(run)
        ]
        sizes += [_n_rows(units) for units, _ in tasks_to_judge(run)]
    follow(run.watch, hashed + judged, sizes, "hash", progress_of(run))
    return hashed, judged


def tasks_to_judge(run: Run) -> list[tuple[Sequence[Unit], tuple[int, int]]]:
    """The tasks that read rows that validate, each with its place among those that have them near."""
    tasks = run.inputs.validation_tasks
    if run.inputs.split.is_needed:
        return [(task.units, task.place) for task in _tasks(run)]
    return [(units, (number, len(tasks))) for number, (units,) in enumerate(tasks)]


def places_to_judge(run: Run) -> list[tuple[int, int]]:
    """The place of each partition of rows that validate: that of the first task that reads some of them."""
    places = [place for _, place in tasks_to_judge(run)]
    sizes = [len(tasks) for tasks in run.inputs.validation_tasks]
    return [places[at] for at in itertools.accumulate(sizes[:-1], initial=0)] if sizes else []


def _merge_all(watch: Watch, hashed: list[Future], hash_bits: int) -> Future:
    """Sum along a tree, so that no worker holds the counts of all tasks at once."""
    while True:
        groups = [hashed[i : i + _FAN_IN] for i in range(0, len(hashed), _FAN_IN)]
        hashed = [watch.submit(merge_feature_counts, group, hash_bits) for group in groups]
        if len(hashed) == 1:
            return hashed[0]


_Wanted = tuple[Sequence[str], int, int, int]


def _wanted_of(run: Run, reading: Reading) -> _Wanted:
    """The columns of a vocabulary and its knobs, as `order_vocabulary` takes them."""
    model = run.job.model
    least = model.min_count_factors if model.n_factors else _NEVER
    return [entry.name for entry in reading.schema.fields], model.hash_bits, model.min_count, least


def _vocabulary(run: Run, reading: Reading, merged: Future, wanted: _Wanted) -> tuple[Future, str, Future | None]:
    """The vocabulary and its key; and the growth that accumulators of its features begin with, or None."""
    units = [unit for tasks in run.inputs.plan.replicas for task in tasks for unit in task]
    made_of: tuple[object, ...] = reading.key(), wanted[1:], sorted(units_key(units), key=str)
    if run.warm is None:
        return run.watch.submit(order_vocabulary, merged, *wanted), fingerprint(*made_of), None
    earlier = run.of_start(run.warm.vocabulary)
    fading = 1.0 - run.warm.decay, int(run.warm.sha256[:8], 16)
    future = run.watch.submit(order_vocabulary, merged, *wanted, earlier, fading)
    begun = None
    if run.warm.growth is not None:
        told = run.work.layout, future, earlier, run.warm.growth, run.warm.decay
        begun = run.watch.submit(begun_growth, *told)
    return future, fingerprint(*made_of, run.warm.identity, run.warm.decay), begun


def _sights(run: Run, reading: Reading, vocabulary: Future, key: str) -> list[Future]:
    """Counts of training rows that a model is to remember: of all, or of evenly spaced hashing tasks with about a
    million, which their workers have at hand. Nobody waits for them before a model is published.
    """
    tasks, addresses = _tasks(run), run.watch.addresses()
    n_chosen = max(1, math.ceil(len(tasks) * min(1.0, _REMEMBERED_ROWS / max(run.inputs.n_rows, 1))))
    return [
        run.watch.submit(
            *(sights_of_shard, reading, task.units, *task.deal, vocabulary, key),
            near=home_of(*task.place, addresses),
            priority=-1,
        )
        for task in (tasks[at * len(tasks) // n_chosen] for at in range(n_chosen))
    ]


def _check_accounts(run: Run, reading: Reading, account: RowAccount, held_out: RowAccount) -> None:
    """DataError where too many rows are bad, or labels teach nothing; a warning where their unit does not suit."""
    data, plan = run.job.data, run.inputs.plan
    account.check(data.on_bad_rows, data.max_bad_fraction)
    check_labels(account, reading, [unit for units in plan.replicas[0] for unit in units])
    held_out.check(data.on_bad_rows, data.max_bad_fraction)
    if told := run.order.objective.told_of_unit(account.labels.deviation):
        logger.warning("column %r: %s", reading.schema.label, told)


def _build_partitions(
    run: Run, readings: tuple[Reading, Reading], vocabulary: Future, key: str
) -> tuple[list[Future], list[Future]]:
    """Futures of the partitions of every replica, and of the validation rows, once all of them are done."""
    (training, validation), plan = readings, run.inputs.plan
    watch, addresses = run.watch, run.watch.addresses()
    build = _united if run.work.spec.is_paired else _of_own_rows
    replicas = build(run, training, vocabulary, key)
    scored = [
        judged_near(home_of(*place, addresses), run, validation, vocabulary, key, number)
        for number, place in enumerate(places_to_judge(run))
    ]
    sizes = _rows_of_both(run, [plan.rows_of(r) for r in range(plan.n_replicas)])
    follow(watch, replicas + scored, sizes, "build", progress_of(run))
    return replicas, scored


def _of_own_rows(run: Run, reading: Reading, vocabulary: Future, key: str) -> list[Future]:
    """Partitions of every replica, of the rows that the plan gives it."""
    addresses, n_replicas = run.watch.addresses(), run.inputs.plan.n_replicas
    near = [home_of(number, n_replicas, addresses) for number in range(n_replicas)]
    return [replica_near(near[number], run, reading, vocabulary, key, number) for number in range(n_replicas)]


def replica_near(near: str, run: Run, reading: Reading, vocabulary: Future, key: str, number: int) -> Future:
    """The partitions of a replica, of the rows that the plan gives it, on the worker of this address."""
    plan = run.inputs.plan
    deal = plan.n_slices, (plan.seed, number)
    return run.watch.submit(build_partition, reading, plan.replicas[number], *deal, vocabulary, key, near=near)


def judged_near(near: str, run: Run, reading: Reading, vocabulary: Future, key: str, number: int) -> Future:
    """A list of partitions of rows that validate, of this number, on the worker of this address."""
    tasks = run.inputs.validation_tasks[number]
    return run.watch.submit(build_partition, reading, tasks, 1, None, vocabulary, key, near=near)


def _united(run: Run, reading: Reading, vocabulary: Future, key: str) -> list[Future]:
    """Partitions of every replica, of whole groups, whose rows come from all tasks."""
    plan, addresses, tasks = run.inputs.plan, run.watch.addresses(), _tasks(run)
    wanted = [range(r * plan.n_slices, (r + 1) * plan.n_slices) for r in range(plan.n_replicas)]
    names = [units_key(task.units) for task in tasks], plan.n_replicas, plan.n_slices
    found = []
    for r, slices in enumerate(wanted):
        parts = [
            run.watch.submit(
                *(part_of_shard, reading, task.units, task.deal, slices),
                near=home_of(*task.place, addresses),
            )
            for task in tasks
        ]
        near = home_of(r, plan.n_replicas, addresses)
        found.append(run.watch.submit(unite_parts, reading, parts, names, (plan.seed, r), vocabulary, key, near=near))
    return found


def _pairs(run: Run, replicas: Sequence[Future]) -> PairCount:
    """Pairs of all replicas. DataError where one has none."""
    counts: list[PairCount] = run.watch.results([run.watch.submit(count_pairs, slices) for slices in replicas])
    total = sum(counts, PairCount())
    column = run.job.schema.group
    if not total.pairs:
        raise DataError(
            f"no clicked row has an unclicked one of its group beside it, so that there is no pair to learn from: "
            f"schema.group = {column!r} tells single rows apart. Name the column of a user, query or session"
        )
    if idle := sum(not count.pairs for count in counts):
        raise DataError(
            f"{idle} of training.n_replicas = {len(counts)} replicas have no pair to learn from: schema.group = "
            f"{column!r} has too few groups for so many, and a group is in one of them. Take fewer replicas"
        )
    return total


def _check_rows(run: Run, held: Reading, account: RowAccount, held_out: RowAccount) -> None:
    """DataError where a split, or the bad rows, left nothing to train or to validate on."""
    bound, splits = run.job.data.validation_from, run.inputs.split.is_needed
    if held.draw is not None and not (account.read and held_out.read):
        raise DataError(_all_on_one_side(run, held.draw, account, held_out))
    if not account.accepted:
        if bound and splits and not account.read:
            raise DataError(nothing_left(bound, "row to train on; choose a later time"))
        raise DataError(f"all {account.read} training rows are bad: {account.rejections[0]}")
    if bound and splits and not held_out.read:
        raise DataError(nothing_left(bound, "row to validate on; choose an earlier time"))
    if bound or run.job.data.validation or run.inputs.validation_tasks:
        held_out.check_any("validate on", run.inputs.schema.weight)


def _all_on_one_side(run: Run, draw: Draw, account: RowAccount, held_out: RowAccount) -> str:
    """The message where lots held out none of the rows, or all of them."""
    found = f"none of the {account.read} rows was" if account.read else f"all {held_out.read} rows were"
    why = f": schema.group = {draw.group!r} has too few groups, of which each is on one side" if draw.group else ""
    remedy = "Name others in data.validation, or take data.validation_fraction = 0, which trains without any"
    if run.inputs.split.lots:
        remedy = "Take fewer folds"
    return f"{found} drawn to validate on{why}. {remedy}"


def _rows_of_both(run: Run, sizes: Sequence[int]) -> list[int]:
    """Rows by which tasks count: those of training rows, which are of these sizes, then those of validation rows. Where
    tasks of both have rows of one shard half of it counts each time.
    """
    held_out = [sum(map(_n_rows, tasks)) for tasks in run.inputs.validation_tasks]
    if not run.inputs.split.is_needed:
        return [*sizes, *held_out]
    return [*_halves(sizes, 0), *_halves(held_out, 1)]


def _halves(sizes: Sequence[int], remainder: int) -> list[int]:
    """Half of each size; all together half of their sum, to the row."""
    ends = [(end + remainder) // 2 for end in itertools.accumulate(sizes, initial=0)]
    return [end - start for start, end in itertools.pairwise(ends)]


def _n_rows(units: Sequence[Unit]) -> int:
    return sum(unit.n_rows for unit in units)
