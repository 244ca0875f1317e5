"""An iteration of an exact solver as tasks: rows begun, walked visit by visit, ended; values solved for and joined.

Tasks are functions of parameters and rows. What rows keep between visits (see `State`) lies beside them in the worker's
memory and is no result of any task: one that does not find it as it should be gives None, and so do all that build on
it, and the iteration is begun again. Draws are keyed by iteration, visit and feature, so that it gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.contributions import fold
from dfm.data.partition import SparsePartition
from dfm.data.vocabulary import Vocabulary
from dfm.errors import LostParametersError
from dfm.kernels.blocks import padded_lanes
from dfm.kernels.contract import RoundTally
from dfm.kernels.tables import InitialValues, ParameterTable, aligned_room, aligned_zeros, pull
from dfm.model.metrics import Tally
from dfm.solvers.columns import Column, Replica, State, replica_of
from dfm.solvers.passes import collect, score_rows, take_targets, take_values
from dfm.solvers.posterior import logits, probabilities
from dfm.solvers.solving import draw_bias, draw_precision, draw_prior, solve
from dfm.solvers.sums import Part, Sums, n_sums
from dfm.solvers.visits import Visits, meetings_of, united_meetings, visits_of
from dfm.storage.arrays import read_only
from dfm.storage.transfers import checked_on_its_way
from dfm.training.exact_work import BIAS, FACTOR_PRIOR, LATENT, LINEAR_PRIOR, PRECISION, VALUES, ExactWork
from dfm.training.rounds import Block, ReplicaReport, initial_block, judged

HELD_BIAS = 1.0
"""Precision of w0 before any row is seen, in the unit of the training."""
Sum4 = NDArray[np.float64]


# ------------------------------------------------------------------------------------------- before all ----


def meet(partitions: Sequence[SparsePartition]) -> NDArray[np.uint64]:
    """Pairs of features of one field that a row of the partitions holds."""
    return united_meetings([meetings_of(partition) for partition in partitions])


def find_visits(work: ExactWork, vocabulary: Vocabulary, meetings: Sequence[NDArray[np.uint64]]) -> Visits:
    """The visits of the vocabulary's features."""
    n_factored = vocabulary.n_factored if work.layout.n_factors else 0
    return visits_of(vocabulary.fields, n_factored, united_meetings(meetings))


def sizes_of_visits(visits: Visits) -> list[int]:
    """Numbers of features, of each visit."""
    return [len(visit.features) for visit in visits.visits]


def lay_out(work: ExactWork, number: int, partitions: Sequence[SparsePartition], visits: Visits) -> Replica:
    """The rows of a replica by visit."""
    (partition,) = partitions
    if not work.layout.n_factors:
        partition = dataclasses.replace(partition, n_factored=0)
    return replica_of(number, partition, visits, work.layout.n_factors)


def first_block(work: ExactWork, vocabulary: Vocabulary, stdev: float, seed: int, bias: float = 0.0) -> Block:
    """The parameters before the first iteration: w0, and factors from N(0, stdev²), by seed and hashed feature."""
    n_features = vocabulary.n_features
    block = initial_block(vocabulary, work.layout, (0, n_features), InitialValues(seed, stdev, bias=bias))
    work = dataclasses.replace(work, step=dataclasses.replace(work.step, seed=seed))
    return dataclasses.replace(block, table=initial_values(work, vocabulary, block.table, stdev))


def initial_values(work: ExactWork, vocabulary: Vocabulary, table: ParameterTable, stdev: float) -> ParameterTable:
    """A table like this one with factors drawn from N(0, stdev²), by the work's seed and hashed feature."""
    ids = vocabulary.ids[: table.n_factored]
    new, width = table.copy(), table.layout.n_factors
    key = work.key(VALUES)
    sums, prior = np.zeros((len(ids), n_sums(width))), np.zeros((width, 2))
    prior[:, 0] = stdev**-2.0
    found = np.zeros((len(ids), width), np.float32)
    with np.errstate(over="ignore"):
        solve(sums, found.copy(), 0.0, prior, (True, key), read_only(ids), found)
    new.factor_weights[...] = found
    return new


# ---------------------------------------------------------------------------------------- an iteration ----


@dataclass(frozen=True)
class Origin:
    """The values that are drawn before all visits: w0, and how far it moved; α."""

    bias: float
    move: float
    precision: float


@checked_on_its_way("values of an exact solver")
@dataclass(frozen=True)
class Update:
    """New values of a visit's features: float32[n_factored, n] of the part's columns, then w float32[n] or empty."""

    visit: int
    part: Part
    factors: NDArray[np.float32]
    linear: NDArray[np.float32]


Following = tuple[int, Part]
"""A visit by number, and the part of its unknowns that is solved."""
Last = Origin | Update | None
"""News that rows take before they are walked; None where they were lost."""


