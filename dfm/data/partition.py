"""The rows that training and scoring walk: a checked, compacted sparse matrix with labels and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfm.compilation import compiled
from dfm.data.hashed_rows import no_ids
from dfm.errors import DataError
from dfm.storage.arrays import read_arrays, write_arrays
from dfm.storage.transfers import checked_on_its_way


@checked_on_its_way("rows")
@dataclass(frozen=True, slots=True)
class SparsePartition:
    """Rows of one replica's slice (or of a validation shard), with the features that they touch.

    indptr int64[n_rows + 1]; indices uint32[n_entries], positions in `features`; rows before `n_implicit` have value 1
    in every entry and store none, the rest store `values` float32[n_entries - indptr[n_implicit]]; labels
    float32[n_rows]; weights float32[n_rows], or empty where all are 1; features uint32[n_features], rows of the
    parameter table, ascending; the first `n_factored` of them own factors; fields uint16[n_features], the field of each
    feature, or empty where nobody asks for it; ends uint16[n_rows * n_groups], where in a row the entries of each group
    of fields end, or empty where they do not stand group by group; group_ids uint64[n_rows], as in the hashed rows.

    No index stands twice in a row: values of colliding entries were summed, since a feature has no pair with itself.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    features: NDArray[np.uint32]
    n_factored: int
    n_implicit: int
    fields: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    ends: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    group_ids: NDArray[np.uint64] = field(default_factory=no_ids)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def total_weight(self) -> float:
        """Sum of the rows' weights."""
        return float(self.weights.sum(dtype=np.float64)) if self.weights.size else float(self.n_rows)

    def occurrences(self) -> NDArray[np.int64]:
        """Occurrences of each feature in the rows: int64[n_features]."""
        return np.bincount(self.indices, minlength=len(self.features))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, in memory or mapped."""
        return sum(array.nbytes for array in self._arrays().values())

    def __sizeof__(self) -> int:
        """Bytes that count as memory: a mapped file does not, the system can drop its pages at any time."""
        return 1000 + sum(array.nbytes for array in self._arrays().values() if not _is_mapped(array))

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if isinstance(getattr(self, entry.name), np.ndarray)
        }

    def save(self, path: Path) -> None:
        """Write to one file, atomically."""
        write_arrays(path, self._arrays(), {"n_factored": str(self.n_factored), "n_implicit": str(self.n_implicit)})

    @classmethod
    def open(cls, path: Path, just_saved: bool = False) -> SparsePartition:
        """Map a saved partition; its arrays are read-only. just_saved: its checksums need not be compared."""
        arrays, metadata = read_arrays(path, just_saved)
        return cls(**arrays, n_factored=int(metadata["n_factored"]), n_implicit=int(metadata["n_implicit"]))

    def check(self) -> None:
        """DataError unless every offset and index is in range; training reads memory by them without looking."""
        n_rows, n_entries = self.n_rows, len(self.indices)
        sound = (
            len(self.indptr) == n_rows + 1
            and self.indptr[0] == 0
            and self.indptr[-1] == n_entries
            and bool(np.all(self.indptr[1:] >= self.indptr[:-1]))
            and 0 <= self.n_implicit <= n_rows
            and len(self.values) == n_entries - self.indptr[self.n_implicit]
            and (n_entries == 0 or int(self.indices.max()) < len(self.features))
            and len(self.weights) in (0, n_rows)
            and len(self.group_ids) in (0, n_rows)
            and 0 <= self.n_factored <= len(self.features)
            and len(self.fields) in (0, len(self.features))
        )
        if not sound:
            raise DataError(
                "a partition's offsets or indices are out of range; delete the partition cache and run again"
            )


def _is_mapped(array: NDArray[np.generic]) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return isinstance(base, memoryview) and isinstance(base.obj, np.memmap)


_LONGEST_BY_GROUP = np.iinfo(np.uint16).max
"""Entries of a row up to which `ends` can count."""


def by_group(partition: SparsePartition, groups: Sequence[int]) -> SparsePartition:
    """The partition with the entries of each row group by group; in a group they stay in their order.

    groups: the group of each field; none: the partition as it is. Kernels then need not look the group of each feature
    up, and rows that come so may be walked group by group: see the decision record on groups of fields.
    """
    if not groups or int(np.diff(partition.indptr).max(initial=0)) > _LONGEST_BY_GROUP:
        return partition
    n_groups = 1 + max(groups)
    of_feature = np.array(groups, np.uint16)[partition.fields]
    indices, values = np.empty_like(partition.indices), np.empty_like(partition.values)
    ends = np.zeros(partition.n_rows * n_groups, np.uint16)
    _write_by_group(
        (partition.indptr, partition.indices, partition.values, partition.n_implicit),
        of_feature,
        (indices, values, ends.reshape(-1, n_groups)),
    )
    return replace(partition, indices=indices, values=values, ends=ends)


@compiled
def _write_by_group(source, group_of, target):  # type: ignore[no-untyped-def]
    """Copies entries, group by group within each row. source: indptr, indices, values, n_implicit; group_of
    uint16[n_features]; target: indices, values, and the ends of the groups, uint16[n_rows, n_groups] of zeros.
    """
    indptr, indices, values, n_implicit = source
    out_indices, out_values, ends = target
    places = np.zeros(ends.shape[1] + 1, np.int64)
    skipped = indptr[n_implicit]
    for row in range(ends.shape[0]):
        start, stop = indptr[row], indptr[row + 1]
        places[:] = 0
        for i in range(start, stop):
            places[group_of[indices[i]] + 1] += 1
        for group in range(ends.shape[1]):
            places[group + 1] += places[group]
            ends[row, group] = places[group + 1]
        for i in range(start, stop):
            group = group_of[indices[i]]
            at = start + places[group]
            places[group] += 1
            out_indices[at] = indices[i]
            if row >= n_implicit:
                out_values[at - skipped] = values[i - skipped]
