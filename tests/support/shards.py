"""Parquet files for tests; imports nothing from dfm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_shard(path: Path, columns: Mapping[str, Any] | pa.Table, row_group_size: int = 10, **options: Any) -> str:
    """A Parquet file of some columns; returns its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    pq.write_table(table, path, row_group_size=row_group_size, **options)
    return str(path)
