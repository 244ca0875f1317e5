"""Importance of a model's columns, measured where the rows lie."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import Future

from dfm.data.accounting import RowAccount
from dfm.data.draw import sampled
from dfm.data.encoding import Encoded, encode_batch
from dfm.data.hashed_rows import HashedRows, concatenate_rows
from dfm.data.parquet import Batch, Shard, Unit, naming_shard
from dfm.data.schema import Field, ResolvedSchema
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.evaluate import good_rows, labelled_batches, weighing
from dfm.distributed.progress import Progress, follow
from dfm.distributed.scoring import Edition, Scoring, account_of, loaded_model, placed_model
from dfm.errors import SettingsError
from dfm.model.entries import narrowed
from dfm.model.fm_model import FMModel
from dfm.model.importance import Damage, Donors, Effort, Sample, donors_of, without
from dfm.model.objective import total_loss
from dfm.model.outliers import without_outliers
from dfm.model.pair_strength import left_out, n_paired, pair_sums
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


@dataclass(frozen=True)
class Drawn:
    """Good rows that columns are measured in, batch by batch, each with its place; and of all rows the account, and
    what pairs of fields make.
    """

    parts: tuple[tuple[str, pa.RecordBatch], ...]
    whole: Damage


def damage_in_shards(
    watch: Watch, scoring: Scoring, shards: Sequence[Shard], effort: Effort, progress: Progress
) -> Damage:
    """The cost of losing columns, and the strength of pairs of fields, on shards."""
    tasks = plan_reading(shards)
    scoring, placed = placed_model(watch, scoring)
    drawn = [watch.submit(drawn_in_shard, scoring, placed, units, effort) for units in tasks]
    futures = damages_of(watch, (scoring, placed), drawn, effort)
    follow(watch, futures, [sum(unit.n_rows for unit in units) for units in tasks], "importance", progress)
    return functools.reduce(operator.add, watch.client.gather(futures))


def damages_of(
    watch: Watch, model: tuple[Scoring, Edition | Future], drawn: Sequence[Future], effort: Effort
) -> list[Future]:
    """The damage of rows that tasks have drawn, a task each. Donors come from the rows of all, so that they are there
    before any is measured; rows are read once, and stay where they were.
    """
    donors = watch.submit(joined_donors, [watch.submit(some_donors, each, *model, effort) for each in drawn], *model)
    return [watch.submit(damage_of_drawn, *model, each, donors, effort) for each in drawn]


def drawn_in_shard(scoring: Scoring, placed: Edition | FMModel, units: Sequence[Unit], effort: Effort) -> Drawn:
    """The rows to measure of some units of rows."""
    model = loaded_model(scoring, placed)
    batches = labelled_batches(scoring, model, units)
    return drawn_in_batches(model, batches, scoring.on_bad_rows, scoring.is_weighted, effort)


def some_donors(drawn: Drawn, scoring: Scoring, placed: Edition | FMModel, effort: Effort) -> list[pa.RecordBatch]:
    """Rows whose values are given to others, drawn from those of a task."""
    columns = list(loaded_model(scoring, placed).schema.columns)
    return [sampled(rows.select(columns), effort.donor_share, f"{place} donors") for place, rows in drawn.parts]


def joined_donors(parts: Sequence[Sequence[pa.RecordBatch]], scoring: Scoring, placed: Edition | FMModel) -> Donors:
    """The same of all tasks, in their order."""
    return donors_of([*itertools.chain(*parts)], loaded_model(scoring, placed).schema.columns)


def damage_of_drawn(
    scoring: Scoring, placed: Edition | FMModel, drawn: Drawn, donors: Donors, effort: Effort
) -> Damage:
    """The damage of the rows that a task has drawn."""
    return damage_of(weighing(loaded_model(scoring, placed), scoring.is_weighted), drawn, donors, effort)


def damage_in_batches(model: FMModel, batches: Iterable[Batch], on_bad_rows: str, effort: Effort) -> Damage:
    """The same of batches in this process."""
    drawn, columns = drawn_in_batches(model, batches, on_bad_rows, True, effort), list(model.schema.columns)
    rows = [sampled(rows.select(columns), effort.donor_share, f"{place} donors") for place, rows in drawn.parts]
    return damage_of(model, drawn, donors_of(rows, columns), effort)


def drawn_in_batches(
    model: FMModel, batches: Iterable[Batch], on_bad_rows: str, is_weighted: bool, effort: Effort
) -> Drawn:
    """The rows to measure of batches."""
    model = weighing(model, is_weighted)
    return drawn_of(model, ((batch.place, *_good(model, batch, on_bad_rows)) for batch in batches), effort)


def drawn_of(model: FMModel, batches: Iterable[tuple[str, pa.RecordBatch, RowAccount]], effort: Effort) -> Drawn:
    """The rows to measure of good rows, batch by batch, each with its place and its account."""
    whole = Damage.none(len(model.schema.columns), effort.n_repeats, n_paired(model))
    parts = []
    for place, good, account in batches:
        whole = replace(whole, account=whole.account + account)
        rows = sampled(good, effort.share, place)
        if rows.num_rows:
            parts.append((place, rows))
        if good.num_rows and len(whole.pairs):
            whole = _with_pairs(whole, model, sampled(good, effort.pair_share, f"{place} pairs"))
    return Drawn(tuple(parts), whole)


def damage_of(model: FMModel, drawn: Drawn, donors: Donors, effort: Effort) -> Damage:
    """The damage of drawn rows. Few of each batch are scored together: what one scoring costs apart from its rows is
    then paid once.
    """
    found, waiting = drawn.whole, list[tuple[str, pa.RecordBatch]]()
    for place, rows in drawn.parts:
        if waiting and (sum(each.num_rows for _, each in waiting) >= _TOGETHER or rows.schema != waiting[0][1].schema):
            found += _damages(model, waiting, donors, effort)
            waiting = []
        waiting.append((place, rows))
    return found + _damages(model, waiting, donors, effort) if waiting else found


def _damages(model: FMModel, parts: Sequence[tuple[str, pa.RecordBatch]], donors: Donors, effort: Effort) -> Damage:
    """The damage of some batches, together where Arrow can join them."""
    try:
        samples = [Sample.joined(parts)]
    except pa.ArrowException:
        samples = [Sample.joined([part]) for part in parts]
    return functools.reduce(operator.add, [_damage(model, sample, donors, effort.n_repeats) for sample in samples])


def _with_pairs(damage: Damage, model: FMModel, data: pa.RecordBatch) -> Damage:
    """The damage, and the terms of pairs of fields in some rows."""
    weights = _weights(model.encode(data, model.objective.label_kind).rows)
    pairs = damage.pairs + pair_sums(model, data, weights)
    return replace(damage, pairs=pairs, pair_weight=damage.pair_weight + float(weights.sum()))


def _good(model: FMModel, batch: Batch, on_bad_rows: str) -> tuple[pa.RecordBatch, RowAccount]:
    """The good rows, and the account; a row without a finite prediction is a bad one. DataError where a row is bad and
    none may be.
    """
    with naming_shard(batch):
        encoded = model.encode(batch.data, model.objective.label_kind)
    encoded, _ = without_outliers(model, batch.data, encoded, model.score(encoded))
    account = account_of(on_bad_rows, batch, encoded)
    return good_rows(batch.data, encoded), account


def _damage(model: FMModel, sample: Sample, donors: Donors, n_repeats: int) -> Damage:
    data = sample.data
    columns, encoded = model.schema.columns, model.encode(data, model.objective.label_kind)
    made_of = _fields_made_of(model.schema)
    (plain,) = _losses(model, encoded, [data.num_rows])
    missing = ((without(data, column), column) for column in columns)
    pairs = itertools.product(range(n_repeats), columns)
    others = ((sample.permuted(column, repeat, donors), column) for repeat, column in pairs)
    changed = (_changed(model, encoded.rows, made_of, *each) for each in itertools.chain(missing, others))
    found = np.array(_losses_of_each(model, encoded, changed)).reshape(n_repeats + 1, len(columns))
    told = data.num_rows, float(_weights(encoded.rows).sum()), plain
    return Damage(*told, found[0], found[1:], np.zeros((n_paired(model), n_paired(model))))


def _fields_made_of(schema: ResolvedSchema) -> dict[str, list[Field]]:
    """By column the fields that are made of it, and those that crosses among them are made of, which encoding needs."""
    by_name = {entry.name: entry for entry in schema.fields}
    found: dict[str, dict[int, Field]] = {column: {} for column in schema.columns}
    for entry in schema.fields:
        parts = [by_name[name] for name in entry.columns if name in by_name] if entry.kind == "cross" else []
        for column in schema.sources(entry.columns):
            found[column] |= {each.index: each for each in (entry, *parts)}
    return {column: [own[at] for at in sorted(own)] for column, own in found.items()}


def _changed(
    model: FMModel, rows: HashedRows, made_of: Mapping[str, Sequence[Field]], data: pa.RecordBatch, column: str
) -> HashedRows:
    """The rows, of data that differ from theirs in one column."""
    found = _with_fields(model, rows, data, made_of[column])
    return model.encode(data, model.objective.label_kind).rows if found is None else found


def _losses_of_each(model: FMModel, encoded: Encoded, changed: Iterable[HashedRows]) -> list[float]:
    """The weighted sum of losses of each of some changed copies of the rows; NaN where a copy is no legal data, so that
    not all of its rows were encoded. Copies of one entry a field are scored together, up to some rows: what one scoring
    costs apart from its rows is a multiple of what few rows cost.
    """
    found: list[float] = []
    waiting: list[HashedRows] = []
    n_rows = encoded.rows.n_rows
    most = max(1, _TOGETHER // max(n_rows, 1))
    for rows in itertools.chain(changed, [None]):
        if waiting and (rows is None or rows.fields.size or waiting[-1].fields.size or len(waiting) == most):
            sizes = [each.n_rows for each in waiting]
            losses = _losses(model, replace(encoded, rows=concatenate_rows(waiting)), sizes)
            found += [loss if size == n_rows else math.nan for loss, size in zip(losses, sizes, strict=True)]
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


def _losses(model: FMModel, encoded: Encoded, sizes: Sequence[int]) -> list[float]:
    """The weighted sums of the losses of so many rows each, one after the other: of the loss that is a metric of its
    own, or else of squared errors or log losses.
    """
    raw, objective, ends = model.score(encoded), model.objective, np.cumsum(sizes)[:-1]
    labels, weights = encoded.rows.labels.astype(np.float64), _weights(encoded.rows)
    if objective.own_loss is not None:
        total = total_loss(objective.own_loss)
        parts = (np.split(each, ends) for each in (raw.astype(np.float64), labels, weights))
        return [float(total(*part)) for part in zip(*parts, strict=True)]
    scores, predictions = objective.calibrated(raw).astype(np.float64), objective.predict(raw).astype(np.float64)
    losses = weights * losses_of(scores, predictions, labels, model.task == "regression")
    return [float(part.sum()) for part in np.split(losses, ends)]


def _weights(rows: HashedRows) -> Floats:
    """The weight of each row, float64[n_rows]."""
    return (rows.weights if rows.weights.size else np.ones(rows.n_rows)).astype(np.float64)


def described(damage: Damage, schema: ResolvedSchema) -> dict[str, Any]:
    """JSON-ready: rows, their mean loss, a record of each column, the most important first, and of each pair of fields,
    the strongest first; or why there is none of pairs.
    """
    records, pairs = damage.records(schema.columns), damage.strengths([entry.name for entry in schema.fields])
    found = {"rows": damage.rows, "loss": damage.plain / damage.weight, "columns": records, "pairs": pairs}
    reason = left_out(schema)
    return {**found, "pairs_left_out": reason} if reason else found
