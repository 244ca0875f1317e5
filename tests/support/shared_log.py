"""One log and one cluster for all tests of training: fixtures that a conftest imports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from dfm.data import synthetic
from dfm.distributed import loops
from tests.support.small_jobs import ROWS, in_process_client


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8,000 rows of clicks on four days, two shards a day."""
    directory = tmp_path_factory.mktemp("clicks")
    synthetic.generate(directory, rows=ROWS, days=4, shards_per_day=2, seed=3)
    return directory


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """One worker inside this process."""
    with in_process_client(1) as client:
        yield client


@pytest.fixture(scope="session")
def two_workers() -> Iterator[Client]:
    """Two workers inside this process."""
    with in_process_client(2) as client:
        yield client


@pytest.fixture(autouse=True)
def rounds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round of the trainings in a test is tasks of its own, as on a cluster of several machines, wherever a file
    of tests has this fixture. `tests/distributed/test_stretches.py` is about the others.
    """
    monkeypatch.setattr(loops, "rounds_together", lambda _run, _prepared, _n_blocks: 1)
