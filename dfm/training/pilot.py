"""The pilot: a training begins with a few settings beside each other, and goes on with the best from where that stands.

Every candidate walks the first third of the first epoch from the same parameters, with the same seeds. They are told
apart by their progressive loss, of rows before they are learnt from, over the last of these rounds; nothing is held out
for it. A challenger has to be clearly better than the default. What is compared are sums of float64 in the order of the
replicas, so the choice does not depend on who trained what, or when.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dfm.kernels.contract import Step
from dfm.settings.tables import TrainingSettings

if TYPE_CHECKING:
    from dfm.training.loop import Executor, Parameters, TrainingLoop
    from dfm.training.rounds import ReplicaReport

MARGIN = 0.04
"""Relative gain from which on a challenger replaces the default."""
LEAST_ROWS = 500
"""Rows of a replica in a pilot below which its losses are noise."""
LATE_REPLICAS = 16
"""With more replicas the first rounds are dominated by the shock of rate · sqrt(replicas): it is decided later."""
_SHARE = 3
SLICES, SLICES_OF_MANY_ROWS = 12, 6
"""Slices of a first epoch that has a pilot, at least; of replicas with many rows fewer do."""


def is_wanted(training: TrainingSettings) -> bool:
    """Whether the settings leave something to a pilot."""
    return training.tune == "pilot" and training.learning_rate == "auto" and not training.warm_start


def n_pilot_slices(n_slices: int, rows_each: int) -> int:
    """Slices of a pilot; 0 where there are too few slices or rows for one."""
    walked = n_slices // _SHARE
    return walked if rows_each * walked >= LEAST_ROWS * n_slices else 0


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


@dataclass
class _Trial:
    """A candidate on its way. executor: None where its parameters were given up."""

    name: str
    step: Step
    executor: Executor | None = None
    reports: list[Sequence[ReplicaReport]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Progressive loss of the last round, per unit of weight; inf where it left the finite numbers."""
        tallies = [report.tally for report in self.reports[-1]]
        weight, loss = sum(tally.weight for tally in tallies), sum(tally.loss for tally in tallies)
        is_finite = all(tally.is_finite for tally in tallies)
        return loss / weight if weight and is_finite and math.isfinite(loss) else math.inf


@dataclass
class PilotRun:
    """The pilot of a training loop that stands at its beginning."""

    pilot: Pilot
    loop: TrainingLoop
    _start: Parameters = field(init=False)
    _rows_done: int = field(init=False, default=0)
    _rows_in_all: int = field(init=False, default=0)

    def run(self) -> None:
        """Let the loop stand where the best candidate stands, with its step."""
        started = time.perf_counter()
        self._start = self.loop.executor.parameters
        trials = [_Trial(name, step) for name, step in self.pilot.steps.items()]
        self._expect(len(trials))
        losses = self._losses(trials, self.pilot.n_slices)
        if self.pilot.is_late:
            challenger = min(trials[1:], key=lambda trial: losses[trial.name])
            for each in trials[1:]:
                if each is not challenger:
                    each.executor = None
            trials = [trials[0], challenger]
            losses = self._late_losses(trials)
        best = self._best(trials, losses)
        self._walk([best], len(best.reports))  # again, where its parameters were given up
        self._tell(self._rows_done)
        self._hand_over(best, losses, time.perf_counter() - started)

    def _expect(self, n_trials: int) -> None:
        """Say how many rows are going to be walked."""
        plan, share = self.loop.plan, self.pilot.n_slices / self.loop.plan.n_slices
        more = 2 * (1 - share) if self.pilot.is_late else 0.0
        self._rows_in_all = round(self.loop.n_rows * (n_trials * share + more)) if plan.n_slices else 0

    def _losses(self, trials: Sequence[_Trial], n_rounds: int) -> dict[str, float]:
        """Progressive losses after so many rounds."""
        if self.pilot.together:
            self._walk(trials, n_rounds)
        else:
            for trial in trials:
                self._walk([trial], n_rounds)
                trial.executor = None
        return {trial.name: trial.loss for trial in trials}

    def _late_losses(self, trials: Sequence[_Trial]) -> dict[str, float]:
        """Validation losses after the first epoch; progressive ones where nothing validates."""
        n_rounds, losses = self.loop.plan.n_slices, {}
        if self.pilot.together:
            self._walk(trials, n_rounds)
        for trial in trials:
            self._walk([trial], n_rounds)
            assert trial.executor is not None
            watched = trial.executor.evaluate(self.loop.work).get(self.loop.objective.primary)
            losses[trial.name] = trial.loss if watched is None or trial.loss == math.inf else watched
            if not self.pilot.together:
                trial.executor = None
        return losses

    def _walk(self, trials: Sequence[_Trial], n_rounds: int) -> None:
        """Train until every trial has walked so many rounds; their rounds alternate, so that idle workers find some."""
        for trial in trials:
            if trial.executor is None:
                trial.executor, trial.reports = self.loop.executor.fork(self._start), []
                trial.executor.begin_epoch(self.loop.work)
        rounds = self.loop.plan.rounds(self.loop.at.epoch)
        for number in range(min(len(trial.reports) for trial in trials), n_rounds):
            walking = [trial for trial in trials if len(trial.reports) == number]
            for trial in walking:
                assert trial.executor is not None
                trial.executor.submit(self.loop.work_of_round(number, rounds[number], trial.step), rounds[number])
            for trial in walking:
                self._finish(trial)

    def _finish(self, trial: _Trial) -> None:
        assert trial.executor is not None
        reports = trial.executor.finish()
        trial.reports.append(reports)
        self._rows_done += sum(report.tally.rows for report in reports)
        self._tell(max(self._rows_in_all, self._rows_done + 1))

    def _tell(self, total: int) -> None:
        self.loop.tell({"event": "progress", "stage": "pilot", "done": self._rows_done, "total": total})

    def _best(self, trials: Sequence[_Trial], losses: Mapping[str, float]) -> _Trial:
        """The default, unless a challenger is better by the margin. DivergenceError where all of them diverged."""
        default, *others = trials
        best = min(others, key=lambda trial: losses[trial.name])
        if losses[best.name] == losses[default.name] == math.inf:
            self.loop.manner.check(self.loop.at.epoch, default.reports[-1])
        here = losses[default.name]
        return best if losses[best.name] < here - MARGIN * abs(here) or here == math.inf else default

    def _hand_over(self, best: _Trial, losses: Mapping[str, float], seconds: float) -> None:
        assert best.executor is not None
        loop, at = self.loop, self.loop.at
        loop.executor.restore(best.executor.parameters, loop.executor.bounds)
        for reports in best.reports:
            loop.manner.check(at.epoch, reports)
            at.totals.add(reports)
        at.totals.seconds = seconds
        at.round = at.rounds_done = at.blocks_at = len(best.reports)
        at.pilot = {"losses": dict(losses), "chosen": best.name}
        loop.work = replace(loop.work, step=best.step)
        compared = "after the first epoch" if self.pilot.is_late else "after a third of the first epoch"
        more = {"compared": compared, "margin": MARGIN, **self.pilot.numbers[best.name]}
        loop.tell({"event": "pilot", **at.pilot, **more})
