"""Data of estimators as rows of a factorization machine: matrices as they are, tables hashed as shards are.

A matrix is an array, a scipy.sparse matrix, or a frame or Arrow table of floats: column j is feature j. Any other
table has categories, as has a dict of columns, whose lists may have gaps: its columns are chosen by type
(`schema.infer`) unless they are named, and hashed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.arrow_types import column_kind, flat, without_views
from dfm.data.columns import number_column
from dfm.data.encoding import Encoded, encode_batch
from dfm.data.footers import Columns, resolve_told
from dfm.data.hashed_rows import HashedRows, concatenate_rows
from dfm.data.interchange import exported_table, speaks_arrow
from dfm.data.matrices import (
    ColumnMoments,
    Scaling,
    column_names,
    is_sparse,
    matrix_rows,
    vector_schema,
    vector_vocabulary,
)
from dfm.data.number_sketches import NumberSketch, columns_with_statistics, sketch_values, statistics_of
from dfm.data.partition import SparsePartition
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import ResolvedSchema, Schema, check_once, is_named
from dfm.data.scoring_rows import scoring_partition
from dfm.data.transforms import RAW, SCALED, TRANSFORMS, NumberStatistics
from dfm.data.vocabulary import (
    NO_COUNTS,
    FeatureCounts,
    Vocabulary,
    build_vocabulary,
    count_features,
    grow,
    seen_rarely,
)
from dfm.errors import DataError, SettingsError
from dfm.estimators.notes import naming_parameters, tell_left_out
from dfm.kernels.tables import ParameterTable
from dfm.model.entries import bad_row
from dfm.model.fm_model import FMModel, batches_of
from dfm.model.objective import Objective
from dfm.model.rows import arrived, numeric_of

FLOATS = (
    *("float16", "float32", "float64", "Float32", "Float64", "float", "double", "halffloat"),
    *("float[pyarrow]", "double[pyarrow]", "halffloat[pyarrow]"),
)
NEVER = 2**62
"""More occurrences than any feature has: a linear model gives factors to none."""


@dataclass(frozen=True)
class TableOptions:
    """Rules by which tables become features; names as in the [schema] and [model] tables of a job file."""

    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    crosses: tuple[tuple[str, ...], ...] = ()
    missing: tuple[str, ...] = ()
    nan: str = "error"
    list_separator: str = ""
    derive: Mapping[str, str] = field(default_factory=dict)
    numeric_transform: str = SCALED
    standardize: bool | str = "auto"
    hash_bits: int = 20
    min_count: int = 1
    min_count_factors: int = 1

    @property
    def names_columns(self) -> bool:
        """Whether it says what a matrix of numbers cannot be, so that a table is one even where all of it is floats."""
        roles = self.categorical or self.numeric or self.lists or self.crosses
        return bool(roles or self.derive or self.nan != Schema.nan or self.numeric_transform != SCALED)

    def check_matrix(self) -> None:
        """SettingsError where it says what cannot be followed where column j of a matrix is feature j."""
        named = [name for name in ("categorical", "numeric", "lists", "crosses", "derive") if getattr(self, name)]
        if named:
            raise SettingsError(
                f"{named[0]} names columns, and X is an array, whose columns have no names and are all numbers: pass a "
                'DataFrame (of a step before it: .set_output(transform="pandas"))'
            )
        if self.nan != Schema.nan:
            raise SettingsError(
                f'nan = "{self.nan}" is for tables, and X is an array, in which no number may be missing: fill the '
                "gaps before (SimpleImputer), or pass a DataFrame"
            )
        if self.numeric_transform != SCALED:
            raise SettingsError(
                f'numeric_transform = "{self.numeric_transform}" is for tables, and X is an array, whose columns are '
                "standardized or stay as they are (standardize = False): pass a DataFrame, or transform them before"
            )

    def of_schema(self) -> dict[str, Any]:
        """The knobs of the [schema] table among them: numbers that are not to be standardized stay as they are."""
        stay = self.numeric_transform == SCALED and self.standardize is False
        given = {**vars(self), "numeric_transform": RAW if stay else self.numeric_transform}
        return {name: value for name, value in given.items() if name in Schema.knobs()}

    def least_for_factors(self, n_factors: int) -> int:
        """Occurrences from which a feature owns factors; in a linear model none does."""
        return self.min_count_factors if n_factors else NEVER


@dataclass(frozen=True)
class FeatureOptions:
    """The way in which columns become features, and how many factors these get."""

    table: TableOptions
    n_factors: int

    def __post_init__(self) -> None:
        standardize, transform = self.table.standardize, self.table.numeric_transform
        if standardize not in (True, False, "auto"):
            raise SettingsError(f'standardize = {standardize!r} is not legal: expected True, False or "auto"')
        if transform not in TRANSFORMS:
            raise SettingsError(
                f"numeric_transform = {transform!r} is not legal: expected one of {', '.join(TRANSFORMS)}"
            )

    def standardizes(self, is_sparse: bool) -> bool:
        """Whether the columns of a matrix are standardized. SettingsError where that would make it dense."""
        if self.table.standardize is True and is_sparse:
            raise SettingsError(
                "standardize = True would make a sparse matrix dense: scale it before (MaxAbsScaler), pass a dense "
                'array, or leave standardize at "auto"'
            )
        return bool(self.table.standardize) and not is_sparse


class Features(Protocol):
    """From what the user has to rows, and from trained parameters to a model."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def lookup(self) -> RowLookup | None: ...

    @property
    def field_names(self) -> Sequence[str]: ...

    def rows(self, data: Any) -> HashedRows: ...

    def scoring(self, data: Any) -> SparsePartition: ...

    def model(self, table: ParameterTable, objective: Objective, metadata: Mapping[str, Any]) -> FMModel: ...


