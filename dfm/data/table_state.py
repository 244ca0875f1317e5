"""A table as its library tells of it: its version, its files, the text of the values that its log gives."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from dfm.data.arrow_types import is_moment
from dfm.data.canonical import time_texts, value_text
from dfm.data.discovery import HIVE_NULL, FoundFile
from dfm.data.schema import SHORTEST
from dfm.errors import DataError


@dataclass(frozen=True)
class TableState:
    """A version of a table: where the table is, the text of its number, when it was made, its files."""

    place: str
    version: str
    timestamp: str
    files: Sequence[FoundFile]


def moment_text(milliseconds: int) -> str:
    """Milliseconds since 1970 as ISO 8601 in UTC."""
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).isoformat(timespec="milliseconds")


def partition_texts(values: pa.Array, name: str) -> list[str]:
    """The values of a partition column, each as the text that is hashed, as folders `name=value` would give them.

    DataError where they are of a type that makes no category.
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    try:
        moments = is_moment(array.type)
        texts = time_texts(array, SHORTEST).to_pylist() if moments else map(value_text, array.to_pylist())
        return [HIVE_NULL if text is None else text for text in texts]
    except TypeError as error:
        raise DataError(
            f"the table is partitioned by {name!r}, which is {array.type}: no category can be made of it; read a copy "
            "that is partitioned otherwise"
        ) from error
