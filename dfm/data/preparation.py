"""From Parquet to partitions on one machine: pure functions of the input, with a cache of files on the side.

A worker may lose its cache, or be another worker than last time: whatever is missing is made again from the shards,
and comes out the same. So the cache decides how long preparation takes, never what it gives.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data import rows_aside
from dfm.data.accounting import LabelMoments, RowAccount, bad_row_message, rejections_of
from dfm.data.coded_rows import MOST_CODES, CodedColumns, CodedRows, CodeTables, KnownTables, are_worth_codes, dealt
from dfm.data.draw import lots_of
from dfm.data.encoding import Coded, Encoded, are_coded, code_batch, encode_batch
from dfm.data.hashed_rows import HashedRows, arranged, concatenate_rows
from dfm.data.parquet import Batch, Unit, naming_shard
from dfm.data.partition import SparsePartition, build_partition, by_group
from dfm.data.reading import Reading, batches_of_each, fingerprint, kept_batches, sampled_batch, units_key
from dfm.data.texts import text_hashes
from dfm.data.units import RowUnits
from dfm.data.vocabulary import FeatureCounts, FeatureTally, RowLookup, Vocabulary, count_features
from dfm.errors import DataError
from dfm.storage import files, ownership
from dfm.storage.arrays import read_arrays, write_arrays

logger = logging.getLogger(__name__)
_CACHED = re.compile(r"\.?(chunk|partition)-[0-9a-f]{32}\.safetensors(\.[0-9a-f]{32}\.part)?")
Seed = tuple[int, ...] | None
"""Entropy for NumPy's SeedSequence; None leaves rows in their order."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The hashed rows of one reading task, dealt into slices: slice s is rows [offsets[s], offsets[s + 1])."""

    rows: HashedRows | CodedRows
    offsets: NDArray[np.int64]
    counts: FeatureCounts
    account: RowAccount
    aside: rows_aside.Packed = field(default_factory=rows_aside.nothing_aside)


# ------------------------------------------------------------------------------------------------- hashing ----


def hash_units(reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed) -> Chunk:
    """Hash the rows of one reading task and deal them, at random by `seed`, into slices of equal size.

    Without a seed the rows keep their order, and nobody counts their features. The result is a memory map of a cache
    file, made if it is not there yet.
    """
    path = _chunk_path(reading, units, n_slices, seed)
    return _open_chunk(path) or _made(path, reading, units, n_slices, seed)


def _made(path: Path, reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed) -> Chunk:
    (hashing,) = _hashed([(reading, seed is not None)], units)
    return _saved(path, hashing.chunk(n_slices, seed))


def hash_apart(
    training: Reading, held_out: Reading, units: Sequence[Unit], n_slices: int, seed: Seed
) -> tuple[Chunk, Chunk]:
    """`hash_units` of the rows to train on, and of those held out, in their order: shards are read once for both."""
    paths = _chunk_path(training, units, n_slices, seed), _chunk_path(held_out, units, 1, None)
    ours, theirs = (_open_chunk(path) for path in paths)
    if ours is None and theirs is None:
        of_training, of_held_out = _hashed([(training, True), (held_out, False)], units)
        theirs = _saved(paths[1], of_held_out.chunk(1, None))
        ours = _saved(paths[0], of_training.chunk(n_slices, seed))
    return (
        ours or _made(paths[0], training, units, n_slices, seed),
        theirs or _made(paths[1], held_out, units, 1, None),
    )


def batches_aside(reading: Reading, units: Sequence[Unit]) -> list[Batch] | None:
    """The rows of a reading task that were kept as they are; None where they were too large for that."""
    chunk = hash_units(reading, units, 1, None)
    is_whole = bool(chunk.aside.size) or not chunk.account.read
    return rows_aside.unpacked(chunk.aside, {unit.shard.url: unit.shard for unit in units}) if is_whole else None


def _hashed(wanted: Sequence[tuple[Reading, bool]], units: Sequence[Unit]) -> list[_Hashing]:
    """The rows of a reading task that are left to each of some readings; and whether their features are counted."""
    found, known = [_Hashing(*each) for each in wanted], KnownTables()
    readings = [reading for reading, _ in wanted]
    as_text = _read_as_text(readings[0].key())
    for unit in units:
        for batches in batches_of_each(readings, unit, as_text):
            as_text.update(_with_many_values(batches[0].data))
            for hashing, batch in zip(found, batches, strict=True):
                hashing.add(batch, known)
    return found


