"""Tables and rows that live on a GPU: what moves and when, who makes room for whom, in which order CuPy is asked."""

from __future__ import annotations

import pickle
import sys
import threading

import numpy as np
import pytest

from dfm.averaging.gpu import OnGpu
from dfm.averaging.rules import MergeRule
from dfm.errors import ClusterError
from dfm.kernels.contract import Following, KernelSpec, Step
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.gpu import device as cupy_device
from dfm.kernels.gpu import plan as gpu_plan
from dfm.kernels.gpu.memory import COPY, FETCH, TRAIN
from dfm.kernels.gpu.tables import Gpu, GpuTable
from dfm.kernels.tables import Layout, ParameterTable
from tests import reference
from tests.support.gpu_rounds import (
    BOTH,
    N_FACTORED,
    N_FEATURES,
    STEP,
    Touch,
    assert_same,
    averaging_on,
    compare,
    learn,
    make_table,
    rows_and_kernels,
    table_of,
)
from tests.support.host_gpu import HostDevice, fake_cupy


@pytest.fixture(params=BOTH)
def on_gpu(request: pytest.FixtureRequest) -> OnGpu:
    """Averaging on the stand-in, and on a GPU where there is one."""
    return averaging_on(request.param)


# --- arrays on the device, on the host, or on both -----------------------------------------------------------


def test_walks_and_scores_of_a_table_on_the_device_are_those_of_one_on_the_host(on_gpu: OnGpu) -> None:
    rows, kernels, table = rows_and_kernels(on_gpu)
    everything = np.arange(N_FEATURES, dtype=np.uint32)
    lives_there, tallies, scores = on_gpu.pull([table], everything), [], []
    for each in (lives_there, table):
        for seed in range(2):
            tallies.append(kernels.run_round(rows, each, Step(0.1, 0.1, seed=seed, deterministic=True)))
        scores.append(kernels.scores(rows, each).tobytes())
    assert tallies[:2] == tallies[2:]
    assert scores[0] == scores[1]
    assert_same([lives_there], [table])


def test_a_look_at_a_table_is_of_what_it_is_now(on_gpu: OnGpu) -> None:
    rows, kernels, table = rows_and_kernels(on_gpu)
    ours = on_gpu.copy(table)
    assert ours.linear.tobytes() == table.linear.tobytes()
    kernels.run_round(rows, ours, Step(0.1, 0.1, deterministic=True))
    assert ours.linear.tobytes() != table.linear.tobytes()
    assert isinstance(ours, GpuTable)
    assert ours.nbytes == table.nbytes
    assert (ours.n_features, ours.n_factored) == (N_FEATURES, N_FACTORED)
    travelled = pickle.loads(pickle.dumps(ours))
    assert type(travelled) is ParameterTable
    assert_same([travelled], [ours])


def test_rounds_that_stay_on_one_device_move_no_parameters() -> None:
    device = HostDevice()
    on_gpu, layout = OnGpu(Gpu(device)), Layout("adagrad", 64)
    table = on_gpu.copy(make_table(layout))
    everything = np.arange(N_FEATURES, dtype=np.uint32)
    kernels = cupy_gpu.build(KernelSpec("logistic", "adagrad", 64), on_gpu.gpu)
    replicas = [reference.random_rows(40, N_FEATURES, 9, n_implicit=40) for _ in range(2)]
    touch = Touch(everything, 40.0, np.ones(N_FEATURES, np.int64))
    for at in range(3):
        parts = []
        for rows in replicas:
            before = on_gpu.pull([table], everything)
            after = on_gpu.copy(before)
            kernels.run_round(rows, after, Step(0.1, 0.1, seed=at, deterministic=True))
            kernels.scores(rows, after)
            parts.append(on_gpu.contribute(MergeRule(), touch, before, after, False))
        table, _ = on_gpu.finalise(MergeRule(), table, 0, on_gpu.combine_all(parts), 2, STEP)
        if at == 0:
            device.sent.clear()
            device.fetched.clear()
    largest = max(size for _, size in [*device.sent, *device.fetched])
    assert largest < table.nbytes / 20, "only records, tallies and biases move"
    assert {queue for queue, _ in device.fetched} == {TRAIN}
    assert table.factors.nbytes > table.nbytes / 2
    assert [queue for queue, _ in device.fetched[-2:]] == [FETCH, FETCH], "a look at the factors fetches the table"


def test_a_table_is_fetched_while_another_thread_has_the_device(on_gpu: OnGpu) -> None:
    """Dask pickles what travels in threads of its own, and must not wait for a round."""
    table, found = make_table(Layout("adagrad", 6)), []
    ours = on_gpu.copy(table)
    with on_gpu.gpu.taken():
        looker = threading.Thread(target=lambda: found.append(pickle.loads(pickle.dumps(ours))))
        looker.start()
        looker.join(20)
        assert found, "it waited for the device"
    assert_same(found, [table])


