"""The choice between a model and its linear rival: the same job, in which no feature owns factors.

Where rows are few, factors learn noise, and the weights beside them learn less than they would alone. Whether that is
so shows only in a training without them, on the same rows, held out ones included.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from typing import Any

from dfm.distributed.loops import started_loop
from dfm.distributed.prepare import Prepared
from dfm.distributed.publish import Trained
from dfm.distributed.run import Event, Run
from dfm.distributed.variants import with_least
from dfm.errors import DivergenceError, SettingsError
from dfm.settings.job import Job
from dfm.settings.tables import CHOICES
from dfm.training.inputs import Inputs

logger = logging.getLogger(__name__)
_BEST = CHOICES[1]


def check_choice(job: Job, inputs: Inputs) -> None:
    """SettingsError where the job wants the best of two models, or of epochs, and nothing could tell which that is."""
    if job.training.stop_on != "auto" and not inputs.validation_tasks:
        raise SettingsError(
            f'training.stop_on = "{job.training.stop_on}" needs rows to validate on, and there are none. Name them in '
            "data.validation, or let data.validation_fraction hold some out."
        )
    if job.model.choose == _BEST and not inputs.validation_tasks:
        raise SettingsError(
            f'model.choose = "{_BEST}" needs rows to validate on, and there are none. Name them in data.validation, or '
            "let data.validation_fraction hold some out."
        )


def best_of_both(run: Run, prepared: Prepared, trained: Trained) -> tuple[Prepared, Trained]:
    """The model to publish: the one that was trained or, where the job asks for the best and that validates
    better, the linear one; with the rows as that model sees them.

    An interrupted run has no rival.
    """
    if run.job.model.choose != _BEST or trained.interrupted:
        return prepared, trained
    started, cost = time.perf_counter(), run.order.objective.cost
    linear = with_least(run.watch, prepared, None)
    loop = started_loop(dataclasses.replace(run, tell=functools.partial(_told_as_rival, run)), linear)
    try:
        loop.run()
    except DivergenceError as error:
        logger.warning("the model without factors diverged, the other one is kept: %s", error)
        return prepared, trained
    assert loop.best is not None
    losses = {"factors": cost(trained.best.metrics), "linear": cost(loop.best.metrics)}
    factors, linear_one = (math.inf if loss is None else loss for loss in losses.values())
    chosen = "linear" if linear_one < factors else "factors"
    choice: dict[str, Any] = {"losses": losses, "metric": run.order.objective.watched, "chosen": chosen}
    run.tell({"event": "chosen", **choice, "seconds": time.perf_counter() - started})
    if chosen == "factors":
        return prepared, dataclasses.replace(trained, choice=choice)
    of_linear = Trained(loop.best, loop.at.history, False, pilot=loop.at.pilot, choice=choice, start=loop.at.start)
    return linear, of_linear


def _told_as_rival(run: Run, event: Event) -> None:
    """Pass on how many rows the rival has walked, and nothing else: its epochs are not those of the run."""
    if event["event"] == "epoch":
        rows, total = event["rows"], run.inputs.course.n_epochs
        run.tell({"event": "progress", "stage": "linear", "done": rows * event["epoch"], "total": rows * total})
