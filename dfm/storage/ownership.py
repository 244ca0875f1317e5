"""Which files are dfm's own: it replaces and deletes those alone, and writes nothing into what it reads.

A name proves nothing, as Spark calls its files part-00000.parquet too. There are two kinds of proof. Files in dfm's
own formats say so: arrays in their header (`is_array_file`), records by their keys (`is_record`). Files in the formats
of others are listed with their sizes in a ledger beside them, `.dfm-KIND.json` (`Ledger`).
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import re
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fsspec import AbstractFileSystem

from dfm.errors import SettingsError, StorageError
from dfm.events import to_json
from dfm.storage import files
from dfm.storage.retry import retrying
from dfm.storage.tables import folder_of

MADE_BY = "made_by"
MAKER = "dfm"
"""Key and value of dfm's mark in a header or a ledger."""
CONVERSION, PREDICTIONS, SYNTHETIC = "conversion", "predictions", "log"
"""The ledgers of shards that were made of text, of predictions, and of a synthetic log. They are whole only when these
are settled."""
_CLAIMS = "claims"
_HEAD = 1 << 12
_ARRAY_HEAD = re.compile(rb'.{8}\s*\{"__metadata__":\{[^{}]*"made_by":"dfm"', re.DOTALL)
"""A safetensors file begins with eight bytes of length, then JSON whose first entry is its metadata."""
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{32}\.part")
"""Names by which `files.writing` writes a file before it takes its place."""
_LARGEST_RECORD = 1 << 26
_THREADS = 16
_MAGIC = re.compile(r"[*?\[]")

IsOwn = Callable[[str, files.Options], bool]
Place = tuple[str, str]
"""Filesystem and path, the same for all names of one file."""


# ------------------------------------------------------------------------------------------------- marks ----


def is_array_file(url: str, options: files.Options = None) -> bool:
    """Whether a file is one of arrays that dfm wrote (dfm.storage.arrays), by its header; a missing one is not."""
    return _ARRAY_HEAD.match(files.read_head(url, _HEAD, options)) is not None


def is_record(url: str, keys: Collection[str], options: files.Options = None) -> bool:
    """Whether a file is a JSON record of dfm: its first line, or all of it, is an object with all of these keys."""
    try:
        if files.size_of(url, options) > _LARGEST_RECORD:
            return False
        data = files.read_bytes(url, options)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return any(_has_keys(text, keys) for text in (data, data.partition(b"\n")[0]))


def _has_keys(text: bytes, keys: Collection[str]) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and all(key in found for key in keys)


def begins_with(*beginnings: bytes) -> IsOwn:
    """A proof for text files: they begin with one of these marks of dfm."""

    def is_own(url: str, options: files.Options) -> bool:
        return files.read_head(url, _HEAD, options).startswith(beginnings)

    return is_own


def check_replaceable(url: str, is_own: IsOwn, options: files.Options = None) -> None:
    """SettingsError where there is a file at a URL that dfm wants to write, and dfm did not make it."""
    if files.exists(url, options) and not is_own(url, options):
        raise SettingsError(_refusal(url))


def _refusal(url: str) -> str:
    return f"{url} is there and was not made by dfm, which would replace it; move it away, or choose another folder"


def remove_own(url: str, is_own: IsOwn, options: files.Options = None) -> bool:
    """Delete a file that dfm made; anything else stays. Returns whether there is no file left."""
    if files.exists(url, options) and not is_own(url, options):
        return False
    files.remove(url, options)
    return True


# ------------------------------------------------------------------------------------------------ ledger ----


class _Claim(NamedTuple):
    """Names of files that a run is about to write, and when (seconds since 1970) it said so."""

    since: float
    names: list[str]


def _claims_in(found: Mapping[str, Any]) -> dict[str, _Claim]:
    """The claims in a ledger by their marks, but what is none."""
    claims = {}
    for mark, claim in found.items():
        since, names = (claim.get("since"), claim.get("names")) if isinstance(claim, dict) else (None, None)
        if isinstance(since, int | float) and isinstance(names, list) and all(isinstance(name, str) for name in names):
            claims[mark] = _Claim(float(since), names)
    return claims


def _awaited(claims: Mapping[str, _Claim]) -> set[str]:
    """The names of all files that are about to be written."""
    return {name for each in claims.values() for name in each.names}