class _Hashing:
    """The rows of a reading task, batch by batch."""

    def __init__(self, reading: Reading, is_counted: bool) -> None:
        self.reading, self._is_counted = reading, is_counted
        self._parts: list[HashedRows | CodedColumns] = []
        share = reading.share_aside
        self._aside = rows_aside.RowsAside(reading.columns_aside, share) if share else None
        self._account = RowAccount()
        is_dense = FeatureTally.fits(reading.hash_bits)
        self._tally = FeatureTally(reading.hash_bits) if is_dense and is_counted else None
        self._is_coded = is_dense and are_coded(reading.schema)

    def add(self, batch: Batch, known: KnownTables) -> None:
        """Hash the rows of a batch. known: tables of the batches before."""
        reading, tally = self.reading, self._tally
        n_read, kind = batch.data.num_rows, reading.label_kind or reading.task
        if self._aside is not None:
            self._aside.add(batch)
        with naming_shard(batch):
            batch = sampled_batch(batch, reading, kind)
            told = batch.data, reading.schema, reading.hash_bits, reading.statistics, kind
            encoded = code_batch(*told, tally, known) if self._is_coded else encode_batch(*told, tally)
        rejections = rejections_of(batch, encoded.problems)
        if rejections and reading.on_bad_rows == "error":
            raise DataError(bad_row_message(rejections[0]))
        label_sum = float(encoded.rows.labels.sum(dtype=np.float64))
        labels = LabelMoments.of(encoded.rows.labels, encoded.rows.weights)
        counted = n_read, encoded.rows.n_rows, rejections, label_sum, labels, encoded.rows.entries
        self._account += RowAccount(*counted, n_read - batch.data.num_rows)
        self._parts += [_in_groups(batch, encoded, reading.group_column)] if encoded.rows.n_rows else []

    def chunk(self, n_slices: int, seed: Seed) -> Chunk:
        """All rows, dealt into slices; nothing is left here."""
        parts, self._parts = self._parts or [_no_rows()], []
        slices = _slices(parts, n_slices, seed, bool(self.reading.group_column))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(slices, minlength=n_slices))])
        rows = _dealt(parts, slices, n_slices, seed)
        del parts
        aside, self._aside = self._aside.packed() if self._aside else rows_aside.nothing_aside(), None
        return Chunk(rows, offsets, self._counts(rows), self._account, aside)

    def _counts(self, rows: HashedRows | CodedRows) -> FeatureCounts:
        if self._tally is not None:
            return self._tally.counts()
        if not self._is_counted:
            return FeatureCounts(np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0, np.uint16))
        hashed = rows.hashed()
        return count_features(hashed.indices, hashed.fields, len(self.reading.schema.fields), self.reading.hash_bits)


def _saved(path: Path, chunk: Chunk) -> Chunk:
    """The chunk as a memory map of its file."""
    _save_chunk(path, chunk)
    return _open_chunk(path, just_saved=True) or chunk


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


def _no_rows() -> HashedRows:
    floats = np.zeros(0, np.float32)
    return HashedRows(np.zeros(1, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.uint16), floats, floats, floats)


def _is_cached(entry: os.DirEntry[str]) -> bool:
    """Whether a file is a chunk or partition, or what a killed worker left of one: by its name and by its header."""
    is_named = entry.is_file(follow_symlinks=False) and _CACHED.fullmatch(entry.name)
    return bool(is_named) and ownership.is_array_file(entry.path)


def _chunk_path(reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed) -> Path:
    return _cache_path(reading, "chunk", reading.key(), units_key(units), n_slices, seed)


def _cache_path(reading: Reading, kind: str, *parts: Any) -> Path:
    return Path(reading.cache) / f"{kind}-{fingerprint(*parts)[:32]}.safetensors"


def _save_chunk(path: Path, chunk: Chunk) -> None:
    arrays = _named("rows", chunk.rows) | _named("counts", chunk.counts)
    # The account is an array and no metadata: many rejections would make a header larger than readers accept.
    account = np.frombuffer(json.dumps(chunk.account.to_dict()).encode(), np.uint8)
    aside = {"aside": chunk.aside} if chunk.aside.size else {}
    write_arrays(path, {**arrays, **aside, "offsets": chunk.offsets, "account": account})


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
    return Chunk(rows, arrays["offsets"], counts, account, arrays.get("aside", rows_aside.nothing_aside()))


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
        rows = [reading.units.applied(part) for part in parts or [_no_rows()]]
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
