"""Hashed rows column by column: of most fields each entry is a code of a table of the field's distinct values.

Columns of a log repeat their values, and Parquet keeps these as dictionaries. What is looked up, counted or compared
for a value is then done once a table and not once a row, and rows take half as many bytes as indices side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.hashed_rows import EntrySums, HashedRows, interleaved, no_ids
from dfm.errors import DataError
from dfm.storage.arrays import read_only

Codes = NDArray[np.uint16]
Indices = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class CodedColumns:
    """Rows of one entry of value 1 a field, as a batch has them.

    columns: of each field codes uint16[n_rows] of its table, or feature indices uint32[n_rows] where it has none;
    tables: of each field the indices of its codes, uint32[n_codes]; labels, weights, group_ids: as in HashedRows.
    """

    columns: tuple[Codes | Indices, ...]
    tables: tuple[Indices | None, ...]
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
        n_rows = int(np.count_nonzero(self.weights)) if self.weights.size else self.n_rows
        n_entries = n_rows * len(self.columns)
        return EntrySums(n_rows, n_entries, float(n_entries), self.n_rows)

    def take(self, order: NDArray[np.int64]) -> CodedColumns:
        """The rows numbered by `order`, in that order."""
        return CodedColumns(
            tuple(column[order] for column in self.columns),
            self.tables,
            self.labels[order],
            self.weights[order] if self.weights.size else self.weights,
            self.group_ids[order] if self.group_ids.size else self.group_ids,
        )

    def hashed(self) -> HashedRows:
        """The rows with their indices side by side."""
        n_fields = len(self.columns)
        indices = interleaved([self.indices_of(number) for number in range(n_fields)], np.uint32)
        return HashedRows.side_by_side(indices, n_fields, self.labels, self.weights, self.group_ids)

    def indices_of_codes(self, number: int) -> Indices:
        """The table of a field that has one, uint32[n_codes]."""
        table = self.tables[number]
        assert table is not None
        return table

    def indices_of(self, number: int) -> Indices:
        """Feature index of each entry of a field, uint32[n_rows]."""
        table, column = self.tables[number], self.columns[number]
        return column.astype(np.uint32, copy=False) if table is None else table[column]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class CodeTables:
    """Tables one after the other: indices uint32[n_codes], the feature index of each code; table t is [starts[t],
    starts[t + 1]) of them, int64[n_tables + 1].
    """

    indices: Indices
    starts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CodedRows:
    """Rows of one entry of value 1 a field, run after run.

    Run r is rows [starts[r], starts[r + 1]), int64[n_runs + 1]; its tables are those of block `blocks[r]`
    int64[n_runs]: of block b the tables b * n_coded to (b + 1) * n_coded. coded uint16[n_coded]: the fields that have
    tables; plain uint16[n_plain]: the others. codes uint16[n_rows * n_coded] and indices uint32[n_rows * n_plain]: the
    entries, run after run, and in a run field after field. labels, weights, group_ids: as in HashedRows.
    """

    starts: NDArray[np.int64]
    blocks: NDArray[np.int64]
    coded: NDArray[np.uint16]
    plain: NDArray[np.uint16]
    codes: Codes
    indices: Indices
    tables: CodeTables
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    group_ids: NDArray[np.uint64] = field(default_factory=no_ids)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def n_fields(self) -> int:
        """Number of fields, each of which has an entry in every row."""
        return len(self.coded) + len(self.plain)

    @property
    def fields_of_codes(self) -> NDArray[np.uint16]:
        """The field of each code of the tables, uint16[n_codes]."""
        lengths = np.diff(self.tables.starts)
        n_blocks = len(lengths) // max(len(self.coded), 1)
        return np.repeat(np.tile(self.coded, n_blocks), lengths)

    def are_few_codes(self, n_rows: int) -> bool:
        """Whether the tables would be worth it for so many rows."""
        return _are_few_codes(len(self.tables.indices), len(self.coded), self.n_fields, n_rows)

    def runs(self) -> list[Run]:
        """The runs that have rows."""
        spans = zip(itertools.pairwise(self.starts.tolist()), self.blocks.tolist(), strict=True)
        return [self._run(start, stop, block) for (start, stop), block in spans if start < stop]

    def _run(self, start: int, stop: int, block: int) -> Run:
        n_coded, n_plain, n_rows = len(self.coded), len(self.plain), stop - start
        return Run(
            start,
            stop,
            self.codes[start * n_coded : stop * n_coded].reshape(n_coded, n_rows),
            self.indices[start * n_plain : stop * n_plain].reshape(n_plain, n_rows),
            self.tables.starts[block * n_coded : (block + 1) * n_coded + 1],
        )

    def slice(self, start: int, stop: int) -> CodedRows:
        """Views of rows [start, stop), which have to be whole runs."""
        first, last = np.searchsorted(self.starts, (start, stop))
        if last >= len(self.starts) or self.starts[first] != start or self.starts[last] != stop:
            raise DataError(f"rows {start} to {stop} are no whole runs")
        n_coded, n_plain = len(self.coded), len(self.plain)
        return replace(
            self,
            starts=self.starts[first : last + 1] - start,
            blocks=self.blocks[first:last],
            codes=self.codes[start * n_coded : stop * n_coded],
            indices=self.indices[start * n_plain : stop * n_plain],
            labels=self.labels[start:stop],
            weights=self.weights[start:stop],
            group_ids=self.group_ids[start:stop],
        )

    def hashed(self) -> HashedRows:
        """The rows with their indices side by side."""
        out = np.empty((self.n_rows, self.n_fields), np.uint32)
        for run in self.runs():
            for j, number in enumerate(self.coded):
                table = self.tables.indices[run.tables[j] : run.tables[j + 1]]
                out[run.start : run.stop, number] = table[run.codes[j]]
            for j, number in enumerate(self.plain):
                out[run.start : run.stop, number] = run.indices[j]
        return HashedRows.side_by_side(out.reshape(-1), self.n_fields, self.labels, self.weights, self.group_ids)

    def counted(self) -> tuple[Indices, NDArray[np.uint16], NDArray[np.int64]]:
        """All entries: feature indices, the field of each, and how many rows have it. An index may come again."""
        amounts = np.zeros(len(self.tables.indices), np.int64)
        plain, fields = [self.tables.indices], [self.fields_of_codes]
        for run in self.runs():
            count_codes(run.codes, run.tables, amounts)
            plain.append(run.indices.reshape(-1))
            fields.append(np.repeat(self.plain, run.stop - run.start))
        indices = np.concatenate(plain)
        ones = np.ones(len(indices) - len(amounts), np.int64)
        return indices, np.concatenate(fields), np.concatenate([amounts, ones])

    def _arrays(self) -> dict[str, NDArray[Any]]:
        own = {name: getattr(self, name) for name in _TYPES if hasattr(self, name)}
        return own | {"of codes": self.tables.indices, "of tables": self.tables.starts}

    def check(self, hash_bits: int) -> None:
        """DataError unless every offset, code and index is in range: memory is read by them without looking."""
        n_coded, n_plain, n_rows = len(self.coded), len(self.plain), self.n_rows
        starts, tables = self.starts, self.tables.starts
        sound = (
            all(array.dtype == _TYPES[name] and array.ndim == 1 for name, array in self._arrays().items())
            and len(starts) == len(self.blocks) + 1
            and starts[0] == 0
            and starts[-1] == n_rows
            and bool(np.all(starts[1:] >= starts[:-1]))
            and len(self.codes) == n_rows * n_coded
            and len(self.indices) == n_rows * n_plain
            and sorted([*self.coded.tolist(), *self.plain.tolist()]) == list(range(n_coded + n_plain))
            and len(tables) > 0
            and (len(tables) - 1) % max(n_coded, 1) == 0
            and tables[0] == 0
            and tables[-1] == len(self.tables.indices)
            and bool(np.all(tables[1:] >= tables[:-1]))
            and (not self.blocks.size or int(self.blocks.min()) >= 0)
            and (not self.blocks.size or (int(self.blocks.max()) + 1) * n_coded < len(tables))
            and all(not a.size or not int(a.max()) >> hash_bits for a in (self.indices, self.tables.indices))
            and len(self.weights) in (0, n_rows)
            and len(self.group_ids) in (0, n_rows)
        )
        if not sound or not all(run.is_sound() for run in self.runs()):
            raise DataError("codes of hashed rows are out of range")


def without_codes(rows: HashedRows, n_fields: int) -> CodedRows | None:
    """Rows side by side as a run in which no field has codes; None where not each field has one entry of value 1."""
    n_rows, none = rows.n_rows, np.zeros(0, np.uint16)
    if rows.values.size or rows.fields.size or len(rows.indices) != n_rows * n_fields:
        return None
    return CodedRows(
        np.array([0, n_rows]),
        np.zeros(1, np.int64),
        none,
        np.arange(n_fields, dtype=np.uint16),
        none,
        np.ascontiguousarray(rows.indices.reshape(n_rows, n_fields).T).reshape(-1),
        CodeTables(np.zeros(0, np.uint32), np.zeros(1, np.int64)),
        rows.labels,
        rows.weights,
        rows.group_ids,
    )


_TYPES = {
    **dict.fromkeys(("starts", "blocks", "of tables"), np.int64),
    **dict.fromkeys(("coded", "plain", "codes"), np.uint16),
    **dict.fromkeys(("indices", "of codes"), np.uint32),
    **dict.fromkeys(("labels", "weights"), np.float32),
    "group_ids": np.uint64,
}


@dataclass(frozen=True, slots=True)
class Run:
    """Rows [start, stop): codes uint16[n_coded, n_rows], of the tables that begin at `tables` int64[n_coded + 1] among
    all codes; indices uint32[n_plain, n_rows].
    """

    start: int
    stop: int
    codes: Codes
    indices: Indices
    tables: NDArray[np.int64]

    def is_sound(self) -> bool:
        """Whether all codes are within their tables."""
        return not self.codes.size or bool(np.all(self.codes.max(axis=1) < np.diff(self.tables)))


@compiled
def _count_codes(codes, tables, amounts):  # type: ignore[no-untyped-def]
    for j in range(codes.shape[0]):
        start = np.uint64(tables[j])
        for i in range(codes.shape[1]):
            amounts[start + np.uint64(codes[j, i])] += 1


def count_codes(codes: Codes, tables: NDArray[np.int64], amounts: NDArray[np.int64]) -> None:
    """Add to `amounts` int64[n_codes] how often codes uint16[n_coded, n_rows] of the tables from `tables` on come."""
    _count_codes(read_only(codes), read_only(tables), amounts)


@compiled
def _deal(source, order, begins, lengths, place, out):  # type: ignore[no-untyped-def]
    """out: the entries source[order] of one field, of which `lengths` each go into runs that begin at rows `begins`;
    place: that of the field, and how many have entries in `out`.
    """
    number, n_fields = place
    at = np.uint64(0)
    for run in range(begins.size):
        to, length = np.uint64(begins[run] * n_fields + number * lengths[run]), np.uint64(lengths[run])
        for i in range(length):
            out[to + i] = source[np.uint64(order[at + i])]
        at += length


_WORTH = 2
"""Entries for each code of a table from which on codes are worth their tables: fewer take less room as they are."""


_ROWS_OF_A_RUN = 512
"""Rows from which on a run is worth the calls that it takes."""


def are_worth_codes(parts: Sequence[CodedColumns], n_slices: int) -> bool:
    """Whether half of the fields or more have tables in all batches, and these have few codes for so many rows, which
    make long runs in so many slices.
    """
    coded, n_rows = _coded_fields(parts), sum(part.n_rows for part in parts)
    blocks = _blocks(parts, coded)
    n_codes = sum(len(block[0].indices_of_codes(j)) for block in blocks for j in coded)
    are_few = _are_few_codes(n_codes, len(coded), len(parts[0].columns), n_rows)
    return are_few and are_long_runs(n_rows, len(blocks), n_slices)


def _are_few_codes(n_codes: int, n_coded: int, n_fields: int, n_rows: int) -> bool:
    return 2 * n_coded >= n_fields and _WORTH * n_codes <= n_coded * n_rows


def are_long_runs(n_rows: int, n_blocks: int, n_slices: int) -> bool:
    """Whether so many rows, of so many blocks, make runs in each slice that are worth their calls."""
    return n_rows >= _ROWS_OF_A_RUN * n_blocks * n_slices


def lighter(parts: Sequence[CodedRows]) -> list[CodedRows] | list[HashedRows]:
    """Rows on their way to another process: as they are, or side by side where their tables are heavier than that."""
    n_codes = max((len(part.tables.indices) for part in parts), default=0)
    if _WORTH * n_codes <= sum(len(part.codes) for part in parts):
        return list(parts)
    return [part.hashed() for part in parts]


def _coded_fields(parts: Sequence[CodedColumns]) -> list[int]:
    """The fields that have tables in all batches."""
    return [j for j in range(len(parts[0].columns)) if all(part.tables[j] is not None for part in parts)]


def dealt(parts: Sequence[CodedColumns], slices: NDArray[np.unsignedinteger], n_slices: int) -> CodedRows:
    """Rows by slice, those of a slice as they come: run s * n_blocks + b has the rows of slice s and block b, a block
    being batches with the same tables. slices: the slice of each row.
    """
    coded = _coded_fields(parts)
    plain = sorted(set(range(len(parts[0].columns))).difference(coded))
    blocks = _blocks(parts, coded)
    ends = np.cumsum([sum(part.n_rows for part in block) for block in blocks])
    of_block = np.split(slices, ends[:-1])
    sizes = np.array([np.bincount(each, minlength=n_slices) for each in of_block]).T
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes.reshape(-1))])
    codes = np.empty(len(slices) * len(coded), np.uint16)
    indices = np.empty(len(slices) * len(plain), np.uint32)
    tables: list[Indices] = []
    for b, (block, mine) in enumerate(zip(blocks, of_block, strict=True)):
        order = np.argsort(mine, kind="stable")
        begins = np.ascontiguousarray(starts[:-1].reshape(n_slices, len(blocks))[:, b])
        lengths = np.ascontiguousarray(sizes[:, b])
        for number, j in enumerate(coded):
            _deal(_joined([p.columns[j] for p in block]), order, begins, lengths, (number, len(coded)), codes)
            tables.append(block[0].indices_of_codes(j))
        for number, j in enumerate(plain):
            _deal(_joined([p.indices_of(j) for p in block]), order, begins, lengths, (number, len(plain)), indices)
    order = np.argsort(slices, kind="stable")
    return CodedRows(
        starts,
        np.tile(np.arange(len(blocks)), n_slices),
        np.array(coded, np.uint16),
        np.array(plain, np.uint16),
        codes,
        indices,
        CodeTables(
            np.concatenate([np.zeros(0, np.uint32), *tables]),
            np.cumsum([0, *(len(table) for table in tables)]),
        ),
        *(
            joined[order] if joined.size else joined
            for joined in (
                np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "weights", "group_ids")
            )
        ),
    )


def _blocks(parts: Sequence[CodedColumns], coded: Sequence[int]) -> list[list[CodedColumns]]:
    """Batches, those together that follow each other and have the same tables."""
    found: list[list[CodedColumns]] = []
    for part in parts:
        if found and all(found[-1][0].tables[j] is part.tables[j] for j in coded):
            found[-1].append(part)
        else:
            found.append([part])
    return found


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return read_only(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
