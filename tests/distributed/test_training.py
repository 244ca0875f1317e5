"""A job is trained as it is specified: rows accounted, bytes reproducible, the best parameters published."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.averaging.contributions import combine_all
from dfm.averaging.merge import contribute, finalise
from dfm.averaging.rules import scaled_rate
from dfm.averaging.slices import Slices
from dfm.data.chunks import hash_units
from dfm.data.preparation import load_slices
from dfm.data.reading import Reading
from dfm.data.row_lookup import RowLookup
from dfm.data.vocabulary import build_vocabulary, merge_counts
from dfm.distributed import beginning, start, train
from dfm.distributed.train import TrainResult
from dfm.errors import DataError, DivergenceError, ModelError, SettingsError
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.schedule import rate_factor, scheduled
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise, pull
from dfm.model.fm_model import FMModel
from dfm.settings.job import Job
from dfm.training.inputs import find_inputs
from dfm.training.steps import merge_rule
from tests.support.small_jobs import EPOCH_KEYS, LAST_DAY, ROWS, job_tables, read_log
from tests.support.small_models import turned

DAY_ROWS = ROWS // 4


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    """What the run of `trained` told."""
    return []


@pytest.fixture(scope="module")
def trained(
    log: Path, client: Client, events: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> TrainResult:
    """The job of `job_tables` on one worker."""
    return jobs.train(job_tables(log, tmp_path_factory.mktemp("trained")), client, on_event=events.append)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    p = probabilities.astype(np.float64)
    return float(-np.mean(np.where(labels == 1, np.log(p), np.log1p(-p))))


def pairwise_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    positives, negatives = scores[labels == 1][:, None], scores[labels == 0][None, :]
    return float(np.mean((positives > negatives) + 0.5 * (positives == negatives)))


# --- what a run tells -----------------------------------------------------------------------------------


def test_events_come_in_order_and_hold_what_they_promise(trained: TrainResult, events: list[dict[str, Any]]) -> None:
    told = [event for event in events if event["event"] != "progress"]
    names = [event["event"] for event in told]
    assert names == [
        "plan",
        "placement",
        "vocabulary",
        "prepared",
        "settings",
        *(["round", "round", "epoch"] * 2),
        "diagnosis",
        "publishing",
        "saved",
        "done",
    ]
    standing = [(event["epoch"], event["round"], event["rounds"]) for event in told if event["event"] == "round"]
    assert standing == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]
    epochs = [event for event in told if event["event"] == "epoch"]
    assert trained.history == epochs
    frame = trained.history_frame()
    assert frame.index.tolist() == [event["epoch"] for event in epochs]
    assert frame["auc"].tolist() == [event["auc"] for event in epochs]
    assert not {"event", "event_version", "calibration_bins"} & {*frame.columns}
    assert repr(trained).startswith(f"TrainResult({trained.model_url!r}, log_loss={trained.validation['log_loss']:.5f}")
    assert "\n" not in repr(trained)
    assert len(repr(trained)) < 120 + len(trained.model_url)
    assert [event["epoch"] for event in epochs] == [1, 2]
    for event in epochs:
        assert event.keys() >= EPOCH_KEYS
        assert event["averaging_seconds"] <= event["seconds"]
        assert event["rows_per_second"] == pytest.approx(3 * DAY_ROWS / event["seconds"])
    done = told[-1]
    assert done["parameters_sha256"] == trained.parameters_sha256
    assert done["validation"] == trained.validation
    assert done["model"] == trained.model_url
    assert done["interrupted"] is False
    json.dumps(told, allow_nan=False)


def test_progress_of_every_stage_ends_at_all_rows(trained: TrainResult, events: list[dict[str, Any]]) -> None:
    last = {event["stage"]: (event["done"], event["total"]) for event in events if event["event"] == "progress"}
    compiling, n_workers = last.pop("compile", (1, 1))
    assert compiling == n_workers
    assert last == {"hash": (ROWS, ROWS), "build": (ROWS, ROWS), "report": (DAY_ROWS, DAY_ROWS)}


def test_every_row_is_accounted_for(trained: TrainResult, events: list[dict[str, Any]]) -> None:
    expected = {"read": 3 * DAY_ROWS, "trained": 3 * DAY_ROWS, "rejected": 0, "reasons": {}}
    assert events[-1]["rows"] == expected
    assert trained.rows.read == trained.rows.accepted == 3 * DAY_ROWS
    assert trained.validation["rows"] == DAY_ROWS
    assert events[0]["rows"] == 3 * DAY_ROWS
    assert events[0]["validation_rows"] == DAY_ROWS


def test_the_model_of_a_later_run_is_not_handed_out_as_that_of_a_result(trained: TrainResult, tmp_path: Path) -> None:
    shutil.copytree(trained.model_url, tmp_path / "model")
    earlier = dataclasses.replace(trained, model_url=str(tmp_path / "model"))
    assert earlier.model.parameters_sha256() == trained.parameters_sha256
    turned(earlier.model).save(earlier.model_url)
    with pytest.raises(ModelError, match=r"replaced by a later run .*give each run its own output\.directory"):
        earlier.model  # noqa: B018


def test_the_published_model_scores_as_it_was_evaluated(trained: TrainResult, log: Path) -> None:
    held_out = read_log(log, LAST_DAY)
    predicted, labels = trained.model.predict(held_out), held_out["label"].to_numpy()
    assert log_loss(predicted, labels) == pytest.approx(trained.validation["log_loss"], rel=1e-6)
    tolerance = trained.validation["auc_error"] + 1e-9
    assert pairwise_auc(predicted, labels) == pytest.approx(trained.validation["auc"], abs=tolerance)
    best = trained.history[trained.best_epoch - 1]
    assert trained.validation == {name: best[name] for name in trained.validation}


def test_training_beats_always_answering_the_click_rate(trained: TrainResult) -> None:
    assert trained.validation["normalized_entropy"] < 0.98
    assert trained.history[1]["train_log_loss"] < trained.history[0]["train_log_loss"]


def test_the_model_remembers_how_it_was_made(trained: TrainResult) -> None:
    metadata = trained.model.metadata
    assert metadata["settings"]["model"]["n_factors"] == 4
    assert metadata["rows"]["trained"] == 3 * DAY_ROWS
    assert metadata["validation"] == trained.validation
    assert metadata["best_epoch"] == trained.best_epoch
    assert len(metadata["history"]) == 2


# --- the same bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_replicas", [3, 8])
def test_one_worker_and_two_give_the_same_bytes(
    log: Path, client: Client, two_workers: Client, tmp_path: Path, n_replicas: int
) -> None:
    chosen = {"n_replicas": n_replicas, "averages_per_epoch": 2}
    on_one = jobs.train(job_tables(log, tmp_path / "one", training=chosen), client)
    on_two = jobs.train(job_tables(log, tmp_path / "two", training=chosen), two_workers)
    assert on_one.parameters_sha256 == on_two.parameters_sha256
    assert on_one.validation == on_two.validation


def test_a_warm_cache_gives_the_same_bytes_and_is_not_written_again(
    log: Path, client: Client, trained: TrainResult, tmp_path: Path
) -> None:
    job = job_tables(log, tmp_path)
    first = jobs.train(job, client)
    files = {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*.safetensors")}
    again = jobs.train(job, client)
    assert files
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*.safetensors")} == files
    assert first.parameters_sha256 == again.parameters_sha256 == trained.parameters_sha256
    assert again.rows == first.rows


def test_a_damaged_cache_gives_the_same_bytes(log: Path, client: Client, trained: TrainResult, tmp_path: Path) -> None:
    job = job_tables(log, tmp_path)
    jobs.train(job, client)
    for path in (tmp_path / "cache").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    assert jobs.train(job, client).parameters_sha256 == trained.parameters_sha256


def test_another_seed_gives_other_parameters(log: Path, client: Client, trained: TrainResult, tmp_path: Path) -> None:
    other = jobs.train(job_tables(log, tmp_path, model={"seed": 1}), client)
    assert other.parameters_sha256 != trained.parameters_sha256
    assert other.rows.accepted == trained.rows.accepted


@pytest.mark.parametrize("min_count_factors", [1, 10])
@pytest.mark.parametrize("cuts_pushes", [False, True])
def test_parameters_in_blocks_are_the_same_bytes_as_in_one(
    log: Path,
    two_workers: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    min_count_factors: int,
    cuts_pushes: bool,
) -> None:
    chosen = {"model": {"min_count_factors": min_count_factors}, "training": {"averages_per_epoch": 2}}
    whole = jobs.train(job_tables(log, tmp_path / "whole", **chosen), two_workers)
    asked: list[int] = []
    block_bounds = start.block_bounds

    def counted(n_features: int, n_factored: int, layout: Layout, n_blocks: int) -> list[int]:
        asked.append(n_blocks)
        return block_bounds(n_features, n_factored, layout, n_blocks)

    monkeypatch.setattr(start, "block_bounds", counted)
    monkeypatch.setattr(start, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(start, "_WHOLE_PUSH_BYTES", 0 if cuts_pushes else 1 << 30)
    cut = jobs.train(job_tables(log, tmp_path / "cut", **chosen), two_workers)
    assert set(asked) == {2}
    assert cut.parameters_sha256 == whole.parameters_sha256
    assert cut.validation == whole.validation
    assert [event["train_log_loss"] for event in cut.history] == [event["train_log_loss"] for event in whole.history]


@pytest.mark.parametrize("n_blocks", [1, 2, 5, 40])
@pytest.mark.parametrize(("n_features", "n_factored"), [(100, 100), (100, 7), (100, 0), (3, 1), (0, 0)])
def test_blocks_cover_the_table_once(n_features: int, n_factored: int, n_blocks: int) -> None:
    layout = Layout("adagrad", 4)
    bounds = start.block_bounds(n_features, n_factored, layout, n_blocks)
    assert len(bounds) == n_blocks + 1
    assert (bounds[0], bounds[-1]) == (0, n_features)
    assert bounds == sorted(bounds)
    heavy = layout.linear_width + layout.factor_width
    owned = np.where(np.arange(n_features) < n_factored, heavy, layout.linear_width)
    sizes = [owned[start:stop].sum() for start, stop in itertools.pairwise(bounds)]
    assert max(sizes) <= owned.sum() / n_blocks + 2 * heavy


# --- the definition -------------------------------------------------------------------------------------


def train_sequentially(job: Job) -> ParameterTable:
    """The job's rounds one replica after the other on one table, without Dask."""
    inputs, seed, n_replicas = find_inputs(job), job.model.seed, job.training.n_replicas
    plan, bits = inputs.plan, job.model.hash_bits
    reading = Reading(inputs.schema, bits, job.model.task, cache=job.cluster.cache)
    chunks = [
        hash_units(reading, units, plan.n_slices, (seed, replica, number))
        for replica, tasks in enumerate(plan.replicas)
        for number, units in enumerate(tasks)
    ]
    clicks = sum(float(chunk.rows.labels.sum()) for chunk in chunks)
    rate_of_clicks = clicks / sum(chunk.rows.n_rows for chunk in chunks)
    columns = [entry.name for entry in inputs.schema.fields]
    counts = merge_counts([chunk.counts for chunk in chunks], bits)
    vocabulary = build_vocabulary(counts, columns, bits, job.model.min_count, job.model.min_count_factors)
    lookup = RowLookup(vocabulary)
    partitions = [
        load_slices(reading, tasks, plan.n_slices, (seed, replica), vocabulary, "sequential", lookup)
        for replica, tasks in enumerate(plan.replicas)
    ]
    layout = Layout(job.training.optimizer, job.model.n_factors)
    kernels = compile_kernels(KernelSpec("logistic", layout.optimizer, layout.n_factors))
    # A row of the log has an entry of value 1 in each of 39 fields.
    rate = scaled_rate(1.6 / 39, job.training.rate_scaling, n_replicas)
    step = Step(rate, rate * 0.4, 0.005, 0.01)
    rule = merge_rule(job.training)
    log_odds = math.log(rate_of_clicks / (1.0 - rate_of_clicks))
    initial = InitialValues(seed, 0.02 / 39**0.5, job.training.initial_accumulator, log_odds)
    table = initialise(layout, vocabulary.ids, vocabulary.n_factored, initial)
    n_epochs = job.training.n_epochs
    walks = [(epoch, slices) for epoch in range(1, n_epochs + 1) for slices in plan.rounds(epoch)]
    for number, (epoch, walk) in enumerate(walks):
        middle = (epoch - 1) * plan.n_slices + (walk[0] + walk[-1]) / 2
        now = scheduled(step, layout.optimizer, rate_factor("final-decay", middle, n_epochs * plan.n_slices))
        contributions = []
        for replica, slices in enumerate(partitions):
            united = Slices.of([slices[at] for at in walk]) if len(walk) > 1 else slices[walk[0]]
            before, whole = pull([table], united.features, united.n_factored), table.copy()
            for at in walk:
                partition = slices[at]
                local = pull([whole], partition.features, partition.n_factored)
                round_seed = seed * 1_000_003 + number * n_replicas + replica + (at - walk[0]) * 2**45
                kernels.run_round(partition, local, dataclasses.replace(now, seed=round_seed))
                whole.bias[:] = local.bias
                whole.linear[partition.features] = local.linear
                whole.factors[partition.features[: local.n_factored]] = local.factors
            after = pull([whole], united.features, united.n_factored)
            contributions.append(contribute(rule, united, before, after))
        table, _ = finalise(rule, table, 0, combine_all(contributions), n_replicas, now)
    return table


