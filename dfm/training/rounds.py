"""One round as Dask tasks: replicas train on their slices, their changes are summed and merged into the blocks.

Every task is a pure function of what it is given, so Dask may run it again on another worker and get the same bytes.
Its name is what the dashboard shows.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.at_once import Abreast, is_at_once, is_worth_it
from dfm.averaging.contributions import balanced_groups
from dfm.averaging.merge import Averaging
from dfm.averaging.rules import MergeRule
from dfm.averaging.slices import Slices, Touched
from dfm.data.draw import lots
from dfm.data.partition import SparsePartition
from dfm.data.reading import Reading
from dfm.data.units import LabelUnit
from dfm.data.vocabulary import Vocabulary
from dfm.kernels.contract import Following, Kernels, KernelSpec, RoundTally, RowsLike, Step
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.mean import mean_table, part_of_mean
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise, join
from dfm.model.accumulators import Growth
from dfm.model.calibration import Calibration
from dfm.model.fm_model import FMModel
from dfm.model.group_auc import GroupedTally, rows_by_group
from dfm.model.metrics import Tally
from dfm.model.objective import Objective
from dfm.model.warm_start import warm_table
from dfm.training.backends import BACKENDS, NUMBA, Backend
from dfm.training.label_units import in_own_unit, of_full_stream

_SEED_STRIDE = 1 << 45
"""Between the seeds of a round's slices; those of rounds and replicas lie closer together."""


@dataclass(frozen=True)
class Work:
    """All that a training task must know, apart from parameters and rows."""

    spec: KernelSpec
    rule: MergeRule
    step: Step
    """Rates of this round; its seed is the seed of the round, to which each replica adds its number."""
    n_replicas: int
    backend: str = "numba"
    """A name in `backends.BACKENDS`; before a training has chosen, what was wished for."""
    wire_dtype: str = "float32"
    task: str = "classification"
    unit: LabelUnit = field(default_factory=LabelUnit)
    """The unit of the partitions' labels; metrics are in that of the data."""
    clip: tuple[float, float] | None = None
    """The range that predictions stay in when they are judged."""
    shift: float = 0.0
    """By which scores of rows to validate on are higher, where they are not of the stream that is trained on."""
    apart: float = 0.0
    """Share of the rows to validate on that judge no epoch: a calibration is fitted on them."""
    calibration: Calibration | None = None
    """The function of logits that predictions are made of when they are judged."""
    by_group: bool = False
    """Whether rows to validate on are judged within their groups, too."""
    only_judges: bool = False
    """Whether nothing is trained with it: parameters are those of a finished model."""
    l2_scales: tuple[tuple[float, float], ...] = ()
    """Multipliers of the penalties of w and of V, of each field; empty: 1."""

    def on(self, backend: Backend) -> Work:
        """The work with the backend that was chosen."""
        return dataclasses.replace(self, backend=backend.name)

    @property
    def chosen(self) -> Backend:
        """The backend that was chosen."""
        return BACKENDS[self.backend]

    @property
    def kernels(self) -> Kernels:
        """The compiled kernels of this process."""
        return self.chosen.compiled(self.spec)

    @property
    def scores(self) -> Callable[[RowsLike, ParameterTable], NDArray[np.float32]]:
        """The scores of rows by a table."""
        return numba_cpu.compile_scores(self.layout.stateless) if self.only_judges else self.kernels.scores

    def of_mean(self, n_models: int) -> Work:
        """The work of judging the mean of so many models, on processors."""
        spec = dataclasses.replace(self.spec, n_factors=n_models * self.spec.n_factors)
        return dataclasses.replace(self, spec=spec, backend=NUMBA.name, only_judges=True)

    @property
    def averaging(self) -> Averaging:
        """The place where this process keeps tables and summands between walks."""
        return self.chosen.averaging()

    @property
    def is_averaged_at_once(self) -> bool:
        """Whether replicas of one process need not make summands to be averaged."""
        return self.chosen is NUMBA and self.wire_dtype == "float32" and is_at_once(self.rule, self.layout)

    @property
    def layout(self) -> Layout:
        """The layout of the tables that are trained."""
        return self.spec.layout

    def remedy(self, table: str) -> str:
        """The words against divergence. table: of the knobs, with a dot; "" where they are parameters. A penalty whose
        product with the rate is beyond 2 throws weights further each time that it is applied.
        """
        step = self.step
        less_or_more = "less" if step.learning_rate * max(step.l2_linear, step.l2_factors) > 1 else "more"
        rate = (step.learning_rate or step.factor_learning_rate) / step.rate_factor  # that of biases may be left out
        knob = f"{table}learning_rate (it is {rate:.3g}; a tenth of it)"
        return f"try a smaller {knob}, {less_or_more} L2, or columns that are scaled"

    @property
    def objective(self) -> Objective:
        """The objective that is minimised. It compiles a user's function once more: ask only where it is needed."""
        found = Objective.of_spec(self.task, self.spec)
        return dataclasses.replace(found, clip=self.clip, calibration=self.calibration)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica's round: what it saw, where it ran (host and process) and how long its kernel took (seconds; a GPU's
    had to wait for what was queued, too).

    wire_bytes: of the parameters that it pulled; the first report of a push adds those of the summands.
    """

    replica: int
    tally: RoundTally
    seconds: float
    place: str
    wire_bytes: int


@dataclass(frozen=True, slots=True)
class Push:
    """The summed changes of some replicas, on their way to the blocks: a `Contribution`, or one that is on a GPU."""

    contribution: Any
    reports: tuple[ReplicaReport, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [start, start + n) of the parameter table. Block 0 also carries the bias and the reports of its round.

    noise: of a draw, the deviation of labels around its scores.
    """

    start: int
    table: ParameterTable
    momentum: ParameterTable | None = None
    reports: tuple[ReplicaReport, ...] = ()
    noise: float = 0.0


