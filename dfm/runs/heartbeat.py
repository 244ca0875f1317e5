"""A file that is touched as long as its process lives: for a supervisor, or for a liveness probe of Kubernetes.

It says that the interpreter runs, and no more. It asks neither the output location nor the cluster: a store or a
scheduler that is away for a while is sat out, and a driver that waits for it is healthy.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dfm.errors import SettingsError
from dfm.storage.retry import first_line

SECONDS = 5.0
STALLED_SECONDS = 600.0
"""So long without a touch and the process is taken for dead: a hundred and twenty of them, for a machine that swaps."""


def touch(path: str) -> None:
    """Touch a file for the first time. SettingsError where it cannot be there, as its folder is not."""
    try:
        Path(path).touch()
    except OSError as error:
        raise SettingsError(
            f"the heartbeat {path} cannot be written ({first_line(error)}); make its folder, or name a file in one "
            "that is there and may be written to (--heartbeat)"
        ) from error


@contextlib.contextmanager
def beating(path: str) -> Iterator[None]:
    """Touch a file every few seconds until the block ends; without a path, nothing is done. SettingsError where there
    can be no such file.
    """
    if not path:
        yield
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(SECONDS):
            with contextlib.suppress(OSError):  # a disk that is full for a moment ends no run
                Path(path).touch()

    touch(path)
    thread = threading.Thread(target=beat, name="dfm-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Pulse:
    """Whether a file is still being touched, by this process's own clock: a wall clock that is set kills nobody."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._last, self._seen = 0, time.monotonic()

    def has_stopped(self) -> bool:
        """Whether the file has not changed for longer than a living process leaves it. Ask every few seconds."""
        with contextlib.suppress(OSError):
            if (touched := self._path.stat().st_mtime_ns) != self._last:
                self._last, self._seen = touched, time.monotonic()
        return time.monotonic() - self._seen > STALLED_SECONDS
