"""Clusters that are there already, or that somebody else's code starts: how to get a client of one, with workers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import socket
import ssl
import sys
import time
import uuid
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import dask
from distributed import Client, Future
from distributed.security import Security
from distributed.versions import VersionMismatchWarning

from dfm.distributed.cluster.spared import know_pandas
from dfm.errors import ClusterError, DfmError, SettingsError
from dfm.settings.tables import ClusterSettings
from dfm.storage.retry import first_line

logger = logging.getLogger(__name__)
T = TypeVar("T")
_FIRST_TRY = 8.0
"""Seconds after which the port of a scheduler that does not answer is looked at: it may speak another protocol."""
_LISTENING = 2.0
_PATIENCE_FOR_A_LINK = 5.0
"""Seconds to wait for a scheduler that is asked for no more than its dashboard."""
_CLOSING = 5.0
"""Seconds for a client to close that could not be made."""
_SLACK = 1.0
"""Seconds by which Dask's own errors, which tell more, come first."""
LONGEST_ANSWER = 30.0
"""Seconds to wait for a scheduler to say who its workers are: it may be busy, or its host swap."""
LOCAL = "local"
"""The scheduler of this name is none: local workers are started, whatever the environment says."""


def scheduler_address(settings: ClusterSettings) -> str:
    """The scheduler to connect to; empty where the job's own workers, or those of a factory, do the work."""
    if settings.scheduler == LOCAL or settings.factory:
        return ""
    return settings.scheduler or str(dask.config.get("scheduler-address", None) or "")


def check_client(client: Any) -> None:
    """SettingsError where it is no client whose work can be waited for; ClusterError where it is closed."""
    if not isinstance(client, Client):
        raise SettingsError(f"client is a {type(client).__name__}; expected a dask.distributed.Client of the cluster")
    # Of an asynchronous client in another thread than its event loop's, `asynchronous` alone says no.
    if client.asynchronous or getattr(client, "_asynchronous", False):
        raise SettingsError(
            "client is asynchronous, and dfm waits for what it computes; pass a plain Client of the same scheduler, "
            "and call dfm in a thread (asyncio.to_thread) where an event loop must not wait"
        )
    if client.status in ("closing", "closed"):
        raise ClusterError("client is closed; make a new dask.distributed.Client of the cluster and pass that")


def workers_of(client: Client, patience: float = LONGEST_ANSWER) -> dict[str, Any]:
    """The workers alive, by address, as the scheduler describes them. ClusterError where it does not answer within
    `patience` seconds: a frozen one takes questions and connections for ever.

    Asked of the scheduler itself: `client.scheduler_info()` may answer from what a periodic callback left, without any.
    """
    workers: dict[str, Any] = answered(client, lambda: client.scheduler.identity(n_workers=-1), patience)["workers"]
    return workers


def install(client: Client, plugin: Any, patience: float = LONGEST_ANSWER) -> None:
    """Register a plugin. ClusterError where the scheduler does not say in so many seconds that it has it."""
    answered(client, lambda: client.register_plugin(plugin), patience)


def answered(client: Client, ask: Callable[[], Awaitable[T]], patience: float = LONGEST_ANSWER) -> T:
    """The answer of the scheduler to what is asked in the client's event loop; ClusterError where none comes in so many
    seconds: a frozen one takes questions for ever.
    """

    async def waited() -> T:
        return await asyncio.wait_for(ask(), patience)

    try:
        answer: T = client.sync(waited)
    except TimeoutError as error:
        raise ClusterError(
            f"the scheduler at {client.scheduler.address} has not answered for {patience:g} s; see whether its process "
            "is stopped or its host overloaded, and run the same command again"
        ) from error
    return answer


def least_memory(client: Client) -> int:
    """The least memory limit of a worker, bytes; 0 where no worker has one."""
    limits = [int(worker.get("memory_limit") or 0) for worker in workers_of(client).values()]
    return min([limit for limit in limits if limit], default=0)


def is_remote(settings: ClusterSettings) -> bool:
    """Whether the work is done by a cluster that this process does not start itself."""
    return bool(settings.factory or scheduler_address(settings))


@contextlib.contextmanager
def remote_client(settings: ClusterSettings) -> Iterator[Client]:
    """A client of the cluster that the settings name, with its workers. A factory's cluster ends with the block."""
    with contextlib.ExitStack() as stack:
        client = _of_factory(settings, stack) if settings.factory else _of_scheduler(settings, stack)
        wait_for_workers(client, settings.min_workers, settings.worker_timeout)
        yield client


def dashboard_of(settings: ClusterSettings) -> str:
    """The URL of the dashboard, as the scheduler of the settings tells it; "" where it has none. ClusterError where it
    does not answer within a few seconds.
    """
    hasty = dataclasses.replace(settings, worker_timeout=min(settings.worker_timeout, _PATIENCE_FOR_A_LINK))
    with contextlib.ExitStack() as stack:
        client = _of_scheduler(hasty, stack)
        try:
            return str(client.dashboard_link or "")
        except KeyError:
            return ""


