"""Files of text, cut into chunks of whole lines, and read block by block: plain or compressed, here or at a URL."""

from __future__ import annotations

import contextlib
import dataclasses
import posixpath
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.discovery import path_columns
from dfm.errors import DataError, StorageError
from dfm.storage import files, listing, ownership
from dfm.storage.listing import is_hidden
from dfm.storage.retry import retrying

BLOCK_BYTES = 1 << 23
"""Bytes that are parsed at a time, and become a row group."""
SAMPLE_BYTES = 1 << 20
"""Bytes of a sample of a file."""
LONGEST_LINE = 1 << 30
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
"""Compressions by the first bytes of a file."""
_PACKED = {b"PK\x03\x04": "zip", b"\xfd7zXZ\x00": "xz", b"7z\xbc\xaf\x27\x1c": "7z", b"\x04\x22\x4d\x18": "lz4"}
"""Compressions that are not read."""
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""Marks of UTF-16."""
_HEAD_BYTES = 4096
"""Bytes in which it shows whether a file is text."""


@dataclass(frozen=True)
class Source:
    """A file of lines. codec: what it is compressed by, or ""; size: bytes of the file; partition: the folders
    `name=value` that it lies in; mark: bytes of a mark of UTF-8 at its begin; header: bytes of a first line of names
    and of blank ones before it, lines_above: how many these are.
    """

    url: str
    codec: str
    size: int
    partition: str
    mark: int
    header: int = 0
    lines_above: int = 0

    @property
    def body(self) -> int:
        """The byte, of what is not compressed, at which the first row begins."""
        return self.mark + self.header


@dataclass(frozen=True)
class Chunk:
    """The lines of a source that begin in bytes [start, stop), stop 0: all from start on; and the shard's name."""

    source: Source
    start: int
    stop: int
    name: str

    @property
    def n_bytes(self) -> int:
        """Bytes of the file, for progress."""
        return (self.stop or self.source.size) - self.start if not self.source.codec else self.source.size


def find_sources(inputs: Sequence[str], options: files.Options = None, known: Collection[str] = ()) -> list[Source]:
    """The files that paths, folders, globs and URLs name, in that order, each once. DataError where one names none,
    SettingsError where it is empty.

    known: columns that the folders of the output give already, whatever the path of an input ends in.
    """
    urls: dict[ownership.Place, str] = {}
    partitions: dict[ownership.Place, str] = {}
    for url in inputs:
        files.check_named(url, "a path of the data")
        found = _named(url, options, known)
        if not found:
            raise DataError(f"no file at {url!r}: check the path; folders and globs like 'day=*/*.txt' work")
        for name, partition in found:
            place = ownership.place_of(name, options)
            urls.setdefault(place, name)
            partitions[place] = max(partitions.get(place, ""), partition, key=len)
    return [_source(url, partitions[place], options) for place, url in urls.items()]


def _named(url: str, options: files.Options, known: Collection[str]) -> list[tuple[str, str]]:
    """Files that one path names, each with the folders `name=value` that the path ends in, and those below it."""
    filesystem, root = files.open_store(url, options)
    exists, is_local = retrying(url, lambda: filesystem.exists(root)), files.is_local(url)
    if exists and not retrying(url, lambda: filesystem.isdir(root)):
        return [(url, _partition(root, posixpath.dirname(root), known))]
    glob = None if exists else listing.GLOB.search(root)
    if not exists and not glob:
        return []
    base = root[: glob.start()].rpartition("/")[0] if glob else root
    try:
        place = filesystem, base, root[len(base) :], is_local
        names = _files_of(*place) if is_local else retrying(url, lambda: _files_of(*place))
    except OSError as error:
        raise listing.not_listed(url, error) from error
    return [
        (name if is_local else str(filesystem.unstrip_protocol(name)), _partition(name, base, known))
        for name in names
        if not is_hidden(name.removeprefix(base))
    ]


def _files_of(filesystem: Any, base: str, rest: str, is_local: bool) -> list[str]:
    """Names of the files below a folder, or of those that `base + rest` matches, and those below folders that it
    matches.
    """
    if not rest:
        names = listing.files_below(filesystem, base, is_local)
    else:
        found = {
            name.rstrip("/"): is_folder
            for name, is_folder in listing.matching(filesystem, base, rest, is_local).items()
        }
        folders = [name for name, is_folder in found.items() if is_folder and not is_hidden(name.removeprefix(base))]
        names = [name for name, is_folder in found.items() if not is_folder]
        names += [name for folder in folders for name in listing.files_below(filesystem, folder, is_local)]
    return sorted({*(listing.reached_once(names) if is_local else names)})


def _partition(name: str, base: str, known: Collection[str]) -> str:
    above, below = path_columns(name, base)
    columns = [*(column for column in above if column[0] not in known), *below]
    return "".join(f"{quote(name, safe='')}={quote(value, safe='')}/" for name, value in columns)


