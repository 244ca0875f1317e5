"""From Parquet to partitions on one machine: pure functions of the input, with a cache of files on the side.

A worker may lose its cache, or be another worker than last time: whatever is missing is made again from the shards,
and comes out the same. So the cache decides how long preparation takes, never what it gives.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.data.accounting import LabelMoments, RowAccount, bad_row_message, rejections_of
from dfm.data.bucketing import wants_quantiles
from dfm.data.coded_rows import MOST_CODES, CodedColumns, CodedRows, CodeTables, KnownTables, are_worth_codes, dealt
from dfm.data.draw import Draw, Sampling, lots_of
from dfm.data.encoding import Coded, Encoded, are_coded, code_batch, encode_batch, negative_rows, number_column
from dfm.data.hashed_rows import HashedRows, arranged, concatenate_rows
from dfm.data.parquet import Batch, Unit, naming_shard, read_unit
from dfm.data.partition import SparsePartition, build_partition, by_group
from dfm.data.schema import ResolvedSchema
from dfm.data.texts import text_hashes
from dfm.data.time_split import at_or_after
from dfm.data.transforms import AUTO, TRANSFORMS, NumberStatistics
from dfm.data.units import RowUnits
from dfm.data.vocabulary import FeatureCounts, FeatureTally, RowLookup, Vocabulary, count_features
from dfm.errors import DataError
from dfm.storage import files, ownership
from dfm.storage.arrays import read_arrays, write_arrays

logger = logging.getLogger(__name__)
CACHE_FORMAT = 8
"""Part of every cache key: raise it when the bytes of a cached file change their meaning."""
_SKETCH_SIZE = 2048
_CACHED = re.compile(r"\.?(chunk|partition)-[0-9a-f]{32}\.safetensors(\.[0-9a-f]{32}\.part)?")
Seed = tuple[int, ...] | None
"""Entropy for NumPy's SeedSequence; None leaves rows in their order."""


