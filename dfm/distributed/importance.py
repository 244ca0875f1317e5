"""Importance of a model's columns, measured where the rows lie."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dfm.data.parquet import Batch, Shard, Unit, naming_shard
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.predict import (
    Scoring,
    account_of,
    good_rows,
    labelled_batches,
    loaded_model,
    placed_model,
    scored_rows,
    weighing,
)
from dfm.distributed.prepare import Progress, follow
from dfm.errors import SettingsError
from dfm.model.fm_model import FMModel
from dfm.model.importance import Damage, permuted, sampled, without
from dfm.model.slices import losses_of
from dfm.training.plan import plan_reading


def check_importance(model: FMModel) -> None:
    """SettingsError where a model's scores have no loss that columns could be compared by."""
    if model.task != "regression" and model.objective.info.link != "sigmoid":
        raise SettingsError(
            f"importance needs a model of probabilities or numbers; the loss {model.objective.info.name} gives margins"
        )


def damage_in_shards(
    watch: Watch, scoring: Scoring, shards: Sequence[Shard], how: tuple[float, int], progress: Progress
) -> Damage:
    """The cost of losing columns, on shards. how: share of the rows to look at, and repeats."""
    tasks = plan_reading(shards)
    scoring, placed = placed_model(watch, scoring)
    arguments = [scoring] * len(tasks), [placed] * len(tasks), tasks, [how] * len(tasks)
    futures = watch.client.map(damage_in_shard, *arguments, pure=False)
    follow(watch, futures, [sum(unit.n_rows for unit in units) for units in tasks], "importance", progress)
    return functools.reduce(operator.add, watch.client.gather(futures))


def damage_in_shard(scoring: Scoring, placed: str | FMModel, units: Sequence[Unit], how: tuple[float, int]) -> Damage:
    """The same of some units of rows."""
    model = loaded_model(scoring, placed)
    batches = labelled_batches(scoring, model, units)
    return damage_in_batches(model, batches, scoring.on_bad_rows, scoring.is_weighted, how)


def damage_in_batches(
    model: FMModel, batches: Iterable[Batch], on_bad_rows: str, is_weighted: bool, how: tuple[float, int]
) -> Damage:
    """The same of batches."""
    model, (share, n_repeats) = weighing(model, is_weighted), how
    found = Damage.none(len(model.schema.columns), n_repeats)
    for batch in batches:
        place = f"{batch.shard.url} {batch.row_group} {batch.first_row}"
        rows = sampled(_good(model, batch, on_bad_rows), share, place)
        if rows.num_rows:
            found += _damage(model, rows, place, n_repeats)
    return found


def _good(model: FMModel, batch: Batch, on_bad_rows: str) -> pa.RecordBatch:
    """The good rows. DataError where one is bad and none may be."""
    with naming_shard(batch):
        encoded = model.encode(batch.data, model.objective.label_kind)
    account_of(on_bad_rows, batch, encoded)
    return good_rows(batch.data, encoded)


def _damage(model: FMModel, data: pa.RecordBatch, place: str, n_repeats: int) -> Damage:
    columns = model.schema.columns
    plain, weight = _loss(model, data)
    missing = [_loss(model, without(data, column))[0] for column in columns]
    others = [
        [_loss(model, permuted(data, column, place, repeat))[0] for column in columns] for repeat in range(n_repeats)
    ]
    return Damage(data.num_rows, weight, plain, np.array(missing), np.array(others).reshape(n_repeats, len(columns)))


def _loss(model: FMModel, data: pa.RecordBatch) -> tuple[float, float]:
    """Weighted sums of losses and of weights."""
    rows = scored_rows(model, data, model.encode(data, model.objective.label_kind))
    losses = losses_of(rows.scores, rows.predictions, rows.labels, model.task == "regression")
    return float((rows.weights * losses).sum()), float(rows.weights.sum())


def described(damage: Damage, columns: Sequence[str]) -> dict[str, Any]:
    """JSON-ready: rows, their mean loss, and a record of each column, the most important first."""
    records = damage.records(columns)
    return {"rows": damage.rows, "loss": damage.plain / damage.weight, "columns": records}
