"""The Dask client of a job: of a running scheduler, or of local worker processes started for the job."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from urllib.parse import urlsplit

import dask
from distributed import Client, LocalCluster, Worker, WorkerPlugin
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

from dfm.distributed.cluster import fork_server
from dfm.distributed.cluster.endings import end_quickly
from dfm.distributed.cluster.main_guard import check_main
from dfm.distributed.cluster.remote import check_client, install, is_remote, remote_client, wait_for_workers, workers_of
from dfm.distributed.cluster.size import sized
from dfm.distributed.cluster.together import together
from dfm.distributed.cluster.versions import same_versions
from dfm.errors import ClusterError, DfmError, OutOfMemoryError, want_of_memory
from dfm.settings.tables import ClusterSettings

logger = logging.getLogger(__name__)
_STARTS = 3
"""Times that local workers are started before the job gives up."""
_CONFIG = {
    # Tasks stay where their partitions lie; a stolen one would move megabytes to save milliseconds.
    "distributed.scheduler.work-stealing": False,
    # A worker that dies takes the task with it that it was at; one task may be struck so often by mere chance.
    "distributed.scheduler.allowed-failures": 4,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    # A worker that pauses waits for memory that only its own tasks would free; at the limit it is restarted instead.
    "distributed.worker.memory.pause": False,
    "distributed.comm.retry.count": 3,
    # Dask goes on trying to reach a dead worker for this long (30 s by default), also where the port refuses at once.
    "distributed.comm.timeouts.connect": "5s",
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in fork_server.ENVIRONMENT.items()},
    "distributed.admin.tick.limit": "20s",
    # Looking at itself fifty times a second costs each process of Dask 4 % of a core, which local workers need.
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
    # So long a worker that was killed may take to come back before another is started in its place.
    "distributed.deploy.lost-worker-timeout": "20s",
}
_PROFILES_SAFELY = sys.version_info[:2] != (3, 11)
"""Dask profiles by walking the frames of threads that run. In Python 3.11 a garbage collection may begin in the middle
of it, whose finalizers and callbacks let those threads go on: what is then written goes to frames that are gone, and
the process crashes. Dask itself has given up that of event loops there, not that of tasks."""
_starting = threading.Lock()
"""Held while a cluster starts under settings of its own, which are those of the whole process meanwhile."""


class _Quiet(WorkerPlugin):
    """Local workers report errors through their tasks; a heartbeat that fails while they close is none."""

    def setup(self, worker: Worker) -> None:
        """Called on every worker, restarted ones too."""
        logging.getLogger("tornado.application").setLevel(logging.CRITICAL)
        # Ctrl-C in a terminal reaches the workers too; they must outlive it, for they hold what is to be published.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_quickly()


@contextlib.contextmanager
def connect(settings: ClusterSettings) -> Iterator[Client]:
    """A client with at least one worker; a cluster started here ends with the block."""
    if is_remote(settings):
        fork_server.end()
        with remote_client(settings) as client:
            yield client
        return
    check_main()
    with (
        together("settings of Dask", lambda: dask.config.set(_CONFIG)),
        tempfile.TemporaryDirectory(prefix="dfm-", ignore_cleanup_errors=True) as local_directory,
        _started(settings, local_directory) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        install(client, _Quiet())
        yield client


def _local_cluster(settings: ClusterSettings, local_directory: str) -> LocalCluster:
    """Workers of this machine, started; scheduler and workers read the job's own settings of Dask while they start."""
    settings = sized(settings)
    own = {
        "distributed.scheduler.no-workers-timeout": f"{settings.worker_timeout}s",
        # A worker that stalls is replaced: its heartbeat stops, though its process and its connections live on.
        "distributed.scheduler.worker-ttl": f"{settings.worker_timeout}s",
        # A profile is looked at on the dashboard only.
        "distributed.worker.profile.enabled": settings.dashboard and _PROFILES_SAFELY,
        **fork_server.start_method(),
    }
    with _starting, dask.config.set(own):
        return LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=settings.threads_per_worker,
            processes=True,
            memory_limit=settings.memory_limit,
            # Without a dashboard Dask serves its health over HTTP all the same: on any free port, as jobs share a host.
            dashboard_address=":8787" if settings.dashboard else "127.0.0.1:0",
            scheduler_kwargs={"dashboard": settings.dashboard},
            local_directory=local_directory,
            silence_logs=logging.CRITICAL,
        )


