"""One value, one feature: the form in which a value is compared and hashed, whatever type it arrives in.

A price of 0.1 is a float32 in a shard, a float64 in a frame, a decimal in a database and the text 0.1 in a request. All
of them are the number of their shortest decimal text that reads back as the same number: a float32 holds
0.100000001490116…, and means 0.1. So does the float64 0.10000000149011612, which is that float32 widened by `tolist`
or a join. Categories are hashed by text: of a whole number its digits, of another number the shortest text.

A model records its form of numbers: those of before this rule compare what they are given, widened to float64.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import math
import re
from collections.abc import Callable, Collection
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.arrow_types import is_text, plain
from dfm.data.interchange import exported_column
from dfm.data.schema import SHORTEST, WIDENED
from dfm.storage.arrays import read_only

_EXACT_WHOLE = float(1 << 24)
"""Up to here a float32 holds every whole number, which then is its own shortest text."""
_LEAST, _MOST = 1e-12, 1e22
"""Between these, a decimal of nine digits is made of an integer and a power of ten that float64 holds exactly."""
_TRUTHS = (bool, np.bool_)
_DURATIONS = (datetime.timedelta, np.timedelta64)
_MOMENTS = (datetime.datetime, datetime.date, datetime.time, np.datetime64, *_DURATIONS)
"""Types for which Arrow takes numbers beside them, too; a moment of Python is also a date, and comes first."""
_GAPS = ("NAType", "NaTType")
"""The types of pandas' missing values."""
_POWERS = np.array([float(f"1e{exponent}") for exponent in range(23)])


@numba.njit(nogil=True, inline="always")
def _shortest_decimal(x, exponent, powers):  # type: ignore[no-untyped-def]
    """The decimal of fewest digits that rounds to the float32 `x`, as float64; 10**exponent is at most |x| or near."""
    narrow = np.float32(x)
    for places in range(4 - exponent, 10 - exponent):
        if places >= 0:
            candidate = np.rint(x * powers[places]) / powers[places]
        else:
            candidate = np.rint(x / powers[-places]) * powers[-places]
        if np.float32(candidate) == narrow:
            return candidate
    return np.nan


@compiled
def _snap(values, powers, whole_too, out):  # type: ignore[no-untyped-def]
    """out[i] = the decimal meant by values[i] where a float32 holds it, NaN where text must tell; writes `out`.

    Returns how many are so extreme that text must tell.
    """
    extreme = 0
    for i in range(out.size):
        x = values[i]
        size = abs(x)
        out[i] = x
        if not (size < np.inf) or np.float64(np.float32(x)) != x:
            continue
        if np.rint(x) == x and (size <= _EXACT_WHOLE or not whole_too):
            continue
        out[i] = np.nan
        if _LEAST <= size < _MOST:
            out[i] = _shortest_decimal(x, int(np.floor(np.log10(size))), powers)
        extreme += np.isnan(out[i])
    return extreme


def shortest(values: NDArray[np.float64], whole_too: bool = True) -> NDArray[np.float64]:
    """The numbers float64[n], those that a float32 holds exactly as its shortest decimal text.

    whole_too: large whole numbers as well, as comparing wants them (1e11 is no float32); hashing takes their digits.
    """
    out = np.empty(len(values))
    if _snap(read_only(values), _POWERS, whole_too, out):
        extreme = np.isnan(out) & ~np.isnan(values)
        texts = pa.array(values[extreme].astype(np.float32)).cast(pa.string())
        out[extreme] = texts.cast(pa.float64()).to_numpy()
    return out


def widened(array: pa.Array, form: str) -> NDArray[np.float64]:
    """A floating array as float64[n], 0 where null; in the shortest form a fraction of float16 is its own text."""
    is_half = pa.types.is_float16(array.type)
    numbers = array.cast(pa.float32()) if is_half else array
    numbers = numbers.cast(pa.float64())
    values = (numbers.fill_null(0.0) if numbers.null_count else numbers).to_numpy(zero_copy_only=False)
    if not is_half or form == WIDENED:
        return np.asarray(values)
    distinct, places = np.unique(values, return_inverse=True)
    return np.array([x if not x % 1 else float(str(np.float16(x))) for x in distinct.tolist()] or [0.0])[places]


