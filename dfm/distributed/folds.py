"""Cross-validation on a cluster: one job, trained once for each part of its rows, which then validates."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Client

from dfm.data.chunks import OneClassError
from dfm.data.latest import equal_parts
from dfm.distributed import backends
from dfm.distributed.beginning import begun, prepare_rows
from dfm.distributed.choosing import best_of_both
from dfm.distributed.cluster import connect
from dfm.distributed.loops import started_loop
from dfm.distributed.prepare import Prepared, latest_rows, plain_reading
from dfm.distributed.publish import Trained
from dfm.distributed.run import OnEvent, Run
from dfm.distributed.several import mean_of, member_runs, side_by_side, train_several
from dfm.errors import DataError, SettingsError
from dfm.kernels.losses import is_paired
from dfm.model.objective import UndefinedMetricError
from dfm.settings.arguments import checked
from dfm.settings.constraints import Number
from dfm.settings.job import Job
from dfm.training.automatic import Course
from dfm.training.inputs import Inputs, RowSplit, find_inputs, plan_event
from dfm.training.order import Order
from dfm.training.plan import plan_held_out

BY = ("lot", "time")


@dataclass(frozen=True)
class Folds:
    """Metrics of the best parameters of every fold, on the rows that it was not trained on. None: a metric that a fold
    does not have, as the AUC of rows of one class; it has a mean over the others.
    """

    folds: list[dict[str, Any]]

    def _numbers(self) -> dict[str, list[float]]:
        names = dict.fromkeys(name for fold in self.folds for name in fold)
        known = {name: [fold[name] for fold in self.folds if isinstance(fold.get(name), int | float)] for name in names}
        return {name: [*map(float, values)] for name, values in known.items() if values}

    @property
    def mean(self) -> dict[str, float]:
        """The mean over the folds, by metric."""
        return {name: statistics.fmean(values) for name, values in self._numbers().items()}

    @property
    def spread(self) -> dict[str, float]:
        """The standard deviation over the folds, by metric."""
        return {name: statistics.pstdev(values) for name, values in self._numbers().items()}


def cross_validate(
    order: Order, n_folds: int, by: str = "lot", client: Client | None = None, on_event: OnEvent | None = None
) -> Folds:
    """Train the job once for each of n_folds parts of its rows, and publish nothing.

    by: "lot": every part validates once, and all others train. "time": of n_folds + 1 parts in order of schema.time
    each but the first validates, and those before it train. All of its rows judge: nothing is calibrated.
    SettingsError where the job itself says which rows, or how many, validate.
    """
    _check(order.job, n_folds, by)
    tell = on_event or (lambda event: None)
    plain = dataclasses.replace(order.job.model, calibration="none")
    order = dataclasses.replace(order, job=dataclasses.replace(order.job, model=plain))
    inputs = _all_rows(order)
    order = order.of_fields(inputs.schema)
    cluster = backends.cluster_of(order, inputs)
    with connect.client_of(cluster, client) as own, begun(order, inputs, own, tell) as run:
        splits = _by_lot(n_folds) if by == "lot" else _by_time(run, n_folds)
        parts = f"each of {len(splits)} parts of these rows in turn"
        tell({**plan_event(inputs), "validation_rows": None, "held_out": parts})
        return Folds([_fold(run, number, split) for number, split in enumerate(splits, start=1)])


def _check(job: Job, n_folds: int, by: str) -> None:
    checked("n_folds", n_folds, 5, Number(2, integer=True))
    if by not in BY:
        raise SettingsError(f"folds by {by!r} are not legal: expected {' or '.join(BY)}")
    if by == "time" and not job.schema.time:
        raise SettingsError("folds by time need schema.time, the column that orders rows in time. Name it.")
    left_out = {"validation": '""', "validation_from": '""', "validation_fraction": "auto"}
    for name, value in left_out.items():
        if getattr(job.data, name) not in ((), "", 0, "auto"):
            raise SettingsError(
                f"a cross-validation chooses the rows that validate by itself. Leave data.{name} out (--set "
                f"data.{name}={value})."
            )
    if job.training.warm_start:
        raise SettingsError("a cross-validation begins with untrained parameters. Leave training.warm_start out.")


def _all_rows(order: Order) -> Inputs:
    """The input of the job without rows held out; all reading tasks may have rows that validate."""
    job = order.job
    whole = dataclasses.replace(job, data=dataclasses.replace(job.data, validation_fraction=0))
    training = whole.training
    if not training.is_exact:
        training = dataclasses.replace(training, schedule="final-decay")  # whatever schedule, there are such rows
    inputs = find_inputs(dataclasses.replace(whole, training=training))
    course = Course.of(job.training, validates=True)
    tasks = inputs.plan.tasks(is_paired(job.model.loss))
    return dataclasses.replace(inputs, validation_tasks=plan_held_out(tasks), course=course)


def _by_lot(n_folds: int) -> list[RowSplit]:
    return [RowSplit(lots=(fold / n_folds, (fold + 1) / n_folds)) for fold in range(n_folds)]


def _by_time(run: Run, n_folds: int) -> list[RowSplit]:
    """DataError where times have no order, or too few distinct moments for so many parts."""
    found = latest_rows(run, plain_reading(run), run.inputs.n_rows)
    if isinstance(found, str):
        raise DataError(f"folds by time need times with an order: {found}")
    cuts = equal_parts(found, n_folds + 1)
    if len(cuts) < n_folds:
        raise DataError(
            f"column {run.job.schema.time!r} has too few distinct moments for {n_folds} folds of about equal size; it "
            f"gives {len(cuts)}: ask for so many, or for folds by lot"
        )
    return [RowSplit(bound=cut, until=until) for cut, until in zip(cuts, [*cuts[1:], ""], strict=True)]


def _fold(run: Run, number: int, split: RowSplit) -> dict[str, Any]:
    """Metrics of a fold."""
    inputs = dataclasses.replace(run.inputs, split=split)
    own = dataclasses.replace(run, inputs=inputs, tell=lambda event: _passing(run, event))
    with _naming_fold(number):
        prepared = prepare_rows(own)
        prepared.validation_account.check_any(f"validate on in fold {number}", inputs.schema.weight)
        _, trained = best_of_both(own, prepared, _trained(own, prepared))
    metrics = dict(trained.best.metrics)
    metrics.pop("calibration_bins", None)
    n_epochs = max((event["epoch"] for event in trained.history), default=0)
    run.tell({"event": "fold", "fold": number, "epochs": n_epochs, **metrics})
    return metrics


@contextlib.contextmanager
def _naming_fold(number: int) -> Iterator[None]:
    """Name the fold that lacks rows of both classes, and the way out."""
    try:
        yield
    except OneClassError as error:
        raise DataError(f"fold {number}: {error}, or ask for fewer folds") from error
    except UndefinedMetricError as error:
        raise SettingsError(
            f"fold {number}: {error.args[0]}. Ask for fewer folds, or leave training.stop_on out"
        ) from error


def _trained(run: Run, prepared: Prepared) -> Trained:
    """The job's model, or the mean of its models, at its best."""
    if run.job.model.n_models == 1:
        loop = started_loop(run, prepared)
        loop.run()
        assert loop.best is not None
        return Trained(loop.best, loop.at.history, interrupted=False)
    in_step = side_by_side(run)
    loops = [started_loop(each, prepared) for each in member_runs(run, in_step)]
    if train_several(loops, in_step):
        raise KeyboardInterrupt  # models that could be published are no reason to go on with the next fold
    return mean_of(run, prepared, loops, interrupted=False)


def _passing(run: Run, event: Mapping[str, Any]) -> None:
    """Progress is shown, what else happens in a fold is its own."""
    if event["event"] in ("progress", "round"):
        run.tell(dict(event))


def described(folds: Folds) -> Sequence[tuple[str, float, float]]:
    """Name, mean and spread of every metric."""
    return [(name, mean, folds.spread[name]) for name, mean in folds.mean.items()]
