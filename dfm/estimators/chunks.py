"""Fits of estimators on Dask collections: chunks become partitions where they lie, replicas train on the workers.

Chunks are dealt to replicas by their row counts alone, so the same collection in the same chunks gives the same bytes
on any number of workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import Client, Future
from numpy.typing import NDArray

from dfm.data.encoding import take_rows
from dfm.data.matrices import ColumnMoments, Scaling, is_sparse, matrix_rows, vector_vocabulary
from dfm.data.partition import HashedRows, SparsePartition, build_partition, concatenate_rows
from dfm.data.preparation import NumberSketch, columns_with_statistics, statistics_of
from dfm.data.schema import ResolvedSchema
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import (
    NO_COUNTS,
    FeatureCounts,
    RowLookup,
    Vocabulary,
    build_vocabulary,
    count_features,
    merge_counts,
    seen_rarely,
)
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.prepare import home_of
from dfm.errors import DataError
from dfm.estimators.features import (
    FeatureOptions,
    Features,
    MatrixFeatures,
    TableFeatures,
    as_arrow,
    encoded_rows,
    is_table,
    n_rows_of,
    names_of,
    resolve_columns,
    sketch_table,
)
from dfm.estimators.labels import LabelEncoding, LabelSummary, summarise_labels
from dfm.estimators.sources import Deal

_NO_FLOATS = np.zeros(0, np.float32)


# --------------------------------------------------------------------------------------------- chunks ----


@dataclass(frozen=True)
class Chunk:
    """Futures of neighbouring rows: X, their labels, their weights or None."""

    data: Future
    labels: Future
    weights: Future | None


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
    return [Chunk(futures[i], futures[n + i], futures[2 * n + i] if masses is not None else None) for i in range(n)]


def _blocks(collection: Any) -> list[Any]:
    """Row blocks of an array (its columns put together) or the partitions of a frame, delayed."""
    if hasattr(collection, "to_delayed") and hasattr(collection, "npartitions") and not hasattr(collection, "chunks"):
        return list(collection.to_delayed())
    if getattr(collection, "ndim", 0) == 2:
        return list(collection.rechunk({1: -1}).to_delayed()[:, 0])
    return list(collection.to_delayed())


# ------------------------------------------------------------------------------------------- features ----


def column_moments(data: Any, weights: Any) -> ColumnMoments | None:
    """Moments of the columns of a dense chunk; None of a sparse one."""
    if is_sparse(data):
        return None
    masses = _NO_FLOATS if weights is None else np.asarray(weights, np.float32)
    return ColumnMoments.of(_as_array(data), masses)


def _as_array(data: Any) -> Any:
    """A chunk as an array or sparse matrix."""
    return data.to_numpy() if hasattr(data, "to_numpy") else data


def sketch_chunk(data: Any, schema: ResolvedSchema) -> dict[str, NumberSketch]:
    """Sketch of the columns whose transform needs statistics."""
    return sketch_table(as_arrow(data), schema)


@dataclass(frozen=True)
class ChunkEncoding:
    """How a chunk becomes rows: a schema to hash by (with statistics), or else the scaling of a matrix."""

    schema: ResolvedSchema | None
    hash_bits: int
    statistics: dict[str, NumberStatistics]
    scaling: Scaling | None
    labels: LabelEncoding


def chunk_rows(encoding: ChunkEncoding, data: Any, y: Any, weights: Any) -> HashedRows:
    """The rows of a chunk."""
    if encoding.schema is not None:
        rows = encoded_rows(as_arrow(data), encoding.schema, encoding.hash_bits, encoding.statistics)
    else:
        rows = matrix_rows(_as_array(data), encoding.scaling)
    codes = encoding.labels.labels(y)
    return dataclasses.replace(rows, labels=codes, weights=encoding.labels.weights(codes, weights))


def count_chunk(rows: HashedRows, n_fields: int, hash_bits: int) -> FeatureCounts:
    """Occurrences of each hashed feature."""
    return count_features(rows.indices, rows.fields, n_fields, hash_bits)


def count_columns(rows: HashedRows, n_columns: int) -> NDArray[np.int64]:
    """Rows in which each column is not zero, int64[n_columns]."""
    return np.bincount(rows.indices, minlength=n_columns).astype(np.int64)


def squares_of(rows: HashedRows) -> float:
    """Sum of x² over all entries of a chunk."""
    return rows.sum_of_squares


def summarise_chunk(data: Any, y: Any, weights: Any, is_classification: bool) -> LabelSummary:
    """What is to be known of a chunk's labels. DataError where there is not one for every row."""
    if np.ndim(y) != 1 or len(y) != n_rows_of(data):
        raise DataError(f"a chunk of X has {n_rows_of(data)} rows, that of y the shape {np.shape(y)}: one label a row")
    return summarise_labels(y, weights, is_classification)


