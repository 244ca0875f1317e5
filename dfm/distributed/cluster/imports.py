"""Imported by the process that workers are forked from: what they need, and nothing that begins threads."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
from multiprocessing import util

from dfm.distributed.cluster.fork_server import GIVEN, SAFE_PATH
from dfm.distributed.cluster.spared import spare_f2py, spare_pandas

_PARENTS_DEATH = 1
"""The option of Linux's prctl by which a process gets a signal when its parent has ended."""


class _Server:
    """This process. Its forks are what processes of their own would be."""

    def __init__(self) -> None:
        self._number, self._serves = os.getpid(), True
        self._sockets = _paths_of_sockets()
        command, _, own_safe_path = os.environ.pop(GIVEN, "").partition(" ")
        self._command = int(command or os.getppid())
        os.environ.pop(SAFE_PATH, None)
        if own_safe_path:
            os.environ[SAFE_PATH] = own_safe_path

    def prepare(self) -> None:
        """Import; where the command ends meanwhile, or an import fails, so does this process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self._leave())
        _on_parents_death(signal.SIGTERM)
        if os.getppid() != self._command:
            self._leave()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        gc.disable()  # all that is imported stays
        try:
            _import()
        except Exception as error:  # of which Python's fork server would swallow some, and fork what is half imported
            sys.exit(f"local workers import for themselves, as this failed: {type(error).__name__}: {error}")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _on_parents_death(0)  # from now on Python sees to that
        atexit.register(self._delete_socket)
        os.register_at_fork(after_in_child=self._begin_fork)
        util.register_after_fork(self, _Server._end_in_full)
        # What is here stays: workers share its pages for as long as no collection writes to them.
        gc.freeze()
        gc.enable()

    def _begin_fork(self) -> None:
        """A fork ends when its server does: who waits for it would be told that it has."""
        if not self._serves:
            return
        self._serves = False
        _on_parents_death(signal.SIGKILL)
        if os.getppid() != self._number:
            os._exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()

    def _end_in_full(self) -> None:
        """Run, when a fork ends, what is registered for that, which multiprocessing alone skips."""
        if os.getppid() == self._number:
            util.Finalize(None, atexit._run_exitfuncs, exitpriority=-100)

    def _leave(self) -> None:
        self._delete_socket()
        os._exit(1)

    def _delete_socket(self) -> None:
        """Delete the socket, and its folder, of a command that was killed; one that ends does it itself."""
        if os.getpid() == self._number:
            for path in self._sockets:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    os.rmdir(os.path.dirname(path))


def _on_parents_death(number: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PARENTS_DEATH, number)


def _paths_of_sockets() -> list[str]:
    """Paths of the sockets on which this process listens."""
    found = []
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as each:
            name = each.getsockname()
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and isinstance(name, str) and name:
                found.append(name)
    return found


def _import() -> None:
    """Import what workers need. Numba imports half of itself, and SciPy, when it loads or compiles its first
    function.
    """
    for module in ("distributed.nanny", "dfm.distributed.train"):
        importlib.import_module(module)
    from numba.core.registry import cpu_target

    spare_f2py()
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    spare_pandas()


SERVER = _Server()
SERVER.prepare()
