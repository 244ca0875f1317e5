"""Modules that libraries import for cases that do not arise here, a tenth of a second each. For processes of dfm alone:
a command, and workers that it forks.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_F2PY = "numpy.f2py"


class _NoPandas:
    """Finds modules as if pandas was not installed."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> None:
        """Nothing: others are asked next. ModuleNotFoundError for pandas."""
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def spare_pandas() -> None:
    """Let Arrow make its first array where pandas is not to be had, which it imports then, once, to know a Series when
    it sees one. Nobody here gives it any: it would take one for a plain sequence until somebody wants a frame of a
    table, who gets it all the same.
    """
    import pyarrow as pa

    if "pandas" in sys.modules:
        return
    finder: Any = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path[:] = [each for each in sys.meta_path if each is not finder]


def know_pandas() -> None:
    """Let Arrow know Series again, for code of others that may give it some."""
    import pyarrow as pa

    pa.nulls(0).to_pandas()


def spare_f2py() -> None:
    """Import what Numba needs of SciPy for linear algebra. SciPy lists all that NumPy has, whereupon NumPy imports its
    translator of Fortran; here an empty module is in its place until SciPy is done.
    """
    import numpy as np

    if _F2PY in sys.modules:
        return
    np.f2py = nothing = ModuleType(_F2PY)
    try:
        importlib.import_module("scipy.linalg.cython_blas")
    finally:
        if np.f2py is nothing:
            del np.f2py
