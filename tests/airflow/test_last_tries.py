"""Errors that another try would meet again, or undo, end a task at once: of operators and of functions for TaskFlow."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from dfm.airflow import DfmTrainOperator, tasks
from dfm.errors import ClusterError, DivergenceError, GateError, RunCancelled
from dfm.settings.job import Job
from dfm.workflow import steps
from dfm.workflow.registry import Overtaken

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
CONTEXT = {
    "ti": SimpleNamespace(dag_id="ctr", task_id="train"),
    "data_interval_start": datetime.datetime(2026, 11, 16, tzinfo=datetime.UTC),
}
SECRET = {"password": "x"}
WRONG: dict[str, Callable[[], Any]] = {
    "train": lambda: tasks.train(job={"training": {"n_epochs": -1}}, models="m", dask_conn_id=None),
    "evaluate": lambda: tasks.evaluate("m", "d", None, SECRET),
    "publish": lambda: tasks.publish("c", "a", "d", {"auc": 1.0}, None, order="2026-11-16"),
    "predict": lambda: tasks.predict("m", "d", "o", (), None, SECRET),
    "is_model": lambda: tasks.is_model("m", SECRET),
    "rollback": lambda: tasks.rollback("a", "", SECRET),
    "check_day": lambda: tasks.check_day({"training": {"n_epochs": -1}}, "d", []),
    "report": lambda: tasks.report("u", "t", {}, SECRET),
}


@pytest.fixture(autouse=True)
def interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "get_current_context", lambda: CONTEXT)


def raising(error: Exception) -> Callable[..., Any]:
    def step(*_: object, **__: object) -> Any:
        raise error

    return step


@pytest.mark.parametrize("step", WRONG)
def test_wrong_settings_of_a_function_for_taskflow_are_not_tried_again(step: str) -> None:
    with pytest.raises(AirflowFailException, match="SettingsError: "):
        WRONG[step]()


@pytest.mark.parametrize("error", [GateError("it is worse"), DivergenceError("not finite")])
def test_neither_is_a_refusal_of_the_gate_or_a_diverged_training(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "publish", raising(error))
    with pytest.raises(AirflowFailException, match=f"{type(error).__name__}: {error}"):
        tasks.publish("c", "a", "d", dask_conn_id=None, order="2026-11-16")


@pytest.mark.parametrize("error", [Overtaken("judge again"), ClusterError("no workers")])
def test_what_another_try_may_pass_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "publish", raising(error))
    with pytest.raises(type(error)):
        tasks.publish("c", "a", "d", dask_conn_id=None, order="2026-11-16")


CANCELLED = r"run r was cancelled on request.*\(clear the task to go on with it\)"


def operator(folder: Path) -> DfmTrainOperator:
    return DfmTrainOperator(task_id="train", job={}, models=str(folder), dask_conn_id=None)


def test_a_training_that_somebody_cancelled_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "train_here", raising(RunCancelled("run r was cancelled on request")))
    for train in (
        lambda: operator(tmp_path).execute(CONTEXT),
        lambda: tasks.train({}, str(tmp_path), dask_conn_id=None),
    ):
        with pytest.raises(AirflowFailException, match=CANCELLED):
            train()


def test_a_training_that_airflow_itself_killed_gets_the_tries_that_airflow_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = operator(tmp_path)

    def train_here(*_: object) -> Any:
        task.on_kill()
        raise RunCancelled("run r was cancelled on request")

    monkeypatch.setattr(tasks, "train_here", train_here)
    with pytest.raises(AirflowException, match="cancelled on request") as stopped:
        task.execute(CONTEXT)
    assert not isinstance(stopped.value, AirflowFailException)


def test_a_number_that_a_template_left_as_text_is_one_in_functions_for_taskflow_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Job] = []
    monkeypatch.setattr(tasks, "train_here", lambda job, *_: given.append(job) or {})
    monkeypatch.setattr(steps, "check_day", lambda job, *_: given.append(job) or {"before": ["yesterday"]})
    job = {"training": {"n_epochs": "2", "early_stopping": "false"}}
    tasks.train(job, str(tmp_path), ["model.n_factors=3"], dask_conn_id=None)
    tasks.check_day(job, "today", ["yesterday"])
    assert [(each.training.n_epochs, each.training.early_stopping) for each in given] == [(2, False)] * 2
    assert given[0].model.n_factors == 3


@pytest.mark.parametrize("step", WRONG)
def test_airflow_sees_the_results_of_a_function_one_by_one(step: str) -> None:
    from airflow.sdk import task

    assert task(task_id=step)(getattr(tasks, step)).multiple_outputs == (step != "is_model")
