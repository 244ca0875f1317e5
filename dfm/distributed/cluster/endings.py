"""The end of a process, which others wait for."""

from __future__ import annotations

import atexit
import gc


def end_quickly() -> None:
    """Let this process, when it ends, not look for garbage in all that it ever imported: 0.4 s with Numba and Dask.

    What closes itself at the end still does.
    """
    atexit.register(gc.freeze)
