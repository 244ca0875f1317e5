"""What a family promises beyond its formula: where it begins, what it learns, what it must know of rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.tables import InitialValues, initialise
from tests import reference
from tests.support.kernel_cases import FIELDS, N_FIELDS, PAIRS, make_rows, make_table, strengths_of


def test_an_untrained_field_weighted_machine_is_a_factorization_machine() -> None:
    rows, scores = make_rows(), {}
    for family in ("fm", "fwfm"):
        spec = KernelSpec("logistic", "adagrad", 16, family=family)
        table = make_table(family=family)
        table.factors[...] /= 3  # the two add up in another order: what that changes goes with the size of the pairs
        scores[family] = compile_kernels(spec).scores(rows, table)
    np.testing.assert_allclose(scores["fwfm"], scores["fm"], rtol=1e-6, atol=1e-6)


def test_strengths_are_learnt_where_pairs_of_fields_matter_differently() -> None:
    """Only the pair of fields 0 and 1 decides; the others are noise."""
    rng = np.random.default_rng(5)
    features = np.stack([2 * field + rng.integers(0, 2, 4000) for field in range(3)], axis=1)
    labels = (features[:, 0] % 2 == features[:, 1] % 2).astype(np.float32)
    rows = reference.Rows(
        np.arange(0, 12001, 3), features.astype(np.uint32).reshape(-1), np.zeros(0, np.float32), labels,
        np.zeros(0, np.float32), 4000, np.repeat(np.arange(3), 2).astype(np.uint16),
    )  # fmt: skip
    spec = KernelSpec("logistic", "adagrad", 8, family="fwfm")
    table = initialise(spec.layout, np.arange(6, dtype=np.uint32), 6, InitialValues(1, 0.3), 3)
    kernels = compile_kernels(spec)
    for seed in range(5):
        kernels.run_round(rows, table, Step(0.1, 0.1, seed=seed))
    strengths = dict(zip(PAIRS[:6], strengths_of(table), strict=True))
    assert strengths[0, 1] > 1.1 > max(abs(strengths[0, 2]), abs(strengths[1, 2]))
    assert {strengths[field, field] for field in range(3)} == {1.0}, "no row has two of a field"


def test_rows_that_do_not_know_fields_are_refused_where_they_are_needed() -> None:
    spec = KernelSpec("logistic", "adagrad", 16, family="fwfm")
    kernels, table, rows = compile_kernels(spec), make_table(family="fwfm"), make_rows()
    for fields in (FIELDS[:0], FIELDS[:-1], np.full_like(FIELDS, N_FIELDS)):
        with pytest.raises(ValueError, match="the field of each feature"):
            kernels.scores(dataclasses.replace(rows, fields=fields), table)
