"""Averaging on a GPU: the same bytes as on processors, nothing moved that need not be, and what happens without room.

Without a GPU the kernels run on the processor (see `host_gpu`); `pytest -m gpu` runs the first half on a GPU too.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import nvrtc
import pytest
import reference
from host_gpu import HostDevice, fake_cupy, library_of
from numpy.typing import NDArray

from dfm import gpu_averaging
from dfm.averaging import ACCUMULATOR_RULES, WEIGHT_RULES, Averaging, MergeRule, OnProcessors
from dfm.contributions import Contribution, aligned_groups
from dfm.errors import ClusterError, SettingsError
from dfm.gpu_averaging import OnGpu
from dfm.kernels import cupy_device, cupy_gpu, gpu_plan
from dfm.kernels.contract import Following, KernelSpec, Step
from dfm.kernels.gpu_memory import COPY, FETCH, TRAIN
from dfm.kernels.gpu_tables import Gpu, GpuTable
from dfm.params import InitialValues, Layout, ParameterTable, initialise
from dfm.partition import SparsePartition
from dfm.slices import Slices

N_FEATURES, N_FACTORED = 90, 37
STEP = Step(0.1, 0.1, l2_linear=0.01, l1_linear=0.02)


@pytest.fixture(params=["host", pytest.param("cupy", marks=pytest.mark.gpu)])
def on_gpu(request: pytest.FixtureRequest) -> OnGpu:
    """Averaging on the stand-in, and on a GPU where there is one."""
    if request.param == "host":
        return OnGpu(Gpu(HostDevice()))
    name, reason = cupy_device.availability()
    if not name:
        pytest.skip(reason)
    return gpu_averaging.of_process()


@dataclass
class Touch:
    """What a replica touched."""

    features: NDArray[np.uint32]
    total_weight: float
    counts: NDArray[np.int64]

    def occurrences(self) -> NDArray[np.int64]:
        return self.counts


def make_table(layout: Layout, n_features: int = N_FEATURES, n_factored: int = N_FACTORED) -> ParameterTable:
    ids = np.arange(n_features, dtype=np.uint32)
    return initialise(layout, ids, n_factored, InitialValues(seed=3, init_stdev=0.1, bias=0.2))


def touches(n_replicas: int, seed: int = 1) -> list[Touch]:
    """Some replicas share most features, the second touches rare ones only, the last nothing."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(n_replicas):
        share = 0.0 if number == n_replicas - 1 and number > 3 else 0.6
        chosen = np.flatnonzero(rng.random(N_FEATURES) < share).astype(np.uint32)
        if number == 1:
            chosen = chosen[chosen > 50]
        result.append(Touch(chosen, float(rng.integers(1, 50)), rng.integers(1, 9, len(chosen))))
    return result


def learn(table: ParameterTable, seed: int) -> ParameterTable:
    """The table as some training might have left it: weights moved, accumulators grown."""
    rng, after = np.random.default_rng(seed), table.copy()
    for array, first_state in ((after.linear, 1), (after.factors, table.layout.lanes), (after.bias, 1)):
        array += rng.normal(0, 0.1, array.shape).astype(np.float32)
        state = array[..., first_state:]
        state[...] = np.abs(state) + rng.random(state.shape, np.float32)
    return after


def blocks_of(table: ParameterTable, bounds: Sequence[int]) -> list[ParameterTable]:
    """The table cut into rows."""
    return [
        ParameterTable(table.layout, table.bias.copy(), table.linear[a:b].copy(), table.factors[a:b].copy())
        for a, b in itertools.pairwise(bounds)
    ]


def merged(
    averaging: Averaging,
    rule: MergeRule,
    blocks: Sequence[ParameterTable],
    replicas: Sequence[Touch],
    groups: Sequence[range],
    travels: Callable[[int], bool] = lambda group: False,
    halved: bool = False,
    n_rounds: int = 2,
) -> list[ParameterTable | None]:
    """The blocks after some rounds, and their momentum. Contributions of groups that travel go through pickle."""
    bounds = [0, *itertools.accumulate(block.n_features for block in blocks)]
    tables: list[ParameterTable] = list(blocks)
    momenta: list[ParameterTable | None] = [None] * len(blocks)
    for at in range(n_rounds):
        pushes = []
        for number, group in enumerate(groups):
            parts = []
            for replica in group:
                touch = replicas[replica]
                before = averaging.pull(tables, touch.features)
                after = learn(pickle.loads(pickle.dumps(before)), 100 * at + replica)
                parts.append(averaging.contribute(rule, touch, before, after, halved))
            push = averaging.combine_all(parts) if len(parts) > 1 else parts[0]
            pushes.append(pickle.loads(pickle.dumps(push)) if travels(number) else push)
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            total = averaging.combine_all([push.select(start, stop) for push in pushes])
            tables[number], momenta[number] = averaging.finalise(
                rule, tables[number], start, total, len(replicas), STEP, momenta[number]
            )
    return [*tables, *momenta]


