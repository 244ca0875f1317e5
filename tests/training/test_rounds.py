"""The work of a round in one process: what is compiled before it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numba.core.event import install_recorder

from dfm.data.partition import SparsePartition
from dfm.kernels.tables import InitialValues, initialise
from dfm.settings.job import load_job
from dfm.training import rounds
from dfm.training.order import Order


@pytest.fixture
def work() -> rounds.Work:
    tables = {"data": {"train": "log"}, "output": {"directory": "out"}, "schema": {"label": "label"}}
    return dataclasses.replace(Order.of(load_job(tables)).work, backend="numba")


@pytest.mark.parametrize("n_slices", [1, 2])
def test_a_round_compiles_nothing_that_was_not_compiled_before(work, n_slices) -> None:
    for call in reversed(rounds.calls_of_a_round(work, n_slices)):
        call()
    ids, nothing = np.arange(3, dtype=np.uint32), np.zeros(0, np.float32)
    block = rounds.Block(0, initialise(work.layout, ids, 2, InitialValues(0), 3))
    indptr, ones, fields = np.array([0, 3, 6]), np.ones(2, np.float32), np.zeros(3, np.uint16)
    rows = SparsePartition(indptr, np.tile(ids, 2), nothing, ones, nothing, ids, 2, 2, fields)
    with install_recorder("numba:compile") as recorder:
        push = rounds.train_replicas(work, 0, range(n_slices), [block], [[rows] * n_slices] * 2)
        rounds.evaluate_partitions(work, [rounds.merge_block(work, block, [push])], [rows])
    assert [event.data["dispatcher"].py_func.__name__ for _, event in recorder.buffer] == []
