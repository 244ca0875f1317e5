"""Kernels are compiled before rows need them: all of them, by two workers from both ends, whatever the rows are."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import pytest

from dfm.data.parquet import Shard, Unit, describe_shard
from dfm.data.reading import Reading
from dfm.data.schema import Schema, resolve
from dfm.distributed import beginning, rehearsal
from dfm.settings.job import load_job
from dfm.training import exact, rounds
from dfm.training.order import Order
from tests.support.shards import write_shard

COLUMNS = {"label": [0, 1, 1] * 200, "C": [f"c{n % 50}" for n in range(600)], "I": [float(n % 9) for n in range(600)]}
SCHEMA = resolve(Schema(categorical=["C"], numeric=["I"]), list(COLUMNS))


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    shard = describe_shard(write_shard(tmp_path / "a.parquet", COLUMNS, 400))
    return Unit(shard, 0, shard.n_rows)


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    return Reading(SCHEMA, 16, "classification", cache=str(tmp_path / "cache"))


def work_of(solver: str = "sgd") -> Any:
    tables = {"data": {"train": "log"}, "output": {"directory": "out"}, "schema": {"label": "label"}}
    work = Order.of(load_job({**tables, "training": {"solver": solver}})).work
    return work if solver != "sgd" else dataclasses.replace(work, backend="numba")


@pytest.mark.parametrize("report", [True, False])
def test_workers_with_a_common_disk_begin_at_opposite_ends(reading, unit, monkeypatch, report: bool) -> None:
    called: list[str] = []
    calls = [lambda name=name: called.append(name) for name in ("walk", "judge", "average")]
    monkeypatch.setattr(rounds, "calls_of_a_round", lambda *_: calls)
    monkeypatch.setattr(rehearsal._Rows, "prepare", lambda _: called.append("prepare"))
    monkeypatch.setattr(rehearsal._Rows, "watch", lambda *_: called.append("watch"))
    monkeypatch.setattr(rehearsal._Rows, "keep", lambda *_: called.append("keep"))
    monkeypatch.setattr(rehearsal._Rows, "score", lambda *_: called.append("score"))
    steps = ["walk", "average", "watch", "keep", *(["score"] if report else []), "judge", "prepare"]
    for place in range(3):
        rehearsal.warm_up(work_of(), reading, [unit], place=place, wanted=rehearsal.Wanted(report=report))
    assert called == [*steps, *reversed(steps), *steps]


PROGRAM = """
import json, sys
import numpy as np
from numba.core.event import install_recorder
from dfm.data.building import build_partition
from dfm.data.chunks import hash_units, hashed_in_memory
from dfm.data.preparation import load_slices
from dfm.data.row_lookup import RowLookup
from dfm.data.vocabulary import build_vocabulary, merge_counts
from dfm.distributed import beginning, rehearsal
from dfm.kernels.tables import InitialValues
from dfm.model.drift import Watcher
from dfm.model.fm_model import FMModel
from dfm.training import rounds
from dfm.training.publish import golden_rows
from tests.distributed.test_rehearsal import *

folder, place, solver = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
shard = describe_shard(str(folder / "a.parquet"))
unit, work = Unit(shard, 0, shard.n_rows), work_of(solver)
reading = Reading(SCHEMA, 16, "classification", cache=str(folder / f"cache {place} {solver}"))
rehearsal._IDLE = 0.0
with install_recorder("numba:compile") as recorder:
    rehearsal.warm_up(work, reading, [unit], 2, place=place)
told = [event.data["dispatcher"].py_func.__qualname__ for _, event in recorder.buffer]
with install_recorder("numba:compile") as recorder:
    crowded = hashed_in_memory(dataclasses.replace(reading, hash_bits=3), [unit], 1, (0,), True)
    vocabulary = build_vocabulary(merge_counts([crowded.counts], 3), ["C", "I"], 3, 1, 1)
    some = build_partition(crowded.rows, vocabulary, RowLookup(vocabulary), np.arange(600))
    assert 0 < some.n_implicit < 600, "in some rows two entries share an index"
    tasks = [[unit], [unit]]
    chunks = [hash_units(reading, units, 2, (0, i)) for i, units in enumerate(tasks)]
    assert not hasattr(chunks[0].rows, "tables"), "few rows lie side by side"
    counts = merge_counts([chunk.counts for chunk in chunks], 16)
    vocabulary = build_vocabulary(counts, ["C", "I"], 16, 1, 1)
    Watcher.of(vocabulary, SCHEMA, reading.statistics, RowLookup(vocabulary)).sights(crowded.rows)
    slices = load_slices(reading, tasks, 2, (0,), vocabulary, "key", RowLookup(vocabulary))
    if solver == "sgd":
        block = rounds.initial_block(vocabulary, work.layout, (0, vocabulary.n_features), InitialValues(0))
        push = rounds.train_replicas(work, 0, range(2), [block], [slices, slices])
        block = rounds.merge_block(work, block, [push])
        rounds.evaluate_partitions(work, [block], slices)
        about = SCHEMA, "classification", vocabulary, rounds.whole_table([block])
        model = FMModel(*about, reading.statistics, {}, work.objective.info)
        assert golden_rows(model, reading, unit)[0].num_rows
