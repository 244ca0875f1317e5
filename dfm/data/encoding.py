"""Arrow batches to hashed rows: every field of the schema, the label and the weight, with bad rows told apart.

The same code encodes shards for training and tables for `FMModel.predict`, so the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data import hashing
from dfm.data.arrow_types import from_integers, plain
from dfm.data.coded_rows import CodedColumns, count_codes
from dfm.data.columns import (
    LARGEST,
    Flags,
    Floats,
    check_categories,
    feature_column,
    list_column,
    parse_numbers,
)
from dfm.data.hashed_rows import HashedRows, interleaved, take_rows
from dfm.data.known_tables import MOST_CODES, KnownTables
from dfm.data.lists import Lists
from dfm.data.row_checks import NO_MOMENT, NOT_FINITE, Problem, RowCheck
from dfm.data.schema import Field, ResolvedSchema
from dfm.data.small_numbers import are_looked_up, small_number_indices
from dfm.data.targets import checked_labels, checked_weights
from dfm.data.transforms import NOTHING_KNOWN, TRANSFORMS, NumberStatistics, standardized
from dfm.data.vocabulary import FeatureTally

_CROSS_BITS = 30
"""Columns of a cross are hashed to this many bits, whatever the model's hash_bits, so that crosses rarely collide."""
_NO_FLOATS = np.zeros(0, np.float32)
_NO_FIELDS = np.zeros(0, np.uint16)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The good rows of a batch, the problems of the others, and which rows were good (bool[n_rows])."""

    rows: HashedRows
    problems: list[Problem]
    good: Flags


@dataclass(frozen=True, slots=True)
class Coded:
    """The same, column by column."""

    rows: CodedColumns
    problems: list[Problem]
    good: Flags


@dataclass(slots=True)
class _Column:
    """One encoded field: an index per row, or several where `offsets` int64[n_rows + 1] is given.

    counted: indices uint32[n] and how many rows have each uint32[n], where that is known without looking at the rows.
    table: where it is given, `indices` are codes uint16[n_rows] of these feature indices.
    """

    indices: NDArray[Any]
    values: NDArray[np.float32] | None = None
    offsets: NDArray[np.int64] | None = None
    counted: tuple[NDArray[np.uint32], NDArray[np.uint32]] | None = None
    table: NDArray[np.uint32] | None = None


def encode_batch(
    data: pa.RecordBatch,
    schema: ResolvedSchema,
    hash_bits: int,
    statistics: Mapping[str, NumberStatistics],
    task: str | None,
    tally: FeatureTally | None = None,
) -> Encoded:
    """Hash every field of every row; task "classification" or "regression" reads the label too, None scores only.

    tally: is told the features of the good rows.
    """
    batch, labels, weights = _begun(data, schema, hash_bits, statistics, task)
    check, columns = batch.check, [batch.encode(entry) for entry in schema.fields]
    rows = _assemble(columns, labels, weights, data.num_rows)
    good = ~check.bad
    if check.bad.any():
        rows = take_rows(rows, np.flatnonzero(good))
        if tally is not None:
            tally.add_rows(rows.indices, rows.fields, len(columns))
    elif tally is not None:
        _tell(tally, columns)
    return Encoded(rows, check.problems, good)


def are_coded(schema: ResolvedSchema) -> bool:
    """Whether each row has one entry of value 1 in each field."""
    lists = {entry.name for entry in schema.fields if entry.kind == "list"}
    return bool(schema.fields) and all(
        entry.kind == "categorical"
        or entry.bucketed
        or (entry.kind == "cross" and not lists.intersection(entry.columns))
        for entry in schema.fields
    )


def code_batch(
    data: pa.RecordBatch,
    schema: ResolvedSchema,
    hash_bits: int,
    statistics: Mapping[str, NumberStatistics],
    task: str,
    tally: FeatureTally | None,
    known: KnownTables,
) -> Coded:
    """`encode_batch` of a schema that `are_coded` holds for, column by column.

    known: the tables of the batches before.
    """
    batch, labels, weights = _begun(data, schema, hash_bits, statistics, task, known)
    check, columns = batch.check, [batch.encode(entry) for entry in schema.fields]
    rows = CodedColumns(
        tuple(column.indices for column in columns), tuple(column.table for column in columns), labels, weights
    )
    good = ~check.bad
    if check.bad.any():
        rows = rows.take(np.flatnonzero(good))
        columns = [_Column(rows.indices_of(number)) for number in range(len(columns))]
    if tally is not None:
        _tell(tally, columns)
    return Coded(rows, check.problems, good)


def _begun(
    data: pa.RecordBatch,
    schema: ResolvedSchema,
    hash_bits: int,
    statistics: Mapping[str, NumberStatistics],
    task: str | None,
    known: KnownTables | None = None,
) -> tuple[_BatchColumns, NDArray[np.float32], NDArray[np.float32]]:
    """A batch whose columns are to be encoded, its labels and its weights."""
    check = RowCheck(data.num_rows)
    labels, weights = np.zeros(data.num_rows, np.float32), _NO_FLOATS
    if task is not None:
        labels, weights = checked_labels(data, schema, task, check), checked_weights(data, schema, check)
    return _BatchColumns(data, schema, hash_bits, statistics, check, known), labels, weights


def _tell(tally: FeatureTally, columns: Sequence[_Column]) -> None:
    """Count the features of columns."""
    for number, column in enumerate(columns):
        tally.add_column(number, *(column.counted or (column.indices,)))


def _amounts(codes: NDArray[np.uint16], n_codes: int) -> NDArray[np.uint32]:
    """Numbers of rows of each code, uint32[n_codes]."""
    found = np.zeros(n_codes, np.int64)
    count_codes(codes.reshape(1, -1), np.array([0, n_codes]), found)
    return found.astype(np.uint32)


@dataclass(slots=True)
class _BatchColumns:
    data: pa.RecordBatch
    schema: ResolvedSchema
    hash_bits: int
    statistics: Mapping[str, NumberStatistics]
    check: RowCheck
    known: KnownTables | None = None
    """Tables of batches before; None: columns are not coded."""
    numbers: dict[str, tuple[Floats, Flags]] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """The model's form of numbers."""
        return self.schema.numbers

    def column(self, name: str) -> pa.Array:
        """A column of the data, or one made from them; rows whose text is no moment are rejected."""
        array, unread = feature_column(self.data, name, self.schema)
        if unread is not None:
            for source in next(entry.columns for entry in self.schema.derived if entry.name == name):
                self.check.reject(unread, source, NO_MOMENT, self.data.column(source))
        return array

    def encode(self, entry: Field) -> _Column:
        """The indices of one field."""
        if entry.kind == "cross":
            return self._cross(entry)
        if entry.kind == "list":
            return self._list(entry)
        if entry.kind == "numeric":
            return self._numeric(entry)
        if entry.kind == "vector":
            return self._vector(entry)
        array = self.column(entry.name)
        check_categories(array.type, entry.name)
        return self._category(entry.name, array)

    def _category(self, column: str, array: pa.Array) -> _Column:
        """Single categories; whoever asks for codes gets those of a dictionary that has few values, or of integers that
        lie close together.
        """
        array = plain(array)
        if not pa.types.is_dictionary(array.type):
            coded = None if self.known is None else self._within_span(column, array, self.known)
            return coded or _Column(hashing.hash_category(array, column, self.hash_bits, self.form))
        coded = None if self.known is None else self._coded(column, array, self.known)
        if coded is not None:
            return coded
        indices, distinct, amounts = hashing.hash_dictionary(array, column, self.hash_bits, self.form)
        return _Column(indices, counted=(distinct, amounts))

    def _coded(self, column: str, array: pa.DictionaryArray, known: KnownTables) -> _Column | None:
        """The codes of a dictionary array; None where there would be too many."""

        def made() -> NDArray[np.uint32]:
            return hashing.dictionary_table(array.dictionary, column, self.hash_bits, self.form)

        table = known.table(column, array, made)
        if table is None:
            return None
        codes, amounts = hashing.dictionary_codes(array)
        return _Column(codes, counted=(table, amounts), table=table)

    def _within_span(self, column: str, array: pa.Array, known: KnownTables) -> _Column | None:
        """Integers as their places in a span of all integers, the last place for missing ones; None where they are too
        far apart.
        """
        if column in known.apart:
            return None
        integers = hashing.integer_categories(array, self.form)
        if integers is None:
            known.apart.add(column)
            return None
        numbers, kind = integers

        def made(first: int, length: int) -> NDArray[np.uint32]:
            values = from_integers(np.arange(first, first + length), kind)
            return hashing.dictionary_table(values, column, self.hash_bits, self.form)

        bounds = pc.min_max(numbers)
        least, greatest = bounds["min"].as_py(), bounds["max"].as_py()
        found = known.of_span(f"{kind} {column}", None if least is None else (least, greatest), len(array), made)
        if found is None:
            known.apart.add(column)
            return None
        first, table = found
        filled = numbers.fill_null(first + len(table) - 1) if numbers.null_count else numbers
        codes = (filled.to_numpy() - first).astype(np.uint16)
        return _Column(codes, counted=(table, _amounts(codes, len(table))), table=table)

    def _numbers(self, column: str, array: pa.Array | None = None) -> tuple[Floats, Flags]:
        """Numbers and which are present; text that is no number and NaN or infinity are rejected, once per column.

        array: the column, where the caller has it.
        """
        if column not in self.numbers:
            self.numbers[column] = self._checked(column, self.column(column) if array is None else array)
        return self.numbers[column]

    def _checked(self, column: str, array: pa.Array, places: NDArray[np.int64] | None = None) -> tuple[Floats, Flags]:
        """The same of the rows at some places of the column's array, in that order; None: of all."""

        def reject(found: Flags, reason: str) -> None:
            rows = found
            if places is not None:
                rows = np.zeros(len(array), np.bool_)
                rows[places] = found
            self.check.reject(rows, column, reason, array)

        part = array if places is None else array.take(pa.array(places))
        values, present, unparsed = parse_numbers(part, column, self.form)
        if self.schema.nan == "missing":
            present = present & ~np.isnan(values)
            values = np.where(present, values, 0.0)
        reject(unparsed, "not a number")
        finite = np.isfinite(values)
        if not finite.all():
            reject(~finite, NOT_FINITE)
            values = np.where(finite, values, 0.0)
        return values, present

    def _codes(self, entry: Field) -> tuple[NDArray[np.int32], int]:
        """Bucket codes of a numeric field, and how many codes there are."""
        values, present = self._numbers(entry.name)
        transform, known = TRANSFORMS[entry.transform], self._statistics_of(entry.name)
        return transform.codes(values, present, known), transform.n_codes(known)

    def _statistics_of(self, column: str) -> NumberStatistics:
        return self.statistics.get(column, NOTHING_KNOWN)

    def _numeric(self, entry: Field) -> _Column:
        if entry.bucketed:
            return self._buckets(entry)
        values, present = self._numbers(entry.name)
        made = TRANSFORMS[entry.transform].values(values, self._statistics_of(entry.name))
        made = np.where(present, made, 1.0)
        narrow = self.check.narrowed(made, entry.name, "too large", self.column(entry.name))
        token = hashing.token_index(entry.name, hashing.PRESENT, self.hash_bits)
        missing = hashing.token_index(entry.name, hashing.MISSING, self.hash_bits)
        return _Column(np.where(present, token, missing).astype(np.uint32), narrow)

    def _buckets(self, entry: Field) -> _Column:
        array, transform, known = self.column(entry.name), TRANSFORMS[entry.transform], self._statistics_of(entry.name)
        table = hashing.bucket_table(entry.name, transform.n_codes(known), self.hash_bits)
        is_coded = self.known is not None and len(table) <= MOST_CODES
        wanted: NDArray[Any] = hashing.small_codes(len(table)) if is_coded else table
        if are_looked_up(array, entry.transform, known):
            out, others = small_number_indices(array, wanted, entry.transform, known)
            if len(others):
                out[others] = wanted[transform.codes(*self._checked(entry.name, array, others), known)]
        else:
            out = np.empty(len(array), wanted.dtype)
            hashing.gather(wanted, transform.codes(*self._numbers(entry.name, array), known), out)
        if not is_coded:
            return _Column(out)
        return _Column(out, counted=(table, _amounts(out, len(table))), table=table)

    def _vector(self, entry: Field) -> _Column:
        """Column j is feature j, unhashed; a matrix has no gaps, so a missing number makes its row a bad one."""
        matrix = np.empty((self.data.num_rows, len(entry.columns)))
        for j, column in enumerate(entry.columns):
            values, present = self._numbers(column)
            self.check.reject(~present, column, "missing", self.column(column))
            matrix[:, j] = standardized(values, self._statistics_of(column))
        offsets, indices, entries = dense_entries(matrix.astype(np.float32))
        return _Column(indices, entries, offsets)

    def _list(self, entry: Field, bits: int = 0) -> _Column:
        """Every element is a category; a missing or empty list is the missing category."""
        found = list_column(self.data, entry.name, self.schema)
        indices = hashing.hash_category(found.elements, entry.name, bits or self.hash_bits, self.form)
        lengths = np.diff(found.offsets)
        missing = hashing.token_index(entry.name, hashing.MISSING, bits or self.hash_bits)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.maximum(lengths, 1))])
        out = np.full(int(starts[-1]), missing, np.uint32)
        kept = np.repeat(lengths > 0, np.maximum(lengths, 1))
        out[kept] = indices
        weight = np.ones(len(lengths)) if entry.transform == "one" else 1.0 / np.sqrt(np.maximum(lengths, 1))
        values = np.repeat(weight, np.maximum(lengths, 1)).astype(np.float32)
        if found.weights is not None:
            values[kept] = self._element_weights(entry, found)
        return _Column(out, values, starts)

    def _element_weights(self, entry: Field, found: Lists) -> NDArray[np.float32]:
        """Weights of elements, as they are or brought to length 1 in each row; a bad one makes its row bad."""
        assert found.weights is not None
        weights, present, unparsed = parse_numbers(found.weights, entry.name, self.form)
        rows = np.repeat(np.arange(len(found.offsets) - 1), np.diff(found.offsets))
        fine = present & ~unparsed & (np.abs(weights) <= LARGEST)
        rejected = np.zeros(len(found.offsets) - 1, np.bool_)
        rejected[rows[~fine]] = True
        self.check.reject(
            rejected, entry.name, "weight of an element is missing or no finite number", self.column(entry.name)
        )
        weights = np.where(fine, weights, 0.0)
        if entry.transform != "one":
            length = np.sqrt(np.bincount(rows, weights**2, len(rejected)))
            weights = weights / np.where(length > 0, length, 1.0)[rows]
        return weights.astype(np.float32)

    def _cross(self, entry: Field) -> _Column:
        parts = [self._cross_part(column) for column in entry.columns]
        seed, out = hashing.column_seed(entry.name), parts[0]
        for step, part in enumerate(parts[1:], start=2):
            bits = self.hash_bits if step == len(parts) else _CROSS_BITS
            left, right = _paired(out, part) if out.offsets is not None or part.offsets is not None else (out, part)
            crossed = np.empty(len(left.indices), np.uint32)
            hashing.cross_indices(left.indices, right.indices, seed, np.uint64((1 << bits) - 1), crossed)
            values = None if left.values is None or right.values is None else left.values * right.values
            out = _Column(crossed, values, left.offsets)
        return out

    def _cross_part(self, column: str) -> _Column:
        part = next(entry for entry in self.schema.fields if entry.name == column)
        if part.kind == "list":
            return self._list(part, _CROSS_BITS)
        if part.kind == "categorical":
            return _Column(hashing.hash_category(self.column(part.name), part.name, _CROSS_BITS, self.form))
        codes, n_codes = self._codes(part)
        out = np.empty(len(codes), np.uint32)
        hashing.gather(hashing.bucket_table(part.name, n_codes, _CROSS_BITS), codes, out)
        return _Column(out)


