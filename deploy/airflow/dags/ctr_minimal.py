from airflow.sdk import DAG, CronDataIntervalTimetable

from dfm.airflow import DfmTrainOperator

with DAG("ctr_minimal", schedule=CronDataIntervalTimetable("@daily", timezone="UTC")):
    DfmTrainOperator(task_id="train", job="ctr_minimal.toml", models="{{ var.value.ctr_output }}/models")
