"""Fits of estimators on Dask collections: chunks become partitions where they lie, replicas train on the workers.

Chunks are dealt to replicas by their row counts alone, so the same collection in the same chunks gives the same bytes
on any number of workers. What is made of chunks is tasks that Dask runs again where a worker was lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import Client, Future
from numpy.typing import NDArray

from dfm.data.arrow_types import column_kind
from dfm.data.building import build_partition
from dfm.data.hashed_rows import EntrySums, HashedRows, concatenate_rows, take_rows
from dfm.data.matrices import ColumnMoments, Scaling, is_sparse, matrix_rows, vector_vocabulary
from dfm.data.number_sketches import NumberSketch, columns_with_statistics, statistics_of
from dfm.data.partition import SparsePartition, by_group
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import ResolvedSchema
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import (
    NO_COUNTS,
    FeatureCounts,
    Vocabulary,
    build_vocabulary,
    count_features,
    merge_counts,
    seen_rarely,
)
from dfm.distributed.cluster.watch import Watch, home_of
from dfm.distributed.texts import (
    LISTS,
    TRUTHS,
    objects_of,
    refuse_text_for_lists,
    refuse_truths,
    text_columns,
    told_of_lists,
    told_of_truths,
    truths_among,
)
from dfm.errors import DataError, DfmError
from dfm.estimators.features import (
    FeatureOptions,
    Features,
    MatrixFeatures,
    TableFeatures,
    TableOptions,
    as_arrow,
    encoded_rows,
    is_frame,
    is_table,
    n_rows_of,
    names_of,
    resolve_columns,
    sketch_table,
)
from dfm.estimators.labels import LabelEncoding, LabelSummary, check_classes, check_present, summarise_labels
from dfm.estimators.notes import tell
from dfm.estimators.scorers import Scorer
from dfm.estimators.sources import Deal
from dfm.model.rows import numeric_of
from dfm.model.tokens import Tokens

# --------------------------------------------------------------------------------------------- chunks ----


@dataclass(frozen=True)
class Chunk:
    """Neighbouring rows: X, their labels, their weights or None; futures of them, and within a task they themselves.

    number: in the collection, from 0.
    """

    number: int
    data: Any
    labels: Any
    weights: Any


def chunks_of(client: Client, X: Any, y: Any, weights: Any) -> list[Chunk]:
    """The chunks of collections of equal partitioning, on their way to the workers."""
    data = _blocks(X)
    labels = _blocks(y) if hasattr(y, "__dask_graph__") else None
    masses = None if weights is None else (_blocks(weights) if hasattr(weights, "__dask_graph__") else None)
    for name, parts, given in (("y", labels, y), ("sample_weight", masses, weights)):
        if given is not None and (parts is None or len(parts) != len(data)):
            found = "no Dask collection" if parts is None else f"{len(parts)} chunks"
            raise DataError(
                f"X has {len(data)} chunks, {name} is {found}: pass a collection chunked alike (rechunk, repartition)"
            )
    futures = client.compute([*data, *(labels or []), *(masses or [])])
    n = len(data)
    return [Chunk(i, futures[i], futures[n + i], futures[2 * n + i] if masses is not None else None) for i in range(n)]


def on_chunks(watch: Watch, function: Callable[..., Any], chunks: Sequence[Chunk], *more: Any) -> list[Future]:
    """Futures of `function` of every chunk and `more`."""
    name = function.__name__  # of the tasks, for the dashboard
    return [
        watch.submit(
            *(_on_chunk, function, chunk.number, (chunk.data, chunk.labels, chunk.weights), more),
            key=f"{name}-{uuid.uuid4().hex}",
        )
        for chunk in chunks
    ]


def _on_chunk(function: Callable[..., Any], number: int, rows: tuple[Any, Any, Any], more: Sequence[Any]) -> Any:
    with naming_chunk(number):
        return function(Chunk(number, *rows), *more)


@contextlib.contextmanager
def naming_chunk(number: int) -> Iterator[None]:
    """An error of the block names the chunk; one that is none of dfm becomes a DataError."""
    try:
        yield
    except DfmError as error:
        raise type(error)(f"chunk {number} of X: {error}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"chunk {number} of X does not fit ({type(error).__name__}: {error}); give all chunks the columns and "
            "types of the collection (X.map_partitions)"
        ) from error


def _blocks(collection: Any) -> list[Any]:
    """Row blocks of an array (its columns put together) or the partitions of a frame, delayed."""
    if hasattr(collection, "to_delayed") and hasattr(collection, "npartitions") and not hasattr(collection, "chunks"):
        return list(collection.to_delayed())
    if getattr(collection, "ndim", 0) == 2:
        return list(collection.rechunk({1: -1}).to_delayed()[:, 0])
    return list(collection.to_delayed())


# ------------------------------------------------------------------------------------------- features ----


def column_moments(chunk: Chunk, names: Sequence[str] | None, labels: LabelEncoding) -> ColumnMoments | None:
    """Moments of the columns of a dense chunk; None of a sparse one."""
    matrix = chunk_matrix(chunk.data, names)
    if is_sparse(matrix):
        return None
    return ColumnMoments.of(matrix, _codes_and_weights(chunk, labels)[1])


def chunk_matrix(data: Any, names: Sequence[str] | None) -> Any:
    """A chunk as an array or sparse matrix; of a frame the columns of these names, in this order, whatever its own is.

    DataError where one is missing, or holds what is no number.
    """
    if not is_frame(data):
        return data
    if names is not None:
        _check_columns(data, names)
        data = data[list(names)]
    array = data.to_numpy()
    if array.dtype.kind in "biuf":
        return array
    return np.column_stack([_column_numbers(data[name], str(name)) for name in data.columns])


def _check_columns(data: Any, names: Sequence[str]) -> None:
    there = [str(name) for name in data.columns]
    if missing := [name for name in names if name not in there]:
        raise DataError(f"there is no column {missing[0]!r}; X has {', '.join(names)}")


def _column_numbers(column: Any, name: str) -> NDArray[np.float64]:
    try:
        numbers: NDArray[np.float64] = column.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"column {name!r} holds what is no number ({error}), and does in others") from error
    return numbers


def sketch_chunk(chunk: Chunk, schema: ResolvedSchema, labels: LabelEncoding) -> dict[str, NumberSketch]:
    """Sketch of the columns whose transform needs statistics, over the rows that weigh anything."""
    return sketch_table(_chunk_table(chunk.data, schema), schema, _codes_and_weights(chunk, labels)[1])


def _codes_and_weights(chunk: Chunk, labels: LabelEncoding) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Labels and weights of a chunk as its rows store them."""
    codes = labels.labels(chunk.labels)
    return codes, labels.weights(codes, chunk.weights)