def test_a_copy_of_a_table_from_elsewhere_is_kept_as_long_as_the_original() -> None:
    device = HostDevice()
    on_gpu, table = OnGpu(Gpu(device)), make_table(Layout("adagrad", 64))
    features = np.arange(3, dtype=np.uint32)
    before = device.in_use
    for _ in range(3):
        on_gpu.pull([table], features)
    assert sum(size for _, size in device.sent if size == table.factors.nbytes) == table.factors.nbytes
    del table
    on_gpu.pull([make_table(Layout("adagrad", 0), 5, 0)], features)
    assert device.in_use < before + 3000


def test_only_what_belongs_to_the_device_is_changed_there(on_gpu: OnGpu) -> None:
    table, rows = make_table(Layout("adagrad", 4)), np.array([2, 5], np.uint32)
    local = on_gpu.pull([table], rows)
    with pytest.raises(ValueError, match="is not on this GPU"):
        on_gpu.put(local, rows, table)
    ours = on_gpu.copy(table)
    assert ours.linear.tobytes() == table.linear.tobytes(), "a look before the change"
    moved = learn(table_of(local), 1)
    on_gpu.put(moved, rows, ours)
    np.testing.assert_array_equal(ours.linear[rows], moved.linear)


def test_to_describe_a_table_moves_nothing() -> None:
    device = HostDevice()
    table = OnGpu(Gpu(device)).copy(make_table(Layout("adagrad", 4)))
    assert "90 features" in repr(table)
    assert table != make_table(Layout("adagrad", 4))
    assert not device.fetched


def test_tables_are_fetched_one_at_a_time(on_gpu: OnGpu) -> None:
    """They share pinned memory."""
    ours = on_gpu.copy(make_table(Layout("adagrad", 4)))
    with on_gpu.gpu._fetching:
        looker = threading.Thread(target=lambda: ours.linear)
        looker.start()
        looker.join(0.1)
        assert looker.is_alive()
    looker.join(20)
    assert not looker.is_alive()


# --- memory --------------------------------------------------------------------------------------------------


def test_tables_leave_a_full_device_and_come_back_unchanged() -> None:
    layout, rule = Layout("adagrad", 128), MergeRule()
    size = make_table(layout).nbytes
    results, spilt = [], []
    for capacity in (1 << 30, 6 * size + 30_000):
        device = HostDevice(capacity)
        on_gpu = OnGpu(Gpu(device))
        kernels = cupy_gpu.build(KernelSpec("logistic", "adagrad", 128), on_gpu.gpu)
        rows = reference.random_rows(50, N_FEATURES, 9, n_implicit=50)
        everything = np.arange(N_FEATURES, dtype=np.uint32)
        touch = Touch(everything, 50.0, np.ones(N_FEATURES, np.int64))
        kept = [on_gpu.copy(make_table(layout))]
        for at in range(4):
            before = on_gpu.pull([kept[-1]], everything)
            after = on_gpu.copy(before)
            kernels.run_round(rows, after, Step(0.1, 0.1, seed=at, deterministic=True))
            part = on_gpu.contribute(rule, touch, before, after, False)
            kept.append(on_gpu.finalise(rule, kept[-1], 0, part, 1, STEP)[0])
            del before, after, part
        spilt.append([table.arrays.is_on_device for table in kept if isinstance(table, GpuTable)].count(False))
        results.append([pickle.loads(pickle.dumps(table)) for table in kept])
    assert spilt[0] == 0
    assert spilt[1] >= 1
    assert_same(*results)
    with pytest.raises(ClusterError):
        OnGpu(Gpu(HostDevice(size))).copy(make_table(layout))


def test_what_is_in_use_is_not_spilt(on_gpu: OnGpu) -> None:
    gpu, table = on_gpu.gpu, on_gpu.copy(make_table(Layout("adagrad", 4)))
    assert isinstance(table, GpuTable)
    with gpu.taken():
        while gpu.spill_one():
            pass
        gpu.use_table(table)
        assert not gpu.spill_one()
    with gpu.taken():
        assert gpu.spill_one()
    assert not table.arrays.is_on_device


