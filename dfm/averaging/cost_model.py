"""The cost of a round on a cluster: training, averaging, wire and tasks, from a few measured numbers.

Each of N workers (one thread) trains m replicas of `rows` rows one after another, adds them up, and sends the sum to
the B blocks. With T(n) for the features that n rows touch, the parts of a round follow one another:

    train     m rows / rows_per_second
    average   m T(rows) feature_seconds                         pull, copy, difference, sum, finish
    wire      (2 + N / B) T(m rows) record / bandwidth          pull, push, and what a block receives
    tasks     (N + N B + B) task_seconds                        train, cut and merge tasks through one scheduler

B is the number of blocks that makes the last two least. T grows as a power of the rows (Heaps), up to the table.

`job_times` puts a whole job together from that, at the speed of a machine that others used as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfm.kernels.families.registry import family_of
from dfm.kernels.tables import Layout
from dfm.settings.groups import groups_of

GIGABIT = 1e9 / 8
"""Bytes per second of 1 Gbit/s."""


@dataclass(frozen=True)
class Growth:
    """Touched features of n rows: `first` n^`power`, at most `most`; a share `factored` of them owns factors."""

    first: float
    power: float
    most: float
    factored: float

    def touched(self, n_rows: float) -> float:
        """Features that n rows touch."""
        return min(self.first * n_rows**self.power, self.most)


@dataclass(frozen=True)
class Cluster:
    """`bandwidth` of a worker's network in bytes/s; what one task costs the scheduler, in seconds."""

    n_workers: int
    bandwidth: float
    replicas_per_worker: int = 1
    task_seconds: float = 0.0005


@dataclass(frozen=True)
class Speed:
    """Speeds of one worker thread: rows trained per second, and averaging's seconds per touched feature."""

    rows_per_second: float
    feature_seconds: float


@dataclass(frozen=True)
class RoundCost:
    """Seconds of one round by part; what a worker sends, in bytes; how many blocks there should be."""

    train: float
    average: float
    wire: float
    tasks: float
    sent: float
    blocks: int

    @property
    def seconds(self) -> float:
        """The whole round."""
        return self.train + self.average + self.wire + self.tasks


def record_bytes(layout: Layout, growth: Growth) -> float:
    """Mean bytes of one touched feature in a pull or a push: its number, its linear record, its factors if any."""
    return 4 + sum(4 * layout.width(block) * (growth.factored if block.is_vector else 1) for block in layout.touched)


def round_cost(rows: float, layout: Layout, growth: Growth, cluster: Cluster, speed: Speed) -> RoundCost:
    """Cost of a round in which every replica has `rows` rows."""
    n, m = cluster.n_workers, cluster.replicas_per_worker
    volume = growth.touched(m * rows) * record_bytes(layout, growth)
    blocks = np.unique(np.geomspace(1, n, 40).astype(int))
    wires = (2 + n / blocks) * volume / cluster.bandwidth
    tasks = (n + n * blocks + blocks) * cluster.task_seconds
    best = int(np.argmin(wires + tasks))
    return RoundCost(
        m * rows / speed.rows_per_second,
        m * growth.touched(rows) * speed.feature_seconds,
        float(wires[best]),
        float(tasks[best]),
        2 * volume,
        int(blocks[best]),
    )


# --- a whole job ------------------------------------------------------------------------------------------

_FIELDS, _LANES = 39, 16
"""Columns and factors of the log that the numbers below were measured on."""
_TRAINED, _PREPARED = 2.1e6, 0.2e6
"""Rows per second and core that are trained on, and that are read, hashed, counted and built into partitions.

From the slower half of runs of benchmarks/averaging/predict.py (1.4 to 4.4 M rows/s, 45 to 103 ns per feature), and
17.5 M rows on two cores in 42 s (benchmarks/memory-2026-11-21.md); all on a machine that others used as well.
"""
_FEATURE_SECONDS = 92e-9
_GROWTH = Growth(97.1, 0.671, math.inf, 0.17)
"""Growth of the synthetic log's features over its first million rows. Beyond them it is an extrapolation."""
_BANDWIDTH = 10 * GIGABIT


@dataclass(frozen=True)
class JobTimes:
    """Seconds of a job by part: rows made ready once, the first epoch with all its averages, and each later epoch.

    Validation, publishing and the start of the workers are not in it.
    """

    preparation: float
    first_epoch: float
    later_epoch: float
    n_epochs: int

    @property
    def seconds(self) -> float:
        """The job, if it does not stop early."""
        return self.preparation + self.first_epoch + (self.n_epochs - 1) * self.later_epoch


def job_times(plan: Mapping[str, Any], n_workers: int, cpus: int) -> JobTimes:
    """Times of a planned job (`jobs.plan`) on workers of so many cores, each with a network of 10 Gbit/s.

    Each of several models takes the time of one. Time per row grows with the columns, and beyond 16 factors with them.
    """
    model, fields = plan["job"]["model"], len(plan["columns"])
    family, optimizer = family_of(model["family"]), plan["job"]["training"]["optimizer"]
    groups = groups_of(model["groups"], list(plan["columns"])) if family.has_groups else ()
    layout = Layout(optimizer, model["n_factors"], family.name, groups, family.order_of(model["order"]))
    slower = fields / _FIELDS * max(1.0, layout.lanes / _LANES)
    growth = Growth(_GROWTH.first * fields / _FIELDS, _GROWTH.power, 2.0 ** model["hash_bits"], _GROWTH.factored)
    speed = Speed(cpus * _TRAINED / slower, _FEATURE_SECONDS * max(1.0, layout.lanes / _LANES) / cpus)
    per_worker = math.ceil(plan["replicas"] / n_workers / cpus) * cpus
    cluster = Cluster(min(n_workers, plan["replicas"]), _BANDWIDTH, per_worker)

    def epoch(rounds: int) -> float:
        return (
            model["n_models"]
            * rounds
            * round_cost(plan["rows_per_replica"] / rounds, layout, growth, cluster, speed).seconds
        )

    return JobTimes(
        plan["rows"] * fields / _FIELDS / (n_workers * cpus * _PREPARED),
        epoch(plan["rounds_per_epoch"]),
        epoch(plan["later_rounds_per_epoch"]),
        plan["epochs"],
    )
