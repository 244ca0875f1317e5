"""The log of a task holds what a person looks for: epochs, metrics, account of rows, the model; deferred or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfm.airflow import DfmTrainOperator
from dfm.airflow.runtime import lines_of_run
from dfm.runs import record as runs
from dfm.settings.job import Job

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
EPOCH = {
    "event": "epoch", "epoch": 1, "train_log_loss": 0.51234567, "log_loss": 0.4, "auc": 0.75, "rows_per_second": 1e6,
    "seconds": 2.0, "training_seconds": 1.0, "bytes_per_round": 3.0,
}  # fmt: skip
DONE = {
    "event": "done", "model": "out/model", "parameters_sha256": "abc", "interrupted": False,
    "validation": {"log_loss": 0.4, "auc": 0.75}, "rows": {"read": 9000, "trained": 8999, "rejected": 1},
}  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """Where a run has ended."""
    job = Job.from_dict({"data": {"train": "x"}, "output": {"directory": str(tmp_path)}})
    with runs.RunLog(job, "the-run") as log:
        log.on_event(EPOCH)
        log.on_event(DONE)
    return str(tmp_path)


class Kept:
    """A task's log, kept."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def info(self, text: str, *values: object) -> None:
        self.told.append(text % values)


def expected(directory: str) -> list[str]:
    return [
        "epoch 1: train_log_loss 0.51235, log_loss 0.40000, auc 0.75000",
        "validation: log_loss 0.40000, auc 0.75000",
        "rows: 9,000 read, 8,999 trained, 1 rejected",
        "model: out/model",
        f"all events: dfm logs {directory}",
    ]


def test_the_story_of_a_run(directory: str) -> None:
    record = runs.read_run(directory)
    assert record is not None
    assert lines_of_run(record, runs.read_events(directory), directory) == expected(directory)


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_task_tells_it_also_when_the_run_was_elsewhere(
    directory: str, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfm.workflow.html_report.report_training", lambda *_: "s3://report")
    job = {"data": {"train": "x"}, "output": {"directory": directory}}
    operator = DfmTrainOperator(task_id="train", job=job, deferrable=deferrable)
    log = Kept()
    monkeypatch.setattr(DfmTrainOperator, "log", log)
    operator.execute_complete({}, {"state": "finished", "run_id": "the-run", "directory": directory})
    assert log.told == expected(directory)[0 if deferrable else 1 :]
