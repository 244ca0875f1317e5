"""Factorization machines and linear models as scikit-learn estimators (needs scikit-learn: the extra `sklearn`)."""

from __future__ import annotations

from dfm.version import pip_install

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(f"dfm.estimators needs scikit-learn: {pip_install('sklearn')}") from error

from dfm.estimators.classifiers import FMClassifier, LinearClassifier
from dfm.estimators.rankers import FMRanker
from dfm.estimators.regressors import FMRegressor, LinearRegressor

__all__ = ["FMClassifier", "FMRanker", "FMRegressor", "LinearClassifier", "LinearRegressor"]
