"""What a kernel is compared with: the tutorial way in Numba; PyTorch and Vowpal Wabbit where they are installed."""

from __future__ import annotations

import importlib.util
import math
import time
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

RATE = 0.05


@njit
def naive_epoch(indices, labels, bias, linear, factors):  # type: ignore[no-untyped-def]
    """A factorization machine as tutorials write it: float64, V as (k, n), plain SGD. In place; sum of losses.

    indices [n_rows, n_fields]; bias float64[1]; linear float64[n]; factors float64[k, n].
    """
    k = factors.shape[0]
    sums = np.zeros(k)
    total = 0.0
    for row in range(indices.shape[0]):
        score = bias[0]
        for j in indices[row]:
            score += linear[j]
        for f in range(k):
            sums[f] = 0.0
            squares = 0.0
            for j in indices[row]:
                sums[f] += factors[f, j]
                squares += factors[f, j] ** 2
            score += 0.5 * (sums[f] ** 2 - squares)
        signed = score if labels[row] > 0.5 else -score
        total += math.log1p(math.exp(-signed))
        slope = 1.0 / (1.0 + math.exp(-score)) - labels[row]
        bias[0] -= RATE * slope
        for j in indices[row]:
            linear[j] -= RATE * slope
            for f in range(k):
                factors[f, j] -= RATE * slope * (sums[f] - factors[f, j])
    return total


def naive_rows_per_second(indices: NDArray[np.uint32], labels: NDArray[np.float32], n_features: int, k: int) -> float:
    """Of one epoch after compiling and a warm-up."""
    factors = np.random.default_rng(0).normal(0, 0.01, (k, n_features))
    state = np.zeros(1), np.zeros(n_features), factors
    naive_epoch(indices[:50], labels[:50], *state)
    begin = time.perf_counter()
    naive_epoch(indices, labels, *state)
    return len(labels) / (time.perf_counter() - begin)


def torch_rows_per_second(
    indices: NDArray[np.uint32], labels: NDArray[np.float32], n_features: int, k: int
) -> float | None:
    """Of an embedding model with sparse Adagrad in batches of 4096; None where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(1)
    linear: Any = torch.nn.Embedding(n_features, 1, sparse=True)
    factors: Any = torch.nn.Embedding(n_features, k, sparse=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adagrad([*linear.parameters(), *factors.parameters(), bias], lr=RATE)
    rows, targets = torch.from_numpy(indices.astype(np.int64)), torch.from_numpy(labels)
    begin = time.perf_counter()
    for start in range(0, len(labels), 4096):
        batch = rows[start : start + 4096]
        v = factors(batch)
        pairs = 0.5 * (v.sum(1) ** 2 - (v**2).sum(1)).sum(1)
        logits = bias + linear(batch).sum((1, 2)) + pairs
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets[start : start + 4096])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(labels) / (time.perf_counter() - begin)


def wabbit_rows_per_second(
    indices: NDArray[np.uint32], labels: NDArray[np.float32], hash_bits: int, k: int
) -> float | None:
    """Of its low-rank interactions, with parsed examples, so without its parser; None where it is not installed."""
    if importlib.util.find_spec("vowpalwabbit") is None:
        return None
    import vowpalwabbit

    workspace = vowpalwabbit.Workspace(
        f"--quiet --loss_function logistic -b {hash_bits} --lrqfa aa{k} -l {RATE} --power_t 0.5"
    )
    lines = [f"{1 if label else -1} |a " + " ".join(map(str, row)) for row, label in zip(indices, labels, strict=True)]
    examples = [workspace.parse(line) for line in lines]
    begin = time.perf_counter()
    for example in examples:
        workspace.learn(example)
    seconds = time.perf_counter() - begin
    for example in examples:
        workspace.finish_example(example)
    workspace.finish()
    return len(labels) / seconds
