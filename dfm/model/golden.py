"""Golden rows: raw rows that a model carries with their predictions, so that a load sees whether it gives the same."""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dfm.data import row_encoder
from dfm.data.canonical import is_plain, texts_of_numbers
from dfm.data.schema import SHORTEST, ResolvedSchema
from dfm.errors import DataError, ModelError, SettingsError
from dfm.model.folder import shortened
from dfm.model.manifest import MOST_GOLDEN_BYTES, MOST_GOLDEN_ROWS
from dfm.model.rows import table_of

GOLDEN_ROWS = 64
GOLDEN_COLUMN = "dfm_prediction"
_GOLDEN_TOLERANCE = 1e-5
_UNREADABLE = (pa.ArrowException, DataError, ValueError, TypeError, KeyError, OSError)
"""Errors of golden rows that are damaged, or that Python cannot hold."""


class Predictor(Protocol):
    """As much of a model as golden rows need."""

    @property
    def schema(self) -> ResolvedSchema:
        """The columns that it reads."""

    def predict(self, rows: Any, /) -> NDArray[np.float32]:
        """Predictions of rows, float32[n_rows]."""


def golden_bytes(model: Predictor, golden: Any) -> bytes:
    """The columns that a model reads of some rows, the first that fit, with their predictions, as Parquet; empty where
    there are no rows, or they are too large.

    SettingsError where they are no table of Arrow, DataError where they lack a column, ModelError where they do not
    come back with the same predictions: every load of the model would be refused.
    """
    if not isinstance(golden, pa.Table):
        raise SettingsError(
            f"golden rows are a {type(golden).__name__}; pass a pyarrow.Table (pyarrow.Table.from_pandas(frame))"
        )
    golden = table_of(golden.slice(0, MOST_GOLDEN_ROWS), model.schema.columns)
    predictions = pa.array(model.predict(golden), pa.float32())
    sink = io.BytesIO()
    pq.write_table(golden.append_column(_golden_name(golden.column_names), predictions), sink)
    data = sink.getvalue()
    if not golden.num_rows or len(data) > MOST_GOLDEN_BYTES:  # rows of a few columns; one may hold megabytes of text
        return b""
    unreadable = "these golden rows do not come back from Parquet", "save the model with others, or none"
    difference = _largest_difference(model, data, *unreadable)
    if difference:
        raise ModelError(
            f"the model scores these golden rows differently (by up to {difference:.3g}) when they are read again, as "
            "a service sends them or as text, so that no load would take it; save it with other golden rows, or none"
        )
    return data


def check_golden_rows(model: Predictor, data: bytes, url: str) -> None:
    """ModelError where a model predicts its golden rows otherwise than these bytes say, or they are damaged."""
    damaged = f"the golden rows of the model at {url} are damaged", "publish it again"
    difference = _largest_difference(model, data, *damaged)
    if difference:
        raise ModelError(
            f"the model at {url} scores its golden rows differently than when it was trained (by up to "
            f"{difference:.3g}); it does not belong to this version of dfm, or was changed: publish it again"
        )


def _largest_difference(model: Predictor, data: bytes, fault: str, remedy: str) -> float:
    """By how much a model predicts golden rows otherwise than their bytes say; 0 within the tolerance. ModelError with
    this fault and remedy where they cannot be read.
    """
    try:
        return _difference(model, data)
    except _UNREADABLE as error:
        raise ModelError(f"{fault} ({shortened(error)}); {remedy}") from error


def _difference(model: Predictor, data: bytes) -> float:
    with pq.ParquetFile(io.BytesIO(data)) as file:
        if file.metadata.num_rows > MOST_GOLDEN_ROWS:
            raise ValueError(f"{file.metadata.num_rows} rows")
        golden = file.read(use_threads=False)
    expected = golden.column(golden.num_columns - 1).to_numpy()
    difference = np.max([np.abs(found - expected) for found in _golden_predictions(model, golden)], axis=0)
    is_same = np.all(difference <= _GOLDEN_TOLERANCE * np.maximum(1.0, np.abs(expected)))
    return 0.0 if is_same else float(difference.max())


def _golden_predictions(model: Predictor, golden: pa.Table) -> list[NDArray[np.float32]]:
    """Predictions of golden rows as stored and, where a model promises it, as a service sends them and as text."""
    if model.schema.numbers != SHORTEST:
        return [model.predict(golden)]
    plain = [name for name in model.schema.columns if is_plain(golden.schema.field(name).type)]
    served = {name: golden.column(name).to_pylist() for name in plain}
    others = {name: golden.column(name) for name in model.schema.columns if name not in served}
    written = {name: _as_text(golden.column(name), model.schema.missing) for name in plain}
    few = range(0, golden.num_rows, row_encoder.MOST_ROWS)
    rows = [{name: column[i : i + row_encoder.MOST_ROWS] for name, column in {**others, **served}.items()} for i in few]
    return [
        model.predict(golden),
        np.concatenate([model.predict(row) for row in rows]),
        model.predict({**others, **written}),
    ]


def _as_text(column: pa.ChunkedArray, missing: Collection[str]) -> pa.Array | pa.ChunkedArray:
    """A column of numbers as text; as it is where one of its texts means a missing value, which a number never does."""
    texts = texts_of_numbers(column)
    return column if not set(missing).isdisjoint(texts.to_pylist()) else texts


def _golden_name(columns: list[str]) -> str:
    """The name of the predictions, the last column of the golden rows: one that no column of the data has."""
    name = GOLDEN_COLUMN
    while name in columns:
        name += "_"
    return name
