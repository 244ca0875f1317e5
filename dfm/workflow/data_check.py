"""Is a new partition of a log what the days before it let expect? Its columns, its rows and its click rate (or mean).

A day's profile comes from the footers of its shards and one column, the label. It is kept beside the results, under a
name that follows from the shards as they are, so a check reads each day once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from dfm.data.accounting import LabelMoments
from dfm.data.encoding import encode_batch
from dfm.data.parquet import Shard, Unit, feature_schema, find_shards, naming_shard, read_unit
from dfm.data.reading import fingerprint
from dfm.data.schema import ResolvedSchema
from dfm.errors import DataError, SettingsError
from dfm.events import to_json
from dfm.model.drift import Sights, index_of
from dfm.model.fm_model import FMModel
from dfm.model.objective import label_kind_of
from dfm.settings.job import Job
from dfm.storage import files

_THREADS = 4
_MOST_SHARDS, _ROWS_OF_A_SHARD = 20, 2_500
_HASH_BITS = 10
"""Labels are read the way of training, through the encoder; without fields there is nothing to hash."""


@dataclass(frozen=True)
class Profile:
    """The contents of one partition. `columns`: the type of each column that the job reads, as Arrow names it."""

    url: str
    columns: dict[str, str]
    rows: int
    bad_labels: int
    label_mean: float
    """Mean label of the good rows: the click rate where labels are 0 and 1."""
    task: str = "classification"
    label_stdev: float = 0.0
    """Standard deviation of the labels of a regression."""
    label_least: float = 0.0
    """The least of them."""


@dataclass(frozen=True)
class Limits:
    """The distance that a partition may have from those before it."""

    rows_low: float = 0.5
    """Rows over the median of the days before, at least."""
    rows_high: float = 2.0
    label_mean_low: float = 0.8
    """Click rate (regression: mean label) over that of the rows of the days before, at least. Where labels are negative
    too, a ratio of means says nothing: their difference, in standard deviations of a day's labels, is then at least
    label_mean_low - 1 and at most label_mean_high - 1."""
    label_mean_high: float = 1.25
    max_bad_fraction: float = 0.01
    """Rows whose label is missing or illegal."""
    min_rows: int = 1
    max_psi: float = 0.25
    """Population stability index of a column against the training of a model, where one is given."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise SettingsError(f"limit {name} = {value!r} is not legal: expected a number, 0 or more")
        for low, high in (("rows_low", "rows_high"), ("label_mean_low", "label_mean_high")):
            if getattr(self, low) > getattr(self, high):
                raise SettingsError(f"limit {low} = {getattr(self, low)} lies above {high} = {getattr(self, high)}")


def profile(url: str, job: Job, schema: ResolvedSchema, keep: str = "") -> Profile:
    """The profile of a partition; taken from the folder `keep` where it was made of these shards before."""
    options = job.data.storage_options
    shards = find_shards([url], options)
    spread = ["label_stdev"] if job.model.task == "regression" else []
    key = fingerprint([shard.identity for shard in shards], schema.to_dict(), job.model.task, *spread)
    kept = files.join(keep, f"profile-{key[:32]}.json") if keep else ""
    if kept and files.exists(kept, options):
        return Profile(**json.loads(files.read_bytes(kept, options)))
    found = _read(url, job, schema, shards)
    if kept:
        files.write_bytes(kept, to_json(dataclasses.asdict(found), indent=1).encode(), options)
    return found


def _read(url: str, job: Job, schema: ResolvedSchema, shards: Sequence[Shard]) -> Profile:
    options = job.data.storage_options
    full = [shard for shard in shards if shard.n_rows]
    kinds = {field.name: str(field.type) for field in feature_schema(full[0], options)}
    used = [name for name in (schema.label, schema.weight, schema.time, *schema.columns) if name in kinds]
    labels_only = dataclasses.replace(schema, weight="", fields=())

    kind = label_kind_of(job.model.task, job.model.loss)

    def count(shard: Shard) -> tuple[int, LabelMoments]:
        rows, moments = 0, LabelMoments()
        for batch in read_unit(Unit(shard, 0, shard.n_rows), [schema.label], options):
            with naming_shard(batch):
                encoded = encode_batch(batch.data, labels_only, _HASH_BITS, {}, kind)
            rows += batch.data.num_rows
            moments += LabelMoments.of(encoded.rows.labels, encoded.rows.weights)
        return rows, moments

    with ThreadPoolExecutor(_THREADS) as pool:
        counts = list(pool.map(count, full))
    rows, labels = sum(n for n, _ in counts), functools.reduce(operator.add, (found for _, found in counts))
    columns, n_bad = {name: kinds[name] for name in dict.fromkeys(used)}, rows - int(labels.weight)
    if job.model.task != "regression":
        return Profile(url, columns, rows, n_bad, labels.mean)
    stdev = math.sqrt(labels.squares / max(labels.weight, 1.0))
    return Profile(url, columns, rows, n_bad, labels.mean, job.model.task, stdev, labels.least or 0.0)


