"""Labels and weights of the rows of a batch, and which of them are sound."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data import labels
from dfm.data.columns import Flags, check_numbers, given_column, parse_numbers
from dfm.data.row_checks import RowCheck
from dfm.data.schema import ResolvedSchema

_NO_FLOATS = np.zeros(0, np.float32)


def labels_of(data: pa.RecordBatch, schema: ResolvedSchema, task: str) -> tuple[NDArray[np.float32], Flags]:
    """Labels float32[n_rows], and which are sound, bool[n_rows]; no other column is looked at."""
    check = RowCheck(data.num_rows)
    found = checked_labels(data, schema, task, check)
    return found, ~check.bad


def teaching_rows(data: pa.RecordBatch, schema: ResolvedSchema, task: str) -> Flags:
    """Rows that may be trained on as far as label and weight say, bool[n_rows]: both are sound, and it weighs anything;
    no other column is looked at.
    """
    check = RowCheck(data.num_rows)
    checked_labels(data, schema, task, check)
    weights = checked_weights(data, schema, check)
    return ~check.bad & (weights > 0) if weights.size else ~check.bad


def checked_labels(data: pa.RecordBatch, schema: ResolvedSchema, task: str, check: RowCheck) -> NDArray[np.float32]:
    """Labels float32[n_rows]; `check` is told of rows whose labels are bad."""
    array = given_column(data, schema.label, schema)
    if schema.label_positive:
        positive, missing = labels.positive_rows(array, schema.label_positive, schema.label)
        check.reject(missing, schema.label, "label is missing", array)
        return positive.astype(np.float32)
    check_numbers(array.type, schema.label, "label")
    values, present, unparsed = parse_numbers(array, schema.label, schema.numbers)
    check.reject(~present, schema.label, "label is missing", array)
    check.reject(unparsed, schema.label, labels.NO_NUMBER, array)
    check.reject(~np.isfinite(values), schema.label, "label is not finite", array)
    wrong, reason = labels.illegal(values, task)
    check.reject(wrong, schema.label, reason, array)
    return check.narrowed(values, schema.label, "label is too large", array)


def checked_weights(data: pa.RecordBatch, schema: ResolvedSchema, check: RowCheck) -> NDArray[np.float32]:
    """Weights float32[n_rows], empty where the data has none; `check` is told of rows whose weights are bad."""
    if not (column := schema.weight):
        return _NO_FLOATS
    array = given_column(data, column, schema)
    check_numbers(array.type, column, "weight")
    values, present, unparsed = parse_numbers(array, column, schema.numbers)
    check.reject(~present | unparsed, column, "weight is missing or not a number", array)
    check.reject(~np.isfinite(values), column, "weight is not finite", array)
    check.reject(values < 0, column, "weight is negative", array)
    return check.narrowed(values, column, "weight is too large", array)
