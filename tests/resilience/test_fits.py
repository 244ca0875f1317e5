"""Workers are killed under fits of estimators and under lazy predictions: the same bytes, or one sentence."""

# ruff: noqa: E402 (what may be missing is looked for first)
from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")
pd = pytest.importorskip("pandas")

import dask.array as da
import dask.dataframe as dd
from distributed import Client, LocalCluster
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

from dfm.distributed.cluster import connect
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.executor import DaskExecutor, told_to_a_fit
from dfm.errors import ClusterError
from dfm.estimators import FMClassifier, chunks, scorers
from dfm.factorization import matrix_factorization
from dfm.settings.tables import ClusterSettings
from tests.support.real_processes import pids_of_workers, wait_until

RNG = np.random.default_rng(3)
FRAME = pd.DataFrame({"u": RNG.integers(0, 40, 1200), "i": RNG.integers(0, 30, 1200)})
LABELS = pd.Series((RNG.random(1200) < 0.3 + 0.4 * (FRAME.u % 2)).astype(int))
NUMBERS = RNG.normal(size=(1200, 3))
KNOBS: dict[str, Any] = {"n_factors": 3, "n_epochs": 4, "n_replicas": 4, "averages_per_epoch": 2}


@pytest.fixture(scope="module")
def two_processes() -> Iterator[Client]:
    with connect.connect(ClusterSettings(workers=2, worker_timeout=60.0)) as client:
        yield client


@pytest.fixture
def client(two_processes: Client) -> Client:
    """With both of its workers, whatever was done to them before."""
    watch = Watch(two_processes, 60.0)
    wait_until(lambda: len(watch.addresses()) == 2 == len(pids_of_workers(two_processes)))
    return two_processes


def killing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, client: Client, victims: slice, nth: int) -> None:
    """Let the n-th call of a function of this process kill some of the workers when it returns."""
    original, calls = getattr(owner, name), 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        found = original(*arguments, **options)
        calls += 1
        if calls == nth:
            for pid in pids_of_workers(client)[victims]:
                os.kill(pid, signal.SIGKILL)
        return found

    monkeypatch.setattr(owner, name, call)


def of_a_frame(client: Client) -> Any:
    frame, labels = dd.from_pandas(FRAME, npartitions=5), dd.from_pandas(LABELS, npartitions=5)
    return FMClassifier(**KNOBS).fit(frame, labels, eval_set=(frame, labels), client=client).factors_


def of_an_array(client: Client) -> Any:
    """Validated on rows of this process, and going on from an earlier fit."""
    model = FMClassifier(**KNOBS, warm_start=True).fit(NUMBERS, LABELS)
    rows, labels = da.from_array(NUMBERS, chunks=(300, 3)), da.from_array(LABELS.to_numpy(), chunks=300)
    return model.fit(rows, labels, eval_set=(NUMBERS[:90], LABELS[:90]), client=client).factors_


def of_rows_that_are_sent(client: Client) -> Any:
    return FMClassifier(**KNOBS, early_stopping=True).fit(FRAME, LABELS, client=client).factors_


def of_a_matrix(client: Client) -> Any:
    D = np.where(np.arange(600).reshape(30, 20) % 3 > 0, np.arange(600).reshape(30, 20) % 7.0, np.nan)
    return matrix_factorization(D, 2, n_replicas=4, n_epochs=4, client=client).P


FITS = [of_a_frame, of_an_array, of_rows_that_are_sent, of_a_matrix]
ONE, BOTH = slice(0, 1), slice(0, 2)
IN_TRAINING = (DaskExecutor, "finish", 3)
MOMENTS: list[tuple[Callable[..., Any], tuple[Any, str, int], slice]] = [
    (of_a_frame, (chunks, "encode_chunks", 1), ONE),
    *((fit, IN_TRAINING, ONE) for fit in FITS[1:]),
]
LONGER = [
    (of_a_frame, (DaskExecutor, "evaluate", 1), ONE),
    (of_a_frame, IN_TRAINING, ONE),
    (of_a_frame, (chunks, "place_chunks", 1), BOTH),
    *((fit, IN_TRAINING, victims) for fit in FITS for victims in (slice(1, 2), BOTH)),
]
"""More of them: at a time that takes longer to make good, or with both workers to be started again."""


def named(moments: list[tuple[Callable[..., Any], tuple[Any, str, int], slice]], **options: Any) -> list[Any]:
    return [
        pytest.param(fit, where, victims, id=f"{fit.__name__}-{where[1]}-{victims.start}:{victims.stop}", **options)
        for fit, where, victims in moments
    ]


@pytest.fixture(scope="module")
def undisturbed(two_processes: Client) -> dict[str, bytes]:
    return {fit.__name__: fit(two_processes).tobytes() for fit in FITS}


