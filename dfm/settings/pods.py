"""Constraints of the knobs of [kubernetes] that describe pods: names, paths, and tables as Kubernetes has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dfm.settings.constraints import Constraint, Flag, Illegal, ListOf, Number, Options, Size, Text, did_you_mean


@dataclass(frozen=True)
class Pattern:
    """A string of a form. words: what the form is called."""

    pattern: str
    words: str

    @property
    def legal(self) -> str:
        return self.words

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise Illegal
        return value


@dataclass(frozen=True)
class Names:
    """A TOML table of texts whose keys are of a form."""

    key: Pattern
    value: Constraint = field(default_factory=Text)

    @property
    def legal(self) -> str:
        return f"a table, each key {self.key.legal}, each value {self.value.legal}"

    def parse(self, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise Illegal("Write it as key = value pairs below its own [table.key] heading.")
        return {self.key.parse(name): self.value.parse(inner) for name, inner in value.items()}


@dataclass(frozen=True)
class Fields:
    """A TOML table with keys of its own. needed: those it must have; one_of: of these it must have exactly one."""

    fields: Mapping[str, Constraint]
    needed: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()

    @property
    def legal(self) -> str:
        others = [name for name in self.fields if name not in (*self.needed, *self.one_of)]
        parts = [", ".join(self.needed), f"one of {', '.join(self.one_of)}" if self.one_of else ""]
        parts.append(f"and, if need be, {', '.join(others)}" if others else "")
        return f"a table with {', '.join(filter(None, parts))}"

    def parse(self, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise Illegal("Write it as { key = value, … }.")
        for name in value:
            if name not in self.fields:
                raise Illegal(f"{name} is unknown. {did_you_mean(str(name), self.fields)}")
        if missing := [name for name in self.needed if name not in value]:
            raise Illegal(f"It lacks {', '.join(missing)}.")
        if self.one_of and sum(name in value for name in self.one_of) != 1:
            raise Illegal(f"Give exactly one of {', '.join(self.one_of)}.")
        return {name: self._parsed(name, inner) for name, inner in value.items()}

    def _parsed(self, name: str, value: object) -> Any:
        try:
            return self.fields[name].parse(value)
        except Illegal as illegal:
            hint = " ".join(str(part) for part in illegal.args if part)
            raise Illegal(f"{name} must be {self.fields[name].legal}. {hint}".strip()) from None


@dataclass(frozen=True)
class Structure:
    """A table as it stands in a Kubernetes manifest, of any depth. keys: those of its first level."""

    keys: tuple[str, ...]

    @property
    def legal(self) -> str:
        return f"a table with {', '.join(self.keys)}, as in a Kubernetes manifest"

    def parse(self, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise Illegal("Write it below its own [table.key] heading.")
        for name in value:
            if name not in self.keys:
                raise Illegal(f"{name} is unknown. {did_you_mean(str(name), self.keys)}")
        return {str(name): _plain(inner) for name, inner in value.items()}


def _plain(value: object) -> Any:
    """The value with lists and dicts of its own, of what JSON has. Illegal where there is anything else in it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if not isinstance(value, str | int | float | bool):
        raise Illegal
    return value


_LABEL = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = Pattern(_LABEL, "a name such as team or example.com/team")
_LABEL_VALUE = Pattern(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", "of letters, digits, - _ and .")
LABELS = Names(_LABEL_KEY, _LABEL_VALUE)
ANNOTATIONS = Names(_LABEL_KEY)
_VARIABLE = Pattern(r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable")
VARIABLES = Names(_VARIABLE)
_PART = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
OBJECT = Pattern(
    rf"(?![^:]{{254}}){_PART}(\.{_PART})*",
    "the name of an object (at most 253 of a-z, 0-9, - and ., a letter or digit beside each . and at both ends)",
)
_KEY = Pattern(rf"(secret|configmap):{OBJECT.pattern}:[-._a-zA-Z0-9]+", '"secret:NAME:KEY" or "configmap:NAME:KEY"')
SOURCES = Names(_VARIABLE, _KEY)
MAYBE_OBJECT = Pattern(f"({OBJECT.pattern})?", f"{OBJECT.words}, or empty")
MAYBE_NAMESPACE = Pattern(
    f"((?!.{{64}}){_PART})?",
    "the name of a namespace (at most 63 of a-z, 0-9 and -, a letter or digit at both ends), or empty",
)
_FOLDER = Pattern(r"(/[^/\0:]+)+", "a path from the root, such as /data")
TOLERATIONS = ListOf(
    Fields(
        {
            "key": Text(),
            "operator": Options(("Exists", "Equal")),
            "value": Text(),
            "effect": Options(("NoSchedule", "PreferNoSchedule", "NoExecute")),
            "tolerationSeconds": Number(0, integer=True),
        }
    )
)
AFFINITY = Structure(("nodeAffinity", "podAffinity", "podAntiAffinity"))
VOLUMES = ListOf(
    Fields(
        {
            "mount": _FOLDER,
            "claim": OBJECT,
            "nfs": Pattern(r"[^:/\s]+:/\S*", '"server:/path"'),
            "host_path": _FOLDER,
            "secret": OBJECT,
            "config_map": OBJECT,
            "empty": Size(),
            "sub_path": Text(may_be_empty=False),
            "read_only": Flag(),
        },
        ("mount",),
        ("claim", "nfs", "host_path", "secret", "config_map", "empty"),
    )
)
