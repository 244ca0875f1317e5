"""Rows per second with a loss and a regulariser that a user wrote, beside the built-in ones.

    python benchmarks/kernels/bench_custom_loss.py            # a minute or two
    python benchmarks/kernels/bench_custom_loss.py --smoke    # does it still work?

Rows per second of CPU time of the one thread, best of several interleaved repetitions: other work on the machine then
matters little. Compile time is apart: the last columns are the first compilation on this machine, and the check of the
function that comes before it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# Compile time is reported, so no kernel may come from an earlier run. Numba reads this at import.
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="dfm-bench-")

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import click_data

from dfm.kernels.contract import Kernels, KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.kernels.tables import InitialValues, Layout, initialise


def logistic(score: float, y: float) -> float:
    """As a textbook has it."""
    margin = score if y > 0.5 else -score
    return math.log1p(math.exp(-margin))


def asymmetric(score: float, y: float) -> float:
    """A click that was missed costs five times as much."""
    return 5.0 * np.logaddexp(0.0, -score) if y else np.logaddexp(0.0, score)


def huber(score: float, y: float) -> float:
    """Branches and an absolute value."""
    error = abs(score - y)
    return 0.5 * error**2 if error <= 1.0 else error - 0.5


def half_square(w: float) -> float:
    """L2, written out."""
    return 0.5 * w * w


@dataclass(frozen=True)
class Contestant:
    """Kernels to time, and the name of those whose time is 1."""

    name: str
    beside: str
    spec: KernelSpec
    check_seconds: float = 0.0


def contestants(k: int) -> list[Contestant]:
    """Built-in losses, and the same written by a user."""
    found = [Contestant(name, name, KernelSpec(name, "adagrad", k)) for name in ("logistic", "huber")]
    for function, beside in ((logistic, "logistic"), (asymmetric, "logistic"), (huber, "huber")):
        begin = time.perf_counter()
        loss = CustomLoss.of(function)
        seconds = time.perf_counter() - begin
        found.append(Contestant(f"{function.__name__}, own", beside, KernelSpec(loss, "adagrad", k), seconds))
    begin = time.perf_counter()
    regularizer = CustomRegularizer.of(half_square)
    seconds = time.perf_counter() - begin
    spec = KernelSpec("logistic", "adagrad", k, regularizer=regularizer)
    return [
        *found,
        Contestant("logistic, own regularizer", "logistic", spec, seconds),
        Contestant("logistic, adam", "logistic", KernelSpec("logistic", "adam", k)),
    ]


def seconds_of_a_round(kernels: Kernels, rows: click_data.ImplicitRows, n_features: int) -> float:
    """CPU time of one round on a new table."""
    layout = Layout(kernels.spec.optimizer, kernels.spec.n_factors)
    table = initialise(layout, np.arange(n_features, dtype=np.uint32), n_features, InitialValues(1))
    rate = 0.002 if kernels.spec.optimizer == "adam" else 0.05
    begin = time.thread_time()
    tally = kernels.run_round(rows, table, Step(rate, rate, 1e-5, 1e-5))
    seconds = time.thread_time() - begin
    assert tally.is_finite, "diverged: lower the rate"
    return seconds


def run(n_rows: int, sizes: list[int], repetitions: int) -> None:
    """Prints a table."""
    hashes, labels = click_data.hashed_fields(n_rows), click_data.labels_for(n_rows)
    indices, n_features = click_data.compact(hashes, 20)
    rows = click_data.as_rows(indices, labels)
    print(
        f"{n_rows} rows of {click_data.N_FIELDS} entries, {n_features} features, one thread; load {os.getloadavg()}\n"
    )
    print("| k | loss | rows/s | times the built-in | compile | check |\n| ---: | :--- | ---: | ---: | ---: | ---: |")
    for k in sizes:
        racing = contestants(k)
        kernels = [compile_kernels(one.spec) for one in racing]
        compile_seconds = [click_data.seconds_to_compile(one) for one in kernels]
        best = {one.name: float("inf") for one in racing}
        for _ in range(repetitions):
            for one, own in zip(racing, kernels, strict=True):
                best[one.name] = min(best[one.name], seconds_of_a_round(own, rows, n_features))
        for one, compiling in zip(racing, compile_seconds, strict=True):
            print(
                f"| {k} | {one.name} | {n_rows / best[one.name]:,.0f} | {best[one.name] / best[one.beside]:.2f} "
                f"| {compiling:.1f} s | {one.check_seconds:.1f} s |",
                flush=True,
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny inputs: does it still work?")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16])
    arguments = parser.parse_args()
    if arguments.smoke:
        run(2_000, [4], 2)
    else:
        run(arguments.rows, arguments.k, 7)


if __name__ == "__main__":
    main()
