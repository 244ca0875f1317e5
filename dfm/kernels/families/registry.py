"""The model families by name. A family is a file of this package that holds `FAMILY`, and the file's name is its name.

Names are read from the folder, so that settings know them without loading Numba.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from dfm.errors import SettingsError

if TYPE_CHECKING:
    from dfm.kernels.families.family import Family

DEFAULT = "fm"
_OTHERS = ("family", "registry")
FAMILIES = tuple(
    sorted(
        (found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.name not in _OTHERS),
        key=lambda name: (name != DEFAULT, name),
    )
)
"""Names of the families, the default first."""


@functools.cache
def family_of(name: str) -> Family:
    """The family of that name. SettingsError for an unknown one."""
    if name not in FAMILIES:
        raise SettingsError(f"family = {name!r}; choose one of {', '.join(FAMILIES)}")
    family: Family = importlib.import_module(f"{__package__}.{name}").FAMILY
    return family
