"""Seconds of an iteration of the exact solvers, on one thread and on two workers, and of myFM where it is installed.

    .venv/bin/python benchmarks/solvers/bench_solvers.py [--rows 1000000] [--factors 8] [--smoke]

Rows: 39 fields whose values follow Zipf's law, 2 to 20,000 values a field. One thread walks them in this process; then
one local worker process of one thread, and two, so that what Dask costs is in both. Where the machine has other work to
do, look at the seconds of processor time. myFM (the extra `bench`) gets the same rows as a sparse matrix. Measured
earlier, on one thread at k = 8 and 39 entries a row: libFM .16, myFM .13, fastFM .078 million rows a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from machine import machine_line

from dfm.data.partition import SparsePartition
from dfm.training.exact import ExactExecutor, Here
from dfm.training.exact_rounds import first_block
from tests.support.exact_cases import SCHEDULE, vocabulary_of, work_of

FIELDS = 39
LARGEST = 20_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--factors", type=int, default=8)
    parser.add_argument("--smoke", action="store_true", help="tiny and untimed: does it still run?")
    arguments = parser.parse_args()
    n_rows, repeats = (2_000, 1) if arguments.smoke else (arguments.rows, 5)
    print(machine_line())
    data = Data(n_rows)
    print(f"{n_rows:,} rows of {FIELDS} fields, {data.n_features:,} features, k = {arguments.factors}")
    for solver in ("mcmc", "als"):
        tell(f"{solver}, one thread", n_rows, *here(data, solver, arguments.factors, repeats))
    taken = [on_workers(data, n, arguments.factors, repeats) for n in (1, 2)]
    for n, (seconds, _) in enumerate(taken, start=1):
        tell(f"mcmc, worker processes: {n}", n_rows, seconds)
    print(f"the second worker makes it {taken[0][0] / taken[1][0]:.2f} times as fast")
    if not arguments.smoke and importlib.util.find_spec("myfm"):
        tell("myFM, one thread", n_rows, of_myfm(data, arguments.factors))


def tell(what: str, n_rows: int, seconds: float, of_processor: float = 0.0) -> None:
    """Print a line."""
    more = f"; {of_processor:.2f} s of processor time, {n_rows / of_processor / 1e6:.3f}" if of_processor else ""
    print(f"{what:26}{seconds:7.2f} s{n_rows / seconds / 1e6:8.3f} M rows/s{more}", flush=True)


class Data:
    """The rows, as numbers of features of each field."""

    def __init__(self, n_rows: int) -> None:
        rng = np.random.default_rng(0)
        sizes = np.geomspace(2, LARGEST, FIELDS).astype(int)
        drawn = [(rng.zipf(1.2, n_rows) - 1) % size for size in sizes]
        counts = [np.bincount(each, minlength=size) for each, size in zip(drawn, sizes, strict=True)]
        owners = np.repeat(np.arange(FIELDS), sizes)
        order = np.argsort(-np.concatenate(counts), kind="stable")  # as in a vocabulary: the most frequent first
        place = np.empty(len(order), np.uint32)
        place[order] = np.arange(len(order))
        starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        self.indices = np.stack([place[start + each] for start, each in zip(starts, drawn, strict=True)], axis=1)
        self.fields = owners[order].astype(np.uint16)
        self.n_features = len(order)
        self.labels = rng.normal(size=n_rows).astype(np.float32)

    def part(self, start: int, stop: int) -> SparsePartition:
        """Some of the rows, with the features that they touch."""
        features, indices = np.unique(self.indices[start:stop], return_inverse=True)
        nothing = np.zeros(0, np.float32)
        indptr = np.arange(0, (stop - start) * FIELDS + 1, FIELDS)
        return SparsePartition(
            indptr,
            indices.astype(np.uint32).ravel(),
            nothing,
            self.labels[start:stop],
            nothing,
            features.astype(np.uint32),
            len(features),
            stop - start,
            self.fields[features],
        )


def seconds_of(executor: ExactExecutor, work: Any, repeats: int) -> tuple[float, float]:
    """Median seconds of an iteration, after one that compiles: of the clock, and of this thread's processor."""
    found = []
    for number in range(repeats + 1):
        executor.begin_epoch(work)
        started = time.perf_counter(), time.thread_time()
        executor.submit([(SCHEDULE.work(work, number, (0.0, 0)), range(1))])
        executor.finish()
        found.append((time.perf_counter() - started[0], time.thread_time() - started[1]))
    return statistics.median(each[0] for each in found[1:]), statistics.median(each[1] for each in found[1:])


def here(data: Data, solver: str, n_factors: int, repeats: int) -> tuple[float, float]:
    """Seconds of an iteration in this process."""
    work, vocabulary = (
        work_of("regression", n_factors, solver=solver, n_replicas=1),
        vocabulary_of(data.fields.tolist()),
    )
    executor = ExactExecutor(Here(), [[data.part(0, len(data.labels))]], [], vocabulary)
    executor.restore([first_block(work, vocabulary, 0.1, 0)], [0, data.n_features])
    return seconds_of(executor, work, repeats)


def on_workers(data: Data, n_workers: int, n_factors: int, repeats: int) -> tuple[float, float]:
    """Seconds of an iteration of two replicas on worker processes of one thread each."""
    from dfm.distributed.cluster import connect
    from dfm.distributed.cluster.watch import Watch
    from dfm.distributed.exact import Workers
    from dfm.settings.tables import ClusterSettings

    work, vocabulary = (
        work_of("regression", n_factors, solver="mcmc", n_replicas=2),
        vocabulary_of(data.fields.tolist()),
    )
    n_rows = len(data.labels)
    with connect.connect(ClusterSettings(workers=n_workers)) as client:
        place = Workers(Watch(client, 60.0))
        parts = [data.part(start, start + n_rows // 2) for start in (0, n_rows // 2)]
        rows = [client.scatter([part], hash=False) for part in parts]
        rows = [client.submit(list, each) for each in rows]
        executor = ExactExecutor(place, rows, [], place.keep(vocabulary))
        executor.restore([place.keep(first_block(work, vocabulary, 0.1, 0))], [0, data.n_features])
        return seconds_of(executor, work, repeats)


def of_myfm(data: Data, n_factors: int) -> float:
    """Seconds of an iteration of myFM: of three, less those of one."""
    import myfm
    from scipy import sparse

    n_rows = len(data.labels)
    X = sparse.csr_matrix(
        (np.ones(data.indices.size), data.indices.ravel(), np.arange(0, data.indices.size + 1, FIELDS)),
        shape=(n_rows, data.n_features),
    )
    taken = []
    for n_iter in (1, 3):
        started = time.perf_counter()
        model = myfm.MyFMRegressor(rank=n_factors)
        model.fit(X, data.labels.astype(float), n_iter=n_iter, n_kept_samples=1, grouping=data.fields.tolist())
        taken.append(time.perf_counter() - started)
    return (taken[1] - taken[0]) / 2


if __name__ == "__main__":
    main()
