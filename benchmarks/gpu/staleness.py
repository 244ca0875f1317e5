"""How many rows may be in flight on a GPU: log loss of walks in which that many rows see the same weights. On the CPU.

    python benchmarks/gpu/staleness.py            # some minutes
    python benchmarks/gpu/staleness.py --smoke    # does it still work?

A GPU's rows in flight finish one by one; here all of them see what was there before the first one moved anything, which
is the worst case. Rows by row-wise AdaGrad as `cupy_gpu.cu` has it: accumulators grow entry by entry, hot features and
the bias are summed over a few rows and then stepped. "calm" lets `gpu_plan.calm_rows` choose from the bias, as the
backend does.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
import click_data

from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.gpu.plan import Facts, calm_rows, facts_of
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from dfm.model.metrics import TALLIES

K = 8
SPEC = KernelSpec("logistic", "adagrad-row", K)
L2 = 0.005
MOST_ROWS = 132 * 16 * 2
"""An H200's multiprocessors, the warps that fit each, the rows of a warp between two flushes."""


@njit(nogil=True)
def _slopes(indices, labels, bias, linear, factors, sums, slopes):  # type: ignore[no-untyped-def]
    for row in range(indices.shape[0]):
        score, squares = bias[0], 0.0
        sums[row, :] = 0.0
        for j in indices[row]:
            score += linear[j, 0]
            for f in range(K):
                sums[row, f] += factors[j, f]
                squares += factors[j, f] ** 2
        for f in range(K):
            score += 0.5 * sums[row, f] ** 2
        slopes[row] = 1.0 / (1.0 + np.exp(-(score - 0.5 * squares))) - labels[row]


@njit(nogil=True)
def _gradients(indices, linear, factors, sums, slopes, gradients):  # type: ignore[no-untyped-def]
    """gradients[row, entry]: of w, then of V; from weights that nothing has moved yet."""
    for row in range(indices.shape[0]):
        for entry in range(indices.shape[1]):
            j = indices[row, entry]
            gradients[row, entry, 0] = slopes[row] + L2 * linear[j, 0]
            for f in range(K):
                gradients[row, entry, 1 + f] = factors[j, f] * (L2 - slopes[row]) + slopes[row] * sums[row, f]


@njit(nogil=True)
def _apply(indices, bias, linear, factors, slopes, gradients, n_hot, flush, rate, factor_rate):  # type: ignore[no-untyped-def]
    hot = np.zeros((n_hot + 1, 3 + K))
    for start in range(0, indices.shape[0], flush):
        hot[:] = 0.0
        for row in range(start, min(start + flush, indices.shape[0])):
            hot[n_hot, 0] += slopes[row]
            hot[n_hot, 1] += slopes[row] ** 2
            for entry in range(indices.shape[1]):
                j, g = indices[row, entry], gradients[row, entry]
                mean = 0.0
                for f in range(K):
                    mean += g[1 + f] ** 2 / K
                if j < n_hot:
                    hot[j, 0] += g[0]
                    hot[j, 1] += g[0] ** 2
                    hot[j, 2] += mean
                    for f in range(K):
                        hot[j, 3 + f] += g[1 + f]
                    continue
                linear[j, 1] += g[0] ** 2
                linear[j, 2] += mean
                linear[j, 0] -= rate * g[0] / np.sqrt(linear[j, 1])
                for f in range(K):
                    factors[j, f] -= factor_rate * g[1 + f] / np.sqrt(linear[j, 2])
        bias[1] += hot[n_hot, 1]
        bias[0] -= rate * hot[n_hot, 0] / np.sqrt(bias[1])
        for j in range(n_hot):
            linear[j, 1] += hot[j, 1]
            linear[j, 2] += hot[j, 2]
            linear[j, 0] -= rate * hot[j, 0] / np.sqrt(linear[j, 1])
            for f in range(K):
                factors[j, f] -= factor_rate * hot[j, 3 + f] / np.sqrt(linear[j, 2])


@dataclass
class Walker:
    """Epochs over some rows with `flight` rows at a time; None: as many as are calm."""

    indices: NDArray[np.uint32]
    labels: NDArray[np.float32]
    facts: Facts
    step: Step
    flight: int | None
    seen: int = 0

    def in_flight(self, table: ParameterTable) -> int:
        """Rows of the next batch; a calm one has a warp of rows at least."""
        if self.flight is not None:
            return self.flight
        calm = calm_rows(SPEC, self.step, self.facts, table.bias.tolist(), self.seen)
        return int(min(max(calm, 8), MOST_ROWS))

    def walk(self, table: ParameterTable) -> None:
        """One epoch, in place."""
        at, rates = 0, (self.step.learning_rate, self.step.factor_learning_rate)
        arrays = table.bias, table.linear, table.factors
        while at < len(self.indices):
            rows = self.in_flight(table)
            part, labels = self.indices[at : at + rows], self.labels[at : at + rows]
            sums, slopes = np.zeros((len(part), K)), np.zeros(len(part))
            gradients = np.zeros((*part.shape, 1 + K))
            _slopes(part, labels, *arrays, sums, slopes)
            _gradients(part, *arrays[1:], sums, slopes, gradients)
            _apply(part, *arrays, slopes, gradients, self.facts.n_hot, 1 if rows == 1 else 16, *rates)
            at += len(part)
            self.seen += len(part)


def run(n_rows: int, rates: list[float], flights: list[int | None], n_epochs: int) -> None:
    """Prints a table of validation log losses."""
    hashes = click_data.hashed_fields(n_rows + n_rows // 4)
    labels = click_data.planted_labels(hashes)
    indices, n_features = click_data.compact(hashes, 20)
    train, held_out = slice(0, n_rows), slice(n_rows, None)
    rows = click_data.as_rows(indices[train], labels[train])
    facts = facts_of(rows, n_features - 1)
    scores = compile_kernels(SPEC).scores
    print(f"{n_rows} rows; {facts.n_hot} hot features, crowding {facts.crowding:.1f}; validation log loss per epoch\n")
    print("| rate | rows in flight | " + " | ".join(f"epoch {epoch + 1}" for epoch in range(n_epochs)) + " |")
    print("|---" * (2 + n_epochs) + "|")
    for rate in rates:
        step = Step(rate, rate / 2, L2, L2)
        for flight in flights:
            table = initialise(
                Layout("adagrad-row", K), np.arange(n_features, dtype=np.uint32), n_features, InitialValues(1)
            )
            cells, walker = [], Walker(indices[train], labels[train], facts, step, flight)
            for _ in range(n_epochs):
                walker.walk(table)
                logits = scores(click_data.as_rows(indices[held_out], labels[held_out]), table)
                tally = TALLIES["classification"].from_scores(logits, labels[held_out], None)
                cells.append(f"{tally.metrics()['log_loss']:.4f}")
            print(f"| {rate} | {flight or 'calm'} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    if parser.parse_args().smoke:
        run(3000, [0.05], [1, 64, None], 1)
    else:
        run(1_000_000, [0.05, 0.2], [1, 256, 1024, 4096, 16384, 65536, None], 2)
