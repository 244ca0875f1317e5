"""A training whose n-th operation on a file fails ends in its bytes, or in a named error and then in its bytes.

Some of the operations here; all of them: `make simulate`.
"""

from pathlib import Path

from tests.support.failing_operations import WAYS, Trials

TRIALS = 12


def test_whatever_operation_on_a_file_fails_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    step = trials.n_operations // TRIALS
    ran = [trials.run(1 + step // 2 + number * step, WAYS[number % len(WAYS)]) for number in range(TRIALS)]
    assert [trial for trial in ran if not trials.is_right(trial)] == []
    assert {trial.seen.kind for trial in ran} == {"same", "named", "killed"}
