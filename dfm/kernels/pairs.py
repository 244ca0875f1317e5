"""Pairs of rows: a clicked and an unclicked one of the same group, walked as if they were one row.

The walk of a pair is that of a row with two values to an entry, x of the clicked and z of the unclicked row, over the
features of both. Its score is the difference of their scores, whose slope by w_j is x_j - z_j: what is equal in both
rows cancels (Rendle et al. 2009; pairs within a factorization machine: Bayer 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.kernels.contract import RowsLike
from dfm.kernels.row_order import BLOCK_ROWS, row_blocks, split_mix
from dfm.storage.arrays import read_only

MADE_AT_A_TIME = 32 * BLOCK_ROWS
"""Pairs whose entries are laid out before they are walked: few enough to stay in a cache."""


@dataclass(frozen=True)
class PairRows:
    """Rows as kernels of pairs walk them: values float32[2 * n_entries] are x and z of each entry, labels all 1."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    fields: NDArray[np.uint16]
    ends: NDArray[np.uint16]
    group_ids: NDArray[np.uint64]
    n_implicit: int = 0


def partners(
    groups: NDArray[np.uint64], labels: NDArray[np.float32], weights: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Clicked rows that have an unclicked one in their group, int64[n]; unclicked rows by group; and where among these
    the ones of each clicked row's group begin and end. Rows of weight 0 are in no pair.

    ValueError where the rows do not know their groups.
    """
    if len(groups) != len(labels):
        raise ValueError(f"{len(groups)} group ids for {len(labels)} rows; pairs are made within groups, pass one each")
    counts = weights > 0 if weights.size else np.ones(len(labels), np.bool_)
    clicked, unclicked = np.flatnonzero((labels > 0) & counts), np.flatnonzero((labels == 0) & counts)
    unclicked = unclicked[np.argsort(groups[unclicked], kind="stable")]
    theirs, wanted = groups[unclicked], groups[clicked]
    first, last = (np.searchsorted(theirs, wanted, side).astype(np.int64) for side in ("left", "right"))
    has_one = first < last
    return clicked[has_one], unclicked, first[has_one], last[has_one]


@dataclass(frozen=True)
class PairCount:
    """Pairs that a walk over some rows makes, and rows that may be in one."""

    pairs: int = 0
    rows: int = 0

    def __add__(self, other: PairCount) -> PairCount:
        return PairCount(self.pairs + other.pairs, self.rows + other.rows)

    @classmethod
    def of(cls, rows: RowsLike) -> PairCount:
        """The count of a partition."""
        clicked, unclicked, _, _ = partners(rows.group_ids, rows.labels, rows.weights)
        met = np.isin(rows.group_ids[unclicked], rows.group_ids[clicked])
        return cls(len(clicked), len(clicked) + int(met.sum()))


def sampled_pairs(
    groups: NDArray[np.uint64], labels: NDArray[np.float32], weights: NDArray[np.float32], seed: int
) -> NDArray[np.int64]:
    """int64[n_pairs, 2]: each clicked row of `partners` and an unclicked one, which seed and row number decide."""
    clicked, unclicked, first, last = partners(groups, labels, weights)
    bits = split_mix(split_mix(np.full(1, seed % 2**64, np.uint64)) ^ (clicked.astype(np.uint64) + np.uint64(1)))
    half = np.uint64(32)
    number = ((bits >> half) * (last - first).astype(np.uint64)) >> half
    return np.stack([clicked, unclicked[first + number.astype(np.int64)]], axis=1)


def pair_rows(rows: RowsLike, pairs: NDArray[np.int64], n_features: int, seed: int) -> Iterator[PairRows]:
    """The pairs block by block, in the order that `seed` decides; parts of at most MADE_AT_A_TIME of them."""
    blocks = row_blocks(len(pairs), len(pairs), seed)
    order = np.concatenate([np.arange(first, last) for first, last in blocks]) if len(blocks) else np.arange(0)
    for start in range(0, len(pairs), MADE_AT_A_TIME):
        yield laid_out(rows, pairs[order[start : start + MADE_AT_A_TIME]], n_features)


def laid_out(rows: RowsLike, pairs: NDArray[np.int64], n_features: int) -> PairRows:
    """The entries of some pairs, which weigh what their clicked rows weigh."""
    lengths = np.diff(rows.indptr)
    most = int(lengths[pairs].sum())
    indptr, indices = np.zeros(len(pairs) + 1, np.int64), np.empty(most, np.uint32)
    values, stamp = np.zeros((most, 2), np.float32), np.full(n_features, -1, np.int64)
    given = read_only(rows.indptr), read_only(rows.indices), read_only(rows.values), int(rows.n_implicit)
    _write_pairs(given, np.ascontiguousarray(pairs), stamp, (indptr, indices, values))
    n_entries, weights = int(indptr[-1]), rows.weights[pairs[:, 0]] if rows.weights.size else rows.weights
    ones = np.ones(len(pairs), np.float32)
    both = values[:n_entries].reshape(-1)
    return PairRows(indptr, indices[:n_entries], both, ones, weights, rows.fields, rows.ends[:0], rows.group_ids[:0])


@compiled
def _write_pairs(rows, pairs, stamp, target):  # type: ignore[no-untyped-def]
    """Writes the entries of pairs int64[n, 2]: those of the first row, then what the second one has besides.

    rows: indptr, indices, values, n_implicit; target: indptr, indices, and values float32[n_entries, 2] of zeros. stamp
    int64[n_features], -1 at first: the last entry of a feature.
    """
    indptr, indices, values, n_implicit = rows
    out_indptr, out_indices, out_values = target
    skipped, at = indptr[n_implicit], 0
    for pair in range(pairs.shape[0]):
        begin = at
        for side in range(2):
            row = pairs[pair, side]
            for i in range(indptr[row], indptr[row + 1]):
                feature = indices[i]
                if stamp[feature] < begin:
                    stamp[feature], out_indices[at] = at, feature
                    at += 1
                out_values[stamp[feature], side] = values[i - skipped] if row >= n_implicit else np.float32(1)
        out_indptr[pair + 1] = at
