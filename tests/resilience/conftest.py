"""One log, and what an undisturbed training of it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfm import jobs
from dfm.data import synthetic
from tests.support.real_processes import disturbed_job
from tests.support.small_jobs import ROWS


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8,000 rows of clicks on four days, four shards a day."""
    directory = tmp_path_factory.mktemp("clicks")
    synthetic.generate(directory, rows=ROWS, days=4, shards_per_day=4, seed=3)
    return directory


@pytest.fixture(scope="session")
def undisturbed(log: Path, tmp_path_factory: pytest.TempPathFactory) -> jobs.TrainResult:
    """The training to which nothing happens."""
    return jobs.train(disturbed_job(log, tmp_path_factory.mktemp("undisturbed")))
