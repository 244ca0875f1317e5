"""Whatever fails after the last average: the model is published, or the same command publishes it without training."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from dfm.distributed import calibrating, checkpointing, choosing, train
from dfm.distributed import publish as publishing
from dfm.distributed.cluster import connect
from dfm.errors import ClusterError, DfmError, DivergenceError, RunCancelled, SupersededError
from dfm.model import fm_model
from dfm.model import folder as model_folder
from dfm.model.fm_model import FMModel
from dfm.runs import record as runs
from dfm.runs.display import Reporter
from dfm.storage import files
from dfm.training import publish, rounds
from dfm.training.checkpoint import CheckpointFolder
from dfm.training.loop import TrainingLoop
from tests.support.small_jobs import job_tables

EPOCHS, ROUNDS = 2, 4
Patch = pytest.MonkeyPatch
Tables = dict[str, dict[str, Any]]


class Fault(Exception):
    """Something that nobody expects."""


def failing(*_: Any, **__: Any) -> Any:
    raise Fault("it broke")


def writing_of(name: str, after: int = 0) -> Callable[[Patch], None]:
    """A store that takes so many files of this name and no more."""

    def break_it(patch: Patch) -> None:
        write, seen = files.write_bytes, []

        def wrapped(url: str, data: bytes, options: files.Options = None) -> None:
            if Path(url).name.startswith(name):
                seen.append(url)
            if len(seen) > after and seen[-1] == url:
                raise OSError(28, f"No space left on device: {url}")
            write(url, data, options)

        patch.setattr(files, "write_bytes", wrapped)

    return break_it


def golden_rows_that_differ(patch: Patch) -> None:
    predict, calls = FMModel.predict, []

    def wrapped(self: FMModel, data: Any) -> Any:
        calls.append(data)
        return predict(self, data) + (len(calls) % 2)

    patch.setattr(FMModel, "predict", wrapped)


def closing_the_cluster(patch: Patch) -> None:
    client_of = connect.client_of

    class Stubborn:
        def __init__(self, *arguments: Any) -> None:
            self.inner = client_of(*arguments)

        def __enter__(self) -> Client:
            return self.inner.__enter__()

        def __exit__(self, *error: Any) -> None:
            self.inner.__exit__(*error)
            raise TimeoutError("the workers do not end")

    patch.setattr(connect, "client_of", Stubborn)


def parameters_that_no_worker_can_put_together(patch: Patch) -> None:
    patch.setattr(rounds, "whole_table", lambda blocks: (_ for _ in ()).throw(MemoryError()))


def last_validation(patch: Patch) -> None:
    judge = TrainingLoop._judge

    def wrapped(self: TrainingLoop, metrics: Any, epoch: int) -> Any:
        return failing() if epoch == EPOCHS else judge(self, metrics, epoch)

    patch.setattr(TrainingLoop, "_judge", wrapped)


PUBLISHED: dict[str, Callable[[Patch], None]] = {
    "golden rows cannot be read": lambda patch: patch.setattr(publish, "_first_good_rows", failing),
    "golden rows cannot be written": lambda patch: patch.setattr(fm_model, "golden_bytes", failing),
    "golden rows come back with other predictions": golden_rows_that_differ,
    "files of earlier models stay": lambda patch: patch.setattr(model_folder, "_checked_name", failing),
    "checkpoints cannot be deleted": lambda patch: patch.setattr(CheckpointFolder, "clear", failing),
    "the cache cannot be pruned": lambda patch: patch.setattr(train, "prune_cache", failing),
    "the cluster does not close": closing_the_cluster,
    "the record cannot be written": writing_of(runs.RECORD, after=1),
    "events cannot be written": writing_of(runs.EVENTS),
}
"""Faults beside the parameters: the run ends well."""

KEPT: dict[str, Callable[[Patch], None]] = {
    "parameters cannot be put together": parameters_that_no_worker_can_put_together,
    "parameters cannot be written": writing_of("parameters-"),
    "the manifest cannot be written": writing_of(model_folder.MANIFEST),
    "the manifest cannot be made": lambda patch: patch.setattr(FMModel, "_manifest", failing),
    "the metadata cannot be told": lambda patch: patch.setattr(publishing, "numbers_found", failing),
    "the fingerprint cannot be taken": lambda patch: patch.setattr(FMModel, "parameters_sha256", failing),
    "the last validation fails": last_validation,
}
"""Faults without which there is no model: the state is kept."""


def told_by(tables: Tables, client: Client, on_event: Any = None) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        told.append(event)
        if on_event is not None:
            on_event(event)

    jobs.train(tables, client, on_event=observe)
    return told


def error_of(tables: Tables, client: Client, fault: Callable[[Patch], None]) -> str:
    """What a run with a fault says in the end, notes included."""
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        with pytest.raises((DfmError, Fault)) as error:
            jobs.train(tables, client)
    return "; ".join([str(error.value), *getattr(error.value, "__notes__", ())])


def n_rounds(told: list[dict[str, Any]]) -> int:
    return sum(event["event"] == "round" for event in told)


@pytest.fixture(scope="module")
def expected(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fingerprint of the job's parameters where nothing fails."""
    return jobs.train(job_tables(log, tmp_path_factory.mktemp("whole")), client).parameters_sha256


