"""Whether a model has seen the rows that it is to be judged on: its manifest tells which job trained it, and which
model that job went on from, whose rows it has seen as well.

What can be told is refused; what cannot (the log is gone, or is not found from here) is said in a warning.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dfm.data.derive import without_missing
from dfm.data.parquet import Shard, Unit, naming_shard, read_unit
from dfm.data.reading import fingerprint
from dfm.data.snapshots import pins_of
from dfm.data.time_split import at_or_after
from dfm.errors import DataError, ModelError, SettingsError
from dfm.model.folder import read_manifest
from dfm.settings.job import Job
from dfm.storage import files
from dfm.storage.tables import TableUrl
from dfm.training.inputs import Inputs, find_inputs
from dfm.workflow.moments import is_earlier

logger = logging.getLogger(__name__)
_THREADS = 8
_FORGOTTEN = 0.01
"""Share of an earlier model, after what is forgotten at each start, below which it is not asked what it has seen."""
_MOST_STARTS = 30
"""Models that a model goes on from which are asked at most: a month of nights."""
_MOST_FOLDERS = 100
"""Folders by which a log may have grown since, before nobody looks any more."""
_GROWN = "other data are found by now than it was trained on"
_OTHER_DATA = "its job names its data by relative paths, and other data are found there than it was trained on"


def check(model: str, shards: Sequence[Shard], options: files.Options = None) -> None:
    """DataError where a model, or one that it goes on from, was trained on shards: on all rows of one of them, or all
    that lie before the moment from which on rows validated it. Warns where that cannot be told, and of shards with rows
    on both sides.
    """
    known, untold = read_manifest(model, options)["metadata"], list[str]()
    later: _Later = {}
    _check_own(model, known, shards, options, later)
    for earlier, told in _earlier(known, options):
        try:
            seen = _seen_by(earlier, told, shards, options, later)
        except (DataError, SettingsError) as error:  # a setting of then may be none of today's
            untold.append(f"{earlier}: {error}")
            continue
        if seen:
            raise DataError(
                f"the model at {model} goes on from the one at {earlier}, which was trained on {_listed(seen)}; "
                "evaluate it on rows that neither has seen"
            )
    if untold:
        more = f", and {len(untold) - 1} more" if untold[1:] else ""
        logger.warning(
            "whether models that the model at %s goes on from were trained on the rows that it is judged on could not "
            "be found out (%s%s); see to it that they were not, or its metrics are too good",
            *(model, untold[0], more),
        )


def goes_on_from(model: str, earlier: str, options: files.Options = None) -> bool:
    """Whether a model is another one, or goes on from it as far as `check` asks."""
    if _place(model) == _place(earlier):
        return True
    known = read_manifest(model, options)["metadata"]
    return any(_place(url) == _place(earlier) for url, told in _earlier(known, options) if told is not None)


def _check_own(
    model: str, known: Mapping[str, Any], shards: Sequence[Shard], options: files.Options, later: _Later
) -> None:
    """The check of the model itself."""
    settings = known.get("settings") or {}
    if not {"data", "output", "schema"} <= settings.keys():
        if settings:
            _warn(model, "no job trained it, but an estimator")
        return
    is_bounded, is_placed = bool(settings["data"].get("validation_from")), _is_placed(model, settings)
    try:
        inputs = _inputs_of(model, known, options)
        then = _found_again(known, inputs.train, {shard.url for shard in shards})
        if then is None and not is_placed:
            raise DataError(_OTHER_DATA)
        own = {shard.url for shard in (inputs.train if then is None else then)}
        both = [shard for shard in shards if shard.url in own]
        if both and then is None and not is_bounded:
            both = [shard for shard in both if _is_named(shard, settings["data"]["train"])]
            if not both:
                raise DataError(_GROWN)
        bound = _Bound(inputs.schema.time, inputs.split.bound, inputs.schema.missing)
        seen = _before(both, bound, model, options, later) if bound.moment else both
    except (DataError, SettingsError) as error:
        _warn(model, str(error))
        return
    if seen:
        raise DataError(
            f"the model at {model} was trained on {_listed(seen)}; evaluate it on rows that it has not seen"
        )
    if then is None and any(map(_is_relative, settings["data"]["train"])):
        _warn(model, _OTHER_DATA)


def _is_named(shard: Shard, train: Sequence[str]) -> bool:
    """Whether a job names the very shard, or the folder of a partition that has it: such a place does not grow."""
    places = [_place(path) for path in train if not any(mark in path for mark in "*?[{")]
    place, folder = _place(shard.url), _place(shard.url.rpartition("/")[0])
    return place in places or (folder in places and "=" in folder.rpartition("/")[2])


def _listed(shards: Sequence[Shard]) -> str:
    return shards[0].url + (f" and {len(shards) - 1} more" if shards[1:] else "")


def _warn(model: str, why: str) -> None:
    logger.warning(
        "whether the model at %s was trained on the rows that it is judged on could not be found out: %s; see to it "
        "that it was not, or its metrics are too good",
        model,
        why,
    )


# --- the models that it goes on from ---------------------------------------------------------------------


def _earlier(known: Mapping[str, Any], options: files.Options) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """The models that a model goes on from, the nearest first, as long as it remembers them, and not too many: place
    and metadata. None of one that is gone, or in whose place another one lies: what that went on from nobody knows.
    """
    share, seen = 1.0, set[tuple[str, str]]()
    while start := known.get("warm_start"):
        url, sha256 = str(start["model"]), str(start["sha256"])
        share *= 1.0 - float(start.get("decay", 0.0))
        if share < _FORGOTTEN or (url, sha256) in seen or len(seen) == _MOST_STARTS:
            return
        seen.add((url, sha256))
        try:
            manifest = read_manifest(url, options)
        except (ModelError, SettingsError):
            manifest = {}
        if manifest.get("files", {}).get("parameters", {}).get("sha256") != sha256:
            yield url, None
            return
        known = manifest["metadata"]
        yield url, known


def _seen_by(
    model: str, known: Mapping[str, Any] | None, shards: Sequence[Shard], options: files.Options, later: _Later
) -> list[Shard]:
    """The shards that an earlier model was trained on. DataError where that cannot be told. Its data are looked for
    only where its settings name some of the shards, and rows of these lie before the moment from which on it validated.
    """
    if known is None:
        raise DataError("it is gone, or another model lies in its place")
    settings = known.get("settings") or {}
    if not {"data", "output", "schema"} <= settings.keys():
        raise DataError("no job trained it")
    schema = settings["schema"]
    bound = _Bound(
        schema.get("time", ""), settings["data"].get("validation_from", ""), tuple(schema.get("missing", ()))
    )
    named = [shard for shard in shards if _may_name(model, settings, shard.url)]
    if named and bound.column and bound.moment:
        named = _before(named, bound, model, options, later)
    if not named:
        return []
    train = _inputs_of(model, known, options).train
    own = {shard.url for shard in train}
    both = [shard for shard in named if shard.url in own]
    if not both or (bound.moment and _is_placed(model, settings)):
        return both
    then = _found_again(known, train, {shard.url for shard in both})
    if then is None:
        raise DataError(_GROWN)
    there = {shard.url for shard in then}
    return [shard for shard in both if shard.url in there]


def _found_again(known: Mapping[str, Any], train: Sequence[Shard], judged: Set[str]) -> Sequence[Shard] | None:
    """The shards that a model was trained on, among those that its job names by now: all of these, those that are not
    judged, or those before one of the latest folders, as a log grows by days. None where no such choice has the
    fingerprint of its data.
    """

    def choices() -> Iterator[Sequence[Shard]]:
        yield train
        yield [shard for shard in train if shard.url not in judged]
        for end in itertools.islice(_ends(train), _MOST_FOLDERS):
            yield train[:end]

    return next((found for found in choices() if _fingerprint(found) == known.get("data_fingerprint")), None)


def _ends(shards: Sequence[Shard]) -> Iterator[int]:
    """The places, the latest first, where another folder begins; where all lie in one, those of shards."""
    folders = [shard.url.rpartition("/")[0] for shard in shards]
    places = range(len(shards) - 1, 0, -1)
    return (at for at in places if folders[at] != folders[at - 1] or folders[0] == folders[-1])


def _fingerprint(shards: Sequence[Shard]) -> str:
    return fingerprint([shard.identity for shard in shards])


def _may_name(model: str, settings: Mapping[str, Any], shard: str) -> bool:
    """Whether the training data of a model's job may hold a shard, by the beginnings of their paths."""
    root = _trained_in(model, settings)
    for path in settings["data"]["train"]:
        if TableUrl.of(path) or (_is_relative(path) and not root):
            return True
        stem = _place(os.path.join(root, path) if _is_relative(path) else path)
        fixed = re.split(r"[*?\[{]", stem, maxsplit=1)[0]
        if _place(shard).startswith(fixed if fixed != stem else stem.rstrip("/") + "/") or _place(shard) == stem:
            return True
    return False


