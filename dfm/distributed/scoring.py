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
from dfm.errors import DataError, ModelError
from dfm.model.drift import Sights
from dfm.model.fm_model import FMModel
from dfm.model.folder import manifest_in_place, read_manifest
from dfm.model.slices import Slicing
from dfm.settings.arguments import check_bad_rows
from dfm.storage import files
from dfm.training.label_units import of_thinned_log


@dataclass(frozen=True)
class Edition:
    """A published model as one version of it: whatever is published in its place later, all tasks load the same."""

    url: str
    """Absolute path or URL."""
    manifest: str = field(repr=False)
    """The text of its manifest."""

    @classmethod
    def of(cls, url: str, options: files.Options = None) -> Edition:
        """The present one of a path or URL. ModelError where there is none."""
        return cls(files.absolute(url), json.dumps(read_manifest(url, options)))

    def load(self, options: files.Options = None, check_golden: bool = False) -> FMModel:
        """The model. ModelError where it was replaced, and its files are gone: they outlive it by one generation."""
        manifest = json.loads(self.manifest)
        try:
            return FMModel.load(self.url, options, check_golden, manifest)
        except ModelError as error:
            if json.dumps(manifest_in_place(self.url, options)) == self.manifest:  # as text: no NaN equals itself
                raise
            raise ModelError(
                f"the model at {self.url} was replaced, or removed, while it was scored ({error}); run the same "
                "command again, and give each model a folder of its own"
            ) from error


@dataclass(frozen=True)
class Scoring:
    """The facts that every scoring task must know."""

    model: Edition | FMModel | None
    """The model: a published one; or itself, where it is in memory alone. None in tasks, which get it beside."""
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
    negative_rate: float = 1.0
    """The share of negative rows that the rows still have: they are scored as the log that the model was trained on."""

    def __post_init__(self) -> None:
        check_bad_rows(self.on_bad_rows)


def both_sights(ours: Sights | None, theirs: Sights | None) -> Sights | None:
    """The values of both, either of which may be of no rows."""
    return ours + theirs if ours is not None and theirs is not None else ours or theirs


@functools.lru_cache(maxsize=2)
def _loaded(edition: Edition, options: str, negative_rate: float) -> FMModel:
    return of_thinned_log(edition.load(json.loads(options)), negative_rate)


def placed_model(watch: Watch, scoring: Scoring) -> tuple[Scoring, Edition | Future]:
    """The model's edition where workers can read it; else the model itself, which is sent once, and in no task."""
    model = scoring.model
    if isinstance(model, Edition):
        if not files.is_local(model.url) or shares_disk(watch.client):
            # In each task: all that wait for one value run where it lies, as workers steal nothing.
            return replace(scoring, model=None), model
        model = of_thinned_log(model.load(), scoring.negative_rate)
    return replace(scoring, model=None), watch.keep(model)


def loaded_model(scoring: Scoring, placed: Edition | FMModel) -> FMModel:
    """The model; an edition is loaded once per process. ModelError where it was replaced, and its files are gone."""
    if isinstance(placed, FMModel):
        return placed
    options = json.dumps(dict(scoring.storage_options or {}), sort_keys=True)
    return _loaded(placed, options, scoring.negative_rate)


def account_of(on_bad_rows: str, batch: Batch, encoded: Encoded) -> RowAccount:
    """The account of a batch. DataError with the first bad row where none may be."""
    rejections = rejections_of(batch, encoded.problems)
    if rejections and on_bad_rows == "error":
        raise DataError(bad_row_message(rejections[0]))
    labels = LabelMoments.of(encoded.rows.labels, encoded.rows.weights)
    return RowAccount(batch.data.num_rows, encoded.rows.n_rows, rejections, labels=labels)