def _chunk_table(data: Any, schema: ResolvedSchema) -> pa.Table:
    _check_columns(data, schema.columns)
    return as_arrow(data, numeric_of(schema), schema.missing)


@dataclass(frozen=True)
class ChunkEncoding:
    """Encoding of a chunk: a schema to hash by (with statistics), or else the names of columns, if they have any,
    and the scaling of a matrix.
    """

    labels: LabelEncoding
    schema: ResolvedSchema | None = None
    hash_bits: int = 0
    statistics: Mapping[str, NumberStatistics] = field(default_factory=dict)
    names: Sequence[str] | None = None
    scaling: Scaling | None = None
    truths: frozenset[str] = frozenset()
    """Columns of text, that other rows had as true and false."""


def chunk_rows(chunk: Chunk, encoding: ChunkEncoding) -> HashedRows:
    """The rows of a chunk."""
    if encoding.schema is not None:
        table = _chunk_table(chunk.data, encoding.schema)
        refuse_truths(chunk.data, encoding.truths)
        rows = encoded_rows(table, encoding.schema, encoding.hash_bits, encoding.statistics)
    else:
        rows = matrix_rows(chunk_matrix(chunk.data, encoding.names), encoding.scaling)
    codes, weights = _codes_and_weights(chunk, encoding.labels)
    return dataclasses.replace(rows, labels=codes, weights=weights)


def count_chunk(rows: HashedRows, n_fields: int, hash_bits: int) -> FeatureCounts:
    """Occurrences of each hashed feature."""
    return count_features(rows.indices, rows.fields, n_fields, hash_bits)


def count_columns(rows: HashedRows, n_columns: int) -> NDArray[np.int64]:
    """Rows in which each column is not zero, int64[n_columns]."""
    return np.bincount(rows.indices, minlength=n_columns).astype(np.int64)


def entries_of(rows: HashedRows) -> EntrySums:
    """Sums over the entries of a chunk."""
    return rows.entries


