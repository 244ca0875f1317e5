"""The optimizers: every module here but `record` is one of them, or a few that share their arithmetic.

A new file is all that an optimizer takes: settings, tables, kernels, averaging, estimators and the GPU read its record,
and nothing else lists the names. Light, as `record` says.
"""

from __future__ import annotations

import importlib
import pkgutil

from dfm.errors import SettingsError
from dfm.kernels.optimizers.record import Optimizer
from dfm.kernels.records import Parameter


def _found() -> dict[str, Optimizer]:
    """The records of all modules, in the order of the modules' names."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    records = [value for module in modules for value in vars(module).values() if isinstance(value, Optimizer)]
    return {record.name: record for record in records}


OPTIMIZERS = _found()
"""The optimizers by name."""
DEFAULT_OPTIMIZER = next(one.name for one in OPTIMIZERS.values() if one.is_default)
STATELESS = next(one.name for one in OPTIMIZERS.values() if one.linear_state == one.factor_state == 0)
"""The one whose records hold parameters alone, as those of a finished model do."""


def resolve_optimizer(name: str) -> Optimizer:
    """The optimizer of that name. SettingsError for an unknown one."""
    if name not in OPTIMIZERS:
        raise SettingsError(f"optimizer = {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def parameters() -> list[Parameter]:
    """The parameters of all optimizers."""
    return [own for optimizer in OPTIMIZERS.values() for own in optimizer.parameters]


def owners() -> dict[str, Optimizer]:
    """The optimizer that alone reads a parameter, by the parameter's name."""
    return {own.name: optimizer for optimizer in OPTIMIZERS.values() for own in optimizer.parameters}


def readers() -> dict[str, list[str]]:
    """The names of the optimizers that read a knob, by the name of each knob that some do not read."""
    every = OPTIMIZERS.values()
    return {
        **{name: [owner.name] for name, owner in owners().items()},
        "initial_accumulator": [one.name for one in every if one.linear_starts or one.factors_start],
        "accumulators": [one.name for one in every if one.state != "none"],
    }