def initial_block(vocabulary: Vocabulary, layout: Layout, bounds: tuple[int, int], initial: InitialValues) -> Block:
    """Untrained parameters of the vocabulary's rows [bounds[0], bounds[1])."""
    start, stop = bounds
    n_factored = int(np.clip(vocabulary.n_factored - start, 0, stop - start))
    return Block(start, initialise(layout, vocabulary.ids[start:stop], n_factored, initial, vocabulary.n_fields))


def warm_block(
    block: Block,
    vocabulary: Vocabulary,
    model: FMModel,
    decay: float,
    reading: Reading,
    growth: Growth | None = None,
    part: tuple[int, int] = (0, 1),
) -> Block:
    """The untrained block, moved towards an earlier model, whose scores are brought into the unit of training and to
    the log that it is trained on.

    growth: of the earlier model's accumulators. part: which of how many models, where the earlier one is their mean.
    """
    if part[1] > 1:
        model = dataclasses.replace(model, table=part_of_mean(model.table, *part))
    table = of_full_stream(model.table, 1 / reading.share_of_negatives)
    if reading.units.label != LabelUnit():
        table = in_own_unit(table, reading.units.label.inverse)
    model = dataclasses.replace(model, table=table)
    ids = vocabulary.ids[block.start : block.start + block.table.n_features]
    return dataclasses.replace(block, table=warm_table(block.table, ids, model, decay, growth))


def growth_of(
    blocks: Sequence[Block], vocabulary: Vocabulary, initial: float, n_epochs: float, begun: Growth | None = None
) -> Growth | None:
    """The growth of the accumulators of the blocks, an epoch; None where the optimizer has none. begun: what they began
    with beyond `initial`.
    """
    return Growth.of([block.table for block in blocks], vocabulary, initial, n_epochs, begun)


