"""A job that asks for MLflow where there is none is refused before it trains."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import dfm.mlflow
from dfm import jobs
from dfm.errors import SettingsError
from tests.support.small_jobs import job_tables


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
