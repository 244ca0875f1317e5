"""Rounds that one task trains together: the same bytes as of rounds that are tasks of their own, however it goes."""

from __future__ import annotations

import os
import signal
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Future, LocalCluster

import dfm
from dfm import jobs
from dfm.data.accounting import RowAccount
from dfm.data.hashed_rows import EntrySums
from dfm.distributed import checkpointing, loops, start, stretches
from dfm.distributed.executor import DaskExecutor
from dfm.errors import RunCancelled
from dfm.kernels.contract import KernelSpec
from dfm.kernels.families.registry import FAMILIES
from dfm.kernels.tables import Layout
from dfm.training import rounds
from dfm.training.backends import CUPY, NUMBA
from dfm.training.plan import RoundPlan
from tests.support.small_jobs import job_tables, stop_after

Patch = pytest.MonkeyPatch
SPEC = KernelSpec("logistic", "adagrad", 8)


def together(monkeypatch: Patch, n_rounds: int) -> None:
    """Let trainings begin so many rounds together."""
    monkeypatch.setattr(loops, "rounds_together", lambda _run, _prepared, _n_blocks: n_rounds)


def tables_of(log: Path, folder: Path, model: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    knobs = {"backend": "numba", "averages_per_epoch": 5, "later_averages": 5, **training}
    schema = {"group": "C2", "categorical": ["C1", "C3"]} if (model or {}).get("loss") == "bpr" else {}
    return job_tables(log, folder, model={"n_factors": 4, **(model or {})}, training=knobs, schema=schema)


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{family: ({"family": family}, {}) for family in FAMILIES},
    "ftrl": ({}, {"optimizer": "ftrl"}),
    "adam": ({}, {"optimizer": "adam", "merge": "mean", "outer_momentum": 0.5, "n_replicas": 5}),
    "halved": ({}, {"wire_dtype": "bfloat16"}),
    "pilot": ({}, {"averages_per_epoch": "auto", "later_averages": "auto", "n_replicas": 2, "tune": "pilot"}),
    "several": ({"n_models": 2}, {}),
    "pairs": ({"loss": "bpr"}, {}),
}
"""Settings of models and of training."""


@pytest.mark.parametrize("way", WAYS)
def test_rounds_together_give_the_bytes_of_rounds_apart_on_any_workers(
    way: str, log: Path, client: Client, two_workers: Client, tmp_path: Path, monkeypatch: Patch
) -> None:
    model, training = WAYS[way]
    expected = jobs.train(tables_of(log, tmp_path / "apart", model, **training), client)
    for n_rounds, cluster in ((2, client), (3, two_workers)):
        together(monkeypatch, n_rounds)
        told: list[dict[str, Any]] = []
        tables = tables_of(log, tmp_path / f"of {n_rounds}", model, **training)
        result = jobs.train(tables, cluster, on_event=told.append)
        assert result.parameters_sha256 == expected.parameters_sha256
        seen = [(event["epoch"], event["round"]) for event in told if event["event"] == "round" and "seed" not in event]
        assert seen == sorted(set(seen))
        assert all(event["training_seconds"] <= event["seconds"] for event in told if event["event"] == "epoch")


def test_the_rows_of_a_stretch_lie_on_one_worker_before_it_begins(
    log: Path, two_workers: Client, tmp_path: Path, monkeypatch: Patch
) -> None:
    brought: list[Future] = []

    def bring(*arguments: Any) -> list[Future]:
        trained = stretches.brought_together(*arguments)
        brought.extend(trained)
        return trained

    def judge(*arguments: Any) -> list[Future] | None:
        judged = stretches.judged_together(*arguments)
        brought.extend(judged or [])
        return judged

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            places.update(worker for workers in two_workers.who_has(brought).values() for worker in workers)

    together(monkeypatch, 5)
    monkeypatch.setattr(loops, "brought_together", bring)
    monkeypatch.setattr(loops, "judged_together", judge)
    places: set[str] = set()
    jobs.train(tables_of(log, tmp_path, n_epochs=1), two_workers, on_event=look)
    assert len(brought) > 3
    assert len(places) == 1


def test_rows_that_are_too_many_for_the_worker_that_trains_are_judged_where_they_are(
    log: Path, client: Client, two_workers: Client, tmp_path: Path, monkeypatch: Patch
) -> None:
    expected = jobs.train(tables_of(log, tmp_path / "apart"), client)
    together(monkeypatch, 5)
    monkeypatch.setattr(stretches, "_MOST_BYTES", 0)
    monkeypatch.setattr(rounds, "evaluate_together", None)
    result = jobs.train(tables_of(log, tmp_path / "together"), two_workers)
    assert (result.parameters_sha256, result.validation) == (expected.parameters_sha256, expected.validation)


