"""A process that local workers are forked from: it imports what they need while the command still reads its job.

Python with Dask, Numba and Arrow takes a second to begin, each worker for itself, after all else is known; a fork
of a process that has them takes milliseconds. That process is the fork server of Python's multiprocessing. It opens no
file of the data and compiles nothing. What a worker would not be that is started anew is seen to here:

- It finds modules where the command does, never in the working directory; where the command itself has dfm from there,
  none is begun.
- Its environment is what Dask gives to new workers before they begin. Where its user has Dask prepare workers in any
  other way, it is not used, and workers are started anew.
- Where something fails while it imports, it ends, and workers are started anew.
- A worker that ends runs what it registered for its end; where the server is killed, its workers end too. Those that
  take the place of lost ones are started anew.
- It ends with the command, however that ends, and leaves no socket.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver, get_context, resource_tracker
from pathlib import Path
from typing import Any

import dfm

logger = logging.getLogger(__name__)
ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": 1 << 28,
    "MALLOC_MMAP_THRESHOLD_": 1 << 25,
    "MALLOC_ARENA_MAX": 1,
}
"""Variables that a worker process reads as it begins.

A round allocates what the round before gave back. Dask's default returns it to the system each time, and faulting the
pages in again cost more than merging did.
"""
_THREADS = {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1}
"""Set by Dask for worker processes, too: a library that begins threads as it is imported could not be forked after."""
_HASH_SEED = {"PYTHONHASHSEED": "6640"}
"""As Dask's nannies set it, so that all workers hash strings alike."""
SAFE_PATH = "PYTHONSAFEPATH"
"""Tells Python to look for no modules in the working directory."""
GIVEN = "DFM_FORK_SERVER"
"""Tells the process which one began it, and what that one has of the variable above."""
_METHOD = "distributed.worker.multiprocessing-method"
_OF_THE_USER = ("distributed.nanny.environ", "distributed.nanny.preload", "distributed.worker.preload")
"""Settings of Dask by which users prepare workers before they import anything."""
_LONGEST_FOLDER = 60
"""Characters of the path of the folder for temporary files, in which the process has its socket: 108 at most in all."""


@dataclass(frozen=True)
class _Begun:
    """By which process such a one was begun, its own number, and the environment that it was given."""

    command: int
    number: int
    environment: dict[str, str]

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


_SERVERS: Any = forkserver._forkserver
"""Python's account of its fork server, which has no public way to end one."""
_begun: list[_Begun] = []
"""At most one."""


def begin() -> None:
    """Begin such a process for the workers of this one. Nothing happens where that is impossible, or not wished for."""
    is_asked_for = "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD" not in os.environ
    if sys.platform != "linux" or _begun or not is_asked_for or "distributed" in sys.modules:
        return
    try:
        if len(tempfile.gettempdir()) <= _LONGEST_FOLDER and _finds_dfm():
            _begin()
    except Exception as error:  # no folder for temporary files, no more processes, …: this is for speed alone
        logger.info("local workers are started anew, each for itself: %s: %s", type(error).__name__, error)


def _begin() -> None:
    given = {**_of_workers({**_THREADS, **ENVIRONMENT}), **_HASH_SEED}
    told = {GIVEN: f"{os.getpid()} {os.environ.get(SAFE_PATH, '')}", SAFE_PATH: "1"}
    get_context("forkserver").set_forkserver_preload(["dfm.distributed.cluster.imports"])
    resource_tracker.ensure_running()  # here, since Python lets its process begin deaf and then forgets of other masks
    with _deaf(), _environment({**given, **told}):
        forkserver.ensure_running()
        _begun.append(_Begun(os.getpid(), _SERVERS._forkserver_pid, given))


def start_method() -> dict[str, Any]:
    """The setting of Dask by which workers are forked from there; none, and the process is ended, where that would not
    give what Dask was told to give.
    """
    import dask
    import distributed.utils

    if not _begun:
        return {}
    wanted = dask.config.get("distributed.nanny.pre-spawn-environ")
    given = {**_HASH_SEED, **_of_workers({name: value for name, value in wanted.items() if value is not None})}
    (begun,) = _begun
    is_prepared = any(dask.config.get(setting, None) for setting in _OF_THE_USER)
    is_like_others = begun.environment == given and not is_prepared and dask.config.get(_METHOD) == "spawn"
    if begun.command != os.getpid() or not is_like_others or not begun.lives:
        end()
        return {}
    # Else Dask imports, here, all that it knows of, for a process that it would begin.
    distributed.utils._forkserver_preload_set = True
    return {_METHOD: "forkserver"}


def end() -> None:
    """End the process, if there is one. Whoever needs a fork server after that begins another."""
    while _begun:
        begun = _begun.pop()
        if begun.command != os.getpid():
            continue
        with contextlib.suppress(OSError):  # it is not to outlive a command that failed while it still imports
            os.kill(begun.number, signal.SIGKILL)
        with contextlib.suppress(OSError):
            _SERVERS._stop()
        get_context("forkserver").set_forkserver_preload(["__main__"])


def _finds_dfm() -> bool:
    """Whether Python finds this very dfm without looking in the folder of the script, or the working directory."""
    folders = sys.path if sys.flags.safe_path else sys.path[1:]
    holding = (folder for folder in folders if folder and os.path.isfile(os.path.join(folder, "dfm", "__init__.py")))
    return Path(next(holding, os.devnull)).resolve() == Path(dfm.__file__).resolve().parents[1]


def _of_workers(variables: Mapping[str, Any]) -> dict[str, str]:
    """The variables as workers get them: those that this process has stay."""
    return {name: os.environ.get(name, str(value)) for name, value in variables.items()}


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that begin in the block do not hear of Ctrl-C and SIGTERM; this one does later.

    Both may reach all processes of a terminal or a container, and it is the command that acts on them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables in the environment of the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
