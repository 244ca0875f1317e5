"""A process that is told to stop: SIGTERM interrupts it as Ctrl-C does, and others of its threads can see that."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

_asked: list[float] = []
"""When this process was told to stop, by time.monotonic(); at most one entry. Signals are the process's, so is this."""
_stoppable = threading.Event()
_turn = threading.Lock()
"""Held while a thread looks whether a block can be interrupted and does it; never by what handles the signal."""
_SOON = 0.05
"""Seconds until an interruption that was lost is raised again: the finalizer is over by then, or it is lost again."""


class _Block:
    """Signals while a block runs; `over` is set when they interrupt nothing any more. hook: the one that was there."""

    def __init__(self) -> None:
        self.over = self._is_lost = self._had_ctrl_c = False
        self.hook = sys.unraisablehook

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """Handle SIGTERM: the first one, and that by which a lost interruption is raised again."""
        if self.over or ((_asked or self._had_ctrl_c) and not self._is_lost):
            return
        if not self._is_lost:
            _asked.append(time.monotonic())
        self._is_lost = False
        raise KeyboardInterrupt

    def on_ctrl_c(self, _number: int, _frame: FrameType | None) -> None:
        """Handle SIGINT: each interrupts, for who pressed Ctrl-C again means it."""
        self._had_ctrl_c = True
        raise KeyboardInterrupt

    def on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Be told of an exception that Python drops."""
        if (_asked or self._had_ctrl_c) and unraisable.exc_type is KeyboardInterrupt:
            # Not threading.Thread, whose locks the interrupted code may hold.
            _thread.start_new_thread(self._raise_again, ())
        else:
            self.hook(unraisable)

    def _raise_again(self) -> None:
        time.sleep(_SOON)
        with _turn:
            if not self.over:
                self._is_lost = True
                _signal()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the block, which the main thread has to run.

    Only the first one does, and none after Ctrl-C, which interrupts each time: a supervisor and an init both pass it
    on, a terminal sends Ctrl-C to the supervisor too, and the second must not interrupt what the first began. An
    interruption that Python drops, because a finalizer or a callback of C ran at that moment, is raised again after it.
    """
    block = _Block()
    before = signal.signal(signal.SIGTERM, block.stop)
    hears_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # neither ignored nor another's
    if hears_ctrl_c:
        signal.signal(signal.SIGINT, block.on_ctrl_c)
    sys.unraisablehook = block.on_unraisable
    _stoppable.set()
    try:
        yield
    finally:
        block.over = True
        with _turn:
            _stoppable.clear()
            signal.signal(signal.SIGTERM, before)
            if hears_ctrl_c:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = block.hook
        _asked.clear()


def seconds_since() -> float | None:
    """Seconds since this process was told to stop; None: it was not."""
    return time.monotonic() - _asked[0] if _asked else None


def interrupt() -> None:
    """Tell this process to stop, from any of its threads; outside a stoppable block nothing happens."""
    with _turn:
        if _stoppable.is_set() and not _asked:
            _signal()


def _signal() -> None:
    # A real signal: it ends a wait for a lock, which _thread.interrupt_main() would not.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
