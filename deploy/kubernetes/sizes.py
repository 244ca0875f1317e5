"""Write the table of sizes in deploy/README.md from the cost model: `python deploy/kubernetes/sizes.py` after a change.

Sizes and the number of workers are those that `dfm submit --kubernetes` would choose for such a job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfm.averaging.cost_model import job_times
from dfm.kernels.tables import Layout
from dfm.kubernetes import sizing
from dfm.settings import Job
from dfm.training.automatic import Course
from dfm.training.memory import bounds
from dfm.training.plan import averages

README = Path(__file__).parents[1] / "README.md"
N_COLUMNS = 39
JOBS = [(10, 22, 8), (100, 24, 16), (1_000, 26, 64), (4_400, 26, 128)]
"""Millions of rows, hash_bits, replicas."""
COLUMNS = [
    *("rows", "hash_bits", "replicas", "workers", "making ready", "first epoch", "a later one"),
    *("memory of each", "driver", "scratch of each"),
]
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def plan_of(n_rows: int, hash_bits: int, n_replicas: int) -> dict[str, Any]:
    """What `dfm train --dry-run` would print of a job with the defaults otherwise, without its shards."""
    job = Job.from_dict({"model": {"hash_bits": hash_bits}, "training": {"n_replicas": n_replicas}})
    rows_of_one = n_rows // n_replicas
    first, later = averages(n_rows, job.training)
    longest = min(rows_of_one, -(-rows_of_one // first) * -(-first // later))
    return {
        "job": job.to_dict(), "rows": n_rows, "replicas": n_replicas, "rows_per_replica": rows_of_one,
        "rounds_per_epoch": first, "later_rounds_per_epoch": later, "columns": dict.fromkeys(range(N_COLUMNS)),
        "epochs": Course.of(job.training, validates=True).n_epochs,
        **bounds(n_rows, N_COLUMNS, longest, job.model, Layout(job.training.optimizer, job.model.n_factors)),
    }  # fmt: skip


def line(millions: int, hash_bits: int, n_replicas: int) -> str:
    """One job of the table."""
    plan = plan_of(millions * 10**6, hash_bits, n_replicas)
    settings = Job.from_dict({}).kubernetes
    sizes = sizing.size(settings, plan)
    times = job_times(plan, sizes.workers, settings.worker_cpus)
    pods = " | ".join(_gib(size) for size in (sizes.worker_memory, sizes.driver_memory, sizes.scratch))
    return (
        f"| {millions:,} M | {hash_bits} | {n_replicas} | {sizes.workers} | {_time(times.preparation)} "
        f"| {_time(times.first_epoch)} | {_time(times.later_epoch)} | {pods} |\n"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:g} GiB"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def table() -> str:
    """The table as Markdown."""
    return HEAD + "".join(line(*job) for job in JOBS)


def main() -> None:
    """Put the table in the place of the one that is there."""
    before, _, rest = README.read_text().partition(HEAD.splitlines()[0])
    after = rest[rest.index("\n\n") + 1 :]
    README.write_text(before + table() + after)


if __name__ == "__main__":
    main()
