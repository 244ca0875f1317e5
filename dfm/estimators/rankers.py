"""Rankers: scores that put what was clicked before what was not, within groups of rows."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
from joblib import effective_n_jobs
from numpy.typing import NDArray
from sklearn.utils import ClassifierTags

from dfm.data.hashed_rows import HashedRows, take_rows
from dfm.data.partition import SparsePartition
from dfm.data.units import LabelUnit
from dfm.errors import DataError, SettingsError
from dfm.estimators.base import LoneMachine
from dfm.estimators.features import FeatureOptions, Features, is_dask, is_path, names_of, only_column
from dfm.estimators.labels import LabelEncoding, LabelSummary
from dfm.estimators.recipes import FactorParameters, RowsToFit
from dfm.estimators.shards import validation_paths
from dfm.estimators.sources import ArrayRows, Deal, LocalRows, built
from dfm.kernels.losses import BPR, is_paired
from dfm.kernels.pairs import PairCount
from dfm.model.group_auc import group_sums, rows_by_group
from dfm.model.outputs import NUMPY
from dfm.model.rows import arrived
from dfm.training.fitting import Recipe, whole_partition

Ids = NDArray[np.uint64]


def group_ids(group: Any, n_rows: int) -> Ids:
    """A number for each distinct group, uint64[n_rows]; missing ones are one group, and None puts all rows in one."""
    if group is None:
        return np.zeros(n_rows, np.uint64)
    try:
        found = _numbered(only_column(group))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"group cannot be read ({str(error).splitlines()[0]}); pass one value a row: numbers, or text"
        ) from error
    if len(found) != n_rows:
        raise ValueError(f"group has {len(found)} rows, X has {n_rows}: expected one group a row")
    return found


def _numbered(group: Any) -> Ids:
    """The number of each value among the distinct ones, in the order in which they come."""
    given = group if isinstance(group, pa.Array | pa.ChunkedArray) else pa.array(group, from_pandas=True)
    given = given.cast(given.type.value_type) if pa.types.is_dictionary(given.type) else given
    found = given.combine_chunks() if isinstance(given, pa.ChunkedArray) else given
    return found.dictionary_encode(null_encoding="encode").indices.to_numpy().astype(np.uint64)


def cut_by_group(groups: Ids, bounds: Sequence[int], seed: Sequence[int]) -> list[NDArray[np.int64]]:
    """Row numbers of parts: groups laid end to end in a seeded order, their rows shuffled, and cut at these places.

    A group stays in one part, before which the cut is made, unless it has more rows than the part that is asked for.
    """
    rng, (distinct, of_row) = np.random.default_rng(seed), np.unique(groups, return_inverse=True)
    places = rng.permutation(len(distinct))[of_row]
    order = np.lexsort((rng.permutation(len(groups)), places))
    starts = np.concatenate([np.searchsorted(places[order], np.arange(len(distinct))), [len(groups)]])
    cuts = [0]
    for before, bound in itertools.pairwise(bounds):
        group = int(np.searchsorted(starts, bound, side="right")) - 1
        begins, ends = int(starts[group]), int(starts[min(group + 1, len(distinct))])
        cuts.append(begins if ends - begins <= bound - before else bound)
    return [order[first:last] for first, last in itertools.pairwise(cuts)]


@dataclass
class RankedRows(ArrayRows):
    """Rows of this process with a group each, or pairs of them: each of these is then a group of two rows."""

    groups: Ids = field(default_factory=lambda: np.zeros(0, np.uint64))
    pairs: NDArray[np.int64] | None = None

    def learn(self, options: FeatureOptions, labels: LabelEncoding) -> Features:
        """Features of the columns, standardized or hashed."""
        features = super().learn(options, labels)
        self._rank()
        return features

    def shares(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights of rows; the second of a pair weighs what the first one does, or more."""
        if self.pairs is None or not weights.size:
            return weights
        shares = weights.copy()
        np.maximum.at(shares, self.pairs[:, 1], weights[self.pairs[:, 0]])
        return shares

    def encode(self, features: Features, labels: LabelEncoding) -> None:
        """The rows of known features."""
        super().encode(features, labels)
        self._rank()

    def _rank(self) -> None:
        if self.pairs is None:
            self.rows = dataclasses.replace(self.rows, group_ids=self.groups)
            return
        n_pairs = len(self.pairs)
        taken = take_rows(self.rows, self.pairs.ravel())
        labels, ids = np.tile(np.array([1, 0], np.float32), n_pairs), np.repeat(np.arange(n_pairs, dtype=np.uint64), 2)
        weights = np.repeat(taken.weights[::2], 2)  # the second row's own would leave out its pair where it is 0
        self.rows = dataclasses.replace(taken, labels=labels, weights=weights, group_ids=ids)

    def hold_out(self, share: float, seed: int) -> None:
        """Take a seeded choice of groups out of those to train on."""
        n_rows, ids = self.rows.n_rows, self.rows.group_ids
        held_out, rest = cut_by_group(ids, [0, max(1, int(n_rows * share)), n_rows], [seed, 11])
        self.held_out = take_rows(self.rows, np.sort(held_out))
        self.rows = take_rows(self.rows, np.sort(rest))

    def dealt(self, features: Features, dealing: Deal, held_out: HashedRows | None) -> LocalRows:
        """Partitions in this process, whose groups are whole."""
        dealing.check(self.rows.n_rows)
        n_parts, n_rows = dealing.n_replicas * dealing.n_rounds, self.rows.n_rows
        bounds = [n_rows * part // n_parts for part in range(n_parts + 1)]
        cut = cut_by_group(self.rows.group_ids, bounds, [dealing.seed, 7])
        parts = [cut[first : first + dealing.n_rounds] for first in range(0, n_parts, dealing.n_rounds)]
        chosen = self.held_out if held_out is None else held_out
        whole: list[SparsePartition] = []
        if chosen is not None:
            whole = [whole_partition(chosen, features.vocabulary, features.lookup)]
        return LocalRows(built(self.rows, features, dealing, parts), whole, self.n_threads)


@dataclass(eq=False, repr=False, kw_only=True)
class FMRanker(LoneMachine, FactorParameters):
    """Factorization machine for the order of rows within groups, learnt from pairs (Rendle et al. 2009, BPR).

    In each epoch every clicked row (label 1, or the greater of two) meets an unclicked one of its group, drawn by seed,
    and a step makes the difference of their scores greater: what both rows have alike cancels, the bias and all that
    tells whole groups apart included. Scores may be compared within a group, and are no probabilities.

    loss: of pairs of rows. family: "fm". Where rows are held out, whole groups are, and the epoch with the best mean
    AUC within groups is kept. All other parameters, and what is fitted, as in `FMClassifier`; there is no intercept_.

    Fitted besides, of rows of this process: pairs_ (pairs an epoch makes) and rows_in_pairs_ (rows of groups that have
    both classes).
    """

    loss: Any = BPR.name
    _task = "classification"

    def fit(
        self,
        X: Any,
        y: Any,
        group: Any = None,
        sample_weight: Any = None,
        *,
        eval_set: Any = None,
        client: Any = None,
    ) -> Self:
        """Train on rows X with two labels y.

        X: an array or scipy.sparse matrix [n_rows, n_features], a pandas or Arrow table or a dict of columns; or the
        path of Parquet shards, whose columns y, group and sample_weight then name, with the client of a Dask cluster.
        group: the group of each row (a user, a query), of numbers or text; None: all rows are one. sample_weight: a
        pair weighs what its clicked row does; rows of weight 0 are in none. eval_set: (X, y, group) or (X, y, group,
        sample_weight), of shards (path, y), to validate on after each epoch; the best epoch is kept.
        """
        self._check_loss()
        if is_path(X):
            return self._fit_shards(X, y, group, sample_weight, eval_set, client)
        if client is not None or is_dask(X):
            raise SettingsError(
                "a ranker takes rows of this process, or shards: write the collection as Parquet and pass its path, "
                "with the client and the names of the columns y and group"
            )
        self._begin()
        X = arrived(X)
        labels = self._checked_labels(X, y)
        weights = self._checked_weights(sample_weight, len(labels))
        goes_on = self.warm_start and hasattr(self, "_outputs")
        data, n_threads = self._training_data(X, goes_on), effective_n_jobs(self.n_jobs)
        ids = group_ids(group, len(labels))
        return self._fit_source(RankedRows(data, labels, weights, names_of(X), n_threads, ids), eval_set, goes_on)

    def fit_pairs(self, X: Any, pairs: Any, sample_weight: Any = None, *, eval_set: Any = None) -> Self:
        """Train on given pairs of rows X, the first of which is to come before the second.

        pairs: integers [n_pairs, 2], numbers of rows of X. sample_weight: a weight a row, of which that of the first
        counts. eval_set: as in `fit`. X is of this process, as there.
        """
        self._check_loss()
        if is_path(X) or is_dask(X):
            raise SettingsError("fit_pairs takes rows of this process: pairs are numbers of rows, and shards have none")
        self._begin()
        X, goes_on = arrived(X), self.warm_start and hasattr(self, "_outputs")
        data, n_threads = self._training_data(X, goes_on), effective_n_jobs(self.n_jobs)
        n_rows = len(data) if isinstance(data, pa.Table) else data.shape[0]
        chosen = _checked_pairs(pairs, n_rows)
        labels = np.zeros(n_rows, np.int64)
        labels[chosen[:, 0]] = 1  # summaries of labels see both classes; what each row is, its pairs say
        weights = self._checked_weights(sample_weight, n_rows)
        source = RankedRows(data, labels, weights, names_of(X), n_threads, pairs=chosen)
        return self._fit_source(source, eval_set, goes_on)

    def predict(self, X: Any, output: str = NUMPY) -> Any:
        """Scores float64[n_rows], greater for what is to come first among rows of one group. output: "numpy", or
        "arrow", "pandas", "polars" for a column.
        """
        self._fitted_tables()
        lazy = self._elsewhere(X, "predict", (), np.float64)
        return self._handed_out(self._scores(X)[0] if lazy is None else lazy, output, X)

    def score(self, X: Any, y: Any, group: Any = None, sample_weight: Any = None) -> float:
        """The mean AUC within groups, weighed by their rows; nan where no group has both classes. SettingsError for a
        collection and for shards.
        """
        if is_path(X) or is_dask(X):
            raise SettingsError("score of a ranker takes rows of this process: dfm.evaluate(ranker.model_, …) others")
        X = arrived(X)
        y = self._checked_labels(X, y)
        weights = self._checked_weights(sample_weight, len(y))
        labels = self._encoding.labels(y)
        ones = np.ones(len(y)) if weights is None else weights
        table = rows_by_group(group_ids(group, len(y)), self.predict(X), labels, ones)
        found = group_sums(table).metrics()["group_auc"]
        return float("nan") if found is None else float(found)

    def job(
        self,
        train: str | Sequence[str],
        label: str,
        directory: str,
        *,
        weight: str = "",
        validation: Any = (),
        group: str = "",
    ) -> dict[str, dict[str, Any]]:
        """As of the other estimators; group: the column of groups, without which no job makes pairs."""
        own = copy.copy(self)
        own._group_column = group
        return super(FMRanker, own).job(train, label, directory, weight=weight, validation=validation)

    def _check_loss(self) -> None:
        if not (isinstance(self.loss, str) and is_paired(self.loss)):
            raise SettingsError(
                f"loss = {self.loss!r} is not of pairs of rows, as a ranker's; leave it at {BPR.name!r}"
            )

    def _begin(self) -> None:
        self._on_cluster = False
        self._check_exact()
        self._draw_seed()

    def _fit_shards(self, X: Any, y: Any, group: Any, sample_weight: Any, eval_set: Any, client: Any) -> Self:
        names = all(isinstance(each, str) for each in (y, group)) and isinstance(sample_weight, str | None)
        if client is None or not names:
            raise SettingsError(
                "X is a path of shards: y, group and sample_weight must be names of columns in them, and client that "
                "of the Dask cluster that trains"
            )
        self._on_cluster, self._group_column = True, group
        self._draw_seed()
        return self._fit_job(X, y, sample_weight, validation_paths(eval_set, y, group, sample_weight), client)

    def _encode(self, summary: LabelSummary) -> LabelEncoding:
        if len(summary.classes) != 2:
            found = f"{len(summary.classes)} distinct values" if len(summary.classes) > 1 else "one class only"
            raise ValueError(f"y has {found}: a ranker needs two, of rows that were not clicked and rows that were")
        self.classes_ = summary.classes
        return LabelEncoding(self.classes_)

    def _mean_labels(self, summary: LabelSummary) -> list[float]:
        return [0.5]  # from which no bias begins

    def _recipe(self, rows: RowsToFit, mean_label: float, unit: LabelUnit) -> Recipe:
        recipe = super()._recipe(rows, mean_label, unit)
        return dataclasses.replace(recipe, work=dataclasses.replace(recipe.work, by_group=True))

    def _learn(self, source: Any, goes_on: bool, are_all: bool = True) -> LabelSummary:
        summary = super()._learn(source, goes_on, are_all)
        found = PairCount.of(source.rows)
        if not found.pairs:
            raise DataError("no group has both a clicked and an unclicked row: there is no pair to learn from")
        self.pairs_, self.rows_in_pairs_ = found.pairs, found.rows
        return summary

    def _held_out(self, source: Any, eval_set: Any) -> Any:
        if eval_set is None:
            return None
        given = eval_set[0] if isinstance(eval_set, list) and len(eval_set) == 1 else eval_set
        if not isinstance(given, tuple) or len(given) not in (3, 4):
            raise SettingsError("eval_set is not legal: expected (X, y, group) or (X, y, group, sample_weight)")
        X, y, group, sample_weight = (*given, None)[:4]
        if is_path(X):
            raise SettingsError("eval_set is of shards and X is none: pass rows of this process, or X as shards")
        rows = self._evaluation_rows(X, y, sample_weight)
        ids = group_ids(group, rows.n_rows)
        return source.evaluation(dataclasses.replace(rows, group_ids=ids), self._features, self._encoding)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.classifier_tags = ClassifierTags(multi_class=False)
        return tags


def _checked_pairs(pairs: Any, n_rows: int) -> NDArray[np.int64]:
    """int64[n_pairs, 2]. ValueError where they are no numbers of rows."""
    found = np.asarray(pairs)
    if found.ndim != 2 or found.shape[1] != 2 or not len(found) or found.dtype.kind not in "iu":
        raise ValueError(f"pairs are {found.dtype}{list(found.shape)}: expected integers [n_pairs, 2]")
    if found.min() < 0 or found.max() >= n_rows:
        raise ValueError(
            f"pairs name row {found.min() if found.min() < 0 else found.max()}; X has rows 0 to {n_rows - 1}"
        )
    if (found[:, 0] == found[:, 1]).any():
        raise ValueError("pairs name a row beside itself, which is neither before nor behind it")
    return found.astype(np.int64)
