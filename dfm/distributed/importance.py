"""Importance of a model's columns, measured where the rows lie."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from dfm.data.encoding import Encoded, encode_batch
from dfm.data.hashed_rows import HashedRows
from dfm.data.parquet import Batch, Shard, Unit, naming_shard
from dfm.data.schema import ResolvedSchema
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.evaluate import good_rows, labelled_batches, scored_rows, weighing
from dfm.distributed.prepare import Progress, follow
from dfm.distributed.scoring import Scoring, account_of, loaded_model, placed_model
from dfm.errors import SettingsError
from dfm.model.entries import narrowed
from dfm.model.fm_model import FMModel
from dfm.model.importance import Damage, Effort, Sample, sampled, without
from dfm.model.pair_strength import has_pairs, pair_sums
from dfm.model.slices import losses_of
from dfm.training.plan import plan_reading

_TOGETHER = 8_192
"""Rows from which on a sample is scored."""


def check_importance(model: FMModel) -> None:
    """SettingsError where a model's scores have no loss that columns could be compared by."""
    if model.task != "regression" and model.objective.info.link != "sigmoid":
        raise SettingsError(
            f"importance needs a model of probabilities or numbers; the loss {model.objective.info.name} gives margins"
        )


def damage_in_shards(
    watch: Watch, scoring: Scoring, shards: Sequence[Shard], effort: Effort, progress: Progress
) -> Damage:
    """The cost of losing columns, and the strength of pairs of fields, on shards."""
    tasks = plan_reading(shards)
    scoring, placed = placed_model(watch, scoring)
    arguments = [scoring] * len(tasks), [placed] * len(tasks), tasks, [effort] * len(tasks)
    futures = watch.client.map(damage_in_shard, *arguments, pure=False)
    follow(watch, futures, [sum(unit.n_rows for unit in units) for units in tasks], "importance", progress)
    return functools.reduce(operator.add, watch.client.gather(futures))


def damage_in_shard(scoring: Scoring, placed: str | FMModel, units: Sequence[Unit], effort: Effort) -> Damage:
    """The same of some units of rows."""
    model = loaded_model(scoring, placed)
    batches = labelled_batches(scoring, model, units)
    return damage_in_batches(model, batches, scoring.on_bad_rows, scoring.is_weighted, effort)


def damage_in_batches(
    model: FMModel, batches: Iterable[Batch], on_bad_rows: str, is_weighted: bool, effort: Effort
) -> Damage:
    """The same of batches."""
    model = weighing(model, is_weighted)
    return damage_of(model, ((place_of(batch), _good(model, batch, on_bad_rows)) for batch in batches), effort)


def place_of(batch: Batch) -> str:
    """The place of a batch in the data."""
    return f"{batch.shard.url} {batch.row_group} {batch.first_row}"


def damage_of(model: FMModel, batches: Iterable[tuple[str, pa.RecordBatch]], effort: Effort) -> Damage:
    """The same of good rows, batch by batch, each with its place. Few of each are scored together: what one scoring
    costs apart from its rows is then paid once.
    """
    found = Damage.none(len(model.schema.columns), effort.n_repeats, len(model.schema.fields))
    waiting: list[tuple[str, pa.RecordBatch]] = []
    for place, good in batches:
        rows = sampled(good, effort.share, place)
        if waiting and (sum(each.num_rows for _, each in waiting) >= _TOGETHER or rows.schema != waiting[0][1].schema):
            found += _damages(model, waiting, effort)
            waiting = []
        if rows.num_rows:
            waiting.append((place, rows))
        if good.num_rows and has_pairs(model):
            found = _with_pairs(found, model, sampled(good, effort.pair_share, f"{place} pairs"))
    return found + _damages(model, waiting, effort) if waiting else found


def _damages(model: FMModel, parts: Sequence[tuple[str, pa.RecordBatch]], effort: Effort) -> Damage:
    """The damage of some batches, together where Arrow can join them."""
    try:
        samples = [Sample.joined(parts)]
    except pa.ArrowException:
        samples = [Sample.joined([part]) for part in parts]
    return functools.reduce(operator.add, [_damage(model, sample, effort.n_repeats) for sample in samples])


