"""The work of exact solvers: what their tasks must know, and when they are done."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from dfm.data.hashed_rows import EntrySums
from dfm.data.units import LabelUnit
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.optimizers import STATELESS
from dfm.settings.tables import ALS, MCMC, ModelSettings, TrainingSettings
from dfm.solvers.chance import key_of
from dfm.solvers.sums import Part, parts_of
from dfm.training.backends import NUMBA
from dfm.training.loop import Goal
from dfm.training.rounds import Work
from dfm.training.steps import TWO_FIELDS, StepSchedule, exact_step, factors_left, merge_rule

INIT_STDEV = 0.1
"""Deviation of the factors at the start, as libFM has it: near 0 the first draws of their precision would keep them
there."""
_LEAST_RATE = 1e-6
PRECISION, BIAS, LINEAR_PRIOR, FACTOR_PRIOR, LATENT, VALUES = range(6)
"""Kinds of draws in an iteration; numbers below its key."""


@dataclass(frozen=True)
class Solving:
    """The manner of solving. burn_in: iterations whose draws are not kept; n_draws: kept of the others, evenly."""

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
        return at * self.n_draws // last > (at - 1) * self.n_draws // last


@dataclass(frozen=True)
class ExactWork(Work):
    """The work of an exact solver's tasks. Of `step`, the seed of the iteration and the penalties are read."""

    solving: Solving = field(default_factory=lambda: Solving(ALS, 1))
    iteration: int = 0
    linear_unit: float = 1.0
    factor_unit: float = 1.0
    """Deviations that weights and factors are expected to have before any row is seen (see `draw_prior`)."""

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

    def remedy(self, table: str) -> str:
        """The words against divergence, of knobs that the solver reads."""
        penalties = "" if self.solving.draws else f"larger {table}l2_linear and {table}l2_factors, "
        start = f"a smaller {table.replace('training', 'model')}init_stdev"
        return f"try columns that are scaled, {penalties}or {start}"

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


def crowd_of(entries: EntrySums, spread: float) -> float:
    """The features of a row that others do not share, and 2 at least: near 39 of 39 categories, 2 of a dense matrix,
    all of whose columns are in every row. By it grows what noise can make of a row's parameters together.

    spread: of the vocabulary (`spread_of`), which knows no scale of x; where the mean of a row's Σ x² is less, x are
    small, as of lists that weigh 1 together, and it is that.
    """
    return max(min(entries.squares / max(entries.n_rows, 1), spread), TWO_FIELDS)


def initial_stdev(model: ModelSettings, training: TrainingSettings, entries: EntrySums, crowd: float) -> float:
    """Standard deviation of the initial factors. Least squares would have to unlearn what its penalty does not allow;
    draws need it to leave 0, and forget it. From neither comes back what begins with scores of thousands: where the
    root mean square of x is above 1, it is divided by that, so that pairs of columns say as much whatever their unit.
    """
    if model.init_stdev != "auto":
        return float(model.init_stdev)
    left = 1.0 if training.solver == MCMC else factors_left(exact_step(training, crowd))
    return INIT_STDEV * left / max(entries.squares / max(entries.n_entries, 1), 1.0) ** 0.5


def _share(crowd: float) -> float:
    """Share that is left of the deviation of a weight of two fields, where scores are to vary as much."""
    return float((TWO_FIELDS / crowd) ** 0.5)


def initial_bias(task: str, mean_label: float) -> float:
    """w0 before the first iteration: the score at which a probit has the mean label, by the weights of rows; of numbers
    0, which is their mean in the unit of the training.
    """
    if task != "classification":
        return 0.0
    return NormalDist().inv_cdf(min(max(mean_label, _LEAST_RATE), 1.0 - _LEAST_RATE))


def has_draws(work: Work) -> bool:
    """Whether its model is made of draws: of several, or of one whose score is the logit of a probability."""
    return isinstance(work, ExactWork) and (work.solving.draws or work.is_probit)


def exact_work(training: TrainingSettings, task: str, spec: KernelSpec, unit: LabelUnit | None = None) -> ExactWork:
    """The work of an exact solver, by the settings of a training whose solver is one, of rows of two categories."""
    return ExactWork(
        spec=dataclasses.replace(spec, optimizer=STATELESS),
        rule=merge_rule(training),
        step=exact_step(training),
        n_replicas=training.n_replicas,
        backend=NUMBA.name,
        task=task,
        unit=unit or LabelUnit(),
        solving=Solving(training.solver, training.n_iterations, training.n_burnt, training.n_kept),
    )


def of_rows(work: ExactWork, training: TrainingSettings, crowd: float) -> ExactWork:
    """The work with the penalties, and the units of priors, of rows of such a crowd (see `crowd_of`)."""
    step = exact_step(training, crowd)
    return dataclasses.replace(work, step=step, linear_unit=_share(crowd), factor_unit=1.0 / (crowd - 1.0))


def goal_of(training: TrainingSettings) -> Goal:
    """When an exact solver is done: least squares may stop early; of draws the mean over all is taken."""
    stops = training.solver == ALS and training.early_stopping
    patience = training.patience if stops else None
    return Goal(n_epochs=training.n_iterations, patience=patience, takes_last=training.solver == MCMC)