def summarise_chunk(chunk: Chunk, is_classification: bool) -> LabelSummary:
    """Summary of a chunk's labels. DataError where there is not one for every row, of the kind that is trained on."""
    y, n_rows = chunk.labels, n_rows_of(chunk.data)
    if np.ndim(y) != 1 or len(y) != n_rows:
        raise DataError(f"it has {n_rows} rows, that of y the shape {np.shape(y)}: one label a row")
    check_present(y)
    masses = None if chunk.weights is None else np.asarray(chunk.weights, np.float64)
    try:
        summary = summarise_labels(y, masses, is_classification)
    except (TypeError, ValueError) as error:
        expected = "one type" if is_classification else "numbers"
        raise DataError(f"its y does not fit ({error}); make it {expected} (y.astype)") from error
    if summary.classes.size:
        check_classes(summary.classes)
    return summary


def summaries_of(
    watch: Watch, chunks: Sequence[Chunk], is_classification: bool
) -> tuple[list[Chunk], list[LabelSummary]]:
    """The chunks that have rows, and the summaries of their labels. DataError where none has any, or where labels are
    text in one and numbers in another.
    """
    found: list[LabelSummary] = watch.results(on_chunks(watch, summarise_chunk, chunks, is_classification))
    there = [(chunk, part) for chunk, part in zip(chunks, found, strict=True) if part.n_rows]
    if not there:
        raise DataError("X has no rows: all its chunks are empty")
    kinds = {isinstance(part.classes[0], str): chunk.number for chunk, part in there if len(part.classes)}
    if len(kinds) > 1:
        raise DataError(
            f"y holds text in chunk {kinds[True]} and numbers in chunk {kinds[False]}: make it one type (y.astype)"
        )
    return [chunk for chunk, _ in there], [part for _, part in there]


@dataclass(frozen=True)
class Learnt:
    """Features of a collection, and futures of their vocabulary and of the rows of its chunks."""

    features: Features
    vocabulary: Future
    rows: list[Future]


def learn_features(
    watch: Watch, X: Any, chunks: Sequence[Chunk], options: FeatureOptions, labels: LabelEncoding
) -> Learnt:
    """Features and rows of a collection."""
    meta = getattr(X, "_meta", None)
    if is_table(meta, options.table):
        return _table_features(watch, meta, chunks, options, labels)
    options.table.check_matrix()
    names, n_columns = names_of(meta), int(X.shape[1])
    scaling = _learn_scaling(watch, chunks, names, labels) if options.table.standardize else None
    rows = encode_chunks(watch, ChunkEncoding(labels, names=names, scaling=scaling), chunks)
    counts = watch.results([watch.submit(count_columns, part, n_columns) for part in rows])
    vocabulary = vector_vocabulary(n_columns, np.sum(counts, axis=0))
    features = MatrixFeatures(None if names is None else tuple(names), vocabulary, scaling)
    return Learnt(features, watch.keep(vocabulary), rows)


def encode_chunks(watch: Watch, encoding: ChunkEncoding, chunks: Sequence[Chunk]) -> list[Future]:
    """Futures of the rows of chunks."""
    return on_chunks(watch, chunk_rows, chunks, encoding)


def encoding_of(features: Features, labels: LabelEncoding, X: Any) -> ChunkEncoding:
    """The way in which the chunks of a further collection become rows of these features. DataError as of
    `truths_among`.
    """
    if isinstance(features, TableFeatures):
        bits = features.vocabulary.hash_bits
        return ChunkEncoding(labels, features.schema, bits, dict(features.statistics), truths=truths_of(features, X))
    assert isinstance(features, MatrixFeatures)
    return ChunkEncoding(labels, names=features.names, scaling=features.scaling)


def truths_of(features: Features, X: Any) -> frozenset[str]:
    """The columns of text of a frame of Dask that may hold texts of truths, which the fit knows as these. DataError as
    of `truths_among`.
    """
    if not isinstance(features, TableFeatures) or not hasattr(X, "dtypes"):
        return frozenset()
    vocabulary = features.vocabulary
    return truths_among(X, Tokens(features.schema, vocabulary.hash_bits, features.statistics), vocabulary)


def _learn_scaling(
    watch: Watch, chunks: Sequence[Chunk], names: Sequence[str] | None, labels: LabelEncoding
) -> Scaling | None:
    found: list[ColumnMoments | None] = watch.results(on_chunks(watch, column_moments, chunks, names, labels))
    known = [moments for moments in found if moments is not None]
    if not known:
        return None
    if len(known) < len(found):
        raise DataError("some blocks of X are sparse, others dense: make them one kind (X.map_blocks)")
    total = known[0]
    for moments in known[1:]:
        total = total + moments
    return Scaling.from_moments(total)


