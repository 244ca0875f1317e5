"""What a process of pytest-xdist left that crashed or hung: how it ended, the stacks of its threads, its memory.

xdist itself says no more than which test ran; the stacks go by on standard error in the middle of a long log, and a
test that waits for ever says nothing at all: its process is ended, and other tests go on in another. Failures are told
at once, for who ends the run from outside never sees the end of it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

_MOST_LINES = 150
_LONGEST = 600.0
"""Seconds that a test may take which is not marked slow: ten times the longest that compiles its kernels first."""
_MOST_OF_FAILURE = 2000
"""Characters of a failure that are told at once."""
_KEY = "crash_folder"
_ends: list[str] = []
"""Of the processes that crashed, in the controller: the last one is that whose test is reported next."""


def tell_of_crashes(config: pytest.Config) -> None:
    """Let a report of a crash say what is known of it, in the controller and in the processes of pytest-xdist."""
    folder = getattr(config, "workerinput", {}).get(_KEY)
    config.pluginmanager.register(_Tested(Path(folder)) if folder else _Controller(config))


class _Tested:
    """Hooks of a process that runs tests: what is to be known of it, should it crash."""

    def __init__(self, folder: Path) -> None:
        self._stacks, self._memory = (folder / "stacks").open("w"), folder / "memory"

    def pytest_sessionstart(self) -> None:
        # Only now: the plugin of pytest itself has sent the stacks to standard error meanwhile.
        faulthandler.enable(self._stacks)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        self._memory.write_text(f"at most {most} MiB were resident before {nodeid}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._end_if_it_hangs(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        self._end_if_it_hangs(item)  # pytest itself has called it off where the test failed

    def pytest_runtest_logfinish(self) -> None:
        faulthandler.cancel_dump_traceback_later()

    def _end_if_it_hangs(self, item: pytest.Item) -> None:
        if item.get_closest_marker("slow") is None:
            faulthandler.dump_traceback_later(_LONGEST, exit=True, file=self._stacks)


class _Controller:
    """Hooks of the process that hands the tests out."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None and hasattr(report, "node"):
            terminal.write_line(f"\n{report.nodeid} ({report.when}): {str(report.longreprtext)[-_MOST_OF_FAILURE:]}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_KEY] = tempfile.mkdtemp(prefix="crash-")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        folder = Path(node.workerinput[_KEY])
        if error:
            _ends.append("\n".join([_end_of(node), *_left_in(folder)]))
        shutil.rmtree(folder)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, report: Any) -> None:
        if _ends:
            report.longrepr = f"{report.longrepr}\n{_ends.pop()}"


def _end_of(node: Any) -> str:
    """How the process ended: execnet keeps it, without a public name."""
    process: subprocess.Popen[bytes] | None = getattr(getattr(node.gateway, "_io", None), "popen", None)
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = process.wait(10) if process else None
        if code is not None and code < 0:
            return f"it was ended by {signal.Signals(-code).name}" + (" (for want of memory?)" if code == -9 else "")
        return f"its exit status was {code}"
    return "it lives on, without an answer"


def _left_in(folder: Path) -> list[str]:
    memory, stacks = ((folder / name) for name in ("memory", "stacks"))
    lines = stacks.read_text(errors="replace").splitlines() if stacks.exists() else []
    return [*([memory.read_text()] if memory.exists() else []), *lines[:_MOST_LINES]]
