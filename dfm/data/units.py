"""The units in which rows are trained: labels of mean 0 and deviation 1, weights of mean 1, rows of weight 0 aside.

One step size then suits prices in cents and in millions, and weights that say how often a row counts as well as those
that say how much it is worth. What is published, and every metric, is in the units of the data.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dfm.data.accounting import RowAccount
from dfm.data.coded_rows import CodedRows
from dfm.data.hashed_rows import HashedRows

T = TypeVar("T", bound=HashedRows | CodedRows)


@dataclass(frozen=True)
class LabelUnit:
    """Labels are trained as (y − mean) / scale, so that one step size suits labels of any unit."""

    mean: float = 0.0
    scale: float = 1.0

    @property
    def inverse(self) -> LabelUnit:
        """The unit that brings labels, or scores, back: y = (z − inverse.mean) / inverse.scale."""
        return LabelUnit(-self.mean / self.scale, 1.0 / self.scale)

    def undone(self, numbers: NDArray[np.float32]) -> NDArray[np.floating]:
        """Trained labels or scores float32[n_rows] in the unit of the data, float64 where that is another one."""
        return numbers if self == LabelUnit() else numbers.astype(np.float64) * self.scale + self.mean

    def labels_undone(self, labels: NDArray[np.float32]) -> NDArray[np.floating]:
        """Trained labels in the unit of the data. What was 0 is 0 again, and not what rounding makes of it: errors are
        told in parts of labels, where these are not 0.
        """
        found = self.undone(labels)
        if self != LabelUnit():
            found[labels == np.float32((0.0 - self.mean) / self.scale)] = 0.0
        return found


@dataclass(frozen=True)
class RowUnits:
    """The label's unit, and the weight that counts as 1."""

    label: LabelUnit = LabelUnit()
    weight: float = 1.0

    def applied(self, rows: T) -> T:
        """The rows in these units; those of the data are the rows themselves."""
        if self.label != LabelUnit():
            labels = (rows.labels.astype(np.float64) - self.label.mean) / self.label.scale
            rows = dataclasses.replace(rows, labels=labels.astype(np.float32))
        if self.weight != 1.0 and rows.weights.size:
            weights = (rows.weights.astype(np.float64) / self.weight).astype(np.float32)
            rows = dataclasses.replace(rows, weights=weights)
        return rows


def units_of(account: RowAccount, standardizes: bool, has_weights: bool) -> RowUnits:
    """The units of the rows that an account tells of. standardizes: whether labels are numbers of any unit."""
    known, label = account.labels, LabelUnit()
    if standardizes:
        # Below this the deviation is the rounding error of labels that are all the same.
        label = LabelUnit(known.mean, known.deviation if known.deviation > 1e-7 * abs(known.mean) else 1.0)
    # Rows of weight 0 are no evidence: in the mean they would make every other row count for several.
    return RowUnits(label, known.weight / known.rows if has_weights and known.rows else 1.0)
