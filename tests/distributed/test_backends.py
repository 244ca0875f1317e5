"""Processors or GPUs: what a job is trained on, what is said of it, and that a whole job trains on (stand-in) GPUs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from dfm.averaging.contributions import groups_at_home
from dfm.distributed import backends
from dfm.distributed.backends import GpuOfWorker
from dfm.distributed.cluster.watch import Watch, home_of
from dfm.errors import ClusterError, SettingsError
from dfm.kernels.contract import KernelSpec
from dfm.kernels.gpu import device as cupy_device
from dfm.settings.job import load_job
from dfm.training.backends import CUPY, NUMBA
from dfm.training.inputs import find_inputs
from dfm.training.order import Order
from tests.support.host_gpu import as_gpu_of_process
from tests.support.small_jobs import job_tables

SPEC = KernelSpec("logistic", "adagrad", 8)
H200, NONE = GpuOfWorker("NVIDIA H200", "", 2, ""), GpuOfWorker("", "CuPy finds no usable GPU", 0, "")


class FakeClient:
    """Workers that say what GPU they have."""

    def __init__(self, gpus: Sequence[GpuOfWorker], resources: Sequence[int] | None = None) -> None:
        self.gpus = {f"tcp://host{number // 2}:{number}": gpu for number, gpu in enumerate(gpus)}
        self.resources = resources or [0] * len(gpus)
        self.devices: dict[str, int] = {}
        self.lost: dict[str, Exception] = {}

    def run(
        self, function: Callable[..., Any], *arguments: Any, workers: Sequence[str], on_error: str = "raise"
    ) -> dict[str, Any]:
        if function is backends.gpu_of_worker:
            assert on_error == "return"
            return {address: self.lost.get(address, self.gpus[address]) for address in workers}
        assert function is cupy_device.use_device
        self.devices |= {address: arguments[0] for address in workers}
        return {}

    @property
    def scheduler(self) -> FakeClient:
        return self

    def sync(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(function())

    async def identity(self, n_workers: int) -> dict[str, Any]:
        counted = zip(self.gpus, self.resources, strict=True)
        return {"workers": {address: {"resources": {"GPU": number} if number else {}} for address, number in counted}}


def test_a_worker_that_is_lost_while_it_is_asked_costs_nothing() -> None:
    client = FakeClient([H200, H200])
    client.lost["tcp://host0:1"] = OSError("Timed out trying to connect")
    assert choose(client).backend is CUPY
    client.lost["tcp://host0:0"] = OSError("Timed out trying to connect")
    assert choose(client).backend is NUMBA
    with pytest.raises(ClusterError, match="no worker told in time"):
        choose(client, backend="cupy")
    client.lost["tcp://host0:0"] = ModuleNotFoundError("No module named 'dfm'")
    with pytest.raises(ModuleNotFoundError):
        choose(client)


def choose(
    client: FakeClient, spec: KernelSpec = SPEC, backend: str = "auto", deterministic: bool = False
) -> backends.Choice:
    return backends.choose(client, backend, spec, list(client.gpus), deterministic)  # type: ignore[arg-type]


def test_two_local_workers_share_a_gpu_where_nobody_says_how_many_and_gpus_may_train(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: 7)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 1 << 40)

    def workers(n_devices: int, backend: str = "auto", wanted: int | str = "auto") -> int | str:
        monkeypatch.setattr(cupy_device, "likely_count", lambda: n_devices)
        tables = job_tables(log, tmp_path, cluster={"workers": wanted}, training={"backend": backend})
        order = Order.of(load_job(tables))
        return backends.cluster_of(order, find_inputs(order.job)).workers

    assert (workers(1), workers(3), workers(1, "cupy"), workers(1, "cupy", 5)) == (2, 6, 2, 5)
    assert (workers(0), workers(1, "numba"), workers(1, "numba", 3)) == (7, 7, 3)
    assert workers(16) == 7, "no more than there are processors"


def test_a_solver_that_no_gpu_has_gets_a_worker_for_each_processor(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: 7)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 1 << 40)
    monkeypatch.setattr(cupy_device, "likely_count", lambda: 1)
    tables = job_tables(log, tmp_path, cluster={"workers": "auto"})
    tables["training"] = {"solver": "als", "n_epochs": 2, "n_replicas": 2}
    order = Order.of(load_job(tables))
    assert backends.cluster_of(order, find_inputs(order.job)).workers == 7


def test_gpus_are_counted_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cupy": None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.get(name))
    assert cupy_device.likely_count() == 0
    found["cupy"] = object()  # type: ignore[assignment]
    for visible, n in (("", 0), ("-1", 0), ("3", 1), ("0,2", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert cupy_device.likely_count() == n


def test_a_training_has_as_many_local_workers_as_its_plan_finds_memory_for(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: 16)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 64 << 30)
    tables = job_tables(log, tmp_path, cluster={"workers": "auto"}, training={"backend": "numba"})
    order, asked = Order.of(load_job(tables)), []

    def needs(plan: dict[str, Any], n_threads: int, n_workers: int) -> int:
        asked.append((plan, n_threads, n_workers))
        return 10 << 30

    monkeypatch.setattr(backends, "worker_memory", needs)
    assert backends.cluster_of(order, find_inputs(order.job)).workers == 6
    assert asked == [(jobs.plan(tables), 1, n_workers) for n_workers in range(16, 5, -1)]


def test_gpus_train_where_every_worker_has_one_and_it_is_said() -> None:
    chosen = choose(FakeClient([H200, H200, H200]))
    assert (chosen.backend.name, chosen.resources) == ("cupy", None)
    assert "3 x NVIDIA H200" in chosen.text
    assert "slower" in choose(FakeClient([H200]), deterministic=True).text


def test_a_mixed_cluster_trains_on_processors_and_says_which_lack_a_gpu_or_refuses() -> None:
    client = FakeClient([H200, NONE, H200])
    chosen = choose(client)
    assert chosen.backend.name == "numba"
    assert "1 of 3 workers have no GPU (tcp://host0:1)" in chosen.text
    with pytest.raises(ClusterError, match=r"1 of 3 have none: tcp://host0:1: CuPy finds no usable GPU"):
        choose(client, backend="cupy")


def test_without_gpus_processors_train_and_nobody_is_asked_where_they_are_wanted() -> None:
    assert choose(FakeClient([NONE, NONE])).text == "training on processors: no worker has a GPU"
    assert choose(FakeClient([]), backend="numba").backend.name == "numba"


def test_workers_that_count_their_gpus_train_one_replica_on_each() -> None:
    assert choose(FakeClient([H200, H200], resources=[1, 1])).resources == {"GPU": 1}
    assert choose(FakeClient([H200, H200], resources=[1, 0])).resources is None


def test_replicas_are_grouped_by_gpu_not_by_thread(two_workers: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a GPU sums all its replicas, and knows which rows come next."""
    watch = Watch(two_workers, 60.0)
    monkeypatch.setattr(watch, "n_threads", lambda: 16)
    places = watch.workplaces()
    assert (NUMBA.n_walks(places), CUPY.n_walks(places)) == (16, 2)
    assert CUPY.groups(8, places) == [range(4), range(4, 8)]
    assert NUMBA.groups(8, places) == [range(n, n + 1) for n in range(8)]


