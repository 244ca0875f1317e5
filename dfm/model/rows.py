"""Rows as they are given from Python, for scoring and evaluating: tables, frames, dicts of columns, dicts of values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dfm.data.arrow_types import flat, root_of, without_views
from dfm.data.canonical import arrow_array, is_weighted, texts_apart
from dfm.data.columns import LOOKED_UP
from dfm.data.interchange import exported_table, speaks_arrow
from dfm.data.schema import ResolvedSchema, check_once
from dfm.errors import DataError

_BATCH_ROWS = 1 << 16


def in_columns(data: Any, schema: ResolvedSchema, columns: tuple[str, ...] | None = None) -> Any:
    """Rows as a dict of columns, where they are dicts, or one row: a dict of values, a Series; others as they are.

    columns: those that are wanted; None: those of the features. A dict of nothing but lists of single values is one
    row where every column is one of lists. DataError where one column holds a scalar and another a list of rows, or a
    row lacks a column that others have.
    """
    if isinstance(data, list | tuple) and all(isinstance(row, Mapping) for row in data):
        return _columns_of_rows(data, columns or schema.columns)
    if hasattr(data, "iloc") and hasattr(data, "index") and not hasattr(data, "columns"):
        return _columns_of_rows([_row_of_frame(data)], columns or schema.columns)
    return _columns_of_mapping(data, schema, columns or schema.columns) if isinstance(data, Mapping) else data


def _row_of_frame(series: Any) -> dict[str, Any]:
    """A Series of pandas, the row of a frame; NaN is missing in it, as in frames."""
    names = [str(name) for name in series.index]
    return dict(zip(names, none_for_nan(series), strict=True))


def none_for_nan(values: Iterable[Any]) -> list[Any]:
    """The values, None in place of NaN, as which pandas and arrays made of its frames keep a missing value."""
    return [None if isinstance(value, float | np.floating) and value != value else value for value in values]


def _columns_of_rows(rows: Sequence[Mapping[str, Any]], columns: tuple[str, ...]) -> dict[str, list[Any]]:
    if not rows:
        return {column: [] for column in columns}
    names = list(dict.fromkeys(name for row in rows for name in _stored_names(columns, row)))
    for number, row in enumerate(rows):
        lacking = next((name for name in names if name not in row), None)
        if lacking is not None:
            raise DataError(
                f"row {number} lacks column {lacking!r}, which other rows have; give every row every column, None "
                "where its value is missing"
            )
    return {name: [_plain(row[name]) for row in rows] for name in names}


def _columns_of_mapping(data: Mapping[str, Any], schema: ResolvedSchema, columns: tuple[str, ...]) -> Mapping[str, Any]:
    given = _stored_names(columns, data)
    of_lists = {entry.name for entry in schema.fields if entry.kind == "list"}
    structs = {name for name in given if name not in columns and isinstance(data[name], Mapping)}
    scalars = [column for column in given if column in structs or _is_scalar(data[column])]
    if not scalars and not (of_lists.issuperset(given) and _are_lists(data, given, schema)):
        return data
    others = [column for column in given if column not in scalars and column not in of_lists]
    if others:
        raise DataError(
            f"column {scalars[0]!r} holds one value, {data[scalars[0]]!r}, and column {others[0]!r} a list; pass lists "
            "with one value a row, or one value in every column for a single row"
        )
    return {column: [_plain(data[column])] for column in given}


def _are_lists(data: Mapping[str, Any], columns: Sequence[str], schema: ResolvedSchema) -> bool:
    """Whether columns of lists hold each the list of one row: single values, which are no rows of such a column, or a
    dict of category to weight.
    """
    if schema.list_separator:
        return False
    given = [data[column] for column in columns]
    values = [value for each in given if isinstance(each, list | tuple | np.ndarray) for value in each]
    return any(isinstance(each, Mapping) for each in given) or any(
        value is not None and _is_scalar(value) for value in values
    )


def one_row(data: Any, schema: ResolvedSchema) -> Any:
    """The data where one row is meant: a dict of nothing but columns of lists is that row, whatever they hold, unless
    each is a column of rows: a list of lists, dicts or None.
    """
    if not isinstance(data, Mapping):
        return data
    given = _stored_names(schema.columns, data)
    of_lists = {entry.name for entry in schema.fields if entry.kind == "list"}
    is_row = of_lists.issuperset(given) and not all(_holds_rows(data[column]) for column in given)
    return [data] if is_row else data


def _holds_rows(value: Any) -> bool:
    """Whether a column of lists holds those of rows, and is not one row's list; a category and its weight are none."""
    if not isinstance(value, list | tuple | np.ndarray):
        return not _is_scalar(value) and not isinstance(value, Mapping)
    return bool(len(value)) and all(each is None or not (_is_scalar(each) or _is_pair(each)) for each in value)


def _is_pair(element: Any) -> bool:
    """Whether it is a category with a weight that is there: no row has one without."""
    return is_weighted(element) and element[1] is not None


def _plain(value: Any) -> Any:
    """A value of a row without NumPy, which lists and single values of Python are not mixed with; moments and halves,
    which would lose their unit or their text, stay.
    """
    if not hasattr(value, "ndim") or isinstance(value, np.datetime64 | np.float16):
        return value
    return list(value) if value.ndim else value.item()


def _is_scalar(value: Any) -> bool:
    """Whether it is one value of a row: no list, array, Series or Arrow array of values."""
    return isinstance(value, str | bytes) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0