def category_numbers(array: pa.Array, form: str) -> pa.Array:
    """A floating array as the numbers whose text is hashed, null where null or NaN."""
    if form == WIDENED:
        numbers = array if pa.types.is_float32(array.type) else array.cast(pa.float64())
    else:
        numbers = pa.array(shortest(widened(array, form), whole_too=False))
        numbers = pc.if_else(array.is_valid(), numbers, None) if array.null_count else numbers
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, numbers.type), numbers)


def number_texts(numbers: pa.Array, form: str) -> pa.Array:
    """Text of `category_numbers`: the shortest that reads back, without an exponent; of whole numbers all digits."""
    texts = numbers.cast(pa.string())
    scientific = pc.match_substring(texts, "e")
    if form == WIDENED or not pc.any(scientific).as_py():
        return texts
    written = [_without_exponent(text) for text in texts.filter(scientific).to_pylist()]
    return pc.replace_with_mask(texts, pc.fill_null(scientific, False), pa.array(written, pa.string()))


def _without_exponent(text: str) -> str:
    number = float(text)
    # From 2**53 on every float is whole, and has more digits than its shortest text.
    return f"{int(number)}" if abs(number) >= 2.0**53 else f"{decimal.Decimal(text):f}"


def decimal_texts(array: pa.Array, form: str) -> pa.DictionaryArray:
    """Decimals as the text that is hashed, by distinct value: without an exponent and without zeros at the end.

    In the shortest form, a decimal that is a float32 widened means what that float32 means.
    """
    encoded = array.dictionary_encode()
    texts = [decimal_text(number, form) for number in encoded.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(encoded.indices, pa.array(texts, pa.string()))


def decimal_text(number: decimal.Decimal, form: str) -> str:
    """One decimal as text."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    if form == WIDENED:
        return text
    if "." not in text:
        return "0" if text == "-0" else text  # all its digits, as an integer's
    same = float(number)
    return float_text(same) if decimal.Decimal(repr(same)) == number else text


def float_text(number: float) -> str:
    """One number as the text that is hashed."""
    numbers = category_numbers(pa.array([number], pa.float64()), SHORTEST)
    if numbers[0].is_valid and math.isfinite(number) and number == math.trunc(number):
        return f"{int(number)}"
    return str(number_texts(numbers, SHORTEST)[0].as_py())


def decimal_numbers(array: pa.Array, form: str) -> pa.Array:
    """Decimals as the nearest float64 (Arrow's own cast may miss it by one step: 0.3 becomes 0.30000000000000004)."""
    return array.cast(pa.float64(), safe=False) if form == WIDENED else array.cast(pa.string()).cast(pa.float64())


def time_texts(array: pa.Array, form: str) -> pa.Array:
    """Dates, moments and times of day as text, without zeros at the end of a fraction; moments with a zone in UTC.

    In the shortest form a moment at midnight is its day, for pandas keeps days as such moments.
    """
    if pa.types.is_date(array.type):
        return array.cast(pa.string())
    unit = array.type.unit
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp(unit))
    texts = array.cast(pa.string())
    texts = texts if unit == "s" else pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), ".")
    return texts if form == WIDENED else pc.replace_substring_regex(texts, " 00:00:00$", "")


def is_plain(kind: pa.DataType) -> bool:
    """Whether Python has the same scalars: text, numbers and flags, also as dictionaries."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
    )
    return any(test(kind) for test in (*tests, pa.types.is_boolean)) and not pa.types.is_float16(kind)


def texts_of_numbers(column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A column of plain numbers as their text; any other as it is."""
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return column
    return pa.array([value_text(value) for value in column.to_pylist()], pa.string())


_INTEGER = re.compile(rb"(-?)0*([0-9]+)")


def is_integer(text: bytes) -> bool:
    """Whether text is an integer in decimal digits, with or without zeros in front."""
    return _INTEGER.fullmatch(text) is not None


def integer_text(text: bytes) -> bytes:
    """The text of an integer without zeros in front (06 is 6, -0 is 0); any other text as it is."""
    found = _INTEGER.fullmatch(text)
    if found is None:
        return text
    return found[2] if found[2] == b"0" else found[1] + found[2]


def integer_texts(array: pa.Array) -> pa.Array:
    """Text, or a dictionary of it, with each value as `integer_text`; an array of any other type as it is."""
    is_encoded = pa.types.is_dictionary(array.type)
    if not is_text(array.type.value_type if is_encoded else array.type):
        return array
    encoded = array if is_encoded else array.dictionary_encode()
    values = encoded.dictionary.cast(pa.large_binary()).to_pylist()
    texts = [None if text is None else integer_text(text) for text in values]
    return pa.DictionaryArray.from_arrays(encoded.indices, pa.array(texts, pa.large_binary()))


