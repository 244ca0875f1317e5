"""report.html: written by every training beside its model, made again without the data, and harmless."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

import dfm
from dfm import jobs
from dfm.distributed import prepare, reporting
from dfm.errors import ModelError
from dfm.estimators import FMClassifier, FMRegressor
from dfm.model.report import FINDINGS, report_model, write_findings
from dfm.storage.arrays import read_arrays
from tests.distributed.test_held_out import tables_of
from tests.support.small_models import make_model

EVIL, N_ROWS = "<script>alert(1)</script>", 6_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clicks by a column and values that are markup, another column, and one that means nothing."""
    folder, rng = tmp_path_factory.mktemp("log"), np.random.default_rng(5)
    a, b = rng.integers(0, 9, N_ROWS), rng.integers(0, 4, N_ROWS)
    label = (rng.random(N_ROWS) < np.where((a + b) % 2, 0.7, 0.2)).astype(np.int64)
    columns = {EVIL: [f"<img src=x onerror=f({n})>" for n in a], "b": [f"b{n}" for n in b]}
    noise = [f"n{n}" for n in rng.integers(0, 5, N_ROWS)]
    pq.write_table(pa.table({**columns, "noise": noise, "label": label}), folder / "0.parquet")
    return folder


def tables(log: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return tables_of(log, folder, schema={"categorical": [EVIL, "b", "noise"]}, **more)


@pytest.fixture(scope="module")
def result(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Any:
    told: list[dict[str, Any]] = []
    found = jobs.train(tables(log, tmp_path_factory.mktemp("out")), client, on_event=told.append)
    assert told[-1]["report"] == found.report_url
    return found


def test_the_page_tells_of_the_model_and_no_text_of_the_data_is_markup(result: Any) -> None:
    page = Path(result.report_url).read_text()
    assert Path(result.report_url) == Path(result.model_url).parent / "report.html"
    for heading in (
        *("validation", "curves", "epochs", "importance of columns", "collisions", "rows to train on", "job"),
        *("rows to validate on", "where time went", "versions and hashes", "values of the rows that validate"),
        *("pairs of fields, by their mean absolute part of the score", "all pairs of fields"),
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "<h2>slices of &lt;script&gt;alert(1)&lt;/script&gt;, the worst first</h2>" in page
    assert page.count("<svg") == 4
    assert f"{result.validation['log_loss']:.5f}" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;img src=x onerror=f(3)&gt;" in page


def test_findings_are_of_the_rows_that_validated(result: Any, log: Path) -> None:
    found = json.loads((Path(result.model_url) / FINDINGS).read_text())
    records = {each["value"]: each for each in found["slices"]["records"]}
    assert sum(each["rows"] for each in records.values()) == result.validation["rows"]
    losses = sum(each["rows"] * each["log_loss"] for each in records.values())
    assert losses / result.validation["rows"] == pytest.approx(result.validation["log_loss"], abs=1e-5)
    columns = [each["column"] for each in found["importance"]["columns"]]
    assert {*columns[:2]} == {EVIL, "b"}
    assert columns[2] == "noise"
    assert found["importance"]["rows"] == result.validation["rows"]
    assert found["curves"]["roc"][-1] == [1.0, 1.0]
    assert found["seconds"].keys() == {"prepare", "publish"}


def test_the_same_findings_on_two_workers(result: Any, log: Path, two_workers: Client, tmp_path: Path) -> None:
    again = jobs.train(tables(log, tmp_path), two_workers)
    one, two = (json.loads((Path(each.model_url) / FINDINGS).read_text()) for each in (result, again))
    for name in ("curves", "slices", "importance", "collisions"):
        assert one[name] == two[name]


def test_the_page_is_made_again_without_the_data(result: Any, tmp_path: Path) -> None:
    url = dfm.report(result.model_url, str(tmp_path / "again.html"))
    first = Path(result.report_url).read_text()
    again = Path(url).read_text()
    assert again.split("</h1>")[1] == first.split("</h1>")[1]
    with pytest.raises(ModelError, match="no model at"):
        dfm.report(str(tmp_path / "nowhere"))
    assert jobs.report(result.model_url) == result.report_url


def test_findings_of_another_model_are_not_taken_for_ones_own(result: Any, tmp_path: Path) -> None:
    model = result.model
    model.save(str(tmp_path / "model"))
    findings = json.loads((Path(result.model_url) / FINDINGS).read_text())
    (tmp_path / "model" / FINDINGS).write_text(json.dumps({**findings, "parameters_file": "0" * 64}))
    page = Path(report_model(str(tmp_path / "model"), str(tmp_path / "r.html"), "t")).read_text()
    assert "slices of" not in page
    assert "<h2>epochs</h2>" in page


def test_a_model_of_an_estimator_has_a_page_of_what_is_known(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = pa.table({"site": rng.choice(["a", "b"], 300), "ad": rng.integers(0, 9, 300)})
    fitted = FMClassifier(categorical=["site", "ad"], n_factors=2, n_epochs=2).fit(rows, rng.integers(0, 2, 300))
    of_matrix = FMRegressor(n_factors=2, n_epochs=2).fit(rng.normal(size=(300, 3)), rng.normal(size=300))
    for name, estimator in {"rows": fitted, "matrix": of_matrix}.items():
        estimator.model_.save(str(tmp_path / name))
        page = Path(dfm.report(str(tmp_path / name), str(tmp_path / f"{name}.html"))).read_text()
        headings = re.findall("<h2>(.*?)</h2>", page)
        assert headings == ["curves", "epochs", "estimator", "versions and hashes"]
        assert f"<th>class<td>{type(estimator).__name__}" in page
        assert "<th>n_factors<td class=n>2" in page
    make_model().save(str(tmp_path / "bare"))
    bare = Path(dfm.report(str(tmp_path / "bare"), str(tmp_path / "bare.html"))).read_text()
    assert re.findall("<h2>(.*?)</h2>", bare) == ["versions and hashes"]


@pytest.mark.parametrize("metadata", [{"history": 3}, {"validation": [1]}, {"settings": "none"}, {"rows": 5}])
def test_metadata_that_are_not_what_dfm_writes_are_told_in_words(metadata: dict[str, Any], tmp_path: Path) -> None:
    dataclasses.replace(make_model(), metadata=metadata).save(str(tmp_path / "model"))
    with pytest.raises(
        ModelError, match=r"model\.json, or report\.json beside it, .* cannot be shown .* save the model"
    ):
        dfm.report(str(tmp_path / "model"))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("damaged", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_page_is_made_without_findings_that_are_damaged(
    damaged: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_model().save(str(tmp_path / "model"))
    (tmp_path / "model" / FINDINGS).write_bytes(damaged)
    assert "<h2>versions and hashes</h2>" in Path(dfm.report(str(tmp_path / "model"))).read_text()
    assert f"{FINDINGS} is damaged" in caplog.text


def test_pairs_that_are_left_out_are_told_on_the_page(tmp_path: Path) -> None:
    make_model().save(str(tmp_path / "model"))
    left_out = {"columns": [], "pairs": [], "pairs_left_out": "pairs of 501 fields are too many"}
    write_findings(str(tmp_path / "model"), {"importance": left_out})
    page = Path(dfm.report(str(tmp_path / "model"))).read_text()
    assert "mean absolute part of the score</h2><table><tr><th>left out<td>pairs of 501 fields are too many" in page


HELD_OUT: dict[str, dict[str, Any]] = {
    "by lot": {"validation_fraction": 0.3},
    "the latest, of a moment with many more": {"validation_fraction": 0.05},
    "from a bound on, nobody knows how many": {"validation_from": "2026-11-04"},
}


@pytest.mark.parametrize("how", HELD_OUT)
@pytest.mark.parametrize("most", [10**6, 400])
def test_a_report_looks_at_so_many_rows_however_they_were_held_out(
    how: str, most: int, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows that are put aside for it, or read again; and whether it does so changes no parameter."""
    monkeypatch.setattr(prepare, "ROWS_TO_LOOK_AT", most)
    monkeypatch.setattr(reporting, "ROWS_TO_LOOK_AT", most)
    rng = np.random.default_rng(3)
    days = [f"2026-11-{1 + n // 1_500:02d}" for n in range(N_ROWS)]
    label, a = rng.integers(0, 2, N_ROWS), [f"a{n}" for n in rng.integers(0, 9, N_ROWS)]
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table({"label": label, "a": a, "day": days}), tmp_path / "log" / "0.parquet", row_group_size=500)
    by_time = {"time": "day"} if how != "by lot" else {}
    job = tables_of(tmp_path / "log", tmp_path, schema={"categorical": ["a"], **by_time}, data=HELD_OUT[how])
    read: list[str] = []
    kept = reporting.kept_batches
    monkeypatch.setattr(reporting, "kept_batches", lambda *given: read.append("again") or kept(*given))
    result = jobs.train(job, client)
    found = json.loads((Path(result.model_url) / FINDINGS).read_text())
    n_seen = sum(each["rows"] for each in found["slices"]["records"])
    n_rows = result.validation["rows"]
    assert n_rows == pytest.approx(1_800, abs=200) if how == "by lot" else n_rows == 1_500
    assert n_seen == n_rows if most > n_rows else n_seen == pytest.approx(most, rel=0.1)
    assert bool(read) == (how == "from a bound on, nobody knows how many")
    job["output"] = {**job["output"], "report": False, "directory": str(tmp_path / "plain")}
    job["cluster"] = {**job["cluster"], "cache": str(tmp_path / "other")}
    assert jobs.train(job, client).parameters_sha256 == result.parameters_sha256
    has_some = [
        any("aside" in read_arrays(chunk)[0] for chunk in (tmp_path / folder).glob("chunk-*"))
        for folder in ("cache", "other")
    ]
    assert has_some == [not read, False]


def test_a_job_may_want_no_page(log: Path, client: Client, tmp_path: Path) -> None:
    found = tables(log, tmp_path)
    found["output"]["report"] = False
    result = jobs.train(found, client)
    assert result.report_url == ""
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_regression_has_a_page_of_its_own(log: Path, client: Client, tmp_path: Path) -> None:
    found = tables(log, tmp_path)
    page = Path(jobs.train({**found, "model": {"task": "regression", "hash_bits": 12}}, client).report_url).read_text()
    assert page.count("<svg") == 1, "learning curves"
    assert "<h2>importance of columns</h2>" in page
    assert "<th>rmse" in page


def test_somebody_elses_page_stays_and_the_model_is_published(
    log: Path, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("mine")
    result = jobs.train(tables(log, tmp_path), client)
    assert result.report_url == ""
    assert result.model.task == "classification"
    assert (tmp_path / "out" / "report.html").read_text() == "mine"
    assert "its report could not be written" in caplog.text


def test_notebooks_show_curves(result: Any) -> None:
    assert result.plot_history().get_ylabel() == "log loss"
    for shown in (result._repr_html_(), result.model._repr_html_()):
        assert shown.count("<svg") == 2
        assert "log_loss" in shown
        assert "<script" not in shown
