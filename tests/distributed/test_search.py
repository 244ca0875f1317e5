"""A search: the same winner on any cluster and after it was killed, and never a job worse than the default."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client

import dfm
from dfm import jobs
from dfm.distributed.trials import Trials
from dfm.errors import DivergenceError, RunCancelled, SettingsError
from dfm.events import faults_of
from dfm.model.objective import Objective
from dfm.runs.termination import interrupt, stoppable
from dfm.settings.job import Job, load_job
from dfm.settings.toml import to_toml
from dfm.training.automatic import RowScale
from dfm.training.inputs import find_inputs
from dfm.training.plan import RoundPlan
from dfm.training.search import rungs_of, survivors, trials_of
from tests.distributed.test_held_out import tables_of, write_log
from tests.support.real_cluster import wait_until
from tests.support.small_jobs import in_process_client

TRIALS = {"n_trials": 6, "n_seeds": 2, "n_factors": [2, 4], "min_count_factors": [1, 5000]}


FEW = {"averages_per_epoch": 2, "later_averages": 1}
"""Rounds of an epoch: what a search does between them is the same, and a round is mostly waiting."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("searched") / "log")


def searched(log: Path, folder: Path, client: Client, **more: Any) -> Any:
    return jobs.search(
        {**tables_of(log, folder, training=FEW), "search": TRIALS, **more.pop("tables", {})}, client, **more
    )


