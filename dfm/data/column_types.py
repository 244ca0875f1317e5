"""Types of columns against what a schema makes of them: what no row could mend is refused by footers alone."""

from __future__ import annotations

import pyarrow as pa

from dfm.data.arrow_types import NO_CATEGORY, is_moment, is_number, refusal, without_views
from dfm.data.columns import check_categories, check_numbers, feature_column
from dfm.data.derive import without_missing
from dfm.data.labels import positive_rows
from dfm.data.latest import check_moments
from dfm.data.lists import lists_of
from dfm.data.schema import Field, ResolvedSchema
from dfm.data.texts import check_single
from dfm.data.time_split import at_or_after


def check_types(schema: ResolvedSchema, columns: pa.Schema, group: str = "", time: str = "", bound: str = "") -> None:
    """DataError where columns of these types are no features, no label or no weight as the schema has them.

    group, time: columns by which rows are told apart and ordered; bound: a moment that is compared with the time. Empty
    ones, and columns that are not there, are passed over.
    """
    data = without_views(pa.RecordBatch.from_arrays([pa.nulls(0, kind) for kind in columns.types], schema=columns))
    there = {name: data.schema.field(name).type for name in data.schema.names if data.schema.names.count(name) == 1}
    if schema.label in there:
        _check_label(data, schema)
    if schema.weight in there:
        check_numbers(there[schema.weight], schema.weight, "weight")
    for entry in schema.fields:
        if entry.kind in ("categorical", "numeric", "list") and there.keys() >= {*schema.sources(entry.columns)}:
            _check_feature(data, entry, schema)
    if group in there:
        check_single(there[group], group)
    if time in there:
        check_moments(there[time], time)
        if bound:
            at_or_after(without_missing(data.column(time), schema.missing), bound, time)


def _check_label(data: pa.RecordBatch, schema: ResolvedSchema) -> None:
    if schema.label_positive:
        positive_rows(data.column(schema.label), schema.label_positive, schema.label)
    else:
        check_numbers(data.schema.field(schema.label).type, schema.label, "label")


def _check_feature(data: pa.RecordBatch, entry: Field, schema: ResolvedSchema) -> None:
    array, _ = feature_column(data, entry.name, schema)
    if entry.kind == "categorical":
        check_categories(array.type, entry.name)
    elif entry.kind == "numeric":
        check_numbers(array.type, entry.name)
    else:
        found = lists_of(array, entry.name, schema.list_separator)
        if not (is_number(found.elements.type) or is_moment(found.elements.type)):
            raise refusal(found.elements.type, entry.name, NO_CATEGORY)
        if found.weights is not None:
            check_numbers(found.weights.type, entry.name)
