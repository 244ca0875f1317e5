"""The gate's task: an older night is no refusal, and whoever is alerted of a refusal learns why."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from airflow.sdk import DAG

from dfm.airflow import DfmPublishOperator, reason_of, runtime, tasks
from dfm.workflow import steps

pytestmark = pytest.mark.airflow
NO_METRICS: dict[str, Any] = {"candidate_metrics": {}, "champion_metrics": {}}
ANSWER = {"promoted": False, "older": False, "refusals": ["it is worse"], "alias": "a", "version": 3}


class Pushed:
    """A task instance that keeps what is pushed."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.values[key] = value


class Levels:
    """A task's log, of which the levels are kept."""

    def __init__(self) -> None:
        self.levels: list[str] = []

    def info(self, *_: object) -> None:
        self.levels.append("info")

    def warning(self, *_: object) -> None:
        self.levels.append("warning")


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": Pushed()}


def judged(answer: dict[str, Any], on_refusal: str, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tasks, "publish", lambda *_: answer)
    operator = DfmPublishOperator(
        task_id="gate", candidate="m", alias="a", data="d", order="2026-11-17", on_refusal=on_refusal
    )
    return operator.work(context)


@pytest.mark.parametrize("on_refusal", ["skip", "fail", "continue"])
def test_an_older_night_is_left_alone_without_a_word_to_anybody(
    on_refusal: str, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {**ANSWER, "older": True}
    log = Levels()
    monkeypatch.setattr(DfmPublishOperator, "log", log)
    assert judged(answer, on_refusal, context, monkeypatch) == answer
    assert log.levels == ["info"]
    assert context.keys() == {"ti"}


@pytest.mark.parametrize("on_refusal", ["skip", "fail"])
def test_who_is_alerted_of_a_refusal_learns_why(
    on_refusal: str, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowException

    with pytest.raises(AirflowException) as stopped:
        judged(ANSWER, on_refusal, context, monkeypatch)
    assert str(stopped.value) == reason_of(context) == "it is worse"
    assert context["ti"].values["return_value"] == ANSWER
    assert reason_of({"exception": ValueError("odd data")}) == "odd data"
    assert reason_of({"exception": None}) == "no reason was given"


def test_bad_rows_may_be_left_out(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        steps, "publish", lambda *_, **how: asked.update(how) or {**ANSWER, "older": True, **NO_METRICS}
    )
    values = {"task_id": "gate", "candidate": "m", "alias": "a", "data": "d", "order": "2026-11-17"}
    for how in ("skip", "error"):
        DfmPublishOperator(**values, dask_conn_id=None, on_bad_rows=how).work(context)
        assert asked["on_bad_rows"] == how


def test_an_order_that_was_rendered_to_a_native_object_is_its_text(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    older = {**ANSWER, "older": True, **NO_METRICS}
    monkeypatch.setattr(steps, "publish", lambda *_, **how: asked.update(how) or older)
    start = datetime.datetime(2026, 11, 29, tzinfo=datetime.UTC)
    with DAG("night", schedule=None, start_date=start, render_template_as_native_obj=True) as dag:
        gate = DfmPublishOperator(
            task_id="gate", candidate="m", alias="a", data="d", order="{{ ds_nodash }}", dask_conn_id=None
        )
    gate.render_template_fields({"ds_nodash": "20261130", "dag": dag})
    assert gate.order == 20261130
    gate.work(context)
    assert asked["order"] == "20261130"


def test_the_log_of_the_gate_holds_what_was_compared_and_what_came_of_it() -> None:
    metrics = {"log_loss": 0.41, "auc": 0.8, "weight": 10000.0, "rows": 10000, "calibration_bins": []}
    answer = {"promoted": True, "alias": "a", "version": 3, "candidate_metrics": metrics, "champion_metrics": {}}
    first = "candidate, on 10,000 rows: log_loss 0.41000, auc 0.80000"
    promoted = "version 3 of a is m"
    assert runtime.lines_of_publication("m", answer) == [first, promoted]
    answer |= {"champion_metrics": {"log_loss": 0.42}}
    assert runtime.lines_of_publication("m", answer) == [first, "champion: log_loss 0.42000", promoted]
    assert runtime.lines_of_publication("m", {**answer, "promoted": False})[-1] == "champion: log_loss 0.42000"
    older = {**answer, "promoted": False, "candidate_metrics": {}, "champion_metrics": {}}
    assert runtime.lines_of_publication("m", older) == []
