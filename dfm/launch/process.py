"""A driver in a process of its own, which outlives the one that starts it: `start` here, `main` in that process."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from dfm.errors import DfmError
from dfm.runs import lifecycle
from dfm.runs import record as runs
from dfm.runs.termination import stoppable
from dfm.settings.job import Job
from dfm.storage import files

_ORDER = "dfm-driver-"
"""The beginning of the names of order files."""
LOG = "driver.log"
"""The driver's output, a file beside its results where these are on this machine."""


def start(job: Job, run_id: str) -> None:
    """Start the driver of a job and leave it alone; `dfm.runs.record.read_run(job.output.directory)` tells how it does.

    The job passes through a file that only this user can read, as it may hold credentials; the driver removes it.
    """
    runs.submitted(job, run_id, job.cluster.scheduler)
    order = {"job": job.to_dict(secrets=True), "run_id": run_id}
    handle, path = tempfile.mkstemp(prefix=_ORDER, suffix=".json")
    with os.fdopen(handle, "w") as stream:
        json.dump(order, stream)
    command = [sys.executable, "-m", "dfm.launch.process", path]
    # The shell ends at once, so the driver is no child of this process: nobody has to wait for it.
    with _log(job).open("ab") as log:
        subprocess.run(
            ["/bin/sh", "-c", '"$@" </dev/null &', "sh", *command],
            stdout=log, stderr=log, check=True, start_new_session=True,
        )  # fmt: skip


def _log(job: Job) -> Path:
    if not files.is_local(job.output.directory):
        return Path(os.devnull)
    folder = files.local_path(job.output.directory)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / LOG


def is_lost(record: runs.RunRecord, by_process: bool = True) -> bool:
    """Whether the driver is gone: unheard of for a minute or, `by_process`, a process of this machine that is no more.

    by_process: false for a driver that Dask starts again on another worker when its process dies.
    """
    state = lifecycle.of(record.state)
    if state.silence is None:
        return False
    # Between two attempts the process is gone, and its supervisor is not.
    if (
        by_process
        and state.writers == (lifecycle.DRIVER,)
        and record.host == socket.gethostname()
        and not _is_alive(record.pid)
    ):
        return True
    return record.is_stale()


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
    if Path(path).name.startswith(_ORDER) and order.keys() == {"job", "run_id"}:
        Path(path).unlink()
    job = Job.from_dict(order["job"])
    try:
        with stoppable():
            result = jobs.train(job, run_id=order["run_id"])
    except DfmError as error:
        logging.getLogger("dfm").error("%s", error)
        runs.refused(job, order["run_id"], error)
        return error.exit_code
    except KeyboardInterrupt:
        return lifecycle.INTERRUPTED_CODE
    return lifecycle.INTERRUPTED_CODE if result.interrupted else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(main(sys.argv[1]))
