"""Types of Arrow: which of them are categories, numbers or lists, and the plain form in which they are read.

Engines disagree on how they store the same values: polars hands out views, Spark dictionaries and maps, databases
decimals and UUIDs. `plain` brings an array to one of the few types that hashing and parsing know; nothing is lost on
the way. What can be no feature is refused by name, with what to do about it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.errors import DataError

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)
_SECONDS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Units of a duration in a second."""
_PERIODS = "pandas.period"
"""The extension of pandas' periods, of which Arrow has numbers alone: days, hours or months since 1970."""


def is_text(kind: pa.DataType) -> bool:
    """Whether it is text or bytes that hashing reads as they lie in memory."""
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in tests)


def is_list(kind: pa.DataType) -> bool:
    """Whether it holds lists, also as views, of one length, or as maps."""
    types = pa.types
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in (*tests, types.is_map))


def is_moment(kind: pa.DataType) -> bool:
    """Whether it is a date, a time of day or a moment."""
    return bool(pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind))


def type_of_moments(kinds: Collection[pa.DataType]) -> pa.DataType:
    """The type of dates and timestamps of several types: in microseconds, and in UTC where one has a zone."""
    if len({*kinds}) == 1:
        return next(iter(kinds))
    has_zone = any(pa.types.is_timestamp(kind) and kind.tz for kind in kinds)
    return pa.timestamp("us", "UTC" if has_zone else None)


def as_moments(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Dates or timestamps as of that type; what has no zone is in UTC."""
    if array.type == kind:
        return array
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("ms"))
    return array.cast(kind, safe=False)


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type of what is there once extensions and runs are taken off."""
    if isinstance(kind, pa.BaseExtensionType):
        special = {"arrow.uuid": pa.string(), "arrow.bool8": pa.bool_()}
        return special.get(kind.extension_name) or storage_type(kind.storage_type)
    return storage_type(kind.value_type) if pa.types.is_run_end_encoded(kind) else kind


def column_kind(kind: pa.DataType) -> str:
    """The word for a type that `schema.infer` knows; the type's own name for what is chosen by name only, or never."""
    if _are_periods(kind):
        return _PERIODS
    kind, types = storage_type(kind), pa.types
    tests: dict[str, Callable[[pa.DataType], bool]] = {
        "bool": types.is_boolean,
        "int": types.is_integer,
        "float": lambda t: types.is_floating(t) or types.is_decimal(t) or types.is_duration(t),
        "dictionary": types.is_dictionary,
        "null": types.is_null,
        "list": lambda t: is_list(t) and _is_flat_list(t),
        "date": types.is_date,
        "timestamp": types.is_timestamp,
        "string": lambda t: is_text(t) or is_text(plain_type(t)),
    }
    return next((word for word, test in tests.items() if test(kind)), str(kind))


def kind_of_field(field: pa.Field) -> str:
    """`column_kind` of a column, also of periods that Arrow reads as integers, as pandas has not named them yet."""
    return _PERIODS if _holds_periods(field) else column_kind(field.type)


def check_periods(field: pa.Field) -> None:
    """DataError where a column holds pandas' periods, whose numbers mean nothing without their unit."""
    if _holds_periods(field):
        raise DataError(
            f"column {field.name!r} holds pandas' periods, of which Arrow has numbers alone; make moments of them "
            "(.dt.to_timestamp()), or text (.astype(str))"
        )


def _holds_periods(field: pa.Field) -> bool:
    own = (field.metadata or {}).get(b"ARROW:extension:name", b"")
    return own == _PERIODS.encode() or _are_periods(field.type)


def _are_periods(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == _PERIODS


def _is_flat_list(kind: pa.DataType) -> bool:
    """Whether elements of lists are single values, or pairs of those: a category and its weight."""
    types = pa.types
    inner = None if types.is_map(kind) else storage_type(kind.value_type)
    if inner is None:
        parts = [kind.key_type, kind.item_type]
    else:
        parts = [entry.type for entry in inner] if types.is_struct(inner) and inner.num_fields == 2 else [inner]
    return not any(is_list(part) or types.is_struct(part) for part in map(storage_type, parts))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of `plain` arrays."""
    types = pa.types
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.large_binary()
    return kind


def type_of_values(kind: pa.DataType) -> pa.DataType:
    """The type of single values, once extensions, runs, views and dictionaries are taken off."""
    kind = plain_type(storage_type(kind))
    return type_of_values(kind.value_type) if pa.types.is_dictionary(kind) else kind


def is_number(kind: pa.DataType) -> bool:
    """Whether numbers are read of values of this type, text among them."""
    types, kind = pa.types, type_of_values(kind)
    tests = (types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_duration)
    return is_text(kind) or any(test(kind) for test in tests)


def plain(array: pa.Array) -> pa.Array:
    """The array without extensions, runs, views and units of a duration (it is in seconds); all others as they are."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(_without_extension(array))
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(array))
    if pa.types.is_duration(kind):
        return pc.divide(array.cast(pa.int64()).cast(pa.float64(), safe=False), float(_SECONDS[kind.unit]))
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return array.cast(pa.decimal128(kind.precision, kind.scale))
    wanted = plain_type(kind)
    return array if wanted == kind else array.cast(wanted)


def decoded(array: pa.Array) -> pa.Array:
    r"""Text or bytes as large_string, in which bytes that are no UTF-8 stand as \xNN; other types as they are."""
    if not is_text(array.type):
        return array
    raw = array.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string())
    except pa.ArrowInvalid:
        encoded = raw.dictionary_encode()
        texts = [text.decode(errors="backslashreplace") for text in encoded.dictionary.to_pylist()]
        return pa.array(texts, pa.large_string()).take(encoded.indices)