def _source(url: str, partition: str, options: files.Options) -> Source:
    if files.is_local(url) and not files.local_path(url).is_file():
        raise DataError(f"{url} is a pipe or a device, and text is read from several places: write it to a file first")
    head = files.read_head(url, _HEAD_BYTES, options)
    codec = next((codec for magic, codec in _CODECS.items() if head.startswith(magic)), "")
    if head.startswith(b"PAR1"):
        raise DataError(f"{url} is Parquet already: name it as data.train in a job file (dfm guess {url} writes one)")
    packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), "")
    if packed:
        raise DataError(
            f"{url} is compressed by {packed}, which is not read: unpack it, or compress it by gzip or zstd"
        )
    source = Source(url, codec, files.size_of(url, options), partition, 0)
    begin = head_of(source, options, _HEAD_BYTES) if codec else head
    _check_text(begin, url)
    if not begin:  # of one that is compressed, too
        return dataclasses.replace(source, size=0)
    return dataclasses.replace(source, mark=len(_BOM) if begin.startswith(_BOM) else 0)


def _check_text(begin: bytes, url: str) -> None:
    """DataError where the first bytes are UTF-16, as spreadsheets write "Unicode text", or no text at all."""
    if begin.startswith(_UTF16):
        command = f"iconv -f UTF-16 -t UTF-8 {shlex.quote(posixpath.basename(url))} > utf8.txt"
        raise DataError(f"{url} is UTF-16, and text is read as UTF-8: {command} writes it so")
    if b"\0" in begin.partition(b"\n")[0]:
        raise DataError(
            f"{url} begins with {begin[:40]!r}: a line with zero bytes is no text in UTF-8; if it is UTF-16, "
            "iconv -f UTF-16LE -t UTF-8 writes it so, else name text alone"
        )


def head_of(source: Source, options: files.Options, n_bytes: int = SAMPLE_BYTES) -> bytes:
    """The first bytes of a source's rows, all where it has fewer."""
    with opened(source, options) as stream:
        stream.read(source.body) if source.body else None
        return _read(stream, n_bytes)


def samples_of(source: Source, options: files.Options, n: int = 4) -> Iterator[bytes]:
    """Whole lines from so many places of a source, of a compressed one from its begin."""
    places = (
        [source.body + (source.size - source.body) * i // n for i in range(n)] if not source.codec else [source.body]
    )
    for start in sorted(set(places)):
        chunk = Chunk(source, start, 0 if source.codec else start + SAMPLE_BYTES, "")
        block = next(blocks(chunk, options, SAMPLE_BYTES), None)
        if block is not None:
            yield block.tobytes()


def chunks_of(sources: Sequence[Source], shard_bytes: int) -> list[Chunk]:
    """The chunks of all sources, of about so many bytes each; of a compressed one a single chunk."""
    found = []
    for number, source in enumerate(sources):
        n = 1 if source.codec else max(1, -(-(source.size - source.body) // shard_bytes))
        edges = [source.body + (source.size - source.body) * i // n for i in range(n)]
        for i, (start, stop) in enumerate(zip(edges, [*edges[1:], 0], strict=True)):
            found.append(Chunk(source, start, stop, f"{source.partition}part-{number:05d}-{i:05d}.parquet"))
    return found


@contextlib.contextmanager
def opened(source: Source, options: files.Options) -> Iterator[Any]:
    """A stream of a source's bytes, not compressed. DataError where it is gone or damaged."""
    try:
        with files.open_stream(source.url, options) as stream:
            yield pa.CompressedInputStream(pa.PythonFile(stream, "r"), source.codec) if source.codec else stream
    except StorageError:
        raise
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{source.url} cannot be read: {error}; replace the file or leave it out") from error
    except ValueError as error:
        if files.is_local(source.url):
            raise
        # Of fsspec, where a server has no parts of files.
        raise DataError(f"{source.url} cannot be read from several places ({error}): download it first") from error


def _read(stream: BinaryIO, n_bytes: int) -> bytes:
    """So many bytes, fewer at the end alone."""
    parts, missing = [], n_bytes
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def blocks(chunk: Chunk, options: files.Options, block_bytes: int = BLOCK_BYTES) -> Iterator[NDArray[np.uint8]]:
    """The chunk's lines in blocks of about so many bytes, uint8[n_bytes] each; every line has an end.

    DataError where a line is longer than LONGEST_LINE.
    """
    with opened(chunk.source, options) as stream:
        is_inside = chunk.start > chunk.source.body  # the line that begins before is the chunk's before
        at = chunk.start - is_inside
        _read(stream, at) if chunk.source.codec else stream.seek(at)
        rest = b""
        while data := _read(stream, block_bytes):
            at += len(data)
            rest += data
            if is_inside:
                rest = rest[rest.find(b"\n") + 1 :] if b"\n" in data else b""
                is_inside = b"\n" not in data
            begin = at - len(rest)
            if chunk.stop and begin >= chunk.stop:
                return
            last = rest.find(b"\n", max(chunk.stop - 1 - begin, 0)) if chunk.stop and at >= chunk.stop else -1
            end = (last if last >= 0 else rest.rfind(b"\n")) + 1
            if end:
                yield np.frombuffer(rest, np.uint8, end)
            if last >= 0:
                return
            rest = rest[end:]
            _check_length(rest, chunk)
        if rest:
            yield np.frombuffer(rest + b"\n", np.uint8)


def _check_length(rest: bytes, chunk: Chunk) -> None:
    if len(rest) > LONGEST_LINE:
        raise DataError(
            f"{chunk.source.url} has a line of more than {LONGEST_LINE >> 30} GiB ({rest[:40]!r}…): it is no text of "
            "lines, or its ends of lines are lost; repair it"
        )
