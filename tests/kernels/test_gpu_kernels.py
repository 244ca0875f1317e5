"""What is the GPU's own: ways of walking, factors of 16 bits, what stays on the device, CuPy's calls.

Without a GPU the same kernels run on the processor (see `host_gpu`); on a machine with one, `pytest -m gpu` runs these
tests on it too.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dfm.errors import ClusterError
from dfm.kernels.contract import Following, Kernels, KernelSpec, Step
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.gpu import device as cupy_device
from dfm.kernels.gpu import plan as gpu_plan
from dfm.kernels.gpu.composition import ON_GPU
from dfm.kernels.gpu.memory import COPY, TRAIN
from dfm.kernels.gpu.plan import Grid
from dfm.kernels.row_order import BLOCK_ROWS
from dfm.kernels.tables import Layout
from tests import reference
from tests.support.host_gpu import HostDevice, host_kernels
from tests.support.host_gpu import fake_cupy as fake_module
from tests.support.kernel_cases import (
    N_FACTORED,
    N_FEATURES,
    Case,
    assert_rounds_agree,
    compiled,
    make_rows,
    make_table,
    spec_of,
)

Backend = Callable[[KernelSpec], Kernels]
HOT_CASES: list[Case] = [
    ("fm", "logistic", "adagrad", 16),
    ("fm", "squared", "adagrad-row", 20),
    ("fm", "logistic", "ftrl", 3),
    ("fm", "logistic", "sgd", 80),
    ("fm", "logistic", "adagrad", 0),
]


@pytest.fixture(params=["host", pytest.param("cupy", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> Backend:
    """The kernels on the processor, and on a GPU where there is one."""
    return functools.partial(compiled, request.param)


def force_grid(monkeypatch: pytest.MonkeyPatch, blocks: int, warps: int, turns: int, n_hot: int) -> None:
    """Every walk is launched so, whatever the plan says."""

    def grid(layout: Layout, *_: object) -> Grid:
        return Grid(blocks, warps, turns, n_hot, gpu_plan.shared_bytes(layout, n_hot, warps))

    monkeypatch.setattr(gpu_plan, "one_by_one", grid)
    monkeypatch.setattr(gpu_plan, "side_by_side", grid)


@pytest.mark.parametrize("n_hot", [7, N_FEATURES])
@pytest.mark.parametrize("case", HOT_CASES, ids=str)
def test_hot_features_that_are_flushed_after_every_row_agree_with_the_definition(
    backend: Backend, case: tuple[str, str, int], n_hot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_grid(monkeypatch, 1, 1, 1, n_hot)
    assert_rounds_agree(backend(spec_of(case)), case, make_rows(80))


@pytest.mark.parametrize("n_hot", [0, 20])
@pytest.mark.parametrize("optimizer", ON_GPU)
def test_many_warps_move_the_table_as_one_does_to_first_order(
    backend: Backend, optimizer: str, n_hot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps so small that rows hardly feel each other, what is left is that no row's gradient gets lost."""
    rows, spec = make_rows(BLOCK_ROWS + 60, 12), KernelSpec("logistic", optimizer, 8)
    tables = []
    for shape in ((1, 1, 1, 0), (2, 4, 3, n_hot)):
        table = make_table(optimizer, 8)
        first = 2 if optimizer == "ftrl" else 1  # z stays 0
        for state in (table.bias[first:], table.linear[:, first:], table.factors[:, table.layout.lanes :]):
            state[...] = 1e6 if optimizer == "ftrl" else 1e4  # z feels the rows beside it by Σg² / 2n
        with monkeypatch.context() as patch:
            force_grid(patch, *shape)
            step = Step(1e-5, 1e-5, ftrl_beta=10.0)
            tally = backend(spec).run_round(rows, table, step)
        assert tally.rows == len(rows.labels)
        tables.append(table)
    start = make_table(optimizer, 8)
    for name in ("bias", "linear", "factors"):
        one, many = getattr(tables[0], name), getattr(tables[1], name)
        moved = np.abs(one - getattr(start, name)).max() if name != "bias" else 1.0
        np.testing.assert_allclose(
            many, one, rtol=2e-3, atol=2e-3 * float(moved) if optimizer in ("sgd", "ftrl") else 1e-6
        )


