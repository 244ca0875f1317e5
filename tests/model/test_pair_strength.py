"""Strength of pairs of fields: the mean absolute sum of the terms that explaining a row names."""

from __future__ import annotations

import math
import tracemalloc
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import dfm
from dfm.data.schema import resolve
from dfm.kernels.families.registry import FAMILIES, family_of
from dfm.model.fm_model import FMModel
from dfm.model.pair_strength import has_pairs, left_out, n_paired, pair_records, pair_sums, strength_matrix
from dfm.settings.tables import Schema
from tests.model.test_families import moved, of_family
from tests.support.small_models import EVERY_KIND, make_model, model_of_schema, random_table

N_ROWS = 30


def expected_strengths(model: FMModel, rows: list[dict[str, Any]], weights: list[float]) -> dict[frozenset[str], float]:
    """By names of fields, from the terms of each row."""
    total: dict[frozenset[str], float] = defaultdict(float)
    for row, weight in zip(rows, weights, strict=True):
        terms: dict[frozenset[str], float] = defaultdict(float)
        for term in model.explain(row).pairs:
            terms[frozenset(name.partition("=")[0] for name in term.names)] += term.amount
        for fields, amount in terms.items():
            total[fields] += weight * abs(amount)
    return {fields: amount / sum(weights) for fields, amount in total.items()}


@pytest.mark.parametrize("family", [name for name in FAMILIES if family_of(name).sides])
def test_strengths_are_mean_absolute_terms(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfm.model.pair_strength._NUMBERS_AT_ONCE", 5_000)  # rows of several parts
    model = moved(of_family(make_model(EVERY_KIND), family))
    table = random_table(N_ROWS, 3).drop_columns(["label"])
    weights = np.random.default_rng(1).random(N_ROWS)
    names = [entry.name for entry in model.schema.fields]
    (batch,) = table.combine_chunks().to_batches()
    records = pair_records(pair_sums(model, batch, weights), float(weights.sum()), names)
    found = {frozenset((each["first"], each["second"])): each["strength"] for each in records}
    expected = {k: v for k, v in expected_strengths(model, table.to_pylist(), weights.tolist()).items() if v}
    assert frozenset(("tags",)) in expected, "elements of a list meet each other"
    assert found == {fields: pytest.approx(amount, rel=1e-9) for fields, amount in expected.items()}
    strengths = [each["strength"] for each in records]
    assert strengths == sorted(strengths, reverse=True)
    matrix = strength_matrix(records, names)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert math.isclose(np.triu(matrix).sum(), sum(strengths))


def test_terms_of_many_fields_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfm.model.pair_strength._NUMBERS_AT_ONCE", 50_000)
    n_rows, model, batch = 300, *wide(120)
    tracemalloc.start()
    try:
        found = pair_sums(model, batch, np.ones(n_rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.count_nonzero(found) == 120 * 119
    assert peak < n_rows * 120**2 * 8 / 3


def wide(n_fields: int) -> tuple[FMModel, pa.RecordBatch]:
    """A model of so many categorical columns, and rows for it."""
    rng, names = np.random.default_rng(0), [f"c{number}" for number in range(n_fields)]
    table = pa.table({name: rng.integers(0, 4, 300) for name in names})
    schema = resolve(Schema(categorical=("c*",)), ["label", *names])
    return model_of_schema(schema, table), table.to_batches()[0]


def test_pairs_of_too_many_fields_are_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = wide(9)
    assert (n_paired(model), left_out(model.schema)) == (9, "")
    monkeypatch.setattr("dfm.model.pair_strength.MOST_FIELDS", 8)
    assert n_paired(model) == 0
    assert "pairs of 9 fields are too many to be measured; those of up to 8 are" in left_out(model.schema)
    rows = batch.append_column("label", pa.array(np.arange(300) % 2))
    found = dfm.importance(model, pa.Table.from_batches([rows]), repeats=1)
    assert len(found["columns"]) == 9
    assert (found["pairs"], found["pairs_left_out"]) == ([], left_out(model.schema))


def test_a_linear_model_has_no_pairs() -> None:
    assert has_pairs(make_model())
    assert not has_pairs(make_model(n_factors=0))
    assert not has_pairs(of_family(make_model(), "polynomial")), "its products are of sums"
