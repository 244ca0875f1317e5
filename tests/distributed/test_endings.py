"""A process that ends does not keep others waiting, and closes what is to be closed."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

from dfm.distributed.cluster.connect import connect
from dfm.settings.tables import ClusterSettings

COMMAND = """
import atexit, gc, sys
from dfm.cli.app import main

atexit.register(lambda: print("closed,", gc.get_freeze_count() > 1000, flush=True))
sys.argv = ["dfm", "--version"]
main()
"""
CLOSED_LATE: list[object] = []


class Open:
    """Something that closes itself when its process ends."""


def closes_itself(file: str) -> None:
    CLOSED_LATE.append(Open())
    weakref.finalize(CLOSED_LATE[-1], lambda: Path(file).write_text(f"{gc.get_freeze_count() > 1000}"))


def test_a_command_that_ends_looks_for_no_garbage_and_closes_what_is_to_be_closed() -> None:
    finished = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "closed, True"


def test_local_workers_end_alike(tmp_path: Path) -> None:
    with connect(ClusterSettings(workers=1)) as client:
        client.run(closes_itself, str(tmp_path / "closed"))
    assert (tmp_path / "closed").read_text() == "True"
