"""The Dask client of a job: of a running scheduler, or of local worker processes started for the job."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import CancelledError
from urllib.parse import urlsplit

import dask
from distributed import Client, LocalCluster, Worker, WorkerPlugin
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError

from dfm.errors import ClusterError
from dfm.settings import ClusterSettings

_CONFIG = {
    # Tasks stay where their partitions lie; a stolen one would move megabytes to save milliseconds.
    "distributed.scheduler.work-stealing": False,
    # A task that killed two workers will kill the third.
    "distributed.scheduler.allowed-failures": 2,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    "distributed.comm.retry.count": 3,
    # A round allocates what the round before gave back. Dask's default returns it to the system each time, and faulting
    # the pages in again cost more than merging did.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 28,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 25,
    "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
    "distributed.admin.tick.limit": "20s",
}


_WORKER_PATIENCE = 60
"""Seconds; a worker that was killed is back in three."""


class _Quiet(WorkerPlugin):
    """Local workers report errors through their tasks; a heartbeat that fails while they close is none."""

    def setup(self, worker: Worker) -> None:
        """Called on every worker, restarted ones too."""
        logging.getLogger("tornado.application").setLevel(logging.CRITICAL)
        # Ctrl-C in a terminal reaches the workers too; they must outlive it, for they hold what is to be published.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def connect(settings: ClusterSettings) -> Iterator[Client]:
    """A client with at least one worker; a cluster started here ends with the block."""
    if settings.scheduler:
        with _remote_client(settings) as client:
            yield client
        return
    patience = {"distributed.scheduler.no-workers-timeout": f"{settings.worker_timeout}s"}
    with (
        dask.config.set({**_CONFIG, **patience}),
        tempfile.TemporaryDirectory(prefix="dfm-", ignore_cleanup_errors=True) as local_directory,
        LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=settings.threads_per_worker,
            processes=True,
            memory_limit=settings.memory_limit,
            # Without a dashboard Dask serves its health over HTTP all the same: on any free port, as jobs share a host.
            dashboard_address=":8787" if settings.dashboard else "127.0.0.1:0",
            scheduler_kwargs={"dashboard": settings.dashboard},
            local_directory=local_directory,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(_Quiet())
        yield client


@contextlib.contextmanager
def _remote_client(settings: ClusterSettings) -> Iterator[Client]:
    try:
        client = Client(settings.scheduler, set_as_default=False, timeout=settings.worker_timeout)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler at {settings.scheduler} ({error}); check the address, or leave cluster.scheduler empty "
            "to start local workers"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=settings.worker_timeout)
        except TimeoutError as error:
            raise ClusterError(
                f"the scheduler at {settings.scheduler} had no worker within cluster.worker_timeout = "
                f"{settings.worker_timeout} s; start workers (dask worker {settings.scheduler}) or wait longer"
            ) from error
        yield client


def shares_disk(client: Client) -> bool:
    """Whether all workers run on this machine, so that a path means the same to them as here."""
    addresses = [*worker_addresses(client), client.scheduler.address]
    hosts = {urlsplit(address).hostname or "" for address in addresses}
    return hosts <= {"", "localhost", "127.0.0.1", "::1", *_own_hosts()} or "inproc" in client.scheduler.address


def _own_hosts() -> set[str]:
    try:
        name, aliases, addresses = socket.gethostbyname_ex(socket.gethostname())
    except OSError:
        return set()
    return {name, *aliases, *addresses}


def cache_directory(settings: ClusterSettings, client: Client) -> str:
    """Where partitions are cached: workers of this machine share a folder, others resolve the path below their own."""
    return os.path.abspath(settings.cache) if shares_disk(client) else settings.cache


def worker_addresses(client: Client) -> list[str]:
    """Addresses of the workers alive, in a fixed order. Waits for the first one; ClusterError where none comes."""
    try:
        client.wait_for_workers(1, timeout=_WORKER_PATIENCE)
    except TimeoutError as error:
        raise ClusterError(
            f"the cluster had no worker for {_WORKER_PATIENCE} s; start workers and run the same command again"
        ) from error
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def n_threads(client: Client) -> int:
    """Tasks that the cluster runs at a time."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return max(1, sum(int(worker["nthreads"]) for worker in workers))


@contextlib.contextmanager
def client_of(settings: ClusterSettings, client: Client | None) -> Iterator[Client]:
    """The given client, or one of the settings' cluster; trouble of the cluster inside the block is a ClusterError."""
    try:
        if client is not None:
            yield client
        else:
            with connect(settings) as own:
                yield own
    except KilledWorker as error:
        raise ClusterError(
            f"the task {error.task} ended {error.allowed_failures + 1} workers, most likely for want of memory; raise "
            f"cluster.memory_limit (now {settings.memory_limit!r}), or use fewer cluster.workers with more memory each"
        ) from error
    except (NoValidWorkerError, CommClosedError, CancelledError) as error:
        raise ClusterError(
            f"the cluster was lost while the job ran ({type(error).__name__}: {error}); see that scheduler and workers "
            "are up, and run the same command again"
        ) from error
