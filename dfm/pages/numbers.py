"""Numbers as people read them, on pages, in tables and in lines."""

from __future__ import annotations

import math
from collections.abc import Iterable

_SMALL = 1e-3
"""Below it so few of five decimals are left that two models of labels in a small unit look alike."""


def number_form(values: Iterable[float | None], form: str = ".5f") -> str:
    """The format of numbers that are compared with each other: `form`, with so many digits after the point, or as many
    significant ones where even the largest number would hardly show.
    """
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    return f"{form[:-1]}g" if 0 < largest < _SMALL else form


def number_text(value: float | None, form: str = ".5f") -> str:
    """A number by itself, in its `number_form`; "-" where there is none."""
    return "-" if value is None else f"{value:{number_form([value], form)}}"


def named_text(name: str, value: float | None) -> str:
    """A number with the name of its metric: "log loss 0.41234"."""
    return f"{name.replace('_', ' ')} {number_text(value)}"
