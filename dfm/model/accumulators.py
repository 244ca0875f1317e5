"""The optimizer's memory in a few numbers: how fast its sums of squared slopes grew.

AdaGrad steps ever more carefully where it has seen much: its accumulator G says how much. To keep G would double a
model, and is not needed: in an epoch G of a feature that was seen n times grows by n times a number that all features
of its column share (to a few percent, see the decision record on what a warm start remembers). So a model keeps that
number for each column, and training that goes on from it makes accumulators of it again.

Training that goes on from a model begins with G_1 = G_0 + 3/4 of that κ n (less the decay), so that a chain of nights
that walk an epoch each adds up to four of them at most. G_1 is no work of its own epochs, and κ is what was inherited
and what an epoch added (summed over the features of a column, n their entries; e: epochs that the published parameters
walked, which is a fraction where they lie within the first one):

    κ n = (G_1 - G_0) (3/4)^(c - 1) + (G - G_1) / max(e, 1/8)        c = min(8 e, 1)

Only what training added is brought to one epoch. To divide all of G - G_0 by e would divide what was inherited once
more every night: it is forgotten where e is above 1, and grows without end where it is below. Of a fraction of an epoch
the growth is scaled up, as all of today's rows are in n, but eightfold at most: c is the share of an epoch that is told
in this way. Where that is none, nothing was added, and the weights are those of yesterday: so is what is known of them,
and the quarter that made room for a night's growth comes back.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.data.vocabulary import Vocabulary
from dfm.kernels.blocks import Block
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.tables import Floats, Layout, ParameterTable

_DIGITS = 6
"""Significant digits of a number that a model keeps."""
_LEAST_WALKED = 1 / 8
"""Epochs from which on what was walked tells the growth of one."""
REMEMBERED = 0.75
"""Share of what accumulators grew by in an epoch that is handed on where nothing is forgotten."""


@dataclass(frozen=True)
class Known:
    """Features of a table that an earlier model had: rows int64[n] of the table, and of the earlier model's vocabulary
    counts int64[n] and fields uint16[n].
    """

    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    fields: NDArray[np.uint16]


@dataclass(frozen=True)
class Growth:
    """The growth of accumulators in an epoch.

    by_field: of each block whose rows belong to features, for each of its accumulators: growth per entry of a feature,
    by field. shared: of the other blocks, for each of their accumulators: growth in all.
    """

    optimizer: str
    by_field: Mapping[str, Sequence[Sequence[float]]]
    shared: Mapping[str, Sequence[float]]

    @classmethod
    def of(
        cls,
        tables: Sequence[ParameterTable],
        vocabulary: Vocabulary,
        initial: float,
        n_epochs: float,
        begun: Growth | None = None,
    ) -> Growth | None:
        """The growth to hand on of a table, given as consecutive parts of its rows: what its accumulators began with
        beyond `initial`, and what an epoch added (see the module).

        n_epochs: that made it of what it began with, 0.0 or more. begun: `handed_on` of the earlier model; None without
        one. None where the optimizer keeps no sums of squared slopes beside the weights.
        """
        layout = tables[0].layout
        if not _has_sums(layout.optimizer):
            return None
        by_field, shared = dict[str, list[list[float]]](), dict[str, list[float]]()
        for block in layout.blocks:
            start = initial * block.accumulator
            if block.is_shared:
                totals = [_grown(part, start) for part in _accumulators(tables[0], block)]
                first = (begun.shared if begun else {}).get(block.name, ())
                found = _told([part.mean() if part.size else 0.0 for part in totals], first, n_epochs)
                shared[block.name] = [_short(each) for each in found]
                continue
            totals = [
                np.concatenate([_grown(part, start) for part in parts])
                for parts in zip(*(list(_accumulators(table, block)) for table in tables), strict=True)
            ]
            starts = (begun.by_field if begun else {}).get(block.name, ())
            by_field[block.name] = [
                [_short(each) for each in fields]
                for fields in _told([_per_entry(total, vocabulary) for total in totals], starts, n_epochs)
            ]
        return cls(layout.optimizer, by_field, shared)

    def handed_on(self, layout: Layout, vocabulary: Vocabulary, known: Known, share: float) -> Growth:
        """The growth, by entry of a vocabulary, that accumulators begin with once a share of this one is added."""
        by_field, shared = dict[str, list[list[float]]](), dict[str, list[float]]()
        for block in layout.blocks:
            if block.is_shared:
                shared[block.name] = [share * each for each in self.shared.get(block.name, ())]
                continue
            by_field[block.name] = []
            of_block = self.by_field.get(block.name, ())
            for grown, is_of_factors in zip(of_block, _are_of_factors(layout, block), strict=False):
                made = np.zeros(vocabulary.n_factored if is_of_factors else vocabulary.n_features)
                own = known.rows < len(made)
                made[known.rows[own]] = share * np.asarray(grown)[known.fields[own]] * known.counts[own]
                by_field[block.name].append(_per_entry(made, vocabulary).tolist())
        return Growth(self.optimizer, by_field, shared)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` takes it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Growth | None:
        """The growth that a model's manifest tells of; None where it tells of none, or in another form."""
        names = [each.name for each in dataclasses.fields(cls)]
        return cls(*(values[name] for name in names)) if values and all(name in values for name in names) else None

    def add(self, table: ParameterTable, known: Known, share: float) -> None:
        """Let the accumulators of known features grow, in place, by this share of what their entries then made."""
        for block in table.layout.blocks:
            of_block: Sequence[Any] = (self.shared if block.is_shared else self.by_field).get(block.name, ())
            for grown, accumulators in zip(of_block, _accumulators(table, block), strict=False):
                if block.is_shared:
                    accumulators += np.float32(share * grown)
                    continue
                own = known.rows < len(accumulators)
                each = (share * np.asarray(grown)[known.fields[own]] * known.counts[own]).astype(np.float32)
                accumulators[known.rows[own]] += each if accumulators.ndim == 1 else each[:, None]


