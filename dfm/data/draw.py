"""Rows that are held out by lot: by shard and row number, or by group, so that the same rows are held out wherever they
are read.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.parquet import Batch
from dfm.data.texts import text_hashes

_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

_OF_GROUPS = zlib.crc32(b"groups") << 32
"""The start of the lots of groups."""


@dataclass(frozen=True)
class Draw:
    """Rows whose lot lies in [low, high) are drawn. keeps_drawn: whether those are read, or all the others. group: the
    column whose values draw lots, for all of their rows; empty: each row draws its own.
    """

    low: float
    high: float
    keeps_drawn: bool
    group: str = ""

    def keeps(self, batch: Batch) -> NDArray[np.bool_]:
        """Which rows of a batch are read, bool[n_rows]; the batch has all rows of the file from its first one on."""
        first = sum(batch.shard.row_groups[: batch.row_group]) + batch.first_row
        if self.group:
            found = lots_of(text_hashes(batch.data.column(self.group), self.group), _OF_GROUPS)
        else:
            found = lots(batch.shard.place, first, batch.data.num_rows)
        drawn = (found >= self.low) & (found < self.high)
        return drawn if self.keeps_drawn else ~drawn


def sampled(data: pa.RecordBatch, share: float, place: str) -> pa.RecordBatch:
    """About so large a share of the rows, drawn by their place; at least one."""
    if share >= 1.0 or not data.num_rows:
        return data
    seed = hashlib.sha256(f"{place}\0rows".encode()).digest()
    kept = max(1, round(share * data.num_rows))
    order = np.random.default_rng(int.from_bytes(seed[:8], "little")).permutation(data.num_rows)
    return data.take(pa.array(np.sort(order[:kept])))


@dataclass(frozen=True)
class Sampling:
    """The share of the negative rows that is kept, by lot."""

    share: float
    seed: int

    def keeps(self, batch: Batch, negative: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which rows of a batch stay, bool[n_rows]; `negative` bool[n_rows] says which may have to go."""
        first = sum(batch.shard.row_groups[: batch.row_group]) + batch.first_row
        places = np.arange(batch.data.num_rows) if batch.kept is None else batch.kept
        found = lots(f"{batch.shard.place} negatives {self.seed}", first, int(places.max(initial=-1)) + 1)[places]
        return ~negative | (found < self.share)


def lots(place: str, first: int, n_rows: int) -> NDArray[np.float64]:
    """A lot in [0, 1) for each of so many rows of a place (`Shard.place`) from row `first` on, float64[n_rows].

    By splitmix64 (Steele, Lea and Flood 2014) of the row's number and the place.
    """
    return lots_of(np.arange(first, first + n_rows, dtype=np.uint64), zlib.crc32(place.encode()) << 32)


def lots_of(numbers: NDArray[np.uint64], start: int) -> NDArray[np.float64]:
    """A lot in [0, 1) for each number, float64[n], by splitmix64; another one with another start in [0, 2**64)."""
    with np.errstate(over="ignore"):
        state = (numbers ^ np.uint64(start)) * _GOLDEN + _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * _FIRST
        state = (state ^ (state >> np.uint64(27))) * _SECOND
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
