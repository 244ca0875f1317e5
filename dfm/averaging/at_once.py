"""The average of replicas whose tables one process holds: changes made, summed and merged in one pass over the table.

A few rows of the table are worked on at a time, so that what lies between the replicas' tables and the average stays
in a core's own cache, and no summands are written. The arithmetic and its order, and so the bytes, are those of
`contribute`, `combine_all` and `finalise`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.contributions import Contribution, fold
from dfm.averaging.merge import columns_of, finish_of, finish_shared, shared_of, shares_of
from dfm.averaging.plain import merge_plain
from dfm.averaging.rules import MergeRule
from dfm.averaging.slices import Touched
from dfm.kernels.blocks import Block
from dfm.kernels.contract import Step
from dfm.kernels.tables import Layout, ParameterTable, aligned_room, allocate, pull
from dfm.storage.arrays import read_only

_WHOLE_LINES = 16
"""Rows of any width take whole cache lines in such numbers."""
_CHUNK_BYTES, _PIECE_BYTES = 1 << 16, 1 << 19
"""Bytes of the rows that are worked on together, and of those that a thread takes at a time."""
_MOST_BYTES = 1 << 28
"""Bytes of the tables of all replicas."""


def is_at_once(rule: MergeRule, layout: Layout) -> bool:
    """Whether replicas can be averaged so: where merging needs their parameters, each with one sum of squared
    gradients, and no more.
    """
    every = [columns_of(rule, layout, block) for block in layout.touched]
    return not rule.outer_momentum and not layout.rule.derives_weights and all(each.is_plain for each in every)


def is_worth_it(table: ParameterTable, touched: Sequence[Touched]) -> bool:
    """Whether it takes less time so and no more memory: where replicas are several, and touch as many features in all
    as the table has. All rows are looked at, where summands are of touched ones alone.
    """
    n_touched, layout = sum(len(each.features) for each in touched), table.layout
    per_feature = sum(layout.width(block) for block in layout.touched)
    return len(touched) > 1 and 4 * per_feature * n_touched <= _MOST_BYTES and table.n_features <= n_touched


@dataclass(frozen=True)
class _Lists:
    """Lists in one array, int64[n] each: their sizes, and where they start."""

    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, sizes: Iterable[int]) -> _Lists:
        found = np.array(list(sizes), np.int64)
        room = _whole_lines(found)
        return cls(found, np.cumsum(room) - room)

    @property
    def n_rows(self) -> int:
        return int(self.starts[-1] + self.sizes[-1])

    def of_replica(self, replica: int) -> slice:
        return slice(int(self.starts[replica]), int(self.starts[replica] + self.sizes[replica]))


def _whole_lines(n_rows: Any) -> Any:
    """So many rows, or a few more, that end where a cache line does."""
    return -(-n_rows // _WHOLE_LINES) * _WHOLE_LINES


class Abreast:
    """Local tables of all replicas of a round, side by side. table: that they begin with; touched: by each of them."""

    def __init__(self, table: ParameterTable, touched: Sequence[Touched]) -> None:
        self._table, self.touched, self._layout = table, touched, table.layout
        self._lists = _Lists.of(len(each.features) for each in touched)
        self._factored = _Lists.of(each.n_factored if self._layout.n_factors else 0 for each in touched)
        self._features = np.empty(self._lists.n_rows, np.uint32)
        self._arrays = {
            block.name: aligned_room((self._lists_of(block).n_rows, self._layout.width(block)))
            for block in self._layout.touched
        }

    def _lists_of(self, block: Block) -> _Lists:
        return self._factored if block.is_vector else self._lists

    def pull(self, replica: int) -> ParameterTable:
        """The local table of a replica, which it trains in place."""
        touched = self.touched[replica]
        self._features[self._lists.of_replica(replica)] = touched.features
        room = {
            name: self._arrays[name][self._lists_of(self._layout.block(name)).of_replica(replica)]
            for name in self._arrays
        }
        return pull([self._table], touched.features, touched.n_factored, room)

    def average(
        self, rule: MergeRule, trained: Sequence[ParameterTable], step: Step, spread: Callable[..., Iterable[Any]]
    ) -> ParameterTable:
        """The table that the trained local ones become. spread: as `map`, on any threads."""
        merged = ParameterTable(
            self._layout,
            {block.name: aligned_room(self._table[block.name].shape) for block in self._layout.blocks},
        )
        pieces = [
            (block, range(first, min(first + n_rows, len(merged[block.name]))))
            for block in reversed(self._layout.touched)
            for n_rows in [max(1, _PIECE_BYTES // (4 * self._layout.width(block) or 1))]
            for first in range(0, len(merged[block.name]), n_rows)
        ]
        for _ in spread(functools.partial(self._merge, rule, merged), pieces):
            pass
        self._merge_shared(rule, trained, step, merged)
        return merged

    def _merge(self, rule: MergeRule, merged: ParameterTable, piece: tuple[Block, range]) -> None:
        """Write some rows of the average."""
        block, rows = piece
        width, lists, n_replicas = self._layout.width(block), self._lists_of(block), len(self.touched)
        n_together = _whole_lines(max(1, min(_CHUNK_BYTES // (4 * width), len(rows))))
        room = (
            np.empty((n_replicas.bit_length(), n_together, width), np.float32),
            np.empty(n_together, np.uint8),
            np.empty(n_replicas, np.int64),
        )
        numbers = shares_of(rule), finish_of(rule, self._layout, block, n_replicas)
        merge_plain(block.lanes)(
            (rows.start, rows.stop),
            (read_only(self._features), self._lists.starts, lists.starts, lists.sizes),
            read_only(self._arrays[block.name]),
            (read_only(self._table[block.name]), merged[block.name]),
            numbers,
            room,
        )

    def _merge_shared(
        self, rule: MergeRule, trained: Sequence[ParameterTable], step: Step, merged: ParameterTable
    ) -> None:
        """Write what belongs to no feature."""
        layout, before = self._layout, self._table
        replicas = zip(self.touched, trained, strict=True)
        each, rows = zip(*(shared_of(rule, touched, before, after) for touched, after in replicas), strict=True)
        shared = {block.name: fold([one[block.name] for one in each], np.add) for block in layout.shared}
        total = Contribution(self._features[:0], {}, shared, fold(rows, operator.add))
        nothing = allocate(layout.stateless, 0, 0)
        for block in layout.shared:
            merged[block.name][...] = before[block.name]
            finish_shared(rule, layout, block, total, step, (merged[block.name], nothing[block.name]))
