"""From hashed index to row of the parameter table: one dense table, or bisection of the sorted indices."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.coded_rows import CodedRows
from dfm.data.vocabulary import ABSENT, DENSE_BITS, Vocabulary
from dfm.storage.arrays import read_only


@dataclass(frozen=True, slots=True)
class CodeRows:
    """Rows of the parameter table: `rows` uint32[n_codes], of each code, the number of features where it has none;
    `shared` uint32[at most n_codes]: those that are features of another field.
    """

    rows: NDArray[np.uint32]
    shared: NDArray[np.uint32]


class RowLookup:
    """From hashed index and field to row of the parameter table: a dense table up to 2**26 indices, else bisection.

    fields: uint16[n_features], of the rows.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.fields = vocabulary.fields
        self._rare = vocabulary.rare.astype(np.int64)
        self._n_fields = len(self._rare)
        self._in_each_row = np.where(self._rare >= 0, self._rare, ABSENT).astype(np.uint32)
        if vocabulary.hash_bits <= DENSE_BITS:
            self._dense = np.full(1 << vocabulary.hash_bits, ABSENT, np.uint32)
            self._dense[vocabulary.ids] = np.arange(vocabulary.n_features, dtype=np.uint32)
            self._sorted_ids = self._sorted_rows = np.zeros(0, np.uint32)
        else:
            self._dense = np.zeros(0, np.uint32)
            self._sorted_rows = np.argsort(vocabulary.ids).astype(np.uint32)
            self._sorted_ids = vocabulary.ids[self._sorted_rows]
        self._of_tables: weakref.WeakKeyDictionary[Any, CodeRows] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """All but what was looked up."""
        return {name: value for name, value in self.__dict__.items() if name != "_of_tables"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _of_tables=weakref.WeakKeyDictionary())

    @property
    def n_features(self) -> int:
        """Number of rows of the parameter table."""
        return len(self.fields)

    def rows_of_codes(self, rows: CodedRows) -> CodeRows:
        """Rows of the codes of the tables of some rows: looked up once for all rows that have the same tables."""
        known = self._of_tables.get(rows.tables)
        if known is None:
            fields = rows.fields_of_codes
            found = self.rows(rows.tables.indices, fields)
            there = np.flatnonzero(found != ABSENT)
            shared = found[there[self.fields[found[there]] != fields[there]]]
            found[found == ABSENT] = self.n_features
            known = self._of_tables[rows.tables] = CodeRows(read_only(found), shared)
        return known

    def rows_of_columns(self, indices: NDArray[np.uint32], fields: NDArray[np.uint16]) -> NDArray[np.uint32]:
        """Row of every entry of columns of some fields, uint32[n_columns, n_rows]; the number of features where there
        is none. Of a table of all indices only.
        """
        out, instead = np.empty(indices.shape, np.uint32), self._in_each_row[fields]
        instead[instead == ABSENT] = self.n_features
        _look_up_columns(self._dense, read_only(indices), instead, out)
        return out

    def rows(
        self, indices: NDArray[np.uint32], fields: NDArray[np.uint16], out: NDArray[np.uint32] | None = None
    ) -> NDArray[np.uint32]:
        """Row of every entry; unseen ones get their field's rare bucket, or ABSENT without one (uint32[n_entries]).

        out: where they are written.
        """
        out = np.empty(len(indices), np.uint32) if out is None else out
        indices, fields = read_only(indices), read_only(fields)
        if self._dense.size and not fields.size and len(indices) and not len(indices) % self._n_fields:
            shape = -1, self._n_fields
            _look_up_table(self._dense, indices.reshape(shape), self._in_each_row, out.reshape(shape))
        elif self._dense.size:
            _look_up(self._dense, indices, fields, self._rare, out)
        else:
            _bisect(self._sorted_ids, self._sorted_rows, indices, fields, self._rare, out)
        return out


@numba.njit(nogil=True, inline="always")
def _rare_row(fields, i, rare):  # type: ignore[no-untyped-def]
    row = rare[fields[i]] if fields.size else rare[i % rare.size]
    return np.uint32(row) if row >= 0 else ABSENT


@compiled
def _look_up(dense, indices, fields, rare, out):  # type: ignore[no-untyped-def]
    for i in range(indices.size):
        row = dense[indices[i]]
        out[i] = row if row != ABSENT else _rare_row(fields, i, rare)


@compiled
def _look_up_table(dense, indices, rare, out):  # type: ignore[no-untyped-def]
    """The same of uint32[n_rows, n_fields], an entry of each field a row; rare uint32[n_fields], ABSENT for none."""
    for row in range(indices.shape[0]):
        for field in range(indices.shape[1]):
            found = dense[indices[row, field]]
            out[row, field] = found if found != ABSENT else rare[field]


@compiled
def _look_up_columns(dense, indices, instead, out):  # type: ignore[no-untyped-def]
    """The same of columns, `instead` uint32[n_columns] of those that are not there; writes `out`."""
    for column in range(indices.shape[0]):
        for row in range(indices.shape[1]):
            found = dense[indices[column, row]]
            out[column, row] = found if found != ABSENT else instead[column]


@compiled
def _bisect(sorted_ids, sorted_rows, indices, fields, rare, out):  # type: ignore[no-untyped-def]
    for i in range(indices.size):
        at = np.searchsorted(sorted_ids, indices[i])
        found = at < sorted_ids.size and sorted_ids[at] == indices[i]
        out[i] = sorted_rows[at] if found else _rare_row(fields, i, rare)


_lookups: dict[str, RowLookup] = {}
_MOST_LOOKUPS = 2


def row_lookup(vocabulary: Vocabulary, key: str) -> RowLookup:
    """The vocabulary's look-up, built once per process and `key` (its fingerprint); the latest two are kept."""
    lookup = _lookups.get(key)
    if lookup is None:
        lookup = RowLookup(vocabulary)
        while len(_lookups) >= _MOST_LOOKUPS:
            _lookups.pop(next(iter(_lookups)), None)
        _lookups[key] = lookup
    return lookup
