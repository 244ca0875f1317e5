"""What happens while a DAG file is parsed: fast, silent, and a wrong job breaks it with the knob's name."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfm.errors import SettingsError
from tests.support.real_airflow import DAGS

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
DAG = """
from airflow.sdk import DAG
from dfm.airflow import DfmEvaluateOperator, DfmPredictOperator, DfmPublishOperator, DfmTrainOperator

with DAG("wrong"):
    {task}
"""


def bag_of(folder: Path):
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(dag_folder=str(folder))


def error_of(task: str, folder: Path) -> str:
    """The import error of a DAG with one task."""
    (folder / "wrong.py").write_text(DAG.format(task=task))
    (message,) = bag_of(folder).import_errors.values()
    return message


def test_the_dags_are_imported_without_errors_or_warnings_within_two_seconds():
    import airflow.sdk  # noqa: F401 (Airflow's own start-up is not the DAGs')
    from airflow.dag_processing.dagbag import DagBag  # noqa: F401

    started = time.process_time()
    bag = bag_of(DAGS)
    assert time.process_time() - started < 2.0
    assert bag.import_errors == {}
    assert bag.captured_warnings == {}
    assert set(bag.dags) == {"ctr_daily", "ctr_minimal"}


def test_the_day_is_the_data_interval_and_the_steps_come_in_order():
    dag = bag_of(DAGS).dags["ctr_daily"]
    names = ["wait_for_day", "check_day", "train", "evaluate", "gate_and_publish", "score", "report"]
    assert [task.task_id for task in dag.topological_sort()] == names
    for before, after in itertools.pairwise(names):
        assert after in dag.task_dict[before].downstream_task_ids
    assert type(dag.timetable).__name__ == "CronDataIntervalTimetable"


def test_parsing_loads_neither_dask_nor_numba():
    script = (
        "import sys; from airflow.dag_processing.dagbag import DagBag; "
        f"bag = DagBag(dag_folder={str(DAGS)!r}); assert len(bag.dags) == 2; "
        "print([name for name in ('numba', 'distributed', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("DfmTrainOperator(task_id='t', job={'training': {'n_epoch': 3}}, models='m')", "training.n_epoch is unknown"),
        (
            "DfmTrainOperator(task_id='t', job={'model': {'hash_bits': 40}}, models='m')",
            "model.hash_bits = 40 is not legal",
        ),
        (
            "DfmTrainOperator(task_id='t', job={}, overrides=['training.merge={{ x }}', 'data.trian=a'], models='m')",
            "data.trian is unknown. Did you mean",
        ),
        ("DfmTrainOperator(task_id='t', job='missing.toml', models='m')", "cannot read the job file"),
        ("DfmTrainOperator(task_id='t', job={})", "does not say where models go"),
        (
            "DfmTrainOperator(task_id='t', job={'output': {'directory': 'o/{{ ds }}'}}, warm_start='previous')",
            "warm_start = 'previous' looks for runs below models/DAG/TASK, and output.directory = 'o/{{ ds }}'",
        ),
        (
            "DfmTrainOperator(task_id='t', job={'data': {'storage_options': {'key': 'x'}}}, models='m')",
            "storage_options.key is a secret",
        ),
        (
            "DfmPublishOperator(task_id='t', candidate='c', alias='a', data='d', gate={'auc': 0.7})",
            "the gate has no threshold 'auc'",
        ),
        (
            "DfmPublishOperator(task_id='t', candidate='c', alias='a', data='d', on_refusal='ignore')",
            "on_refusal = 'ignore' is not legal",
        ),
        (
            "DfmPublishOperator(task_id='t', candidate='c', alias='a', data='d', on_bad_rows='fail')",
            'on_bad_rows = "fail" is not legal',
        ),
        ("DfmEvaluateOperator(task_id='t', model='m', data='d', on_bad_rows=None)", "on_bad_rows = None is not legal"),
        (
            "DfmPredictOperator(task_id='t', model='m', data='d', scores='s', on_bad_rows='Skip')",
            'on_bad_rows = "Skip" is not legal',
        ),
    ],
)
def test_a_wrong_task_is_told_when_the_dag_is_parsed(tmp_path: Path, task: str, message: str):
    assert message in error_of(task, tmp_path)


def test_templates_wait_for_the_run_and_everything_else_is_checked(tmp_path: Path):
    job = {
        "data": {"train": "{{ var.value.log }}", "validation_from": "{{ ds }}"},
        "schema": {"time": "day"},
        "training": {"n_epochs": "{{ params.epochs }}"},
    }
    (tmp_path / "right.py").write_text(DAG.format(task=f"DfmTrainOperator(task_id='t', job={job!r}, models='m')"))
    bag = bag_of(tmp_path)
    assert bag.import_errors == {}
    assert bag.dags["wrong"].task_dict["t"].job == job


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_that_a_template_gives_is_one(value: bool):
    from dfm.airflow import DfmTrainOperator
    from dfm.airflow.runtime import rendered_tables_of

    job = {
        "training": {"early_stopping": "{{ params.stop }}", "n_epochs": "{{ params.epochs }}"},
        "output": {"report": "{{ params.report | tojson }}", "directory": "{{ params.stop }}"},
    }
    task = DfmTrainOperator(task_id="t", job=job)
    task.render_template_fields({"params": {"stop": value, "epochs": 3, "report": value}})
    tables = rendered_tables_of(task.job)
    assert tables["training"] == {"early_stopping": value, "n_epochs": 3}
    assert tables["output"] == {"report": value, "directory": str(value)}


KINDS = {
    "DfmTrainOperator": {"job": {}, "models": "m"},
    "DfmEvaluateOperator": {"model": "m", "data": "d"},
    "DfmPublishOperator": {"candidate": "c", "alias": "a", "data": "d"},
    "DfmPredictOperator": {"model": "m", "data": "d", "scores": "s"},
    "DfmReportOperator": {"url": "u", "title": "t", "sections": {}},
    "DfmPartitionSensor": {"partition": "p"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_templates_in_storage_options_are_rendered_and_what_they_give_is_checked(kind: str):
    from airflow.sdk.exceptions import AirflowException

    import dfm.airflow

    options = {"client_kwargs": {"endpoint_url": "{{ store }}"}}
    known = {"dask_conn_id": None} if kind != "DfmPartitionSensor" else {"poke_interval": 0.1, "timeout": 1}
    task = getattr(dfm.airflow, kind)(task_id="t", storage_options=options, **known, **KINDS[kind])
    task.render_template_fields({"store": "http://user:word@minio"})
    assert task.storage_options == {"client_kwargs": {"endpoint_url": "http://user:word@minio"}}
    with pytest.raises(
        (AirflowException, SettingsError), match=r"storage_options.client_kwargs.endpoint_url = .*a password"
    ):
        task.execute({})


def test_airflow_lists_the_connection_type_the_operators_and_the_links():
    from airflow.providers_manager import ProvidersManager

    from dfm.airflow import hooks
    from dfm.airflow.provider import get_provider_info

    manager = ProvidersManager()
    manager.initialize_providers_list()
    assert "dfm" in {provider.data["name"] for provider in manager.providers.values()}
    assert manager.hooks["dask"].hook_class_name == "dfm.airflow.hooks.DaskHook"
    assert {"dfm.airflow.links.ReportLink", "dfm.airflow.links.DaskDashboardLink"} <= set(
        manager.extra_links_class_names
    )
    prefix = "extra__dask__"
    fields = {name.removeprefix(prefix) for name in manager.connection_form_widgets if name.startswith(prefix)}
    assert fields == {"protocol", "dashboard", *hooks._REMOTE, *hooks._LOCAL}
    assert {*manager.field_behaviours["dask"]["hidden_fields"]} == {"schema", "login", "password"}
    info = get_provider_info()
    for kind in ("operators", "sensors", "hooks", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                assert __import__(module, fromlist=["x"])
