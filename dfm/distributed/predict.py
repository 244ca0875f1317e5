"""Scoring shards with a published model: metrics of labelled rows, or predictions written as Parquet."""

from __future__ import annotations

import functools
import json
import operator
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client, Future

from dfm.data.accounting import LabelMoments, RowAccount, bad_row_message, rejections_of
from dfm.data.encoding import Encoded
from dfm.data.parquet import Batch, Shard, Unit, arrow_schema, naming_shard, read_unit
from dfm.data.schema import check_once
from dfm.distributed.cluster.connect import shares_disk
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.prepare import Progress, follow
from dfm.errors import DataError, SettingsError
from dfm.events import to_json
from dfm.model.drift import Sights
from dfm.model.fm_model import FMModel
from dfm.model.group_auc import GroupSums, group_sums
from dfm.model.metrics import ClassificationTally, Tally
from dfm.model.slices import (
    BUCKETS,
    Chosen,
    ScoredRows,
    SliceSums,
    Slicing,
    summed,
    tallied,
)
from dfm.storage import files, ownership
from dfm.training.plan import plan_reading

PREDICTION = "prediction"
DONE = "_SUCCESS"
_FOOTER_THREADS = 16
Overwrite = Literal["nothing", "own", "beside"]
"""Files that predictions may replace: none, an earlier prediction, or that with others' files beside."""


@dataclass(frozen=True)
class Scoring:
    """The facts that every scoring task must know."""

    model: str | FMModel
    """Absolute path or URL of the model; or the model, where it is in memory alone."""
    on_bad_rows: str = "error"
    keep: tuple[str, ...] = ()
    """Input columns to write beside the prediction; empty: all."""
    output: str = ""
    """The place of predictions: absolute path or URL; `file://` says that all workers share the path."""
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    is_weighted: bool = True
    """Whether rows to evaluate on have the weights that the model was trained with."""
    kept: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """The input columns that every part holds, decided once for all shards."""
    slicing: Slicing = field(default_factory=Slicing)
    """The slices and groups to evaluate by themselves."""


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


@dataclass(frozen=True)
class Predicted:
    """Rows that were predicted: their account, and their values by column."""

    account: RowAccount
    sights: Sights | None = None

    def __add__(self, other: Predicted) -> Predicted:
        return Predicted(self.account + other.account, both_sights(self.sights, other.sights))


def both_sights(ours: Sights | None, theirs: Sights | None) -> Sights | None:
    """The values of both, either of which may be of no rows."""
    return ours + theirs if ours is not None and theirs is not None else ours or theirs


@functools.lru_cache(maxsize=2)
def _loaded(url: str, manifest: bytes, options: str) -> FMModel:
    return FMModel.load(url, json.loads(options), check_golden=False)


def placed_model(watch: Watch, scoring: Scoring) -> tuple[Scoring, str | Future]:
    """The model's URL where workers can read it; else the model itself, sent once, and in no task."""
    model = scoring.model
    if isinstance(model, str) and (not files.is_local(model) or shares_disk(watch.client)):
        return scoring, model
    loaded = FMModel.load(model, check_golden=False) if isinstance(model, str) else model
    return replace(scoring, model=""), watch.keep(loaded)


def loaded_model(scoring: Scoring, placed: str | FMModel) -> FMModel:
    """The model; a URL is loaded once per process and manifest."""
    if isinstance(placed, FMModel):
        return placed
    options = dict(scoring.storage_options or {})
    manifest = files.read_bytes(files.join(placed, "model.json"), options)
    return _loaded(placed, manifest, json.dumps(options, sort_keys=True))


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


def evaluate_shard(scoring: Scoring, placed: str | FMModel, units: Sequence[Unit]) -> Evaluation:
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
    objective, slicing = model.objective, slicing or Slicing()
    found = Evaluation(objective.empty(), RowAccount())
    for account, rows, encoded in scored_batches(model, batches, on_bad_rows, is_weighted):
        slices = summed(rows, slicing, model.task == "regression") if slicing.columns else None
        tally = objective.tally(rows.raw, rows.labels, rows.weights)
        found += Evaluation(tally, account, slices, sights=model.watcher.sights(encoded.rows))
    return found


def scored_batches(
    model: FMModel, batches: Iterable[Batch], on_bad_rows: str, is_weighted: bool
) -> Iterator[tuple[RowAccount, ScoredRows, Encoded]]:
    """Accounts of batches of labelled rows, and their good rows, scored and encoded."""
    model = weighing(model, is_weighted)
    for batch in batches:
        with naming_shard(batch):
            encoded = model.encode(batch.data, model.objective.label_kind)
        account = account_of(on_bad_rows, batch, encoded)
        yield account, scored_rows(model, good_rows(batch.data, encoded), encoded), encoded


