"""A job that goes on from yesterday's model: ahead of a cold start, same bytes on any cluster, told in its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed.train import TrainResult
from dfm.errors import RunCancelled, SettingsError
from dfm.model.fm_model import FMModel
from dfm.model.folder import read_manifest
from dfm.settings.tables import TrainingSettings
from tests.support.small_jobs import FIRST_DAY, LAST_DAY, job_tables, read_log

EPOCH = {"n_epochs": 1, "schedule": "constant"}


@pytest.fixture(scope="module")
def yesterday(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A model of the first three days."""
    return jobs.train(job_tables(log, tmp_path_factory.mktemp("yesterday"), training=EPOCH), client)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose cache all runs of today share."""
    return tmp_path_factory.mktemp("today")


def today(log: Path, work: Path, client: Client, name: str, validates: bool = True, **training: Any) -> TrainResult:
    """One epoch on the third day alone, validated on the fourth, or on none."""
    data: dict[str, Any] = {"train": [str(log / f"day={day}") for day in ("2026-11-16", LAST_DAY)[: 1 + validates]]}
    data |= {} if validates else {"validation_from": "", "validation_fraction": 0.0}
    output = {"directory": str(work / name)}
    return jobs.train(job_tables(log, work, data=data, training={**EPOCH, **training}, output=output), client)


def test_a_warm_start_is_ahead_of_a_cold_one(log: Path, work: Path, client: Client, yesterday: TrainResult) -> None:
    cold = today(log, work, client, "cold")
    warm = today(log, work, client, "warm", warm_start=yesterday.model_url)
    assert warm.validation["log_loss"] < cold.validation["log_loss"] - 0.005
    assert warm.history[0]["train_log_loss"] < cold.history[0]["train_log_loss"]
    origin = read_manifest(warm.model_url)["metadata"]["warm_start"]
    assert origin["model"] == yesterday.model_url
    assert origin["sha256"] == read_manifest(yesterday.model_url)["files"]["parameters"]["sha256"]
    assert read_manifest(cold.model_url)["metadata"]["warm_start"] == {}


def test_to_forget_everything_is_a_cold_start(log: Path, work: Path, client: Client, yesterday: TrainResult) -> None:
    cold = today(log, work, client, "cold again")
    forgotten = today(log, work, client, "forgotten", warm_start=yesterday.model_url, warm_start_decay=1.0)
    assert forgotten.parameters_sha256 == cold.parameters_sha256


def test_two_workers_give_the_bytes_of_one(
    log: Path, work: Path, client: Client, two_workers: Client, yesterday: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfm.distributed.start._BLOCK_BYTES", 1 << 12)  # several blocks
    options = {"warm_start": yesterday.model_url, "warm_start_decay": 0.3}
    one = today(log, work, client, "one", **options)
    two = today(log, work, two_workers, "two", **options)
    assert one.parameters_sha256 == two.parameters_sha256


def test_a_start_that_no_epoch_beats_is_published_and_told(
    log: Path, work: Path, client: Client, yesterday: TrainResult
) -> None:
    told: list[dict[str, Any]] = []
    data = {"train": [str(log / f"day={day}") for day in ("2026-11-16", LAST_DAY)]}
    training = {"n_epochs": 2, "warm_start": yesterday.model_url, "warm_start_decay": 0.0, "learning_rate": 0.8}
    output = {"directory": str(work / "spoilt")}
    tables = job_tables(log, work, data=data, training=training, output=output)
    result = jobs.train(tables, client, on_event=told.append)
    assert (result.best_epoch, len(result.history)) == (0, 2)
    (start,) = [event for event in told if event["event"] == "start"]
    metadata = read_manifest(result.model_url)["metadata"]
    assert metadata["warm_start"]["validation"]["log_loss"] == start["log_loss"] == result.validation["log_loss"]
    assert [finding["kind"] for finding in metadata["diagnosis"]].count("nothing-new") == 1
    earlier, later = yesterday.model, result.model
    _, theirs, ours = np.intersect1d(earlier.vocabulary.ids, later.vocabulary.ids, return_indices=True)
    assert len(theirs) == earlier.vocabulary.n_features
    then, now = (sums_of_slopes(each) for each in (earlier, later))
    assert now.sum() == pytest.approx(then.sum(), rel=1e-4)  # nothing was learnt, and nothing forgotten
    np.testing.assert_array_equal(later.table.linear_weights[ours], earlier.table.linear_weights[theirs])


def sums_of_slopes(model: FMModel) -> np.ndarray:
    """By column, the growth of the linear weights' accumulators that a model hands on, of all entries."""
    per_entry = np.array(model.metadata["accumulators"]["by_field"]["linear"][0])
    return per_entry * np.bincount(model.vocabulary.fields, model.vocabulary.counts, len(per_entry))