def _table_features(
    watch: Watch, meta: Any, chunks: Sequence[Chunk], feature_options: FeatureOptions, labels: LabelEncoding
) -> Learnt:
    options = feature_options.table
    schema = resolve_columns(_column_types(watch, meta, chunks), options)
    refuse_text_for_lists(meta, schema)
    _tell_of_texts(watch, text_columns(meta) & _categorical(schema), chunks, options)
    sketches = watch.results(on_chunks(watch, sketch_chunk, chunks, schema, labels))
    by_column = {column: [sketch[column] for sketch in sketches] for column in columns_with_statistics(schema)}
    statistics = statistics_of(by_column, schema)
    rows = encode_chunks(watch, ChunkEncoding(labels, schema, options.hash_bits, statistics), chunks)
    merged = merged_counts(watch, rows, len(schema.fields), options.hash_bits)
    names = [entry.name for entry in schema.fields]
    least = options.least_for_factors(feature_options.n_factors)
    knobs = options.hash_bits, options.min_count, least
    vocabulary = watch.submit(build_vocabulary, merged, names, *knobs)
    waiting = watch.result(watch.submit(seen_rarely, merged, options.min_count)) if options.min_count > 1 else NO_COUNTS
    return Learnt(TableFeatures(schema, watch.result(vocabulary), statistics, waiting), vocabulary, rows)


def _column_types(watch: Watch, meta: Any, chunks: Sequence[Chunk]) -> dict[str, pa.DataType]:
    """Types of the columns; of those of objects, of which the collection does not know more, that of the values."""
    sparse = {name: kind.subtype for name, kind in meta.dtypes.items() if hasattr(kind, "fill_value")}
    types = {entry.name: entry.type for entry in pa.Schema.from_pandas(meta.astype(sparse), preserve_index=False)}
    objects = [str(name) for name, kind in meta.dtypes.items() if str(kind) == "object"]
    if objects:
        found = watch.results(on_chunks(watch, types_of, chunks, objects))
        types |= {name: _common_type([part[name] for part in found if name in part]) for name in objects}
    return types


def types_of(chunk: Chunk, columns: Sequence[str]) -> dict[str, pa.DataType]:
    """Types of the values of columns."""
    _check_columns(chunk.data, columns)
    chosen = chunk.data.loc[:, [str(name) in columns for name in chunk.data.columns]]
    return {entry.name: entry.type for entry in as_arrow(chosen).schema}


def _common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    """The type of a column whose chunks have these: text, where there is none for all of them."""
    kinds = {column_kind(kind): kind for kind in types if not pa.types.is_null(kind)}
    if len(kinds) <= 1:
        return next(iter(kinds.values()), pa.null())
    return pa.float64() if kinds.keys() <= {"int", "float"} else pa.string()


def _categorical(schema: ResolvedSchema) -> set[str]:
    return {entry.name for entry in schema.fields if entry.kind == "categorical"}


def _tell_of_texts(watch: Watch, columns: set[str], chunks: Sequence[Chunk], options: TableOptions) -> None:
    """Warn of columns of text that look like truths, or, where nobody named them, like lists."""
    found = watch.results(on_chunks(watch, objects_in, chunks, sorted(columns))) if columns else []
    for column in sorted(columns):
        kinds = {part[column] for part in found} - {None}
        if kinds == {TRUTHS}:
            tell(told_of_truths(column))
        if kinds == {LISTS} and column not in options.categorical:
            tell(told_of_lists(column))


def objects_in(chunk: Chunk, columns: Sequence[str]) -> dict[str, str | None]:
    """The objects that columns of text look like, by column."""
    _check_columns(chunk.data, columns)
    texts = text_columns(chunk.data)
    return {column: objects_of(chunk.data, column) if column in texts else "" for column in columns}


def merged_counts(watch: Watch, rows: Sequence[Future], n_fields: int, hash_bits: int) -> Future:
    """Occurrences of the hashed features in the rows of all chunks."""
    counts = [watch.submit(count_chunk, part, n_fields, hash_bits) for part in rows]
    return watch.submit(merge_counts, counts, hash_bits)


# ----------------------------------------------------------------------------------------- partitions ----


