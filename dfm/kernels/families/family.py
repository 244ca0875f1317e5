"""What a model family says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dfm.kernels.blocks import Block


@dataclass(frozen=True)
class Family:
    """A kind of model: score = w0 + Σ_j w_j x_j + what the family makes of the rest.

    blocks(n_factors): its parameter blocks. Every family has a bias (one number for the model), a linear weight for
    each feature, and vectors of the frequent ones.
    """

    name: str
    blocks: Callable[[int], tuple[Block, ...]]
