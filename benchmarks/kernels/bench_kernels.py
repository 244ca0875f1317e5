"""Rows per second of training and scoring, beside naive code, other tools and what the machine could do at most.

    python benchmarks/kernels/bench_kernels.py            # some minutes
    python benchmarks/kernels/bench_kernels.py --smoke    # does it still work?
    python benchmarks/kernels/bench_kernels.py --families # the other families beside a factorization machine

Best of several interleaved repetitions, since other work on the machine only ever adds time. Compile time is apart.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# Compile time is reported, so no kernel may come from an earlier run. Numba reads this at import.
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="dfm-bench-")

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import click_data
import peers

from dfm.data.partition import SparsePartition, by_group
from dfm.kernels.blocks import padded_lanes
from dfm.kernels.contract import Kernels, KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.simd import fma, reduce_add, splat
from dfm.kernels.tables import InitialValues, ParameterTable, initialise
from dfm.settings.groups import groups_of

RATES = {"sgd": 0.002}
"""Where 0.05 diverges: a walk that diverges ends early, and its speed means nothing."""
VECTOR_OPERATIONS = 15
"""Vector instructions per 16 factors of an entry, AdaGrad with implicit values: 2 for the sums, 13 for the update."""


@dataclass(frozen=True)
class Limits:
    """What the machine can do: 16-lane multiply-adds per second in registers, bytes copied per second."""

    multiply_adds: float
    copied_bytes: float

    def arithmetic_rows(self, k: int) -> float:
        """Rows per second if only the factors' arithmetic took time."""
        vectors = max(padded_lanes(k) / 16, 1.0)
        return self.multiply_adds / (VECTOR_OPERATIONS * vectors * click_data.N_FIELDS)

    def memory_rows(self, k: int) -> float:
        """Rows per second if every record came from memory and went back, and nothing else took time."""
        record = 4 * (2 * padded_lanes(k) + 2)
        return self.copied_bytes / (click_data.N_FIELDS * (record + 4))


