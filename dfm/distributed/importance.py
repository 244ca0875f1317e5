"""Importance of a model's columns, measured where the rows lie."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from dfm.data.draw import sampled
from dfm.data.encoding import Encoded, encode_batch
from dfm.data.hashed_rows import HashedRows, concatenate_rows
from dfm.data.parquet import Batch, Shard, Unit, naming_shard
from dfm.data.schema import Field, ResolvedSchema
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.evaluate import good_rows, labelled_batches, weighing
from dfm.distributed.progress import Progress, follow
from dfm.distributed.scoring import Scoring, account_of, loaded_model, placed_model
from dfm.errors import SettingsError
from dfm.model.entries import narrowed
from dfm.model.fm_model import FMModel
from dfm.model.importance import Damage, Effort, Sample, without
from dfm.model.pair_strength import has_pairs, pair_sums
from dfm.model.slices import Floats, losses_of
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
    return damage_of(model, ((batch.place, _good(model, batch, on_bad_rows)) for batch in batches), effort)


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
    made_of = _fields_made_of(model.schema)
    losses, weights = _losses(model, encoded)
    missing = ((without(data, column), column) for column in columns)
    others = ((sample.permuted(column, repeat), column) for repeat in range(n_repeats) for column in columns)
    changed = (_changed(model, encoded.rows, made_of, *each) for each in itertools.chain(missing, others))
    found = np.array(_losses_of_each(model, encoded, changed)).reshape(n_repeats + 1, len(columns))
    n_fields = len(model.schema.fields)
    told = data.num_rows, float(weights.sum()), float(losses.sum())
    return Damage(*told, found[0], found[1:], np.zeros((n_fields, n_fields)))


def _fields_made_of(schema: ResolvedSchema) -> dict[str, list[Field]]:
    """By column the fields that are made of it."""
    found: dict[str, list[Field]] = {column: [] for column in schema.columns}
    for entry in schema.fields:
        for column in schema.sources(entry.columns):
            found[column].append(entry)
    return found


def _changed(
    model: FMModel, rows: HashedRows, made_of: Mapping[str, Sequence[Field]], data: pa.RecordBatch, column: str
) -> HashedRows:
    """The rows, of data that differ from theirs in one column."""
    found = _with_fields(model, rows, data, made_of[column])
    return model.encode(data, model.objective.label_kind).rows if found is None else found


def _losses_of_each(model: FMModel, encoded: Encoded, changed: Iterable[HashedRows]) -> list[float]:
    """The weighted sum of losses of each of some changed copies of the rows. Copies of one entry a field are scored
    together, up to some rows: what one scoring costs apart from its rows is a multiple of what few rows cost.
    """
    found: list[float] = []
    waiting: list[HashedRows] = []
    most = max(1, _TOGETHER // max(encoded.rows.n_rows, 1))
    for rows in itertools.chain(changed, [None]):
        if waiting and (rows is None or rows.fields.size or waiting[-1].fields.size or len(waiting) == most):
            losses, _ = _losses(model, replace(encoded, rows=concatenate_rows(waiting)))
            ends = np.cumsum([each.n_rows for each in waiting])
            found += [float(part.sum()) for part in np.split(losses, ends[:-1])]
            waiting = []
        waiting += [] if rows is None else [rows]
    return found


def _with_fields(model: FMModel, rows: HashedRows, data: pa.RecordBatch, own: Sequence[Field]) -> HashedRows | None:
    """The rows with the entries of some fields of changed data; None where not every row has one entry of each field.

    Only the fields that are made of the column are encoded: 5,000 rows of the Criteo sample then take 2 s, not 11.
    """
    schema, n_rows = model.schema, rows.n_rows
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


def _losses(model: FMModel, encoded: Encoded) -> tuple[Floats, Floats]:
    """The loss of each row times its weight, and the weights, float64[n_rows]."""
    raw, rows, objective = model.score(encoded), encoded.rows, model.objective
    weights = (rows.weights if rows.weights.size else np.ones(rows.n_rows)).astype(np.float64)
    scores, predictions = objective.calibrated(raw).astype(np.float64), objective.predict(raw).astype(np.float64)
    return weights * losses_of(scores, predictions, rows.labels.astype(np.float64), model.task == "regression"), weights


def described(damage: Damage, schema: ResolvedSchema) -> dict[str, Any]:
    """JSON-ready: rows, their mean loss, a record of each column, the most important first, and of each pair of fields,
    the strongest first.
    """
    records, pairs = damage.records(schema.columns), damage.strengths([entry.name for entry in schema.fields])
    return {"rows": damage.rows, "loss": damage.plain / damage.weight, "columns": records, "pairs": pairs}
