"""Rows per second on a GPU beside the CPU's kernel, PyTorch on the same GPU and the copy bandwidth; log loss, logits.

    python benchmarks/gpu/bench_gpu.py --output results.md   # about ten minutes on a machine with an NVIDIA GPU
    python benchmarks/gpu/bench_gpu.py --only rounds          # one part of it: torch, learning, rounds or speeds
    python benchmarks/gpu/bench_gpu.py --only speeds --factors 16 --hash-bits 22 --optimizers adagrad-row
    python benchmarks/gpu/bench_gpu.py --smoke                # does it still work?

Without a GPU it says so and ends. A "walk" is what more rows cost, (t(2n) − t(n)) / n: the first, careful launches fall
out of it. A round of a job is timed whole: parameters pulled, replicas trained, summed and merged; its walks include
what a GPU had queued before them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
sys.path.insert(0, str(Path(__file__).parent))
import click_data
import torch_machine
from click_data import ImplicitRows
from machine import machine_line

from dfm.averaging import gpu as gpu_averaging
from dfm.averaging.merge import OnProcessors
from dfm.averaging.rules import MergeRule
from dfm.data.partition import SparsePartition
from dfm.kernels.blocks import padded_lanes
from dfm.kernels.contract import Kernels, KernelSpec, Step
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.gpu import device as cupy_device
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from dfm.training import rounds
from dfm.training.backends import BACKENDS

Place = Callable[[ParameterTable], ParameterTable]
"""Brings a table to where the kernels want it."""
STEP = Step(0.05, 0.025, 0.005, 0.005)
BAR_ROWS, BAR_TORCH, BAR_LOSS, BAR_LOGIT = 40e6, 20.0, 0.001, 1e-5
"""Rows per second at k = 16, hash_bits = 22, row-wise AdaGrad; times PyTorch; log loss and logits beside the CPU's."""


@dataclass(frozen=True)
class Sizes:
    """What is run. rows: of the speeds; learning_rows, epochs: of the log losses; optimizers: of both; copied: bytes of
    the copy."""

    rows: int
    learning_rows: int
    epochs: int
    factors: tuple[int, ...]
    hash_bits: tuple[int, ...]
    optimizers: tuple[str, ...]
    repeats: int
    n_replicas: int
    copied: int


FULL = Sizes(
    4_000_000, 2_000_000, 3, (16, 8, 32, 64), (22, 20, 24, 26), ("adagrad-row", "adagrad", "ftrl"), 5, 8, 4 << 30
)
SMOKE = Sizes(20_000, 4_000, 1, (8,), (16,), ("adagrad-row",), 1, 2, 1 << 20)


def new_table(spec: KernelSpec, n_features: int) -> ParameterTable:
    """Untrained; every feature owns factors."""
    layout = Layout(spec.optimizer, spec.n_factors)
    return initialise(layout, np.arange(n_features, dtype=np.uint32), n_features, InitialValues(1))


def some(rows: ImplicitRows, n_rows: int) -> ImplicitRows:
    """The first rows."""
    n_entries = int(rows.indptr[n_rows])
    return replace(
        rows,
        indptr=rows.indptr[: n_rows + 1].copy(),
        indices=rows.indices[:n_entries].copy(),
        labels=rows.labels[:n_rows].copy(),
        n_implicit=n_rows,
    )


def stay(table: ParameterTable) -> ParameterTable:
    """Where it is."""
    return table


def on_device(table: ParameterTable) -> ParameterTable:
    """On the GPU, as averages leave it."""
    return gpu_averaging.of_process().copy(table)


def seconds_of(
    kernels: Kernels, rows: ImplicitRows, n_features: int, step: Step, repeats: int, place: Place = stay
) -> float:
    """Median of a walk, on a table that one walk has trained, with rows that the device holds."""
    table = place(new_table(kernels.spec, n_features))
    kernels.run_round(rows, table, step)
    seconds = []
    for seed in range(repeats):
        begin = time.perf_counter()
        tally = kernels.run_round(rows, table, replace(step, seed=seed + 1))
        seconds.append(time.perf_counter() - begin)
        assert tally.is_finite, "diverged"
    return statistics.median(seconds)


@dataclass(frozen=True)
class Speed:
    """Rows per second of all rows, and of the second half of them: the walk, see the module."""

    whole: float
    walk: float


