"""Job files as text: what `load_job` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of a job as a TOML file."""
    lines: list[str] = []
    for name, table in tables.items():
        inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
        lines.append(f"[{name}]")
        lines += [f"{key} = {toml_value(value)}" for key, value in table.items() if key not in inner]
        for key, values in inner.items():
            if values:
                lines += [f"[{name}.{key}]", *(f"{toml_value(k)} = {toml_value(v)}" for k, v in values.items())]
        lines.append("")
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """A value as it stands in a TOML file."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_value(key)} = {toml_value(inner)}" for key, inner in value.items()) + "}"
    # What JSON and TOML differ in: TOML wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