def test_epochs_of_a_night_forget_nothing_of_the_nights_before(
    log: Path, work: Path, client: Client, yesterday: TrainResult
) -> None:
    """Four epochs over today's rows count as one; what was known before today's first row counts as it did."""
    more = {"warm_start": yesterday.model_url, "n_epochs": 4}
    nights = [today(log, work, client, name, validates=False, **kind) for name, kind in (("4", more), ("1", {}))]
    then, now, alone = (sums_of_slopes(each.model) for each in (yesterday, *nights))
    kept = 0.75 * (1 - TrainingSettings().warm_start_decay) * then
    assert (now > kept).all()
    np.testing.assert_allclose(now.sum(), (kept + alone).sum(), rtol=0.15)


@pytest.mark.parametrize("is_integer_first", [True, False])
def test_a_column_whose_text_has_zeros_in_front_goes_on_from_integers_and_a_warning_tells_where_it_cannot(
    work: Path, client: Client, caplog: pytest.LogCaptureFixture, is_integer_first: bool
) -> None:
    """A night of `dfm convert` has whole numbers alone, the next one an `x0` among them."""
    folder, rng = work / f"users {is_integer_first}", np.random.default_rng(5)
    folder.mkdir()
    users, label = rng.integers(1, 60, 2000), rng.integers(0, 2, 2000)
    texts = [f"{user:05}" for user in users[:-1]] + ["x0"]
    columns = [pa.array(users), pa.array(texts)]
    url, models = "", []
    for night, column in enumerate(columns if is_integer_first else columns[::-1]):
        pq.write_table(pa.table({"label": label, "user": column}), folder / f"{night}.parquet")
        data = {"train": str(folder / f"{night}.parquet"), "validation_from": ""}
        schema = {"time": "", "numeric": [], "categorical": ["user"]}
        output = {"directory": str(folder / f"out {night}")}
        training = {**EPOCH, "warm_start": url}
        tables = job_tables(folder, work, data=data, schema=schema, training=training, output=output)
        caplog.clear()
        models.append(jobs.train(tables, client).model)
        url = output["directory"] + "/model"
    known = np.isin(models[0].vocabulary.ids, models[1].vocabulary.ids).mean()
    if is_integer_first:
        assert known > 0.95
        assert models[1].schema.integers == ("user",)
        assert "start afresh" not in caplog.text
    else:
        assert "does not know that values of user are integers" in caplog.text
        assert "those with zeros in front (06) start afresh" in caplog.text


