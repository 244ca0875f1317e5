"""Parquet files on any fsspec filesystem: found, described by their footers, read as Arrow batches."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dfm.data.arrow_types import flat_schema, root_of, with_fields, without_views
from dfm.data.discovery import HIVE_NULL as HIVE_NULL
from dfm.data.discovery import FoundFile, NoRows, conversion, find_files, partition_columns, plain_steps
from dfm.data.snapshots import Snapshot, resolve
from dfm.data.table_columns import stored_names
from dfm.errors import DataError
from dfm.storage import files
from dfm.storage.retry import retrying

BATCH_ROWS = 1 << 16
"""Rows that are decoded and hashed at a time: enough to amortise calls, small enough to stay near the cache."""
_FOOTER_THREADS = 16


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file: what its footer and its filesystem say of it."""

    url: str
    size: int
    modified: str
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    partition: tuple[tuple[str, str], ...]
    """Columns that the path gives (`day=2026-11-20/`), or the log of its table, as text."""
    given: tuple[str, ...] = ()
    """Those of them that become no feature unless they are named (`discovery.FoundFile`)."""
    columns: tuple[tuple[str, str], ...] | None = None
    """The columns of the table that the file belongs to, each with its name in the file, "" where the file has none and
    all rows are without a value. None: the file's own columns.
    """
    below: tuple[str, ...] = ()
    """Folders below the path that was named, `name=value` apart."""

    @property
    def n_rows(self) -> int:
        """Rows of the file."""
        return sum(self.row_groups)

    @property
    def place(self) -> str:
        """The place of the file in the data, by which rows of it are drawn: what its folders say, its folders below the
        path that was named, and its name; but not where they are, so that a copy of the data elsewhere gives the same
        rows.
        """
        folders = (f"{name}={value}" for name, value in self.partition)
        return "/".join((*folders, *self.below, self.url.rsplit("/", 1)[-1]))

    @property
    def identity(self) -> list[Any]:
        """[url, bytes, modification time or etag], JSON-ready: other rows, another identity. Of a table's file also
        what the table makes of it, its partition and its columns, as these change without the file.
        """
        told: list[Any] = [self.url, self.size, self.modified]
        if self.columns is None:
            return told
        return [*told, [list(each) for each in self.partition], [list(each) for each in self.columns]]


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows [start, stop) of a shard, counted over the whole file: what one task reads."""

    shard: Shard
    start: int
    stop: int

    @property
    def n_rows(self) -> int:
        """Rows to read."""
        return self.stop - self.start

    @property
    def n_batches(self) -> int:
        """Batches that they come in: none has rows of two row groups."""
        found = position = 0
        for n_rows in self.shard.row_groups:
            mine = min(self.stop - position, n_rows) - max(self.start - position, 0)
            found += -(-max(mine, 0) // BATCH_ROWS)
            position += n_rows
        return found


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a shard as Arrow data, and where they stand: from row `first_row` of row group `row_group` on.

    Where rows in between were left out, `kept` int64[n_rows] counts from `first_row` to each row that is there.
    """

    data: pa.RecordBatch
    shard: Shard
    row_group: int
    first_row: int
    kept: NDArray[np.int64] | None = None

    @property
    def place(self) -> str:
        """The place of the batch in the data, by which rows of it are drawn: that of its shard, and its own there."""
        return f"{self.shard.place} {self.row_group} {self.first_row}"

    def place_of(self, row: int) -> int:
        """The row of the row group that is row `row` of the batch."""
        return self.first_row + (row if self.kept is None else int(self.kept[row]))


def find_shards(
    paths: Sequence[str],
    storage_options: Mapping[str, Any] | None = None,
    snapshots: Mapping[str, Snapshot] | None = None,
) -> list[Shard]:
    """All Parquet files that the paths name, sorted by URL, each once.

    A path is a file, a folder (searched below; names that begin with "_" or "." are skipped) or a glob; local or a URL;
    or it names a table (`dfm.storage.tables`). snapshots: the states of tables that are known, by path; others are
    looked for. SettingsError where a path is empty; DataError where one names nothing, or a file is no readable
    Parquet.
    """
    options = dict(storage_options or {})
    found: dict[str, FoundFile] = {}
    for path in paths:
        files.check_named(path, "a path of the data")
        for file in _files_of(path, options, snapshots or {}):
            known = found.setdefault(file.url, file)
            if (len(file.given), -len(file.below)) < (len(known.given), -len(known.below)):
                found[file.url] = file
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        shards = list(pool.map(lambda url: describe_shard(url, options, found[url]), sorted(found)))
    if not any(shard.n_rows for shard in shards):
        raise NoRows(f"no rows in {len(shards)} shards at {', '.join(paths)}: every shard is empty")
    return _told_apart(shards)


