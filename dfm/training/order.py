"""A job at the door: everything that can be refused before any data is looked at is refused here, once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dfm.data.schema import ResolvedSchema
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.kernels.families.registry import DEFAULT, family_of
from dfm.model.objective import Objective, kernel_spec, with_fields
from dfm.settings.groups import l2_scales_of
from dfm.settings.job import Job
from dfm.training.automatic import RowScale, settled, steepness_of
from dfm.training.exact_work import exact_work
from dfm.training.publish import check_output
from dfm.training.rounds import Work
from dfm.training.steps import work_of


@dataclass(frozen=True)
class Order:
    """A job that may be trained: its objective, and what training tasks must know, before a backend is chosen."""

    job: Job
    objective: Objective
    work: Work

    @classmethod
    def of(cls, job: Job, loss: CustomLoss | None = None, regularizer: CustomRegularizer | None = None) -> Order:
        """SettingsError where the job names nothing to train on, or its knobs do not go together.

        loss, regularizer: the functions that the job was marked with, by `objective.with_functions`.
        """
        job.require_training()
        objective, spec = kernel_spec(job, loss, regularizer)
        if job.training.stop_on != "auto":
            objective = replace(objective, stop_on=job.training.stop_on)
        if job.training.is_exact:
            return cls(job, objective, exact_work(job.training, job.model.task, spec))
        numbers = settled(job.training, RowScale(steepness=steepness_of(objective)))  # until the rows are known
        return cls(job, objective, work_of(numbers, job.model.task, spec, gpu_memory=job.cluster.gpu_memory))

    def of_fields(self, schema: ResolvedSchema) -> Order:
        """The order of rows with these fields. SettingsError where the model's family cannot make use of them."""
        names = [entry.name for entry in schema.fields]
        remedy = f'; name another column in [schema], or choose model.family = "{DEFAULT}"'
        family_of(self.work.spec.family).check_fields(len(names), remedy)
        spec = with_fields(self.work.spec, self.job.model.groups, names)
        scales = l2_scales_of(self.job.training.l2_groups, names)
        if scales and not self.job.training.is_exact:
            spec = replace(spec, l2_by_field=True)
        return replace(self, work=replace(self.work, spec=spec, l2_scales=scales))


def admit(job: Job, loss: CustomLoss | None = None, regularizer: CustomRegularizer | None = None) -> Order:
    """The order of a job whose model can be written where it says. SettingsError as `Order.of` and `check_output`."""
    order = Order.of(job, loss, regularizer)
    check_output(job)
    return order