def compare(today: Profile, before: Sequence[Profile], limits: Limits) -> list[str]:
    """The oddities of a partition, in words; empty where nothing is. `before`: oldest first, may be empty."""
    found = []
    if today.rows < limits.min_rows:
        found.append(f"{today.rows} rows, fewer than min_rows = {limits.min_rows}")
    if today.bad_labels > limits.max_bad_fraction * today.rows:
        found.append(
            f"{today.bad_labels} of {today.rows} labels are missing or illegal, more than max_bad_fraction = "
            f"{limits.max_bad_fraction:g}"
        )
    if not before:
        return found
    found += _changed_columns(today, before[-1])
    usual = statistics.median(day.rows for day in before)
    if not limits.rows_low * usual <= today.rows <= limits.rows_high * usual:
        found.append(
            f"{today.rows:,} rows; {len(before)} partitions before it have {usual:,.0f} (median), and "
            f"{limits.rows_low:g} to {limits.rows_high:g} times as many are expected"
        )
    return found + _changed_labels(today, before, limits)


def _changed_labels(today: Profile, before: Sequence[Profile], limits: Limits) -> list[str]:
    """The oddity of the mean label, in words: against that of the days before, as a share of it; where labels may be
    negative, of their deviation.
    """
    weights = [day.rows - day.bad_labels for day in before]
    if not sum(weights):
        return []
    mean = sum(day.label_mean * n for day, n in zip(before, weights, strict=True)) / sum(weights)
    times = f"{limits.label_mean_low:g} to {limits.label_mean_high:g} times that is expected"
    if min(day.label_least for day in (*before, today)) >= 0:
        low, high = limits.label_mean_low * mean, limits.label_mean_high * mean
    else:
        squares = sum(day.label_stdev**2 * n for day, n in zip(before, weights, strict=True))
        scale = math.sqrt(squares / sum(weights)) or abs(mean)
        low, high = mean - (1 - limits.label_mean_low) * scale, mean + (limits.label_mean_high - 1) * scale
        times = f"{low:.5g} to {high:.5g} is expected of labels whose standard deviation is {scale:.5g}"
    if low <= today.label_mean <= high:
        return []
    if today.task == "regression":
        return [f"the mean label is {today.label_mean:.5g}; before it was {mean:.5g}, and {times}"]
    return [f"the mean label (click rate) is {today.label_mean:.4f}; before it was {mean:.4f}, and {times}"]


def _changed_columns(today: Profile, yesterday: Profile) -> list[str]:
    names = dict.fromkeys([*yesterday.columns, *today.columns])
    return [
        f"column {name!r} is {today.columns.get(name, 'missing')}; it was {yesterday.columns.get(name, 'missing')} in "
        f"{yesterday.url}"
        for name in names
        if today.columns.get(name) != yesterday.columns.get(name)
    ]


def drifted(url: str, model: FMModel, limits: Limits, options: files.Options = None) -> list[str]:
    """The columns of a partition that are unlike those which a model was trained on, in words; empty where none is.

    Looked at are up to 2,500 rows from the middle of up to 20 shards. Bad rows are passed over.
    """
    full = [shard for shard in find_shards([url], options) if shard.n_rows]
    chosen = full[:: -(-len(full) // _MOST_SHARDS)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda shard: _sights(shard, model, options), chosen))
    records = model.watcher.records(functools.reduce(operator.add, found), model.schema)
    return [_described(record, limits) for record in records if (index_of(record) or 0.0) > limits.max_psi]


def _sights(shard: Shard, model: FMModel, options: files.Options) -> Sights:
    start = max((shard.n_rows - _ROWS_OF_A_SHARD) // 2, 0)
    unit = Unit(shard, start, min(start + _ROWS_OF_A_SHARD, shard.n_rows))
    parts = []
    for batch in read_unit(unit, list(model.schema.columns), options):
        with naming_shard(batch):
            parts.append(model.watcher.sights(model.encode(batch.data).rows))
    return functools.reduce(operator.add, parts)


def _described(record: Mapping[str, Any], limits: Limits) -> str:
    unseen = "" if record["unseen"] is None else f"; {record['unseen']:.1%} never seen"
    shares = (
        f"{record[name]:.1%} {name} (in training {record['training_' + name]:.1%})" for name in ("missing", "rare")
    )
    least = "at least " if record["psi"] is None else ""
    return (
        f"column {record['column']!r} has drifted from what the model was trained on: stability index "
        f"{least}{index_of(record):.3f}, more than max_psi = {limits.max_psi:g}; {'; '.join(shares)}{unseen}"
    )


def check(today: Profile, before: Sequence[Profile], limits: Limits, drift: Sequence[str] = ()) -> None:
    """DataError where a partition is not what those before it, or the training of a model, let expect. drift: in what
    it differs from that.
    """
    if problems := [*compare(today, before, limits), *drift]:
        raise DataError(f"{today.url} is not as expected: {'; '.join(problems)}")
