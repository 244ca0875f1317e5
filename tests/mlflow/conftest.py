"""A tracking server of MLflow in a process of its own, and a small run to log there."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfm import jobs
from dfm.data import synthetic
from tests.support.small_jobs import in_process_client, job_tables


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a tracking server on SQLite, which keeps artifacts itself."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    log = (folder / "log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as process:
        try:
            _wait_for(f"{url}/health", process, folder / "log")
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.3)
    raise RuntimeError(f"the tracking server did not start: {log.read_text()[-2000:]}")


@pytest.fixture
def tracking(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment that leads to the server, as a driver has it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return server


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 rows of clicks on four days."""
    directory = tmp_path_factory.mktemp("clicks")
    synthetic.generate(directory, rows=4_000, days=4, shards_per_day=1, seed=3)
    return directory


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """One worker inside this process."""
    with in_process_client(1) as client:
        yield client


@pytest.fixture(scope="session")
def result(log: Path, client: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training of two epochs that nobody logged."""
    return jobs.train(job_tables(log, tmp_path_factory.mktemp("run")), client)