def summaries_of(watch: Watch, chunks: Sequence[Chunk], is_classification: bool) -> list[LabelSummary]:
    """Summaries of the labels, chunk by chunk."""
    futures = [
        watch.submit(summarise_chunk, chunk.data, chunk.labels, chunk.weights, is_classification) for chunk in chunks
    ]
    summaries: list[LabelSummary] = watch.client.gather(futures)
    if not sum(part.n_rows for part in summaries):
        raise DataError("X has no rows")
    return summaries


def learn_features(
    watch: Watch, X: Any, chunks: Sequence[Chunk], options: FeatureOptions, labels: LabelEncoding
) -> tuple[Features, list[Future]]:
    """Features of a collection, and futures of the rows of its chunks."""
    meta = getattr(X, "_meta", None)
    if is_table(meta, options.table):
        return _table_features(watch, meta, chunks, options, labels)
    scaling = _learn_scaling(watch, chunks) if options.standardize else None
    names, n_columns = names_of(meta), int(X.shape[1])
    encoding = ChunkEncoding(None, 0, {}, scaling, labels)
    rows = encode_chunks(watch, encoding, chunks)
    counts = watch.client.gather([watch.submit(count_columns, part, n_columns) for part in rows])
    vocabulary = vector_vocabulary(n_columns, np.sum(counts, axis=0))
    return MatrixFeatures(None if names is None else tuple(names), vocabulary, scaling), rows


def encode_chunks(watch: Watch, encoding: ChunkEncoding, chunks: Sequence[Chunk]) -> list[Future]:
    """Futures of the rows of chunks."""
    return [watch.submit(chunk_rows, encoding, chunk.data, chunk.labels, chunk.weights) for chunk in chunks]


def encoding_of(features: Features, labels: LabelEncoding) -> ChunkEncoding:
    """How further chunks become rows of these features."""
    if isinstance(features, TableFeatures):
        bits, statistics = features.vocabulary.hash_bits, dict(features.statistics)
        return ChunkEncoding(features.schema, bits, statistics, None, labels)
    assert isinstance(features, MatrixFeatures)
    return ChunkEncoding(None, 0, {}, features.scaling, labels)


def _learn_scaling(watch: Watch, chunks: Sequence[Chunk]) -> Scaling | None:
    futures = [watch.submit(column_moments, chunk.data, chunk.weights) for chunk in chunks]
    found: list[ColumnMoments | None] = watch.client.gather(futures)
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
) -> tuple[Features, list[Future]]:
    options = feature_options.table
    types = pa.Schema.from_pandas(meta, preserve_index=False)
    schema = resolve_columns({entry.name: entry.type for entry in types}, options)
    sketches = watch.client.gather([watch.submit(sketch_chunk, chunk.data, schema) for chunk in chunks])
    by_column = {column: [sketch[column] for sketch in sketches] for column in columns_with_statistics(schema)}
    statistics = statistics_of(by_column, schema)
    encoding = ChunkEncoding(schema, options.hash_bits, statistics, None, labels)
    rows = encode_chunks(watch, encoding, chunks)
    merged = merged_counts(watch, rows, len(schema.fields), options.hash_bits)
    names = [entry.name for entry in schema.fields]
    least = options.least_for_factors(feature_options.n_factors)
    knobs = options.hash_bits, options.min_count, least
    vocabulary = watch.result(watch.submit(build_vocabulary, merged, names, *knobs))
    waiting = watch.result(watch.submit(seen_rarely, merged, options.min_count)) if options.min_count > 1 else NO_COUNTS
    return TableFeatures(schema, vocabulary, statistics, waiting), rows


