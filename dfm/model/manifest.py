"""The legal contents of a model's manifest: checked before anything is made of it; a model may come from anywhere.

The functions raise ValueError with what is wrong. They leave what they do not know of (metadata, later keys).
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.data.derive import FUNCTIONS
from dfm.data.schema import NUMBER_FORMS, WIDENED
from dfm.data.transforms import TRANSFORMS
from dfm.kernels.blocks import MAX_ROW_FACTORS
from dfm.kernels.families.registry import DEFAULT, family_of
from dfm.kernels.optimizers import STATELESS
from dfm.kernels.tables import Layout
from dfm.model.calibration import KINDS, MOST_KNOTS
from dfm.model.drift import N_BINS
from dfm.settings.tables import LIST_WEIGHTS, NAN_RULES, TASKS
from dfm.storage.arrays import distinct

MOST_MANIFEST_BYTES = 1 << 26
MOST_GOLDEN_BYTES = 1 << 28
MOST_GOLDEN_ROWS = 1 << 12
MOST_HASH_BITS, MOST_FACTORS, MOST_FIELDS, MOST_DRAWS = 30, 256, 1 << 16, 1000
_HEADER_BYTES = (1 << 20) + 8
_DIGEST = re.compile(r"[0-9a-f]{64}")


def parse_manifest(data: bytes) -> dict[str, Any]:
    """The JSON object of a manifest."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Types and ranges of all that decides how a model is read and how it scores, and the sizes of its files."""
    if manifest["task"] not in TASKS:
        raise ValueError(f"its task is {_short(manifest['task'])}")
    _integer(manifest["hashing"]["hash_bits"], "hash_bits", 1, MOST_HASH_BITS)
    n_draws = _check_draws(manifest)
    _integer(manifest["n_factors"], "n_factors", 0, MAX_ROW_FACTORS if n_draws else MOST_FACTORS)
    n_features = _integer(manifest["n_features"], "n_features", 0, 1 << MOST_HASH_BITS)
    n_factored = _integer(manifest["n_factored"], "n_factored", 0, n_features)
    _check_clip(manifest)
    _check_calibration(manifest)
    _check_schema(manifest["schema"])
    _check_groups(manifest)
    _check_statistics(manifest["statistics"])
    if not isinstance(manifest["metadata"], dict):
        raise ValueError("its metadata are no object")
    n_fields = len(manifest["schema"]["fields"])
    layout = layout_of(manifest)
    sizes = n_features, n_factored, n_fields
    n_numbers = sum(math.prod(block.value_shape(*sizes)) for block in layout.blocks) + n_draws * (n_features + 2)
    most = 14 * n_features + 8 * n_fields + 4 * n_numbers + _HEADER_BYTES
    bits = (1 << manifest["hashing"]["hash_bits"] >> 3) + 8 * N_BINS * n_fields + _HEADER_BYTES
    for kind, limit in {"parameters": most, "golden": MOST_GOLDEN_BYTES, "seen": bits}.items():
        if kind in manifest["files"]:
            _check_file(manifest["files"][kind], kind, limit)


def layout_of(manifest: Mapping[str, Any]) -> Layout:
    """The layout of a model's table."""
    groups = tuple(int(group) for group in manifest.get("groups", ()))
    family, order = str(manifest.get("family", DEFAULT)), int(manifest.get("order", 0))
    return Layout(STATELESS, int(manifest["n_factors"]), family, groups, order)


def _check_groups(manifest: Mapping[str, Any]) -> None:
    groups = manifest.get("groups", [])
    if not isinstance(groups, list) or len(groups) not in (0, len(manifest["schema"]["fields"])):
        raise ValueError("its groups are no list of one for each field")
    for group in groups:
        _integer(group, "the group of a field", 0, len(groups) - 1)


def _check_file(entry: Mapping[str, Any], kind: str, limit: int) -> None:
    _integer(entry["bytes"], f"size of its {kind} in bytes", 0, limit)
    if not isinstance(entry["name"], str) or not _DIGEST.fullmatch(entry["sha256"]):
        raise ValueError(f"the entry of its {kind} is none")


def _check_draws(manifest: Mapping[str, Any]) -> int:
    """The number of draws, 0 where the model has none."""
    if "draws" not in manifest:
        return 0
    number = _integer(manifest["draws"], "draws", 1, MOST_DRAWS)
    if int(manifest["n_factors"]) % number or manifest.get("family", DEFAULT) != DEFAULT:
        raise ValueError(f"its {number} draws do not share {_short(manifest['n_factors'])} factors")
    return number


def _check_clip(manifest: Mapping[str, Any]) -> None:
    clip = manifest.get("clip", [0.0, 0.0])
    sound = isinstance(clip, list) and len(clip) == 2 and all(_is_finite(bound) for bound in clip)
    if not sound or clip[0] > clip[1]:
        raise ValueError(f"the range of its predictions is {_short(clip)}")


