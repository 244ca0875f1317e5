"""Averaging on a GPU: the same bytes as on processors, and what sums take and remember.

Without a GPU the kernels run on the processor (see `host_gpu`); `pytest -m gpu` runs the first half on a GPU too.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dfm.averaging import gpu as gpu_averaging
from dfm.averaging.contributions import Contribution, aligned_groups
from dfm.averaging.gpu import OnGpu
from dfm.averaging.merge import Averaging, OnProcessors
from dfm.averaging.rules import ACCUMULATOR_RULES, WEIGHT_RULES, MergeRule
from dfm.averaging.slices import Slices
from dfm.data.partition import SparsePartition
from dfm.errors import ClusterError, SettingsError
from dfm.kernels.gpu import device as cupy_device
from dfm.kernels.gpu.composition import ON_GPU
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
    blocks_of,
    compare,
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


def is_legal(weights: str, accumulators: str, optimizer: str) -> bool:
    """Whether the optimizer has what the rule weighs by."""
    try:
        MergeRule(weights, accumulators).check_optimizer(optimizer)
    except SettingsError:
        return False
    return True


EVERY_RULE = [case for case in itertools.product(WEIGHT_RULES, ACCUMULATOR_RULES, ON_GPU) if is_legal(*case)]


@pytest.mark.parametrize(("weights", "accumulators", "optimizer"), EVERY_RULE)
def test_every_rule_merges_to_the_bytes_of_the_cpu(
    on_gpu: OnGpu, weights: str, accumulators: str, optimizer: str
) -> None:
    compare(on_gpu, MergeRule(weights, accumulators), Layout(optimizer, 5), 3)


def test_only_rules_that_lack_their_accumulators_are_left_out() -> None:
    assert len(EVERY_RULE) == 20 * 4 - 2 * 4, "plain sgd with two rules of weights"


@pytest.mark.parametrize("n_replicas", [1, 2, 4, 5, 8, 9, 13])
def test_sums_follow_the_tree_of_the_cpu(on_gpu: OnGpu, n_replicas: int) -> None:
    rule, layout = MergeRule("weighted"), Layout("adagrad-row", 12)
    for groups in (aligned_groups(n_replicas, 1), aligned_groups(n_replicas, 4), aligned_groups(n_replicas, 64)):
        compare(on_gpu, rule, layout, n_replicas, groups=groups)


@pytest.mark.parametrize("bounds", [[0, N_FEATURES], [0, 20, 37, 60, N_FEATURES]])
@pytest.mark.parametrize("optimizer", ["adagrad", "ftrl"])
def test_momentum_and_several_blocks_merge_to_the_bytes_of_the_cpu(
    on_gpu: OnGpu, optimizer: str, bounds: list[int]
) -> None:
    rule = MergeRule("mean", outer_rate=1.1, outer_momentum=0.5)
    compare(on_gpu, rule, Layout(optimizer, 3), 6, bounds=bounds, n_rounds=3)
    compare(on_gpu, rule, Layout(optimizer, 0), 2, bounds=bounds)


@pytest.mark.parametrize("halved", [False, True])
def test_what_travels_and_what_stays_give_the_same_bytes(on_gpu: OnGpu, halved: bool) -> None:
    """Pushes of other workers arrive as contributions, cut or whole; ours are on the device."""
    rule, layout = MergeRule("weighted", "vw"), Layout("adagrad", 6)
    for which in ([], [0], [1, 3], [0, 1, 2, 3]):
        compare(
            on_gpu, rule, layout, 7, groups=aligned_groups(7, 4), halved=halved, bounds=[0, 30, N_FEATURES],
            travels=which.__contains__,
        )  # fmt: skip


@pytest.mark.parametrize("rule", [MergeRule("weighted"), MergeRule("touched", "vw"), MergeRule("precision")], ids=str)
def test_zeros_of_both_signs_and_the_smallest_numbers_are_those_of_the_cpu(on_gpu: OnGpu, rule: MergeRule) -> None:
    """Divisors of 0 where nothing was learnt, −0 + −0, and numbers below 1e-38, which GPUs may take for 0."""
    layout, everything = Layout("adagrad", 4), np.arange(N_FEATURES, dtype=np.uint32)
    table, touch = make_table(layout), Touch(everything, 3.0, np.ones(N_FEATURES, np.int64))
    table.linear[:40] = table.factors[:30] = 0.0
    after = table.copy()
    after.linear[10:20, 0] = after.factors[10:15, :4] = -0.0
    after.linear[20:30] = after.factors[20:30] = 1e-40
    table.linear[50:55, 1], after.linear[50:55, 1] = 2e-41, 3e-41
    results = []
    for averaging in (on_gpu, OnProcessors()):
        parts = [averaging.contribute(rule, touch, table, after, False) for _ in range(3)]
        total = averaging.combine_all(parts)
        merged = averaging.finalise(rule, table, 0, total, 3, STEP)[0]
        travelled = pickle.loads(pickle.dumps(total))
        results.append([travelled.features.tobytes()])
        results[-1] += [travelled[name].tobytes() for name in ("linear", "factors", "bias")]
        results[-1] += [merged.linear.tobytes(), merged.factors.tobytes()]
        assert np.isfinite(merged.linear).all()
    assert results[0] == results[1]
    assert np.signbit(after.linear[10, 0])


def test_a_block_that_is_summed_in_pieces_has_the_same_bytes(on_gpu: OnGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_averaging, "CHUNK_BYTES", 4 * 3 * 13)
    compare(on_gpu, MergeRule("weighted"), Layout("adagrad-row", 4), 6, groups=aligned_groups(6, 2))


def test_pulled_rows_put_rows_and_copies_are_those_of_the_cpu(on_gpu: OnGpu) -> None:
    table = make_table(Layout("adagrad", 6))
    features = np.array([0, 3, 19, 20, 36, 37, 59, 60, 89], np.uint32)
    places = np.array([1, 4, 7], np.uint32)
    results = []
    for averaging in (on_gpu, OnProcessors()):
        local = averaging.pull(blocks_of(table, [0, 20, 60, N_FEATURES]), features, 5)
        part = learn(pickle.loads(pickle.dumps(averaging.pull([local], places, 2))), 5)
        copied = averaging.copy(local)
        averaging.put(part, places, local)
        results.append([local, copied])
    assert_same(*results)
    with pytest.raises(IndexError, match="feature 90 is beyond the table's 90 rows"):
        on_gpu.pull([table], np.array([90], np.uint32))
    with pytest.raises(IndexError, match="feature 40 is beyond the 37 rows that own factors"):
        on_gpu.pull([table], np.array([1, 40], np.uint32), 2)


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
