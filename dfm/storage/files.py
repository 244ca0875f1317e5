"""Small files at local paths and fsspec URLs alike: whole reads, atomic writes, creation that only one can win.

A store that is busy, throttles or restarts is asked again (`dfm.storage.retry`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dfm.errors import SettingsError, StorageError
from dfm.storage.credentials import check_url, hidden
from dfm.storage.retry import first_line, retrying
from dfm.storage.tables import TableUrl
from dfm.version import pip_install

Options = Mapping[str, Any] | None
Answer = TypeVar("Answer")
_WRITER = "dfm-writer"
"""Metadata of an object that `create_bytes` put: who put it, so that a repeated request knows its own work."""
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BROKEN = {errno.EIO, errno.EROFS, errno.ESTALE, errno.ENXIO, errno.ENODEV, getattr(errno, "EUCLEAN", errno.EIO)}
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.part")
_NO_CONDITIONS = 501
"""The status by which a store says that it knows no conditional puts."""
_PROBE = "writable"
ABANDONED_AFTER = 3600.0
"""Seconds after which nobody writes a temporary file any more that was not written to."""


def is_local(url: str) -> bool:
    """Whether a URL is a path of this machine."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path of a local URL; ~ is the home folder, and ~name that of a user, if there is one."""
    return Path(os.path.expanduser(url.removeprefix("file://")))


def absolute(url: str) -> str:
    """A local path in full, as workers stand in folders of their own; `file://` stays, for what it says of the path.
    Of a table in a folder, the same with its folder.
    """
    table = TableUrl.of(url)
    if table is not None:
        return table.moved(absolute(table.folder)).url if table.folder else url
    if not is_local(url):
        return url
    return ("file://" if url.startswith("file://") else "") + os.path.abspath(local_path(url))


def check_named(url: str | os.PathLike[str], what: str) -> None:
    """SettingsError where a place (named `what` in the message) is an empty text: it would be the root of the disk, or
    the current folder.
    """
    if not os.fspath(url).strip():
        raise SettingsError(
            f"{what} is empty and names no place; name a folder or URL, and see that a variable that should hold its "
            "name is set"
        )


def join(url: str, name: str) -> str:
    """A file or folder below a folder. SettingsError where that has no name."""
    check_named(url, f"the folder of {name}")
    return f"{url.rstrip('/')}/{name}"


def open_store(url: str, options: Options = None) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path in it. SettingsError where it holds a secret or nothing opens it."""
    check_url(url)
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **dict(options or {}))
    except (ImportError, ValueError, TypeError) as error:
        raise SettingsError(
            f"{url} cannot be opened: {first_line(error)}; check the protocol and the storage options, and install "
            f"what the protocol needs ({pip_install('s3')} for s3://)"
        ) from error
    # A filesystem object remembers listings; what others wrote since would be missing.
    filesystem.invalidate_cache()
    return filesystem, path


@contextlib.contextmanager
def telling_of_disks(path: Path, *also: int, what: str = "written") -> Iterator[None]:
    """Turn what a full or failing disk raises (and errors of the numbers `also`) into a StorageError with a remedy."""
    try:
        yield
    except Exception as error:
        # safetensors writes in Rust and raises its own class, with the system's words.
        number = error.errno if isinstance(error, OSError) else None
        found = re.search(r"\b(?:code:|os error) (\d+)", str(error))
        number = number if number is not None else int(found[1]) if found else 0
        if number not in {*_FULL, *_BROKEN, *also}:
            raise
        raise StorageError(f"{path} cannot be {what}: {first_line(error)}{_remedy(path, number)}") from error


def _remedy(path: Path, number: int) -> str:
    if number in _BROKEN:
        return "; check the disk or the share, then run the same command again"
    free = f", {shutil.disk_usage(path.parent).free:,} bytes free" if path.parent.is_dir() else ""
    return (
        f"{free}; make room there, or name a folder on another disk (cluster.cache for partitions, output.directory "
        "for results)"
    )


def _here(url: str, act: Callable[[Path], Answer], what: str = "read") -> Answer:
    """The result of `act` on the path of a local URL. StorageError where the disk fails."""
    path = local_path(url)
    with telling_of_disks(path, what=what):
        return act(path)


def read_bytes(url: str, options: Options = None) -> bytes:
    """The whole file. FileNotFoundError where there is none."""
    if is_local(url):
        return _here(url, Path.read_bytes)
    filesystem, path = open_store(url, options)
    return bytes(retrying(url, lambda: filesystem.cat_file(path)))


def read_head(url: str, n_bytes: int, options: Options = None) -> bytes:
    """The first bytes of a file, all where it has fewer; none where there is no such file."""
    try:
        if is_local(url):
            return _here(url, lambda path: _head(path, n_bytes))
        if not size_of(url, options):  # stores refuse to read a range of nothing
            return b""
        filesystem, path = open_store(url, options)
        return bytes(retrying(url, lambda: filesystem.cat_file(path, start=0, end=n_bytes)))
    except (FileNotFoundError, IsADirectoryError):
        return b""


def _head(path: Path, n_bytes: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(n_bytes)


def size_of(url: str, options: Options = None) -> int:
    """Bytes of a file. FileNotFoundError where there is none."""
    if is_local(url):
        return _here(url, Path.stat).st_size
    filesystem, path = open_store(url, options)
    return int(retrying(url, lambda: filesystem.info(path))["size"])


class PatientStream(io.RawIOBase):
    """A file of a store, opened for reading; a read that fails for the moment is repeated."""

    def __init__(self, url: str, options: Options = None) -> None:
        super().__init__()
        filesystem, path = open_store(url, options)
        self._url = url
        self._file = retrying(url, lambda: filesystem.open(path, "rb"))

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that are left for -1."""
        position = self._file.tell()

        def read_here() -> bytes:
            self._file.seek(position)
            return bytes(self._file.read(size))

        return retrying(self._url, read_here)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file reaches."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move on to a byte."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """The byte that is read next."""
        return int(self._file.tell())

    def close(self) -> None:
        """Close the file of the store too."""
        if not self.closed:
            self._file.close()
        super().close()