def train_replicas(
    work: Work,
    first_replica: int,
    numbers: range,
    blocks: Sequence[Block],
    replicas: Sequence[Sequence[SparsePartition]],
) -> Push:
    """Train neighbouring replicas, each from the same parameters on its slices `numbers`; sum what they changed."""
    reports: list[ReplicaReport] = []
    walked = [[slices[number] for number in numbers] for slices in replicas]

    def contributions() -> Iterator[Any]:
        for at, slices in enumerate(walked):
            others = walked[at + 1 :]
            following = Following(others[0][0], _seed(work, first_replica + at + 1, 0)) if others else None
            contribution, report = _train_replica(work, first_replica + at, blocks, slices, following)
            reports.append(report)
            yield contribution

    # The summands of one replica travel as they are, halved or not; a sum needs float32.
    total = work.averaging.combine_all(contributions()) if len(walked) > 1 else next(contributions())
    reports[0] = dataclasses.replace(reports[0], wire_bytes=reports[0].wire_bytes + total.nbytes)
    return Push(total, tuple(reports))


def _seed(work: Work, replica: int, number: int) -> int:
    """The seed of a replica's walk over the slice that comes as this number in the round."""
    return (work.step.seed + replica + number * _SEED_STRIDE) % 2**63


def _train_replica(
    work: Work,
    replica: int,
    blocks: Sequence[Block],
    slices: Sequence[SparsePartition],
    following: Following | None,
) -> tuple[Any, ReplicaReport]:
    """Changes of a replica, and its report. following: what this process walks after its slices."""
    averaging, touched = work.averaging, _touched_by(work, slices)
    before = averaging.pull([block.table for block in blocks], touched.features, touched.n_factored)
    after = averaging.copy(before)
    report = _walk(work, replica, slices, touched, after, following)
    return averaging.contribute(work.rule, touched, before, after, work.wire_dtype == "bfloat16"), report


def _touched_by(work: Work, slices: Sequence[SparsePartition]) -> SparsePartition | Slices:
    """The features that a replica touches in a round."""
    return work.averaging.unite(slices) if len(slices) > 1 else slices[0]


def _walk(
    work: Work,
    replica: int,
    slices: Sequence[SparsePartition],
    touched: Touched,
    after: Any,
    following: Following | None,
) -> ReplicaReport:
    """Train a local table in place, on one slice after the other."""
    averaging, several = work.averaging, touched if isinstance(touched, Slices) else None
    tally, seconds = RoundTally(0, 0.0, 0.0, True), 0.0
    for number, partition in enumerate(slices):
        rows = several.positions[number] if several else touched.features
        local = averaging.pull([after], rows, partition.n_factored) if several else after
        step = dataclasses.replace(work.step, seed=_seed(work, replica, number), l2_scales=work.l2_scales)
        rest = slices[number + 1 :]
        next_one = Following(rest[0], _seed(work, replica, number + 1)) if rest else following
        started = time.perf_counter()
        tally += work.kernels.run_round(partition, local, step, next_one)
        seconds += time.perf_counter() - started
        if several:
            averaging.put(local, rows, after)
    return ReplicaReport(replica, tally, seconds, f"{platform.node()}/{os.getpid()}", after.nbytes)


def part_of_push(push: Push, start: int, stop: int) -> Push:
    """The part of a push that concerns the rows [start, stop) of the table; the reports stay with row 0."""
    return Push(push.contribution.select(start, stop), push.reports if start == 0 else ())


def merge_block(work: Work, block: Block, pushes: Sequence[Push]) -> Block:
    """The block after an average. pushes: whole, or their parts that concern the block."""
    stop = block.start + block.table.n_features
    averaging = work.averaging
    total = averaging.combine_all([push.contribution.select(block.start, stop) for push in pushes])
    table, momentum = averaging.finalise(
        work.rule, block.table, block.start, total, work.n_replicas, work.step, block.momentum
    )
    reports = tuple(report for push in pushes for report in push.reports) if block.start == 0 else ()
    return Block(block.start, table, momentum, reports)


