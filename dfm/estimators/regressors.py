"""Regressors: the score is the prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.metaestimators import available_if

from dfm.data.labels import told_of_rounding
from dfm.errors import SettingsError
from dfm.estimators.base import LoneMachine
from dfm.estimators.features import is_dask, is_path
from dfm.estimators.labels import LabelEncoding, LabelSummary
from dfm.estimators.notes import tell
from dfm.estimators.recipes import FactorParameters, takes_rows_apart
from dfm.estimators.shards import read_shards
from dfm.kernels.losses import DEFAULT_LOSSES
from dfm.model.outputs import NUMPY
from dfm.model.rows import arrived
from dfm.settings.tables import MCMC
from dfm.solvers.posterior import intervals


def _has_draws(estimator: Any) -> bool:
    """Whether its fit keeps draws, whose spread is known."""
    fitted = vars(estimator).get("_as_fitted")
    return bool((estimator.solver if fitted is None else fitted.settings["solver"]) == MCMC)


@dataclass(eq=False, repr=False, kw_only=True)
class _Regressor(RegressorMixin, LoneMachine):  # type: ignore[misc]
    loss: Any = DEFAULT_LOSSES["regression"]
    _task = "regression"

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, eval_set: Any = None, client: Any = None) -> Self:
        """Train on rows X with numbers y.

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
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """One epoch over some rows, going on from the last call.

        Categories may come later (with min_count, from as many occurrences in all calls on); the first call decides the
        unit of the labels, how numbers are scaled, and which columns there are. A loss, family, n_factors or optimizer
        that has changed since is refused.
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any, output: str = NUMPY) -> Any:
        """Predicted numbers, float64[n_rows]. output: "numpy", or "arrow", "pandas", "polars" for a column."""
        found = self._elsewhere(X, "predict", (), np.float64)
        if found is None:
            scores, link = self._scores(X)[0], self._objective_of_fit().link
            is_number = link.name == "identity"
            found = scores if is_number else link.predict(scores.astype(np.float32)).astype(np.float64)
        return self._handed_out(found, output, X)

    @available_if(_has_draws)
    def predict_interval(self, X: Any, coverage: float = 0.9) -> NDArray[np.float64]:
        """Bounds that hold the number of a row with this probability, float64[n_rows, 2], of solver mcmc.

        X: rows of this process, or the path of shards. SettingsError for a Dask collection, and where coverage is not
        between 0 and 1.
        """
        self._fitted_tables()
        if is_dask(X):
            raise SettingsError("predict_interval takes rows of this process: map it over the blocks of a collection")
        if is_path(X):
            X = read_shards(X, self._known_columns())
        if not 0 < coverage < 1:
            raise SettingsError(f"coverage = {coverage} is not legal: expected a number between 0 and 1, such as 0.9")
        draws, partition = self._draws[0], self._features.scoring(self._known_data(arrived(X)))
        assert draws is not None
        return intervals(partition, self._tables[0], draws, coverage).astype(np.float64)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of the variance of y that is explained, R².

        X: in any form that `fit` takes; of shards, y and sample_weight are names of columns, of a
        frame of Dask they may be. A collection is computed.
        """
        predicted, labels, weights = self._judged(X, y, sample_weight)
        return float(r2_score(labels, predicted, sample_weight=weights))

    @property
    def intercept_(self) -> float:
        """w0."""
        return float(self._fitted_tables()[0].bias_value)

    def _encode(self, summary: LabelSummary) -> LabelEncoding:
        objective = self._objective()
        if not summary.is_constant:
            tell(told_of_rounding(summary.mean, summary.deviation))
        if not objective.takes_any_unit:
            tell(objective.told_of_unit(summary.deviation))
            return LabelEncoding(least=0.0 if objective.label_kind == "counts" else -math.inf)
        return LabelEncoding(mean=summary.mean, scale=summary.deviation)

    def _mean_labels(self, summary: LabelSummary) -> list[float]:
        return [(summary.mean - self._encoding.mean) / self._encoding.scale]


@dataclass(eq=False, repr=False, kw_only=True)
class FMRegressor(_Regressor, FactorParameters):
    """Factorization machine for numbers: score = w0 + Σ w_j x_j + Σ_{i<j} <V_i, V_j> x_i x_j (Rendle 2010).

    loss: a name of those for numbers, or any function loss(score, y); loss_parameter: of a loss that has one. Where the
    best model scales with the labels, they are trained at mean 0 and deviation 1, so that their unit does not matter;
    elsewhere, as for a loss with a width or one of counts (predictions are exp(score)), as they are. All other
    parameters, and what is fitted, as in `FMClassifier`.
    """


@dataclass(eq=False, repr=False, kw_only=True)
class LinearRegressor(_Regressor):
    """Linear model for numbers: a factorization machine without factors. Parameters as in `FMRegressor`."""
