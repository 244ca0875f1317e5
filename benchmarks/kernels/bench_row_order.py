"""Does the order of rows or sharing a table between threads cost accuracy?

    python benchmarks/kernels/bench_row_order.py [--smoke]

Loss on held-out rows after each epoch, k = 8, AdaGrad: mean and standard deviation over seeds, and rows per second.
"Blocks" is what dfm does: rows are shuffled once, then row blocks are walked in a new order each epoch. "Full" draws a
new order of all rows for every epoch (the copy that this takes is not timed). "Stored" never changes the order.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import click_data

from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.losses import sigmoid
from dfm.kernels.row_order import row_blocks
from dfm.kernels.tables import InitialValues, Layout, initialise

SPEC = KernelSpec("logistic", "adagrad", 8)
Order = Callable[[int, int], NDArray[np.int64]]


def log_loss(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Mean, in nats."""
    p = np.clip(sigmoid(logits).astype(float), 1e-12, 1 - 1e-12)
    return float(-np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)))


def full(n_rows: int, seed: int) -> NDArray[np.int64]:
    """A new order of all rows."""
    return np.random.default_rng(seed).permutation(n_rows)


def stored(n_rows: int, _seed: int) -> NDArray[np.int64]:
    """The order of storage."""
    return np.arange(n_rows)


def blocks(n_rows: int, seed: int) -> NDArray[np.int64]:
    """A new order of blocks."""
    return np.concatenate([np.arange(first, last) for first, last in row_blocks(n_rows, n_rows, seed)])


def learn(
    train: tuple[NDArray[np.uint32], NDArray[np.float32]],
    test: tuple[NDArray[np.uint32], NDArray[np.float32]],
    n_features: int,
    order: Order | None,
    seed: int,
    n_epochs: int,
    n_threads: int = 1,
) -> tuple[list[float], float]:
    """Held-out loss after each epoch, and seconds of training. `order` None: as run_round walks by itself."""
    kernels = compile_kernels(SPEC)
    layout = Layout(SPEC.optimizer, SPEC.n_factors)
    table = initialise(layout, np.arange(n_features, dtype=np.uint32), n_features, InitialValues(seed))
    indices, labels = train
    test_rows, losses, seconds = click_data.as_rows(*test), [], 0.0
    for epoch in range(n_epochs):
        number = 1000 * seed + epoch
        if order is not None:
            chosen = order(len(labels), number)
            # One block order for all epochs undone: rows are laid out so that the walk meets them as chosen.
            walk = blocks(len(labels), 0)
            laid_out = np.empty_like(chosen)
            laid_out[walk] = chosen
            rows = click_data.as_rows(indices[laid_out], labels[laid_out])
        else:
            rows = click_data.as_rows(indices, labels)
        step = Step(0.05, 0.05, 0.03, 0.03, seed=0 if order is not None else number, n_threads=n_threads)
        begin = time.perf_counter()
        kernels.run_round(rows, table, step)
        seconds += time.perf_counter() - begin
        losses.append(log_loss(kernels.scores(test_rows, table), test[1]))
    return losses, seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny inputs: does it still work?")
    smoke = parser.parse_args().smoke
    n_rows, n_test, n_epochs, seeds = (3_000, 500, 2, 2) if smoke else (300_000, 60_000, 4, 5)
    hashes = click_data.hashed_fields(n_rows + n_test)
    labels = click_data.planted_labels(hashes)
    indices, n_features = click_data.compact(hashes, 20)
    train, test = (indices[:n_rows], labels[:n_rows]), (indices[n_rows:], labels[n_rows:])
    base = float(labels.mean())
    print(f"constant prediction: {-base * np.log(base) - (1 - base) * np.log(1 - base):.5f}")
    print("| order | " + " | ".join(f"epoch {epoch + 1}" for epoch in range(n_epochs)) + " | rows/s |")
    print("| :--- |" + " ---: |" * (n_epochs + 1))
    cases: list[tuple[str, Order | None, int]] = [
        ("full", full, 1), ("stored", stored, 1), ("blocks", None, 1), ("blocks, 2 threads", None, 2)
    ]  # fmt: skip
    for name, order, n_threads in cases:
        runs = [learn(train, test, n_features, order, seed, n_epochs, n_threads) for seed in range(seeds)]
        losses = np.array([run[0] for run in runs])
        rate = n_rows * n_epochs / min(run[1] for run in runs)
        cells = [f"{m:.5f} ± {s:.5f}" for m, s in zip(losses.mean(axis=0), losses.std(axis=0), strict=True)]
        print(f"| {name} | " + " | ".join(cells) + f" | {rate / 1e6:.2f} M |", flush=True)


if __name__ == "__main__":
    main()
