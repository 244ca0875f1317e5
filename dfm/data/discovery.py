"""Which files a path, folder or glob means: beyond links too, and never those of a table that has a log of its own.

A folder gives the files with a Parquet suffix, and those without any suffix that begin as Parquet files do (Hive,
Impala and Athena write `000000_0`). What else lies there is named in the log, once a search. Names that begin with "."
or "_" are hidden, as they are to Spark and Arrow; so is what dfm itself wrote below the data.
"""

from __future__ import annotations

import fnmatch
import itertools
import logging
import os
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from dfm.data.table_columns import TableColumn
from dfm.errors import DataError, SettingsError, StorageError
from dfm.storage import files, listing
from dfm.storage.listing import GLOB, is_hidden
from dfm.storage.ownership import CONVERSION, PREDICTIONS, SYNTHETIC, Ledger
from dfm.storage.retry import retrying

logger = logging.getLogger(__name__)
SUFFIXES = (".parquet", ".parq", ".pq")
"""Ends of the names of Parquet files, in small letters."""
_TEXTS = (".csv", ".tsv", ".svm", ".libsvm", ".svmlight", ".ffm", ".libffm", ".vw", ".txt")
"""Ends of the names of files that `dfm convert` reads, maybe before another one (`a.csv`, `a.csv.gz`)."""
_JSON = (".json", ".jsonl", ".ndjson")
"""And of those that pyarrow reads."""
_MAGIC = b"PAR1"
"""The first bytes of a Parquet file."""
_PARTITION = re.compile(r"^([^=/]+)=([^=/]*)$")
_THREADS = 16
_LEDGERS = {".dfm-predictions.json": PREDICTIONS, ".dfm-exports.json": "exports"}
_GOLDEN = re.compile(r"golden-[0-9a-f]{16}\.parquet")
_LOGS = {
    "Delta Lake": re.compile(r"_last_checkpoint|\d{20}\..+"),
    "Apache Iceberg": re.compile(r"(v\d+|\d{5}-.+)(\.gz)?\.metadata\.json(\.gz)?|version-hint\.text"),
    "Apache Hudi": re.compile(r".+"),
}
"""Names in the log of a table."""
_TABLES = {
    "Delta Lake": (
        "_delta_log",
        "Name it {delta}, with @v and the number of a version or without, for the newest: dfm then reads its log",
    ),
    "Apache Iceberg": (
        "metadata",
        "Name it by its catalogue, iceberg://CATALOGUE/namespace.table: dfm then reads the list of its files",
    ),
    "Apache Hudi": (
        ".hoodie",
        "Give data the list of its present files: the base files of the latest snapshot, as a snapshot query of Hudi "
        "lists them",
    ),
}
"""By format: the folder that holds its log, and the way to its present rows."""
_IN_FOLDERS = {
    CONVERSION: ("conversion into", "dfm convert"),
    SYNTHETIC: ("synthetic log in", "dfm synth (--overwrite)"),
}
_HALF_WRITTEN = {**_IN_FOLDERS, PREDICTIONS: ("prediction into", "dfm predict (--overwrite)")}
"""All that may be half written, by kind of its ledger, and the command that writes it; first what has folders below."""
Columns = tuple[tuple[str, str], ...]
"""Names and values of the folders of a path."""
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""The folder of a missing value, as Hive and Spark call it."""


class NoRows(DataError):
    """Shards that are all empty."""


class NothingFound(DataError):
    """A path that names no Parquet file."""

    path: str = ""


@dataclass(frozen=True)
class FoundFile:
    """A file and the columns that its folders `name=value`, or the log of its table, give as text.

    given: those of them that stand at the end of the path that was asked for. They are there for who names them, but no
    features by themselves: one who names one day's folder does not mean the day. columns: those that its table has and
    files store; None of a file that belongs to none. below: its folders below that path that give no column.
    """

    url: str
    partition: Columns
    given: tuple[str, ...]
    columns: tuple[TableColumn, ...] | None = None
    below: tuple[str, ...] = ()


def find_files(path: str, options: Mapping[str, Any]) -> list[FoundFile]:
    """The Parquet files that a path names. DataError where it cannot be listed, or is the table of another system."""
    try:
        filesystem, root = files.open_store(path, options)
        search = _Search(filesystem, path, options)
        found = search.files_once(root) if search.is_local else retrying(path, lambda: search.files_once(root))
    except (OSError, ImportError, ValueError) as error:
        raise listing.not_listed(path, error) from error
    if not found:
        raise search.nothing()
    search.tell()
    return [_found(_unstrip(filesystem, name), name, base) for name, base in found]


def _found(url: str, name: str, base: str) -> FoundFile:
    given, below = path_columns(name, base)
    steps = plain_steps(name.removeprefix(base).strip("/").split("/"))
    return FoundFile(url, (*given, *below), tuple(column for column, _ in given), below=steps)


def plain_steps(steps: Sequence[str]) -> tuple[str, ...]:
    """The folders, among the steps of a path to a file, that are no `name=value`."""
    return tuple(step for step in steps[:-1] if not _PARTITION.match(step))


def path_columns(name: str, base: str) -> tuple[Columns, Columns]:
    """The columns of a file that was found below a base: those at the end of the base, and those below it."""
    below = partition_columns(name.removeprefix(base))
    return tuple(column for column in columns_at_end(base) if column[0] not in dict(below)), below


def columns_at_end(folder: str) -> Columns:
    """Names and values of the folders `name=value` that a path to a folder ends in."""
    steps = folder.rstrip("/").split("/")
    chain = itertools.takewhile(_PARTITION.match, reversed(steps))
    return partition_columns("/".join([*reversed(list(chain)), ""]))


def partition_columns(path: str) -> Columns:
    """Names and values of the folders `name=value` of a path to a file. DataError where one name has two values."""
    steps = (_PARTITION.match(step) for step in path.split("/")[:-1])
    found: dict[str, str] = {}
    for name, value in ((unquote(step[1]), unquote(step[2])) for step in steps if step):
        if found.setdefault(name, value) != value:
            raise DataError(f"{path} gives the column {name!r} twice, {found[name]!r} and {value!r}; rename a folder")
    return tuple(found.items())


class _Search:
    """One path on its filesystem; `passed` are the files that were left out, with why."""

    def __init__(self, filesystem: Any, path: str, options: Mapping[str, Any]) -> None:
        self._filesystem, self._path, self._options = filesystem, path, options
        self.is_local = files.is_local(path) and _protocol(filesystem) in ("file", "local")
        self.passed: dict[str, str] = {}
        self._root, self._is_glob = "", False

    def files_once(self, root: str) -> list[tuple[str, str]]:
        """The same, without folders that are reached a second time through a link."""
        found = list(dict.fromkeys(self.files_of(root)))
        if not self.is_local:
            return found
        chosen = set(listing.reached_once(name for name, _ in found))
        return [(name, base) for name, base in found if name in chosen]

    def files_of(self, root: str) -> Iterator[tuple[str, str]]:
        """Names of the files, each with its base."""
        self.passed.clear()
        self._root, self._is_glob = root, bool(GLOB.search(root)) and not self._filesystem.exists(root)
        if self._is_glob:
            yield from self._matched(root)
        elif self._filesystem.isdir(root):
            self._refuse_tables([root], beyond=True)
            yield from ((name, root) for name in self._below(root))
        elif self._filesystem.exists(root):
            yield root, posixpath.dirname(root)

    def _matched(self, pattern: str) -> Iterator[tuple[str, str]]:
        """Files that a glob names, and those in the folders that it names."""
        base = _without_glob(self._filesystem, pattern)
        found = listing.matching(self._filesystem, base, pattern[len(base) :], self.is_local)
        hits = {hit.rstrip("/"): is_folder for hit, is_folder in found.items() if not is_hidden(hit.removeprefix(base))}
        folders = [hit for hit, is_folder in hits.items() if is_folder]
        between = {base, *folders}
        for hit in hits:
            between.update(listing.steps_between(base, hit))
        self._refuse_tables(sorted(between), beyond=bool(hits))
        chosen = set(hits) - set(folders)
        for folder in folders:
            yield from ((name, base) for name in self._below(folder))
        yield from ((name, base) for name in sorted(chosen))

    def _below(self, folder: str) -> list[str]:
        """Names of the files below a folder that hold rows."""
        there = listing.files_below(self._filesystem, folder, self.is_local)
        self._refuse_tables(_logs_among(there, folder), beyond=False)
        visible = [name for name in there if not is_hidden(name.removeprefix(folder))]
        own = self._written_by_dfm(there, folder)
        named = [name for name in visible if name.lower().endswith(SUFFIXES) and name not in own]
        others = [name for name in visible if not name.lower().endswith(SUFFIXES)]
        bare = self._begin_as_parquet(others)
        self.passed |= dict.fromkeys((name for name in visible if name in own), "written by dfm")
        self.passed |= {name: "of another suffix" if name in bare else "no Parquet" for name in others}
        taken = [name for name in bare if "." not in posixpath.basename(name)]
        for name in taken:
            del self.passed[name]
        return [*named, *taken]

    def _begin_as_parquet(self, names: Sequence[str]) -> list[str]:
        def begins(name: str) -> bool:
            return files.read_head(_unstrip(self._filesystem, name), len(_MAGIC), self._options) == _MAGIC

        with ThreadPoolExecutor(_THREADS) as pool:
            return [name for name, is_parquet in zip(names, pool.map(begins, names), strict=True) if is_parquet]

    def _written_by_dfm(self, there: Sequence[str], folder: str) -> set[str]:
        """Predictions and exports in folders below, and the golden rows of models: no log of clicks."""
        known, own = set(there), set()
        for name in there:
            parent, last = posixpath.split(name)
            if parent.rstrip("/") == folder.rstrip("/"):
                continue  # what was named is meant
            if last in _LEDGERS:
                ledger = Ledger(_unstrip(self._filesystem, parent), _LEDGERS[last], self._options)
                own |= {posixpath.join(parent, made) for made in ledger.own()}
            elif _GOLDEN.fullmatch(last) and posixpath.join(parent, "model.json") in known:
                own.add(name)
        return own

    # ------------------------------------------------------------------------------------------ tables ----

    def _refuse_tables(self, folders: Sequence[str], beyond: bool) -> None:
        """DataError where a folder is a table of another system or half written, or with `beyond` lies in one."""
        parents = [parent for folder in folders[:1] if beyond for parent in _parents(folder)]
        kinds = {**dict.fromkeys(parents, _IN_FOLDERS), **dict.fromkeys(folders, _HALF_WRITTEN)}
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self._refuse_table, kinds, kinds.values()):
                pass

    def _refuse_table(self, folder: str, half_written: Mapping[str, tuple[str, str]]) -> None:
        self._refuse_half_written(folder, half_written)
        for kind, (log, remedy) in _TABLES.items():
            if self._is_log(kind, posixpath.join(folder, log)):
                raise DataError(
                    f"{self._path} belongs to a table of {kind} ({posixpath.join(folder, log)}): which of its "
                    "files are rows of today stands in its log alone, and reading them all would count deleted "
                    f"rows and old versions. {remedy.format(delta=self._as_delta(folder))}"
                )

    def _refuse_half_written(self, folder: str, kinds: Mapping[str, tuple[str, str]]) -> None:
        """DataError where a command of dfm writes such files into a folder, or was killed while it did, and some of
        them are meant.
        """
        for kind, (what, command) in kinds.items():
            if kind == SYNTHETIC and not self.is_local:  # they are written to disks alone
                continue
            try:
                listed = Ledger(_unstrip(self._filesystem, folder), kind, self._options).read()
            except (PermissionError, SettingsError):  # a ledger of somebody else says nothing
                continue
            except StorageError as error:
                if not isinstance(error.__cause__, PermissionError):
                    raise
                continue
            if any(size is None and self._is_meant(posixpath.join(folder, name)) for name, size in listed.items()):
                raise DataError(
                    f"{self._path}: the {what} {folder} did not come to its end, and rows are missing there, or stand "
                    f"there twice; wait for it, or give the same {command} again"
                )

    def _is_meant(self, name: str) -> bool:
        """Whether a file, if it were there, might be among those that the path names."""
        if not self._is_glob:
            return name.startswith(f"{self._root.rstrip('/')}/")
        wanted, steps = self._root.split("/"), name.split("/")
        if "**" in wanted:
            return True
        alike = (step == each or fnmatch.fnmatchcase(step, each) for step, each in zip(steps, wanted, strict=False))
        return len(wanted) <= len(steps) and all(alike)

    def _as_delta(self, folder: str) -> str:
        """The URL of a Delta table in a folder."""
        place = _unstrip(self._filesystem, folder)
        return f"delta+{place}" if "://" in place else f"delta://{place}"

    def _is_log(self, kind: str, log: str) -> bool:
        """Whether a folder is the log of a table, by the names in it."""
        try:
            names = [posixpath.basename(name.rstrip("/")) for name in self._filesystem.ls(log, detail=False)]
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False
        return any(_LOGS[kind].fullmatch(name) for name in names)

    # ---------------------------------------------------------------------------------------- messages ----

    def nothing(self) -> NothingFound:
        """The error where no file was found."""
        others = sorted(self.passed)
        but, remedy = "", "folders and globs like 'day=*/*.parquet' work"
        if others:
            but = f", but {_counted(others, 'other file')}, {self.passed[others[0]]}"
            by_name = f"a glob takes files of any name ({self._path.rstrip('/')}/*)"
            remedy = conversion(others[0], self._path) or by_name
        is_relative = files.is_local(self._path) and not os.path.isabs(files.local_path(self._path))
        where = f" from {os.getcwd()}" if is_relative else ""
        error = NothingFound(f"no Parquet file at {self._path!r}{where}{but}: check the path; {remedy}")
        error.path = self._path
        return error

    def tell(self) -> None:
        """Name what was left out: in a warning where it may be rows, else for those who listen closely."""
        for why in dict.fromkeys(self.passed.values()):
            left_out = sorted(name for name, reason in self.passed.items() if reason == why)
            level = logging.INFO if why == "no Parquet" else logging.WARNING
            logger.log(level, "%s: %s left out, %s", self._path, _counted(left_out, "file"), why)


def conversion(name: str, given: str = "") -> str:
    """The way from a file of text to Parquet; empty where the name tells of none. given: the folder that was meant."""
    last = posixpath.basename(name)
    ends = {f".{part}" for part in last.lower().split(".")[1:]}
    if not ends.isdisjoint(_TEXTS):
        return f"dfm reads Parquet, which dfm convert {shlex.quote(given or name)} --to FOLDER makes of it"
    return f"dfm reads Parquet, which {parquet_of_json(last)} makes of it" if not ends.isdisjoint(_JSON) else ""


def parquet_of_json(name: str) -> str:
    """The call that makes Parquet of lines of JSON objects. name: of the file."""
    return f"pyarrow.parquet.write_table(pyarrow.json.read_json({name!r}), {name.split('.')[0] + '.parquet'!r})"


def _counted(names: Sequence[str], what: str) -> str:
    several = f"{len(names)} {what}s" if len(names) > 1 else f"1 {what}"
    return f"{several} ({posixpath.basename(names[0])}{', …' if len(names) > 1 else ''})"


def _protocol(filesystem: Any) -> str:
    return str(filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0])


def _unstrip(filesystem: Any, name: str) -> str:
    """A local path stays a plain path, without detours; anything else gets its protocol back."""
    if _protocol(filesystem) not in ("file", "local"):
        return str(filesystem.unstrip_protocol(name))
    straight = os.path.normpath(name)
    # Beyond a symbolic link, ".." may lead elsewhere than it looks.
    return straight if os.path.realpath(straight) == os.path.realpath(name) else name


def _without_glob(filesystem: Any, pattern: str) -> str:
    """The longest beginning of a pattern that is none, or a folder whose name looks like one and is there."""
    steps = pattern.split("/")
    fixed = next(number for number, step in enumerate(steps) if GLOB.search(step))
    while fixed < len(steps) - 1 and (not GLOB.search(steps[fixed]) or filesystem.isdir("/".join(steps[: fixed + 1]))):
        fixed += 1
    return "/".join(steps[:fixed]) or ("/" if pattern.startswith("/") else "")


def _parents(folder: str) -> Iterator[str]:
    """The folders above one, nearest first."""
    folder = folder.rstrip("/")
    while (parent := posixpath.dirname(folder)) not in (folder, ""):
        yield parent
        folder = parent


def _logs_among(names: Sequence[str], folder: str) -> list[str]:
    """Folders below one that hold the log of a table, as far as their names tell."""
    found: dict[str, None] = {}
    for name in names:
        steps = name.removeprefix(folder).strip("/").split("/")
        for number, step in enumerate(steps[:-1]):
            if step in ("_delta_log", ".hoodie") or (step == "metadata" and steps[-1].endswith(".metadata.json")):
                found[posixpath.join(folder, *steps[:number])] = None
    return list(found)
