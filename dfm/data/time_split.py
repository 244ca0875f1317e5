"""The split in time: `data.validation_from` against folders and columns, whatever type a system wrote the time in.

The bound decides how text is compared: a whole number with whole numbers, an ISO date or time with moments, anything
else as text. So each row lands on one side, however the rows are cut into batches.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dfm.data.arrow_types import decoded, plain, shown
from dfm.errors import DataError

_WHOLE_NUMBER = r"^-?\d+$"
_MOMENT = (
    r"^(?P<wall>\d{4}-\d{2}-\d{2}(?:[ T]\d{2}(?::\d{2}(?::\d{2}(?:\.\d{1,6})?)?)?)?)"
    r"(?P<zone>Z|[+-]\d{2}(?::?\d{2})?)?$"
)
"""An ISO 8601 date, alone or with a time after a blank or T, with or without a zone."""
_OTHER_ORDER = (
    r"(?i)^\s*(?:\d{1,2}[./ -]\s?\d{1,2}[./ -]\s?(?:\d{4}|\d{2})\b|\d{4}[./-](?:\d[./-]\d{1,2}|\d{2}[./-]\d)(?:\D|$)"
    r"|(?:[a-z]{3,9}\.?,? )?\d{1,2}\.?[ -][a-z]{3,9}\.?[ -]\d{2,4}\b|[a-z]{3,9}\.? \d{1,2},? \d{4}\b)"
)
"""Dates as people write them: 26.11.2026, 11/26/26, 2026-9-1, 26 Nov 2026, Nov 26, 2026."""
_BEYOND_MICROSECONDS = r"(\.\d{6})\d+"
_NAIVE, _UTC = pa.timestamp("us"), pa.timestamp("us", "UTC")


def at_or_after(values: pa.Array, bound: str, column: str) -> pa.Array:
    """Whether each value is `bound` or later (bool, without nulls); a missing value counts as the earliest.

    A bound without a zone is in the zone of the values; values without a zone are in UTC where the bound has one.
    DataError where the two cannot be compared.
    """
    if pa.types.is_dictionary(values.type):
        return pc.fill_null(at_or_after(values.dictionary, bound, column).take(values.indices), False)
    if pa.types.is_null(values.type):
        return pa.array([False] * len(values))
    try:
        return pc.fill_null(pc.greater_equal(*_comparable(values, bound, column)), False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"data.validation_from = {bound!r} cannot be compared with column {column!r}, which holds {values.type} "
            f"({error}); write a value like those of {column}, or name another column as schema.time"
        ) from error


def first_and_last(texts: pa.Array, bound: str, column: str) -> tuple[str, str]:
    """The earliest and the latest of some texts, in the order in which they are compared with the bound."""
    known = _as_text(texts.drop_null())
    if not len(known):
        return "a missing value", "a missing value"
    order = pc.sort_indices(_comparable(known, bound, column)[0])
    return known[order[0].as_py()].as_py(), known[order[-1].as_py()].as_py()


def sort_keys(moments: pa.Array, column: str) -> pa.Array:
    """Keys by which moments, of any type and without nulls, are ordered. DataError where texts have no common order."""
    if not _is_text(moments.type) or not len(moments):
        return moments
    texts = _as_text(moments)
    return _comparable(texts, texts[0].as_py(), column)[0]


def _comparable(values: pa.Array, bound: str, column: str) -> tuple[pa.Array, pa.Scalar]:
    """The values and the bound as one type whose order is that of time."""
    if _is_text(values.type):
        texts = _as_text(values)
        return _comparable_texts(pc.if_else(pc.equal(texts, ""), None, texts), bound, column)
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("ms"))
    if not pa.types.is_timestamp(values.type):
        values = _as_fine_as(bound, values)
        return values, pa.scalar(bound).cast(values.type)
    unit, has_zone = values.type.unit, values.type.tz is not None
    limit, bound_has_zone = _moment(bound)
    if bound_has_zone:
        # Arrow compares moments of one zone only; without their zone, moments are in UTC.
        return values.cast(pa.timestamp(unit)), limit.cast(_NAIVE)
    return pc.local_timestamp(values) if has_zone else values, limit


def _as_fine_as(bound: str, values: pa.Array) -> pa.Array:
    """The numbers in a type that holds the bound too, with its fraction if it has one."""
    is_whole, kind = re.match(_WHOLE_NUMBER, bound) is not None, values.type
    if pa.types.is_integer(kind) and not is_whole:
        return values.cast(pa.float64(), safe=False)
    if pa.types.is_decimal(kind):
        return values.cast(pa.decimal256(76, kind.scale if is_whole else 38))
    if kind == pa.uint64() and bound.startswith("-"):
        return values.cast(pa.float64(), safe=False)
    return values.cast(pa.int64()) if pa.types.is_integer(kind) and kind.bit_width < 64 else values


def _comparable_texts(texts: pa.Array, bound: str, column: str) -> tuple[pa.Array, pa.Scalar]:
    if re.match(_WHOLE_NUMBER, bound):
        _check_all(pc.match_substring_regex(texts, _WHOLE_NUMBER), texts, bound, column, "a whole number")
        return texts.cast(pa.int64()), pa.scalar(bound).cast(pa.int64())
    if not re.match(_MOMENT, bound):
        _check_order(texts, bound, column)
        return texts, pa.scalar(bound)
    wall, zone = _moment_parts(texts)
    _check_all(pc.is_valid(wall), texts, bound, column, "a date or time (YYYY-MM-DD, YYYY-MM-DDThh:mm:ss)")
    limit, bound_has_zone = _moment(bound)
    return _instants(wall, zone) if bound_has_zone else wall.cast(_NAIVE), limit


def _check_order(texts: pa.Array, bound: str, column: str) -> None:
    """DataError where bound or values are dates whose order as text is not that of time: day or month comes first."""
    odd = texts.filter(pc.fill_null(pc.match_substring_regex(texts, _OTHER_ORDER), False))
    if re.match(_OTHER_ORDER, bound) or len(odd):
        seen = repr(bound) if re.match(_OTHER_ORDER, bound) else shown(odd[0])
        raise DataError(
            f"data.validation_from = {bound!r} and column {column!r} are compared as text, by which dates like "
            f"{seen} do not sort by time (day or month comes first, or lacks a zero); write dates as YYYY-MM-DD"
        )


def _check_all(fits: pa.Array, texts: pa.Array, bound: str, column: str, kind: str) -> None:
    odd = texts.filter(pc.and_(pc.is_valid(texts), pc.invert(fits)))
    if len(odd):
        raise DataError(
            f"data.validation_from = {bound!r} is {kind}, but column {column!r} holds {shown(odd[0])}; "
            "write both the same way"
        )


def _moment(bound: str) -> tuple[pa.Scalar, bool]:
    """The bound as a timestamp, and whether it has a zone. ArrowInvalid where it is no moment."""
    wall, zone = _moment_parts(pa.array([bound]))
    if not wall.is_valid()[0].as_py():
        raise pa.ArrowInvalid("expected YYYY-MM-DD or YYYY-MM-DDThh:mm:ss")
    has_zone = zone[0].as_py() != ""
    return (_instants(wall, zone) if has_zone else wall.cast(_NAIVE))[0], has_zone


def _moment_parts(texts: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Time on the wall (null where the text is no moment) and zone ("" where it has none)."""
    parts: Any = pc.extract_regex(pc.replace_substring_regex(texts, _BEYOND_MICROSECONDS, r"\1"), _MOMENT)
    wall, zone = parts.flatten()
    return wall, pc.fill_null(zone, "")


def _instants(wall: pa.Array, zone: pa.Array) -> pa.Array:
    """Moments in UTC; a time on the wall without a zone is in UTC."""
    zone = pc.if_else(pc.equal(zone, ""), "Z", zone)
    return pc.binary_join_element_wise(wall.cast(_NAIVE).cast(pa.string()), zone, "").cast(_UTC)


def _as_text(values: pa.Array) -> pa.Array:
    return decoded(plain(values)).cast(pa.string())


def _is_text(kind: pa.DataType) -> bool:
    tests = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    )
    return any(test(kind) for test in tests)
