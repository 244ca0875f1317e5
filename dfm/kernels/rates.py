"""The numbers of a step, as the kernels of its optimizer take them."""

from __future__ import annotations

import numpy as np

from dfm.errors import SettingsError
from dfm.kernels.contract import Rates, Step
from dfm.kernels.optimizers import owners, resolve_optimizer


def rates_of(step: Step, optimizer: str) -> Rates:
    """The rates of features; `own` are the optimizer's own parameters, in the order of its record."""
    own = resolve_optimizer(optimizer).parameters
    return Rates(
        learning_rate=np.float32(step.learning_rate),
        factor_learning_rate=np.float32(step.factor_learning_rate),
        l2_linear=np.float32(step.l2_linear),
        l2_factors=np.float32(step.l2_factors),
        own=tuple(np.float32(getattr(step, each.name)) for each in own),
    )


def bias_rates_of(step: Step, optimizer: str) -> Rates:
    """The same step sizes without penalties: those of the bias."""
    zero, rates, own = np.float32(0), rates_of(step, optimizer), resolve_optimizer(optimizer).parameters
    unpenalised = (zero if each.is_penalty else value for each, value in zip(own, rates.own, strict=True))
    return rates._replace(l2_linear=zero, l2_factors=zero, own=tuple(unpenalised))


def both_rates(step: Step, optimizer: str) -> tuple[Rates, Rates]:
    """The rates of features, and those of the bias, for the kernels of an optimizer."""
    return rates_of(step, optimizer), bias_rates_of(step, optimizer)


def check_penalties(step: Step, optimizer: str) -> None:
    """SettingsError where a step has a penalty that only another optimizer applies."""
    for name, owner in owners().items():
        own = next(each for each in owner.parameters if each.name == name)
        if own.is_penalty and getattr(step, name) > 0 and owner.name != optimizer:
            raise SettingsError(f'{name} = {getattr(step, name)} needs optimizer "{owner.name}", not {optimizer!r}')
