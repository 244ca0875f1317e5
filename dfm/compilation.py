"""Numba functions whose machine code is kept on disk, safely for processes that start together.

Numba's own cache numbers its files: two processes that compile different signatures of one function at the same time
both take the next number, and the index of one may then name the machine code of the other. Workers do start together.
Here a file is named by what is in it. Kernels made by factories give a key of their own, because Numba's key pickles
the functions that they close over, and those differ in every process: with it they would never be found again.

An image carries code that was compiled when it was built, for a processor that its nodes have at least (DFM_KERNELS: a
folder, which need not be writable). Where this machine has what that code needs, code is made for that processor here
too, so that it is found; the same image then gives the same bytes on nodes of several kinds.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding import get_host_cpu_features
from numba.core.caching import FunctionCache, IndexDataCacheFile

BUILT = "DFM_KERNELS"
TARGET = "target.json"
"""Beside the code in that folder: {"cpu": LLVM's name of the processor, "needs": features it takes for granted}."""


def aim_at_built_code() -> None:
    """Compile for the processor of the image's own code, where this one can run it and nobody chose another."""
    folder = os.environ.get(BUILT)
    if not folder or numba.config.CPU_NAME is not None or not Path(folder, TARGET).is_file():
        return
    target = json.loads(Path(folder, TARGET).read_text())
    present = get_host_cpu_features()
    if all(present.get(feature) for feature in target["needs"]):
        numba.config.CPU_NAME, numba.config.CPU_FEATURES = target["cpu"], ""


aim_at_built_code()


class _Files(IndexDataCacheFile):
    """An index and data files; the name of a data file is made of the source's stamp and the key."""

    def save(self, key: Any, data: Any) -> None:
        """Write the data, then the index: a reader finds both or none."""
        digest = hashlib.sha256(f"{self._source_stamp} {key!r}".encode()).hexdigest()
        name = self._data_name(int(digest[:15], 16))
        self._save_data(name, data)
        overloads = self._load_index()
        overloads[key] = name
        self._save_index(overloads)


@functools.cache
def _stamp(path: str) -> str:
    """What a source file is known by: its contents, for the times of files change on the way through an image."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else ""


class _DiskCache(FunctionCache):
    """Numba's cache of one function, with our files and, where one is given, our key."""

    def __init__(self, function: Any, key: str) -> None:
        super().__init__(function)
        stamp = _stamp(function.__code__.co_filename) or self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)
        built = os.path.join(os.environ.get(BUILT, ""), os.path.basename(self._cache_path))
        self._built = _Files(built, self._impl.filename_base, stamp) if os.path.isdir(built) else None
        self._key = key

    def _load_overload(self, signature: Any, target: Any) -> Any:
        if self._built is not None and (data := self._built.load(self._index_key(signature, target.codegen()))):
            return self._impl.rebuild(target, data)
        return super()._load_overload(signature, target)

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        return (signature, codegen.magic_tuple(), self._key) if self._key else super()._index_key(signature, codegen)


def keep_on_disk(dispatcher: Any, key: str = "") -> None:
    """Let a jitted function load its machine code from disk, or leave it there. Numba picks the folder
    (NUMBA_CACHE_DIR, or __pycache__ beside the module, or the user's cache folder where that is not writable).
    """
    if numba.config.DISABLE_JIT:
        return
    try:
        dispatcher._cache = _DiskCache(dispatcher.py_func, key)
    except RuntimeError:
        return  # no folder can be written to: then every process compiles


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`numba.njit(nogil=True, …)`, kept on disk. Without nogil a worker could not answer while a kernel runs."""

    def decorate(inner: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(inner, nogil=True, **options)
        keep_on_disk(dispatcher)
        return dispatcher

    return decorate if function is None else decorate(function)