# ------------------------------------------------------------------------------------- Python values ----


def arrow_array(values: Any, are_numbers: bool = False) -> pa.Array | pa.ChunkedArray:
    """A column of Python or NumPy values as an Arrow array.

    Values that Arrow puts into no one type (a decimal beside a float, integers beyond 64 bits, numbers beside text) are
    put together as their text, which numeric columns read as numbers again. are_numbers: that is all they are wanted
    for, and true is 1. The errors are those of `pyarrow.array`.
    """
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if hasattr(values, "__arrow_c_stream__") and not hasattr(values, "iloc"):
        return exported_column(values)
    if isinstance(values, str | bytes):
        raise TypeError(f"{values!r} is one value")
    if hasattr(getattr(values, "dtype", None), "fill_value"):  # a sparse column of pandas, which Arrow does not know
        return pa.array(np.asarray(values), from_pandas=True)
    if _is_objects(values):
        values = _beside_moments(values)
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        if _is_objects(values) and any(map(_is_gap, values)):
            return arrow_array([None if _is_gap(value) else value for value in values], are_numbers)
        if are_numbers and _is_objects(values) and any(isinstance(value, _TRUTHS) for value in values):
            return arrow_array([int(value) if isinstance(value, _TRUTHS) else value for value in values], are_numbers)
        together = _weighted(values) or _texts(values)
        if together is None:
            raise
        return together if isinstance(together, pa.Array) else pa.array(together)
    return _unmixed(array, values, are_numbers) if isinstance(array, pa.Array) and _is_objects(values) else array


def _is_gap(value: Any) -> bool:
    """Whether a value is what pandas has for a missing one, which Arrow does not know beside moments."""
    return type(value).__name__ in _GAPS


