"""The record of a model family: all that anybody needs to know of it, and how its part of a kernel is made.

Light: what kernels are made of is imported when they are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfm.errors import SettingsError
from dfm.kernels.blocks import MAX_FACTORS, Block

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

OnnxStep = tuple[str, list[str], str]
"""Operator, inputs, output."""
OnnxPart = tuple[dict[str, Any], list[OnnxStep]]
"""Constants by name, and the nodes in order."""
_OF_TABLES = " (a numeric matrix counts as one); pass a table with a column for each field, or choose another family"


@dataclass(frozen=True)
class Family:
    """A kind of model: score = w0 + Σ_j w_j x_j + what the family makes of the vectors of the features in a row.

    blocks(n_factors): its parameter blocks. All families have `bias`, `linear` and `factors`, the vectors of frequent
    features; those of their own follow, and their rows belong to no feature.

    Kernels on processors, compiled into the walk (see `dfm.kernels.cpu.row_passes`, and `Shape` there):
    pairs(shape) makes pairs(rows, table, scratch, n_owners), its part of the score, which leaves in scratch.sums what
    gradients need. gradient(shape, penalty_slope) makes of_group(rates, scratch, group, row_step, column), what the
    owners of a group share, and gradient(rates, scratch, owner, row_step, factors, column, shared), of one vector of
    V_j; penalty_slope as of `make_penalty_slope`, None for that of w² / 2. sums(capacity, layout): what scratch.sums
    begins with, for rows of so many entries.

    A family with blocks of its own has more. unfold(table): its own blocks as kernels work on them, float32[n, m];
    fold(unfolded, table) puts them back, in place. room(capacity, layout, n_fields, seed): arrays that scratch.room
    begins a walk with, or scoring, where seed is None. own_step(shape, steps) makes own_step(rows, table, rates,
    scratch, n_owners, row_step), which steps table.own in one of rows_between(n_fields) rows; steps: `step_number` of
    one number and of OWN_LANES of them, the latter None where a gradient of 0 is a step too; rates: of each own block.

    has_groups: whether a feature has a vector of n_factors for each group of fields. The entries of a row then come to
    `pairs` group by group (see `Scratch`). n_factors, init_stdev: defaults of the family's own, None for everybody's.

    onnx(values, fields, layout): its part of an exported graph, to "factor_part" float32[n_rows]: from "factor_row"
    int32[n_rows, n_entries], rows of factors or the one beyond the last, "scaled" float32[n_rows, n_entries,
    n_factors], their vectors times x, and "merged", their vectors times all x of that feature in the row, which is more
    where it stands there twice. values: of its own blocks by name; fields: uint16[n_factored], of rows with factors, or
    their groups where the family has groups; layout: of the table.

    sides(vectors, places, n_places, own): two arrays float64[n, d] of n features, f and s, so that <f_i, s_j> is what
    the vectors of features i and j make where both x are 1. vectors float64[n, numbers of V]; places int64[n]: the
    field of each feature, or its group where the family has groups, of n_places; own: numbers of own blocks by name.
    None where no two features make a term by themselves. is_pairwise: whether all that vectors make is of two features;
    where it is not, sides are of the numbers for two.

    orders: how many features may meet, the family's default first; none: a layout has no order. degrees(order): of each
    vector that a feature has for the order (for each of its groups: for any), the degree of the part of the score that
    it makes, as a polynomial in the vectors of that kind.

    summary: what it is, for those who choose. knows_pairs: whether `pairs` and `gradient` are also those of a pair of
    rows, where the shape is paired: the difference of two scores. knows_fields: whether it reads the field of each
    feature; most_fields: how many there may be; cost_of_fields: what an entry costs more for each field of its row, in
    parts of what it costs by itself. texts: the text formats that can say all of it. cuda: its text for
    GPUs (see backend.cu), None where they have no code for it.
    """

    name: str
    summary: str
    blocks: Callable[[int], tuple[Block, ...]]
    pairs: Callable[[Any], Any]
    gradient: Callable[[Any, Any], Any]
    sums: Callable[[int, Any], NDArray[np.float32]]
    onnx: Callable[[dict[str, NDArray[np.float32]], NDArray[np.uint16], Any], OnnxPart]
    sides: Callable[[Floats, NDArray[np.int64], int, dict[str, Floats]], tuple[Floats, Floats]] | None = None
    unfold: Callable[[Any], NDArray[np.float32]] | None = None
    fold: Callable[[NDArray[np.float32], Any], None] | None = None
    room: Callable[[int, Any, int, int | None], tuple[NDArray[Any], ...]] | None = None
    own_step: Callable[[Any, Any], Any] | None = None
    rows_between: Callable[[int], int] = lambda _n_fields: 1
    knows_fields: bool = False
    knows_pairs: bool = False
    has_groups: bool = False
    is_pairwise: bool = True
    orders: tuple[int, ...] = ()
    degrees: Callable[[int], tuple[int, ...]] = lambda _order: (2,)
    n_factors: int | None = None
    init_stdev: float | None = None
    most_fields: int = 1 << 16
    cost_of_fields: float = 0.0
    texts: tuple[str, ...] = ()
    is_default: bool = False
    cuda: str | None = None

    def order_of(self, wanted: int | str) -> int:
        """The order of a model for which one is wanted: a number, or "auto"; 0 where the family has none."""
        if wanted == "auto":
            return self.orders[0] if self.orders else 0
        return int(wanted)

    def check_fields(self, n_fields: int, remedy: str = _OF_TABLES) -> None:
        """SettingsError where the family cannot make use of so many fields. remedy: where there is but one."""
        if self.knows_fields and n_fields < 2:
            raise SettingsError(f'family = "{self.name}" needs two fields or more, and there is one{remedy}')
        if self.knows_fields and n_fields > self.most_fields:
            raise SettingsError(
                f'family = "{self.name}" takes up to {self.most_fields} fields, since it has parameters for each pair '
                f"of them, and there are {n_fields}; leave columns out, or choose another family"
            )

    def check_models(self, n_factors: int, n_models: int) -> None:
        """SettingsError where no model of the family is the mean of so many, each with vectors of n_factors numbers."""
        own = [block.name for block in self.blocks(n_factors) if block.is_shared and not block.is_linear]
        if n_models > 1 and own:
            raise SettingsError(
                f'model.n_models = {n_models} does not go with model.family = "{self.name}": each model learns '
                f"{own[0]} of its own, and there is room for one set of them. Leave n_models out, or choose another "
                "family."
            )
        if n_models > 1 and n_models * n_factors > MAX_FACTORS:
            raise SettingsError(
                f"model.n_models = {n_models} of model.n_factors = {n_factors} make vectors of {n_models * n_factors} "
                f"numbers, and {MAX_FACTORS} is the most. Lower one of them."
            )
