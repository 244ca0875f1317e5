"""Small fits of every kind give the bytes that they have always given.

A change of structure keeps every number here. Whoever changes what a fit computes on purpose changes the number with
it, and says in CHANGELOG.md that models come out differently. Sums over labels are exact (small integers, mean 0), so
the bytes do not depend on a BLAS; they are those of processors with fused multiply-adds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

import dask.array as da
from distributed import Client

from dfm.estimators import FMClassifier, FMRegressor, LinearClassifier, LinearRegressor
from dfm.factorization import matrix_factorization
from tests.support.small_jobs import in_process_client

RNG = np.random.default_rng(5)
X = RNG.integers(-8, 9, size=(480, 6)) / 8.0
NUMBERS = np.concatenate([half := RNG.integers(1, 9, size=240), -half]).astype(np.float64)
PAIR = X[:, 0] * X[:, 1] > 0
THREE = np.digitize(X[:, 0] + X[:, 1], [-0.5, 0.5])
LINEAR: dict[str, Any] = {
    "learning_rate": 0.1,
    "schedule": "constant",
    "n_epochs": 100,
    "l2_linear": 0.003,
    "tune": "none",
    "standardize": False,
}
PLAIN: dict[str, Any] = {
    **LINEAR,
    "n_factors": 4,
    "n_epochs": 4,
    "factor_rate_scale": 0.45,
    "l2_factors": 0.01,
    "init_stdev": 0.05,
    "min_count_factors": 1,
}
ADAM = {"optimizer": "adam", "learning_rate": 0.01}
REPLICAS = {"schedule": "final-decay", "n_replicas": 3, "averages_per_epoch": 2, "n_jobs": 2}
FIRST, LAST = slice(0, 360), slice(360, None)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with in_process_client(2) as client:
        yield client


def parts(estimator: Any, client: Client) -> Any:
    for start in (0, 160, 320):
        estimator.partial_fit(X[start : start + 160], NUMBERS[start : start + 160])
    return estimator


def twice(estimator: Any, client: Client) -> Any:
    return estimator.fit(X, PAIR).fit(X, PAIR)


def on_collection(estimator: Any, client: Client, y: Any = PAIR, eval_set: Any = None) -> Any:
    return estimator.fit(
        da.from_array(X, chunks=(120, 6)), da.from_array(y, chunks=120), eval_set=eval_set, client=client
    )


FITS: dict[str, tuple[Callable[[Client], Any], str]] = {
    "a classifier": (lambda client: FMClassifier(**PLAIN).fit(X, PAIR), "812abe6529409f9d"),
    "with rows to validate on": (
        lambda client: FMClassifier(**{**PLAIN, "learning_rate": 1.0, "n_epochs": 9}).fit(
            X[FIRST], PAIR[FIRST], eval_set=(X[LAST], PAIR[LAST])
        ),
        "04abe8957e076254",
    ),
    "with rows held out": (lambda client: FMClassifier(**PLAIN, early_stopping=True).fit(X, PAIR), "d4e62ec97090a13e"),
    "three classes": (lambda client: FMClassifier(**PLAIN, n_jobs=2).fit(X, THREE), "a7925e555373845f"),
    "a regressor": (lambda client: FMRegressor(**PLAIN).fit(X, NUMBERS), "99db24fc5f71c9da"),
    "adam with rows to validate on": (
        lambda client: FMRegressor(**{**PLAIN, **ADAM}).fit(X, NUMBERS, eval_set=(X[LAST], NUMBERS[LAST])),
        "449b857c689807e0",
    ),
    "ftrl, a weight a row": (
        lambda client: LinearClassifier(**{**LINEAR, "n_epochs": 3}, optimizer="ftrl", l1_linear=0.1).fit(
            X, PAIR, sample_weight=np.arange(480) % 2 + 1
        ),
        "caa5f0a4faa73f54",
    ),
    "replicas in threads": (
        lambda client: FMRegressor(
            **{**PLAIN, "schedule": "final-decay"}, n_replicas=3, averages_per_epoch=2, n_jobs=2
        ).fit(X, NUMBERS),
        "60e25902874f73ef",
    ),
    "parts, one after the other": (
        lambda client: parts(LinearRegressor(**{**LINEAR, "schedule": "final-decay"}, loss="huber"), client),
        "517db4f1e3d29b44",
    ),
    "a warm start": (
        lambda client: twice(FMClassifier(**PLAIN, warm_start=True, random_state=3), client),
        "6b0ea211f20e6899",
    ),
    "rows sent to a cluster": (
        lambda client: FMClassifier(**PLAIN, n_replicas=3).fit(
            X[FIRST], PAIR[FIRST], eval_set=(X[LAST], PAIR[LAST]), client=client
        ),
        "2a63b8263666ab5b",
    ),
    "a collection": (lambda client: on_collection(FMClassifier(**PLAIN), client), "576d22ab755c6d1b"),
    "a collection, rows held out": (
        lambda client: on_collection(FMRegressor(**PLAIN, early_stopping=True, n_replicas=2), client, NUMBERS),
        "a3e3066d29b15320",
    ),
    "three classes of a collection, rows to validate on": (
        lambda client: on_collection(
            FMClassifier(**PLAIN, n_replicas=2),
            client,
            THREE,
            (da.from_array(X, chunks=240), da.from_array(THREE, chunks=240)),
        ),
        "828b893f498c8a20",
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_keeps_its_bytes(name: str, client: Client) -> None:
    fit, expected = FITS[name]
    assert digest(fit(client)) == expected


def digest(fitted: Any) -> str:
    """sha256 of w0, w and V, and of how many epochs it took, shortened."""
    arrays = (np.atleast_1d(np.float32(fitted.intercept_)), fitted.coef_, getattr(fitted, "factors_", fitted.coef_))
    found = hashlib.sha256(str(fitted.n_iter_).encode())
    for array in arrays:
        found.update(np.ascontiguousarray(array, np.float32).tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("n_replicas", [1, 3])
def test_a_factorization_keeps_its_bytes(n_replicas: int, client: Client) -> None:
    D = np.ma.masked_less(NUMBERS.reshape(24, 20), -6)
    expected = {1: "5eab971f99567ac8", 3: "029e52e7fb3489aa"}[n_replicas]
    for where in (None, client) if n_replicas > 1 else (None,):
        found = matrix_factorization(D, 3, biases=True, n_epochs=5, n_replicas=n_replicas, client=where)
        assert hashlib.sha256(found.P.tobytes() + found.Q.tobytes()).hexdigest()[:16] == expected