def _told_apart(shards: list[Shard]) -> list[Shard]:
    """The shards; where paths to many folders name files of one place, with the folders in which these differ."""
    if len({shard.place for shard in shards}) == len(shards):
        return shards
    steps = [shard.url.split("/") for shard in shards]
    n_common = len(list(itertools.takewhile(lambda those: len({*those}) == 1, zip(*steps, strict=False))))
    below = [plain_steps(own[n_common:]) for own in steps]
    return [replace(shard, below=own) for shard, own in zip(shards, below, strict=True)]


def _files_of(path: str, options: Mapping[str, Any], snapshots: Mapping[str, Snapshot]) -> Sequence[FoundFile]:
    snapshot = snapshots.get(path) or resolve(path, options)
    return find_files(path, options) if snapshot is None else snapshot.files


def describe_shard(url: str, storage_options: Mapping[str, Any] | None = None, found: FoundFile | None = None) -> Shard:
    """Read a shard's footer. DataError where it is no readable Parquet file.

    found: what the search says of the columns of its path; without it, all its folders `name=value` count.
    """
    found = found or FoundFile(url, partition_columns(url), ())
    with _reading_first(found):
        size, modified = _identity(url, storage_options)
        with open_parquet(url, storage_options) as file:
            columns = None if found.columns is None else stored_names(found.columns, file.schema_arrow, url)
            metadata = file.metadata
            rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
                raise DataError(
                    f"{url} contradicts itself: its footer tells of {metadata.num_rows} rows, and of row groups with "
                    f"{', '.join(map(str, rows[:5]))}{' …' if len(rows) > 5 else ''}; write it again"
                )
    if columns is not None:
        in_log = {name for name, _ in found.partition}
        columns = tuple((name, stored) for name, stored in columns if stored or name not in in_log)
    return Shard(url, size, modified, rows, found.partition, found.given, columns, found.below)


@contextlib.contextmanager
def _reading_first(found: FoundFile) -> Iterator[None]:
    """As `reading`; a file that its table lists and that is not there was deleted as one of an old version."""
    try:
        with reading(found.url):
            yield
    except DataError as error:
        if found.columns is None or not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise DataError(
            f"{found.url} is gone, which this version of its table still lists: it was deleted as a file of an old "
            "version (VACUUM, expired snapshots) or moved away; name a newer version"
        ) from error


def _identity(url: str, storage_options: Mapping[str, Any] | None) -> tuple[int, str]:
    """Size and time (or entity tag) of a file as its filesystem tells them now."""
    filesystem, name = files.open_store(url, storage_options)
    info = retrying(url, lambda: filesystem.info(name))
    modified = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("last_modified")
    # What a filesystem without times knows of its files: at least that they are still the same.
    return int(info["size"]), str(modified or filesystem.ukey(name))


def check_unchanged(shard: Shard, storage_options: Mapping[str, Any] | None = None) -> None:
    """DataError where the shard's file is no longer the one that was found when the job began, or is gone.

    Rows are read again whenever a worker has lost its partitions; other rows would then mix with those trained already.
    """
    with reading(shard.url):
        size, modified = _identity(shard.url, storage_options)
    if (size, modified) != (shard.size, shard.modified):
        raise DataError(
            f"{shard.url} changed since the job began: it had {shard.size} bytes of {_when(shard.modified)}, now "
            f"{size} of {_when(modified)}; restore it, or start the job again on the new data"
        )


