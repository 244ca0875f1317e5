"""Predictions in the form of other libraries: columns of Arrow, pandas or polars, on request."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.errors import SettingsError

NUMPY = "numpy"
PREDICTION = "prediction"
"""The name of a column of predictions, as `dfm predict` writes it."""


def handed_out(found: NDArray[Any], output: str, data: Any, names: Sequence[str] = (PREDICTION,)) -> Any:
    """Predictions in the form of OUTPUTS: of a vector [n_rows] a column called names[0], of a matrix [n_rows, n_names]
    a table.

    data: the rows that were scored, whose index a column of pandas takes over where they are of pandas themselves.
    SettingsError where the form is unknown or its library is not installed.
    """
    if output == NUMPY:
        return found
    check_output(output)
    return OUTPUTS[output](found, names, data)


def check_output(output: str) -> None:
    """SettingsError where there is no such form."""
    if output not in (NUMPY, *OUTPUTS):
        raise SettingsError(f"output = {output!r} is not legal: expected {', '.join((NUMPY, *OUTPUTS))}")


def _of_arrow(found: NDArray[Any], names: Sequence[str], _data: Any) -> Any:
    if found.ndim == 1:
        return pa.array(found)
    return pa.table({name: np.ascontiguousarray(found[:, at]) for at, name in enumerate(names)})


def _of_pandas(found: NDArray[Any], names: Sequence[str], data: Any) -> Any:
    pandas = _library("pandas")
    index = data.index if hasattr(data, "iloc") and hasattr(data, "columns") else None
    if found.ndim == 1:
        return pandas.Series(found, index, name=names[0])
    return pandas.DataFrame(found, index, list(names))


def _of_polars(found: NDArray[Any], names: Sequence[str], _data: Any) -> Any:
    polars = _library("polars")
    values = found.tolist() if found.dtype == object else found
    return polars.Series(names[0], values) if found.ndim == 1 else polars.DataFrame(values, list(names))


OUTPUTS: dict[str, Callable[[NDArray[Any], Sequence[str], Any], Any]] = {
    "arrow": _of_arrow,
    "pandas": _of_pandas,
    "polars": _of_polars,
}
"""By name: what makes the form of predictions, beside "numpy", which they have by themselves."""


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(f'output = "{name}" needs {name}: pip install {name}') from error
