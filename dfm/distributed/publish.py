"""The end of a run on a cluster: the best blocks become the published model, and what there is to tell of it."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Future

from dfm.data.reading import fingerprint
from dfm.distributed.diagnose import Diagnosis
from dfm.distributed.exact import solving_numbers
from dfm.distributed.preparation_events import collided_share, rows_event, trained_rows
from dfm.distributed.preparation_tasks import remember
from dfm.distributed.prepare import Prepared
from dfm.distributed.run import Event, Run
from dfm.distributed.tuning import numbers_found
from dfm.model.calibration import Calibration
from dfm.storage import files
from dfm.training import rounds
from dfm.training.diagnosis import Finding, start_finding
from dfm.training.exact import draws_of
from dfm.training.exact_work import has_draws
from dfm.training.loop import Best
from dfm.training.publish import Meaning, publish_model
from dfm.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """The outcome of training. interrupted: it was stopped, and the best parameters so far are to be published."""

    best: Best
    history: list[Event]
    interrupted: bool
    findings: tuple[Finding, ...] = ()
    """All that they could not learn."""
    pilot: Mapping[str, Any] = field(default_factory=dict)
    """Losses of its candidates, and which was chosen."""
    choice: Mapping[str, Any] = field(default_factory=dict)
    """Losses with factors and without, the metric that they are (`dfm.events.compared`), and which model was chosen;
    empty without a rival.
    """
    calibration: Calibration | None = None
    """The function of logits that predictions are made of."""
    calibrating: Mapping[str, Any] = field(default_factory=dict)
    """The outcome of the calibration that the job asks for; empty where it asks for none."""
    models: Sequence[Mapping[str, Any]] = ()
    """Seed, best epoch and validation metrics of each model whose mean this is; none where it is a single one."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """Metrics of the parameters that training began with, where it went on from a model and rows validate."""
    first: Best | None = None
    """The first of several models, whose blocks have the optimizer's state, which those of their mean do not."""


def diagnosed(run: Run, prepared: Prepared, work: rounds.Work, trained: Trained) -> Trained:
    """With what the best parameters could not learn; of a run that was interrupted there is nothing to say."""
    if trained.interrupted:
        return trained
    if trained.models:
        work = work.of_mean(len(trained.models))
    share = collided_share(prepared.summary, run.job.model.hash_bits)
    diagnosis = Diagnosis(run.job, run.watch, work, prepared, share)
    findings = diagnosis.findings(list(trained.best.blocks), trained.best.metrics)
    if run.warm is not None and trained.best.epoch == 0:
        findings.append(start_finding(run.order.objective, trained.best.metrics))
    run.tell({"event": "diagnosis", "findings": [finding.to_dict() for finding in findings]})
    return dataclasses.replace(trained, findings=tuple(findings))


def model_url(run: Run) -> str:
    """The URL at which the model is published."""
    return files.join(run.job.output.directory, "model")


def save_model(run: Run, prepared: Prepared, trained: Trained) -> str:
    """Write the best parameters as a model: by a worker, or here where only this machine can write the path.

    Returns the fingerprint of the parameters.
    """
    url, inputs, best = model_url(run), run.inputs, trained.best.blocks
    units = (*inputs.validation_tasks, inputs.plan.replicas[0])[0][0]
    where = os.path.abspath(files.local_path(url)) if files.is_local(url) else url
    known: list[Any] = [_metadata(run, prepared, trained)]
    if not run.job.training.is_exact:
        known.append(_accumulators(run, prepared, trained))
    are_draws = has_draws(run.work)
    best = draws_of(best) if are_draws else best
    meaning = Meaning(run.order.objective.info, trained.calibration, are_draws)
    rest = prepared.reading, units[0], where, meaning
    run.tell({"event": "publishing"})
    vocabulary = run.watch.submit(remember, prepared.vocabulary, prepared.sights)
    if files.is_local(url) and not run.shares_disk:
        for future in (vocabulary, *known[1:]):  # others than those who train may still be at it
            run.watch.wait(future)
        blocks, remembered, told = run.client.gather([list(best), vocabulary, known])
        published = publish_model(blocks, remembered, told, *rest)
    else:
        published = run.watch.result(run.watch.submit(publish_model, list(best), vocabulary, known, *rest))
    for warning in published.warnings:
        logger.warning("%s", warning)
    return published.parameters_sha256


def _accumulators(run: Run, prepared: Prepared, trained: Trained) -> Future:
    """The growth of the accumulators, for those who go on from the model."""
    one = trained.first or trained.best
    n_epochs = one.walked / max(prepared.account.accepted, 1)
    told = list(one.blocks), prepared.vocabulary, run.job.training.initial_accumulator, n_epochs, prepared.begun
    return run.watch.submit(growth_told, *told)


def growth_told(blocks: Sequence[rounds.Block], *more: Any) -> dict[str, Any]:
    """The entry of a manifest about the growth that `rounds.growth_of` finds; no entry where there is none."""
    growth = rounds.growth_of(blocks, *more)
    return {"accumulators": growth.to_dict()} if growth else {}


def _numbers(run: Run, prepared: Prepared, trained: Trained) -> dict[str, Any]:
    """The numbers that the job left open."""
    if run.job.training.is_exact:
        return solving_numbers(run, prepared)
    return numbers_found(run, prepared, trained.pilot)


def _metadata(run: Run, prepared: Prepared, trained: Trained) -> dict[str, Any]:
    shards = [shard.identity for shard in run.inputs.train]
    return {
        "dfm_version": __version__,
        **({"run_id": run.run_id} if run.run_id else {}),
        "settings": run.job.to_dict(),
        "job_fingerprint": run.job.fingerprint(),
        "backend": run.choice.backend.name,
        "validation": trained.best.metrics,
        "best_epoch": trained.best.epoch,
        "history": trained.history,
        "rows": trained_rows(prepared),
        "validation_rows": rows_event(prepared.validation_account),
        "data_fingerprint": fingerprint(shards),
        "validation_fingerprint": fingerprint([shard.identity for shard in run.inputs.validation]),
        **({"tables": [each.to_dict() for each in run.inputs.snapshots]} if run.inputs.snapshots else {}),
        "distinct_features": prepared.summary.n_distinct,
        "diagnosis": [finding.to_dict() for finding in trained.findings],
        "units": dataclasses.asdict(prepared.reading.units),
        "warm_start": {**run.warm.describe(), "validation": dict(trained.start)} if run.warm else {},
        "automatic": _numbers(run, prepared, trained),
        **({"choice": dict(trained.choice)} if trained.choice else {}),
        **({"calibration": dict(trained.calibrating)} if trained.calibrating else {}),
        **({"models": [dict(each) for each in trained.models]} if trained.models else {}),
    }


def done_event(run: Run, prepared: Prepared, trained: Trained, digest: str) -> Event:
    """The event of a model that was published."""
    return {
        "event": "done",
        "model": model_url(run),
        "validation": trained.best.metrics,
        "best_epoch": trained.best.epoch,
        "rows": trained_rows(prepared),
        "validation_rows": rows_event(prepared.validation_account),
        "interrupted": trained.interrupted,
        "parameters_sha256": digest,
    }
