"""A process of pytest-xdist that crashes is reported with the way it ended, and with the stacks of its threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """\
from tests.support.crashes import tell_of_crashes


def pytest_configure(config):
    tell_of_crashes(config)
"""
CRASHES = {
    "SIGKILL": ("import os\n\n\ndef test_it():\n    os.kill(os.getpid(), 9)\n", "resident before"),
    "SIGSEGV": ("import ctypes\n\n\ndef test_it():\n    ctypes.string_at(0)\n", "in test_it"),
}


@pytest.mark.parametrize("signal", CRASHES)
def test_the_report_of_a_crash_says_how_the_process_ended(signal: str, tmp_path: Path) -> None:
    body, left = CRASHES[signal]
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_planted.py").write_text(body)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", str(tmp_path)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    failures = run.stdout.partition("= FAILURES =")[2]
    assert f"it was ended by {signal}" in failures
    assert left in failures
