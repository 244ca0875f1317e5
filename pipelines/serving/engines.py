"""What answers requests: the model folder itself, or the graph that is exported from it, behind one function.

`load` looks up which model is meant (an alias has a champion), loads it and gives a `Served`, which is swapped as a
whole when another model becomes the champion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.data.matrices import is_vector
from dfm.errors import ModelError, SettingsError
from dfm.export import hashed_inputs
from dfm.model import FMModel
from dfm.model.onnx_graph import DATA_NAME, onnx_files
from dfm.version import pip_install
from dfm.workflow import registry

Rows = Sequence[Mapping[str, Any]]
Predict = Callable[[Rows], NDArray[np.float32]]
TOLERANCE = 1e-5
"""How far the graph's predictions may lie from the model's: it sums in another order."""


@dataclass(frozen=True)
class Served:
    """A loaded model. version: of the alias that it is the champion of; 0 where it was named itself. parameters_sha256:
    as the run that trained it told.
    """

    predict: Predict
    model: FMModel
    url: str
    version: int
    engine: str
    parameters_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """What /health tells of it."""
        return {
            "engine": self.engine,
            "model": self.url,
            "version": self.version,
            "parameters_sha256": self.parameters_sha256,
            "dfm_version": self.model.metadata.get("dfm_version", ""),
        }


def load(url: str, engine: str) -> Served:
    """The model of a folder, or the champion of an alias, ready to answer. ModelError where there is none, or the graph
    does not say what the model says.
    """
    champion = registry.champion(url)
    if champion:
        registry.check_in_place(url, champion)
    where = champion.model if champion else url
    model = FMModel.load(where)
    predict = ENGINES[engine](model)
    version = champion.number if champion else 0
    served = Served(predict, model, where, version, engine, model.parameters_sha256())
    _warm_up(served)
    return served


def _with_dfm(model: FMModel) -> Predict:
    return lambda rows: model.predict(list(rows))


def _with_onnx(model: FMModel) -> Predict:
    """The graph in a session of onnxruntime; raw values are hashed by dfm, as `model.json` specifies."""
    try:
        import onnxruntime
    except ImportError as error:
        raise SettingsError(f"this engine needs onnxruntime: {pip_install('serving', 'onnx')}") from error
    graph = onnx_files(model)
    if DATA_NAME in graph:
        raise SettingsError("the graph of this model is more than a file of ONNX holds; serve it with --engine dfm")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # requests come side by side
    session = onnxruntime.InferenceSession(next(iter(graph.values())), options, providers=["CPUExecutionProvider"])

    def predict(rows: Rows) -> NDArray[np.float32]:
        ids, fields, values = hashed_inputs(model, list(rows))
        (found,) = session.run(None, {"ids": ids, "fields": fields, "values": values})
        return np.asarray(found, np.float32)

    return predict


ENGINES: dict[str, Callable[[FMModel], Predict]] = {"dfm": _with_dfm, "onnx": _with_onnx}


def _warm_up(served: Served) -> None:
    """Compile before the first request, and check that the engine says what the model says."""
    schema = served.model.schema
    row = dict.fromkeys(schema.columns, 0.0 if is_vector(schema) else None)  # a matrix has no missing values
    for rows in ([row], [row] * 100):
        expected, found = served.model.predict(rows), served.predict(rows)
        if not np.allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max()))):
            raise ModelError(f"{served.engine} predicts {found[0]} where the model at {served.url} says {expected[0]}")
