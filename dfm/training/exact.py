"""Exact solvers as an executor of the training loop: an iteration is an epoch of one round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dfm.data.partition import SparsePartition
from dfm.data.vocabulary import Vocabulary
from dfm.errors import ClusterError, LostParametersError
from dfm.kernels.tables import ParameterTable
from dfm.model.metrics import Tally
from dfm.solvers.columns import Replica
from dfm.solvers.posterior import Draws, put_together
from dfm.training.exact_rounds import (
    LOST,
    add_predictions,
    begin_rows,
    draw_origin,
    end_rows,
    find_visits,
    first_block,
    join_values,
    judge,
    lay_out,
    meet,
    sizes_of_visits,
    solve_visit,
    walk_visit,
)
from dfm.training.exact_together import block_of, reports_of, walk_together
from dfm.training.exact_work import ExactWork, has_draws
from dfm.training.executor import Metrics, Parameters, Round, nothing
from dfm.training.rounds import Block, ReplicaReport, Work, merge_tallies
from dfm.training.together import Meeting

_ATTEMPTS = 10
"""Beginnings of one iteration before the cluster counts as lost."""
_APART = 10
"""Iterations that go by tasks one after the other, which wait for nobody, from one in which a member was lost; twice as
many from the next one, until a meeting holds.
"""


class Place(Protocol):
    """The place where tasks run: this process, or the workers of a cluster."""

    def submit(
        self, function: Callable[..., Any], *args: Any, near: tuple[int, int] = (0, 1), late: bool = False
    ) -> Any:
        """A handle of the result; arguments may be handles, or lists and tuples of them. near: this item of so many;
        late: whether others go first.
        """

    def result(self, handle: Any) -> Any:
        """The result of a task, a small one."""

    def begin(self, after_loss: bool = False) -> None:
        """See who is there. after_loss: also whether those who were there still are who they were."""

    @property
    def who(self) -> Sequence[str]:
        """Who was there."""

    @property
    def least_owned(self) -> int:
        """Features of a visit that are worth waiting for an owner. Of fewer, whoever walks rows solves for all himself,
        and the tasks of owners, whose values the next iteration begins with, may come late.
        """

    def groups(self, n_replicas: int) -> list[range]:
        """Replicas that one task walks, each group a subtree of the tree of sums."""

    def members(self, n_replicas: int) -> tuple[Meeting, list[list[range]]] | None:
        """A meeting of tasks that run at the same time, and the groups of replicas of each, all of one size. None where
        tasks cannot meet.
        """

    def settle(self, handle: Any) -> Any:
        """The parameters of a handle, from now on without a history where that is cheap; None where they were lost."""

    def keep(self, value: Any) -> Any:
        """A handle of a value of this process."""


@dataclass
class Here:
    """This process."""

    def submit(
        self, function: Callable[..., Any], *args: Any, near: tuple[int, int] = (0, 1), late: bool = False
    ) -> Any:
        """The result."""
        return function(*args)

    def result(self, handle: Any) -> Any:
        """The result."""
        return handle

    def begin(self, after_loss: bool = False) -> None:
        """Nothing."""

    @property
    def who(self) -> Sequence[str]:
        """Nobody else."""
        return ()

    @property
    def least_owned(self) -> int:
        """Nobody waits here."""
        return 0

    def groups(self, n_replicas: int) -> list[range]:
        """All at once."""
        return [range(n_replicas)]

    def members(self, n_replicas: int) -> tuple[Meeting, list[list[range]]] | None:
        """Nobody to meet."""
        return None

    def settle(self, handle: Any) -> Any:
        """The parameters."""
        return handle

    def keep(self, value: Any) -> Any:
        """The value."""
        return value


@dataclass
class _Iteration:
    """An iteration under way: its work, and handles of its parameters and of the replicas' reports."""

    work: ExactWork
    block: Any
    reports: list[Any]
    is_meeting: bool = False


