"""Processes that write shards end with the command, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dfm

PROGRAM = """
import os, signal, sys, time
from dfm.data.pool import mapping

def work(number):
    os.write(1, b"at work\\n")  # at once: Python that does not buffer writes a line in pieces, between another's
    time.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with mapping(2) as map_numbers:
        list(map_numbers(work, range(9)))
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process whose two workers, which have its standard output, are at work."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(dfm.__file__).parents[1])}
    command = [sys.executable, str(tmp_path / "program.py")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline().startswith("at work") for _ in range(2)] == [True, True]
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_one_that_began_it(program: subprocess.Popen[str], number: int) -> None:
    begun = time.monotonic()
    program.send_signal(number)
    rest, _ = program.communicate(timeout=30)  # until the last of them has closed it
    assert "at work" not in rest
    assert program.returncode != 0
    assert time.monotonic() - begun < 20