def open_stream(url: str, options: Options = None) -> BinaryIO:
    """A file to read from, wherever it is."""
    if is_local(url):
        return _here(url, lambda path: path.open("rb"))
    return PatientStream(url, options)  # type: ignore[return-value]


def write_bytes(url: str, data: bytes, options: Options = None) -> None:
    """Write a file such that a reader sees the old bytes or the new ones: renamed locally, one put on object stores."""
    if is_local(url):
        with writing(url) as stream:
            stream.write(data)
        return
    filesystem, path = open_store(url, options)
    if isinstance(filesystem, LocalFileSystem):  # by another name (local://…); its own writing is not in one step
        write_bytes(path, data)
        return
    with _telling_of_buckets(url):
        retrying(url, lambda: filesystem.pipe_file(path, data))


@contextlib.contextmanager
def _telling_of_buckets(url: str) -> Iterator[None]:
    """StorageError where a file cannot be written as something is missing: of a store that is the bucket."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            f"{hidden(url)} cannot be written ({first_line(error)}): there is no such bucket or container; create it, "
            "or check the URL"
        ) from error


def create_bytes(url: str, data: bytes, options: Options = None) -> None:
    """Write a file only where there is none; of several writers exactly one wins. FileExistsError for the others.

    Readers see nothing or all of it. Locally it is written apart and linked into place (a disk without hard links: made
    with O_EXCL, so that one writer wins, but a reader may catch it half-written). On S3 it is one put on the condition
    If-None-Match: *, on Google and Azure their like. A filesystem without such a condition gets a look before the
    write, which two writers at the same instant can both pass.
    """
    if is_local(url):
        _here(url, lambda path: _create_locally(path, data), "written")
        return
    filesystem, path = open_store(url, options)
    on_s3 = url.startswith(("s3://", "s3a://"))
    writer = uuid.uuid4().hex
    extra = {"Metadata": {_WRITER: writer}} if on_s3 else {}
    try:
        with _telling_of_buckets(url):
            retrying(url, lambda: filesystem.pipe_file(path, data, mode="create", **extra))
    except OSError as error:
        if _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode") == _NO_CONDITIONS:
            if exists(url, options):
                raise FileExistsError(errno.EEXIST, "the file is there already", url) from error
            retrying(url, lambda: filesystem.pipe_file(path, data))
            return
        if not _is_refusal(error):
            raise
        # The store may have taken a request whose answer got lost; its repetition then finds the first one's file.
        known = retrying(url, lambda: filesystem.metadata(path, refresh=True)) if on_s3 else {}
        if known.get(_WRITER) == writer:
            return
        raise FileExistsError(errno.EEXIST, "the file is there already", url) from error


def _is_refusal(error: OSError) -> bool:
    """Whether a store declined to create a file because there is one."""
    refused = _answer(error).get("Error", {}).get("Code") in ("PreconditionFailed", "412")
    return isinstance(error, FileExistsError) or refused


def _answer(error: OSError) -> Mapping[str, Any]:
    """The answer of S3 that an error came of."""
    return getattr(error.__cause__, "response", None) or {}


def _create_locally(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        with path.open("xb") as stream:
            stream.write(data)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def make_folder(path: Path) -> None:
    """Make it, and those above it. SettingsError where one of them is a file; StorageError where none can be made."""
    try:
        with telling_of_disks(path, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        taken = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), path)
        raise SettingsError(f"{taken} is a file, and a folder is needed there: name another") from error


@contextlib.contextmanager
def writing(url: str, options: Options = None) -> Iterator[BinaryIO]:
    """A stream to a file that appears when the block ends without an error; for a store it is collected on disk."""
    if not is_local(url):
        with tempfile.NamedTemporaryFile(prefix="dfm-upload-") as collected:
            yield collected  # type: ignore[misc]
            collected.flush()
            filesystem, path_in_store = open_store(url, options)
            with _telling_of_buckets(url):
                retrying(url, lambda: filesystem.put_file(collected.name, path_in_store))
        return
    path = local_path(url)
    temporary = temporary_of(path)
    make_folder(path.parent)
    try:
        with telling_of_disks(path):
            with temporary.open("wb") as stream:
                yield stream
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def is_abandoned(path: Path) -> bool:
    """Whether a file is a temporary one that its writer, who was killed, will not put in place any more."""
    try:
        return bool(_TEMPORARY.fullmatch(path.name)) and time.time() - path.stat().st_mtime > ABANDONED_AFTER
    except OSError:
        return False


def remove_abandoned(url: str, names: Collection[str]) -> None:
    """Delete what killed processes left of files of these names in a local folder; stores have no temporary files."""
    if not is_local(url):
        return
    for path in (local_path(url) / name for name in names_in(url)):
        found = _TEMPORARY.fullmatch(path.name)
        if found and found[1] in {*names, _PROBE} and is_abandoned(path):
            with contextlib.suppress(OSError):
                path.unlink()


def remove_abandoned_of(url: str) -> None:
    """The same for one file."""
    folder, _, name = url.rpartition("/")
    remove_abandoned(folder, [name])


def temporary_of(path: Path) -> Path:
    """A path beside another, at which a file is written before it takes that place."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def check_writable(url: str, options: Options = None) -> None:
    """OSError where no file can be written below a folder or URL; leaves nothing behind.

    In a store the probe has one name: what a killed process left of it goes with the next one.
    """
    probe = join(url, f".{_PROBE}.{uuid.uuid4().hex}.part" if is_local(url) else f".dfm-{_PROBE}")
    folders = [local_path(url), *local_path(url).parents] if is_local(url) else []
    made = [folder for folder in folders if not folder.exists()]
    try:
        if is_local(url):
            _here(probe, _touch, "written")  # not renamed into place: its name is that of a temporary file
        else:
            write_bytes(probe, b"", options)
        remove(probe, options)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def exists(url: str, options: Options = None) -> bool:
    """Whether a file or folder is there."""
    if is_local(url):
        return _here(url, Path.exists)
    filesystem, path = open_store(url, options)
    return bool(retrying(url, lambda: filesystem.exists(path)))


