"""The executor of a cluster: partitions and parameters lie on its workers, the driver holds futures of them."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace

from distributed import Client, Future, get_client
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

from dfm.data.partition import SparsePartition
from dfm.data.vocabulary import Vocabulary
from dfm.distributed import backends
from dfm.distributed.cluster.watch import MOST_REMEMBERED, Watch, home_of
from dfm.distributed.exact import Workers
from dfm.errors import ClusterError
from dfm.kernels.tables import ParameterTable
from dfm.model.metrics import Tally
from dfm.training import rounds
from dfm.training.backends import Workplaces
from dfm.training.exact import ExactExecutor
from dfm.training.executor import Metrics, Parameters, Round, nothing
from dfm.training.rounds import Block, ReplicaReport, Work

_WORKER_TIMEOUT = 60.0
"""Seconds without any worker after which a fit gives up."""


def watch_of(client: Client | None) -> Watch:
    """The given client, or the current one, watched. ClusterError where there is none."""
    try:
        return Watch(get_client() if client is None else client, _WORKER_TIMEOUT)
    except ValueError as error:  # of get_client
        raise ClusterError(
            "a fit on a Dask collection runs on a cluster: start one (dask.distributed.Client()) or pass client="
        ) from error


@contextlib.contextmanager
def told_to_a_fit() -> Iterator[None]:
    """Trouble of the cluster inside the block is a ClusterError that tells who called a fit what to do."""
    try:
        yield
    except KilledWorker as error:
        raise ClusterError(
            f"the task {error.task} ended {error.allowed_failures + 1} workers, perhaps for want of memory; their logs "
            "tell. If so, give workers more memory, or cut X into smaller chunks (rechunk, repartition) and take more "
            "n_replicas"
        ) from error
    except CancelledError as error:
        raise ClusterError(
            f"what the fit needs was lost with a worker, and Dask cannot compute it again ({error}): rows that were "
            "scattered, or more than the scheduler remembers. Fit again, on a collection that Dask can compute "
            "(dask.dataframe.read_parquet, dask.array.from_array)"
        ) from error
    except (NoWorkerError, NoValidWorkerError, CommClosedError, ClosedClientError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ClusterError(
            f"the cluster was lost during the fit ({reason}); see that scheduler and workers are up, make a new client "
            "and fit again"
        ) from error


def scatter_replicas(watch: Watch, replicas: Sequence[Sequence[SparsePartition]]) -> list[Future]:
    """Partitions that lie here, sent to the workers that will train on them; per replica a list of them."""
    addresses = watch.addresses()
    is_too_much = sum(partition.nbytes for partitions in replicas for partition in partitions) > MOST_REMEMBERED
    placed = []
    for number, partitions in enumerate(replicas):
        near = home_of(number, len(replicas), addresses)
        if is_too_much:
            sent = [watch.client.scatter(partition, workers=[near], hash=False) for partition in partitions]
        else:
            sent = [watch.keep(partition, near) for partition in partitions]
        placed.append(watch.submit(list, sent, near=near))
    return placed


@dataclass
class _Flight:
    """Rounds that were submitted, and the parameters that they make."""

    n_rounds: int
    blocks: list[Future]
    reports: Future


@dataclass
class DaskExecutor:
    """Trains on the workers of a cluster; rounds are tasks of Dask, each a function of what the one before made.

    replicas, held_out: futures of lists of partitions. blocks: of the parameters to begin with, cut at the rows
    `bounds`. cuts_pushes: whether pushes are cut into blocks before they travel, or travel whole, which saves a task
    for each part. resources: what a training task takes of its worker (see `backends`). stretch: rounds that one task
    trains, where it is more than one, in threads of one worker, which then has the rows of all; of `home`, its number
    among them. judges_at_home: it has the held-out rows, too, and judges them.
    """

    watch: Watch
    replicas: Sequence[Future]
    held_out: Sequence[Future] = ()
    blocks: list[Future] = field(default_factory=list)
    bounds: Sequence[int] = ()
    cuts_pushes: bool = False
    resources: Mapping[str, float] | None = None
    stretch: int = 1
    home: int = 0
    judges_at_home: bool = False
    judging_seconds: float = field(init=False, default=0.0)
    _flights: collections.deque[_Flight] = field(init=False, default_factory=collections.deque)
    _recent: collections.deque[list[Future]] = field(init=False, default_factory=lambda: collections.deque(maxlen=2))
    """Blocks of the last finished rounds. Held until copies of the next ones lie on all workers, they spare Dask to
    compute more than a round again when a worker is lost."""
    _threads: Mapping[str, int] = field(init=False, default_factory=dict)
    """Threads of each worker, by address."""
    _places: Workplaces = field(init=False, default=Workplaces(1, 1))

    def begin_epoch(self, work: Work) -> int:
        """See which workers there are; replicas that one of them trains at a time."""
        self._see_workers()
        if self.stretch > 1:
            return min(self._places.n_threads, len(self.replicas))
        return max(1, work.chosen.n_walks(self._places) // len(self._addresses))

    def _see_workers(self) -> None:
        self._threads = self.watch.threads()
        self._places = Workplaces(sum(self._threads.values()), len(self._threads))

    @property
    def _addresses(self) -> list[str]:
        return list(self._threads)

    def submit(self, stretch: Sequence[Round]) -> None:
        """Submit some rounds; the blocks of the next ones depend on those of the last of them."""
        if self.stretch == 1:
            for work, slices in stretch:
                self._submit_round(work, slices)
            return
        n_threads = self._places.n_threads
        (block,) = self.blocks
        block = self.watch.submit(rounds.train_rounds, stretch, block, self.replicas, n_threads, near=self._home)
        self._take_off(len(stretch), [block])

    @property
    def _home(self) -> str:
        """The worker that trains rounds together."""
        return self._addresses[self.home % len(self._addresses)]

    def _submit_round(self, work: Work, slices: range) -> None:
        n_replicas = len(self.replicas)
        pushes = [
            self.watch.submit(
                rounds.train_replicas,
                *(work, group.start, slices, self.blocks, self.replicas[group.start : group.stop]),
                near=home_of(group.start, n_replicas, self._addresses),
                resources=self.resources,
            )
            for group in work.chosen.groups(n_replicas, self._places)
        ]
        self._take_off(1, [self._merge(work, number, pushes) for number in range(len(self.blocks))])

    def _take_off(self, n_rounds: int, blocks: list[Future]) -> None:
        """Take note of rounds that make these blocks."""
        self.blocks = blocks
        self._flights.append(_Flight(n_rounds, blocks, self.watch.submit(rounds.reports_of, blocks[0])))

    def _merge(self, work: Work, number: int, pushes: list[Future]) -> Future:
        parts = pushes
        if self.cuts_pushes:
            bounds = self.bounds[number : number + 2]
            parts = [self.watch.submit(rounds.part_of_push, push, *bounds) for push in pushes]
        near = home_of(number, len(self.blocks), self._addresses)
        return self.watch.submit(rounds.merge_block, work, self.blocks[number], parts, near=near)

    @property
    def under_way(self) -> int:
        """Rounds that were submitted and not waited for."""
        return sum(flight.n_rounds for flight in self._flights)

    def finish(self) -> Sequence[Sequence[ReplicaReport]]:
        """Wait for the earliest rounds under way; what their replicas saw, round by round."""
        flight = self._flights.popleft()
        reports: Sequence[ReplicaReport] = self.watch.result(flight.reports)
        self._recent.append(flight.blocks)
        each = len(reports) // flight.n_rounds
        return [reports[first : first + each] for first in range(0, len(reports), each)]

    def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
        """Metrics on the held-out rows, of the blocks submitted last; empty where there are no such rows."""
        if not self.held_out:
            return {}
        if self.judges_at_home and self.stretch > 1:
            return self._evaluate_at_home(work, meanwhile)
        self.judging_seconds = 0.0
        # Without a wish of where to: Dask goes where the rows lie.
        tallies = [
            self.watch.submit(rounds.evaluate_partitions, work, self.blocks, partitions) for partitions in self.held_out
        ]
        merged = self.watch.submit(rounds.merge_tallies, tallies)
        meanwhile()
        tally: Tally = self.watch.result(merged)
        return tally.metrics()

    def _evaluate_at_home(self, work: Work, meanwhile: Callable[[], None]) -> Metrics:
        """The same where rounds are trained together; the next ones wait for it, where that worker has one thread."""
        if not self._threads:
            self._see_workers()
        what = work, self.blocks, self.held_out, self._places.n_threads
        # Tasks that are submitted within a moment have one priority, and run in any order.
        judged = self.watch.submit(rounds.evaluate_together, *what, near=self._home, priority=1)
        meanwhile()
        tally, seconds = self.watch.result(judged)
        self.judging_seconds = seconds if self._threads[self._home] == 1 else 0.0
        metrics: Metrics = tally.metrics()
        return metrics

    @property
    def parameters(self) -> Parameters:
        """Futures of the blocks after the last finished round."""
        return list(self._recent[-1]) if self._recent else list(self.blocks)

    def restore(self, parameters: Parameters, bounds: Sequence[int]) -> None:
        """Go on from these blocks, cut at these rows; rounds under way are given up."""
        self._flights.clear()
        self.blocks, self.bounds = list(parameters), list(bounds)
        if len(self.bounds) > 2:  # of a run on more workers: each block is merged by another task
            self.stretch = 1
        self._recent.clear()
        self._recent.append(self.blocks)

    def fork(self, parameters: Parameters) -> DaskExecutor:
        """Another executor of the same cluster on the same rows, which begins with these blocks."""
        other = replace(self)
        other.restore(parameters, self.bounds)
        return other


@dataclass
class FitExecutor(DaskExecutor):
    """Trains a fit, whose parameters begin as a table of this process."""

    @property
    def n_rows(self) -> int:
        """Rows to train on."""
        counts = [self.watch.submit(_rows_of, partitions) for partitions in self.replicas]
        return sum(self.watch.result(count) for count in counts)

    @property
    def renewer(self) -> FitExecutor:
        """Itself."""
        return self

    def start(self, work: Work, table: ParameterTable) -> Work:
        """Begin with these parameters; returns the work with a backend that all workers have."""
        choice = backends.choose(self.watch.client, work.backend, work.spec, self.watch.addresses())
        self.resources = choice.resources
        self.restore([self.watch.keep(Block(0, table))], [0, table.n_features])
        return work.on(choice.backend)

    def exact(self, vocabulary: Vocabulary) -> ExactExecutor:
        """The executor of an exact solver on the same rows."""
        place = Workers(self.watch)
        return ExactExecutor(place, self.replicas, self.held_out, place.keep(vocabulary), self.n_rows)

    def renew(self, rounds_done: int, blocks: Parameters, best: Parameters) -> tuple[Parameters, Parameters]:
        """The parameters, brought here and sent to all workers again."""
        sent = [self.watch.keep(Block(0, self.fetch([block]))) for block in (*blocks, *best)]
        return sent[: len(blocks)], sent[len(blocks) :]

    def fetch(self, parameters: Parameters) -> ParameterTable:
        """The table of these parameters, with optimizer state, brought here."""
        (block,) = parameters
        table: ParameterTable = self.watch.result(self.watch.submit(_table_of, block))
        return table.copy()


def _table_of(block: Block) -> ParameterTable:
    return block.table


def _rows_of(partitions: Sequence[SparsePartition]) -> int:
    return sum(partition.n_rows for partition in partitions)
