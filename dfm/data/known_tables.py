"""Tables of feature indices that a reading task keeps from batch to batch: of a column's latest dictionary, or of the
span of integers that it lies in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MOST_CODES = 3 << 14
"""Distinct values of a batch, a missing one among them, up to which its column is coded: where three quarters of the
rows have values of their own, codes save little. Codes have 16 bits.
"""
_MOST_CODES_OF_A_ROW = 8
"""Values of a dictionary, for each row that it comes with first, up to which its codes are taken."""
_LEAST_STEP = 64
"""Integers by which spans begin and end at least: what comes later then often lies within."""
_FARTHEST = 1 << 62
"""Beyond there no integers are counted on from."""
Indices = NDArray[np.uint32]


class KnownTables:
    """The table of each column's latest dictionary: batches of one row group bring the same one, again and again. And
    of columns of integers that lie close together, the table of all integers of a span.
    """

    def __init__(self) -> None:
        self._latest: dict[str, tuple[pa.Array, Indices]] = {}
        self._spans: dict[str, tuple[tuple[int, Indices], bool]] = {}
        self.apart: set[str] = set()
        """Columns of which some batch was not within a span: codes of the others would be of no use."""

    def table(self, column: str, array: pa.DictionaryArray, make: Callable[[], Indices]) -> Indices | None:
        """The table of an array's dictionary: the very array of last time where it has the same values. None of more
        values than there are codes, or of many for the few rows that are left of a batch.
        """
        dictionary = array.dictionary
        if len(dictionary) >= MOST_CODES:
            return None
        known = self._latest.get(column)
        if known is not None and _are_same(known[0], dictionary):
            return known[1]
        if len(dictionary) > _MOST_CODES_OF_A_ROW * len(array):
            return None
        self._latest[column] = dictionary, make()
        return self._latest[column][1]

    def of_span(
        self, column: str, bounds: tuple[int, int] | None, n_rows: int, make: Callable[[int, int], Indices]
    ) -> tuple[int, Indices] | None:
        """The first of a span that has a column's integers, and the span's table, at whose end a missing one is.

        bounds: the least and the greatest of `n_rows` rows, None where all are missing. make: the table of a span of a
        beginning and a length. It is the very table of last time where that one will do; else its span is widened, to
        round numbers, so that it seldom is. None of more integers than there are codes, or than rows at first.
        """
        known, has_values = self._spans.get(column, (None, False))
        if known is not None and (bounds is None or _is_within(bounds, known)):
            return known
        least, greatest = bounds or (0, 0)
        if known is not None and has_values:
            least, greatest = min(least, known[0]), max(greatest, known[0] + len(known[1]) - 2)
        elif greatest - least > n_rows:
            return None
        if greatest - least >= MOST_CODES - 1 or max(-least, greatest) > _FARTHEST:
            return None
        step = max(_LEAST_STEP, 1 << ((greatest - least) // 4).bit_length())
        first = least // step * step
        length = (greatest // step + 1) * step - first
        if length >= MOST_CODES:
            first, length = least, MOST_CODES - 1
        found = first, make(first, length)
        self._spans[column] = found, bounds is not None
        return found


def _is_within(bounds: tuple[int, int], span: tuple[int, Indices]) -> bool:
    first, table = span
    return first <= bounds[0] and bounds[1] < first + len(table) - 1


def _are_same(left: pa.Array, right: pa.Array) -> bool:
    """Whether two arrays are the same bytes; False of some that are equal. The values of a dictionary are in none of an
    array's buffers, so arrays that hold arrays are never the same.
    """
    if len(left) != len(right) or left.type != right.type or left.offset != right.offset:
        return False
    if pa.types.is_dictionary(left.type) or pa.types.is_nested(left.type):
        return False
    buffers = list(zip(left.buffers(), right.buffers(), strict=True))
    return all((a is None) == (b is None) and (a is None or a.equals(b)) for a, b in buffers)
