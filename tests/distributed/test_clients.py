"""Which clients dfm takes, how many may be at work at a time, and how a cluster without workers is woken."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

import dask.array as da
from distributed import Client, LocalCluster
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError
from distributed.scheduler import NoValidWorkerError, NoWorkerError

from dfm import jobs
from dfm.distributed import executor
from dfm.distributed.cluster import connect, lost_workers, remote, together, versions
from dfm.distributed.keeping import OF_THE_CLUSTER
from dfm.errors import ClusterError, DataError, DfmError, SettingsError
from dfm.estimators import FMClassifier, FMRegressor
from dfm.factorization import matrix_factorization
from dfm.settings.tables import ClusterSettings
from tests.support.small_jobs import job_tables

RNG = np.random.default_rng(6)
X = RNG.normal(size=(240, 3))
Y = (X[:, 0] > 0).astype(int)
D = np.where(RNG.random((20, 15)) < 0.3, np.nan, RNG.normal(size=(20, 15)))


def collections() -> tuple[Any, Any]:
    return da.from_array(X, chunks=(60, 3)), da.from_array(Y, chunks=60)


def uses_of(client: Any, log: Path, folder: Path) -> dict[str, Callable[[], Any]]:
    """Everything that takes a client."""
    shards = str(log)
    return {
        "train": lambda: jobs.train(job_tables(log, folder), client),
        "evaluate": lambda: jobs.evaluate(str(folder / "model"), shards, client=client),
        "predict": lambda: jobs.predict(str(folder / "model"), shards, str(folder / "scored"), client=client),
        "fit of an array": lambda: FMClassifier().fit(X, Y, client=client),
        "fit of a collection": lambda: FMRegressor().fit(*collections(), client=client),
        "fit of shards": lambda: FMClassifier().fit(f"{shards}/", "label", client=client),
        "matrix_factorization": lambda: matrix_factorization(D, 2, client=client),
    }


USES = uses_of(None, Path(), Path()).keys()


@pytest.mark.parametrize("use", USES)
def test_an_asynchronous_client_is_refused_in_a_sentence(log: Path, tmp_path: Path, use: str) -> None:
    async def within_a_loop() -> list[str]:
        told = []
        async with (
            LocalCluster(n_workers=0, processes=False, dashboard_address=":0", asynchronous=True) as cluster,
            Client(cluster, asynchronous=True, set_as_default=False) as client,
        ):
            for call in (lambda work: asyncio.to_thread(work), lambda work: _at_once(work)):
                try:
                    await call(uses_of(client, log, tmp_path)[use])
                except SettingsError as error:
                    told.append(str(error))
        return told

    told = asyncio.run(within_a_loop())
    assert len(told) == 2
    assert all("client is asynchronous" in one and "asyncio.to_thread" in one for one in told)


async def _at_once(work: Callable[[], Any]) -> Any:
    return work()


@pytest.mark.parametrize("use", USES)
def test_what_is_no_client_or_is_closed_is_refused_in_a_sentence(log: Path, tmp_path: Path, use: str) -> None:
    with LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster:
        client = Client(cluster, set_as_default=False)
        client.close()
        with pytest.raises(ClusterError, match="client is closed; make a new"):
            uses_of(client, log, tmp_path)[use]()
        with pytest.raises(SettingsError, match=r"client is a LocalCluster; expected a dask\.distributed\.Client"):
            uses_of(cluster, log, tmp_path)[use]()


# ------------------------------------------------------------------------------------ several at a time ----


def test_fits_and_jobs_of_many_threads_on_one_client_give_what_they_give_alone(
    log: Path, two_workers: Client, tmp_path: Path
) -> None:
    def fit(seed: int) -> bytes:
        new = FMClassifier(n_factors=2, n_epochs=3, n_replicas=2, random_state=seed)
        model = new.fit(*collections(), client=two_workers)
        return model.factors_.tobytes() + model.predict_proba(X).tobytes()

    def train(seed: int) -> str:
        job = job_tables(log, tmp_path / f"{threading.get_ident()}-{seed}", model={"seed": seed})
        return jobs.train(job, two_workers).parameters_sha256

    work: list[Callable[[], Any]] = [lambda seed=seed: fit(seed) for seed in range(4)]
    work += [lambda seed=seed: train(seed) for seed in range(3)]
    alone = [one() for one in work]
    with ThreadPoolExecutor(len(work)) as pool:
        together = list(pool.map(lambda one: one(), work))
    assert together == alone


@pytest.mark.patient
def test_jobs_of_two_threads_with_workers_of_their_own_leave_dask_and_its_logs_as_they_were(
    log: Path, tmp_path: Path
) -> None:
    before = dask.config.get("distributed.scheduler"), dask.config.get("distributed.nanny")
    levels = [logging.getLogger(name).level for name in ("distributed.client", "distributed.core")]

    def train(seed: int) -> str:
        cluster = {"workers": 1, "worker_timeout": 100.0 + seed}
        job = job_tables(log, tmp_path / str(seed), model={"seed": 1}, cluster=cluster)
        return jobs.train(job).parameters_sha256

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(train, range(2))
    assert first == second
    assert (dask.config.get("distributed.scheduler"), dask.config.get("distributed.nanny")) == before
    assert [logging.getLogger(name).level for name in ("distributed.client", "distributed.core")] == levels


def test_a_context_that_threads_share_is_left_by_the_last_of_them() -> None:
    entered: list[str] = []

    @contextlib.contextmanager
    def recorded() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    first, second = (together.together("a test", recorded) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert entered == ["in"]
    second.__exit__(None, None, None)
    assert entered == ["in", "out"]
    with together.together("a test", recorded):
        assert entered == ["in", "out", "in"]


def test_a_module_is_sent_as_code_as_long_as_one_thread_needs_it() -> None:
    import cloudpickle

    def is_registered() -> bool:
        return lost_workers.__name__ in cloudpickle.list_registry_pickle_by_value()

    first, second = (versions.by_value(lost_workers) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert is_registered()
    second.__exit__(None, None, None)
    assert not is_registered()


# -------------------------------------------------------------------------- clusters that have no workers ----


@contextlib.contextmanager
def adaptive(**options: Any) -> Iterator[Client]:
    """A cluster of no worker, which has one as soon as there is work."""
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(**{"minimum": 0, "maximum": 2, "interval": "100ms", "wait_count": 30, **options})
        yield client


def test_an_adaptive_cluster_without_workers_is_woken_by_whoever_uses_it(
    log: Path, client: Client, tmp_path: Path
) -> None:
    result = jobs.train(job_tables(log, tmp_path / "there"), client)
    (tmp_path / "model").symlink_to(result.model_url)
    expected = FMClassifier(n_factors=2, n_epochs=2, n_replicas=2).fit(X, Y)
    for use in ("train", "evaluate", "predict"):
        with adaptive() as own:
            found = uses_of(own, log, tmp_path)[use]()
            assert use != "train" or found.parameters_sha256 == result.parameters_sha256
    for rows in ((X, Y), collections()):
        with adaptive() as own:
            model = FMClassifier(n_factors=2, n_epochs=2, n_replicas=2).fit(*rows, client=own)
        assert model.n_iter_ == 2
    with adaptive() as own:
        sent = FMClassifier(n_factors=2, n_epochs=2, n_replicas=2).fit(X, Y, client=own)
        assert sent.factors_.tobytes() == expected.factors_.tobytes()
        assert matrix_factorization(D, 2, n_epochs=2, client=own).P.shape == (20, 2)


def test_a_cluster_that_went_to_zero_between_preparation_and_training_is_woken(
    log: Path, client: Client, tmp_path: Path
) -> None:
    expected = jobs.train(job_tables(log, tmp_path / "there"), client).parameters_sha256
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as own,
    ):

        def end_all_workers(event: dict[str, Any]) -> None:
            if event["event"] == "prepared":
                cluster.scale(0)
                while remote.workers_of(own):
                    threading.Event().wait(0.05)
                cluster.adapt(minimum=0, maximum=2, interval="100ms", wait_count=30)

        found = jobs.train(job_tables(log, tmp_path / "gone"), own, on_event=end_all_workers)
    assert found.parameters_sha256 == expected


def test_without_any_worker_in_time_the_wait_ends_with_a_sentence(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_WORKER_TIMEOUT", 0.3)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as own,
    ):
        with pytest.raises(ClusterError, match=r"had none of 1 worker within cluster\.worker_timeout = 0\.3 s; start"):
            jobs.train(job_tables(log, tmp_path, cluster={"worker_timeout": 0.3}), own)
        for use in ("fit of an array", "fit of a collection", "matrix_factorization"):
            with pytest.raises(DfmError, match="had no worker, or"):
                uses_of(own, log, tmp_path)[use]()


def raised_from(error: Exception, cause: Exception) -> Exception:
    """The error, as `raise error from cause` leaves it."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("12 GiB"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, "no memory"),
        raised_from(TypeError("Could not serialize a task"), raised_from(ValueError("a part"), MemoryError())),
    ],
)
def test_a_job_without_memory_is_told_what_would_help(client: Client, error: Exception) -> None:
    with (
        pytest.raises(ClusterError, match=r"no more memory is to be had.*fewer cluster\.workers"),
        connect.client_of(ClusterSettings(), client),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        NoWorkerError("read-1", 60.0),
        NoValidWorkerError("read-1", {"a"}, set(), {}, 60.0),
        CommClosedError("gone"),
        ClosedClientError("Client is closed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_cluster_that_is_lost_is_told_in_a_sentence_and_what_was_trained_is_kept(
    client: Client, error: Exception
) -> None:
    with (
        pytest.raises(
            ClusterError, match=r"(?s)the cluster was lost while the job ran \(.*with memory to spare.*restarts"
        ),
        connect.client_of(ClusterSettings(), client),
    ):
        raise error
    assert isinstance(error, OF_THE_CLUSTER)  # a checkpoint is written first


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "broken"), RuntimeError("another"), raised_from(DataError("another line"), MemoryError())],
)
def test_other_trouble_of_the_system_is_none_of_memory(client: Client, error: Exception) -> None:
    with pytest.raises(type(error), match=r"broken|another"), connect.client_of(ClusterSettings(), client):
        raise error
