"""Evaluating rows that are in memory: tables and frames in this process, collections of Dask where they lie."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import dask
import distributed
from distributed import Client

from dfm.data.accounting import NO_ROW_GROUP, RowAccount
from dfm.data.parquet import Batch, Shard
from dfm.distributed.evaluate import Evaluation, added, evaluate_batches, labelled_columns, tally_batches, together
from dfm.distributed.texts import refuse_truths, truths_among
from dfm.model.fm_model import FMModel
from dfm.model.metrics import ClassificationTally
from dfm.model.rows import batches_of, in_columns, numeric_of
from dfm.model.slices import Chosen, Slicing


def evaluate_rows(
    model: FMModel, data: Any, on_bad_rows: str, name: str = "", slicing: Slicing | None = None
) -> Evaluation:
    """Metrics of labelled rows in any form that a model scores, and their account. name: of the rows, for messages."""
    batches = row_batches(model, data, name or f"the {type(data).__name__} given", slicing)
    return evaluate_batches(model, batches, on_bad_rows, slicing=slicing)


def tally_rows(
    model: FMModel, data: Any, slicing: Slicing, chosen: Sequence[Chosen]
) -> list[list[ClassificationTally]]:
    """Tallies of chosen slices of such rows."""
    return tally_batches(model, row_batches(model, data, "", slicing), True, chosen)


def row_batches(model: FMModel, data: Any, name: str, slicing: Slicing | None = None) -> Iterator[Batch]:
    """Labelled rows in any form that a model scores, in batches."""
    wanted, first, schema = labelled_columns(model, slicing=slicing), 0, model.schema
    for batch in batches_of(in_columns(data, schema, wanted), wanted, numeric_of(schema), schema.missing):
        yield Batch(batch, Shard(name, 0, "", (batch.num_rows,), ()), NO_ROW_GROUP, first)
        first += batch.num_rows


def is_collection(data: Any) -> bool:
    """Whether it is a frame of Dask, in partitions that are still to be computed."""
    return hasattr(data, "__dask_graph__") and hasattr(data, "to_delayed") and hasattr(data, "columns")


def evaluate_collection(
    model: FMModel, frame: Any, on_bad_rows: str, client: Client | None = None, slicing: Slicing | None = None
) -> Evaluation:
    """The same of a frame of Dask, by partitions: on the client's cluster, the current one, or threads here. DataError
    where Dask made text of a column that the model learnt otherwise.
    """
    truths = truths_among(frame, model.tokens, model.vocabulary)
    names = [f"partition {number} of the frame" for number in range(frame.npartitions)]
    arguments = [(on_bad_rows, name, slicing, truths) for name in names]
    parts = _by_partition(model, frame, client, evaluate_partition, arguments)
    return together([Evaluation(model.objective.empty(), RowAccount()), *parts])


def evaluate_partition(
    model: FMModel, frame: Any, on_bad_rows: str, name: str, slicing: Slicing | None, truths: Set[str]
) -> Evaluation:
    """Metrics of a frame of pandas, part of one of Dask. truths: columns of text in it whose true and false the model
    learnt.
    """
    refuse_truths(frame, truths)
    return evaluate_rows(model, frame, on_bad_rows, name, slicing)


def tally_collection(
    model: FMModel, frame: Any, client: Client | None, slicing: Slicing, chosen: Sequence[Chosen]
) -> list[list[ClassificationTally]]:
    """Tallies of chosen slices of such a frame."""
    arguments = [(slicing, chosen)] * frame.npartitions
    return functools.reduce(added, _by_partition(model, frame, client, tally_rows, arguments))


def _by_partition(
    model: FMModel, frame: Any, client: Client | None, function: Callable[..., Any], more: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """Results of function(model, partition, *more) of each partition."""
    client = client or _current_client()
    whole = client.scatter(model, broadcast=True, hash=False) if client else model
    task = dask.delayed(function, pure=False)
    tasks = [task(whole, part, *own) for part, own in zip(frame.to_delayed(), more, strict=True)]
    return list(client.gather(client.compute(tasks)) if client else dask.compute(*tasks))


def _current_client() -> Client | None:
    try:
        return distributed.default_client()
    except ValueError:
        return None
