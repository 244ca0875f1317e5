"""A training whose n-th operation on a file fails ends in its bytes, or in a named error and then in its bytes.

Some of the operations here; all of them: `make simulate`.
"""

import re
import subprocess
import sys

import pytest

TRIALS = 12


@pytest.mark.patient
def test_whatever_operation_on_a_file_fails_the_same_command_gives_the_same_bytes() -> None:
    # In a process of its own: it forks, which a process with threads must not.
    command = [sys.executable, "-m", "tests.support.failing_operations", "--sample", str(TRIALS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert (done.returncode, len(rows)) == (0, TRIALS), done.stdout + done.stderr
    found = {re.split(r"\W", row[3])[0] for row in rows}
    assert {"named", "killed"} <= found <= {"same", "named", "killed"}
    assert {row[-1] for row in rows} == {"yes |"}
