"""A driver in a process of its own, which outlives the one that starts it: `start` here, `main` in that process."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfm import runs, storage
from dfm.errors import DfmError
from dfm.settings import Job

LOG = "driver.log"
"""What the driver prints, beside its results where these are on this machine."""


def start(job: Job, run_id: str, dask_config: Mapping[str, Any] | None = None) -> None:
    """Start the driver of a job and leave it alone; `dfm.runs.read_run(job.output.directory)` tells how it does.

    The job passes through a file that only this user can read, as it may hold credentials; the driver removes it.
    dask_config: settings of Dask for the driver, by their dotted names.
    """
    runs.submitted(job, run_id, job.cluster.scheduler)
    order = {"job": job.to_dict(secrets=True), "run_id": run_id, "dask": dict(dask_config or {})}
    handle, path = tempfile.mkstemp(prefix="dfm-driver-", suffix=".json")
    with os.fdopen(handle, "w") as stream:
        json.dump(order, stream)
    command = [sys.executable, "-m", "dfm.detached", path]
    # The shell ends at once, so the driver is no child of this process: nobody has to wait for it.
    with _log(job).open("ab") as log:
        subprocess.run(
            ["/bin/sh", "-c", '"$@" </dev/null &', "sh", *command],
            stdout=log, stderr=log, check=True, start_new_session=True,
        )  # fmt: skip


def _log(job: Job) -> Path:
    if not storage.is_local(job.output.directory):
        return Path(os.devnull)
    folder = storage.local_path(job.output.directory)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / LOG


def is_lost(record: runs.RunRecord, patience: float = runs.STALE_SECONDS) -> bool:
    """Whether the driver is gone: a process of this machine that is no more, or not heard of for `patience` seconds."""
    if record.is_over:
        return False
    if record.state == "running" and record.host == socket.gethostname() and not _is_alive(record.pid):
        return True
    return record.state == "running" and record.is_stale(patience)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(path: str) -> int:
    """Train the job of an order file and delete that file; the exit code says how it ended, and so does the record."""
    from dfm import jobs

    order = json.loads(Path(path).read_text())
    Path(path).unlink()
    if order["dask"]:
        import dask

        dask.config.set(order["dask"])
    job = Job.from_dict(order["job"])
    try:
        result = jobs.train(job, run_id=order["run_id"])
    except DfmError as error:
        logging.getLogger("dfm").error("%s", error)
        return error.exit_code
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(main(sys.argv[1]))
