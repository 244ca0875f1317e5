"""Names of tables that have a log or a catalogue of their own, as `data.train` and every other path spell them.

delta://clicks            the newest version of the Delta table in a folder,
delta:///data/clicks@v12  its version 12;
delta+s3://bucket/clicks  the same of a URL, of any object store;
iceberg://prod/ads.clicks@8160425288191026910
a snapshot of a table in a catalogue that pyiceberg's own configuration describes, or a
tag or a branch by its name; without @ the newest one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

from dfm.errors import SettingsError

DELTA, ICEBERG = "delta", "iceberg"
_SCHEME = re.compile(r"(delta|iceberg)(?:\+([a-z][a-z0-9+.-]*))?://(.*)", re.IGNORECASE | re.DOTALL)
_VERSION = re.compile(r"(.+)@v(\d{1,18})")
_LOOKS_LIKE_VERSION = re.compile(r".+@(\d+|[vV]?|V\d+|v-?\d+|latest|newest)")
_IN_CATALOGUE = re.compile(r"([^/@.\s]+)/([^/@\s]+\.[^/@.\s]+)(?:@([^/@\s]+))?")


@dataclass(frozen=True)
class TableUrl:
    """A table and which of its states is meant.

    kind: DELTA or ICEBERG. base: the URL without the version. place: of a Delta table its folder, a path or URL; of an
    Iceberg table "CATALOGUE/namespace.table". version: text, as after the @; empty: the newest.
    """

    kind: str
    base: str
    place: str
    version: str

    @classmethod
    def of(cls, url: str) -> Self | None:
        """The table that a URL names; None of any other URL or path. SettingsError where it is misspelled."""
        match = _SCHEME.fullmatch(url)
        if match is None:
            return None
        kind, inner, rest = match[1].lower(), match[2], match[3]
        if kind == DELTA:
            return cls._of_folder(url, f"{inner}://{rest}" if inner else rest)
        found = _IN_CATALOGUE.fullmatch(rest) if not inner else None
        if found is None:
            raise SettingsError(
                f"{url!r} names no table: expected iceberg://CATALOGUE/namespace.table, with @SNAPSHOT (its number, a "
                "tag or a branch) or without, for the newest; the catalogue is described in ~/.pyiceberg.yaml or "
                "PYICEBERG_CATALOG__NAME__… variables"
            )
        version = found[3] or ""
        return cls(ICEBERG, url.removesuffix(f"@{version}") if version else url, f"{found[1]}/{found[2]}", version)

    @classmethod
    def _of_folder(cls, url: str, rest: str) -> Self:
        match = _VERSION.fullmatch(rest)
        place, version = (match[1], match[2]) if match else (rest, "")
        if not place.strip("/") or (match is None and _LOOKS_LIKE_VERSION.fullmatch(rest)):
            raise SettingsError(
                f"{url!r} names no table: expected delta://FOLDER or delta+s3://BUCKET/FOLDER, with @v and the number "
                "of a version (delta://clicks@v12) or without, for the newest"
            )
        return cls(DELTA, url.removesuffix(f"@v{version}") if version else url, place, version)

    @property
    def folder(self) -> str:
        """The path or URL of its folder; empty where only a catalogue knows."""
        return self.place if self.kind == DELTA else ""

    @property
    def url(self) -> str:
        """The URL that names it in this state."""
        if not self.version:
            return self.base
        return f"{self.base}@{'v' if self.kind == DELTA else ''}{self.version}"

    def at(self, version: str) -> Self:
        """The table in another of its states."""
        return replace(self, version=version)

    def moved(self, folder: str) -> Self:
        """The Delta table of another folder."""
        return replace(self, place=folder, base=f"{DELTA}+{folder}" if "://" in folder else f"{DELTA}://{folder}")


def folder_of(url: str) -> str:
    """The path or URL that is looked at: a table's folder (empty where only a catalogue knows), or the URL itself."""
    table = TableUrl.of(url)
    return url if table is None else table.folder
