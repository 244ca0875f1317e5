"""Replicas become one: rules, contributions, sums along a fixed tree, the cost model; on processors and GPUs.

Imports kernels and data.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfm.averaging.merge import Averaging, OnProcessors, contribute, finalise
    from dfm.averaging.rules import MergeRule, automatic_averages, scaled_rate

__all__ = ["Averaging", "MergeRule", "OnProcessors", "automatic_averages", "contribute", "finalise", "scaled_rate"]
_MODULES = {
    "Averaging": "dfm.averaging.merge",
    "MergeRule": "dfm.averaging.rules",
    "OnProcessors": "dfm.averaging.merge",
    "automatic_averages": "dfm.averaging.rules",
    "contribute": "dfm.averaging.merge",
    "finalise": "dfm.averaging.merge",
    "scaled_rate": "dfm.averaging.rules",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
