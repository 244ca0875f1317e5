"""Files below a folder, on any filesystem. A folder that cannot be listed is an error, and never an empty one.

`os.walk`, `glob.glob` and fsspec's own `find` pass over a folder that a disk, a share or a permission keeps from them:
its rows would be missing without a word.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from dfm.errors import DataError

GLOB = re.compile(r"[*?\[]")
"""Characters that make a path a pattern."""
_NOT_A_FOLDER = FileNotFoundError, NotADirectoryError


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder that it lies in, begins with "." or "_" (`_temporary`, `_delta_log`; not `_x=1`)."""
    steps = path.split("/")
    return any(step.startswith(".") or (step.startswith("_") and "=" not in step) for step in steps)


def not_listed(path: str, error: Exception) -> DataError:
    """The error of a path that cannot be listed."""
    return DataError(
        f"cannot list {path!r}: {error}. Without a folder its rows would be missing: check the disk and this user's "
        "permissions, or name the folders that are meant by a glob"
    )


def files_below(filesystem: Any, folder: str, is_local: bool) -> list[str]:
    """Names of the files below a folder. OSError where a folder that is not hidden cannot be listed.

    is_local: it is a folder of this machine, in which symbolic links are followed but for those into a folder above.
    """
    if is_local:
        return _walk(folder)
    if _searches_by_itself(filesystem):
        return list(filesystem.find(folder))
    return sorted(_listed(filesystem, folder))


def matching(filesystem: Any, base: str, rest: str, is_local: bool) -> dict[str, bool]:
    """Names of the files and folders that `base + rest` matches, and whether each is a folder. OSError as above.

    base: the beginning of the pattern that is a path; rest: what follows, with "*", "?", "[…]" and "**".
    """
    if is_local and "**" not in rest:
        names = {name: os.path.isdir(name) for name in _expanded(base, rest) if not is_circular(name, base)}
        return {name: is_folder for name, is_folder in names.items() if is_folder or not rest.endswith("/")}
    pattern = re.sub(r"([*?\[])", r"[\1]", base) + rest
    if not is_local and _searches_by_itself(filesystem):
        return {name: about["type"] == "directory" for name, about in filesystem.glob(pattern, detail=True).items()}
    # On a disk "**" by the library would follow circular links as far as names may be long.
    below = files_below(filesystem, base, is_local)
    known = dict.fromkeys((folder for name in below for folder in steps_between(base, name)), True)
    known |= dict.fromkeys(below, False)
    matches = re.compile(glob_translate(pattern.rstrip("/"))).match
    return {name: is_folder for name, is_folder in sorted(known.items()) if matches(name)}


def reached_once(names: Iterable[str]) -> list[str]:
    """Local names of files, without those in folders that are reached a second time through a link."""
    parts = [(name, *os.path.split(name)) for name in names]
    places = {name: os.path.join(os.path.realpath(folder), last) for name, folder, last in parts}
    straight = {place: name for name, place in reversed(places.items())}
    straight |= {place: name for name, place in places.items() if name == place}
    return [name for name, place in places.items() if straight[place] == name]


def _searches_by_itself(filesystem: Any) -> bool:
    """Whether a filesystem has a search of its own (object stores: one listing), not fsspec's walk."""
    if isinstance(filesystem, AsyncFileSystem):
        return type(filesystem)._find is not AsyncFileSystem._find
    return type(filesystem).find is not AbstractFileSystem.find


def _listed(filesystem: Any, folder: str) -> Iterator[str]:
    open_ones = [folder]
    while open_ones:
        here = open_ones.pop()
        try:
            entries = filesystem.ls(here, detail=True)
        except OSError:
            if not is_hidden(here.removeprefix(folder)):
                raise
            continue
        for entry in entries:
            name = entry["name"].rstrip("/")
            if name == here.rstrip("/"):
                continue
            if entry["type"] == "directory":
                open_ones.append(name)
            else:
                yield name


def _walk(folder: str) -> list[str]:
    def refused(error: OSError) -> None:
        if not is_hidden(str(error.filename).removeprefix(folder)):
            raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refused, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_circular(os.path.join(parent, name), folder))
        found += [os.path.join(parent, name) for name in sorted(names)]
    return found


def _expanded(base: str, rest: str) -> list[str]:
    """Local names that a pattern matches, step by step."""
    found = [base]
    for step in rest.strip("/").split("/"):
        if not GLOB.search(step):
            found = [name for path in found for name in _next(path, step)]
            continue
        found = [name for path in found for name in _choice(path, step, is_hidden(path.removeprefix(base)))]
    return found


def _choice(folder: str, step: str, may_be_kept: bool) -> list[str]:
    try:
        names = sorted(os.listdir(folder or "."))
    except _NOT_A_FOLDER:
        return []
    except OSError:
        if not may_be_kept:
            raise
        return []
    visible = [name for name in names if step.startswith(".") or not name.startswith(".")]
    return [posixpath.join(folder, name) for name in fnmatch.filter(visible, step)]


def _next(folder: str, step: str) -> list[str]:
    path = posixpath.join(folder, step)
    try:
        os.lstat(path)
    except _NOT_A_FOLDER:
        return []
    return [path]


def is_circular(path: str, base: str) -> bool:
    """Whether a path goes, below `base`, through a link to a folder that the link lies in."""
    while len(path) > len(base.rstrip("/")):
        parent = os.path.dirname(path)
        if os.path.islink(path) and f"{os.path.realpath(parent)}/".startswith(f"{os.path.realpath(path)}/"):
            return True
        path = parent
    return False


def steps_between(base: str, name: str) -> Iterator[str]:
    """The folders between a base and a file below it."""
    while len(name := posixpath.dirname(name)) > len(base):
        yield name
