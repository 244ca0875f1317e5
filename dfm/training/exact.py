"""Exact solvers as an executor of the training loop: an iteration is an epoch of one round.

Tasks are functions of parameters and rows. What rows keep between visits (see `State`) lies beside them in the worker's
memory and is no result of any task: one that does not find it as it should be gives None, and so do all that build on
it, and the iteration is begun again. Draws are keyed by iteration, visit and feature, so that it gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.contributions import fold
from dfm.data.partition import SparsePartition
from dfm.data.units import LabelUnit
from dfm.data.vocabulary import Vocabulary
from dfm.errors import ClusterError
from dfm.kernels.contract import KernelSpec, RoundTally, Step
from dfm.kernels.optimizers import STATELESS
from dfm.kernels.tables import InitialValues, ParameterTable, allocate, pull
from dfm.model.metrics import Tally
from dfm.settings.tables import ALS, MCMC, ModelSettings, TrainingSettings
from dfm.solvers.chance import key_of
from dfm.solvers.columns import Column, Replica, State, replica_of
from dfm.solvers.posterior import Draws, logits, probabilities, put_together
from dfm.solvers.passes import collect, score_rows, take_targets, take_values
from dfm.solvers.solving import draw_bias, draw_precision, draw_prior, solve
from dfm.solvers.sums import Part, Sums, n_sums, parts_of
from dfm.solvers.visits import Visits, meetings_of, united_meetings, visits_of
from dfm.storage.arrays import read_only
from dfm.training.backends import NUMBA
from dfm.training.executor import Metrics, Parameters
from dfm.training.loop import Goal
from dfm.training.rounds import Block, ReplicaReport, Work, initial_block, merge_tallies
from dfm.training.steps import StepSchedule, merge_rule

L2 = {"l2_linear": 5.0, "l2_factors": 10.0}
"""Penalties of least squares beside the sum of squared errors of labels of deviation 1, where the job does not say."""
INIT_STDEV = 0.1
"""Deviation of the factors at the start, as libFM has it: near 0 the first draws of their precision would keep them
there."""
HELD_BIAS = 1.0
"""Precision of w0 before any row is seen, in the unit of the training."""
_ATTEMPTS = 10
"""Beginnings of one iteration before the cluster counts as lost."""
_PRECISION, _BIAS, _LINEAR_PRIOR, _FACTOR_PRIOR, _LATENT, _VALUES = range(6)
"""What is drawn in an iteration; numbers below its key."""
Sum4 = NDArray[np.float64]


@dataclass(frozen=True)
class Solving:
    """How to solve. burn_in: iterations whose draws are not kept; n_draws: kept of those that follow, evenly spread."""

    solver: str
    n_iterations: int
    burn_in: int = 0
    n_draws: int = 1

    @property
    def draws(self) -> bool:
        """Whether values are drawn, and not solved for."""
        return self.solver == MCMC

    def keeps(self, iteration: int) -> bool:
        """Whether the draw of an iteration (from 1) is kept."""
        at, last = iteration - self.burn_in, self.n_iterations - self.burn_in
        if not self.draws or at < 1:
            return False
        kept = min(self.n_draws, last)
        return at * kept // last > (at - 1) * kept // last


@dataclass(frozen=True)
class ExactWork(Work):
    """The work of an exact solver's tasks. Of `step`, the seed of the iteration and the penalties are read."""

    solving: Solving = field(default_factory=lambda: Solving(ALS, 1))
    iteration: int = 0

    @property
    def is_probit(self) -> bool:
        """Whether labels are the signs of latent numbers."""
        return self.task == "classification"

    def key(self, *path: int) -> np.uint64:
        """The key of something that is drawn in this iteration."""
        key = np.uint64(self.step.seed)
        with np.errstate(over="ignore"):
            for number in path:
                key = np.uint64(key_of(key, np.uint64(number)))
        return key

    @property
    def steps(self) -> list[Part]:
        """Parts of the unknowns of each visit."""
        return parts_of(self.layout.n_factors)


