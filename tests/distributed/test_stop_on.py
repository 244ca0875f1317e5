"""training.stop_on: the validation metric that chooses the epoch; and decisions at a threshold."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import Client

from dfm import jobs
from dfm.errors import SettingsError
from dfm.settings.job import Job
from dfm.training.order import Order
from tests.distributed.test_held_out import tables_of, write_log


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
