"""Tables of Delta Lake, read from their log by the library `deltalake` (extra `delta`).

What is not in the log as a plain list of files is refused with the way out: rows deleted by a deletion vector, fields
of structs that go by other names, features of a protocol to come. Columns that go by other names in the files, and
columns that older files lack, are read for what they are (`dfm.data.table_columns`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from dfm.data.discovery import FoundFile
from dfm.data.table_columns import TableColumn
from dfm.data.table_state import TableState, moment_text, partition_texts
from dfm.errors import DataError, DfmError, SettingsError
from dfm.storage import files
from dfm.storage.retry import first_line
from dfm.storage.tables import TableUrl
from dfm.version import pip_install

_UNDERSTOOD = {
    "columnMapping",
    "deletionVectors",
    "timestampNtz",
    "typeWidening",
    "v2Checkpoint",
    "vacuumProtocolCheck",
}
"""Reader features: dfm heeds them, or they change nothing in how files are read."""
_PREVIEW = "-preview"


def read(table: TableUrl, options: Mapping[str, Any]) -> TableState:
    """A version of a table, the newest where the URL says none. DataError where dfm would read it wrongly."""
    opened = _open(table, options)
    where = f"{table.base}@v{opened.version()}"
    _check_protocol(opened, where)
    columns = _columns(opened, where)
    given = [column.name for column in columns if column.name in opened.metadata().partition_columns]
    stored = tuple(column for column in columns if column.name not in given)
    actions = pa.table(opened.get_add_actions())
    values = _partition_values(actions, given)
    found = [
        FoundFile(_url_of(table.folder, path), tuple((name, values[name][place]) for name in given), (), stored)
        for place, path in enumerate(actions.column("path").to_pylist())
    ]
    version = str(opened.version())
    return TableState(files.absolute(table.folder), version, _timestamp(table, version, options), found)


def _open(table: TableUrl, options: Mapping[str, Any]) -> Any:
    """The table of the library. DataError where there is none, or not in this version."""
    try:
        import deltalake
    except ImportError as error:
        raise SettingsError(f"{table.url} needs the library deltalake: {pip_install('delta')}") from error
    place = str(files.local_path(table.folder).absolute()) if files.is_local(table.folder) else table.folder
    version = int(table.version) if table.version else None
    try:
        return deltalake.DeltaTable(place, version=version, storage_options=_store_options(place, options))
    except Exception as error:  # its errors share no class
        newest = _newest(deltalake, place, options) if table.version else None
        if newest is not None:
            raise DataError(
                f"{table.base} has no version {table.version}: its newest is {newest} ({first_line(error)}). Name a "
                f"version that its log still holds, or {table.base} for the newest"
            ) from error
        raise DataError(
            f"{table.url} cannot be read as a table of Delta Lake: {first_line(error)}. Check the folder: it holds "
            "_delta_log; credentials come from the environment (AWS_…), as for shards"
        ) from error


def _newest(deltalake: Any, place: str, options: Mapping[str, Any]) -> int | None:
    """The newest version, for a message; None where the table cannot be read at all, which that message then says."""
    try:
        return int(deltalake.DeltaTable(place, storage_options=_store_options(place, options)).version())
    except Exception:  # as above; the error of the first attempt is the one that is told
        return None


def _store_options(place: str, options: Mapping[str, Any]) -> dict[str, str] | None:
    """Options of the library's own client of object stores, by data.storage_options, which are those of fsspec."""
    if not place.startswith(("s3://", "s3a://")):
        return None
    client = options.get("client_kwargs") or {}
    endpoint = options.get("endpoint_url") or client.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL", "")
    told = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true" if str(endpoint).startswith("http://") else "",
        "AWS_REGION": client.get("region_name", ""),
        "AWS_SKIP_SIGNATURE": "true" if options.get("anon") else "",
    }
    return {name: str(value) for name, value in told.items() if value}


def _check_protocol(opened: Any, where: str) -> None:
    """DataError where the log asks for more of a reader than a list of files says."""
    features = {name.removesuffix(_PREVIEW) for name in opened.protocol().reader_features or ()}
    if strange := sorted(features - _UNDERSTOOD):
        raise DataError(
            f"{where} needs readers that know {', '.join(strange)}, which dfm does not; write a copy without that "
            "feature and name the copy"
        )
    if "deletionVectors" in features and _has_deletion_vectors(opened):
        raise DataError(
            f"{where} has deletion vectors: rows that are deleted and still in its files, which dfm would train on. "
            "Rewrite the files (REORG TABLE … APPLY (PURGE) in Spark), then name the version that this makes"
        )


def _has_deletion_vectors(opened: Any) -> bool:
    try:
        return any(batch.num_rows for batch in opened.deletion_vectors())
    except Exception:  # one that cannot be read is one
        return True


def _columns(opened: Any, where: str) -> list[TableColumn]:
    """The columns of the table, each with the names that it goes by in files."""
    mode = opened.metadata().configuration.get("delta.columnMapping.mode", "none")
    types = {field.name: field.type for field in pa.schema(opened.schema().to_arrow())}
    found = []
    for entry in json.loads(opened.schema().to_json())["fields"]:
        name, known = entry["name"], entry.get("metadata") or {}
        if mode == "none":
            found.append(TableColumn(name, types[name], (name,)))
            continue
        if any(inner != outer for inner, outer in _renamed_inside(entry["type"])):
            raise DataError(
                f"{where} maps names of fields inside the column {name!r} (delta.columnMapping.mode = {mode!r}), which "
                "dfm does not follow; write a copy without column mapping, or with these fields as columns of their own"
            )
        number = int(known["delta.columnMapping.id"]) if mode == "id" else None
        found.append(TableColumn(name, types[name], (known["delta.columnMapping.physicalName"],), number))
    return found


def _renamed_inside(kind: Any) -> Iterator[tuple[str, str]]:
    """Names of the fields in a type, as the log's JSON has it, each with the name that it has in files."""
    if not isinstance(kind, dict):
        return
    for entry in kind.get("fields", ()):
        yield entry["name"], (entry.get("metadata") or {}).get("delta.columnMapping.physicalName", entry["name"])
        yield from _renamed_inside(entry["type"])
    for part in ("elementType", "keyType", "valueType"):
        yield from _renamed_inside(kind.get(part))


def _partition_values(actions: pa.Table, names: list[str]) -> dict[str, list[str]]:
    """Texts of the partition columns, a file each."""
    if not names:
        return {}
    parts = actions.column("partition").combine_chunks()
    return {name: partition_texts(parts.field(name), name) for name in names}


def _url_of(folder: str, path: str) -> str:
    """The URL of a file that the log names: below the table, or in full (a shallow clone)."""
    name = unquote(path)
    if "://" in name or name.startswith("file:/"):
        return "/" + name.removeprefix("file:").lstrip("/") if name.startswith("file:") else name
    return files.join(files.absolute(folder), name)


def _timestamp(table: TableUrl, version: str, options: Mapping[str, Any]) -> str:
    """The time of a version, by its entry in the log; "" where the entry is gone, as it is behind a checkpoint."""
    entry = files.join(table.folder, f"_delta_log/{int(version):020d}.json")
    try:
        lines = files.read_bytes(entry, options).splitlines()
        infos = (json.loads(line).get("commitInfo") for line in lines)
        found: dict[str, Any] = next(filter(None, infos), {})
        moment = found.get("inCommitTimestamp", found.get("timestamp"))
        return "" if moment is None else moment_text(int(moment))
    except (OSError, ValueError, AttributeError, DfmError):
        return ""