def _when(modified: str) -> str:
    """The time of a local file for a message; whatever else a store tells as it is."""
    try:
        return datetime.datetime.fromtimestamp(float(modified), datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC")
    except ValueError:
        return modified


@contextlib.contextmanager
def reading(url: str, place: str = "") -> Iterator[None]:
    """Turn what readers raise on a bad file into a DataError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, IndexError, OverflowError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(
                f"{url} is gone: it was there when the job began; restore it or start the job again"
            ) from error
        if isinstance(error, PermissionError):
            raise DataError(f"{url} may not be read: permission denied; check its access rights") from error
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = conversion(url) or "replace the file or leave it out"
        raise DataError(f"{url}{place} cannot be read as Parquet ({first_line}); {remedy}") from error


@contextlib.contextmanager
def naming_shard(batch: Batch) -> Iterator[None]:
    """Let a DataError about a batch's columns name the shard."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{batch.shard.url}: {error}") from error


@contextlib.contextmanager
def open_parquet(
    url: str, storage_options: Mapping[str, Any] | None = None, dictionary_columns: Sequence[str] = ()
) -> Iterator[pq.ParquetFile]:
    """A Parquet file of any filesystem, closed on exit; checksums of its pages are compared where it has them.

    It is not memory-mapped: another program that cuts a mapped file short kills the process that reads it.
    """
    is_local = "://" not in url and "::" not in url
    with (
        contextlib.nullcontext(url) if is_local else files.PatientStream(url, storage_options) as source,
        pq.ParquetFile(
            source,
            pre_buffer=not is_local,
            read_dictionary=list(dictionary_columns),
            page_checksum_verification=True,
            # In nanoseconds, which Arrow takes for them by itself, moments outside of 1677 to 2262 come out as others.
            coerce_int96_timestamp_unit="us",
        ) as file,
    ):
        yield file


def stored_schema(shard: Shard, storage_options: Mapping[str, Any] | None = None) -> pa.Schema:
    """The columns that the shard's file holds, by the names that its table has for them where it belongs to one: those
    that it lacks are null, those that its table does not have are not there.
    """
    with reading(shard.url), open_parquet(shard.url, storage_options) as file:
        schema = file.schema_arrow
    if shard.columns is None:
        return schema
    fields = {field.name: field for field in schema}
    own = [fields[stored].with_name(name) if stored else pa.field(name, pa.null()) for name, stored in shard.columns]
    return pa.schema(own, metadata=schema.metadata)


def arrow_schema(shard: Shard, storage_options: Mapping[str, Any] | None = None) -> pa.Schema:
    """The shard's columns, those of its path at the end (as strings)."""
    schema = stored_schema(shard, storage_options)
    for name, _ in shard.partition:
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.string()))
    return schema


def feature_schema(shard: Shard, storage_options: Mapping[str, Any] | None = None) -> pa.Schema:
    """The columns that features are made from: those of the shard, with the fields of structs by dotted names."""
    return flat_schema(arrow_schema(shard, storage_options))


def no_column(shard: Shard, name: str, there: Sequence[str]) -> DataError:
    """The error of a shard without a column that a job or a model reads; there: the columns that it has."""
    nearest = difflib.get_close_matches(name, there, n=1)
    hint = f' Did you mean "{nearest[0]}"?' if nearest else ""
    return DataError(
        f"{shard.url} has no column {name!r}: it has {', '.join(there[:50])}.{hint} Give it that column, with nulls "
        "where the value is missing, or leave the shard out; a job may name another column in [schema]"
    )