def test_values_that_do_not_come_today_fade_and_are_forgotten_one_day(
    log: Path, work: Path, client: Client, yesterday: TrainResult
) -> None:
    """Nights without a value halve what is known of it, weights and occurrences, until it counts too little."""
    known, told = yesterday.model, list[dict[str, Any]]()
    data = {"train": str(log / f"day={LAST_DAY}"), "validation_from": ""}
    seen = hashed_of_day(log, work, client, LAST_DAY)
    gone = ~np.isin(known.vocabulary.ids, seen)
    gone[known.vocabulary.rare] = False
    url, counts = yesterday.model_url, known.vocabulary.counts
    for night in (1, 2, 3):
        training = {**EPOCH, "warm_start": url, "warm_start_decay": 0.5}
        output = {"directory": str(work / f"night {night}")}
        tables = job_tables(log, work, data=data, training=training, output=output)
        result = jobs.train(tables, client, on_event=told.append)
        url, model = result.model_url, result.model
        stay = np.isin(known.vocabulary.ids, model.vocabulary.ids) & gone
        _, theirs, ours = np.intersect1d(known.vocabulary.ids[stay], model.vocabulary.ids, return_indices=True)
        assert stay[gone & (counts >= 4)].all()
        assert not stay[gone & (counts < 3)].any()
        now = np.zeros_like(counts)
        now[np.flatnonzero(stay)[theirs]] = model.vocabulary.counts[ours]
        assert np.abs(now[stay] - counts[stay] / 2).max() == 0.5  # up or down by lot
        counts = now
        weights = known.table.linear_weights[stay][theirs] * np.float32(0.5**night)
        np.testing.assert_allclose(model.table.linear_weights[ours], weights, rtol=1e-5)
        event = [event for event in told if event["event"] == "vocabulary"][-1]
        assert event["earlier_features"] == np.count_nonzero(stay)
        assert event["distinct_features"] == len(seen) + np.count_nonzero(stay)


def hashed_of_day(log: Path, work: Path, client: Client, day: str) -> np.ndarray:
    """The indices of all values of a day."""
    data = {"train": str(log / f"day={day}"), "validation_from": ""}
    tables = job_tables(log, work, data=data, model={"min_count": 1}, training=EPOCH)
    tables["output"] = {"directory": str(work / f"all values of {day}")}
    return jobs.train(tables, client).model.vocabulary.ids


def test_the_diagnosis_of_a_night_is_of_its_own_rows(
    log: Path, work: Path, client: Client, yesterday: TrainResult
) -> None:
    """A column that is broken today had many values in the nights before."""
    rows = read_log(log, LAST_DAY)
    rows = rows.set_column(rows.schema.get_field_index("C1"), "C1", pa.array(["broken"] * rows.num_rows))
    folder = work / "broken" / f"day={LAST_DAY}"
    folder.mkdir(parents=True)
    pq.write_table(rows.drop_columns(["day"]), folder / "part.parquet")
    told: list[dict[str, Any]] = []
    data = {"train": str(work / "broken"), "validation_from": ""}
    training = {**EPOCH, "warm_start": yesterday.model_url}
    tables = job_tables(log, work, data=data, training=training, output={"directory": str(work / "broken out")})
    jobs.train(tables, client, on_event=told.append)
    (diagnosis,) = [event for event in told if event["event"] == "diagnosis"]
    assert ("one-value", "C1") in [(each["kind"], each["column"]) for each in diagnosis["findings"]]


def test_values_that_earlier_nights_taught_are_not_unknown_for_coming_once(client: Client, tmp_path: Path) -> None:
    """A night has one row of each user, whom the model knows, and sessions that come once in all."""
    findings: dict[str, list[tuple[str, str]]] = {}
    rng, start = np.random.default_rng(0), {}
    for name, n_rows in (("before", 1_500), ("night", 300)):
        columns = {
            "user": [f"u{number % 300}" for number in range(n_rows)],
            "session": [f"{name} {number}" for number in range(n_rows)],
            "click": rng.integers(0, 2, n_rows),
        }
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        told: list[dict[str, Any]] = []
        tables = {
            "data": {"train": str(tmp_path / f"{name}.parquet")},
            "schema": {"label": "click", "categorical": ["user", "session"]},
            "model": {"hash_bits": 22},
            "training": {"n_epochs": 1, "n_replicas": 2, **start},
            "output": {"directory": str(tmp_path / name), "report": False},
            "cluster": {"cache": str(tmp_path / "cache")},
        }
        start = {"warm_start": jobs.train(tables, client, on_event=told.append).model_url}
        found = [each for event in told if event["event"] == "diagnosis" for each in event["findings"]]
        findings[name] = [(each["kind"], each["column"]) for each in found if each["column"]]
    assert findings["before"] == findings["night"] == [("never-seen-twice", "session")]