@pytest.mark.parametrize("n_replicas", [2, 5])
def test_halved_changes_give_the_same_bytes_on_any_workers_and_travel_cheaper_one_by_one(
    log: Path, client: Client, two_workers: Client, tmp_path: Path, n_replicas: int
) -> None:
    training = {"n_replicas": n_replicas, "averages_per_epoch": 3}
    whole = jobs.train(job_tables(log, tmp_path / "whole", training=training), two_workers)
    halved = {**training, "wire_dtype": "bfloat16"}
    here = jobs.train(job_tables(log, tmp_path / "here", training=halved), client)
    there = jobs.train(job_tables(log, tmp_path / "there", training=halved), two_workers)
    assert here.parameters_sha256 == there.parameters_sha256 != whole.parameters_sha256
    assert here.validation["log_loss"] == pytest.approx(whole.validation["log_loss"], abs=1e-3)
    share = there.history[0]["bytes_per_round"] / whole.history[0]["bytes_per_round"]
    if n_replicas == 2:  # one on each worker
        assert 0.6 < share < 0.85
    else:
        assert 0.8 < share <= 1.0  # sums of two travel whole


@pytest.mark.parametrize("later_averages", ["auto", 2, 1])
def test_the_cluster_computes_what_a_plain_loop_computes(
    log: Path, two_workers: Client, tmp_path: Path, later_averages: int | str
) -> None:
    training = {"n_replicas": 5, "averages_per_epoch": 3, "later_averages": later_averages}
    job = Job.from_dict(job_tables(log, tmp_path, model={"seed": 11}, training=training))
    expected = train_sequentially(job)
    found = jobs.train(job, two_workers).model.table
    assert found.bias_value == expected.bias_value
    np.testing.assert_array_equal(found.linear_weights, expected.linear_weights)
    np.testing.assert_array_equal(found.factor_weights, expected.factor_weights)


