"""data.sample_negatives: most negative rows to train on are left out by lot, and the model is that of all rows."""

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
from dfm.data.draw import Sampling
from dfm.data.parquet import Batch, find_shards, read_unit
from dfm.errors import SettingsError
from dfm.settings.job import Job
from dfm.training.plan import Unit
from tests.distributed.test_held_out import tables_of
from tests.distributed.test_negative_rate import N_ROWS, stream

SHARE = 0.1


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A full stream in shards of several row groups, and another one."""
    folder = tmp_path_factory.mktemp("logs")
    for name, seed in (("full", 2), ("later", 4)):
        (folder / name).mkdir()
        for number in range(2):
            rows = stream(seed).slice(number * N_ROWS // 2, N_ROWS // 2)
            pq.write_table(rows, folder / name / f"{number}.parquet", row_group_size=7_000)
    return {name: folder / name for name in ("full", "later")}


def trained(logs: dict[str, Path], folder: Path, client: Client, **data: Any) -> tuple[Any, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    tables = tables_of(logs["full"], folder, data={"validation": str(logs["later"]), **data})
    return jobs.train(tables, client, on_event=told.append), told


@pytest.fixture(scope="module")
def result(logs: dict[str, Path], client: Client, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(logs, tmp_path_factory.mktemp("share"), client, sample_negatives=SHARE)


def test_every_row_is_accounted_for_and_all_positives_stay(result: Any, logs: dict[str, Path]) -> None:
    clicks = int(pq.read_table(logs["full"])["label"].to_numpy().sum())
    rows = next(event for event in result[1] if event["event"] == "vocabulary")["rows"]
    assert rows["read"] == N_ROWS == rows["trained"] + rows["rejected"] + rows["sampled_out"]
    assert rows["trained"] - clicks == pytest.approx(SHARE * (N_ROWS - clicks), rel=0.05)
    assert result[0].rows.label_sum == clicks
    held_out = result[0].model.metadata["validation_rows"]
    assert (held_out["trained"], "sampled_out" in held_out) == (N_ROWS, False)


def test_predictions_and_validation_are_of_the_full_stream(
    result: Any, logs: dict[str, Path], client: Client, tmp_path: Path
) -> None:
    full, _ = trained(logs, tmp_path, client)
    found = jobs.evaluate(result[0].model_url, str(logs["later"]), client=client)
    for metric in ("log_loss", "auc", "calibration"):
        assert result[0].validation[metric] == pytest.approx(found[metric], abs=1e-4), "as it was judged in training"
    assert found["calibration"] == pytest.approx(1.0, abs=0.1)
    assert found["log_loss"] == pytest.approx(full.validation["log_loss"], abs=0.003)


def test_the_same_rows_on_any_number_of_workers_and_others_with_another_seed(
    result: Any, logs: dict[str, Path], two_workers: Client, tmp_path: Path
) -> None:
    again, _ = trained(logs, tmp_path, two_workers, sample_negatives=SHARE)
    assert again.parameters_sha256 == result[0].parameters_sha256
    assert again.rows == result[0].rows


def test_the_lot_of_a_row_does_not_depend_on_how_its_file_is_read(logs: dict[str, Path]) -> None:
    (shard, _), sampling = find_shards([str(logs["full"])]), Sampling(0.3, seed=5)

    def kept(units: list[Unit], chosen: Sampling) -> list[int]:
        found = []
        for batch in (batch for unit in units for batch in read_unit(unit, ["label"])):
            stays = chosen.keeps(batch, np.ones(batch.data.num_rows, np.bool_))
            first = sum(shard.row_groups[: batch.row_group]) + batch.first_row
            found += (first + np.flatnonzero(stays)).tolist()
        return found

    cuts = [0, 6_000, 9_001, 20_000, shard.n_rows]
    whole = kept([Unit(shard, 0, shard.n_rows)], sampling)
    parts = kept([Unit(shard, *pair) for pair in itertools.pairwise(cuts)], sampling)
    assert whole == parts
    assert len(whole) == pytest.approx(0.3 * shard.n_rows, rel=0.05)
    assert whole != kept([Unit(shard, 0, shard.n_rows)], Sampling(0.3, seed=6))
    data = pa.record_batch({"label": [0, 0, 0, 0]})
    thinned = Batch(data, shard, 0, 100, np.array([3, 10, 11, 500]))
    single = [Batch(data.slice(0, 1), shard, 0, 100 + place) for place in (3, 10, 11, 500)]
    negative = np.ones(4, np.bool_)
    assert sampling.keeps(thinned, negative).tolist() == [sampling.keeps(one, negative[:1])[0] for one in single]
    assert sampling.keeps(thinned, ~negative).all()


def test_what_says_it_twice_or_has_no_negatives_is_refused() -> None:
    both = {"data": {"negative_rate": 0.5, "sample_negatives": 0.5}}
    with pytest.raises(SettingsError, match=r"would know nothing\. Leave one of them out"):
        Job.from_dict(both)
    for more in ({"model": {"task": "regression"}}, {"model": {"loss": "hinge"}}, {"schema": {"weight": "w"}}):
        with pytest.raises(SettingsError, match=r"data\.sample_negatives = 0\.5"):
            Job.from_dict({"data": {"sample_negatives": 0.5}, **more})