def train_rounds(
    stretch: Sequence[tuple[Work, range]], block: Block, replicas: Sequence[Sequence[SparsePartition]], n_threads: int
) -> Block:
    """The block after some rounds, which all replicas train in threads of this process; it carries the reports of them
    all, round by round. block: the whole table.
    """
    reports: list[ReplicaReport] = []
    groups = balanced_groups(len(replicas), n_threads)
    with ThreadPoolExecutor(n_threads) as pool:
        spread = pool.map if n_threads > 1 else map
        for work, slices in stretch:
            walked = [[each[number] for number in slices] for each in replicas]
            touched = [_touched_by(work, each) for each in walked] if work.is_averaged_at_once else []
            if touched and is_worth_it(block.table, touched):
                block = train_abreast(work, block, walked, Abreast(block.table, touched), groups, spread)
            else:
                train = functools.partial(_train_group, work, slices, block, replicas)
                block = merge_block(work, block, list(spread(train, groups)))
            reports += block.reports
    return dataclasses.replace(block, reports=tuple(reports))


def train_abreast(
    work: Work,
    block: Block,
    walked: Sequence[Sequence[SparsePartition]],
    abreast: Abreast,
    groups: Sequence[range],
    spread: Callable[..., Iterable[Any]],
) -> Block:
    """The block after a round, of which all replicas are here, and averaged at once. walked: slices of each replica;
    groups: replicas that a thread trains.

    The reports say of no summands: none are made.
    """

    def train(group: range) -> list[tuple[ParameterTable, ReplicaReport]]:
        found = []
        for replica in group:
            others = walked[replica + 1 : group.stop]
            following = Following(others[0][0], _seed(work, replica + 1, 0)) if others else None
            table = abreast.pull(replica)
            touched = abreast.touched[replica]
            found.append((table, _walk(work, replica, walked[replica], touched, table, following)))
        return found

    trained = [each for group in spread(train, groups) for each in group]
    table = abreast.average(work.rule, [local for local, _ in trained], work.step, spread)
    return Block(block.start, table, None, tuple(report for _, report in trained))


def _train_group(
    work: Work, slices: range, block: Block, replicas: Sequence[Sequence[SparsePartition]], group: range
) -> Push:
    return train_replicas(work, group.start, slices, [block], replicas[group.start : group.stop])


def reports_of(block: Block) -> tuple[ReplicaReport, ...]:
    """The reports of the round, or stretch, that made a block; block 0 carries them."""
    return block.reports


def evaluate_partitions(work: Work, blocks: Sequence[Block], partitions: Sequence[SparsePartition]) -> Tally:
    """Metrics of the parameters on some rows, but those that are kept apart, in the labels' own unit."""
    return _evaluated(work, blocks, partitions, apart=False)


def evaluate_together(
    work: Work, blocks: Sequence[Block], lists: Sequence[Sequence[SparsePartition]], n_threads: int
) -> tuple[Tally, float]:
    """The same of several lists of partitions, in threads of this process, and the seconds that it took."""
    started = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        total = merge_tallies(list(pool.map(functools.partial(evaluate_partitions, work, blocks), lists)))
    return total, time.perf_counter() - started


def evaluate_apart(work: Work, blocks: Sequence[Block], partitions: Sequence[SparsePartition]) -> Tally:
    """The same on the rows that are kept apart."""
    return _evaluated(work, blocks, partitions, apart=True)


def _evaluated(work: Work, blocks: Sequence[Block], partitions: Sequence[SparsePartition], apart: bool) -> Tally:
    tables, averaging, scores_of = [block.table for block in blocks], work.averaging, work.scores
    scored = (
        (partition, scores_of(partition, averaging.pull(tables, partition.features, partition.n_factored)))
        for partition in partitions
    )
    return judged(work, scored, apart)


