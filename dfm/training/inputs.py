"""The input of a job: its shards, the schema on their columns, which rows validate, which replica gets which rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from dfm.data.duplicates import check_distinct
from dfm.data.footers import resolve_shards
from dfm.data.latest import bound_of, counted_moments, latest_or_why
from dfm.data.parquet import HIVE_NULL, Shard, find_shards, stored_schema
from dfm.data.schema import ResolvedSchema
from dfm.data.snapshots import Snapshot, resolve_all
from dfm.data.time_split import at_or_after, first_and_last
from dfm.errors import DataError, SettingsError
from dfm.kernels.losses import is_paired
from dfm.settings.job import Job
from dfm.training.automatic import Course
from dfm.training.plan import Plan, Tasks, plan_held_out, plan_training, plan_validation

Event = dict[str, Any]
logger = logging.getLogger(__name__)
_LEAST_HELD_OUT, _MOST_HELD_OUT = 1_000, 200_000
_LEAST_ROWS = 1_000
"""Rows from which on some are held out: of fewer, too few would say too little."""
_MOST_HELD_OUT_SHARE = 0.4
"""Share of the rows that one moment (a day) may hold out; with more of them too few are left to train on."""


@dataclass(frozen=True)
class RowSplit:
    """Rows of the training shards that validate. bound: those whose schema.time is this or later; until: and before
    this, while those from then on count for nothing. n_rows: about so many are to be held out by themselves: the latest
    where there is a `time`, which is yet to be looked for, else by lot. lots: those whose lot is in this interval.
    group: the column whose values draw lots, each for all of its rows; empty: every row draws its own.
    """

    bound: str = ""
    n_rows: int = 0
    time: str = ""
    until: str = ""
    lots: tuple[float, float] | None = None
    group: str = ""

    @property
    def is_needed(self) -> bool:
        """Whether rows of one shard land on both sides."""
        return bool(self.bound or self.n_rows or self.lots)


@dataclass(frozen=True)
class Inputs:
    """All that the footers of the shards and the job decide before any row is read."""

    schema: ResolvedSchema
    train: list[Shard]
    validation: list[Shard]
    plan: Plan
    validation_tasks: list[Tasks]
    """By partition of rows that validate, the tasks that read them."""
    course: Course
    split: RowSplit = RowSplit()
    """The way in which rows of the training shards are told from those that validate, where their paths do not tell."""
    snapshots: tuple[Snapshot, ...] = ()
    """The states of the tables that the job names, each looked for once."""

    @property
    def n_rows(self) -> int:
        """Rows of the training shards."""
        return sum(shard.n_rows for shard in self.train)

    @property
    def identities(self) -> list[list[Any]]:
        """[url, bytes, modification time or etag] of every shard: other data, another model."""
        return [shard.identity for shard in (*self.train, *self.validation)]


def find_inputs(job: Job, pins: Mapping[str, str] | None = None) -> Inputs:
    """Find shards, match the schema with their columns, plan the replicas.

    pins: the URLs for ever of tables, by the paths that name their newest state (`Snapshot`): a run that goes on reads
    what it began with.
    """
    options = job.data.storage_options
    snapshots = resolve_all([*job.data.train, *job.data.validation], options, pins)
    train = find_shards(job.data.train, options, snapshots)
    validation = find_shards(job.data.validation, options, snapshots) if job.data.validation else []
    check_distinct([*train, *validation], options)
    schema = resolve_schema(job, *train)
    split = _row_split(job, train)
    by_path = _split_by_path(job, train, split)
    if by_path is not None:
        train, validation, split = by_path
    total = sum(shard.n_rows for shard in train)
    if total < job.training.n_replicas:
        raise DataError(
            f"{total} training rows are too few for training.n_replicas = {job.training.n_replicas}; lower n_replicas"
        )
    plan = plan_training(train, job.training, job.model.seed)
    held_out = plan_held_out(plan.tasks(is_paired(job.model.loss))) if split.is_needed else plan_validation(validation)
    course = Course.of(job.training, bool(held_out))
    if course.schedule == "plateau" and not held_out:
        raise SettingsError(
            'training.schedule = "plateau" needs rows to validate on, and there are none. Name them in '
            'data.validation, let data.validation_fraction hold some out, or choose schedule = "final-decay".'
        )
    return Inputs(schema, train, validation, plan, held_out, course, split, tuple(snapshots.values()))


def _row_split(job: Job, shards: Sequence[Shard]) -> RowSplit:
    """The rows of the training shards that validate."""
    data, total = job.data, sum(shard.n_rows for shard in shards)
    if data.validation or data.validation_from:
        return RowSplit(bound=data.validation_from)
    if data.validation_fraction != "auto":
        n_rows = round(float(data.validation_fraction) * total)
    else:
        n_rows = automatic_held_out(total) if job.training.early_stopping else 0
    group = job.schema.group if is_paired(job.model.loss) else ""
    return RowSplit(n_rows=n_rows, time=job.schema.time, group=group) if n_rows else RowSplit()


def automatic_held_out(n_rows: int) -> int:
    """Rows that are held out where the job does not say: a tenth, at least 1,000 or, of fewer than 5,000, a fifth, and
    at most 200,000. None of fewer than 1,000.
    """
    if n_rows < _LEAST_ROWS:
        return 0
    return min(max(n_rows // 10, min(_LEAST_HELD_OUT, n_rows // 5)), _MOST_HELD_OUT)


def _split_by_path(job: Job, shards: list[Shard], split: RowSplit) -> tuple[list[Shard], list[Shard], RowSplit] | None:
    """Shards before a bound and from it on, where the time column comes from the shards' paths alone, and how else
    their rows are split: by lot where no bound is there. None where times are in the shards.
    """
    column = job.schema.time
    if not split.is_needed or not column or not all(column in dict(shard.partition) for shard in shards):
        return None
    # A stored column wins over the path, as it does where rows are read.
    if column in stored_schema(next(shard for shard in shards if shard.n_rows), job.data.storage_options).names:
        return None
    found = [dict(shard.partition)[column] for shard in shards]
    times = pa.array([None if time in (HIVE_NULL, *job.schema.missing) else time for time in found], pa.string())
    bound = split.bound or _bound_of_paths(times, shards, split)
    if not bound:
        return shards, [], replace(split, time="")
    later = at_or_after(times, bound, column).to_pylist()
    before = [shard for shard, is_later in zip(shards, later, strict=True) if not is_later]
    after = [shard for shard, is_later in zip(shards, later, strict=True) if is_later]
    first, last = first_and_last(times, bound, column)
    if not before:
        raise DataError(nothing_left(bound, f"shard to train on: {column} begins at {first}; choose a later time"))
    if not after:
        raise DataError(nothing_left(bound, f"shard to validate on: {column} ends at {last}; choose an earlier time"))
    return before, after, RowSplit()


def _bound_of_paths(times: pa.Array, shards: Sequence[Shard], split: RowSplit) -> str:
    """The moment from which on about split.n_rows rows lie; "" where there is none."""
    sizes = pa.array([shard.n_rows for shard in shards], pa.int64())
    return bound_in([counted_moments(times, sizes)], split, sum(shard.n_rows for shard in shards))[0]


def bound_in(counted: Sequence[pa.Table | str], split: RowSplit, total: int) -> tuple[str, int]:
    """The moment, among those that were counted, from which on about split.n_rows rows of so many lie, and how many
    these are; "" and 0 where there is none, or times cannot be compared: then rows are held out by lot.
    """
    found, why = latest_or_why(counted, split.n_rows, split.time), "one of its moments has too many of the rows"
    if not isinstance(found, str):
        most = max(round(_MOST_HELD_OUT_SHARE * total), min(round(1.25 * split.n_rows), total - 1))
        if (chosen := bound_of(found, split.n_rows, most))[0]:
            return chosen
    else:
        why = f"its values have no common order: {found}"
    logger.warning(
        "rows are held out by lot, not the latest by schema.time = %r: %s; name validation rows in data.validation or "
        "data.validation_from",
        split.time,
        why,
    )
    return "", 0


def nothing_left(bound: str, what: str) -> str:
    """The message where a split by time leaves one side empty."""
    return f"data.validation_from = {bound!r} leaves no {what}"


def resolve_schema(job: Job, *shards: Shard) -> ResolvedSchema:
    """The job's schema on the columns of some shards, of which one has rows."""
    return resolve_shards(job.schema, [shard for shard in shards if shard.n_rows], job.data.storage_options)


