"""The end of a run: blocks become one model with golden rows, written where the job wants it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dfm.data.encoding import encode_batch
from dfm.data.parquet import Shard, Unit, naming_shard, read_unit
from dfm.data.reading import Reading
from dfm.data.units import LabelUnit
from dfm.data.vocabulary import Vocabulary
from dfm.errors import DivergenceError, LostParametersError, SettingsError
from dfm.model.calibration import Calibration
from dfm.model.fm_model import FMModel
from dfm.model.folder import MANIFEST, check_place
from dfm.model.golden import GOLDEN_ROWS
from dfm.model.objective import LossInfo
from dfm.settings.job import Job
from dfm.solvers.posterior import Draws, put_together
from dfm.storage import files, ownership
from dfm.training import rounds
from dfm.training.exact_rounds import LOST
from dfm.training.label_units import in_own_unit, of_full_stream

_LOOKED_AT = 4 * GOLDEN_ROWS
"""Rows of a batch among which golden ones are looked for."""


@dataclass(frozen=True)
class Published:
    """The outcome of publishing: the fingerprint of its parameters, and what did not go well beside them."""

    parameters_sha256: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Meaning:
    """The meaning of parameters: loss and calibration make predictions of their scores. are_draws: whether each block
    is a whole table, a draw from the posterior.
    """

    loss: LossInfo | None = None
    calibration: Calibration | None = None
    are_draws: bool = False


def check_output(job: Job) -> None:
    """SettingsError where the output may not be replaced, or cannot be written: now, and not after an hour."""
    check_replaceable(job)
    try:
        files.check_writable(job.output.directory, job.data.storage_options)
    except (OSError, ImportError, ValueError) as error:
        raise SettingsError(
            f"output.directory = {job.output.directory!r} cannot be written: {error}; choose another folder or URL"
        ) from error


def check_replaceable(job: Job) -> None:
    """SettingsError where the output may not be replaced: it is, or holds, the data, or what the job is to keep."""
    url, options = files.join(job.output.directory, "model"), job.data.storage_options
    _check_apart(job)
    check_place(url, options)
    if not job.output.overwrite and files.exists(files.join(url, MANIFEST), options):
        raise SettingsError(
            f"there is a model at {url}, and output.overwrite = false; choose another output.directory, or allow it"
        )


def _check_apart(job: Job) -> None:
    """SettingsError where the output or the cache is, contains or lies inside the data, held-out rows included."""
    inputs, options = [*job.data.train, *job.data.validation], job.data.storage_options
    ownership.check_apart(job.output.directory, inputs, "output.directory", options)
    ownership.check_apart(job.cluster.cache, inputs, "cluster.cache", options, may_hide=True)


def check_shards(job: Job, shards: Sequence[Shard]) -> None:
    """SettingsError where shards that were found, maybe beyond symbolic links, lie below the output or in the cache."""
    urls = [shard.url for shard in shards]
    for url, what in ((job.output.directory, "output.directory"), (job.cluster.cache, "cluster.cache")):
        ownership.check_apart(url, [], what, job.data.storage_options, shards=urls)


def publish_model(
    blocks: Sequence[rounds.Block | None],
    vocabulary: Vocabulary,
    metadata: Sequence[Mapping[str, Any]],
    reading: Reading,
    golden_unit: Unit,
    url: str,
    meaning: Meaning,
) -> Published:
    """Put the model together and save it with some golden rows. LostParametersError where a block is None.

    metadata: parts of what its manifest tells besides, one after the other.
    """
    there = [block for block in blocks if block is not None]
    if len(there) < len(blocks):
        raise LostParametersError(LOST)
    calibration = meaning.calibration
    draws: Draws | None = None
    if meaning.are_draws:
        table, draws = put_together([block.table for block in there], [block.noise for block in there])
        draws = draws.in_own_unit(reading.units.label)
    else:
        table = rounds.whole_table(there)
    if reading.units.label != LabelUnit():
        table = in_own_unit(table, reading.units.label)
    table = of_full_stream(table, reading.share_of_negatives)
    if calibration is not None:
        calibration = calibration.moved(math.log(reading.negative_rate))
    told = {name: value for each in metadata for name, value in each.items()}
    parts = reading.schema, reading.task, vocabulary, table, reading.statistics, told
    model = FMModel(*parts, meaning.loss, reading.clip, calibration, draws)
    if not all(np.isfinite(part).all() for part in (table.bias, table.linear, table.factors)):
        raise DivergenceError(
            "training diverged: some parameters are no longer finite; try a smaller training.learning_rate, or more L2"
        )
    golden, warnings = golden_rows(model, reading, golden_unit)
    return Published(model.save(url, golden, reading.storage_options), warnings)


def golden_rows(model: FMModel, reading: Reading, unit: Unit) -> tuple[pa.Table | None, tuple[str, ...]]:
    """The first good rows of a unit, as they are stored. None, and a warning, where they cannot be read (the shard is
    gone) or do not come back from Parquet with the same predictions: the model is worth more than its golden rows.
    """
    try:
        rows = _first_good_rows(reading, unit)
        if rows is not None:
            model.check_golden(rows)
        return rows, ()
    except Exception as error:
        return None, (f"the model is published without golden rows: {type(error).__name__}: {error}",)


def _first_good_rows(reading: Reading, unit: Unit) -> pa.Table | None:
    few = read_unit(unit, reading.columns, reading.storage_options, at_a_time=_LOOKED_AT)
    for batch in itertools.chain(itertools.islice(few, 1), read_unit(unit, reading.columns, reading.storage_options)):
        head = batch.data.slice(0, _LOOKED_AT)
        with naming_shard(batch):
            kind = reading.kind_of_labels
            encoded = encode_batch(head, reading.schema, reading.hash_bits, reading.statistics, kind)
        rows = head.filter(pa.array(encoded.good)).slice(0, GOLDEN_ROWS)
        if rows.num_rows:
            return pa.Table.from_batches([rows])
    return None