@dataclass(frozen=True)
class ExactSchedule(StepSchedule):
    """Seed and number of each iteration. Iterations have no step size."""

    def work(self, work: Work, rounds_done: int, standing: tuple[float, int], rollbacks: int = 0) -> Work:
        """The work of the iteration that comes after so many others."""
        with np.errstate(over="ignore"):
            seed = int(key_of(np.uint64(self.seed), np.uint64(rounds_done))) >> 1
        step: Step = dataclasses.replace(work.step, seed=seed)
        return dataclasses.replace(work, step=step, iteration=rounds_done + 1)  # type: ignore[call-arg] # an ExactWork


# ------------------------------------------------------------------------------------------- before all ----


def meet(partitions: Sequence[SparsePartition]) -> NDArray[np.uint64]:
    """Pairs of features of one field that a row of the partitions holds."""
    return united_meetings([meetings_of(partition) for partition in partitions])


def find_visits(work: ExactWork, vocabulary: Vocabulary, meetings: Sequence[NDArray[np.uint64]]) -> Visits:
    """The visits of the vocabulary's features."""
    n_factored = vocabulary.n_factored if work.layout.n_factors else 0
    return visits_of(vocabulary.fields, n_factored, united_meetings(meetings))


def number_of_visits(visits: Visits) -> int:
    """How many visits an iteration makes."""
    return len(visits.visits)


def lay_out(work: ExactWork, number: int, partitions: Sequence[SparsePartition], visits: Visits) -> Replica:
    """The rows of a replica by visit."""
    (partition,) = partitions
    if not work.layout.n_factors:
        partition = dataclasses.replace(partition, n_factored=0)
    return replica_of(number, partition, visits, work.layout.n_factors)


def initial_stdev(model: ModelSettings) -> float:
    """Standard deviation of the initial factors."""
    return INIT_STDEV if model.init_stdev == "auto" else float(model.init_stdev)


def first_block(work: ExactWork, vocabulary: Vocabulary, stdev: float, bias: float, seed: int) -> Block:
    """The parameters before the first iteration: factors from N(0, stdev²), by seed and hashed feature."""
    n_features = vocabulary.n_features
    block = initial_block(vocabulary, work.layout, (0, n_features), InitialValues(seed, stdev, bias=bias))
    work = dataclasses.replace(work, step=dataclasses.replace(work.step, seed=seed))
    return dataclasses.replace(block, table=initial_values(work, vocabulary, block.table, stdev))


def initial_values(work: ExactWork, vocabulary: Vocabulary, table: ParameterTable, stdev: float) -> ParameterTable:
    """A table like this one with factors drawn from N(0, stdev²), by the work's seed and hashed feature."""
    ids = vocabulary.ids[: table.n_factored]
    new, width = table.copy(), table.layout.n_factors
    key = work.key(_VALUES)
    sums, prior = np.zeros((len(ids), n_sums(width))), np.zeros((width, 2))
    prior[:, 0] = stdev**-2.0
    found = np.zeros((len(ids), width), np.float32)
    with np.errstate(over="ignore"):
        solve(sums, found.copy(), 0.0, prior, True, key, read_only(ids), found)
    new.factor_weights[...] = found
    return new


# ---------------------------------------------------------------------------------------- an iteration ----


@dataclass(frozen=True)
class Origin:
    """What is drawn before all visits: w0, and how far it moved; α."""

    bias: float
    move: float
    precision: float


@dataclass(frozen=True)
class Update:
    """New values of a visit's features: float32[n_factored, n] of the part's columns, then w float32[n] or empty."""

    visit: int
    part: Part
    factors: NDArray[np.float32]
    linear: NDArray[np.float32]