def speed_of(kernels: Kernels, rows: ImplicitRows, n_features: int, step: Step, repeats: int) -> Speed:
    """Of a GPU's kernels on a table that lives there."""
    n_rows = len(rows.labels) // 2
    half = seconds_of(kernels, some(rows, n_rows), n_features, step, repeats, on_device)
    whole = seconds_of(kernels, rows, n_features, step, repeats, on_device)
    return Speed(2 * n_rows / whole, n_rows / max(whole - half, 1e-9))


def bytes_per_row(spec: KernelSpec) -> float:
    """Read and written in the table by a row of N_FIELDS entries, if no two rows shared anything."""
    layout = Layout(spec.optimizer, spec.n_factors)
    lanes = padded_lanes(spec.n_factors) * (1 + (layout.factor_width > layout.lanes))
    return float(click_data.N_FIELDS * (2 * 4 * (lanes + layout.linear_width) + 4))


def copy_bandwidth(n_bytes: int) -> float:
    """Bytes read and written per second by copies within device memory."""
    import cupy

    source, target = cupy.cuda.alloc(n_bytes), cupy.cuda.alloc(n_bytes)
    source.memset(1, n_bytes)
    stream = cupy.cuda.Stream(non_blocking=True)
    best = 0.0
    for _ in range(10):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        target.copy_from_device_async(source, n_bytes, stream)
        end.record(stream)
        end.synchronize()
        best = max(best, 2 * n_bytes / (cupy.cuda.get_elapsed_time(begin, end) / 1e3))
    return best


def print_torch(sizes: Sizes) -> dict[str, float]:
    """PyTorch's ways on the first of the k and hash_bits; the fastest."""
    k, bits = sizes.factors[0], sizes.hash_bits[0]
    print(f"\nPyTorch on the same GPU, Adagrad, k = {k}, hash_bits = {bits}; rows per second\n")
    if not torch_machine.is_usable():
        print("PyTorch is not installed, or finds no GPU")
        return {}
    import torch

    hashes = click_data.hashed_fields(sizes.rows)
    indices, n_features = click_data.compact(hashes, bits)
    rows = click_data.as_rows(indices, click_data.labels_for(sizes.rows))
    table_row(f"torch {torch.__version__}", *(f"batches of {batch}" for batch in torch_machine.BATCHES))
    table_row(*["---"] * (1 + len(torch_machine.BATCHES)))
    best = 0.0
    for way in torch_machine.WAYS:
        speeds = [torch_machine.rows_per_second(rows, n_features, k, way, batch, 20) for batch in torch_machine.BATCHES]
        table_row(f"nn.{way}", *map(millions, speeds))
        best = max(best, *speeds)
        torch.cuda.empty_cache()
    return {"PyTorch": best} if (k, bits) == (16, 22) else {}


