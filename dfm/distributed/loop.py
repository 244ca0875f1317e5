"""The training loop: rounds submitted, their reports read, validation judged, the best parameters kept.

The driver holds futures, never parameters. A few rounds are always under way, so workers need not wait for it; whatever
it decides (stop, go back, save) it decides on rounds that are finished.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Future

from dfm.distributed import prepare
from dfm.distributed.checkpointing import Checkpointer, Snapshot
from dfm.distributed.cluster.watch import Watch
from dfm.errors import ClusterError
from dfm.kernels.schedule import rate_factor, scheduled
from dfm.model.metrics import Tally
from dfm.model.objective import Objective
from dfm.settings.job import Job
from dfm.training import rounds
from dfm.training.checkpoint import Checkpoint
from dfm.training.plan import Plan
from dfm.training.progress import Progress, check_finite

Event = dict[str, Any]
_AHEAD = 2
"""Rounds that wait to be run while one runs: workers find work while the driver reads reports."""
_LONGEST_LINEAGE = 64
"""Rounds that a lost block may have to be computed again from, and that the scheduler has to remember."""


@dataclass
class Best:
    """The parameters to publish: those after average `at`, of this epoch, and how good they were."""

    blocks: list[Future]
    at: int
    epoch: int
    metrics: dict[str, Any]


@dataclass
class _Flight:
    """A round that was submitted."""

    blocks: list[Future]
    reports: Future


@dataclass
class TrainingLoop:
    """Everything between the first round and the last. `bounds`: rows at which the table is cut into blocks."""

    job: Job
    plan: Plan
    work: rounds.Work
    prepared: prepare.Prepared
    watch: Watch
    tell: Callable[[Event], None]
    blocks: list[Future]
    bounds: list[int]
    checkpointer: Checkpointer | None = None
    cuts_pushes: bool = True
    """Whether pushes are cut into blocks before they travel, or travel whole, which saves a task for each part."""
    resources: Mapping[str, float] | None = None
    """What a training task takes of its worker: see `backends`."""
    at: Progress = field(default_factory=Progress)
    best: Best | None = None
    _flights: collections.deque[_Flight] = field(default_factory=collections.deque)
    _submitted: int = 0
    _recent: collections.deque[list[Future]] = field(default_factory=lambda: collections.deque(maxlen=2))
    """Blocks of the last finished rounds. Held until copies of the next ones lie on all workers, they spare Dask to
    compute more than a round again when a worker is lost."""
    _cut_at: int = 0
    _seconds_before: float = 0.0
    _started: float = 0.0
    _paused: float = 0.0

    @functools.cached_property
    def objective(self) -> Objective:
        """What is minimised, and what the best parameters are chosen by."""
        return Objective.of_spec(self.job.model.task, self.work.spec)

    @property
    def n_rounds(self) -> int:
        """Averages of the present epoch."""
        return self.plan.n_rounds(self.at.epoch)

    def run(self) -> None:
        """Train all epochs, or until validation has worsened too often."""
        self._submitted = self._cut_at = self.at.rounds_done
        while not self.at.is_over:
            event = self._epoch()
            self.at.history.append(event)
            self.at.is_over = self.at.epoch == self.job.training.n_epochs
            self.tell(event)
            if self._has_worsened():
                self.at.is_over = True
                best_epoch = self.best.epoch if self.best else self.at.epoch
                self.tell({"event": "stopped", "epoch": self.at.epoch, "best_epoch": best_epoch})
                return
            if not self.at.is_over:
                self.at.next_epoch()

    def _epoch(self) -> Event:
        """Train what is left of an epoch, or until validation has worsened too often; what there is to tell of it."""
        self._start_clock()
        homes, walks = self.watch.addresses(), self.watch.n_walks(self.work.backend)
        each = self.job.training.validate == "average"
        for number, slices in enumerate(self.plan.rounds(self.at.epoch)[self.at.round :], start=self.at.round + 1):
            self._submit(slices, homes)
            self._settle(0 if each else _AHEAD)
            if each and number < self.n_rounds:
                self._validate_inside()
                if self._has_worsened():
                    break
                self._offer()
            self._cut_lineage()
        self._settle(0)
        self._check_rows()
        started = time.perf_counter()
        metrics = self._validate()
        self._judge(metrics)
        return {
            "event": "epoch",
            "epoch": self.at.epoch,
            **self.at.book.summary(self.objective, max(1, walks // len(homes)), self.work.unit.scale),
            **metrics,
            "validation_seconds": self._paused + time.perf_counter() - started,
        }

    def _start_clock(self) -> None:
        self._seconds_before, self._started, self._paused = self.at.book.seconds, time.perf_counter(), 0.0

    def _check_rows(self) -> None:
        """Every row that was accepted was trained exactly once, whatever happened to workers meanwhile."""
        book, accepted = self.at.book, self.prepared.account.accepted
        if book.rounds == self.n_rounds and book.rows != accepted:
            raise ClusterError(f"epoch {self.at.epoch} trained {book.rows} rows of {accepted}; please report this")

    # ---------------------------------------------------------------------------------------------- rounds ----

    def _submit(self, slices: range, homes: Sequence[str]) -> None:
        """Submit one round; nothing is waited for, the blocks of the next round depend on those of this one."""
        work, n_replicas = self._work_of_round(slices), self.job.training.n_replicas
        client = self.watch.client
        pushes = [
            client.submit(
                rounds.train_replicas, work, group.start, slices, self.blocks,
                self.prepared.replicas[group.start : group.stop],
                workers=[prepare.home_of(group.start, n_replicas, homes)], allow_other_workers=True, pure=False,
                resources=self.resources,
            )
            for group in self.watch.groups(n_replicas, work.backend)
        ]  # fmt: skip
        self.blocks = [self._merge(work, number, pushes, homes) for number in range(len(self.blocks))]
        self._submitted += 1
        self._flights.append(_Flight(self.blocks, client.submit(rounds.reports_of, self.blocks[0], pure=False)))

    def _work_of_round(self, slices: range) -> rounds.Work:
        """The work with the rates and the seed of the round to be submitted."""
        training = self.job.training
        factor = rate_factor(training.schedule, *self.plan.standing(self.at.epoch, slices, training.n_epochs))
        step = scheduled(self.work.step, training.optimizer, factor * 0.5**self.at.rollbacks)
        seed = (self.job.model.seed * 1_000_003 + self._submitted * training.n_replicas) % 2**62
        return dataclasses.replace(self.work, step=dataclasses.replace(step, seed=seed))

    def _merge(self, work: rounds.Work, number: int, pushes: list[Future], homes: Sequence[str]) -> Future:
        client, parts = self.watch.client, pushes
        if self.cuts_pushes:
            bounds = self.bounds[number : number + 2]
            parts = [client.submit(rounds.part_of_push, push, *bounds, pure=False) for push in pushes]
        return client.submit(
            rounds.merge_block, work, self.blocks[number], parts,
            workers=[prepare.home_of(number, len(self.blocks), homes)], allow_other_workers=True, pure=False,
        )  # fmt: skip

    def _settle(self, under_way: int) -> None:
        """Wait until at most so many rounds are under way, and take note of those that are finished."""
        while len(self._flights) > under_way:
            flight = self._flights.popleft()
            reports = self.watch.result(flight.reports)
            check_finite(self.at.epoch, reports, self.objective)
            self._recent.append(flight.blocks)
            self.at.round += 1
            self.at.rounds_done = self.at.blocks_at = self.at.rounds_done + 1
            book = self.at.book
            book.add(reports)
            book.seconds = self._seconds_before + time.perf_counter() - self._started - self._paused
            if self.job.training.validate == "epoch" or self.at.round == self.n_rounds:
                self._offer()
            self.tell(
                {
                    "event": "round",
                    "epoch": self.at.epoch,
                    "round": self.at.round,
                    "rounds": self.n_rounds,
                    "rows_per_second": book.rows / max(book.seconds, 1e-9),
                }
            )

    # ------------------------------------------------------------------------------------------ validation ----

    def _validate_inside(self) -> None:
        """Validate between two rounds of an epoch; the clock of training stands still meanwhile."""
        paused = time.perf_counter()
        metrics = self._validate()
        self.tell({"event": "average", "epoch": self.at.epoch, "average": self.at.round, **metrics})
        self._judge(metrics)
        self._paused += time.perf_counter() - paused

    def _validate(self) -> dict[str, Any]:
        if not self.prepared.validation:
            return {}
        held_out, homes, client = self.prepared.validation, self.watch.addresses(), self.watch.client
        tallies = [
            client.submit(
                rounds.evaluate_partitions, self.work, self.job.model.task, self.blocks, partitions,
                workers=[prepare.home_of(number, len(held_out), homes)], allow_other_workers=True, pure=False,
            )
            for number, partitions in enumerate(held_out)
        ]  # fmt: skip
        tally: Tally = self.watch.result(client.submit(rounds.merge_tallies, tallies, pure=False))
        return tally.metrics()

    def _judge(self, metrics: dict[str, Any]) -> None:
        """Keep these parameters if they are the best so far; without validation the last ones are."""
        primary = self.objective.primary
        value = metrics.get(primary)
        if value is None or self.best is None or value < self.best.metrics[primary]:
            self.best = Best(list(self.blocks), self.at.blocks_at, self.at.epoch, metrics)
            self.at.worse = 0
        else:
            self.at.worse += 1

    def _has_worsened(self) -> bool:
        """Whether to stop now. As long as rollbacks are left, it goes back to the best parameters instead."""
        training, at = self.job.training, self.at
        if not training.early_stopping or at.worse < training.patience:
            return False
        if at.rollbacks >= training.rollbacks or self.best is None:
            return True
        self.blocks, at.blocks_at, at.worse = list(self.best.blocks), self.best.at, 0
        at.rollbacks += 1
        at.book = type(at.book)()  # the rows seen by the parameters that were left behind count no more
        self._start_clock()
        self.tell({"event": "rolled_back", "to_epoch": self.best.epoch, "rate_factor": 0.5**at.rollbacks})
        return False

    # ----------------------------------------------------------------------------------------- checkpoints ----

    def _offer(self) -> None:
        """Let the state after the last finished round be saved, while the next ones run."""
        points = self.job.output.checkpoint_every
        if self.checkpointer is None or (points == "epoch" and self.at.round < self.n_rounds):
            return
        best = None
        if self.best is not None:
            best = {"at": self.best.at, "epoch": self.best.epoch, "metrics": self.best.metrics}
        is_settled = self.at.blocks_at == self.at.rounds_done
        blocks = self._recent[-1] if is_settled else self.blocks
        self.checkpointer.offer(
            Snapshot(
                self.at.rounds_done,
                {"progress": self.at.to_dict(), "bounds": self.bounds, "best": best},
                self.at.blocks_at,
                blocks,
                self.best.at if self.best else 0,
                self.best.blocks if self.best else (),
            )
        )

    @property
    def is_trained(self) -> bool:
        """Whether no round is left to train."""
        at = self.at
        return at.is_over or (at.epoch == self.job.training.n_epochs and at.round == self.n_rounds)

    def keep_result(self, checkpointer: Checkpointer) -> None:
        """Let what training has come to be saved: the best parameters where it is over, the last round where it is not
        judged yet; of a run in its midst, the snapshot that was offered last.
        """
        if self.best is None or not self.at.is_over:
            if self.is_trained and self.checkpointer is None:
                self.checkpointer = checkpointer
                self._offer()
            return
        best = {"at": self.best.at, "epoch": self.best.epoch, "metrics": self.best.metrics}
        progress = {**self.at.to_dict(), "blocks_at": self.best.at}
        state = {"progress": progress, "bounds": self.bounds, "best": best}
        # The state after the last round may be there already, under its own number.
        number, blocks = self.at.rounds_done + 1, self.best.blocks
        checkpointer.offer(Snapshot(number, state, self.best.at, blocks, self.best.at, blocks))

    def restore(self, checkpoint: Checkpoint, blocks: list[Future], best: list[Future]) -> None:
        """Stand where the checkpoint was made."""
        self.at = Progress.from_dict(checkpoint.state["progress"])
        self.bounds, self.blocks = list(checkpoint.state["bounds"]), blocks
        saved = checkpoint.state["best"]
        self.best = Best(best, saved["at"], saved["epoch"], saved["metrics"]) if saved else None

    def _cut_lineage(self) -> None:
        """From time to time, let the blocks come from a checkpoint's files instead of from the rounds before.

        Dask keeps the tasks that a result came from, to compute it again; without this the scheduler would remember the
        whole training, and a loss of all workers at once would repeat it.
        """
        if self.checkpointer is None or self._submitted - self._cut_at < _LONGEST_LINEAGE:
            return
        self._settle(0)
        self._cut_at = self._submitted
        self.checkpointer.flush()
        checkpoint = self.checkpointer.committed
        if checkpoint is None or checkpoint.rounds_done != self.at.rounds_done:
            return
        self.blocks, best = self.checkpointer.load(checkpoint)
        if self.best is not None:
            self.best.blocks = best
        self._recent.clear()
        self._recent.append(self.blocks)