def begin_rows(work: ExactWork, block: Block | None, replicas: Sequence[Replica]) -> Sum4 | None:
    """Make the states of the rows from the parameters; Σ ω, Σ ω e, Σ ω e² and Σ ω loss."""
    if block is None:
        return None
    return fold([_begin(work, block.table, replica) for replica in replicas], np.add)


def _begin(work: ExactWork, table: ParameterTable, replica: Replica) -> Sum4:
    started, partition = time.perf_counter(), replica.partition
    local = pull([table], partition.features, partition.n_factored)
    rows = scored(partition, local)
    key = work.key(_LATENT, replica.number)
    with np.errstate(over="ignore"):
        labels, weights = read_only(partition.labels), read_only(partition.weights)
        sums = take_targets(rows, labels, weights, work.is_probit, work.solving.draws, key)
    replica.state = State(work.step.seed, 0, rows, local, sums[3], time.perf_counter() - started)
    return np.array(sums)


def scored(partition: SparsePartition, table: ParameterTable) -> NDArray[np.float32]:
    """Σ_j V_j x_j and the score of every row, float32[n_rows, n_factors + 1], by a table of the partition's features."""
    n_factors = table.layout.n_factors
    rows = np.empty((partition.n_rows, n_factors + 1), np.float32)
    source = read_only(partition.indptr), read_only(partition.indices), read_only(partition.values)
    parameters = read_only(table.linear), read_only(table.factors)
    score_rows((*source, partition.n_implicit), float(table.bias_value), *parameters, n_factors, rows)
    return rows


def draw_origin(work: ExactWork, block: Block | None, parts: Sequence[Sum4 | None]) -> Origin | None:
    """α and w0, given all else."""
    if block is None or any(part is None for part in parts):
        return None
    mass, first, second, _ = fold([part for part in parts if part is not None], np.add)
    old, draws, precision = float(block.table.bias_value), work.solving.draws, 1.0
    with np.errstate(over="ignore"):
        if draws and not work.is_probit:
            precision = float(draw_precision(mass, second, work.key(_PRECISION)))
        held = HELD_BIAS if draws else 0.0
        bias = np.float32(draw_bias(mass, first, precision, old, held, draws, work.key(_BIAS)))
    return Origin(float(bias), float(bias) - old, precision)


def walk_visit(
    work: ExactWork, step: int, last: Origin | Update | None, following: tuple[int, Part], replicas: Sequence[Replica]
) -> Sums | None:
    """Take the values that the last visit brought, then add up what the following one has to know."""
    if last is None or not all(_stands_at(replica, work, step) for replica in replicas):
        return None
    return fold([_advance(last, following, replica) for replica in replicas], lambda a, b: a + b)


def _stands_at(replica: Replica, work: ExactWork, step: int) -> bool:
    state = replica.state
    return state is not None and (state.seed, state.step) == (work.step.seed, step)


def _advance(last: Origin | Update, following: tuple[int, Part], replica: Replica) -> Sums:
    started, state = time.perf_counter(), replica.state
    assert state is not None
    state.step += 1
    if isinstance(last, Origin):
        state.rows[:, -1] += np.float32(last.move)
    else:
        _take(last, replica.columns[last.visit], state)
    visit, part = following
    sums = _sums_of(part, replica.columns[visit], replica.partition, state)
    state.seconds += time.perf_counter() - started
    return sums


def _take(update: Update, column: Column, state: State) -> None:
    part, table, owners = update.part, state.table, column.features[: column.n_factored]
    here = slice(part.first, part.last)
    old = np.ascontiguousarray(table.factors[owners, here])
    new, moves = update.factors[column.places[: column.n_factored]], np.zeros(0, np.float32)
    if part.with_linear:
        linear = update.linear[column.places]
        moves = linear - table.linear[column.features, 0]
        table.linear[column.features, 0] = linear
    table.factors[owners, here] = new
    take_values(_entries(column), part.first, new - old, moves, old, state.rows)