@pytest.mark.parametrize("way", ["choice", "few factors", "many factors"])
def test_rows_whose_features_own_other_factors_are_those_of_their_own_vocabulary(
    way: str, log: Path, client: Client, two_workers: Client, tmp_path: Path, monkeypatch: Patch
) -> None:
    """And the cache keeps none of them under the names of others."""
    least = {"few factors": 5_000, "many factors": 1}
    found: list[Any] = []
    for name, n_rounds, cluster in (("apart", 1, client), ("together", 2, two_workers)):
        together(monkeypatch, n_rounds)
        tables = tables_of(log, tmp_path / name)
        if way == "choice":
            tables["model"] |= {"choose": "best"}
            result = jobs.train(tables, cluster)
            found.append(result.parameters_sha256)
        else:
            with dfm.trials(tables, client=cluster) as trials:
                found.append(trials.loss(min_count_factors=least[way]))
        plain = {**tables_of(log, tmp_path / name), "output": {"directory": str(tmp_path / f"plain {name}")}}
        found.append(jobs.train(plain, cluster).parameters_sha256)
    assert found[:2] == found[2:]


def test_trainings_side_by_side_open_their_rows_once(
    log: Path, two_workers: Client, tmp_path: Path, monkeypatch: Patch
) -> None:
    opened: list[list[Future]] = []

    def bring(*arguments: Any) -> list[Future]:
        opened.append(stretches.brought_together(*arguments))
        return opened[-1]

    together(monkeypatch, 5)
    monkeypatch.setattr(loops, "brought_together", bring)
    jobs.train(tables_of(log, tmp_path, {"n_models": 4}, n_epochs=1), two_workers)
    assert len(opened) == 4
    assert len({id(each) for each in opened}) == 2, "one set for each worker"


def test_trainings_that_begin_at_the_same_time_open_their_rows_once(monkeypatch: Patch) -> None:
    def slowly(*_: Any) -> list[Future]:
        time.sleep(0.05)
        return []

    monkeypatch.setattr(stretches, "_opened", slowly)
    addresses = types.SimpleNamespace(addresses=lambda: ["a", "b"])
    run: Any = types.SimpleNamespace(work=types.SimpleNamespace(spec=SPEC), watch=addresses)
    prepared: Any = types.SimpleNamespace(opened={}, lock=threading.Lock())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: stretches.brought_together(run, prepared, 1), range(4)))
    assert len({id(each) for each in found}) == 1
    assert [*prepared.opened] == ["b"]


def test_a_stop_within_a_stretch_costs_no_more_than_that(
    log: Path, client: Client, two_workers: Client, tmp_path: Path, monkeypatch: Patch
) -> None:
    """And whoever goes on may begin other rounds together than who was stopped."""
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    expected = jobs.train(tables_of(log, tmp_path / "whole"), client)
    tables = tables_of(log, tmp_path / "parts")
    for n_rounds, stop in ((2, 3), (3, 2), (1, 1)):
        together(monkeypatch, n_rounds)
        with pytest.raises(RunCancelled):
            jobs.train(tables, two_workers, on_event=stop_after(stop))
    together(monkeypatch, 4)
    told: list[dict[str, Any]] = []
    assert jobs.train(tables, two_workers, on_event=told.append).parameters_sha256 == expected.parameters_sha256
    (resumed,) = (event for event in told if event["event"] == "resumed")
    assert (resumed["epoch"], resumed["round"]) == (2, 4), "4 of which 3 were told, then 1 and 3, then 1"


def test_parameters_in_blocks_of_a_run_on_more_workers_go_on_in_stretches_or_not(
    log: Path, client: Client, two_workers: Client, tmp_path: Path, monkeypatch: Patch
) -> None:
    """A table is cut by the workers that there are when training begins, and one worker would not have cut it."""
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    monkeypatch.setattr(start, "_BLOCK_BYTES", 1 << 12)
    expected = jobs.train(tables_of(log, tmp_path / "whole"), client)
    tables = tables_of(log, tmp_path / "parts")
    with pytest.raises(RunCancelled):
        jobs.train(tables, two_workers, on_event=stop_after(3))
    together(monkeypatch, 5)
    told: list[dict[str, Any]] = []
    assert jobs.train(tables, client, on_event=told.append).parameters_sha256 == expected.parameters_sha256
    assert any(event["event"] == "resumed" for event in told)


def test_a_worker_that_is_killed_within_a_stretch_costs_its_rounds_and_nothing_else(
    log: Path, client: Client, tmp_path: Path, monkeypatch: Patch
) -> None:
    expected = jobs.train(tables_of(log, tmp_path / "apart", n_epochs=3), client)
    calls, walk = tmp_path / "calls", rounds._walk

    def kills_once(work: Any, replica: int, *others: Any) -> Any:
        if replica == 2:  # the rehearsal has two replicas
            with calls.open("a") as count:
                count.write(".")
            if calls.stat().st_size == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        return walk(work, replica, *others)

    together(monkeypatch, 5)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster,
        Client(cluster, set_as_default=False) as processes,
    ):
        processes.run(_replace, kills_once)
        result = jobs.train(tables_of(log, tmp_path / "killed once", n_epochs=3), processes)
    assert calls.stat().st_size > 4
    assert result.parameters_sha256 == expected.parameters_sha256


