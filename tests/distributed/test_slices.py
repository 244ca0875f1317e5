"""Metrics by slice and within groups: those of a pandas groupby on the same predictions, on any cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from distributed import Client
from sklearn.metrics import log_loss, mean_squared_error, ndcg_score, roc_auc_score

from dfm import jobs
from dfm.cli.app import cli
from dfm.data.schema import resolve
from dfm.data.texts import MISSING, text_hashes, texts_of
from dfm.distributed import slicing
from dfm.errors import DataError, SettingsError
from dfm.events import faults_of
from dfm.model import slices
from dfm.model.fm_model import FMModel
from dfm.settings.tables import Schema
from dfm.training import plan
from tests.support.small_jobs import in_process_client, job_tables, read_log
from tests.support.small_models import model_of_schema

BY = ["day", "C1", "C1,day"]


@pytest.fixture(scope="module")
def model(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    job = job_tables(log, tmp_path_factory.mktemp("model"), training={"n_epochs": 1})
    return jobs.train(job, client).model_url


@pytest.fixture(scope="module")
def scored(log: Path, model: str) -> pd.DataFrame:
    table = read_log(log)
    frame = table.to_pandas()
    frame["score"] = FMModel.load(model).decision_function(table).astype(float)
    frame["prediction"] = 1 / (1 + np.exp(-frame.score))
    return frame


@pytest.fixture(scope="module")
def found(log: Path, model: str, client: Client) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "TASK_ROWS", 900)
        return jobs.evaluate(model, str(log), client=client, by=BY, group="C2", min_rows=50)


def test_slices_are_those_of_a_groupby(found: dict[str, Any], scored: pd.DataFrame) -> None:
    for name in BY:
        columns = name.split(",")
        records = {tuple(each["slice"].values()): each for each in found["slices"][name]}
        frame = scored.fillna({column: MISSING for column in columns})
        groups = {key: rows for key, rows in frame.groupby(columns) if len(rows) >= 50}
        assert {*records} == {*groups} or len(records) == 50 < len(groups)
        for key, record in records.items():
            rows = groups[key]
            rate = rows.label.mean()
            assert record["rows"] == len(rows)
            assert record["mean_label"] == pytest.approx(rate, abs=1e-6)
            assert record["mean_prediction"] == pytest.approx(rows.prediction.mean(), abs=1e-6)
            assert record["log_loss"] == pytest.approx(log_loss(rows.label, rows.prediction, labels=[0, 1]), abs=1e-6)
            entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
            assert record["normalized_entropy"] == pytest.approx(record["log_loss"] / entropy, abs=1e-6)
            assert record["calibration"] == pytest.approx(rows.prediction.sum() / rows.label.sum(), abs=1e-6)
            auc = roc_auc_score(rows.label, rows.score)
            assert record["auc"] == pytest.approx(auc, abs=record["auc_error"] + 1e-9)


def test_the_worst_come_first_and_intervals_hold_their_ratio(found: dict[str, Any]) -> None:
    for records in found["slices"].values():
        entropies = [record["normalized_entropy"] for record in records]
        assert entropies == sorted(entropies, reverse=True)
        assert all(record["calibration_low"] < record["calibration"] < record["calibration_high"] for record in records)


def test_calibrated_predictions_lie_in_the_interval_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(400):
        truth = rng.uniform(0.05, 0.6, 300)
        scores = np.log(truth / (1 - truth))
        labels = (rng.random(300) < truth).astype(float)
        rows = slices.ScoredRows(pa.record_batch({"a": ["x"] * 300}), scores, truth, labels, np.ones(300), scores)
        sums = slices.summed(rows, slices.Slicing.of(["a"]), False)
        (record,) = slices.worst_first(sums, 0, 1, 1, False)
        inside += record["calibration_low"] <= 1.0 <= record["calibration_high"]
    assert 0.92 < inside / 400 < 0.98


def test_the_auc_within_groups_is_exact(found: dict[str, Any], scored: pd.DataFrame) -> None:
    groups = [rows for _, rows in scored.fillna({"C2": MISSING}).groupby("C2")]
    both = [rows for rows in groups if rows.label.nunique() == 2]
    aucs = [roc_auc_score(rows.label, rows.score) for rows in both]
    sizes = [len(rows) for rows in both]
    assert found["group_auc"] == pytest.approx(np.average(aucs, weights=sizes), abs=1e-9)
    gains = [ndcg_score([rows.label], [rows.score], k=10) for rows in both]
    assert found["ndcg_10"] == pytest.approx(np.mean(gains), abs=1e-9)
    assert (found["groups"], found["groups_of_one_class"]) == (len(both), len(groups) - len(both))


def test_any_cluster_and_any_form_of_rows_gives_the_same(
    found: dict[str, Any], log: Path, model: str, two_workers: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask.dataframe as dd

    monkeypatch.setattr(plan, "TASK_ROWS", 900)
    wanted: dict[str, Any] = {"by": BY, "group": "C2", "min_rows": 50}
    assert jobs.evaluate(model, str(log), client=two_workers, **wanted) == found
    with in_process_client(5) as five:
        assert jobs.evaluate(model, str(log), client=five, **wanted) == found
    frame = read_log(log).to_pandas()
    others = {"rows": jobs.evaluate(model, frame, **wanted)}
    others["a stream, which can be read once"] = jobs.evaluate(model, read_log(log).to_reader(700), **wanted)
    others["dask"] = jobs.evaluate(model, dd.from_pandas(frame, npartitions=3), client=two_workers, **wanted)
    for other in others.values():
        for metric in ("group_auc", "ndcg_5", "mrr"):
            assert other[metric] == pytest.approx(found[metric], abs=1e-12)
        for name in BY:
            ours, theirs = found["slices"][name], other["slices"][name]
            assert [each["slice"] for each in theirs] == [each["slice"] for each in ours]
            assert [each["log_loss"] for each in theirs] == pytest.approx([each["log_loss"] for each in ours])
            assert [each["auc"] for each in theirs] == pytest.approx([each["auc"] for each in ours])


def test_more_slices_than_are_kept_say_what_they_may_lack(
    log: Path, model: str, client: Client, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "MOST_SLICES", 40)
    monkeypatch.setattr(plan, "TASK_ROWS", 900)
    records = jobs.evaluate(model, str(log), client=client, by=["C1"], min_rows=50)["slices"]["C1"]
    true = {record["slice"]["C1"]: record["rows"] for record in found["slices"]["C1"]}
    assert records
    for record in records:
        assert true[record["slice"]["C1"]] - record["rows"] <= record["rows_lacking_at_most"]


def test_slices_of_a_regression_are_ordered_by_error() -> None:
    rng = np.random.default_rng(1)
    keys = rng.choice(["a", "b", "c"], 500)
    labels = rng.normal(size=500)
    predictions = labels + rng.normal(size=500) * np.where(keys == "b", 3.0, 0.5)
    rows = slices.ScoredRows(
        pa.record_batch({"k": keys}), predictions, predictions, labels, rng.random(500), predictions
    )
    records = slices.worst_first(slices.summed(rows, slices.Slicing.of(["k"]), True), 0, 1, 9, True)
    assert records[0]["slice"] == {"k": "b"}
    for record in records:
        inside = keys == record["slice"]["k"]
        expected = mean_squared_error(labels[inside], predictions[inside], sample_weight=rows.weights[inside]) ** 0.5
        assert record["rmse"] == pytest.approx(expected)


def test_values_are_named_as_categories_are() -> None:
    arrays = {
        "6": pa.array([6.0, 6.5, None, float("nan")]),
        "x": pa.array(["x", None]),
        "true": pa.array([True]),
        "1": pa.array([1], pa.uint64()),
        "y": pa.array(["y"]).dictionary_encode(),
    }
    assert slices.texts_of(arrays["6"], "c").to_pylist() == ["6", "6.5", MISSING, MISSING]
    assert slices.texts_of(arrays["x"], "c").to_pylist() == ["x", MISSING]
    for text in ("true", "1", "y"):
        assert slices.texts_of(arrays[text], "c").to_pylist() == [text]
    with pytest.raises(DataError, match="column 'c' holds list<item: int64>: slices and groups need one value a row"):
        slices.texts_of(pa.array([[1]]), "c")


def test_what_cannot_be_sliced_is_refused(log: Path, model: str, client: Client) -> None:
    with pytest.raises(SettingsError, match="names a column twice, or none"):
        jobs.evaluate(model, str(log), client=client, by=["C1,C1"])
    regression = FMModel.load(model)
    object.__setattr__(regression, "task", "regression")
    with pytest.raises(SettingsError, match="a regression has none"):
        slicing.check_slicing(regression, slices.Slicing.of((), "C1"))


def test_a_column_that_no_row_has_is_refused_before_a_worker_starts(
    log: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices are made of columns of the data: no field of the model is meant, nor does the model need the column."""
    monkeypatch.setattr("dfm.distributed.cluster.connect.client_of", None)
    table, expected = read_log(log), r"by = 'dya' names no column of the data; .*: .*C1.* Did you mean 'day'\?"
    for data in (str(log), table, table.to_pandas(), table.slice(0, 9).to_pylist()):
        with pytest.raises(DataError, match=expected):
            jobs.evaluate(model, data, by=["C2,dya"])
    with pytest.raises(DataError, match="group = 'person' names no column"):
        jobs.evaluate(model, str(log), by=["C1"], group="person")
    rows = pa.table({"label": [0, 1], "site": ["a", "b"], "when": ["2026-11-20 07:00", "2026-11-21 09:00"]})
    schema = resolve(Schema(categorical=("site",), derive={"hour": "hour(when)"}), rows.column_names)
    with pytest.raises(DataError, match="The model derives 'hour' from 'when'; write it into the data to slice by it"):
        jobs.evaluate(model_of_schema(schema, rows), rows, by=["hour"])


