"""Partitions built of hashed rows: local ids, the order of rows, colliding entries summed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.bits import trailing_zeros
from dfm.data.coded_rows import CodedRows, Run, without_codes
from dfm.data.hashed_rows import HashedRows, concatenate_rows
from dfm.data.partition import SparsePartition
from dfm.data.row_lookup import RowLookup
from dfm.data.vocabulary import ABSENT, Vocabulary
from dfm.storage.arrays import read_only


@compiled
def _mark(rows, touched):  # type: ignore[no-untyped-def]
    """Sets touched[row] for every entry that has a row, in place."""
    for i in range(rows.size):
        if rows[i] != ABSENT:
            touched[rows[i]] = True


_WHOLE, _WITH_GAPS, _EXPLICIT = 0, 1, 2
"""Kinds of rows: all entries are kept and of value 1; some are left out; values are stored."""


@compiled
def _localise(indptr, table_rows, has_values, local_ids, last, kinds):  # type: ignore[no-untyped-def]
    """Turns rows of the parameter table into local ids, in place, and says of each row which kind it is.

    table_rows uint32[n_entries], ABSENT where dropped; local_ids uint32[n_table_rows]; last uint32[n_features] of zeros
    becomes 1 + the last row that has a feature; writes `kinds` uint8[n_rows]. Returns how many entries will be kept.
    """
    kept = 0
    for row in range(indptr.size - 1):
        twice, gaps, stamp = has_values, False, np.uint32(row + 1)
        for i in range(indptr[row], indptr[row + 1]):
            if table_rows[i] == ABSENT:
                gaps = True
                continue
            feature = local_ids[table_rows[i]]
            table_rows[i] = feature
            if last[feature] == stamp:
                twice = True
            else:
                last[feature] = stamp
                kept += 1
        kinds[row] = _EXPLICIT if twice else _WITH_GAPS if gaps else _WHOLE
    return kept


@compiled
def _write_implicit(order, kinds, indptr, local, out_indptr, out_indices):  # type: ignore[no-untyped-def]
    """Copies rows in `order` int64[at most n_rows] without the entries that are dropped; writes both outputs."""
    at = np.uint64(0)  # what is unsigned counts from no end, so that rows are copied in vectors
    out_indptr[0] = 0
    for position in range(order.size):
        row = order[position]
        start = np.uint64(indptr[row])
        length = np.uint64(indptr[row + 1]) - start
        if kinds[row] == _WHOLE:
            for i in range(length):
                out_indices[at + i] = local[start + i]
            at += length
        else:
            for i in range(length):
                if local[start + i] != ABSENT:
                    out_indices[at] = local[start + i]
                    at += np.uint64(1)
        out_indptr[position + 1] = at


@compiled
def _write_explicit(order, n_implicit, source, target, stamp):  # type: ignore[no-untyped-def]
    """The same of the rows from `n_implicit` on, with their values; entries that share an index are summed.

    source: indptr, local, values; target: indptr, of which the first n_implicit + 1 are written, indices, values.
    stamp int64[n_features] of -1: where in the target an index stands; it is valid only beyond the row's first entry.
    """
    indptr, local, values = source
    out_indptr, out_indices, out_values = target
    at = implicit_entries = out_indptr[n_implicit]
    for position in range(n_implicit, order.size):
        row, first = order[position], at
        for i in range(indptr[row], indptr[row + 1]):
            feature = local[i]
            if feature == ABSENT:
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


@compiled
def _number(touched, shared, features, local_ids):  # type: ignore[no-untyped-def]
    """Numbers the rows of the parameter table that are touched: writes those rows to `features`, and their numbers to
    `local_ids`, with a mark where they are shared; of rows that are not touched anything. Returns how many are.
    """
    n = np.uint32(0)
    for row in range(np.uint64(touched.size)):
        features[n] = row
        local_ids[row] = n | np.uint32(shared[row]) << np.uint32(31)
        n += np.uint32(touched[row])
    return n


class Room:
    """Memory for the entries of partitions that are built one after the other, each where the one before was: whoever
    gives it to another has no use for that any more. Memory that is new costs as much as writing all entries twice.
    """

    def __init__(self) -> None:
        self._words = np.empty(0, np.uint32)

    def of(self, n_words: int) -> NDArray[np.uint32]:
        """So many words, of any content."""
        if n_words > len(self._words):
            self._words = np.empty(n_words + n_words // 16, np.uint32)
        return self._words[:n_words]


def build_partition(
    rows: HashedRows | CodedRows | Sequence[HashedRows | CodedRows],
    vocabulary: Vocabulary,
    lookup: RowLookup,
    order: NDArray[np.int64] | None = None,
    room: Room | None = None,
) -> SparsePartition:
    """Look rows up in the vocabulary, keep the features that they touch, shuffle them into `order` (int64[n_rows]).

    rows: whole or in parts. Rows that need stored values come after those that do not. Entries of features that the
    vocabulary lacks are left out. room: where the indices may be.
    """
    parts = [rows] if isinstance(rows, HashedRows | CodedRows) else list(rows)
    parts = [part for part in parts if part.n_rows] or parts[:1]
    coded = _coded_parts(parts, lookup)
    if coded:
        partition = _of_codes(coded, vocabulary, lookup, order, room)
    else:
        united, local = _hashed_ids([part.hashed().uniform for part in parts], lookup)
        partition = _compact(united, local, vocabulary, order)
    return replace(partition, fields=vocabulary.fields[partition.features])


@dataclass(frozen=True, slots=True)
class _LocalIds:
    """The entries of rows by the features that they touch, uint32[n_features], ascending rows of the parameter table:
    ids uint32[n_entries], ABSENT where an entry is dropped; kinds uint8[n_rows]; how many entries will be kept.
    """

    features: NDArray[np.uint32]
    ids: NDArray[np.uint32]
    kinds: NDArray[np.uint8]
    n_kept: int


def _hashed_ids(parts: Sequence[HashedRows], lookup: RowLookup) -> tuple[HashedRows, _LocalIds]:
    """All rows, whose indices stay apart, and the features of their entries."""
    table_rows = np.empty(sum(len(part.indices) for part in parts), np.uint32)
    starts = np.cumsum([0] + [len(part.indices) for part in parts])
    for part, start, stop in zip(parts, starts, starts[1:], strict=False):
        lookup.rows(part.indices, part.fields, table_rows[start:stop])
    rows = concatenate_rows(parts, apart=("indices",)).uniform
    touched, shared = np.zeros((2, lookup.n_features), np.bool_)
    _mark(table_rows, touched)
    features, local_ids = np.empty(lookup.n_features, np.uint32), np.empty(lookup.n_features, np.uint32)
    features = features[: _number(touched, shared, features, local_ids)].copy()
    kinds, last = np.empty(rows.n_rows, np.uint8), np.zeros(len(features), np.uint32)
    n_kept = _localise(rows.indptr, table_rows, rows.values.size > 0, local_ids, last, kinds)
    return rows, _LocalIds(features, table_rows, kinds, n_kept)


# ---------------------------------------------------------------------------------------------- coded rows ----

_SHARED = np.uint32(1 << 31)
"""Mark of the id of a feature that more than one field may have: only those can stand twice in a row."""


def _coded_parts(parts: Sequence[HashedRows | CodedRows], lookup: RowLookup) -> list[CodedRows]:
    """The parts, all of them as coded rows, of equally many fields; none where no part has codes, or one cannot be
    brought into that form, or features are too many for a mark beside their ids.
    """
    n_fields = {part.n_fields for part in parts if isinstance(part, CodedRows)}
    if len(n_fields) != 1 or lookup.n_features >= int(_SHARED):
        return []
    width = n_fields.pop()
    found = [part if isinstance(part, CodedRows) else without_codes(part, width) for part in parts]
    return [] if any(part is None for part in found) else [part for part in found if part is not None]


def _of_codes(
    parts: Sequence[CodedRows],
    vocabulary: Vocabulary,
    lookup: RowLookup,
    order: NDArray[np.int64] | None,
    room: Room | None,
) -> SparsePartition:
    """The partition of coded rows, whose ids are written where they stand in the order, and stay there."""
    n_fields, n_rows = parts[0].n_fields, sum(part.n_rows for part in parts)
    order = np.arange(n_rows) if order is None else order
    words = room.of(n_rows * n_fields) if room else np.empty(n_rows * n_fields, np.uint32)
    local = _coded_ids(parts, lookup, order, words)
    ids, kinds, indptr = local.ids, local.kinds, np.arange(n_rows + 1) * n_fields
    explicit, values = kinds == _EXPLICIT, np.zeros(0, np.float32)
    n_implicit = n_rows - int(np.count_nonzero(explicit))
    if n_implicit < n_rows or local.n_kept < len(ids):
        aside = ids.reshape(n_rows, n_fields)[explicit]
        values = np.empty(local.n_kept - _close_gaps(kinds, n_fields, ids, indptr), np.float32)
        if len(aside):
            source = np.arange(len(aside) + 1) * n_fields, aside.reshape(-1), np.zeros(0, np.float32)
            stamp = np.full(len(local.features), -1, np.int64)
            _write_explicit(np.arange(n_rows) - n_implicit, n_implicit, source, (indptr, ids, values), stamp)
        order = np.concatenate([order[~explicit], order[explicit]])
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ("labels", "weights", "group_ids")}
    joined = {name: array[order] if array.size else array for name, array in joined.items()}
    n_factored = int(np.searchsorted(local.features, vocabulary.n_factored))
    indices = ids[: local.n_kept]
    return SparsePartition(
        indptr, indices, values, features=local.features, n_factored=n_factored, n_implicit=n_implicit, **joined
    )


def _coded_ids(
    parts: Sequence[CodedRows], lookup: RowLookup, order: NDArray[np.int64], words: NDArray[np.uint32]
) -> _LocalIds:
    """The entries of coded rows, in their order, written to `words` uint32[n_entries]."""
    n_features, n_fields, n_rows = lookup.n_features, parts[0].n_fields, len(order)
    touched, shared = np.zeros(n_features + 1, np.bool_), np.zeros(n_features + 1, np.bool_)
    runs = [
        (_RowsOfRun.of(part, run, lookup), slice(at + run.start, at + run.stop))
        for part, at in zip(parts, itertools.accumulate((part.n_rows for part in parts), initial=0), strict=False)
        for run in part.runs()
    ]
    for part in parts:
        shared[lookup.rows_of_codes(part).shared] = True
    for run, _ in runs:
        _touch(run.coded, run.plain, touched, shared)
    features, local_ids = np.empty(n_features, np.uint32), np.empty(n_features + 1, np.uint32)
    local_ids[n_features] = ABSENT
    features = features[: _number(touched[:n_features], shared, features, local_ids)].copy()
    ids, places = words.reshape(n_rows, n_fields), np.empty(n_rows, np.int64)
    places[order] = np.arange(n_rows)
    for run, span in runs:
        _spread(run.coded, _near(run.coded, local_ids), run.plain, local_ids, places[span], ids)
    kinds, last = np.empty(n_rows, np.uint8), np.zeros(len(features), np.uint32)
    n_kept = _settle(ids, last, kinds)
    return _LocalIds(features, ids.reshape(-1), kinds, n_kept)


@compiled
def _close_gaps(kinds, n_fields, ids, indptr):  # type: ignore[no-untyped-def]
    """Moves rows of implicit values together, in place, over those of others and over what is dropped.

    kinds uint8[n_rows]; ids uint32[n_rows * n_fields]; writes the first of indptr int64[n_rows + 1]. Returns how many
    entries those rows have.
    """
    at, position, width = np.uint64(0), 0, np.uint64(n_fields)
    for row in range(kinds.size):
        start = np.uint64(row) * width
        if kinds[row] == _EXPLICIT:
            continue
        if kinds[row] == _WHOLE:
            if at != start:
                for i in range(width):
                    ids[at + i] = ids[start + i]
            at += width
        else:
            for i in range(width):
                if ids[start + i] != ABSENT:
                    ids[at] = ids[start + i]
                    at += np.uint64(1)
        position += 1
        indptr[position] = at
    return at


_Coded = tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint16]]


class _RowsOfRun(NamedTuple):
    """The entries of a run of rows by rows of the parameter table, the number of features where there is none.

    coded: codes uint16[n_coded, n_rows], where their tables begin int64[n_coded + 1] in the rows of all codes
    uint32[n_codes], and their fields uint16[n_coded]; plain: rows uint32[n_plain, n_rows], and fields uint16[n_plain].
    """

    coded: _Coded
    plain: tuple[NDArray[np.uint32], NDArray[np.uint16]]

    @classmethod
    def of(cls, part: CodedRows, run: Run, lookup: RowLookup) -> _RowsOfRun:
        """Look a run up."""
        of_codes, plain = lookup.rows_of_codes(part), read_only(part.plain)
        return cls(
            (read_only(run.codes), read_only(run.tables), of_codes.rows, read_only(part.coded)),
            (lookup.rows_of_columns(run.indices, plain), plain),
        )


_FEW_CODES = 2
"""A table of so many times fewer codes than there are rows is gone through first."""


@compiled
def _touch(coded, plain, touched, shared):  # type: ignore[no-untyped-def]
    """Sets `touched` bool[n_features + 1] of every row, and `shared` of those of columns without codes, in place: whose
    features those are is not looked up for every entry.
    """
    codes, tables, code_rows, _ = coded
    for j in range(codes.shape[0]):
        start = np.uint64(tables[j])
        for i in range(codes.shape[1]):
            touched[code_rows[start + np.uint64(codes[j, i])]] = True
    for rows in plain[0]:
        for row in rows:
            touched[row] = shared[row] = True


def _near(coded: _Coded, local_ids: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Local ids of the codes of tables of few codes, one table after the other; and where each begins, -1 of others."""
    codes, tables, code_rows, _ = coded
    sizes = np.diff(tables)
    is_small = sizes * _FEW_CODES <= codes.shape[1]
    begins = np.where(is_small, np.cumsum(sizes * is_small) - sizes, -1)
    rows = [code_rows[tables[j] : tables[j + 1]] for j in np.flatnonzero(is_small)]
    return begins, local_ids[np.concatenate(rows)] if rows else local_ids[:0]


