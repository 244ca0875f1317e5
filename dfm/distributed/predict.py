"""Predictions of a published model for shards, written as Parquet."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client

from dfm.data.accounting import RowAccount
from dfm.data.parquet import Batch, Shard, Unit, arrow_schema, naming_shard, read_unit
from dfm.data.row_checks import BOUNDED, NOT_PREDICTED
from dfm.data.schema import check_once
from dfm.distributed.cluster.connect import shares_disk
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.progress import Progress, follow
from dfm.distributed.scoring import Edition, Scoring, account_of, both_sights, loaded_model, placed_model
from dfm.errors import DataError, SettingsError
from dfm.events import to_json
from dfm.model.drift import Sights
from dfm.model.fm_model import FMModel
from dfm.storage import files, ownership
from dfm.training.plan import plan_reading

logger = logging.getLogger(__name__)
PREDICTION = "prediction"
DONE = "_SUCCESS"
_FOOTER_THREADS = 16
Overwrite = Literal["nothing", "own", "beside"]
"""Files that predictions may replace: none, an earlier prediction, or that with others' files beside."""


@dataclass(frozen=True)
class Predicted:
    """Rows that were predicted: their account, and their values by column."""

    account: RowAccount
    sights: Sights | None = None
    not_finite: int = 0
    """Rows whose prediction is no finite number."""

    def __add__(self, other: Predicted) -> Predicted:
        sights = both_sights(self.sights, other.sights)
        return Predicted(self.account + other.account, sights, self.not_finite + other.not_finite)


@dataclass(frozen=True)
class Part:
    """A file to write, and the mark of the claim by which it may take its place."""

    name: str
    claim: str


def ledger_of(output: str, options: Mapping[str, Any] | None) -> ownership.Ledger:
    """The files that predictions into a folder made there."""
    return ownership.Ledger(output, ownership.PREDICTIONS, options)


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
    parts, earlier = _claimed_parts(ledger, len(tasks), overwrite)
    with ledger.giving_way():
        scoring, placed = placed_model(watch, scoring)
        futures = watch.client.map(
            predict_shard, [scoring] * len(tasks), [placed] * len(tasks), tasks, parts, pure=False
        )
        follow(watch, futures, [sum(unit.n_rows for unit in units) for units in tasks], "predict", progress)
        predicted = sum(watch.client.gather(futures), Predicted(RowAccount()))
        _check_predicted(ledger, predicted.account)
        _tell_of_outliers(predicted)
        ledger.check_written([DONE])
        ledger.remove(earlier)
        files.write_bytes(files.join(scoring.output, DONE), _summary(predicted.account, len(tasks)), options)
        ledger.settle()
    return predicted


def _check_predicted(ledger: ownership.Ledger, account: RowAccount) -> None:
    """DataError where every row was bad; the new parts, which hold nothing but nulls, are removed."""
    try:
        account.check_any("predict", "")
    except DataError:
        ledger.withdraw()
        raise


def _tell_of_outliers(predicted: Predicted) -> None:
    """A warning where predictions are no finite numbers."""
    if predicted.not_finite:
        logger.warning(
            "%d of %d predictions are not finite numbers: these rows are %s%s",
            predicted.not_finite,
            predicted.account.accepted,
            NOT_PREDICTED,
            BOUNDED,
        )


def _summary(account: RowAccount, n_parts: int) -> bytes:
    """The contents of `_SUCCESS`."""
    rows = {"rows": account.read, "predicted": account.accepted, "rejected": account.by_reason()}
    return to_json({**rows, "parts": n_parts}).encode()


def _check_reach(client: Client, output: str) -> None:
    if files.is_local(output) and not output.startswith("file://") and not shares_disk(client):
        raise SettingsError(
            f"{output} is a path of this machine, but the workers run on others and would write to their own disks; "
            f"name a URL (s3://…), or file://{output} if all of them share that folder with this machine"
        )


def _claimed_parts(ledger: ownership.Ledger, n_parts: int, overwrite: Overwrite) -> tuple[list[Part], list[str]]:
    """The parts to write, under whose names nothing lies yet, and the names of those of an earlier prediction."""
    own, foreign = ledger.own(), ledger.foreign()
    found = [*foreign, *own]
    if found and overwrite == "nothing":
        raise SettingsError(f"{ledger.folder} already holds {found[0]}; choose an empty folder, or add --overwrite")
    if foreign and overwrite == "own":
        raise SettingsError(
            f"{ledger.folder} holds {foreign[0]}, which no earlier prediction of dfm made; choose another folder, or "
            "allow to write beside it (--overwrite, overwrite=True): it stays there"
        )
    # Of an unsettled prediction nothing may be there yet, but its tasks may be about to put it there.
    suffix = f"-{uuid.uuid4().hex[:8]}" if found or not ledger.is_settled() else ""
    names = [f"part-{number:05d}{suffix}.parquet" for number in range(n_parts)]
    claim = ledger.claim([*names, DONE])
    ledger.remove([DONE])
    # Only now, as until the claim an earlier prediction that is still at work put parts in place.
    return [Part(name, claim) for name in names], ledger.own({*names, DONE})


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


def predict_shard(scoring: Scoring, placed: Edition | FMModel, units: Sequence[Unit], part: Part) -> Predicted:
    """Write the predictions of some rows as a part, batch by batch. StorageError where another prediction has begun in
    the folder since: nothing takes its place there.
    """
    model, found = loaded_model(scoring, placed), Predicted(RowAccount())
    options = scoring.storage_options
    written = scoring.kept.append(pa.field(PREDICTION, pa.float32()))
    ledger = ledger_of(scoring.output, options)
    with (
        ledger.writing(part.name, part.claim) as stream,
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
    values, found = np.full(batch.data.num_rows, np.nan, np.float32), model.objective.predict(scores)
    values[encoded.good] = found
    counted = Predicted(account, model.watcher.sights(encoded.rows), int(np.count_nonzero(~np.isfinite(found))))
    return pa.array(values, pa.float32(), mask=~encoded.good), counted


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
