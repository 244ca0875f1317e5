"""Jobs that learn from pairs of rows of one group (model.loss = "bpr")."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.data.partition import SparsePartition
from dfm.errors import DataError, RunCancelled, SettingsError
from dfm.events import faults_of
from dfm.model.fm_model import FMModel
from dfm.model.folder import read_manifest
from dfm.settings.job import Job
from dfm.training import plan
from dfm.workflow import steps
from tests.support.ranking_log import RankingLog


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rankings")
    train = RankingLog.draw(1, 0).shuffled().write(folder / "train", 4)
    return train, RankingLog.draw(2, 1_000, n_users=100).write(folder / "later", 1)


def tables_of(logs: tuple[Path, Path], folder: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    tables: dict[str, dict[str, Any]] = {
        "data": {"train": str(logs[0]), "validation": str(logs[1])},
        "schema": {"label": "label", "group": "user", "categorical": ["city", "item"]},
        "model": {"hash_bits": 10, "loss": "bpr", "n_factors": 4},
        "training": {"n_replicas": 2, "n_epochs": 3, "averages_per_epoch": 2},
        "cluster": {"cache": str(folder / "cache")},
        "output": {"directory": str(folder / "out")},
    }
    return {name: {**table, **changes.get(name, {})} for name, table in tables.items()}


def test_a_job_of_pairs_learns_the_order_on_any_cluster_and_goes_on_where_it_was_stopped(
    logs: tuple[Path, Path], client: Client, two_workers: Client, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []
    result = jobs.train(tables_of(logs, tmp_path / "one"), client, on_event=told.append)
    assert [fault for event in told for fault in faults_of(event)] == []
    aucs = [epoch["group_auc"] for epoch in result.history]
    assert result.validation["group_auc"] == max(aucs) > 0.62
    assert not {"log_loss", "calibration", "loss", "error_rate"} & result.validation.keys()
    rows = read_manifest(result.model_url)["metadata"]["rows"]
    spread = pq.read_table(logs[0]).to_pandas().groupby("user").label.agg(["nunique", "size", "sum"])
    both = spread.query("nunique == 2")
    assert (rows["in_pairs"], rows["pairs"]) == (both["size"].sum(), both["sum"].sum())

    logistic = jobs.train(tables_of(logs, tmp_path / "log loss", model={"loss": "auto"}), client)
    assert result.validation["group_auc"] > logistic.validation["group_auc"] + 0.05

    stopped = tables_of(logs, tmp_path / "two")
    rounds = iter(range(100))

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "round" and next(rounds) == 2:
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        jobs.train(stopped, two_workers, on_event=stop)
    again = jobs.train(stopped, two_workers)
    assert (again.parameters_sha256, again.validation) == (result.parameters_sha256, result.validation)

    page = Path(result.report_url).read_text()
    assert all(name in page for name in ("group_auc", "ndcg_10", "mrr", "in_pairs"))
    assert steps.group_of(result.model_url) == "user"
    assert steps.group_of(logistic.model_url) == ""
    judged = steps.evaluate_once(result.model_url, [str(logs[1])], steps.Where(client=client))
    assert judged["group_auc"] == pytest.approx(result.validation["group_auc"], rel=1e-9)
    later = pq.read_table(logs[1])
    model = FMModel.load(result.model_url)
    assert model.table.bias_value == 0
    found = jobs.evaluate(result.model_url, later, group="user")
    for name in ("group_auc", "ndcg_5", "mrr", "auc"):
        assert found[name] == pytest.approx(result.validation[name], rel=1e-9)
    assert np.ptp(model.predict(later)) > 0.5, "scores, and no probabilities"
    with pytest.raises(SettingsError, match="slices need a model of probabilities or numbers; the loss bpr"):
        jobs.evaluate(result.model_url, later, by=["city"])


def test_a_group_lies_in_one_slice_of_one_replica_wherever_its_rows_are(
    logs: tuple[Path, Path], two_workers: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users are spread over four shards, which are read by several tasks."""
    monkeypatch.setattr(plan, "PIECE_ROWS", 300)
    monkeypatch.setattr(plan, "TASK_ROWS", 500)
    training = {"n_epochs": 1, "averages_per_epoch": 5}
    jobs.train(tables_of(logs, tmp_path, training=training), two_workers)
    found = [SparsePartition.open(path) for path in (tmp_path / "cache").rglob("partition-*")]
    slices = [partition for partition in found if partition.n_rows < 1_000]
    assert (len(slices), sum(partition.n_rows for partition in slices)) == (10, 3_600)
    homes = [set(partition.group_ids.tolist()) for partition in slices]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 300


