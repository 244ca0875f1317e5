"""The training loop, of jobs and of fits: rounds begun, their reports read, validation judged, the best kept.

An `Executor` holds rows and parameters and does the work: this process (`dfm.training.local`) or a cluster
(`dfm.distributed.executor`). A few rounds may be under way at a time; whatever the loop decides (stop, go back, save)
it decides on rounds that are finished.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dfm.errors import ClusterError
from dfm.kernels.contract import Step
from dfm.model.objective import Objective
from dfm.training.checkpoint import Checkpoint
from dfm.training.executor import Event, Executor, Metrics, Parameters
from dfm.training.pilot import Pilot, PilotRun
from dfm.training.plan import RoundPlan
from dfm.training.progress import EpochTotals, Progress
from dfm.training.rounds import ReplicaReport, Work
from dfm.training.steps import StepSchedule

_AHEAD = 2
"""Rounds that wait to be run while one runs: workers find work while the driver reads reports."""
_LEAST_GAIN, _MOST_RISE, _PATIENCE_ON_PLATEAU = 1e-4, 2e-3, 2
"""Relative to the best loss: what an epoch on a plateau has to gain at least, and how far it may rise."""
_TAIL = 0.35
"""Epochs that follow a plateau, in parts of those that led to the best parameters on it."""
_LONGEST_LINEAGE = 64
"""Rounds that a lost block may have to be computed again from, and that a scheduler has to remember."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after `rounds_done` averages. `blocks_at`, `best_at`: the averages that made the blocks."""

    rounds_done: int
    state: Mapping[str, Any]
    blocks_at: int
    blocks: Parameters
    best_at: int
    best_blocks: Parameters


class Saver(Protocol):
    """Who writes snapshots while the next rounds train."""

    def offer(self, snapshot: Snapshot) -> None:
        """Let this snapshot be the next one written."""

    def flush(self, timeout: float = 60.0) -> None:
        """Wait so many seconds for the newest snapshot to be written."""


class Renewer(Protocol):
    """Who gives parameters a new origin, so that nobody has to remember the rounds that made them."""

    def renew(self, rounds_done: int, blocks: Parameters, best: Parameters) -> tuple[Parameters, Parameters] | None:
        """The same parameters, from now on without a history; None where that cannot be done now."""


@dataclass(frozen=True)
class Goal:
    """The end of training, and the choice of parameters.

    n_epochs: the last epoch. patience: validations in a row without a better one that stop training (None: nothing
    does); one is better that is less by more than `tolerance`. plateau: the schedule of that name decides instead, see
    `_leave_plateau`. rollbacks: how often to go back to the best parameters,
    with half the rates, instead. validates_averages: after each, not after each epoch. Without held-out rows
    watches_training takes the loss of the training rows for stopping. keeps_epochs: without held-out rows, keep the
    parameters of each epoch as the best; otherwise they are the last when training ends. takes_last: the last ones are
    the best, whatever validation says: they hold all that came before. judges_start: the parameters that training
    begins with are validated, as those of epoch 0, and may turn out to be the best.
    """

    n_epochs: int
    patience: int | None = None
    tolerance: float = 0.0
    plateau: bool = False
    rollbacks: int = 0
    validates_averages: bool = False
    watches_training: bool = False
    keeps_epochs: bool = True
    takes_last: bool = False
    judges_start: bool = False


@dataclass(frozen=True)
class Manner:
    """The words of a training: the record of an epoch that is over, and the error where a round or epoch went astray.

    describe(epoch, totals, metrics, replicas that one process trained at a time, seconds of validation): the record.
    check(work, epoch, reports): DivergenceError where the losses of a round tell of divergence.
    check_epoch(work, epoch, totals): the same of those of an epoch.
    """

    describe: Callable[[int, EpochTotals, Metrics, int, float], Event]
    check: Callable[[Work, int, Sequence[ReplicaReport]], None]
    check_epoch: Callable[[Work, int, EpochTotals], None] = lambda work, epoch, totals: None


@dataclass
class Best:
    """The parameters to publish: those after average `at`, of this epoch, and how good they were. 0: of the start."""

    blocks: Parameters
    at: int
    epoch: int
    metrics: Metrics
    walked: int = 0
    """Rows that made them of those that training began with, each as often as it was walked."""


