"""Which backend trains a job: processors, or GPUs where every worker has one. Replicas never mix the two.

GPUs add up in another order than processors, so a replica must give the same result wherever Dask puts it: one backend
for all. A worker started with `--resources GPU=1` gets one training task at a time; without that, they take turns.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from distributed import Client

from dfm.distributed.cluster.remote import workers_of
from dfm.distributed.cluster.size import sized
from dfm.errors import ClusterError, SettingsError
from dfm.kernels.contract import KernelSpec
from dfm.kernels.gpu import device as cupy_device
from dfm.settings.tables import ClusterSettings
from dfm.training.backends import NUMBA, Backend, candidates
from dfm.training.inputs import Inputs
from dfm.training.memory import plan_of, worker_memory
from dfm.training.order import Order
from dfm.training.rounds import Work

RESOURCE = "GPU"
"""The resource that workers declare; see Dask's `--resources`."""
_WORKERS_OF_A_GPU = 2
"""Local workers, so that one prepares what the GPU needs while it works for the other. Each takes memory of it."""


@dataclass(frozen=True)
class GpuOfWorker:
    """A worker's GPU: name, or the reason why there is none; which ones its process may see."""

    name: str
    reason: str
    n_devices: int
    visible: str


@dataclass(frozen=True)
class Choice:
    """The backend of a training, what a training task takes of its worker, and the choice in words."""

    backend: Backend
    resources: Mapping[str, float] | None
    text: str


def cluster_of(order: Order, inputs: Inputs, earlier_features: int = 0) -> ClusterSettings:
    """The cluster that a training asks for. Where nobody says how many local workers there are, it is as many as have a
    processor and enough memory; two for each GPU, where it may train on some. earlier_features: as in `plan_of`.
    """
    settings, plan = order.job.cluster, plan_of(order, inputs, earlier_features)
    found = sized(settings, lambda n_workers: worker_memory(plan, settings.threads_per_worker, n_workers))
    if settings.workers != "auto" or found.workers == "auto" or not _may_use_gpus(order.of_fields(inputs.schema).work):
        return found
    shared = _WORKERS_OF_A_GPU * cupy_device.likely_count()
    return replace(found, workers=min(int(found.workers), shared)) if shared else found


def _may_use_gpus(work: Work) -> bool:
    first = candidates(work.backend)[0]
    try:
        first.check(work.spec)
    except SettingsError:
        return False
    return first is not NUMBA


def gpu_of_worker() -> GpuOfWorker:
    """The GPU of this process."""
    name, reason = cupy_device.availability()
    return GpuOfWorker(
        name, reason, cupy_device.device_count() if name else 0, os.environ.get("CUDA_VISIBLE_DEVICES", "")
    )


def choose(
    client: Client, wanted: str, spec: KernelSpec, addresses: Sequence[str], deterministic: bool = False
) -> Choice:
    """The backend of a job or a fit, as `training.backend` wants it.

    SettingsError or ClusterError where GPUs are wanted that cannot do it, or are not there.
    """
    first, *others = candidates(wanted)
    if first is NUMBA:
        return _on_processors()
    refused = ""
    try:
        first.check(spec)
    except SettingsError as error:
        if not others:
            raise
        refused = str(error)
    found = _asked(client, addresses)
    if not found:
        if not others:
            raise ClusterError('no worker told in time whether it has a GPU; try again, or choose backend = "numba"')
        return _on_processors(": no worker told in time whether it has a GPU")
    without = {address: gpu for address, gpu in found.items() if not gpu.name}
    if without and not others:
        raise ClusterError(_why_refused(found, without))
    if without:
        named = ", ".join(sorted(without))
        some = f"{len(without)} of {len(found)} workers have no GPU ({named})"
        return _on_processors(f": {some if len(without) < len(found) else 'no worker has a GPU'}")
    if refused:
        return _on_processors(f": {refused}")
    _spread(client, found)
    kinds = ", ".join(f"{count} x {name}" for name, count in Counter(gpu.name for gpu in found.values()).items())
    careful = " (deterministic: one row after the other, slower than a processor)" if deterministic else ""
    return Choice(first, _declared(client, addresses), f"training on GPUs: {kinds}{careful}")


def _asked(client: Client, addresses: Sequence[str]) -> dict[str, GpuOfWorker]:
    """The GPUs of the workers that answer. One that has just been lost, or stalls, is no reason to fail."""
    answers = client.run(gpu_of_worker, workers=list(addresses), on_error="return")
    for answer in answers.values():
        if isinstance(answer, Exception) and not isinstance(answer, OSError):
            raise answer
    return {address: answer for address, answer in answers.items() if isinstance(answer, GpuOfWorker)}


def _on_processors(why: str = "") -> Choice:
    return Choice(NUMBA, None, f"training on processors{why}")


def _why_refused(found: Mapping[str, GpuOfWorker], without: Mapping[str, GpuOfWorker]) -> str:
    address, gpu = next(iter(without.items()))
    return (
        f'training.backend = "cupy" needs a GPU on every worker, and {len(without)} of {len(found)} have none: '
        f"{address}: {gpu.reason}. Start workers on machines with GPUs only, or use training.backend = "
        '"numba"'
    )


def _declared(client: Client, addresses: Sequence[str]) -> dict[str, float] | None:
    """A GPU per task, where all workers count theirs."""
    workers = workers_of(client)
    all_count = all(workers.get(address, {}).get("resources", {}).get(RESOURCE, 0) >= 1 for address in addresses)
    return {RESOURCE: 1} if all_count else None


def _spread(client: Client, found: Mapping[str, GpuOfWorker]) -> None:
    """Let the workers of a host take its GPUs in turn, unless each was given its own (as dask-cuda does)."""
    hosts: dict[str, list[str]] = {}
    for address in sorted(found):
        hosts.setdefault(urlsplit(address).hostname or "", []).append(address)
    for workers in hosts.values():
        if len({found[address].visible for address in workers}) > 1:
            continue
        for number, address in enumerate(workers):
            client.run(cupy_device.use_device, number % found[address].n_devices, workers=[address])
