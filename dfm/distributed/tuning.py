"""The numbers of a run that its rows decide: step sizes, the start of the factors, and the candidates of its pilot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dfm.distributed.cluster.remote import least_memory
from dfm.distributed.preparation_tasks import VocabularySummary
from dfm.distributed.prepare import Prepared
from dfm.distributed.run import Event, Run
from dfm.kernels.contract import Step
from dfm.settings.tables import TrainingSettings
from dfm.training.automatic import (
    CANDIDATES,
    DEFAULT,
    LATE_REPLICAS,
    Candidate,
    RowScale,
    described,
    n_pilot_slices,
    settled,
    told,
    wants_pilot,
)
from dfm.training.pilot import Pilot
from dfm.training.steps import step_of

_TABLES_IN_MEMORY = 5
"""Copies of a candidate's table that a worker holds at a time: before a round and after two, pulled and pushed."""


@dataclass(frozen=True)
class Tuned:
    """The step of a run, and its pilot or None."""

    step: Step
    pilot: Pilot | None


def row_scale(run: Run, prepared: Prepared) -> RowScale:
    """The scale of step sizes, by the rows and the loss."""
    return RowScale.of(prepared.account.entries, run.order.objective)


def table_bytes(run: Run, summary: VocabularySummary) -> int:
    """Bytes of all parameters with their optimizer state."""
    return 4 * run.work.layout.n_numbers(summary.n_features, summary.n_factored, len(run.inputs.schema.fields))


def tuned(run: Run, prepared: Prepared) -> Tuned:
    """The step that the rows ask for, and the candidates where a pilot is to decide. Training that goes on from a
    model goes on with what that model's pilot chose.
    """
    numbers = {name: _settled(run, prepared, name) for name in CANDIDATES}
    gpu_memory = run.job.cluster.gpu_memory
    return Tuned(step_of(numbers[_inherited(run).name], gpu_memory), _pilot(run, prepared, numbers))


def _inherited(run: Run) -> Candidate:
    """The candidate that the earlier model, or that of its models which this one goes on from, was trained with."""
    if run.warm is None:
        return DEFAULT
    candidates = run.warm.candidates
    return CANDIDATES.get(candidates[run.number if len(candidates) > 1 else 0], DEFAULT)


def chosen_of(run: Run, pilot: Mapping[str, Any]) -> str:
    """The candidate that a model was trained with, as its pilot chose it or as it took it over; "" without either."""
    return str(pilot.get("chosen", _inherited(run).name if run.warm else ""))


def _pilot(run: Run, prepared: Prepared, numbers: Mapping[str, TrainingSettings]) -> Pilot | None:
    """None where the settings leave nothing to it, or the rows are too few."""
    training, n_slices = run.job.training, run.inputs.plan.n_slices
    n_walked = n_pilot_slices(n_slices, prepared.account.accepted // training.n_replicas)
    if not wants_pilot(training) or not n_walked:
        return None
    limit = least_memory(run.client)
    needed = _TABLES_IN_MEMORY * len(numbers) * table_bytes(run, prepared.summary)
    return Pilot(
        {name: step_of(each, run.job.cluster.gpu_memory) for name, each in numbers.items()},
        {name: told(each) for name, each in numbers.items()},
        n_walked,
        is_late=training.n_replicas > LATE_REPLICAS,
        together=not limit or needed <= limit,
    )


def _settled(run: Run, prepared: Prepared, chosen: str) -> TrainingSettings:
    return settled(run.job.training, row_scale(run, prepared), CANDIDATES.get(chosen, _inherited(run)))


def settings_event(run: Run, prepared: Prepared) -> Event:
    """The numbers that training begins with, and how long it may last."""
    course, numbers = run.inputs.course, _settled(run, prepared, "")
    found = described(run.job.model, numbers, row_scale(run, prepared))
    return {"event": "settings", **found, "schedule": course.schedule, "epochs": course.n_epochs}


def numbers_found(run: Run, prepared: Prepared, pilot: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that the parameters were trained with, and what the pilot saw, for the manifest."""
    chosen = chosen_of(run, pilot)
    found = described(run.job.model, _settled(run, prepared, chosen), row_scale(run, prepared))
    return {**found, "chosen": chosen, "pilot": dict(pilot.get("losses", {}))}
