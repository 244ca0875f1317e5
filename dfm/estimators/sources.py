"""Sources of an estimator's rows, on their way to the training loop: arrays and tables of this process here,
Dask collections and rows sent to a cluster in `dfm.estimators.on_dask`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.building import build_partition
from dfm.data.hashed_rows import EntrySums, HashedRows, take_rows
from dfm.data.matrices import is_sparse
from dfm.data.partition import SparsePartition, by_group
from dfm.data.row_lookup import RowLookup
from dfm.data.vocabulary import FeatureCounts, Vocabulary, count_features
from dfm.errors import SettingsError
from dfm.estimators.features import FeatureOptions, Features, MatrixFeatures, TableFeatures
from dfm.estimators.labels import LabelEncoding, LabelSummary, summarise_labels
from dfm.training.fitting import FitExecutor, deal, whole_partition
from dfm.training.local import LocalExecutor

Relabel = Callable[[Sequence[SparsePartition]], list[SparsePartition]]
"""From stored labels to what one of several machines is trained on."""


@dataclass(frozen=True)
class Deal:
    """A way to deal rows out: to so many replicas, for so many rounds an epoch, in an order that `seed` decides; their
    entries by the groups of fields, if there are any.
    """

    n_replicas: int
    n_rounds: int
    seed: int
    groups: tuple[int, ...] = ()

    def check(self, n_rows: int) -> None:
        """SettingsError where a replica would have no rows."""
        if n_rows < self.n_replicas:
            raise SettingsError(f"n_replicas = {self.n_replicas} for {n_rows} rows: expected one row each at least")


class PlacedRows(Protocol):
    """Partitions of every replica, and of the rows to validate on."""

    def executor(self, relabel: Relabel | None) -> FitExecutor:
        """Who trains a machine on them. relabel: None where it is trained on the labels as they are stored."""


class RowSource(Protocol):
    """Rows with labels and weights. First they are summarised, then features are learnt from them, or those of an
    earlier fit are taken, then some may be held out, then they are dealt out to replicas.
    """

    @property
    def n_rows(self) -> int:
        """Rows to train on, as the number of rounds follows from them."""

    @property
    def entries(self) -> EntrySums:
        """Sums over the entries of these rows."""

    @property
    def columns(self) -> tuple[int, list[str] | None] | None:
        """Number and names of the columns, for scikit-learn; None where scikit-learn has seen them itself."""

    def summarise(self, is_classification: bool) -> LabelSummary:
        """The summary of all labels, needed before one can be trained on."""

    def learn(self, options: FeatureOptions, labels: LabelEncoding) -> Features:
        """New features, of these rows."""

    def encode(self, features: Features, labels: LabelEncoding) -> None:
        """Take features that are known."""

    def counts(self, vocabulary: Vocabulary) -> FeatureCounts:
        """Occurrences of the rows' hashed features, which a vocabulary of such features may lack."""

    def hold_out(self, share: float, seed: int) -> None:
        """Validate on this share of the rows instead of training on them."""

    def evaluation(self, given: Any, features: Features, labels: LabelEncoding) -> Any:
        """Other rows as `place` takes them: encoded ones, or (X, y, weights) as this kind of source has them."""

    def place(self, features: Features, dealing: Deal, held_out: Any) -> PlacedRows:
        """Deal the rows out. held_out: what `evaluation` gave, to validate on it, or None."""