def test_a_table_that_is_about_to_be_trained_stays_where_it_is() -> None:
    device = HostDevice()
    on_gpu = OnGpu(Gpu(device))
    kernels = cupy_gpu.build(KernelSpec("logistic", "adagrad", 128), on_gpu.gpu)
    rows, table = reference.random_rows(3000, N_FEATURES, 9, n_implicit=3000), make_table(Layout("adagrad", 128))
    ours = on_gpu.copy(table)
    device.capacity = device.in_use + 1000
    with pytest.raises(ClusterError, match=r"0 for the parameters|two pieces of rows"):
        kernels.run_round(rows, ours, Step(0.1, 0.1))
    assert isinstance(ours, GpuTable)
    assert ours.arrays.is_on_device
    device.capacity = 1 << 30
    kernels.run_round(rows, ours, Step(0.1, 0.1))
    assert max(size for _, size in device.fetched) < ours.nbytes / 20


def test_lists_of_features_go_before_tables_where_room_is_needed() -> None:
    device = HostDevice()
    on_gpu = OnGpu(Gpu(device))
    kernels = cupy_gpu.build(KernelSpec("logistic", "adagrad", 4), on_gpu.gpu)
    older, table = on_gpu.copy(make_table(Layout("adagrad", 64))), make_table(Layout("adagrad", 4))
    lists = [np.arange(50_000, dtype=np.uint32) + number for number in range(4)]
    with on_gpu.gpu.taken():
        for each in lists:
            on_gpu.gpu.residents.array(each)
    device.capacity = device.in_use + 1000
    kernels.run_round(reference.random_rows(50, N_FEATURES, 9, n_implicit=50), table, Step(0.1, 0.1))
    assert isinstance(older, GpuTable)
    assert older.arrays.is_on_device
    assert on_gpu.gpu.residents.array_bytes < sum(each.nbytes for each in lists)


def test_what_was_used_last_is_spilt_last() -> None:
    on_gpu = OnGpu(Gpu(HostDevice()))
    first, second = (on_gpu.copy(make_table(Layout("adagrad", 4))) for _ in range(2))
    on_gpu.pull([first], np.arange(3, dtype=np.uint32))
    with on_gpu.gpu.taken():
        assert on_gpu.gpu.spill_one()
    assert isinstance(first, GpuTable)
    assert isinstance(second, GpuTable)
    assert first.arrays.is_on_device
    assert not second.arrays.is_on_device


def test_rows_and_lists_make_room_by_age() -> None:
    on_gpu, rows = OnGpu(Gpu(HostDevice())), reference.random_rows(100, N_FEATURES, 9, n_implicit=100)
    (piece,), residents = gpu_plan.pieces(100, 100, 1), on_gpu.gpu.residents
    features = np.arange(9, dtype=np.uint32)
    for is_list_older in (True, False):
        with on_gpu.gpu.taken():
            residents.limit(1 << 20)
            for is_list in (is_list_older, not is_list_older):
                residents.array(features) if is_list else residents.get(rows, piece)
            assert residents.evict_one()
            assert (residents.array_bytes == 0, residents.n_bytes == 0) == (is_list_older, not is_list_older)
            assert residents.evict_one()
            assert not residents.evict_one()


def test_what_averaging_took_of_late_is_reserved() -> None:
    gpu = Gpu(HostDevice())
    on_gpu = OnGpu(gpu)
    several = [on_gpu.copy(make_table(Layout("adagrad", 64))) for _ in range(5)]
    size = several[0].nbytes  # and the last one's original was sent
    assert gpu.reserve(10) == size
    assert gpu.array_bytes == 5 * size
    gpu.most_bytes = 6 * size
    del several
    assert gpu.reserve(10) == 6 * size, "what is gone may come again"
    for _ in range(600):
        gpu.reserve(10)
    assert gpu.reserve(10) == 10, "another job may want less"


def test_the_limit_of_a_job_holds_for_scores_and_for_rows_that_are_copied_ahead() -> None:
    device = HostDevice()
    on_gpu, table = OnGpu(Gpu(device)), make_table(Layout("adagrad", 4))
    kernels = cupy_gpu.build(KernelSpec("logistic", "adagrad", 4), on_gpu.gpu)
    few, many = (reference.random_rows(n, N_FEATURES, 9, n_implicit=n) for n in (300, 3000))
    limit = 2 * (gpu_plan.piece_bytes(few, 0, 300) + 8192)
    step = Step(0.1, 0.1, device_bytes=limit)
    kernels.run_round(few, table, step, Following(many, 1))
    assert 0 < on_gpu.gpu.residents.n_bytes <= limit, "the next rows are too large to come beside these"
    kernels.scores(few, table)
    assert on_gpu.gpu.residents.budget == limit


def test_identities_of_arrays_that_are_gone_name_nothing() -> None:
    on_gpu = OnGpu(Gpu(HostDevice()))
    residents = on_gpu.gpu.residents
    for size in (0, 5):
        for _ in range(50):
            gone = np.arange(size, dtype=np.uint32)
            where = id(gone)
            residents.array(gone)
            del gone
            other = np.array([3, 7, 50], np.uint32)
            if id(other) == where:
                room = np.zeros(3, np.uint32)
                on_gpu.gpu.device.fetch(residents.array(other), room)
                assert room.tolist() == [3, 7, 50]


