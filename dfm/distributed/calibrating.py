"""The calibration of a run: fitted on validation rows that judged no epoch, kept where it helps on those that did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfm.data.partition import SparsePartition
from dfm.distributed.prepare import Prepared
from dfm.distributed.publish import Trained
from dfm.distributed.run import Run
from dfm.errors import SettingsError
from dfm.model.calibration import Calibration, Gain, fitted, gain_of
from dfm.model.metrics import Tally
from dfm.model.objective import classified
from dfm.settings.job import Job
from dfm.training import rounds
from dfm.training.inputs import Inputs
from dfm.training.rounds import Work

APART = 1 / 3
"""Share of the rows to validate on that a calibration is fitted on."""
_Evaluated = Callable[[Work, Sequence[rounds.Block], Sequence[SparsePartition]], Tally]


def share_apart(job: Job) -> float:
    """Share of the rows to validate on that judge no epoch."""
    return APART if job.model.calibration != "none" else 0.0


def check_calibration(job: Job, inputs: Inputs) -> None:
    """SettingsError where a calibration is wanted and no row could fit it."""
    if job.model.calibration != "none" and not inputs.validation_tasks:
        raise SettingsError(
            f'model.calibration = "{job.model.calibration}" is fitted on rows to validate on, and there are none. Name '
            "them in data.validation, or let data.validation_fraction hold some out."
        )


@dataclass(frozen=True)
class _Outcome:
    """A calibration, or why there is none; how many rows fitted it, and what it gained on others, None where there was
    nothing to judge.
    """

    found: Calibration | None
    rows: int
    reason: str = ""
    gain: Gain | None = None

    def told(self, kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        """JSON-ready. before, after: metrics of the rows that judged, without it and of what is published."""
        is_kept = self.found is not None
        return {
            "kind": kind,
            "kept": is_kept,
            "rows": self.rows,
            "judged_rows": before.get("rows", 0),
            "log_loss_before": before.get("log_loss"),
            "log_loss_after": after.get("log_loss") if is_kept else None,
            "gain": self.gain.mean if self.gain else None,
            "gain_error": self.gain.error if self.gain else None,
            "reason": self.reason,
        }


def calibrated(run: Run, prepared: Prepared, work: Work, trained: Trained) -> Trained:
    """With the calibration that the job asks for, where it lowers the log loss of validation rows that it has not seen
    by more than chance would; without one elsewhere. An event says which, and the metrics are those of the result.
    """
    kind = run.job.model.calibration
    if kind == "none":
        return trained
    if trained.models:
        work = work.of_mean(len(trained.models))
    before = trained.best.metrics
    outcome = _Outcome(None, 0, "training was interrupted")
    if not trained.interrupted:
        outcome = _outcome(run, prepared, work, trained, kind)
    after = before
    if outcome.found is not None:
        work = dataclasses.replace(work, calibration=outcome.found)
        after = _tally(run, prepared, trained, work, rounds.evaluate_partitions).metrics()
    record = outcome.told(kind, before, after)
    run.tell({"event": "calibrated", **record})
    best = dataclasses.replace(trained.best, metrics=after)
    return dataclasses.replace(trained, best=best, calibration=outcome.found, calibrating=record)


def _outcome(run: Run, prepared: Prepared, work: Work, trained: Trained, kind: str) -> _Outcome:
    apart = classified(_tally(run, prepared, trained, work, rounds.evaluate_apart))
    found = fitted(kind, apart)
    if isinstance(found, str):
        return _Outcome(None, apart.rows, found)
    judges = classified(_tally(run, prepared, trained, work, rounds.evaluate_partitions))
    if not judges.weight:
        return _Outcome(None, apart.rows, "no row is left to judge it by")
    gain = gain_of(found, judges)
    if not gain.is_one:
        return _Outcome(None, apart.rows, "it does not lower the log loss of rows that it has not seen", gain)
    return _Outcome(found, apart.rows, "", gain)


def _tally(run: Run, prepared: Prepared, trained: Trained, work: Work, evaluate: _Evaluated) -> Tally:
    """Metrics of the best parameters on validation rows, as `evaluate` chooses them."""
    blocks = list(trained.best.blocks)
    tallies = [run.watch.submit(evaluate, work, blocks, partitions) for partitions in prepared.validation]
    tally: Tally = run.watch.result(run.watch.submit(rounds.merge_tallies, tallies))
    return tally
