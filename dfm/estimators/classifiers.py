"""Classifiers: one machine for two classes, one against the rest each for more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets

from dfm.data.partition import SparsePartition
from dfm.estimators.base import BaseFactorizationMachine
from dfm.estimators.labels import LabelEncoding, LabelSummary, one_class_only
from dfm.estimators.recipes import FactorParameters, takes_rows_apart
from dfm.estimators.sources import Relabel, RowSource
from dfm.kernels.losses import DEFAULT_LOSSES
from dfm.model.fm_model import FMModel
from dfm.model.outputs import NUMPY
from dfm.training.executor import Event


@dataclass(frozen=True)
class OneAgainstRest:
    """Turns numbers of classes into 1 for one of them and 0 for the others."""

    code: int

    def __call__(self, partitions: Sequence[SparsePartition]) -> list[SparsePartition]:
        return [replace(part, labels=(part.labels == self.code).astype(np.float32)) for part in partitions]


def _gives_probabilities(estimator: Any) -> bool:
    """Whether the loss makes its scores logits; a margin is no probability."""
    return bool(estimator._objective_of_fit().info.link == "sigmoid")


@dataclass(eq=False, repr=False, kw_only=True)
class _Classifier(ClassifierMixin, BaseFactorizationMachine):  # type: ignore[misc]
    loss: Any = DEFAULT_LOSSES["classification"]
    class_weight: Any = None
    _task = "classification"

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, eval_set: Any = None, client: Any = None) -> Self:
        """Train on rows X with class labels y.

        X: an array or scipy.sparse matrix [n_rows, n_features], a pandas or Arrow table, a dict of columns, a Dask
        array (of dense or sparse blocks) or frame, whose columns y and sample_weight may name, or the path of Parquet
        shards, whose columns they do name. sample_weight: a weight a row, relative to the mean of those above 0; rows
        of weight 0 teach nothing.
        eval_set: (X, y) or (X, y, sample_weight) to validate on after each epoch; the best epoch is kept. client: of
        the Dask cluster to train on; collections take the current one by themselves, everything else is trained in this
        process without it.
        """
        return self._fit(X, y, sample_weight, eval_set, client)

    @available_if(takes_rows_apart)
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """One epoch over some rows, going on from the last call. The first one names all classes, or shows them in y.

        Categories may come later (with min_count, from as many occurrences in all calls on); the first call decides how
        numbers are scaled, and which columns there are. Weights count as they are; class_weight = "balanced" needs all
        rows and is refused, and so is a loss, family, n_factors or optimizer that has changed since.
        """
        if self.class_weight == "balanced":
            raise ValueError('class_weight = "balanced" needs all rows at once: pass weights as a dict, or use fit')
        if not hasattr(self, "_outputs"):
            self._announced = None if classes is None else np.unique(classes)
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes = {list(classes)} are not those of the first call: {list(self.classes_)}")
        try:
            return self._partial_fit(X, y, sample_weight)
        finally:
            self.__dict__.pop("_announced", None)  # of this call alone, however it ends

    def _checked_labels(self, X: Any, y: Any) -> NDArray[Any]:
        y = super()._checked_labels(X, y)
        check_classification_targets(y)
        return y

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Logits float64[n_rows] of the second class; of more than two, each against the rest, [n_rows, n_classes]."""
        n_classes = len(self._fitted_tables())
        lazy = self._elsewhere(X, "decision_function", () if n_classes == 1 else (n_classes,), np.float64)
        if lazy is not None:
            return lazy
        scores = self._scores(X)
        return scores[0] if len(scores) == 1 else np.ascontiguousarray(scores.T)

    def predict(self, X: Any, output: str = NUMPY) -> Any:
        """The likeliest class of every row, [n_rows]. output: "numpy", or "arrow", "pandas", "polars" for a column."""
        self._fitted_tables()
        found = self._elsewhere(X, "predict", (), self.classes_.dtype)
        if found is None:
            scores = self.decision_function(X)
            chosen = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
            found = self.classes_[chosen]
        return self._handed_out(found, output, X)

    @available_if(_gives_probabilities)
    def predict_proba(self, X: Any, output: str = NUMPY) -> Any:
        """Probabilities float64[n_rows, n_classes], classes in the order of `classes_`. output: "numpy", or "arrow",
        "pandas", "polars" for a table of that library, its columns called as the classes are.
        """
        self._fitted_tables()
        lazy = self._elsewhere(X, "predict_proba", (len(self.classes_),), np.float64)
        found = self._probabilities(X) if lazy is None else lazy
        return self._handed_out(found, output, X, [str(name) for name in self.classes_])

    def _probabilities(self, X: Any) -> NDArray[np.float64]:
        """Probabilities of rows of this process."""
        scores = self._scores(X)
        u = np.exp(-np.abs(scores))
        likely = np.where(scores > 0, 1 / (1 + u), u / (1 + u))
        if len(likely) == 1:
            return np.stack([1 - likely[0], likely[0]], axis=1)
        total = likely.sum(axis=0)
        # Where every machine says no with full certainty, none is likelier than the others.
        shares = np.where(total > 0, likely, 1.0) / np.where(total > 0, total, len(likely))
        return np.ascontiguousarray(shares.T)

    @available_if(_gives_probabilities)
    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Logarithms of the probabilities, float64[n_rows, n_classes]."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of rows whose class is predicted, by their weights.

        X: in any form that `fit` takes; of shards, y and sample_weight are names of columns, of a
        frame of Dask they may be. A collection is computed.
        """
        predicted, labels, weights = self._judged(X, y, sample_weight)
        return float(accuracy_score(labels, predicted, sample_weight=weights))

    @property
    def coef_(self) -> NDArray[np.float32]:
        """w, float32[1, n_features]; with more than two classes a row each."""
        return np.stack([table.linear_weights for table in self._fitted_tables()])

    @property
    def intercept_(self) -> NDArray[np.float32]:
        """w0, float32[1]; with more than two classes one each."""
        return np.array([table.bias_value for table in self._fitted_tables()])

    @property
    def factors_(self) -> NDArray[np.float32]:
        """V, float32[n_features, n_factors]; with more than two classes [n_classes, n_features, n_factors]."""
        tables = self._fitted_tables()
        return self._factors(tables[0]) if len(tables) == 1 else np.stack([self._factors(table) for table in tables])

    @property
    def model_(self) -> FMModel:
        """The model to serve: probabilities of the second class."""
        if len(self._fitted_tables()) > 1:
            raise AttributeError("with more than two classes there is one model each: see models_")
        return self._model()

    @property
    def models_(self) -> list[FMModel]:
        """The models to serve: of the second class of two, or of each class against the rest."""
        return [self._model(number) for number in range(len(self._fitted_tables()))]

    def _encode(self, summary: LabelSummary) -> LabelEncoding:
        announced = vars(self).get("_announced")
        self.classes_ = summary.classes if announced is None else announced
        if len(self.classes_) < 2:
            raise ValueError(one_class_only(self.classes_.tolist()[0]))
        return LabelEncoding(self.classes_)

    def _weighed(self, encoding: LabelEncoding, summary: LabelSummary) -> LabelEncoding:
        by_class = self._weights_by_class(summary)
        if by_class is None:
            return replace(super()._weighed(encoding, summary), class_weights=None)
        seen = by_class[encoding.codes(summary.classes)]
        total, n_counted = float((summary.masses * seen).sum()), int(summary.counted[seen > 0].sum())
        if not total:
            raise ValueError(
                f"class_weight = {self.class_weight} leaves no row any weight: there is nothing to learn from"
            )
        return replace(encoding, class_weights=by_class, mean_weight=total / n_counted)

    def _learn(self, source: RowSource, goes_on: bool, are_all: bool = True) -> LabelSummary:
        summary = super()._learn(source, goes_on, are_all)
        if are_all and not goes_on and np.count_nonzero(shares := self._shares(summary)) < 2:
            told = self.classes_.tolist()[int(shares.argmax())]
            raise ValueError(
                f"only rows of class {told!r} weigh anything: a classifier needs two classes to tell apart"
            )
        return summary

    def _weights_by_class(self, summary: LabelSummary) -> NDArray[np.float64] | None:
        """Weights of all classes, float64[n_classes]; None where they do not differ."""
        chosen = self.class_weight
        if chosen is None:
            return None
        if isinstance(chosen, Mapping):
            known = self.classes_.tolist()
            if unknown := [label for label in chosen if label not in known]:
                raise ValueError(f"class_weight names {unknown[0]!r}, which is none of the classes {known}")
            weights = np.array([float(chosen.get(label, 1.0)) for label in known])
            if not (np.isfinite(weights) & (weights >= 0)).all():
                raise ValueError(f"class_weight = {chosen} is not legal: expected finite numbers, 0 or more")
            return weights
        if chosen != "balanced":
            raise ValueError(f'class_weight = {chosen!r} is not legal: expected None, "balanced" or a dict')
        weights = np.ones(len(self.classes_))
        codes = LabelEncoding(self.classes_).codes(summary.classes)
        weights[codes] = summary.n_rows / (len(summary.classes) * summary.counts.astype(np.float64))
        return weights

    def _mean_labels(self, summary: LabelSummary) -> list[float]:
        shares = self._shares(summary)
        shares /= shares.sum()
        return [float(shares[1])] if len(shares) == 2 else shares.tolist()

    def _shares(self, summary: LabelSummary) -> NDArray[np.float64]:
        """Weights of the rows of every class together, float64[n_classes]."""
        shares, codes = np.zeros(len(self.classes_)), self._encoding.codes(summary.classes)
        by_class = self._encoding.class_weights
        shares[codes] = summary.masses if by_class is None else summary.masses * by_class[codes]
        return shares

    def _relabel(self, number: int) -> Relabel | None:
        return None if len(self.classes_) == 2 else OneAgainstRest(number)

    def _history(self) -> list[Event]:
        if len(self._outputs) == 1:
            return super()._history()
        return [
            {"class": label, **event}
            for label, output in zip(self.classes_.tolist(), self._outputs, strict=True)
            for event in output.fit.history
        ]


@dataclass(eq=False, repr=False, kw_only=True)
class FMClassifier(_Classifier, FactorParameters):
    """Factorization machine for classes: score = w0 + Σ w_j x_j + Σ_{i<j} <V_i, V_j> x_i x_j (Rendle 2010).

    The model. n_factors: length of a factor vector, "auto": of the family's own. family, groups, order: kind of model,
    as in a job file; those that know fields take tables, whose columns are the fields. loss: a name of those for
    classes (scores of those with link margin are no probabilities), or any function loss(score, y) of labels 0 and 1.
    regularizer: a function of one weight in place of w² / 2; l2_linear and l2_factors are the strengths of either, per
    row that touches a weight.

    Training. optimizer: as in a job file; l1_linear and ftrl_beta are read by one of them alone. learning_rate,
    factor_rate_scale, l2_factors, init_stdev and tune are the knobs of a job file, where "auto" means what the rows and
    a pilot say. schedule, n_epochs: "auto" for "plateau" and 20 epochs at most where rows are evaluated, and for a
    constant rate and 100 where none are, or tol is None; a training that has no plateau ends when the loss (of the
    evaluation rows if there are any, else of the training rows) fell by less than tol in each of `patience` epochs
    (None: never).
    early_stopping: hold out validation_fraction of the rows where fit gets no eval_set; "auto": from 1,000 rows on, and
    none for "mcmc". Where rows are evaluated, the best epoch is kept. class_weight: "balanced" or a dict. warm_start:
    fit goes on from the last fit: what was learnt stays, categories that are new come in, and numbers are scaled as
    they were; weights are those of the new rows, and of class_weight as it is now.

    Solvers. solver: "sgd", or "als" and "mcmc", which solve for parameters, or draw them, in n_epochs iterations, as in
    a job file: of family "fm", without rates, warm_start and partial_fit. draws: of mcmc, how many are kept after
    burn_in iterations; coef_ and intercept_ then are means, factors_ has the vectors of all draws side by side.

    Columns. standardize: bring numbers to mean 0 and deviation 1 (zeros and ones in arrays stay); False: leave them as
    they are; "auto": but leave sparse matrices. Tables of floats alone are taken as arrays, unless roles of columns,
    derive, nan or a numeric_transform is given, which are refused for arrays themselves. All others are hashed:
    categorical, numeric, lists and crosses name columns by role (by type where none is named), and missing, nan,
    list_separator, derive, numeric_transform, hash_bits, min_count and min_count_factors are the knobs of a job file.

    Work. n_replicas: local models, averaged averages_per_epoch times in every epoch by the rule `merge`; None is one
    in this process, and eight where the rows lie on a cluster. backend: "numba" trains on processors, "cupy" on NVIDIA
    GPUs, which give other bytes each time; "auto" on GPUs where they are and can do it. n_jobs: threads for replicas or
    classes. random_state: a number for the same bytes every time. verbose: print a line an epoch.

    Fitted: classes_, coef_ (w), intercept_ (w0), factors_ (V), n_iter_ (epochs), history_ (a record each), model_ (the
    `FMModel` to serve), n_features_in_, and feature_names_in_ where columns have names.
    """


@dataclass(eq=False, repr=False, kw_only=True)
class LinearClassifier(_Classifier):
    """Linear model for classes: a factorization machine without factors. Parameters as in `FMClassifier`."""
