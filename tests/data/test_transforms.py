"""Numeric transforms against their definitions, one row of a table each; their names stand in one module."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dfm
from dfm.data.transforms import MOMENTS, NOTHING_KNOWN, TRANSFORMS, NumberStatistics
from dfm.settings.constraints import Options
from dfm.settings.tables import Schema

KNOWN = {"boundaries": NumberStatistics((-1.0, 0.0, 0.1, 2.5)), MOMENTS: NumberStatistics((), 40.0, 12.0)}


def log2_bucket(x: float) -> int:
    if x <= 2:
        return 1 if x < 0 else 2 if x == 0 else 3 if x <= 1 else 4
    return min(5 + int(math.log(x) ** 2), 2047)


def rounded(x: float) -> float:
    """A code by the two leading digits that Python writes."""
    if abs(x) < 1e-15:
        return 1
    digits, exponent = f"{min(abs(x), 9.9e30):.1e}".split("e")
    place = int(exponent) + 15
    return 2 + 2 * (place * 90 + int(digits.replace(".", "")) - 10) + (x < 0)


DEFINITIONS: dict[str, Callable[[float], float]] = {
    "auto": lambda x: 1 + sum(boundary <= x for boundary in KNOWN["boundaries"].boundaries),
    "log2-bucket": log2_bucket,
    "quantile": lambda x: 1 + sum(boundary <= x for boundary in KNOWN["boundaries"].boundaries),
    "hash-of-rounded-value": rounded,
    "standardize": lambda x: (x - 40.0) / 12.0,
    "raw": lambda x: x,
}
NUMBERS = st.one_of(st.floats(-1e35, 1e35), st.integers(-200, 200).map(float), st.floats(-3, 3), st.floats(width=32))


def test_every_transform_has_its_definition() -> None:
    assert list(DEFINITIONS) == list(TRANSFORMS)


@pytest.mark.parametrize("name", TRANSFORMS)
@given(numbers=st.lists(NUMBERS.filter(math.isfinite), min_size=1, max_size=9))
def test_a_transform_is_what_its_definition_says(name: str, numbers: list[float]) -> None:
    transform = TRANSFORMS[name]
    known = KNOWN.get(transform.statistics, NOTHING_KNOWN)
    values, present = np.array(numbers), np.ones(len(numbers), np.bool_)
    expected = [DEFINITIONS[name](x) for x in numbers]
    if not transform.makes_buckets:
        np.testing.assert_allclose(transform.values(values, known), expected, rtol=1e-12)
        return
    codes = transform.codes(values, present, known)
    assert codes.dtype == np.int32
    assert codes.tolist() == expected
    assert 0 < codes.min() <= codes.max() < transform.n_codes(known)
    assert transform.codes(values * 0, ~present, known).tolist() == [0] * len(numbers)


def test_a_transform_makes_buckets_or_values() -> None:
    for transform in TRANSFORMS.values():
        other = transform.values if transform.makes_buckets else transform.codes
        with pytest.raises(TypeError, match="not both"):
            other(np.ones(1), np.ones(1, np.bool_), NOTHING_KNOWN)


def test_settings_take_names_and_help_from_the_records() -> None:
    knob = Schema.knobs()["numeric_transform"]
    assert isinstance(knob.constraint, Options)
    for name, transform in TRANSFORMS.items():
        assert knob.parse("schema.numeric_transform", name) == name
        assert f"{name}: {transform.meaning}" in knob.help


def test_no_other_module_writes_the_name_of_a_transform() -> None:
    """The quantile loss has its name by itself, and more than one knob is "auto"."""
    package, found = Path(dfm.__file__).parent, {}
    for path in package.rglob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if named := texts & TRANSFORMS.keys() - {"auto", "quantile"}:
            found[path.relative_to(package).as_posix()] = named
    assert found == {"data/transforms.py": TRANSFORMS.keys() - {"auto", "quantile"}}