def test_whole_groups_are_held_out_by_lot(logs: tuple[Path, Path], client: Client, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    tables = tables_of(logs, tmp_path, data={"validation": []}, training={"n_epochs": 1})
    result = jobs.train(tables, client, on_event=told.append)
    held_out = next(event["held_out"] for event in told if event["event"] == "plan")
    assert "chosen by user, all of one together" in held_out
    groups = result.validation["groups"] + result.validation["groups_of_one_class"]
    assert result.validation["rows"] == 12 * groups == 3_600 - result.rows.accepted
    assert 600 < result.validation["rows"] < 1_300


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        (["q0", "q3"], "none of the 1000 rows was drawn to validate on: schema.group = 'user' has too few groups"),
        (["q35"], "all 1000 rows were drawn to validate on: schema.group = 'user' has too few groups"),
    ],
)
def test_groups_that_all_lie_on_one_side_are_an_error(
    groups: list[str], told: str, client: Client, tmp_path: Path
) -> None:
    n_rows = 1_000
    columns = {"user": [groups[n % len(groups)] for n in range(n_rows)], "label": [n % 3 == 0 for n in range(n_rows)]}
    folder = tmp_path / "log"
    folder.mkdir()
    pq.write_table(pa.table({**columns, "city": ["x", "y"] * 500, "item": ["i"] * n_rows}), folder / "a.parquet")
    given = {"data": {"train": str(folder), "validation": []}, "training": {"n_replicas": 1}}
    with pytest.raises(DataError, match=re.escape(told)):
        jobs.train(tables_of((folder, folder), tmp_path, **given), client)


def test_the_estimator_trains_shards_on_a_cluster(logs: tuple[Path, Path], client: Client) -> None:
    FMRanker = pytest.importorskip("dfm.estimators").FMRanker
    ranker = FMRanker(n_factors=4, n_epochs=2, n_replicas=2, categorical=["city", "item"], hash_bits=10)
    ranker.fit(str(logs[0]), "label", "user", client=client, eval_set=(str(logs[1]), "label"))
    later = pq.read_table(logs[1])
    found = ranker.score(later.select(["city", "item"]), later.column("label").to_numpy(), later.column("user"))
    assert found == pytest.approx(max(epoch["group_auc"] for epoch in ranker.history_), rel=1e-9)
    for given in ({"client": None}, {"group": later.column("user"), "client": client}):
        with pytest.raises(SettingsError, match="must be names of columns in them, and client"):
            ranker.fit(**{"X": str(logs[0]), "y": "label", "group": "user", **given})
    with pytest.raises(SettingsError, match="a ranker takes rows of this process, or shards"):
        ranker.fit(later, later.column("label"), later.column("user"), client=client)


def test_a_job_without_pairs_or_of_what_knows_none_is_refused(
    logs: tuple[Path, Path], client: Client, tmp_path: Path
) -> None:
    for changes, told in (
        ({"schema": {"group": ""}}, r"is of pairs of rows and needs schema\.group"),
        ({"model": {"family": "ffm"}}, r"'bpr' is of pairs of rows, which family = 'ffm' does not know"),
        ({"training": {"backend": "cupy"}}, "GPUs have no code for pairs of rows"),
        ({"model": {"calibration": "platt"}}, "needs a model of probabilities"),
        ({"training": {"stop_on": "log_loss"}}, r"stop_on = .log_loss. is no metric"),
        (
            {"training": {"solver": "als", "averages_per_epoch": "auto"}},
            r"model\.loss = .bpr. does not go with training\.solver",
        ),
        ({"data": {"sample_negatives": 0.5}}, "needs a model of probabilities"),
    ):
        with pytest.raises(SettingsError, match=told):
            Job.from_dict(tables_of(logs, tmp_path, **changes))
    alone = RankingLog.draw(3, 0, n_users=40, shown=1).write(tmp_path / "alone", 1)
    with pytest.raises(DataError, match="no clicked row has an unclicked one of its group beside it"):
        jobs.train(tables_of((alone, logs[1]), tmp_path), client)
    few = RankingLog.draw(3, 0, n_users=6).write(tmp_path / "few", 1)
    with pytest.raises(DataError, match=r"of training\.n_replicas = 8 replicas have no pair to learn from"):
        jobs.train(tables_of((few, logs[1]), tmp_path, training={"n_replicas": 8}), client)


def test_a_search_of_pairs_needs_groups_of_both_classes_to_validate_on(
    logs: tuple[Path, Path], client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    later = pq.read_table(logs[1])
    users = {user: number % 2 for number, user in enumerate(later["user"].unique().to_pylist())}
    label = pa.array([users[user] for user in later["user"].to_pylist()])
    pq.write_table(later.set_column(later.column_names.index("label"), "label", label), tmp_path / "later.parquet")
    tables = tables_of((logs[0], tmp_path / "later.parquet"), tmp_path) | {"search": {"n_trials": 2, "n_seeds": 1}}
    why = "no group has rows of both classes, so that trials cannot be compared. Name others in data.validation$"
    with pytest.raises(SettingsError, match=f"^group_auc is not defined on the rows to validate on: {why}"):
        jobs.search(tables, client)
    assert "the last epoch counts" not in caplog.text
