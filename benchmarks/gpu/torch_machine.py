"""A factorization machine of PyTorch's sparse layers on the GPU: what dfm's kernels are measured beside."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import numpy as np
from click_data import N_FIELDS, ImplicitRows

WAYS = ("Embedding", "EmbeddingBag")
BATCHES = (8192, 65536)


def logits_of(way: str, n_features: int, k: int) -> tuple[Any, list[Any]]:
    """A factorization machine of PyTorch's sparse layers on the GPU: its function of ids int64[rows, fields], and its
    parameters.

    "Embedding" looks w and V up in one table; "EmbeddingBag" sums w and V in bags, and looks V up once more for Σ V².
    """
    import torch

    bias = torch.zeros(1, requires_grad=True, device="cuda")
    if way == "Embedding":
        both: Any = torch.nn.Embedding(n_features, k + 1, sparse=True, device="cuda")
        torch.nn.init.normal_(both.weight, std=0.01)

        def logits(ids: Any) -> Any:
            rows = both(ids)
            factors = rows[..., 1:]
            return bias + rows[..., 0].sum(1) + 0.5 * (factors.sum(1) ** 2 - (factors**2).sum(1)).sum(1)

        return logits, [bias, *both.parameters()]
    linear: Any = torch.nn.EmbeddingBag(n_features, 1, mode="sum", sparse=True, device="cuda")
    bag: Any = torch.nn.EmbeddingBag(n_features, k, mode="sum", sparse=True, device="cuda")
    torch.nn.init.normal_(bag.weight, std=0.01)

    def bagged(ids: Any) -> Any:
        squares = torch.nn.functional.embedding(ids, bag.weight, sparse=True).square().sum((1, 2))
        return bias + linear(ids)[:, 0] + 0.5 * (bag(ids).square().sum(1) - squares)

    return bagged, [bias, *linear.parameters(), *bag.parameters()]


def rows_per_second(rows: ImplicitRows, n_features: int, k: int, way: str, batch: int, n_steps: int) -> float:
    """Rows that PyTorch's Adagrad trains on per second, in batches that wait on the GPU."""
    import torch

    logits, parameters = logits_of(way, n_features, k)
    optimizer = torch.optim.Adagrad(parameters, lr=0.05)
    ids = torch.from_numpy(rows.indices.reshape(-1, N_FIELDS).astype(np.int64)).cuda()
    labels = torch.from_numpy(rows.labels).cuda()
    batch = min(batch, len(labels))

    def step(number: int) -> None:
        start = number * batch % (len(labels) - batch + 1)
        chosen = slice(start, start + batch)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits(ids[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for number in range(3):
        step(number)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for number in range(n_steps):
        step(number)
    torch.cuda.synchronize()
    return n_steps * batch / (time.perf_counter() - begin)


def is_usable() -> bool:
    """Whether PyTorch is there and finds the GPU."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
