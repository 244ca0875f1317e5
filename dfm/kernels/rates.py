"""The numbers of a step, as the kernels of its optimizer take them."""

from __future__ import annotations

import numpy as np

from dfm.errors import SettingsError
from dfm.kernels.blocks import Block
from dfm.kernels.contract import Rates, Step
from dfm.kernels.optimizers import owners
from dfm.kernels.tables import Layout


def rates_of(step: Step, layout: Layout) -> Rates:
    """The rates of features, as their blocks obey a step; `own`: the optimizer's own parameters, as in its record."""
    numbers, vectors = layout.carrier, layout.block("factors")
    return Rates(
        learning_rate=np.float32(getattr(step, numbers.rate)),
        factor_learning_rate=np.float32(getattr(step, vectors.rate)),
        l2_linear=np.float32(getattr(step, numbers.penalty)),
        l2_factors=np.float32(getattr(step, vectors.penalty)),
        own=tuple(np.float32(getattr(step, each.name)) for each in layout.rule.parameters),
    )


def shared_rates_of(step: Step, layout: Layout, block: Block) -> Rates:
    """The rates of a block that belongs to no feature; without penalties, unless it names one."""
    zero = np.float32(0)
    own = (
        zero if each.is_penalty else np.float32(getattr(step, each.name)) for each in layout.rule_of(block).parameters
    )
    return Rates(
        learning_rate=np.float32(getattr(step, block.rate)),
        factor_learning_rate=zero,
        l2_linear=np.float32(getattr(step, block.penalty)) if block.penalty else zero,
        l2_factors=zero,
        own=tuple(own),
    )


def all_rates(step: Step, layout: Layout) -> tuple[Rates, Rates, tuple[Rates, ...]]:
    """The rates of features, those of the bias, and those of each of a family's own blocks."""
    own = tuple(shared_rates_of(step, layout, block) for block in layout.own)
    return rates_of(step, layout), shared_rates_of(step, layout, layout.block("bias")), own


def check_penalties(step: Step, optimizer: str) -> None:
    """SettingsError where a step has a penalty that only another optimizer applies."""
    for name, owner in owners().items():
        own = next(each for each in owner.parameters if each.name == name)
        if own.is_penalty and getattr(step, name) > 0 and owner.name != optimizer:
            raise SettingsError(f'{name} = {getattr(step, name)} needs optimizer "{owner.name}", not {optimizer!r}')