def _of_scheduler(settings: ClusterSettings, stack: contextlib.ExitStack) -> Client:
    address, security = scheduler_address(settings), _security(settings)
    for name, file in _files_of_tls(settings).items() if address.startswith("tls://") else ():
        if file and "\n" not in file and not os.path.isfile(file):  # Dask takes their text, too
            raise SettingsError(f"{name} = {file!r} is not there: no such file on this machine; check the path")
    if address.startswith("tls://") and security is None and not dask.config.get("distributed.comm.tls.ca-file", None):
        # Dask's client would tell the same, and then never let this process end.
        raise ClusterError(
            f"no Dask scheduler at {address} without certificates: a tls:// scheduler needs cluster.tls_ca, "
            "cluster.tls_cert and cluster.tls_key, or DASK_DISTRIBUTED__COMM__TLS__CA_FILE, …__CLIENT__CERT and "
            "…__CLIENT__KEY"
        )
    # Whoever waits for the scheduler is told that it was lost; a second word, with a traceback, comes now and then.
    logging.getLogger("distributed.batched").setLevel(logging.WARNING)
    first = min(settings.worker_timeout, _FIRST_TRY)
    try:
        client = _connected(address, security, first)
    except (OSError, ValueError, TypeError) as error:
        _check_language(address, error)
        if settings.worker_timeout <= first or not isinstance(error, OSError):
            raise _nobody_at(settings, error) from error
        try:
            client = _connected(address, security, settings.worker_timeout - first)
        except (OSError, ValueError, TypeError) as again:
            raise _nobody_at(settings, again) from again
    return stack.enter_context(client)


def _connected(address: str, security: Security | None, timeout: float) -> Client:
    with warnings.catch_warnings():
        # What matters is compared before work begins; Dask names packages too that nobody here uses.
        warnings.simplefilter("ignore", VersionMismatchWarning)
        try:
            return _ImpatientClient(address, set_as_default=False, timeout=timeout, security=security)
        except _LateLoop:
            return _ImpatientClient(address, set_as_default=False, timeout=timeout, security=security)


class _LateLoop(OSError):
    """An event loop that did not begin in time."""


class _ImpatientClient(Client):
    """A client that gives up where a scheduler takes its connection and says nothing, as a frozen one does, and that
    leaves nothing where it could not be made.

    Dask's own waits for ever for the first word (`distributed.comm.core.connect` bounds the connection alone). What it
    could not make it leaves half open with the thread of an event loop, for a garbage collector to close at any later
    moment: also while `distributed.utils.LoopRunner` holds its lock to begin another loop, which the closing then waits
    for, in the same thread for ever.
    """

    def start(self, **options: Any) -> None:
        try:
            super().start(**options)
        except BaseException as error:
            loop = self._loop_runner
            if isinstance(error, AssertionError) and not loop.is_started():
                # It asserts that the thread of its event loop runs within ten seconds.
                raise _LateLoop("this process was too busy to start an event loop within 10 s") from error
            for end in (functools.partial(self.close, timeout=_CLOSING), loop.stop):
                try:
                    end()
                except Exception as late:
                    logger.info("a client that could not be made did not close well: %r", late)
            self.status = "closed"
            if isinstance(error, AssertionError):
                raise OSError("it does not answer as a scheduler does") from error
            raise

    async def _ensure_connected(self, timeout: Any = None) -> None:
        if timeout is None:
            await super()._ensure_connected()
            return
        try:
            await asyncio.wait_for(super()._ensure_connected(timeout=timeout), timeout + _SLACK)
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"it does not answer within {timeout:g} s") from error


def _nobody_at(settings: ClusterSettings, error: Exception) -> ClusterError:
    given = "" if settings.scheduler else ", which DASK_SCHEDULER_ADDRESS or Dask's own settings name"
    remedy = f'check the address{given}, or set cluster.scheduler = "local" (--scheduler local) to start local workers'
    if _is_about_tls(error):
        remedy = f"client and scheduler do not trust each other: check {', '.join(_files_of_tls(settings))}"
    return ClusterError(f"no Dask scheduler at {scheduler_address(settings)} ({error}); {remedy}")


