"""The pilot: a training begins with a few settings beside each other, and goes on with the best from where that stands.

Every candidate walks the first third of the first epoch from the same parameters, with the same seeds. They are told
apart by their progressive loss, of rows before they are learnt from, over the last of these rounds; nothing is held out
for it. A challenger has to be clearly better than the default. What is compared are sums of float64 in the order of the
replicas, so the choice does not depend on who trained what, or when.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dfm.kernels.contract import Step
from dfm.model.objective import Objective
from dfm.training.executor import Event, Executor, Parameters
from dfm.training.plan import RoundPlan
from dfm.training.rounds import ReplicaReport, Work

MARGIN = 0.04
"""Relative gain from which on a challenger replaces the default."""


@dataclass(frozen=True)
class Pilot:
    """The steps of the candidates by name, the default first, the settings that they come from, and the slices that
    each walks.

    is_late: after these slices the default and the better challenger go on to the end of the epoch, where validation
    decides. together: their parameters fit the memory side by side; otherwise one is walked after the other, and what
    goes on is walked again.
    """

    steps: Mapping[str, Step]
    numbers: Mapping[str, Mapping[str, Any]]
    n_slices: int
    is_late: bool = False
    together: bool = True

    def described(self, chosen: str) -> Event:
        """The way in which candidates are compared, and the numbers of the chosen one."""
        compared = "after the first epoch" if self.is_late else "after a third of the first epoch"
        return {"compared": compared, "margin": MARGIN, **self.numbers[chosen]}


@dataclass
class Trial:
    """A candidate on its way. executor: None where its parameters were given up."""

    name: str
    step: Step
    executor: Executor | None = None
    reports: list[Sequence[ReplicaReport]] = field(default_factory=list)

    @property
    def n_begun(self) -> int:
        """Rounds that it has walked or walks."""
        return len(self.reports) + (self.executor.under_way if self.executor else 0)

    @property
    def loss(self) -> float:
        """Progressive loss of the last round, per unit of weight; inf where it left the finite numbers."""
        tallies = [report.tally for report in self.reports[-1]]
        weight, loss = sum(tally.weight for tally in tallies), sum(tally.loss for tally in tallies)
        is_finite = all(tally.is_finite for tally in tallies)
        return loss / weight if weight and is_finite and math.isfinite(loss) else math.inf

    @property
    def parameters(self) -> Parameters:
        """Its parameters; only where they were not given up."""
        assert self.executor is not None
        return self.executor.parameters


@dataclass
class PilotRun:
    """The pilot of a training at its start. work_of_round: the work of a round, after so many others, that walks some
    slices with a step.
    """

    pilot: Pilot
    executor: Executor
    plan: RoundPlan
    objective: Objective
    n_rows: int
    work_of_round: Callable[[int, range, Step], Work]
    tell: Callable[[Event], None]
    _start: Parameters = field(init=False)
    _rows_done: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._start = self.executor.parameters

    def best(self) -> tuple[Trial, dict[str, float]]:
        """The candidate to go on with, and by what all were compared. Where all of them left the finite numbers, the
        default.
        """
        trials = [Trial(name, step) for name, step in self.pilot.steps.items()]
        losses = self._losses(trials)
        if self.pilot.is_late:
            challenger = min(trials[1:], key=lambda trial: losses[trial.name])
            for each in trials[1:]:
                each.executor = each.executor if each is challenger else None
            trials = [trials[0], challenger]
            losses = self._late_losses(trials)
        best = _chosen(trials, losses)
        self._walk([best], len(best.reports))  # again, where its parameters were given up
        self._tell(self._rows_done)
        return best, losses

    def _losses(self, trials: Sequence[Trial]) -> dict[str, float]:
        """Progressive losses after the pilot's rounds."""
        if self.pilot.together:
            self._walk(trials, self.pilot.n_slices)
        else:
            for trial in trials:
                self._walk([trial], self.pilot.n_slices)
                trial.executor = None
        return {trial.name: trial.loss for trial in trials}

    def _late_losses(self, trials: Sequence[Trial]) -> dict[str, float]:
        """Validation losses after the first epoch; progressive ones where nothing validates."""
        n_rounds, losses = self.plan.n_slices, {}
        if self.pilot.together:
            self._walk(trials, n_rounds)
        for trial in trials:
            self._walk([trial], n_rounds)
            losses[trial.name] = self._validated(trial)
            if not self.pilot.together:
                trial.executor = None
        return losses

    def _validated(self, trial: Trial) -> float:
        assert trial.executor is not None
        work = self.work_of_round(0, range(1), trial.step)
        watched = self.objective.cost(trial.executor.evaluate(work))
        return trial.loss if watched is None or trial.loss == math.inf else watched

    def _walk(self, trials: Sequence[Trial], n_rounds: int) -> None:
        """Train until every trial has walked so many rounds; their rounds alternate, so that idle workers find some."""
        for trial in trials:
            if trial.executor is None:
                trial.executor, trial.reports = self.executor.fork(self._start), []
                trial.executor.begin_epoch(self.work_of_round(0, range(1), trial.step))
        rounds, size = self.plan.rounds(1), self.executor.stretch
        for first in range(min(trial.n_begun for trial in trials), n_rounds, size):
            last = min(first + size, n_rounds)
            for trial in trials:
                wanted = range(trial.n_begun, last)
                if wanted:
                    assert trial.executor is not None
                    work = [self.work_of_round(number, rounds[number], trial.step) for number in wanted]
                    trial.executor.submit(list(zip(work, rounds[wanted.start : last], strict=True)))
            self._finish(trials, under_way=size)
        self._finish(trials)

    def _finish(self, trials: Sequence[Trial], under_way: int = 0) -> None:
        """Wait until each trial has at most so many rounds under way: workers have the next one meanwhile."""
        for trial in trials:
            assert trial.executor is not None
            while trial.executor.under_way > under_way:
                for reports in trial.executor.finish():
                    trial.reports.append(reports)
                    self._rows_done += sum(report.tally.rows for report in reports)
                self._tell(max(self._rows_in_all, self._rows_done + 1))

    @property
    def _rows_in_all(self) -> int:
        """Rows that are going to be walked."""
        share = self.pilot.n_slices / self.plan.n_slices
        late = 2 * (1 - share) if self.pilot.is_late else 0.0
        return round(self.n_rows * (len(self.pilot.steps) * share + late))

    def _tell(self, total: int) -> None:
        self.tell({"event": "progress", "stage": "pilot", "done": self._rows_done, "total": total})


def _chosen(trials: Sequence[Trial], losses: Mapping[str, float]) -> Trial:
    """The default, which comes first, unless a challenger is better by the margin."""
    default, *others = trials
    best = min(others, key=lambda trial: losses[trial.name])
    here, there = losses[default.name], losses[best.name]
    if here == math.inf:
        return default if there == math.inf else best
    return best if there < here - MARGIN * abs(here) else default
