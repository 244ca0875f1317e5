"""The model as MLflow's `pyfunc` loads it: from the folder that dfm published, without a pickle."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.errors import ModelError
from dfm.model.fm_model import FMModel


class Predictor:
    """A loaded model with the one method that MLflow calls."""

    def __init__(self, model: FMModel) -> None:
        self.model = model

    def predict(self, model_input: Any, params: Any = None) -> NDArray[np.float32]:
        """The predictions of `FMModel.predict`, float32[n_rows], of a frame or of rows. params: not read."""
        return self.model.predict(model_input)


def _load_pyfunc(data_path: str) -> Predictor:
    """The predictor of a logged model; MLflow calls this by its name."""
    found = [folder for folder, _, names in os.walk(data_path) if "model.json" in names]
    if not found:
        raise ModelError(f"no model.json below {data_path}: what was logged is no model of dfm; log the run again")
    return Predictor(FMModel.load(found[0]))
