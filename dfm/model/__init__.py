"""A trained model: scoring, manifest, objective, metrics, warm start, inspection, export.

Imports kernels and data; never Dask.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfm.model.fm_model import FMModel

__all__ = ["FMModel"]
_MODULES = {"FMModel": "dfm.model.fm_model"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
