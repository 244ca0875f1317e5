"""Fits of estimators: the training loop over rows that are there already, in this process or on a cluster."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dfm.data.building import build_partition
from dfm.data.hashed_rows import HashedRows
from dfm.data.partition import SparsePartition
from dfm.data.row_lookup import RowLookup
from dfm.data.vocabulary import Vocabulary, rows_of
from dfm.kernels.families.registry import family_of
from dfm.kernels.tables import InitialValues, ParameterTable, initialise, put
from dfm.model.objective import Objective
from dfm.solvers.posterior import Draws
from dfm.training.exact import ExactExecutor
from dfm.training.exact_rounds import first_block
from dfm.training.exact_work import ExactSchedule, ExactWork
from dfm.training.executor import Event, Executor, Metrics, Parameters
from dfm.training.loop import Goal, Manner, Renewer, TrainingLoop
from dfm.training.pilot import Pilot
from dfm.training.plan import RoundPlan
from dfm.training.progress import EpochTotals, Progress, check_epoch, check_finite
from dfm.training.rounds import Work
from dfm.training.steps import StepSchedule

Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Recipe:
    """All that a fit needs apart from the rows: the numbers of every round, and when to stop.

    work: kernels, rates and merge rule. n_slices: rounds of the first epoch, into which the rows are dealt; 0 for as
    many as the n_rounds of each later one. tolerance: by how much the loss (nats; squared error in units of the labels'
    variance) must fall to count as better. patience: epochs in a row that are not better, before training stops; None:
    it does not.
    """

    work: Work
    initial: InitialValues
    objective: Objective
    n_epochs: int
    n_rounds: int = 1
    n_slices: int = 0
    schedule: str = "constant"
    tolerance: float = 0.0
    patience: int | None = None
    seed: int = 0
    pilot: Pilot | None = None


@dataclass(frozen=True, eq=False)
class Fit:
    """The end of a fit, where the next one may go on: table with optimizer state, records of epochs, rounds done, and
    what its pilot chose, "" where it had none; of an exact solver the draws, if it made any.
    """

    table: ParameterTable
    history: Sequence[Event] = field(default_factory=list)
    rounds_done: int = 0
    chosen: str = ""
    draws: Draws | None = None


class FitExecutor(Executor, Protocol):
    """An executor that begins with a given table, and gives one back."""

    @property
    def n_rows(self) -> int:
        """Rows to train on."""

    @property
    def renewer(self) -> Renewer | None:
        """Who gives parameters a new origin, where rounds are remembered."""

    def start(self, work: Work, table: ParameterTable) -> Work:
        """Begin with these parameters; returns the work with the backend that it asks for, or, for "auto", the one that
        there is.
        """

    def fetch(self, parameters: Parameters) -> ParameterTable:
        """The table of some parameters, with optimizer state; the caller may keep it."""

    def exact(self, vocabulary: Vocabulary) -> ExactExecutor:
        """The executor of an exact solver on the same rows."""


def solve(recipe: Recipe, executor: ExactExecutor, table: ParameterTable, tell: Tell) -> Fit:
    """Fit by an exact solver, from these parameters on. DivergenceError as of `fit`."""
    work = executor.start(recipe.work, table)
    assert isinstance(work, ExactWork)
    loop = TrainingLoop(
        work=work,
        objective=recipe.objective,
        plan=RoundPlan(1, 1),
        schedule=ExactSchedule("constant", recipe.seed),
        goal=Goal(
            n_epochs=recipe.n_epochs,
            patience=None if work.solving.draws else recipe.patience,
            tolerance=recipe.tolerance,
            watches_training=True,
            keeps_epochs=False,
            takes_last=work.solving.draws,
        ),
        executor=executor,
        manner=_manner(recipe),
        n_rows=executor.n_rows,
        tell=_of_epochs(tell),
    )
    loop.run()
    found, draws = executor.fetch_draws(work, loop.result)
    return Fit(found, loop.at.history, loop.at.rounds_done, draws=draws)


def _of_epochs(tell: Tell) -> Tell:
    """Who is told of this module's records alone."""
    return lambda event: None if "event" in event else tell(event)


def fit(recipe: Recipe, executor: FitExecutor, start: Fit, tell: Tell) -> Fit:
    """Train up to recipe.n_epochs epochs more; the result holds the best parameters, or the last without held-out rows.

    DivergenceError where the loss leaves the finite numbers, or the log loss of an epoch of 100 rows or more explodes.
    """
    before, work = len(start.history), executor.start(recipe.work, start.table)
    n_slices = recipe.n_slices or recipe.n_rounds

    loop = TrainingLoop(
        work=work,
        objective=recipe.objective,
        plan=RoundPlan(n_slices, recipe.n_rounds, epochs_before=before, rounds_before=start.rounds_done),
        schedule=StepSchedule(recipe.schedule, recipe.seed),
        goal=Goal(
            n_epochs=before + recipe.n_epochs,
            patience=recipe.patience,
            tolerance=recipe.tolerance,
            plateau=recipe.schedule == "plateau",
            watches_training=True,
            keeps_epochs=False,
        ),
        executor=executor,
        manner=_manner(recipe),
        n_rows=executor.n_rows,
        tell=_of_epochs(tell),
        renewer=executor.renewer,
        pilot=recipe.pilot,
        at=Progress(epoch=before + 1, rounds_done=start.rounds_done, history=list(start.history)),
    )
    loop.run()
    chosen = loop.at.pilot.get("chosen", start.chosen)
    return Fit(executor.fetch(loop.result), loop.at.history, loop.at.rounds_done, chosen)


def _manner(recipe: Recipe) -> Manner:
    """Records of epochs as estimators keep them, and errors that name their parameters."""
    scale, is_squared = recipe.work.unit.scale, recipe.objective.is_plain and recipe.objective.task == "regression"

    def describe(epoch: int, totals: EpochTotals, metrics: Metrics, n_walks: int, seconds: float) -> Event:
        loss = totals.mean_loss
        in_unit = {"train_rmse": (2.0 * loss) ** 0.5 * scale} if is_squared else {}
        return {"epoch": epoch, "train_loss": loss, "seconds": totals.seconds, **in_unit, **metrics}

    objective = recipe.objective
    return Manner(
        describe, functools.partial(check_finite, objective, table=""), functools.partial(check_epoch, objective)
    )


def initial_table(recipe: Recipe, vocabulary: Vocabulary) -> ParameterTable:
    """Untrained parameters of the vocabulary's features."""
    n_fields = vocabulary.n_fields
    family_of(recipe.work.spec.family).check_fields(n_fields)
    if isinstance(recipe.work, ExactWork):
        initial = recipe.initial
        return first_block(recipe.work, vocabulary, initial.init_stdev, recipe.seed, initial.bias).table
    return initialise(recipe.work.layout, vocabulary.ids, vocabulary.n_factored, recipe.initial, n_fields)


def grown_fit(start: Fit, recipe: Recipe, before: Vocabulary, after: Vocabulary) -> Fit:
    """A fit that goes on with more features: new ones as they are before training, the others with their state."""
    table = initial_table(recipe, after)
    put(start.table, rows_of(after, before.ids), table)
    return dataclasses.replace(start, table=table)


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
        group_ids=rows.group_ids,
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