def test_rows_that_do_not_fit_are_not_copied_ahead() -> None:
    device = HostDevice()
    on_gpu, layout = OnGpu(Gpu(device)), Layout("adagrad", 64)
    kernels = cupy_gpu.build(KernelSpec("logistic", "adagrad", 64), on_gpu.gpu)
    few, many = (reference.random_rows(n, N_FEATURES, 9, n_implicit=n) for n in (200, 20_000))
    older, ours = on_gpu.copy(make_table(layout)), on_gpu.copy(make_table(layout))
    kernels.run_round(few, ours, Step(0.1, 0.1))
    device.capacity = device.in_use + 100_000
    device.sent.clear()
    kernels.run_round(few, ours, Step(0.1, 0.1), Following(many, 1))
    assert isinstance(older, GpuTable)
    assert older.arrays.is_on_device
    assert not [size for queue, size in device.sent if queue == COPY], "the few rows are still there"


# --- by CuPy's own calls, on a fake whose copies and kernels wait until somebody waits for them -----------------


@pytest.fixture
def on_cupy(monkeypatch: pytest.MonkeyPatch) -> OnGpu:
    """On a device that is not synchronous, with many small transfers."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.make())
    monkeypatch.setattr(cupy_device, "_ROOM_BYTES", 1000)
    return OnGpu(Gpu(cupy_device.CupyDevice()))


def test_the_device_by_cupy_averages_in_the_right_order(on_cupy: OnGpu) -> None:
    rows, kernels, table = rows_and_kernels(on_cupy)
    compare(on_cupy, MergeRule("weighted", outer_momentum=0.3), Layout("adagrad-row", 6), 5, travels=[1].__contains__)
    ours = on_cupy.copy(table)
    assert_same([pickle.loads(pickle.dumps(ours))], [table])
    for each in (ours, table):
        kernels.run_round(rows, each, Step(0.1, 0.1, deterministic=True))
    assert_same([ours], [table])


def test_averages_are_compiled_without_shortcuts(on_cupy: OnGpu) -> None:
    options = sys.modules["cupy"].cuda.nvrtc.options
    assert set(cupy_device.EXACT) < set(options)
    assert {"--fmad=false", "--ftz=false", "--gpu-architecture=sm_90"} < set(options)


def test_rows_do_not_overwrite_what_kernels_have_still_to_read(on_cupy: OnGpu) -> None:
    """A table is dropped while a copy of it waits to be made, and its memory goes to rows that arrive at once."""
    gpu, rows = on_cupy.gpu, reference.random_rows(200, N_FEATURES, 9, n_implicit=90)
    (piece,) = gpu_plan.pieces(200, 90, 1)
    layout = Layout("adagrad", 0)
    n_features = gpu_plan.piece_bytes(rows, 0, 200) // 4 // layout.linear_width  # as large as the rows
    table = make_table(layout, n_features, 0)
    source = on_cupy.copy(table)
    assert isinstance(source, GpuTable)
    with gpu.taken():
        gpu.device.fetch(gpu.use_table(source)["bias"], np.empty(layout.linear_width, np.float32))
        address = gpu.use_table(source)["linear"].address
    result = on_cupy.copy(source)
    del source
    with gpu.taken():
        gpu.residents.limit(1 << 20)
        resident = gpu.residents.get(rows, piece)
        assert resident.buffer.address == address, "the fake hands memory out again at once"
    assert result.linear.tobytes() == table.linear.tobytes()


def test_kernels_do_not_overwrite_rows_that_have_still_to_arrive(on_cupy: OnGpu) -> None:
    """Rows that were copied ahead are evicted before anybody used them, and their memory is used again."""
    gpu, rows = on_cupy.gpu, reference.random_rows(200, N_FEATURES, 9, n_implicit=90)
    with gpu.taken():
        gpu.residents.limit(1 << 20)
        (piece,) = gpu_plan.pieces(200, 90, 1)
        early = gpu.residents.get(rows, piece)
        size, address = early.n_bytes, early.buffer.address
        del early
    with gpu.taken():
        assert gpu.make_room()
        wanted = np.arange(size, dtype=np.uint8)
        buffer, found = gpu.send(wanted), np.empty(size, np.uint8)
        assert buffer.address == address
        gpu.device.mark(TRAIN).synchronize()
        for stream in gpu.device._streams.values():  # type: ignore[attr-defined]
            stream.synchronize()
        gpu.device.fetch(buffer, found)
    np.testing.assert_array_equal(found, wanted)