def assert_same(ours: Sequence[ParameterTable | None], theirs: Sequence[ParameterTable | None]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        if one is None or other is None:
            assert one is other
            continue
        for name in ("bias", "linear", "factors"):
            assert getattr(one, name).shape == getattr(other, name).shape
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


def compare(on_gpu: OnGpu, rule: MergeRule, layout: Layout, n_replicas: int, **how: object) -> None:
    """Both ways from the same blocks through the same rounds."""
    table, replicas = make_table(layout), touches(n_replicas)
    bounds = how.pop("bounds", [0, N_FEATURES])
    groups = how.pop("groups", aligned_groups(n_replicas, 2))
    results = [
        merged(averaging, rule, blocks_of(table, bounds), replicas, groups, **how)  # type: ignore[arg-type]
        for averaging in (on_gpu, OnProcessors())
    ]
    assert_same(results[0], results[1])
    assert results[0][0] is not None
    assert results[0][0].linear.tobytes() != table.linear[: bounds[1]].tobytes(), "something was learnt"  # type: ignore[index]


@pytest.mark.parametrize("optimizer", cupy_gpu.OPTIMIZER_NUMBERS)
@pytest.mark.parametrize("accumulators", ACCUMULATOR_RULES)
@pytest.mark.parametrize("weights", WEIGHT_RULES)
def test_every_rule_merges_to_the_bytes_of_the_cpu(
    on_gpu: OnGpu, weights: str, accumulators: str, optimizer: str
) -> None:
    rule = MergeRule(weights, accumulators)
    try:
        rule.check_optimizer(optimizer)
    except SettingsError:
        pytest.skip("refused: there are no accumulators to weigh by")
    compare(on_gpu, rule, Layout(optimizer, 5), 3)


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
        results.append([getattr(travelled, name).tobytes() for name in ("features", "linear", "factors", "bias")])
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


# --- tables that live on the device --------------------------------------------------------------------------


def rows_and_kernels(on_gpu: OnGpu) -> tuple[reference.Rows, cupy_gpu.Kernels, ParameterTable]:
    kernels = cupy_gpu.build(KernelSpec("logistic", "adagrad", 6), on_gpu.gpu)
    return reference.random_rows(200, N_FEATURES, 9, n_implicit=90), kernels, make_table(Layout("adagrad", 6))


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
    for name in ("features", "linear", "factors", "bias"):
        assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()


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


def test_to_describe_a_table_moves_nothing() -> None:
    device = HostDevice()
    table = OnGpu(Gpu(device)).copy(make_table(Layout("adagrad", 4)))
    assert "90 features" in repr(table)
    assert table != make_table(Layout("adagrad", 4))
    assert not device.fetched


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


# --- the program ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(nvrtc.find_library() is None, reason="nvidia-cuda-nvrtc-cu12 is not installed")
@pytest.mark.parametrize("chip", ["compute_80", "compute_90"])
def test_the_program_compiles_for_every_chip_and_rounds_every_operation(chip: str) -> None:
    ptx = nvrtc.compile_ptx(gpu_averaging.SOURCE.read_text(), chip, cupy_device.EXACT[1:])
    launched = set(re.findall(r'"([a-z]+_[a-z]+)", ', Path(gpu_averaging.__file__).read_text()))
    kernels = set(re.findall(r"\.entry (\w+)", ptx))
    assert len(kernels) > 10
    assert kernels <= launched, "a kernel that nobody launches"
    assert ".local" not in ptx, "an array went to slow memory"
    assert "fma.rn.f32" not in ptx, "a product and a sum are rounded together, as on no CPU"
    assert "div.rn.f32" in ptx
    assert not re.findall(r"div\.(?:approx|full)|sqrt\.approx|\.ftz", ptx)


def test_the_records_are_the_same_here_and_there() -> None:
    text = gpu_averaging.SOURCE.read_text()
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
        ("Weights", gpu_averaging.LAUNCH["weights"]),
    ):
        body = re.search(rf"^struct {struct} {{$(.*?)^}};$", text, re.S | re.M)
        assert body
        names = re.findall(r"[ *](\w+)[;,]", re.sub(r"//.*", "", body[1]))
        assert names == list(dtype.names or ())


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


def table_of(table: ParameterTable) -> ParameterTable:
    """On the host."""
    plain: ParameterTable = pickle.loads(pickle.dumps(table))
    return plain
