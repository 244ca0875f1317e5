"""Blocks of every family are averaged; rows that belong to no feature become their means, on GPUs as on processors."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest

from dfm.averaging.gpu import OnGpu
from dfm.averaging.merge import Averaging, OnProcessors
from dfm.averaging.rules import MergeRule
from dfm.kernels.families.registry import FAMILIES
from dfm.kernels.gpu.tables import Gpu
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from tests.support.gpu_rounds import N_FACTORED, N_FEATURES, STEP, Touch
from tests.support.host_gpu import HostDevice

N_FIELDS = 4
BOUNDS = [0, 30, N_FEATURES]


def start(family: str, optimizer: str) -> ParameterTable:
    ids, initial = np.arange(N_FEATURES, dtype=np.uint32), InitialValues(3, 0.1, bias=0.2)
    return initialise(Layout(optimizer, 3, family), ids, N_FACTORED, initial, N_FIELDS)


def learnt(before: ParameterTable, seed: int) -> ParameterTable:
    rng, after = np.random.default_rng(seed), before.copy()
    for block in after.layout.blocks:
        after[block.name][...] += rng.random(after[block.name].shape, np.float32)
    return after


def parts_of(table: ParameterTable) -> list[ParameterTable]:
    """The table cut into rows; each part has all rows that belong to no feature."""
    shared = {block.name for block in table.layout.shared}

    def part(first: int, last: int) -> ParameterTable:
        arrays = {name: array if name in shared else array[first:last] for name, array in table.arrays.items()}
        return ParameterTable(table.layout, arrays).copy()

    return [part(first, last) for first, last in itertools.pairwise(BOUNDS)]


def rounds_on(averaging: Averaging, rule: MergeRule, table: ParameterTable) -> list[ParameterTable]:
    """The parts after two rounds of two replicas that weigh 1 and 3."""
    touches = [
        Touch(np.array(features, np.uint32), weight, np.ones(3, np.int64))
        for features, weight in (([0, 29, 80], 1.0), ([0, 36, 89], 3.0))
    ]
    parts, momenta = parts_of(table), [None, None]
    for at in range(2):
        pushes = []
        for number, touch in enumerate(touches):
            before = averaging.pull(parts, touch.features)
            after = learnt(pickle.loads(pickle.dumps(before)), 10 * at + number)
            pushes.append(averaging.contribute(rule, touch, before, after, False))
        for number, (first, last) in enumerate(itertools.pairwise(BOUNDS)):
            total = averaging.combine_all([push.select(first, last) for push in pushes])
            parts[number], momenta[number] = averaging.finalise(
                rule, parts[number], first, total, 2, STEP, momenta[number]
            )
    return parts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("optimizer", ["adagrad", "ftrl", "adagrad-row", "sgd"])
def test_averages_on_a_gpu_have_the_bytes_of_processors(family: str, optimizer: str) -> None:
    for rule in (MergeRule("mean"), MergeRule("touched", outer_momentum=0.5)):
        here = rounds_on(OnProcessors(), rule, start(family, optimizer))
        there = rounds_on(OnGpu(Gpu(HostDevice())), rule, start(family, optimizer))
        for ours, theirs in zip(here, there, strict=True):
            for block in ours.layout.blocks:
                assert ours[block.name].tobytes() == theirs[block.name].tobytes(), block.name
        for block in here[0].layout.shared:
            assert here[0][block.name].tobytes() == here[1][block.name].tobytes(), "every part has the same"


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_belong_to_no_feature_become_their_means_over_rows(family: str) -> None:
    averaging, rule, table = OnProcessors(), MergeRule("weighted"), start(family, "adagrad")
    touches = [Touch(np.array([number], np.uint32), 1.0 + 2 * number, np.ones(1, np.int64)) for number in range(2)]
    befores = [averaging.pull([table], touch.features) for touch in touches]
    afters = [learnt(before, number) for number, before in enumerate(befores)]
    parts = [averaging.contribute(rule, *each, False) for each in zip(touches, befores, afters, strict=True)]
    merged, _ = averaging.finalise(rule, table, 0, averaging.combine_all(parts), 2, STEP)
    for block in table.layout.shared:
        expected = (afters[0][block.name].astype(float) + 3.0 * afters[1][block.name]) / 4.0
        np.testing.assert_allclose(merged[block.name], expected, rtol=1e-6)
