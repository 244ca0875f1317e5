"""A cross-validation: every row validates once, or what came before judges what comes after; the same everywhere."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dfm import jobs
from dfm.data.latest import counted_moments, equal_parts, latest_of
from dfm.data.time_split import at_or_after
from dfm.distributed import choosing, folds
from dfm.distributed.folds import Folds
from dfm.distributed.several import train_several
from dfm.errors import DataError, SettingsError
from tests.distributed.test_held_out import N_ROWS, tables_of, write_log

SHORT = {"n_epochs": 2, "tune": "none"}


def test_every_row_validates_once_and_any_cluster_gives_the_same(
    client: Client, two_workers: Client, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log")
    told: list[dict[str, Any]] = []
    tables = tables_of(log, tmp_path / "one", training=SHORT)
    found = jobs.cross_validate(tables, 3, client=client, on_event=told.append)
    assert sum(fold["rows"] for fold in found.folds) == N_ROWS
    assert [event["fold"] for event in told if event["event"] == "fold"] == [1, 2, 3]
    losses = [fold["log_loss"] for fold in found.folds]
    assert found.mean["log_loss"] == pytest.approx(np.mean(losses))
    assert found.spread["log_loss"] == pytest.approx(np.std(losses))
    assert max(losses) < 0.68  # the click rate's is .693
    again = jobs.cross_validate(tables_of(log, tmp_path / "two", training=SHORT), 3, client=two_workers)
    assert again.folds == found.folds
    assert not (tmp_path / "one" / "out").exists()


def test_a_loss_of_ones_own_is_validated_in_folds(client: Client, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log")
    tables = tables_of(log, tmp_path / "one", training=SHORT)
    expected = jobs.cross_validate(tables, 2, client=client)
    found = jobs.cross_validate(tables, 2, client=client, loss=_log_loss)
    assert found.mean["loss"] == pytest.approx(expected.mean["log_loss"], rel=1e-3)
    penalised = jobs.cross_validate(tables, 2, client=client, overrides=["training.l2_linear=1"], regularizer=_cubed)
    assert penalised.mean["log_loss"] != expected.mean["log_loss"]


def _log_loss(score: float, y: float) -> float:
    return math.log(1 + math.exp(score)) - y * score


def _cubed(weight: float) -> float:
    return abs(weight) ** 3


def test_a_fold_by_time_is_a_job_that_ends_where_the_fold_begins(client: Client, tmp_path: Path) -> None:
    hours = np.random.default_rng(6).permutation(np.arange(N_ROWS) // 100)
    log = write_log(tmp_path / "log", hour=hours)
    schema = {"time": "hour"}
    tables = tables_of(log, tmp_path / "folds", schema=schema, training=SHORT)
    found = jobs.cross_validate(tables, 2, by="time", client=client)
    assert [fold["rows"] for fold in found.folds] == [N_ROWS / 3] * 2
    last = tables_of(log, tmp_path / "last", schema=schema, training=SHORT, data={"validation_from": "40"})
    assert jobs.train(last, client).validation["log_loss"] == found.folds[1]["log_loss"]


def test_a_metric_that_a_fold_does_not_have_is_the_mean_of_the_others() -> None:
    found = Folds([{"auc": 0.6, "rows": 10}, {"auc": None, "rows": 20}, {"auc": 0.8, "rows": 30}])
    assert found.mean == {"auc": pytest.approx(0.7), "rows": 20}
    assert found.spread["auc"] == pytest.approx(0.1)
    assert Folds([{"auc": None, "rows": 10}] * 2).mean == {"rows": 10}


def test_the_mean_of_models_is_what_folds_judge(client: Client, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log")
    tables = tables_of(log, tmp_path, training=SHORT)
    one, several = (
        jobs.cross_validate(tables | {"model": {"hash_bits": 12, "n_models": n}}, 2, client=client) for n in (1, 3)
    )
    assert several.folds != one.folds
    assert several.mean["log_loss"] < one.mean["log_loss"] + 0.01
    told: list[dict[str, Any]] = []
    choosing = tables | {"model": {"hash_bits": 12, "choose": "best"}}
    jobs.cross_validate(choosing, 2, client=client, on_event=told.append)
    assert [event["epochs"] for event in told if event["event"] == "fold"] == [2, 2]


@pytest.mark.parametrize("model", [{"choose": "best"}, {"n_models": 2}], ids=["a rival", "several models"])
def test_ctrl_c_ends_it_also_where_a_training_would_publish(
    model: dict[str, Any], client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(choosing, "started_loop", lambda *_: SimpleNamespace(run=interrupted))
    monkeypatch.setattr(folds, "train_several", lambda loops, in_step: train_several(loops, in_step) or True)
    tables = tables_of(write_log(tmp_path / "log"), tmp_path, training=SHORT) | {"model": {"hash_bits": 12, **model}}
    with pytest.raises(KeyboardInterrupt):
        jobs.cross_validate(tables, 2, client=client, on_event=told.append)
    assert "fold" not in [event["event"] for event in told]


@pytest.mark.parametrize(
    ("changes", "n_folds", "by", "message"),
    [
        ({}, 1, "lot", "n_folds = 1 is not legal"),
        ({}, 3, "day", "folds by 'day' are not legal"),
        ({}, 3, "time", "need schema.time"),
        ({"data": {"validation": "x"}}, 3, "lot", "Leave data.validation out"),
        ({"data": {"validation_from": "3"}, "schema": {"time": "when"}}, 3, "lot", "Leave data.validation_from out"),
        (
            {"data": {"validation_fraction": 0.3}},
            3,
            "lot",
            r"Leave data\.validation_fraction out \(--set data\.validation_fraction=auto\)",
        ),
    ],
)
def test_folds_that_cannot_be_are_refused(
    client: Client, tmp_path: Path, changes: dict[str, Any], n_folds: int, by: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        jobs.cross_validate(tables_of(tmp_path, tmp_path, **changes), n_folds, by=by, client=client)


def test_too_few_moments_for_so_many_folds_are_told(client: Client, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", when=[n % 2 for n in range(N_ROWS)])
    with pytest.raises(DataError, match="'when' has too few distinct moments for 4 folds"):
        jobs.cross_validate(tables_of(log, tmp_path, schema={"time": "when"}), 4, by="time", client=client)


@pytest.mark.parametrize(
    ("clicked", "training", "message"),
    [
        (
            (3, 44),
            {"stop_on": "auc"},
            r"^fold \d: auc is not defined .* Ask for fewer folds, or leave training.stop_on",
        ),
        ((3,), {}, r"^fold \d: all \d+ rows to train on are negative: .*, or ask for fewer folds$"),
    ],
)
def test_a_fold_without_rows_of_both_classes_is_named_with_a_way_out_that_folds_have(
    clicked: tuple[int, ...], training: dict[str, Any], message: str, client: Client, tmp_path: Path
) -> None:
    labels = [int(row in clicked) for row in range(80)]
    pq.write_table(pa.table({"a": [row % 5 for row in range(80)], "label": labels}), tmp_path / "rows.parquet")
    tables = tables_of(tmp_path / "rows.parquet", tmp_path, training=SHORT | {"n_replicas": 2} | training)
    tables["schema"] = {"label": "label", "categorical": ["a"]}
    with pytest.raises(SettingsError if training else DataError, match=message):
        jobs.cross_validate(tables, 4, client=client)


@pytest.mark.parametrize("n_parts", [2, 3, 7])
def test_moments_are_cut_into_parts_of_equal_size(n_parts: int) -> None:
    moments = pa.array(np.repeat(np.arange(210), 10))
    cuts = equal_parts(latest_of([counted_moments(moments)], len(moments), "t"), n_parts)
    sizes = np.diff([0, *[2100 - sum(at_or_after(moments, cut, "t").to_pylist()) for cut in cuts], 2100])
    assert sizes.tolist() == [2100 // n_parts] * n_parts