# --- tasks and optimizers -------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("sgd", 0.01), ("ftrl", 0.1), ("adagrad-row", 0.05)])
def test_every_optimizer_learns(
    log: Path, client: Client, trained: TrainResult, tmp_path: Path, optimizer: str, learning_rate: float
) -> None:
    training = {"optimizer": optimizer, "learning_rate": learning_rate, "averages_per_epoch": 2}
    result = jobs.train(job_tables(log, tmp_path, training=training), client)
    assert result.validation["normalized_entropy"] < 0.99
    assert result.parameters_sha256 != trained.parameters_sha256


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Regression rows: the price is a sum of what two categories add, and some noise."""
    directory = tmp_path_factory.mktemp("prices")
    rng = np.random.default_rng(5)
    shop, item = rng.integers(0, 20, 6000), rng.integers(0, 50, 6000)
    price = 10 + rng.normal(0, 2, 20)[shop] + rng.normal(0, 1, 50)[item] + rng.normal(0, 0.5, 6000)
    table = pa.table({"shop": shop, "item": [f"item {i}" for i in item], "label": price.astype(np.float32)})
    pq.write_table(table.slice(0, 5000), directory / "train.parquet", row_group_size=1300)
    pq.write_table(table.slice(5000), directory / "later.parquet")
    return directory


def price_job(prices: Path, output: Path, **training: Any) -> dict[str, dict[str, Any]]:
    return job_tables(
        prices,
        output,
        data={
            "train": str(prices / "train.parquet"),
            "validation": str(prices / "later.parquet"),
            "validation_from": "",
        },
        schema={"time": "", "numeric": [], "categorical": ["shop", "item"]},
        model={"task": "regression"},
        training={"n_replicas": 2, "n_epochs": 6, "l2_linear": 0.0, "learning_rate": 0.2, **training},
    )


def test_regression_predicts_the_label_in_its_own_unit(prices: Path, client: Client, tmp_path: Path) -> None:
    result = jobs.train(price_job(prices, tmp_path), client)
    held_out = pq.read_table(prices / "later.parquet")
    labels = held_out["label"].to_numpy().astype(np.float64)
    errors = result.model.predict(held_out) - labels
    assert result.validation["rmse"] == pytest.approx(float(np.sqrt(np.mean(errors**2))), rel=1e-5)
    assert result.validation["mae"] == pytest.approx(float(np.mean(np.abs(errors))), rel=1e-5)
    assert result.validation["rmse"] < 0.5 * labels.std()
    assert result.history[-1].keys() >= {"train_rmse", "rmse", "mae", "rows_per_second"}
    assert "train_log_loss" not in result.history[-1]


# --- which rows validate --------------------------------------------------------------------------------

DAY_COLUMNS = {
    "text": (lambda day: day, pa.string(), LAST_DAY),
    "date": (lambda day: day, pa.date32(), LAST_DAY),
    "timestamp": (lambda day: f"{day} 12:30:00", pa.timestamp("us"), f"{LAST_DAY} 00:00:00"),
    "integer": (lambda day: int(day.replace("-", "")), pa.int64(), int(LAST_DAY.replace("-", ""))),
}


@pytest.mark.parametrize("kind", DAY_COLUMNS)
def test_a_time_column_inside_the_files_splits_row_by_row(log: Path, client: Client, tmp_path: Path, kind: str) -> None:
    written, arrow_type, bound = DAY_COLUMNS[kind]
    rows = read_log(log)
    rows = rows.take(np.random.default_rng(1).permutation(rows.num_rows))
    days = [written(day) for day in rows["day"].to_pylist()]
    times = pa.array(days) if isinstance(days[0], int) else pa.array(days).cast(arrow_type)
    rows = rows.drop_columns("day").append_column("day", times)
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=900)
    result = jobs.train(job_tables(tmp_path / "rows.parquet", tmp_path, data={"validation_from": bound}), client)
    assert result.rows.read == result.rows.accepted == 3 * DAY_ROWS
    assert result.validation["rows"] == DAY_ROWS
    held_out = rows.filter(pa.array([day >= LAST_DAY.replace("-", "") for day in plain_days(rows)]))
    labels = held_out["label"].to_numpy()
    assert log_loss(result.model.predict(held_out), labels) == pytest.approx(result.validation["log_loss"], rel=1e-6)


def plain_days(rows: pa.Table) -> list[str]:
    """The days as YYYYMMDD, whatever the type of the column."""
    return [str(day).replace("-", "")[:8] for day in rows["day"].to_pylist()]


def test_without_validation_the_last_epoch_is_published(log: Path, client: Client, tmp_path: Path) -> None:
    data = {"validation_from": "", "validation_fraction": 0}
    result = jobs.train(job_tables(log, tmp_path, data=data, training={"early_stopping": True}), client)
    assert result.validation == {}
    assert result.best_epoch == 2
    assert result.rows.accepted == ROWS
    assert "log_loss" not in result.history[0]
    assert len(result.model.predict(read_log(log, LAST_DAY))) == DAY_ROWS


@pytest.mark.parametrize(
    ("bound", "inside", "message"),
    [
        ("2026-11-01", False, r"leaves no shard to train on: day begins at 2026-11-14; choose a later time"),
        ("2027-01-01", False, r"leaves no shard to validate on: day ends at 2026-11-17; choose an earlier time"),
        ("2026-11-01", True, r"leaves no row to train on; choose a later time"),
        ("2027-01-01", True, r"leaves no row to validate on; choose an earlier time"),
    ],
)
def test_a_split_that_leaves_nothing_is_refused(
    log: Path, client: Client, tmp_path: Path, bound: str, inside: bool, message: str
) -> None:
    source = log
    if inside:
        source = tmp_path / "rows.parquet"
        pq.write_table(read_log(log), source)
    with pytest.raises(DataError, match=f"data.validation_from = '{bound}' {message}"):
        jobs.train(job_tables(source, tmp_path, data={"validation_from": bound}), client)
    assert not (tmp_path / "out" / "model").exists()


def test_whole_numbers_in_paths_are_compared_as_numbers(log: Path, client: Client, tmp_path: Path) -> None:
    rows = read_log(log).drop_columns("day")
    for hour in (8, 9, 10, 11):
        folder = tmp_path / "rows" / f"hour={hour}"
        folder.mkdir(parents=True)
        pq.write_table(rows.slice(hour * 100, hour * 100), folder / "part.parquet")
    job = job_tables(tmp_path / "rows", tmp_path, data={"validation_from": 10}, schema={"time": "hour"})
    result = jobs.train(job, client)
    assert result.rows.accepted == 1700
    assert result.validation["rows"] == 2100


def test_rows_that_are_all_bad_are_no_training_data(log: Path, client: Client, tmp_path: Path) -> None:
    rows = with_bad_rows(log, tmp_path / "rows", {("label", row): None for row in range(DAY_ROWS)})
    with pytest.raises(DataError, match=r"all 2000 training rows are bad: .*label is missing"):
        jobs.train(bad_row_job(rows, tmp_path, on_bad_rows="skip", max_bad_fraction=1.0), client)


def test_more_replicas_than_rows_are_refused(log: Path, client: Client, tmp_path: Path) -> None:
    few = log / "day=2026-11-14" / "part-00000.parquet"
    job = job_tables(few, tmp_path, data={"validation_from": ""}, training={"n_replicas": 2000})
    with pytest.raises(DataError, match=r"1000 training rows.*n_replicas = 2000; lower n_replicas"):
        jobs.train(job, client)


# --- when training ends ---------------------------------------------------------------------------------

OVERFITTING = {
    "n_epochs": 8,
    "early_stopping": True,
    "averages_per_epoch": 2,
    "learning_rate": 0.05,
    "schedule": "constant",
    "l2_linear": 0.0,
    "l2_factors": 0.0,
}


def test_early_stopping_publishes_the_parameters_of_the_best_epoch(log: Path, client: Client, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    stopped = jobs.train(job_tables(log, tmp_path, training=OVERFITTING), client, on_event=told.append)
    losses = [event["log_loss"] for event in stopped.history]
    assert 1 < stopped.best_epoch < len(losses) == stopped.best_epoch + 1 < 8
    assert losses[stopped.best_epoch - 1] == min(losses) == stopped.validation["log_loss"]
    assert {"event": "stopped", "epoch": len(losses), "best_epoch": stopped.best_epoch} in told
    short = {**OVERFITTING, "n_epochs": stopped.best_epoch}
    until_best = jobs.train(job_tables(log, tmp_path / "short", training=short), client)
    assert stopped.parameters_sha256 == until_best.parameters_sha256 == stopped.model.parameters_sha256()


def test_validating_after_every_average_tells_each_and_stops_within_an_epoch(
    log: Path, client: Client, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []
    training = {**OVERFITTING, "averages_per_epoch": 4, "validate": "average", "patience": 2}
    result = jobs.train(job_tables(log, tmp_path, training=training), client, on_event=told.append)
    losses = [event["log_loss"] for event in told if event["event"] in ("average", "epoch")]
    assert [event["average"] for event in told if event["event"] == "average"][:3] == [1, 2, 3]
    assert result.validation["log_loss"] == min(losses)
    assert losses.index(min(losses)) < len(losses) - 1


def test_ctrl_c_after_an_epoch_publishes_what_was_best(log: Path, client: Client, tmp_path: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            raise KeyboardInterrupt

    result = jobs.train(job_tables(log, tmp_path, training={"n_epochs": 50}), client, on_event=interrupt)
    assert result.interrupted
    assert result.best_epoch == len(result.history) == 1
    one = jobs.train(job_tables(log, tmp_path / "one", training={"n_epochs": 1}), client)
    assert result.model.parameters_sha256() == one.parameters_sha256


def test_ctrl_c_before_any_epoch_publishes_nothing(log: Path, client: Client, tmp_path: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "prepared":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.train(job_tables(log, tmp_path), client, on_event=interrupt)
    assert not (tmp_path / "out" / "model").exists()


def test_seconds_of_stages_do_not_come_from_a_clock_that_is_set_meanwhile(
    log: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = itertools.count(step=-86_400)
    clock = types.SimpleNamespace(time=lambda: time.time() + next(days), monotonic=time.monotonic)
    for module in (beginning, train):
        monkeypatch.setattr(module, "time", clock)
    told: list[dict[str, Any]] = []
    jobs.train(job_tables(log, tmp_path, training={"n_epochs": 1}), client, on_event=told.append)
    assert all(0 <= event["seconds"] < 3_600 for event in told if event["event"] in ("prepared", "epoch"))


@pytest.mark.parametrize("validate", ["epoch", "average"])
@pytest.mark.parametrize("learning_rate", [1e4, 1e30])
def test_divergence_says_what_to_do(
    log: Path, client: Client, tmp_path: Path, validate: str, learning_rate: float
) -> None:
    training = {"optimizer": "sgd", "learning_rate": learning_rate, "validate": validate}
    with pytest.raises(DivergenceError, match=r"smaller training\.learning_rate"):
        jobs.train(job_tables(log, tmp_path, training=training), client)
    assert not (tmp_path / "out" / "model").exists()


def test_an_existing_model_is_kept_where_overwriting_is_forbidden(log: Path, client: Client, tmp_path: Path) -> None:
    first = jobs.train(job_tables(log, tmp_path, training={"n_epochs": 1}), client)
    with pytest.raises(SettingsError, match=r"output\.overwrite = false; choose another output\.directory"):
        jobs.train(job_tables(log, tmp_path, output={"overwrite": False}), client)
    assert FMModel.load(first.model_url).parameters_sha256() == first.parameters_sha256


# --- bad rows -------------------------------------------------------------------------------------------


def with_bad_rows(log: Path, folder: Path, bad: dict[tuple[str, int], Any]) -> Path:
    """The first day as shards a and b of two row groups of 500; `bad` maps (column, row of both) to a value."""
    rows = read_log(log, "2026-11-14").drop_columns("day")
    columns = {"label": rows["label"].to_pylist(), "I1": [str(n or "") for n in rows["I1"].to_pylist()]}
    for (column, row), value in bad.items():
        columns[column][row] = value
    for name, values in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    folder.mkdir(parents=True)
    pq.write_table(rows.slice(0, 1000), folder / "a.parquet", row_group_size=500)
    pq.write_table(rows.slice(1000), folder / "b.parquet", row_group_size=500)
    return folder


def bad_row_job(rows: Path, output: Path, **data: Any) -> dict[str, dict[str, Any]]:
    chosen = {"validation_from": "", **data}
    return job_tables(rows, output, data=chosen, schema={"time": ""}, training={"n_epochs": 1})


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("I1", 1537), "many", r"b\.parquet, row group 1, row 37: column 'I1': not a number \('many'\)"),
        (("label", 20), 7, r"a\.parquet, row group 0, row 20: column 'label': label is neither 0 nor 1 \(7\)"),
        (("label", 999), None, r"a\.parquet, row group 1, row 499: column 'label': label is missing"),
    ],
)
def test_a_bad_row_stops_the_job_and_is_named(
    log: Path, client: Client, tmp_path: Path, place: tuple[str, int], value: Any, named: str
) -> None:
    rows = with_bad_rows(log, tmp_path / "rows", {place: value})
    with pytest.raises(DataError, match=named + r'.*Repair the row, or set data\.on_bad_rows = "skip"'):
        jobs.train(bad_row_job(rows, tmp_path), client)


def test_skipped_rows_are_counted_exactly(log: Path, client: Client, tmp_path: Path) -> None:
    bad = {("I1", 3): "many", ("I1", 700): "nan", ("I1", 1999): "?", ("label", 4): 2, ("label", 1500): None}
    rows = with_bad_rows(log, tmp_path / "rows", bad)
    told: list[dict[str, Any]] = []
    result = jobs.train(bad_row_job(rows, tmp_path, on_bad_rows="skip"), client, on_event=told.append)
    assert told[-1]["rows"] == {
        "read": DAY_ROWS,
        "trained": DAY_ROWS - 5,
        "rejected": 5,
        "reasons": {
            "I1: not a number": 2,
            "I1: not finite": 1,
            "label: label is missing": 1,
            "label: label is neither 0 nor 1": 1,
        },
    }
    assert result.rows.read == result.rows.accepted + result.rows.rejected
    again = jobs.train(bad_row_job(rows, tmp_path, on_bad_rows="skip"), client)
    assert again.rows == result.rows


def test_too_many_bad_rows_stop_a_job_that_skips(log: Path, client: Client, tmp_path: Path) -> None:
    rows = with_bad_rows(log, tmp_path / "rows", {("I1", row): "many" for row in range(5)})
    with pytest.raises(DataError, match=r"5 of 2000 rows are bad.*max_bad_fraction = 0\.002.*raise data\.max_bad"):
        jobs.train(bad_row_job(rows, tmp_path, on_bad_rows="skip", max_bad_fraction=0.002), client)


def test_rows_skipped_once_stop_the_next_job_that_does_not_skip(log: Path, client: Client, tmp_path: Path) -> None:
    rows = with_bad_rows(log, tmp_path / "rows", {("I1", 3): "many"})
    jobs.train(bad_row_job(rows, tmp_path, on_bad_rows="skip"), client)
    with pytest.raises(DataError, match="row group 0, row 3: column 'I1'"):
        jobs.train(bad_row_job(rows, tmp_path), client)


def test_a_price_of_a_float32_shard_is_the_price_of_a_request(client: Client, tmp_path: Path) -> None:
    """Boundaries of a float32 column are the numbers that its values mean: 0.1 is served as it was trained."""
    rng = np.random.default_rng(0)
    prices = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])
    drawn = rng.integers(0, 6, 3000)
    shard = {"label": drawn % 2, "price": prices[drawn].astype(np.float32), "site": ["s"] * 3000}
    pq.write_table(pa.table(shard), tmp_path / "x.parquet")
    job = {
        "data": {"train": str(tmp_path / "x.parquet")},
        "schema": {"numeric_transform": "quantile"},
        "training": {"n_replicas": 2, "n_epochs": 2},
        "cluster": {"cache": str(tmp_path / "cache")},
        "output": {"directory": str(tmp_path / "out")},
    }
    model = jobs.train(job, client).model
    served = model.predict({"price": prices.tolist(), "site": ["s"] * 6})
    assert len(set(served.tolist())) == 6
    np.testing.assert_array_equal(served, model.predict({"price": prices.astype(np.float32), "site": ["s"] * 6}))
    np.testing.assert_array_equal(served, model.predict({"price": [str(x) for x in prices], "site": ["s"] * 6}))


def test_training_from_python_shows_what_the_command_line_shows_unless_it_is_told_not_to(
    client: Client, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    result = jobs.train(job_tables(log, tmp_path, training={"n_epochs": 1}), client)
    shown = capsys.readouterr().out
    for text in ("to train on", "hashing shards", "train loss", "the model is in"):
        assert text in shown, shown
    day = log / "day=2026-11-17"
    jobs.evaluate(result.model_url, day, client=client, progress=False)
    assert capsys.readouterr().out == ""
    jobs.evaluate(result.model_url, day, client=client)
    assert "evaluating" in capsys.readouterr().out
