"""Arguments of functions: they are checked as knobs of a job are, and refused in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dfm.errors import SettingsError
from dfm.settings.constraints import Constraint, Knob, ListOf, Number, TableOf, Text, show
from dfm.settings.tables import DataSettings

_TEXTS = ListOf(Text(), lone=True)
COUNT = Number(1, integer=True)
"""A number of things, of which there must be one at least."""


def checked(name: str, value: object, default: Any, constraint: Constraint) -> Any:
    """An argument in the form that the constraint gives it. SettingsError where it refuses it."""
    return Knob(default, constraint, "").parse(name, value)


def check_bad_rows(on_bad_rows: object, max_bad_fraction: object = 0.0) -> None:
    """SettingsError where a job would not take such a rule for bad rows, or such a share of them."""
    knobs = DataSettings.knobs()
    knobs["on_bad_rows"].parse("on_bad_rows", on_bad_rows)
    knobs["max_bad_fraction"].parse("max_bad_fraction", max_bad_fraction)


def texts(name: str, value: str | Iterable[str]) -> tuple[str, ...]:
    """Several texts, or a lone one; "" is none. SettingsError where it is anything else."""
    listed = value if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    found: tuple[str, ...] = checked(name, listed, (), _TEXTS)
    return found


def pairs(name: str, value: Mapping[str, Any] | None, constraint: Constraint) -> dict[str, Any]:
    """Values by name, none for None. SettingsError where it is no dict, or the constraint refuses one of the values."""
    if value is not None and not isinstance(value, Mapping):
        raise SettingsError(f"{name} = {show(value)} is not legal: expected a dict, each value {constraint.legal}")
    found: dict[str, Any] = checked(name, value or {}, {}, TableOf(constraint))
    return found
