"""Tables and columns of other libraries of Arrow (polars, DuckDB, …), by the PyCapsule interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from dfm.errors import DataError

_REFUSALS = (pa.ArrowException, TypeError, ValueError)
_OBJECTS = (
    "it holds Python objects (polars' Object), of which Arrow hands out addresses; make the column of text, str(value)"
)


def speaks_arrow(data: Any) -> bool:
    """Whether it hands out its rows by the PyCapsule interface of Arrow: polars, DuckDB and others do."""
    return hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__")


def exported_table(data: Any) -> pa.Table:
    """The table of a frame of another library. DataError where a column cannot be read, or it is no table."""
    kinds = getattr(data, "schema", None)
    kinds = kinds if isinstance(kinds, Mapping) else {}
    for column, kind in kinds.items():
        if _holds_objects(kind):
            raise DataError(f"column {column!r} cannot be read: {_OBJECTS}")
    try:
        return pa.table(data)
    except _REFUSALS as error:
        for column in kinds:
            _check_read(column, data[column])
        raise DataError(f"a {type(data).__name__} is no table ({error}); pass a frame with named columns") from error


def exported_column(values: Any) -> pa.ChunkedArray:
    """The values of a column of another library. TypeError where Arrow cannot have them."""
    kind = getattr(values, "dtype", None)
    if _holds_objects(kind):
        raise TypeError(_OBJECTS)
    try:
        return pa.chunked_array(values)
    except _REFUSALS as error:
        raise TypeError(f"it holds {kind or type(values).__name__}: {error}; cast it, to Int64 or String") from error


def _check_read(column: str, values: Any) -> None:
    try:
        exported_column(values)
    except TypeError as error:
        raise DataError(f"column {column!r} cannot be read: {error}") from error


def _holds_objects(kind: Any) -> bool:
    """Whether a type of polars is Object, of which Arrow is handed pointers as bytes, or is made of it."""
    own = kind if isinstance(kind, type) else type(kind)
    parts = [getattr(kind, "inner", None), *(entry.dtype for entry in getattr(kind, "fields", None) or ())]
    return own.__name__ == "Object" or any(_holds_objects(part) for part in parts if part is not None)