def test_a_checkpoint_of_another_rule_for_earlier_features_is_refused(
    log: Path, work: Path, client: Client, yesterday: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_an_epoch(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise RunCancelled("asked to stop")

    training = {"n_epochs": 3, "warm_start": yesterday.model_url}
    data = {"train": str(log / f"day={LAST_DAY}"), "validation_from": ""}
    tables = job_tables(log, work, data=data, training=training, output={"directory": str(work / "rule")})
    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop_at_an_epoch)
    monkeypatch.setattr("dfm.model.warm_start._COUNTS_ON", "another")
    with pytest.raises(SettingsError, match=r"belongs to another job: training.warm_start.statistics"):
        jobs.train(tables, client)


def test_accumulators_go_on_where_they_stood(log: Path, work: Path, client: Client, yesterday: TrainResult) -> None:
    """Without what the earlier model remembers of them, the same night steps further."""
    known = read_manifest(yesterday.model_url)["metadata"]["accumulators"]
    assert known["optimizer"] == "adagrad"
    assert all(value > 0 for value in (*known["by_field"]["linear"][0], *known["by_field"]["factors"][0]))
    remembering = today(log, work, client, "remembering", warm_start=yesterday.model_url)
    forgetful = work / "forgetful start"
    shutil.copytree(yesterday.model_url, forgetful)
    manifest = json.loads((forgetful / "model.json").read_text())
    del manifest["metadata"]["accumulators"]
    (forgetful / "model.json").write_text(json.dumps(manifest))
    afresh = today(log, work, client, "afresh", warm_start=str(forgetful))
    by_row = today(log, work, client, "by row", warm_start=yesterday.model_url, optimizer="adagrad-row")

    came = hashed_of_day(log, work, client, "2026-11-16")

    def way(result: TrainResult) -> float:
        """How far the weights of today's values that both models have went from where they began."""
        earlier, later = yesterday.model, result.model
        known = np.intersect1d(earlier.vocabulary.ids, came)
        _, theirs, ours = np.intersect1d(known, later.vocabulary.ids, return_indices=True)
        theirs = np.flatnonzero(np.isin(earlier.vocabulary.ids, known[theirs]))
        theirs, ours = theirs[np.argsort(earlier.vocabulary.ids[theirs])], ours
        start = (1 - TrainingSettings.warm_start_decay) * earlier.table.linear_weights[theirs]
        return float(np.abs(later.table.linear_weights[ours] - start).mean())

    assert way(remembering) < 0.9 * way(afresh)
    assert way(by_row) > way(remembering)  # sums of another optimizer are none of its own


def test_numbers_keep_the_buckets_of_the_earlier_model(log: Path, work: Path, client: Client) -> None:
    quantiles = {"numeric_transform": "quantile", "quantile_buckets": 8}
    first = jobs.train(
        job_tables(
            log,
            work,
            data={"train": str(log / f"day={FIRST_DAY}"), "validation_from": ""},
            schema=quantiles,
            training=EPOCH,
            output={"directory": str(work / "quantiles")},
        ),
        client,
    )
    second = jobs.train(
        job_tables(
            log,
            work,
            schema=quantiles,
            training={**EPOCH, "warm_start": first.model_url},
            output={"directory": str(work / "quantiles again")},
        ),
        client,
    )
    assert second.model.statistics == first.model.statistics


def test_another_hashing_is_refused_before_any_row_is_read(
    log: Path, work: Path, client: Client, yesterday: TrainResult
) -> None:
    events: list[dict[str, Any]] = []
    tables = job_tables(log, work, model={"hash_bits": 15}, training={"warm_start": yesterday.model_url})
    with pytest.raises(SettingsError, match=r"hash_bits = 15, but .* has 16"):
        jobs.train(tables, client, on_event=events.append)
    assert not events
