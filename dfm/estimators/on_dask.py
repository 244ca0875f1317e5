"""Rows that are trained on a Dask cluster: collections where they lie, arrays of this process sent to its workers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask
from distributed import Future
from numpy.typing import NDArray

from dfm.data.hashed_rows import EntrySums, HashedRows
from dfm.data.vocabulary import FeatureCounts, Vocabulary
from dfm.distributed.cluster.remote import check_client
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.executor import FitExecutor, scatter_replicas, watch_of
from dfm.distributed.executor import told_to_a_fit as told_to_a_fit
from dfm.errors import DataError
from dfm.estimators import chunks as collections
from dfm.estimators.chunks import Chunk, chunks_of
from dfm.estimators.chunks import Scores as Scores
from dfm.estimators.chunks import predict_lazily as predict_lazily
from dfm.estimators.chunks import truths_of as truths_of
from dfm.estimators.features import FeatureOptions, Features, MatrixFeatures
from dfm.estimators.labels import NOTHING_WEIGHS, LabelEncoding, LabelSummary, add_summaries
from dfm.estimators.shards import classes_of, distinct_labels, labels_by_task
from dfm.estimators.sources import ArrayRows, Deal, LocalRows, PlacedRows, Relabel


@dataclass
class SentRows(ArrayRows):
    """Rows of this process whose partitions are sent to the workers of a client of Dask."""

    client: Any = None

    def __post_init__(self) -> None:
        check_client(self.client)

    def place(self, features: Features, dealing: Deal, held_out: Any) -> PlacedRows:
        """Partitions that are sent when somebody is to train on them."""
        return _SentPartitions(watch_of(self.client), self.dealt(features, dealing, held_out))


@dataclass(frozen=True)
class _SentPartitions:
    watch: Watch
    here: LocalRows

    def executor(self, relabel: Relabel | None) -> FitExecutor:
        """The workers."""
        own = self.here.relabelled(relabel)
        held_out = scatter_replicas(self.watch, [own.held_out]) if own.held_out else []
        return FitExecutor(self.watch, scatter_replicas(self.watch, own.replicas), held_out)


@dataclass
class CollectionRows:
    """A Dask array or frame X; its labels (and weights) chunked alike, or names of columns of the frame."""

    X: Any
    watch: Watch
    chunks: Sequence[Chunk]
    _sizes: list[int] = field(init=False, default_factory=list)
    _rows: list[Future] = field(init=False, default_factory=list)
    _vocabulary: Future = field(init=False)
    _kept: Vocabulary | None = field(init=False, default=None)
    """The vocabulary that the cluster has."""
    _columns: tuple[int, list[str] | None] | None = field(init=False, default=None)
    _share: float = field(init=False, default=0.0)

    @classmethod
    def of(cls, X: Any, y: Any, weights: Any, client: Any) -> CollectionRows:
        """The rows that a fit was given. ClusterError where there is no client, DataError where chunks do not match."""
        watch = watch_of(client)
        X, y, weights = _apart(X, y, weights)
        if getattr(X, "ndim", 2) != 2:
            raise DataError(
                f"X has {X.ndim} dimensions: expected [n_rows, n_features]; reshape(-1, 1) makes one column"
            )
        return cls(X, watch, chunks_of(watch.client, X, y, weights))

    @property
    def n_rows(self) -> int:
        """All rows: how many each replica holds out, its worker decides."""
        return sum(self._sizes)

    @property
    def entries(self) -> EntrySums:
        """Sums over the entries, chunk by chunk."""
        parts = [self.watch.submit(collections.entries_of, part) for part in self._rows]
        return sum((self.watch.result(part) for part in parts), EntrySums())

    @property
    def columns(self) -> tuple[int, list[str] | None] | None:
        """Number of columns, and their names where they have any."""
        return self._columns

    def summarise(self, is_classification: bool) -> LabelSummary:
        """The summary of all chunks; empty ones are left out from here on. ValueError where no row weighs anything."""
        self.chunks, parts = collections.summaries_of(self.watch, self.chunks, is_classification)
        self._sizes = [part.n_rows for part in parts]
        summary = add_summaries(parts)
        if not summary.weight:
            raise ValueError(NOTHING_WEIGHS)
        return summary

    def learn(self, options: FeatureOptions, labels: LabelEncoding) -> Features:
        """Features of the collection; its rows stay where they lie."""
        learnt = collections.learn_features(self.watch, self.X, self.chunks, options, labels)
        features, self._vocabulary, self._rows = learnt.features, learnt.vocabulary, learnt.rows
        self._kept = features.vocabulary
        if isinstance(features, MatrixFeatures):
            names = None if features.names is None else list(features.names)
            self._columns = features.vocabulary.n_features, names
        else:
            names = [str(name) for name in self.X.columns]
            self._columns = len(names), names
        return features

    def encode(self, features: Features, labels: LabelEncoding) -> None:
        """The rows of known features."""
        encoding = collections.encoding_of(features, labels, self.X)
        self._rows = collections.encode_chunks(self.watch, encoding, self.chunks)

    def counts(self, vocabulary: Vocabulary) -> FeatureCounts:
        """Occurrences in all chunks."""
        return self.watch.result(
            collections.merged_counts(self.watch, self._rows, vocabulary.n_fields, vocabulary.hash_bits)
        )

    def hold_out(self, share: float, seed: int) -> None:
        """Let every replica hold out this share of its rows."""
        self._share = share

    def place(self, features: Features, dealing: Deal, held_out: Any) -> PlacedRows:
        """Partitions where the rows lie. held_out: futures of lists of partitions, or None."""
        rows, vocabulary = (self._rows, self._sizes), self._vocabulary_of(features)
        replicas, own = collections.place_chunks(self.watch, vocabulary, rows, dealing, self._share)
        return _PlacedPartitions(self.watch, replicas, own if held_out is None else held_out)

    def _vocabulary_of(self, features: Features) -> Future:
        """The vocabulary on the cluster: features of an earlier fit are sent, once, and again when they have grown."""
        if features.vocabulary is not self._kept:
            self._kept = features.vocabulary
            self._vocabulary = self.watch.keep(features.vocabulary)
        return self._vocabulary

    def evaluation(self, given: Any, features: Features, labels: LabelEncoding) -> list[Future]:
        """Futures of lists of partitions to validate on: of collections where they lie, of encoded rows from here."""
        if isinstance(given, HashedRows):
            return collections.whole_chunks(self.watch, self._vocabulary_of(features), [self.watch.keep(given)])
        X, y, weights = given
        other = CollectionRows.of(X, y, weights, self.watch.client)
        with naming_eval_set():
            labels.check(other.summarise(labels.classes is not None))
            own = dataclasses.replace(labels, class_weights=None, mean_weight=1.0)
            rows = collections.encode_chunks(self.watch, collections.encoding_of(features, own, other.X), other.chunks)
        return collections.whole_chunks(self.watch, self._vocabulary_of(features), rows)


def classes_in_shards(paths: Sequence[str], column: str, client: Any) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The classes of shards, whose labels the workers read, and what is positive: as of `shards.classes_of`."""
    watch = watch_of(client)
    tasks = [watch.submit(distinct_labels, *given) for given in labels_by_task(paths, column)]
    return classes_of(set().union(*watch.results(tasks)), column)