def _replace(function: Any) -> None:
    rounds._walk = function


def _layout(n_factors: int, family: str) -> Layout:
    return KernelSpec("logistic", "adagrad", n_factors, family=family).layout


def _together(n_blocks: int = 1, **changes: Any) -> int:
    """The rule for a million rows of 39 entries, eight rounds in the first epoch and four in others."""
    run, prepared = _job_of(**changes)
    return stretches.rounds_together(run, prepared, n_blocks)


def _job_of(**changes: Any) -> tuple[Any, Any]:
    """The job, and what is known of its rows."""
    facts: dict[str, Any] = {
        "rows": 1_000_000,
        "n_factors": 8,
        "family": "fm",
        "table": 8 << 20,
        "shares_disk": True,
        "backend": NUMBA,
        "memory": 0,
        "n_slices": 8,
        "validate": "epoch",
        "n_replicas": 8,
        **changes,
    }
    rows = facts["rows"]
    run: Any = types.SimpleNamespace(
        inputs=types.SimpleNamespace(
            plan=RoundPlan(facts["n_slices"], min(4, facts["n_slices"])),
            n_rows=rows,
            schema=types.SimpleNamespace(fields=[None] * 39),
        ),
        job=types.SimpleNamespace(
            training=types.SimpleNamespace(validate=facts["validate"], n_replicas=facts["n_replicas"])
        ),
        work=types.SimpleNamespace(layout=_layout(facts["n_factors"], facts["family"])),
        shares_disk=facts["shares_disk"],
        choice=types.SimpleNamespace(backend=facts["backend"]),
        client=facts["memory"],
    )
    account = RowAccount(accepted=rows, entries=EntrySums(rows, 39 * rows, 0.0, rows))
    prepared: Any = types.SimpleNamespace(account=account, summary=facts["table"])
    return run, prepared


def test_only_short_rounds_on_one_machine_are_trained_in_stretches(monkeypatch: Patch) -> None:
    monkeypatch.setattr(stretches, "least_memory", lambda client: client)
    monkeypatch.setattr(stretches, "table_bytes", lambda _run, summary: summary)
    assert _together() == 6, "a million rows"
    assert _together(n_factors=32) == 1, "a round is long enough"
    assert _together(family="fwfm") == 2, "each pair of fields is work"
    assert _together(rows=1_000) == 8, "no more than there are"
    assert _together(rows=300_000) == 8
    assert _together(rows=1_600_000) == 3
    assert _together(rows=20_000_000) == 1, "a round is long enough"
    assert _together(n_blocks=2) == 1, "a large table"
    assert _together(rows=1_000, table=1 << 31) == 1, "which one worker merges whole"
    assert _together(shares_disk=False) == 1, "other machines"
    assert _together(backend=CUPY) == 1, "a GPU adds up by itself"
    assert _together(memory=1 << 30) == 1, "312 MB of rows are more than a fourth of a worker's memory"
    assert _together(memory=2 << 30) == 6


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"rows": 20_000_000}, False),
        ({"n_factors": 32}, False),
        ({"shares_disk": False}, False),
        ({"n_slices": 1}, False),
        ({"n_replicas": 1}, False),
        ({"validate": "average"}, False),
    ],
)
def test_what_is_rehearsed_is_what_rounds_will_be(monkeypatch: Patch, changes: dict[str, Any], may: bool) -> None:
    monkeypatch.setattr(stretches, "least_memory", lambda client: client)
    monkeypatch.setattr(stretches, "table_bytes", lambda _run, summary: summary)
    run, prepared = _job_of(**changes)
    assert stretches.may_be_together(run) == may
    if not {"validate", "n_replicas"} & {*changes}:  # which others look at
        assert (stretches.rounds_together(run, prepared, 1) > 1) == may


@pytest.mark.parametrize(("n_threads", "waited"), [(1, 0.5), (2, 0.0)])
def test_rounds_wait_for_a_judgement_where_one_thread_does_both(n_threads: int, waited: float) -> None:
    told: list[str] = []
    tally = types.SimpleNamespace(metrics=lambda: {"log_loss": 0.4})
    watch: Any = types.SimpleNamespace(
        threads=lambda: {"here": n_threads},
        submit=lambda function, *_, near, priority: told.append(f"{function.__name__} {near} {priority}"),
        result=lambda _: (tally, 0.5),
    )
    held_out: Any = ["rows"]
    executor = DaskExecutor(watch, [], held_out, stretch=2, judges_at_home=True)
    work: Any = None
    assert executor.evaluate(work, lambda: told.append("meanwhile")) == {"log_loss": 0.4}
    assert (told, executor.judging_seconds) == (["evaluate_together here 1", "meanwhile"], waited)
