"""Parameter blocks: what a model family is made of, as records of names and numbers.

A block is a named array of records. How many there are follows from `rows`: one for the model, one per field, per
unordered pair of fields (a field and itself too), per feature, or per feature that is frequent enough to own factors.
A record is the block's numbers, then the state that the optimizer keeps of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dfm.errors import SettingsError

ROWS = ("model", "field", "field pair", "feature", "frequent feature")
"""The things that a block can have a row of."""
MAX_FACTORS = 256
"""Numbers of a vector, of each group."""
MAX_ROW_FACTORS = 4096
"""Factors of a feature with those of all groups, or of all models whose mean it is of."""
RANDOM = "random"
LABELS = "labels"


def padded_lanes(width: int) -> int:
    """Numbers of a vector rounded up to what a vector register takes: 4, 8, or a multiple of 16."""
    if width <= 0:
        return 0
    if width <= 8:
        return 4 if width <= 4 else 8
    return (width + 15) // 16 * 16


def lanes_together(lanes: int) -> int:
    """Lanes of a record that are one vector: long records are walked in several, so that sums stay in registers."""
    return lanes if lanes <= 64 else next(n for n in (64, 48, 32, 16) if lanes % n == 0)


@dataclass(frozen=True)
class Block:
    """Parameters of one kind: `width` numbers for each of `rows`.

    rate, penalty: the knobs of a step that its numbers obey; no penalty: "". start: what every number begins with, or
    RANDOM (uniform around 0, by init_stdev), or LABELS (the score of a model that knows the labels alone). accumulator:
    what AdaGrad's sums begin with, as a multiple of initial_accumulator. column: its name in exported tables.
    unit_power: to which power of the labels' unit its numbers are in proportion, where the loss is in that unit; of
    vectors that follows from their degrees (see `Family`).
    own_rate: the step size of its numbers under AdaGrad, where that is not `rate`; replicas and the schedule scale it
    too. pull: L2 on what a number is away from `start`, of those that are stepped.
    is_linear: whether it holds linear weights, for which an optimizer may have a rule of their own.
    """

    name: str
    rows: str
    width: int = 1
    column: str = ""
    rate: str = "learning_rate"
    penalty: str = ""
    start: float | str = 0.0
    accumulator: float = 1.0
    unit_power: float = 1.0
    own_rate: float = 0.0
    pull: float = 0.0
    is_linear: bool = False

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise SettingsError(f"the block {self.name!r} has one row per {self.rows!r}; choose one of {ROWS}")
        if self.rows not in ("feature", "frequent feature") and self.width != 1:
            raise SettingsError(f"the block {self.name!r} has {self.width} numbers for each {self.rows}; 1 is legal")

    def value_shape(self, n_features: int, n_factored: int, n_fields: int) -> tuple[int, ...]:
        """The shape of its numbers alone, without padding and state."""
        n_rows = self.n_rows(n_features, n_factored, n_fields)
        return (n_rows, self.width) if self.is_vector else (n_rows,)

    def row_names(self, fields: Sequence[str]) -> list[str]:
        """Names of the rows of a shared block; pair (f, g) of fields, f <= g, has row g (g + 1) / 2 + f."""
        pairs = [f"{fields[f]} x {fields[g]}" for g in range(len(fields)) for f in range(g + 1)]
        return {"model": [""], "field": list(fields), "field pair": pairs}[self.rows]

    @property
    def is_shared(self) -> bool:
        """Whether its rows belong to no feature: every replica has all of them, and so has every part of a table."""
        return self.rows in ("model", "field", "field pair")

    @property
    def is_vector(self) -> bool:
        """Whether its rows are vectors, of the leading features only."""
        return self.rows == "frequent feature"

    @property
    def lanes(self) -> int:
        """Numbers of a row with their padding."""
        return padded_lanes(self.width) if self.is_vector else self.width

    def n_rows(self, n_features: int, n_factored: int, n_fields: int) -> int:
        """Number of its rows in a table of so many features, of which the first own factors, of so many fields."""
        return {
            "model": 1,
            "field": n_fields,
            "field pair": n_pairs(n_fields),
            "feature": n_features,
            "frequent feature": n_factored if self.width else 0,
        }[self.rows]

    def n_fields(self, n_rows: int) -> int:
        """Number of fields that it has so many rows for; 0 where it has none per field."""
        if self.rows == "field pair":
            return (math.isqrt(8 * n_rows + 1) - 1) // 2
        return n_rows if self.rows == "field" else 0


def n_pairs(n_fields: int) -> int:
    """Unordered pairs of fields, those of a field with itself included."""
    return n_fields * (n_fields + 1) // 2
