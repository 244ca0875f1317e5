"""The cost model against rounds on the local cluster, and what it says of the Criteo terabyte log.

    python benchmarks/averaging/predict.py [--rows 1000000] [--workers 2]

Measures how features grow with rows and how fast one thread trains and averages, on a synthetic log in this process;
then trains jobs of several averages per epoch on local workers and compares; then predicts.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster
from logs import Log, synthetic_log
from numpy.typing import NDArray
from simulate import Setting, simulate

from dfm.averaging.cost_model import GIGABIT, Cluster, Growth, RoundCost, Speed, round_cost
from dfm.averaging.rules import automatic_averages
from dfm.distributed.train import train
from dfm.kernels.tables import Layout
from dfm.settings.job import load_job
from dfm.training.order import admit

TERABYTE_ROWS = 4.4e9
TERABYTE_FEATURES = 2.0**26
"""Its table: hashed to 26 bits, and full."""
LOCAL_BANDWIDTH = 1.0e9


def fit_growth(indices: NDArray[np.uint32], n_fields: int, most: float, factored: float) -> Growth:
    """The growth seen in leading rows of a log of hashed indices (n_fields of them per row)."""
    n_rows = len(indices) // n_fields
    sizes = [n_rows >> shift for shift in range(6, -1, -1)]
    counts = [len(np.unique(indices[: size * n_fields])) for size in sizes]
    power, log_first = np.polyfit(np.log(sizes), np.log(counts), 1)
    return Growth(float(np.exp(log_first)), float(power), most, factored)


def measure(log: Log, n_factors: int, averages: int) -> tuple[Growth, Speed]:
    """Growth of features, and the speed of one thread."""
    setting = Setting(averages=averages, n_epochs=1, n_factors=n_factors)
    histories = [simulate(log, setting) for _ in range(6)][1:]  # the first one compiles
    slices = [partition for replica in log.cut(setting.deal).slices for partition in replica]
    factored = sum(part.n_factored for part in slices) / sum(len(part.features) for part in slices)
    n_features = float(log.cut(setting.deal).vocabulary.n_features)
    growth = fit_growth(log.train.indices, len(log.columns), n_features, factored)
    touched = histories[0].touched * setting.n_replicas * averages
    return growth, Speed(
        log.train.n_rows / statistics.median(history.train_seconds for history in histories),
        statistics.median(history.merge_seconds for history in histories) / touched,
    )


def measure_together(arguments: argparse.Namespace) -> tuple[Growth, Speed]:
    """The same in as many processes at a time as there will be workers: two threads of one core are not two cores."""
    n_processes = max(arguments.workers, 1)
    with ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_measure_here, [arguments] * n_processes))
    speeds = [speed for _, speed in found]
    return found[0][0], Speed(
        statistics.mean(speed.rows_per_second for speed in speeds),
        statistics.mean(speed.feature_seconds for speed in speeds),
    )


def _measure_here(arguments: argparse.Namespace) -> tuple[Growth, Speed]:
    log = synthetic_log("synthetic", arguments.rows, arguments.hash_bits, arguments.output / "cache")
    return measure(log, arguments.factors, averages=4)


def measure_tasks(n_workers: int, n_rounds: int = 50) -> float:
    """Seconds that a task costs on local workers: rounds of a task per worker and one that waits for them all."""
    with LocalCluster(n_workers, threads_per_worker=1, dashboard_address=":0") as local, Client(local) as client:
        last = None
        for warm in (True, False):
            started = time.perf_counter()
            for number in range(5 if warm else n_rounds):
                parts = [client.submit(_nothing, last, number, warm, worker, pure=False) for worker in range(n_workers)]
                last = client.submit(_nothing, *parts, pure=False)
            last.result()
        return (time.perf_counter() - started) / n_rounds / (n_workers + 1)


def _nothing(*_: object) -> None:
    return None


def measured_round(folder: Path, arguments: argparse.Namespace, averages: int) -> tuple[float, float]:
    """Seconds of training and of averaging in a round of the second epoch, on local workers."""
    with tempfile.TemporaryDirectory() as output:
        job = load_job(
            {
                "data": {"train": f"{folder}/day=*/*.parquet"},
                "schema": {"label": "label", "categorical": ["C*"], "numeric": ["I*"]},
                "model": {"n_factors": arguments.factors, "hash_bits": arguments.hash_bits},
                "training": {"n_epochs": 2, "averages_per_epoch": averages, "early_stopping": False},
                "cluster": {"workers": arguments.workers, "cache": str(arguments.output) + "/dfm-cache"},
                "output": {"directory": output, "checkpoint_every": "never"},
            }
        )
        epoch = train(admit(job)).history[-1]
    return epoch["training_seconds"] / averages, epoch["averaging_seconds"] / averages


def check(arguments: argparse.Namespace, growth: Growth, speed: Speed) -> list[str]:
    """Measured beside predicted, for several lengths of a round."""
    layout = Layout("adagrad", arguments.factors)
    task_seconds = measure_tasks(arguments.workers)
    cluster = Cluster(arguments.workers, LOCAL_BANDWIDTH, 8 // arguments.workers, task_seconds)
    text = [
        f"a task on local workers: {task_seconds * 1e3:.1f} ms",
        "",
        "| averages | rows per replica and round | train s, model | measured | averaging s, model | measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    folder = arguments.output / "cache" / f"synthetic-{arguments.rows}"
    for averages in (1, 4, 12):
        rows = arguments.rows / 8 / averages
        cost = round_cost(rows, layout, growth, cluster, speed)
        training, averaging = measured_round(folder, arguments, averages)
        text.append(
            f"| {averages} | {rows:,.0f} | {cost.train:.3f} | {training:.3f} "
            f"| {cost.average + cost.wire + cost.tasks:.3f} | {averaging:.3f} |"
        )
    return text


def terabyte(growth: Growth, speed: Speed, layout: Layout) -> list[str]:
    """One epoch of 4.4 billion rows, one replica per worker thread."""
    whole = dataclasses.replace(growth, most=TERABYTE_FEATURES)
    text = [
        "| workers | Gbit/s | averages | rows per round | touched | MB sent | blocks "
        "| round s: train + average + wire + tasks | epoch s | averaging |",
        "| --- " * 10 + "|",
    ]
    for n_workers in (8, 64, 512):
        averages = automatic_averages(int(TERABYTE_ROWS), n_workers)
        rows = TERABYTE_ROWS / n_workers / averages
        for gigabits in (1, 10, 100):
            cost = round_cost(rows, layout, whole, Cluster(n_workers, gigabits * GIGABIT), speed)
            text.append(_line(n_workers, gigabits, averages, rows, whole, cost))
    return text


def _line(workers: int, gigabits: int, averages: int, rows: float, growth: Growth, cost: RoundCost) -> str:
    share = 1 - cost.train / cost.seconds
    return (
        f"| {workers} | {gigabits} | {averages} | {rows:,.0f} | {growth.touched(rows):,.0f} | {cost.sent / 1e6:,.0f} "
        f"| {cost.blocks} | {cost.train:.2f} + {cost.average:.2f} + {cost.wire:.2f} + {cost.tasks:.2f} "
        f"| {cost.seconds * averages:,.0f} | {share:.0%} |"
    )


def main() -> None:
    """Measure, compare, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the synthetic log")
    parser.add_argument("--hash-bits", type=int, default=22)
    parser.add_argument("--factors", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2, help="local workers; 0 skips the comparison")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/output/averaging"))
    arguments = parser.parse_args()
    (arguments.output / "cache").mkdir(parents=True, exist_ok=True)
    synthetic_log("synthetic", arguments.rows, arguments.hash_bits, arguments.output / "cache")  # made once, read often
    growth, speed = measure_together(arguments)
    print(f"touched features = {growth.first:.1f} n^{growth.power:.3f}, {growth.factored:.0%} of them with factors")
    print(
        f"a thread: {speed.rows_per_second:,.0f} rows/s trained, {speed.feature_seconds * 1e9:.0f} ns per touched "
        "feature averaged"
    )
    if arguments.workers:
        print("\n".join(check(arguments, growth, speed)))
    print("\n".join(terabyte(growth, speed, Layout("adagrad", arguments.factors))))


if __name__ == "__main__":
    main()