def names_in(url: str, options: Options = None) -> list[str]:
    """Names of the files directly in a folder, sorted; none where the folder is missing."""
    return _entries(url, "file", options)


def folders_in(url: str, options: Options = None) -> list[str]:
    """Names of the folders directly in a folder, sorted; none where the folder is missing."""
    return _entries(url, "directory", options)


def _entries(url: str, kind: str, options: Options) -> list[str]:
    """Names of the files ("file") or folders ("directory") directly in a folder."""
    if is_local(url):
        return _here(url, lambda path: _local_entries(path, kind))
    filesystem, path_in_store = open_store(url, options)
    try:
        found = retrying(url, lambda: filesystem.ls(path_in_store, detail=True))
    except FileNotFoundError:
        return []
    # Some stores keep an empty object for the folder itself.
    itself = path_in_store.rstrip("/")
    full = (entry["name"].rstrip("/") for entry in found if entry["type"] == kind)
    return sorted(name.rsplit("/", 1)[-1] for name in full if name != itself)


def _local_entries(path: Path, kind: str) -> list[str]:
    entries = list(path.iterdir()) if path.is_dir() else []
    return sorted(entry.name for entry in entries if (entry.is_file() if kind == "file" else entry.is_dir()))


def remove(url: str, options: Options = None) -> None:
    """Delete a file; a missing one is no error."""
    with contextlib.suppress(FileNotFoundError):
        if is_local(url):
            _here(url, Path.unlink, "deleted")
        else:
            filesystem, path = open_store(url, options)
            retrying(url, lambda: filesystem.rm_file(path))
