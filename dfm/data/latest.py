"""The moment from which on the latest rows of a log are held out, found without sorting the log.

Every reading task tells how many rows its latest moments have; together they give a moment from which on about as many
rows lie as are wanted. Rows of one moment stay together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dfm.data.arrow_types import (
    as_moments,
    decoded,
    is_list,
    is_moment,
    is_text,
    plain,
    type_of_moments,
    type_of_values,
)
from dfm.data.derive import without_missing
from dfm.data.parquet import Unit, naming_shard, read_unit
from dfm.data.reading import Reading
from dfm.data.time_split import sort_keys
from dfm.errors import DataError

_MOMENT, _ROWS = "moment", "rows"


def latest_moments(reading: Reading, units: Sequence[Unit], n_rows: int) -> pa.Table | str:
    """Moments of the latest `n_rows` rows of some units and how many rows each has, the latest first; or why they have
    no order.
    """
    column = reading.schema.time
    counted: list[pa.Table | str] = []
    for batch in itertools.chain.from_iterable(read_unit(unit, [column], reading.storage_options) for unit in units):
        with naming_shard(batch):
            check_moments(batch.data.column(column).type, column)
            moments = without_missing(batch.data.column(column), reading.schema.missing)
            counted.append(counted_moments(moments))
    return latest_or_why(counted, n_rows, column)


def check_moments(kind: pa.DataType, column: str) -> None:
    """DataError where values of this type are no single moments."""
    if is_list(type_of_values(kind)):
        raise DataError(
            f"column {column!r} holds {kind}, which has no order in time; name another column as schema.time"
        )


def counted_moments(moments: pa.Array, rows: pa.Array | None = None) -> pa.Table:
    """Distinct moments and how many rows each has. rows: of each moment; without it one. Missing ones, among which is
    empty text, are left out.
    """
    moments = _comparable(moments)
    each = pa.array(np.ones(len(moments), np.int64)) if rows is None else rows
    table = pa.table({_MOMENT: moments, _ROWS: each}).filter(pc.is_valid(moments))
    return _summed(table)


def _comparable(moments: pa.Array) -> pa.Array:
    """Moments of one of the few types in which those of all shards are put together."""
    if pa.types.is_dictionary(moments.type):
        moments = moments.dictionary_decode()
    moments = decoded(plain(moments))
    if pa.types.is_large_string(moments.type):
        return pc.if_else(pc.equal(moments, ""), None, moments)
    if pa.types.is_timestamp(moments.type):
        return as_moments(moments, pa.timestamp("us", moments.type.tz and "UTC"))
    if pa.types.is_date(moments.type):
        return moments.cast(pa.date32())
    if pa.types.is_floating(moments.type):
        moments = moments.cast(pa.float64())
        return pc.if_else(pc.is_nan(moments), None, moments)
    is_count = pa.types.is_integer(moments.type) and moments.type != pa.uint64()
    return moments.cast(pa.int64()) if is_count else moments


def _summed(table: pa.Table) -> pa.Table:
    """Each moment once, in the order in which they come first, with all of its rows."""
    encoded = table.column(_MOMENT).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    rows = np.zeros(len(encoded.dictionary), np.int64)
    np.add.at(rows, encoded.indices.to_numpy(), table.column(_ROWS).to_numpy())
    return pa.table({_MOMENT: encoded.dictionary, _ROWS: rows})


def latest_or_why(tables: Sequence[pa.Table | str], n_rows: int, column: str) -> pa.Table | str:
    """The latest moments of all tables, or why they have no common order. A text among the tables is such a reason."""
    if why := next((table for table in tables if isinstance(table, str)), ""):
        return why
    try:
        return latest_of(tables, n_rows, column)
    except (DataError, pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        return str(error)


def _alike(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """The tables with dates and timestamps, or numbers, of one type. DataError where they hold times of day, which have
    no order, or these and others.
    """
    found = [table for table in tables if table.num_rows] or list(tables[:1])
    kinds = {table.column(_MOMENT).type for table in found}
    if any(map(pa.types.is_time, kinds)):
        raise DataError("times of day, without a day, have no order in time")
    if len(kinds) == 1:
        return found
    columns = [table.column(_MOMENT) for table in found]
    if all(map(is_moment, kinds)):
        kind = type_of_moments(kinds)
        alike = [_each_as(column, kind) for column in columns]
    elif all(map(_is_number, kinds)):
        alike = _as_numbers(columns)
    else:
        raise DataError(f"it holds {' in some shards, and in others '.join(sorted({*map(_word, kinds)}))}")
    return [table.set_column(0, _MOMENT, column) for table, column in zip(found, alike, strict=True)]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _word(kind: pa.DataType) -> str:
    return "dates" if is_moment(kind) else "numbers" if _is_number(kind) else "text" if is_text(kind) else str(kind)


def _as_numbers(columns: Sequence[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    """Numbers of several types as int64 where all are whole, else as float64."""
    try:
        return [column.cast(pa.int64()) for column in columns]
    except pa.ArrowInvalid:
        return [column.cast(pa.float64(), safe=False) for column in columns]


def _each_as(moments: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([as_moments(chunk, kind) for chunk in moments.chunks], kind)


def latest_of(tables: Sequence[pa.Table], n_rows: int, column: str) -> pa.Table:
    """The latest moments of all tables, the latest first, until they have so many rows, and the one before them."""
    summed = _summed(pa.concat_tables(_alike(tables)))
    if not summed.num_rows:
        return summed
    keys = sort_keys(summed.column(_MOMENT).combine_chunks(), column)
    ordered = summed.take(pc.array_sort_indices(keys, "descending"))
    reached = np.cumsum(ordered.column(_ROWS).to_numpy())
    return ordered.slice(0, int(np.searchsorted(reached, n_rows)) + 1)


def bound_of(latest: pa.Table, n_rows: int, most_rows: int) -> tuple[str, int]:
    """The moment from which on about `n_rows` rows lie, as `at_or_after` takes it, and how many these are; "" and 0
    where there is none that has a quarter of them at least, and no more than `most_rows`.
    """
    reached = np.cumsum(latest.column(_ROWS).to_numpy())
    legal = (reached <= most_rows) & (4 * reached >= n_rows)
    if not legal.any():
        return "", 0
    nearest = int(np.argmin(np.where(legal, np.abs(reached - n_rows), np.iinfo(np.int64).max)))
    return written(latest.column(_MOMENT)[nearest]), int(reached[nearest])


def equal_parts(moments: pa.Table, n_parts: int) -> list[str]:
    """Moments at which the rows of all moments (the latest first) are cut into parts of about equal size, the earliest
    first; fewer where one moment has the rows of several parts.
    """
    rows = moments.column(_ROWS).to_numpy()[::-1]
    before = np.cumsum(rows) - rows
    total, n_moments = int(rows.sum()), len(rows)
    places = [int(np.searchsorted(before, total * part / n_parts)) for part in range(1, n_parts)]
    cuts = dict.fromkeys(place for place in places if 0 < place < n_moments)
    return [written(moments.column(_MOMENT)[n_moments - 1 - place]) for place in cuts]


def written(moment: pa.Scalar) -> str:
    """A moment as a bound in a job file says it; a timestamp in whole microseconds, of a zone in UTC."""
    kind = moment.type
    if pa.types.is_timestamp(kind):
        whole = moment.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.timestamp("us"))
        text = str(whole.cast(pa.string()).as_py())
        return f"{text}Z" if kind.tz else text
    if pa.types.is_date(kind):
        return str(moment.cast(pa.date32()).as_py())
    return str(moment.as_py())
