"""What a round costs on a cluster: training, averaging, wire and tasks, from a few measured numbers.

Each of N workers (one thread) trains m replicas of `rows` rows one after another, adds them up, and sends the sum to
the B blocks. With T(n) for the features that n rows touch, the parts of a round follow one another:

    train     m rows / rows_per_second
    average   m T(rows) feature_seconds                         pull, copy, difference, sum, finish
    wire      (2 + N / B) T(m rows) record / bandwidth          pull, push, and what a block receives
    tasks     (N + N B + B) task_seconds                        train, cut and merge tasks through one scheduler

B is the number of blocks that makes the last two least. T grows as a power of the rows (Heaps), up to the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm.params import Layout

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


def fit_growth(indices: NDArray[np.uint32], n_fields: int, most: float, factored: float) -> Growth:
    """The growth seen in leading rows of a log of hashed indices (n_fields of them per row)."""
    n_rows = len(indices) // n_fields
    sizes = [n_rows >> shift for shift in range(6, -1, -1)]
    counts = [len(np.unique(indices[: size * n_fields])) for size in sizes]
    power, log_first = np.polyfit(np.log(sizes), np.log(counts), 1)
    return Growth(float(np.exp(log_first)), float(power), most, factored)


@dataclass(frozen=True)
class Cluster:
    """`bandwidth` of a worker's network in bytes/s; what one task costs the scheduler, in seconds."""

    n_workers: int
    bandwidth: float
    replicas_per_worker: int = 1
    task_seconds: float = 0.0005


@dataclass(frozen=True)
class Speed:
    """Of one worker thread: rows trained per second, and averaging's seconds per touched feature."""

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
    return 4 + 4 * layout.linear_width + growth.factored * 4 * layout.factor_width


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
