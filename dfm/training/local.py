"""The executor of this process: rows and parameters in its memory, replicas in its threads."""

from __future__ import annotations

import collections
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dfm.data.partition import SparsePartition
from dfm.data.vocabulary import Vocabulary
from dfm.kernels.tables import ParameterTable
from dfm.training import rounds
from dfm.training.backends import backend_here
from dfm.training.exact import ExactExecutor, Here
from dfm.training.executor import Metrics, Parameters, Round, nothing
from dfm.training.rounds import Block, ReplicaReport, Work


@dataclass
class LocalExecutor:
    """Trains in this process. A lone replica trains one table in place; several are averaged after each round.

    replicas: per replica its partitions, one per slice; a lone one has partitions on the whole table. n_threads: how
    many replicas train at a time.
    """

    replicas: Sequence[Sequence[SparsePartition]]
    held_out: Sequence[SparsePartition] = ()
    n_threads: int = 1
    renewer: None = None
    """Nothing is lost here without the whole process."""
    judging_seconds: float = 0.0
    """Nobody works while rows are judged."""
    _block: Block = field(init=False)
    _waiting: collections.deque[Round] = field(init=False, default_factory=collections.deque)

    @property
    def n_rows(self) -> int:
        """Rows to train on."""
        return sum(partition.n_rows for replica in self.replicas for partition in replica)

    def start(self, work: Work, table: ParameterTable) -> Work:
        """Begin with a copy of these parameters; returns the work with the backend of this process."""
        placed = work.on(backend_here(work.backend, work.spec))
        self._block = Block(0, placed.averaging.copy(table))
        return placed

    def begin_epoch(self, work: Work) -> int:
        """Replicas that are trained at a time."""
        return min(self.n_threads, len(self.replicas))

    @property
    def stretch(self) -> int:
        """A round comes when it is waited for, so that others need not be begun with it."""
        return 1

    def submit(self, stretch: Sequence[Round]) -> None:
        """Let rounds be the next ones; each is trained when somebody waits for it."""
        self._waiting += stretch

    @property
    def under_way(self) -> int:
        """Rounds that nobody has waited for."""
        return len(self._waiting)

    def finish(self) -> Sequence[Sequence[ReplicaReport]]:
        """Train the next round."""
        work, slices = self._waiting.popleft()
        if len(self.replicas) == 1:
            return [self._train_alone(work, slices)]
        self._block = rounds.train_rounds([(work, slices)], self._block, self.replicas, self.n_threads)
        return [self._block.reports]

    def _train_alone(self, work: Work, slices: range) -> list[ReplicaReport]:
        """One table, in place: no sum of changes, which would be rounded."""
        reports = []
        for number in slices:
            started = time.perf_counter()
            tally = work.kernels.run_round(self.replicas[0][number], self._block.table, work.step)
            seconds = time.perf_counter() - started
            place = f"{platform.node()}/{os.getpid()}"
            reports.append(ReplicaReport(replica=0, tally=tally, seconds=seconds, place=place, wire_bytes=0))
        return reports

    def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
        """Metrics on the held-out rows; empty where there are none. Nobody works meanwhile."""
        if not self.held_out:
            return {}
        return rounds.evaluate_partitions(work, [self._block], self.held_out).metrics()

    @property
    def parameters(self) -> Parameters:
        """A copy of the parameters."""
        return [Block(0, self._block.table.copy(), self._block.momentum)]

    @property
    def bounds(self) -> Sequence[int]:
        """Bounds of the only block."""
        return 0, self._block.table.n_features

    def restore(self, parameters: Parameters, bounds: Sequence[int]) -> None:
        """Go on from a copy of these parameters."""
        block: Block = parameters[0]
        self._block = Block(0, block.table.copy(), block.momentum)

    def fork(self, parameters: Parameters) -> LocalExecutor:
        """Another executor of this process on the same rows, which begins with a copy of these parameters."""
        other = LocalExecutor(self.replicas, self.held_out, self.n_threads)
        other.restore(parameters, self.bounds)
        return other

    def exact(self, vocabulary: Vocabulary) -> ExactExecutor:
        """The executor of an exact solver on the same rows."""
        held_out = [self.held_out] if self.held_out else []
        return ExactExecutor(Here(), self.replicas, held_out, vocabulary, self.n_rows)

    def fetch(self, parameters: Parameters) -> ParameterTable:
        """The table of these parameters."""
        table: ParameterTable = parameters[0].table
        return table
