"""What a job reads: its shards, the schema on their columns, which rows validate, which replica gets which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dfm.data.duplicates import check_distinct
from dfm.data.footers import resolve_shards
from dfm.data.parquet import HIVE_NULL, Shard, Unit, find_shards, stored_schema
from dfm.data.schema import ResolvedSchema
from dfm.data.time_split import at_or_after, first_and_last
from dfm.errors import DataError
from dfm.settings.job import Job
from dfm.training.plan import Plan, plan_reading, plan_training

Event = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What the footers of the shards and the job decide before any row is read."""

    schema: ResolvedSchema
    train: list[Shard]
    validation: list[Shard]
    plan: Plan
    validation_tasks: list[tuple[Unit, ...]]
    split_rows: bool
    """Whether data.validation_from has to be compared row by row (the shards' paths do not tell)."""

    @property
    def n_rows(self) -> int:
        """Rows of the training shards."""
        return sum(shard.n_rows for shard in self.train)

    @property
    def identities(self) -> list[list[Any]]:
        """[url, bytes, modification time or etag] of every shard: other data, another model."""
        return [[shard.url, shard.size, shard.modified] for shard in (*self.train, *self.validation)]


def find_inputs(job: Job) -> Inputs:
    """Find shards, match the schema with their columns, plan the replicas."""
    options = job.data.storage_options
    train = find_shards(job.data.train, options)
    validation = find_shards(job.data.validation, options) if job.data.validation else []
    check_distinct([*train, *validation], options)
    schema = resolve_schema(job, *train)
    by_path = _split_by_path(job, train)
    if by_path is not None:
        train, validation = by_path
    total = sum(shard.n_rows for shard in train)
    if total < job.training.n_replicas:
        raise DataError(
            f"{total} training rows are too few for training.n_replicas = {job.training.n_replicas}; lower n_replicas"
        )
    plan = plan_training(train, job.training, job.model.seed)
    split_rows = bool(job.data.validation_from) and by_path is None
    held_out = plan_reading(train if split_rows else validation)
    return Inputs(schema, train, validation, plan, held_out, split_rows)


def _split_by_path(job: Job, shards: Sequence[Shard]) -> tuple[list[Shard], list[Shard]] | None:
    """Shards before data.validation_from and from it on, where the time column comes from the shards' paths alone."""
    bound, column = job.data.validation_from, job.schema.time
    if not bound or not all(column in dict(shard.partition) for shard in shards):
        return None
    # A stored column wins over the path, as it does where rows are read.
    if column in stored_schema(next(shard for shard in shards if shard.n_rows), job.data.storage_options).names:
        return None
    found = [dict(shard.partition)[column] for shard in shards]
    times = pa.array([None if time == HIVE_NULL else time for time in found], pa.string())
    later = at_or_after(times, bound, column).to_pylist()
    before = [shard for shard, is_later in zip(shards, later, strict=True) if not is_later]
    after = [shard for shard, is_later in zip(shards, later, strict=True) if is_later]
    first, last = first_and_last(times, bound, column)
    if not before:
        raise DataError(nothing_left(bound, f"shard to train on: {column} begins at {first}; choose a later time"))
    if not after:
        raise DataError(nothing_left(bound, f"shard to validate on: {column} ends at {last}; choose an earlier time"))
    return before, after


def nothing_left(bound: str, what: str) -> str:
    """The message where a split by time leaves one side empty."""
    return f"data.validation_from = {bound!r} leaves no {what}"


def resolve_schema(job: Job, *shards: Shard) -> ResolvedSchema:
    """The job's schema on the columns of some shards, of which one has rows."""
    return resolve_shards(job.schema, [shard for shard in shards if shard.n_rows], job.data.storage_options)


def plan_event(inputs: Inputs) -> Event:
    """What is going to be read and by how many replicas."""
    return {
        "event": "plan",
        "shards": len(inputs.train),
        "rows": inputs.n_rows,
        "validation_shards": len(inputs.validation),
        "validation_rows": sum(shard.n_rows for shard in inputs.validation),
        "fields": len(inputs.schema.fields),
        "replicas": inputs.plan.n_replicas,
        "rounds_per_epoch": inputs.plan.n_slices,
        "later_rounds_per_epoch": inputs.plan.later_rounds,
        "rows_per_replica": inputs.plan.rows_of(0),
    }
