"""Rows that a finished model has no finite prediction for, as a number is far beyond those that it learnt from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.encoding import Encoded
from dfm.data.hashed_rows import HashedRows, take_rows
from dfm.data.row_checks import NOT_PREDICTED, Problem, in_short
from dfm.data.schema import ResolvedSchema
from dfm.model.fm_model import FMModel
from dfm.model.metrics import not_finite

_MOST = 0.01
"""Share of the rows of a batch up to which it is the rows that are at fault, and beyond it the model."""


def without_outliers(
    model: FMModel, data: pa.RecordBatch, encoded: Encoded, scores: NDArray[np.float32]
) -> tuple[Encoded, NDArray[np.float32]]:
    """The good rows of a batch and their scores float32[n_rows], without those that have no finite prediction.

    These are among the problems, by the column whose x is largest. DivergenceError where they are many.
    """
    predicted = model.objective.predict(scores)
    is_lost = ~np.isfinite(predicted) if model.objective.clip else ~(np.isfinite(predicted) & np.isfinite(scores))
    lost = np.flatnonzero(is_lost)
    if not len(lost):
        return encoded, scores
    if len(lost) > max(1, _MOST * len(scores)):
        raise not_finite(len(lost), len(scores))
    places, good = np.flatnonzero(encoded.good)[lost], encoded.good.copy()
    good[places] = False
    columns = [_column_of(encoded.rows, int(row), model.schema) for row in lost]
    problems = list(encoded.problems)
    for name, count in Counter(columns).items():
        first = int(places[columns.index(name)])
        problems.append(Problem(name, NOT_PREDICTED, count, first, _value_of(data, name, first)))
    kept = np.flatnonzero(~is_lost)
    return Encoded(take_rows(encoded.rows, kept), problems, good), scores[kept]


def _column_of(rows: HashedRows, row: int, schema: ResolvedSchema) -> str:
    """The name of the field of a row's largest x."""
    start, stop = rows.indptr[row], rows.indptr[row + 1]
    entry = int(np.abs(rows.values[start:stop]).argmax()) if rows.values.size else 0
    return schema.fields[int(rows.fields[start + entry]) if rows.fields.size else entry].name


def _value_of(data: pa.RecordBatch, name: str, row: int) -> str:
    """The value of a column in a row, as messages show it; "" of a field that is made of others."""
    return in_short(data.column(name)[row]) if name in data.schema.names else ""
