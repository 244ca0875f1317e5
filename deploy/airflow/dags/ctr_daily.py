"""Every night: wait for the day's log, check it, train on the days before it, judge the model on the day, publish.

Two Airflow variables say where things are: `ctr_log` (the log, in folders `day=YYYY-MM-DD`) and `ctr_output` (models,
alias, scores, reports). One connection of type `dask`, `dask_default`, says what computes. `deploy/airflow/README.md`
has the rest.
"""

from __future__ import annotations

import logging
from datetime import timedelta

import pendulum
from airflow.sdk import DAG, CronDataIntervalTimetable, TriggerRule, task

from dfm.airflow import (
    DfmEvaluateOperator,
    DfmPartitionSensor,
    DfmPredictOperator,
    DfmPublishOperator,
    DfmReportOperator,
    DfmTrainOperator,
    reason_of,
    tasks,
)

DAYS = 7
"""Train on so many days before the day of the run, and compare the day with them."""
JOB = {
    "schema": {"label": "label", "time": "day", "numeric": ["I*"], "categorical": ["C*"]},
    "model": {"n_factors": 8, "hash_bits": 20},
    # Two walks over the window, no early stopping: the validation day is kept for the gate, and nothing else sees it.
    "training": {"n_replicas": 4, "n_epochs": 2, "early_stopping": False, "warm_start_decay": 0.2},
}
GATE = {"log_loss_ratio": 1.005, "calibration_low": 0.9, "calibration_high": 1.1, "min_rows": 1000}
LIMITS = {"rows_low": 0.5, "rows_high": 2.0, "label_mean_low": 0.8, "label_mean_high": 1.25, "max_psi": 0.25}

LOG = "{{ var.value.ctr_log }}/day="
OUTPUT = "{{ var.value.ctr_output }}"
DAY = LOG + "{{ data_interval_start | ds }}"
BEFORE = [f"{LOG}{{{{ macros.ds_add(data_interval_start | ds, -{ago}) }}}}" for ago in range(DAYS, 0, -1)]
ALIAS = OUTPUT + "/champion"


def alert(context: dict) -> None:
    """Called for a task that failed for good, or was skipped: put your pager or chat here."""
    instance = context["ti"]
    level = logging.ERROR if context.get("exception") else logging.WARNING  # a refused model is no broken night
    logging.getLogger("ctr_daily").log(level, "%s of %s: %s", instance.task_id, instance.run_id, reason_of(context))


with DAG(
    "ctr_daily",
    description="Nightly click-through model: check, train, evaluate, gate, publish, score, report",
    # `schedule="@daily"` would give an interval of no length; this one is the day itself.
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=pendulum.datetime(2026, 11, 15),
    catchup=True,
    max_active_runs=4,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=2),
        "retry_exponential_backoff": True,
        "on_failure_callback": alert,
    },
    tags=["dfm"],
    doc_md=__doc__,
) as dag:
    wait = DfmPartitionSensor(
        task_id="wait_for_day", partition=DAY, deferrable=True, poke_interval=60, timeout=timedelta(hours=12)
    )
    check = task(task_id="check_day")(tasks.check_day)(
        job=JOB, day=DAY, before=BEFORE, limits=LIMITS, keep=OUTPUT + "/profiles", model=ALIAS
    )
    train = DfmTrainOperator(
        task_id="train",
        job={**JOB, "data": {"train": check["before"]}},
        models=OUTPUT + "/models",
        warm_start="previous",
        deferrable=True,
        poll_interval=5,
    )
    candidate = train.output["model"]
    evaluate = DfmEvaluateOperator(task_id="evaluate", model=candidate, data=DAY)
    publish = DfmPublishOperator(
        task_id="gate_and_publish",
        candidate=candidate,
        alias=ALIAS,
        data=DAY,
        gate=GATE,
        on_refusal="skip",
        on_skipped_callback=alert,
    )
    # A refused candidate is no reason to stop: the champion scores the day.
    score = DfmPredictOperator(
        task_id="score",
        model=ALIAS,
        data=DAY,
        scores=OUTPUT + "/scores/day={{ data_interval_start | ds }}",
        keep=["C1"],
        trigger_rule=TriggerRule.NONE_FAILED,
    )
    report = DfmReportOperator(
        task_id="report",
        trigger_rule=TriggerRule.NONE_FAILED,
        url=OUTPUT + "/reports/{{ data_interval_start | ds }}.html",
        title="Click model of {{ data_interval_start | ds }}",
        sections={
            "data": check,
            "training": train.output,
            "next day": evaluate.output,
            "gate": publish.output,
            "scores": score.output,
        },
    )
    wait >> check >> train >> evaluate >> publish >> score >> report
