"""Tasks that run at the same time and hand values to each other, step by step, without a scheduler in between."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class MemberLost(Exception):
    """One of those who exchange values is gone, or did not come: what they were at has to be begun again."""


class Exchange(Protocol):
    """The tasks of a meeting, as one of them sees them. Each calls the same methods in the same order.

    MemberLost, of all of them, where one does not.
    """

    @property
    def n_members(self) -> int:
        """Number of members."""

    def to_all(self, value: Any) -> list[Any]:
        """The values of all members, in their order."""

    def to_each(self, values: Sequence[Any]) -> list[Any]:
        """The values that all members gave to this one, in their order; values[i] goes to member i."""


class Meeting(Protocol):
    """An appointment of tasks, which each of them has as an argument."""

    def joined(self, number: int) -> AbstractContextManager[Exchange]:
        """The exchange, as its member of this number sees it, who takes part while the block lasts."""