@compiled
def _spread(coded, near, plain, local_ids, places, out):  # type: ignore[no-untyped-def]
    """out[places[i], field] = local id of the field's entry in row i: a few rows of every column at a time, whose lines
    then stay near. near: of `_near`; places int64[n_rows].
    """
    (codes, tables, code_rows, fields), (begins, ids) = coded, near
    for start in range(0, codes.shape[1], _TILE):
        rows = range(np.uint64(start), np.uint64(min(start + _TILE, codes.shape[1])))
        for j in range(codes.shape[0]):
            field, base = np.uint64(fields[j]), np.uint64(tables[j] if begins[j] < 0 else begins[j])
            if begins[j] < 0:
                for i in rows:
                    out[np.uint64(places[i]), field] = local_ids[code_rows[base + np.uint64(codes[np.uint64(j), i])]]
            else:
                for i in rows:
                    out[np.uint64(places[i]), field] = ids[base + np.uint64(codes[np.uint64(j), i])]
        for j in range(plain[0].shape[0]):
            for i in rows:
                out[np.uint64(places[i]), plain[1][j]] = local_ids[plain[0][j, i]]


_TILE = 64
"""Rows whose entries are laid side by side at a time."""


@compiled
def _settle(ids, last, kinds):  # type: ignore[no-untyped-def]
    """Does as `_localise` to local ids of which those that may stand twice in a row have a mark; takes it off."""
    kept, n_fields = 0, ids.shape[1]
    for row in range(ids.shape[0]):
        twice, gaps, stamp = False, False, np.uint32(row + 1)
        for first in range(0, n_fields, 64):
            marks = np.uint64(0)
            for j in range(min(n_fields - first, 64)):
                marks |= np.uint64(ids[row, first + j] >> np.uint32(31)) << np.uint64(j)
            while marks:
                j = first + trailing_zeros(marks)
                marks &= marks - np.uint64(1)
                if ids[row, j] == ABSENT:
                    gaps = True
                    kept -= 1
                    continue
                feature = ids[row, j] ^ _SHARED
                ids[row, j] = feature
                if last[feature] == stamp:
                    twice = True
                    kept -= 1
                last[feature] = stamp
        kept += n_fields
        kinds[row] = _EXPLICIT if twice else _WITH_GAPS if gaps else _WHOLE
    return kept


