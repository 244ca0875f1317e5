"""Rows to be scored: their features are rows of the whole parameter table, and no feature stands twice in a row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.hashed_rows import HashedRows
from dfm.data.partition import SparsePartition
from dfm.data.row_lookup import RowLookup
from dfm.data.vocabulary import ABSENT
from dfm.storage.arrays import read_only


def scoring_partition(rows: HashedRows, lookup: RowLookup) -> SparsePartition:
    """Rows whose indices are rows of the whole parameter table, in the order given.

    `features` is left empty, `fields` are those of the vocabulary.
    """
    table_rows = lookup.rows(rows.indices, rows.fields)
    keep = table_rows != ABSENT
    if rows.values.size == 0 and bool(keep.all()) and not _has_duplicates(rows.indptr, table_rows):
        return SparsePartition(
            rows.indptr,
            table_rows,
            np.zeros(0, np.float32),
            rows.labels,
            rows.weights,
            table_rows[:0],
            0,
            rows.n_rows,
            lookup.fields,
        )
    return replace(_with_values(rows, table_rows), fields=lookup.fields)


_LONG_ROW = 256
"""Entries from which sorting a row finds its duplicates faster than comparing all pairs."""


def _long_rows(indptr: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.diff(indptr) > _LONG_ROW)


def _has_duplicates(indptr: NDArray[np.int64], indices: NDArray[np.uint32]) -> bool:
    """Whether an index stands twice in any row. Sorting is NumPy's: it takes Numba seconds to compile its own."""
    return bool(_short_row_has_duplicates(read_only(indptr), read_only(indices), *_places())) or any(
        len(np.unique(row)) < len(row) for row in (indices[indptr[i] : indptr[i + 1]] for i in _long_rows(indptr))
    )


def _visiting_order(indptr: NDArray[np.int64], indices: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The order int64[n_entries] in which entries are united: those of long rows by index; empty without such rows."""
    long_rows = _long_rows(indptr)
    order = np.arange(len(indices) if len(long_rows) else 0)
    for row in long_rows:
        start, stop = indptr[row], indptr[row + 1]
        order[start:stop] = start + np.argsort(indices[start:stop], kind="stable")
    return order


_PLACES = 2048
"""Places of a table of the entries of a row, by the last bits of their index: few rows have two of one place."""


def _places() -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """For each place the last row that had an entry there, and the entry: made by NumPy, for the same reason."""
    return np.full(_PLACES, -1, np.int64), np.empty(_PLACES, np.uint32)


@compiled
def _short_row_has_duplicates(indptr, indices, last_row, entry):  # type: ignore[no-untyped-def]
    """Whether an index stands twice in a row that is not long. last_row, entry: of `_places`."""
    for row in range(indptr.size - 1):
        start, stop = indptr[row], indptr[row + 1]
        if stop - start > _LONG_ROW:
            continue
        for i in range(start, stop):
            index = indices[i]
            place = index & np.uint32(_PLACES - 1)
            if last_row[place] != row:
                last_row[place] = row
                entry[place] = index
                continue
            if entry[place] == index:
                return True
            for j in range(start, i):
                if indices[j] == index:
                    return True
    return False


@compiled
def _sum_duplicates(order, last_row, rows, out):  # type: ignore[no-untyped-def]
    """Copies rows in order, summing the values of entries that share an index; writes the arrays of `out`.

    order: of `_visiting_order`; last_row: of `_places`; rows, out: indptr, indices, values.
    """
    indptr, indices, values = rows
    out_indptr, out_indices, out_values = out
    at = 0
    out_indptr[0] = 0
    for row in range(indptr.size - 1):
        first, start, stop = at, indptr[row], indptr[row + 1]
        is_long = stop - start > _LONG_ROW
        for position in range(start, stop):
            i = order[position] if order.size else position
            if indices[i] == ABSENT:
                continue
            value = values[i] if values.size else np.float32(1.0)
            place = indices[i] & np.uint32(_PLACES - 1)
            is_first = last_row[place] != row
            last_row[place] = row
            j = at if is_first else max(first, at - 1) if is_long else first
            while j < at and out_indices[j] != indices[i]:
                j += 1
            if j < at:
                out_values[j] += value
            else:
                out_indices[at] = indices[i]
                out_values[at] = value
                at += 1
        out_indptr[row + 1] = at


def _with_values(rows: HashedRows, table_rows: NDArray[np.uint32]) -> SparsePartition:
    indptr = np.empty_like(rows.indptr)
    indices, values = np.empty_like(table_rows), np.empty(len(table_rows), np.float32)
    joined = read_only(rows.indptr), read_only(table_rows), read_only(rows.values)
    _sum_duplicates(_visiting_order(rows.indptr, table_rows), _places()[0], joined, (indptr, indices, values))
    n_entries = int(indptr[-1])
    return SparsePartition(
        indptr, indices[:n_entries], values[:n_entries], rows.labels, rows.weights, indices[:0], 0, 0
    )
