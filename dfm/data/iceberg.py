"""Tables of Apache Iceberg, found and read through the library `pyiceberg` (extra `iceberg`).

The catalogue, its credentials too, is described in pyiceberg's own configuration. Columns are told by their numbers, so
that renamed, added and dropped ones are read for what they are (`dfm.data.table_columns`); what a list of files does
not say, rows deleted by delete files, is refused with the way out.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from dfm.data.discovery import FoundFile
from dfm.data.table_columns import TableColumn
from dfm.data.table_state import TableState, moment_text, partition_texts
from dfm.errors import DataError, SettingsError
from dfm.storage.retry import first_line
from dfm.storage.tables import TableUrl
from dfm.version import pip_install

_NAME_MAPPING = "schema.name-mapping.default"


def read(table: TableUrl, options: Mapping[str, Any]) -> TableState:
    """A snapshot of a table, the newest where the URL says none. DataError where dfm would read it wrongly.

    options: not needed here: pyiceberg's configuration says how metadata are reached. Files are read with them later.
    """
    with _opened(table) as opened:
        snapshot = _snapshot(opened, table)
        where = table.at(str(snapshot.snapshot_id)).url
        scan = opened.scan(snapshot_id=snapshot.snapshot_id)
        schema = scan.projection()
        columns = tuple(_columns(schema, opened, where))
        found = [_found(task, opened, schema, columns, where) for task in scan.plan_files()]
        return TableState(opened.location(), str(snapshot.snapshot_id), moment_text(snapshot.timestamp_ms), found)


@contextlib.contextmanager
def _opened(table: TableUrl) -> Iterator[Any]:
    """The table of the library, whose catalogue is closed afterwards. DataError where one of them is not there."""
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError as error:
        raise SettingsError(f"{table.url} needs the library pyiceberg: {pip_install('iceberg')}") from error
    catalogue, _, identifier = table.place.partition("/")
    with contextlib.ExitStack() as stack:
        try:
            found = load_catalog(catalogue)
            stack.callback(getattr(found, "close", lambda: None))  # earlier versions of the library close nothing
            opened = found.load_table(identifier)
        except Exception as error:  # every kind of catalogue has errors of its own
            raise DataError(
                f"{table.url} cannot be opened: {first_line(error)}. Describe the catalogue {catalogue!r} in "
                f"~/.pyiceberg.yaml or by variables PYICEBERG_CATALOG__{catalogue.upper()}__URI and the like, and "
                f"check the name of the table, {identifier}"
            ) from error
        yield opened


def _snapshot(opened: Any, table: TableUrl) -> Any:
    """The snapshot that is meant. DataError where there is none."""
    known = opened.metadata.snapshots
    if not table.version:
        found = opened.current_snapshot()
    elif table.version.isdigit():
        found = opened.snapshot_by_id(int(table.version))
    else:
        found = opened.snapshot_by_name(table.version)
    if found is None:
        newest = ", ".join(str(each.snapshot_id) for each in known[-3:]) or "none"
        raise DataError(
            f"{table.url} names no snapshot: the table has {len(known)}, of which the last are {newest}; name one of "
            f"them, or {table.base} for the newest"
        )
    return found


def _columns(schema: Any, opened: Any, where: str) -> Iterator[TableColumn]:
    """The columns of a snapshot, with their numbers, and names for files that number none."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    aliases = _aliases(opened)
    for field, arrow in zip(schema.fields, schema_to_pyarrow(schema), strict=True):
        if getattr(field, "initial_default", None) is not None:
            raise DataError(
                f"{where}: the column {field.name!r} has a value for the rows of before it, {field.initial_default!r}, "
                "which dfm does not fill in; rewrite these rows (the procedure rewrite_data_files)"
            )
        yield TableColumn(field.name, arrow.type, aliases.get(field.field_id, (field.name,)), field.field_id)


def _aliases(opened: Any) -> dict[int, tuple[str, ...]]:
    """Names by number, for files that were taken into the table as they were."""
    text = opened.properties.get(_NAME_MAPPING)
    listed = json.loads(text) if text else []
    return {entry["field-id"]: tuple(entry["names"]) for entry in listed if "field-id" in entry}


def _found(task: Any, opened: Any, schema: Any, columns: tuple[TableColumn, ...], where: str) -> FoundFile:
    file = task.file
    if task.delete_files:
        raise DataError(
            f"{where} has delete files: rows that are deleted and still in {file.file_path}, which dfm would train on. "
            "Rewrite the files (the procedure rewrite_data_files with delete-file-threshold = 1), then name the "
            "snapshot that this makes"
        )
    if file.file_format.name != "PARQUET":
        raise DataError(
            f"{where} holds {file.file_path}, of the format {file.file_format.name}; dfm reads Parquet: set "
            "write.format.default = parquet and rewrite the files (the procedure rewrite_data_files)"
        )
    return FoundFile(_url_of(file.file_path), tuple(_partition(file, opened, schema)), (), columns)


def _partition(file: Any, opened: Any, schema: Any) -> Iterator[tuple[str, str]]:
    """The columns whose value is one in the whole file, as text: files that were taken over may not store them."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow
    from pyiceberg.transforms import IdentityTransform

    types = {field.name: field.type for field in schema_to_pyarrow(schema)}
    for place, part in enumerate(opened.specs()[file.spec_id].fields):
        name = schema.find_column_name(part.source_id)
        if isinstance(part.transform, IdentityTransform) and name in types:
            yield name, partition_texts(_typed(file.partition[place], types[name]), name)[0]


def _typed(value: Any, kind: pa.DataType) -> pa.Array:
    """A value of the metadata, in which days and moments are counted since 1970, in the column's type."""
    if pa.types.is_date32(kind) and isinstance(value, int):
        return pa.array([value], pa.int32()).cast(kind)
    if (pa.types.is_timestamp(kind) or pa.types.is_time64(kind)) and isinstance(value, int):
        return pa.array([value], pa.int64()).cast(kind)
    return pa.array([value], pa.string() if pa.types.is_large_string(kind) else kind)


def _url_of(path: str) -> str:
    """The URL of a file that the metadata name; of a local one its path."""
    return "/" + path.removeprefix("file:").lstrip("/") if path.startswith("file:") else path
