"""Synthetic click rows: 39 categorical fields with Zipf-like values, the shape of display-advertising logs."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dfm.kernels.contract import Kernels, Step
from dfm.kernels.tables import InitialValues, initialise

N_FIELDS = 39


@dataclass(frozen=True)
class ImplicitRows:
    """Rows of N_FIELDS entries of value 1, with the attributes of a partition."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    n_implicit: int
    fields: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    ends: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))


def hashed_fields(n_rows: int, seed: int = 1) -> NDArray[np.uint32]:
    """uint32[n_rows, N_FIELDS]: 32-bit hashes; cardinalities 3 to 1.5 million, Zipf exponents 0.9 to 1.35."""
    rng = np.random.default_rng(seed)
    cardinalities = np.round(np.geomspace(3, 1.5e6, N_FIELDS)).astype(np.int64)
    exponents = rng.permutation(np.linspace(0.9, 1.35, N_FIELDS))
    hashes, drawn = np.empty((n_rows, N_FIELDS), np.uint32), [rng.random(n_rows) for _ in range(N_FIELDS)]

    def fill(number: int) -> None:
        cumulative = np.cumsum(np.arange(1, cardinalities[number] + 1, dtype=np.float64) ** -exponents[number])
        category = np.searchsorted(cumulative, drawn[number] * cumulative[-1])
        token = np.full(n_rows, number, np.uint64) * np.uint64(0x9E3779B97F4A7C15) + category.astype(np.uint64)
        token = (token ^ (token >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashes[:, number] = (token ^ (token >> np.uint64(29))).astype(np.uint32)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(fill, range(N_FIELDS)))
    return hashes


def labels_for(n_rows: int, seed: int = 2) -> NDArray[np.float32]:
    """float32[n_rows]: a quarter are 1."""
    return (np.random.default_rng(seed).random(n_rows) < 0.25).astype(np.float32)


def planted_labels(hashes: NDArray[np.uint32], seed: int = 3) -> NDArray[np.float32]:
    """float32[n_rows]: drawn from a factorization machine of rank 4 whose parameters are functions of the hashes."""
    rng = np.random.default_rng(seed)
    linear, factors = rng.normal(size=4096) * 0.25, rng.normal(size=(4096, 4)) * 0.16
    buckets = hashes % np.uint32(4096)
    vectors = factors[buckets]
    sums, squares = vectors.sum(axis=1), (vectors**2).sum(axis=(1, 2))
    logits = linear[buckets].sum(axis=1) + 0.5 * ((sums**2).sum(axis=1) - squares) - 1.2
    return (rng.random(len(hashes)) < 1 / (1 + np.exp(-logits))).astype(np.float32)


def compact(hashes: NDArray[np.uint32], hash_bits: int) -> tuple[NDArray[np.uint32], int]:
    """Row numbers in a table sorted by frequency, as a training partition has them; and how many rows it has."""
    indices = hashes & np.uint32((1 << hash_bits) - 1)
    counts = np.bincount(indices.ravel(), minlength=1 << hash_bits)
    used = np.flatnonzero(counts)
    rank = np.zeros(1 << hash_bits, np.uint32)
    rank[used[np.argsort(-counts[used], kind="stable")]] = np.arange(len(used), dtype=np.uint32)
    return rank[indices], len(used)


def seconds_to_compile(kernels: Kernels) -> float:
    """Wall time of the first walk and the first scores of one row, in a process that has compiled nothing yet."""
    indices, spec = np.arange(2, dtype=np.uint32), kernels.spec
    rows, table = as_rows(indices[None], np.ones(1, np.float32)), initialise(spec.layout, indices, 2, InitialValues(1))
    begin = time.perf_counter()
    kernels.run_round(rows, table, Step(1e-3, 1e-3))
    kernels.scores(rows, table)
    return time.perf_counter() - begin


def as_rows(indices: NDArray[np.uint32], labels: NDArray[np.float32]) -> ImplicitRows:
    """Rows of indices uint32[n_rows, n_fields]."""
    n_rows, n_fields = indices.shape
    nothing = np.zeros(0, np.float32)
    return ImplicitRows(
        np.arange(0, n_rows * n_fields + 1, n_fields, dtype=np.int64),
        np.ascontiguousarray(indices).ravel(),
        nothing,
        labels,
        nothing,
        n_rows,
    )