@dataclass(frozen=True)
class MatrixFeatures:
    """Features of numeric matrices."""

    names: tuple[str, ...] | None
    vocabulary: Vocabulary
    scaling: Scaling | None
    lookup: None = None

    @property
    def field_names(self) -> Sequence[str]:
        """The only field that a matrix has."""
        return [entry.name for entry in vector_schema(()).fields]

    @classmethod
    def learn(
        cls, matrix: Any, names: Sequence[str] | None, standardize: bool, weights: NDArray[np.float32]
    ) -> tuple[MatrixFeatures, HashedRows]:
        """Features of the columns, learnt from the training rows, and these rows."""
        scaling = Scaling.from_moments(ColumnMoments.of(matrix, weights)) if standardize else None
        rows = matrix_rows(matrix, scaling)
        counts = np.bincount(rows.indices, minlength=matrix.shape[1]).astype(np.int64)
        vocabulary = vector_vocabulary(matrix.shape[1], counts)
        return cls(None if names is None else tuple(names), vocabulary, scaling), rows

    def rows(self, data: Any) -> HashedRows:
        """The rows of a matrix."""
        return matrix_rows(data, self.scaling)

    def scoring(self, data: Any) -> SparsePartition:
        """The rows, for kernels that score."""
        rows = self.rows(data)
        n_implicit = 0 if rows.values.size else rows.n_rows
        nothing = rows.indices[:0]
        fields = self.vocabulary.fields
        return SparsePartition(
            rows.indptr, rows.indices, rows.values, rows.labels, rows.weights, nothing, 0, n_implicit, fields
        )

    def model(self, table: ParameterTable, objective: Objective, metadata: Mapping[str, Any]) -> FMModel:
        """A model that takes matrices, or tables with these columns."""
        names = self.names or column_names(self.vocabulary.n_features)
        statistics = {} if self.scaling is None else self.scaling.statistics(names)
        return FMModel(
            vector_schema(names), objective.task, self.vocabulary, table, statistics, metadata, objective.info
        )


