"""A training that was stopped after any average goes on from there and ends with the bytes of one that was not."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from dfm import jobs
from dfm.distributed import checkpointing, loops, start
from dfm.distributed.cluster.watch import Watch
from dfm.errors import DataError, DivergenceError, RunCancelled, SettingsError
from dfm.kernels.tables import Layout
from dfm.runs import record as runs
from dfm.settings.job import Job
from dfm.training import loop
from dfm.training.checkpoint import CheckpointFolder, Identity
from tests.support.small_jobs import job_tables, stop_after

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several slices a round": {"averages_per_epoch": 4, "later_averages": 2},
    "momentum": {"outer_momentum": 0.5, "merge": "mean"},
    "ftrl": {"optimizer": "ftrl", "learning_rate": 0.1},
    "guarded": {
        "validate": "average", "early_stopping": True, "patience": 1, "rollbacks": 2, "learning_rate": 0.4,
        "l2_linear": 0.0, "l2_factors": 0.0, "n_epochs": 4,
    },
}  # fmt: skip
"""Changes of [training] under which a state has parts that another kind does not have."""


def rounds_and_result(tables: dict[str, Any], client: Client) -> tuple[int, Any]:
    told: list[dict[str, Any]] = []
    result = jobs.train(tables, client, on_event=told.append)
    return sum(event["event"] == "round" for event in told), result


def test_a_checkpoint_of_a_table_of_another_size_is_refused(
    log: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = job_tables(log, tmp_path)
    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop_after(2))
    cut = start.cut_table

    def with_one_more(*arguments: Any) -> tuple[list[int], bool]:
        bounds, cuts_pushes = cut(*arguments)
        return [*bounds[:-1], bounds[-1] + 1], cuts_pushes

    monkeypatch.setattr(start, "cut_table", with_one_more)
    with pytest.raises(SettingsError, match=r"another version of dfm wrote it. Start afresh with --no-resume"):
        jobs.train(tables, client)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_after_every_average_in_turn_it_ends_with_the_same_bytes(
    log: Path, client: Client, two_workers: Client, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    training = {"averages_per_epoch": 3, **KINDS[kind]}
    n_rounds, expected = rounds_and_result(job_tables(log, tmp_path / "whole", training=training), client)
    assert n_rounds >= 6
    tables = job_tables(log, tmp_path / "parts", training=training)
    told: list[dict[str, Any]] = []
    step = 2 if kind == "guarded" else 1  # with validation in between, a state is saved only after it was judged
    for attempt in range(n_rounds + 1):
        stop = stop_after(step)

        def observe(event: dict[str, Any], stop: Any = stop) -> None:
            told.append(event)
            stop(event)

        try:
            result = jobs.train(tables, two_workers if attempt % 2 else client, on_event=observe)
            break
        except RunCancelled:
            continue
    assert attempt >= n_rounds // step - 1
    assert result.parameters_sha256 == expected.parameters_sha256
    assert result.best_epoch == expected.best_epoch
    assert result.validation == expected.validation
    losses = [event["train_log_loss"] for event in expected.history]
    assert [event["train_log_loss"] for event in result.history] == pytest.approx(losses, rel=1e-12)
    resumed = [event for event in told if event["event"] == "resumed"]
    assert len(resumed) == attempt
    assert not (tmp_path / "parts" / "out" / "checkpoint").exists()


def cancelled(tables: dict[str, Any], client: Client, rounds: int = 3) -> None:
    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop_after(rounds))


def resumed_rounds(tables: dict[str, Any], client: Client) -> list[tuple[int, int]]:
    told: list[dict[str, Any]] = []
    jobs.train(tables, client, on_event=told.append)
    return [(event["epoch"], event["round"]) for event in told if event["event"] == "resumed"]


def test_a_run_goes_on_from_the_average_at_which_it_was_stopped(log: Path, client: Client, tmp_path: Path) -> None:
    tables = job_tables(log, tmp_path)
    cancelled(tables, client)
    assert resumed_rounds(tables, client) == [(2, 1)]
    assert resumed_rounds(tables, client) == []


def test_without_resume_a_run_starts_afresh(log: Path, client: Client, tmp_path: Path) -> None:
    tables = job_tables(log, tmp_path)
    cancelled(tables, client)
    assert resumed_rounds(job_tables(log, tmp_path, output={"resume": False}), client) == []


def test_another_job_does_not_go_on_from_a_checkpoint(log: Path, client: Client, tmp_path: Path) -> None:
    cancelled(job_tables(log, tmp_path), client)
    other = job_tables(log, tmp_path, training={"learning_rate": 0.2}, model={"hash_bits": 17})
    with pytest.raises(
        SettingsError, match=r"model\.hash_bits is 17 now and 16 there; training\.learning_rate is 0\.2"
    ):
        jobs.train(other, client)
    assert resumed_rounds(job_tables(log, tmp_path), client) == [(2, 1)]


def test_a_cluster_of_another_size_is_no_other_job(log: Path, client: Client, tmp_path: Path) -> None:
    cancelled(job_tables(log, tmp_path), client)
    other = job_tables(log, tmp_path, cluster={"workers": 7, "threads_per_worker": 2})
    assert resumed_rounds(other, client) == [(2, 1)]


def test_a_damaged_block_is_skipped_for_the_checkpoint_before(
    log: Path, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    expected = jobs.train(job_tables(log, tmp_path / "whole"), client).parameters_sha256
    tables = job_tables(log, tmp_path)
    cancelled(tables, client, rounds=2)
    cancelled(tables, client, rounds=1)
    newest = max((tmp_path / "out" / "checkpoint").glob("round-00000003-block-*"))
    data = newest.read_bytes()
    newest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    told: list[dict[str, Any]] = []
    with caplog.at_level(logging.WARNING):
        result = jobs.train(tables, client, on_event=told.append)
    assert "skipping the damaged checkpoint" in caplog.text
    assert [event["round"] for event in told if event["event"] == "resumed"] == [2]
    assert result.parameters_sha256 == expected


def flip_a_bit(folder: Path, rounds_done: int) -> None:
    block = max((folder / "out" / "checkpoint").glob(f"round-{rounds_done:08d}-block-*"))
    data = block.read_bytes()
    block.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("has_newer", [True, False], ids=["it has gone on", "it has ended"])
def test_a_checkpoint_that_a_run_at_work_took_away_is_not_damaged(
    log: Path, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture, has_newer: bool
) -> None:
    tables = job_tables(log, tmp_path)
    folder, older, newer = (tmp_path / name for name in ("out/checkpoint", "older", "newer"))
    cancelled(tables, client, rounds=1)
    shutil.copytree(folder, older)
    cancelled(tables, client, rounds=2)
    shutil.copytree(folder, newer)
    shutil.rmtree(folder)
    shutil.copytree(older, folder)
    told: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        told.append(event)
        if event["event"] == "prepared":
            for path in folder.iterdir():
                path.unlink()
            for path in newer.glob("round-0000000[23]*") if has_newer else ():
                shutil.copy(path, folder)

    with caplog.at_level(logging.WARNING, "dfm"):
        jobs.train(tables, client, on_event=observe)
    assert [(each["epoch"], each["round"]) for each in told if each["event"] == "resumed"] == [(2, 1)] * has_newer
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_was_damaged_once_is_written_again(
    log: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """The average whose block was damaged is trained again, and later checkpoints name a sound file of it."""
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    training = {"n_epochs": 4}
    expected = jobs.train(job_tables(log, tmp_path / "whole", training=training), client).parameters_sha256
    if elsewhere:
        monkeypatch.setattr("dfm.distributed.cluster.connect.shares_disk", lambda client: False)
    tables = job_tables(log, tmp_path, training=training)
    for rounds in (2, 1, 1):  # where a run ends its state is written; in between a state may be passed over
        cancelled(tables, client, rounds)
    flip_a_bit(tmp_path, 4)
    told: list[dict[str, Any]] = []

    def stop_later(event: dict[str, Any]) -> None:
        told.append(event)
        if event["event"] == "round" and (event["epoch"], event["round"]) == (3, 1):
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        jobs.train(tables, client, on_event=stop_later)
    assert [event["rounds"] for event in told if event["event"] == "resumed"] != []
    result = jobs.train(tables, client, on_event=told.append)
    assert [(each["epoch"], each["round"]) for each in told if each["event"] == "resumed"] == [(2, 1), (3, 1)]
    assert result.parameters_sha256 == expected


def test_a_warm_start_that_was_replaced_since_the_checkpoint_is_refused(
    log: Path, client: Client, tmp_path: Path
) -> None:
    first, second = (
        jobs.train(job_tables(log, tmp_path / name, training={"n_epochs": n}), client).model_url
        for name, n in (("one", 1), ("two", 2))
    )
    latest = tmp_path / "latest"
    shutil.copytree(first, latest)
    tables = job_tables(log, tmp_path, training={"warm_start": str(latest)})
    cancelled(tables, client)
    shutil.rmtree(latest)
    shutil.copytree(second, latest)
    with pytest.raises(SettingsError, match=r"training\.warm_start\.parameters is .* now and .* there.*--no-resume"):
        jobs.train(tables, client)
    shutil.rmtree(latest)
    shutil.copytree(first, latest)
    assert resumed_rounds(tables, client) == [(2, 1)]


def test_a_checkpoint_of_a_run_that_is_at_work_is_not_to_be_deleted(log: Path, client: Client, tmp_path: Path) -> None:
    tables = job_tables(log, tmp_path)
    cancelled(tables, client)
    runs.submitted(Job.from_dict(tables), "night-1")
    other = job_tables(log, tmp_path, model={"seed": 3})
    with pytest.raises(SettingsError, match=r"model\.seed is 3 now.*holds run night-1.*dfm cancel") as refused:
        jobs.train(other, client)
    assert "--no-resume" not in str(refused.value)
    with pytest.raises(SettingsError, match=r"model\.seed is 3 now.*--no-resume"):
        jobs.train(other, client)


def test_shards_that_changed_since_the_checkpoint_are_refused(log: Path, client: Client, tmp_path: Path) -> None:
    copied = tmp_path / "log"
    shutil.copytree(log, copied)
    cancelled(job_tables(copied, tmp_path), client)
    shard = next(copied.glob("day=*/*.parquet"))
    os.utime(shard, (1, 1))
    with pytest.raises(SettingsError, match=r"the shard \S*parquet changed since then.*--no-resume"):
        jobs.train(job_tables(copied, tmp_path), client)


def test_a_training_that_diverged_leaves_no_checkpoint(log: Path, client: Client, tmp_path: Path) -> None:
    wild = {"optimizer": "sgd", "learning_rate": 1e6, "l2_linear": 0.0, "n_epochs": 3}
    with pytest.raises(DivergenceError):
        jobs.train(job_tables(log, tmp_path, training=wild), client)
    assert not (tmp_path / "out" / "checkpoint").exists()
    jobs.train(job_tables(log, tmp_path), client)


def test_never_means_no_checkpoint(log: Path, client: Client, tmp_path: Path) -> None:
    cancelled(job_tables(log, tmp_path, output={"checkpoint_every": "never"}), client)
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_checkpoints_of_epochs_are_made_at_their_last_average(log: Path, client: Client, tmp_path: Path) -> None:
    tables = job_tables(log, tmp_path, output={"checkpoint_every": "epoch"})
    cancelled(tables, client, rounds=3)
    assert resumed_rounds(tables, client) == [(1, 2)]


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(
    log: Path, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        jobs.train(job_tables(log, tmp_path), client)
    assert "no checkpoint after round" in caplog.text


@pytest.mark.parametrize(
    ("client_name", "averages", "n_together"),
    [("client", 4, 1), ("two_workers", 4, 1), ("client", 4, 4), ("two_workers", 4, 4), ("client", 1, 1)],
)
def test_the_lineage_of_blocks_is_cut_without_changing_them(
    log: Path,
    tmp_path: Path,
    client_name: str,
    averages: int,
    n_together: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a whole epoch is one task or round, too, which begins while the one before is judged."""
    own: Client = request.getfixturevalue(client_name)
    training = {"n_epochs": 24 // averages, "averages_per_epoch": averages, "later_averages": averages}
    expected = jobs.train(job_tables(log, tmp_path / "whole", training=training), own).parameters_sha256
    monkeypatch.setattr(loop, "_LONGEST_LINEAGE", 3)
    monkeypatch.setattr(loops, "rounds_together", lambda _run, _prepared, _n_blocks: n_together)
    gc.unfreeze()
    gc.collect()  # errors of other tests may hold futures
    most, before = 0, own.run_on_scheduler(rounds_known)

    def count_rounds(event: dict[str, Any]) -> None:
        nonlocal most
        if event["event"] in ("round", "epoch"):
            most = max(most, own.run_on_scheduler(rounds_known) - before)

    result = jobs.train(job_tables(log, tmp_path, training=training), own, on_event=count_rounds)
    assert result.parameters_sha256 == expected
    assert most <= 3 + 1, "more rounds are remembered than a lineage has"


def rounds_known(dask_scheduler: Any) -> int:
    """Rounds, or stretches of them, that the scheduler would have computed again were their results lost."""
    return sum(key.startswith(("merge_block", "train_rounds")) for key in map(str, dask_scheduler.tasks))


def test_workers_elsewhere_leave_the_writing_of_a_local_folder_to_the_driver(
    log: Path, two_workers: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = jobs.train(job_tables(log, tmp_path / "whole"), two_workers).parameters_sha256
    monkeypatch.setattr("dfm.distributed.cluster.connect.shares_disk", lambda client: False)
    tables = job_tables(log, tmp_path)
    cancelled(tables, two_workers)
    told: list[dict[str, Any]] = []
    result = jobs.train(tables, two_workers, on_event=told.append)
    assert [event["round"] for event in told if event["event"] == "resumed"] == [1]
    assert result.parameters_sha256 == expected


def test_bad_data_found_late_leaves_what_was_trained(log: Path, client: Client, tmp_path: Path) -> None:
    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["epoch"] == 2:
            raise DataError("a shard is gone")

    with pytest.raises(DataError):
        jobs.train(job_tables(log, tmp_path), client, on_event=fail)
    jobs.train(job_tables(log, tmp_path), client)


def test_the_end_of_a_run_does_not_wait_for_workers_that_are_gone(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as nobody,
    ):
        folder = CheckpointFolder(str(tmp_path), "run")
        watch, identity = Watch(nobody, 60.0), Identity({}, ())
        saver = checkpointing.Checkpointer(watch, folder, identity, Layout("sgd", 2), by_workers=True)
        lost = nobody.submit(int, 1, pure=False)
        saver.offer(loop.Snapshot(1, {}, 1, [lost], 0, []))
        while not saver._saving:
            time.sleep(0.01)
        started = time.monotonic()
        saver.close()
        assert time.monotonic() - started < 4 * checkpointing._LAST_WRITE
        assert not saver._thread.is_alive()