def numeric_of(schema: ResolvedSchema) -> frozenset[str]:
    """Columns of which a model makes numbers, and no categories; crosses take what their columns are made."""
    numbers: set[str] = set()
    others: set[str] = set()
    for entry in schema.fields:
        if entry.kind == "cross":
            continue
        found = numbers if entry.kind in ("numeric", "vector") else others
        found.update(schema.sources(entry.columns))
    return frozenset(numbers - others)


def batches_of(
    data: Any, columns: tuple[str, ...], numeric: Collection[str] = frozenset(), missing: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
    """The model's columns of a table in any of the accepted forms, in batches. numeric: see `numeric_of`; missing:
    texts that mean a missing value, looked up in columns whose numbers become text.
    """
    table = table_of(data, columns, numeric, missing)
    if table.num_rows <= _BATCH_ROWS:
        table = table.combine_chunks()
    yield from table.to_batches(_BATCH_ROWS)


def table_of(
    data: Any, columns: tuple[str, ...], numeric: Collection[str] = frozenset(), missing: Collection[str] = ()
) -> pa.Table:
    """The same in one table. DataError where one of them is not there."""
    _refuse_lazy(data)
    check_once([str(name) for name in getattr(data, "column_names", getattr(data, "columns", ()))], columns)
    if isinstance(data, Mapping):
        table = table_of_columns({column: data[column] for column in _stored_names(columns, data)}, numeric, missing)
    elif isinstance(data, pa.RecordBatch):
        table = pa.Table.from_batches([data])
    elif isinstance(data, pa.Table):
        table = data
    elif hasattr(data, "iloc") and hasattr(data, "columns"):
        names = _stored_names(columns, list(data.columns))
        table = table_of_columns({column: data[column] for column in names}, numeric, missing)
    elif speaks_arrow(data):
        table = exported_table(data)
    else:
        raise DataError(
            f"cannot score a {type(data).__name__}: pass a pyarrow Table or RecordBatch, a pandas DataFrame, one of "
            "polars, a relation of DuckDB, a dict of column to list, a list of dicts, or one row as a dict of column "
            "to value"
        )
    if not set(columns) <= set(table.column_names):
        table = _with_missing_structs(flat(table), columns)
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"the rows lack column {missing[0]!r}, which the model needs; it needs {', '.join(columns)}")
    return without_views(table.select(list(columns)))


def _with_missing_structs(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The table with the fields of structs of which all are missing, so that Arrow does not know them for structs."""
    for column in columns:
        root = root_of(column, table.column_names)
        if root not in (None, column) and pa.types.is_null(table.schema.field(root).type):
            table = table.append_column(column, pa.nulls(table.num_rows))
    return table


def arrived(data: Any) -> Any:
    """The data, read once where another library of Arrow holds them: a stream is gone then, and a query would run anew
    (and may order its rows otherwise) whenever it is asked. DataError where they are no table, or still to be computed.
    """
    _refuse_to_be_collected(data)
    is_read = isinstance(data, pa.Table | pa.RecordBatch) or hasattr(data, "iloc")
    return data if is_read or not speaks_arrow(data) else exported_table(data)


def _refuse_lazy(data: Any) -> None:
    """DataError for frames whose rows are still to be computed: how many, and where, is their owner's to say."""
    kind = type(data).__name__
    if hasattr(data, "__dask_graph__"):
        raise DataError(
            f"a {kind} of Dask has no rows yet: pass data.compute(), or score its partitions where they are: "
            'data.map_partitions(model.predict, meta=(None, "f4")). Where columns hold lists, or true and false with '
            'gaps, make the frame under dask.config.set({"dataframe.convert-string": False}), or they are text in it'
        )
    _refuse_to_be_collected(data)


def _refuse_to_be_collected(data: Any) -> None:
    """DataError for a query of polars and its like."""
    if hasattr(data, "collect") and not speaks_arrow(data):
        raise DataError(f"a {type(data).__name__} has no rows yet: pass data.collect()")


def _stored_names(columns: tuple[str, ...], names: Collection[str]) -> list[str]:
    """The columns to read: the model's own, and structs whose fields it names."""
    return list(dict.fromkeys(root for column in columns if (root := root_of(column, names)) is not None))


def table_of_columns(columns: Mapping[str, Any], numeric: Collection[str], missing: Collection[str]) -> pa.Table:
    """Lists, arrays or pandas Series of one length as an Arrow table. DataError where they are of several lengths, or
    one of them makes no array. numeric, missing: as of `batches_of`.
    """
    arrays, looked_up = {}, set()
    for column, values in columns.items():
        try:
            arrays[column] = array = arrow_array(values, column in numeric)
            apart = texts_apart(values, array, missing, column in numeric)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"column {column!r} cannot be read ({error}); pass a list of values of one type, one value a row"
            ) from error
        if apart is not None:
            arrays[column] = apart
            looked_up.add(column)
    lengths = {column: len(array) for column, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
        raise DataError(
            f"column {longest!r} has {lengths[longest]} values, column {shortest!r} has {lengths[shortest]}; "
            "pass one value a row in every column"
        )
    table = pa.table(arrays)
    marked = [entry.with_metadata(LOOKED_UP) if entry.name in looked_up else entry for entry in table.schema]
    return table.cast(pa.schema(marked)) if looked_up else table