@pytest.mark.parametrize("n_replicas", [1, 2, 3, 8, 9, 12, 24, 31])
@pytest.mark.parametrize("n_workers", [1, 2, 3, 4, 5, 8, 40])
def test_every_gpu_trains_the_replicas_whose_rows_it_has(n_replicas: int, n_workers: int) -> None:
    homes = [str(number) for number in range(n_workers)]
    groups = groups_at_home(n_replicas, n_workers)
    assert [replica for group in groups for replica in group] == list(range(n_replicas))
    assert {len(group) for group in groups[:-1]} | {len(groups[0])} == {len(groups[0])}
    assert len(groups) == 1 or len(groups[0]).bit_count() == 1
    for group in groups:
        assert len({home_of(replica, n_replicas, homes) for replica in group}) == 1


def test_workers_of_a_host_take_its_gpus_in_turn_unless_they_were_given_their_own() -> None:
    client = FakeClient([H200] * 4)
    choose(client)
    assert list(client.devices.values()) == [0, 1, 0, 1]
    own = FakeClient([GpuOfWorker("NVIDIA H200", "", 2, visible) for visible in ("0,1", "1,0")])
    choose(own)
    assert own.devices == {}


def test_what_gpus_cannot_do_is_done_by_processors_or_refused() -> None:
    unknown = KernelSpec("logistic", "adagrad", 8, factor_dtype="int8")
    assert "int8" in choose(FakeClient([H200]), unknown).text
    assert choose(FakeClient([H200]), unknown).backend.name == "numba"
    with pytest.raises(SettingsError, match="int8"):
        choose(FakeClient([H200]), unknown, backend="cupy")