@dataclass(frozen=True)
class TableFeatures:
    """Features of tables with categories, hashed. waiting: those that were seen, but too rarely to be in."""

    schema: ResolvedSchema
    vocabulary: Vocabulary
    statistics: Mapping[str, NumberStatistics]
    waiting: FeatureCounts = NO_COUNTS

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: the look-up is made again."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}

    @property
    def field_names(self) -> Sequence[str]:
        """The fields, in order."""
        return [entry.name for entry in self.schema.fields]

    @functools.cached_property
    def lookup(self) -> RowLookup:
        """From hashed index to row of the table."""
        return RowLookup(self.vocabulary)

    @classmethod
    def learn(
        cls, data: Any, options: TableOptions, n_factors: int, weights: NDArray[np.float32]
    ) -> tuple[TableFeatures, HashedRows]:
        """Schema, statistics and vocabulary of the training rows, and these rows; weights: as of `sketch_table`."""
        table = as_arrow(data, missing=options.missing)
        schema = resolve_columns({name: table.schema.field(name).type for name in table.column_names}, options)
        sketches = sketch_table(table, schema, weights)
        statistics = statistics_of({column: [sketch] for column, sketch in sketches.items()}, schema)
        rows = encoded_rows(table, schema, options.hash_bits, statistics)
        counts = count_features(rows.indices, rows.fields, len(schema.fields), options.hash_bits)
        least = options.least_for_factors(n_factors)
        names = [entry.name for entry in schema.fields]
        vocabulary = build_vocabulary(counts, names, options.hash_bits, options.min_count, least)
        return cls(schema, vocabulary, statistics, seen_rarely(counts, options.min_count)), rows

    def grown(self, counts: FeatureCounts, options: TableOptions, n_factors: int) -> TableFeatures:
        """The same with the categories of further rows, by their counts; numbers keep their statistics."""
        least = options.least_for_factors(n_factors)
        vocabulary, waiting = grow(self.vocabulary, self.waiting, counts, options.min_count, least)
        grown = dataclasses.replace(self, vocabulary=vocabulary, waiting=waiting)
        if vocabulary.ids is self.vocabulary.ids and "lookup" in self.__dict__:
            grown.__dict__["lookup"] = self.lookup  # of the same rows
        return grown

    def rows(self, data: Any) -> HashedRows:
        """The rows of a table, or of an array whose columns are in the order of the schema's."""
        return encoded_rows(
            as_arrow(data, numeric_of(self.schema), self.schema.missing),
            self.schema,
            self.vocabulary.hash_bits,
            self.statistics,
        )

    def scoring(self, data: Any) -> SparsePartition:
        """The rows, for kernels that score."""
        return scoring_partition(self.rows(data), self.lookup)

    def model(self, table: ParameterTable, objective: Objective, metadata: Mapping[str, Any]) -> FMModel:
        """A model that takes such tables."""
        return FMModel(self.schema, objective.task, self.vocabulary, table, self.statistics, metadata, objective.info)


def resolve_columns(types: Mapping[str, pa.DataType], options: TableOptions) -> ResolvedSchema:
    """The fields of a table, by the options or by the types of its columns. SettingsError where options name others."""
    label = "label"
    while label in types:
        label += "_"
    kinds = {name: column_kind(kind) for name, kind in types.items()}
    known = Columns([*types, label], {**kinds, label: "int"}, {})
    with naming_parameters():
        return resolve_told(Schema(label=label, **options.of_schema()), known, tell_left_out)


def sketch_table(table: pa.Table, schema: ResolvedSchema, weights: NDArray[np.float32]) -> dict[str, NumberSketch]:
    """Sketch of the columns whose transform needs statistics, over the rows that weigh anything.

    weights: float32[n_rows]; empty where all rows count the same.
    """
    found = {}
    for column in columns_with_statistics(schema):
        read = table.select(schema.sources([column]))
        read = read.filter(pa.array(weights > 0)) if weights.size else read
        batches = read.combine_chunks().to_batches()
        numbers = [number_column(batch, column, schema) for batch in batches]
        found[column] = sketch_values(np.concatenate([np.zeros(0), *numbers]))
    return found


def encoded_rows(
    table: pa.Table, schema: ResolvedSchema, hash_bits: int, statistics: Mapping[str, NumberStatistics]
) -> HashedRows:
    """All rows of a table, without labels. DataError where one of them is bad."""
    parts, first = [], 0
    for batch in batches_of(table, schema.columns):
        encoded = encode_batch(batch, schema, hash_bits, statistics, None)
        _refuse_bad_rows(encoded, first)
        parts.append(encoded.rows)
        first += batch.num_rows
    if not parts:
        empty = np.zeros(0, np.float32)
        return HashedRows(np.zeros(1, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.uint16), empty, empty, empty)
    return concatenate_rows(parts)


def _refuse_bad_rows(encoded: Encoded, first: int) -> None:
    if encoded.problems:
        raise bad_row(encoded.problems[0], first)


# ------------------------------------------------------------------------------------- what was given ----


def is_frame(data: Any) -> bool:
    """Whether it is a pandas DataFrame, without importing pandas."""
    return hasattr(data, "columns") and hasattr(data, "dtypes") and hasattr(data, "iloc")


def is_arrow(data: Any) -> bool:
    """Whether it is a table of Arrow, or of a library that speaks its interface (polars, …)."""
    return isinstance(data, pa.Table | pa.RecordBatch) or (speaks_arrow(data) and not hasattr(data, "iloc"))


def column_of(values: Any) -> Any:
    """Labels, weights or groups as an array, where they are of Arrow or the only column of a table; others as they are.
    DataError where the table has several columns.
    """
    column = only_column(values)
    if isinstance(column, pa.ChunkedArray):
        return column.to_numpy()
    return column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column


