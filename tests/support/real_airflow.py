"""A home for a real Airflow, and a real Dask cluster of processes that can be killed.

Airflow reads its configuration when it is imported, so the environment is set here, before any test does that.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
DAGS = ROOT / "deploy" / "airflow" / "dags"
HOME = Path(tempfile.mkdtemp(prefix="dfm-airflow-"))
PATIENCE = 240.0
"""Seconds; generous, for a machine that has other things to do."""

os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(HOME / "dags"),
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    "AIRFLOW_VAR_CTR_LOG": str(HOME / "log"),
    "AIRFLOW_VAR_CTR_OUTPUT": str(HOME / "output"),
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}


def wait_until(condition, what: str, patience: float = PATIENCE):
    """The first true value of a condition."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {patience} s")


def command(name: str) -> str:
    """A command of the environment that the tests run in."""
    return str(Path(sys.executable).with_name(name))


class DaskCluster:
    """A scheduler and two workers as processes; workers can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workers, self._started = folder, [], 0
        file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        self.address = wait_until(lambda: file.exists() and _address_in(file), "the scheduler is up")
        self.start_workers()

    def _start(self, *arguments: str) -> subprocess.Popen:
        self._started += 1
        log = (self.folder / f"{arguments[0]}-{self._started}.log").open("wb")
        no_dashboard = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
        return subprocess.Popen(
            [command("dask"), *arguments, *no_dashboard], stdout=log, stderr=log, cwd=self.folder,
            start_new_session=True,
        )  # fmt: skip

    def start_workers(self, n: int = 2) -> None:
        for _ in range(n):
            local = ("--local-directory", str(self.folder / f"worker-{self._started}"))
            self.workers.append(self._start("worker", self.address, "--nthreads", "1", "--no-nanny", *local))

    def kill_workers(self, n: int = 2) -> None:
        """kill -9, and nothing brings them back."""
        for _ in range(n):
            worker = self.workers.pop()
            worker.kill()
            worker.wait()

    def tasks_so_far(self) -> int:
        """How much the scheduler has had to do: transitions of tasks since it started."""
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            return client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def _address_in(file: Path) -> str:
    try:
        return json.loads(file.read_text())["address"]
    except ValueError:  # still being written
        return ""


TRAINING_DAGS = """
import datetime
from airflow.sdk import DAG, CronDataIntervalTimetable, task
from dfm.airflow import DfmTrainOperator, tasks

JOB = {
    "data": {"train": "{{ var.value.ctr_log }}/day={{ data_interval_start | ds }}"},
    "schema": {"label": "label", "numeric": ["I*"], "categorical": ["C*"]},
    "model": {"n_factors": 4, "hash_bits": 16},
    "training": {"n_replicas": 4, "n_epochs": 60, "averages_per_epoch": 4, "early_stopping": False},
    "cluster": {"workers": 1, "worker_timeout": 8.0, "cache": "{{ var.value.ctr_output }}/cache"},
}
DAILY = CronDataIntervalTimetable("@daily", timezone="UTC")
KNOBS = {"models": "{{ var.value.ctr_output }}/long", "poll_interval": 0.3, "job": JOB}
KNOBS |= {"retries": 8, "retry_delay": datetime.timedelta(seconds=0.1)}

with DAG("train_here", schedule=DAILY):
    DfmTrainOperator(task_id="train", **KNOBS)

with DAG("train_flow", schedule=DAILY):
    short = {**JOB, "training": {"n_replicas": 4, "n_epochs": 1}}
    done = task(task_id="train")(tasks.train)(job=short, models="{{ var.value.ctr_output }}/flow")
    data = ["{{ var.value.ctr_log }}/day={{ macros.ds_add(data_interval_start | ds, 1) }}"]
    task(task_id="judge")(tasks.evaluate)(model=done["model"], data=data)

with DAG("train_away", schedule=DAILY):
    DfmTrainOperator(task_id="train", dask_conn_id=None, deferrable=True, **KNOBS)
"""
"""One long training, in the task's own process on the Dask cluster and in a process of its own; TaskFlow."""


def run_dag(dag_id: str, day: str) -> dict[str, str]:
    """Run a DAG for the interval of one day in this process, without delay between tries; state of each task."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(HOME / "dags"))
    assert not bag.import_errors
    dag = bag.dags[dag_id]
    for task in dag.tasks:
        task.retry_delay, task.retry_exponential_backoff = datetime.timedelta(seconds=0.1), 0
    # A manual run works on the last whole interval before its date.
    date = datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC) + datetime.timedelta(days=1)
    run = dag.test(logical_date=date)
    return {instance.task_id: str(instance.state) for instance in run.get_task_instances()}


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