def judged(work: Work, scored: Iterable[tuple[SparsePartition, NDArray[np.float32]]], apart: bool = False) -> Tally:
    """Metrics of rows and their scores, in the unit of the training. apart: of those that judge no epoch, or others."""
    objective = work.objective
    total = _by_group(objective.empty(), work, _NO_ROWS)
    for partition, found in scored:
        scores, labels = work.unit.undone(found), work.unit.labels_undone(partition.labels)
        if work.shift:
            scores = scores.astype(np.float64) + work.shift
        weights = partition.weights if partition.weights.size else np.ones(partition.n_rows, np.float32)
        groups = partition.group_ids
        if work.apart:
            kept = (lots("calibration", 0, partition.n_rows) < work.apart) == apart
            scores, labels, weights = scores[kept], labels[kept], weights[kept]
            groups = groups[kept] if groups.size else groups
        rows = groups, objective.calibrated(scores), labels, weights
        total = total + _by_group(objective.tally(scores, labels, weights), work, rows)
    return total


_NO_ROWS = np.zeros(0, np.uint64), np.zeros(0), np.zeros(0), np.zeros(0)


def _by_group(tally: Tally, work: Work, rows: tuple[NDArray[Any], ...]) -> Tally:
    """The tally of some rows (groups, scores, labels, weights), which knows of their groups where that is wanted."""
    return GroupedTally(tally, rows_by_group(*rows)) if work.by_group else tally


def merge_tallies(tallies: Sequence[Tally]) -> Tally:
    """Sum of tallies, in their order: of all rows that validate."""
    total = tallies[0]
    for tally in tallies[1:]:
        total = total + tally
    return total.settled() if isinstance(total, GroupedTally) else total


def mean_block(models: Sequence[Sequence[Block]]) -> Block:
    """The mean of some models, each of neighbouring blocks that begin and end at the same rows; without state."""
    return Block(models[0][0].start, mean_table([whole_table(blocks) for blocks in models]))


def whole_table(blocks: Sequence[Block]) -> ParameterTable:
    """The table that the blocks make up, without optimizer state."""
    return join([block.table for block in blocks])


def calls_of_a_round(
    work: Work, n_slices: int = 1, n_models: int = 1, together: bool = False
) -> list[Callable[[], object]]:
    """Calls that compile in this process what a round needs: to walk, to judge, to average.

    n_slices: as many as a round walks. n_models: of whose mean scores are needed in the end. together: whether one
    process trains all replicas.
    """
    together = together and work.is_averaged_at_once

    @functools.cache  # once it is asked for: another process may be compiling what it needs
    def begun() -> tuple[Block, SparsePartition]:
        return _next_to_nothing(work)

    def judge() -> None:
        block, partition = begun()
        evaluate_partitions(work, [block], [partition])
        if n_models > 1:
            evaluate_partitions(work.of_mean(n_models), [mean_block([[block]] * n_models)], [partition])

    def walk() -> None:
        block, partition = begun()
        replicas = [[partition] * n_slices] * 2
        if together:
            abreast = Abreast(block.table, [_touched_by(work, each) for each in replicas])
            train_abreast(work, block, replicas, abreast, [range(2)], map)
        else:
            train_replicas(work, 0, range(n_slices), [block], replicas)

    return [walk, judge, *([] if together else [lambda: _average_nothing(work, *begun())])]


def _next_to_nothing(work: Work) -> tuple[Block, SparsePartition]:
    """Parameters of two features, and a row that has them."""
    ids = np.arange(2, dtype=np.uint32)
    table = initialise(work.layout, ids, 2, InitialValues(0), 1)
    partition = SparsePartition(
        np.array([0, 2, 2]),
        ids,
        np.zeros(0, np.float32),
        np.array([1, 0], np.float32),
        np.zeros(0, np.float32),
        ids,
        table.n_factored,
        2,
        np.zeros(2, np.uint16),
        group_ids=np.zeros(2, np.uint64),
    )
    return Block(0, table), partition


def _average_nothing(work: Work, block: Block, partition: SparsePartition) -> Block:
    """The block after an average of two replicas that changed nothing."""
    averaging = work.averaging
    before = averaging.pull([block.table], partition.features, partition.n_factored)
    after = averaging.copy(before)
    changes = (averaging.contribute(work.rule, partition, before, after, work.wire_dtype == "bfloat16") for _ in "ab")
    return merge_block(work, block, [Push(averaging.combine_all(changes), ())])
