"""From Parquet to hashed rows: what one reading task hashes, dealt into slices, in a cached file."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data import rows_aside
from dfm.data.accounting import LabelMoments, RowAccount, bad_row_message, rejections_of
from dfm.data.cache import cache_path, mark_used, tell_of_damage
from dfm.data.coded_rows import CodedColumns, CodedRows, CodeTables, are_worth_codes, dealt
from dfm.data.draw import lots_of
from dfm.data.encoding import Coded, Encoded, are_coded, code_batch, encode_batch
from dfm.data.hashed_rows import HashedRows, arranged, concatenate_rows
from dfm.data.known_tables import MOST_CODES, KnownTables
from dfm.data.labels import told_of_rounding
from dfm.data.parquet import Batch, Unit, naming_shard
from dfm.data.reading import Reading, batches_of_each, kept_batches, sampled_batch, units_key
from dfm.data.texts import text_hashes
from dfm.data.vocabulary import FeatureCounts, FeatureTally, count_features
from dfm.errors import DataError
from dfm.storage.arrays import read_arrays, write_arrays

logger = logging.getLogger(__name__)
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


def hash_units(reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed) -> Chunk:
    """Hash the rows of one reading task and deal them, at random by `seed`, into slices of equal size.

    Without a seed the rows keep their order, and nobody counts their features. The result is a memory map of a cache
    file, made if it is not there yet.
    """
    path = _chunk_path(reading, units, n_slices, seed)
    return _open_chunk(path) or _made(path, reading, units, n_slices, seed)


def hashed_in_memory(
    reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed, has_codes: bool | None = None
) -> Chunk:
    """The same without a file. has_codes: whether rows are coded that can be; None: where it pays."""
    (hashing,) = _hashed([(reading, seed is not None)], units)
    return hashing.chunk(n_slices, seed, has_codes)


def _made(path: Path, reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed) -> Chunk:
    return _saved(path, hashed_in_memory(reading, units, n_slices, seed))


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
        n_read, kind = batch.data.num_rows, reading.kind_of_labels
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

    def chunk(self, n_slices: int, seed: Seed, has_codes: bool | None = None) -> Chunk:
        """All rows, dealt into slices; nothing is left here. has_codes: as of `hashed_in_memory`."""
        parts, self._parts = self._parts or [no_rows()], []
        slices = _slices(parts, n_slices, seed, bool(self.reading.group_column))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(slices, minlength=n_slices))])
        rows = _dealt(parts, slices, (n_slices, seed), has_codes)
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
    parts: Sequence[HashedRows | CodedColumns],
    slices: NDArray[np.unsignedinteger],
    deal: tuple[int, Seed],
    has_codes: bool | None,
) -> HashedRows | CodedRows:
    """All rows by slice, those of a slice as they come. deal: how many slices, and by which seed."""
    coded, (n_slices, seed) = [part for part in parts if isinstance(part, CodedColumns)], deal
    if coded and (are_worth_codes(coded, n_slices) if has_codes is None else has_codes):
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


class OneClassError(DataError):
    """All rows to train on are of one class."""


def check_labels(account: RowAccount, reading: Reading, units: Sequence[Unit]) -> None:
    """DataError where the rows of some units teach nothing: they weigh nothing, or are of one class only (a number that
    is always the same is told in a warning). The units are read for the message.
    """
    schema = reading.schema
    if account.accepted:
        account.check_any("train on", schema.weight)
        labels = account.labels
        if not labels.is_constant and (told := told_of_rounding(labels.mean, labels.deviation)):
            logger.warning("%s from column %r first", told, schema.label)
    if not account.accepted or not account.labels.is_constant:
        return
    if reading.task != "classification" or account.labels.least not in (0.0, 1.0):
        logger.warning("all labels to train on are %g: there is nothing to learn but that", account.labels.mean)
        return
    found = "positive" if account.labels.mean else "negative"
    among = f"that weigh anything (column {schema.weight!r}) " if 0 < account.label_sum < account.accepted else ""
    meant = f"schema.label_positive = {list(schema.label_positive)}" if schema.label_positive else "1 is positive"
    raise OneClassError(
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


def no_rows() -> HashedRows:
    """Hashed rows of which there are none."""
    floats = np.zeros(0, np.float32)
    return HashedRows(np.zeros(1, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.uint16), floats, floats, floats)


def _chunk_path(reading: Reading, units: Sequence[Unit], n_slices: int, seed: Seed) -> Path:
    return cache_path(reading, "chunk", reading.key(), units_key(units), n_slices, seed)


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
        tell_of_damage(path, error)
        return None
    mark_used(path)
    return Chunk(rows, arrays["offsets"], counts, account, arrays.get("aside", rows_aside.nothing_aside()))


def _arrays_of(kind: Any, prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    names = [entry.name for entry in dataclasses.fields(kind)]
    return {name: arrays[f"{prefix}.{name}"] for name in names if f"{prefix}.{name}" in arrays}


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