@dataclass
class _Clock:
    """Seconds of an epoch's rounds; it stands still while rows are validated."""

    before: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    paused: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of this epoch so far, also in the run that this one goes on from."""
        return self.before + time.perf_counter() - self.started - self.paused


@dataclass
class TrainingLoop:
    """Everything between the first round and the last.

    work: before rates and seeds of a round. n_rows: that an epoch must train. checkpoint_every: a knob of output.
    """

    work: Work
    objective: Objective
    plan: RoundPlan
    schedule: StepSchedule
    goal: Goal
    executor: Executor
    manner: Manner
    n_rows: int
    tell: Callable[[Event], None]
    checkpointer: Saver | None = None
    renewer: Renewer | None = None
    checkpoint_every: str = "average"
    pilot: Pilot | None = None
    at: Progress = field(default_factory=Progress)
    best: Best | None = None
    _least: float = float("inf")
    _rise: float = 0.0
    """Excess of the last validation loss over the best, in parts of that."""
    _walked: int = 0
    """Rows that made the present parameters of those that training began with, each as often as it was walked."""
    _submitted: int = 0
    _cut_at: int = 0
    _clock: _Clock = field(default_factory=_Clock)
    _ahead: _Clock | None = None
    """Since when rounds of the next epoch are under way; None: they are not."""
    _until: int | None = None

    @property
    def n_rounds(self) -> int:
        """Averages of the present epoch."""
        return self.plan.n_rounds(self.at.epoch)

    def run(self, until: int | None = None) -> None:
        """Train all epochs, or until validation has worsened too often; no further than epoch `until`, from where
        another call goes on.
        """
        if self.pilot is not None and self.at.rounds_done == self.plan.rounds_before and not self.at.pilot:
            self._begin_with_the_best_of(self.pilot)
        if self.goal.judges_start and self.at.rounds_done == 0 and self.best is None:
            self._judge_start()
        self._submitted = self._cut_at = self.at.rounds_done
        self._until = until
        while not self.at.is_over and (until is None or self.at.epoch <= until):
            event = self._epoch()
            self.at.history.append(event)
            self.at.is_over = self.at.epoch == self._last_epoch
            self.tell(event)
            if self._leaves_plateau():
                self._leave_plateau()
            elif self._has_worsened():
                self.at.is_over = True
                best_epoch = self.best.epoch if self.best else self.at.epoch
                self.tell({"event": "stopped", "epoch": self.at.epoch, "best_epoch": best_epoch})
            if not self.at.is_over:
                self.at.next_epoch()

    def _judge_start(self) -> None:
        """Validate what training begins with: nothing worse is to come of it."""
        self.at.start = self.executor.evaluate(self.work)
        if self.at.start:
            self._judge(self.at.start, 0)
            self.tell({"event": "start", **self.at.start})

    def _begin_with_the_best_of(self, pilot: Pilot) -> None:
        """Stand where the candidate stands that a pilot chose, with its step."""
        started = time.perf_counter()
        run = PilotRun(pilot, self.executor, self.plan, self.objective, self.n_rows, self.work_of_round, self.tell)
        best, losses = run.best()
        self.work = dataclasses.replace(self.work, step=best.step)
        for reports in best.reports:
            self.manner.check(self.work, self.at.epoch, reports)
            self.at.totals.add(reports)
        self._walked = self.at.totals.rows
        self.executor.restore(best.parameters, self.executor.bounds)
        self.at.totals.seconds = time.perf_counter() - started
        self.at.round = self.at.rounds_done = self.at.blocks_at = len(best.reports)
        self.at.pilot = {"losses": losses, "chosen": best.name}
        self._offer()
        self.tell({"event": "pilot", **self.at.pilot, **pilot.described(best.name)})
        self._tell_of_round(self.at.round)

    @property
    def _last_epoch(self) -> int:
        """The epoch after which nothing follows."""
        return self.at.tail_start + self.at.tail_epochs if self.at.tail_start else self.goal.n_epochs

    @property
    def has_result(self) -> bool:
        """Whether anything was learnt that could be published now."""
        return self.best is not None and (self.best.epoch > 0 or bool(self.at.history))

    @property
    def result(self) -> Parameters:
        """The best parameters, or the last ones where none could be compared."""
        return self.best.blocks if self.best else self.executor.parameters

    def _epoch(self) -> Event:
        """Train what is left of an epoch, or until validation has worsened too often; its record."""
        self._clock = self._ahead or _Clock(self.at.totals.seconds)
        self._ahead = None
        n_walks = self.executor.begin_epoch(self.work)
        each = self.goal.validates_averages
        for stretch in self._stretches(self.at.epoch, self.at.round + self.executor.under_way):
            self._submit(self.at.epoch, stretch)
            self._settle(0 if each else _AHEAD * self.executor.stretch)
            if each and self.at.round < self.n_rounds:
                self._validate_inside()
                if self._has_worsened():
                    break
                self._offer()
            self._cut_lineage()
        self._settle(0)
        self._check_rows()
        self.manner.check_epoch(self.work, self.at.epoch, self.at.totals)
        self._cut_lineage()  # what is left of an epoch may have begun with the one before, and the loop have nothing
        started = time.perf_counter()
        metrics = self._validate()
        self._judge(metrics, self.at.epoch)
        ended = self._ahead.started if self._ahead else time.perf_counter()
        seconds = self._clock.paused + ended - started
        return self.manner.describe(self.at.epoch, self.at.totals, metrics, n_walks, seconds)

    def _validate(self) -> Metrics:
        """Metrics of the epoch; the rounds that were begun meanwhile count from where they could be trained."""
        metrics = self.executor.evaluate(self.work, self._begin_next_epoch)
        if self._ahead:
            self._ahead.started += self.executor.judging_seconds
        return metrics

    def _check_rows(self) -> None:
        """Every row that was accepted was trained exactly once, whatever happened to workers meanwhile."""
        totals = self.at.totals
        if totals.rounds == self.n_rounds and totals.rows != self.n_rows:
            raise ClusterError(f"epoch {self.at.epoch} trained {totals.rows} rows of {self.n_rows}; please report this")

    # ---------------------------------------------------------------------------------------------- rounds ----

    def _stretches(self, epoch: int, begun: int) -> list[list[range]]:
        """The slices of the rounds of an epoch, after so many, in stretches that are begun together."""
        rounds, size = self.plan.rounds(epoch), 1 if self.goal.validates_averages else self.executor.stretch
        return [rounds[first : first + size] for first in range(begun, len(rounds), size)]

    def _submit(self, epoch: int, stretch: Sequence[range]) -> None:
        """Begin some rounds, which depend on those before."""
        step, first = self.work.step, self._submitted
        works = [self._work_of(epoch, number, slices, step) for number, slices in enumerate(stretch, start=first)]
        self.executor.submit(list(zip(works, stretch, strict=True)))
        self._submitted += len(stretch)

    def _begin_next_epoch(self) -> None:
        """Begin the first rounds of the next epoch while this one is judged, so that workers need not wait for what is
        found. They are given up where it goes on from elsewhere; where training may end they are not begun.
        """
        at, goal = self.at, self.goal
        patience = _PATIENCE_ON_PLATEAU if goal.plateau else goal.patience
        may_stop = patience is not None and at.worse + 1 >= patience
        is_last = at.epoch == self._last_epoch or at.epoch == self._until or self._is_at_end_of_plateau
        if may_stop or is_last or goal.validates_averages:
            return
        self._ahead = _Clock()
        for stretch in self._stretches(at.epoch + 1, 0):
            if self.executor.under_way < _AHEAD:
                self._submit(at.epoch + 1, stretch)

    def work_of_round(self, rounds_done: int, slices: range, step: Step) -> Work:
        """The work of the round that walks these slices of the present epoch, after so many others."""
        return self._work_of(self.at.epoch, rounds_done, slices, step)

    def _work_of(self, epoch: int, rounds_done: int, slices: range, step: Step) -> Work:
        work = dataclasses.replace(self.work, step=step)
        return self.schedule.work(work, rounds_done, self._standing(epoch, slices), self.at.rollbacks)

    def _standing(self, epoch: int, slices: range) -> tuple[float, int]:
        """The place of a round among how many: of the whole training, or of what follows a plateau."""
        if not self.goal.plateau:
            return self.plan.standing(epoch, slices, self.goal.n_epochs)
        if not self.at.tail_start:
            return 0.0, 0
        n_slices = self.plan.n_slices
        middle = (slices.start + slices.stop - 1) / 2
        return (epoch - 1 - self.at.tail_start) * n_slices + middle, self.at.tail_epochs * n_slices

    def _settle(self, under_way: int) -> None:
        """Wait until at most so many rounds are under way, and take note of those that are finished."""
        while self.executor.under_way > under_way:
            before = self.at.round
            for reports in self.executor.finish():
                self.manner.check(self.work, self.at.epoch, reports)
                self.at.round += 1
                self.at.rounds_done = self.at.blocks_at = self.at.rounds_done + 1
                totals = self.at.totals
                totals.add(reports)
                self._walked += sum(report.tally.rows for report in reports)
                totals.seconds = self._clock.seconds
            if not self.goal.validates_averages or self.at.round == self.n_rounds:
                self._offer()
            for number in range(before + 1, self.at.round + 1):
                self._tell_of_round(number)

    def _tell_of_round(self, number: int) -> None:
        """Say that this round of the epoch is finished, of those that are."""
        totals = self.at.totals
        self.tell(
            {
                "event": "round",
                "epoch": self.at.epoch,
                "round": number,
                "rounds": self.n_rounds,
                "rows_per_second": totals.rows / max(totals.seconds, 1e-9),
            }
        )

    # ------------------------------------------------------------------------------------------ validation ----

    def _validate_inside(self) -> None:
        """Validate between two rounds of an epoch; the clock of training stands still meanwhile."""
        paused = time.perf_counter()
        metrics = self.executor.evaluate(self.work)
        self.tell({"event": "average", "epoch": self.at.epoch, "average": self.at.round, **metrics})
        self._judge(metrics, self.at.epoch)
        self._clock.paused += time.perf_counter() - paused

    def _judge(self, metrics: Metrics, epoch: int) -> None:
        """Keep these parameters if they are the best so far; without validation the last ones are."""
        watched = self.objective.cost(metrics)
        if self.best is None:
            self.objective.check_watched(metrics)
        if watched is None and not metrics and self.goal.watches_training:
            watched = self.at.totals.mean_loss
        is_best = self.goal.takes_last or watched is None or watched < self._least or self._least == float("inf")
        if is_best and (metrics or self.goal.keeps_epochs):
            self.best = Best(self.executor.parameters, self.at.blocks_at, epoch, metrics, self._walked)
        has_improved = is_best and (watched is None or not watched >= self._least - self._tolerance)
        is_known = 0 < abs(self._least) < float("inf")
        self._rise = (watched - self._least) / abs(self._least) if watched is not None and is_known else 0.0
        self.at.worse = 0 if has_improved else self.at.worse + 1
        if watched is not None and is_best:
            self._least = min(watched, self._least)

    def _has_worsened(self) -> bool:
        """Whether to stop now. As long as rollbacks are left, it goes back to the best parameters instead."""
        goal, at = self.goal, self.at
        patience = _PATIENCE_ON_PLATEAU if goal.plateau else goal.patience
        if patience is None or at.worse < patience:
            return False
        if at.rollbacks >= goal.rollbacks or self.best is None:
            return True
        self._go_back(self.best)
        at.rollbacks += 1
        self.tell({"event": "rolled_back", "to_epoch": self.best.epoch, "rate_factor": 0.5**at.rollbacks})
        return False

    def _go_back(self, best: Best) -> None:
        """Stand at the best parameters again."""
        self._stand_at(best.blocks)
        self.at.blocks_at, self.at.worse, self._walked = best.at, 0, best.walked
        self.at.totals = EpochTotals()  # the rows seen by the parameters that were left behind count no more
        self._clock = _Clock()

    def _stand_at(self, parameters: Parameters) -> None:
        """Go on from these parameters; rounds that were begun are given up."""
        self.executor.restore(parameters, self.executor.bounds)
        self._submitted, self._ahead = self.at.rounds_done, None

    @property
    def _tolerance(self) -> float:
        """By how much a validation has to be better than the best to count as better."""
        if not self.goal.plateau:
            return self.goal.tolerance
        return 0.0 if self.at.tail_start or self._least == float("inf") else _LEAST_GAIN * abs(self._least)

    def _leaves_plateau(self) -> bool:
        """Whether the constant step size has brought what it can: the loss rose, or two epochs in a row gained next to
        nothing, or as many epochs are left as what follows will take.
        """
        at, goal = self.at, self.goal
        if not goal.plateau or at.tail_start or self.best is None:
            return False
        return self._rise > _MOST_RISE or at.worse >= _PATIENCE_ON_PLATEAU or self._is_at_end_of_plateau

    @property
    def _is_at_end_of_plateau(self) -> bool:
        """Whether as many epochs are left as what follows the plateau will take."""
        goal, at = self.goal, self.at
        return goal.plateau and not at.tail_start and at.epoch >= round(goal.n_epochs / (1 + _TAIL))

    def _leave_plateau(self) -> None:
        """Go back to the best parameters, and let the step size fall for about a third of the epochs that they took."""
        at, best = self.at, self.best
        assert best is not None
        at.tail_epochs = min(max(1, round(_TAIL * best.epoch)), self.goal.n_epochs - at.epoch)
        at.is_over = not at.tail_epochs
        if at.is_over:
            return
        at.tail_start = at.epoch
        self._go_back(best)
        self.tell({"event": "plateau", "epoch": at.epoch, "to_epoch": best.epoch, "epochs": at.tail_epochs})

    # ----------------------------------------------------------------------------------------- checkpoints ----

    def _offer(self) -> None:
        """Let the state after the last finished round be saved, while the next ones run."""
        if self.checkpointer is None or (self.checkpoint_every == "epoch" and self.at.round < self.n_rounds):
            return
        self.checkpointer.offer(
            Snapshot(
                rounds_done=self.at.rounds_done,
                state=self._state(self.at.blocks_at),
                blocks_at=self.at.blocks_at,
                blocks=self.executor.parameters,
                best_at=self.best.at if self.best else 0,
                best_blocks=self.best.blocks if self.best else (),
            )
        )

    def _state(self, blocks_at: int) -> dict[str, Any]:
        """What, beside the parameters after average `blocks_at`, decides how training goes on."""
        best = None
        if self.best is not None:
            best = {key: getattr(self.best, key) for key in ("at", "epoch", "metrics", "walked")}
        progress = {**self.at.to_dict(), "blocks_at": blocks_at}
        return {"progress": progress, "bounds": list(self.executor.bounds), "best": best, "walked": self._walked}

    @property
    def is_trained(self) -> bool:
        """Whether no round is left to train."""
        at = self.at
        return at.is_over or (at.epoch == self._last_epoch and at.round == self.n_rounds)

    def keep_result(self, checkpointer: Saver) -> None:
        """Let what training has come to be saved: the best parameters where it is over, the last round where it is not
        judged yet; of a run in its midst, the snapshot that was offered last.
        """
        if self.best is None or not self.at.is_over:
            if self.is_trained and self.checkpointer is None:
                self.checkpointer = checkpointer
                self._offer()
            return
        best = self.best
        checkpointer.offer(
            Snapshot(
                rounds_done=self.at.rounds_done + 1,  # the state after the last round may be there under its own number
                state=self._state(best.at),
                blocks_at=best.at,
                blocks=best.blocks,
                best_at=best.at,
                best_blocks=best.blocks,
            )
        )

    def restore(self, checkpoint: Checkpoint, blocks: Parameters, best: Parameters) -> None:
        """Stand where the checkpoint was made."""
        self.at = Progress.from_dict(checkpoint.state["progress"])
        self._walked = checkpoint.state.get("walked", self.at.epoch * self.n_rows)
        if self.pilot is not None and self.at.pilot:
            self.work = dataclasses.replace(self.work, step=self.pilot.steps[self.at.pilot["chosen"]])
        self.executor.restore(blocks, checkpoint.state["bounds"])
        self._ahead = None
        saved = checkpoint.state["best"]
        self.best = None
        if saved:
            walked = saved.get("walked", saved["epoch"] * self.n_rows)
            self.best = Best(best, saved["at"], saved["epoch"], saved["metrics"], walked)
        least = self.objective.cost(saved["metrics"]) if saved else None
        self._least = float("inf") if least is None else least

    def _cut_lineage(self) -> None:
        """From time to time, let the blocks come from elsewhere than from the rounds before.

        A cluster keeps the tasks that a result came from, to compute it again; without this its scheduler would
        remember the whole training, and a loss of all workers at once would repeat it.
        """
        if self.renewer is None or self._submitted - self._cut_at < _LONGEST_LINEAGE:
            return
        if self.checkpoint_every == "epoch" and self.at.round + self.executor.under_way < self.n_rounds:
            return  # no checkpoint is of now: at the end of the epoch one will be
        self._settle(0)
        self._cut_at = self._submitted
        best = self.best.blocks if self.best else ()
        renewed = self.renewer.renew(self.at.rounds_done, self.executor.parameters, best)
        if renewed is None:
            return
        self.executor.restore(renewed[0], self.executor.bounds)
        if self.best is not None:
            self.best.blocks = renewed[1]