def begin_rows(work: ExactWork, block: Block | None, replicas: Sequence[Replica]) -> Sum4 | None:
    """Make the states of the rows from the parameters; Σ ω, Σ ω e, Σ ω e² and Σ ω loss."""
    if block is None:
        return None
    return fold([_begin(work, block.table, replica) for replica in replicas], np.add)


def _begin(work: ExactWork, table: ParameterTable, replica: Replica) -> Sum4:
    started, partition = time.perf_counter(), replica.partition
    local = pull([table], partition.features, partition.n_factored)
    rows = scored(partition, local)
    key = work.key(LATENT, replica.number)
    with np.errstate(over="ignore"):
        labels, weights = read_only(partition.labels), read_only(partition.weights)
        sums = take_targets(rows, labels, weights, work.is_probit, work.solving.draws, key)
    replica.state = State(work.step.seed, 0, rows, local, sums[3], time.perf_counter() - started)
    return np.array(sums)


def scored(partition: SparsePartition, table: ParameterTable) -> NDArray[np.float32]:
    """Σ_j V_j x_j and the score of every row, float32[n_rows, lanes + 1]; table: of the partition's features."""
    lanes = table.layout.lanes
    rows = aligned_room((partition.n_rows, lanes + 1))
    source = read_only(partition.indptr), read_only(partition.indices), read_only(partition.values)
    parameters = read_only(table.linear), read_only(table.factors)
    score_rows(lanes)((*source, partition.n_implicit), float(table.bias_value), *parameters, rows)
    return rows


def draw_origin(work: ExactWork, block: Block | None, parts: Sequence[Sum4 | None]) -> Origin | None:
    """α and w0, given all else."""
    if block is None or any(part is None for part in parts):
        return None
    mass, first, second, _ = fold([part for part in parts if part is not None], np.add)
    old, draws, precision = float(block.table.bias_value), work.solving.draws, 1.0
    with np.errstate(over="ignore"):
        if draws and not work.is_probit:
            precision = float(draw_precision(mass, second, work.key(PRECISION)))
        held = HELD_BIAS if draws else 0.0
        bias = np.float32(draw_bias(mass, first, precision, old, held, draws, work.key(BIAS)))
    return Origin(float(bias), float(bias) - old, precision)


def walk_visit(
    work: ExactWork,
    step: int,
    known: tuple[Visits, Block | None, Origin | None],
    last: tuple[Following | None, Sequence[Last | Sums]],
    following: Following,
    replicas: Sequence[Replica],
) -> Sums | None:
    """Take the values of the last visit, then add up what the following one has to know.

    last: each owner's values; or, of a visit so small that to solve it here is faster than to wait for its owner, which
    visit it was and its sums. known: visits, the parameters before all, and w0.
    """
    unsolved, parts = last
    taken = whole(parts) if unsolved is None else solve_visit(work, *known, unsolved, (0, 1), parts)
    if taken is None or not all(stands_at(replica, work, step) for replica in replicas):
        return None
    return fold([advance(taken, following, replica) for replica in replicas], lambda a, b: a + b)


def whole(parts: Sequence[Any]) -> Last:
    """News of several owners as one; None where one of them brought nothing."""
    updates = [part for part in parts if isinstance(part, Update)]
    if len(updates) < len(parts) or len(parts) == 1:
        return parts[0] if len(parts) == 1 else None
    arrays = (np.concatenate([getattr(part, name) for part in updates]) for name in ("factors", "linear"))
    return Update(updates[0].visit, updates[0].part, *arrays)


def stands_at(replica: Replica, work: ExactWork, step: int) -> bool:
    """Whether the rows of a replica have walked so many visits of this iteration."""
    state = replica.state
    return state is not None and (state.seed, state.step) == (work.step.seed, step)


def advance(last: Origin | Update, following: Following, replica: Replica) -> Sums:
    """The sums of the following visit over the rows of a replica, which take the values of the last one before."""
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
    old, moves = _columns(table, owners, part), np.zeros(0, np.float32)
    if part.with_linear:
        linear = update.linear[column.places]
        moves = linear - table.linear[column.features, 0]
        table.linear[column.features, 0] = linear
    table.factors[owners, part.first : part.last] = update.factors[column.places[: column.n_factored]]
    steps = _columns(table, owners, part) - old
    take = take_values(part.last - part.first, state.rows.shape[1])
    take(_entries(column), part.first, read_only(steps), moves, read_only(old), state.rows)


def _columns(table: ParameterTable, owners: NDArray[np.uint32], part: Part) -> NDArray[np.float32]:
    """The part's factors of some features, float32[n, lanes]."""
    found = aligned_zeros((len(owners), padded_lanes(part.last - part.first)))
    found[:, : part.last - part.first] = table.factors[owners, part.first : part.last]
    return found