@dataclass
class ExactExecutor:
    """Solves in the place that holds the rows.

    rows: handles of the partitions of each replica, one a replica; held_out: of lists of partitions; vocabulary: a
    handle. Its parameters are the block after the last iteration, then the draws that were kept.
    """

    place: Place
    rows: Sequence[Any]
    held_out: Sequence[Any]
    vocabulary: Any
    n_rows: int = 0
    renewer: None = None
    judging_seconds: float = 0.0
    """Others than the loop begin no iteration meanwhile."""
    _block: Any = None
    _draws: list[Any] = field(default_factory=list)
    _before: tuple[ExactWork, Any] | None = None
    """The last iteration, and the parameters that it began with: should its result be lost, it is made again."""
    _visits: Any = None
    _sizes: Sequence[int] = ()
    _replicas: list[Any] = field(default_factory=list)
    _laid_out_for: tuple[list[range], Sequence[str]] | None = None
    """Groups and workers of whom each has its replicas."""
    _ready: list[Any] = field(default_factory=list)
    """Tasks that tell that replicas were laid out, until these are walked."""
    _apart: int = _APART
    _apart_until: int = 0
    """The iteration before which tasks do not meet again, for a member was lost."""
    _bounds: list[int] = field(default_factory=list)
    _under_way: _Iteration | None = None
    _predicted: list[Any] = field(default_factory=list)
    _n_predicted: int = 0

    def begin_epoch(self, work: Work) -> int:
        """See who is there; groups of replicas that one of them walks at a time."""
        self.place.begin()
        return 1

    @property
    def stretch(self) -> int:
        """An iteration is begun by itself."""
        return 1

    def submit(self, stretch: Sequence[Round]) -> None:
        """Begin an iteration."""
        ((work, _),) = stretch
        assert isinstance(work, ExactWork)
        if self._visits is None:
            self._prepare(work)
        together = work.iteration >= self._apart_until
        self._under_way = (self._meeting(work) if together else None) or self._iteration(work, self._block)

    def _prepare(self, work: ExactWork) -> None:
        submit, total = self.place.submit, len(self.rows)
        meetings = [submit(meet, rows, near=(number, total)) for number, rows in enumerate(self.rows)]
        self._visits = submit(find_visits, work, self.vocabulary, meetings)
        self._sizes = self.place.result(submit(sizes_of_visits, self._visits))

    def _walked(self, work: ExactWork) -> list[tuple[list[Any], tuple[int, int]]]:
        """The replicas of each group, laid out where it walks them: there alone are their states."""
        groups, total = self.place.groups(len(self.rows)), len(self.rows)
        self._lay_out(work, groups)
        return [(self._replicas[group.start : group.stop], (group.start, total)) for group in groups]

    def _lay_out(self, work: ExactWork, groups: list[range]) -> None:
        if (groups, self.place.who) != self._laid_out_for:
            self._laid_out_for = groups, self.place.who
            self._replicas = [
                self.place.submit(
                    lay_out, work, number, self.rows[number], self._visits, near=(group.start, len(self.rows))
                )
                for group in groups
                for number in group
            ]
            self._ready = [self.place.submit(_is_there, each, near=home) for each, home in self._homes(groups)]

    def _homes(self, groups: list[range]) -> list[tuple[Any, tuple[int, int]]]:
        homes = [(group.start, len(self.rows)) for group in groups for _ in group]
        return list(zip(self._replicas, homes, strict=True))

    def _meeting(self, work: ExactWork) -> _Iteration | None:
        """An iteration by tasks that meet, where they can."""
        submit, total = self.place.submit, len(self.rows)
        met = self.place.members(total)
        if met is None:
            return None
        meeting, members = met
        self._lay_out(work, [range(groups[0].start, groups[-1].stop) for groups in members])
        walked = [
            submit(
                walk_together,
                *(work, meeting, number, self._visits, self._block),
                [self._replicas[group.start : group.stop] for group in groups],
                self._ready,  # of all: nobody waits in a meeting for rows that are still being laid out
                near=(groups[0].start, total),
            )
            for number, groups in enumerate(members)
        ]
        self._ready = []
        reports = [submit(reports_of, each) for each in walked]
        return _Iteration(work, submit(block_of, walked), reports, is_meeting=True)

    def _iteration(self, work: ExactWork, block: Any) -> _Iteration:
        submit, total, walked = self.place.submit, len(self.rows), self._walked(work)
        begun = [submit(begin_rows, work, block, group, near=home) for group, home in walked]
        origin = submit(draw_origin, work, block, begun)
        steps = [(visit, part) for visit in range(len(self._sizes)) for part in work.steps]
        known = self._visits, block, origin
        updates: list[list[Any]] = []
        last: tuple[Any, list[Any]] = None, [origin]
        for step, following in enumerate(steps):
            sums = [submit(walk_visit, work, step, known, last, following, group, near=home) for group, home in walked]
            size, least = self._sizes[following[0]], self.place.least_owned
            n_owners = min(len(walked), max(1, size // max(least, 1)))
            is_small = size < least
            owned = [
                submit(solve_visit, work, *known, following, (owner, n_owners), sums, near=home, late=is_small)
                for owner, (_, home) in enumerate(walked[:n_owners])
            ]
            updates.append(owned)
            last = (following, sums) if is_small else (None, owned)
        home = (work.iteration % total, total)
        after = submit(join_values, work, self._visits, block, origin, updates, near=home)
        reports = [submit(end_rows, work, len(steps), after, group, near=home) for group, home in walked]
        return _Iteration(work, after, reports)

    def start(self, work: Work, table: ParameterTable) -> Work:
        """Begin with these parameters, of this process."""
        self.restore([self.place.keep(Block(0, table))], [0, table.n_features])
        return work

    def fetch(self, parameters: Parameters) -> ParameterTable:
        """The table of the block among these parameters, brought here."""
        block: Block = self.place.result(parameters[0])
        return block.table

    def fetch_draws(self, work: Work, parameters: Parameters) -> tuple[ParameterTable, Draws | None]:
        """The table of the model that these parameters make, and its draws, if it has any, brought here."""
        if not has_draws(work):
            return self.fetch(parameters), None
        blocks: list[Block] = [self.place.result(each) for each in draws_of(parameters)]
        return put_together([block.table for block in blocks], [block.noise for block in blocks])

    @property
    def under_way(self) -> int:
        """Iterations that were begun and not waited for."""
        return int(self._under_way is not None)

    def finish(self) -> Sequence[Sequence[ReplicaReport]]:
        """Wait for the iteration under way; what its replicas saw."""
        assert self._under_way is not None
        iteration, self._under_way = self._under_way, None
        for _ in range(_ATTEMPTS):
            reports = [self.place.result(each) for each in iteration.reports]
            is_whole = all(each is not None for each in reports)
            settled = self.place.settle(iteration.block) if is_whole else None
            if settled is not None:
                break
            if iteration.is_meeting:
                self._apart_until, self._apart = iteration.work.iteration + self._apart, 2 * self._apart
            iteration = self._again(iteration.work)
        else:
            raise ClusterError(
                f"iteration {iteration.work.iteration} was begun {_ATTEMPTS} times, and each time workers lost what "
                "they had of it: see that they stay up, and have memory for their rows, and run the same command "
                "again, which goes on from the last checkpoint"
            )
        if iteration.is_meeting:
            self._apart = _APART
        self._before = iteration.work, self._block
        self._block = settled
        if iteration.work.solving.keeps(iteration.work.iteration):
            self._draws.append(self._block)
        return [[report for each in reports for report in each]]

    def _again(self, work: ExactWork) -> _Iteration:
        """The iteration from its beginning; the one before it, too, where its parameters were lost."""
        self.place.begin(after_loss=True)
        if self.place.result(self.place.submit(_is_lost, self._block)) and self._before is not None:
            before, block = self._before
            if self.place.result(self.place.submit(_is_lost, block)):
                raise LostParametersError(LOST)
            again = self._iteration(before, block)
            if self._draws and self._draws[-1] is self._block:
                self._draws[-1] = again.block
            self._block = again.block
        return self._iteration(work, self._block)

    def evaluate(self, work: Work, meanwhile: Callable[[], None] = nothing) -> Metrics:
        """Metrics on the held-out rows, of the mean over the draws that were kept; before there are any, of the last
        parameters. Empty where there are no such rows. No iteration is begun meanwhile.
        """
        assert isinstance(work, ExactWork)
        if not self.held_out:
            return {}
        submit, total = self.place.submit, len(self.held_out)
        for draw in self._draws[self._n_predicted :]:
            before = self._predicted or [None] * total
            self._predicted = [
                submit(add_predictions, work, draw, rows, known, near=(number, total))
                for number, (rows, known) in enumerate(zip(self.held_out, before, strict=True))
            ]
            self._n_predicted += 1
        known = self._predicted or [
            submit(add_predictions, work, self._block, rows, None, near=(number, total))
            for number, rows in enumerate(self.held_out)
        ]
        tallies = [
            submit(judge, work, max(self._n_predicted, 1), rows, sums, near=(number, total))
            for number, (rows, sums) in enumerate(zip(self.held_out, known, strict=True))
        ]
        tally: Tally = self.place.result(submit(merge_tallies, tallies))
        return tally.metrics()

    @property
    def parameters(self) -> Parameters:
        """The block after the last finished iteration, then the draws that were kept."""
        return [self._block, *self._draws]

    @property
    def bounds(self) -> Sequence[int]:
        """Bounds of the only block."""
        return self._bounds

    def restore(self, parameters: Parameters, bounds: Sequence[int]) -> None:
        """Go on from this block, with the draws that follow it."""
        self._block, *self._draws = parameters
        self._bounds, self._before, self._under_way = list(bounds), None, None
        self._predicted, self._n_predicted = [], 0

    def fork(self, parameters: Parameters) -> ExactExecutor:
        """Another executor on the same rows, which begins with these parameters."""
        other = ExactExecutor(self.place, self.rows, self.held_out, self.vocabulary, self.n_rows)
        other.restore(parameters, self.bounds)
        return other


def _is_there(replica: Replica) -> bool:
    return bool(replica.columns)


def _is_lost(block: Block | None) -> bool:
    return block is None


def draws_of(parameters: Parameters) -> Sequence[Any]:
    """The draws that a model is made of: those that were kept or, of a run that ended before any was, the last."""
    return parameters[1:] or parameters[:1]


def warm_up(work: ExactWork) -> float:
    """Compile in this process what an iteration needs; returns the seconds that it took."""
    started = time.perf_counter()
    ids, ones, nothing = np.arange(2, dtype=np.uint32), np.ones(1, np.float32), np.zeros(0, np.float32)
    fields = np.arange(2, dtype=np.uint16)
    n_factored = 1 if work.layout.n_factors else 0
    partition = SparsePartition(np.array([0, 2]), ids, nothing, ones, nothing, ids, n_factored, 1, fields)
    vocabulary = Vocabulary(ids, np.ones(2, np.int64), fields, np.full(2, -1, np.int64), n_factored, 10)
    executor = ExactExecutor(Here(), [[partition]], [[partition]], vocabulary)
    executor.restore([first_block(work, vocabulary, 1.0, 0)], [0, 2])
    executor.submit([(work, range(1))])
    executor.finish()
    executor.evaluate(work)
    return time.perf_counter() - started
