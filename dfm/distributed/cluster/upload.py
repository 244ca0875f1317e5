"""The way of dfm to processes that lack it. It is sent to them as code, so this module imports nothing of dfm."""

from __future__ import annotations

import importlib
import io
import os
import sys
import tempfile
import zipfile
from typing import Any

from distributed import SchedulerPlugin, WorkerPlugin

_FOLDERS: dict[str, str] = {}
"""Folders in which this process has unpacked wheels, by their digests."""


def unpack(wheel: bytes, digest: str, version: str) -> None:
    """Make the package of a wheel importable in this process. Where the same version is installed, nothing is done."""
    if not _FOLDERS and _installed() == version:
        return
    if digest not in _FOLDERS:
        if _FOLDERS:
            raise RuntimeError("another build of dfm was sent here before; restart the cluster (Client.restart) first")
        _FOLDERS[digest] = _folder_of(wheel, digest)
        sys.path.insert(0, _FOLDERS[digest])
    importlib.invalidate_caches()
    found = _installed()
    if found != version:
        raise RuntimeError(f"dfm {found} is loaded already, {version} was sent; restart this process")


def _installed() -> str | None:
    """The version of dfm that this process imports, by whatever name it was installed; None where there is none."""
    try:
        return getattr(importlib.import_module("dfm"), "__version__", None)
    except ImportError:
        return None


def _folder_of(wheel: bytes, digest: str) -> str:
    """The files of the wheel on this machine, the same for all processes of a user: kernels are compiled once."""
    folder = os.path.join(tempfile.gettempdir(), f"dfm-wheel-{os.getuid()}-{digest[:24]}")
    if os.path.isdir(folder) and os.stat(folder).st_uid == os.getuid():
        return folder
    fresh = tempfile.mkdtemp(prefix="dfm-wheel-")
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for name in archive.namelist():
            path = archive.extract(name, fresh)
            os.utime(path, (0, 0))  # compiled kernels are found by the age of their sources
    try:
        os.rename(fresh, folder)
    except OSError:  # another process was faster, or the name is somebody else's
        return folder if os.path.isdir(folder) and os.stat(folder).st_uid == os.getuid() else fresh
    return folder


class CarriedToWorkers(WorkerPlugin):
    """Every worker gets the wheel, later ones too."""

    idempotent = True

    def __init__(self, wheel: bytes, digest: str, version: str) -> None:
        self._wheel = wheel, digest, version
        self.name = f"dfm-wheel-{digest}"

    def setup(self, worker: Any) -> None:
        """Called on every worker before its first task."""
        unpack(*self._wheel)


class CarriedToScheduler(SchedulerPlugin):
    """The scheduler unpickles the graphs that are submitted, though not scattered data: it needs the package too."""

    idempotent = True

    def __init__(self, wheel: bytes, digest: str, version: str) -> None:
        self._wheel = wheel, digest, version
        self.name = f"dfm-wheel-of-scheduler-{digest}"

    async def start(self, scheduler: Any) -> None:
        """Called once, when it is registered."""
        unpack(*self._wheel)
