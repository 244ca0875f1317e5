"""A job that asks for MLflow where there is none is refused before it trains."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import dfm.mlflow
from dfm import jobs
from dfm.errors import SettingsError
from dfm.runs import record as runs
from dfm.settings.job import Job
from tests.support.small_jobs import job_tables, run_of


def test_the_message_names_the_extra_and_nothing_is_trained(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"MLflow is not installed here: pip install .*\[mlflow\]"
    with pytest.raises(SettingsError, match=message):
        jobs.train(job_tables(log, tmp_path, output={"mlflow": True}))
    with pytest.raises(SettingsError, match=message):
        dfm.mlflow.log_run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_record_of_a_run_that_was_submitted_says_so(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    job = Job.from_dict(job_tables(log, tmp_path, output={"mlflow": True}))
    runs.submitted(job, "night-1")
    with pytest.raises(SettingsError, match="MLflow is not installed here"):
        jobs.train(job, run_id="night-1")
    record = run_of(job)
    assert record.state == "failed"
    assert record.error
    assert record.error["message"].startswith("MLflow is not installed here")
