"""Where every row went: rows read = rows accepted + rows rejected, each rejection with its place and reason."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dfm.data.encoding import Problem
from dfm.data.parquet import Batch
from dfm.errors import DataError


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
        more = f" and {self.count - 1} more rows like it" if self.count > 1 else ""
        return (
            f"{self.shard}, row group {self.row_group}, row {self.first_row}{more}: "
            f"column {self.column!r}: {self.reason} ({self.value})"
        )


@dataclass(frozen=True, slots=True)
class RowAccount:
    """Rows read and what became of them."""

    read: int = 0
    accepted: int = 0
    rejections: tuple[Rejection, ...] = ()
    label_sum: float = 0.0
    """Sum of the accepted rows' labels, weights aside: in classification, how many are positive."""

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
        )

    def check(self, on_bad_rows: str, max_bad_fraction: float) -> None:
        """DataError where the account does not add up, or more rows are bad than the job allows."""
        if self.read != self.accepted + self.rejected:
            raise DataError(
                f"{self.read} rows were read, but {self.accepted} accepted and {self.rejected} rejected: "
                "rows were lost; please report this with the job file"
            )
        if not self.rejections:
            return
        if on_bad_rows == "error":
            raise DataError(bad_row_message(self.rejections[0]))
        if self.rejected > max_bad_fraction * self.read:
            raise DataError(
                f"{self.rejected} of {self.read} rows are bad, more than data.max_bad_fraction = {max_bad_fraction} "
                f"allows; the first: {self.rejections[0]}. Repair the data or raise data.max_bad_fraction"
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
        return cls(values["read"], values["accepted"], rejections, values["label_sum"])


def bad_row_message(rejection: Rejection) -> str:
    """What to tell a user whose job stops at bad rows."""
    return f'{rejection}. Repair the row, or set data.on_bad_rows = "skip" to leave such rows out'


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
