"""What trains: one record for each backend, looked up once by the name that a job or an estimator gives.

GPUs add up in another order than processors, so all replicas of a training use one backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dfm.averaging import gpu as gpu_averaging
from dfm.averaging.contributions import aligned_groups, groups_at_home
from dfm.averaging.merge import Averaging, OnProcessors
from dfm.errors import ClusterError, SettingsError
from dfm.kernels.contract import Kernels, KernelSpec
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.gpu import device as cupy_device


@dataclass(frozen=True)
class Workplaces:
    """Of a cluster: tasks that it runs at a time, and its worker processes."""

    n_threads: int
    n_workers: int


@dataclass(frozen=True)
class Backend:
    """Kernels and averaging that belong together.

    compiled: of this process, which keeps them. averaging: where this process keeps tables and summands between walks.
    check: SettingsError where there are no kernels of a spec. device: of this process, its name, or "" and the reason
    why there is none. n_walks: replicas that a cluster trains at a time. groups: replicas that one task trains after
    each other.
    """

    name: str
    compiled: Callable[[KernelSpec], Kernels]
    averaging: Callable[[], Averaging]
    check: Callable[[KernelSpec], object]
    device: Callable[[], tuple[str, str]]
    n_walks: Callable[[Workplaces], int]
    groups: Callable[[int, Workplaces], list[range]]


def _groups_by_thread(n_replicas: int, places: Workplaces) -> list[range]:
    return aligned_groups(n_replicas, 1 << (places.n_threads - 1).bit_length())


def _groups_by_worker(n_replicas: int, places: Workplaces) -> list[range]:
    """Few tasks for those that have their rows on one GPU: their sum is made on it."""
    return groups_at_home(n_replicas, places.n_workers)


NUMBA = Backend(
    name="numba",
    compiled=numba_cpu.compile_kernels,
    averaging=OnProcessors,
    check=lambda spec: None,
    device=lambda: ("processor", ""),
    n_walks=lambda places: places.n_threads,
    groups=_groups_by_thread,
)
CUPY = Backend(
    name="cupy",
    compiled=cupy_gpu.compile_kernels,
    averaging=gpu_averaging.of_process,
    check=cupy_gpu.source_of,
    device=lambda: cupy_device.availability(),  # looked up at each call, for tests put a stand-in there
    n_walks=lambda places: places.n_workers,
    groups=_groups_by_worker,
)
BACKENDS = {backend.name: backend for backend in (NUMBA, CUPY)}
AUTO = "auto"
"""The name that stands for a GPU where there is one that can do it, and for processors elsewhere."""


def candidates(wanted: str) -> tuple[Backend, ...]:
    """Backends by preference, as `training.backend` wants them: the last one is taken, or refuses, as it is."""
    if wanted == AUTO:
        return CUPY, NUMBA
    if wanted not in BACKENDS:
        raise SettingsError(f"backend = {wanted!r}; choose one of {', '.join((AUTO, *BACKENDS))}")
    return (BACKENDS[wanted],)


def backend_here(wanted: str, spec: KernelSpec) -> Backend:
    """The backend of this process. SettingsError or ClusterError where a GPU is wanted that cannot do it, or is not
    there.
    """
    *preferred, last = candidates(wanted)
    for backend in preferred:
        try:
            backend.check(spec)
        except SettingsError:
            continue
        if backend.device()[0]:
            return backend
    last.check(spec)
    name, reason = last.device()
    if not name:
        raise ClusterError(f'backend = "{last.name}" needs a GPU: {reason}. Use backend = "numba" here')
    return last
