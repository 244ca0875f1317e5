"""Rows with hashed features, before the vocabulary is known: what reading makes and partitions are made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.errors import DataError
from dfm.storage.arrays import read_only


def no_ids() -> NDArray[np.uint64]:
    """No hashes of groups."""
    return np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True)
class EntrySums:
    """Rows that weigh anything, how many entries they have, and Σ x² over these, which is what the rows' own steps move
    their scores by. n_counted: all rows, whose features a vocabulary counts.
    """

    n_rows: int = 0
    n_entries: int = 0
    squares: float = 0.0
    n_counted: int = 0

    def __add__(self, other: EntrySums) -> EntrySums:
        return EntrySums(
            self.n_rows + other.n_rows,
            self.n_entries + other.n_entries,
            self.squares + other.squares,
            self.n_counted + other.n_counted,
        )


@dataclass(frozen=True, slots=True)
class HashedRows:
    """Rows with hashed feature indices, before the vocabulary is known.

    indptr int64[n_rows + 1]; indices uint32[n_entries] in [0, 2**hash_bits); fields uint16[n_entries], or empty where
    every row has one entry per field, in field order; values float32[n_entries], or empty where all are 1;
    labels float32[n_rows]; weights float32[n_rows], or empty where all are 1; group_ids uint64[n_rows], hashes of
    the rows' groups (schema.group), or empty where nobody asks for them.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.uint32]
    fields: NDArray[np.uint16]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    group_ids: NDArray[np.uint64] = field(default_factory=no_ids)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def entries(self) -> EntrySums:
        """Sums over the entries of rows that weigh anything."""
        n_rows, n_entries, values, weigh = self.n_rows, len(self.indices), self.values, self.weights > 0
        if not weigh.all():
            n_each = np.diff(self.indptr)
            n_rows, n_entries = int(weigh.sum()), int(n_each[weigh].sum())
            values = values[np.repeat(weigh, n_each)] if values.size else values
        squares = float(np.square(values, dtype=np.float64).sum()) if self.values.size else float(n_entries)
        return EntrySums(n_rows, n_entries, squares, self.n_rows)

    @property
    def uniform(self) -> HashedRows:
        """The rows as read-only arrays, so that compiled functions see one set of types."""
        return HashedRows(*(read_only(getattr(self, entry.name)) for entry in fields(self)))

    @classmethod
    def side_by_side(
        cls,
        indices: NDArray[np.uint32],
        n_fields: int,
        labels: NDArray[np.float32],
        weights: NDArray[np.float32],
        group_ids: NDArray[np.uint64],
    ) -> HashedRows:
        """Rows of one entry of value 1 a field, in field order: indices uint32[n_rows * n_fields], row by row."""
        starts = np.arange(len(labels) + 1, dtype=np.int64) * n_fields
        return cls(starts, indices, np.zeros(0, np.uint16), np.zeros(0, np.float32), labels, weights, group_ids)

    def hashed(self) -> HashedRows:
        """The rows themselves."""
        return self

    def check(self, hash_bits: int) -> None:
        """DataError where an index is out of range: look-ups read memory by it without looking."""
        if self.indices.size and int(self.indices.max()) >> hash_bits:
            raise DataError("indices of hashed rows are out of range")

    def slice(self, start: int, stop: int) -> HashedRows:
        """Views of rows [start, stop)."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        return HashedRows(
            self.indptr[start : stop + 1] - first,
            self.indices[first:last],
            self.fields[first:last],
            self.values[first:last],
            self.labels[start:stop],
            self.weights[start:stop],
            self.group_ids[start:stop],
        )


def concatenate_rows(parts: Sequence[HashedRows], apart: Collection[str] = ()) -> HashedRows:
    """All rows of the parts, in order. apart: names of arrays that others join; those of the first part stay."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [int(part.indptr[-1]) for part in parts])
    has_values = any(part.values.size for part in parts)
    has_weights = any(part.weights.size for part in parts)
    of_each: dict[str, Callable[[HashedRows], NDArray[Any]]] = {
        "indices": lambda part: part.indices,
        "fields": lambda part: part.fields,
        "values": lambda part: or_ones(part.values, len(part.indices), has_values),
        "labels": lambda part: part.labels,
        "weights": lambda part: or_ones(part.weights, part.n_rows, has_weights),
        "group_ids": lambda part: part.group_ids,
    }
    joined = {
        name: np.concatenate([array(part) for part in parts]) for name, array in of_each.items() if name not in apart
    }
    if "indptr" not in apart:
        offsets = [part.indptr[1:] + start for part, start in zip(parts, starts, strict=False)]
        joined["indptr"] = np.concatenate([np.zeros(1, np.int64), *offsets])
    return replace(parts[0], **joined)


