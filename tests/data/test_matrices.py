"""Numeric matrices as rows, and models that serve them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse

from dfm.data.encoding import encode_batch
from dfm.data.matrices import ColumnMoments, Scaling, column_names, matrix_rows, vector_schema, vector_vocabulary
from dfm.errors import DataError
from dfm.kernels.tables import InitialValues, Layout, initialise
from dfm.model.export import hashed_inputs, parquet_table
from dfm.model.fm_model import FMModel

RNG = np.random.default_rng(4)
MATRIX = RNG.normal(size=(50, 4)) * [1, 10, 0.1, 1] + [0, 100, 0, 0]
NO_WEIGHTS = np.zeros(0, np.float32)


def model_of(scaling: Scaling | None) -> FMModel:
    vocabulary = vector_vocabulary(4, np.full(4, 50, np.int64))
    table = initialise(Layout("sgd", 3), vocabulary.ids, 4, InitialValues(1, 0.5))
    table.linear[:, 0] = [0.3, -0.2, 0.1, 0.7]
    table.bias[0] = 0.25
    names = column_names(4)
    statistics = {} if scaling is None else scaling.statistics(names)
    return FMModel(vector_schema(names), "regression", vocabulary, table, statistics)


def test_moments_of_parts_add_up_to_those_of_the_whole():
    weights = RNG.random(50).astype(np.float32)
    whole = ColumnMoments.of(MATRIX, weights)
    parts = ColumnMoments.of(MATRIX[:7], weights[:7]) + ColumnMoments.of(MATRIX[7:], weights[7:])
    np.testing.assert_allclose(parts.mean, whole.mean)
    np.testing.assert_allclose(parts.squares, whole.squares)
    expected = np.sqrt(np.cov(MATRIX.T, aweights=weights, ddof=0).diagonal())
    np.testing.assert_allclose(Scaling.from_moments(whole).scale, expected)


def test_scaled_columns_have_mean_zero_and_deviation_one_but_flags_stay():
    flags = np.column_stack([MATRIX, MATRIX[:, 0] > 0, np.full(50, 7.0)])
    seen = Scaling.from_moments(ColumnMoments.of(flags, NO_WEIGHTS)).apply(flags)
    np.testing.assert_allclose(seen[:, :4].mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(seen[:, :4].std(axis=0), 1.0)
    np.testing.assert_array_equal(seen[:, 4], flags[:, 4])
    np.testing.assert_array_equal(seen[:, 5], 0.0)


def test_entries_that_stand_twice_are_added_and_zeros_left_out():
    twice = scipy.sparse.coo_array(([1.0, 2.0, 0.0, 5.0], ([0, 0, 1, 1], [2, 2, 0, 1])), (2, 3))
    rows = matrix_rows(twice)
    assert rows.indptr.tolist() == [0, 1, 2]
    assert (rows.indices.tolist(), rows.values.tolist()) == ([2, 1], [3.0, 5.0])
    dense = matrix_rows(twice.toarray())
    np.testing.assert_array_equal(dense.indices, rows.indices)
    np.testing.assert_array_equal(dense.values, rows.values)


def test_ones_are_not_stored():
    assert matrix_rows(np.eye(3, dtype=np.int64)).values.size == 0


def test_numbers_beyond_float32_are_refused():
    for number in (np.nan, np.inf, 1e39):
        with pytest.raises(DataError, match="beyond float32"):
            matrix_rows(np.array([[1.0, number]]))


@pytest.mark.parametrize("is_scaled", [False, True])
def test_a_matrix_a_table_and_the_definition_agree(is_scaled):
    scaling = Scaling.from_moments(ColumnMoments.of(MATRIX, NO_WEIGHTS)) if is_scaled else None
    model = model_of(scaling)
    z = MATRIX if scaling is None else scaling.apply(MATRIX)
    V, w = model.table.factor_weights.astype(float), model.table.linear_weights.astype(float)
    expected = 0.25 + z @ w + 0.5 * ((z @ V) ** 2 - z**2 @ V**2).sum(axis=1)
    table = {f"x{j}": MATRIX[:, j].tolist() for j in range(4)}
    for data in (MATRIX, table, pa.table(table)):
        np.testing.assert_allclose(model.predict(data), expected, rtol=1e-4, atol=1e-3)


def test_a_gap_makes_a_row_of_a_matrix_a_bad_one():
    batch = pa.record_batch({"x0": [1.0, None], "x1": [1.0, 2.0], "x2": [3.0, 1.0], "x3": [0.0, 1.0]})
    encoded = encode_batch(batch, vector_schema(column_names(4)), 10, {}, None)
    assert encoded.good.tolist() == [True, False]
    assert [(problem.column, problem.reason) for problem in encoded.problems] == [("x0", "missing")]
    assert encoded.rows.indices.tolist() == [0, 1, 2]


def test_exports_name_columns_by_number():
    model = model_of(None)
    ids, fields, values = hashed_inputs(model, {f"x{j}": [1.0, 0.0] for j in range(4)})
    assert ids[0].tolist() == [0, 1, 2, 3]
    assert ids[1].tolist() == [-1, -1, -1, -1]
    assert not fields.any()
    assert values[0].tolist() == [1.0] * 4
    of_tables = hashed_inputs(model, {f"x{j}": MATRIX[:, j].tolist() for j in range(4)})
    for matrix in (MATRIX, scipy.sparse.csr_array(MATRIX)):
        for found, expected in zip(hashed_inputs(model, matrix), of_tables, strict=True):
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(DataError, match="the matrix has shape"):
        hashed_inputs(model, MATRIX[:, :3])
    assert parquet_table(model).column("id").to_pylist() == [0, 1, 2, 3, -1]
