"""Shards that hold the same rows: every row of theirs would count twice."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from dfm.data.arrow_types import decoded, plain, shown
from dfm.data.parquet import Shard, open_parquet, reading
from dfm.errors import DataError
from dfm.storage import files
from dfm.storage.ownership import place_of

_THREADS = 16
_FEW_ROWS = 32
_SAMPLE_ROWS = 4096
_SURE_BITS = 64.0
"""Rows that come twice by chance with a probability of 2^-64 do not."""


def check_named_once(shards: Sequence[Shard], storage_options: Mapping[str, Any] | None = None) -> None:
    """DataError where two shards are one file: named twice, or under two names, by links. No file is read."""
    for group in _alike(shards):
        if same := _groups(group, [_identity(shard, storage_options) for shard in group]):
            raise DataError(_twice(same[0][0], same[0][1]))


def check_distinct(shards: Sequence[Shard], storage_options: Mapping[str, Any] | None = None) -> None:
    """DataError where two shards hold the same rows: a file named twice, under two names, or a copy of it.

    Shards of one size, the same row groups and the same columns of the path are compared, by their ends first and as a
    whole where these agree. Equal files of a few rows, or of rows that say the same again and again, are no copies:
    batches of a stream fall out alike by chance.
    """
    check_named_once(shards, storage_options)
    alike = _alike(shards)
    with ThreadPoolExecutor(_THREADS) as pool:
        for digest in (_digest_of_end, _digest_of_all):
            suspects = [shard for group in alike for shard in group]
            digests = list(pool.map(digest, suspects, itertools.repeat(storage_options)))
            alike = _groups(suspects, digests)
    for group in alike:
        if not _may_be_chance(group[0], storage_options):
            raise DataError(_twice(group[0], group[1]))


def _twice(first: Shard, second: Shard) -> str:
    what = f"is the same file as {first.url}, or a copy of it"
    if first.url == second.url:
        what = "is among the shards to train on and among those to validate on"
    return f"{second.url} {what}: its {second.n_rows} rows would count twice; leave it out of one of the two places"


def _identity(shard: Shard, storage_options: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """The identity of a file that its names share, beyond symbolic and hard links."""
    if not files.is_local(shard.url):
        return place_of(shard.url, storage_options)
    with reading(shard.url):
        status = os.stat(files.local_path(shard.url))
    return status.st_dev, status.st_ino


def _may_be_chance(shard: Shard, storage_options: Mapping[str, Any] | None) -> bool:
    """Whether another file may well hold the same rows in the same order: few rows, or few that differ.

    n rows in which the distinct ones have shares p are drawn again with probability 2^(-n·H), H = -Σ p log2 p.
    """
    if shard.n_rows < _FEW_ROWS:
        return True
    with reading(shard.url), open_parquet(shard.url, storage_options) as file:
        batch = next(file.iter_batches(_SAMPLE_ROWS))
    counts = Counter(map(repr, zip(*(_values(column) for column in batch.columns), strict=True)))
    n_rows = counts.total()
    return sum(count * math.log2(n_rows / count) for count in counts.values()) < _SURE_BITS


def _values(column: pa.Array) -> list[Any]:
    """Values that are equal where the column's are, also of text that is no UTF-8, or moments that Python lacks."""
    try:
        found: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        found = [None if value is None else shown(value) for value in decoded(plain(column))]
    return found


def _alike(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Groups of shards that may hold the same rows, as far as their footers tell."""
    filled = [shard for shard in shards if shard.n_rows]
    return _groups(filled, [(shard.size, shard.row_groups, shard.partition) for shard in filled])


def _groups(shards: Sequence[Shard], keys: Sequence[Any]) -> list[list[Shard]]:
    """The shards that share a key with another one."""
    by_key: dict[Any, list[Shard]] = {}
    for shard, key in zip(shards, keys, strict=True):
        by_key.setdefault(key, []).append(shard)
    return [group for group in by_key.values() if len(group) > 1]


def _digest_of_end(shard: Shard, storage_options: Mapping[str, Any] | None) -> bytes:
    """Digest of the last 64 kB, where the footer is."""
    with reading(shard.url), files.open_stream(shard.url, storage_options) as stream:
        stream.seek(max(0, shard.size - (1 << 16)))
        return hashlib.sha256(stream.read()).digest()


def _digest_of_all(shard: Shard, storage_options: Mapping[str, Any] | None) -> bytes:
    digest = hashlib.sha256()
    with reading(shard.url), files.open_stream(shard.url, storage_options) as stream:
        while part := stream.read(1 << 24):
            digest.update(part)
    return digest.digest()
