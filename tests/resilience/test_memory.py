"""Allocations of the driver fail: it goes on with what it has, or says so, and then goes on to the same bytes.

Workers without memory are among the faults of tests/support/soak.py.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dfm import jobs
from tests.support.real_processes import (
    PATIENCE,
    disturbed_job,
    finish,
    kill,
    start_training,
    write_job,
)
from tests.support.soak import take_memory

pytestmark = pytest.mark.patient


def has_checkpoint(folder: Path) -> bool:
    return any((folder / "out" / "checkpoint").glob("round-*.json"))


MOMENTS = ("vocabulary", "epoch", "diagnosis")
"""Events after which nothing more is to be had. Not before the workers are started: a Python whose new thread has no
memory for its first step waits for it for ever (`threading.Thread.start`)."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_driver_without_memory_says_so_and_the_same_command_goes_on(
    log: Path, undisturbed: jobs.TrainResult, tmp_path: Path, moment: str
) -> None:
    job = write_job(tmp_path / "job.toml", disturbed_job(log, tmp_path))
    training = start_training(job)
    assert training.stdout
    next(line for line in training.stdout if f'"event": "{moment}"' in line)
    take_memory(training.pid)
    err, left_by_hanging = "", b""
    try:
        _, err = training.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as hung:
        left_by_hanging = hung.stderr or b"nothing"
    kill(training)
    if left_by_hanging:  # the interpreter waits for ever for a thread that had no memory to begin: somebody ends it
        assert b"Exception ignored in" in left_by_hanging
        assert b"MemoryError" in left_by_hanging
    elif training.returncode:
        assert training.returncode == 4, err
        told = [line for line in err.splitlines() if line.startswith("error:")]
        assert len(told) == 1, err
        assert "memory" in told[0], err
        assert "dfm/__main__.py" not in err, err  # other threads' tracebacks are Dask's to log
    if training.returncode:
        training = start_training(job)
        assert finish(training)["parameters_sha256"] == undisturbed.parameters_sha256
