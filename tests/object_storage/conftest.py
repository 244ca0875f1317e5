"""A real S3 endpoint on this machine (moto), reached through a proxy that can throttle and fail."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from dfm.data import synthetic
from dfm.storage import files, retry
from tests.support.flaky_proxy import ACCESS_KEY, SECRET_KEY, Faults, proxy
from tests.support.small_jobs import in_process_client


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a moto server in a process of its own."""
    for package in ("moto", "s3fs", "flask", "flask_cors"):
        pytest.importorskip(
            package, reason="object storage is tested with moto and s3fs (extra dev)", exc_type=ImportError
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            _wait_for(f"http://127.0.0.1:{port}/", server)
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"moto did not start: exit code {server.poll()}")


@pytest.fixture(scope="session")
def endpoint(moto: str) -> Iterator[tuple[str, Faults]]:
    with proxy(moto) as served:
        yield served


@pytest.fixture
def faults(endpoint: tuple[str, Faults], monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The environment that leads to the store with credentials, and what can go wrong there (nothing yet)."""
    url, faults = endpoint
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # The client's own repetitions would hide those of dfm, and wait for seconds.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(retry, "_FIRST_DELAY", 0.02)
    faults.rate = 0.0
    faults.counts.clear()
    yield faults
    faults.rate = 0.0


@pytest.fixture
def bucket(faults: Faults) -> str:
    """URL of a new bucket."""
    import s3fs

    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def local_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 rows of clicks on four days, two shards a day."""
    directory = tmp_path_factory.mktemp("clicks")
    synthetic.generate(directory, rows=3_000, days=4, shards_per_day=2, seed=3)
    return directory


@pytest.fixture
def log(local_log: Path, bucket: str) -> str:
    """URL of the same rows in the store."""
    for path in sorted(local_log.rglob("*.parquet")):
        files.write_bytes(f"{bucket}/clicks/{path.relative_to(local_log)}", path.read_bytes())
    return f"{bucket}/clicks"


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """One worker inside this process."""
    with in_process_client(1) as client:
        yield client
