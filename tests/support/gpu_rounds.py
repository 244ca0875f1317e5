"""Rounds of made-up replicas, averaged on a GPU and on processors, for tests of either."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from dfm.averaging import gpu as gpu_averaging
from dfm.averaging.contributions import aligned_groups
from dfm.averaging.gpu import OnGpu
from dfm.averaging.merge import Averaging, OnProcessors
from dfm.averaging.rules import MergeRule
from dfm.kernels.contract import Kernels, KernelSpec, Step
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.gpu import device as cupy_device
from dfm.kernels.gpu.tables import Gpu
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from tests import reference
from tests.support.host_gpu import HostDevice

N_FEATURES, N_FACTORED = 90, 37
STEP = Step(0.1, 0.1, l2_linear=0.01, l1_linear=0.02)
BOTH = ["host", pytest.param("cupy", marks=pytest.mark.gpu)]
"""Parameters of a fixture: the stand-in, and a GPU where there is one."""


def averaging_on(which: str) -> OnGpu:
    """Averaging on one of BOTH."""
    if which == "host":
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
        ParameterTable(
            table.layout,
            {"bias": table.bias.copy(), "linear": table.linear[a:b].copy(), "factors": table.factors[a:b].copy()},
        )
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


def rows_and_kernels(on_gpu: OnGpu) -> tuple[reference.Rows, Kernels, ParameterTable]:
    kernels = cupy_gpu.build(KernelSpec("logistic", "adagrad", 6), on_gpu.gpu)
    return reference.random_rows(200, N_FEATURES, 9, n_implicit=90), kernels, make_table(Layout("adagrad", 6))


def table_of(table: ParameterTable) -> ParameterTable:
    """On the host."""
    plain: ParameterTable = pickle.loads(pickle.dumps(table))
    return plain