def _sums_of(part: Part, column: Column, partition: SparsePartition, state: State) -> Sums:
    owners = column.features[: column.n_factored]
    factors = np.ascontiguousarray(state.table.factors[owners, part.first : part.last])
    factored = np.zeros((column.n_factored, n_sums(part.width)))
    lone = np.zeros((len(column.features) - column.n_factored, n_sums(1)))
    add = collect(part.last - part.first, part.with_linear)
    weights = read_only(partition.weights)
    add(_entries(column), weights, part.first, read_only(factors), read_only(state.rows), factored, lone)
    return Sums(column.places, factored, lone)


def _entries(column: Column) -> tuple[NDArray[Any], ...]:
    return read_only(column.rows), read_only(column.slots), read_only(column.values)


def solve_visit(
    work: ExactWork,
    visits: Visits,
    block: Block | None,
    origin: Origin | None,
    following: tuple[int, Part],
    parts: Sequence[Sums | None],
) -> Update | None:
    """Solve for the features of a visit, or draw them."""
    if block is None or origin is None or any(sums is None for sums in parts):
        return None
    number, part = following
    visit, table = visits.visits[number], block.table
    total = fold([sums for sums in parts if sums is not None], lambda a, b: a + b)
    factored, lone = total.spread(len(visit.features), visit.n_factored)
    owners, others = visit.features[: visit.n_factored], visit.features[visit.n_factored :]
    old = _values(table, owners, part)
    new, alone = np.empty_like(old), np.empty((len(others), 1), np.float32)
    prior = _prior(work, visits, table, visit.field, part)
    numbers = work.solving.draws, work.key(_VALUES, number, part.first)
    with np.errstate(over="ignore"):
        solve(factored, old, origin.precision, prior, *numbers, read_only(owners), new)
        if part.with_linear:
            lonely = np.ascontiguousarray(table.linear[others, :1])
            solve(lone, lonely, origin.precision, prior[-1:], *numbers, read_only(others), alone)
    n_columns = part.last - part.first
    linear = np.concatenate([new[:, n_columns], alone[:, 0]]) if part.with_linear else np.zeros(0, np.float32)
    return Update(number, part, np.ascontiguousarray(new[:, :n_columns]), linear)


def _values(table: ParameterTable, owners: NDArray[np.uint32], part: Part) -> NDArray[np.float32]:
    """The part's unknowns of features with factors, float32[n, width]."""
    columns = [table.factors[owners, part.first : part.last]]
    if part.with_linear:
        columns.append(table.linear[owners, :1])
    return np.ascontiguousarray(np.concatenate(columns, axis=1))


def _prior(work: ExactWork, visits: Visits, table: ParameterTable, group: int, part: Part) -> NDArray[np.float64]:
    """λ and μ of each of the part's columns, float64[width, 2]: drawn of the values of the field's features, or given.

    Values of a field change in its own visits alone, so that each of these finds the same.
    """
    n_columns = part.last - part.first
    if not work.solving.draws:
        given = [work.step.l2_factors] * n_columns + [work.step.l2_linear] * part.with_linear
        return np.stack([np.array(given, np.float64), np.zeros(len(given))], axis=1)
    features = np.concatenate([visit.features for visit in visits.of_field(group)])
    owners = features[features < table.n_factored]
    key = work.key(_FACTOR_PRIOR, group, part.first)
    with np.errstate(over="ignore"):
        of_factors = draw_prior(table.factors[owners, part.first : part.last].astype(np.float64), key)
        if not part.with_linear:
            return of_factors
        of_linear = draw_prior(table.linear[features, :1].astype(np.float64), work.key(_LINEAR_PRIOR, group))
    return np.concatenate([of_factors, of_linear])


