"""The arithmetic of launches: what is walked, how many rows at once, what fits shared memory and device memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dfm.errors import ClusterError
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.gpu import plan as gpu_plan
from dfm.kernels.gpu.plan import Facts
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.row_order import BLOCK_ROWS, row_blocks
from dfm.kernels.tables import MAX_FACTORS, Layout
from tests import reference

ROWWISE = KernelSpec("logistic", "adagrad-row", 16)


@pytest.mark.parametrize(("n_rows", "n_implicit"), [(0, 0), (1, 1), (1000, 300), (3 * 512 * 512 + 7, 512 * 512 + 100)])
def test_pieces_hold_every_row_once_and_never_mix_rows_with_and_without_values(n_rows: int, n_implicit: int) -> None:
    walked = np.zeros(n_rows, np.int64)
    for piece in gpu_plan.pieces(n_rows, n_implicit, seed=3):
        assert 0 < piece.last - piece.first <= gpu_plan.PIECE_ROWS
        for first, last in piece.blocks + piece.first:
            walked[first:last] += 1
            assert last <= n_implicit or first >= n_implicit
            assert last - first <= BLOCK_ROWS
    assert np.all(walked == 1)


def test_a_partition_of_one_piece_is_walked_in_the_order_of_the_cpu() -> None:
    (piece,) = gpu_plan.pieces(20_000, 7000, seed=5)
    assert piece.blocks.tolist() == row_blocks(20_000, 7000, 5).tolist()


def test_pieces_come_in_an_order_that_the_seed_decides() -> None:
    orders = {tuple(p.first for p in gpu_plan.pieces(6 * gpu_plan.PIECE_ROWS, 0, seed)) for seed in range(8)}
    assert len(orders) > 4
    assert all(sorted(order) == [n * gpu_plan.PIECE_ROWS for n in range(6)] for order in orders)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("k", [0, 1, 8, 16, 100, MAX_FACTORS])
def test_grids_stay_within_what_every_device_has(optimizer: str, k: int) -> None:
    layout = Layout(optimizer, k)
    for calm in (0.0, 1.0, 7.0, 100.0, 5000.0, float("inf")):
        for n_blocks, n_hot in ((1, 0), (40, 3), (100_000, 10_000)):
            grid = gpu_plan.side_by_side(layout, Facts(10_000, n_hot, 3.0), n_blocks, 264, calm)
            assert 1 <= grid.blocks <= min(n_blocks, 264)
            assert grid.threads % 32 == 0
            assert grid.threads <= 256
            assert 0 <= grid.n_hot <= n_hot
            assert gpu_plan.shared_bytes(layout, grid.n_hot, grid.warps) == grid.shared_bytes <= 48 * 1024
            assert grid.rows_in_flight <= max(calm, 8)


def test_one_by_one_is_one_warp_that_flushes_after_every_row() -> None:
    grid = gpu_plan.one_by_one(Layout("adagrad", 16))
    assert (grid.blocks, grid.threads, grid.rows_per_flush, grid.n_hot) == (1, 32, 1, 0)


def test_a_full_device_takes_more_rows_per_flush() -> None:
    grid = gpu_plan.side_by_side(Layout("adagrad-row", 16), Facts(100, 2, 3.0), 10**6, 264, float("inf"))
    assert grid.rows_in_flight == 264 * gpu_plan.WARPS_PER_BLOCK * gpu_plan.ROWS_PER_FLUSH


def test_hot_features_are_summed_from_half_of_the_device_on() -> None:
    def hot(calm: float) -> int:
        return gpu_plan.side_by_side(Layout("adagrad-row", 16), Facts(100, 2, 3.0), 10**6, 264, calm).n_hot

    half = 264 * gpu_plan.WARPS_PER_BLOCK / 2
    assert (hot(1), hot(half - 1), hot(half), hot(float("inf"))) == (0, 0, 2, 2)


def test_more_rows_are_calm_with_smaller_rates_larger_accumulators_and_fewer_shared_features() -> None:
    def calm(rate: float = 0.05, crowding: float = 5.0, total: float = 1e4, seen: float = 1e9) -> float:
        return gpu_plan.calm_rows(ROWWISE, Step(rate, rate), Facts(9, 0, crowding), [0.0, total, 0.0], seen)

    assert calm() == pytest.approx(100 / (0.05 * 0.25 * 5))
    assert calm(rate=0.1) == pytest.approx(calm() / 2)
    assert calm(crowding=10) == pytest.approx(calm() / 2)
    assert calm(total=4e4) == pytest.approx(2 * calm())
    assert calm(seen=1000) == 1000 * gpu_plan.SEEN_SHARE
    assert calm(rate=0.0, seen=float("inf")) > 1e9
    squared = KernelSpec("squared", "adagrad-row", 16)
    assert gpu_plan.calm_rows(squared, Step(0.05, 0.05), Facts(9, 0, 5.0), [0, 1e4, 0], 1e9) == pytest.approx(
        calm() / 4
    )
    ftrl = KernelSpec("logistic", "ftrl", 16)
    assert gpu_plan.calm_rows(ftrl, Step(0.05, 0.01), Facts(9, 0, 5.0), [0, 0, 1e4], 1e9) == pytest.approx(
        calm() * 1.01
    )


def test_rows_seen_follow_from_the_growth_of_the_bias_accumulator() -> None:
    assert gpu_plan.rows_seen(ROWWISE, 1000, [0, 901, 1], [0, 1001, 1], 0.0) == pytest.approx(10_010)
    assert gpu_plan.rows_seen(ROWWISE, 0, [0, 1, 1], [0, 1, 1], 0.0) == 0
    assert gpu_plan.rows_seen(ROWWISE, 0, [0, 50, 1], [0, 50, 1], 0.1) == 500, "known from an earlier walk"
    assert gpu_plan.rows_seen(ROWWISE, 1000, [0, 5, 1], [0, 5, 1], 0.1) == float("inf")
    assert gpu_plan.rows_seen(KernelSpec("logistic", "sgd", 4), 1000, [0], [0], 0.0) == 1000
    assert gpu_plan.rows_seen(KernelSpec("logistic", "ftrl", 4), 1000, [0, 3, 0], [0, 4, 100], 0.0) == 1000


def test_facts_count_how_rows_share_features() -> None:
    rows = reference.random_rows(2000, 500, 10, n_implicit=2000)
    facts = gpu_plan.facts_of(rows, int(rows.indices.max()))
    shares = np.bincount(rows.indices, minlength=500) / 2000
    assert facts.crowding == pytest.approx(1 + (shares**1.5).sum())
    assert shares[facts.n_hot - 1] > gpu_plan.HOT_SHARE
    assert np.all(shares[facts.n_hot :] <= gpu_plan.HOT_SHARE)
    empty = reference.random_rows(3, 10, 0, n_implicit=3)
    assert gpu_plan.facts_of(empty, -1) == Facts(-1, 0, 1.0, float(empty.labels.max()))
    counts = dataclasses.replace(rows, labels=np.arange(2000, dtype=np.float32))
    assert gpu_plan.facts_of(counts, 499).largest_label == 1999


def test_bytes_of_pieces_and_tables_are_those_of_their_arrays() -> None:
    rows = reference.random_rows(100, 50, 10, n_implicit=60, weighted=True)
    arrays = (rows.indptr, rows.indices, rows.values, rows.labels, rows.weights)
    assert gpu_plan.piece_bytes(rows, 0, 100) == sum(array.nbytes for array in arrays)
    assert gpu_plan.piece_bytes(rows, 0, 60) == 8 * 61 + 4 * int(rows.indptr[60]) + 2 * 4 * 60
    layout = Layout("adagrad-row", 16)
    assert gpu_plan.table_bytes(layout, 1000, 400, "float32") == 4 * (3 * 1001 + 16 * 400)
    assert gpu_plan.table_bytes(layout, 1000, 400, "bfloat16") == 4 * (3 * 1001 + 16 * 400) + 2 * 16 * 400


def test_the_budget_leaves_room_for_the_table_and_for_two_pieces() -> None:
    assert gpu_plan.row_budget(0, 10_000, 5000, 0, 1000, "gpu") == 4500
    assert gpu_plan.row_budget(0, 10_000, 5000, 2000, 1000, "gpu") == 2700
    assert gpu_plan.row_budget(0, 10_000, 5000, 9000, 1000, "gpu") == 2000, "two pieces, whatever else is wanted"
    assert gpu_plan.row_budget(2000, 10_000, 5000, 9000, 1000, "gpu") == 2000
    assert gpu_plan.row_budget(9000, 10_000, 5000, 0, 1000, "gpu") == 5000
    with pytest.raises(ClusterError, match=r"gpu has 6,000 bytes .* needs 7,000: 5,000 .* 2,000"):
        gpu_plan.row_budget(0, 6000, 5000, 0, 1000, "gpu")
    with pytest.raises(ClusterError, match=r"cluster.gpu_memory allows rows 1,999 bytes of gpu, .* 2,000"):
        gpu_plan.row_budget(1999, 10_000, 5000, 0, 1000, "gpu")
