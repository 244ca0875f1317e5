"""Columns derived from moments: `[schema.derive] hour = "hour(ts)"`. The set is small, and the same in serving.

A moment is its time in UTC, as for categories: the hour of a moment with a zone is that of UTC, so that it does not
depend on the zone in which a service happens to send it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.data.arrow_types import is_text, plain
from dfm.errors import DataError, SettingsError

_CALL = re.compile(r"\s*(\w+)\s*\(\s*([^(),]+?)\s*(?:,\s*([^(),]+?)\s*)?\)\s*")
_MICROSECONDS = pa.timestamp("us")
_HOUR = 3.6e9
"""Microseconds of an hour."""


@dataclass(frozen=True, slots=True)
class Function:
    """One way to a derived column. compute: moments (timestamp[us], UTC) -> an array of as many numbers."""

    n_columns: int
    is_number: bool
    compute: Callable[..., pa.Array]
    of_times: bool = False


def _hours(start: pa.Array, end: pa.Array) -> pa.Array:
    elapsed = pc.subtract(end.cast(pa.int64()), start.cast(pa.int64()))
    return pc.divide(elapsed.cast(pa.float64(), safe=False), _HOUR)


FUNCTIONS = {
    "hour": Function(1, False, pc.hour, of_times=True),
    "weekday": Function(1, False, pc.day_of_week),
    "day": Function(1, False, pc.day),
    "month": Function(1, False, pc.month),
    "hours": Function(2, True, _hours),
}
"""Hour 0 to 23, weekday 0 (Monday) to 6, day of the month, month 1 to 12; hours from the first moment to the second."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A column made from others: its name, the function, and what the function is given."""

    name: str
    function: str
    columns: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The word for its values that `schema.infer` knows."""
        return "float" if FUNCTIONS[self.function].is_number else "int"


def parse(name: str, text: str) -> Derived:
    """The derived column of an expression like "hours(sent, clicked)". SettingsError where it is none."""
    call = _CALL.fullmatch(text)
    function = FUNCTIONS.get(call[1]) if call else None
    columns = tuple(part for part in call.groups()[1:] if part) if call else ()
    if call is None or function is None or len(columns) != function.n_columns:
        legal = [f"{word}({', '.join(['COLUMN'] * known.n_columns)})" for word, known in FUNCTIONS.items()]
        raise SettingsError(f'schema.derive.{name} = "{text}" is not legal: expected {" or ".join(legal)}.')
    return Derived(name, call[1], columns)


def derived_columns(expressions: Mapping[str, str]) -> tuple[Derived, ...]:
    """The columns of [schema.derive]."""
    return tuple(parse(name, text) for name, text in expressions.items())


def derive(derived: Derived, sources: Mapping[str, pa.Array]) -> tuple[pa.Array, NDArray[np.bool_]]:
    """The column, null where a source is, and which rows hold text that is no moment (null there, too)."""
    function, moments = FUNCTIONS[derived.function], []
    bad = np.zeros(len(sources[derived.columns[0]]), np.bool_)
    for column in derived.columns:
        array = plain(sources[column])
        if pa.types.is_time(array.type) and not function.of_times:
            raise DataError(
                f"column {column!r} holds {array.type}: a time of day has an hour, but no {derived.function}"
            )
        found, unread = _moments(array, column)
        moments.append(found)
        bad |= unread
    return function.compute(*moments), bad


def _moments(array: pa.Array, column: str) -> tuple[pa.Array, NDArray[np.bool_]]:
    array = plain(array)
    kind, types = array.type, pa.types
    fine = np.zeros(len(array), np.bool_)
    if types.is_dictionary(kind):
        distinct, unread = _moments(array.dictionary, column)
        flags = pa.array(unread).take(array.indices).fill_null(False)
        return distinct.take(array.indices), flags.to_numpy(zero_copy_only=False)
    if is_text(kind):
        return _parsed(array)
    if types.is_null(kind):
        return array.cast(_MICROSECONDS), fine
    if types.is_timestamp(kind):
        return array.cast(pa.timestamp(kind.unit)).cast(_MICROSECONDS, safe=False), fine
    if types.is_date(kind):
        return array.cast(pa.date32()).cast(_MICROSECONDS), fine
    if types.is_time(kind):
        return array.cast(pa.time64("us"), safe=False).cast(pa.int64()).cast(_MICROSECONDS), fine
    raise DataError(
        f"column {column!r} holds {kind}, of which schema.derive cannot tell the time; write it as a timestamp, a date "
        "or text like 2026-11-20 07:05:00 (an integer does not say whether it counts seconds or milliseconds)"
    )


def _parsed(array: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Moments of text in ISO 8601, by distinct value; empty text is missing."""
    encoded = array.dictionary_encode()
    read = [_read(text) for text in encoded.dictionary.cast(pa.large_binary()).to_pylist()]
    moments = pa.array([moment for moment, _ in read], _MICROSECONDS).take(encoded.indices)
    unread = pa.array([is_bad for _, is_bad in read], pa.bool_()).take(encoded.indices).fill_null(False)
    return moments, unread.to_numpy(zero_copy_only=False)


def _read(text: bytes) -> tuple[datetime.datetime | None, bool]:
    if not text.strip():
        return None, False
    try:
        moment = datetime.datetime.fromisoformat(text.decode().strip())
        return (moment.astimezone(datetime.UTC).replace(tzinfo=None) if moment.tzinfo else moment), False
    except (ValueError, OverflowError):
        return None, True


def without_missing(array: pa.Array, missing: tuple[str, ...]) -> pa.Array:
    """The array with null for text that schema.missing lists; others as they are."""
    array = plain(array)
    if not missing:
        return array
    if pa.types.is_dictionary(array.type):
        known = without_missing(array.dictionary, missing)
        return pa.DictionaryArray.from_arrays(array.indices, known)
    if not is_text(array.type):
        return array
    listed: Any = pa.array(missing, pa.string()).cast(array.type)
    return pc.if_else(pc.is_in(array, value_set=listed), pa.scalar(None, array.type), array)
