"""Real processes to be killed: `dfm train`, a Dask scheduler and its workers, each as its own command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distributed import Client

from tests.support.small_jobs import job_tables

PATIENCE = 180.0
"""Seconds; generous, for machines with much else to do."""


LONG = {"n_replicas": 4, "n_epochs": 10, "averages_per_epoch": 4, "early_stopping": False}


def disturbed_job(log: Path, folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """Tables of the job that all tests here disturb."""
    return job_tables(log, folder, **{"training": LONG, **changes})


def write_job(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> Path:
    """A job file. What JSON writes for strings, numbers, booleans and lists is TOML too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()), ""]
    path.write_text("\n".join(lines))
    return path


def start(*command: str, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """A command of this environment in a process group of its own.

    log: a file for all that it says. Without one somebody has to read its pipes, or it stops when they are full.
    """
    about: dict[str, Any] = {"text": True, "start_new_session": True, "env": {**os.environ, **environment}}
    if log is None:
        about |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-m", *command], **about)
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", *command], stdout=file, stderr=file, **about)


def start_training(job: Path, *options: str) -> subprocess.Popen[str]:
    """`dfm train JOB --json …`."""
    return start("dfm", "train", str(job), "--json", *options)


def finish(training: subprocess.Popen[str]) -> dict[str, Any]:
    """The last event of a training that ends well."""
    out, err = training.communicate(timeout=PATIENCE)
    assert training.returncode == 0, err
    done: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert done["event"] == "done"
    return done


def kill(process: subprocess.Popen[str], how: int = signal.SIGKILL) -> None:
    """End a process and its children, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)
    process.communicate(timeout=PATIENCE)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Cluster:
    """A Dask scheduler and workers without nannies, as commands: what is killed stays away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._port = free_port()
        self.address = f"tcp://127.0.0.1:{self._port}"
        self.workers: list[subprocess.Popen[str]] = []
        self.start_scheduler()

    def start_scheduler(self) -> None:
        self.scheduler = start(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self._port), "--no-dashboard",
            "--no-show", log=self._folder / "scheduler.log",
        )  # fmt: skip

    def add_worker(self) -> subprocess.Popen[str]:
        number = len(self.workers)
        worker = start(
            "distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
            "--local-directory", str(self._folder / f"worker-{number}"), "--death-timeout", "60",
            log=self._folder / f"worker-{number}.log",
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    @contextlib.contextmanager
    def client(self, n_workers: int) -> Iterator[Client]:
        """A client, once so many workers are there."""
        with Client(self.address, set_as_default=False, timeout=PATIENCE) as client:
            client.wait_for_workers(n_workers, timeout=PATIENCE)
            yield client

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            kill(process)


def pids_of_workers(client: Client) -> list[int]:
    """Process ids of the workers that answer."""
    return sorted(client.run(os.getpid, on_error="ignore").values())


def wait_until(condition: Any, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