class Ledger:
    """The files that dfm made in a folder, by name (`part-0.parquet`, `day=1/part-0.parquet`) and size.

    Names are claimed before their files are written, so that those of a killed run are known too; sizes follow. A file
    of another size was put in the place of dfm's, and is not dfm's. Of two runs that write the same files at the same
    time the first to claim puts no more of its own in place (`writing`), takes away what is not the other's
    (`giving_way`) and cannot settle.
    """

    def __init__(self, folder: str, kind: str, options: files.Options = None) -> None:
        self.folder, self._options = folder, options
        self.url = files.join(folder, f".dfm-{kind}.json")
        self._claimed: tuple[str, ...] = ()
        self._mark = ""
        """The mark of the claim that this object made, until it is settled; it tells it from those of others."""

    def read(self) -> dict[str, int | None]:
        """Names and sizes; None for a file whose writing may not have ended. Empty where there is no ledger."""
        return self._read()[0]

    def _read(self) -> tuple[dict[str, int | None], dict[str, _Claim]]:
        """The same, and each claim that is not settled, by its mark."""
        try:
            found = json.loads(files.read_bytes(self.url, self._options))
        except (FileNotFoundError, NotADirectoryError):
            return {}, {}
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get(MADE_BY) != MAKER or not isinstance(found.get("files"), dict):
            raise SettingsError(_refusal(self.url))
        # Whoever can write to the folder can write a ledger: it speaks of files below the folder only.
        names = {name: size for name, size in found["files"].items() if _is_below(name)}
        claims = found.get(_CLAIMS)
        return names, _claims_in(claims) if isinstance(claims, dict) else {}

    def is_settled(self) -> bool:
        """Whether all that was claimed was written to its end; a ledger that is not there has nothing to settle."""
        return None not in self.read().values()

    def own(self, but: Collection[str] = ()) -> list[str]:
        """Names of files that are there and are dfm's, sorted. but: names that nobody asks about."""
        known = {name: size for name, size in self.read().items() if name not in but}
        there = self._sizes(known)
        return sorted(name for name, size in there.items() if known[name] in (None, size))

    def foreign(self) -> list[str]:
        """Names of files and folders directly in the folder that dfm did not make, sorted; hidden ones do not count,
        nor folders in which there is nothing else.
        """
        own = {name.partition("/")[0] for name in self.own()}

        def is_foreign(name: str) -> bool:
            return name not in own and not name.startswith(".")

        folders = filter(is_foreign, files.folders_in(self.folder, self._options))
        found = filter(is_foreign, files.names_in(self.folder, self._options))
        return sorted([*found, *(name for name in folders if self._may_hold_files(name))])

    def _may_hold_files(self, folder: str) -> bool:
        """Whether a file that is not hidden may be somewhere in a folder of this one: there is one, or nobody looks, as
        the folder is a link or may not be read.
        """
        url = files.join(self.folder, folder)
        if files.is_local(url) and files.local_path(url).is_symlink():
            return True
        try:
            names, folders = files.names_in(url, self._options), files.folders_in(url, self._options)
        except OSError:
            return True
        is_seen = any(not name.startswith(".") for name in names)
        return is_seen or any(self._may_hold_files(f"{folder}/{name}") for name in folders)

    def check(self, names: Collection[str]) -> None:
        """SettingsError where one of the files to write is there already and was not made by dfm."""
        foreign = self._sizes(names).keys() - set(self.own())
        if foreign:
            raise SettingsError(_refusal(files.join(self.folder, min(foreign))))

    def claim(self, names: Collection[str]) -> str:
        """Note the names of files before they are written; returns the mark of the claim, for `writing`.
        SettingsError where one is there and not dfm's.

        Who claimed one of these names before, and has not settled, cannot do so any more; nor can who claimed others so
        long ago that nobody writes them any more.
        """
        self.check(names)
        own, (noted, claims) = set(self.own()), self._read()
        since = time.time()
        oldest = since - files.ABANDONED_AFTER
        others = {mark: each for mark, each in claims.items() if each.since > oldest and not {*each.names} & {*names}}
        awaited = _awaited(others)
        known = {name: size for name, size in noted.items() if name in own or name in awaited}
        self._claimed, self._mark = tuple(names), uuid.uuid4().hex
        self._write({**known, **dict.fromkeys(names)}, {self._mark: _Claim(since, list(names)), **others})
        return self._mark

    def check_claim(self, mark: str) -> None:
        """StorageError where another run claimed one of the names since the claim of this mark.

        The first bytes of the ledger tell, unless yet another claim stands there.
        """
        if mark.encode() not in files.read_head(self.url, _HEAD, self._options) and mark not in self._read()[1]:
            raise self._overtaken("another run claimed the same files")

    @contextlib.contextmanager
    def writing(self, name: str, mark: str) -> Iterator[BinaryIO]:
        """A stream to one of the files that were claimed by this mark, maybe in another process. It appears when the
        block ends without an error; StorageError, and nothing appears, where another run claimed one of them since.
        Between that look and the file's place lies the moment of a rename or, on an object store, the upload.
        """
        with files.writing(files.join(self.folder, name), self._options) as stream:
            yield stream
            self.check_claim(mark)

    def check_written(self, but: Collection[str] = ()) -> None:
        """StorageError where another run claimed one of the names since this one did, or a file that was claimed is
        gone: the files are then of two runs, or not all there. but: names that are still to be written.
        """
        self._written([name for name in self._claimed if name not in but])

    def _written(self, names: Sequence[str]) -> dict[str, int]:
        """Sizes of these files. StorageError as of `check_written`."""
        sizes = self._sizes(names)
        lost = sorted({*names} - sizes.keys())
        if lost:
            raise self._overtaken(f"{lost[0]} is gone")
        if self._mark:
            self.check_claim(self._mark)
        return sizes

    def _overtaken(self, what: str) -> StorageError:
        return StorageError(
            f"another run wrote to {self.folder}, or deleted there, while this one did ({what}); see that one of them "
            "runs at a time, and give the command again"
        )

    def settle(self) -> None:
        """Note the sizes of the files, now that they are written; what was gone before is forgotten. StorageError as of
        `check_written`.
        """
        noted, _ = self._read()
        others = self._sizes([name for name, size in noted.items() if name not in self._claimed])
        sizes = self._written(self._claimed)
        noted, claims = self._read()  # as late as possible: another run may have claimed others meanwhile
        claims.pop(self._mark, None)
        awaited = _awaited(claims)
        kept = {
            name: None if name in awaited else others[name]
            for name, size in noted.items()
            if name not in sizes and (name in awaited or (name in others and size in (None, others[name])))
        }
        self._claimed, self._mark = (), ""
        self._write({**kept, **sizes}, claims)

    def withdraw(self) -> None:
        """Delete the files that were claimed, and give up the claim: what else is there is whole without them. Those
        that another run claimed since, or has written to their end, stay.
        """
        noted, claims = self._read()
        stands = claims.pop(self._mark, None) is not None
        own = {name for name in self._claimed if noted.get(name) is None} - _awaited(claims)
        self._delete(own, self._sizes(own))
        self._claimed, self._mark = (), ""
        if stands:  # else the ledger is the other run's, which forgets what is gone when it settles
            self._write({name: size for name, size in noted.items() if name not in own}, claims)

    def remove(self, names: Collection[str] | None = None) -> None:
        """Delete files that dfm made (all of them, unless named), and what killed processes left of these an hour ago
        or more, with folders that are empty then; everything else stays.
        """
        known = set(self.read())
        names = known if names is None else known.intersection(names)
        self._delete(names, self.own())

    def _delete(self, names: set[str], there: Collection[str]) -> None:
        """The same for these names, of which some are there."""
        for name in names.intersection(there):
            files.remove(files.join(self.folder, name), self._options)
        for folder, own in _by_folder(names).items():
            url = files.join(self.folder, folder) if folder else self.folder
            files.remove_abandoned(url, own)
            if folder and files.is_local(url):
                with contextlib.suppress(OSError):  # somebody's files may be there
                    files.local_path(url).rmdir()

    @contextlib.contextmanager
    def giving_way(self) -> Iterator[None]:
        """A block that withdraws where it fails with a StorageError and another run claimed one of the names since:
        that run finds none of this one's files beside its own.
        """
        try:
            yield
        except StorageError:
            if self._mark not in self._read()[1]:
                self.withdraw()
            raise

    @contextlib.contextmanager
    def tidied(self) -> Iterator[None]:
        """A block that gives way, and, where it is interrupted, leaves no half file: what its processes, which have
        ended, left of files that it claimed is deleted, unless another run claimed them since.
        """
        try:
            with self.giving_way():
                yield
        except KeyboardInterrupt:
            self._remove_unfinished()
            raise

    def _remove_unfinished(self) -> None:
        if not files.is_local(self.folder) or self._mark not in self._read()[1]:
            return
        for folder, own in _by_folder(self._claimed).items():
            url = files.join(self.folder, folder) if folder else self.folder
            for name in files.names_in(url):
                found = _UNFINISHED.fullmatch(name)
                if found and found[1] in own:
                    files.remove(files.join(url, name))

    def _sizes(self, names: Collection[str]) -> dict[str, int]:
        """Bytes of those files that are there."""

        def size(name: str) -> int:
            try:
                return files.size_of(files.join(self.folder, name), self._options)
            except (FileNotFoundError, NotADirectoryError):
                return -1

        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(zip(names, pool.map(size, names), strict=True))
        return {name: bytes_there for name, bytes_there in found.items() if bytes_there >= 0}

    def _write(self, entries: Mapping[str, int | None], claims: Mapping[str, _Claim]) -> None:
        """Entries by name, and claims that are not settled, where there are any."""
        unsettled = {_CLAIMS: {mark: claim._asdict() for mark, claim in claims.items()}} if claims else {}
        content = {MADE_BY: MAKER, **unsettled, "files": dict(sorted(entries.items()))}
        files.write_bytes(self.url, to_json(content, indent=1).encode(), self._options)


