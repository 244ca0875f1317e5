"""A numeric column of which nobody says how gets buckets that tell its numbers apart, and a model keeps the choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dfm.data.bucketing import effective_buckets
from dfm.data.encoding import encode_batch
from dfm.data.number_sketches import sketch_values, statistics_of
from dfm.data.row_encoder import RowEncoder
from dfm.data.schema import ResolvedSchema, resolve
from dfm.data.transforms import NumberStatistics
from dfm.settings.tables import Schema

N = 20_000
RNG = np.random.default_rng(0)
EVEN = RNG.random(N)
COLUMNS = {
    "rates": (EVEN, True),
    "negative numbers": (-10 * EVEN, True),
    "standardized numbers": (RNG.normal(size=N), True),
    "milliseconds of a year": (1.7e12 + 3.15e10 * EVEN, True),
    "even numbers up to 1000": (1_000 * EVEN, False),
    "even numbers up to 100,000": (1e5 * EVEN, False),
    "counts": (RNG.geometric(0.2, N).astype(float), False),
    "heavy tails": (np.exp(RNG.normal(3, 2, N)), False),
    "flags": ((EVEN > 0.5).astype(float), False),
    "zeros but for a few": (np.where(EVEN < 0.95, 0.0, np.round(100 * RNG.exponential(size=N))), False),
    "one number": (np.full(N, 0.5), False),
    "no number": (np.zeros(0), False),
}


def schema_of(transform: str) -> ResolvedSchema:
    return resolve(Schema(numeric=("x",), numeric_transform=transform), ["label", "x"])


@pytest.mark.parametrize("name", COLUMNS)
def test_quantiles_are_taken_where_logarithms_tell_too_little_apart(name: str) -> None:
    values, expected = COLUMNS[name]
    halves = [sketch_values(part) for part in np.array_split(values, 2)]
    found = statistics_of({"x": halves}, schema_of("auto"))
    assert ("x" in found) == expected
    quantiles = statistics_of({"x": halves}, schema_of("quantile"))
    assert not expected or found == quantiles
    assert statistics_of({"x": halves}, schema_of("standardize")).keys() == {"x"}


def test_as_many_buckets_as_equal_ones_would_be() -> None:
    assert effective_buckets(np.array([0, 1, 2, 3], np.int32), np.ones(4)) == pytest.approx(4.0)
    assert effective_buckets(np.array([0, 1], np.int32), np.array([3.0, 1.0])) == pytest.approx(1.6)


@pytest.mark.parametrize(("boundaries", "same_as"), [((), "log2-bucket"), ((-1.0, 0.2, 0.7), "quantile")])
def test_a_choice_hashes_as_if_it_had_been_named(boundaries: tuple[float, ...], same_as: str) -> None:
    statistics = {"x": NumberStatistics(boundaries, 0.0, 1.0)}
    values = [-3.0, 0.1, 0.5, 0.9, 77.0, None, 0.2]
    batch = pa.record_batch({"x": pa.array(values, pa.float64())})
    automatic, named = (
        encode_batch(batch, schema_of(transform), 18, statistics, None).rows for transform in ("auto", same_as)
    )
    np.testing.assert_array_equal(automatic.indices, named.indices)
    row_by_row: Any = RowEncoder(schema_of("auto"), 18, statistics).encode({"x": values}, len(values))
    np.testing.assert_array_equal(row_by_row.indices, named.indices)