def test_the_command_line_shows_a_table_for_each_kind(log: Path, model: str, client: Client) -> None:
    arguments = ["evaluate", model, str(log), "--by", "C1", "--by", "C1,day", "--top", "3", "--min-rows", "100"]
    arguments += ["--group", "C2", "--scheduler", client.scheduler.address]
    shown = CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False).output
    assert "by C1, the worst first" in shown
    assert "by C1,day, the worst first" in shown
    assert "group_auc" in shown
    lines = CliRunner().invoke(cli, [*arguments, "--json"], standalone_mode=False, catch_exceptions=False).output
    (line,) = [json.loads(line) for line in lines.splitlines() if "evaluated" in line]
    assert len(line["slices"]["C1"]) == 3
    assert faults_of(line) == []


def test_bytes_have_a_text_also_where_they_are_no_utf_8() -> None:
    raw = pa.array([b"\xff" * 16, b"a" * 16, None])
    for kind in (pa.binary(), pa.binary(16), pa.large_binary()):
        array = raw.cast(kind)
        assert texts_of(array, "user").to_pylist() == ["\\xff" * 16, "a" * 16, MISSING]
        assert len({*text_hashes(array, "user").tolist()}) == 3
    assert text_hashes(raw, "user")[1] == text_hashes(pa.array(["a" * 16]), "user")[0]


def test_fractions_of_any_width_are_one_text_and_what_has_none_is_refused() -> None:
    numbers = [pa.array([1.1, 2.0], pa.float64()), pa.array([1.1, 2.0], pa.float32()), pa.array(np.float16([1.1, 2.0]))]
    assert [texts_of(array, "x").to_pylist() for array in numbers] == [["1.1", "2"]] * 3
    with pytest.raises(DataError, match="which has no text"):
        texts_of(pa.nulls(1, pa.month_day_nano_interval()), "x")