def _by_folder(names: Collection[str]) -> dict[str, set[str]]:
    """Last steps of names by the folders that they lie in, inner folders first; "" is that of the ledger."""
    found: dict[str, set[str]] = {}
    for name in names:
        folder, _, last = name.rpartition("/")
        found.setdefault(folder, set()).add(last)
        while folder := folder.rpartition("/")[0]:
            found.setdefault(folder, set())
    return dict(sorted(found.items(), key=lambda entry: -len(entry[0])))


def _is_below(name: str) -> bool:
    return "\\" not in name and not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))


# -------------------------------------------------------------------------------------- apart from inputs ----


def check_apart(
    output: str, inputs: Sequence[str], what: str, options: files.Options = None, *,
    shards: Sequence[str] = (), may_hide: bool = False,
) -> None:  # fmt: skip
    """SettingsError where an output (named `what` in the message) is empty, or is, contains or lies inside an input.

    inputs: paths, URLs or globs. shards: files that were found there, maybe beyond symbolic links; none of them may
    lie below the output. may_hide: whether the output may lie inside an input where no reader looks, below a name that
    begins with "." or "_". Links are followed, and all names of one place count as one.
    """
    files.check_named(output, what)
    place = place_of(output, options)
    for url in inputs:
        for found in _named(url, options):
            relation = _relation(place, found)
            if relation and not (may_hide and relation == "lies inside" and _is_hidden(place, found)):
                raise SettingsError(_overlap(what, output, relation, url))
    for folder in {(kind, os.path.dirname(path)) for kind, path in (place_of(url, options) for url in shards)}:
        if _is_within(folder, place):
            raise SettingsError(_overlap(what, output, "contains", folder[1]))


