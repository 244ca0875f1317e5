"""Scoring with a published model: the facts of a task, the model where the rows are, the account of a batch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from distributed import Future

from dfm.data.accounting import LabelMoments, RowAccount, bad_row_message, rejections_of
from dfm.data.encoding import Encoded
from dfm.data.parquet import Batch
from dfm.distributed.cluster.connect import shares_disk
from dfm.distributed.cluster.watch import Watch
from dfm.errors import DataError
from dfm.model.drift import Sights
from dfm.model.fm_model import FMModel
from dfm.model.slices import (
    Slicing,
)
from dfm.storage import files


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


def account_of(on_bad_rows: str, batch: Batch, encoded: Encoded) -> RowAccount:
    """The account of a batch. DataError with the first bad row where none may be."""
    rejections = rejections_of(batch, encoded.problems)
    if rejections and on_bad_rows == "error":
        raise DataError(bad_row_message(rejections[0]))
    labels = LabelMoments.of(encoded.rows.labels, encoded.rows.weights)
    return RowAccount(batch.data.num_rows, encoded.rows.n_rows, rejections, labels=labels)
