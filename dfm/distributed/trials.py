"""Trainings of one job with other settings, on rows that were hashed once: what a search of any kind is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed import Client

from dfm.distributed import backends
from dfm.distributed.beginning import begun, prepare_rows, warm_up
from dfm.distributed.cluster import connect
from dfm.distributed.loops import started_loop
from dfm.distributed.prepare import Prepared
from dfm.distributed.run import Ended, Event, OnEvent, Run
from dfm.distributed.tuning import row_scale
from dfm.distributed.variants import with_least
from dfm.errors import DivergenceError, SettingsError
from dfm.model.objective import UndefinedMetricError
from dfm.settings.constraints import show
from dfm.settings.job import Job
from dfm.settings.tables import ALS, SGD
from dfm.training.automatic import RowScale, settled
from dfm.training.inputs import Inputs, find_inputs, plan_event
from dfm.training.loop import TrainingLoop
from dfm.training.order import Order
from dfm.training.search import Trial, trials_of
from dfm.training.steps import work_of

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_trials(
    order: Order,
    client: Client | None = None,
    on_event: OnEvent | None = None,
    pins: Mapping[str, str] | None = None,
    check: Callable[[Inputs], None] = lambda inputs: None,
) -> Iterator[Trials]:
    """A block in which a job's rows lie hashed on the cluster, and its settings can be tried.

    pins: the states of tables that it began with (`find_inputs`). check: raises where these are not the inputs that are
    expected. SettingsError without rows to validate on.
    """
    tell = on_event or (lambda event: None)
    inputs = find_inputs(order.job, pins)
    check(inputs)
    check_trials(inputs, order)
    order = _comparing(order.of_fields(inputs.schema))
    tell(plan_event(inputs))
    cluster = backends.cluster_of(order, inputs)
    with connect.client_of(cluster, client) as own, begun(order, inputs, own, tell) as run:
        yield Trials(run, prepare_rows(run))


def _comparing(order: Order) -> Order:
    """The order, in which the metric that compares trials must be defined, also of pairs of rows."""
    objective = order.objective
    if not objective.is_paired:
        return order
    return dataclasses.replace(order, objective=dataclasses.replace(objective, stop_on=objective.watched))


def check_trials(inputs: Inputs, order: Order) -> None:
    """SettingsError where trials of a job could not be compared."""
    solver = order.job.training.solver
    if order.job.training.is_exact:
        knobs = "training.l2_factors" if solver == ALS else "training.n_epochs, training.draws"
        raise SettingsError(
            f"training.solver = {show(solver)} has no learning rate that a search could try. Choose solver = "
            f"{show(SGD)}, or train with several values of {knobs} or model.n_factors by hand."
        )
    if not inputs.validation_tasks:
        raise SettingsError(
            "a search needs rows to validate on, and there are none. Name them in data.validation, or let "
            "data.validation_fraction hold some out."
        )
    if order.job.training.warm_start:
        raise SettingsError("a search begins with untrained parameters. Leave training.warm_start out.")


@dataclass
class Trials:
    """The settings of a job on its prepared rows. Threads may try some at the same time."""

    run: Run
    prepared: Prepared
    _variants: dict[int, Prepared] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock, repr=False)
    _are_ended: bool = field(init=False, default=False)
    _has_warned: bool = field(init=False, default=False)

    @property
    def metric(self) -> str:
        """The metric of the validation rows by which trainings are compared: training.stop_on, or that of the loss."""
        return self.run.order.objective.watched

    def loss(self, seed: int | None = None, **settings: float) -> float:
        """The best of a training to its end, by `metric` on the validation rows: that or, of auc and group_auc, 1 less
        it, so that the least is the best.

        settings: `learning_rate` and `l2_linear` in units of the automatic ones, `init_scale` of the automatic
        init_stdev, `factor_rate_scale`, `l2_factors`, `min_count_factors`, `n_factors`; what is not given is the
        default. inf where training diverged; why the first one did is logged as a warning. SettingsError for other
        names, and where the validation rows do not define `metric`.
        """
        default = trials_of(self.run.job)[0]
        known = {entry.name for entry in dataclasses.fields(Trial)} - {"number"}
        if unknown := sorted(settings.keys() - known):
            raise SettingsError(f"{unknown[0]} cannot be tried; settings of a trial are {', '.join(sorted(known))}")
        changes: dict[str, Any] = dict(settings)
        changes |= {name: int(settings[name]) for name in ("min_count_factors", "n_factors") if name in settings}
        job = self.job_of(dataclasses.replace(default, **changes))
        if seed is not None:
            job = dataclasses.replace(job, model=dataclasses.replace(job.model, seed=seed))
        return self.walked(self.started(job), None)[0]

    def job_of(self, trial: Trial) -> Job:
        """The job with the settings of a trial."""
        rate = float(settled(self.run.job.training, self._scale).learning_rate)
        return trial.job(self.run.job, self._scale, rate, self.run.inputs.plan)

    def started(self, job: Job) -> TrainingLoop:
        """The loop of a job with other settings, at its start."""
        return started_loop(self._run_with(job), self._rows(job.model.min_count_factors))

    def walked(self, loop: TrainingLoop, until: int | None) -> tuple[float, str]:
        """The best loss, as `loss` has it, after a loop walked on to an epoch; where it diverged inf, and why."""
        try:
            loop.run(until)
            assert loop.best is not None
            found = loop.objective.cost(loop.best.metrics)
            if found is None:
                raise DivergenceError(f"{loop.objective.watched} of the rows to validate on is no finite number")
        except DivergenceError as error:
            logger.log(logging.INFO if self._has_warned else logging.WARNING, "a trial diverged: %s", error)
            self._has_warned = True
            return math.inf, str(error)
        except UndefinedMetricError as error:
            raise SettingsError(
                f"{error.args[0]}, so that trials cannot be compared. Name others in data.validation"
            ) from error
        return found, ""

    def end(self) -> None:
        """Let every trial that is under way end where it tells the next event."""
        self._are_ended = True

    def _pass_over(self, event: Event) -> None:
        """Hear of the events of a trial, which are its own."""
        if self._are_ended:
            raise Ended

    def warm_up(self, trials: Iterable[Trial]) -> None:
        """Compile what these trials need beside the kernels of the job itself, and make the rows as they see them."""
        jobs = [self.job_of(trial) for trial in trials]
        lengths = {job.model.n_factors: job for job in jobs if job.model.n_factors != self.run.job.model.n_factors}
        for _, job in sorted(lengths.items()):
            for future in warm_up(self._run_with(job), with_rows=False):
                self.run.watch.wait(future)
        for least in sorted({job.model.min_count_factors for job in jobs}):
            self._rows(least)

    @property
    def _scale(self) -> RowScale:
        return row_scale(self.run, self.prepared)

    def _rows(self, least: int) -> Prepared:
        """The same rows, in which features that occur so often own factors."""
        with self._lock:
            if least == self.run.job.model.min_count_factors:
                return self.prepared
            if least not in self._variants:
                self._variants[least] = with_least(self.run.watch, self.prepared, least)
            return self._variants[least]

    def _run_with(self, job: Job) -> Run:
        """The run with another job on the same rows; its events are its own."""
        order = self.run.order
        spec = dataclasses.replace(order.work.spec, n_factors=job.model.n_factors)
        numbers = settled(job.training, self._scale)
        work = work_of(numbers, job.model.task, spec, gpu_memory=job.cluster.gpu_memory)
        work = dataclasses.replace(work, l2_scales=order.work.l2_scales)
        other = dataclasses.replace(order, job=job, work=work)
        return dataclasses.replace(self.run, order=other, tell=self._pass_over)
