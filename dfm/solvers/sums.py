"""Sufficient statistics of a visit: what solving a feature has to know of the rows, added along the fixed tree.

Of a feature with D unknowns θ: [Σ ω h_a h_b (a ≥ b, row by row), Σ ω h_a e], e the score less its target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm.averaging.slices import unite
from dfm.compilation import compiled
from dfm.kernels.tables import first_at
from dfm.storage.arrays import read_only
from dfm.storage.transfers import checked_on_its_way

Doubles = NDArray[np.float64]
MOST_COLUMNS = 16
"""Factors that are solved together, with w: a feature then has 170 sums, and a Cholesky factor of 17 rows."""


@dataclass(frozen=True, slots=True)
class Part:
    """Unknowns that are solved together: factors [first, last), and w where `with_linear`."""

    first: int
    last: int
    with_linear: bool

    @property
    def width(self) -> int:
        """Unknowns of a feature with factors."""
        return self.last - self.first + self.with_linear


def parts_of(n_factors: int) -> list[Part]:
    """The parts of a feature's unknowns, in the order in which they are solved."""
    firsts = range(0, max(n_factors, 1), MOST_COLUMNS)
    return [Part(first, min(first + MOST_COLUMNS, n_factors), first == 0) for first in firsts]


def n_sums(width: int) -> int:
    """Sums of a feature with so many unknowns."""
    return width * (width + 1) // 2 + width


@checked_on_its_way("sums of an exact solver")
@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of some features of a visit. places uint32[m] ascending: where they stand in the visit; factored
    float64[m_factored, n_sums(width)]; lone float64[m - m_factored, 2], of features without factors.
    """

    places: NDArray[np.uint32]
    factored: Doubles
    lone: Doubles

    def __add__(self, other: Sums) -> Sums:
        places, (mine, others) = unite([self.places, other.places])
        leading = max(
            (int(at[n - 1]) + 1 for at, n in ((mine, len(self.factored)), (others, len(other.factored))) if n),
            default=0,
        )
        factored = np.zeros((leading, self.factored.shape[1]))
        lone = np.zeros((len(places) - leading, self.lone.shape[1]))
        for part, at in ((self, mine), (other, others)):
            n_factored = len(part.factored)
            _add_rows(read_only(part.factored), read_only(at[:n_factored]), 0, factored)
            _add_rows(read_only(part.lone), read_only(at[n_factored:]), leading, lone)
        return Sums(places, factored, lone)

    def select(self, start: int, stop: int) -> Sums:
        """The sums of features at places [start, stop), which are counted from there."""
        found = self.between(start, stop)
        return Sums((found.places - start).astype(np.uint32), found.factored, found.lone)

    def between(self, start: int, stop: int) -> Sums:
        """The sums of features at places [start, stop), as views."""
        first, last = first_at(self.places, [start, stop])
        n_factored = len(self.factored)
        lone = slice(max(first - n_factored, 0), max(last - n_factored, 0))
        factored = self.factored[min(first, n_factored) : min(last, n_factored)]
        return Sums(self.places[first:last], factored, self.lone[lone])

    def spread(self, n_features: int, n_factored: int) -> tuple[Doubles, Doubles]:
        """Sums of all features of the visit; zeros of those that are in no row."""
        factored = np.zeros((n_factored, self.factored.shape[1]))
        lone = np.zeros((n_features - n_factored, self.lone.shape[1]))
        places = read_only(self.places)
        _add_rows(read_only(self.factored), places[: len(self.factored)], 0, factored)
        _add_rows(read_only(self.lone), places[len(self.factored) :], n_factored, lone)
        return factored, lone


@compiled
def _add_rows(source, places, first, target):  # type: ignore[no-untyped-def]
    """target[places - first] += source, rows of float64[m, width]."""
    for row in range(source.shape[0]):
        at = np.intp(places[row]) - first
        for column in range(source.shape[1]):
            target[at, column] += source[row, column]
