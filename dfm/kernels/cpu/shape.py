"""The compile-time numbers of the passes over a row."""

from __future__ import annotations

from dataclasses import dataclass

from dfm.kernels.blocks import lanes_together
from dfm.kernels.families.registry import DEFAULT


@dataclass(frozen=True)
class Shape:
    """Compile-time numbers of the passes.

    lanes: floats of V in a record; n_factors of them, the vectors of n_groups groups, are not padding. touched: floats
    of a factor record that a walk reads. gathered: floats of a linear record that a walk reads and writes. implicit:
    all values are 1, none is stored. family: a name in FAMILIES; own_width: floats of a record of its own
    block, 0 without one. order: as in `Layout`. only_scores: nothing is trained. abreast: numbers that `step_number`
    takes at a time, whose state stands `apart` behind them. paired: each entry has two values, of the rows of a pair
    (see `dfm.kernels.pairs`). scaled_l2: each feature has penalties of its own.
    """

    n_factors: int
    lanes: int
    touched: int
    gathered: int
    implicit: bool
    family: str = DEFAULT
    own_width: int = 0
    n_groups: int = 1
    order: int = 0
    only_scores: bool = False
    abreast: int = 1
    apart: int = 1
    paired: bool = False
    scaled_l2: bool = False

    @property
    def vector(self) -> int:
        """Lanes of one vector."""
        return lanes_together(self.lanes)