def or_ones(array: NDArray[np.float32], length: int, wanted: bool) -> NDArray[np.float32]:
    """The array; float32[length] of ones where it is empty and wanted."""
    return np.ones(length, np.float32) if wanted and not array.size else array


@compiled
def _copy_rows(order, indptr, source, out_indptr, out):  # type: ignore[no-untyped-def]
    """out's rows = source's rows in `order`; writes `out_indptr` and `out`."""
    at = 0
    out_indptr[0] = 0
    for position in range(order.size):
        row = order[position]
        for i in range(indptr[row], indptr[row + 1]):
            out[at] = source[i]
            at += 1
        out_indptr[position + 1] = at


@compiled
def _scatter_rows(source, positions, target):  # type: ignore[no-untyped-def]
    """target[positions[i]] = source[i], of matrices."""
    for row in range(source.shape[0]):
        position = positions[row]
        for column in range(source.shape[1]):
            target[position, column] = source[row, column]


def arranged(parts: Sequence[HashedRows], order: NDArray[np.int64]) -> HashedRows:
    """All rows of some parts, in the order of a permutation int64[n_rows] of them.

    Rows of one entry a field are read once, one after the other: in the order of a deal into slices they then go to as
    many places at a time as there are slices.
    """
    n_fields = {len(part.indices) // part.n_rows for part in parts if part.n_rows}
    if len(n_fields) != 1 or any(part.fields.size for part in parts):
        return take_rows(concatenate_rows(parts), order)
    positions = np.empty(len(order), np.int64)
    positions[order] = np.arange(len(order))
    rows = concatenate_rows(parts, apart=("indptr", "indices", "values"))
    has_values = any(part.values.size for part in parts)
    n_columns, starts = n_fields.pop(), np.cumsum([0] + [part.n_rows for part in parts])

    def scattered(arrays: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
        out = np.empty((len(order), n_columns), dtype)
        for array, start, stop in zip(arrays, starts, starts[1:], strict=False):
            _scatter_rows(array.reshape(-1, n_columns), positions[start:stop], out)
        return out.reshape(-1)

    return HashedRows(
        np.arange(len(order) + 1, dtype=np.int64) * n_columns,
        scattered([part.indices for part in parts], np.uint32),
        rows.fields,
        scattered([or_ones(p.values, len(p.indices), True) for p in parts], np.float32)
        if has_values
        else np.zeros(0, np.float32),
        rows.labels[order],
        rows.weights[order] if rows.weights.size else rows.weights,
        rows.group_ids[order] if rows.group_ids.size else rows.group_ids,
    )


def take_rows(rows: HashedRows, order: NDArray[np.int64]) -> HashedRows:
    """The rows numbered by `order` int64[n], in that order."""
    lengths = np.diff(rows.indptr)[order]
    n_entries = int(lengths.sum())
    indptr = np.zeros(len(order) + 1, np.int64)

    def taken(source: NDArray[Any]) -> NDArray[Any]:
        if not source.size:
            return source
        out = np.empty(n_entries, source.dtype)
        _copy_rows(order, rows.indptr, source, indptr, out)
        return out

    indices, entry_fields, values = taken(rows.indices), taken(rows.fields), taken(rows.values)
    weights = rows.weights[order] if rows.weights.size else rows.weights
    if not rows.indices.size:
        indptr[1:] = np.cumsum(lengths)
    group_ids = rows.group_ids[order] if rows.group_ids.size else rows.group_ids
    return HashedRows(indptr, indices, entry_fields, values, rows.labels[order], weights, group_ids)


def interleaved(columns: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """columns[j][i] at position i * n_columns + j."""
    if not columns:
        return np.zeros(0, dtype)
    stacked = np.stack(columns, dtype=dtype)
    out = np.empty((stacked.shape[1], stacked.shape[0]), dtype)
    _transpose(stacked, out)
    return out.reshape(-1)


@compiled
def _transpose(source, target):  # type: ignore[no-untyped-def]
    """target[i, j] = source[j, i], in tiles of 16 rows: one cache line of every source column at a time."""
    n_columns, n_rows = source.shape
    for start in range(0, n_rows, 16):
        stop = min(start + 16, n_rows)
        for j in range(n_columns):
            for i in range(start, stop):
                target[i, j] = source[j, i]
