"""Text into shards: chunks of files, by several processes, to the same names and bytes whatever their number.

Shards are written below a folder or URL beside a hidden ledger, which has no sizes before all of them are there; what a
killed conversion leaves is refused when it is read (`dfm.data.discovery`) and replaced by the next one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import posixpath
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from dfm.data.arrow_types import column_kind
from dfm.data.discovery import columns_at_end
from dfm.data.pool import mapping
from dfm.data.text.account import LineAccount
from dfm.data.text.formats import AUTO, Format, Wishes, format_of, lines_of
from dfm.data.text.parsed import LABEL, Reader
from dfm.data.text.sources import Chunk, Source, blocks, chunks_of, find_sources
from dfm.data.text.tables import KINDS, checked_delimiter, doubtful_header, missing_numbers
from dfm.errors import DataError, SettingsError
from dfm.settings.arguments import COUNT, check_bad_rows, checked, pairs, texts
from dfm.settings.constraints import Options
from dfm.storage import files, ownership
from dfm.storage.ownership import CONVERSION, Ledger

logger = logging.getLogger(__name__)
DONE = "_SUCCESS"
"""The marker that all shards are there, as Spark leaves it."""
SHARD_BYTES = 1 << 27
"""Bytes of text that become one shard."""
_PARQUET: dict[str, Any] = {"compression": "zstd", "write_batch_size": 1 << 20}
"""Options of pyarrow's ParquetWriter. Entries of lists are written 1024 at a time by default, which takes longer."""


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: folder or URL of the shards, format, reader with their columns, account of lines."""

    directory: str
    format: str
    reader: Reader
    account: LineAccount
    n_shards: int


@dataclass(frozen=True)
class _Order:
    """The work of a process, but for the chunk: into which folder, by which claim and reader, and whether a bad line
    ends it.
    """

    directory: str
    claim: str
    reader: Reader
    stops: bool
    options: Mapping[str, Any]


def convert(
    inputs: str | Iterable[str],
    directory: str,
    *,
    format: str = AUTO,
    delimiter: str = "",
    header: bool = True,
    types: Mapping[str, str] | None = None,
    missing: str | Sequence[str] = (),
    names: Sequence[str] = (),
    on_bad_rows: str = "error",
    max_bad_fraction: float = 0.01,
    processes: int = 1,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write the lines of text files as Parquet shards `directory`/part-FILE-CHUNK.parquet.

    inputs: paths, folders, globs or URLs; folders `name=value` below them are kept, and those that they end in, unless
    `directory` ends in one of that name. format: one of `formats.FORMATS`, or "auto", which looks at the first lines.
    Of tables (csv, tsv) delimiter: another one, an ASCII character; header: whether the first line names the columns;
    types: "text", "number" or "integer" by column, of others as samples of the files have it; missing: a text, or
    texts, that mean a missing value, beside none at all; names: of the columns, where no line has them.

    on_bad_rows: "error" stops at the first line that is no row, "skip" leaves out up to max_bad_fraction of them. More
    `processes` write the same bytes; they are spawned, so a script that asks for more than one needs the `if __name__
    == "__main__":` guard. overwrite: replace an earlier conversion, which is deleted before the lines are read, so that
    none is left where one of them is bad. shard_bytes: of text, about.
    progress(done_bytes, all_bytes) is called here after each chunk.

    DataError names file and line of what is no row; SettingsError where the delimiter is none, or `directory` holds
    anything that an earlier conversion did not make, or is, contains or lies inside an input; StorageError where
    another run wrote there meanwhile.
    """
    check_bad_rows(on_bad_rows, max_bad_fraction)
    for name, value, default in (("processes", processes, 1), ("shard_bytes", shard_bytes, SHARD_BYTES)):
        checked(name, value, default, COUNT)
    files.check_named(directory, "the folder for the shards (--to)")
    wishes = _wishes(checked_delimiter(delimiter), header, types, texts("missing", missing), names)
    paths = [inputs] if isinstance(inputs, str) else list(inputs)
    options = dict(storage_options or {})
    found = find_sources(paths, options, dict(columns_at_end(files.open_store(directory, options)[1])))
    ownership.check_apart(directory, paths, "--to", options, shards=[source.url for source in found])
    chosen, reader, sources = _reader(found, format, wishes, options)
    chunks = chunks_of(sources, shard_bytes)
    ledger, claim = _prepare(directory, [chunk.name for chunk in chunks], overwrite, options)
    try:
        with ledger.tidied():
            with mapping(min(processes, len(chunks))) as map_chunks:
                if reader.surveys:
                    survey = functools.partial(_survey, reader, options)
                    reader = reader.knowing(set().union(*map_chunks(survey, chunks)))
                order = _Order(directory, claim, reader, on_bad_rows == "error", options)
                account = _write_all(map_chunks, order, chunks, progress)
            account.check(on_bad_rows, max_bad_fraction)
            ledger.check_written([DONE])
            files.write_bytes(files.join(directory, DONE), b"", options)
            ledger.settle()
    except DataError:
        ledger.withdraw()
        raise
    return Conversion(directory, chosen.name, reader, account, len(chunks))


