"""The order in which an epoch walks the rows of a partition: seeded, block by block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 512
"""Rows between two jumps of the walk: see the decision record on row order."""


def row_blocks(n_rows: int, n_implicit: int, seed: int) -> NDArray[np.int64]:
    """int64[n_blocks, 2]: first and last row of each block of BLOCK_ROWS rows, in the order that `seed` decides.

    Blocks do not straddle `n_implicit`, since a block is walked by one of two loops.
    """
    starts = np.concatenate([np.arange(0, n_implicit, BLOCK_ROWS), np.arange(n_implicit, n_rows, BLOCK_ROWS)])
    stops = np.append(starts, n_rows)[1:]
    numbers = np.arange(1, len(starts) + 1, dtype=np.uint64)
    order = np.argsort(split_mix(split_mix(np.full(1, seed % 2**64, np.uint64)) + numbers), kind="stable")
    return np.stack([starts, stops], axis=1).astype(np.int64)[order]


def split_mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 of uint64[n]: our own, since NumPy does not promise that its generators stay the same."""
    state = state * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
