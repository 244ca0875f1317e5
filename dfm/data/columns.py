"""One column of a batch, as it is read: without what means a missing value, derived from others, or as numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data import canonical, hashing
from dfm.data.arrow_types import (
    NO_CATEGORY,
    NOT_NUMERIC,
    check_periods,
    is_list,
    is_moment,
    is_number,
    is_text,
    plain,
    refusal,
    type_of_values,
)
from dfm.data.derive import derive, without_missing
from dfm.data.lists import Lists, lists_of
from dfm.data.schema import SHORTEST, WIDENED, ResolvedSchema
from dfm.errors import DataError

LARGEST = float(np.finfo(np.float32).max)
"""Numbers that are trained on as they are (labels, weights, columns as values) are float32."""
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
LOOKED_UP = {b"dfm": b"without missing"}
"""Metadata of a column in which texts that mean a missing value were looked up before its numbers became text."""


def missing_texts(data: pa.RecordBatch, name: str, schema: ResolvedSchema) -> tuple[str, ...]:
    """Texts that mean a missing value in a column of the data; none where they were looked up before."""
    return () if data.schema.field(name).metadata == LOOKED_UP else schema.missing


def given_column(data: pa.RecordBatch, name: str, schema: ResolvedSchema) -> pa.Array:
    """A column of the data without texts that mean a missing value."""
    return without_missing(data.column(name), missing_texts(data, name, schema))


def feature_column(data: pa.RecordBatch, name: str, schema: ResolvedSchema) -> tuple[pa.Array, Flags | None]:
    """A column of the data without texts that mean a missing value, or one that the schema derives.

    Of a derived one, which rows hold text that is no moment, bool[n]; else None. DataError where it holds periods.
    """
    derived = next((entry for entry in schema.derived if entry.name == name), None)
    if derived is None:
        check_periods(data.schema.field(name))
        array = given_column(data, name, schema)
        return canonical.integer_texts(array) if name in schema.integers else array, None
    return derive(derived, {source: given_column(data, source, schema) for source in derived.columns})


def list_column(data: pa.RecordBatch, name: str, schema: ResolvedSchema) -> Lists:
    """The lists of a column of the data, their elements without texts that mean a missing value."""
    array, _ = feature_column(data, name, schema)
    found = lists_of(array, name, schema.list_separator)
    # Elements of a text were no values of their own before it was split.
    missing = schema.missing if is_text(array.type) else missing_texts(data, name, schema)
    return dataclasses.replace(found, elements=without_missing(found.elements, missing))


def with_values(data: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    """The data with other values in a column; texts that were looked up in it stay looked up."""
    at = data.schema.get_field_index(name)
    return data.set_column(at, data.schema.field(at).with_type(values.type).with_nullable(True), values)


def check_numbers(kind: pa.DataType, column: str, role: str = "") -> None:
    """DataError where values of this type are no numbers. role: "label" or "weight", if the column is that."""
    if not is_number(kind):
        raise refusal(type_of_values(kind), column, NOT_NUMERIC, role)


def check_categories(kind: pa.DataType, column: str) -> None:
    """DataError where values of this type are no single categories."""
    kind = type_of_values(kind)
    if is_list(kind):
        raise DataError(
            f"column {column!r} holds lists ({kind}), but the schema calls it a single category; "
            f'write one value a row, or of a job name it in [schema] lists = ["{column}"]'
        )
    if not (is_number(kind) or is_moment(kind)):
        raise refusal(kind, column, NO_CATEGORY)


def number_column(data: pa.RecordBatch, name: str, schema: ResolvedSchema) -> Floats:
    """The numbers of a column that are there and can be learnt from, float64[at most n]."""
    array, _ = feature_column(data, name, schema)
    values, present, unparsed = parse_numbers(array, name, schema.numbers)
    return values[present & ~unparsed & (np.abs(values) <= LARGEST)]


def parse_numbers(array: pa.Array, column: str, form: str = SHORTEST) -> tuple[Floats, Flags, Flags]:
    """Numbers float64[n] (0 where missing), which are present, and which rows hold text that is no number.

    Text is parsed once per distinct value; empty text is missing. form: the model's form of numbers.
    """
    values, present, unparsed = _parse_numbers(array, column, form)
    return values if form == WIDENED else canonical.shortest(values), present, unparsed


def _parse_numbers(array: pa.Array, column: str, form: str) -> tuple[Floats, Flags, Flags]:
    array = plain(array)
    kind = array.type
    if pa.types.is_null(kind):
        return np.zeros(len(array)), np.zeros(len(array), np.bool_), np.zeros(len(array), np.bool_)
    if is_text(kind):
        array = array.dictionary_encode()
    if pa.types.is_dictionary(array.type):
        values, present, unparsed = _parse_distinct(array.dictionary, column, form)
        places = hashing.gather_codes(np.arange(len(values) + 1, dtype=np.uint32), array.indices)
        return np.append(values, 0.0)[places], np.append(present, False)[places], np.append(unparsed, False)[places]
    check_numbers(kind, column)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    present = np.ones(len(array), np.bool_) if not array.null_count else array.is_valid().to_numpy(False)
    if pa.types.is_decimal(kind):
        array = canonical.decimal_numbers(array, form)
    elif not pa.types.is_floating(kind):
        array = array.cast(pa.float64(), safe=False)
    return canonical.widened(array, form), present, np.zeros(len(array), np.bool_)


def _parse_distinct(distinct: pa.Array, column: str, form: str) -> tuple[Floats, Flags, Flags]:
    distinct = plain(distinct)
    if not is_text(distinct.type):
        return _parse_numbers(distinct, column, form)
    texts = distinct.cast(pa.large_binary()).to_pylist()
    values, unparsed = np.zeros(len(texts)), np.zeros(len(texts), np.bool_)
    present = np.array([text is not None and text.strip() != b"" for text in texts], np.bool_)
    for i in np.flatnonzero(present):
        try:
            values[i] = float(texts[i])
        except ValueError:
            unparsed[i] = True
        # Python reads 1_000 as a number; no log means it so.
        unparsed[i] |= b"_" in texts[i]
    return values, present, unparsed
