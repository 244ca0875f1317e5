"""The entries of rows with their parameters, term by term: what explaining, ranking and splitting a model are made of.

Scores of many rows come from compiled kernels; here a score is taken apart. For entries i and j of a row with features
that are not the same, a model has the pair x_i x_j <f_i, s_j>, where f and s are the *sides* of a feature (see
`Family`): for a factorization machine both are V_i. Sums of sides take the place of sums over pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.arrow_types import root_of
from dfm.data.encoding import Encoded, encode_batch
from dfm.data.hashed_rows import HashedRows
from dfm.data.row_checks import NO_MOMENT, Problem
from dfm.data.row_encoder import NotPlain, RowEncoder
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import Field, ResolvedSchema
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import ABSENT, Vocabulary
from dfm.errors import DataError
from dfm.kernels.families.registry import family_of
from dfm.kernels.tables import ParameterTable
from dfm.model.objective import Objective
from dfm.model.rows import batches_of, in_columns, numeric_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_ROWS_AT_ONCE = 1024
"""Rows whose sides are in memory at a time."""


class Scorer(Protocol):
    """The part of a model that its scores are made of: an `FMModel`."""

    @property
    def schema(self) -> ResolvedSchema:
        """The columns, and how they become features."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The features, by row of the table."""

    @property
    def table(self) -> ParameterTable:
        """The parameters."""

    @property
    def statistics(self) -> Mapping[str, NumberStatistics]:
        """Statistics of numeric columns."""

    @property
    def objective(self) -> Objective:
        """The way from scores to predictions."""

    @property
    def lookup(self) -> RowLookup:
        """The way from hashed indices to rows of the table."""

    def decision_function(self, data: Any) -> NDArray[np.float32]:
        """Scores of rows, float32[n_rows]."""


@dataclass(frozen=True)
class Entries:
    """Entries of rows that have parameters, row by row.

    rows, features, fields int64[n]: number of the row, row of the parameter table, field of the schema that the entry
    came from. values float64[n]: x. elements int64[n]: which of the row's entries of that field it is.
    """

    n_rows: int
    rows: Integers
    features: Integers
    fields: Integers
    values: Floats
    elements: Integers

    def merged(self) -> Entries:
        """Entries of one feature in a row as one, whose x is their sum: a feature has no pair with itself."""
        order = np.lexsort((self.features, self.rows))
        rows, features = self.rows[order], self.features[order]
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = (rows[1:] != rows[:-1]) | (features[1:] != features[:-1])
        starts = np.flatnonzero(is_first)
        values = np.add.reduceat(self.values[order], starts) if len(starts) else self.values[:0]
        kept = order[starts]
        return Entries(self.n_rows, rows[starts], features[starts], self.fields[kept], values, self.elements[kept])


@dataclass(frozen=True)
class Sums:
    """The amounts that rows add up to by themselves.

    alone float64[n_rows]: linear part and the pairs within the row, without the bias. first, second float64[n_rows, d]:
    sums of the sides. Rows a and b of disjoint fields make, together, alone_a + alone_b + <first_a, second_b>.
    """

    alone: Floats
    first: Floats
    second: Floats


def fields_of(schema: ResolvedSchema, names: Iterable[str]) -> tuple[Field, ...]:
    """The fields that can be made of data with columns of these names."""
    there = list(names)
    return tuple(
        entry
        for entry in schema.fields
        if all(root_of(column, there) is not None for column in schema.sources(entry.columns))
    )


def names_of(data: Any) -> list[str]:
    """Names of the columns of rows in any form that a model scores."""
    if isinstance(data, list | tuple):
        return [str(name) for name in data[0]] if data else []
    if hasattr(data, "index") and hasattr(data, "iloc") and not hasattr(data, "columns"):
        return [str(name) for name in data.index]
    if isinstance(data, Mapping):
        return [str(name) for name in data]
    if isinstance(data, pa.RecordBatch):
        return [str(name) for name in data.schema.names]
    return [str(name) for name in getattr(data, "column_names", getattr(data, "columns", ()))]


def narrowed(schema: ResolvedSchema, fields: Sequence[Field]) -> ResolvedSchema:
    """The schema of some of its fields alone."""
    own = tuple(dataclasses.replace(entry, index=index) for index, entry in enumerate(fields))
    return dataclasses.replace(schema, fields=own, weight="", time="")


def batches_with(model: Scorer, data: Any, fields: Sequence[Field]) -> list[pa.RecordBatch]:
    """The columns that some fields are made of, of rows in any form that a model scores."""
    schema = narrowed(model.schema, fields)
    return list(batches_of(in_columns(data, schema), schema.columns, numeric_of(schema), schema.missing))


def entries_of(model: Scorer, batch: pa.RecordBatch, fields: Sequence[Field]) -> Entries:
    """The entries of some fields. DataError where a row is bad."""
    encoded = encode_batch(batch, narrowed(model.schema, fields), model.vocabulary.hash_bits, model.statistics, None)
    check_good(encoded)
    return _entries(model, encoded.rows, fields)