def only_column(values: Any) -> Any:
    """The only column of a table or frame, an array of Arrow or a Series; what is no table as it is. DataError where
    there are several columns.
    """
    is_table = isinstance(values, pa.Table | pa.RecordBatch) or hasattr(values, "columns")
    if not is_table and (not speaks_arrow(values) or hasattr(values, "__array__")):
        return values
    table = arrived(values)
    if isinstance(table, pa.Array | pa.ChunkedArray):
        return table
    if table.shape[1] != 1:
        raise DataError(
            f"a {type(values).__name__} of {table.shape[1]} columns is no column; select the one that is meant"
        )
    return table.iloc[:, 0] if is_frame(table) else table.column(0)


def is_path(data: Any) -> bool:
    """Whether it names Parquet shards."""
    if isinstance(data, list | tuple) and data:
        return all(isinstance(item, str) and "/" in item for item in data)
    return isinstance(data, str | os.PathLike)


def is_dask(data: Any) -> bool:
    """Whether it is a Dask collection, without importing Dask."""
    return hasattr(data, "__dask_graph__")


def is_columns(data: Any) -> bool:
    """Whether it is a dict of columns; a sparse matrix kept as a dict of entries is none."""
    return isinstance(data, Mapping) and not is_sparse(data)


def is_table(data: Any, options: TableOptions) -> bool:
    """Whether it has columns that are no plain numbers, or whose roles were given: such tables are hashed.

    Integers are categories, as in shards, unless the columns have no names: then the frame is but an array.
    """
    if is_columns(data):
        return True
    if not (is_frame(data) or is_arrow(data)):
        return False
    if options.names_columns:
        return True
    if is_frame(data) and not any(isinstance(name, str) for name in data.columns):
        return not all(kind in FLOATS or kind.startswith(("int", "uint", "bool")) for kind in _type_names(data))
    return not all(kind in FLOATS for kind in _type_names(data))


def _type_names(data: Any) -> Iterator[str]:
    if is_frame(data):
        return (str(getattr(kind, "subtype", kind)) for kind in data.dtypes)
    return (str(entry.type) for entry in as_arrow(data).schema)


def names_of(data: Any) -> list[str] | None:
    """Column names where the data has any."""
    if is_columns(data):
        return [str(name) for name in data]
    if is_arrow(data):
        return list(as_arrow(data).column_names)
    if is_frame(data) and any(isinstance(name, str) for name in data.columns):
        return [str(name) for name in data.columns]
    return None


def as_arrow(data: Any, numeric: Collection[str] = (), missing: Collection[str] = ()) -> pa.Table:
    """A table in any of the accepted forms, as one of Arrow. numeric: names of columns that are wanted as numbers;
    missing: texts that mean a missing value. SettingsError where two columns have one name.
    """
    if isinstance(data, pa.RecordBatch):
        return as_arrow(pa.Table.from_batches([data]))
    if is_frame(data) or is_columns(data):
        names = [str(name) for name in data]
        check_once(names)
        batches = list(batches_of(_by_text(data), tuple(names), set(names).intersection(numeric), missing))
        return flat(pa.Table.from_batches(batches)) if batches else pa.table({name: pa.nulls(0) for name in names})
    table = data if isinstance(data, pa.Table) else exported_table(data)
    check_once(table.column_names)
    return without_views(flat(table))


def named_in(data: Any, patterns: Collection[str]) -> set[str]:
    """Names of the columns of a frame or dict that are among these names and patterns."""
    names = map(str, data) if is_frame(data) or is_columns(data) else ()
    return {name for name in names if is_named(name, patterns)}


def _by_text(data: Any) -> Any:
    """A frame or dict whose column names are text."""
    names = list(data)  # of a frame, too, these are its columns
    if all(isinstance(name, str) for name in names):
        return data
    return {str(name): data[name] for name in names}


def as_matrix(data: Any) -> Any:
    """A table of numbers as an array; arrays and sparse matrices as they are."""
    if not is_arrow(data):
        return data
    table = as_arrow(data)
    return np.column_stack([table.column(name).to_numpy() for name in table.column_names])


def n_rows_of(data: Any) -> int:
    """Number of rows of a table or matrix."""
    if is_columns(data):
        return len(next(iter(data.values()), ()))
    if is_sparse(data):
        return int(data.shape[0])
    return len(data) if not is_arrow(data) else int(as_arrow(data).num_rows)
