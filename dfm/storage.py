"""Small files at local paths and fsspec URLs alike: whole reads, atomic writes."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

Options = Mapping[str, Any] | None


def is_local(url: str) -> bool:
    """Whether a URL is a path of this machine."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path of a local URL; ~ is the home folder."""
    return Path(url.removeprefix("file://")).expanduser()


def join(url: str, name: str) -> str:
    """A file or folder below a folder."""
    return f"{url.rstrip('/')}/{name}"


def read_bytes(url: str, options: Options = None) -> bytes:
    """The whole file. FileNotFoundError where there is none."""
    if is_local(url):
        return local_path(url).read_bytes()
    filesystem, path = fsspec.core.url_to_fs(url, **dict(options or {}))
    return bytes(filesystem.cat_file(path))


def write_bytes(url: str, data: bytes, options: Options = None) -> None:
    """Write a file such that a reader sees the old bytes or the new ones: renamed locally, one put on object stores."""
    if is_local(url):
        with writing(url) as stream:
            stream.write(data)
        return
    filesystem, path = fsspec.core.url_to_fs(url, **dict(options or {}))
    filesystem.pipe_file(path, data)


def create_bytes(url: str, data: bytes, options: Options = None) -> None:
    """Write a file where none exists; FileExistsError otherwise. Of several writers at once exactly one succeeds.

    Local disks link a complete temporary file to the name; S3 puts under the condition that there is no such key. Other
    filesystems are asked first, so there two writers in the same instant may both succeed.
    """
    if is_local(url):
        path = local_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            temporary.write_bytes(data)
            os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return
    filesystem, path_in_store = fsspec.core.url_to_fs(url, **dict(options or {}))
    filesystem.pipe_file(path_in_store, data, mode="create")


@contextlib.contextmanager
def writing(url: str, options: Options = None) -> Iterator[BinaryIO]:
    """A stream to a file that appears when the block ends without an error."""
    if is_local(url):
        path = local_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            with temporary.open("wb") as stream:
                yield stream
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return
    filesystem, path_in_store = fsspec.core.url_to_fs(url, **dict(options or {}))
    with filesystem.transaction, filesystem.open(path_in_store, "wb") as remote:
        yield remote


def check_writable(url: str, options: Options = None) -> None:
    """OSError where no file can be written below a folder or URL; leaves nothing behind."""
    probe = join(url, f".writable-{uuid.uuid4().hex}")
    folders = [local_path(url), *local_path(url).parents] if is_local(url) else []
    made = [folder for folder in folders if not folder.exists()]
    try:
        write_bytes(probe, b"", options)
        remove(probe, options)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def exists(url: str, options: Options = None) -> bool:
    """Whether a file or folder is there."""
    if is_local(url):
        return local_path(url).exists()
    filesystem, path = fsspec.core.url_to_fs(url, **dict(options or {}))
    return bool(filesystem.exists(path))


def names_in(url: str, options: Options = None) -> list[str]:
    """Names of the files directly in a folder, sorted; none where the folder is missing."""
    if is_local(url):
        path = local_path(url)
        return sorted(entry.name for entry in path.iterdir() if entry.is_file()) if path.is_dir() else []
    filesystem, path_in_store = fsspec.core.url_to_fs(url, **dict(options or {}))
    try:
        found = filesystem.ls(path_in_store, detail=True)
    except FileNotFoundError:
        return []
    return sorted(entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "file")


def remove(url: str, options: Options = None) -> None:
    """Delete a file; a missing one is no error."""
    with contextlib.suppress(FileNotFoundError):
        if is_local(url):
            local_path(url).unlink()
        else:
            filesystem, path = fsspec.core.url_to_fs(url, **dict(options or {}))
            filesystem.rm_file(path)