def place_chunks(
    watch: Watch,
    vocabulary: Future,
    rows_and_sizes: tuple[Sequence[Future], Sequence[int]],
    dealing: Deal,
    share: float,
) -> tuple[list[Future], list[Future]]:
    """Deal the rows of chunks out to replicas of equal size (to one row), and build their partitions.

    Futures of lists of partitions: of each replica's rounds, and of the share of its rows that it holds out.
    """
    (rows, sizes), n_replicas = rows_and_sizes, dealing.n_replicas
    total = sum(sizes)
    dealing.check(total)
    starts, addresses = np.cumsum([0, *sizes]), watch.addresses()
    replicas, held_out = [], []
    for replica in range(n_replicas):
        first, last = total * replica // n_replicas, total * (replica + 1) // n_replicas
        used = [i for i, size in enumerate(sizes) if starts[i] < last and starts[i] + size > first]
        span, near = (first - int(starts[used[0]]), last - first), home_of(replica, n_replicas, addresses)
        both = watch.submit(
            *(replica_partitions, vocabulary, [rows[i] for i in used], span),
            *((dealing, replica), share),
            near=near,
        )
        replicas.append(watch.submit(_first_of, both, near=near))
        if share:
            held_out.append(watch.submit(_second_of, both, near=near))
    return replicas, held_out


def _first_of(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _second_of(pair: tuple[Any, Any]) -> Any:
    return pair[1]


def replica_partitions(
    vocabulary: Vocabulary,
    chunks: Sequence[HashedRows],
    span: tuple[int, int],
    place: tuple[Deal, int],
    validation_fraction: float,
) -> tuple[list[SparsePartition], list[SparsePartition]]:
    """Partitions of the replica of that number, one per round, and of the rows that it holds out.

    span: first row within the chunks laid end to end, and how many.
    """
    first, n_rows = span
    rows = concatenate_rows(list(chunks)).slice(first, first + n_rows)
    return partitions_of(rows, vocabulary, place, validation_fraction)


def partitions_of(
    rows: HashedRows,
    vocabulary: Vocabulary,
    place: tuple[Deal, int],
    validation_fraction: float,
) -> tuple[list[SparsePartition], list[SparsePartition]]:
    """Partitions of a replica's rows, shuffled, one per round, and of a share of them that is held out."""
    (dealing, replica), lookup = place, RowLookup(vocabulary)
    order = np.random.default_rng((dealing.seed, replica)).permutation(rows.n_rows)
    n_held_out, n_rounds = int(rows.n_rows * validation_fraction), dealing.n_rounds
    bounds = [n_held_out + (rows.n_rows - n_held_out) * part // n_rounds for part in range(n_rounds + 1)]
    parts = [
        by_group(build_partition(take_rows(rows, order[start:stop]), vocabulary, lookup), dealing.groups)
        for start, stop in itertools.pairwise(bounds)
    ]
    held_out = [build_partition(take_rows(rows, order[:n_held_out]), vocabulary, lookup)] if n_held_out else []
    return parts, held_out


def whole_chunks(watch: Watch, vocabulary: Future, rows: Sequence[Future]) -> list[Future]:
    """Futures of lists of one partition per chunk, to validate on."""
    return [watch.submit(_whole_chunk, vocabulary, part) for part in rows]


def _whole_chunk(vocabulary: Vocabulary, rows: HashedRows) -> list[SparsePartition]:
    return [build_partition(rows, vocabulary, RowLookup(vocabulary))]


# ------------------------------------------------------------------------------------------- predict ----


@dataclass(frozen=True)
class Scores:
    """A method of the estimator, shape (() of a number) and dtype of a row's result. truths: as of `ChunkEncoding`."""

    method: str
    shape: tuple[int, ...]
    dtype: Any
    truths: frozenset[str] = frozenset()


def predict_lazily(X: Any, estimator: Any, wanted: Scores) -> Any:
    """A lazy Dask array of a method of a fitted estimator on every chunk."""
    import dask
    import dask.array

    blocks = _blocks(X)
    lengths = _lengths(X, len(blocks))
    call, scorer = dask.delayed(score_chunk, pure=True), Scorer.of(estimator)
    parts = [
        dask.array.from_delayed(call(scorer, wanted, number, block), (length, *wanted.shape), wanted.dtype)
        for number, (block, length) in enumerate(zip(blocks, lengths, strict=True))
    ]
    return dask.array.concatenate(parts)


def score_chunk(scorer: Scorer, wanted: Scores, number: int, data: Any) -> NDArray[Any]:
    """Scores of one chunk."""
    with naming_chunk(number):
        if not n_rows_of(data):
            return np.zeros((0, *wanted.shape), wanted.dtype)
        refuse_truths(data, wanted.truths)
        scores: NDArray[Any] = getattr(scorer.estimator(), wanted.method)(data)
        return scores


def _lengths(X: Any, n_blocks: int) -> list[float]:
    """Rows of the chunks; nan where only the work will tell."""
    chunks = getattr(X, "chunks", None)
    return list(chunks[0]) if chunks else [float("nan")] * n_blocks
