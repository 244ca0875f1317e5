"""Compiled kernels kept on disk, so that a process starts in a tenth of the time that compilation takes.

Numba's own `cache=True` never hits for kernels made by factories: its key pickles the functions that a kernel closes
over, and those differ in every process. Here the key is what decides the machine code: the source text of the kernel
modules and the specification. Numba adds its version and the processor, and picks the folder (NUMBA_CACHE_DIR, or
__pycache__ beside the module, or the user's cache folder where that is not writable).
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache


class _KeyedCache(FunctionCache):
    """Numba's function cache under a key of our own."""

    def __init__(self, function: Any, key: str) -> None:
        super().__init__(function)
        self._key = key

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return signature, codegen.magic_tuple(), self._key


@functools.cache
def _sources() -> str:
    """Fingerprint (hex) of the source text of the kernel modules and of the records that they walk."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for module in [*sorted(here.glob("*.py")), here.parent / "params.py"]:
        digest.update(module.read_bytes())
    return digest.hexdigest()


def keep_on_disk(kernel: Any, *specification: Any) -> None:
    """Let a dispatcher load its machine code from disk, or leave it there; its `repr` tells specifications apart."""
    try:
        kernel._cache = _KeyedCache(kernel.py_func, f"{_sources()} {specification!r}")
    except RuntimeError:
        return  # no folder can be written to: then every process compiles