def merged_counts(watch: Watch, rows: Sequence[Future], n_fields: int, hash_bits: int) -> Future:
    """Occurrences of the hashed features in the rows of all chunks."""
    counts = [watch.submit(count_chunk, part, n_fields, hash_bits) for part in rows]
    return watch.submit(merge_counts, counts, hash_bits)


# ----------------------------------------------------------------------------------------- partitions ----


def place_chunks(
    watch: Watch,
    features: Features,
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
    vocabulary = watch.client.scatter(features.vocabulary, hash=False)
    starts, addresses = np.cumsum([0, *sizes]), watch.addresses()
    replicas, held_out = [], []
    for replica in range(n_replicas):
        first, last = total * replica // n_replicas, total * (replica + 1) // n_replicas
        used = [i for i, size in enumerate(sizes) if starts[i] < last and starts[i] + size > first]
        span, near = (first - int(starts[used[0]]), last - first), home_of(replica, n_replicas, addresses)
        both = watch.submit(
            *(replica_partitions, vocabulary, [rows[i] for i in used], span),
            *(dealing.n_rounds, (dealing.seed, replica), share),
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
    n_rounds: int,
    seed: tuple[int, int],
    validation_fraction: float,
) -> tuple[list[SparsePartition], list[SparsePartition]]:
    """Partitions of one replica, one per round, and of the rows that it holds out.

    span: first row within the chunks laid end to end, and how many.
    """
    first, n_rows = span
    rows = concatenate_rows(list(chunks)).slice(first, first + n_rows)
    return partitions_of(rows, vocabulary, RowLookup(vocabulary), n_rounds, seed, validation_fraction)


def partitions_of(
    rows: HashedRows,
    vocabulary: Vocabulary,
    lookup: RowLookup,
    n_rounds: int,
    seed: tuple[int, int],
    validation_fraction: float,
) -> tuple[list[SparsePartition], list[SparsePartition]]:
    """Partitions of a replica's rows, shuffled, one per round, and of a share of them that is held out."""
    order = np.random.default_rng(seed).permutation(rows.n_rows)
    n_held_out = int(rows.n_rows * validation_fraction)
    bounds = [n_held_out + (rows.n_rows - n_held_out) * part // n_rounds for part in range(n_rounds + 1)]
    parts = [
        build_partition(take_rows(rows, order[bounds[part] : bounds[part + 1]]), vocabulary, lookup)
        for part in range(n_rounds)
    ]
    held_out = [build_partition(take_rows(rows, order[:n_held_out]), vocabulary, lookup)] if n_held_out else []
    return parts, held_out


def whole_chunks(watch: Watch, features: Features, rows: Sequence[Future]) -> list[Future]:
    """Futures of lists of one partition per chunk, to validate on."""
    vocabulary = watch.client.scatter(features.vocabulary, hash=False)
    return [watch.submit(_whole_chunk, vocabulary, part) for part in rows]


def _whole_chunk(vocabulary: Vocabulary, rows: HashedRows) -> list[SparsePartition]:
    return [build_partition(rows, vocabulary, RowLookup(vocabulary))]


# ------------------------------------------------------------------------------------------- predict ----


def predict_lazily(X: Any, score: Callable[[Any], NDArray[Any]], shape: tuple[int, ...], dtype: Any) -> Any:
    """A lazy Dask array of `score` of every chunk; shape: of a row's result, () for a number."""
    import dask
    import dask.array

    blocks = _blocks(X)
    lengths = _lengths(X, len(blocks))
    call = dask.delayed(_call, pure=True)
    shared = dask.delayed(score)
    parts = [
        dask.array.from_delayed(call(shared, block), (length, *shape), dtype)
        for block, length in zip(blocks, lengths, strict=True)
    ]
    return dask.array.concatenate(parts)


def _call(score: Callable[[Any], NDArray[Any]], block: Any) -> NDArray[Any]:
    return score(block)


def _lengths(X: Any, n_blocks: int) -> list[float]:
    """Rows of the chunks; nan where only the work will tell."""
    chunks = getattr(X, "chunks", None)
    return list(chunks[0]) if chunks else [float("nan")] * n_blocks
