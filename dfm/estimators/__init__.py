"""Factorization machines and linear models as scikit-learn estimators (needs scikit-learn: the extra `sklearn`)."""

from __future__ import annotations

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError('dfm.estimators needs scikit-learn: pip install "dfm[sklearn]"') from error

from dfm.estimators.classifiers import FMClassifier, LinearClassifier
from dfm.estimators.regressors import FMRegressor, LinearRegressor

__all__ = ["FMClassifier", "FMRegressor", "LinearClassifier", "LinearRegressor"]