@pytest.fixture(scope="module")
def found(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return searched(log, tmp_path_factory.mktemp("one"), client)


def losses(result: Any) -> dict[tuple[str, int, int], float]:
    return {(record["key"], record["rung"], record["seed"]): record["loss"] for record in result.trials}


def test_the_best_is_no_worse_than_the_default_and_trains_as_a_job(
    found: Any, log: Path, client: Client, tmp_path: Path
) -> None:
    default = found.losses["default"]
    best = found.losses.get("best", default)
    assert found.is_default == (sum(default) <= sum(best))
    job = load_job(found.best)
    own = tmp_path / "again"
    result = jobs.train(job, client, overrides=[f"output.directory={own}", f"cluster.cache={own}/cache"])
    mean = min(sum(best), sum(default)) / 2
    assert result.validation["log_loss"] == pytest.approx(mean, rel=0.02)
    if not found.is_default:
        written = tomllib.loads(Path(found.best).read_text())
        assert isinstance(written["training"]["learning_rate"], float)


def test_a_trial_is_a_job_with_its_settings(found: Any, log: Path, client: Client, tmp_path: Path) -> None:
    """A third rung walked to its end has the loss of a job with these settings: partitions are shared rightly."""
    (record,) = [record for record in found.trials if record["rung"] == 3]
    settings = record["settings"]
    tables = tables_of(log, tmp_path, training=FEW)
    trial = next(each for each in trials_of(Job.from_dict({**tables, "search": TRIALS})) if each.key == record["key"])
    assert trial.n_factors == settings["n_factors"]
    plan = find_inputs(Job.from_dict(tables)).plan
    job = trial.job(Job.from_dict(tables), RowScale(2.0), 0.8, plan)
    result = jobs.train(job, client)
    assert result.validation["log_loss"] == pytest.approx(record["loss"], rel=1e-6)


@pytest.mark.patient
@pytest.mark.parametrize("n_workers", [2, 5])
def test_any_cluster_finds_the_same(found: Any, log: Path, n_workers: int, tmp_path: Path) -> None:
    with in_process_client(n_workers) as others:
        assert losses(searched(log, tmp_path, others)) == losses(found)


@pytest.mark.patient
def test_a_search_whose_process_was_killed_goes_on_where_it_stood(
    found: Any, log: Path, client: Client, tmp_path: Path
) -> None:
    job = tmp_path / "job.toml"
    tables = {**tables_of(log, tmp_path, training=FEW), "search": TRIALS}
    tables["cluster"] = {**tables["cluster"], "scheduler": client.scheduler.address}
    job.write_text(to_toml(tables))
    journal = tmp_path / "out" / "search.jsonl"
    command = [sys.executable, "-m", "dfm", "search", str(job), "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: process.poll() is not None or (journal.exists() and journal.read_bytes().count(b"\n") > 2))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    told: list[dict[str, Any]] = []
    result = jobs.search(tables, client, on_event=told.append)
    assert losses(result) == losses(found)
    assert sum(event["event"] == "trial" for event in told) < len(found.trials)


@pytest.mark.parametrize("stop_after", [1, 7, 11])
def test_a_search_that_was_stopped_goes_on_where_it_stood(
    found: Any, log: Path, client: Client, tmp_path: Path, stop_after: int
) -> None:
    seen: list[str] = []

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "trial":
            seen.append(event["key"])
            if len(seen) == stop_after:
                raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        searched(log, tmp_path, client, on_event=stop)
    known = len((tmp_path / "out" / "search.jsonl").read_text().splitlines()) - 1
    assert known >= stop_after
    told: list[dict[str, Any]] = []
    result = searched(log, tmp_path, client, on_event=told.append)
    assert losses(result) == losses(found)
    assert sum(event["event"] == "trial" for event in told) == len(found.trials) - known


def test_ctrl_c_ends_the_trials_under_way_and_says_where_to_go_on(
    log: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walked(trials: Trials, loop: Any, until: int | None) -> tuple[float, str]:
        if until is None:
            threading.Timer(0.3, stop).start()
        return walk(trials, loop, until)

    def stop() -> None:
        asked.append(time.monotonic())
        interrupt()

    asked: list[float] = []
    walk = Trials.walked
    monkeypatch.setattr(Trials, "walked", walked)
    endless = {"training": {**FEW, "n_replicas": 2, "n_epochs": 1000, "early_stopping": False}}
    endless |= {"data": {"train": str(log), "validation_fraction": 0.2}, "search": {"n_trials": 1, "n_seeds": 1}}
    with stoppable(), pytest.raises(KeyboardInterrupt) as caught:
        searched(log, tmp_path, client, tables=endless)
    assert time.monotonic() - asked[0] < 5
    journal = tmp_path / "out" / "search.jsonl"
    assert caught.value.__notes__ == [f"what was tried is in {journal}; the same command goes on"]
    assert [json.loads(line)["rung"] for line in journal.read_text().splitlines()[1:]] == [1, 2]


def test_trials_are_told_in_the_thread_that_asked(log: Path, client: Client, tmp_path: Path) -> None:
    threads = set()

    def told(event: dict[str, Any]) -> None:
        threads.add(threading.current_thread())

    searched(log, tmp_path, client, on_event=told, tables={"search": {"n_trials": 3, "n_seeds": 1}})
    assert threads == {threading.current_thread()}


def test_the_best_job_trains_as_it_stands(
    log: Path, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Options of the filesystem are in it; arguments of a factory, which may be secrets, are not, and it says so."""
    tables = tables_of(log, tmp_path, data={"storage_options": {"auto_mkdir": True, "client_kwargs": {"a": 1}}})
    tables["cluster"]["factory_options"] = {"access": "hidden away"}
    tables["search"] = {"n_trials": 1, "n_seeds": 0}
    result = jobs.search(tables, client, resume=False)
    job = load_job(result.best)
    assert job.data.storage_options == {"auto_mkdir": True, "client_kwargs": {"a": 1}}
    assert job.output.resume, "the search began anew, and the job says nothing of that"
    assert "hidden away" not in Path(result.best).read_text()
    assert "# cluster.factory_options is left out" in Path(result.best).read_text()
    assert "cluster.factory_options may hold secrets and stays out of best.toml" in caplog.text
    told: list[dict[str, Any]] = []
    jobs.search(tables, client, on_event=told.append, resume=False)
    assert [event["rung"] for event in told if event["event"] == "trial"] == [1, 2, 3]


def test_trials_are_compared_by_the_metric_that_the_job_stops_on_and_name_it(
    log: Path, client: Client, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []
    tables = {"training": {**FEW, "stop_on": "auc"}, "search": {"n_trials": 1, "n_seeds": 1}}
    result = searched(log, tmp_path, client, on_event=told.append, tables=tables)
    of_search = [event for event in told if event["event"] in ("trial", "searched")]
    assert result.metric == "auc"
    assert {event["metric"] for event in of_search} == {"auc"}
    assert [fault for event in of_search for fault in faults_of(event)] == []
    (loss,) = result.losses["default"]
    folder = [f"output.directory={tmp_path}/again", f"cluster.cache={tmp_path}/again/cache"]
    trained = jobs.train(load_job(result.best), client, overrides=folder)
    assert trained.validation["auc"] == pytest.approx(1 - loss, rel=0.02)


def test_a_search_of_nothing_but_divergence_fails_and_says_why(
    log: Path, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = {"training": {**FEW, "n_replicas": 2, "learning_rate": 1e30}, "search": {"n_trials": 2, "n_seeds": 1}}
    why = "all 2 trials diverged at rung 1; one of them: training diverged in epoch 1, replica"
    with pytest.raises(DivergenceError, match=why):
        searched(log, tmp_path, client, tables=tables)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.split(":")[0] for text in warnings] == ["a trial diverged"], "the first of them"
    assert not (tmp_path / "out" / "best.toml").exists()
    with pytest.raises(DivergenceError, match=why):  # from what is noted
        searched(log, tmp_path, client, tables=tables)


def test_a_trial_whose_loss_is_no_finite_number_has_diverged() -> None:
    """As of `poisson`, where the exponential of a score is beyond all numbers."""
    best = SimpleNamespace(metrics={"loss": None, "rmse": None})
    loop: Any = SimpleNamespace(run=lambda until: None, best=best, objective=Objective.of("regression", "poisson"))
    nothing: Any = None
    found = Trials(nothing, nothing).walked(loop, None)
    assert found == (math.inf, "loss of the rows to validate on is no finite number")


def test_settings_that_somebody_else_searches_are_tried_on_the_same_rows(
    found: Any, log: Path, client: Client, tmp_path: Path
) -> None:
    (record,) = [record for record in found.trials if record["rung"] == 3]
    tables = {**tables_of(log, tmp_path, training=FEW), "search": TRIALS}
    with dfm.trials(tables, client) as trials:
        assert trials.loss(**record["settings"]) == pytest.approx(
            record["loss"], rel=1e-4
        )  # its numbers have four digits
        default = trials.loss()
        assert default in found.losses["default"]
        assert trials.loss(seed=1) in found.losses["default"]
        assert trials.loss(n_factors=2.0) != default
        with pytest.raises(SettingsError, match="lr cannot be tried; settings of a trial are factor_rate_scale"):
            trials.loss(lr=0.1)
    assert not (tmp_path / "out").exists()


def test_another_space_takes_over_what_is_known_and_judges_its_own_best(
    found: Any, log: Path, client: Client, tmp_path: Path
) -> None:
    searched(log, tmp_path / "both", client)
    other = {"search": {**TRIALS, "n_trials": 5, "learning_rate": [2.0, 2.0]}}
    fresh = searched(log, tmp_path / "fresh", client, tables=other)
    again = searched(log, tmp_path / "both", client, tables=other)
    assert (again.losses, again.is_default) == (fresh.losses, fresh.is_default)
    assert losses(again) == losses(fresh), "what the other space tried stays in the journal alone"


def test_a_search_of_a_linear_model_tries_linear_models(log: Path, client: Client, tmp_path: Path) -> None:
    result = searched(log, tmp_path, client, tables={"model": {"hash_bits": 12, "n_factors": 0}})
    assert load_job(result.best).model.n_factors == 0
    assert len({record["loss"] for record in result.trials if record["rung"] == 1}) > 1


def test_the_journal_of_another_search_is_refused(found: Any, log: Path, client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir(parents=True)
    (folder / "search.jsonl").write_text(json.dumps({"job": "another"}) + "\n")
    with pytest.raises(SettingsError, match="holds another search"):
        searched(log, tmp_path, client)


@pytest.mark.parametrize("name", ["search.jsonl", "best.toml"])
def test_a_file_that_dfm_did_not_make_is_refused_and_stays(
    log: Path, client: Client, tmp_path: Path, name: str
) -> None:
    foreign = tmp_path / "out" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    tables = {"output": {"directory": str(tmp_path / "out"), "resume": False}}
    with pytest.raises(SettingsError, match=f"{name} is there and was not made by dfm"):
        searched(log, tmp_path, client, tables=tables)
    assert foreign.read_text() == "mine"


def test_a_search_without_rows_to_validate_on_is_refused(log: Path, client: Client, tmp_path: Path) -> None:
    tables = {**tables_of(log, tmp_path, data={"validation_fraction": 0}), "search": TRIALS}
    with pytest.raises(SettingsError, match="needs rows to validate on"):
        jobs.search(tables, client)


def test_trials_begin_with_the_default_and_stay_in_the_space() -> None:
    job = Job.from_dict({"search": {"n_trials": 40, "l2_factors": [0.002, 0.002]}})
    trials = trials_of(job)
    assert [trial.number for trial in trials] == list(range(40))
    assert (trials[0].learning_rate, trials[0].factor_rate_scale, trials[0].n_factors) == (1.0, 0.4, 16)
    assert len({trial.key for trial in trials}) == 40
    for trial in trials[3:]:
        assert 0.6 / 1.6 <= trial.learning_rate <= 6 / 1.6
        assert trial.l2_factors == pytest.approx(0.002)
        assert trial.n_factors in (8, 16, 32)
    assert trials_of(job) == trials
    assert trials_of(Job.from_dict({"model": {"seed": 1}, "search": {"n_trials": 40}}))[5] != trials[5]


def test_what_the_job_gives_is_not_searched() -> None:
    given = {"training": {"learning_rate": 0.3, "l2_factors": 0.1}, "model": {"n_factors": 0, "init_stdev": 0.5}}
    job = Job.from_dict(given)
    for trial in trials_of(job):
        tried = trial.job(job, RowScale(), 1.6, RoundPlan(6, 2))
        assert (tried.training.learning_rate, tried.training.l2_factors) == (0.3, 0.1)
        assert (tried.model.n_factors, tried.model.init_stdev) == (0, 0.5)


def test_half_of_the_trials_go_on_and_a_quarter_of_these() -> None:
    assert [(rung.until, rung.n_kept) for rung in rungs_of(24)] == [(1, 12), (3, 3), (None, 1)]
    assert [rung.n_kept for rung in rungs_of(1)] == [1, 1, 1]
    trials = trials_of(Job.from_dict({"search": {"n_trials": 4}}))
    losses = {0: 0.5, 1: 0.4, 2: 0.5, 3: float("inf")}
    assert [trial.number for trial in survivors(trials, losses, 2)] == [0, 1]
    assert [trial.number for trial in survivors(trials, losses, 4)] == [0, 1, 2], "what diverged leaves its seat empty"


def test_bounds_that_are_no_interval_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"search.l2_linear = .* is not legal: expected two numbers"):
        Job.from_dict({"search": {"l2_linear": [0.2, 0.1]}})


def test_lengths_that_are_tried_are_multiples_of_the_family_s_own() -> None:
    """A field-aware machine has its vector once for each group: 16 of them would be four times 64 numbers."""
    for family, expected in (("fm", (8, 16, 32)), ("ffm", (2, 4, 8)), ("fwfm", (8, 16, 32))):
        trials = trials_of(Job.from_dict({"model": {"family": family}, "search": {"n_trials": 40}}))
        assert {trial.n_factors for trial in trials[3:]} == {*expected}
    given = Job.from_dict({"model": {"family": "ffm"}, "search": {"n_trials": 20, "n_factors": [3]}})
    assert {trial.n_factors for trial in trials_of(given)[3:]} == {3}


@pytest.mark.parametrize(("n_models", "n_factors", "expected"), [(12, 16, {8, 16}), (2, 16, {8, 16, 32}), (64, 4, {4})])
def test_lengths_that_are_tried_are_those_that_so_many_models_may_have(
    n_models: int, n_factors: int, expected: set[int]
) -> None:
    job = Job.from_dict({"model": {"n_models": n_models, "n_factors": n_factors}, "search": {"n_trials": 40}})
    assert {trial.n_factors for trial in trials_of(job)[3:]} == expected


def test_a_length_that_so_many_models_cannot_have_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    tables = tables_of(tmp_path / "nowhere", tmp_path)
    tables |= {"model": {"n_models": 12, "n_factors": 16}, "search": {"n_factors": [16, 32]}}
    with pytest.raises(SettingsError, match=r"search\.n_factors = \[16, 32\] tries 32: model\.n_models = 12 of"):
        jobs.search(tables)


def test_results_of_other_data_are_refused(client: Client, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log")
    searched(log, tmp_path, client)
    shard = next(log.glob("*.parquet"))
    os.utime(shard, (1, 1))
    with pytest.raises(SettingsError, match="holds results of other data"):
        searched(log, tmp_path, client)
    first = json.loads((tmp_path / "out" / "search.jsonl").read_text().splitlines()[0])
    assert {"job", "shards"} <= first.keys()
