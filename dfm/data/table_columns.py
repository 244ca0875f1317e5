"""The columns of a table of Delta Lake or Iceberg, and where each of its files holds them.

Such a table outlives its schema: a file that was written before a column was added lacks it, one from before a column
was renamed has it by its old name, one from before a column was dropped has it still. What stands in a file is told by
the names and the numbers (`PARQUET:field_id`) of its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from dfm.data.arrow_types import column_kind, is_list, storage_type
from dfm.errors import DataError

_FIELD_ID = b"PARQUET:field_id"


@dataclass(frozen=True, slots=True)
class TableColumn:
    """One column of a table.

    name, type: as the table has it. stored: the names by which files may hold it. number: of the column in files that
    number theirs, which then counts alone; None: names count.
    """

    name: str
    type: pa.DataType
    stored: tuple[str, ...]
    number: int | None = None


def stored_names(columns: Sequence[TableColumn], schema: pa.Schema, url: str) -> tuple[tuple[str, str], ...]:
    """Each column of a table with the name that it has in a file of this schema; "" where the file has none.

    DataError where the file holds a column in a form that is another feature than the table's.
    """
    numbers = {number: field for field in schema if (number := _number(field)) is not None}
    by_name = {field.name: field for field in schema}
    found = []
    for column in columns:
        if column.number is not None and numbers:
            field = numbers.get(column.number)
        else:
            field = next((by_name[name] for name in column.stored if name in by_name), None)
        if field is not None:
            _check_form(column, field, url)
        found.append((column.name, "" if field is None else str(field.name)))
    return tuple(found)


def _number(field: pa.Field) -> int | None:
    text = (field.metadata or {}).get(_FIELD_ID)
    return int(text) if text else None


def _check_form(column: TableColumn, field: pa.Field, url: str) -> None:
    if _form(column.type, column.number is not None) != _form(field.type, column.number is not None):
        raise DataError(
            f"{url} holds the column {column.name!r} as {field.type}, and its table has it as {column.type}: the "
            "schema changed after the file was written, and one feature cannot be both. Rewrite the table's files "
            "(Iceberg: the procedure rewrite_data_files; Delta Lake: overwrite the table with itself), name a version "
            "from before the change, or leave the column out of a copy"
        )


def _form(kind: pa.DataType, is_numbered: bool) -> object:
    """A value that is the same for all types whose values make the same features."""
    kind, types = storage_type(kind), pa.types
    if types.is_dictionary(kind):
        return _form(kind.value_type, is_numbered)
    if types.is_date(kind):
        return "date"
    if types.is_timestamp(kind) or types.is_time(kind):
        return "moment" if types.is_timestamp(kind) else "time of day"
    if types.is_struct(kind):
        # Without numbers, fields are told by name, and one that is not there is missed where it is read.
        fields = [(_number(field), field.name, _form(field.type, True)) for field in kind]
        return fields if is_numbered else "struct"
    if is_list(kind) and not types.is_map(kind):
        return ("list", _form(kind.value_type, is_numbered))
    return column_kind(kind)
