"""Who does the work of the training loop: this process (`training.local`) or a cluster (`distributed.executor`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dfm.training.rounds import ReplicaReport, Work

Event = dict[str, Any]
Metrics = dict[str, Any]
Round = tuple[Work, range]
"""The work of a round, and the slices that every replica walks in it."""
Parameters = Sequence[Any]
"""The blocks of a parameter table, as an executor holds them: the loop keeps them and never looks into them."""


def nothing() -> None:
    """Do nothing."""


class Executor(Protocol):
    """Who holds rows and parameters, and trains on them."""

    def begin_epoch(self, work: Work) -> int:
        """See who is there for the rounds of the epoch; replicas that one of these processes trains at a time."""

    @property
    def stretch(self) -> int:
        """Rounds that are best begun together: of such a stretch only the last parameters are anybody's."""

    def submit(self, stretch: Sequence[Round]) -> None:
        """Begin rounds, one after the other: every replica trains on the slices, then all are averaged. Nothing is
        waited for.
        """

    @property
    def under_way(self) -> int:
        """Rounds that were begun and not finished."""

    def finish(self) -> Sequence[Sequence[ReplicaReport]]:
        """Wait for the earliest stretch of rounds under way; what the replicas saw, round by round."""

    def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
        """Metrics of the parameters on the held-out rows; empty where there are none.

        meanwhile: begins rounds, which are under way afterwards. It is called where others than the caller judge, once
        they have been told to.
        """

    @property
    def judging_seconds(self) -> float:
        """Seconds that rounds begun meanwhile had to wait for the last judgement, of who trains them."""

    @property
    def parameters(self) -> Parameters:
        """The parameters after the last finished round. Later rounds leave them as they are."""

    @property
    def bounds(self) -> Sequence[int]:
        """Rows of the table at which it is cut into blocks, from 0 to all of them."""

    def restore(self, parameters: Parameters, bounds: Sequence[int]) -> None:
        """Go on from these parameters, cut at these rows. Rounds that are under way are given up."""

    def fork(self, parameters: Parameters) -> Executor:
        """Another executor on the same rows, which begins with these parameters."""
