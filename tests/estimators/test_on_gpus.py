"""Estimators on GPUs: the stand-in's kernels, the same quality; refusals where there is none, or where it cannot."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

from dfm.errors import ClusterError, SettingsError
from dfm.estimators import FMClassifier, FMRegressor, LinearClassifier
from dfm.factorization import matrix_factorization
from dfm.kernels.gpu import device as cupy_device
from tests.support.host_gpu import as_gpu_of_process
from tests.support.small_jobs import in_process_client

RNG = np.random.default_rng(2)
X = RNG.normal(size=(600, 3))
Y = (X[:, 0] * X[:, 1] > 0).astype(int)


@pytest.mark.parametrize("n_replicas", [1, 2])
def test_a_fit_on_a_gpu_is_as_good_as_one_on_processors(monkeypatch, n_replicas):
    settings = {"n_factors": 3, "n_epochs": 12, "n_replicas": n_replicas, "averages_per_epoch": 2}
    here = FMClassifier(**settings, early_stopping=True).fit(X, Y)
    device = as_gpu_of_process(monkeypatch)
    there = FMClassifier(**settings, early_stopping=True, backend="auto").fit(X, Y)
    kernels = {kernel for kernel, *_ in device.launched}
    assert {"train_rows", "score_rows", "copy_numbers"} <= kernels
    assert ("finish_numbers" in kernels) == (n_replicas > 1)
    assert there.score(X, Y) == pytest.approx(here.score(X, Y), abs=0.05)
    assert there.score(X, Y) > 0.85
    assert len(there.history_) == there.n_iter_


def test_a_fit_goes_on_from_where_it_stood_on_a_gpu(monkeypatch):
    as_gpu_of_process(monkeypatch)
    model = FMRegressor(n_factors=2, n_epochs=2, warm_start=True, backend="cupy", tol=0).fit(X, Y)
    first = model.history_[-1]["train_loss"]
    model.fit(X, Y)
    assert model.history_[-1]["epoch"] == 4
    assert model.history_[-1]["train_loss"] < first


def test_the_workers_of_a_client_train_on_their_gpus(monkeypatch):
    device = as_gpu_of_process(monkeypatch)
    with in_process_client(1) as client:
        model = LinearClassifier(n_replicas=2, n_epochs=3, backend="cupy").fit(X, Y, client=client)
        assert np.isfinite(model.coef_).all()
    assert {"train_rows", "finish_numbers"} <= {kernel for kernel, *_ in device.launched}


def test_a_matrix_is_factorized_on_a_gpu(monkeypatch):
    D = RNG.normal(size=(12, 2)) @ RNG.normal(size=(2, 15))
    device = as_gpu_of_process(monkeypatch)
    done = matrix_factorization(D, 2, n_epochs=150, backend="cupy")
    assert "train_rows" in {kernel for kernel, *_ in device.launched}
    assert np.abs(done.complete() - D).mean() < 0.1 * np.abs(D).mean()


def test_without_a_gpu_auto_trains_on_processors_and_cupy_is_refused():
    if cupy_device.availability()[0]:
        pytest.skip("there is a GPU")
    plain, auto = (FMClassifier(n_factors=2, n_epochs=2, backend=name).fit(X, Y) for name in ("numba", "auto"))
    assert plain.factors_.tobytes() == auto.factors_.tobytes()
    with pytest.raises(ClusterError, match=r'backend = "cupy" needs a GPU: .*backend = "numba"'):
        FMClassifier(backend="cupy").fit(X, Y)


def test_what_a_gpu_cannot_do_is_left_to_processors_or_refused(monkeypatch):
    device = as_gpu_of_process(monkeypatch)
    FMClassifier(n_factors=2, n_epochs=1, optimizer="adam", backend="auto").fit(X, Y)
    assert not device.launched
    with pytest.raises(SettingsError, match="no code for optimizer = 'adam'"):
        FMClassifier(n_factors=2, optimizer="adam", backend="cupy").fit(X, Y)
    with pytest.raises(SettingsError, match=r'backend = "gpu"'):
        matrix_factorization(np.ones((2, 2)), 1, backend="gpu")
    with pytest.raises(SettingsError, match="gpu"):
        FMClassifier(backend="gpu").fit(X, Y)