def _paired(left: _Column, right: _Column) -> tuple[_Column, _Column]:
    """Every element of a row on the left beside every one on the right, in that order, with values and offsets."""
    lefts, rights = (_ragged(part) for part in (left, right))
    per_row = np.diff(rights.offsets)
    row_of = np.repeat(np.arange(len(per_row)), np.diff(lefts.offsets))
    repeats = per_row[row_of]
    starts = np.cumsum(repeats) - repeats
    at_left = np.repeat(np.arange(len(row_of)), repeats)
    at_right = np.arange(len(at_left)) - starts[at_left] + rights.offsets[:-1][row_of[at_left]]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.diff(lefts.offsets) * per_row)])
    return (
        _Column(lefts.indices[at_left], lefts.values[at_left], offsets),
        _Column(rights.indices[at_right], rights.values[at_right], offsets),
    )


@dataclass(frozen=True, slots=True)
class _Ragged:
    """A column with values and offsets, where it had none too."""

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]
    offsets: NDArray[np.int64]


def _ragged(column: _Column) -> _Ragged:
    n = len(column.indices)
    values = np.ones(n, np.float32) if column.values is None else column.values
    return _Ragged(column.indices, values, np.arange(n + 1) if column.offsets is None else column.offsets)


def dense_entries(
    matrix: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float32]]:
    """Offsets int64[n_rows + 1], columns and values of what is not zero in a matrix [n_rows, n_columns]."""
    there = matrix != 0
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(there.sum(axis=1, dtype=np.int64))])
    return offsets, np.nonzero(there)[1].astype(np.uint32), matrix[there]