def judged(estimator: Any, X: Any, y: Any, weights: Any) -> tuple[NDArray[Any], Any, Any]:
    """Predictions of a collection, its labels and its weights or None (or names of their columns), all computed."""
    X, y, weights = _apart(X, y, weights)
    # One by one, as Dask warns of arrays beside frames.
    predicted, labels, masses = (dask.compute(each)[0] for each in (estimator.predict(X), y, weights))
    return predicted, labels, masses


def _apart(X: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
    """The rows, their labels and their weights: columns of a frame of Dask that are named are taken out of it.
    DataError where there is none of such a name.
    """
    names = [str(each) for each in getattr(X, "columns", ())]
    for role, given in (("labels", y), ("weights", weights)):
        if isinstance(given, str) and given not in names:
            raise DataError(f"X has no column {given!r} of {role}; it has {', '.join(names) or 'no names of columns'}")
    named = list(dict.fromkeys(given for given in (y, weights) if isinstance(given, str)))
    y, weights = (X[given] if isinstance(given, str) else given for given in (y, weights))
    return X.drop(columns=named) if named else X, y, weights


@contextlib.contextmanager
def naming_eval_set() -> Iterator[None]:
    """A context: where the block meets wrong data, the error says that it is the eval_set's."""
    try:
        yield
    except DataError as error:
        raise DataError(f"eval_set: {error}") from error


@dataclass(frozen=True)
class _PlacedPartitions:
    watch: Watch
    replicas: Sequence[Future]
    held_out: Sequence[Future]

    def executor(self, relabel: Relabel | None) -> FitExecutor:
        """The workers that hold the rows."""
        return FitExecutor(self.watch, self._of(self.replicas, relabel), self._of(self.held_out, relabel))

    def _of(self, parts: Sequence[Future], relabel: Relabel | None) -> list[Future]:
        return list(parts) if relabel is None else [self.watch.submit(relabel, part) for part in parts]
