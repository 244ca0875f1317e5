"""Exact solvers on a cluster: visits are tasks of Dask, and what rows keep between them stays on their workers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Future

from dfm.averaging.contributions import groups_at_home
from dfm.distributed.checkpointing import Checkpointer
from dfm.distributed.cluster.watch import Watch, home_of
from dfm.distributed.exchange import Door, WorkersMeeting, open_door
from dfm.distributed.prepare import Prepared
from dfm.distributed.run import Event, Run
from dfm.settings.tables import MCMC
from dfm.training.backends import NUMBA
from dfm.training.exact import ExactExecutor
from dfm.training.exact_rounds import first_block
from dfm.training.exact_work import ExactSchedule, ExactWork, crowd_of, goal_of, initial_bias, initial_stdev, of_rows
from dfm.training.loop import Manner, TrainingLoop
from dfm.training.progress import check_round, epoch_event
from dfm.training.rounds import Block
from dfm.training.steps import exact_step
from dfm.training.together import Meeting

_LEAST_OWNED = 4096
"""Features of a visit, 6 ms of drawing at k = 8, that are worth a task of their own."""
_MOST_MEMBERS = 32
"""Members of a meeting: each sends to each."""
_ASK_AGAIN = 8
"""Iterations after which workers that could not meet are asked again."""
_MOST_KEPT = 16 << 20
"""Bytes of parameters that this process hands on to the next iteration itself: nothing then depends on the last one."""


@dataclass
class Workers:
    """The workers of a cluster, as a place for an exact solver's tasks."""

    watch: Watch
    _addresses: list[str] = field(default_factory=list)
    _groups: dict[int, list[range]] = field(default_factory=dict)
    _n_threads: int = 0
    """Tasks that each worker runs at a time."""
    _doors: list[Door] = field(default_factory=list)
    """Doors of all workers, where their tasks can meet."""
    _begun: int = 0
    _is_small: bool | None = None
    """Whether the parameters are so few that this process may hand them on; None before it has seen some."""

    def submit(
        self, function: Callable[..., Any], *args: Any, near: tuple[int, int] = (0, 1), late: bool = False
    ) -> Future:
        """A future of the result."""
        if not self._addresses:
            self.begin()
        return self.watch.submit(function, *args, near=home_of(*near, self._addresses), priority=-int(late))

    def result(self, handle: Future) -> Any:
        """The result of a task, a small one."""
        return self.watch.result(handle)

    def begin(self, after_loss: bool = False) -> None:
        """See which workers there are, and whether their tasks can meet."""
        threads = self.watch.threads()
        is_time = not self._doors and self._begun % _ASK_AGAIN == 0
        self._begun += 1
        if list(threads) != self._addresses or after_loss or is_time:
            self._addresses, self._n_threads = list(threads), min(threads.values())
            doors = self.watch.results([self.watch.submit(open_door, near=address) for address in threads])
            is_open = [door.address if door else "" for door in doors] == self._addresses
            self._doors = doors if is_open else []  # a task of a busy worker may have gone to another
        self._groups.clear()

    @property
    def who(self) -> Sequence[str]:
        """Their addresses."""
        return list(self._addresses)

    @property
    def least_owned(self) -> int:
        """As many as are drawn while a task comes and goes."""
        return _LEAST_OWNED

    def groups(self, n_replicas: int) -> list[range]:
        """As many groups as tasks run at a time, or a few more."""
        if n_replicas not in self._groups:
            self._groups[n_replicas] = NUMBA.groups(n_replicas, self.watch.workplaces())
        return self._groups[n_replicas]

    def members(self, n_replicas: int) -> tuple[Meeting, list[list[range]]] | None:
        """A member for each thread of each worker that has replicas."""
        members = members_of(n_replicas, min(self._n_threads * len(self._addresses), n_replicas))
        if not self._doors or len(members) > _MOST_MEMBERS:
            return None
        doors = [home_of(groups[0].start, n_replicas, self._doors) for groups in members]
        return WorkersMeeting(tuple(doors)), members

    def settle(self, handle: Future) -> Future | None:
        """A future of the same block that depends on no task before it, unless it is large. None where it was lost
        with its workers, and could not be made again from what others keep.
        """
        if self._is_small is None:
            n_bytes = self.watch.result(self.watch.submit(_n_bytes, handle))
            if n_bytes is None:
                return None
            self._is_small = n_bytes <= _MOST_KEPT
        if not self._is_small:
            return handle
        block = self.watch.result(handle)
        return None if block is None else self.watch.keep(block)

    def keep(self, value: Any) -> Future:
        """A future of a value of this process, which survives the loss of workers."""
        return self.watch.keep(value)


