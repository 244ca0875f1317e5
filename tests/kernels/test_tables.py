"""The parameter table: layout, reproducible initial values, pulling rows out of blocks."""

from __future__ import annotations

import numpy as np
import pytest

from dfm.kernels.blocks import padded_lanes
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.tables import (
    InitialValues,
    Layout,
    ParameterTable,
    aligned_zeros,
    allocate,
    first_at,
    initialise,
    pull,
)


def cut(table: ParameterTable, starts: list[int]) -> list[ParameterTable]:
    """Row-range blocks of a table."""
    stops = [*starts[1:], table.n_features]
    return [
        ParameterTable(table.layout, {"bias": table.bias, "linear": table.linear[a:b], "factors": table.factors[a:b]})
        for a, b in zip(starts, stops, strict=True)
    ]


def test_vectors_are_padded_to_what_registers_take() -> None:
    lanes = {0: 0, 1: 4, 4: 4, 5: 8, 8: 8, 9: 16, 16: 16, 17: 32, 33: 48, 256: 256}
    assert {n_factors: padded_lanes(n_factors) for n_factors in lanes} == lanes


def state_of(name: str) -> tuple[int, int]:
    return OPTIMIZERS[name].linear_state, OPTIMIZERS[name].factor_state


def test_layouts_say_how_wide_records_are() -> None:
    widths = {name: (Layout(name, 10).linear_width, Layout(name, 10).factor_width) for name in OPTIMIZERS}
    known = {"sgd": (1, 16), "adagrad": (2, 32), "adagrad-row": (3, 16), "ftrl": (3, 32), "adam": (5, 48)}
    assert known.items() <= widths.items()
    assert all((linear - 1, factor // 16 - 1) == state_of(name) for name, (linear, factor) in widths.items())
    assert Layout("ftrl", 10).stateless == Layout("sgd", 10)
    with pytest.raises(ValueError, match="lion"):
        Layout("lion", 4)
    with pytest.raises(ValueError, match=r"257.*0 … 256"):
        Layout("adagrad", 257)
    assert Layout("sgd", 257).n_factors == 257, "a finished model may be the mean of many"
    with pytest.raises(ValueError, match=r"4097.*0 … 4096"):
        Layout("sgd", 4097)


def test_tables_start_on_a_cache_line_whatever_their_size() -> None:
    for size in (1, 7, 1000, 2_000_000):
        assert aligned_zeros((size,)).ctypes.data % 64 == 0
    assert allocate(Layout("adagrad", 3), 5, 4).factors.shape == (4, 8)
    assert allocate(Layout("adagrad", 0), 5, 4).factors.shape == (0, 0)


def test_initial_factors_depend_on_seed_and_feature_alone() -> None:
    layout = Layout("adagrad", 5)
    ids = np.array([90, 7, 4_000_000_000, 3], np.uint32)
    whole = initialise(layout, ids, 3, InitialValues(seed=11, init_stdev=0.2, initial_accumulator=0.5))
    part = initialise(layout, ids[1:3], 2, InitialValues(seed=11, init_stdev=0.2, initial_accumulator=0.5))
    assert whole.factors[1:3].tobytes() == part.factors.tobytes()
    other = initialise(layout, ids, 3, InitialValues(seed=12, init_stdev=0.2))
    assert not np.any(other.factor_weights == whole.factor_weights)
    assert (whole.linear == [0, 0.5]).all()
    assert whole.bias.tolist() == [0, 0.5]
    assert (whole.factors[:, 8:] == 0.5).all()
    assert not whole.factors[:, 5:8].any()


def test_initial_factors_are_the_same_bytes_for_ever() -> None:
    table = initialise(Layout("sgd", 2), np.array([0, 1], np.uint32), 2, InitialValues(seed=0, init_stdev=1.0))
    golden = [[-0.5610027313232422, -0.7997561097145081], [-1.2515474557876587, 1.6319453716278076]]
    assert table.factor_weights.tolist() == golden


def test_initial_factors_have_the_deviation_asked_for_and_no_correlation() -> None:
    ids = np.arange(40_000, dtype=np.uint32)
    v = initialise(Layout("sgd", 4), ids, 40_000, InitialValues(seed=3, init_stdev=0.05)).factor_weights
    np.testing.assert_allclose(v.std(axis=0), 0.05, rtol=0.02)
    np.testing.assert_allclose(v.mean(axis=0), 0, atol=0.001)
    np.testing.assert_allclose(np.corrcoef(v.T), np.eye(4), atol=0.02)
    assert abs(np.corrcoef(v[1:, 0], v[:-1, 0])[0, 1]) < 0.02


def test_ftrl_starts_from_zero_state() -> None:
    table = initialise(Layout("ftrl", 4), np.arange(3, dtype=np.uint32), 2, InitialValues(1, 0.1, 2.0))
    assert not table.linear.any()
    assert not table.bias.any()
    assert (table.factors[:, 4:] == 2).all()


@pytest.mark.parametrize("starts", [[0], [0, 4], [0, 2, 7, 9]])
def test_pulled_rows_are_the_rows_asked_for_however_the_table_is_cut(starts: list[int]) -> None:
    table = initialise(Layout("adagrad", 6), np.arange(12, dtype=np.uint32), 8, InitialValues(5))
    table.linear[:, 0] = np.arange(12)
    table.bias[0] = 3
    for features in ([0, 3, 4, 7, 8, 11], [5], [9, 10], []):
        rows = np.array(features, np.uint32)
        local = pull(cut(table, starts), rows)
        assert local.n_factored == np.count_nonzero(rows < 8)
        assert local.linear.tobytes() == table.linear[rows].tobytes()
        assert local.factors.tobytes() == table.factors[rows[rows < 8]].tobytes()
        assert local.bias.tolist() == table.bias.tolist()
        assert local.factors.size == 0 or local.factors.ctypes.data % 64 == 0
        assert not np.shares_memory(local.bias, table.bias)


@pytest.mark.parametrize("row", [0, 3, 4, 9, 10, 2**32 - 2, 2**32 - 1, 2**32, 2**40])
def test_the_first_place_behind_a_row_is_found_for_any_row(row: int) -> None:
    features = np.array([3, 4, 9, 2**32 - 2], np.uint32)
    assert first_at(features, [row, 0]).tolist() == [sum(feature < row for feature in features.tolist()), 0]


def test_pulling_works_on_read_only_blocks_and_refuses_rows_that_are_not_there() -> None:
    table = initialise(Layout("sgd", 0), np.arange(5, dtype=np.uint32), 5, InitialValues(5))
    table.linear.flags.writeable = False
    assert pull([table], np.array([1, 4], np.uint32)).n_features == 2
    with pytest.raises(IndexError, match="feature 5 is beyond"):
        pull([table], np.array([1, 5], np.uint32))


def test_a_copy_without_state_keeps_the_parameters_only() -> None:
    table = initialise(Layout("adagrad", 6), np.arange(12, dtype=np.uint32), 8, InitialValues(5))
    plain = table.without_state()
    assert plain.layout == Layout("sgd", 6)
    assert plain.linear.shape == (12, 1)
    assert plain.factor_weights.tobytes() == table.factor_weights.tobytes()
    assert plain.bias_value == table.bias_value
    assert plain.nbytes < table.nbytes
    copy = table.copy()
    copy.factors[:] = 0
    assert table.factors.any()
