"""Processes of one command that write shards side by side, and end when it does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from dfm.errors import ClusterError


@contextmanager
def mapping(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A lazy, ordered map: the builtin one, or that of a pool of spawned processes.

    None of these outlives the one that began them, however that ends, nor a block that is interrupted; what another
    error leaves undone is cancelled. ClusterError where one of them was killed.
    """
    if processes <= 1:
        yield map
        return
    context = get_context("spawn")
    # Nothing is ever sent: the end of the line is the end of the block, or of this process.
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, context, _end_with, (theirs,))
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise ClusterError(
            "a process that writes shards was killed, maybe for its memory; give the same command again, with fewer "
            "--workers"
        ) from error
    except (KeyboardInterrupt, SystemExit):
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def _end_with(line: Connection) -> None:
    """End this process when nobody holds the other end of a line any more; Ctrl-C is for who holds it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_wait_for_end, args=(line,), daemon=True).start()


def _wait_for_end(line: Connection) -> None:
    try:
        line.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
