"""A script that every worker would run again is told in one sentence, before any process is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dfm.distributed.cluster import main_guard

TRAINS = "from dfm.distributed.cluster.main_guard import check_main\n"
CALL = "check_main()\nprint('ready')\n"


def run(script: str, folder: Path, by_name: bool = True) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(script)
    command = [sys.executable, str(path)] if by_name else [sys.executable, "-"]
    return subprocess.run(command, input=script, capture_output=True, text=True, check=False, timeout=120)


def test_a_script_without_a_guard_is_refused(tmp_path: Path) -> None:
    done = run(TRAINS + CALL, tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("dfm.errors.ClusterError: ")
    assert "script.py, line 2: worker processes import this script, and would run it again; put its work" in line


def test_other_errors_of_a_script_that_was_refused_keep_their_traceback(tmp_path: Path) -> None:
    done = run(TRAINS + "try:\n    check_main()\nexcept Exception:\n    1 / 0\n", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 2
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_script_with_a_hook_of_its_own_gets_the_error_there(tmp_path: Path) -> None:
    hook = "import sys\nsys.excepthook = lambda kind, error, trace: print('mine:', kind.__name__)\n"
    assert run(hook + TRAINS + CALL, tmp_path).stdout == "mine: ClusterError\n"


@pytest.mark.parametrize(
    "script",
    [
        TRAINS + "if __name__ == '__main__':\n    check_main()\n    print('ready')\n",
        TRAINS + "def main():\n    check_main()\n    print('ready')\n\nif '__main__' == __name__:\n    main()\n",
    ],
)
def test_a_script_with_a_guard_runs(script: str, tmp_path: Path) -> None:
    assert run(script, tmp_path).stdout == "ready\n"


@pytest.mark.parametrize(("line", "guarded"), [(1, False), (3, True), (4, True), (6, False)])
def test_what_stands_below_the_guard_is_guarded(line: int, guarded: bool) -> None:
    source = b"import dfm\n\nif __name__ == '__main__':\n    dfm.train('job.toml')\n\ndfm.train('job.toml')\n"
    assert main_guard._is_guarded(source, line) == guarded
