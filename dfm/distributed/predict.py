"""Scoring shards with a published model: metrics of labelled rows, or predictions written as Parquet."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client

from dfm import storage
from dfm.accounting import RowAccount, bad_row_message, rejections_of
from dfm.distributed.placement import plan_reading
from dfm.distributed.prepare import Progress, follow
from dfm.encoding import Encoded
from dfm.errors import DataError, SettingsError
from dfm.ingest import Batch, Shard, Unit, arrow_schema, read_unit
from dfm.kernels.losses import sigmoid
from dfm.metrics import TALLIES, Tally
from dfm.model import FMModel

PREDICTION = "prediction"
DONE = "_SUCCESS"


@dataclass(frozen=True)
class Scoring:
    """What every scoring task must know. `model` is a URL that the workers can read, or the model itself."""

    model: str | FMModel
    on_bad_rows: str = "error"
    keep: tuple[str, ...] = ()
    """Input columns to write beside the prediction; empty: all."""
    output: str = ""
    storage_options: Mapping[str, Any] | None = None


@functools.lru_cache(maxsize=2)
def _loaded(url: str, manifest: bytes, options: str) -> FMModel:
    return FMModel.load(url, json.loads(options), check_golden=False)


def _model_of(scoring: Scoring) -> FMModel:
    """The model, loaded once per process and manifest."""
    if isinstance(scoring.model, FMModel):
        return scoring.model
    options = dict(scoring.storage_options or {})
    manifest = storage.read_bytes(storage.join(scoring.model, "model.json"), options)
    return _loaded(scoring.model, manifest, json.dumps(options, sort_keys=True))


def evaluate_shards(
    client: Client, scoring: Scoring, shards: Sequence[Shard], progress: Progress
) -> tuple[Tally, RowAccount]:
    """Metrics of the model on labelled rows, and the account of the rows."""
    tasks = plan_reading(shards)
    futures = client.map(evaluate_shard, [scoring] * len(tasks), tasks, pure=False)
    follow(client, futures, [sum(unit.n_rows for unit in units) for units in tasks], "evaluate", progress)
    results: list[tuple[Tally, RowAccount]] = client.gather(futures)
    tally, account = results[0]
    for other_tally, other_account in results[1:]:
        tally, account = tally + other_tally, account + other_account
    return tally, account


def evaluate_shard(scoring: Scoring, units: Sequence[Unit]) -> tuple[Tally, RowAccount]:
    """Metrics of some labelled rows."""
    model = _model_of(scoring)
    schema = model.schema
    columns = list(dict.fromkeys([c for c in (schema.label, schema.weight) if c] + list(schema.columns)))
    tally: Tally = TALLIES[model.task].empty()
    account = RowAccount()
    for unit in units:
        for batch in read_unit(unit, columns, scoring.storage_options):
            encoded = model.encode(batch.data, model.task)
            account += _account(scoring, batch, encoded)
            weights = encoded.rows.weights if encoded.rows.weights.size else None
            tally += TALLIES[model.task].from_scores(model.score(encoded), encoded.rows.labels, weights)
    return tally, account


def _account(scoring: Scoring, batch: Batch, encoded: Encoded) -> RowAccount:
    rejections = rejections_of(batch, encoded.problems)
    if rejections and scoring.on_bad_rows == "error":
        raise DataError(bad_row_message(rejections[0]))
    return RowAccount(batch.data.num_rows, encoded.rows.n_rows, rejections)


def predict_shards(
    client: Client, scoring: Scoring, shards: Sequence[Shard], progress: Progress, overwrite: bool = False
) -> RowAccount:
    """Write one Parquet file per reading task below `scoring.output`, and a `_SUCCESS` file last.

    Rows keep their order within the shards; part numbers follow the order of the shards. A bad row that is skipped
    keeps its place, with a null prediction. DataError where the output is not empty, unless `overwrite`.
    """
    _check_output(scoring, overwrite)
    tasks = plan_reading(shards)
    numbers = list(range(len(tasks)))
    futures = client.map(predict_shard, [scoring] * len(tasks), tasks, numbers, pure=False)
    follow(client, futures, [sum(unit.n_rows for unit in units) for units in tasks], "predict", progress)
    account = sum(client.gather(futures), RowAccount())
    summary = {
        "rows": account.read,
        "predicted": account.accepted,
        "rejected": account.by_reason(),
        "parts": len(tasks),
    }
    storage.write_bytes(storage.join(scoring.output, DONE), json.dumps(summary).encode(), scoring.storage_options)
    return account


def _check_output(scoring: Scoring, overwrite: bool) -> None:
    found = [name for name in storage.names_in(scoring.output, scoring.storage_options) if not name.startswith(".")]
    if found and not overwrite:
        raise SettingsError(f"{scoring.output} already holds {found[0]}; choose an empty folder, or add --overwrite")
    for name in found:
        if name == DONE or (name.startswith("part-") and name.endswith(".parquet")):
            storage.remove(storage.join(scoring.output, name), scoring.storage_options)


def predict_shard(scoring: Scoring, units: Sequence[Unit], number: int) -> RowAccount:
    """Write the predictions of some rows as part `number`, batch by batch."""
    model, account = _model_of(scoring), RowAccount()
    target = storage.join(scoring.output, f"part-{number:05d}.parquet")
    writer: pq.ParquetWriter | None = None
    with storage.writing(target, scoring.storage_options) as stream, contextlib.ExitStack() as open_writer:
        for unit in units:
            kept = list(scoring.keep) or arrow_schema(unit.shard, scoring.storage_options).names
            columns = list(dict.fromkeys([*kept, *model.schema.columns]))
            for batch in read_unit(unit, columns, scoring.storage_options):
                part, counted = _predicted(model, scoring, batch, kept)
                account += counted
                if writer is None:
                    writer = open_writer.enter_context(pq.ParquetWriter(stream, part.schema, compression="zstd"))
                writer.write_batch(part.cast(writer.schema) if part.schema != writer.schema else part)
    return account


def _predicted(
    model: FMModel, scoring: Scoring, batch: Batch, kept: Sequence[str]
) -> tuple[pa.RecordBatch, RowAccount]:
    encoded = model.encode(batch.data)
    account = _account(scoring, batch, encoded)
    scores = model.score(encoded)
    values = np.full(batch.data.num_rows, np.nan, np.float32)
    values[encoded.good] = sigmoid(scores) if model.task == "classification" else scores
    predictions = pa.array(values, pa.float32(), mask=~encoded.good)
    columns = [_plain(batch.data.column(name)) for name in kept]
    return pa.RecordBatch.from_arrays([*columns, predictions], names=[*kept, PREDICTION]), account


def _plain(array: pa.Array) -> pa.Array:
    """Text that was read as a dictionary, as text again."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
