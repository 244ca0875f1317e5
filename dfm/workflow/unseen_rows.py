"""Whether a model has seen the rows that it is to be judged on: its manifest tells which job trained it.

What can be told is refused; what cannot (the log is gone, or is not found from here) is said in a warning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dfm.data.derive import without_missing
from dfm.data.parquet import Shard, Unit, naming_shard, read_unit
from dfm.data.reading import fingerprint
from dfm.data.schema import ResolvedSchema
from dfm.data.snapshots import pins_of
from dfm.data.time_split import at_or_after
from dfm.errors import DataError
from dfm.model.fm_model import read_manifest
from dfm.settings.job import Job
from dfm.storage import files
from dfm.training.inputs import Inputs, find_inputs

logger = logging.getLogger(__name__)
_THREADS = 8
_OTHER_DATA = "its job names its data by relative paths, and other data are found there than it was trained on"


def check(model: str, shards: Sequence[Shard], options: files.Options = None) -> None:
    """DataError where a model was trained on shards: on all rows of one of them, or all that lie before the moment from
    which on rows validated it. Warns where that cannot be told, and of shards with rows on both sides.
    """
    known = read_manifest(model, options)["metadata"]
    settings = known.get("settings") or {}
    if not {"data", "output", "schema"} <= settings.keys():
        if settings:
            _warn(model, "no job trained it, but an estimator")
        return
    are_relative = any(map(_is_relative, settings["data"]["train"]))
    try:
        inputs = _inputs_of(model, known, options)
        are_others = known.get("data_fingerprint") != fingerprint([shard.identity for shard in inputs.train])
        if are_relative and are_others and not _trained_in(model, settings):
            _warn(model, _OTHER_DATA)
            return
        own = {shard.url for shard in inputs.train}
        both = [shard for shard in shards if shard.url in own]
        seen = _before(both, inputs, model, options) if inputs.split.bound else both
    except DataError as error:
        _warn(model, str(error))
        return
    if seen:
        raise DataError(
            f"the model at {model} was trained on {seen[0].url}" + (f" and {len(seen) - 1} more" if seen[1:] else "")
            + "; evaluate it on rows that it has not seen"
        )  # fmt: skip
    if are_relative and are_others:
        _warn(model, _OTHER_DATA)


def _warn(model: str, why: str) -> None:
    logger.warning(
        "whether the model at %s was trained on the rows that it is judged on could not be found out: %s; see to it "
        "that it was not, or its metrics are too good",
        model,
        why,
    )


# --- the data that it was trained on ---------------------------------------------------------------------


def _inputs_of(model: str, known: Mapping[str, Any], options: files.Options) -> Inputs:
    """The inputs of the job that trained a model. DataError where they are not there any more."""
    tables, root = known["settings"], _trained_in(model, known["settings"]) or os.getcwd()
    data = {**tables["data"], "storage_options": dict(options or {})}
    for name in ("train", "validation"):
        data[name] = [os.path.join(root, path) if _is_relative(path) else path for path in data.get(name, ())]
    return find_inputs(Job.from_dict({**tables, "data": data}), pins_of(known.get("tables", ())))


def _trained_in(model: str, tables: Mapping[str, Any]) -> str:
    """The folder that relative paths of a job start from: told by the place of its model where output.directory is
    such a path and the model still lies there; "" where it is not known.
    """
    directory, where = str(tables["output"]["directory"]), files.absolute(model).removeprefix("file://")
    below = os.path.join(os.sep, os.path.normpath(directory), "model")
    if not _is_relative(directory) or directory.startswith("..") or not where.endswith(below):
        return ""
    return where.removesuffix(below) or os.sep


def _is_relative(path: str) -> bool:
    return files.is_local(path) and not path.startswith(("file://", "~")) and not os.path.isabs(path)


# --- the rows before a moment ----------------------------------------------------------------------------


def _before(shards: Sequence[Shard], inputs: Inputs, model: str, options: files.Options) -> list[Shard]:
    """The shards all of whose rows lie before the moment from which on rows validated; warns of those with some."""
    schema, bound = inputs.schema, inputs.split.bound
    full = [shard for shard in shards if shard.n_rows]
    with ThreadPoolExecutor(_THREADS) as pool:
        later = list(pool.map(lambda shard: _rows_from(shard, schema, bound, options), full))
    some = [shard for shard, n_rows in zip(full, later, strict=True) if 0 < n_rows < shard.n_rows]
    if some:
        logger.warning(
            "the model at %s was trained on those rows of %s%s that lie before %s by %s; metrics there are too good",
            model, some[0].url, f" and {len(some) - 1} more" if some[1:] else "", bound, schema.time,
        )  # fmt: skip
    return [shard for shard, n_rows in zip(full, later, strict=True) if not n_rows]


def _rows_from(shard: Shard, schema: ResolvedSchema, bound: str, options: files.Options) -> int:
    """Rows of a shard at a moment or later; a missing time counts as the earliest, as in training."""
    found = 0
    for batch in read_unit(Unit(shard, 0, shard.n_rows), [schema.time], options):
        with naming_shard(batch):
            times = without_missing(batch.data.column(schema.time), schema.missing)
            later = at_or_after(times, bound, schema.time)
        found += int(pc.sum(later.cast(pa.int64())).as_py() or 0)
    return found