def weighing(model: FMModel, is_weighted: bool) -> FMModel:
    """The model, for which rows count alike unless they have the weights that it was trained with."""
    return model if is_weighted else replace(model, schema=replace(model.schema, weight=""))


def good_rows(data: pa.RecordBatch, encoded: Encoded) -> pa.RecordBatch:
    """The rows that were encoded."""
    return data if encoded.good.all() else data.filter(pa.array(encoded.good))


def scored_rows(model: FMModel, data: pa.RecordBatch, encoded: Encoded) -> ScoredRows:
    """Good rows with their scores."""
    raw, rows = model.score(encoded), encoded.rows
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
    scoring: Scoring, placed: str | FMModel, units: Sequence[Unit], chosen: Sequence[Chosen]
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


def account_of(on_bad_rows: str, batch: Batch, encoded: Encoded) -> RowAccount:
    """The account of a batch. DataError with the first bad row where none may be."""
    rejections = rejections_of(batch, encoded.problems)
    if rejections and on_bad_rows == "error":
        raise DataError(bad_row_message(rejections[0]))
    labels = LabelMoments.of(encoded.rows.labels, encoded.rows.weights)
    return RowAccount(batch.data.num_rows, encoded.rows.n_rows, rejections, labels=labels)


def ledger_of(output: str, options: Mapping[str, Any] | None) -> ownership.Ledger:
    """The files that predictions into a folder made there."""
    return ownership.Ledger(output, "predictions", options)


def predict_shards(
    watch: Watch, scoring: Scoring, shards: Sequence[Shard], progress: Progress, overwrite: Overwrite = "nothing"
) -> Predicted:
    """Write one Parquet file per reading task below `scoring.output`, and a `_SUCCESS` file last.

    All files have one schema: the kept columns as `kept_columns` finds them, then the prediction. Rows keep their order
    within the shards; part numbers follow the order of the shards. A bad row that is skipped keeps its place, with a
    null prediction. What the output may hold: "nothing"; "own": an earlier prediction, whose parts stay until all new
    ones are written, but whose `_SUCCESS` goes first; "beside": that, and files that dfm did not make, which stay.
    SettingsError where it holds anything else.
    """
    _check_reach(watch.client, scoring.output)
    options = scoring.storage_options
    scoring = replace(scoring, kept=kept_columns(shards, scoring.keep, options))
    ledger = ledger_of(scoring.output, options)
    tasks = plan_reading(shards)
    names, earlier = _claimed_parts(ledger, len(tasks), overwrite)
    scoring, placed = placed_model(watch, scoring)
    arguments = [scoring] * len(tasks), [placed] * len(tasks), tasks, names
    futures = watch.client.map(predict_shard, *arguments, pure=False)
    follow(watch, futures, [sum(unit.n_rows for unit in units) for units in tasks], "predict", progress)
    predicted = sum(watch.client.gather(futures), Predicted(RowAccount()))
    account = predicted.account
    _check_predicted(ledger, account, names)
    ledger.remove(earlier)
    summary = {
        "rows": account.read,
        "predicted": account.accepted,
        "rejected": account.by_reason(),
        "parts": len(tasks),
    }
    files.write_bytes(files.join(scoring.output, DONE), to_json(summary).encode(), options)
    ledger.settle()
    return predicted


def _check_predicted(ledger: ownership.Ledger, account: RowAccount, parts: Sequence[str]) -> None:
    """DataError where every row was bad; the new parts, which hold nothing but nulls, are removed."""
    try:
        account.check_any("predict", "")
    except DataError:
        ledger.remove(parts)
        raise


def _check_reach(client: Client, output: str) -> None:
    if files.is_local(output) and not output.startswith("file://") and not shares_disk(client):
        raise SettingsError(
            f"{output} is a path of this machine, but the workers run on others and would write to their own disks; "
            f"name a URL (s3://…), or file://{output} if all of them share that folder with this machine"
        )


def _claimed_parts(ledger: ownership.Ledger, n_parts: int, overwrite: Overwrite) -> tuple[list[str], list[str]]:
    """Names of the parts to write, under which nothing lies yet, and those of an earlier prediction."""
    own, foreign = ledger.own(), ledger.foreign()
    found = [*foreign, *own]
    if found and overwrite == "nothing":
        raise SettingsError(f"{ledger.folder} already holds {found[0]}; choose an empty folder, or add --overwrite")
    if foreign and overwrite == "own":
        raise SettingsError(
            f"{ledger.folder} holds {foreign[0]}, which no earlier prediction of dfm made; choose another folder, or "
            "allow to write beside it (--overwrite, overwrite=True): it stays there"
        )
    suffix = f"-{uuid.uuid4().hex[:8]}" if found else ""
    names = [f"part-{number:05d}{suffix}.parquet" for number in range(n_parts)]
    ledger.claim([*names, DONE])
    ledger.remove([DONE])
    return names, [name for name in own if name != DONE]