def _overlap(what: str, output: str, relation: str, url: str) -> str:
    return (
        f"{what} {output} {relation} the input {url}; dfm writes nothing into what it reads: choose a folder that lies "
        "apart from it"
    )


def _named(url: str, options: files.Options) -> Iterator[Place]:
    """Places that a path names; all that a glob names, none where only a catalogue knows."""
    url = folder_of(url)
    if not url:
        return
    filesystem, path = files.open_store(url, options)
    is_glob = _MAGIC.search(path) and not retrying(url, lambda: filesystem.exists(path))
    for name in retrying(url, lambda: filesystem.glob(path)) if is_glob else [path]:
        yield _place(filesystem, name)


def place_of(url: str, options: files.Options = None) -> Place:
    """The place of a URL, beyond symbolic links and detours."""
    return _place(*files.open_store(str(files.local_path(url)) if files.is_local(url) else url, options))


def _place(filesystem: Any, path: str) -> Place:
    # A cache, or a folder taken for a root, is the file behind it.
    while isinstance(inner := getattr(filesystem, "fs", None), AbstractFileSystem):
        join = getattr(filesystem, "_join", None)
        filesystem, path = inner, join(path) if join else path
    protocol = filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0]
    if protocol in ("file", "local"):
        return "file", os.path.realpath(path)
    return protocol, posixpath.normpath("/" + path.strip("/"))


def _relation(output: Place, found: Place) -> str:
    """The way in which an output touches an input; "" where they lie apart."""
    inside, around = _is_within(output, found), _is_within(found, output)
    if inside and around:
        return "is"
    return "lies inside" if inside else "contains" if around else ""


def _is_hidden(inner: Place, outer: Place) -> bool:
    steps = inner[1].removeprefix(outer[1]).split("/")
    return any(step.startswith((".", "_")) and "=" not in step for step in steps)


def _is_within(inner: Place, outer: Place) -> bool:
    """Whether one place is another one or lies below it."""
    if inner[0] != outer[0]:
        return False
    if inner[1] == outer[1] or inner[1].startswith(outer[1].rstrip("/") + "/"):
        return True
    return inner[0] == "file" and _identity(outer[1]) in {_identity(each) for each in _upwards(inner[1])} - {None}


def _upwards(path: str) -> list[str]:
    return [path, *map(str, Path(path).parents)]


def _identity(path: str) -> tuple[int, int] | None:
    """Device and number of a folder: bind mounts and disks that ignore case give it several paths."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return status.st_dev, status.st_ino
    return None