@dataclass(frozen=True)
class Reading:
    """The way in which rows are read: what every task needs to know, and all that decides the hashed bytes."""

    schema: ResolvedSchema
    hash_bits: int
    task: str
    statistics: Mapping[str, NumberStatistics] = field(default_factory=dict)
    time_from: str = ""
    """Keep only rows whose time is this or later; empty: no such bound."""
    time_until: str = ""
    """Keep only rows whose time is before this; empty: no such bound."""
    draw: Draw | None = None
    """Keep only rows that were drawn, or those that were not."""
    on_bad_rows: str = "error"
    cache: str = ""
    units: RowUnits = field(default_factory=RowUnits)
    """In which partitions hold labels and weights; hashed rows have those of the data."""
    clip: tuple[float, float] | None = None
    """The range that the model's predictions are to stay in."""
    label_kind: str = ""
    """Which labels are legal, where the task does not say all: "counts" are 0 or more."""
    groups: tuple[int, ...] = ()
    """The group of each field, by which the entries of partitions are put in order; none: they are not."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    negative_rate: float = 1.0
    """The share of negative rows that the data still have; hashed rows and partitions know nothing of it."""
    sampling: Sampling | None = None
    """The negative rows that stay when rows are hashed; None: all."""
    group_column: str = ""
    """The column by whose values rows are told apart into groups; empty: nobody asks for it. Rows that are dealt into
    slices then stay together by group.
    """

    @property
    def share_of_negatives(self) -> float:
        """The share of the full stream's negative rows that is trained on."""
        return self.negative_rate * (self.sampling.share if self.sampling else 1.0)

    @property
    def columns(self) -> list[str]:
        """Columns to read."""
        special = (
            self.schema.label,
            self.schema.weight,
            self.schema.time if self.time_from or self.time_until else "",
            self.group_column,
        )
        return list(dict.fromkeys([column for column in special if column] + list(self.schema.columns)))

    def key(self) -> str:
        """Fingerprint of what decides the hashed bytes."""
        statistics = {name: dataclasses.asdict(value) for name, value in self.statistics.items()}
        return fingerprint(
            CACHE_FORMAT,
            self.schema.to_dict(),
            self.hash_bits,
            self.label_kind or self.task,
            statistics,
            self.time_from,
            self.time_until,
            dataclasses.astuple(self.draw) if self.draw else (),
            *((dataclasses.astuple(self.sampling),) if self.sampling else ()),
            *(("group", self.group_column) if self.group_column else ()),
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """The hashed rows of one reading task, dealt into slices: slice s is rows [offsets[s], offsets[s + 1])."""

    rows: HashedRows | CodedRows
    offsets: NDArray[np.int64]
    counts: FeatureCounts
    account: RowAccount


def fingerprint(*parts: Any) -> str:
    """sha256 (hex) of JSON-ready values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def units_key(units: Sequence[Unit]) -> list[Any]:
    """The identity of the rows of some units: path, size and time of their files, and the rows' range."""
    return [[*unit.shard.identity, unit.start, unit.stop] for unit in units]


# ---------------------------------------------------------------------------------------------- statistics ----


@dataclass(frozen=True, slots=True)
class NumberSketch:
    """Count, mean, sum of squared deviations and evenly spaced order statistics of a column's numbers."""

    count: int
    mean: float
    squares: float
    order_statistics: tuple[float, ...]


def columns_with_statistics(schema: ResolvedSchema) -> dict[str, str]:
    """Column to transform of the numeric fields whose transform must see the data first."""
    numeric = [entry for entry in schema.fields if entry.kind == "numeric"]
    return {entry.name: entry.transform for entry in numeric if TRANSFORMS[entry.transform].statistics}


def sketch_numbers(
    reading: Reading, units: Sequence[Unit], columns: Sequence[str] | None = None
) -> dict[str, NumberSketch]:
    """Sketch of numeric columns, of all whose transform needs one by default, over the rows of the units."""
    columns = list(columns_with_statistics(reading.schema)) if columns is None else columns
    return _sketch((batch for unit in units for batch in _number_batches(reading, unit, columns)), reading, columns)


def glance_at_numbers(reading: Reading, units: Sequence[Unit], columns: Sequence[str]) -> dict[str, NumberSketch]:
    """Sketch of numeric columns over the first batch of the units that has rows."""
    batches = (batch for unit in units for batch in _number_batches(reading, unit, columns) if batch.data.num_rows)
    return _sketch(itertools.islice(batches, 1), reading, columns)


def _number_batches(reading: Reading, unit: Unit, columns: Sequence[str]) -> Iterator[Batch]:
    return kept_batches(reading, unit, reading.schema.sources(columns))


def _sketch(batches: Iterable[Batch], reading: Reading, columns: Sequence[str]) -> dict[str, NumberSketch]:
    collected: dict[str, list[NDArray[np.float64]]] = {column: [] for column in columns}
    for batch in batches:
        for column in columns:
            with naming_shard(batch):
                collected[column].append(number_column(batch.data, column, reading.schema))
    return {column: sketch_values(np.concatenate([*parts, np.zeros(0)])) for column, parts in collected.items()}


def sketch_values(values: NDArray[np.float64]) -> NumberSketch:
    """Sketch of finite numbers float64[n]."""
    if not len(values):
        return NumberSketch(0, 0.0, 0.0, ())
    ordered = np.sort(values)
    picks = ((np.arange(_SKETCH_SIZE) + 0.5) / _SKETCH_SIZE * len(ordered)).astype(np.int64)
    mean = float(values.mean())
    return NumberSketch(len(values), mean, float(((values - mean) ** 2).sum()), tuple(ordered[picks].tolist()))


def columns_for_quantiles(sketches: Mapping[str, Sequence[NumberSketch]], n_buckets: int) -> list[str]:
    """The columns of transform "auto" that get quantiles, by what was seen of them."""
    return [column for column, parts in sketches.items() if _divides_better(parts, n_buckets)]


def _divides_better(parts: Sequence[NumberSketch], n_buckets: int) -> bool:
    if not any(sketch.count for sketch in parts):
        return False
    values, weights = _order_statistics(parts)
    return wants_quantiles(values, weights, merge_sketches(parts, n_buckets))


def statistics_of(
    sketches: Mapping[str, Sequence[NumberSketch]], schema: ResolvedSchema
) -> dict[str, NumberStatistics]:
    """Statistics of columns whose every row was seen; of one of transform "auto" only where it gets quantiles."""
    automatic = {column for column, transform in columns_with_statistics(schema).items() if transform == AUTO}
    chosen = columns_for_quantiles(
        {c: parts for c, parts in sketches.items() if c in automatic}, schema.quantile_buckets
    )
    return {
        column: merge_sketches(parts, schema.quantile_buckets)
        for column, parts in sketches.items()
        if column not in automatic or column in chosen
    }


def _order_statistics(known: Sequence[NumberSketch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numbers of all sketches that have any, and how many rows each stands for."""
    known = [sketch for sketch in known if sketch.count]
    values = np.concatenate([sketch.order_statistics for sketch in known])
    weights = np.concatenate([np.full(_SKETCH_SIZE, sketch.count / _SKETCH_SIZE) for sketch in known])
    return values, weights


def merge_sketches(sketches: Sequence[NumberSketch], n_buckets: int) -> NumberStatistics:
    """Mean and deviation by the update of Chan, Golub and LeVeque (1979); boundaries from order statistics."""
    count, mean, squares = 0, 0.0, 0.0
    known = [sketch for sketch in sketches if sketch.count]
    if not known:
        return NumberStatistics()
    for sketch in known:
        total = count + sketch.count
        delta = sketch.mean - mean
        squares += sketch.squares + delta * delta * count * sketch.count / total
        mean += delta * sketch.count / total
        count = total
    values, weights = _order_statistics(known)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / count
    picks = np.searchsorted(reached, np.arange(1, n_buckets) / n_buckets)
    boundaries = np.unique(values[order][np.minimum(picks, len(values) - 1)])
    return NumberStatistics(tuple(boundaries.tolist()), mean, float(np.sqrt(squares / count)))


# ------------------------------------------------------------------------------------------------- hashing ----


def kept_batches(reading: Reading, unit: Unit, columns: list[str], as_text: Set[str] = frozenset()) -> Iterator[Batch]:
    """Batches of the unit, without the rows that others train or validate on. as_text: as of `read_unit`."""
    if reading.draw is not None:
        wanted = [*columns, reading.draw.group] if reading.draw.group else columns
        for batch in read_unit(unit, list(dict.fromkeys(wanted)), reading.storage_options, as_text):
            with naming_shard(batch):
                keep = pa.array(reading.draw.keeps(batch))
            yield _kept(batch, keep)
        return
    if not (reading.time_from or reading.time_until):
        yield from read_unit(unit, columns, reading.storage_options, as_text)
        return
    wanted = list(dict.fromkeys([*columns, reading.schema.time]))
    for batch in read_unit(unit, wanted, reading.storage_options, as_text):
        with naming_shard(batch):
            keep = _in_span(batch.data.column(reading.schema.time), reading)
        yield _kept(batch, keep)


def _kept(batch: Batch, keep: pa.Array) -> Batch:
    """The rows of a batch for which `keep` (bool[n_rows]) holds."""
    kept = np.flatnonzero(keep.to_numpy(zero_copy_only=False))
    return dataclasses.replace(batch, data=batch.data.filter(keep), kept=kept)


def _sampled(batch: Batch, reading: Reading, kind: str) -> Batch:
    """The batch without the negative rows that are left out."""
    if reading.sampling is None:
        return batch
    stays = reading.sampling.keeps(batch, negative_rows(batch.data, reading.schema, kind))
    before = np.arange(batch.data.num_rows) if batch.kept is None else batch.kept
    return dataclasses.replace(batch, data=batch.data.filter(pa.array(stays)), kept=before[stays])


def _in_span(column: pa.Array, reading: Reading) -> pa.Array:
    """Rows to keep; a missing time counts as the earliest."""
    keep = pa.array(np.ones(len(column), np.bool_))
    if reading.time_from:
        keep = at_or_after(column, reading.time_from, reading.schema.time)
    if reading.time_until:
        keep = pc.and_(keep, pc.invert(at_or_after(column, reading.time_until, reading.schema.time)))
    return keep


def hash_units(reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed) -> Chunk:
    """Hash the rows of one reading task and deal them, at random by `seed`, into slices of equal size.

    Without a seed the rows keep their order. The result is a memory map of a cache file, made if it is not there yet.
    """
    path = _cache_path(reading, "chunk", reading.key(), units_key(units), n_slices, seed)
    cached = _open_chunk(path)
    if cached is not None:
        return cached
    parts: list[HashedRows | CodedColumns] = []
    account, known, as_text = RowAccount(), KnownTables(), _read_as_text(reading.key())
    tally = FeatureTally(reading.hash_bits) if FeatureTally.fits(reading.hash_bits) else None
    is_coded = tally is not None and are_coded(reading.schema)
    for unit in units:
        for batch in kept_batches(reading, unit, reading.columns, as_text):
            as_text.update(_with_many_values(batch.data))
            n_read, kind = batch.data.num_rows, reading.label_kind or reading.task
            with naming_shard(batch):
                batch = _sampled(batch, reading, kind)
                told = batch.data, reading.schema, reading.hash_bits, reading.statistics, kind
                encoded = code_batch(*told, tally, known) if tally and is_coded else encode_batch(*told, tally)
            rejections = rejections_of(batch, encoded.problems)
            if rejections and reading.on_bad_rows == "error":
                raise DataError(bad_row_message(rejections[0]))
            label_sum = float(encoded.rows.labels.sum(dtype=np.float64))
            labels = LabelMoments.of(encoded.rows.labels, encoded.rows.weights)
            entries = encoded.rows.entries
            counted = n_read, encoded.rows.n_rows, rejections, label_sum, labels, entries
            account += RowAccount(*counted, n_read - batch.data.num_rows)
            parts += [_in_groups(batch, encoded, reading.group_column)] if encoded.rows.n_rows else []
    parts = parts or [_no_rows(reading.schema)]
    slices = _slices(parts, n_slices, seed, bool(reading.group_column))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(slices, minlength=n_slices))])
    rows = _dealt(parts, slices, n_slices, seed)
    del parts
    counts = tally.counts() if tally else _counts(rows, len(reading.schema.fields), reading.hash_bits)
    _save_chunk(path, Chunk(rows, offsets, counts, account))
    return _open_chunk(path, just_saved=True) or Chunk(rows, offsets, counts, account)


@functools.lru_cache(maxsize=16)
def _read_as_text(key: str) -> set[str]:
    """Columns that this process has found to have many values where it read so. They decide how fast rows are read, and
    in which form they are cached, not which rows come out.
    """
    return set()


def _with_many_values(data: pa.RecordBatch) -> list[str]:
    """Columns whose dictionaries have too many values for codes."""
    columns = zip(data.schema.names, data.columns, strict=True)
    return [name for name, a in columns if pa.types.is_dictionary(a.type) and len(a.dictionary) >= MOST_CODES]


def _dealt(
    parts: Sequence[HashedRows | CodedColumns], slices: NDArray[np.unsignedinteger], n_slices: int, seed: Seed
) -> HashedRows | CodedRows:
    """All rows by slice, those of a slice as they come."""
    coded = [part for part in parts if isinstance(part, CodedColumns)]
    if coded and are_worth_codes(coded, n_slices):
        return dealt(coded, slices, n_slices)
    hashed = [part.hashed() for part in parts]
    return concatenate_rows(hashed) if seed is None else arranged(hashed, np.argsort(slices, kind="stable"))


def _counts(rows: HashedRows | CodedRows, n_fields: int, hash_bits: int) -> FeatureCounts:
    hashed = rows.hashed()
    return count_features(hashed.indices, hashed.fields, n_fields, hash_bits)


def _in_groups(batch: Batch, encoded: Encoded | Coded, column: str) -> HashedRows | CodedColumns:
    """The good rows of a batch, with the group of each where that is asked for."""
    if not column:
        return encoded.rows
    with naming_shard(batch):
        hashes = text_hashes(batch.data.column(column), column)
    return dataclasses.replace(encoded.rows, group_ids=hashes[encoded.good])


def check_labels(account: RowAccount, reading: Reading, units: Sequence[Unit]) -> None:
    """DataError where the rows of some units teach nothing: they weigh nothing, or are of one class only (a number that
    is always the same is told in a warning). The units are read for the message.
    """
    schema = reading.schema
    if account.accepted:
        account.check_any("train on", schema.weight)
    if not account.accepted or not account.labels.is_constant:
        return
    if reading.task != "classification" or account.labels.least not in (0.0, 1.0):
        logger.warning("all labels to train on are %g: there is nothing to learn but that", account.labels.mean)
        return
    found = "positive" if account.labels.mean else "negative"
    among = f"that weigh anything (column {schema.weight!r}) " if 0 < account.label_sum < account.accepted else ""
    meant = f"schema.label_positive = {list(schema.label_positive)}" if schema.label_positive else "1 is positive"
    raise DataError(
        f"all {account.accepted} rows to train on {among}are {found}: {meant}, and column {schema.label!r} "
        f"holds {', '.join(_labels_seen(reading, units))}. Name the positive labels in schema.label_positive, another "
        "column as schema.label, or train on data that has both classes"
    )


def _labels_seen(reading: Reading, units: Sequence[Unit]) -> list[str]:
    """Up to five distinct labels, from the beginning of the first units."""
    seen: dict[str, None] = {}
    for unit in units[:5]:
        for batch in itertools.islice(kept_batches(reading, unit, [reading.schema.label]), 1):
            seen |= dict.fromkeys(repr(label) for label in batch.data.column(reading.schema.label).unique().to_pylist())
    return list(seen)[:5]


def _slices(
    parts: Sequence[HashedRows | CodedColumns], n_slices: int, seed: Seed, by_group: bool
) -> NDArray[np.unsignedinteger]:
    """The slice of each row; the order within a slice is that of the file: partitions are shuffled when they are built,
    and until then rows are copied in the order in which they lie.

    It is drawn row by row, into slices of equal size (to one row), or by group: tasks whose seeds differ in the last
    number alone give a group the same slice. Without a seed rows keep their order.
    """
    if by_group and seed is not None:
        start = int(np.random.default_rng(seed[:-1]).integers(2**64, dtype=np.uint64))
        groups = np.concatenate([part.group_ids for part in parts])
        return (lots_of(groups, start) * n_slices).astype(np.uint32)
    n_rows = sum(part.n_rows for part in parts)
    drawn = np.arange(n_rows) if seed is None else np.random.default_rng(seed).permutation(n_rows)
    bounds = [n_rows * s // n_slices for s in range(n_slices + 1)]
    return np.repeat(np.arange(n_slices, dtype=np.uint16), np.diff(bounds))[drawn]


def _no_rows(schema: ResolvedSchema) -> HashedRows:
    floats = np.zeros(0, np.float32)
    return HashedRows(np.zeros(1, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.uint16), floats, floats, floats)


def _is_cached(entry: os.DirEntry[str]) -> bool:
    """Whether a file is a chunk or partition, or what a killed worker left of one: by its name and by its header."""
    is_named = entry.is_file(follow_symlinks=False) and _CACHED.fullmatch(entry.name)
    return bool(is_named) and ownership.is_array_file(entry.path)


def _cache_path(reading: Reading, kind: str, *parts: Any) -> Path:
    return Path(reading.cache) / f"{kind}-{fingerprint(*parts)[:32]}.safetensors"


def _save_chunk(path: Path, chunk: Chunk) -> None:
    arrays = _named("rows", chunk.rows) | _named("counts", chunk.counts)
    # The account is an array and no metadata: many rejections would make a header larger than readers accept.
    account = np.frombuffer(json.dumps(chunk.account.to_dict()).encode(), np.uint8)
    write_arrays(path, {**arrays, "offsets": chunk.offsets, "account": account})


def _named(prefix: str, record: Any) -> dict[str, NDArray[Any]]:
    """The arrays of a record by their names, those of records in it too."""
    found = {f"{prefix}.{entry.name}": getattr(record, entry.name) for entry in dataclasses.fields(record)}
    inner = [(name, found.pop(name)) for name, value in list(found.items()) if dataclasses.is_dataclass(value)]
    for name, value in inner:
        found |= _named(name, value)
    return found


def _open_chunk(path: Path, just_saved: bool = False) -> Chunk | None:
    """The cached chunk, or None; a damaged file counts as missing."""
    try:
        arrays, _ = read_arrays(path, just_saved)
        counts = FeatureCounts(**_arrays_of(FeatureCounts, "counts", arrays))
        account = RowAccount.from_dict(json.loads(arrays["account"].tobytes()))
        rows: HashedRows | CodedRows
        if "rows.codes" in arrays:
            tables = CodeTables(**_arrays_of(CodeTables, "rows.tables", arrays))
            rows = CodedRows(tables=tables, **_arrays_of(CodedRows, "rows", arrays))
        else:
            rows = HashedRows(**_arrays_of(HashedRows, "rows", arrays))
    except (DataError, KeyError, TypeError, ValueError) as error:
        _tell_of_damage(path, error)
        return None
    _mark_used(path)
    return Chunk(rows, arrays["offsets"], counts, account)


def _arrays_of(kind: Any, prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    names = [entry.name for entry in dataclasses.fields(kind)]
    return {name: arrays[f"{prefix}.{name}"] for name in names if f"{prefix}.{name}" in arrays}


def _tell_of_damage(path: Path, error: Exception) -> None:
    if not isinstance(error.__cause__, FileNotFoundError):
        logger.warning("%s is made again: %s", path, error.__cause__ or error)


def _mark_used(path: Path) -> None:
    """Set the file's time to now: the cache drops what was used least recently."""
    try:
        os.utime(path)
    except OSError:
        return


# ---------------------------------------------------------------------------------------------- partitions ----


def load_slices(
    reading: Reading,
    tasks: Sequence[Sequence[Unit]],
    n_slices: int,
    seed: Seed,
    vocabulary: Vocabulary,
    vocabulary_key: str,
    lookup: RowLookup,
) -> list[SparsePartition]:
    """The partitions of one replica, one per slice: from the cache, else from the chunks, else from the shards."""

    def of_tasks() -> list[list[HashedRows | CodedRows]]:
        found = [
            part_of_units(reading, units, (n_slices, None if seed is None else (*seed, number)), range(n_slices))
            for number, units in enumerate(tasks)
        ]
        return [list(parts) for parts in zip(*found, strict=True)] if found else [[] for _ in range(n_slices)]

    keys = reading.key(), [units_key(units) for units in tasks], n_slices, seed, vocabulary_key
    order = None if seed is None else (*seed, len(tasks))
    return _partitions(reading, (keys, n_slices, order), of_tasks, vocabulary, lookup)


def part_of_units(
    reading: Reading, units: Sequence[Unit], deal: tuple[int, Seed], wanted: range
) -> list[HashedRows | CodedRows]:
    """The rows of some slices of a reading task. deal: into how many it is dealt, and the seed of that."""
    chunk = hash_units(reading, units, *deal)
    check_chunk(chunk, reading, deal[0])
    return [chunk.rows.slice(int(chunk.offsets[s]), int(chunk.offsets[s + 1])) for s in wanted]


def load_parts(
    reading: Reading,
    parts: Sequence[Sequence[HashedRows | CodedRows]],
    keys: tuple[Any, ...],
    order: tuple[int, ...],
    vocabulary: Vocabulary,
    lookup: RowLookup,
) -> list[SparsePartition]:
    """The partitions of one replica, whose rows come from the reading tasks of all: parts[task][slice]. keys: all that
    makes them what they are; order: the seed of the order of rows.
    """
    n_slices = len(parts[0])
    by_slice = [[of_task[s] for of_task in parts] for s in range(n_slices)]
    return _partitions(reading, ((reading.key(), *keys), n_slices, order), lambda: by_slice, vocabulary, lookup)


def _partitions(
    reading: Reading,
    named: tuple[tuple[Any, ...], int, Seed],
    dealt_rows: Callable[[], Sequence[Sequence[HashedRows | CodedRows]]],
    vocabulary: Vocabulary,
    lookup: RowLookup,
) -> list[SparsePartition]:
    """Partitions from the cache, or of the rows that are dealt to each. named: what their files are named by, how many
    there are, and the seed of the order of rows, None for theirs.
    """
    keys, n_slices, seed = named
    if reading.units != RowUnits():
        keys = (*keys, dataclasses.asdict(reading.units))
    if reading.groups:
        keys = (*keys, reading.groups)
    paths = [_cache_path(reading, "partition", *keys, s) for s in range(n_slices)]
    partitions = [_open_partition(path) for path in paths]
    if None not in partitions:
        return [partition for partition in partitions if partition is not None]
    built = []
    for s, (path, parts) in enumerate(zip(paths, dealt_rows(), strict=True)):
        rows = [reading.units.applied(part) for part in parts or [_no_rows(reading.schema)]]
        order = None
        if seed is not None:
            order = np.random.default_rng((*seed, s)).permutation(sum(part.n_rows for part in rows))
        by_group(build_partition(rows, vocabulary, lookup, order), reading.groups).save(path)
        built.append(SparsePartition.open(path, just_saved=True))
    return built


def check_chunk(chunk: Chunk, reading: Reading, n_slices: int) -> None:
    """DataError where a cached offset, index or code is out of range: memory is read and written by them without
    looking.
    """
    offsets, rows = chunk.offsets, chunk.rows
    try:
        rows.check(reading.hash_bits)
        is_cut = len(offsets) == n_slices + 1 and offsets[0] == 0 and offsets[-1] == rows.n_rows
        is_known = isinstance(rows, HashedRows) or (
            rows.n_fields == len(reading.schema.fields) and FeatureTally.fits(reading.hash_bits)
        )
        if not is_cut or np.any(offsets[1:] < offsets[:-1]) or not is_known:
            raise DataError("offsets or fields of hashed rows are not those of this reading")
    except DataError as error:
        raise DataError(f"hashed rows in {reading.cache} are damaged; delete that folder and run again") from error


def _open_partition(path: Path) -> SparsePartition | None:
    try:
        partition = SparsePartition.open(path)
        partition.check()
    except (DataError, KeyError, TypeError, ValueError) as error:
        _tell_of_damage(path, error)
        return None
    _mark_used(path)
    return partition


def prune_cache(directory: str, limit: int, older_than: float) -> int:
    """Delete chunks and partitions used least recently until `limit` bytes of them are left; others' files stay.

    older_than: seconds since the epoch; what was used since then stays too. What killed workers left half written goes
    in any case. Returns the bytes deleted.
    """
    try:
        found = [entry for entry in os.scandir(directory) if _is_cached(entry)]
        cached = [(entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in found]
    except OSError:
        return 0
    total, freed = sum(size for _, size, _ in cached), 0
    for used, size, path in sorted(cached):
        is_needed = total - freed <= limit or used >= older_than
        if is_needed and not files.is_abandoned(Path(path)):
            continue
        Path(path).unlink(missing_ok=True)
        freed += size
    return freed