def _started(settings: ClusterSettings, local_directory: str) -> LocalCluster:
    """Local workers. ClusterError where they do not come up: a process that dies meanwhile takes all others with it."""
    for attempt in range(1, _STARTS + 1):
        try:
            return _local_cluster(settings, local_directory)
        except (RuntimeError, OSError, AssertionError) as error:
            reason = f"{error.__cause__ or error}" or "an event loop took more than 10 s to begin"  # Dask asserts that
            fork_server.end()  # it may be the cause
            if attempt < _STARTS:
                logger.warning("the local workers did not start (%s); they are started again", reason)
    raise ClusterError(
        f"the local workers did not start, {_STARTS} times in a row ({reason}): something ends their processes, "
        "perhaps for want of memory; use fewer cluster.workers, or see what the system's log says"
    )


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
    """The folder of cached partitions: workers of this machine share it, others resolve the path below their own."""
    return os.path.abspath(settings.cache) if shares_disk(client) else settings.cache


def worker_addresses(client: Client) -> list[str]:
    """Addresses of the workers that are there now, in a fixed order."""
    return sorted(workers_of(client))


@contextlib.contextmanager
def client_of(settings: ClusterSettings, client: Client | None) -> Iterator[Client]:
    """The given client, with a worker, or one of the settings' cluster; trouble of the cluster inside the block is a
    ClusterError.
    """
    out_of_memory: list[str] = []
    try:
        if client is not None:
            check_client(client)
            with same_versions(client, settings), _noting_memory(client, out_of_memory):
                wait_for_workers(client, 1, settings.worker_timeout)
                yield client
        else:
            quiet = together("loggers of Dask", _told_once)
            with quiet, connect(settings) as own, _noting_memory(own, out_of_memory), _alike(own, settings):
                yield own
    except KilledWorker as error:
        kind = OutOfMemoryError if out_of_memory else ClusterError
        raise kind(_why_killed(error, settings, out_of_memory)) from error
    except (NoWorkerError, NoValidWorkerError, CommClosedError, CancelledError, ClosedClientError) as error:
        raise ClusterError(
            f"the cluster was lost while the job ran ({type(error).__name__}: {error}); see that scheduler and workers "
            "are up, with memory to spare, that nobody restarts the cluster (Client.restart) or closes its client, and "
            f"run the same command again: {_kept_by(error)}"
        ) from error
    except DfmError:
        raise
    except Exception as error:
        told = want_of_memory(error)
        if told is None:
            raise
        # No OutOfMemoryError, to whose message a plan of the job is added: this process may be the one without memory.
        raise ClusterError(
            f"no more memory is to be had, here or on a worker ({type(told).__name__}: {told}); give this process "
            "and the workers more, or use fewer cluster.workers, smaller shards or more training.n_replicas, and run "
            f"the same command again: {_kept_by(error)}"
        ) from error


def _kept_by(error: BaseException) -> str:
    """That a second try is shorter, and the notes of an error, which tell of what is kept for it."""
    return "; ".join(["what is finished is not repeated", *getattr(error, "__notes__", ())])


def _alike(client: Client, settings: ClusterSettings) -> contextlib.AbstractContextManager[None]:
    """Workers that this process started run its versions."""
    return same_versions(client, settings) if is_remote(settings) else contextlib.nullcontext()


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """A scheduler that is lost ends the block with an error of ours; Dask need not log its traceback as well."""
    loggers = [logging.getLogger(name) for name in ("distributed.client", "distributed.core", "tornado.application")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _noting_memory(client: Client, found: list[str]) -> Iterator[None]:
    """Collect, when the block fails, which workers were ended because their memory ran out."""
    try:
        yield
    except KilledWorker:
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            events = client.get_events("worker-restart-memory")
            found += sorted({f"{event['worker']} ({event['rss'] / 2**30:.2f} GiB)" for _, event in events})
        raise


def _why_killed(error: KilledWorker, settings: ClusterSettings, out_of_memory: Sequence[str]) -> str:
    ended = f"the task {error.task} ended {error.allowed_failures + 1} workers"
    remedy = (
        f"raise cluster.memory_limit (now {settings.memory_limit!r}), use fewer cluster.workers with more memory each, "
        "or more training.n_replicas, which makes each partition smaller; `dfm train --dry-run` prints what is needed"
    )
    if out_of_memory:
        return (
            f"out of memory: {ended}, which Dask restarted at 95 % of their limit: {', '.join(out_of_memory)}; {remedy}"
        )
    return f"{ended}, perhaps for want of memory; the workers' logs tell. If so, {remedy}"
