"""The record of an optimizer: all that anybody needs to know of it, and how its passes over a row are made.

Light: what passes are made of is imported when they are compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dfm.kernels.records import Parameter

if TYPE_CHECKING:
    from dfm.kernels.cpu.shape import Shape
    from dfm.kernels.custom.functions import CustomRegularizer

Steps = tuple[Any, Any, Any]
"""step_number, step_linear and step_factors of `dfm.kernels.cpu.step_passes`."""


@dataclass(frozen=True)
class Optimizer:
    """The update rule of a local model, and how its state is begun, averaged and scheduled.

    steps: makes the compiled passes that change parameters, for a shape and a user's regularizer or None.

    Records. linear_state: numbers behind w in the record of a feature and of the bias; factor_state: numbers per factor
    behind V. has_row_state: the last of a feature's numbers is the accumulator of its factor row. linear_starts,
    factors_start: whether that state begins at `initial_accumulator`, else at 0.

    Averaging. primary: column of what is averaged; the columns behind it are state. state: "sums" of squared gradients,
    which say how much a replica has seen of a feature and so may weigh it; running "means", which may only be averaged;
    or "none". weight: makes weight(first, second, rates), the w that the columns from `primary` on stand for; None
    where w is averaged itself.

    parameters: the knobs that it alone reads. row_rate: an automatic learning rate is this over the mean of a row's
    Σ x² and the steepness of the loss; where it is 0, learning_rate, whatever the rows. scales_linear_rate: whether a
    schedule changes the linear weights' rate. damping: the parameter that is added to the root of the accumulator, if
    any. alone: what steps numbers that are no linear weights and belong to no feature, where that is another one.
    cuda: `move_linear`, and `derived_weight` where `weight` is given (see backend.cu); None where the GPU has no
    code.
    """

    name: str
    steps: Callable[[Shape, CustomRegularizer | None], Steps]
    learning_rate: float
    row_rate: float = 1.6
    linear_state: int = 0
    factor_state: int = 0
    has_row_state: bool = False
    linear_starts: bool = False
    factors_start: bool = False
    primary: int = 0
    state: Literal["none", "sums", "means"] = "none"
    weight: Callable[[], Any] | None = None
    parameters: Sequence[Parameter] = ()
    scales_linear_rate: bool = True
    damping: str = ""
    alone: Optimizer | None = None
    is_default: bool = False
    cuda: str | None = None

    @property
    def weighs_replicas(self) -> bool:
        """Whether its state says how much a replica has seen of a feature."""
        return self.state == "sums"

    @property
    def derives_weights(self) -> bool:
        """Whether w is made of the state, in closed form with L1 and L2, and never averaged itself."""
        return self.weight is not None

    @property
    def n_averaged(self) -> int:
        """Numbers of state of a linear record that are averaged beside the primary column."""
        return self.linear_state - self.primary

    @property
    def accumulator(self) -> int | None:
        """Column of a linear record that holds a sum of squared gradients."""
        return self.primary + 1 if self.state == "sums" else None
