"""Arrays on disk: safetensors files, opened as read-only memory maps.

The partition cache and the model use one format, so either can be read with the public safetensors packages.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save, save_file

from dfm.errors import DataError
from dfm.storage.files import telling_of_disks, temporary_of
from dfm.storage.ownership import MADE_BY, MAKER

Array = NDArray[Any]
logger = logging.getLogger(__name__)
_SUMS = "xxh64"
MAX_HEADER = 1 << 20
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
_DTYPES = {
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "I32": np.int32,
    "I64": np.int64,
    "F32": np.float32,
    "F64": np.float64,
}


def array_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The safetensors file of some arrays."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return bytes(save(contiguous, metadata={MADE_BY: MAKER}))


def write_arrays(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file under a temporary name, then rename it: readers see all or none. StorageError on a bad disk.

    It holds checksums of the arrays and of the metadata.
    """
    temporary = temporary_of(path)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    told = dict(metadata or {})
    told |= {MADE_BY: MAKER, _SUMS: _sums(contiguous, told)}
    try:
        with telling_of_disks(path, *_UNUSABLE):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(contiguous, temporary, metadata=told)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sums(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> str:
    """Checksums of what a file says: of each array its type, shape and XXH64, then that of the metadata."""
    from dfm.storage.xxhash import hash_bytes

    texts = []
    for name, array in sorted(arrays.items()):
        content = hash_bytes(array.reshape(-1).view(np.uint8))
        texts.append(f"{name}:{array.dtype.str}:{'x'.join(map(str, array.shape))}:{content:016x}")
    return " ".join([*texts, f"{hash_bytes(repr(sorted(metadata.items())).encode()):016x}"])


def read_arrays(path: Path, just_written: bool = False) -> tuple[dict[str, Array], dict[str, str]]:
    """Memory maps of a file's arrays (read-only), and its metadata. DataError where the file is not what was written.

    All of it is read once, at the speed of memory; but not where the caller has just written it.
    """
    try:
        size = path.stat().st_size
        if size < 8:
            raise ValueError(f"{size} bytes are too few for a header")
        raw = np.memmap(path, np.uint8, mode="r")
        arrays, metadata = parse_arrays(raw)
        known = metadata.pop(_SUMS, None)
        if not just_written and known != _sums(arrays, metadata):
            raise ValueError("its checksums differ" if known else "it has no checksums, as those of earlier versions")
        return arrays, metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run again") from error


def parse_arrays(raw: NDArray[np.uint8]) -> tuple[dict[str, Array], dict[str, str]]:
    """Views into the bytes of a safetensors file. ValueError where sizes, types or offsets do not fit the bytes."""
    header_size = int(raw[:8].view("<u8")[0])
    if header_size > min(MAX_HEADER, raw.size - 8):
        raise ValueError(f"a header of {header_size} bytes")
    try:
        header = json.loads(bytes(raw[8 : 8 + header_size]))
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    metadata = header.pop("__metadata__", {})
    metadata.pop(MADE_BY, None)
    body = raw[8 + header_size :]
    arrays = {}
    for name, entry in header.items():
        start, stop = (int(offset) for offset in entry["data_offsets"])
        shape = tuple(int(length) for length in entry["shape"])
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        n_bytes = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or not 0 <= start <= stop <= body.size or stop - start != n_bytes:
            raise ValueError(f"array {name!r} does not fit the file")
        arrays[name] = np.frombuffer(body[start:stop], dtype).reshape(shape)
    return arrays, metadata


def read_only(array: Array) -> Array:
    """A read-only, aligned view or copy: mapped, received and fresh arrays are then one type to the compiler.

    What came over the network may start at any byte; only such an array is copied.
    """
    view = np.asarray(array).view() if array.flags.aligned else np.array(array)
    view.flags.writeable = False
    return view


def distinct(values: Array) -> Array:
    """The distinct values, ascending, of numbers without NaN ([n], any order). NumPy's `unique` puts integers into a
    hash table, which takes eighty times as long as sorting half a million of them.
    """
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]
