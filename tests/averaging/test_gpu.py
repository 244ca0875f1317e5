"""Averaging on a GPU: the same bytes as on processors, and what sums take and remember.

Without a GPU the kernels run on the processor (see `host_gpu`); `pytest -m gpu` runs the first half on a GPU too.
"""

from __future__ import annotations

import dataclasses
import gc
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dfm.averaging import gpu as gpu_averaging
from dfm.averaging.contributions import Contribution
from dfm.averaging.gpu import OnGpu
from dfm.averaging.merge import Averaging, OnProcessors
from dfm.averaging.rules import MergeRule
from dfm.averaging.slices import Slices
from dfm.data.partition import SparsePartition
from dfm.errors import ClusterError
from dfm.kernels.gpu import device as cupy_device
from dfm.kernels.gpu.memory import FETCH
from dfm.kernels.gpu.tables import Gpu
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.tables import Layout
from tests import reference
from tests.support import nvrtc
from tests.support.gpu_rounds import (
    BOTH,
    N_FEATURES,
    STEP,
    Touch,
    assert_same,
    averaging_on,
    learn,
    make_table,
    table_of,
    touches,
)
from tests.support.host_gpu import HostDevice, library_of


@pytest.fixture(params=BOTH)
def on_gpu(request: pytest.FixtureRequest) -> OnGpu:
    """Averaging on the stand-in, and on a GPU where there is one."""
    return averaging_on(request.param)


def test_summands_of_another_gpu_come_through_the_host() -> None:
    here, there = OnGpu(Gpu(HostDevice())), OnGpu(Gpu(HostDevice()))
    table, (touch,) = make_table(Layout("adagrad", 4)), touches(1)
    parts = []
    for on_gpu in (here, there):
        before = on_gpu.pull([table], touch.features)
        parts.append(on_gpu.contribute(MergeRule(), touch, before, learn(table_of(before), 1), False))
    theirs = there.gpu.device
    assert isinstance(theirs, HostDevice)
    theirs.fetched.clear()
    here.combine_all(parts)
    assert [queue for queue, _ in theirs.fetched] == [FETCH, FETCH]


def test_a_contribution_of_one_replica_travels_with_its_own_features_only(on_gpu: OnGpu) -> None:
    table, (touch,) = make_table(Layout("adagrad", 6)), touches(1)
    before = on_gpu.pull([table], touch.features)
    part = on_gpu.contribute(MergeRule(), touch, before, learn(table_of(before), 1), False)
    travelled = pickle.loads(pickle.dumps(part))
    assert isinstance(travelled, Contribution)
    assert travelled.features.tolist() == touch.features.tolist()
    assert travelled.nbytes == part.nbytes
    cut = part.select(10, 50)
    assert pickle.loads(pickle.dumps(cut)).nbytes == cut.nbytes
    summed = on_gpu.combine_all([part, dataclasses.replace(part)])
    assert pickle.loads(pickle.dumps(summed)).features.tolist() == touch.features.tolist()


# --- what sums take, and what is remembered of them ---------------------------------------------------------