def _check_calibration(manifest: Mapping[str, Any]) -> None:
    """A rising function through finite knots, of a model that has logits."""
    if "calibration" not in manifest:
        return
    known = manifest["calibration"]
    link = manifest.get("loss", {"link": "sigmoid"})["link"]
    scores, logits, slope = known["scores"], known["logits"], known["slope"]
    if known["kind"] not in KINDS or manifest["task"] != "classification" or link != "sigmoid":
        raise ValueError(f"its calibration is {_short(known['kind'])} of a model of {_short(link)}")
    if not isinstance(scores, list) or not isinstance(logits, list) or not 0 < len(scores) <= MOST_KNOTS:
        raise ValueError(f"its calibration has no knots, or more than {MOST_KNOTS}")
    if len(scores) != len(logits) or not all(_is_finite(number) for number in (*scores, *logits, slope)) or slope <= 0:
        raise ValueError("the knots of its calibration are no pairs of finite numbers")
    if any(right <= left for each in (scores, logits) for left, right in itertools.pairwise(each)):
        raise ValueError("its calibration does not rise")


def _check_schema(schema: Mapping[str, Any]) -> None:
    fields = schema["fields"]
    if not isinstance(fields, list) or not 0 < len(fields) < MOST_FIELDS:
        raise ValueError("its schema has no list of fields, or too many")
    for role in ("label", "weight", "time"):
        _text(schema[role], role)
    if not isinstance(schema["label_positive"], list):
        raise ValueError("label_positive is no list")
    for text in schema["label_positive"]:
        _text(text, "label_positive")
    if schema.get("numbers", WIDENED) not in NUMBER_FORMS:
        raise ValueError(f"its numbers are {_short(schema['numbers'])}")
    _check_values(schema)
    _check_fields(fields)


def _check_values(schema: Mapping[str, Any]) -> None:
    """The rules that a schema may give for values, where it gives any."""
    for text in (*schema.get("missing", ()), *schema.get("integers", ()), schema.get("list_separator", "")):
        _text(text, "a text of its schema")
    if schema.get("nan", "error") not in NAN_RULES:
        raise ValueError(f"its nan is {_short(schema['nan'])}")
    for name, function, columns in schema.get("derived", ()):
        known = FUNCTIONS.get(function) if isinstance(function, str) else None
        if known is None or not isinstance(columns, list) or len(columns) != known.n_columns:
            raise ValueError(f"the derived column {_short(name)} is {_short(function)} of {_short(columns)}")
        for text in (name, *columns):
            _text(text, "a derived column")


def _check_fields(fields: list[Any]) -> None:
    kinds: dict[str, str] = {}
    for field in fields:
        _check_field(field, kinds, len(fields))


def _check_field(field: Mapping[str, Any], kinds: dict[str, str], n_fields: int) -> None:
    """One field; adds what it is to `kinds`."""
    name, kind, transform, columns = (field[key] for key in ("name", "kind", "transform", "columns"))
    _text(name, "a field's name")
    none = ("",)
    legal = {"categorical": none, "cross": none, "vector": none, "numeric": tuple(TRANSFORMS), "list": LIST_WEIGHTS}
    if kind not in legal or transform not in legal[kind] or name in kinds:
        raise ValueError(f"the field {_short(name)} is {_short(kind)}, {_short(transform)}, or there twice")
    if kind == "vector":
        _check_vector(columns, n_fields)
        return
    if not isinstance(columns, list) or (len(columns) < 2 if kind == "cross" else columns != [name]):
        raise ValueError(f"the columns of the field {_short(name)} are {_short(columns)}")
    if kind == "cross" and not all(kinds.get(column) == "crossable" for column in columns):
        raise ValueError(f"the cross {_short(name)} has a part that is no category")
    crossable = kind in ("categorical", "list") or (kind == "numeric" and TRANSFORMS[transform].makes_buckets)
    kinds[name] = "crossable" if crossable else "other"


def _check_vector(columns: Any, n_fields: int) -> None:
    """The columns of a numeric matrix, which is a model's only field."""
    if n_fields > 1 or not isinstance(columns, list) or not columns or len(set(map(str, columns))) < len(columns):
        raise ValueError("its matrix has no columns, one of them twice, or fields beside it")
    for column in columns:
        _text(column, "a column's name")


def _check_statistics(statistics: Mapping[str, Any]) -> None:
    for name, known in statistics.items():
        boundaries = known["boundaries"]
        numbers = [*boundaries, known["mean"], known["stdev"]]
        if not all(_is_finite(number) for number in numbers) or known["stdev"] < 0:
            raise ValueError(f"the statistics of {_short(name)} are no finite numbers")
        if any(right <= left for left, right in itertools.pairwise(boundaries)):
            raise ValueError(f"the boundaries of {_short(name)} do not ascend")


def check_arrays(manifest: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """That features are there once, belong to a field and have finite parameters; the shapes are checked elsewhere."""
    ids, fields, n_fields = arrays["ids"], arrays["fields"], len(manifest["schema"]["fields"])
    if len(ids) != manifest["n_features"] or len(distinct(ids)) != len(ids):
        raise ValueError("its features are not as many as it says, or there twice")
    unknown = np.iinfo(np.uint16).max
    if np.any((fields >= n_fields) & (fields != unknown)) or np.any(arrays["counts"] < 0):
        raise ValueError("a feature's field or count is out of range")
    if np.any(arrays["rare"] < -1):
        raise ValueError("a row of rare features is out of range")
    layout = layout_of(manifest)
    if family_of(layout.family).knows_fields and np.any(fields == unknown):
        raise ValueError("a feature belongs to no field")
    if not all(np.all(np.isfinite(arrays[block.name])) for block in layout.blocks):
        raise ValueError("a parameter is not finite")


def _integer(value: object, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {_short(value)}, and no integer from {low} to {high}")
    return value


def _text(value: object, name: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_short(value)}, and no text")


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