def kept_columns(
    shards: Sequence[Shard], keep: Sequence[str] = (), storage_options: Mapping[str, Any] | None = None
) -> pa.Schema:
    """The columns to write (`keep`, or all) with types that hold what every shard has; those of paths are strings.

    Shards need not agree: a column that some lack is null there, null becomes any type, numbers the wider type.
    SettingsError where two shards' types do not meet, or a column has the prediction's name; DataError where a column
    to keep is in no shard.
    """
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        schemas = list(pool.map(lambda shard: arrow_schema(shard, storage_options), shards))
    found: dict[str, tuple[pa.Field, Shard]] = {}
    for shard, schema in zip(shards, schemas, strict=True):
        check_once(schema.names, keep or None)
        for column in schema:
            if column.name in keep or not keep:
                found[column.name] = _agreed(found.get(column.name), column, shard)
    missing = [name for name in keep if name not in found]
    if missing:
        raise DataError(
            f"{shards[0].url} has no column {missing[0]!r}, nor has any other shard: it has "
            f"{', '.join(schemas[0].names[:50])}. Keep columns that are there"
        )
    if PREDICTION in found:
        raise SettingsError(
            f"{found[PREDICTION][1].url} already has a column {PREDICTION!r}, the name of what would be written; name "
            "the columns to keep without it (--keep C1,C2)"
        )
    return pa.schema([found[name][0] for name in dict.fromkeys(keep or found)])


def _agreed(known: tuple[pa.Field, Shard] | None, column: pa.Field, shard: Shard) -> tuple[pa.Field, Shard]:
    """The column with a type that holds both, and the shard that it comes from."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if known is None:
        return pa.field(column.name, kind), shard
    before, earlier = known
    if before.type == kind:
        return known
    both = [pa.schema([before]), pa.schema([(column.name, kind)])]
    try:
        merged = pa.unify_schemas(both, promote_options="permissive").field(0)
    except pa.ArrowException as error:
        raise SettingsError(
            f"column {column.name!r} is {before.type} in {earlier.url}, but {kind} in {shard.url}, and one output "
            "cannot hold both; leave the column out (--keep), or predict these shards into outputs of their own"
        ) from error
    return known if merged.type == before.type else (merged, shard)


def predict_shard(scoring: Scoring, placed: str | FMModel, units: Sequence[Unit], name: str) -> Predicted:
    """Write the predictions of some rows as the file `name`, batch by batch."""
    model, found = loaded_model(scoring, placed), Predicted(RowAccount())
    options = scoring.storage_options
    written = scoring.kept.append(pa.field(PREDICTION, pa.float32()))
    with (
        files.writing(files.join(scoring.output, name), options) as stream,
        pq.ParquetWriter(stream, written, compression="zstd") as writer,
    ):
        for unit in units:
            there = set(arrow_schema(unit.shard, options).names)
            kept = [column for column in scoring.kept.names if column in there]
            for batch in read_unit(unit, list(dict.fromkeys([*kept, *model.schema.columns])), options):
                predictions, counted = _predictions(model, scoring, batch)
                found += counted
                columns = [_column(batch, column) for column in scoring.kept]
                writer.write_batch(pa.RecordBatch.from_arrays([*columns, predictions], schema=written))
    return found


def _predictions(model: FMModel, scoring: Scoring, batch: Batch) -> tuple[pa.Array, Predicted]:
    with naming_shard(batch):
        encoded = model.encode(batch.data)
    account = account_of(scoring.on_bad_rows, batch, encoded)
    scores = model.score(encoded)
    values = np.full(batch.data.num_rows, np.nan, np.float32)
    values[encoded.good] = model.objective.predict(scores)
    return pa.array(values, pa.float32(), mask=~encoded.good), Predicted(account, model.watcher.sights(encoded.rows))


def _column(batch: Batch, column: pa.Field) -> pa.Array:
    """A column of the batch with the type that all parts give it; nulls where the shard has no such column."""
    if column.name not in batch.data.schema.names:
        return pa.nulls(batch.data.num_rows, column.type)
    array = batch.data.column(column.name)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    try:
        return array.cast(column.type)
    except pa.ArrowException as error:
        raise DataError(
            f"{batch.shard.url}: column {column.name!r} is {array.type} and does not fit {column.type}, which other "
            f"shards make of it ({error}); leave the column out (--keep), or predict this shard by itself"
        ) from error
