"""Machine code on disk: found again by the next process, and never mixed up."""

from __future__ import annotations

import os
import subprocess
import sys

from dfm.compilation import _Files

SCRIPT = """
from dfm.data.hashing import xxh64
import numpy as np
xxh64(np.zeros(4, np.uint8), 0, 4, np.uint64(0))
print(sum(xxh64.stats.cache_hits.values()), sum(xxh64.stats.cache_misses.values()))
"""


def hits_and_misses(folder) -> list[int]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    return [int(number) for number in run.stdout.split()]


def test_the_second_process_does_not_compile(tmp_path) -> None:
    assert hits_and_misses(tmp_path) == [0, 1]
    assert hits_and_misses(tmp_path) == [1, 0]


def test_two_writers_that_know_nothing_of_each_other_never_mix_their_data(tmp_path) -> None:
    """Both read the empty index before either wrote: Numba's numbering would give both file 1."""
    first, second = (_Files(str(tmp_path), "kernel", ("stamp", 1)) for _ in range(2))
    first.save("signature A", "code A")
    (tmp_path / "kernel.nbi").unlink()
    second.save("signature B", "code B")
    assert len(list(tmp_path.glob("*.nbc"))) == 2
    assert second.load("signature B") == "code B"
    assert second.load("signature A") is None
    first.save("signature A", "code A")
    assert {key: first.load(key) for key in ("signature A", "signature B")} == {
        "signature A": "code A",
        "signature B": "code B",
    }


def test_changed_source_text_finds_no_old_code(tmp_path) -> None:
    _Files(str(tmp_path), "kernel", ("old stamp", 1)).save("signature", "old code")
    assert _Files(str(tmp_path), "kernel", ("new stamp", 1)).load("signature") is None
