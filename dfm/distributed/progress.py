"""Progress of long work on a cluster: rows done of a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distributed import Future

from dfm.distributed.cluster.watch import Watch
from dfm.distributed.run import Run

Progress = Callable[[str, int, int], None]
"""Called with stage, rows done, rows in all."""


def progress_of(run: Run) -> Progress:
    """A function that tells of the rows of a stage."""

    def progress(stage: str, done: int, total: int) -> None:
        run.tell({"event": "progress", "stage": stage, "done": done, "total": total})

    return progress


def follow(watch: Watch, futures: Sequence[Future], sizes: Sequence[int], stage: str, progress: Progress) -> None:
    """Report rows as tasks finish; the first error ends the wait and is raised here."""
    rows = dict(zip(futures, sizes, strict=True))
    done, total = 0, sum(sizes)
    progress(stage, 0, total)
    for future in watch.as_completed(futures):
        done += rows[future]
        progress(stage, done, total)