def test_a_walk_side_by_side_learns_as_well_as_one_row_after_the_other(backend: Backend) -> None:
    rows, spec = make_rows(4 * BLOCK_ROWS, 12), KernelSpec("logistic", "adagrad-row", 4)
    losses = []
    for deterministic in (True, False):
        table = make_table("adagrad-row", 4)
        for seed in range(2):
            step = Step(0.05, 0.03, 0.01, 0.02, seed=seed, deterministic=deterministic)
            tally = backend(spec).run_round(rows, table, step)
            assert tally.rows == 4 * BLOCK_ROWS
        losses.append(tally.mean_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_factors_of_16_bits_follow_those_of_32_and_leave_what_is_untouched(
    backend: Backend, dtype: str, tolerance: float
) -> None:
    rows = make_rows(60)
    tables = []
    for name in ("float32", dtype):
        table = make_table("adagrad-row", 12)
        kernels = backend(KernelSpec("logistic", "adagrad-row", 12, factor_dtype=name))
        kernels.run_round(rows, table, Step(0.05, 0.02, seed=2, deterministic=True))
        tables.append(table)
    largest = float(np.abs(tables[0].factors).max())
    # Each touch rounds by at most a unit in the last place, up or down by chance: errors grow like a root of touches.
    np.testing.assert_allclose(tables[1].factors, tables[0].factors, atol=20 * tolerance * largest)
    assert np.abs(tables[1].factors - tables[0].factors).mean() < 3 * tolerance * largest
    touched = np.unique(rows.indices)
    start = make_table("adagrad-row", 12)
    untouched = np.setdiff1d(np.arange(N_FACTORED), touched)
    assert tables[1].factors[untouched].tobytes() == start.factors[untouched].tobytes()


def test_small_steps_are_not_lost_to_16_bits(backend: Backend) -> None:
    """Steps of a hundredth of a bfloat16's spacing: rounding to the nearest would lose all of them."""
    n_rows = 400
    rows = reference.Rows(
        np.arange(0, 2 * n_rows + 1, 2), np.tile(np.array([0, 1], np.uint32), n_rows), np.zeros(0, np.float32),
        np.ones(n_rows, np.float32), np.zeros(0, np.float32), n_rows,
    )  # fmt: skip
    moves = []
    for name in ("float32", "bfloat16"):
        table = make_table("sgd", 16)
        table.factors[:2] = 0.5
        backend(KernelSpec("squared", "sgd", 16, factor_dtype=name)).run_round(
            rows, table, Step(0.0, 2e-5, deterministic=True)
        )
        moves.append(float((table.factors[:2] - 0.5).mean()))
    assert moves[0] != 0
    assert moves[1] == pytest.approx(moves[0], rel=0.3)


def test_a_walk_begins_as_wide_as_the_last_walk_of_the_same_rows_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def noted(*arguments: Any) -> float:
        seen.append(rows_seen(*arguments))
        return seen[-1]

    rows_seen = gpu_plan.rows_seen
    monkeypatch.setattr(gpu_plan, "rows_seen", noted)
    rows, others, table = make_rows(4 * BLOCK_ROWS, 6), make_rows(2 * BLOCK_ROWS, 6), make_table("adagrad-row", 4)
    kernels, first_of_each = kernels_on(HostDevice(), "adagrad-row"), []
    for walked in (rows, rows, others):
        seen.clear()
        kernels.run_round(walked, table, Step(0.05, 0.03))
        first_of_each.append(seen[0])
    assert first_of_each[0] == first_of_each[2] == 0, "nothing is known of rows that are new"
    assert first_of_each[1] == pytest.approx(4 * BLOCK_ROWS, rel=0.05)


# --- what stays on the device, and what does not fit -------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition of some hundred rows is cut like one of millions."""
    monkeypatch.setattr(gpu_plan, "PIECE_ROWS", 50)


def kernels_on(device: HostDevice, optimizer: str = "adagrad") -> Kernels:
    return host_kernels(KernelSpec("logistic", optimizer, 4), device)


def rows_sent(device: HostDevice) -> int:
    return sum(size for queue, size in device.sent if queue == COPY)


def test_rows_are_sent_once_and_stay(small_pieces: None) -> None:
    device, rows, table = HostDevice(), make_rows(180), make_table("adagrad", 4)
    kernels = kernels_on(device)
    kernels.run_round(rows, table, Step(0.05, 0.05, deterministic=True))
    assert rows_sent(device) > rows.indices.nbytes
    device.sent.clear()
    kernels.run_round(rows, table, Step(0.05, 0.05, seed=1, deterministic=True))
    kernels.scores(rows, table)
    assert rows_sent(device) == 0
    assert {queue for queue, _ in device.sent} == {TRAIN}


def test_the_rows_of_the_next_walk_come_while_these_are_trained(small_pieces: None) -> None:
    device, rows, others = HostDevice(), make_rows(180), make_rows(150)
    kernels, table = kernels_on(device), make_table("adagrad", 4)
    kernels.run_round(rows, table, Step(0.05, 0.05), Following(others, 7))
    first = gpu_plan.pieces(150, others.n_implicit, 7)[0]
    tables_at = max(i for i, (queue, size) in enumerate(device.sent) if queue == TRAIN)
    assert [queue for queue, _ in device.sent[tables_at + 1 :]] == [COPY] * 5, "after the last launch"
    device.sent.clear()
    kernels.run_round(others, table, Step(0.05, 0.05, seed=7))
    starts = {piece.first for piece in gpu_plan.pieces(150, others.n_implicit, 7)} - {first.first}
    assert rows_sent(device) == sum(gpu_plan.piece_bytes(others, at, min(at + 50, 150)) for at in starts)
    broken = dataclasses.replace(others, labels=others.labels.astype(np.float64))
    assert kernels.run_round(rows, table, Step(0.05, 0.05), Following(broken, 1)).is_finite
    with pytest.raises(TypeError, match="labels is float64"):
        kernels.run_round(broken, table, Step(0.05, 0.05, seed=1))


def test_rows_beyond_the_budget_stream_through_and_give_the_same_bytes(small_pieces: None) -> None:
    rows = make_rows(330)
    largest = max(gpu_plan.piece_bytes(rows, first, min(first + 50, 330)) for first in range(0, 330, 50))
    tables, scores = [], []
    for budget in (0, 2 * (largest + 8192)):
        device, table = HostDevice(), make_table("adagrad", 4)
        kernels = kernels_on(device)
        for seed in range(3):
            kernels.run_round(rows, table, Step(0.05, 0.05, seed=seed, deterministic=True, device_bytes=budget))
        scores.append(kernels.scores(rows, table).tobytes())
        tables.append(table.linear.tobytes() + table.factors.tobytes())
        resent = rows_sent(device) / rows.indices.nbytes
        assert resent > 2 if budget else resent < 2
    assert tables[0] == tables[1]
    assert scores[0] == scores[1]


def test_pieces_have_every_row_once_whatever_the_seed(small_pieces: None, backend: Backend) -> None:
    rows, spec = make_rows(330), KernelSpec("logistic", "sgd", 80)
    table = make_table("sgd", 80)
    expected = numba_cpu.compile_kernels(spec).scores(rows, table)
    np.testing.assert_allclose(backend(spec).scores(rows, table), expected, rtol=1e-5, atol=1e-5)
    tally = backend(spec).run_round(rows, table, Step(0.0, 0.0, seed=5))
    assert tally.rows == 330
    assert tally.weight == rows.weights.sum()
    labels = rows.labels.astype(float)
    losses = [
        reference.loss_of(reference.Rule(), s, label) for s, label in zip(expected.astype(float), labels, strict=True)
    ]
    assert tally.loss == pytest.approx(float(np.dot(losses, rows.weights)), rel=1e-5)


def test_the_memory_of_a_partition_that_is_gone_is_given_back() -> None:
    device, table = HostDevice(), make_table("adagrad", 4)
    kernels = kernels_on(device)
    kernels.run_round(make_rows(200), table, Step(0.05, 0.05, deterministic=True))
    held = device.in_use
    assert held > 0
    kernels.run_round(make_rows(20), table, Step(0.05, 0.05, deterministic=True))
    assert device.in_use < held / 4


def test_too_little_memory_names_the_bytes_and_the_settings() -> None:
    rows, table = make_rows(200), make_table("adagrad", 4)
    with pytest.raises(
        ClusterError, match=r"10,000 bytes .* needs [\d,]+: [\d,]+ for the parameters .*model.n_factors"
    ):
        kernels_on(HostDevice(capacity=10_000)).run_round(rows, table, Step(0.05, 0.05))
    with pytest.raises(ClusterError, match=r"cluster.gpu_memory allows rows 1,000 bytes"):
        kernels_on(HostDevice()).run_round(rows, table, Step(0.05, 0.05, device_bytes=1000))


# --- CuPy's own calls, with a stand-in for CuPy -------------------------------------------------------------


@pytest.fixture
def fake_cupy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., cupy_device.CupyDevice]:
    """`CupyDevice` on a fake CuPy whose copies and kernels wait until somebody waits for them."""

    def device(free: int = 1 << 30) -> cupy_device.CupyDevice:
        monkeypatch.setitem(sys.modules, "cupy", fake_module.make(free))
        monkeypatch.setattr(cupy_device, "_ROOM_BYTES", 1000)  # many pinned rooms are filled for an array
        return cupy_device.CupyDevice()

    return device


