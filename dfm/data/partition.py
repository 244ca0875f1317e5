"""The rows that training and scoring walk: a checked, compacted sparse matrix with labels and weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.vocabulary import ABSENT, RowLookup, Vocabulary
from dfm.errors import DataError
from dfm.storage.arrays import read_arrays, read_only, write_arrays

_EMPTY_FLOATS = np.zeros(0, np.float32)


def _no_ids() -> NDArray[np.uint64]:
    return np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True)
class EntrySums:
    """Entries of some rows: how many, and Σ x² over them, which is what the rows' own steps move their scores by."""

    n_rows: int = 0
    n_entries: int = 0
    squares: float = 0.0

    def __add__(self, other: EntrySums) -> EntrySums:
        return EntrySums(self.n_rows + other.n_rows, self.n_entries + other.n_entries, self.squares + other.squares)


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
    group_ids: NDArray[np.uint64] = field(default_factory=_no_ids)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def entries(self) -> EntrySums:
        """Sums over all entries."""
        n_entries = len(self.indices)
        squares = float(np.square(self.values, dtype=np.float64).sum()) if self.values.size else float(n_entries)
        return EntrySums(self.n_rows, n_entries, squares)

    @property
    def uniform(self) -> HashedRows:
        """The rows as read-only arrays, so that compiled functions see one set of types."""
        return HashedRows(*(read_only(getattr(self, entry.name)) for entry in fields(self)))

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


