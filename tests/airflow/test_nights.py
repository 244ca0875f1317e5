"""The nightly DAG on real parts: nights in a row, one of them twice, many at once, a model that is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm.model.folder import read_manifest
from dfm.runs import record as runs
from dfm.workflow import registry
from tests.support.real_airflow import HOME, PATIENCE, DaskCluster, command, files_below, run_dag

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
TASKS = ("wait_for_day", "check_day", "train", "evaluate", "gate_and_publish", "score", "report")
OUTPUT = HOME / "output"


def run_folder(day: str, output: Path = OUTPUT) -> Path:
    return output / "models" / "ctr_daily" / "train" / f"{day.replace('-', '')}T000000"


@pytest.fixture(scope="module")
def two_nights(cluster: DaskCluster, log: Path) -> list[dict[str, str]]:
    """States of the tasks of two nights, one after the other."""
    return [run_dag("ctr_daily", day) for day in ("2026-11-15", "2026-11-16")]


def test_nights_in_a_row_check_train_judge_publish_score_and_report(two_nights: list[dict[str, str]]):
    assert two_nights == [dict.fromkeys(TASKS, "success")] * 2
    history = registry.versions(str(OUTPUT / "champion"))
    assert [entry.order for entry in history] == ["2026-11-16T00:00:00+00:00", "2026-11-17T00:00:00+00:00"]
    assert history[1].model == str(run_folder("2026-11-16") / "model")
    assert history[1].champion["rows"] == history[1].candidate["rows"] == 6000
    assert history[1].candidate["log_loss"] < history[1].champion["log_loss"]
    scores = pq.ParquetDataset(OUTPUT / "scores" / "day=2026-11-16").read()
    assert scores.num_rows == 6000
    assert {"C1", "prediction"} <= set(scores.column_names)
    page = (OUTPUT / "reports" / "2026-11-16.html").read_text()
    for heading in ("data", "training", "next day", "gate", "scores"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<th>drift<td><table><tr><th>column") == 2, "of the next day, and of the scored rows"


def test_a_night_trains_on_the_days_before_it_and_goes_on_from_the_model_of_yesterday(two_nights):
    metadata = [read_manifest(str(run_folder(day) / "model"))["metadata"] for day in ("2026-11-15", "2026-11-16")]
    trained = [[url.rsplit("=")[-1] for url in entry["settings"]["data"]["train"]] for entry in metadata]
    assert trained == [["2026-11-14"], ["2026-11-14", "2026-11-15"]]
    assert metadata[0]["warm_start"] == {}
    assert metadata[1]["warm_start"]["model"] == str(run_folder("2026-11-15") / "model")


def test_the_same_night_again_does_no_work(two_nights, cluster: DaskCluster):
    before, tasks = files_below(OUTPUT), cluster.tasks_so_far()
    assert run_dag("ctr_daily", "2026-11-16") == dict.fromkeys(TASKS, "success")
    assert cluster.tasks_so_far() == tasks
    after = files_below(OUTPUT)
    rewritten = {name for name in after if after[name] != before.get(name)}
    assert rewritten == {"reports/2026-11-16.html", str(run_folder("2026-11-16").relative_to(OUTPUT) / "report.html")}


def test_xcom_holds_names_and_numbers_only(two_nights):
    import sqlite3

    with sqlite3.connect(HOME / "airflow.db") as database:
        sizes = database.execute("select task_id, key, length(value) from xcom where dag_id = 'ctr_daily'").fetchall()
        links = database.execute(
            "select value from xcom where dag_id = 'ctr_daily' and key = '_link_ReportLink'"
        ).fetchall()
        reports = database.execute(
            "select value from xcom where dag_id = 'ctr_daily' and key = 'dfm_report'"
        ).fetchall()
        dashboards = database.execute(
            "select value from xcom where dag_id = 'ctr_daily' and key = '_link_DaskDashboardLink'"
        ).fetchall()
    assert sizes
    assert max(size for _, _, size in sizes) < 4000, sizes
    assert {f"task_id={task}" in value for task in ("train", "report") for (value,) in links} == {True, False}
    assert any("reports/2026-11-16.html" in value for (value,) in reports)
    assert not any(":8787/" in value for (value,) in dashboards)  # the scheduler has another port
    assert any(value.strip('"').startswith("http://127.0.0.1:") for (value,) in dashboards), dashboards


def test_three_nights_at_once_do_not_collide(cluster: DaskCluster, log: Path, airflow_home: Path, tmp_path: Path):
    """Each `airflow dags test` has its own database, as SQLite takes one writer; log, output and Dask are shared."""
    days = {"2026-11-15": "2026-11-16", "2026-11-16": "2026-11-17", "2026-11-17": "2026-11-18"}
    output = tmp_path / "output"
    processes = []
    for day, date in days.items():
        home = tmp_path / f"home-{day}"
        home.mkdir()
        shutil.copy(airflow_home / "airflow.db", home)
        environment = os.environ | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW_VAR_CTR_OUTPUT": str(output),
        }
        told = (tmp_path / f"{day}.log").open("wb")
        arguments = [command("airflow"), "dags", "test", "ctr_daily", date]
        processes.append(subprocess.Popen(arguments, env=environment, stdout=told, stderr=told))
    codes = [process.wait(timeout=3 * PATIENCE) for process in processes]
    assert codes == [0, 0, 0], [(tmp_path / f"{day}.log").read_text()[-3000:] for day in days]
    for day in days:
        record = runs.read_run(str(run_folder(day, output)))
        assert record is not None
        assert (record.run_id, record.state) == (f"ctr_daily.train.{day.replace('-', '')}T000000", "finished")
        assert (output / "scores" / f"day={day}" / "_SUCCESS").exists()
    orders = [entry.order for entry in registry.versions(str(output / "champion"))]
    assert orders
    assert orders == sorted(set(orders))


def shuffle_labels(source: Path, target: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(source.glob("*.parquet")):
        table = pq.ParquetFile(path).read()
        labels = pa.array(rng.permutation(table["label"].to_numpy()), table["label"].type)
        target.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.set_column(table.column_names.index("label"), "label", labels), target / path.name)
    (target / "_SUCCESS").touch()


def test_a_model_of_shuffled_labels_is_refused_and_the_champion_scores_the_day(
    two_nights, cluster: DaskCluster, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for day in ("2026-11-14", "2026-11-15", "2026-11-16"):
        shuffle_labels(log / f"day={day}", tmp_path / "log" / f"day={day}")
    shutil.copytree(log / "day=2026-11-17", tmp_path / "log" / "day=2026-11-17")
    shutil.copytree(OUTPUT / "champion", tmp_path / "output" / "champion")
    monkeypatch.setenv("AIRFLOW_VAR_CTR_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("AIRFLOW_VAR_CTR_OUTPUT", str(tmp_path / "output"))
    states = run_dag("ctr_daily", "2026-11-17")
    assert states == dict.fromkeys(TASKS, "success") | {"gate_and_publish": "skipped"}
    assert files_below(tmp_path / "output" / "champion").keys() == files_below(OUTPUT / "champion").keys()
    scored: dict[str, Any] = json.loads((tmp_path / "output/scores/day=2026-11-17/.scored.json").read_text())
    assert scored["summary"]["model"] == str(run_folder("2026-11-16") / "model")
    assert "the gate" in (tmp_path / "output" / "reports" / "2026-11-17.html").read_text()