def entries_of_row(model: Scorer, row: Any, encoder: RowEncoder, fields: Sequence[Field]) -> Entries | None:
    """The entries of one row as a service sends it, a dict of plain values; None where the general way has to be
    taken. encoder: of those fields alone.
    """
    if not encoder.usable or not isinstance(row, Mapping):
        return None
    try:
        columns = {name: [row[name]] for name in encoder.columns}
        return _entries(model, encoder.encode(columns, 1), fields)
    except (KeyError, NotPlain):
        return None


def _entries(model: Scorer, rows: HashedRows, fields: Sequence[Field]) -> Entries:
    n_fields = len(fields)
    of_rows = np.repeat(np.arange(rows.n_rows, dtype=np.int64), np.diff(rows.indptr))
    places = rows.fields if rows.fields.size else np.tile(np.arange(n_fields, dtype=np.uint16), rows.n_rows)
    own = np.array([entry.index for entry in fields], np.uint16)[places]
    features = model.lookup.rows(rows.indices, own)
    kept = features != ABSENT
    values = rows.values.astype(np.float64) if rows.values.size else np.ones(len(features))
    return Entries(
        rows.n_rows,
        of_rows[kept],
        features[kept].astype(np.int64),
        own[kept].astype(np.int64),
        values[kept],
        _numbered(of_rows, places)[kept],
    )


def check_good(encoded: Encoded) -> None:
    """DataError where a row broke the schema."""
    if encoded.problems:
        raise bad_row(encoded.problems[0])


def bad_row(problem: Problem, first: int = 0) -> DataError:
    """The error of a row that broke the schema. first: number of the first row of its batch."""
    remedy = "" if problem.reason == "missing" else ", or None where it is missing"  # a matrix has no gaps
    expected = "moment such as 2026-11-20 07:05:00" if problem.reason == NO_MOMENT else "finite number"
    return DataError(
        f"row {first + problem.first_row}: column {problem.column!r}: {problem.reason} ({problem.value}); pass a "
        f"{expected}{remedy}"
    )


def _numbered(rows: Integers, places: NDArray[np.uint16]) -> Integers:
    """The place of each entry among those of its row and field, from 0; they stand row by row and field by field."""
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = (rows[1:] != rows[:-1]) | (places[1:] != places[:-1])
    starts = np.flatnonzero(is_first)
    return np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))


def linear_terms(model: Scorer, entries: Entries) -> Floats:
    """w x of each entry."""
    return model.table.linear_weights[entries.features].astype(np.float64) * entries.values


def is_pairwise(model: Scorer) -> bool:
    """Whether scores are sums over features and pairs of features."""
    return family_of(model.table.layout.family).is_pairwise


def sides(model: Scorer, features: Integers) -> tuple[Floats, Floats]:
    """Both sides of some features, float64[n, d] each; zeros where a feature has no factors. d is 0 where no two make a
    term by themselves.
    """
    table, layout = model.table, model.table.layout
    family, of_pairs = family_of(layout.family), layout.n_factors * layout.n_groups
    if family.sides is None:
        return np.zeros((len(features), 0)), np.zeros((len(features), 0))
    vectors = np.zeros((len(features), of_pairs))
    has_factors = features < table.n_factored
    vectors[has_factors] = table.factor_weights[features[has_factors], :of_pairs]  # those of more features come behind
    fields, groups = model.vocabulary.fields[features].astype(np.int64), np.array(layout.groups, np.int64)
    places, n_places = (groups[fields], layout.n_groups) if len(groups) else (fields, len(model.schema.fields))
    own = {block.name: table.values(block).astype(np.float64) for block in layout.own}
    return family.sides(vectors, places, n_places, own)


def pair_terms(model: Scorer, entries: Entries) -> Floats:
    """x_i x_j <f_i, s_j> of entries of one row, float64[n, n]; where both are of one feature it is no pair."""
    first, second = sides(model, entries.features)
    terms: Floats = (first * entries.values[:, None]) @ (second * entries.values[:, None]).T
    return terms


def sums_of(model: Scorer, entries: Entries) -> Sums:
    """The amounts that each row adds up to."""
    merged = entries.merged()
    width = sides(model, merged.features[:0])[0].shape[1]
    first, second = np.zeros((entries.n_rows, width)), np.zeros((entries.n_rows, width))
    alone = np.bincount(merged.rows, linear_terms(model, merged), entries.n_rows).astype(np.float64)
    for start in range(0, entries.n_rows, _ROWS_AT_ONCE):
        low, high = np.searchsorted(merged.rows, [start, start + _ROWS_AT_ONCE])
        rows, values = merged.rows[low:high], merged.values[low:high, None]
        if not len(rows):
            continue
        ours, theirs = (side * values for side in sides(model, merged.features[low:high]))
        starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
        first[rows[starts]], second[rows[starts]] = np.add.reduceat(ours, starts), np.add.reduceat(theirs, starts)
        alone[rows[starts]] -= 0.5 * np.add.reduceat(np.einsum("ed,ed->e", ours, theirs), starts)
    return Sums(alone + 0.5 * np.einsum("rd,rd->r", first, second), first, second)
