"""Importance of columns: how much worse a model gets when it is told nothing, or something else, of one of them.

Nothing is trained again. Rows get a column's values from other rows of all the data, by a seed made of their batch's
place, so that the same rows are changed alike wherever and however often they are scored (Breiman 2001; Fisher et al.
2019). Rows of their own file would not do: a column that a partition is made by is constant there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.accounting import RowAccount
from dfm.data.columns import with_values
from dfm.data.joining import joined, without_dictionary
from dfm.errors import DataError
from dfm.model.pair_strength import PAIR_ROWS, pair_records

MOST_ROWS = 200_000
"""Rows that importance is measured on, spread over the data, where there are more."""
_DONORS = 16_384
"""Rows, spread over those, whose values take the place of others', at least one of each batch; every task holds them.
"""


def _student(degrees: int) -> float:
    """Half the width of an interval of 95 %, in deviations of the mean of few numbers."""
    from scipy.stats import t  # takes half a second, and only importance needs it

    return float(t.ppf(0.975, degrees))


@dataclass(frozen=True)
class Effort:
    """Shares of the rows in which columns, and pairs of fields, are measured; how often columns are permuted; and the
    share of the rows of the first kind whose values are given to others.
    """

    share: float
    pair_share: float
    n_repeats: int
    donor_share: float = 1.0

    @classmethod
    def of(cls, n_rows: int, most_rows: int, n_repeats: int) -> Effort:
        """The effort where there are so many rows, and columns are measured in so many of them at most."""
        donor_share = _DONORS / max(min(n_rows, most_rows), 1)
        return cls(most_rows / max(n_rows, 1), PAIR_ROWS / max(n_rows, 1), n_repeats, donor_share)


@dataclass(frozen=True, eq=False)
class Damage:
    """Weighted losses of rows. plain: as they are; missing [n_columns]: without one column, NaN where rows need it;
    permuted [n_repeats, n_columns]: with the values of another row in it. pairs [n_fields, n_fields]: weighted absolute
    terms of pairs of fields, of rows that weigh `pair_weight`; [0, 0] where pairs are not measured. account: of all
    rows that these were drawn from.
    """

    rows: int
    weight: float
    plain: float
    missing: NDArray[np.float64]
    permuted: NDArray[np.float64]
    pairs: NDArray[np.float64]
    pair_weight: float = 0.0
    account: RowAccount = field(default_factory=RowAccount)

    def __add__(self, other: Damage) -> Damage:
        return Damage(
            self.rows + other.rows,
            self.weight + other.weight,
            self.plain + other.plain,
            self.missing + other.missing,
            self.permuted + other.permuted,
            self.pairs + other.pairs,
            self.pair_weight + other.pair_weight,
            self.account + other.account,
        )

    @classmethod
    def none(cls, n_columns: int, n_repeats: int, n_paired: int) -> Damage:
        """The damage of no rows."""
        losses = np.zeros(n_columns), np.zeros((n_repeats, n_columns))
        return cls(0, 0.0, 0.0, *losses, np.zeros((n_paired, n_paired)))

    def records(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """A record a column, the most important first: by how much the mean loss rises, permuted (its mean over the
        repeats, and the half width of its interval of 95 %) and missing (None where it cannot be). DataError where
        there is no row.
        """
        if not self.weight:
            raise DataError("no row is left to measure importance on; pass labelled rows")
        plain, rises = self.plain / self.weight, self.permuted / self.weight - self.plain / self.weight
        n_repeats = len(rises)
        spread = rises.std(axis=0, ddof=1) / math.sqrt(n_repeats) if n_repeats > 1 else np.full(len(columns), math.nan)
        width = _student(n_repeats - 1) if n_repeats > 1 else math.nan
        found: list[dict[str, Any]] = [
            {
                "column": name,
                "permuted": float(rises[:, at].mean()),
                "permuted_error": float(width * spread[at]) if n_repeats > 1 else None,
                "missing": None if np.isnan(self.missing[at]) else float(self.missing[at] / self.weight - plain),
            }
            for at, name in enumerate(columns)
        ]
        return sorted(found, key=lambda record: (-record["permuted"], record["column"]))

    def strengths(self, fields: Sequence[str]) -> list[dict[str, Any]]:
        """A record of each pair of fields, the strongest first; none where pairs are not measured."""
        return pair_records(self.pairs, self.pair_weight, fields) if self.pair_weight else []


@dataclass(frozen=True)
class Sample:
    """Rows of some batches: the place of each batch, and its number of rows."""

    data: pa.RecordBatch
    places: Sequence[tuple[str, int]]

    @classmethod
    def joined(cls, parts: Sequence[tuple[str, pa.RecordBatch]]) -> Sample:
        """The rows of batches of one schema, one after the other; values of dictionaries as they are. parts: places and
        batches.
        """
        if len(parts) == 1:
            ((place, data),) = parts
            return cls(data, [(place, data.num_rows)])
        # Codes of one byte may be too few for the values of several batches, and a dictionary may hold a null.
        decoded = [[without_dictionary(column) for column in data.columns] for _, data in parts]
        arrays = [pa.concat_arrays(columns) for columns in zip(*decoded, strict=True)]
        fields = [field.with_type(array.type) for field, array in zip(parts[0][1].schema, arrays, strict=True)]
        data = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
        return cls(data, [(place, data.num_rows) for place, data in parts])

    def permuted(self, column: str, repeat: int, donors: Donors) -> pa.RecordBatch:
        """The rows with the values of other rows in one column, drawn batch by batch; each once where they suffice."""
        values = donors[column]
        drawn = []
        for place, n_rows in self.places:
            seed = hashlib.sha256(f"{place}\0{column}\0{repeat}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(seed[:8], "little"))
            drawn.append(rng.choice(len(values), n_rows, replace=n_rows > len(values)))
        return with_values(self.data, column, values.take(pa.array(np.concatenate(drawn))))


Donors = Mapping[str, pa.Array]
"""By column values of rows that are spread over all the data."""


def donors_of(batches: Sequence[pa.RecordBatch], columns: Sequence[str]) -> Donors:
    """The values of some rows by column; where types do not go together, of the batches that have the first one's."""
    return {
        name: _together([without_dictionary(batch.column(name)) for batch in batches]) for name in columns if batches
    }


def _together(arrays: Sequence[pa.Array]) -> pa.Array:
    alike = [array for array in arrays if array.type == arrays[0].type]
    for chosen in (arrays, alike):
        try:
            return joined(chosen).combine_chunks()
        except pa.ArrowException:  # integers beside text; lists that Arrow does not join
            continue
    return arrays[0]


def without(data: pa.RecordBatch, column: str) -> pa.RecordBatch:
    """The rows without a value in one column."""
    return with_values(data, column, pa.nulls(data.num_rows, data.schema.field(column).type))
