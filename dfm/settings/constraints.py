"""Constraints of knobs: data, from which messages, tests and the reference are made."""

from __future__ import annotations

import datetime
import difflib
import json
import math
import numbers
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from dfm.errors import SettingsError


class Illegal(ValueError):
    """A value that a constraint refuses; the text is a hint towards a legal one, or empty."""


class Constraint(Protocol):
    """The values that a knob accepts: `legal` says them in words, `parse` gives the stored form or raises `Illegal`."""

    @property
    def legal(self) -> str: ...

    def parse(self, value: object) -> Any: ...


@dataclass(frozen=True)
class Number:
    """A finite number in a range; `open_low` and `open_high` exclude the end points."""

    low: float
    high: float = math.inf
    integer: bool = False
    open_low: bool = False
    open_high: bool = False

    @property
    def legal(self) -> str:
        noun = "an integer" if self.integer else "a number"
        if self.low == -math.inf:
            return noun
        if self.high == math.inf:
            return f"{noun} above {self.low}" if self.open_low else f"{noun}, {self.low} or more"
        start = f"above {self.low}" if self.open_low else f"from {self.low}"
        return f"{noun} {start} to {'below ' if self.open_high else ''}{self.high}"

    def parse(self, value: object) -> int | float:
        if isinstance(value, str) and _is_number(value):
            raise Illegal("Write the number without quotes.")
        kind = numbers.Integral if self.integer else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            raise Illegal
        try:
            number = int(value) if isinstance(value, numbers.Integral) and self.integer else float(value)
        except OverflowError:
            raise Illegal from None
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        if not (math.isfinite(number) and above and below):
            raise Illegal
        return number


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Flag:
    """true or false."""

    legal: ClassVar[str] = "true or false"

    def parse(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise Illegal("Write true or false without quotes." if value in ("true", "false") else "")


@dataclass(frozen=True)
class Options:
    """One word of a fixed set."""

    words: tuple[str, ...]

    @property
    def legal(self) -> str:
        return " or ".join(f'"{word}"' for word in self.words)

    def parse(self, value: object) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        raise Illegal(did_you_mean(str(value), self.words))


OWN = "custom:"
"""The start of the mark of a function that Python passed, custom:NAME:SHA256, which runs nothing."""


@dataclass(frozen=True)
class OptionsOrOwn(Options):
    """One word of a fixed set, or the mark of a user's function."""

    def parse(self, value: object) -> str:
        if isinstance(value, str) and re.fullmatch(rf"{OWN}.+:[0-9a-f]{{64}}", value):
            return value
        return super().parse(value)


@dataclass(frozen=True)
class Text:
    """A string; a path object counts as one."""

    may_be_empty: bool = True

    @property
    def legal(self) -> str:
        return "a string" if self.may_be_empty else "a non-empty string"

    def parse(self, value: object) -> str:
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not isinstance(text, str):
            raise Illegal("Put it in quotes.")
        if not text and not self.may_be_empty:
            raise Illegal
        return text


@dataclass(frozen=True)
class Moment:
    """A point on the axis of the time column, kept as text: a TOML date is stored in ISO 8601."""

    legal: ClassVar[str] = "a string, an integer or a date"

    def parse(self, value: object) -> str:
        if isinstance(value, bool):
            raise Illegal
        if isinstance(value, datetime.datetime):
            return value.isoformat(sep=" ")
        if isinstance(value, datetime.date):
            return value.isoformat()
        if isinstance(value, numbers.Integral):
            return str(int(value))
        if isinstance(value, str):
            return value
        raise Illegal


@dataclass(frozen=True)
class Size:
    """An amount of bytes with its unit, kept as text; `parse_bytes` counts it."""

    legal: ClassVar[str] = 'a size such as "500MB", "4GB" or "8GiB"'

    def parse(self, value: object) -> str:
        if not isinstance(value, str):
            raise Illegal("Write a string with a unit.")
        parse_bytes(value)
        return value


@dataclass(frozen=True)
class Factory:
    """The name of a function, `module:function`, or nothing."""

    legal: ClassVar[str] = "a name of the form module:function"

    def parse(self, value: object) -> str:
        if value == "":
            return ""
        if not isinstance(value, str) or not re.fullmatch(r"[\w.]+:[\w.]+", value):
            raise Illegal
        return value


@dataclass(frozen=True)
class AnyOf:
    """The values that any one of several constraints accepts, tried in their order."""

    choices: tuple[Constraint, ...]

    @property
    def legal(self) -> str:
        return " or ".join(choice.legal for choice in self.choices)

    def parse(self, value: object) -> Any:
        for choice in self.choices:
            try:
                return choice.parse(value)
            except Illegal as illegal:
                last = illegal
        raise Illegal(*last.args)


@dataclass(frozen=True)
class ListOf:
    """A list stored as a tuple; with `lone`, a bare item stands for a list of one and "" for none."""

    item: Constraint
    at_least: int = 0
    lone: bool = False

    @property
    def legal(self) -> str:
        size = f" of {self.at_least} or more" if self.at_least else ""
        many = f"a list{size}, each {self.item.legal}"
        return f"{self.item.legal} or a list of these" if self.lone else many

    def parse(self, value: object) -> tuple[Any, ...]:
        if self.lone and isinstance(value, str | os.PathLike):
            value = [value] if value != "" else []
        if not isinstance(value, list | tuple):
            self.item.parse(value)  # who refuses it in brackets, too, has the better hint
            raise Illegal("Put it in [brackets].")
        if len(value) < self.at_least:
            raise Illegal
        return tuple(self.item.parse(item) for item in value)


@dataclass(frozen=True)
class TableOf:
    """A TOML table whose keys are free and whose values share one constraint."""

    value: Constraint

    @property
    def legal(self) -> str:
        return f"a table, each value {self.value.legal}"

    def parse(self, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise Illegal("Write it as key = value pairs below its own [table.key] heading.")
        return {str(key): self.value.parse(inner) for key, inner in value.items()}


SCALARS = (Text(), Flag(), Number(-math.inf, integer=True), Number(-math.inf))
COLUMNS = ListOf(Text(may_be_empty=False), lone=True)
PATHS = ListOf(Text(may_be_empty=False), lone=True)
_BYTE_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{prefix}i": 2 ** (10 * power) for power, prefix in enumerate("KMGT", start=1)
}


def parse_bytes(text: str) -> int:
    """Bytes in a size such as "4GB" (decimal) or "4GiB" (binary)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?|[KMGT]i)B", text.strip().replace("KB", "kB"))
    if match is None:
        raise Illegal("Write digits and a unit out of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB.")
    return int(float(match[1]) * _BYTE_UNITS[match[2]])


@dataclass(frozen=True)
class Knob:
    """One key of a TOML table: what it accepts and what it means. A secret value is never shown or stored.

    is_late: whether it came when there were jobs already. At its default it stays out of fingerprints, so that theirs
    are what they were.
    """

    default: Any
    constraint: Constraint
    help: str
    unit: str = ""
    secret: bool = False
    is_late: bool = False

    @property
    def legal(self) -> str:
        return f"{self.constraint.legal}, in {self.unit}" if self.unit else self.constraint.legal

    def parse(self, name: str, value: object) -> Any:
        """The value in its stored form; `name` is `table.key`, for the message."""
        try:
            return self.constraint.parse(value)
        except Illegal as illegal:
            shown = "(hidden)" if self.secret else show(value)
            hint = " ".join(str(part) for part in illegal.args if part and not self.secret)
            message = f"{name} = {shown} is not legal: expected {self.legal}."
            remedy = f"Leave it out for the default, {show(self.default)}."
            raise SettingsError(" ".join(filter(None, (message, hint, remedy)))) from None


def knob(
    default: Any, constraint: Constraint, help: str, unit: str = "", secret: bool = False, is_late: bool = False
) -> Any:
    """A dataclass field that carries its `Knob`."""
    metadata = {"knob": Knob(default, constraint, help, unit, secret, is_late)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


def show(value: object) -> str:
    """The value as TOML would write it, which has no None, shortened to one line."""
    try:
        text = "None" if value is None else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A sentence that names the candidate nearest to a word; "" where none is near."""
    nearest = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f'Did you mean "{nearest[0]}"?' if nearest else ""
