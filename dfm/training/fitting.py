"""The training loop of estimators: epochs over rows that are there already, in this process or on a cluster.

A crew holds the rows and does the work (`LocalCrew` here, one of Dask's in `dfm.estimators.chunks`); what is
computed are the rounds of every job: the same kernels, the same averages.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.rules import MergeRule
from dfm.data.partition import HashedRows, SparsePartition, build_partition
from dfm.data.units import LabelUnit
from dfm.data.vocabulary import RowLookup, Vocabulary
from dfm.errors import DivergenceError, SettingsError
from dfm.kernels.contract import KernelSpec, RoundTally, Step
from dfm.kernels.families.registry import family_of
from dfm.kernels.optimizers import resolve_optimizer
from dfm.kernels.schedule import rate_factor, scheduled
from dfm.kernels.tables import InitialValues, ParameterTable, initialise
from dfm.model.metrics import Tally
from dfm.model.objective import Objective
from dfm.settings.tables import BACKENDS
from dfm.training import rounds

Event = dict[str, Any]
Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Recipe:
    """How to train, apart from the rows: the numbers of every round, and when to stop.

    work: kernels, rates and merge rule. tolerance: by how much the loss (nats; squared error in units of the labels'
    variance) must fall to count as better. patience: epochs in a row that are not better, before training stops.
    """

    work: rounds.Work
    initial: InitialValues
    n_epochs: int
    n_rounds: int = 1
    schedule: str = "constant"
    tolerance: float = 0.0
    patience: int = 1_000_000
    objective: Objective = field(default_factory=lambda: Objective.of("classification"))
    unit: LabelUnit = field(default_factory=LabelUnit)
    seed: int = 0


@dataclass
class Progress:
    """Where a fit stands: its table with optimizer state, the records of its epochs, the rounds done."""

    table: ParameterTable
    history: list[Event] = field(default_factory=list)
    rounds_done: int = 0


class Crew(Protocol):
    """Who holds the rows and trains on them."""

    @property
    def validates(self) -> bool:
        """Whether there are held-out rows."""

    def placed(self, work: rounds.Work) -> rounds.Work:
        """The work with the backend that it asks for, or, for "auto", the one that there is."""

    def start(self, work: rounds.Work, table: ParameterTable) -> None:
        """Begin with these parameters."""

    def round(self, work: rounds.Work, slice_number: int) -> None:
        """Train every replica on a slice, then average."""

    def tallies(self) -> list[RoundTally]:
        """What the rounds since the last call saw."""

    def evaluate(self, recipe: Recipe) -> dict[str, Any]:
        """Metrics on the held-out rows; empty where there are none."""

    def parameters(self) -> ParameterTable:
        """The parameters as they are now, with optimizer state; the caller may keep them."""


def fit(recipe: Recipe, crew: Crew, progress: Progress, tell: Tell) -> Progress:
    """Train up to recipe.n_epochs epochs more; the result holds the best parameters, or the last without held-out rows.

    DivergenceError where the loss leaves the finite numbers.
    """
    recipe = dataclasses.replace(recipe, work=crew.placed(recipe.work))
    crew.start(recipe.work, progress.table)
    history, rounds_done = list(progress.history), progress.rounds_done
    total_rounds = rounds_done + recipe.n_epochs * recipe.n_rounds
    best, least, worse = progress.table, float("inf"), 0
    for epoch in range(len(history) + 1, len(history) + recipe.n_epochs + 1):
        started = time.perf_counter()
        for slice_number in range(recipe.n_rounds):
            crew.round(_work_of(recipe, rounds_done, total_rounds), slice_number)
            rounds_done += 1
        record = _record(recipe, crew.tallies(), epoch, time.perf_counter() - started)
        metrics = crew.evaluate(recipe)
        history.append({**record, **metrics})
        tell(history[-1])
        loss = float(metrics[recipe.objective.primary] if metrics else record["train_loss"])
        if metrics and loss < least:
            best = crew.parameters()
        worse = 0 if loss < least - recipe.tolerance else worse + 1
        least = min(loss, least)
        if worse >= recipe.patience:
            break
    return Progress(best if crew.validates else crew.parameters(), history, rounds_done)


def _record(recipe: Recipe, tallies: Sequence[RoundTally], epoch: int, seconds: float) -> Event:
    """What there is to tell of an epoch. The training loss counts rows before each was learnt from."""
    weight = sum(tally.weight for tally in tallies)
    loss = sum(tally.loss for tally in tallies) / weight if weight else float("nan")
    if not all(tally.is_finite for tally in tallies):
        optimizer = resolve_optimizer(recipe.work.spec.optimizer)
        raise DivergenceError(
            f"training diverged in epoch {epoch}: the loss is no longer finite; try a smaller learning_rate "
            f"(it is {recipe.work.step.learning_rate:g}; {optimizer.name} wants {optimizer.learning_rate:g} or less), "
            "or scale the columns"
        )
    record = {"epoch": epoch, "train_loss": loss, "seconds": seconds}
    if recipe.objective.is_plain and recipe.objective.task == "regression":
        record["train_rmse"] = (2.0 * loss) ** 0.5 * recipe.unit.scale
    return record


def _work_of(recipe: Recipe, rounds_done: int, total_rounds: int) -> rounds.Work:
    """The numbers of one round."""
    work = recipe.work
    factor = rate_factor(recipe.schedule, rounds_done, total_rounds)
    step = scheduled(work.step, work.spec.optimizer, factor)
    seed = (recipe.seed * 1_000_003 + rounds_done * work.n_replicas) % 2**62
    return dataclasses.replace(work, step=dataclasses.replace(step, seed=seed))


def initial_table(recipe: Recipe, vocabulary: Vocabulary) -> ParameterTable:
    """Untrained parameters of the vocabulary's features."""
    spec, n_fields = recipe.work.spec, vocabulary.n_fields
    family_of(spec.family).check_fields(n_fields)
    return initialise(spec.layout, vocabulary.ids, vocabulary.n_factored, recipe.initial, n_fields)


