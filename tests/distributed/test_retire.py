"""A worker's last act does not fail where the scheduler is gone already, and does not wait for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from dfm.distributed import retire


def test_a_scheduler_that_is_gone_is_noticed_without_waiting_for_it() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        free = held.getsockname()[1]
    environment = {**os.environ, "DASK_WORKER_NAME": "w", "DASK_SCHEDULER_ADDRESS": f"tcp://127.0.0.1:{free}"}
    command = [sys.executable, "-X", "importtime", "-m", "dfm.distributed.retire"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "not retired: the scheduler is gone" in done.stderr
    assert "distributed.client" not in done.stderr  # Dask's import would take longer than a worker's end


@pytest.mark.parametrize(
    ("address", "there"), [("", True), ("inproc://1/2", True), ("tcp://no.such.host.invalid:8786", False)]
)
def test_only_an_address_that_can_be_asked_is_asked(address: str, there: bool) -> None:
    started = time.monotonic()
    assert retire.scheduler_is_there(address) is there
    assert time.monotonic() - started < 30
