"""Tables of Delta Lake and Iceberg, as dfm reads them."""

from __future__ import annotations

from typing import Any

from dfm.data.parquet import Unit, find_shards, read_unit


def rows(url: str, *columns: str) -> list[dict[str, Any]]:
    """The rows of a table as dfm reads them, sorted."""
    found = [
        row
        for shard in find_shards([url])
        for batch in read_unit(Unit(shard, 0, shard.n_rows), columns)
        for row in batch.data.to_pylist()
    ]
    return sorted(found, key=str)