def _is_about_tls(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None


def _files_of_tls(settings: ClusterSettings) -> dict[str, str | None]:
    """The certificates and the key of a client by the settings that name them: the job's, or else Dask's own."""
    if settings.tls_ca:
        return {f"cluster.{name}": getattr(settings, name) for name in ("tls_ca", "tls_cert", "tls_key")}
    own = "ca-file", "client.cert", "client.key"
    return {f"distributed.comm.tls.{name}": dask.config.get(f"distributed.comm.tls.{name}", None) for name in own}


def _check_language(address: str, error: Exception) -> None:
    """ClusterError where the port of a scheduler that could not be reached speaks TLS, or does not, as it was asked."""
    scheme, _, place = address.partition("://")
    spoken = spoken_at(place)
    if scheme in ("tcp", "tls") and spoken not in ("", scheme):
        kind = "speaks TLS only" if spoken == "tls" else "speaks no TLS"
        certificates = "; certificates: cluster.tls_ca, tls_cert, tls_key" if spoken == "tls" else ""
        raise ClusterError(
            f"no Dask scheduler at {address}: that port {kind}; say {spoken}://{place}{certificates}"
        ) from error


def spoken_at(place: str) -> str:
    """The protocol of a port (HOST:PORT): "tls", "tcp", or "" where nobody tells."""
    host, _, port = place.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said there but a greeting
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTENING) as plain,
            context.wrap_socket(plain),
        ):
            return "tls"
    except ssl.SSLError as error:
        return "tls" if "ALERT" in (error.reason or "") else "tcp"
    except (OSError, ValueError, OverflowError):
        return ""


def _security(settings: ClusterSettings) -> Security | None:
    """TLS by the job's own files; None leaves it to Dask's settings (distributed.comm.tls, also as variables)."""
    if not settings.tls_ca:
        return None
    return Security(
        tls_ca_file=settings.tls_ca,
        tls_client_cert=settings.tls_cert,
        tls_client_key=settings.tls_key,
        require_encryption=True,
    )


def _of_factory(settings: ClusterSettings, stack: contextlib.ExitStack) -> Client:
    named, made = f"cluster.factory = {settings.factory!r}", _made(settings)
    if not (isinstance(made, Client) or (hasattr(made, "get_client") and hasattr(type(made), "__enter__"))):
        raise SettingsError(
            f"{named} gave a {type(made).__name__}; it must give a Dask cluster or a client (the address of a "
            "scheduler is cluster.scheduler)"
        )
    with _telling_failures(f"{named} gave no cluster"):
        stack.enter_context(made)
        return made if isinstance(made, Client) else stack.enter_context(_as_context(made.get_client()))


def _made(settings: ClusterSettings) -> Any:
    """Its cluster or client. SettingsError where the factory does not take its options, ClusterError where it fails."""
    named, options = f"cluster.factory = {settings.factory!r}", settings.factory_options
    factory = _function(settings.factory)
    if not callable(factory):
        raise SettingsError(f"{named} is a {type(factory).__name__}, and no function; write module:function")
    with _telling_failures(f"{named} gave no cluster"):
        try:
            return factory(**options)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # a fault within the factory, and not of the call
            raise SettingsError(
                f"{named} cannot be called with cluster.factory_options ({', '.join(options) or 'none'}): "
                f"{first_line(error)}; give the options that it takes"
            ) from error


@contextlib.contextmanager
def _telling_failures(what: str) -> Iterator[None]:
    """A ClusterError of what fails in the block, where users' own code runs."""
    try:
        yield
    except DfmError:
        raise
    except Exception as error:
        raise ClusterError(
            f"{what}: {type(error).__name__}: {first_line(error)}; see to what it needs, and run the same command again"
        ) from error


def _as_context(client: Client) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext(client) if client.asynchronous else contextlib.closing(client)


def _function(name: str) -> Any:
    named, (module, _, path) = f"cluster.factory = {name!r}", name.partition(":")
    remedy = "write module:function, and see that the module is installed where dfm runs"
    with _telling_failures(f"{named} failed while its module was imported"):
        try:
            found: Any = importlib.import_module(module)
        except ImportError as error:
            raise SettingsError(f"{named} cannot be imported ({error}); {remedy}") from error
    if "pandas" in sys.modules:
        know_pandas()
    try:
        return functools.reduce(getattr, path.split("."), found)
    except AttributeError as error:
        raise SettingsError(f"{named} cannot be imported ({error}); {remedy}") from error


def wait_for_workers(client: Client, n_workers: int, timeout: float) -> None:
    """Return when the cluster has so many workers. ClusterError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    nudge: Any = None
    while (found := len(workers_of(client))) < n_workers:
        if nudge is None:
            nudge = task_that_waits(client)
        if time.monotonic() > deadline:
            address = client.scheduler.address
            raise ClusterError(
                f"the scheduler at {address} had {found or 'none'} of {n_workers} worker{'s' * (n_workers > 1)} within "
                f"cluster.worker_timeout = {timeout:g} s; start workers (dask worker {address}), ask for fewer "
                "(cluster.min_workers), or wait longer"
            )
        time.sleep(0.1)


def task_that_waits(client: Client) -> Future:
    """A task that needs a worker: an adaptive cluster starts its first one only when there is work, and is held."""
    return client.submit(int, key=f"wait_for_workers-{uuid.uuid4().hex}")