later = [event.data["dispatcher"].py_func.__qualname__ for _, event in recorder.buffer]
print(json.dumps([told, later]))
"""


@pytest.mark.patient
@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")
def test_a_job_compiles_nothing_after_its_rehearsal_and_another_process_finds_all_of_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", COLUMNS, 400)
    found = []
    for code, *words in (("one", "0", "sgd"), ("one", "0", "sgd"), ("other", "1", "sgd"), ("exact", "0", "als")):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / code)}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), *words]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert ended.returncode == 0, ended.stderr
        found.append(json.loads(ended.stdout))
    (first, after_first), (second, after_second), (other, after_other), (of_exact, after_exact) = found
    of_rows_and_rounds = {"_spread", "make_walk.<locals>.walk", "make_score_all.<locals>.score_all"}
    assert {*of_rows_and_rounds, "_sum_duplicates"} <= {*first}
    assert of_rows_and_rounds <= {*other}
    assert [second, after_first, after_second, after_other, after_exact] == [[]] * 5
    assert "_count" in of_exact, "what a model remembers of rows"


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("wrong", ["bad rows", "no rows", "no file"])
def test_rows_that_cannot_be_prepared_are_left_to_those_who_need_them(
    reading, tmp_path, place, wrong, monkeypatch
) -> None:
    called: list[str] = []
    calls = [lambda name=name: called.append(name) for name in ("walk", "judge", "average")]
    monkeypatch.setattr(rounds, "calls_of_a_round", lambda *_: calls)
    monkeypatch.setattr(rehearsal, "_IDLE", 0.0)
    bad = describe_shard(write_shard(tmp_path / "a.parquet", {**COLUMNS, "label": [7] * 600}))
    if wrong == "no file":
        (tmp_path / "a.parquet").unlink()
    rehearsal.warm_up(work_of(), reading, [] if wrong == "no rows" else [Unit(bad, 0, 600)], place=place)
    assert sorted(called) == ["average", "judge", "walk"]
    assert not list((tmp_path / "cache").glob("*"))


def test_rows_are_scored_only_where_something_had_to_be_compiled(reading, unit, monkeypatch) -> None:
    found: list[int] = []
    monkeypatch.setattr(rehearsal, "golden_rows", lambda model, *_: found.append(model.vocabulary.n_features))
    partitions: list[int] = []
    monkeypatch.setattr(rehearsal, "scoring_partition", lambda rows, _: partitions.append(rows.n_rows))
    for units, seconds in (([unit], 0.1), ([], 2.0), ([unit], 2.0)):
        rehearsal._Rows(reading, units).keep(work_of(), seconds)
        rehearsal._Rows(reading, units).score(work_of(), seconds)
    assert len(found) == 1
    assert found[0] > 50
    assert partitions == [600]


@pytest.mark.parametrize(("has_few", "n_rows", "forms"), [(True, 60_000, 2), (False, 60_000, 1), (False, 600, 2)])
def test_rows_side_by_side_are_prepared_where_there_may_be_some(
    reading, unit, monkeypatch, has_few: bool, n_rows: int, forms: int
) -> None:
    """Of a task with few rows, or where 600 rows have two thousand buckets, so that they are not coded."""
    built: list[Any] = []
    monkeypatch.setattr(rehearsal, "_IDLE", 0.0)
    monkeypatch.setattr(rehearsal._Rows, "_build", lambda _, chunk: built.append(chunk))
    rows = rehearsal._Rows(reading, [dataclasses.replace(unit, stop=n_rows)], has_few)
    rows._units[0] = unit
    rows.prepare()
    assert len(built) == forms


def test_an_exact_solver_is_rehearsed_and_its_rows_are_prepared(reading, unit, monkeypatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(exact, "warm_up", lambda _: called.append("iteration"))
    monkeypatch.setattr(rehearsal._Rows, "watch", lambda _: called.append("sights"))
    monkeypatch.setattr(rehearsal._Rows, "prepare", lambda _: called.append("rows"))
    for place in (0, 1):
        rehearsal.warm_up(work_of("als"), reading, [unit], place=place)
    assert called == ["iteration", "sights", "rows", "rows", "sights", "iteration"]


def test_only_the_first_rows_are_prepared(reading, unit, monkeypatch) -> None:
    monkeypatch.setattr(rehearsal, "_ROWS", 100)
    assert rehearsal._Rows(reading, [dataclasses.replace(unit, start=150)])._chunk.account.read == 100
    assert rehearsal._Rows(reading, [dataclasses.replace(unit, start=550)])._chunk.account.read == 50


@pytest.mark.parametrize("shares_disk", [True, False])
def test_rows_of_a_local_path_are_rehearsed_and_others_are_not_fetched_for_it(
    unit, reading, monkeypatch, shares_disk
) -> None:
    far = dataclasses.replace(unit, shard=dataclasses.replace(unit.shard, url="s3://bucket/a.parquet"))
    monkeypatch.setattr(beginning, "plain_reading", lambda _: reading)
    monkeypatch.setattr(beginning, "_may_have_few", lambda _: False)
    monkeypatch.setattr(beginning, "may_be_together", lambda _: True)

    def told(first: Unit, **how: bool) -> list[tuple[list[Unit], int, str]]:
        """The units of each worker's task, its place, and its address."""
        submitted: list[Any] = []
        watch = SimpleNamespace(
            addresses=lambda: ["one", "two"], submit=lambda *task, near: submitted.append((*task, near))
        )
        plan = SimpleNamespace(longest_round=3, replicas=[[], [[first, unit]]])
        job = SimpleNamespace(model=SimpleNamespace(n_models=1), output=SimpleNamespace(report=True))
        run: Any = SimpleNamespace(
            inputs=SimpleNamespace(plan=plan), job=job, watch=watch, work="work", shares_disk=shares_disk
        )
        beginning.warm_up(run, **how)
        assert all(task[:2] == (rehearsal.warm_up, "work") and task[4:6] == (3, 1) for task in submitted)
        assert all(task[7] == rehearsal.Wanted(report=True, few_rows=False, together=True) for task in submitted)
        return [(task[3], task[6], task[8]) for task in submitted]

    assert told(unit) == [([unit], 0, "one"), ([unit], int(shares_disk), "two")]
    assert told(far) == [([], 0, "one"), ([], int(shares_disk), "two")]
    assert told(unit, with_rows=False) == told(far)


