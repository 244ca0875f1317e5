"""Groups of fields, for families that have a vector of factors for each group that a feature may meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from dfm.errors import SettingsError
from dfm.settings.constraints import show

Grouping = str | int | Mapping[str, Sequence[str]]
"""model.groups: "auto", a number, or the fields of each group, as names or globs, by the name of the group."""
_AUTOMATIC = 4
"""Groups that are made where the job does not say: as good as eight within the error, at half the floats."""


def groups_of(grouping: Grouping, fields: Sequence[str]) -> tuple[int, ...]:
    """The group of each field, numbered from 0.

    A number, or "auto", makes groups of equal size (to one field) of the fields in their order, and no more groups than
    fields. By name a field belongs to the first group that has it; SettingsError where one has no group, or a group no
    field.
    """
    if isinstance(grouping, Mapping):
        return _named(grouping, fields)
    n_groups = min(_AUTOMATIC if grouping == "auto" else int(grouping), len(fields))
    return tuple(place * n_groups // len(fields) for place in range(len(fields)))


def _named(grouping: Mapping[str, Sequence[str]], fields: Sequence[str]) -> tuple[int, ...]:
    found = [
        next((number for number, of in enumerate(grouping.values()) if any(fnmatchcase(name, p) for p in of)), -1)
        for name in fields
    ]
    missing = [name for name, number in zip(fields, found, strict=True) if number < 0]
    if missing:
        raise SettingsError(
            f"model.groups = {show(grouping)} has no group for {', '.join(missing[:5])}"
            f'{" …" if len(missing) > 5 else ""}; name them, or end with a group of all others: others = ["*"]'
        )
    empty = [name for number, name in enumerate(grouping) if number not in found]
    if empty:
        raise SettingsError(
            f"model.groups.{empty[0]} = {show(grouping[empty[0]])} has no field that no group before it has; the "
            f"fields are {', '.join(fields[:8])}{' …' if len(fields) > 8 else ''}: correct it, or leave it out"
        )
    return tuple(found)


def l2_scales_of(
    given: Mapping[str, float | Sequence[float]], fields: Sequence[str]
) -> tuple[tuple[float, float], ...]:
    """Multipliers of l2_linear and of l2_factors, of each field, as training.l2_groups says; empty where it says
    nothing.

    A field has the numbers of the first name or glob that fits, else 1. SettingsError where one fits no field that none
    before it does.
    """
    if not given:
        return ()
    found = [next((pattern for pattern in given if fnmatchcase(name, pattern)), "") for name in fields]
    idle = next((pattern for pattern in given if pattern not in found), None)
    if idle is not None:
        raise SettingsError(
            f"training.l2_groups.{show(idle)} = {show(given[idle])} fits no field that none before it fits; the fields "
            f"are {', '.join(fields[:8])}{' …' if len(fields) > 8 else ''}: correct it, or leave it out"
        )
    return tuple(_both(given[pattern]) if pattern else (1.0, 1.0) for pattern in found)


def _both(scale: float | Sequence[float]) -> tuple[float, float]:
    of_linear, of_factors = scale if isinstance(scale, Sequence) else (scale, scale)
    return float(of_linear), float(of_factors)


def names_of(grouping: Grouping, groups: Sequence[int]) -> list[str]:
    """The name of each group: the user's, or its number."""
    named = list(grouping) if isinstance(grouping, Mapping) else []
    return [str(name) for name in named or range(1 + max(groups, default=0))]
