"""Runs in a real tracking server: what is logged, the model that comes back, and a server that is away."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import dfm.mlflow
from dfm import jobs
from dfm.errors import ModelError
from dfm.mlflow import tracking as tracking_of_dfm
from dfm.runs.record import RunRecord, read_run, write_run
from dfm.settings.job import load_job
from tests.support.small_jobs import LAST_DAY, job_tables, read_log
from tests.support.small_models import turned

pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("ignore")]


def logged(run_id: str) -> Any:
    import mlflow

    return mlflow.MlflowClient().get_run(run_id)


def frame_of(log: Path, **changes: Any) -> pd.DataFrame:
    """Rows of the last day as somebody who serves has them."""
    frame = read_log(log, LAST_DAY).to_pandas().drop(columns=["label"]).head(200)
    return frame.assign(**changes)


def test_knobs_epochs_and_final_metrics_stand_in_the_run(tracking: str, result: Any) -> None:
    import mlflow

    run = logged(dfm.mlflow.log_run(result))
    job = load_job(job_tables(Path("x"), Path("y")))
    assert run.info.status == "FINISHED"
    assert set(run.data.params) >= {f"{name}.{key}" for name, table in job.to_dict().items() for key in table}
    assert run.data.params["training.n_epochs"] == "2"
    assert run.data.params["schema.categorical"] == "['C*']"
    assert float(run.data.params["found.learning_rate"]) > 0
    client = mlflow.MlflowClient()
    for name in ("log_loss", "auc", "train_log_loss", "rows_per_second"):
        steps = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert steps == {epoch["epoch"]: epoch[name] for epoch in result.history}
    assert run.data.metrics["validation.auc"] == result.validation["auc"]
    assert run.data.metrics["rows.trained"] == result.rows.accepted
    assert run.data.metrics["best_epoch"] == result.best_epoch


def test_tags_say_which_model_by_which_dfm(tracking: str, result: Any) -> None:
    run = logged(dfm.mlflow.log_run(result))
    directory = result.model_url.removesuffix("/model")
    record = read_run(directory)
    assert record is not None
    assert run.data.tags["parameters_sha256"] == result.parameters_sha256
    assert run.data.tags["dfm_version"] == dfm.__version__
    assert run.data.tags["dfm.run_id"] == record.run_id == run.info.run_name
    assert run.data.tags["dfm.model_url"] == os.path.abspath(result.model_url)


@pytest.mark.parametrize("told", [True, False], ids=["by the manifest", "by nobody"])
def test_a_model_is_not_logged_under_the_name_of_a_later_run_that_failed(
    told: bool, tracking: str, result: Any, tmp_path: Path
) -> None:
    """Models of earlier versions do not tell their run; a record that is of another model does not either."""
    directory = tmp_path / "nights"
    shutil.copytree(result.model_url.removesuffix("/model"), directory)
    record = read_run(str(directory))
    assert record is not None
    if not told:
        manifest = json.loads((directory / "model/model.json").read_text())
        del manifest["metadata"]["run_id"]
        (directory / "model/model.json").write_text(json.dumps(manifest))
        assert logged(dfm.mlflow.log_run(directory)).data.tags["dfm.run_id"] == record.run_id
    write_run(str(directory), RunRecord("night-2", "failed"))
    run = logged(dfm.mlflow.log_run(directory))
    assert run.info.run_name == (record.run_id if told else "nights")
    assert run.data.tags.get("dfm.run_id") == (record.run_id if told else None)


def test_the_page_and_a_job_file_that_trains_the_same_are_artifacts(
    tracking: str, result: Any, client: Any, tmp_path: Path
) -> None:
    import mlflow

    run_id = dfm.mlflow.log_run(result)
    fetched = Path(mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(tmp_path)))
    assert (fetched / "report.html").read_text() == Path(result.report_url).read_text()
    changes = [f"output.directory={tmp_path}/again", f"cluster.cache={tmp_path}/cache"]
    again = jobs.train(str(fetched / "job.toml"), client, overrides=changes)
    assert again.parameters_sha256 == result.parameters_sha256


def test_the_model_comes_back_with_the_numbers_of_dfm(tracking: str, result: Any, log: Path) -> None:
    import mlflow

    run_id = dfm.mlflow.log_run(result)
    model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    for frame in (frame_of(log), frame_of(log, C1="never seen"), frame_of(log, C3=None), frame_of(log).head(1)):
        np.testing.assert_array_equal(model.predict(frame), result.model.predict(frame))
    schema = model.metadata.get_input_schema()
    assert set(schema.input_names()) == set(result.model.schema.columns)
    assert model.metadata.get_output_schema() is not None
    example = model.input_example
    assert len(example) == 5
    assert model.predict(example).shape == (5,)
    with pytest.raises(Exception, match="C1"):
        model.predict(frame_of(log).drop(columns=["C1"]))


def test_columns_of_integers_may_have_gaps_in_golden_rows_or_in_rows_to_score(
    tracking: str, log: Path, client: Any, tmp_path: Path
) -> None:
    """To pandas integers with gaps are floats: columns differ by which rows lack values."""
    import mlflow

    for shard in log.glob("*/*.parquet"):
        table = pq.ParquetFile(shard).read()
        numbers = pa.array(range(table.num_rows), pa.int64())
        few = pc.if_else(pc.equal(pc.bit_wise_and(numbers, 1), 0), None, numbers)
        table = table.append_column("whole", numbers).append_column("gaps", few)
        table = table.append_column("code", pa.array([2**60 + row % 5 for row in range(table.num_rows)], pa.int64()))
        (tmp_path / "log" / shard.parent.name).mkdir(parents=True)
        pq.write_table(table, tmp_path / "log" / shard.parent.name / shard.name)
    schema = {"numeric": ["I*", "whole", "gaps"], "categorical": ["C*", "code"]}
    result = jobs.train(job_tables(tmp_path / "log", tmp_path, schema=schema), client)
    model = mlflow.pyfunc.load_model(f"runs:/{dfm.mlflow.log_run(result)}/model")
    rows = frame_of(tmp_path / "log")
    assert (rows["whole"].dtype, rows["gaps"].dtype) == (np.int64, np.float64)
    turned = rows.assign(whole=rows["gaps"], gaps=rows["whole"])
    for frame in (rows, turned, turned.astype({"whole": "Int64"}), rows.assign(C1=None, code=None)):
        np.testing.assert_array_equal(model.predict(frame), result.model.predict(frame))
    assert {str(each) for each in model.metadata.get_input_schema().input_types()} == {"DataType.string", "Any"}


WITHOUT_JSON = {
    "decimals": pa.array([decimal.Decimal(i) / 100 for i in range(6)], pa.decimal128(8, 2)),
    "durations": pa.array([datetime.timedelta(seconds=90 * i) for i in range(6)]),
    "moments": pa.array([datetime.datetime(2026, 11, 1 + i, 3 * i, 7) for i in range(6)], pa.timestamp("us", "UTC")),
    "midnights": pa.array([datetime.datetime(2026, 11, 1 + i) for i in range(6)]),
    "days": pa.array([datetime.date(2026, 11, 1 + i) for i in range(6)]),
    "bytes": pa.array([b"\xc3\xa9%d" % i for i in range(6)]),
    "maps": pa.array([[("p", 0.5), (f"{i}", 1.0)] for i in range(6)], pa.map_(pa.string(), pa.float64())),
    "lists of decimals": pa.array([[decimal.Decimal(i) / 100] for i in range(6)], pa.list_(pa.decimal128(8, 2))),
}


def logged_with_column(values: pa.Array, tmp_path: Path, client: Any) -> tuple[Any, Any, pa.Table]:
    """A model of a column, as MLflow loads it, the same as dfm does, and the rows that it was trained on."""
    import mlflow

    chosen = np.random.default_rng(1).integers(0, len(values), 600)
    table = pa.table({"label": (chosen % 2).astype(np.int64), "x": values.take(pa.array(chosen))})
    pq.write_table(table, tmp_path / "log.parquet")
    role = "lists" if pa.types.is_nested(values.type) else "categorical"
    job = job_tables(tmp_path / "log.parquet", tmp_path)
    data, schema = {"train": str(tmp_path / "log.parquet")}, {"label": "label", role: ["x"]}
    result = jobs.train({**job, "data": data, "schema": schema}, client)
    return mlflow.pyfunc.load_model(f"runs:/{dfm.mlflow.log_run(result)}/model"), result.model, table


@pytest.mark.parametrize("values", WITHOUT_JSON.values(), ids=WITHOUT_JSON)
def test_the_example_holds_values_that_json_has_and_scores_as_the_rows_that_it_was(
    values: pa.Array, tracking: str, client: Any, tmp_path: Path
) -> None:
    model, own, table = logged_with_column(values, tmp_path, client)
    golden = next((tmp_path / "out" / "model").glob("golden*"))
    expected = pq.ParquetFile(golden).read()["dfm_prediction"].to_numpy()[:5]
    assert len(set(expected.tolist())) > 2
    np.testing.assert_allclose(model.predict(model.input_example), expected, rtol=1e-5)
    sent = json.loads(json.dumps(model.input_example.to_dict("records")))
    np.testing.assert_allclose(own.predict(sent), expected, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(table.drop(["label"]).to_pandas()), own.predict(table))


def test_a_model_whose_rows_json_cannot_hold_is_logged_without_an_example(
    tracking: str, client: Any, tmp_path: Path
) -> None:
    model, own, table = logged_with_column(pa.array([b"\xff1", b"\xff2", b"\xff3"]), tmp_path, client)
    assert model.input_example is None
    np.testing.assert_array_equal(model.predict(table.drop(["label"]).to_pandas()), own.predict(table))


def test_the_model_needs_no_cluster_and_no_pickle(tracking: str, result: Any, tmp_path: Path) -> None:
    import mlflow

    run_id = dfm.mlflow.log_run(result)
    fetched = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/model", dst_path=str(tmp_path))
    assert not [path for path in Path(fetched).rglob("*") if path.suffix in (".pkl", ".pickle")]
    assert "dask-fm==" in (Path(fetched) / "requirements.txt").read_text()
    command = (
        "import sys, mlflow.pyfunc; model = mlflow.pyfunc.load_model(sys.argv[1]); model.predict(model.input_example); "
        "assert 'distributed' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", command, fetched], check=True)


def test_a_job_logs_its_own_run_when_it_is_told_to(
    tracking: str,
    log: Path,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "nightly")
    result = jobs.train(job_tables(log, tmp_path, output={"mlflow": True}), client, run_id="night-1")
    (run,) = mlflow.search_runs(experiment_names=["nightly"], output_format="list")
    assert run.data.tags["parameters_sha256"] == result.parameters_sha256
    assert run.info.run_name == "night-1"
    assert run.data.params["output.mlflow"] == "True"
    assert capsys.readouterr().out == "", "lines of --json stay lines"
    silent = jobs.train(job_tables(log, tmp_path, output={"directory": str(tmp_path / "silent")}), client)
    assert silent.parameters_sha256 == result.parameters_sha256
    assert len(mlflow.search_runs(experiment_names=["nightly"], output_format="list")) == 1


def test_the_command_line_logs_too_and_prints_its_own_lines_alone(tracking: str, log: Path, tmp_path: Path) -> None:
    import mlflow

    from dfm.settings.toml import to_toml

    (tmp_path / "job.toml").write_text(to_toml(job_tables(log, tmp_path, output={"mlflow": True})))
    environment = {**os.environ, "MLFLOW_EXPERIMENT_NAME": "by command"}
    command = [sys.executable, "-m", "dfm", "train", str(tmp_path / "job.toml"), "--json"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    (run,) = mlflow.search_runs(experiment_names=["by command"], output_format="list")
    assert run.data.tags["parameters_sha256"] == lines[-1]["parameters_sha256"]


def test_a_run_that_is_active_takes_what_is_logged(tracking: str, result: Any) -> None:
    import mlflow

    with mlflow.start_run(run_name="mine") as mine:
        mlflow.log_param("own", 1)
        assert dfm.mlflow.log_run(result) == mine.info.run_id
    run = logged(mine.info.run_id)
    assert run.info.run_name == "mine"
    assert {"own", "training.n_epochs"} <= set(run.data.params)


def test_a_folder_is_logged_later_from_anywhere_and_no_model_is_said(
    tracking: str, result: Any, tmp_path: Path
) -> None:
    directory = result.model_url.removesuffix("/model")
    assert logged(dfm.mlflow.log_run(directory)).data.tags["parameters_sha256"] == result.parameters_sha256
    with pytest.raises(ModelError, match="no model at"):
        dfm.mlflow.log_run(tmp_path)


def test_the_model_of_a_later_run_is_not_logged_as_that_of_a_result(tracking: str, result: Any, tmp_path: Path) -> None:
    shutil.copytree(result.model_url, tmp_path / "model")
    earlier = dataclasses.replace(result, model_url=str(tmp_path / "model"))
    later = turned(result.model)
    later.save(earlier.model_url)
    with pytest.raises(ModelError, match="replaced by a later run"):
        dfm.mlflow.log_run(earlier)
    assert logged(dfm.mlflow.log_run(tmp_path)).data.tags["parameters_sha256"] == later.parameters_sha256()


def test_a_server_that_is_down_costs_a_warning_whose_line_logs_the_run_later(
    server: str,
    log: Path,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING, "dfm"):
        result = jobs.train(job_tables(log, tmp_path, output={"mlflow": True}), client)
    record = read_run(str(tmp_path / "out"))
    assert record is not None
    assert (record.state, record.parameters_sha256) == ("finished", result.parameters_sha256)
    (warning,) = [entry.getMessage() for entry in caplog.records if "MLflow" in entry.getMessage()]
    assert "MLflow at http://127.0.0.1:9 does not have the run" in warning
    command = shlex.split(warning.partition("Log it later: ")[2])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server, "MLFLOW_EXPERIMENT_NAME": "later"}
    subprocess.run([sys.executable, *command[1:]], env=environment, check=True)
    mlflow.set_tracking_uri(server)
    (run,) = mlflow.search_runs(experiment_names=["later"], output_format="list")
    assert run.data.tags["parameters_sha256"] == result.parameters_sha256


def test_the_line_that_logs_later_reaches_the_store_of_the_run(
    result: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OSError("away")

    options = {"endpoint_url": "http://store:9000", "anon": True}
    monkeypatch.setattr(tracking_of_dfm, "log_run", away)
    tracking_of_dfm.log_after(dataclasses.replace(result, model_url="s3://models/night/model", storage_options=options))
    command = shlex.split(caplog.text.partition("Log it later: ")[2])
    called: list[Any] = []
    monkeypatch.setattr(dfm.mlflow, "log_run", lambda *place, **how: called.append((*place, how)))
    exec(command[2], {})
    assert called == [("s3://models/night", {"storage_options": options})]
