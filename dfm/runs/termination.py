"""A process that is told to stop: SIGTERM interrupts it as Ctrl-C does, and others of its threads can see that."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_asked: list[float] = []
"""When this process was told to stop, by time.monotonic(); at most one entry. Signals are the process's, so is this."""
_stoppable = threading.Event()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the block, which the main thread has to run.

    Only the first one does: a supervisor and an init both pass it on, and the second must not interrupt what the first
    began.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        if not _asked:
            _asked.append(time.monotonic())
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    _stoppable.set()
    try:
        yield
    finally:
        _stoppable.clear()
        signal.signal(signal.SIGTERM, before)
        _asked.clear()


def seconds_since() -> float | None:
    """How long ago this process was told to stop; None: it was not."""
    return time.monotonic() - _asked[0] if _asked else None


def interrupt() -> None:
    """Tell this process to stop, from any of its threads; outside a stoppable block nothing happens."""
    if _stoppable.is_set() and not _asked:
        # A real signal: it ends a wait for a lock, which _thread.interrupt_main() would not.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
