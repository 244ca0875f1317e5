"""The report of a training: what the published model does on the rows that validate, and the page that shows it."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import operator
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Future

from dfm.data.chunks import batches_aside
from dfm.data.draw import sampled
from dfm.data.parquet import Batch, Unit
from dfm.data.reading import Reading, kept_batches
from dfm.distributed.cluster.watch import home_of
from dfm.distributed.evaluate import Evaluation, evaluated, labelled_columns, scored_batches
from dfm.distributed.importance import Drawn, damages_of, described, drawn_of
from dfm.distributed.preparation_events import collided_share
from dfm.distributed.preparation_tasks import on_this_worker
from dfm.distributed.prepare import ROWS_TO_LOOK_AT, Prepared, tasks_to_judge
from dfm.distributed.progress import follow, progress_of
from dfm.distributed.publish import model_url
from dfm.distributed.run import Run
from dfm.distributed.scoring import Edition, Scoring, loaded_model, placed_model
from dfm.model.curves import curves_of
from dfm.model.drift import Sights
from dfm.model.fm_model import FMModel
from dfm.model.importance import Damage, Effort
from dfm.model.metrics import ClassificationTally
from dfm.model.objective import LossTally
from dfm.model.report import report_training, write_findings
from dfm.model.slices import Slicing, worst_first
from dfm.training.diagnosis import count_fields

MOST_ROWS_IN_TURN = 5_000
"""Rows that each column is permuted in, where more validate."""
_TOP, _PARTS = 20, 200
"""Slices that are shown, and the part of the rows that one of them has at least."""
_PACKAGES = ("numpy", "numba", "pyarrow", "dask", "distributed")


@dataclass(frozen=True)
class Seen:
    """The metrics of rows by the published model, and rows to measure columns in; None where no loss says so."""

    evaluation: Evaluation
    drawn: Drawn | None


def write_page(run: Run, prepared: Prepared, seconds: Mapping[str, float], looks_at_rows: bool) -> str:
    """Write what there is to tell of a published model beside it, and return the URL of the page."""
    options, directory = run.job.data.storage_options, run.job.output.directory
    findings = {
        "seconds": dict(seconds),
        "collisions": _collisions(run, prepared),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in _PACKAGES}},
        **(_findings(run, prepared) if looks_at_rows and prepared.validation_account.accepted else {}),
    }
    write_findings(model_url(run), findings, options)
    return report_training(directory, f"model in {directory}", options)


def _collisions(run: Run, prepared: Prepared) -> dict[str, Any]:
    bits = run.job.model.hash_bits
    return {
        "distinct features": prepared.summary.n_distinct,
        "indices of the hash table": 2**bits,
        "share of the table that is filled": prepared.summary.n_distinct / 2**bits,
        "expected share of values that share an index": collided_share(prepared.summary, bits),
    }


def _findings(run: Run, prepared: Prepared) -> dict[str, Any]:
    """Curves, slices and importance, as far as the loss has them."""
    column = _widest_column(run, prepared) if _has_losses(run) else ""
    evaluation, damage, drift = _look(run, prepared, Slicing.of([[column]] if column else []))
    tally, told = evaluation.tally, dict[str, Any](drift=drift)
    if run.job.model.task == "classification":
        of_task = tally.of_task if isinstance(tally, LossTally) else tally
        told["curves"] = curves_of(of_task) if isinstance(of_task, ClassificationTally) else {}
    if damage is not None and damage.weight:
        told["importance"] = described(damage, run.inputs.schema)
    slices = evaluation.slices
    if column and slices is not None:
        least = max(evaluation.account.accepted // _PARTS, 1)
        records = worst_first(slices, 0, least, _TOP, run.job.model.task == "regression")
        named = [{"value": record["slice"][column], **record} for record in records]
        told["slices"] = {"column": column, "records": named}
    return told


def _has_losses(run: Run) -> bool:
    """Whether single rows have a loss that slices and columns could be compared by."""
    return run.job.model.task == "regression" or run.order.objective.info.link == "sigmoid"


def _widest_column(run: Run, prepared: Prepared) -> str:
    """The column of categories with most features; "" without any."""
    schema = run.inputs.schema
    names = [entry.name for entry in schema.fields]
    counts = run.watch.result(run.watch.submit(count_fields, prepared.vocabulary, names))
    made = {entry.name for entry in schema.derived}
    sizes = {
        entry.name: count.features
        for entry, count in zip(schema.fields, counts, strict=True)
        if entry.kind == "categorical" and entry.name not in made
    }
    return max(sizes, key=lambda name: (sizes[name], name), default="")


def _look(run: Run, prepared: Prepared, slicing: Slicing) -> tuple[Evaluation, Damage | None, list[dict[str, Any]]]:
    """The metrics of the rows that validate by the model that was published, what it costs to lose a column, as far as
    a loss says so, and a record of each of their columns. As in training, the rows are those of the log as it is: where
    it kept a share of its negative rows, the model is not yet that of the full stream.
    """
    data, options = run.job.data, run.job.data.storage_options
    edition = Edition.of(model_url(run), options)
    scoring = Scoring(edition, storage_options=options, slicing=slicing, negative_rate=data.negative_rate)
    scoring, placed = placed_model(run.watch, scoring)
    tasks, total = tasks_to_judge(run), prepared.validation_account.accepted
    effort = Effort.of(min(total, ROWS_TO_LOOK_AT), MOST_ROWS_IN_TURN, 1) if _has_losses(run) else None
    submit = functools.partial(run.watch.submit, look_at_rows, scoring, placed, prepared.held_out)
    share, addresses = ROWS_TO_LOOK_AT / total, run.watch.addresses()
    futures: list[Future] = [submit(units, share, effort, near=home_of(*place, addresses)) for units, place in tasks]
    sizes = [sum(unit.n_rows for unit in units) for units, _ in tasks]
    follow(run.watch, futures, sizes, "report", progress_of(run))
    seen: Evaluation = run.watch.result(run.watch.submit(sum_of, [run.watch.submit(evaluation_of, f) for f in futures]))
    damage = _damage(run, (scoring, placed), futures, effort) if effort is not None else None
    drift: list[dict[str, Any]] = run.watch.result(run.watch.submit(drift_of_rows, scoring, placed, seen.sights))
    return seen, damage, drift


def _damage(run: Run, model: tuple[Scoring, Edition | Future], seen: Sequence[Future], effort: Effort) -> Damage:
    """The cost of losing a column, in the rows that tasks have drawn."""
    drawn = [run.watch.submit(drawn_by, each) for each in seen]
    found: Damage = run.watch.result(run.watch.submit(sum_of, damages_of(run.watch, model, drawn, effort)))
    return found


def evaluation_of(seen: Seen) -> Evaluation:
    """The metrics without rows, which stay where they are."""
    return seen.evaluation


def drawn_by(seen: Seen) -> Drawn | None:
    """The rows to measure columns in."""
    return seen.drawn


def sum_of(parts: Sequence[Any]) -> Any:
    """The sum over all tasks; made on a worker, which has loaded what adds tables up."""
    return functools.reduce(operator.add, parts)


def drift_of_rows(scoring: Scoring, placed: Edition | FMModel, sights: Sights | None) -> list[dict[str, Any]]:
    """A record of each column, the one that drifted most first."""
    model = loaded_model(scoring, placed)
    return [] if sights is None else model.watcher.records(sights, model.schema)


def look_at_rows(
    scoring: Scoring,
    placed: Edition | FMModel,
    reading: Reading,
    units: Sequence[Unit],
    share: float,
    effort: Effort | None,
) -> Seen:
    """Metrics of a share of some rows; and, by the effort for these, rows to measure columns in."""
    model = loaded_model(scoring, placed)
    columns = list(labelled_columns(model, True, scoring.slicing))
    batches = _some(reading, units, columns, share)
    scored = [*scored_batches(model, batches, "skip", True)]
    evaluation = evaluated(model, scored, scoring.slicing)
    if effort is None:
        return Seen(evaluation, None)
    good = [(batch.place, rows.data, account) for batch, (account, rows, _) in zip(batches, scored, strict=True)]
    return Seen(evaluation, drawn_of(model, good, effort))


def _some(reading: Reading, units: Sequence[Unit], columns: list[str], share: float) -> list[Batch]:
    """A share of some rows: of those that were put aside, where they were."""
    aside = batches_aside(on_this_worker(reading), units) if reading.share_aside else None
    if aside is not None:
        return [_thinned(batch, share / reading.share_aside) for batch in aside]
    return [_thinned(batch, share) for unit in units for batch in kept_batches(reading, unit, columns)]


def _thinned(batch: Batch, share: float) -> Batch:
    return dataclasses.replace(batch, data=sampled(batch.data, share, batch.place), kept=None)
