"""One training run with all replicas in this process: the kernels and the merge of dfm, without a cluster."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
from logs import Cut, Deal, Log
from numpy.typing import NDArray

from dfm.averaging.contributions import combine_all
from dfm.averaging.merge import contribute, finalise
from dfm.averaging.rules import MergeRule, scaled_rate
from dfm.averaging.slices import Slices
from dfm.kernels.contract import Kernels, KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.schedule import rate_factor, scheduled
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise, pull, put
from dfm.training.plan import Plan


@dataclass(frozen=True)
class Setting:
    """Everything that decides a run. `order` is how rows are dealt to replicas.

    averages: of the first epoch, and slices of a replica; later_averages: of every other epoch.
    """

    n_replicas: int = 8
    averages: int = 8
    later_averages: int = 8
    rule: MergeRule = field(default_factory=lambda: MergeRule("weighted"))
    rate_scaling: str = "sqrt"
    learning_rate: float = 0.045
    factor_rate_scale: float = 0.5
    initial_accumulator: float = 1.0
    l2_linear: float = 0.005
    l2_factors: float = 0.005
    min_count: int = 2
    min_count_factors: int = 100
    init_stdev: float = 0.01
    n_factors: int = 8
    n_epochs: int = 5
    optimizer: str = "adagrad"
    schedule: str = "final-decay"
    order: str = "time"
    seed: int = 0

    @property
    def deal(self) -> Deal:
        return Deal(self.n_replicas, self.averages, self.min_count, self.min_count_factors, self.order, self.seed)


@dataclass
class History:
    """By epoch: validation log loss (nats) and AUC, mean training loss. Then seconds and bytes of the whole run."""

    log_loss: list[float] = field(default_factory=list)
    auc: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    merge_seconds: float = 0.0
    round_bytes: float = 0.0
    """Mean over rounds of the bytes of one replica's contribution."""
    touched: float = 0.0
    """Mean over rounds of the features of one replica's slice."""

    @property
    def best(self) -> int:
        """The epoch of the lowest log loss, from 0."""
        return int(np.nanargmin(self.log_loss)) if np.isfinite(self.log_loss).any() else 0


def simulate(log: Log, setting: Setting) -> History:
    """Trains and validates after every epoch. A run that leaves the finite numbers ends with infinite losses."""
    cut = log.cut(setting.deal)
    kernels = compile_kernels(KernelSpec("logistic", setting.optimizer, setting.n_factors))
    layout = Layout(setting.optimizer, setting.n_factors)
    initial = InitialValues(setting.seed, setting.init_stdev, setting.initial_accumulator)
    table = initialise(layout, cut.vocabulary.ids, cut.vocabulary.n_factored, initial)
    momentum, history = None, History()
    plan = Plan(setting.averages, setting.later_averages, (), setting.seed)
    number = 0
    for epoch in range(1, setting.n_epochs + 1):
        losses, weight = 0.0, 0.0
        for walk in plan.rounds(epoch):
            step = _step(setting, number, rate_factor(setting.schedule, *plan.standing(epoch, walk, setting.n_epochs)))
            table, momentum, tally = _round(cut, kernels, setting, step, (table, momentum), walk, history)
            losses, weight, number = losses + tally[0], weight + tally[1], number + 1
        history.train_loss.append(losses / weight)
        scores = kernels.scores(cut.validation, table)
        history.log_loss.append(log_loss(scores, cut.validation.labels))
        history.auc.append(auc(scores, cut.validation.labels))
    history.round_bytes /= number * setting.n_replicas
    history.touched /= number * setting.n_replicas
    return history


def _step(setting: Setting, number: int, factor: float) -> Step:
    rate = scaled_rate(setting.learning_rate, setting.rate_scaling, setting.n_replicas)
    step = Step(
        rate, rate * setting.factor_rate_scale, setting.l2_linear, setting.l2_factors, seed=setting.seed * 1000 + number
    )
    return scheduled(step, setting.optimizer, factor)


def _round(
    cut: Cut,
    kernels: Kernels,
    setting: Setting,
    step: Step,
    state: tuple[ParameterTable, ParameterTable | None],
    walk: range,
    history: History,
) -> tuple[ParameterTable, ParameterTable | None, tuple[float, float]]:
    """A round over the slices `walk`: the table and momentum after it, and the replicas' loss and weight."""
    table, momentum = state
    loss, weight, parts = 0.0, 0.0, []
    for slices in cut.slices:
        started, in_kernel = time.perf_counter(), history.train_seconds
        walked = Slices.of([slices[number] for number in walk])
        before = pull([table], walked.features)
        after = before.copy()
        for number, partition in enumerate(walked.slices):
            local = pull([after], walked.positions[number], walked.slices[number].n_factored)
            pulled = time.perf_counter()
            tally = kernels.run_round(partition, local, replace(step, seed=step.seed + number))
            history.train_seconds += time.perf_counter() - pulled
            put(local, walked.positions[number], after)
            loss, weight = loss + tally.loss, weight + tally.weight
        parts.append(contribute(setting.rule, walked, before, after))
        history.merge_seconds += time.perf_counter() - started - (history.train_seconds - in_kernel)
        history.round_bytes += parts[-1].nbytes
        history.touched += len(walked.features)
    started = time.perf_counter()
    table, momentum = finalise(setting.rule, table, 0, combine_all(parts), setting.n_replicas, step, momentum)
    history.merge_seconds += time.perf_counter() - started
    return table, momentum, (loss, weight)


def log_loss(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Mean log loss of logits, in nats; infinite where a logit is not finite."""
    logits = scores.astype(np.float64)
    if not np.isfinite(logits).all():
        return float("inf")
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def auc(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Area under the ROC curve, ties counted half."""
    if not np.isfinite(scores).all():
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = labels == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
