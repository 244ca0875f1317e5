"""Tables of Delta Lake and Iceberg as lists of files: which version is meant, and what is in it.

The one place where a path becomes a version of a table: `resolve` asks the table's own library, and whoever keeps the
snapshot (a job does, from its plan to its model) reads the same files however the table goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dfm.data import delta, iceberg
from dfm.data.discovery import FoundFile
from dfm.errors import DataError
from dfm.storage.credentials import check_url
from dfm.storage.tables import DELTA, ICEBERG, TableUrl

logger = logging.getLogger(__name__)
_READERS = {DELTA: delta.read, ICEBERG: iceberg.read}
_NAMES = {DELTA: "Delta Lake", ICEBERG: "Apache Iceberg"}


@dataclass(frozen=True)
class Snapshot:
    """One state of a table.

    asked: the path that named it. url: the one that names this state for ever. table: where the table is. version:
    number of the version, or of the snapshot. timestamp: when it was made, ISO 8601 in UTC; empty where nobody knows.
    """

    asked: str
    url: str
    kind: str
    table: str
    version: str
    timestamp: str
    files: tuple[FoundFile, ...] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, str]:
        """The entry of a record, JSON-ready."""
        told = ("asked", "url", "kind", "table", "version", "timestamp")
        return {name: str(getattr(self, name)) for name in told}


def resolve(path: str, options: Mapping[str, Any], pins: Mapping[str, str] | None = None) -> Snapshot | None:
    """The state of the table that a path names; None of a path to files.

    pins: the URLs that some paths stand for: of an earlier run that goes on. DataError where the table cannot be read
    in the way that it was written; SettingsError where its library is missing.
    """
    check_url(path)
    table = TableUrl.of((pins or {}).get(path, path))
    if table is None:
        return None
    state = _READERS[table.kind](table, options)
    url = table.at(state.version).url
    if not state.files:
        raise DataError(f"{url} is a table without rows; name a version that has some")
    logger.info("%s is %s, of %s, with %d files", path, url, state.timestamp or "an unknown time", len(state.files))
    return Snapshot(path, url, _NAMES[table.kind], state.place, state.version, state.timestamp, tuple(state.files))


def resolve_all(
    paths: Sequence[str], options: Mapping[str, Any], pins: Mapping[str, str] | None = None
) -> dict[str, Snapshot]:
    """The states of all tables among some paths, by path: each is looked at once."""
    found = {path: resolve(path, options, pins) for path in dict.fromkeys(paths)}
    return {path: snapshot for path, snapshot in found.items() if snapshot is not None}


def pins_of(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The URLs for ever by the paths that were asked for, of snapshots as `Snapshot.to_dict` tells them."""
    return {str(record["asked"]): str(record["url"]) for record in records}