def join_values(
    work: ExactWork, visits: Visits, block: Block | None, origin: Origin | None, updates: Sequence[Update | None]
) -> Block | None:
    """The parameters after all visits."""
    if block is None or origin is None or any(update is None for update in updates):
        return None
    table = block.table.copy()
    table.bias[0] = origin.bias
    for update in updates:
        assert update is not None
        visit = visits.visits[update.visit]
        table.factors[visit.features[: visit.n_factored], update.part.first : update.part.last] = update.factors
        if update.part.with_linear:
            table.linear[visit.features, 0] = update.linear
    noise = origin.precision**-0.5 if work.solving.draws and not work.is_probit else 0.0
    return Block(0, table, noise=noise)


def end_rows(work: ExactWork, n_steps: int, block: Block | None, replicas: Sequence[Replica]) -> list[ReplicaReport] | None:
    """What the replicas saw in the iteration that ends with these parameters; their states are given up."""
    if block is None or not all(_stands_at(replica, work, n_steps) for replica in replicas):
        return None
    place, reports = f"{platform.node()}/{os.getpid()}", []
    for replica in replicas:
        state, partition = replica.state, replica.partition
        assert state is not None
        is_finite = bool(np.isfinite(state.loss)) and bool(np.isfinite(block.table.linear).all())
        tally = RoundTally(partition.n_rows, partition.total_weight, state.loss, is_finite)
        reports.append(ReplicaReport(replica.number, tally, state.seconds, place, state.table.nbytes))
        replica.state = None
    return reports


# ------------------------------------------------------------------------------------------ validation ----


def add_predictions(
    work: ExactWork, block: Block, partitions: Sequence[SparsePartition], before: Sequence[NDArray[np.float64]] | None
) -> list[NDArray[np.float64]]:
    """Per partition the predictions by all draws so far, added up: of scores float64[1, n_rows] or, of a probit, of
    Φ(s) and Φ(−s), float64[2, n_rows]. before: those of earlier draws, or None.
    """
    found = []
    for number, partition in enumerate(partitions):
        table = pull([block.table], partition.features, partition.n_factored if block.table.n_factored else 0)
        scores = scored(partition, table)[:, -1].astype(np.float64)
        sums = _both_sides(scores) if work.is_probit else scores[None]
        found.append(sums if before is None else before[number] + sums)
    return found


