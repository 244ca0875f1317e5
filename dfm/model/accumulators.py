"""The optimizer's memory in a few numbers: how fast its sums of squared slopes grew.

AdaGrad steps ever more carefully where it has seen much: its accumulator G says how much. To keep G would double a
model, and is not needed: in an epoch G of a feature that was seen n times grows by n times a number that all features
of its column share (to a few percent, see the decision record on what a warm start remembers). So a model keeps that
number for each column, and training that goes on from it makes accumulators of it again.
"""

from __future__ import annotations

import dataclasses
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
        cls, tables: Sequence[ParameterTable], vocabulary: Vocabulary, initial: float, n_epochs: float
    ) -> Growth | None:
        """The growth in a table, given as consecutive parts of its rows: the mean of the epochs since all accumulators
        were `initial`.

        None where the optimizer keeps no sums of squared slopes beside the weights.
        """
        layout = tables[0].layout
        if not _has_sums(layout.optimizer):
            return None
        counts, fields, n_fields = vocabulary.counts, vocabulary.fields.astype(np.int64), vocabulary.n_fields
        by_field, shared = {}, {}
        for block in layout.blocks:
            start = initial * block.accumulator
            if block.is_shared:
                found = [_grown(part, start, n_epochs) for part in _accumulators(tables[0], block)]
                shared[block.name] = [_short(part.mean()) if part.size else 0.0 for part in found]
                continue
            found = [
                np.concatenate([_grown(part, start, n_epochs) for part in parts])
                for parts in zip(*(list(_accumulators(table, block)) for table in tables), strict=True)
            ]
            by_field[block.name] = [
                [_short(each) for each in _per_entry(grown, counts[: len(grown)], fields[: len(grown)], n_fields)]
                for grown in found
            ]
        return cls(layout.optimizer, by_field, shared)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` takes it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Growth | None:
        """The growth that a model's manifest tells of; None where it tells of none, or in another form."""
        names = [each.name for each in dataclasses.fields(cls)]
        return cls(*(values[name] for name in names)) if values and all(name in values for name in names) else None

    def add(
        self, table: ParameterTable, rows: NDArray[np.int64], counts: NDArray[np.int64], fields: NDArray[np.uint16],
        share: float,
    ) -> None:  # fmt: skip
        """Let the accumulators of these rows of a table grow, in place, by this share of what so many entries made.

        rows int64[n], fields uint16[n]: of features; counts int64[n]: entries that the growth was measured on.
        """
        for block in table.layout.blocks:
            known: Sequence[Any] = (self.shared if block.is_shared else self.by_field).get(block.name, ())
            for grown, accumulators in zip(known, _accumulators(table, block), strict=False):
                if block.is_shared:
                    accumulators += np.float32(share * grown)
                    continue
                own = rows < len(accumulators)
                each = (share * np.asarray(grown)[fields[own]] * counts[own]).astype(np.float32)
                accumulators[rows[own]] += each if accumulators.ndim == 1 else each[:, None]


def _has_sums(optimizer: str) -> bool:
    record = OPTIMIZERS.get(optimizer)
    return record is not None and record.state == "sums" and not record.derives_weights


def _accumulators(table: ParameterTable, block: Block) -> Iterator[Floats]:
    """Views of a block's accumulators, one after the other: float32[n_rows], of vectors float32[n_rows, width].

    What belongs to factors and stands in the record of the feature has a row for each feature with factors.
    """
    layout, array = table.layout, table[block.name]
    of_rows = array[None, :] if array.ndim == 1 else array
    n_states = layout.n_states(block)
    for number in range(1, 1 + (n_states if block.width else 0)):
        if block.is_vector:
            yield of_rows[:, block.lanes * number : block.lanes * number + block.width]
            continue
        is_of_factors = _holds_row_state(layout, block) and number == n_states
        yield of_rows[: table.n_factored if is_of_factors else None, block.lanes * number]


def _holds_row_state(layout: Layout, block: Block) -> bool:
    return layout.rule.has_row_state and block == layout.carrier


def _grown(accumulators: Floats, start: float, n_epochs: float) -> NDArray[np.float64]:
    """float64[n_rows]: growth of each row since `start`, an epoch; of vectors the mean over their numbers."""
    grown = accumulators if accumulators.ndim == 1 else accumulators.mean(axis=1, dtype=np.float64)
    return np.maximum(grown.astype(np.float64) - start, 0.0) / n_epochs


def _per_entry(
    grown: NDArray[np.float64], counts: NDArray[np.int64], fields: NDArray[np.int64], n_fields: int
) -> NDArray[np.float64]:
    """float64[n_fields]: growth per entry, 0 where a field has none."""
    entries = np.bincount(fields, counts, n_fields)
    found: NDArray[np.float64] = np.bincount(fields, grown, n_fields) / np.maximum(entries, 1.0)
    return found


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