@dataclass(frozen=True, slots=True)
class SparsePartition:
    """Rows of one replica's slice (or of a validation shard), with the features that they touch.

    indptr int64[n_rows + 1]; indices uint32[n_entries], positions in `features`; rows before `n_implicit` have value 1
    in every entry and store none, the rest store `values` float32[n_entries - indptr[n_implicit]]; labels
    float32[n_rows]; weights float32[n_rows], or empty where all are 1; features uint32[n_features], rows of the
    parameter table, ascending; the first `n_factored` of them own factors; fields uint16[n_features], the field of each
    feature, or empty where nobody asks for it; ends uint16[n_rows * n_groups], where in a row the entries of each group
    of fields end, or empty where they do not stand group by group; group_ids uint64[n_rows], as in the hashed rows.

    No index stands twice in a row: values of colliding entries were summed, since a feature has no pair with itself.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    features: NDArray[np.uint32]
    n_factored: int
    n_implicit: int
    fields: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    ends: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    group_ids: NDArray[np.uint64] = field(default_factory=_no_ids)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def total_weight(self) -> float:
        """Sum of the rows' weights."""
        return float(self.weights.sum(dtype=np.float64)) if self.weights.size else float(self.n_rows)

    def occurrences(self) -> NDArray[np.int64]:
        """Occurrences of each feature in the rows: int64[n_features]."""
        return np.bincount(self.indices, minlength=len(self.features))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, in memory or mapped."""
        return sum(array.nbytes for array in self._arrays().values())

    def __sizeof__(self) -> int:
        """Bytes that count as memory: a mapped file does not, the system can drop its pages at any time."""
        return 1000 + sum(array.nbytes for array in self._arrays().values() if not _is_mapped(array))

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if isinstance(getattr(self, entry.name), np.ndarray)
        }

    def save(self, path: Path) -> None:
        """Write to one file, atomically."""
        write_arrays(path, self._arrays(), {"n_factored": str(self.n_factored), "n_implicit": str(self.n_implicit)})

    @classmethod
    def open(cls, path: Path) -> SparsePartition:
        """Map a saved partition; its arrays are read-only."""
        arrays, metadata = read_arrays(path)
        return cls(**arrays, n_factored=int(metadata["n_factored"]), n_implicit=int(metadata["n_implicit"]))

    def check(self) -> None:
        """DataError unless every offset and index is in range; training reads memory by them without looking."""
        n_rows, n_entries = self.n_rows, len(self.indices)
        sound = (
            len(self.indptr) == n_rows + 1
            and self.indptr[0] == 0
            and self.indptr[-1] == n_entries
            and bool(np.all(self.indptr[1:] >= self.indptr[:-1]))
            and 0 <= self.n_implicit <= n_rows
            and len(self.values) == n_entries - self.indptr[self.n_implicit]
            and (n_entries == 0 or int(self.indices.max()) < len(self.features))
            and len(self.weights) in (0, n_rows)
            and len(self.group_ids) in (0, n_rows)
            and 0 <= self.n_factored <= len(self.features)
            and len(self.fields) in (0, len(self.features))
        )
        if not sound:
            raise DataError(
                "a partition's offsets or indices are out of range; delete the partition cache and run again"
            )


def _is_mapped(array: NDArray[np.generic]) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return isinstance(base, memoryview) and isinstance(base.obj, np.memmap)


@compiled
def _mark(rows, touched):  # type: ignore[no-untyped-def]
    """Sets touched[row] for every entry that has a row, in place."""
    for i in range(rows.size):
        if rows[i] != ABSENT:
            touched[rows[i]] = True


@compiled
def _needs_values(indptr, local, has_values, stamp, explicit):  # type: ignore[no-untyped-def]
    """explicit[row] = the row has stored values or an index twice; returns the number of entries that will be kept.

    local uint32[n_entries]: local ids, ABSENT where dropped. stamp int64[n_features] starts at -1, is written.
    """
    kept = 0
    for row in range(indptr.size - 1):
        twice = False
        for i in range(indptr[row], indptr[row + 1]):
            feature = local[i]
            if feature == ABSENT:
                continue
            if stamp[feature] == row:
                twice = True
            else:
                stamp[feature] = row
                kept += 1
        explicit[row] = twice or has_values
    return kept


@compiled
def _write_rows(order, n_implicit, source, target, stamp):  # type: ignore[no-untyped-def]
    """Copies rows in `order` int64[n_rows]; entries that share an index are summed. Writes the arrays of `target`.

    source: indptr, local, values, labels, weights; target: indptr, indices, values, labels, weights.
    stamp int64[n_features]: where in the target an index stands; it is valid only beyond the row's first entry.
    """
    indptr, local, values, labels, weights = source
    out_indptr, out_indices, out_values, out_labels, out_weights = target
    at = 0
    out_indptr[0] = 0
    implicit_entries = 0
    for position in range(order.size):
        row = order[position]
        if position == n_implicit:
            implicit_entries = at
        first = at
        for i in range(indptr[row], indptr[row + 1]):
            feature = local[i]
            if feature == ABSENT:
                continue
            if position < n_implicit:
                out_indices[at] = feature
                at += 1
                continue
            value = values[i] if values.size else np.float32(1.0)
            before = stamp[feature]
            if before >= first and before < at and out_indices[before] == feature:
                out_values[before - implicit_entries] += value
            else:
                stamp[feature] = at
                out_indices[at] = feature
                out_values[at - implicit_entries] = value
                at += 1
        out_indptr[position + 1] = at
        out_labels[position] = labels[row]
        if weights.size:
            out_weights[position] = weights[row]


def build_partition(
    rows: HashedRows | Sequence[HashedRows],
    vocabulary: Vocabulary,
    lookup: RowLookup,
    order: NDArray[np.int64] | None = None,
) -> SparsePartition:
    """Look rows up in the vocabulary, keep the features that they touch, shuffle them into `order` (int64[n_rows]).

    rows: whole or in parts. Rows that need stored values come after those that do not. Entries of features that the
    vocabulary lacks are left out.
    """
    parts = [part.uniform for part in ([rows] if isinstance(rows, HashedRows) else rows)]
    table_rows = np.empty(sum(len(part.indices) for part in parts), np.uint32)
    starts = np.cumsum([0] + [len(part.indices) for part in parts])
    for part, start, stop in zip(parts, starts, starts[1:], strict=False):
        lookup.rows(part.indices, part.fields, table_rows[start:stop])
    rows = concatenate_rows(parts, apart=("indices",)).uniform
    touched = np.zeros(vocabulary.n_features, np.bool_)
    _mark(table_rows, touched)
    features = np.flatnonzero(touched).astype(np.uint32)
    local_ids = np.zeros(vocabulary.n_features, np.uint32)
    local_ids[features] = np.arange(len(features), dtype=np.uint32)
    partition = _compact(rows, _localise(table_rows, local_ids), features, vocabulary.n_factored, order)
    return replace(partition, fields=vocabulary.fields[features])


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
            _EMPTY_FLOATS,
            rows.labels,
            rows.weights,
            table_rows[:0],
            0,
            rows.n_rows,
            lookup.fields,
        )
    return replace(_with_values(rows, table_rows), fields=lookup.fields)


_LONGEST_BY_GROUP = np.iinfo(np.uint16).max
"""Entries of a row up to which `ends` can count."""


def by_group(partition: SparsePartition, groups: Sequence[int]) -> SparsePartition:
    """The partition with the entries of each row group by group; in a group they stay in their order.

    groups: the group of each field; none: the partition as it is. Kernels then need not look the group of each feature
    up, and rows that come so may be walked group by group: see the decision record on groups of fields.
    """
    if not groups or int(np.diff(partition.indptr).max(initial=0)) > _LONGEST_BY_GROUP:
        return partition
    n_groups = 1 + max(groups)
    of_feature = np.array(groups, np.uint16)[partition.fields]
    indices, values = np.empty_like(partition.indices), np.empty_like(partition.values)
    ends = np.zeros(partition.n_rows * n_groups, np.uint16)
    _write_by_group(
        (partition.indptr, partition.indices, partition.values, partition.n_implicit),
        of_feature,
        (indices, values, ends.reshape(-1, n_groups)),
    )
    return replace(partition, indices=indices, values=values, ends=ends)


@compiled
def _write_by_group(source, group_of, target):  # type: ignore[no-untyped-def]
    """Copies entries, group by group within each row. source: indptr, indices, values, n_implicit; group_of
    uint16[n_features]; target: indices, values, and the ends of the groups, uint16[n_rows, n_groups] of zeros.
    """
    indptr, indices, values, n_implicit = source
    out_indices, out_values, ends = target
    places = np.zeros(ends.shape[1] + 1, np.int64)
    skipped = indptr[n_implicit]
    for row in range(ends.shape[0]):
        start, stop = indptr[row], indptr[row + 1]
        places[:] = 0
        for i in range(start, stop):
            places[group_of[indices[i]] + 1] += 1
        for group in range(ends.shape[1]):
            places[group + 1] += places[group]
            ends[row, group] = places[group + 1]
        for i in range(start, stop):
            group = group_of[indices[i]]
            at = start + places[group]
            places[group] += 1
            out_indices[at] = indices[i]
            if row >= n_implicit:
                out_values[at - skipped] = values[i - skipped]


_LONG_ROW = 256
"""Entries from which sorting a row finds its duplicates faster than comparing all pairs."""


def _long_rows(indptr: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.diff(indptr) > _LONG_ROW)


def _has_duplicates(indptr: NDArray[np.int64], indices: NDArray[np.uint32]) -> bool:
    """Whether an index stands twice in any row. Sorting is NumPy's: it takes Numba seconds to compile its own."""
    return bool(_short_row_has_duplicates(read_only(indptr), read_only(indices))) or any(
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


@compiled
def _short_row_has_duplicates(indptr, indices):  # type: ignore[no-untyped-def]
    for row in range(indptr.size - 1):
        if indptr[row + 1] - indptr[row] > _LONG_ROW:
            continue
        for i in range(indptr[row], indptr[row + 1]):
            for j in range(indptr[row], i):
                if indices[i] == indices[j]:
                    return True
    return False


@compiled
def _sum_duplicates(order, rows, out):  # type: ignore[no-untyped-def]
    """Copies rows in order, summing the values of entries that share an index; writes the arrays of `out`.

    order: of `_visiting_order`; rows, out: indptr, indices, values.
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
            j = max(first, at - 1) if is_long else first
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
    _sum_duplicates(_visiting_order(rows.indptr, table_rows), joined, (indptr, indices, values))
    n_entries = int(indptr[-1])
    return SparsePartition(
        indptr, indices[:n_entries], values[:n_entries], rows.labels, rows.weights, indices[:0], 0, 0
    )


@compiled
def _localise(table_rows, local_ids):  # type: ignore[no-untyped-def]
    """Local id of every entry, ABSENT where it has no row; overwrites and returns `table_rows` uint32[n_entries]."""
    for i in range(table_rows.size):
        if table_rows[i] != ABSENT:
            table_rows[i] = local_ids[table_rows[i]]
    return table_rows


def _compact(
    rows: HashedRows,
    local: NDArray[np.uint32],
    features: NDArray[np.uint32],
    n_factored: int,
    order: NDArray[np.int64] | None,
) -> SparsePartition:
    n_rows = rows.n_rows
    stamp = np.full(len(features), -1, np.int64)
    explicit = np.zeros(n_rows, np.bool_)
    n_entries = _needs_values(rows.indptr, local, rows.values.size > 0, stamp, explicit)
    if order is None:
        order = np.arange(n_rows, dtype=np.int64)
    order = np.concatenate([order[~explicit[order]], order[explicit[order]]])
    n_implicit = n_rows - int(np.count_nonzero(explicit))
    target = (
        np.empty(n_rows + 1, np.int64),
        np.empty(n_entries, np.uint32),
        np.empty(n_entries if n_implicit < n_rows else 0, np.float32),
        np.empty(n_rows, np.float32),
        np.empty(len(rows.weights), np.float32),
    )
    stamp[:] = -1
    _write_rows(order, n_implicit, (rows.indptr, local, rows.values, rows.labels, rows.weights), target, stamp)
    indptr, indices, values, labels, weights = target
    return SparsePartition(
        indptr,
        indices,
        values[: n_entries - int(indptr[n_implicit])].copy(),
        labels,
        weights,
        features,
        int(np.searchsorted(features, n_factored)),
        n_implicit,
        group_ids=rows.group_ids[order] if rows.group_ids.size else rows.group_ids,
    )