def _both_sides(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = np.zeros((2, len(scores)))
    probabilities(scores[:, None], sums)
    return sums


def judge(
    work: ExactWork, n_draws: int, partitions: Sequence[SparsePartition], sums: Sequence[NDArray[np.float64]]
) -> Tally:
    """Metrics of the mean prediction of so many draws, in the labels' own unit."""
    objective = work.objective
    total = objective.empty()
    for partition, known in zip(partitions, sums, strict=True):
        scores = logits(known) if work.is_probit else (known[0] / n_draws).astype(np.float32)
        weights = partition.weights if partition.weights.size else np.ones(partition.n_rows, np.float32)
        total = total + objective.tally(work.unit.undone(scores), work.unit.undone(partition.labels), weights)
    return total


# -------------------------------------------------------------------------------------------- executor ----


class Place(Protocol):
    """Where tasks run: this process, or the workers of a cluster."""

    def submit(self, function: Callable[..., Any], *args: Any, near: tuple[int, int] = (0, 1)) -> Any:
        """A handle of the result; arguments may be handles, or lists of them. near: this item of so many."""

    def result(self, handle: Any) -> Any:
        """The result of a task, a small one."""

    def begin(self) -> None:
        """See who is there."""

    @property
    def who(self) -> Sequence[str]:
        """Who was there."""

    def groups(self, n_replicas: int) -> list[range]:
        """Replicas that one task walks, each group a subtree of the tree of sums."""

    def settle(self, handle: Any) -> Any:
        """The parameters of a handle, from now on without a history where that is cheap."""

    def keep(self, value: Any) -> Any:
        """A handle of a value of this process."""


@dataclass
class Here:
    """This process."""

    def submit(self, function: Callable[..., Any], *args: Any, near: tuple[int, int] = (0, 1)) -> Any:
        """The result."""
        return function(*args)

    def result(self, handle: Any) -> Any:
        """The result."""
        return handle

    def begin(self) -> None:
        """Nothing."""

    @property
    def who(self) -> Sequence[str]:
        """Nobody else."""
        return ()

    def groups(self, n_replicas: int) -> list[range]:
        """All at once."""
        return [range(n_replicas)]

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
    _block: Any = None
    _draws: list[Any] = field(default_factory=list)
    _before: tuple[ExactWork, Any] | None = None
    """The last iteration, and the parameters that it began with: should its result be lost, it is made again."""
    _visits: Any = None
    _n_visits: int = 0
    _replicas: list[Any] = field(default_factory=list)
    _laid_out_for: tuple[list[range], Sequence[str]] | None = None
    """Groups and workers of whom each has its replicas."""
    _bounds: list[int] = field(default_factory=list)
    _under_way: _Iteration | None = None
    _predicted: list[Any] = field(default_factory=list)
    _n_predicted: int = 0

    def begin_epoch(self, work: Work) -> int:
        """See who is there; groups of replicas that one of them walks at a time."""
        self.place.begin()
        return 1

    def submit(self, work: Work, slices: range) -> None:
        """Begin an iteration."""
        assert isinstance(work, ExactWork)
        if self._visits is None:
            self._prepare(work)
        self._under_way = self._iteration(work, self._block)

    def _prepare(self, work: ExactWork) -> None:
        submit, total = self.place.submit, len(self.rows)
        meetings = [submit(meet, rows, near=(number, total)) for number, rows in enumerate(self.rows)]
        self._visits = submit(find_visits, work, self.vocabulary, meetings)
        self._n_visits = self.place.result(submit(number_of_visits, self._visits))

    def _walked(self, work: ExactWork) -> list[tuple[list[Any], tuple[int, int]]]:
        """The replicas of each group, laid out where it walks them: there alone are their states."""
        submit, total, groups = self.place.submit, len(self.rows), self.place.groups(len(self.rows))
        if (groups, self.place.who) != self._laid_out_for:
            self._laid_out_for = groups, self.place.who
            self._replicas = [
                submit(lay_out, work, number, self.rows[number], self._visits, near=(group.start, total))
                for group in groups
                for number in group
            ]
        return [(self._replicas[group.start : group.stop], (group.start, total)) for group in groups]

    def _iteration(self, work: ExactWork, block: Any) -> _Iteration:
        submit, total, walked = self.place.submit, len(self.rows), self._walked(work)
        begun = [submit(begin_rows, work, block, group, near=home) for group, home in walked]
        origin = last = submit(draw_origin, work, block, begun)
        steps = [(visit, part) for visit in range(self._n_visits) for part in work.steps]
        updates = []
        for step, following in enumerate(steps):
            sums = [submit(walk_visit, work, step, last, following, group, near=home) for group, home in walked]
            home = (step % total, total)
            last = submit(solve_visit, work, self._visits, block, origin, following, sums, near=home)
            updates.append(last)
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

    def finish(self) -> Sequence[ReplicaReport]:
        """Wait for the iteration under way; what its replicas saw."""
        assert self._under_way is not None
        iteration, self._under_way = self._under_way, None
        for _ in range(_ATTEMPTS):
            reports = [self.place.result(each) for each in iteration.reports]
            if all(each is not None for each in reports):
                break
            iteration = self._again(iteration.work)
        else:
            raise ClusterError(
                f"iteration {iteration.work.iteration} was begun {_ATTEMPTS} times, and each time workers lost what they "
                "had of it: see that they stay up, and have memory for their rows, and run the same command again, which "
                "goes on from the last checkpoint"
            )
        self._before = iteration.work, self._block
        self._block = self.place.settle(iteration.block)
        if iteration.work.solving.keeps(iteration.work.iteration):
            self._draws.append(self._block)
        return [report for each in reports for report in each]

    def _again(self, work: ExactWork) -> _Iteration:
        """The iteration from its beginning; the one before it, too, where its parameters were lost."""
        self.place.begin()
        if self.place.result(self.place.submit(_is_lost, self._block)) and self._before is not None:
            before, block = self._before
            again = self._iteration(before, block)
            if self._draws and self._draws[-1] is self._block:
                self._draws[-1] = again.block
            self._block = again.block
        return self._iteration(work, self._block)

    def evaluate(self, work: Work) -> Metrics:
        """Metrics on the held-out rows, of the mean over the draws that were kept; before there are any, of the last
        parameters. Empty where there are no such rows.
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
        self._bounds, self._before = list(bounds), None
        self._predicted, self._n_predicted = [], 0

    def fork(self, parameters: Parameters) -> ExactExecutor:
        """Another executor on the same rows, which begins with these parameters."""
        other = ExactExecutor(self.place, self.rows, self.held_out, self.vocabulary, self.n_rows)
        other.restore(parameters, self.bounds)
        return other


def _is_lost(block: Block | None) -> bool:
    return block is None


def has_draws(work: Work) -> bool:
    """Whether its model is made of draws: of several, or of one whose score is the logit of a probability."""
    return isinstance(work, ExactWork) and (work.solving.draws or work.is_probit)


def exact_work(training: TrainingSettings, task: str, spec: KernelSpec, unit: LabelUnit | None = None) -> ExactWork:
    """The work of an exact solver, by the settings of a training whose solver is one."""
    given = {"l2_linear": training.l2_linear, "l2_factors": training.l2_factors}
    held = {key: L2[key] if value == "auto" else float(value) for key, value in given.items()}
    return ExactWork(
        spec=dataclasses.replace(spec, optimizer=STATELESS),
        rule=merge_rule(training),
        step=Step(1.0, 1.0, **held),
        n_replicas=training.n_replicas,
        backend=NUMBA.name,
        task=task,
        unit=unit or LabelUnit(),
        solving=Solving(training.solver, training.n_iterations, training.n_burnt, training.draws),
    )


def goal_of(training: TrainingSettings) -> Goal:
    """When an exact solver is done: least squares may stop early; of draws the mean over all is taken."""
    stops = training.solver == ALS and training.early_stopping
    patience = training.patience if stops else None
    return Goal(n_epochs=training.n_iterations, patience=patience, takes_last=training.solver == MCMC)


def draws_of(parameters: Parameters) -> Sequence[Any]:
    """The draws that a model is made of: those that were kept or, of a run that ended before any was, the last."""
    return parameters[1:] or parameters[:1]


def warm_up(work: ExactWork, _after: object = None) -> float:
    """Compile in this process what an iteration needs; returns the seconds that it took.

    _after: the result of another worker's warm-up, whose machine code this one finds on their common disk.
    """
    started = time.perf_counter()
    ids, ones, nothing = np.arange(2, dtype=np.uint32), np.ones(1, np.float32), np.zeros(0, np.float32)
    fields = np.arange(2, dtype=np.uint16)
    n_factored = 1 if work.layout.n_factors else 0
    partition = SparsePartition(np.array([0, 2]), ids, nothing, ones, nothing, ids, n_factored, 1, fields)
    vocabulary = Vocabulary(ids, np.ones(2, np.int64), fields, np.full(2, -1, np.int64), n_factored, 10)
    executor = ExactExecutor(Here(), [[partition]], [[partition]], vocabulary)
    table = allocate(work.layout, 2, n_factored)
    executor.restore([Block(0, initial_values(work, vocabulary, table, 1.0))], [0, 2])
    executor.submit(work, range(1))
    executor.finish()
    executor.evaluate(work)
    return time.perf_counter() - started