def _assemble(
    columns: Sequence[_Column], labels: NDArray[np.float32], weights: NDArray[np.float32], n_rows: int
) -> HashedRows:
    """The encoded fields side by side, row by row, in field order."""
    has_values = any(column.values is not None for column in columns)
    if all(column.offsets is None for column in columns):
        n_fields = len(columns)
        indptr = np.arange(n_rows + 1, dtype=np.int64) * n_fields
        indices = interleaved([column.indices for column in columns], np.uint32)
        values = _NO_FLOATS
        if has_values:
            ones = np.ones(n_rows, np.float32)
            values = interleaved([ones if c.values is None else c.values for c in columns], np.float32)
        return HashedRows(indptr, indices, _NO_FIELDS, values, labels, weights)
    counts = np.zeros(n_rows, np.int64)
    for column in columns:
        counts += 1 if column.offsets is None else np.diff(column.offsets)
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    out = (
        np.empty(int(indptr[-1]), np.uint32),
        np.empty(int(indptr[-1]), np.uint16),
        np.ones(int(indptr[-1]), np.float32),
    )
    cursor = indptr[:-1].copy()
    one_each = np.arange(n_rows + 1, dtype=np.int64)
    for number, column in enumerate(columns):
        values = _NO_FLOATS if column.values is None else column.values
        offsets = one_each if column.offsets is None else column.offsets
        _append(column.indices, values, offsets, number, cursor, out)
    return HashedRows(indptr, out[0], out[1], out[2], labels, weights)


@compiled
def _append(indices, values, offsets, field_number, cursor, out):  # type: ignore[no-untyped-def]
    """Writes a field's entries at each row's `cursor` int64[n_rows] and moves it on; writes the arrays of `out`."""
    out_indices, out_fields, out_values = out
    for row in range(cursor.size):
        at = cursor[row]
        for i in range(offsets[row], offsets[row + 1]):
            out_indices[at] = indices[i]
            out_fields[at] = field_number
            if values.size:
                out_values[at] = values[i]
            at += 1
        cursor[row] = at