def best(action: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest repetition."""
    seconds = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


@njit(nogil=True)
def _multiply_add(n):  # type: ignore[no-untyped-def]
    x, y = splat(np.float32(0.999), 16), splat(np.float32(1e-3), 16)
    a, b, c, d, e, f, g, h = x, y, x, y, x, y, x, y
    for _ in range(n):
        a, b, c, d = fma(a, x, y), fma(b, x, y), fma(c, x, y), fma(d, x, y)
        e, f, g, h = fma(e, x, y), fma(f, x, y), fma(g, x, y), fma(h, x, y)
    return reduce_add(a + b + c + d + e + f + g + h)


def measure_limits(size: int) -> Limits:
    """Of this machine, one thread. size: of the arrays copied, in bytes."""
    _multiply_add(1)
    count = size // 8
    fma_seconds = best(lambda: _multiply_add(count), 5)
    source, target = np.zeros(size // 4, np.float32), np.ones(size // 4, np.float32)
    copy_seconds = best(lambda: np.copyto(target, source), 5)
    return Limits(8 * count / fma_seconds, size / copy_seconds)


def new_table(spec: KernelSpec, n_features: int) -> ParameterTable:
    """A table in which every feature owns factors."""
    ids = np.arange(n_features, dtype=np.uint32)
    return initialise(spec.layout, ids, n_features, InitialValues(1))


@dataclass(frozen=True)
class Case:
    """Rows and one kernel to time on them."""

    kernels: Kernels
    rows: click_data.ImplicitRows
    n_features: int
    repetitions: int

    @property
    def n_rows(self) -> int:
        """Rows of one round."""
        return len(self.rows.labels)

    def _round(self, table: ParameterTable, n_threads: int = 1) -> None:
        rate = RATES.get(self.kernels.spec.optimizer, 0.05)
        tally = self.kernels.run_round(self.rows, table, Step(rate, rate, 1e-5, 1e-5, n_threads=n_threads))
        assert tally.is_finite, "diverged: lower the rate"

    def train(self, n_threads: int = 1) -> float:
        """Rows per second of a round; threads share the table."""
        table = new_table(self.kernels.spec, self.n_features)
        return self.n_rows / best(lambda: self._round(table, n_threads), self.repetitions)

    def train_replicas(self, n_replicas: int) -> float:
        """Rows per second of several rounds at once, each on a table of its own."""
        tables = [new_table(self.kernels.spec, self.n_features) for _ in range(n_replicas)]
        with ThreadPoolExecutor(n_replicas) as pool:
            seconds = best(
                lambda: list(pool.map(self._round, tables)),
                self.repetitions,
            )
        return n_replicas * self.n_rows / seconds

    def score(self) -> float:
        """Rows per second of scoring, with a table without state."""
        table = new_table(self.kernels.spec, self.n_features).without_state()
        return self.n_rows / best(lambda: self.kernels.scores(self.rows, table), self.repetitions)

    def latency(self) -> float:
        """Median seconds of scoring one row."""
        table = new_table(self.kernels.spec, self.n_features).without_state()
        row = click_data.as_rows(self.rows.indices[: click_data.N_FIELDS].reshape(1, -1), self.rows.labels[:1])
        seconds = []
        for _ in range(20 * self.repetitions):
            begin = time.perf_counter()
            self.kernels.scores(row, table)
            seconds.append(time.perf_counter() - begin)
        return float(np.median(seconds))


def machine_line() -> str:
    """Processor, cores and versions."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), name)
    return (
        f"{name} ({llvm.get_host_cpu_name()}), {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}"
    )


def millions(rate: float | None) -> str:
    """Rows per second in a table cell."""
    return "-" if rate is None else f"{rate / 1e6:.2f} M" if rate >= 1e5 else f"{rate / 1e3:.1f} k"


def compare_peers(
    hashes: NDArray[np.uint32], labels: NDArray[np.float32], hash_bits: int, k: int
) -> list[float | None]:
    """Rows per second of naive code, PyTorch and Vowpal Wabbit, on as many rows as each does in about a second."""
    indices, n_features = hashes & np.uint32((1 << hash_bits) - 1), 1 << hash_bits
    slow, slower = min(len(labels), 100_000), min(len(labels), 3_000)
    return [
        peers.naive_rows_per_second(indices[:slow], labels[:slow], n_features, k),
        peers.torch_rows_per_second(indices[:slow], labels[:slow], n_features, k),
        peers.wabbit_rows_per_second(indices[:slower], labels[:slower], hash_bits, k),
    ]


def print_row(cells: list[str]) -> None:
    """One line of a Markdown table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def run(n_rows: int, sizes: list[int], all_bits: list[int], repetitions: int, copied: int) -> None:
    """Prints everything."""
    print(machine_line())
    limits = measure_limits(copied)
    print(
        f"multiply-adds: {limits.multiply_adds / 1e9:.2f} G/s of 16 lanes; memcpy: {limits.copied_bytes / 1e9:.1f} GB/s"
    )
    print(f"{n_rows} rows of {click_data.N_FIELDS} entries, AdaGrad per coordinate; rows per second\n")
    hashes, labels = click_data.hashed_fields(n_rows), click_data.labels_for(n_rows)
    head = "k, hash_bits, features, dfm, share of arithmetic limit, if all from memory, Hogwild x2, two replicas, "
    head += "scoring, one row, naive, dfm / naive, PyTorch, Vowpal Wabbit, compile"
    print_row(head.split(", "))
    print_row(["---:"] * len(head.split(", ")))
    for k in sizes:
        kernels = compile_kernels(KernelSpec("logistic", "adagrad", k))
        compile_seconds = click_data.seconds_to_compile(kernels)
        for bits in all_bits:
            indices, n_features = click_data.compact(hashes, bits)
            case = Case(kernels, click_data.as_rows(indices, labels), n_features, repetitions)
            rate, replicas = case.train(), case.train_replicas(2)
            naive, torch, wabbit = compare_peers(hashes, labels, bits, k)
            assert naive is not None
            print_row(
                [
                    str(k), str(bits), str(n_features), millions(rate), f"{rate / limits.arithmetic_rows(k):.0%}",
                    millions(limits.memory_rows(k)), millions(case.train(2)),
                    f"{millions(replicas)} ({replicas / rate:.2f}x)",
                    millions(case.score()), f"{case.latency() * 1e6:.0f} us", millions(naive), f"{rate / naive:.1f}x",
                    millions(torch), millions(wabbit), f"{compile_seconds:.1f} s",
                ]
            )  # fmt: skip
    print("\nother optimizers, k = 16, hash_bits 20")
    indices, n_features = click_data.compact(hashes, 20)
    for optimizer in ("sgd", "adagrad-row", "ftrl"):
        case = Case(
            compile_kernels(KernelSpec("logistic", optimizer, 16)),
            click_data.as_rows(indices, labels),
            n_features,
            repetitions,
        )
        print(f"{optimizer}: {millions(case.train())} rows/s")


PAIRS_OF_EQUALS = [((1, 16), (4, 4)), ((1, 32), (8, 4)), ((1, 160), (39, 4))]
"""Groups and factors of a factorization machine and of a field-aware one with as many floats in a record."""


def by_groups(indices: NDArray[np.uint32], labels: NDArray[np.float32], groups: tuple[int, ...]) -> SparsePartition:
    """The rows as a partition, whose entries stand group by group where there are groups."""
    plain, n_features = click_data.as_rows(indices, labels), int(indices.max()) + 1
    fields = np.zeros(n_features, np.uint16)
    for field in reversed(range(click_data.N_FIELDS)):
        fields[indices[:, field]] = field
    features = np.arange(n_features, dtype=np.uint32)
    arrays = plain.indptr, plain.indices, plain.values, plain.labels, plain.weights
    return by_group(SparsePartition(*arrays, features, n_features, len(labels), fields), groups)


def by_turns(cases: list[tuple[Kernels, SparsePartition, ParameterTable]], repetitions: int) -> list[float]:
    """Rows per second of CPU time of each case, medians of runs by turns."""
    seconds: list[list[float]] = [[] for _ in cases]
    for _ in range(repetitions):
        for number, (kernels, rows, table) in enumerate(cases):
            begin = time.thread_time()
            kernels.run_round(rows, table, Step(0.05, 0.05, 1e-5, 1e-5))
            seconds[number].append(time.thread_time() - begin)
    return [rows.n_rows / float(np.median(each)) for (_, rows, _), each in zip(cases, seconds, strict=True)]


OWNING = 0.85
"""Share of entries whose features own factors, as on the Criteo log."""


def compare_strengths(n_rows: int, repetitions: int) -> None:
    """Prints the speed of a field-weighted machine beside that of a factorization machine of the same length."""
    indices, n_features = click_data.compact(click_data.hashed_fields(n_rows), 26)
    shares = np.cumsum(np.bincount(indices.ravel(), minlength=n_features)) / indices.size
    n_factored, rows = int(np.searchsorted(shares, OWNING)) + 1, by_groups(indices, click_data.labels_for(n_rows), ())
    print_row(["k", "fm, rows/s", "fwfm, rows/s", "ratio"])
    for k in (8, 16):
        cases = []
        for family in ("fm", "fwfm"):
            kernels = compile_kernels(KernelSpec("logistic", "adagrad", k, family=family))
            ids, initial = np.arange(n_features, dtype=np.uint32), InitialValues(1)
            table = initialise(kernels.spec.layout, ids, n_factored, initial, click_data.N_FIELDS)
            cases.append((kernels, rows, table))
        first, second = by_turns(cases, repetitions)
        print_row([str(k), millions(first), millions(second), f"{second / first:.2f}"])


def compare_orders(n_rows: int, repetitions: int) -> None:
    """Prints the speed of families with orders beside that of factorization machines of the same k and of 2 k, which
    have as many floats.
    """
    indices, n_features = click_data.compact(click_data.hashed_fields(n_rows), 20)
    rows, cases = by_groups(indices, click_data.labels_for(n_rows), ()), []
    for family, k, order in (("fm", 16, 0), ("fm", 32, 0), ("hofm", 16, 3), ("polynomial", 16, 2)):
        kernels = compile_kernels(KernelSpec("logistic", "adagrad", k, family=family, order=order))
        cases.append((kernels, rows, new_table(kernels.spec, n_features)))
    speeds = by_turns(cases, repetitions)
    print_row(["family", "order", "k", "floats", "rows/s", "of fm of the same k", "of fm of as many floats"])
    for (kernels, _, table), speed in zip(cases, speeds, strict=True):
        spec, layout = kernels.spec, table.layout
        cells = f"{spec.order or 2}", f"{spec.n_factors}", f"{layout.row_factors}", millions(speed)
        print_row([spec.family, *cells, f"{speed / speeds[0]:.2f}", f"{speed / speeds[layout.row_factors > 16]:.2f}"])


def compare_families(n_rows: int, repetitions: int) -> None:
    """Prints the speed of each pair."""
    print(machine_line())
    indices, n_features = click_data.compact(click_data.hashed_fields(n_rows), 20)
    labels = click_data.labels_for(n_rows)
    print_row(["fm", "ffm", "fm, rows/s", "ffm, rows/s", "ratio"])
    for pair in PAIRS_OF_EQUALS:
        cases = []
        for n_groups, k in pair:
            family = "ffm" if n_groups > 1 else "fm"
            groups = groups_of(n_groups, [str(field) for field in range(click_data.N_FIELDS)]) if n_groups > 1 else ()
            kernels = compile_kernels(KernelSpec("logistic", "adagrad", k, family=family, groups=groups))
            cases.append((kernels, by_groups(indices, labels, groups), new_table(kernels.spec, n_features)))
        first, second = by_turns(cases, repetitions)
        (_, plain), (n_groups, k) = pair
        cells = f"k = {plain}", f"{n_groups} x {k}", millions(first), millions(second), f"{second / first:.2f}"
        print_row([*cells])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny inputs: does it still work?")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--k", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--hash-bits", type=int, nargs="+", default=[18, 20, 22, 24])
    parser.add_argument("--families", action="store_true", help="the other families beside a factorization machine")
    arguments = parser.parse_args()
    if arguments.families:
        compared = (2_000, 2) if arguments.smoke else (arguments.rows, 11)
        compare_families(*compared)
        compare_strengths(*compared)
        compare_orders(*compared)
    elif arguments.smoke:
        run(2_000, [4], [18], 2, 1 << 20)
    else:
        run(arguments.rows, arguments.k, arguments.hash_bits, 7, 1 << 28)


if __name__ == "__main__":
    main()