@pytest.fixture(scope="module")
def two_models(log: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two models were published, one after the other."""
    folder = tmp_path_factory.mktemp("earlier")
    for seed in (5, 6):
        jobs.train(job_tables(log, folder, model={"seed": seed}, training={"n_epochs": 1}), client)
    return folder


@pytest.fixture
def earlier(log: Path, two_models: Path, tmp_path: Path) -> Tables:
    """The job, in whose place lie two other models already, so that publishing has files to remove."""
    shutil.copytree(two_models, tmp_path, dirs_exist_ok=True)
    return job_tables(log, tmp_path)


def check_published(tables: Tables, expected: str) -> None:
    found = FMModel.load(f"{tables['output']['directory']}/model")
    assert found.parameters_sha256() == expected


@pytest.mark.parametrize("fault", PUBLISHED)
def test_a_fault_beside_the_parameters_is_a_warning(
    fault: str, earlier: Tables, client: Client, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "dfm"):
        PUBLISHED[fault](patch)
        told = told_by(earlier, client)
    assert told[-1]["event"] == "done"
    check_published(earlier, expected)
    assert caplog.messages


@pytest.mark.parametrize("checkpoint_every", ["average", "never"])
@pytest.mark.parametrize("fault", KEPT)
def test_what_cannot_be_published_is_kept_and_published_without_training(
    fault: str, checkpoint_every: str, log: Path, tmp_path: Path, client: Client, expected: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1e-9)  # but for the first, checkpoints wait for their time
    tables = job_tables(log, tmp_path, output={"checkpoint_every": checkpoint_every})
    for _ in range(2):  # a second failure does not cost what the first one kept
        assert "the same command publishes the model without training again" in error_of(tables, client, KEPT[fault])
        record = runs.read_run(tables["output"]["directory"])
        assert record is not None
        assert record.state == "failed"
        assert "without training again" in str(record.error)
    told = told_by(tables, client)
    assert n_rounds(told) == 0
    check_published(tables, expected)
    history = json.loads((tmp_path / "out" / "model" / model_folder.MANIFEST).read_text())["metadata"]["history"]
    assert [event["epoch"] for event in history] == [1, 2]


@pytest.mark.parametrize("kind", ["round", "epoch", "saved", "done"])
def test_an_observer_that_fails_at_the_end_costs_no_training(
    kind: str, log: Path, tmp_path: Path, client: Client, expected: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1e-9)
    tables, seen = job_tables(log, tmp_path), []

    def observe(event: dict[str, Any]) -> None:
        seen.append(event["event"])
        last = {"round": ROUNDS, "epoch": EPOCHS, "saved": 1, "done": 1}[kind]
        if event["event"] == kind and seen.count(kind) == last:
            raise Fault("it broke")

    with pytest.raises(Fault):
        jobs.train(tables, client, on_event=observe)
    if kind in ("saved", "done"):
        record = runs.read_run(tables["output"]["directory"])
        assert record is not None
        assert (record.state, record.parameters_sha256) == ("finished", expected)
    else:
        assert n_rounds(told_by(tables, client)) == 0
    check_published(tables, expected)


@pytest.mark.parametrize(
    ("module", "judge"),
    [(choosing, "started_loop"), (calibrating, "fitted"), (calibrating, "gain_of"), (publishing, "Diagnosis")],
)
def test_ctrl_c_while_a_trained_model_is_judged_publishes_it_and_the_same_command_judges_it_to_the_end(
    module: Any, judge: str, log: Path, tmp_path: Path, client: Client, monkeypatch: Patch
) -> None:
    def interrupts(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1e-9)
    tables = job_tables(log, tmp_path, model={"calibration": "platt", "choose": "best"})
    with monkeypatch.context() as patch:
        patch.setattr(module, judge, interrupts)
        first = jobs.train(tables, client)
    assert first.interrupted
    known = FMModel.load(first.model_url).metadata
    assert ("choice" in known) == (judge != "started_loop")
    assert (known["calibration"]["reason"] == "training was interrupted") == (judge != "Diagnosis")
    assert known["diagnosis"] == []
    told = told_by(tables, client)
    assert n_rounds(told) == 0
    assert not told[-1]["interrupted"]
    assert {"chosen", "calibrated", "diagnosis"} < {event["event"] for event in told}
    assert not (tmp_path / "out" / "checkpoint").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunCancelled("enough")], ids=["a signal", "a request"])
def test_a_run_that_is_told_to_stop_while_its_report_is_made_ends_well_without_it(
    error: BaseException, log: Path, tmp_path: Path, client: Client, expected: str,
    caplog: pytest.LogCaptureFixture, monkeypatch: Patch,
) -> None:  # fmt: skip
    def told_to_stop(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(train, "write_page", told_to_stop)
    tables = job_tables(log, tmp_path)
    with caplog.at_level(logging.WARNING, "dfm"):
        told = told_by(tables, client)
    assert (told[-1]["event"], told[-1]["report"], told[-1]["interrupted"]) == ("done", "", False)
    assert caplog.messages == ["the model is published; its report could not be written: the run was told to stop"]
    record = runs.read_run(tables["output"]["directory"])
    assert record is not None
    assert (record.state, record.error, record.parameters_sha256) == ("finished", None, expected)
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_driver_that_dies_while_its_report_is_made_has_told_its_model_and_goes_on_from_its_checkpoint(
    log: Path, tmp_path: Path, client: Client, expected: str, monkeypatch: Patch
) -> None:
    class Killed(BaseException):
        pass

    tables = job_tables(log, tmp_path)
    seen: list[runs.RunRecord | None] = []

    def dies(*_: Any, **__: Any) -> str:
        deadline = time.monotonic() + 30
        while not seen or ((seen[-1] is None or not seen[-1].model) and time.monotonic() < deadline):
            seen.append(runs.read_run(tables["output"]["directory"]))
            time.sleep(0.05)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_page", dies)
        with pytest.raises(Killed):
            jobs.train(tables, client)
    assert seen[-1] is not None
    assert (seen[-1].state, seen[-1].parameters_sha256) == ("running", expected)
    assert seen[-1].validation
    told = told_by(tables, client)
    assert "resumed" in [event["event"] for event in told]
    assert n_rounds(told) < ROUNDS
    check_published(tables, expected)


def test_an_interruption_says_what_was_kept_and_blames_no_disk_where_nothing_was_there_to_keep(
    log: Path, tmp_path: Path, client: Client
) -> None:
    def notes_of(checkpoint_every: str) -> list[str]:
        tables = job_tables(log, tmp_path / checkpoint_every, output={"checkpoint_every": checkpoint_every})
        with pytest.raises(KeyboardInterrupt) as error:
            jobs.train(tables, client, on_event=interrupts)
        record = runs.read_run(tables["output"]["directory"])
        assert record is not None
        assert record.error is not None
        assert [record.error["message"]] == error.value.__notes__
        return list(error.value.__notes__)

    def interrupts(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            raise KeyboardInterrupt

    kept = "what was trained is kept as a checkpoint: the same command goes on from there"
    assert (notes_of("average"), notes_of("epoch")) == ([kept], ["there was nothing to keep yet"])


def test_a_run_whose_folder_another_took_over_is_given_no_other_advice(
    log: Path, tmp_path: Path, client: Client, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(checkpointing, "LARGEST_SHARE", 1.0)
    tables, folder = job_tables(log, tmp_path, training={"n_epochs": 4}), tmp_path / "out" / "checkpoint"

    def another_one_writes(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            time.sleep(0.3)  # what was offered is written
            mine = sorted(folder.glob("round-*.json"))
            if mine and mine[-1].name != "round-00000099.json":
                shutil.copy(mine[-1], folder / "round-00000099.json")

    with pytest.raises(ClusterError) as error:
        jobs.train(tables, client, on_event=another_one_writes)
    assert str(error.value).endswith("This one stops; let the other finish, or give each its own directory")
    assert not hasattr(error.value, "__notes__")


def test_a_run_in_whose_place_another_one_published_leaves_no_checkpoint_to_the_next_job_there(
    log: Path, tmp_path: Path, client: Client
) -> None:
    tables = job_tables(log, tmp_path)
    checkpoints = files.join(tables["output"]["directory"], "checkpoint")

    def overtaken(event: dict[str, Any]) -> None:
        if event["event"] == "publishing":
            deadline = time.monotonic() + 60
            while not files.names_in(checkpoints):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            raise SupersededError("run night-2 has taken the place of run night-1")

    with pytest.raises(SupersededError, match="the place of run night-1"):
        jobs.train(tables, client, on_event=overtaken)
    assert not files.names_in(checkpoints)


def test_a_run_that_stopped_early_is_published_without_training(log: Path, tmp_path: Path, client: Client) -> None:
    training = {"validate": "average", "early_stopping": True, "patience": 1, "learning_rate": 0.4, "n_epochs": 4}
    whole = jobs.train(job_tables(log, tmp_path / "whole", training=training), client)
    assert len(whole.history) < 4
    tables = job_tables(log, tmp_path / "kept", training=training)
    assert "without training again" in error_of(tables, client, writing_of("parameters-"))
    assert n_rounds(told_by(tables, client)) == 0
    check_published(tables, whole.parameters_sha256)


def test_parameters_that_are_no_numbers_are_not_published(
    log: Path, tmp_path: Path, client: Client, monkeypatch: Patch
) -> None:
    whole = rounds.whole_table

    def poisoned(blocks: Any) -> Any:
        table = whole(blocks)
        table.linear[0, 0] = float("nan")
        return table

    monkeypatch.setattr(rounds, "whole_table", poisoned)
    with pytest.raises(DivergenceError, match="no longer finite; try a smaller"):
        jobs.train(job_tables(log, tmp_path), client)
    assert not (tmp_path / "out" / "model").exists()
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_terminal_that_is_gone_does_not_end_the_work(caplog: pytest.LogCaptureFixture) -> None:
    class Gone:
        is_terminal = is_jupyter = False

        def print(self, *_: Any, **__: Any) -> None:
            raise SystemExit(1)

    shown = Reporter(Gone())  # type: ignore[arg-type]  # as much of a console as is used
    with caplog.at_level(logging.WARNING, "dfm"):
        for epoch in (1, 2):
            shown({"event": "stopped", "epoch": epoch, "best_epoch": 1})
    assert caplog.messages == ["nothing more is shown (nobody reads the output); the work goes on"]
