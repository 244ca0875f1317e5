"""Whatever happens to workers, drivers, the scheduler and the disk: the same command ends in the same bytes.

Each seed is a history of a training on a cluster that is played (`tests.support.simulated_cluster`). Some of them here;
ten thousand: `make simulate`.
"""

import logging
from collections import Counter
from pathlib import Path

import pytest

from tests.support.histories import Theatre

SEEDS = 25


@pytest.mark.parametrize("first", [0, SEEDS])
def test_every_history_ends_in_the_bytes_of_a_training_to_which_nothing_happens(
    first: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    theatre = Theatre(tmp_path)
    histories = [theatre.play(seed) for seed in range(first, first + SEEDS)]
    assert [(history.seed, history.problems) for history in histories if history.problems] == []
    ends = Counter(life.end for history in histories for life in history.lives)
    assert ends["done"] >= SEEDS
    assert ends.keys() >= {"died", "ClusterError", "StorageError"}


def test_a_seed_replays_its_history(tmp_path: Path) -> None:
    first, second = (Theatre(tmp_path / name) for name in ("first", "second"))
    traces = [
        [[line for line in life.trace if "no room for" not in line] for life in theatre.play(7).lives]
        for theatre in (first, second)
    ]
    assert traces[0] == traces[1]