def _unmixed(array: pa.Array, values: Any, are_numbers: bool) -> pa.Array:
    """The array, made again where Arrow put values of two types into one that says less. Truths among numbers are text,
    as they are where the first of them comes before the first number, unless numbers are wanted.
    """
    if not are_numbers and (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        together = _texts(values) if any(isinstance(value, _TRUTHS) for value in values) else None
        if together is not None:
            return pa.array(together)
    if pa.types.is_float64(array.type) and any(type(value) is np.float16 for value in values):
        return pa.array([float(str(value)) if type(value) is np.float16 else value for value in values])
    if pa.types.is_list(array.type) and pa.types.is_list(array.type.value_type):
        return _weighted(values) or array
    return array


def _beside_moments(values: Any) -> Any:
    """The values, days beside moments as their midnights, and moments beside anything else as text: Arrow would take a
    number for a moment, or cut the time of day off.
    """
    kinds = set(map(type, values))
    is_flat = kinds.isdisjoint((list, tuple))
    elements = (
        values if is_flat else [each for row in values for each in (row if isinstance(row, list | tuple) else [row])]
    )
    kinds = kinds if is_flat else set(map(type, elements))
    if len(kinds) < 2 or not any(issubclass(kind, _MOMENTS) for kind in kinds):
        return values
    present = {type(each) for each in elements if not _is_missing(each)}
    families = {next((known for known in _MOMENTS if issubclass(kind, known)), kind) for kind in present}
    if is_flat and len(families) < 2:
        return [None if _is_missing(value) else value for value in values]
    if len(families) < 2:
        return values
    if is_flat and families == {datetime.datetime, datetime.date}:
        known = [None if _is_missing(value) else value for value in values]
        return [_midnight(value) if type(value) is datetime.date else value for value in known]
    return _texts(values) or values


def _is_missing(value: Any) -> bool:
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return value is None or _is_gap(value) or (isinstance(value, float | np.floating) and math.isnan(value))


def _midnight(day: datetime.date) -> datetime.datetime:
    return datetime.datetime.combine(day, datetime.time())


def _is_objects(values: Any) -> bool:
    return isinstance(values, list | tuple) or str(getattr(values, "dtype", "")) == "object"


def _weighted(values: Any) -> pa.Array | None:
    """Lists of pairs (category, weight), as which Arrow hands out maps, and of what JSON makes of them, as a map; None
    where they are others.
    """
    rows = [list(value.items()) if isinstance(value, dict) else value for value in values]
    pairs = [pair for row in rows if isinstance(row, list | tuple) for pair in row]
    if not pairs or not all(map(is_weighted, pairs)):
        return None
    keys = pa.map_(pa.string(), pa.float64())
    try:
        return pa.array([row if row is None else [(value_text(k), w) for k, w in row] for row in rows], keys)
    except (pa.ArrowException, TypeError, ValueError):
        return None


def is_weighted(pair: Any) -> bool:
    """Whether it is a pair of a category and its weight: as a list only where nobody could take it for two values."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    told = isinstance(pair[0], str) and isinstance(pair[1], int | float | type(None)) and type(pair[1]) is not bool
    return told or (isinstance(pair, tuple) and not isinstance(pair[1], str))


def texts_apart(values: Any, array: pa.Array, missing: Collection[str], are_numbers: bool) -> pa.Array | None:
    """The array of a column of several types, null where text means a missing value, where numbers became such text: a
    number is never missing, whatever stands beside it. None of every other column.

    values, array: those of `arrow_array` and the array that it made of them.
    """
    are_mixed = _is_objects(values) or str(getattr(values, "dtype", "")) == "category"
    if not missing or not are_mixed or array.type not in (pa.string(), pa.list_(pa.string())):
        return None
    if _is_objects(values) and set(map(type, values)) <= {str, type(None)}:
        return None
    text_of = functools.partial(_text_apart, missing=missing, are_numbers=are_numbers)
    became_text = _texts(_other_than_texts(values, array.type), text_of)
    if became_text is None or set(missing).isdisjoint(became_text):
        return None
    texts = _texts(values, text_of)
    return None if texts is None else pa.array(texts, array.type)


def _other_than_texts(values: Any, kind: pa.DataType) -> list[Any]:
    """The distinct values, or elements of lists, that are there and are no text; 0 and False are two."""
    are_lists = pa.types.is_list(kind)
    elements = (each for row in values if isinstance(row, list | tuple) for each in row) if are_lists else values
    others = {(type(each), each) for each in elements if not isinstance(each, str) and not _is_missing(each)}
    return [each for _, each in others]


def _text_apart(value: Any, missing: Collection[str], are_numbers: bool) -> str | None:
    if isinstance(value, str):
        return None if value in missing else value
    return value_text(int(value) if are_numbers and isinstance(value, _TRUTHS) else value)


def _texts(values: Any, text_of: Callable[[Any], str | None] | None = None) -> list[Any] | None:
    """Text of every value or, in lists, of every element; None where one is no scalar that has a text."""
    text_of = text_of or value_text
    try:
        return [
            [text_of(element) for element in value] if isinstance(value, list | tuple) else text_of(value)
            for value in values
        ]
    except TypeError:
        return None


def value_text(value: Any) -> str | None:
    """A Python or NumPy scalar as the text that is hashed, None where it is missing. TypeError of other things."""
    if value is None or _is_gap(value):
        return None
    for kinds, text_of in _TEXTS:
        if isinstance(value, kinds):
            return text_of(value)
    raise TypeError(f"{type(value).__name__} is no scalar")


def _float_value_text(value: Any) -> str | None:
    number = float(str(value)) if isinstance(value, np.float16) else float(value)
    if math.isnan(number):
        return None
    return float_text(number) if math.isfinite(number) else str(number)


def _moment_text(moment: np.datetime64) -> str | None:
    """Date and time of day; of a day and of its midnight the date."""
    if np.isnat(moment):
        return None
    unit = np.datetime_data(moment.dtype)[0]
    whole = {"Y": "D", "M": "D", "W": "D", "h": "s", "m": "s"}.get(unit, unit)
    text = str(moment.astype(f"datetime64[{whole}]")).replace("T", " ")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.removesuffix(" 00:00:00")


def _decimal_value_text(value: decimal.Decimal) -> str | None:
    return decimal_text(value, SHORTEST) if value.is_finite() else _float_value_text(float(value))


_TEXTS: tuple[tuple[Any, Callable[[Any], str | None]], ...] = (
    (_TRUTHS, lambda value: "true" if value else "false"),
    (str, str),
    (_DURATIONS, lambda value: _float_value_text(plain(pa.array([value]))[0].as_py())),
    ((int, np.integer), lambda value: f"{int(value)}"),
    (decimal.Decimal, _decimal_value_text),
    ((float, np.floating), _float_value_text),
    (np.datetime64, _moment_text),
    (_MOMENTS, lambda value: str(time_texts(pa.array([value]), SHORTEST)[0])),
)
"""The writers of scalars, by type."""