def _place(url: str) -> str:
    return files.absolute(url).removeprefix("file://")


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


def _is_placed(model: str, tables: Mapping[str, Any]) -> bool:
    """Whether it is known where the training data of a job lie."""
    return bool(_trained_in(model, tables)) or not any(map(_is_relative, tables["data"]["train"]))


def _is_relative(path: str) -> bool:
    return files.is_local(path) and not path.startswith(("file://", "~")) and not os.path.isabs(path)


# --- the rows before a moment ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bound:
    """The moment from which on rows validated, in a column; texts in `missing` are no moments."""

    column: str
    moment: str
    missing: tuple[str, ...]


_Later = dict[tuple[str, str, tuple[str, ...]], str]
"""By shard, column and what is missing in it: a moment before which no row lies. Earlier models of a chain validated on
earlier rows, so that each shard is read about once.
"""


def _before(shards: Sequence[Shard], bound: _Bound, model: str, options: files.Options, later: _Later) -> list[Shard]:
    """The shards all of whose rows lie before the moment from which on rows validated; warns of those with some."""

    def is_later(shard: Shard) -> bool:
        known = later.get((shard.url, bound.column, bound.missing), "")
        return bool(known) and not is_earlier(known, bound.moment)

    full = [shard for shard in shards if shard.n_rows and not is_later(shard)]
    with ThreadPoolExecutor(_THREADS) as pool:
        from_then_on = list(pool.map(lambda shard: _rows_from(shard, bound, options), full))
    counted = list(zip(full, from_then_on, strict=True))
    later |= {(one.url, bound.column, bound.missing): bound.moment for one, n_rows in counted if n_rows == one.n_rows}
    some = [shard for shard, n_rows in counted if 0 < n_rows < shard.n_rows]
    if some:
        logger.warning(
            "the model at %s was trained on those rows of %s that lie before %s by %s; metrics there are too good",
            *(model, _listed(some), bound.moment, bound.column),
        )
    return [shard for shard, n_rows in counted if not n_rows]


def _rows_from(shard: Shard, bound: _Bound, options: files.Options) -> int:
    """Rows of a shard at a moment or later; a missing time counts as the earliest, as in training."""
    found = 0
    for batch in read_unit(Unit(shard, 0, shard.n_rows), [bound.column], options):
        with naming_shard(batch):
            times = without_missing(batch.data.column(bound.column), bound.missing)
            later = at_or_after(times, bound.moment, bound.column)
        found += int(pc.sum(later.cast(pa.int64())).as_py() or 0)
    return found
