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


HANGS = """\
import threading
import pytest


@pytest.fixture
def left():
    yield
    threading.Event().wait()


def test_it():
    threading.Event().wait()


def test_that_fails_and_does_not_end(left):
    assert 1 == 2, "told at once"


@pytest.mark.slow
def test_that_may_take_its_time():
    threading.Event().wait(3)
"""


def said_of(folder: Path, body: str, conftest: str = CONFTEST) -> str:
    """What is said of the tests of this body, of which one crashes."""
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_planted.py").write_text(body)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow: of no limit\n")
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", str(folder)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    return run.stdout


@pytest.mark.parametrize("signal", CRASHES)
def test_the_report_of_a_crash_says_how_the_process_ended(signal: str, tmp_path: Path) -> None:
    body, left = CRASHES[signal]
    failures = said_of(tmp_path, body).partition("= FAILURES =")[2]
    assert f"it was ended by {signal}" in failures
    assert left in failures


def test_a_test_that_hangs_is_ended_with_its_stacks_and_others_go_on(tmp_path: Path) -> None:
    in_a_hurry = CONFTEST.replace("def ", "from tests.support import crashes\n\ncrashes._LONGEST = 2.0\n\n\ndef ", 1)
    before, _, after = said_of(tmp_path, HANGS, in_a_hurry).partition("= FAILURES =")
    # Where the environment says CI, pytest's summary repeats each failure whole.
    failures, _, summary = after.partition("= short test summary info =")
    assert "told at once" in before
    assert failures.count("Timeout (0:00:02)") == 2
    assert "in test_it" in failures
    assert "in left" in failures
    assert "1 passed" in summary