def _wishes(
    delimiter: str, header: bool, types: Mapping[str, str] | None, missing: tuple[str, ...], names: Sequence[str]
) -> Wishes:
    """The wishes of a caller. SettingsError where a type is none, or a lone text is to name all columns."""
    if isinstance(names, str) and names:
        raise SettingsError(f"names = {names!r} is a lone text; give a list with a name for each column")
    kinds = pairs("types", types, Options(tuple(KINDS)))
    return Wishes(delimiter, header and not names, kinds, missing, tuple(names))


def _reader(
    found: list[Source], name: str, wishes: Wishes, options: files.Options
) -> tuple[Format, Reader, list[Source]]:
    """The format, its reader as it begins, and the sources with their headers. DataError where headers differ."""
    full = next((source for source in found if source.size), None)
    if full is None:
        raise DataError(
            f"{found[0].url} is empty{', and so are all others' if len(found) > 1 else ''}: no row to convert"
        )
    lines = lines_of(full, options)
    chosen = format_of("csv" if name == AUTO and wishes.delimiter else name, full, lines)
    if not chosen.is_table and (wishes.types or wishes.missing or wishes.delimiter or not wishes.header):
        raise SettingsError(
            "--delimiter, --no-header, --names, --type and --missing are for csv and tsv, and the format is "
            f"{chosen.name}"
        )
    first = next((line for line in lines if line.strip() and (chosen.is_table or not line.startswith("#"))), "")
    sources = found
    if chosen.is_table and wishes.header:
        sources = [_with_header(source, first, options) for source in found if source.size]
    reader = chosen.begin(sources, first, wishes, options)
    if chosen.is_table:
        _tell_doubts(reader, wishes, full.url)
    return chosen, reader, sources


def _tell_doubts(reader: Reader, wishes: Wishes, url: str) -> None:
    """Warn of a header that looks like a row, and of numbers that mean a missing value here and not to a model."""
    name = doubtful_header(reader.schema.names) if wishes.header else ""
    if name:
        logger.warning(
            "the first line of %s was taken for the names of columns, and %r looks like a value; if it is a row, say "
            "--no-header, or --names A,B,…", url, name[:40],
        )  # fmt: skip
    texts, columns = missing_numbers(wishes.missing, reader.schema)
    if texts and columns:
        logger.warning(
            "--missing %s: no value in the shards; but to a model that learns from them the number %s is one like any "
            "other, as schema.missing knows texts alone: rows to be scored must have None for it in columns of numbers "
            "(%s)", ",".join(texts), texts[0], ", ".join(columns[:8]),
        )  # fmt: skip


