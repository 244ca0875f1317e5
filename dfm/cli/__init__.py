"""The command `dfm`.

Light, since whatever starts processes of its own imports this once more in each of them.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]
_WITH_WORKERS = ("train", "search", "evaluate", "predict", "importance", "report", "demo")
"""Commands that work on a Dask cluster: one of their own unless they are told of another."""
_ELSEWHERE = ("--scheduler", "--cluster-factory", "cluster.scheduler", "cluster.factory")
_NOWHERE = ("--dry-run", "--help", "-h")
_GARBAGE = 300_000
"""Objects made since the last collection of garbage from which there is one: importing makes 230,000, all of them to
stay, and looking through them at Python's 700 takes a fifth of its time.
"""


def main() -> None:
    """Run the command. What local workers need is imported meanwhile, by a process beside this one."""
    gc.set_threshold(_GARBAGE)
    from dfm.distributed.cluster import fork_server
    from dfm.distributed.cluster.spared import spare_pandas

    try:
        if _seems_to_start_workers(sys.argv[1:]):
            fork_server.begin()
            spare_pandas()
        from dfm.cli.app import main as command

        command()
    finally:
        fork_server.end()


def _seems_to_start_workers(words: Sequence[str]) -> bool:
    """Whether a command starts workers of its own, as far as its words tell; a job file may name a cluster."""
    command = next((word for word in words if not word.startswith("-")), "")
    tells_otherwise = any(word.split("=")[0] in (*_ELSEWHERE, *_NOWHERE) for word in words)
    return command in _WITH_WORKERS and not tells_otherwise and not os.environ.get("DASK_SCHEDULER_ADDRESS")
