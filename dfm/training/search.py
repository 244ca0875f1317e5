"""Trials of a search: settings drawn from the space of a job, and how many of them go on after each rung.

The first three trials are the settings of a pilot; the others are scrambled Sobol points (Owen 1998), drawn by the
job's seed. Successive halving (Jamieson and Talwalkar 2016) keeps half after one epoch: slow, well regularised settings
look bad then, and keeping a third lost the best of them on several logs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dfm.data.reading import fingerprint
from dfm.errors import SettingsError
from dfm.kernels.families.registry import family_of
from dfm.settings.constraints import show
from dfm.settings.job import Job
from dfm.settings.tables import FACTORS, SearchSettings
from dfm.training.automatic import CANDIDATES, L2_LINEAR, RowScale, automatic_l2_linear, initial_stdev
from dfm.training.plan import RoundPlan

_LOGARITHMIC = "learning_rate", "factor_rate_scale", "l2_factors", "l2_linear"
_CHOICES = "min_count_factors", "n_factors", "init_scale"
_AUTOMATIC = {"learning_rate": 1.6, "l2_linear": L2_LINEAR}
"""Automatic numbers in the units of the bounds of a space; a trial has multiples of them."""


@dataclass(frozen=True)
class Trial:
    """Settings to try. learning_rate and l2_linear: in units of the automatic ones; init_scale: of the automatic
    init_stdev.
    """

    number: int
    learning_rate: float
    factor_rate_scale: float
    l2_factors: float
    l2_linear: float
    min_count_factors: int
    n_factors: int
    init_scale: float

    @property
    def key(self) -> str:
        """Digest (hex) of its settings: whoever tries them again gets the same losses."""
        return fingerprint(asdict(self))[:16]

    def job(self, job: Job, scale: RowScale, rate: float, plan: RoundPlan) -> Job:
        """The job with these settings as numbers, and with the rounds of the plan that trials are trained by; what the
        job itself gives as a number stays. rate: the automatic learning rate of its rows.
        """
        model, training = job.model, job.training
        found = {
            "learning_rate": self.learning_rate * rate,
            "factor_rate_scale": self.factor_rate_scale,
            "l2_factors": self.l2_factors,
            "l2_linear": self.l2_linear * automatic_l2_linear(scale),
        }
        numbers: dict[str, Any] = {
            key: self._shown(value) for key, value in found.items() if getattr(training, key) == "auto"
        }
        if not training.rows_per_round:
            numbers |= {"averages_per_epoch": plan.n_slices, "later_averages": plan.later_rounds}
        more: dict[str, Any] = {}
        if model.n_factors:  # a linear model stays one
            more = {"min_count_factors": self.min_count_factors, "n_factors": self.n_factors}
        if model.init_stdev == "auto":
            more["init_stdev"] = self._shown(initial_stdev(model, scale) * self.init_scale)
        return replace(
            job,
            model=replace(model, **more),
            training=replace(training, **numbers, tune="none"),
        )

    def _shown(self, value: float) -> float:
        """The number as a job file is to show it, in four digits; that of the default exactly, to train the same."""
        return float(f"{value:.4g}") if self.number else value


def trials_of(job: Job) -> list[Trial]:
    """The trials of a job: the default, the other settings of a pilot, then points of the space."""
    space = job.search
    known = [
        Trial(
            number,
            candidate.rate,
            candidate.factor_rate_scale,
            candidate.l2_factors,
            1.0,
            job.model.min_count_factors,
            job.model.n_factors,
            1.0,
        )
        for number, candidate in enumerate(CANDIDATES.values())
    ]
    n_drawn = max(space.n_trials - len(known), 0)
    drawn = _drawn(replace(space, n_factors=lengths_of(job)), n_drawn, job.model.seed, len(known))
    return [*known, *drawn][: space.n_trials]


def lengths_of(job: Job) -> tuple[int, ...]:
    """The values of model.n_factors that are tried: of a family with a vector for each group, the length of one.

    Automatic ones are those that the job's number of models allows; where it allows none, the job's own.
    """
    if not isinstance(job.search.n_factors, str):
        return job.search.n_factors
    usual = family_of(job.model.family).n_factors or FACTORS
    legal = [length for length in (max(usual // 2, 1), usual, 2 * usual) if not _fault(job, length)]
    return tuple(legal) or (job.model.n_factors,)


def check_lengths(job: Job) -> None:
    """SettingsError where a length that search.n_factors gives makes no model of the job."""
    if isinstance(job.search.n_factors, str) or not job.model.n_factors:
        return
    for length in job.search.n_factors:
        if fault := _fault(job, length):
            raise SettingsError(f"search.n_factors = {show(job.search.n_factors)} tries {length}: {fault}")


def _fault(job: Job, n_factors: int) -> str:
    """Why a job cannot have vectors of so many numbers; "" where it can."""
    try:
        replace(job.model, n_factors=n_factors)
    except SettingsError as error:
        return str(error)
    return ""


def _drawn(space: SearchSettings, n_trials: int, seed: int, first: int) -> list[Trial]:
    if not n_trials:
        return []
    from scipy.stats import qmc

    sampler = qmc.Sobol(len(_LOGARITHMIC) + len(_CHOICES), scramble=True, seed=seed % 2**32)
    points = sampler.random_base2(max(math.ceil(math.log2(n_trials)), 1))[:n_trials]
    trials = []
    for number, point in enumerate(points.tolist(), start=first):
        bounds = [getattr(space, key) for key in _LOGARITHMIC]
        words = [getattr(space, key) for key in _CHOICES]
        numbers = [low * (high / low) ** u for (low, high), u in zip(bounds, point, strict=False)]
        chosen = [many[int(u * len(many))] for many, u in zip(words, point[len(_LOGARITHMIC) :], strict=True)]
        units = [_AUTOMATIC.get(key, 1.0) for key in _LOGARITHMIC]
        trials.append(Trial(number, *[n / unit for n, unit in zip(numbers, units, strict=True)], *chosen))
    return trials


@dataclass(frozen=True)
class Rung:
    """Trials walk to this epoch (None: to their end), then so many of them go on."""

    until: int | None
    n_kept: int


def rungs_of(n_trials: int) -> list[Rung]:
    """One epoch for all, three for half of them, the end for a quarter of these."""
    half = math.ceil(n_trials / 2)
    return [Rung(1, half), Rung(3, math.ceil(half / 4)), Rung(None, 1)]


def survivors(trials: Sequence[Trial], losses: Mapping[int, float], n_kept: int) -> list[Trial]:
    """The trials of the least losses, by number; of equal ones those that come first. None has diverged."""
    sound = [trial for trial in trials if losses[trial.number] < math.inf]
    best = sorted(sound, key=lambda trial: (losses[trial.number], trial.number))[:n_kept]
    return sorted(best, key=lambda trial: trial.number)
