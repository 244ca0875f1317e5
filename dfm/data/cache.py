"""Files that make preparation quick, on the disk of a worker: hashed rows and partitions, by what they were made of.

A worker may lose its cache, or be another worker than last time: whatever is missing is made again from the shards,
and comes out the same. So the cache decides how long preparation takes, never what it gives.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from dfm.data.reading import Reading, fingerprint
from dfm.storage import files, ownership

logger = logging.getLogger(__name__)
_CACHED = re.compile(r"\.?(chunk|partition)-[0-9a-f]{32}\.safetensors(\.[0-9a-f]{32}\.part)?")


def cache_path(reading: Reading, kind: str, *parts: Any) -> Path:
    """The file of a kind (chunk, partition) that is made of these parts, which JSON can tell apart."""
    return Path(reading.cache) / f"{kind}-{fingerprint(*parts)[:32]}.safetensors"


def tell_of_damage(path: Path, error: Exception) -> None:
    """Warn that a file cannot be used; one that is not there is none."""
    if not isinstance(error.__cause__, FileNotFoundError):
        logger.warning("%s is made again: %s", path, error.__cause__ or error)


def mark_used(path: Path) -> None:
    """Set the file's time to now: the cache drops what was used least recently."""
    try:
        os.utime(path)
    except OSError:
        return


def prune_cache(directory: str, limit: int, older_than: float) -> int:
    """Delete chunks and partitions used least recently until `limit` bytes of them are left; others' files stay.

    older_than: seconds since the epoch; what was used since then stays too. What killed workers left half written goes
    in any case. Returns the bytes deleted.
    """
    try:
        found = [entry for entry in os.scandir(directory) if _is_cached(entry)]
        cached = [(entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in found]
    except OSError:
        return 0
    total, freed = sum(size for _, size, _ in cached), 0
    for used, size, path in sorted(cached):
        is_needed = total - freed <= limit or used >= older_than
        if is_needed and not files.is_abandoned(Path(path)):
            continue
        Path(path).unlink(missing_ok=True)
        freed += size
    return freed


def _is_cached(entry: os.DirEntry[str]) -> bool:
    """Whether a file is a chunk or partition, or what a killed worker left of one: by its name and by its header."""
    is_named = entry.is_file(follow_symlinks=False) and _CACHED.fullmatch(entry.name)
    return bool(is_named) and ownership.is_array_file(entry.path)