@pytest.mark.patient
@pytest.mark.parametrize(("fit", "moment", "victims"), [*named(MOMENTS), *named(LONGER, marks=pytest.mark.slow)])
def test_workers_killed_under_a_fit_change_nothing(
    client: Client,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    fit: Callable[[Client], Any],
    moment: tuple[Any, str, int],
    victims: slice,
) -> None:
    owner, name, nth = moment
    killing(monkeypatch, owner, name, client, victims, nth)
    before = pids_of_workers(client)
    assert fit(client).tobytes() == undisturbed[fit.__name__]
    assert pids_of_workers(client) != before


@pytest.mark.patient
def test_rows_that_nobody_can_compute_again_are_told_in_a_sentence(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = client.scatter([FRAME[:600], FRAME[600:]], hash=False)
    frame = dd.from_delayed(parts, meta=FRAME[:0])
    labels = dd.from_pandas(LABELS, npartitions=2)
    killing(monkeypatch, DaskExecutor, "finish", client, slice(0, 2), 1)
    with pytest.raises(ClusterError, match="lost with a worker, and Dask cannot compute it again"):
        FMClassifier(**KNOBS).fit(frame, labels, client=client)


def _end_the_worker(part: Any) -> Any:
    os._exit(1)


@pytest.mark.slow
def test_a_task_that_ends_its_workers_is_told_in_a_sentence() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", scheduler_kwargs={"allowed_failures": 0}
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        frame = dd.from_map(_end_the_worker, [FRAME], meta=FRAME[:0])
        with pytest.raises(ClusterError, match=r"the task .* ended 1 workers, perhaps for want of memory"):
            FMClassifier(**KNOBS).fit(frame, dd.from_pandas(LABELS, npartitions=1), client=client)


TROUBLE: list[tuple[Exception, str]] = [
    (KilledWorker("read-1", None, 3), "the task read-1 ended 4 workers"),
    (NoValidWorkerError("read-1", {"a"}, set(), {}, 60.0), "the cluster was lost during the fit .* make a new client"),
    (NoWorkerError("read-1", 60.0), "the cluster was lost during the fit .*without any running workers"),
    (CommClosedError("gone"), "the cluster was lost during the fit"),
    (CancelledError("lost"), "lost with a worker"),
]


@pytest.mark.parametrize(("error", "told"), TROUBLE, ids=[type(error).__name__ for error, _ in TROUBLE])
def test_what_dask_raises_becomes_an_error_of_the_cluster(error: Exception, told: str) -> None:
    with pytest.raises(ClusterError, match=told), told_to_a_fit():
        raise error


# ---------------------------------------------------------------------------------------- predictions ----


@pytest.fixture
def model() -> FMClassifier:
    """One that is too large to travel in a graph."""
    wide = pd.DataFrame({"u": np.arange(4000), "i": np.arange(4000) % 30})
    seed = next(_seeds)  # each is another one, so that no worker has it
    return FMClassifier(n_factors=8, n_epochs=1, random_state=seed).fit(wide, wide.u % 2)


_seeds = itertools.count()


def _die_once(number: int, flag: str) -> Any:
    """A chunk whose worker is killed the first time that one of them is made after two others."""
    if number == 3 and not os.path.exists(flag):
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return FRAME[number * 300 : (number + 1) * 300]


def dying_frame(flag: Path) -> Any:
    return dd.from_map(_die_once, range(4), flag=str(flag), meta=FRAME[:0])


@pytest.mark.patient
def test_a_worker_killed_under_a_prediction_changes_nothing(
    client: Client, model: FMClassifier, tmp_path: Path
) -> None:
    lazily = model.predict_proba(dying_frame(tmp_path / "flag"))
    found = client.compute(lazily).result(timeout=120)
    assert (tmp_path / "flag").exists()
    np.testing.assert_array_equal(found, model.predict_proba(FRAME))


@pytest.mark.parametrize("is_killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_workers_of_other_machines_fetch_the_model_from_the_cluster(
    client: Client, model: FMClassifier, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """No file of this process is there for them, and the worker that has the model may be killed."""
    monkeypatch.setattr(scorers, "shares_disk", lambda client: False)
    with client.as_current():
        lazily = model.decision_function(dd.from_pandas(FRAME, npartitions=4))
    place = scorers._recent[-1]
    place.future.result(timeout=60)
    (holder,) = client.who_has([place.future])[place.future.key]
    Path(place.path).unlink()
    if is_killed:
        os.kill(client.run(os.getpid, workers=[holder])[holder], signal.SIGKILL)
    with Client(client.scheduler.address, set_as_default=False) as other:  # the collection is anybody's to compute
        found = other.compute(lazily).result(timeout=120)
    np.testing.assert_array_equal(found, model.decision_function(FRAME))


def test_a_model_out_of_reach_is_told_in_a_sentence(client: Client, model: FMClassifier) -> None:
    lazily = model.predict(dd.from_pandas(FRAME, npartitions=2))
    Path(scorers._recent[-1].path).unlink()
    with pytest.raises(ClusterError, match="the model of this prediction is not within reach"):
        client.compute(lazily).result(timeout=120)
