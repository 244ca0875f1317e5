"""The account of lines: lines read = rows written + lines rejected + blank lines, each rejection with its place."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.data.text.parsed import Parsed
from dfm.errors import DataError

_EXAMPLES = 5
_MOST_LABELS = 2


@dataclass(frozen=True)
class BadLine:
    """A line that gave no row; `line` is counted from 1. remedy: what may be done about it, where that is known."""

    url: str
    line: int
    reason: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.url}, line {self.line}: {self.reason} ({self.text!r})"


@dataclass
class LineAccount:
    """Lines and what became of them, added up in place. labels: distinct ones, as far as they are few."""

    read: int = 0
    written: int = 0
    blank: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[BadLine] = field(default_factory=list)
    labels: set[float] = field(default_factory=set)

    @property
    def rejected(self) -> int:
        """Lines that gave no row and are not blank."""
        return self.reasons.total()

    def add_block(self, url: str, parsed: Parsed) -> None:
        """Count the lines of a block that follow those of the same file which are counted already."""
        self.examples += [
            BadLine(url, self.read + fault.line + 1, fault.reason, fault.text, fault.remedy)
            for fault in parsed.faults[: _EXAMPLES - len(self.examples)]
        ]
        self.reasons.update(fault.reason for fault in parsed.faults)
        self.read += parsed.n_lines
        self.blank += parsed.n_blank
        self.written += parsed.batch.num_rows

    def add_labels(self, labels: NDArray[np.float64]) -> None:
        """Note labels, float64[n]; more than two distinct ones are not told apart further."""
        if len(self.labels) <= _MOST_LABELS:
            self.labels |= set(np.unique(labels)[: _MOST_LABELS + 1].tolist())

    def add(self, other: LineAccount, lines_before: int = 0) -> None:
        """Count others' lines; their numbers are counted from lines_before of their file on."""
        room = _EXAMPLES - len(self.examples)
        self.examples += [dataclasses.replace(bad, line=lines_before + bad.line) for bad in other.examples[:room]]
        self.reasons += other.reasons
        self.read, self.blank, self.written = (
            self.read + other.read,
            self.blank + other.blank,
            self.written + other.written,
        )
        self.labels |= other.labels

    def check(self, on_bad_rows: str, max_bad_fraction: float) -> None:
        """DataError where the account does not add up, nothing was written, or more lines are bad than is allowed."""
        if self.read != self.written + self.rejected + self.blank:
            raise DataError(
                f"{self.read} lines were read, but {self.written} written, {self.rejected} rejected and {self.blank} "
                "blank: lines were lost; please report this with the data"
            )
        if self.examples and on_bad_rows == "error":
            remedy = self.examples[0].remedy or "where the format is another one, name it: --format"
            raise DataError(
                f"{self.examples[0]}. Repair the line, or leave such lines out: --on-bad-rows skip; {remedy}"
            )
        if self.rejected > max_bad_fraction * (self.read - self.blank):
            raise DataError(
                f"{self.rejected} of {self.read} lines are bad, more than --max-bad-fraction {max_bad_fraction} "
                f"allows; the first: {self.examples[0]}. Repair the data, or raise the limit; "
                f"{self.examples[0].remedy or 'where the format is another one, name it: --format'}"
            )
        if not self.written:
            raise DataError(f"no row in {self.read} lines: there is nothing to convert; name data that has rows")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready counts."""
        counts = {"lines": self.read, "rows": self.written, "rejected": self.rejected, "blank": self.blank}
        return {**counts, "reasons": dict(sorted(self.reasons.items()))}
