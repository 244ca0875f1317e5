"""Contexts of the whole process that several threads stand in at a time: settings of Dask, pickling by value, logs.

Each of these saves what was there and puts it back. Of two that overlap without lying in each other, the later to come
would save what the earlier one set, and put that back when both are gone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

_lock = threading.Lock()
_inside: dict[str, int] = {}
_left_by: dict[str, contextlib.ExitStack] = {}


@contextlib.contextmanager
def together(name: str, make: Callable[[], contextlib.AbstractContextManager[object]]) -> Iterator[None]:
    """A block within the context of this name: the first thread to come enters it, the last one to go leaves it."""
    _enter(name, make)
    try:
        yield
    finally:
        _leave(name)


def _enter(name: str, make: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
    with _lock:
        if not _inside.get(name):
            stack = contextlib.ExitStack()
            stack.enter_context(make())
            _left_by[name] = stack
        _inside[name] = _inside.get(name, 0) + 1


def _leave(name: str) -> None:
    with _lock:
        _inside[name] -= 1
        if not _inside[name]:
            del _inside[name]
            _left_by.pop(name).close()
