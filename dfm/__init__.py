"""dfm: factorization machines for click logs that do not fit one machine.

`train(job)` runs a job file, `FMModel.load(url).predict(table)` scores rows; the command `dfm` does both.
Importing dfm loads neither Dask nor the compiled kernels; the names below fetch them when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dfm.version import __version__

if TYPE_CHECKING:
    from dfm.distributed.train import TrainResult
    from dfm.factorization import matrix_factorization
    from dfm.jobs import evaluate, predict, train
    from dfm.kernels.custom.functions import CustomLoss
    from dfm.model.fm_model import FMModel
    from dfm.settings.job import Job, load_job

__all__ = [
    "CustomLoss",
    "FMModel",
    "Job",
    "TrainResult",
    "__version__",
    "evaluate",
    "load_job",
    "matrix_factorization",
    "predict",
    "train",
]

_HOMES = {
    "CustomLoss": "dfm.kernels.custom.functions",
    "FMModel": "dfm.model",
    "Job": "dfm.settings",
    "TrainResult": "dfm.distributed.train",
    "evaluate": "dfm.jobs",
    "load_job": "dfm.settings",
    "matrix_factorization": "dfm.factorization",
    "predict": "dfm.jobs",
    "train": "dfm.jobs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dfm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
