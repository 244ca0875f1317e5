"""A Dask cluster as an operator starts it: `dask scheduler` and `dask worker`, each a process with options and logs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

DASK = (sys.executable, "-m", "dask")
QUIET = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "5",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "60s",
}


@dataclass
class RealCluster:
    """A running scheduler and its workers; every process writes its log into `folder`."""

    folder: Path
    tls: dict[str, str] = field(default_factory=dict)
    dask: Sequence[str] = DASK
    environment: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What the scheduler wrote about itself."""
        found: dict[str, Any] = json.loads((self.folder / "scheduler.json").read_text())
        return found

    @property
    def address(self) -> str:
        """tcp://… or tls://…"""
        return str(self.identity["address"])

    def start(self, name: str, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start `dask ARGUMENTS` as a process of this name."""
        log = (self.folder / f"{name}.log").open("wb")
        command = [*prefix, *self.dask, *arguments, *self._tls_options(arguments[0])]
        environment = {**os.environ, **QUIET, **self.environment}
        with log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self.folder)
        self.processes[name] = process
        return process

    def start_scheduler(self, *arguments: str, host: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        file = self.folder / "scheduler.json"
        dashboard = ("--dashboard-address", f"{host}:0")
        self.start(
            "scheduler", "scheduler", "--host", host, "--port", "0", "--scheduler-file", str(file), *dashboard,
            *arguments, prefix=prefix,
        )  # fmt: skip
        wait_until(lambda: file.exists() and file.read_text().endswith("}"), self)

    def start_worker(self, name: str, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        (self.folder / name).mkdir(exist_ok=True)
        return self.start(
            name, "worker", self.address, "--nthreads", "1", "--name", name, "--local-directory",
            str(self.folder / name), *arguments, prefix=prefix,
        )  # fmt: skip

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tls_options(self, command: str) -> list[str]:
        if not self.tls:
            return []
        options = ["--tls-ca-file", self.tls["ca"], "--tls-cert", self.tls["cert"], "--tls-key", self.tls["key"]]
        return [*options, *(["--protocol", "tls"] if command == "scheduler" else [])]


@contextlib.contextmanager
def real_cluster(folder: Path, n_workers: int = 2, **settings: Any) -> Iterator[RealCluster]:
    """A cluster of processes, ended with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = RealCluster(folder, **settings)
    try:
        cluster.start_scheduler()
        for number in range(n_workers):
            cluster.start_worker(f"worker-{number}")
        yield cluster
    finally:
        cluster.stop()


def make_certificates(folder: Path) -> dict[str, str]:
    """PEM files of a certificate authority with one certificate, as cluster.tls_ca, tls_cert and tls_key take them."""
    pytest.importorskip("cryptography")
    from distributed.security import Security

    folder.mkdir(parents=True, exist_ok=True)
    made = Security.temporary()
    texts = {"ca": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}
    for name, text in texts.items():
        (folder / f"{name}.pem").write_text(text)
    return {name: str(folder / f"{name}.pem") for name in texts}


def wait_until(condition: Callable[[], Any], cluster: RealCluster | None = None, seconds: float = 120) -> Any:
    """Return what the condition gives once that is true; with a cluster, its logs explain a failure."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            logs = {name: cluster.log(name)[-3000:] for name in cluster.processes} if cluster else {}
            pytest.fail("it did not happen in time\n" + "\n".join(f"--- {name}\n{log}" for name, log in logs.items()))
        time.sleep(0.1)
    return found
