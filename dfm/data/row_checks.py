"""Rows of a batch that are bad, each for the first reason that is found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.arrow_types import shown
from dfm.data.columns import LARGEST, Flags, Floats

NOT_FINITE = "not finite"
"""Reason that a row is bad: NaN or infinity stands for a feature."""
NOT_PREDICTED = "so far from what the model learnt from that its prediction is no finite number"
"""Reason that a row is bad for a finished model: nothing can be said of what it predicts."""
BOUNDED = ". Of a job, the transforms quantile and log2-bucket bound such numbers, and model.clip bounds predictions"
"""The way that a next model has a prediction for such a row."""
NO_MOMENT = "not a moment"
"""Reason that a row is bad: a column is made of text that is none."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Rows rejected for one reason: how many, and the first of them (row number within the batch, value as text)."""

    column: str
    reason: str
    count: int
    first_row: int
    value: str


def in_short(value: pa.Scalar) -> str:
    """A value as messages show it, which a whole document may be."""
    return shown(value)[:80]


@dataclass(slots=True)
class RowCheck:
    """Collects which rows are bad, each counted under the first problem found."""

    n_rows: int
    bad: Flags = field(init=False)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bad = np.zeros(self.n_rows, np.bool_)

    def reject(self, rows: Flags, column: str, reason: str, array: pa.Array) -> None:
        """Rows (bool[n_rows]) are bad for this reason; `array` holds the values, for the message."""
        if not rows.any():
            return
        fresh = rows & ~self.bad
        if not fresh.any():
            return
        first = int(np.flatnonzero(fresh)[0])
        self.problems.append(Problem(column, reason, int(fresh.sum()), first, in_short(array[first])))
        self.bad |= fresh

    def narrowed(self, values: Floats, column: str, reason: str, array: pa.Array) -> NDArray[np.float32]:
        """The values as float32; rows whose value does not fit are bad, and hold 0."""
        too_large = ~(np.abs(values) <= LARGEST)
        self.reject(too_large, column, f"{reason} for a 32-bit number", array)
        return np.where(too_large, 0.0, values).astype(np.float32)