def test_a_job_that_needs_gpus_is_refused_where_there_are_none(log: Path, client: Client, tmp_path: Path) -> None:
    if cupy_device.availability()[0]:
        pytest.skip("there is a GPU")
    with pytest.raises(ClusterError, match=r'training.backend = "cupy" needs a GPU on every worker'):
        jobs.train(job_tables(log, tmp_path, training={"backend": "cupy"}), client)


def test_a_job_trained_by_the_gpu_kernels_is_as_good_as_one_of_the_cpu(
    log: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels run on the processor; what is tested is the way through settings, rounds, averages and validation."""
    shards = [str(next(log.glob(f"day=2026-11-{day}/*.parquet"))) for day in (16, 17)]
    small = {
        "data": {"train": shards[0], "validation": shards[1], "validation_from": ""},
        "model": {"n_factors": 2, "hash_bits": 12},
    }
    training = {"n_replicas": 2, "n_epochs": 2, "averages_per_epoch": 4, "later_averages": 2}  # several slices a round
    losses, told = {}, []
    for backend in ("numba", "cupy"):
        if backend == "cupy":
            device = as_gpu_of_process(monkeypatch)
        tables = job_tables(log, tmp_path / backend, **small, training={**training, "backend": "auto"})
        result = jobs.train(tables, client, on_event=told.append)
        losses[backend] = result.validation["log_loss"]
        assert result.model.metadata["backend"] == backend
    assert [event["backend"] for event in told if event["event"] == "prepared"] == ["numba", "cupy"]
    kernels = {kernel for kernel, *_ in device.launched}
    assert {"train_rows", "score_rows", "sum_parts", "finish_vectors", "scatter_rows"} <= kernels
    assert losses["cupy"] == pytest.approx(losses["numba"], abs=0.002)


def test_a_deterministic_job_has_the_same_bytes_on_one_gpu_and_on_two(
    log: Path, client: Client, two_workers: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three replicas: one GPU sums them all, or two split them."""
    shards = [str(next(log.glob(f"day=2026-11-{day}/*.parquet"))) for day in (16, 17)]
    small = {
        "data": {"train": shards[0], "validation": shards[1], "validation_from": ""},
        "model": {"n_factors": 2, "hash_bits": 12},
    }
    training = {"n_replicas": 3, "n_epochs": 2, "averages_per_epoch": 3, "later_averages": 2, "deterministic": True}
    training |= {"backend": "cupy", "outer_momentum": 0.3}
    as_gpu_of_process(monkeypatch)
    found = set()
    for number, one in enumerate((client, two_workers)):
        result = jobs.train(job_tables(log, tmp_path / str(number), **small, training=training), one)
        assert result.model.metadata["backend"] == "cupy"
        found.add(result.parameters_sha256)
    assert len(found) == 1
