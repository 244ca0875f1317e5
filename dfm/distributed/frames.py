"""Evaluating rows that are in memory: tables and frames in this process, collections of Dask where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask
import distributed
from distributed import Client

from dfm.data.accounting import NO_ROW_GROUP, RowAccount
from dfm.data.parquet import Batch, Shard
from dfm.distributed.predict import evaluate_batches, labelled_columns
from dfm.model.fm_model import FMModel
from dfm.model.metrics import Tally
from dfm.model.rows import batches_of, in_columns


def evaluate_rows(model: FMModel, data: Any, on_bad_rows: str, name: str = "") -> tuple[Tally, RowAccount]:
    """Metrics of labelled rows in any form that a model scores, and their account. name: of the rows, for messages."""
    return evaluate_batches(model, _batches(model, data, name or f"the {type(data).__name__} given"), on_bad_rows)


def _batches(model: FMModel, data: Any, name: str) -> Iterator[Batch]:
    wanted, first = labelled_columns(model), 0
    for batch in batches_of(in_columns(data, model.schema, wanted), wanted):
        yield Batch(batch, Shard(name, 0, "", (batch.num_rows,), ()), NO_ROW_GROUP, first)
        first += batch.num_rows


def is_collection(data: Any) -> bool:
    """Whether it is a frame of Dask, in partitions that are still to be computed."""
    return hasattr(data, "__dask_graph__") and hasattr(data, "to_delayed") and hasattr(data, "columns")


def evaluate_collection(
    model: FMModel, frame: Any, on_bad_rows: str, client: Client | None = None
) -> tuple[Tally, RowAccount]:
    """The same of a frame of Dask, by partitions: on the client's cluster, the current one, or threads here."""
    client = client or _current_client()
    partitions = frame.to_delayed()
    whole = client.scatter(model, broadcast=True, hash=False) if client else model
    names = [f"partition {number} of the frame" for number in range(len(partitions))]
    evaluate = dask.delayed(evaluate_rows, pure=False)
    tasks = [evaluate(whole, part, on_bad_rows, name) for part, name in zip(partitions, names, strict=True)]
    results = client.gather(client.compute(tasks)) if client else dask.compute(*tasks)
    tally, account = model.objective.empty(), RowAccount()
    for other_tally, other_account in results:
        tally, account = tally + other_tally, account + other_account
    return tally, account


def _current_client() -> Client | None:
    try:
        return distributed.default_client()
    except ValueError:
        return None
