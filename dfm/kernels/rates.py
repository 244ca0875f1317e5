"""The numbers of a step, as the kernels of its optimizer take them."""

from __future__ import annotations

import numpy as np

from dfm.errors import SettingsError
from dfm.kernels.blocks import Block
from dfm.kernels.contract import Rates, Step
from dfm.kernels.families.registry import family_of
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


def shared_rates_of(step: Step, layout: Layout, block: Block, rows: int = 1) -> Rates:
    """The rates of a block that belongs to no feature and is stepped in one of so many rows; without penalties, unless
    it names one, and with its pull in the place of l2_factors.

    Numbers move as far as they would if every row stepped them: AdaGrad's n steps go as far as the root of n.
    """
    zero, rule = np.float32(0), layout.rule_of(block)
    rate = getattr(step, block.rate) * rows
    if rule.state == "sums":
        rate = (block.own_rate * step.rate_factor or getattr(step, block.rate)) * rows**0.5
    own = (zero if each.is_penalty else np.float32(getattr(step, each.name)) for each in rule.parameters)
    return Rates(
        learning_rate=np.float32(rate),
        factor_learning_rate=zero,
        l2_linear=np.float32(getattr(step, block.penalty)) if block.penalty else zero,
        l2_factors=np.float32(block.pull),
        own=tuple(own),
    )


def all_rates(step: Step, layout: Layout, n_fields: int) -> tuple[Rates, Rates, tuple[Rates, ...]]:
    """The rates of features, those of the bias, and those of each of a family's own blocks."""
    rows = family_of(layout.family).rows_between(n_fields)
    own = tuple(shared_rates_of(step, layout, block, rows) for block in layout.own)
    return rates_of(step, layout), shared_rates_of(step, layout, layout.block("bias")), own


def check_penalties(step: Step, optimizer: str) -> None:
    """SettingsError where a step has a penalty that only another optimizer applies."""
    for name, owner in owners().items():
        own = next(each for each in owner.parameters if each.name == name)
        if own.is_penalty and getattr(step, name) > 0 and owner.name != optimizer:
            raise SettingsError(f'{name} = {getattr(step, name)} needs optimizer "{owner.name}", not {optimizer!r}')
