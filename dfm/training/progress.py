"""The progress of a training: what, beside the parameters, decides how it goes on. All of it fits a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dfm.data.units import LabelUnit
from dfm.errors import DivergenceError
from dfm.model.objective import Objective
from dfm.training.rounds import ReplicaReport, Work

Event = dict[str, Any]
_TOTALS = "book"
"""The name that checkpoints have for the totals of the epoch under way."""
_LATER = ("start",)
"""Names that are written only where there is something, for an earlier dfm that goes on from the checkpoint."""

_ENOUGH_ROWS = 100
"""Rows of a fit's epoch from which on their log loss tells of divergence: of fewer, as `partial_fit` takes them, one
outlier may make it what it is.
"""


@dataclass
class EpochTotals:
    """Sums over the reports of an epoch's rounds. `seconds`: wall time; `kernel_seconds`: by process."""

    rounds: int = 0
    rows: int = 0
    weight: float = 0.0
    loss: float = 0.0
    wire_bytes: int = 0
    seconds: float = 0.0
    kernel_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def mean_loss(self) -> float:
        """Loss of the rows, each before it was learnt from, per unit of weight; nan without rows."""
        return self.loss / self.weight if self.weight else float("nan")

    def add(self, reports: Sequence[ReplicaReport]) -> None:
        """Count one more round."""
        self.rounds += 1
        by_place: dict[str, float] = defaultdict(float, self.kernel_seconds)
        for report in reports:
            self.rows += report.tally.rows
            self.weight += report.tally.weight
            self.loss += report.tally.loss
            self.wire_bytes += report.wire_bytes
            by_place[report.place] += report.seconds
        self.kernel_seconds = dict(by_place)

    def summary(self, objective: Objective, n_walks: int, scale: float = 1.0) -> Event:
        """Loss and speed of an epoch. What the busiest worker did not spend in the kernel counts as averaging."""
        busiest = max(self.kernel_seconds.values(), default=0.0) / n_walks
        return {
            **objective.train_metric(self.mean_loss, scale),
            "rows_per_second": self.rows / max(self.seconds, 1e-9),
            "seconds": self.seconds,
            "training_seconds": busiest,
            "averaging_seconds": max(0.0, self.seconds - busiest),
            "bytes_per_round": self.wire_bytes // max(self.rounds, 1),
        }


@dataclass
class Progress:
    """The state of a training: in which epoch, after how many of its rounds, and what it has seen.

    rounds_done counts all averages of the run, repeated ones too: seeds and the rate schedule follow it. blocks_at: the
    average that made the present parameters (an earlier one after going back to the best). worse: validations in a row
    without a better one. is_over: nothing is left but to publish the best parameters. tail_start: the epoch after which
    a plateau was left, and tail_epochs, how many follow; both 0 before that. pilot: losses of its candidates by name,
    and which one was "chosen"; empty before that, and where there is none. start: metrics of the parameters that
    training began with; empty where they were not judged.
    """

    epoch: int = 1
    round: int = 0
    rounds_done: int = 0
    blocks_at: int = 0
    worse: int = 0
    rollbacks: int = 0
    is_over: bool = False
    tail_start: int = 0
    tail_epochs: int = 0
    pilot: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    totals: EpochTotals = field(default_factory=EpochTotals)
    history: list[Event] = field(default_factory=list)

    def next_epoch(self) -> None:
        """Stand at the start of the next epoch."""
        self.epoch, self.round, self.totals = self.epoch + 1, 0, EpochTotals()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` takes it back."""
        values = asdict(self)
        values[_TOTALS] = values.pop("totals")
        return {key: value for key, value in values.items() if key not in _LATER or value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """The progress of a checkpoint."""
        known = {each.name for each in fields(cls)} - {"totals"}
        others = {key: value for key, value in values.items() if key in known}
        return cls(**others, totals=EpochTotals(**values[_TOTALS]))


def epoch_event(
    objective: Objective,
    unit: LabelUnit,
    epoch: int,
    totals: EpochTotals,
    metrics: dict[str, Any],
    n_walks: int,
    seconds: float,
) -> Event:
    """The event of an epoch. n_walks: replicas that a process trained at a time; seconds: of validation."""
    summary = totals.summary(objective, n_walks, unit.scale)
    return {"event": "epoch", "epoch": epoch, **summary, **metrics, "validation_seconds": seconds}


def check_finite(
    objective: Objective, work: Work, epoch: int, reports: Sequence[ReplicaReport], table: str = "training."
) -> None:
    """DivergenceError where a replica's loss left the finite numbers. table: of the knobs that it names, with a dot, or
    "".
    """
    for report in reports:
        if not report.tally.is_finite:
            where = f"epoch {epoch}, replica {report.replica}"
            raise _divergence(objective, work, where, "no longer finite", table)


def check_round(objective: Objective, work: Work, epoch: int, reports: Sequence[ReplicaReport]) -> None:
    """DivergenceError of a job where a replica's loss left the finite numbers, or its log loss exploded."""
    check_finite(objective, work, epoch, reports)
    for report in reports:
        if objective.has_exploded(report.tally.mean_loss):
            where = f"epoch {epoch}, replica {report.replica}"
            raise _divergence(objective, work, where, f"{report.tally.mean_loss:.3g}", "training.")


def check_epoch(objective: Objective, work: Work, epoch: int, totals: EpochTotals) -> None:
    """DivergenceError of a fit where the log loss of an epoch of many rows exploded."""
    if totals.rows >= _ENOUGH_ROWS and objective.has_exploded(totals.mean_loss):
        raise _divergence(objective, work, f"epoch {epoch}", f"{totals.mean_loss:.3g}", "")


def _divergence(objective: Objective, work: Work, where: str, loss: str, table: str) -> DivergenceError:
    own = "; or your loss is not finite for one of the labels" if objective.info.sha256 else ""
    return DivergenceError(f"training diverged in {where}: the mean loss is {loss}; {work.remedy(table)}{own}")
