"""The account of every row: rows read = rows accepted + rows rejected, each rejection with its place and reason."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.data.hashed_rows import EntrySums
from dfm.data.labels import advice
from dfm.data.parquet import Batch
from dfm.data.row_checks import BOUNDED, NOT_FINITE, NOT_PREDICTED, Problem
from dfm.errors import DataError

_LEAVE_OUT = (
    'Repair the row, or set data.on_bad_rows = "skip" (evaluate, importance, predict, publish: --on-bad-rows skip) '
    "to leave such rows out"
)
_LEAVE_UNPREDICTED = (
    'Repair the row, or leave such rows out (evaluate, importance, publish: --on-bad-rows skip; on_bad_rows = "skip")'
)
_NAN_IS_MISSING = '. Of a job, schema.nan = "missing" takes NaN for a value that is missing'
NO_ROW_GROUP = -1
"""The row group of rows that lie in no file."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Rows of one row group rejected for one reason; `first_row` is counted within the row group, from 0."""

    shard: str
    row_group: int
    column: str
    reason: str
    count: int
    first_row: int
    value: str

    def __str__(self) -> str:
        group = "" if self.row_group == NO_ROW_GROUP else f", row group {self.row_group}"
        more = f" and {self.count - 1} more row{'s' * (self.count > 2)} like it" if self.count > 1 else ""
        return f"{self.shard}{group}, row {self.first_row}{more}: column {self.column!r}: {self.reason} ({self.value})"


@dataclass(frozen=True, slots=True)
class LabelMoments:
    """Labels by the weights of their rows: sum of weights, mean, sum of squared distances from it; of the rows that
    weigh anything the least and the greatest label, None where there are none, and their number.
    """

    weight: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    least: float | None = None
    greatest: float | None = None
    rows: int = 0

    @classmethod
    def of(cls, labels: NDArray[np.float32], weights: NDArray[np.float32]) -> LabelMoments:
        """labels, weights: float32[n_rows]; empty weights are all 1."""
        numbers = labels.astype(np.float64)
        masses = weights.astype(np.float64) if weights.size else np.ones(len(numbers))
        weight = float(masses.sum())
        if not weight:
            return cls()
        mean = float((masses * numbers).sum() / weight)
        counted = numbers[masses > 0]
        squares = float((masses * (numbers - mean) ** 2).sum())
        return cls(weight, mean, squares, float(counted.min()), float(counted.max()), len(counted))

    def __add__(self, other: LabelMoments) -> LabelMoments:
        """Both together (Chan, Golub and LeVeque 1979)."""
        if self.least is None or self.greatest is None:
            return other
        if other.least is None or other.greatest is None:
            return self
        weight, delta = self.weight + other.weight, other.mean - self.mean
        share = other.weight / weight
        return LabelMoments(
            weight,
            self.mean + delta * share,
            self.squares + other.squares + delta**2 * self.weight * share,
            min(self.least, other.least),
            max(self.greatest, other.greatest),
            self.rows + other.rows,
        )

    @property
    def deviation(self) -> float:
        """The standard deviation; 0 of labels that are all the same, where rounding leaves another number."""
        return 0.0 if self.is_constant else (self.squares / self.weight) ** 0.5

    @property
    def range(self) -> tuple[float, float] | None:
        """The least label and the greatest."""
        return None if self.least is None or self.greatest is None else (self.least, self.greatest)

    @property
    def is_constant(self) -> bool:
        """Whether all rows that weigh anything have one label."""
        return self.least == self.greatest


