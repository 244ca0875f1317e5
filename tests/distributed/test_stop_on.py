"""training.stop_on: the validation metric that chooses the epoch; and decisions at a threshold."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.data.hashing import token_index
from dfm.errors import SettingsError
from dfm.model.fm_model import FMModel
from dfm.model.folder import read_manifest
from dfm.settings.job import Job
from dfm.training.order import Order
from tests.distributed.test_held_out import tables_of, write_log
from tests.support.small_jobs import in_process_client

BITS = 10


def test_the_epoch_of_the_best_order_is_kept(client: Client, tmp_path: Path) -> None:
    tables = tables_of(write_log(tmp_path / "log"), tmp_path, training={"stop_on": "auc"})
    result = jobs.train(tables, client)
    assert result.validation["auc"] == max(epoch["auc"] for epoch in result.history)
    found = jobs.evaluate(result.model_url, str(tmp_path / "log"), threshold=0.5, client=client)
    assert found["accuracy"] == pytest.approx(0.8, abs=0.05)
    assert found["threshold"] == 0.5
    for threshold in (0.0, 1.5):
        with pytest.raises(SettingsError, match="expected a probability between 0 and 1"):
            jobs.evaluate(result.model_url, str(tmp_path / "log"), threshold=threshold, client=client)


def test_a_metric_needs_rows_to_validate_on(client: Client, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log")
    tables = tables_of(log, tmp_path, data={"validation_fraction": 0}, training={"stop_on": "auc"})
    with pytest.raises(SettingsError, match=r"training\.stop_on = .auc. needs rows to validate on"):
        jobs.train(tables, client)
    assert Order.of(Job.from_dict(tables)).objective.stop_on == "auc"


def write_users(folder: Path, seed: int, n_shards: int) -> Path:
    """Rows of forty users (a number, here and there missing), one of them with a bad label. Rows
    of site s0 have an index of the hash table twice, and come last in their partition.
    """
    clash = next(
        n for n in itertools.count() if token_index("tag", b"t%d" % n, BITS) == token_index("site", b"s0", BITS)
    )
    rng, n_rows = np.random.default_rng(seed), 3_000
    user, site = rng.integers(0, 40, n_rows), rng.integers(0, 12, n_rows)
    clicked = rng.random(n_rows) < 1 / (1 + np.exp(2 - site / 3 - user % 5))
    labels = [*clicked.astype(float)[:-1], 7.0]
    columns = {
        "user": pa.array([None if n == 3 else int(n) for n in user], pa.int64()),
        "site": [f"s{n}" for n in site],
        "tag": [f"t{clash}" if n % 3 else "t" for n in range(n_rows)],
        "label": labels,
    }
    folder.mkdir(parents=True)
    for number, rows in enumerate(np.array_split(np.arange(n_rows), n_shards)):
        pq.write_table(pa.table(columns).take(rows), folder / f"{number}.parquet")
    return folder


def group_auc_by_pandas(model: FMModel, table: pa.Table) -> float:
    """The mean AUC of users with clicks and without, by their rows: pairs in the right order, one by one."""
    frame = table.to_pandas().assign(score=model.predict(table))
    total, weight = 0.0, 0
    for _, rows in frame.fillna({"user": -1}).groupby("user"):
        above = rows.score[rows.label == 1].to_numpy()[:, None] - rows.score[rows.label == 0].to_numpy()
        if above.size:
            total += len(rows) * ((above > 0).mean() + (above == 0).mean() / 2)
            weight += len(rows)
    return total / weight


def test_the_epoch_of_the_best_order_within_groups_is_kept(client: Client, tmp_path: Path) -> None:
    log, later = write_users(tmp_path / "log", 1, 3), write_users(tmp_path / "later", 2, 2)
    tables: dict[str, Any] = tables_of(log, tmp_path / "one", training={"stop_on": "group_auc"})
    tables["data"] |= {"validation": str(later), "on_bad_rows": "skip"}
    tables["schema"] = {"label": "label", "group": "user", "categorical": ["site", "tag"]}
    tables["model"] = {"hash_bits": BITS}
    result = jobs.train(tables, client)
    aucs = [epoch["group_auc"] for epoch in result.history]
    assert result.validation["group_auc"] == max(aucs)
    assert result.best_epoch == 1 + int(np.argmax(aucs))
    table = pq.read_table(later).slice(0, 2_999)
    expected = group_auc_by_pandas(FMModel.load(result.model_url), table)
    assert result.validation["group_auc"] == pytest.approx(expected, rel=1e-12)
    assert result.validation["groups"] + result.validation["groups_of_one_class"] == 40
    found = jobs.evaluate(result.model_url, table, group="user")
    assert found["group_auc"] == pytest.approx(expected, rel=1e-12)
    tables |= {"cluster": {"cache": str(tmp_path / "other")}, "output": {"directory": str(tmp_path / "two")}}
    with in_process_client(5) as five:
        again = jobs.train(tables, five)
    assert (again.parameters_sha256, again.validation) == (result.parameters_sha256, result.validation)
    seen = [read_manifest(each.model_url)["files"]["seen"]["sha256"] for each in (result, again)]
    assert seen[0] == seen[1], "what it remembers of training rows for drift"
    for change, told in (({"group": ""}, "needs schema.group"), ({"group": "nobody"}, 'names "nobody"')):
        with pytest.raises(SettingsError, match=told):
            jobs.train({**tables, "schema": {**tables["schema"], **change}}, client)


def test_order_within_groups_is_for_clicks() -> None:
    with pytest.raises(SettingsError, match=r"schema\.group = .user. is for the order of clicked rows"):
        Job.from_dict({"schema": {"group": "user"}, "model": {"task": "regression"}})
    tables = {"data": {"train": "x"}, "schema": {"group": "u"}, "training": {"stop_on": "group_auc"}}
    objective = Order.of(Job.from_dict({**tables, "output": {"directory": "y"}})).objective
    assert objective.cost({"group_auc": 0.75, "log_loss": 9.0}) == 0.25
    assert objective.cost({"group_auc": None, "log_loss": 9.0}) is None