def _sums_of(part: Part, column: Column, partition: SparsePartition, state: State) -> Sums:
    factors = _columns(state.table, column.features[: column.n_factored], part)
    factored = np.zeros((column.n_factored, n_sums(part.width)))
    lone = np.zeros((len(column.features) - column.n_factored, n_sums(1)))
    add = collect(part.last - part.first, part.with_linear, state.rows.shape[1])
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
    following: Following,
    share: tuple[int, int],
    parts: Sequence[Any],
) -> Update | None:
    """Solve for the features of a visit, or draw them: this of so many shares of them."""
    if block is None or origin is None or any(sums is None for sums in parts):
        return None
    number, part = following
    visit, start, table = *visits.visits[number].share(*share), block.table
    whole = [sums.select(start, start + len(visit.features)) for sums in parts if sums is not None]
    factored, lone = fold(whole, lambda a, b: a + b).spread(len(visit.features), visit.n_factored)
    owners, others = visit.features[: visit.n_factored], visit.features[visit.n_factored :]
    old = _values(table, owners, part)
    new, alone = np.empty_like(old), np.empty((len(others), 1), np.float32)
    prior = _prior(work, visits, table, visit.field, part)
    chance = work.solving.draws, work.key(VALUES, number, part.first)
    with np.errstate(over="ignore"):
        solve(factored, old, origin.precision, prior, chance, read_only(owners), new)
        if part.with_linear:
            lonely = np.ascontiguousarray(table.linear[others, :1])
            solve(lone, lonely, origin.precision, prior[-1:], chance, read_only(others), alone)
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
        of_linear, of_factors = work.l2_scales[group] if work.l2_scales else (1.0, 1.0)
        given = [of_factors * work.step.l2_factors] * n_columns + [of_linear * work.step.l2_linear] * part.with_linear
        return np.stack([np.array(given, np.float64), np.zeros(len(given))], axis=1)
    features = np.concatenate([visit.features for visit in visits.of_field(group)])
    owners = features[features < table.n_factored]
    key = work.key(FACTOR_PRIOR, group, part.first)
    with np.errstate(over="ignore"):
        known = table.factors[owners, part.first : part.last].astype(np.float64)
        of_factors = draw_prior(known, work.factor_unit, key)
        if not part.with_linear:
            return of_factors
        known = table.linear[features, :1].astype(np.float64)
        of_linear = draw_prior(known, work.linear_unit, work.key(LINEAR_PRIOR, group))
    return np.concatenate([of_factors, of_linear])


def join_values(
    work: ExactWork, visits: Visits, block: Block | None, origin: Origin | None, updates: Sequence[Sequence[Last]]
) -> Block | None:
    """The parameters after all visits."""
    taken = [whole(update) for update in updates]
    if block is None or origin is None or any(update is None for update in taken):
        return None
    table = block.table.copy()
    table.bias[0] = origin.bias
    for update in taken:
        assert isinstance(update, Update)
        visit = visits.visits[update.visit]
        table.factors[visit.features[: visit.n_factored], update.part.first : update.part.last] = update.factors
        if update.part.with_linear:
            table.linear[visit.features, 0] = update.linear
    noise = origin.precision**-0.5 if work.solving.draws and not work.is_probit else 0.0
    return Block(0, table, noise=noise)


def end_rows(
    work: ExactWork, n_steps: int, block: Block | None, replicas: Sequence[Replica]
) -> list[ReplicaReport] | None:
    """Reports of the iteration that ends with these parameters; the replicas' states are given up."""
    if block is None or not all(stands_at(replica, work, n_steps) for replica in replicas):
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


LOST = (
    "parameters were lost with all workers that had them; run the same command again, which goes on from the last "
    "checkpoint"
)


def add_predictions(
    work: ExactWork,
    block: Block | None,
    partitions: Sequence[SparsePartition],
    before: Sequence[NDArray[np.float64]] | None,
) -> list[NDArray[np.float64]]:
    """Per partition the predictions by all draws so far, added up: of scores float64[1, n_rows] or, of a probit, of
    Φ(s) and Φ(−s), float64[2, n_rows]. before: those of earlier draws, or None.
    """
    if block is None:
        raise LostParametersError(LOST)
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
    means = (logits(known) if work.is_probit else (known[0] / n_draws).astype(np.float32) for known in sums)
    return judged(work, zip(partitions, means, strict=True))


def judge_draws(work: ExactWork, draws: Sequence[Block | None], partitions: Sequence[SparsePartition]) -> Tally:
    """Metrics of the mean prediction of these draws."""
    sums: Sequence[NDArray[np.float64]] | None = None
    for draw in draws:
        sums = add_predictions(work, draw, partitions, sums)
    assert sums is not None
    return judge(work, len(draws), partitions, sums)
