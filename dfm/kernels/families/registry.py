"""The model families by name. A family is a file of this package that holds `FAMILY`, and the file's name is its name.

A new file is all that a family takes: settings, tables, kernels, averaging, models and estimators read its record, and
nothing else lists the names. Light, as `family` says.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from dfm.errors import SettingsError
from dfm.kernels.losses import is_paired

if TYPE_CHECKING:
    from dfm.kernels.custom.functions import CustomLoss
    from dfm.kernels.families.family import Family
    from dfm.kernels.losses import CompiledLoss

_OTHERS = ("family", "registry")


@functools.cache
def family_of(name: str) -> Family:
    """The family of that name. SettingsError for an unknown one."""
    if name not in _NAMES:
        raise SettingsError(f"family = {name!r}; choose one of {', '.join(FAMILIES)}")
    family: Family = importlib.import_module(f"{__package__}.{name}").FAMILY
    return family


def check_pairs(loss: str | CompiledLoss | CustomLoss, family: str) -> None:
    """SettingsError where a loss is of pairs of rows, and the family has no difference of two scores."""
    if not is_paired(loss) or family_of(family).knows_pairs:
        return
    knowing = " or ".join(name for name in FAMILIES if family_of(name).knows_pairs)
    raise SettingsError(
        f"loss = {getattr(loss, 'name', loss)!r} is of pairs of rows, which family = {family!r} does not know; choose "
        f"family = {knowing}, or a loss of single rows"
    )


_NAMES = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name not in _OTHERS]
DEFAULT = next(name for name in _NAMES if family_of(name).is_default)
FAMILIES = (DEFAULT, *(name for name in _NAMES if name != DEFAULT))
"""Names of the families, the default first."""
