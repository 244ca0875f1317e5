"""The numbers of rounds: step, merge rule and seeds, each made of the settings here and nowhere else."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

from dfm.averaging.rules import MergeRule, automatic_weights, scaled_rate
from dfm.data.units import LabelUnit
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.schedule import rate_factor, scheduled
from dfm.settings.constraints import parse_bytes
from dfm.settings.tables import TrainingSettings
from dfm.training.rounds import Work

_SEED_OF_A_RUN = 1_000_003
_L2_LINEAR, _L2_FACTORS = 5.0, 10.0
"""Penalties of least squares where the job does not say, beside the sum of squared errors of labels of deviation 1: the
least, of few columns. Of many they grow with the entries of a row, those of factors with their pairs.
"""
TWO_FIELDS = 2.0
"""Entries of a row of two categories, the fewest that make a pair."""
_SEEDS = 1 << 62
"""Bound of the seeds of rounds: those of replicas and slices, which lie above, stay within 63 bits."""


def step_of(training: TrainingSettings, gpu_memory: str = "auto") -> Step:
    """The numbers of a step before the schedule. Fields of a step that are knobs of training have the same name.

    Replicas that are averaged may step further, as rate_scaling says. gpu_memory: as cluster.gpu_memory. training has
    numbers in place of "auto", as `automatic.settled` puts them.
    """
    knobs = training.knobs()
    shared = {field.name: getattr(training, field.name) for field in dataclasses.fields(Step) if field.name in knobs}
    rate = scaled_rate(shared.pop("learning_rate"), training.rate_scaling, training.n_replicas)
    return Step(
        learning_rate=rate,
        factor_learning_rate=rate * float(training.factor_rate_scale),
        rate_factor=scaled_rate(1.0, training.rate_scaling, training.n_replicas),
        n_threads=training.threads_per_replica,
        device_bytes=0 if gpu_memory == "auto" else parse_bytes(gpu_memory),
        **shared,
    )


def factors_left(step: Step) -> float:
    """Share of the deviation of factors of few columns that a step of least squares leaves, by its penalty."""
    return min(1.0, (_L2_FACTORS / step.l2_factors) ** 0.5) if step.l2_factors else 1.0


def exact_step(training: TrainingSettings, crowd: float = TWO_FIELDS) -> Step:
    """The numbers of an iteration of an exact solver: penalties of least squares. crowd: see `exact_work.crowd_of`."""
    automatic = {
        "l2_linear": max(_L2_LINEAR, 1.25 * (crowd - 2.0)),
        "l2_factors": max(_L2_FACTORS, 0.4 * (crowd - 1.0) ** 2),
    }
    given = {key: getattr(training, key) for key in automatic}
    return Step(1.0, 1.0, **{key: automatic[key] if value == "auto" else float(value) for key, value in given.items()})


def merge_rule(training: TrainingSettings) -> MergeRule:
    """The rule by which replicas become one model. "auto": weighted by accumulators where the optimizer has them.

    SettingsError where the rule does not suit the optimizer, or diverges with so many replicas.
    """
    rule = MergeRule(
        weights=automatic_weights(training.optimizer) if training.merge == "auto" else training.merge,
        accumulators=training.accumulators,
        precision=training.precision,
        outer_rate=training.outer_rate,
        outer_momentum=training.outer_momentum,
    )
    rule.check_optimizer(training.optimizer)
    rule.check_replicas(training.n_replicas)
    return rule


def work_of(
    training: TrainingSettings, task: str, spec: KernelSpec, unit: LabelUnit | None = None, gpu_memory: str = "auto"
) -> Work:
    """The work of training tasks, before a backend is chosen; SettingsError as `merge_rule` says."""
    return Work(
        spec=spec,
        rule=merge_rule(training),
        step=step_of(training, gpu_memory),
        n_replicas=training.n_replicas,
        backend=training.backend,
        wire_dtype=training.wire_dtype,
        task=task,
        unit=unit or LabelUnit(),
    )


@dataclasses.dataclass(frozen=True)
class StepSchedule:
    """Changes of steps from round to round. seed: of the model's settings; `schedule`: as training.schedule."""

    schedule: str
    seed: int

    def work(self, work: Work, rounds_done: int, standing: tuple[float, int], rollbacks: int = 0) -> Work:
        """The work with the rates and the seed of the round that comes after so many others.

        standing: where it stands among all rounds, and how many there are. Each rollback halved the rates.
        """
        factor = rate_factor(self.schedule, *standing) * 0.5**rollbacks
        seed = (self.seed * _SEED_OF_A_RUN + rounds_done * work.n_replicas) % _SEEDS
        return replace(work, step=replace(scheduled(work.step, work.spec.optimizer, factor), seed=seed))
