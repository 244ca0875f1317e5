"""A cluster that speaks TLS only: training over it gives the same bytes; who lacks its certificate stays out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from distributed import Client

from dfm import jobs
from dfm.model.fm_model import FMModel
from tests.support.small_jobs import job_tables

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
PREFIX = "DASK_DISTRIBUTED__COMM__"


def certificate(folder: Path) -> dict[str, str]:
    """A self-signed certificate, as Dask's own settings name it: in environment variables."""
    folder.mkdir(parents=True)
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=dfm"]
    subprocess.run([*command, "-out", cert, "-keyout", key], check=True, capture_output=True)
    settings = {f"{PREFIX}TLS__CA_FILE": cert, f"{PREFIX}REQUIRE_ENCRYPTION": "true"}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        settings |= {f"{PREFIX}TLS__{role}__CERT": cert, f"{PREFIX}TLS__{role}__KEY": key}
    return settings


@contextlib.contextmanager
def running(module: str, settings: Mapping[str, str], log: Path, *arguments: str) -> Iterator[None]:
    """A Dask process in these settings, killed when the block ends."""
    command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments]
    with log.open("wb") as out, subprocess.Popen(command, env={**os.environ, **settings}, stdout=out, stderr=out) as it:
        try:
            yield
        finally:
            it.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                it.wait(20)
            it.kill()


def wait_for_address(file: Path, log: Path) -> str:
    """The address that a scheduler wrote."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(file.read_bytes())["address"])
        time.sleep(0.1)
    raise RuntimeError(f"no scheduler: {log.read_text()[-1000:]}")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return certificate(tmp_path_factory.mktemp("tls") / "own")


@pytest.fixture(scope="module")
def scheduler(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """tls:// address of a scheduler with one worker, both processes of their own."""
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "scheduler.json"
    start = ["--protocol", "tls", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    with running("dask_scheduler", settings, folder / "scheduler.log", *start):
        address = wait_for_address(file, folder / "scheduler.log")
        work = [address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder), "--no-nanny"]
        with running("dask_worker", settings, folder / "worker.log", *work):
            yield address


def train(job: Path, scheduler: str, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dfm", "train", str(job), "--json", "--scheduler", scheduler]
    environment = {**os.environ, **settings, "COLUMNS": "300"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def write_job(log: Path, folder: Path, worker_timeout: int) -> Path:
    tables = job_tables(log, folder, cluster={"worker_timeout": worker_timeout})
    lines = [
        f"[{name}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in table.items()) for name, table in tables.items()
    ]
    folder.mkdir(exist_ok=True)
    (folder / "job.toml").write_text("\n".join(lines))
    return folder / "job.toml"


def test_training_over_tls_gives_the_bytes_of_any_other_cluster(
    log: Path, client: Client, scheduler: str, settings: dict[str, str], tmp_path: Path
) -> None:
    assert scheduler.startswith("tls://")
    done = train(write_job(log, tmp_path / "tls", 60), scheduler, settings)
    assert done.returncode == 0, done.stderr
    published = FMModel.load(str(tmp_path / "tls" / "out" / "model"))
    assert published.parameters_sha256() == jobs.train(job_tables(log, tmp_path / "tcp"), client).parameters_sha256
    key = Path(settings[f"{PREFIX}TLS__CLIENT__KEY"])
    secret = key.read_bytes().splitlines()[1]
    for path in (tmp_path / "tls").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert secret not in data, path
        assert str(key).encode() not in data, path
    assert key.name not in done.stdout + done.stderr


def test_a_client_that_speaks_plainly_is_refused(log: Path, scheduler: str, tmp_path: Path) -> None:
    done = train(write_job(log, tmp_path / "plain", 5), scheduler.replace("tls://", "tcp://"), {})
    assert done.returncode == 4, done.stderr
    assert "no Dask scheduler at tcp://" in done.stderr
    assert f"that port speaks TLS only; say {scheduler}" in done.stderr
    assert not (tmp_path / "plain" / "out" / "model").exists()


def test_a_client_with_a_certificate_of_its_own_making_is_refused(log: Path, scheduler: str, tmp_path: Path) -> None:
    done = train(write_job(log, tmp_path / "strange", 5), scheduler, certificate(tmp_path / "certificate"))
    assert done.returncode == 4, done.stderr
    assert "no Dask scheduler at tls://" in done.stderr
    assert "client and scheduler do not trust each other: check distributed.comm.tls.ca-file, " in done.stderr
    assert not (tmp_path / "strange" / "out" / "model").exists()


def test_a_tls_scheduler_without_certificates_is_refused_at_once(log: Path, scheduler: str, tmp_path: Path) -> None:
    started = time.monotonic()
    done = train(write_job(log, tmp_path / "bare", 60), scheduler, {})
    assert done.returncode == 4, done.stderr
    assert "needs cluster.tls_ca, cluster.tls_cert and cluster.tls_key" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 50  # the patience of the job is a minute