@dataclass
class ArrayRows:
    """Rows of this process: a checked matrix or a table, one checked label a row, weights or None.

    names: of the columns of a matrix, where it has any. n_threads: that may train replicas.
    """

    data: Any
    labels: NDArray[Any]
    weights: NDArray[np.float64] | None = None
    names: Sequence[str] | None = None
    n_threads: int = 1
    rows: HashedRows = field(init=False)
    held_out: HashedRows | None = field(init=False, default=None)

    @property
    def n_rows(self) -> int:
        """Rows that are not held out."""
        return self.rows.n_rows

    @property
    def entries(self) -> EntrySums:
        """Sums over the entries of the rows that are not held out."""
        return self.rows.entries

    @property
    def columns(self) -> tuple[int, list[str] | None] | None:
        """Those of a table, which scikit-learn does not look into."""
        if not isinstance(self.data, pa.Table):
            return None
        return self.data.num_columns, self.data.column_names

    def summarise(self, is_classification: bool) -> LabelSummary:
        """The summary of all labels."""
        return summarise_labels(self.labels, self.weights, is_classification)

    def learn(self, options: FeatureOptions, labels: LabelEncoding) -> Features:
        """Features of the columns, standardized or hashed."""
        codes = labels.labels(self.labels)
        weights = labels.weights(codes, self.weights)
        features: Features
        if isinstance(self.data, pa.Table):
            features, rows = TableFeatures.learn(self.data, options.table, options.n_factors, self.shares(weights))
        else:
            standardizes = options.standardizes(is_sparse(self.data))
            features, rows = MatrixFeatures.learn(self.data, self.names, standardizes, self.shares(weights))
        self.rows = dataclasses.replace(rows, labels=codes, weights=weights)
        return features

    def shares(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights by which rows count where columns are standardized; empty where all count the same."""
        return weights

    def encode(self, features: Features, labels: LabelEncoding) -> None:
        """The rows of known features."""
        codes = labels.labels(self.labels)
        weights = labels.weights(codes, self.weights)
        self.rows = dataclasses.replace(features.rows(self.data), labels=codes, weights=weights)

    def counts(self, vocabulary: Vocabulary) -> FeatureCounts:
        """Occurrences in all rows, those to hold out too."""
        return count_features(self.rows.indices, self.rows.fields, vocabulary.n_fields, vocabulary.hash_bits)

    def hold_out(self, share: float, seed: int) -> None:
        """Take a seeded choice of rows, at least one, out of those to train on."""
        order = np.random.default_rng([seed, 11]).permutation(self.rows.n_rows)
        n_held_out = max(1, int(self.rows.n_rows * share))
        self.held_out = take_rows(self.rows, np.sort(order[:n_held_out]))
        self.rows = take_rows(self.rows, np.sort(order[n_held_out:]))

    def evaluation(self, given: Any, features: Features, labels: LabelEncoding) -> HashedRows:
        """Encoded rows as they are. SettingsError where they are a collection, which nobody here would compute."""
        if not isinstance(given, HashedRows):
            raise SettingsError(
                "eval_set is a Dask collection and X is none: pass an eval_set of this process, or X as a collection"
            )
        return given

    def place(self, features: Features, dealing: Deal, held_out: HashedRows | None) -> PlacedRows:
        """Partitions in this process."""
        return self.dealt(features, dealing, held_out)

    def dealt(self, features: Features, dealing: Deal, held_out: HashedRows | None) -> LocalRows:
        """The same, as what they are."""
        chosen = self.held_out if held_out is None else held_out
        whole = [] if chosen is None else [whole_partition(chosen, features.vocabulary, features.lookup)]
        return LocalRows(partitions_of(self.rows, features, dealing), whole, self.n_threads)


def partitions_of(rows: HashedRows, features: Features, dealing: Deal) -> list[list[SparsePartition]]:
    """The rows of each replica and round, shuffled; of a lone replica on the whole table."""
    dealing.check(rows.n_rows)
    return built(rows, features, dealing, deal(rows.n_rows, dealing.n_replicas, dealing.n_rounds, dealing.seed))


def built(
    rows: HashedRows, features: Features, dealing: Deal, parts: Sequence[Sequence[NDArray[np.int64]]]
) -> list[list[SparsePartition]]:
    """The partitions of rows by replica and round, given the numbers of each; of a lone replica on the whole table."""
    if dealing.n_replicas == 1:
        whole = [whole_partition(take_rows(rows, part), features.vocabulary, features.lookup) for part in parts[0]]
        return [[by_group(part, dealing.groups) for part in whole]]
    lookup = features.lookup or RowLookup(features.vocabulary)
    return [
        [by_group(build_partition(take_rows(rows, part), features.vocabulary, lookup), dealing.groups) for part in each]
        for each in parts
    ]


@dataclass(frozen=True)
class LocalRows:
    """Partitions in this process; as `LocalExecutor` takes them."""

    replicas: Sequence[Sequence[SparsePartition]]
    held_out: Sequence[SparsePartition]
    n_threads: int

    def relabelled(self, relabel: Relabel | None) -> LocalRows:
        """The same rows with the labels of one machine, whose classes take the threads for each other."""
        if relabel is None:
            return self
        return LocalRows([relabel(replica) for replica in self.replicas], relabel(self.held_out), 1)

    def executor(self, relabel: Relabel | None) -> FitExecutor:
        """This process."""
        own = self.relabelled(relabel)
        return LocalExecutor(own.replicas, own.held_out, own.n_threads)
