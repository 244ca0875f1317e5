"""The log of a task holds what a person looks for: epochs, metrics, account of rows, the model; deferred or not."""

from __future__ import annotations

import datetime
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfm.airflow import DfmTrainOperator, tasks
from dfm.airflow.runtime import REPORT, lines_of_run, link_to
from dfm.errors import ClusterError
from dfm.runs import record as runs
from dfm.runs.log import RunLog
from dfm.settings.job import Job
from dfm.settings.tables import ClusterSettings

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
RUN_ID = "ctr.train.20261116T000000"
CONTEXT = {
    "ti": SimpleNamespace(dag_id="ctr", task_id="train"),
    "data_interval_start": datetime.datetime(2026, 11, 16, tzinfo=datetime.UTC),
}
EPOCH = {
    "event": "epoch", "epoch": 1, "train_log_loss": 0.51234567, "log_loss": 0.4, "auc": 0.75, "rows_per_second": 1e6,
    "seconds": 2.0, "training_seconds": 1.0, "bytes_per_round": 3.0,
}  # fmt: skip
DONE = {
    "event": "done", "model": "out/model", "parameters_sha256": "abc", "interrupted": False,
    "validation": {"log_loss": 0.4, "auc": 0.75}, "rows": {"read": 9000, "trained": 8999, "rejected": 1},
}  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """Where a run has ended."""
    job = Job.from_dict({"data": {"train": "x"}, "output": {"directory": str(tmp_path)}})
    with RunLog(job, RUN_ID) as log:
        log.on_event(EPOCH)
        log.on_event(DONE)
    return str(tmp_path)


class Kept:
    """A task's log, kept."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def info(self, text: str, *values: object) -> None:
        self.told.append(text % values)


def expected(directory: str) -> list[str]:
    return [
        "epoch 1: train_log_loss 0.51235, log_loss 0.40000, auc 0.75000",
        "validation: log_loss 0.40000, auc 0.75000",
        "rows: 9,000 read, 8,999 trained, 1 rejected",
        "model: out/model",
        f"all events: dfm logs {directory}",
    ]


def test_the_story_of_a_run(directory: str) -> None:
    record = runs.read_run(directory)
    assert record is not None
    assert lines_of_run(record, runs.read_events(directory), directory) == expected(directory)


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_task_tells_it_also_when_the_run_was_elsewhere(
    directory: str, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfm.model.report.report_training", lambda *_: "https://report")
    job = {"data": {"train": "x"}, "output": {"directory": directory}}
    operator = DfmTrainOperator(task_id="train", job=job, deferrable=deferrable, dask_conn_id=None)
    log = Kept()
    monkeypatch.setattr(DfmTrainOperator, "log", log)
    operator.execute_complete(CONTEXT, {"state": "finished", "run_id": RUN_ID, "directory": directory})
    assert log.told == [*expected(directory), "report: https://report"]


def test_epochs_that_were_told_as_they_passed_are_not_told_again(
    directory: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dfm.model.report.report_training", lambda *_: "https://report")
    operator = DfmTrainOperator(task_id="train", job={"data": {"train": "x"}, "output": {"directory": directory}})
    log, live = Kept(), tasks.EventLog()
    monkeypatch.setattr(DfmTrainOperator, "log", log)
    with caplog.at_level("INFO", logger="dfm"):
        for event in ({"event": "plan", "rows": 9000, "share": 1 / 3}, EPOCH, {"event": "round", "epoch": 2}):
            live(event)
    assert caplog.messages == ["plan: rows 9000, share 0.33333", expected(directory)[0]]
    operator._result(CONTEXT, directory, RUN_ID, live.epochs)
    assert log.told[:-1] == expected(directory)[1:]


def test_templates_in_storage_options_are_rendered_for_all_that_follows_the_training(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []

    def report_training(folder: str, _: str, options: dict[str, object]) -> str:
        given.append(options)
        return f"{folder}/report.html"

    monkeypatch.setattr("dfm.model.report.report_training", report_training)
    pushed: dict[str, dict[str, object]] = {}
    instance = SimpleNamespace(
        **vars(CONTEXT["ti"]), run_id="r", map_index=-1, xcom_push=lambda key, value: pushed.update({key: value})
    )
    context = {**CONTEXT, "ti": instance, "store": "http://minio"}
    event = {"state": "finished", "run_id": RUN_ID, "directory": directory}
    options = {"client_kwargs": {"endpoint_url": "{{ store }}"}}
    rendered = {"client_kwargs": {"endpoint_url": "http://minio"}}
    read = runs.read_run
    monkeypatch.setattr(runs, "read_run", lambda place, options: given.append(options) or read(place))
    monkeypatch.setattr(runs, "read_events", lambda place, options: given.append(options) or [])
    for of_job, of_task in ((options, None), (None, options)):
        data = {"train": "x", **({"storage_options": of_job} if of_job else {})}
        job = {"data": data, "output": {"directory": directory}}
        operator = DfmTrainOperator(task_id="train", job=job, storage_options=of_task, dask_conn_id=None)
        operator.render_template_fields(context)
        operator.execute_complete(context, event)
        assert given == [rendered] * 3
        assert pushed[REPORT]["storage_options"] == rendered
        given.clear()


@pytest.mark.parametrize(
    ("url", "options", "link"),
    [
        ("https://results/report.html", {}, "https://results/report.html"),
        ("gs://bucket/a b/report.html", {}, "https://storage.cloud.google.com/bucket/a%20b/report.html"),
        ("s3://bucket/a/report.html", {}, "https://s3.console.aws.amazon.com/s3/object/bucket?prefix=a/report.html"),
        ("s3://bucket/a/report.html", {"endpoint_url": "http://minio"}, "s3://bucket/a/report.html"),
        ("file:///srv/report.html", {}, f"file://{socket.gethostname()}/srv/report.html"),
        ("/srv/report.html", {}, f"file://{socket.gethostname()}/srv/report.html"),
    ],
)
def test_people_are_told_where_a_report_lies(
    url: str, options: dict[str, str], link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    assert link_to(url, options) == link


def test_a_task_that_was_deferred_shows_the_dashboard_that_the_scheduler_tells(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def dashboard_of(settings: ClusterSettings) -> str:
        asked.append(settings.scheduler)
        if settings.scheduler.endswith(":1"):
            raise ClusterError("nobody there")
        return "http://h:41234/status"

    monkeypatch.setattr("dfm.distributed.cluster.remote.dashboard_of", dashboard_of)
    monkeypatch.setattr("dfm.model.report.report_training", lambda *_: "https://report")
    monkeypatch.setenv("AIRFLOW_CONN_DASK_HERE", "dask://h:8786")
    monkeypatch.setenv("AIRFLOW_CONN_DASK_AWAY", "dask://h:1")
    monkeypatch.setenv(
        "AIRFLOW_CONN_DASK_PROXY", '{"conn_type": "dask", "host": "h", "extra": {"dashboard": "https://d"}}'
    )
    job = {"data": {"train": "x"}, "output": {"directory": directory}}
    for name, link in {"dask_here": "http://h:41234/status", "dask_away": "", "dask_proxy": "https://d"}.items():
        operator = DfmTrainOperator(task_id="train", job=job, deferrable=True, dask_conn_id=name)
        operator.execute_complete(CONTEXT, {"state": "finished", "run_id": RUN_ID, "directory": directory})
        links = [each.get_link(operator, ti_key=None) for each in operator.operator_extra_links]
        assert links == [link, "https://report"]
    assert asked == ["tcp://h:8786", "tcp://h:1"]
