"""Models for other systems: `dfm.export.hashed_inputs` makes of raw rows what an exported model takes."""

from __future__ import annotations

from dfm.model.export import FORMATS, export, hashed_inputs, parquet_table
from dfm.model.token_names import TokenNames

__all__ = ["FORMATS", "TokenNames", "export", "hashed_inputs", "parquet_table"]