def members_of(n_replicas: int, n_members: int) -> list[list[range]]:
    """The replicas of each member, in groups of one power of two each (the last may be smaller).

    Member h of n has the replicas from ceil(h × n_replicas / n) on or, where groups would be small, from up to a
    quarter of a member's share later on: the first is at home where the member is.
    """
    groups = groups_at_home(n_replicas, n_members)
    size = max(len(groups[0]), 1 << max(n_replicas // (4 * n_members), 1).bit_length() - 1)
    bounds = [-(-member * n_replicas // n_members) for member in range(n_members)] + [n_replicas]
    bounds = [min(-(-bound // size) * size, n_replicas) for bound in bounds]
    return [
        [range(first, min(first + size, n_replicas)) for first in range(start, stop, size)]
        for start, stop in itertools.pairwise(bounds)
    ]


def _n_bytes(block: Block | None) -> int | None:
    return None if block is None else block.table.nbytes


def exact_loop(run: Run, prepared: Prepared, checkpointer: Checkpointer | None) -> TrainingLoop:
    """The loop of an exact solver, whose executor has no parameters yet."""
    objective, unit, work = run.order.objective, prepared.reading.units.label, run.work
    assert isinstance(work, ExactWork)
    work = of_rows(work, run.job.training, _crowd(prepared))
    executor = ExactExecutor(
        Workers(run.watch), prepared.replicas, prepared.validation, prepared.vocabulary, prepared.account.accepted
    )
    executor.restore([None], [0, prepared.summary.n_features])
    return TrainingLoop(
        work=dataclasses.replace(work, unit=unit, clip=prepared.reading.clip, by_group=bool(run.job.schema.group)),
        objective=objective,
        plan=run.inputs.plan,
        schedule=ExactSchedule("constant", run.job.model.seed),
        goal=goal_of(run.job.training),
        executor=executor,
        manner=Manner(functools.partial(epoch_event, objective, unit), functools.partial(check_round, objective)),
        n_rows=prepared.account.accepted,
        tell=run.tell,
        checkpointer=checkpointer,
        renewer=checkpointer,
        checkpoint_every=run.job.output.checkpoint_every,
    )


def at_first_block(run: Run, prepared: Prepared, loop: TrainingLoop) -> TrainingLoop:
    """The loop with the parameters before its first iteration."""
    assert isinstance(loop.work, ExactWork)
    model, bounds = run.job.model, loop.executor.bounds
    bias = initial_bias(model.task, prepared.account.labels.mean)
    stdev = initial_stdev(model, run.job.training, prepared.account.entries, _crowd(prepared))
    block = run.watch.submit(first_block, loop.work, prepared.vocabulary, stdev, model.seed, bias)
    loop.executor.restore([block], bounds)
    return loop


def _crowd(prepared: Prepared) -> float:
    return crowd_of(prepared.account.entries, prepared.summary.spread)


def solving_numbers(run: Run, prepared: Prepared) -> dict[str, Any]:
    """The numbers that an exact solver begins with, for the manifest. JSON-ready."""
    training, crowd = run.job.training, _crowd(prepared)
    stdev = initial_stdev(run.job.model, training, prepared.account.entries, crowd)
    step = exact_step(training, crowd)
    found = {"solver": training.solver, "iterations": training.n_iterations, "init_stdev": stdev}
    if training.solver == MCMC:
        return {**found, "burn_in": training.n_burnt, "draws": training.n_kept}
    return {**found, "l2_linear": step.l2_linear, "l2_factors": step.l2_factors}


def solving_event(run: Run, prepared: Prepared) -> Event:
    """The event of what an exact solver begins with."""
    return {"event": "solving", **solving_numbers(run, prepared), "epochs": run.job.training.n_iterations}