def test_a_merge_without_room_says_so_and_succeeds_later() -> None:
    device = HostDevice()
    on_gpu, table = OnGpu(Gpu(device)), make_table(Layout("adagrad", 64))
    everything = np.arange(N_FEATURES, dtype=np.uint32)
    touch = Touch(everything, 9.0, np.ones(N_FEATURES, np.int64))
    before = on_gpu.pull([table], everything)
    part = on_gpu.contribute(MergeRule(), touch, before, learn(table_of(before), 1), False)
    merged = table_of(on_gpu.finalise(MergeRule(), table, 0, part, 1, STEP)[0])
    refused = 0
    for capacity in range(device.in_use // 3, 3 * device.in_use, 9001):
        device.capacity = capacity
        try:
            again = on_gpu.finalise(MergeRule(), table, 0, part, 1, STEP)[0]
        except ClusterError as error:
            refused += "have made room already. Fewer bytes per feature: a smaller model.n_factors" in str(error)
        else:
            assert_same([again], [merged])
    assert 0 < refused < 20
    device.capacity = 1 << 30
    assert_same([on_gpu.finalise(MergeRule(), table, 0, part, 1, STEP)[0]], [merged])


def test_a_sum_takes_memory_for_what_was_touched() -> None:
    device, layout, n = HostDevice(), Layout("adagrad", 16), 20_000
    on_gpu, table, parts = OnGpu(Gpu(device)), make_table(layout, n, n), []
    for replica in range(2):
        features = np.array([replica, n - 1 - replica], np.uint32)
        touch = Touch(features, 1.0, np.ones(2, np.int64))
        before = on_gpu.pull([table], features)
        parts.append(on_gpu.contribute(MergeRule(), touch, before, learn(table_of(before), replica), False))
    device.fetched.clear()
    used = device.in_use
    total = on_gpu.combine_all(parts)
    assert device.in_use - used < 5000
    assert total.nbytes < 2000
    assert {size for queue, size in device.fetched if size > 1000} == {n}, "a byte a row: whether it was touched"
    assert pickle.loads(pickle.dumps(total)).features.tolist() == [0, 1, n - 2, n - 1]
    device.fetched.clear()
    on_gpu.combine_all(parts)
    assert not [size for _, size in device.fetched if size > 1000], "what was united once is known"


def test_more_replicas_than_the_device_has_room_for_are_summed_as_they_come() -> None:
    device, layout = HostDevice(), Layout("adagrad", 64)
    on_gpu, table, everything = OnGpu(Gpu(device)), make_table(layout), np.arange(N_FEATURES, dtype=np.uint32)
    touch = Touch(everything, 2.0, np.ones(N_FEATURES, np.int64))
    device.capacity = 8 * table.nbytes

    def total_of(averaging: Averaging) -> Contribution:
        def parts() -> Iterator[object]:
            for replica in range(21):
                before = averaging.pull([table], everything)
                yield averaging.contribute(MergeRule(), touch, before, learn(table_of(before), replica), False)

        travelled: Contribution = pickle.loads(pickle.dumps(averaging.combine_all(parts())))
        return travelled

    ours, theirs = total_of(on_gpu), total_of(OnProcessors())
    assert ours.features.tobytes() == theirs.features.tobytes()
    for name in ("linear", "factors", "bias"):
        assert ours[name].tobytes() == theirs[name].tobytes()


def test_unions_live_as_long_as_the_lists_that_they_are_of() -> None:
    on_gpu, table = OnGpu(Gpu(HostDevice())), make_table(Layout("adagrad", 4))

    def summed(lists: Sequence[NDArray[np.uint32]]) -> list[int]:
        parts = []
        for features in lists:
            touch = Touch(features, 1.0, np.ones(len(features), np.int64))
            before = on_gpu.pull([table], features)
            parts.append(on_gpu.contribute(MergeRule(), touch, before, learn(table_of(before), 1), False))
        found: Contribution = pickle.loads(pickle.dumps(on_gpu.combine_all(parts)))
        return found.features.tolist()

    lists = [np.array(features, np.uint32) for features in ([1, 5], [], [5, 9])]
    assert summed(lists) == summed(lists) == [1, 5, 9]
    assert len(on_gpu._unions) == 1
    del lists[2]
    gc.collect()
    assert not on_gpu._unions
    for number in range(10, 60):  # identities come again
        assert summed([np.array([number], np.uint32), np.array([], np.uint32)]) == [number]
        assert summed([np.array([], np.uint32), np.array([number + 1], np.uint32)]) == [number + 1]


def test_slices_are_united_once_as_long_as_they_are_there() -> None:
    device = HostDevice()
    on_gpu = OnGpu(Gpu(device))
    slices = [slice_of([1, 3, 80], 1), slice_of([2, 3], 0), slice_of([1, 89], 1)]
    first, again, others = on_gpu.unite(slices), on_gpu.unite(slices), on_gpu.unite(slices[:2])
    assert first.positions[2] is again.positions[2]
    assert first.features.tolist() == Slices.of(slices).features.tolist() == [1, 2, 3, 80, 89]
    assert [each.tolist() for each in first.positions] == [each.tolist() for each in Slices.of(slices).positions]
    assert first.n_factored == Slices.of(slices).n_factored
    assert first.total_weight == 3
    assert others.features.tolist() == [1, 2, 3, 80]
    slices[2] = slice_of([5], 1)
    del first, again
    assert on_gpu.unite(slices).features.tolist() == [1, 2, 3, 5, 80]
    assert len(on_gpu._united) == 2, "what was united with a slice that is gone is gone"


def slice_of(features: Sequence[int], n_factored: int) -> SparsePartition:
    """One row that touches these features."""
    rows = reference.random_rows(1, len(features), 1, n_implicit=1)
    names = np.array(features, np.uint32)
    return SparsePartition(
        rows.indptr, rows.indices, rows.values, rows.labels, np.zeros(0, np.float32), names, n_factored, 1
    )


# --- the program ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(nvrtc.find_library() is None, reason="nvidia-cuda-nvrtc-cu12 is not installed")
@pytest.mark.parametrize("chip", ["compute_80", "compute_90"])
@pytest.mark.parametrize("derivation", ["", OPTIMIZERS["ftrl"].cuda])
def test_the_program_compiles_for_every_chip_and_rounds_every_operation(chip: str, derivation: str) -> None:
    ptx = nvrtc.compile_ptx(gpu_averaging.source_of(derivation), chip, cupy_device.EXACT[1:])
    launched = set(re.findall(r'"([a-z]+_[a-z]+)", ', Path(gpu_averaging.__file__).read_text()))
    kernels = set(re.findall(r"\.entry (\w+)", ptx))
    assert len(kernels) > 10
    assert kernels <= launched, "a kernel that nobody launches"
    assert ".local" not in ptx, "an array went to slow memory"
    assert "fma.rn.f32" not in ptx, "a product and a sum are rounded together, as on no CPU"
    assert "div.rn.f32" in ptx
    assert not re.findall(r"div\.(?:approx|full)|sqrt\.approx|\.ftz", ptx)


def test_the_records_are_the_same_here_and_there() -> None:
    text = gpu_averaging.source_of()
    assert library_of(text).record_bytes() == gpu_averaging.LAUNCH.itemsize
    assert np.dtype(gpu_averaging.LAUNCH).isalignedstruct
    for struct, dtype in (
        ("Launch", gpu_averaging.LAUNCH),
        ("Part", gpu_averaging.PART),
        ("Merge", gpu_averaging.LAUNCH["merge"]),
        ("Columns", gpu_averaging.LAUNCH["merge"]["columns"]),
        ("Shares", gpu_averaging.LAUNCH["merge"]["shares"]),
        ("Divisors", gpu_averaging.LAUNCH["merge"]["accumulators"]),
        ("Outer", gpu_averaging.LAUNCH["merge"]["outer"]),
        ("Rates", gpu_averaging.LAUNCH["rates"]),
    ):
        body = re.search(rf"^struct {struct} {{$(.*?)^}};$", text, re.S | re.M)
        assert body
        names = re.findall(r"[ *](\w+)[;,]", re.sub(r"//.*", "", body[1]))
        assert names == list(dtype.names or ())