def shown(scalar: pa.Scalar) -> str:
    """A value for a message; text that is not UTF-8 is shown as bytes, moments beyond the year 9999 by their number."""
    value = scalar.value if isinstance(scalar, pa.DictionaryScalar) else scalar
    try:
        return repr(value.as_py())
    except UnicodeDecodeError:
        return repr(value.as_buffer().to_pybytes())
    except (ValueError, OverflowError):
        return repr(value.value)


def integers_of(array: pa.Array) -> tuple[pa.Array, pa.DataType] | None:
    """Integers, truths and days as int64, and the type of which they are categories: integers of all widths are the
    same ones. None of other types.
    """
    kind = array.type
    if pa.types.is_date32(kind):
        return array.cast(pa.int32()).cast(pa.int64()), kind
    if pa.types.is_boolean(kind):
        return array.cast(pa.int64()), kind
    is_one = pa.types.is_integer(kind) and kind != pa.uint64()
    return (array.cast(pa.int64()), pa.int64()) if is_one else None


def from_integers(numbers: NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """The values of a type of `integers_of` that some integers stand for; of truths, all but 0 are true."""
    array = pa.array(numbers)
    return array.cast(pa.int32()).cast(kind) if pa.types.is_date32(kind) else array.cast(kind)


def _without_extension(array: pa.ExtensionArray) -> pa.Array:
    if array.type.extension_name == "arrow.uuid":
        texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in array.storage.to_pylist()]
        return pa.array(texts, pa.string())
    if array.type.extension_name == "arrow.bool8":
        return pc.not_equal(array.storage, pa.scalar(0, pa.int8()))
    return array.storage


def elements_of(array: pa.Array) -> pa.LargeListArray:
    """Lists of any layout as large lists; of nulls as lists of nothing."""
    if pa.types.is_null(array.type):
        return array.cast(pa.large_list(pa.null()))
    if pa.types.is_large_list(array.type):
        return array
    if pa.types.is_map(array.type):
        pair = pa.struct([("key", array.type.key_type), ("value", array.type.item_type)])
        return array.cast(pa.large_list(pair))
    if pa.types.is_list(array.type):
        return array.cast(pa.large_list(array.type.value_type))
    # Arrow's cast of views leaves offsets too short.
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    elements = array.filter(array.is_valid()).flatten() if array.null_count else array.flatten()
    return pa.LargeListArray.from_arrays(offsets, elements, mask=array.is_null() if array.null_count else None)


