"""Shards that hold the same rows: every row of theirs would count twice."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dfm.data.parquet import Shard, reading
from dfm.errors import DataError
from dfm.storage import files

_THREADS = 16


def check_distinct(shards: Sequence[Shard], storage_options: Mapping[str, Any] | None = None) -> None:
    """DataError where two shards hold the same rows: a file named twice, under two names, or a copy of it.

    Shards of one size, the same row groups and the same columns of the path are compared, by their ends first and as a
    whole where these agree.
    """
    filled = [shard for shard in shards if shard.n_rows]
    alike = _groups(filled, [(shard.size, shard.row_groups, shard.partition) for shard in filled])
    with ThreadPoolExecutor(_THREADS) as pool:
        for digest in (_digest_of_end, _digest_of_all):
            suspects = [shard for group in alike for shard in group]
            digests = list(pool.map(digest, suspects, itertools.repeat(storage_options)))
            alike = _groups(suspects, digests)
    for first, second, *_ in alike:
        what = f"is the same file as {first.url}, or a copy of it"
        if first.url == second.url:
            what = "is among the shards to train on and among those to validate on"
        raise DataError(
            f"{second.url} {what}: its {second.n_rows} rows would count twice; leave it out of one of the two places"
        )


def _groups(shards: Sequence[Shard], keys: Sequence[Any]) -> list[list[Shard]]:
    """The shards that share a key with another one."""
    by_key: dict[Any, list[Shard]] = {}
    for shard, key in zip(shards, keys, strict=True):
        by_key.setdefault(key, []).append(shard)
    return [group for group in by_key.values() if len(group) > 1]


def _digest_of_end(shard: Shard, storage_options: Mapping[str, Any] | None) -> bytes:
    """Of the last 64 kB, where the footer is."""
    with reading(shard.url), files.open_stream(shard.url, storage_options) as stream:
        stream.seek(max(0, shard.size - (1 << 16)))
        return hashlib.sha256(stream.read()).digest()


def _digest_of_all(shard: Shard, storage_options: Mapping[str, Any] | None) -> bytes:
    digest = hashlib.sha256()
    with reading(shard.url), files.open_stream(shard.url, storage_options) as stream:
        while part := stream.read(1 << 24):
            digest.update(part)
    return digest.digest()
