"""Metrics of labelled rows by a published model, in all, by slice and within groups."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.accounting import RowAccount
from dfm.data.encoding import Encoded
from dfm.data.parquet import Batch, Shard, Unit, naming_shard, read_unit
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.progress import Progress, follow
from dfm.distributed.scoring import Edition, Scoring, account_of, both_sights, loaded_model, placed_model
from dfm.model.drift import Sights
from dfm.model.fm_model import FMModel
from dfm.model.group_auc import GroupSums, group_sums
from dfm.model.metrics import ClassificationTally, Tally
from dfm.model.outliers import without_outliers
from dfm.model.slices import (
    BUCKETS,
    Chosen,
    ScoredRows,
    SliceSums,
    Slicing,
    summed,
    tallied,
)
from dfm.training.plan import plan_reading


@dataclass(frozen=True)
class Evaluation:
    """Labelled rows that were scored: their metrics, their account, and sums by slice where any are wanted."""

    tally: Tally
    account: RowAccount
    slices: SliceSums | None = None
    groups: tuple[GroupSums, ...] = ()
    """Sums over groups, by bucket."""
    sights: Sights | None = None
    """Values by column, as the model knows them."""

    def __add__(self, other: Evaluation) -> Evaluation:
        slices = self.slices + other.slices if self.slices is not None and other.slices is not None else None
        return Evaluation(
            self.tally + other.tally,
            self.account + other.account,
            slices or self.slices or other.slices,
            sights=both_sights(self.sights, other.sights),
        )


def evaluate_shards(watch: Watch, scoring: Scoring, shards: Sequence[Shard], progress: Progress) -> Evaluation:
    """Metrics of the model on labelled rows, the account of the rows, and sums by slice where they are wanted."""
    tasks = plan_reading(shards)
    scoring, placed = placed_model(watch, scoring)
    futures = watch.client.map(evaluate_shard, [scoring] * len(tasks), [placed] * len(tasks), tasks, pure=False)
    follow(watch, futures, [sum(unit.n_rows for unit in units) for units in tasks], "evaluate", progress)
    if not scoring.slicing.group:
        return together(watch.client.gather(futures))
    # Rows of a group come from many tasks: each bucket of groups is brought together on a worker, and leaves sums.
    buckets = [
        watch.submit(group_auc_of, [watch.submit(bucket_of, each, bucket) for each in futures])
        for bucket in range(BUCKETS)
    ]
    found = together(watch.client.gather([watch.submit(without_groups, each) for each in futures]))
    return replace(found, groups=tuple(watch.client.gather(buckets)))


def together(parts: Sequence[Evaluation]) -> Evaluation:
    """The sum of some evaluations, in their order."""
    return functools.reduce(operator.add, parts)


def bucket_of(evaluation: Evaluation, bucket: int) -> pa.Table | None:
    """The rows of some groups."""
    slices = evaluation.slices
    return slices.groups[bucket] if slices is not None else None


def group_auc_of(tables: Sequence[pa.Table | None]) -> GroupSums:
    """Sums over some groups, of all their rows."""
    there = [table for table in tables if table is not None]
    return group_sums(pa.concat_tables(there)) if there else GroupSums()


def without_groups(evaluation: Evaluation) -> Evaluation:
    """The evaluation without the rows of its groups, which stay where they are."""
    slices = evaluation.slices
    return evaluation if slices is None else replace(evaluation, slices=replace(slices, groups=()))


def evaluate_shard(scoring: Scoring, placed: Edition | FMModel, units: Sequence[Unit]) -> Evaluation:
    """Metrics of some labelled rows."""
    model = loaded_model(scoring, placed)
    return evaluate_batches(
        model, labelled_batches(scoring, model, units), scoring.on_bad_rows, scoring.is_weighted, scoring.slicing
    )


def labelled_batches(scoring: Scoring, model: FMModel, units: Sequence[Unit]) -> Iterator[Batch]:
    """Batches of some units, with all that evaluating reads."""
    columns = labelled_columns(model, scoring.is_weighted, scoring.slicing)
    return (batch for unit in units for batch in read_unit(unit, columns, scoring.storage_options))


def labelled_columns(model: FMModel, is_weighted: bool = True, slicing: Slicing | None = None) -> tuple[str, ...]:
    """The columns that evaluating reads: label, weight (unless rows are to count alike), features, those of slices."""
    schema = model.schema
    special = schema.label, schema.weight if is_weighted else ""
    of_slices = slicing.columns if slicing else ()
    return tuple(dict.fromkeys([name for name in special if name] + [*schema.columns, *of_slices]))


def evaluate_batches(
    model: FMModel,
    batches: Iterable[Batch],
    on_bad_rows: str,
    is_weighted: bool = True,
    slicing: Slicing | None = None,
) -> Evaluation:
    """Metrics of labelled rows, batch by batch, their account, and sums by slice where any are wanted."""
    return evaluated(model, scored_batches(model, batches, on_bad_rows, is_weighted), slicing or Slicing())


Scored = tuple[RowAccount, ScoredRows, Encoded]
"""The account of a batch, and its good rows, scored and encoded."""


def evaluated(model: FMModel, batches: Iterable[Scored], slicing: Slicing) -> Evaluation:
    """The same of batches that are scored."""
    objective = model.objective
    found = Evaluation(objective.empty(), RowAccount())
    for account, rows, encoded in batches:
        slices = summed(rows, slicing, model.task == "regression") if slicing.columns else None
        tally = objective.tally(rows.raw, rows.labels, rows.weights)
        found += Evaluation(tally, account, slices, sights=model.watcher.sights(encoded.rows))
    return found


def scored_batches(model: FMModel, batches: Iterable[Batch], on_bad_rows: str, is_weighted: bool) -> Iterator[Scored]:
    """Batches of labelled rows, scored; a row without a finite prediction is a bad one."""
    model = weighing(model, is_weighted)
    for batch in batches:
        with naming_shard(batch):
            encoded = model.encode(batch.data, model.objective.label_kind)
        encoded, raw = without_outliers(model, batch.data, encoded, model.score(encoded))
        account = account_of(on_bad_rows, batch, encoded)
        yield account, scored_rows(model, good_rows(batch.data, encoded), encoded, raw), encoded


def weighing(model: FMModel, is_weighted: bool) -> FMModel:
    """The model, for which rows count alike unless they have the weights that it was trained with."""
    return model if is_weighted else replace(model, schema=replace(model.schema, weight=""))


def good_rows(data: pa.RecordBatch, encoded: Encoded) -> pa.RecordBatch:
    """The rows that were encoded."""
    return data if encoded.good.all() else data.filter(pa.array(encoded.good))


def scored_rows(model: FMModel, data: pa.RecordBatch, encoded: Encoded, raw: NDArray[np.float32]) -> ScoredRows:
    """Good rows with their raw scores, and what is made of these."""
    rows = encoded.rows
    weights = rows.weights if rows.weights.size else np.ones(rows.n_rows)
    arrays = model.objective.calibrated(raw), model.objective.predict(raw), rows.labels, weights, raw
    return ScoredRows(data, *(each.astype(np.float64) for each in arrays))


def order_in_slices(
    watch: Watch, scoring: Scoring, shards: Sequence[Shard], chosen: Sequence[Chosen], progress: Progress
) -> list[list[ClassificationTally]]:
    """Tallies of the rows of chosen slices, of each kind in the order of its keys."""
    tasks = plan_reading(shards)
    scoring, placed = placed_model(watch, scoring)
    arguments = [scoring] * len(tasks), [placed] * len(tasks), tasks, [list(chosen)] * len(tasks)
    futures = watch.client.map(tally_slices, *arguments, pure=False)
    follow(watch, futures, [sum(unit.n_rows for unit in units) for units in tasks], "slices", progress)
    return functools.reduce(added, watch.client.gather(futures))


def tally_slices(
    scoring: Scoring, placed: Edition | FMModel, units: Sequence[Unit], chosen: Sequence[Chosen]
) -> list[list[ClassificationTally]]:
    """Tallies of chosen slices in some rows."""
    model = loaded_model(scoring, placed)
    return tally_batches(model, labelled_batches(scoring, model, units), scoring.is_weighted, chosen)


def tally_batches(
    model: FMModel, batches: Iterable[Batch], is_weighted: bool, chosen: Sequence[Chosen]
) -> list[list[ClassificationTally]]:
    """The same of batches; bad rows, which were told before, are passed over."""
    totals = [[ClassificationTally.empty() for _ in each.keys] for each in chosen]
    for _, rows, _ in scored_batches(model, batches, "skip", is_weighted):
        totals = added(totals, [tallied(rows, each) for each in chosen])
    return totals


def added(
    ours: list[list[ClassificationTally]], theirs: list[list[ClassificationTally]]
) -> list[list[ClassificationTally]]:
    """Sums of tallies, place by place."""
    return [[a + b for a, b in zip(mine, others, strict=True)] for mine, others in zip(ours, theirs, strict=True)]