def table_row(*cells: str) -> None:
    """One line of a Markdown table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def millions(rate: float | None) -> str:
    """Rows per second in a cell."""
    return "-" if rate is None else f"{rate / 1e6:.2f} M"


def print_speeds(sizes: Sizes, bandwidth: float) -> dict[str, float]:
    """Speeds for every k and hash_bits; returns what the bars are about."""
    hashes, labels = click_data.hashed_fields(sizes.rows), click_data.labels_for(sizes.rows)
    found: dict[str, float] = {}
    print(f"\n{sizes.rows} rows of {click_data.N_FIELDS} entries; millions of rows per second\n")
    head = ("k", "hash_bits", "features", "optimizer", "all rows", "walk", "share of copy bandwidth")
    table_row(*head, "CPU, all cores", "walk / CPU", "deterministic")
    table_row(*["---"] * 10)
    for k in sizes.factors:
        for bits in sizes.hash_bits:
            indices, n_features = click_data.compact(hashes, bits)
            rows = click_data.as_rows(indices, labels)
            few = some(rows, min(sizes.rows, 200_000))
            for optimizer in sizes.optimizers[:2]:
                spec = KernelSpec("logistic", optimizer, k)
                speed = speed_of(cupy_gpu.compile_kernels(spec), rows, n_features, STEP, sizes.repeats)
                cores = replace(STEP, n_threads=os.cpu_count() or 1)
                cpu = len(few.labels) / seconds_of(numba_cpu.compile_kernels(spec), few, n_features, cores, 1)
                careful = replace(STEP, deterministic=True)
                alone = some(rows, min(sizes.rows, 20_000))
                slow = len(alone.labels) / seconds_of(cupy_gpu.compile_kernels(spec), alone, n_features, careful, 1)
                table_row(
                    *(str(k), str(bits), f"{n_features:,}", optimizer, millions(speed.whole), millions(speed.walk)),
                    *(f"{speed.walk * bytes_per_row(spec) / bandwidth:.0%}", millions(cpu)),
                    *(f"{speed.walk / cpu:.0f}x", millions(slow)),
                )
                if (k, bits, optimizer) == (16, 22, "adagrad-row"):
                    found["rows/s"] = speed.walk
    return found


def print_learning(sizes: Sizes) -> dict[str, float]:
    """Log loss per epoch beside the CPU's, and the largest difference of logits of one table."""
    n_rows = sizes.learning_rows
    hashes = click_data.hashed_fields(n_rows * 5 // 4)
    indices, n_features = click_data.compact(hashes, 20)
    labels = click_data.planted_labels(hashes)
    train = click_data.as_rows(indices[:n_rows], labels[:n_rows])
    held_out = click_data.as_rows(indices[n_rows:], labels[n_rows:])
    found = {"log loss": 0.0, "logits": 0.0}
    print(f"\nlog loss of {len(held_out.labels)} held-out rows after each epoch of {n_rows}\n")
    table_row("optimizer", "epoch", "CPU", "GPU", "GPU, bf16", "GPU, deterministic", "largest difference of logits")
    table_row(*["---"] * 7)
    gpu = cupy_gpu.compile_kernels
    for optimizer in sizes.optimizers:
        spec = KernelSpec("logistic", optimizer, 16)
        ways = [(numba_cpu.compile_kernels(spec), STEP), (gpu(spec), STEP)]
        ways.append((gpu(replace(spec, factor_dtype="bfloat16")), STEP))
        if optimizer == sizes.optimizers[0]:  # a warp takes minutes for what the device does in a second
            ways.append((gpu(spec), replace(STEP, deterministic=True)))
        tables = [new_table(spec, n_features) for _ in ways]
        for epoch in range(sizes.epochs):
            losses = []
            for (kernels, step), table in zip(ways, tables, strict=True):
                kernels.run_round(train, table, replace(step, seed=epoch))
                losses.append(log_loss(ways[0][0].scores(held_out, table), held_out.labels))
            logits = np.abs(ways[1][0].scores(held_out, tables[0]) - ways[0][0].scores(held_out, tables[0])).max()
            cells = [f"{loss:.4f}" for loss in losses] + ["-"] * (4 - len(losses))
            table_row(optimizer, str(epoch + 1), *cells, f"{logits:.1e}")
            found["logits"] = max(found["logits"], float(logits))
            found["log loss"] = max(found["log loss"], abs(losses[1] - losses[0]))
    return found


def log_loss(logits: Any, labels: Any) -> float:
    """Mean, in nats."""
    signed = np.where(labels > 0.5, logits, -logits).astype(np.float64)
    return float(np.logaddexp(0.0, -signed).mean())


def replicas_of(indices: Any, labels: Any, n_replicas: int) -> list[list[SparsePartition]]:
    """The rows dealt out, as partitions of a job have them: each with the features that it touches."""
    result = []
    for part, its_labels in zip(np.array_split(indices, n_replicas), np.array_split(labels, n_replicas), strict=True):
        features, local = np.unique(part, return_inverse=True)
        rows = click_data.as_rows(local.reshape(part.shape).astype(np.uint32), np.ascontiguousarray(its_labels))
        result.append(
            [
                SparsePartition(
                    rows.indptr, rows.indices, rows.values, rows.labels, rows.weights,
                    features.astype(np.uint32), len(features), rows.n_implicit,
                )
            ]
        )  # fmt: skip
    return result


def print_rounds(sizes: Sizes) -> None:
    """A round of a job on one device: its replicas one after the other, and their average."""
    bits, k = max(bits for bits in sizes.hash_bits if bits <= 22), 16 if 16 in sizes.factors else sizes.factors[0]
    hashes = click_data.hashed_fields(sizes.rows)
    indices, n_features = click_data.compact(hashes, bits)
    replicas = replicas_of(indices, click_data.planted_labels(hashes), sizes.n_replicas)
    spec = KernelSpec("logistic", "adagrad-row", k)
    print(f"\na round: {sizes.n_replicas} replicas, {sizes.rows} rows, {n_features} features, k = {k}; medians\n")
    table_row("rows walked by", "averages made by", "round, s", "walks, s", "the rest, s", "rows/s of the round")
    table_row(*["---"] * 6)
    as_it_is = BACKENDS["cupy"]
    for backend, averaging in (("cupy", gpu_averaging.of_process), ("cupy", OnProcessors), ("numba", OnProcessors)):
        if backend == "cupy":
            BACKENDS[backend] = replace(as_it_is, averaging=averaging)
        work = rounds.Work(spec, MergeRule("weighted"), STEP, sizes.n_replicas, backend)
        block = rounds.Block(0, new_table(spec, n_features))
        times = []
        for number in range(sizes.repeats + 2):
            step = replace(STEP, seed=number * sizes.n_replicas)
            begin = time.perf_counter()
            push = rounds.train_replicas(replace(work, step=step), 0, range(1), [block], replicas)
            block = rounds.merge_block(work, block, [push])
            times.append((time.perf_counter() - begin, sum(report.seconds for report in push.reports)))
        whole, walks = (statistics.median(each) for each in zip(*times[2:], strict=True))
        names = "one core" if backend == "numba" else "GPU", "GPU" if averaging is not OnProcessors else "one core"
        table_row(*names, *(f"{each:.4f}" for each in (whole, walks, whole - walks)), millions(sizes.rows / whole))
    BACKENDS["cupy"] = as_it_is


def print_bars(found: dict[str, float]) -> None:
    """What was promised, and what was found."""
    bars = [
        ("rows/s", f"at least {BAR_ROWS / 1e6:.0f} M", lambda x: x >= BAR_ROWS),
        ("times PyTorch", f"at least {BAR_TORCH:.0f}", lambda x: x >= BAR_TORCH),
        ("log loss", f"within {BAR_LOSS} of the CPU", lambda x: x <= BAR_LOSS),
        ("logits", f"equal to {BAR_LOGIT}", lambda x: x <= BAR_LOGIT),
    ]
    print("\nbars (rows/s beside PyTorch: k = 16, hash_bits = 22, row-wise AdaGrad)\n")
    table_row("bar", "wanted", "found", "met")
    table_row(*["---"] * 4)
    for name, wanted, is_met in bars:
        value = found.get(name, float("nan"))
        table_row(name, wanted, f"{value:.4g}", "not run" if value != value else "yes" if is_met(value) else "no")


@contextlib.contextmanager
def also_written_to(path: str) -> Iterator[None]:
    """What is printed goes to a file too."""
    if not path:
        yield
        return
    with Path(path).open("w", encoding="utf-8") as file:
        screen = sys.stdout

        class Both:
            def write(self, text: str) -> int:
                screen.write(text)
                return file.write(text)

            def flush(self) -> None:
                screen.flush()
                file.flush()

        with contextlib.redirect_stdout(Both()):  # type: ignore[type-var]
            yield


PARTS = ("torch", "speeds", "rounds", "learning")


def run(sizes: Sizes, device: str, bandwidth: float, parts: Sequence[str] = PARTS) -> None:
    """Prints the parts, and what they say of the bars."""
    print(machine_line())
    print(f"{device}; {datetime.date.today()}; copies within its memory: {bandwidth / 1e9:.0f} GB/s read and written")
    found: dict[str, float] = {}
    if "torch" in parts:
        found |= print_torch(sizes)
    if "speeds" in parts:
        found |= print_speeds(sizes, bandwidth)
    if "rounds" in parts:
        print_rounds(sizes)
    if "learning" in parts:
        found |= print_learning(sizes)
    if "PyTorch" in found and "rows/s" in found:
        found["times PyTorch"] = found["rows/s"] / found["PyTorch"]
    print_bars(found)


def device_line() -> str:
    """The device with its driver."""
    import cupy

    name, _ = cupy_device.availability()
    runtime = cupy.cuda.runtime
    return f"{name}, driver {runtime.driverGetVersion()}, CUDA {runtime.runtimeGetVersion()}, CuPy {cupy.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given again")
    for name in ("factors", "hash-bits"):
        parser.add_argument(f"--{name}", type=int, nargs="+", help="only these")
    parser.add_argument("--optimizers", nargs="+", help="only these")
    for name in ("rows", "learning-rows", "epochs", "repeats"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--output", default="", help="write what is printed to this file too")
    arguments = parser.parse_args()
    name, reason = cupy_device.availability()
    if not name:
        print(f"no GPU, nothing measured: {reason}")
        return
    chosen = {each.name: getattr(arguments, each.name, None) for each in fields(Sizes)}
    sizes = replace(
        SMOKE if arguments.smoke else FULL,
        **{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items() if value},
    )
    with also_written_to(arguments.output):
        run(sizes, device_line(), copy_bandwidth(sizes.copied), arguments.only or PARTS)


if __name__ == "__main__":
    main()