def without_views(data: Rows) -> Rows:
    """A table or batch whose views and runs, of which Arrow cannot select rows, are stored plainly."""
    for place, entry in enumerate(data.schema):
        wanted = _selectable(entry.type)
        if wanted != entry.type:
            column = data.column(place)
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            stored = [_stored_plainly(chunk, wanted) for chunk in chunks]
            column = pa.chunked_array(stored, wanted) if isinstance(column, pa.ChunkedArray) else stored[0]
            data = data.set_column(place, pa.field(entry.name, wanted), column)
    return data


def _stored_plainly(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    return (elements_of(array) if is_list(array.type) else array).cast(wanted)


def _selectable(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_run_end_encoded(kind):
        return _selectable(kind.value_type)
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _selectable(kind.value_type))
    if is_list(kind) and not types.is_map(kind):
        inner = _selectable(kind.value_type)
        is_view = types.is_list_view(kind) or types.is_large_list_view(kind)
        return pa.large_list(inner) if is_view or inner != kind.value_type else kind
    return plain_type(kind) if types.is_string_view(kind) or types.is_binary_view(kind) else kind


# -------------------------------------------------------------------------------------------- structs ----


def flat_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with the fields of a struct in place of the struct, by dotted names."""
    fields: list[pa.Field] = []
    for entry in schema:
        if pa.types.is_struct(entry.type):
            inner = pa.schema([child.with_name(f"{entry.name}.{child.name}") for child in entry.type])
            fields.extend(flat_schema(inner))
        else:
            fields.append(entry)
    return pa.schema(fields)


def flat(table: pa.Table) -> pa.Table:
    """The table with the fields of a struct in place of the struct; of a missing struct all are missing."""
    while any(pa.types.is_struct(entry.type) for entry in table.schema):
        table = table.flatten()
    return table


def root_of(column: str, names: Collection[str]) -> str | None:
    """The name of a column, or of the struct that holds the field of this dotted name; None where there is none."""
    root: str = column
    while root not in names:
        root, dot, _ = root.rpartition(".")
        if not dot:
            return None
    return root


def with_fields(data: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """The batch's own columns among `columns`, and fields of its structs by their dotted names."""
    if not any(pa.types.is_struct(entry.type) for entry in data.schema):
        return data
    roots = {column: root_of(column, data.schema.names) for column in columns}
    found = {column: root for column, root in roots.items() if root is not None}
    arrays = [
        data.column(root) if root == column else pc.struct_field(data.column(root), column[len(root) + 1 :].split("."))
        for column, root in found.items()
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(found))


# ------------------------------------------------------------------------------------------- refusals ----


NOT_NUMERIC, NO_CATEGORY = "not numeric", "no category"


def refusal(kind: pa.DataType, column: str, fault: str, role: str = "") -> DataError:
    """Why a column of this type is NOT_NUMERIC or NO_CATEGORY, and what to do. role: "label", "weight" or ""."""
    other = f"write numbers, or of a job name another column as schema.{role}"
    remedy = other if role else _remedy(storage_type(kind), column, fault)
    return DataError(f"column {column!r} holds {kind}, which is {fault}; {remedy}")


def _remedy(kind: pa.DataType, column: str, fault: str) -> str:
    if is_list(kind):
        return f'write one value a row, or of a job name it in [schema] lists = ["{column}"]'
    if pa.types.is_struct(kind):
        names = ", ".join(f"{column}.{child.name}" for child in kind)
        return f"name its fields instead: {names}"
    if fault == NOT_NUMERIC and is_moment(kind):
        return (
            f"write numbers, or of a job name it in [schema] categorical, or derive a number: [schema.derive] hour = "
            f'"hour({column})"'
        )
    if fault == NOT_NUMERIC:
        return "write numbers, or of a job name it in [schema] categorical"
    return "leave it out of [schema], or write the parts of it that matter as columns of their own"