def _with_pairs(damage: Damage, model: FMModel, data: pa.RecordBatch) -> Damage:
    """The damage, and the terms of pairs of fields in some rows."""
    encoded = model.encode(data, model.objective.label_kind).rows
    weights = encoded.weights.astype(np.float64) if encoded.weights.size else np.ones(encoded.n_rows)
    pairs = damage.pairs + pair_sums(model, data, weights)
    return replace(damage, pairs=pairs, pair_weight=damage.pair_weight + float(weights.sum()))


def _good(model: FMModel, batch: Batch, on_bad_rows: str) -> pa.RecordBatch:
    """The good rows. DataError where one is bad and none may be."""
    with naming_shard(batch):
        encoded = model.encode(batch.data, model.objective.label_kind)
    account_of(on_bad_rows, batch, encoded)
    return good_rows(batch.data, encoded)


def _damage(model: FMModel, sample: Sample, n_repeats: int) -> Damage:
    data = sample.data
    columns, encoded = model.schema.columns, model.encode(data, model.objective.label_kind)
    plain, weight = _loss(model, data, encoded)
    changed = functools.partial(_loss_of_changed, model, encoded)
    missing = [changed(without(data, column), column) for column in columns]
    others = [[changed(sample.permuted(column, repeat), column) for column in columns] for repeat in range(n_repeats)]
    losses = np.array(missing), np.array(others).reshape(n_repeats, len(columns))
    n_fields = len(model.schema.fields)
    return Damage(data.num_rows, weight, plain, *losses, np.zeros((n_fields, n_fields)))


def _loss_of_changed(model: FMModel, encoded: Encoded, data: pa.RecordBatch, column: str) -> float:
    """The weighted sum of losses of rows that differ in one column from the encoded ones."""
    rows = _with_fields(model, encoded.rows, data, column)
    again = model.encode(data, model.objective.label_kind) if rows is None else replace(encoded, rows=rows)
    return _loss(model, data, again)[0]


def _with_fields(model: FMModel, rows: HashedRows, data: pa.RecordBatch, column: str) -> HashedRows | None:
    """The rows with the entries of a changed column; None where not every row has one entry of each field.

    Only the fields that are made of the column are encoded: 5,000 rows of the Criteo sample then take 2 s, not 11.
    """
    schema, n_rows = model.schema, rows.n_rows
    own = [entry for entry in schema.fields if column in schema.sources(entry.columns)]
    places = [entry.index for entry in own]
    if rows.fields.size or len(rows.indices) != n_rows * len(schema.fields):
        return None
    found = encode_batch(data, narrowed(schema, own), model.vocabulary.hash_bits, model.statistics, None).rows
    indices = rows.indices.reshape(n_rows, -1).copy()
    indices[:, places] = found.indices.reshape(n_rows, -1)
    values = rows.values.reshape(n_rows, -1).copy() if rows.values.size else np.ones(indices.shape, np.float32)
    values[:, places] = found.values.reshape(n_rows, -1) if found.values.size else 1.0
    has_values = bool(rows.values.size or found.values.size)
    return replace(rows, indices=indices.reshape(-1), values=values.reshape(-1) if has_values else rows.values)


def _loss(model: FMModel, data: pa.RecordBatch, encoded: Encoded) -> tuple[float, float]:
    """Weighted sums of losses and of weights."""
    rows = scored_rows(model, data, encoded)
    losses = losses_of(rows.scores, rows.predictions, rows.labels, model.task == "regression")
    return float((rows.weights * losses).sum()), float(rows.weights.sum())


def described(damage: Damage, schema: ResolvedSchema) -> dict[str, Any]:
    """JSON-ready: rows, their mean loss, a record of each column, the most important first, and of each pair of fields,
    the strongest first.
    """
    records, pairs = damage.records(schema.columns), damage.strengths([entry.name for entry in schema.fields])
    return {"rows": damage.rows, "loss": damage.plain / damage.weight, "columns": records, "pairs": pairs}