def _with_header(source: Source, header: str, options: files.Options) -> Source:
    """The source, whose rows begin behind the header and blank lines before it. DataError where it has another one."""
    block = next(blocks(Chunk(source, source.body, 0, ""), options, 1 << 16), None)
    data = b"" if block is None else block.tobytes()
    space = data[: len(data) - len(data.lstrip())]
    blank = space[: space.rfind(b"\n") + 1]
    first = data[len(blank) :].partition(b"\n")[0] + b"\n"
    try:
        own = first.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        command = f"iconv -f CP1252 -t UTF-8 {shlex.quote(posixpath.basename(source.url))} > utf8.csv"
        raise DataError(
            f"{source.url} has a header that is no UTF-8, {first[:60]!r}: {command} writes it so, if it is from Windows"
        ) from error
    if own != header:
        raise DataError(
            f"{source.url} begins with {own[:60]!r}, and not with the header of the first file, {header[:60]!r}; "
            "convert files of other columns by themselves, or say --no-header where there is none"
        )
    return dataclasses.replace(source, header=len(blank + first), lines_above=(blank + first).count(b"\n"))


def _prepare(directory: str, names: Sequence[str], overwrite: bool, options: files.Options) -> tuple[Ledger, str]:
    """Make room for shards of these names; the mark of their claim. SettingsError where others' files lie there, or a
    whole conversion that is to stay.
    """
    ledger = Ledger(directory, CONVERSION, options)
    foreign = ledger.foreign()
    if foreign:
        raise SettingsError(
            f"{files.join(directory, foreign[0])} was not made by dfm convert; name an empty folder with --to"
        )
    if ledger.own() and ledger.is_settled() and not overwrite:
        raise SettingsError(
            f"{directory} holds an earlier conversion; name another folder with --to, or say --overwrite"
        )
    claim = ledger.claim([*names, DONE])  # first: whoever is still at work there puts nothing more in place
    ledger.remove([DONE])  # then what lies there is no longer whole
    ledger.remove()
    return ledger, claim


def _survey(reader: Reader, options: Mapping[str, Any], chunk: Chunk) -> set[Any]:
    """All in a chunk that the columns depend on."""
    seen: set[Any] = set()
    for block in blocks(chunk, options):
        seen |= reader.sights(block)
    return seen


def _write_all(
    map_chunks: Callable[..., Iterator[Any]], order: _Order, chunks: list[Chunk],
    progress: Callable[[int, int], None] | None,
) -> LineAccount:  # fmt: skip
    """The account of all chunks, each written; it ends with the first bad line where that ends the conversion."""
    account = LineAccount()
    of_file, url, done, total = 0, "", 0, sum(chunk.n_bytes for chunk in chunks)
    for chunk, own in zip(chunks, map_chunks(functools.partial(_write_chunk, order), chunks), strict=True):
        of_file = of_file if chunk.source.url == url else chunk.source.lines_above
        url = chunk.source.url
        account.add(own, lines_before=of_file)
        of_file += own.read
        done += chunk.n_bytes
        if progress is not None:
            progress(done, total)
        if order.stops and account.examples:
            break
    return account


def _write_chunk(order: _Order, chunk: Chunk) -> LineAccount:
    """Write the lines of a chunk as a shard, a row group for each block; their account, lines counted from the chunk's
    first. The shard appears when it is whole; StorageError where another conversion has begun in the folder since.
    """
    account, url = LineAccount(), chunk.source.url
    schema = order.reader.schema
    has_numbers = LABEL in schema.names and column_kind(schema.field(LABEL).type) in ("int", "float")
    ledger = Ledger(order.directory, CONVERSION, order.options)
    with (
        ledger.writing(chunk.name, order.claim) as stream,
        pq.ParquetWriter(stream, schema, **_PARQUET, **order.reader.encodings) as writer,
    ):
        for block in blocks(chunk, order.options):
            parsed = order.reader.parse(block)
            account.add_block(url, parsed)
            if order.stops and parsed.faults:
                break
            if parsed.batch.num_rows:
                writer.write_batch(parsed.batch, row_group_size=parsed.batch.num_rows)
            if has_numbers:
                account.add_labels(parsed.batch.column(LABEL).drop_null().to_numpy(zero_copy_only=False))
    return account
