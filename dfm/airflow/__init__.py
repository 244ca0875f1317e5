"""dfm in Apache Airflow: operators, a sensor, triggers, the connection type `dask`, functions for TaskFlow."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DaskHook": "hooks",
    "DfmDaskJobTrigger": "triggers",
    "DfmEvaluateOperator": "operators",
    "DfmPartitionSensor": "sensors",
    "DfmPredictOperator": "operators",
    "DfmPublishOperator": "operators",
    "DfmReportOperator": "operators",
    "DfmRunTrigger": "triggers",
    "DfmTrainOperator": "operators",
    "reason_of": "runtime",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """A name is loaded when it is used: parsing a DAG costs what the DAG needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"dfm.airflow.{_HOMES[name]}"), name)
