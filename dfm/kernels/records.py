"""The common part of the records of losses and optimizers: numbers of their own, with default, range and help.

Light: settings take their knobs from here, so nothing in these modules may import Numba before something is compiled.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Parameter:
    """A number that one loss or one optimizer alone reads: its default and range; an `open` bound is itself illegal.

    is_penalty: of weights; the bias pays none.
    """

    name: str
    default: float
    help: str = ""
    low: float = 0.0
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    is_penalty: bool = False

    @property
    def legal(self) -> str:
        """The range in words."""
        start = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        return f"{start} and {'finite' if self.high == math.inf else f'below {self.high:g}'}"

    def allows(self, value: float) -> bool:
        """Whether a value lies in the range."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high or self.high == math.inf else value <= self.high
        return above and below


def with_fields_of(parameters: Iterable[Parameter], after: str, make: Any = None) -> Any:
    """A decorator for below @dataclass: the class gets a float field for each parameter, in place behind field `after`.

    make: what makes a field's default of a parameter; the number itself without it. So a parameter is declared once, in
    its record, and type checkers know of it what the class tells them (see `contract.Step`).
    """

    def decorate(cls: type[T]) -> type[T]:
        annotations: dict[str, Any] = {}
        for name, kind in inspect.get_annotations(cls).items():
            annotations[name] = kind
            if name == after:
                annotations |= {own.name: "float" for own in parameters}
        cls.__annotations__ = annotations
        for own in parameters:
            setattr(cls, own.name, field(default=own.default) if make is None else make(own))
        return cls

    return decorate