def read_unit(
    unit: Unit,
    columns: Sequence[str],
    storage_options: Mapping[str, Any] | None = None,
    as_text: Set[str] = frozenset(),
    at_a_time: int = 0,
) -> Iterator[Batch]:
    """The unit's rows in file order, `columns` only; text comes as dictionaries, so that distinct values can be hashed.

    as_text: columns that come as they are, for a dictionary of many values takes longer to make than to do without; it
    may grow while rows are read. at_a_time: rows of a batch at most; 0: BATCH_ROWS.
    DataError names the shard and the column where one is missing.
    """
    shard = unit.shard
    check_unchanged(shard, storage_options)
    from_path = dict(shard.partition)
    fields = stored_schema(shard, storage_options)
    stored = {field.name: field.type for field in fields}
    nested = flat_schema(pa.schema(list(stored.items()))).names
    missing = [name for name in columns if name not in stored and name not in from_path and name not in nested]
    if missing:
        raise no_column(shard, missing[0], nested)
    wanted = list(dict.fromkeys(root for name in columns if (root := root_of(name, stored)) is not None))
    twice = next((name for name in wanted if fields.names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{shard.url} has {fields.names.count(twice)} columns called {twice!r}, and which is meant cannot be told; "
            "write it anew with one of them, or leave the shard out"
        )
    stored_as = dict(shard.columns or ())
    text, batches_of = [name for name in wanted if _is_text(stored[name])], (columns, at_a_time or BATCH_ROWS)
    left: list[tuple[int, tuple[int, int]]] = []
    position = 0
    for row_group, n_rows in enumerate(shard.row_groups):
        first, last = max(unit.start - position, 0), min(unit.stop - position, n_rows)
        if first < last:
            left.append((row_group, (first, last)))
        position += n_rows
    while left:
        plain = frozenset(as_text)
        coded = [stored_as.get(name, name) for name in text if name not in plain]
        with open_parquet(shard.url, storage_options, coded) as file:
            while left and plain == as_text:
                yield from _read_row_group(file, shard, *left.pop(0), wanted, from_path, batches_of)
    check_unchanged(shard, storage_options)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _read_row_group(
    file: pq.ParquetFile,
    shard: Shard,
    row_group: int,
    rows: tuple[int, int],
    wanted: list[str],
    from_path: dict[str, str],
    batches_of: tuple[Sequence[str], int],
) -> Iterator[Batch]:
    """batches_of: these columns, and at most so many rows."""
    (first, last), (columns, most_rows) = rows, batches_of
    position = 0
    place = f", row group {row_group},"
    stored_as = {name: dict(shard.columns or ()).get(name, name) for name in wanted}
    with reading(shard.url, place):
        there = [stored for stored in stored_as.values() if stored]
        batches = file.iter_batches(min(most_rows, last), [row_group], there, use_threads=False)
    while True:
        with reading(shard.url, place):
            data = next(batches, None)
            _check_dictionaries(data)
        if data is None:
            break
        begin, end = max(first - position, 0), min(last - position, data.num_rows)
        if begin < end:
            own = _as_in_table(data.slice(begin, end - begin), stored_as)
            part = without_views(with_fields(own, columns))
            yield Batch(_with_path_columns(part, from_path, columns), shard, row_group, position + begin)
        position += data.num_rows
        if position >= last:
            break
    if position < last:
        raise DataError(
            f"{shard.url}, row group {row_group}, has {position} rows, its footer said {shard.row_groups[row_group]}; "
            "the file changed or is damaged: start the job again"
        )


def _as_in_table(data: pa.RecordBatch, stored_as: Mapping[str, str]) -> pa.RecordBatch:
    """The batch with the names that columns have in their table, and nulls for those that the file lacks."""
    if all(name == stored for name, stored in stored_as.items()):
        return data
    arrays = [data.column(stored) if stored else pa.nulls(data.num_rows) for stored in stored_as.values()]
    return pa.RecordBatch.from_arrays(arrays, names=list(stored_as))


def _check_dictionaries(data: pa.RecordBatch | None) -> None:
    """ArrowInvalid where a code is outside its dictionary: Arrow hands such data on as they are in a damaged file."""
    for name, array in zip(data.schema.names, data.columns, strict=True) if data is not None else ():
        if pa.types.is_dictionary(array.type) and len(array) and not _are_below(array.indices, len(array.dictionary)):
            span = pc.min_max(array.indices).as_py()
            if span["max"] is not None and not 0 <= span["min"] <= span["max"] < len(array.dictionary):
                raise pa.ArrowInvalid(f"column {name!r}: a code is outside its dictionary")


def _are_below(codes: pa.Array, n_distinct: int) -> bool:
    """Whether all codes are in a dictionary, below nulls too; False decides nothing, for there may be anything."""
    if not pa.types.is_int32(codes.type):
        return False
    numbers = np.frombuffer(codes.buffers()[1], np.uint32)[codes.offset : codes.offset + len(codes)]
    return int(numbers.max()) < n_distinct  # a negative one is large


def _with_path_columns(data: pa.RecordBatch, from_path: dict[str, str], columns: Sequence[str]) -> pa.RecordBatch:
    if len(data.schema) == len(columns):
        return data
    names = list(data.schema.names)
    arrays = list(data.columns)
    for name in columns:
        if name not in names:
            # A missing value is a missing code: a null among the values of a dictionary is more than Parquet can say.
            code = None if from_path[name] == HIVE_NULL else 0
            codes = pa.array([code], pa.int32()).take(pa.array([0] * data.num_rows, pa.int32()))
            arrays.append(pa.DictionaryArray.from_arrays(codes, pa.array([from_path[name]], pa.string())))
            names.append(name)
    return pa.RecordBatch.from_arrays(arrays, names=names)