def test_the_device_by_cupy_copies_and_launches_in_the_right_order(
    fake_cupy: Callable[..., cupy_device.CupyDevice], small_pieces: None
) -> None:
    spec, rows = KernelSpec("logistic", "adagrad-row", 8), make_rows(330)
    largest = max(gpu_plan.piece_bytes(rows, first, min(first + 50, 330)) for first in range(0, 330, 50))
    results = []
    for device in (fake_cupy(), HostDevice()):
        kernels, table = cupy_gpu.build(spec, cupy_gpu.Gpu(device)), make_table("adagrad-row", 8)
        for seed in range(2):
            step = Step(0.05, 0.05, seed=seed, deterministic=True, device_bytes=2 * (largest + 8192))
            tally = kernels.run_round(rows, table, step)
        results.append((table.linear.tobytes(), table.factors.tobytes(), tally, kernels.scores(rows, table).tobytes()))
    assert results[0] == results[1]


def test_blocks_at_a_time_follow_from_registers_and_memory(fake_cupy: Callable[..., cupy_device.CupyDevice]) -> None:
    program = fake_cupy().compile(cupy_gpu.source_of(KernelSpec("logistic", "adagrad-row", 8)))
    assert program.most_blocks("train_rows", 256, 1000) == 2 * 2  # 65536 registers / (112 * 256), two processors
    assert program.most_blocks("train_rows", 32, 1000) == 2 * 18
    assert program.most_blocks("train_rows", 32, 100_000) == 2 * 2


def test_an_allocation_that_fails_says_how_much_was_missing(fake_cupy: Callable[..., cupy_device.CupyDevice]) -> None:
    device = fake_cupy(free=5000)
    with pytest.raises(ClusterError, match=r"a fake is out of memory: 6,000 more bytes are needed, 5,000 are free"):
        device.allocate(6000)


def test_the_gpu_of_a_process_is_found_and_named(fake_cupy: Callable[..., cupy_device.CupyDevice]) -> None:
    fake_cupy()
    assert cupy_device.availability() == ("a fake", "")
    assert cupy_device.device_count() == 1
