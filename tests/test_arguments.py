"""Arguments of the functions that Python users call: wrong ones are refused in a sentence before any row is read, and a
lone text is one text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import dfm
from dfm.data.synthetic import generate
from dfm.distributed.scoring import Scoring
from dfm.errors import SettingsError
from dfm.model.export import export
from dfm.model.fm_model import FMModel
from dfm.storage import files, ownership
from dfm.workflow import steps
from dfm.workflow.gate import Gate
from tests.support.small_jobs import in_process_client
from tests.support.small_models import make_model, random_table


@pytest.fixture(scope="module")
def model() -> FMModel:
    return make_model()


@pytest.mark.parametrize("rule", ["raise", "Error", "", None, True])
def test_a_rule_for_bad_rows_that_there_is_not_leaves_none_out(model: FMModel, rule: Any, tmp_path: Path) -> None:
    rows, where = random_table(50).to_pydict(), steps.Where()
    rows["label"][0] = 7
    for ask in (
        lambda: dfm.evaluate(model, rows, on_bad_rows=rule),
        lambda: dfm.importance(model, rows, on_bad_rows=rule),
        lambda: dfm.predict(model, "rows.parquet", str(tmp_path / "scores"), on_bad_rows=rule),
        lambda: Scoring(model, rule),
        lambda: dfm.convert("log.csv", str(tmp_path / "shards"), on_bad_rows=rule),
        lambda: steps.evaluate_once("model", ["rows.parquet"], where, on_bad_rows=rule),
        lambda: steps.publish("model", str(tmp_path / "alias"), ["rows"], Gate(), where, on_bad_rows=rule),
        lambda: steps.predict_once("model", ["rows.parquet"], str(tmp_path / "scores"), where, on_bad_rows=rule),
    ):
        with pytest.raises(SettingsError, match=r'on_bad_rows = .* is not legal: expected "error" or "skip"'):
            ask()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"top": -1}, "top = -1 is not legal: expected an integer, 1 or more"),
        ({"top": 0}, "top = 0 is not legal"),
        ({"top": 2.5}, "top = 2.5 is not legal"),
        ({"min_rows": -5}, "min_rows = -5 is not legal: expected an integer, 0 or more"),
        ({"group": 5}, "group = 5 is not legal: expected a string"),
        ({"by": ""}, "by = '' names a column twice, or none"),
        ({"by": 5}, "by = 5 holds no name of a column"),
        ({"by": ["site", 5]}, "by = ['site', 5] holds no name of a column"),
        ({"threshold": "0.5"}, "threshold = '0.5' is not legal: expected a probability between 0 and 1"),
        ({"settings": {"token": "s3cr3t"}}, "settings is a dict: expected the ClusterSettings of a job"),
    ],
)
def test_an_evaluation_is_asked_in_words_that_it_knows(model: FMModel, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(told)):
        dfm.evaluate(model, random_table(50), **{"by": ["site"], **wrong})


def test_slices_of_a_lone_column_are_those_of_a_list_of_it(model: FMModel) -> None:
    rows = random_table(400)
    expected = dfm.evaluate(model, rows, by=["zone", "site,zone"], min_rows=1)["slices"]
    assert dfm.evaluate(model, rows, by="zone", min_rows=1)["slices"] == {"zone": expected["zone"]}
    assert dfm.evaluate(model, rows, by="site, zone", min_rows=1)["slices"] == {"site,zone": expected["site,zone"]}


def test_a_lone_column_is_kept_beside_predictions(model: FMModel, tmp_path: Path) -> None:
    pq.write_table(random_table(50), tmp_path / "rows.parquet")
    with in_process_client(1) as client:
        for name, keep in (("lone", "label"), ("listed", ["label"])):
            dfm.predict(model, str(tmp_path / "rows.parquet"), str(tmp_path / name), keep=keep, client=client)
            assert pq.read_table(tmp_path / name).column_names == ["label", "prediction"]
    with pytest.raises(SettingsError, match=r"keep = \[5\] is not legal: expected a string or a list of these"):
        dfm.predict(model, str(tmp_path / "rows.parquet"), str(tmp_path / "other"), keep=[5])


def test_a_lone_override_is_one() -> None:
    assert dfm.load_job({}, "training.n_epochs=3").training.n_epochs == 3
    assert dfm.load_job({}, ["training.n_epochs=3"]) == dfm.load_job({}, "training.n_epochs=3")
    with pytest.raises(SettingsError, match="overrides = 5 is not legal"):
        dfm.load_job({}, 5)


@pytest.mark.parametrize("wrong", [2.5, 1, "5"])
def test_folds_are_a_whole_number(wrong: Any, tmp_path: Path) -> None:
    job = {
        "data": {"train": str(tmp_path)},
        "schema": {"label": "label", "categorical": ["C*"]},
        "output": {"directory": str(tmp_path / "out")},
    }
    with pytest.raises(SettingsError, match=r"n_folds = .* is not legal: expected an integer, 2 or more"):
        dfm.cross_validate(job, wrong)


@pytest.mark.parametrize("place", ["", "  "])
def test_an_output_without_a_name_is_refused_and_nothing_is_written(
    model: FMModel, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the shell leaves "$OUT" where nobody has set it. Names below it would lie in the root of the disk."""
    for name in ("write_bytes", "writing", "create_bytes"):
        monkeypatch.setattr(files, name, None)
    pq.write_table(random_table(50), tmp_path / "rows.parquet")
    (tmp_path / "log.svm").write_text("1 1:1\n0 2:1\n")
    monkeypatch.chdir(tmp_path)
    here = sorted(tmp_path.rglob("*"))
    for ask in (
        lambda: model.save(place),
        lambda: export(model, "parquet", place),
        lambda: dfm.convert("log.svm", place),
        lambda: generate(place, rows=100),
        lambda: dfm.predict(model, "rows.parquet", place),
        lambda: steps.predict_once("model", ["rows.parquet"], place, steps.Where()),
        lambda: ownership.check_apart(place, ["rows.parquet"], "output"),
        lambda: files.join(place, "model.json"),
    ):
        with pytest.raises(SettingsError, match="is empty and names no place; name a folder or URL"):
            ask()
    assert sorted(tmp_path.rglob("*")) == here


@pytest.mark.parametrize("data", ["", ["rows.parquet", ""], " "])
def test_an_empty_path_of_the_data_is_not_the_current_folder(
    model: FMModel, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(random_table(50), tmp_path / "rows.parquet")
    (tmp_path / "log.svm").write_text("1 1:1\n0 2:1\n")
    monkeypatch.chdir(tmp_path)
    for ask in (
        lambda: dfm.evaluate(model, data),
        lambda: dfm.importance(model, data),
        lambda: dfm.predict(model, data, str(tmp_path / "scores")),
        lambda: dfm.guess(data),
        lambda: dfm.convert(["log.svm", data[-1:] and data[-1]], str(tmp_path / "shards")),
    ):
        with pytest.raises(SettingsError, match="a path of the data is empty"):
            ask()
