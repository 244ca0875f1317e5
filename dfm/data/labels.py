"""Labels of shards as numbers: 0, 1 or shares of 1, counts, or numbers; and what to say of labels that are none."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfm.data.arrow_types import is_text, plain
from dfm.data.canonical import value_text
from dfm.errors import DataError

LABEL_KINDS = ("classification", "shares", "counts", "regression")
"""Which labels are legal: 0 or 1; from 0 to 1; 0 or more; any finite number."""
NO_NUMBER, NOT_BINARY = "label is not a number", "label is neither 0 nor 1"
_COARSE = 0.01
"""Steps of 32-bit labels, in parts of their deviation, from which on a warning is due."""
_WORDS = {"-1": "1", "false": "true", "f": "t", "no": "yes", "n": "y", "neg": "pos", "negative": "positive"}
"""Labels that stand for 0 in logs of other habits, and the one that then stands for 1."""


def illegal(values: NDArray[np.float64], kind: str) -> tuple[NDArray[np.bool_], str]:
    """Which finite labels are not of their kind, bool[n_rows], and what to call that."""
    if kind == "counts":
        return values < 0, "label is negative"
    if kind == "shares":
        return (values < 0) | (values > 1), NOT_BINARY
    if kind == "classification":
        return (values != 0) & (values != 1), NOT_BINARY
    return np.zeros(len(values), np.bool_), ""


def told_of_rounding(mean: float, deviation: float) -> str:
    """The warning of numbers that are large for their deviation, as 32 bits round them; "" where they are not."""
    step = float(np.spacing(np.float32(abs(mean))))
    if step <= _COARSE * deviation:
        return ""
    return f"labels around {mean:g} are kept to {step:g}, and their deviation is {deviation:g}: subtract a constant"


def positive_rows(array: pa.Array, positive: Sequence[str], column: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows hold a positive label, and which none at all, bool[n_rows] each.

    Labels are compared by value, as categories are: 1, 1.0, a decimal 1.00 and the text 1 are one label.
    """
    try:
        array = plain(array)
        encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        distinct = plain(encoded.dictionary)
        distinct = distinct.cast(pa.large_string()) if is_text(distinct.type) else distinct
        texts = [value_text(value) for value in distinct.to_pylist()]
    except (TypeError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(
            f"column {column!r} holds {array.type}, which label_positive cannot be compared with ({error}); "
            "write the label as text"
        ) from error
    wanted = {form for text in positive for form in _forms(text, encoded.dictionary.type)}
    hits = pa.array([text in wanted for text in texts], pa.bool_())
    known = pa.array([text not in (None, "") for text in texts], pa.bool_())
    rows = (pc.fill_null(pc.take(flags, encoded.indices), False).to_numpy(False) for flags in (hits, known))
    found, there = rows
    return found, ~there


def _forms(text: str, kind: pa.DataType) -> set[str | None]:
    """A label as the job names it, in all forms in which a column of the type may hold it."""
    forms: set[str | None] = {text}
    if pa.types.is_boolean(kind):
        return forms | {{"1": "true", "0": "false"}.get(text, text.lower())}
    try:
        return forms | {value_text(float(text))}
    except ValueError:
        return forms


def positive_of(texts: Sequence[str]) -> str:
    """The one of two labels that means 1, where they are opposites of a known habit ("no", "yes"); else empty."""
    return next((text for text in texts for other in texts if _WORDS.get(other.lower()) == text.lower()), "")


def advice(reason: str, value: str) -> str:
    """The remedy for a label, by the value that a message shows; empty where the row itself is at fault."""
    if reason not in (NO_NUMBER, NOT_BINARY):
        return ""
    text = _plain(value)
    negative, positive = next(((no, yes) for no, yes in _WORDS.items() if text.lower() in (no, yes)), ("", ""))
    if not negative:
        return ""
    meant = _as_written(positive, text)
    return f'Name what means 1: schema.label_positive = ["{meant}"]'


def _as_written(word: str, like: str) -> str:
    """A word in the case of another one."""
    return word.upper() if like.isupper() else word.capitalize() if like[:1].isupper() else word


def _plain(value: str) -> str:
    """The text of a value that a message shows as Python would; of a whole number without a fraction."""
    try:
        found: Any = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return value_text(found) or "" if isinstance(found, str | int | float) else value
