"""Versions that client, scheduler and workers have installed, compared before they get work."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import itertools
import logging
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from distributed import Client
from distributed.versions import get_versions

from dfm.distributed.cluster import admission, upload
from dfm.distributed.cluster.admission import ASKED_FOR, COMPARED, Versions, picked
from dfm.distributed.cluster.remote import answered, install, workers_of
from dfm.distributed.cluster.together import together
from dfm.errors import ClusterError
from dfm.settings.tables import ClusterSettings
from dfm.version import DISTRIBUTION, __version__, installed

logger = logging.getLogger(__name__)
_PATIENCE = 60.0
"""Seconds for all workers to tell their versions at a time: Dask gives up a host that is gone in half of them."""
_MOST_ASKED = 3
"""Times that workers are asked which all answer when it is looked which of them does not."""
_AT_ONCE = 5.0
"""Seconds for a worker to answer that was silent before."""
_LAST_WORD = 5.0
"""Seconds that a scheduler has to answer when a job is over, before it is left to notice by itself."""


@contextlib.contextmanager
def same_versions(client: Client, settings: ClusterSettings) -> Iterator[None]:
    """A block in which only workers of the client's versions get work, those that join within it included.

    ClusterError where client, scheduler and the workers there are do not run the same; dfm is sent where it may be.
    """
    before = {*workers_of(client)}
    check_versions(client, settings)  # first of all: a scheduler of another Python could not read the plugin
    with _asking_newcomers(client, settings):
        if {*workers_of(client)} - before:
            check_versions(client, settings)
        yield


def check_versions(client: Client, settings: ClusterSettings) -> None:
    """ClusterError where client, scheduler and workers do not run the same versions; dfm is sent where it may be."""
    answer = _told_by_all(client, settings.worker_timeout)
    found = {"client": _picked(answer["client"]), "scheduler": _picked(answer["scheduler"])}
    found |= {f"worker {address}": _picked(worker) for address, worker in answer["workers"].items() if worker}
    if settings.install_dfm and any(place["dfm"] is None for place in found.values()):
        found = _carry(client, found)
    lines = mismatches(found)
    if not lines:
        return
    message = "client, scheduler and workers do not run the same versions: " + "; ".join(lines)
    if settings.version_mismatch == "warn":
        logger.warning("%s", message)
        return
    lacking = any(place["dfm"] is None for place in found.values())
    remedy = "set cluster.install_dfm = true to send dfm to those that have none, " if lacking else ""
    raise ClusterError(
        f'{message}; install the same versions everywhere, {remedy}or set cluster.version_mismatch = "warn" to try it'
    )


def _told_by_all(client: Client, timeout: float) -> dict[str, Any]:
    """The versions of all. ClusterError where some do not tell theirs in `timeout` seconds: Dask waits for a frozen one
    for ever. One that its scheduler gave up meanwhile is not asked again.
    """
    ask: Any = client.get_versions
    started = time.monotonic()
    for asked in itertools.count(1):
        try:
            told: dict[str, Any] = answered(client, lambda: ask(check=False, packages=ASKED_FOR), _PATIENCE)
            return told
        except ClusterError as error:
            silent = answered(client, lambda: _silent(client))  # an error where it is the scheduler that is silent
            waited = time.monotonic() - started
            if waited < timeout or (not silent and asked < _MOST_ASKED):
                if silent:
                    logger.warning("%s did not tell which versions are there; asked once more", _named(silent))
                continue  # whoever was slow answers now
            if not silent:
                raise
            raise ClusterError(
                f"{_named(silent)} did not tell which versions are there within {waited:.0f} s; see whether the "
                "processes are stopped or their hosts overloaded, end them, and run the same command again"
            ) from error
    raise AssertionError("not reached")


async def _silent(client: Client) -> list[str]:
    """The workers that do not answer at once."""

    async def asked(address: str) -> str:
        ask = client.scheduler.broadcast(msg={"op": "identity"}, workers=[address], on_error="ignore")
        try:
            await asyncio.wait_for(ask, _AT_ONCE)
        except TimeoutError:
            return f"worker {address}"
        return ""

    workers = (await client.scheduler.identity(n_workers=-1))["workers"]
    return [place for place in await asyncio.gather(*map(asked, workers)) if place]


def mismatches(found: Mapping[str, Versions]) -> list[str]:
    """One line for each package that not all places have in one version; places are named, many alike are counted."""
    lines = []
    for package in COMPARED:
        places: dict[str, list[str]] = {}
        for place, versions in found.items():
            places.setdefault(versions[package] or "missing", []).append(place)
        if len(places) > 1:
            told = [f"{version} on {_named(names)}" for version, names in places.items()]
            lines.append(f"{package} {', '.join(told)}")
    return lines


def _named(places: list[str]) -> str:
    workers = [place for place in places if place.startswith("worker")]
    others = [place for place in places if not place.startswith("worker")]
    if len(workers) > 2:
        workers = [workers[0], f"{len(workers) - 1} more workers"]
    return " and ".join([*others, *workers])


def _picked(answer: Mapping[str, Any] | None) -> Versions:
    return picked(dict(answer["packages"]) if answer else {})


# --- who joins later -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _asking_newcomers(client: Client, settings: ClusterSettings) -> Iterator[None]:
    """Within, the scheduler asks every worker that joins for its versions, and this process logs who was refused."""
    topic = f"dfm-newcomers-{uuid.uuid4().hex}"
    own = _picked(get_versions(packages=ASKED_FOR))
    refuses = settings.version_mismatch != "warn"
    brought = ("dfm",) if settings.install_dfm else ()

    def tell(event: tuple[float, dict[str, Any]]) -> None:
        worker, versions = event[1]["worker"], event[1]["versions"]
        told = "; ".join(mismatches({"client": own, f"worker {worker}": versions}))
        outcome = "it gets no work while this job runs; start it with the same versions" if refuses else "it is tried"
        logger.warning("worker %s joined with other versions: %s; %s", worker, told, outcome)

    client.subscribe_topic(topic, tell)
    with by_value(admission):
        install(client, admission.AskNewcomers(topic, client.id, own, brought, refuses))
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError, ClusterError):
            if client.status == "running":  # else the scheduler sees to it, if there still is one
                workers_of(client, _LAST_WORD)  # a frozen one would be asked for ever
                client.unsubscribe_topic(topic)
                with by_value(admission):
                    client.run_on_scheduler(admission.end, topic)


# --- dfm, carried ----------------------------------------------------------------------------------------


def _carry(client: Client, found: dict[str, Versions]) -> dict[str, Versions]:
    """Send this dfm to the scheduler and the workers that have none; what they have then."""
    own = found["client"]["python"]
    foreign = [place for place, versions in found.items() if versions["dfm"] is None and versions["python"] != own]
    if foreign:  # code of one Python is not read by another
        return found
    wheel = build_wheel()
    arguments = wheel, hashlib.sha256(wheel).hexdigest(), __version__
    with by_value(upload):
        if found["scheduler"]["dfm"] is None:
            install(client, upload.CarriedToScheduler(*arguments))
        install(client, upload.CarriedToWorkers(*arguments))
    lacking = [place for place, versions in found.items() if versions["dfm"] is None]
    logger.warning("dfm %s was sent to %s, which had none", __version__, _named(lacking))
    return {place: {**versions, "dfm": versions["dfm"] or __version__} for place, versions in found.items()}


@contextlib.contextmanager
def by_value(module: ModuleType) -> Iterator[None]:
    """Within, what the module defines is sent as code and not by its name."""
    with together(f"{module.__name__} by value", lambda: _registered(module)):
        yield


@contextlib.contextmanager
def _registered(module: ModuleType) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def build_wheel() -> bytes:
    """The wheel of the dfm that is running: its modules, and metadata enough for `importlib.metadata`."""
    package = Path(__file__).parents[2]
    info = f"{DISTRIBUTION.replace('-', '_')}-{__version__}.dist-info"
    files = {f"dfm/{path.relative_to(package)}": path.read_bytes() for path in sorted(package.rglob("*.py"))}
    files |= {f"dfm/{path.relative_to(package)}": path.read_bytes() for path in sorted(package.rglob("*.cu"))}
    files[f"{info}/METADATA"] = _metadata().encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: dfm\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def _metadata() -> str:
    own = installed()
    lines = [f"Requires-Dist: {name}" for name in (own.requires if own else None) or ()]
    return "\n".join(["Metadata-Version: 2.1", f"Name: {DISTRIBUTION}", f"Version: {__version__}", *lines, ""])