def unit_of(*row_groups: int) -> Unit:
    """All rows of a shard that nobody opens."""
    return Unit(Shard("a.parquet", 1, "then", row_groups, ()), 0, sum(row_groups))


@pytest.mark.parametrize(
    ("changed", "may"),
    [
        ({}, False),
        ({"replicas": [[[unit_of(100_000, 100_000)], [unit_of(4_096)]]]}, False),
        ({"replicas": [[[unit_of(100_000, 100_000)], [unit_of(4_095)]]]}, True),
        ({"replicas": [[[unit_of(*[4_000] * 20)]]]}, True),  # of each row group 500 a slice
        ({"validation": [[[unit_of(300)]]]}, True),
        ({"is_needed": True}, True),  # rows held out of them
        ({"sample_negatives": 0.5}, True),
        ({"is_paired": True}, True),  # dealt into the slices of all replicas
    ],
)
def test_rows_are_few_where_a_slice_may_get_some_hundred_of_a_batch(changed: dict[str, Any], may: bool) -> None:
    told = {"validation": [], "is_needed": False, "sample_negatives": 1.0, "is_paired": False, **changed}
    plan = SimpleNamespace(n_slices=8, replicas=told.get("replicas", [[[unit_of(100_000, 100_000)]]]))
    split = SimpleNamespace(is_needed=told["is_needed"])
    run: Any = SimpleNamespace(
        inputs=SimpleNamespace(plan=plan, split=split, validation_tasks=told["validation"]),
        job=SimpleNamespace(data=SimpleNamespace(sample_negatives=told["sample_negatives"])),
        work=SimpleNamespace(spec=SimpleNamespace(is_paired=told["is_paired"])),
    )
    assert beginning._may_have_few(run) == may


def test_batches_of_a_unit_are_those_of_its_row_groups() -> None:
    assert [dataclasses.replace(unit_of(10, 70_000, 10), start=a, stop=b).n_batches for a, b in SPANS] == [4, 1, 2, 0]


SPANS = (0, 70_020), (10, 65_546), (9, 11), (5, 5)