def make_work(spec: KernelSpec, rule: MergeRule, step: Step, n_replicas: int, backend: str = "numba") -> rounds.Work:
    """The work record of a fit, after the rule was found to suit optimizer and replicas; a crew settles the backend."""
    rule.check_optimizer(spec.optimizer)
    rule.check_replicas(n_replicas)
    if backend not in BACKENDS:
        raise SettingsError(f"backend = {backend!r}; choose one of {', '.join(BACKENDS)}")
    return rounds.Work(spec, rule, step, n_replicas, backend)


# ------------------------------------------------------------------------------------------------ rows ----


def deal(n_rows: int, n_replicas: int, n_rounds: int, seed: int) -> list[list[NDArray[np.int64]]]:
    """Row numbers of each replica and round: a seeded shuffle, cut into equal parts (to one row)."""
    order = np.random.default_rng([seed, 7]).permutation(n_rows)
    n_parts = n_replicas * n_rounds
    bounds = [n_rows * part // n_parts for part in range(n_parts + 1)]
    parts = [order[bounds[i] : bounds[i + 1]] for i in range(n_parts)]
    return [parts[r * n_rounds : (r + 1) * n_rounds] for r in range(n_replicas)]


def whole_partition(rows: HashedRows, vocabulary: Vocabulary, lookup: RowLookup | None) -> SparsePartition:
    """All rows in order, whose indices are rows of the whole parameter table. No lookup: they are already."""
    if lookup is not None:
        return _with_all_features(build_partition(rows, vocabulary, lookup), vocabulary)
    n_implicit = 0 if rows.values.size else rows.n_rows
    features = np.arange(vocabulary.n_features, dtype=np.uint32)
    return SparsePartition(
        rows.indptr,
        rows.indices,
        rows.values,
        rows.labels,
        rows.weights,
        features,
        vocabulary.n_factored,
        n_implicit,
        vocabulary.fields,
    )


def _with_all_features(partition: SparsePartition, vocabulary: Vocabulary) -> SparsePartition:
    """The partition on the whole table instead of the features that it touches."""
    return dataclasses.replace(
        partition,
        indices=partition.features[partition.indices],
        features=np.arange(vocabulary.n_features, dtype=np.uint32),
        n_factored=vocabulary.n_factored,
        fields=vocabulary.fields,
    )


# ----------------------------------------------------------------------------------------------- local ----


@dataclass
class LocalCrew:
    """Trains in this process. A lone replica trains one table in place; several are averaged after each round.

    replicas: per replica its partitions, one per round; a lone one has partitions on the whole table. n_threads: how
    many replicas train at a time.
    """

    replicas: list[list[SparsePartition]]
    held_out: list[SparsePartition] = field(default_factory=list)
    n_threads: int = 1
    _block: rounds.Block = field(init=False)
    _tallies: list[RoundTally] = field(init=False, default_factory=list)

    @property
    def validates(self) -> bool:
        """Whether there are held-out rows."""
        return bool(self.held_out)

    def placed(self, work: rounds.Work) -> rounds.Work:
        """With a backend of this process."""
        return dataclasses.replace(work, backend=rounds.backend_here(work.backend, work.spec))

    def start(self, work: rounds.Work, table: ParameterTable) -> None:
        """Begin with a copy of these parameters."""
        self._block = rounds.Block(0, work.averaging.copy(table))

    def round(self, work: rounds.Work, slice_number: int) -> None:
        """Train every replica on a slice, then average."""
        if len(self.replicas) == 1:
            tally = work.kernels.run_round(self.replicas[0][slice_number], self._block.table, work.step)
            self._tallies.append(tally)
            return
        pushes = self._pushes(work, slice_number)
        self._tallies += [report.tally for push in pushes for report in push.reports]
        self._block = rounds.merge_block(work, self._block, pushes)

    def _pushes(self, work: rounds.Work, slice_number: int) -> list[rounds.Push]:
        def train(number: int) -> rounds.Push:
            numbers = range(slice_number, slice_number + 1)
            return rounds.train_replicas(work, number, numbers, [self._block], [self.replicas[number]])

        numbers = range(len(self.replicas))
        if self.n_threads == 1:
            return [train(number) for number in numbers]
        with ThreadPoolExecutor(self.n_threads) as pool:
            return list(pool.map(train, numbers))

    def tallies(self) -> list[RoundTally]:
        """What the rounds since the last call saw."""
        seen, self._tallies = self._tallies, []
        return seen

    def evaluate(self, recipe: Recipe) -> dict[str, Any]:
        """Metrics on the held-out rows; empty where there are none."""
        if not self.held_out:
            return {}
        return tally_of(recipe, [self._block], self.held_out).metrics()

    def parameters(self) -> ParameterTable:
        """A copy of the parameters."""
        return self._block.table.copy()


def tally_of(recipe: Recipe, blocks: Sequence[rounds.Block], partitions: Sequence[SparsePartition]) -> Tally:
    """Metrics of parameters on rows, in the labels' own unit."""
    unit, tables = recipe.unit, [block.table for block in blocks]
    total: Tally = recipe.objective.empty()
    for partition in partitions:
        table = recipe.work.averaging.pull(tables, partition.features, partition.n_factored)
        scores, labels = unit.undone(recipe.work.kernels.scores(partition, table)), unit.undone(partition.labels)
        weights = partition.weights if partition.weights.size else None
        total = total + recipe.objective.tally(scores, labels, weights)
    return total