def _compact(
    rows: HashedRows, local: _LocalIds, vocabulary: Vocabulary, order: NDArray[np.int64] | None
) -> SparsePartition:
    """The rows as a partition."""
    n_rows, features, kinds, n_entries = rows.n_rows, local.features, local.kinds, local.n_kept
    explicit = kinds == _EXPLICIT
    if order is None:
        order = np.arange(n_rows, dtype=np.int64)
    if explicit.any():
        order = np.concatenate([order[~explicit[order]], order[explicit[order]]])
    n_implicit = n_rows - int(np.count_nonzero(explicit))
    indptr, indices = np.empty(n_rows + 1, np.int64), np.empty(n_entries, np.uint32)
    values = np.empty(n_entries if n_implicit < n_rows else 0, np.float32)
    _write_implicit(order[:n_implicit], kinds, rows.indptr, local.ids, indptr, indices)
    if n_implicit < n_rows:
        source, target = (rows.indptr, local.ids, rows.values), (indptr, indices, values)
        _write_explicit(order, n_implicit, source, target, np.full(len(features), -1, np.int64))
    return SparsePartition(
        indptr,
        indices,
        values[: n_entries - int(indptr[n_implicit])].copy(),
        rows.labels[order],
        rows.weights[order] if rows.weights.size else rows.weights,
        features,
        int(np.searchsorted(features, vocabulary.n_factored)),
        n_implicit,
        group_ids=rows.group_ids[order] if rows.group_ids.size else rows.group_ids,
    )