def plan_event(inputs: Inputs) -> Event:
    """The event of what is going to be read, and by how many replicas."""
    return {
        "event": "plan",
        "shards": len(inputs.train),
        "rows": inputs.n_rows,
        "validation_shards": len(inputs.validation),
        "validation_rows": None if inputs.split.is_needed else sum(shard.n_rows for shard in inputs.validation),
        "held_out": _held_out_text(inputs),
        "fields": len(inputs.schema.fields),
        "replicas": inputs.plan.n_replicas,
        "rounds_per_epoch": inputs.plan.n_slices,
        "later_rounds_per_epoch": inputs.plan.later_rounds,
        "rows_per_replica": inputs.plan.rows_of(0),
        "epochs": inputs.course.n_epochs,
        "schedule": inputs.course.schedule,
        "tables": [snapshot.to_dict() for snapshot in inputs.snapshots],
    }


def _held_out_text(inputs: Inputs) -> str:
    """Which rows of the training shards validate; "" where none do. How many is known once all are read."""
    split = inputs.split
    if split.n_rows:
        by_lot = f"chosen by {split.group}, all of one together" if split.group else "chosen by shard and row number"
        which = f"the latest by {split.time}" if split.time else by_lot
        return f"about {split.n_rows:,} of these rows, {which} (data.validation_fraction)"
    if split.bound:
        return f"the rows from {split.bound} on by {inputs.schema.time} (data.validation_from)"
    return ""