def _has_sums(optimizer: str) -> bool:
    record = OPTIMIZERS.get(optimizer)
    return record is not None and record.state == "sums" and not record.derives_weights


def _accumulators(table: ParameterTable, block: Block) -> Iterator[Floats]:
    """Views of a block's accumulators, one after the other: float32[n_rows], of vectors float32[n_rows, width].

    What belongs to factors and stands in the record of the feature has a row for each feature with factors.
    """
    layout, array = table.layout, table[block.name]
    of_rows = array[None, :] if array.ndim == 1 else array
    for number, is_of_factors in enumerate(_are_of_factors(layout, block), 1):
        if block.is_vector:
            yield of_rows[:, block.lanes * number : block.lanes * number + block.width]
            continue
        yield of_rows[: table.n_factored if is_of_factors else None, block.lanes * number]


def _are_of_factors(layout: Layout, block: Block) -> list[bool]:
    """For each accumulator of a block, whether it has a row for each feature with factors, not for each feature."""
    n_states = layout.n_states(block) if block.width else 0
    last = n_states if _holds_row_state(layout, block) else 0
    return [block.is_vector or number == last for number in range(1, 1 + n_states)]


def _holds_row_state(layout: Layout, block: Block) -> bool:
    return layout.rule.has_row_state and block == layout.carrier


def _grown(accumulators: Floats, start: float) -> NDArray[np.float64]:
    """float64[n_rows]: growth of each row since `start`; of vectors the mean over their numbers."""
    grown = accumulators if accumulators.ndim == 1 else accumulators.mean(axis=1, dtype=np.float64)
    return np.maximum(grown.astype(np.float64) - start, 0.0)


def _per_entry(grown: NDArray[np.float64], vocabulary: Vocabulary) -> NDArray[np.float64]:
    """float64[n_fields]: growth of the leading features by entry, 0 where a field has none."""
    n_fields, fields = vocabulary.n_fields, vocabulary.fields[: len(grown)].astype(np.int64)
    entries = np.bincount(fields, vocabulary.counts[: len(grown)], n_fields)
    found: NDArray[np.float64] = np.bincount(fields, grown, n_fields) / np.maximum(entries, 1.0)
    return found


def _told(totals: Sequence[Any], begun: Sequence[Any], n_epochs: float) -> Iterator[Any]:
    """The growth to hand on by each accumulator, of that in all; begun: of the first of them, or of none."""
    told = min(n_epochs / _LEAST_WALKED, 1.0)
    for total, first in itertools.zip_longest(totals, begun[: len(totals)], fillvalue=0.0):
        inherited = np.minimum(first, total)  # a linear rival has no factors to inherit for
        yield inherited * REMEMBERED ** (told - 1.0) + (total - inherited) / max(n_epochs, _LEAST_WALKED)


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