@dataclass(frozen=True, slots=True)
class RowAccount:
    """Rows read and what became of them."""

    read: int = 0
    accepted: int = 0
    rejections: tuple[Rejection, ...] = ()
    label_sum: float = 0.0
    """Sum of the accepted rows' labels, weights aside: in classification, how many are positive."""
    labels: LabelMoments = LabelMoments()
    entries: EntrySums = field(default_factory=EntrySums)
    """Sums over the entries of the accepted rows that weigh anything."""
    sampled_out: int = 0
    """Negative rows that were left out by lot."""

    @property
    def rejected(self) -> int:
        """Rows left out, whatever the reason."""
        return sum(rejection.count for rejection in self.rejections)

    def __add__(self, other: RowAccount) -> RowAccount:
        return RowAccount(
            self.read + other.read,
            self.accepted + other.accepted,
            self.rejections + other.rejections,
            self.label_sum + other.label_sum,
            self.labels + other.labels,
            self.entries + other.entries,
            self.sampled_out + other.sampled_out,
        )

    def check(self, on_bad_rows: str, max_bad_fraction: float) -> None:
        """DataError where the account does not add up, or more rows are bad than the job allows."""
        if self.read != self.accepted + self.rejected + self.sampled_out:
            raise DataError(
                f"{self.read} rows were read, but {self.accepted} accepted, {self.rejected} rejected and "
                f"{self.sampled_out} left out by lot: rows were lost; please report this with the job file"
            )
        if not self.rejections:
            return
        if on_bad_rows == "error":
            raise DataError(bad_row_message(self.rejections[0]))
        if self.rejected > max_bad_fraction * self.read:
            first = self.rejections[0]
            remedy = _remedy(first, "Repair the data or raise data.max_bad_fraction")
            raise DataError(
                f"{self.rejected} of {self.read} rows are bad, more than data.max_bad_fraction = {max_bad_fraction} "
                f"allows; the first: {first}. {remedy}"
            )

    def check_any(self, purpose: str, weight: str) -> None:
        """DataError where no row is left to `purpose` ("train on"), or none weighs anything: all that followed would be
        NaN. weight: the column of weights, "" for none.
        """
        if not self.accepted:
            first = f"; the first: {self.rejections[0]}" if self.rejections else ""
            raise DataError(
                f"there is no row to {purpose}: of {self.read} rows read, {self.rejected} are bad{first}. Repair the "
                "data, or name data that has rows"
            )
        if weight and not self.labels.weight:
            raise DataError(
                f"all {self.accepted} rows to {purpose} have the weight 0 (column {weight!r}), so they count for "
                "nothing; name another column as schema.weight, or none, or use rows that weigh something"
            )

    def by_reason(self) -> dict[str, int]:
        """Rejected rows by "column: reason"."""
        tally: Counter[str] = Counter()
        for rejection in self.rejections:
            tally[f"{rejection.column}: {rejection.reason}"] += rejection.count
        return dict(tally)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values that `from_dict` takes back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RowAccount:
        """The account that `to_dict` wrote."""
        rejections = tuple(Rejection(**item) for item in values["rejections"])
        labels, entries = LabelMoments(**values["labels"]), EntrySums(**values["entries"])
        known = values["read"], values["accepted"], rejections, values["label_sum"], labels, entries
        return cls(*known, values.get("sampled_out", 0))


def bad_row_message(rejection: Rejection) -> str:
    """The message for a user whose job stops at bad rows."""
    return f"{rejection}. {_remedy(rejection, _LEAVE_OUT)}"


def _remedy(rejection: Rejection, usual: str) -> str:
    """The way out: of labels, and of rows without a prediction, their own; of others the usual, and for NaN another."""
    if rejection.reason == NOT_PREDICTED:
        return _LEAVE_UNPREDICTED + BOUNDED
    is_nan = rejection.reason == NOT_FINITE and rejection.value == "nan"
    return advice(rejection.reason, rejection.value) or usual + _NAN_IS_MISSING * is_nan


def rejections_of(batch: Batch, problems: Iterable[Problem]) -> tuple[Rejection, ...]:
    """The problems of a batch, placed in its shard."""
    return tuple(
        Rejection(
            batch.shard.url,
            batch.row_group,
            problem.column,
            problem.reason,
            problem.count,
            batch.place_of(problem.first_row),
            problem.value,
        )
        for problem in problems
    )
