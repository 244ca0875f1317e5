"""Importance of a model's columns, measured where the rows lie."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from dfm.data.encoding import Encoded
from dfm.data.parquet import Batch, Shard, Unit, naming_shard, read_unit
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.predict import Scoring, account_of, labelled_columns, loaded_model, placed_model
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
    columns = labelled_columns(model, scoring.is_weighted)
    batches = (batch for unit in units for batch in read_unit(unit, columns, scoring.storage_options))
    return damage_in_batches(model, batches, scoring.on_bad_rows, scoring.is_weighted, how)


def damage_in_batches(
    model: FMModel, batches: Iterable[Batch], on_bad_rows: str, is_weighted: bool, how: tuple[float, int]
) -> Damage:
    """The same of batches."""
    if not is_weighted:
        model = replace(model, schema=replace(model.schema, weight=""))
    share, n_repeats = how
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
    return batch.data if encoded.good.all() else batch.data.filter(pa.array(encoded.good))


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
    encoded: Encoded = model.encode(data, model.objective.label_kind)
    scores = model.score(encoded)
    labels = encoded.rows.labels.astype(np.float64)
    weights = encoded.rows.weights.astype(np.float64) if encoded.rows.weights.size else np.ones(len(labels))
    predictions = model.objective.predict(scores).astype(np.float64)
    losses = losses_of(scores.astype(np.float64), predictions, labels, model.task == "regression")
    return float((weights * losses).sum()), float(weights.sum())


def described(damage: Damage, columns: Sequence[str]) -> dict[str, Any]:
    """JSON-ready: rows, their mean loss, and a record of each column, the most important first."""
    records = damage.records(columns)
    return {"rows": damage.rows, "loss": damage.plain / damage.weight, "columns": records}
