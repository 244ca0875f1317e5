"""How a run stands, for people: their own clock, the share that is done, the time that is left, at 80 columns."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dfm.cli import runs, standing
from dfm.cli.app import main
from dfm.errors import DataError
from dfm.events import faults_of
from dfm.runs import outcome
from dfm.runs.log import RunLog
from dfm.runs.record import RunRecord, now, write_run
from dfm.settings.job import Job
from tests.support.command_line import Run

RUNNING: dict[str, Any] = {
    "event": "epoch",
    "epochs": 5,
    "epoch": 3,
    "round": 1,
    "rounds": 4,
    "rows": 1_000_000,
    "rows_per_second": 10_000.0,
    "metrics": {"log_loss": 0.41939123, "auc": 0.82},
}


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock one hour ahead of UTC."""
    monkeypatch.setenv("TZ", "CET-1CEST")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_moments_are_local_and_whole_seconds() -> None:
    assert standing.local_time("2026-11-26T16:15:02.917+00:00") == "2026-11-26 17:15:02"
    assert standing.local_time("") == ""


@pytest.mark.parametrize(
    ("changes", "share", "seconds"),
    [
        ({}, 0.45, 275.0),
        ({"round": 4}, 0.6, 200.0),
        ({"epoch": 5, "round": 4}, 1.0, 0.0),
        ({"round": None, "rounds": None}, 0.6, 200.0),
        ({"rows": {"read": 7, "trained": 500_000, "rejected": 3}}, 0.45, 137.5),
        ({"rows_per_second": None}, 0.45, None),
        ({"epochs": None}, None, None),
        ({"epoch": None}, None, None),
    ],
)
def test_share_and_time_left(changes: dict[str, Any], share: float | None, seconds: float | None) -> None:
    progress = {key: value for key, value in {**RUNNING, **changes}.items() if value is not None}
    assert standing.share_done(progress) == (None if share is None else pytest.approx(share))
    assert standing.seconds_left(progress) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (275, "4 min 35 s"), (1800, "30 min"), (7500, "2 h 5 min")],
)
def test_durations_have_two_units_at_most(seconds: float, words: str) -> None:
    assert standing.duration(seconds) == words


def test_words_of_progress() -> None:
    assert standing.done_and_left("running", RUNNING) == "45%, 4 min 35 s left"
    assert standing.done_and_left("running", {"stage": "hash", "done": 30, "total": 90}) == "hash 33%"
    assert standing.done_and_left("finished", RUNNING) == ""
    assert standing.metric_of({"progress": RUNNING}) == "log_loss 0.41939, epoch 3"
    assert standing.metric_of({"progress": RUNNING, "validation": {}}) == "log_loss 0.41939, epoch 3"
    assert standing.metric_of({"progress": {}}) == standing.metric_of({}) == ""


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """A running one, as its driver left it in `tmp_path`."""
    made = RunRecord(
        "20261126-171500-abc123", "running", "f" * 64, "0.1", "elsewhere", 7, "tcp://s:8786",
        submitted=now(), started=now(), updated=now(), progress=RUNNING,
    )  # fmt: skip
    write_run(str(tmp_path), made)
    return made


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["dfm", *arguments])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 0
    return capsys.readouterr().out


def test_a_list_has_two_lines_a_run_and_json_keeps_every_digit(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = shown(monkeypatch, capsys, "list", str(tmp_path)).splitlines()
    assert first == f"{record.run_id}  running  45%, 4 min 35 s left  log_loss 0.41939, epoch 3"
    assert len(first) > 70
    assert second == f"    {standing.local_time(record.updated)}  {tmp_path}"
    event = json.loads(shown(monkeypatch, capsys, "list", str(tmp_path), "--json"))
    assert event["progress"] == RUNNING
    assert event["updated"] == record.updated


@pytest.mark.parametrize("best", [2, 0, None])
def test_a_list_tells_the_metric_of_the_model_that_was_published_and_not_of_the_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], best: int | None
) -> None:
    """Of a best epoch, of a warm start that none beat, and of a driver that does not say which it was."""
    done = {"event": "done", "model": "m", "parameters_sha256": "", "validation": {"log_loss": 0.35592}, "rows": {}}
    job = Job.from_dict({"data": {"train": "x"}, "output": {"directory": str(tmp_path)}})
    with RunLog(job) as log:
        log.on_event({"event": "epoch", "epoch": 4, "log_loss": 0.47298})
        log.on_event(done if best is None else {**done, "best_epoch": best})
    told = "log_loss 0.35592" + ("" if best is None else f", epoch {best}")
    assert shown(monkeypatch, capsys, "list", str(tmp_path)).splitlines()[0].endswith(f"  {told}")


def test_a_status_fits_80_columns(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(monkeypatch, capsys, "status", str(tmp_path))
    assert max(map(len, out.splitlines())) <= 80
    assert "45%, 4 min 35 s left, epoch 3 of 5, average 1 of 4" in " ".join(out.replace("│", " ").split())
    assert standing.local_time(record.started) in out
    assert "+00:00" not in out
    assert "0.41939" in out


def test_a_record_knows_how_many_epochs_there_are(tmp_path: Path) -> None:
    job = Job.from_dict({"data": {"train": "x"}, "output": {"directory": str(tmp_path)}, "training": {"n_epochs": 7}})
    with RunLog(job) as log:
        assert log.record.progress["epochs"] == 7
        log.on_event({"event": "plan", "rows": 5, "epochs": 6})
        assert log.record.progress["epochs"] == 6
        log.on_event({"event": "plateau", "epoch": 2, "to_epoch": 1, "epochs": 2})
        assert log.record.progress["epochs"] == 6
        log.on_event({"event": "done", "model": "m", "parameters_sha256": "", "validation": {}, "rows": {}})


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_place_without_a_run_is_refused(run: Run, tmp_path: Path, command: str) -> None:
    code, out, err = run(command, tmp_path / "typo")
    assert (code, out) == (2, "")
    assert f"there is no record of a run in {tmp_path}/typo; check the path" in err


def test_a_program_that_asks_for_a_run_which_is_yet_to_begin_reads_that_it_is_unknown(run: Run, tmp_path: Path) -> None:
    code, out, err = run("status", tmp_path / "later", "--json")
    assert code == 2
    found = json.loads(out)
    assert faults_of(found) == []
    assert (found["event"], found["state"]) == ("status", "unknown")
    assert "check the path" in err


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_run_whose_place_another_took_is_not_taken_for_that_one(
    record: RunRecord, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(runs, "_runs_of", lambda *_: {"first": str(tmp_path)})
    code, out, err = run(command, "first", "--scheduler", "tcp://s:8786")
    assert (code, out) == (2, "")
    assert f"there is no record of run first in {tmp_path}; the record there is of run {record.run_id}" in err
    assert not (tmp_path / "cancel.json").exists()


@pytest.mark.parametrize("command", [("status", "--wait"), ("logs", "--follow")])
def test_who_waits_for_a_run_is_told_once_where_there_is_none_yet(
    run: Run, tmp_path: Path, command: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begins(_seconds: float) -> None:
        record = RunRecord("run-1", "cancelled", updated=now(), error={"message": "enough"})
        write_run(str(tmp_path / "later"), record)

    monkeypatch.setattr(outcome.time, "sleep", begins)
    code, _, err = run(command[0], tmp_path / "later", command[1])
    assert code == 7
    assert err.splitlines()[0] == f"no record of a run in {tmp_path}/later yet; waiting"
    assert err.count("waiting") == 1
    assert "waiting" not in run(command[0], tmp_path / "later", command[1])[2]


def test_a_list_of_a_place_that_is_not_there_says_so(run: Run, tmp_path: Path) -> None:
    code, out, err = run("list", tmp_path / "typo", tmp_path)
    assert (code, out) == (0, "")
    assert err.splitlines()[0] == f"passed over: there is nothing at {tmp_path}/typo; check the path"


def test_a_list_of_a_place_without_runs_says_how_deep_it_looked(record: RunRecord, run: Run, tmp_path: Path) -> None:
    (tmp_path / "models/dag/task").mkdir(parents=True)
    (tmp_path / "run.json").rename(tmp_path / "models/dag/task/run.json")
    code, out, err = run("list", tmp_path / "models")
    assert (code, out) == (0, "")
    assert err.startswith(f"no runs in or directly below {tmp_path}/models; name the folder that they are in")
    assert err.endswith("(Airflow's: models/DAG/TASK)\n")
    for folder in ("models/dag", "models/dag/task"):
        code, out, err = run("list", tmp_path / folder)
        assert out.startswith(record.run_id)
        assert err == ""


def test_the_end_of_a_run_is_told_once(run: Run, tmp_path: Path) -> None:
    job = Job.from_dict({"data": {"train": "x"}, "output": {"directory": str(tmp_path / "out")}})
    with pytest.raises(DataError), RunLog(job):
        raise DataError("day 3 is empty")
    assert run("logs", tmp_path / "out")[:2] == (0, "failed: day 3 is empty\n")
    assert run("logs", tmp_path / "out", "--follow") == (3, "", "failed: day 3 is empty\n")


def test_certificates_of_the_command_line_reach_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "dfm.distributed.cluster.connect.connect", lambda settings: asked.append(settings) or no_client()
    )
    monkeypatch.setattr("dfm.launch.on_dask.submitted_to", lambda client: {"r": "somewhere"})
    tls = {"tls_ca": "ca.pem", "tls_cert": "cert.pem", "tls_key": "key.pem"}
    options = [part for name, path in tls.items() for part in (f"--{name.replace('_', '-')}", path)]
    for command in (["list"], ["status", "r"], ["logs", "r"]):
        monkeypatch.setattr(sys, "argv", ["dfm", *command, "--scheduler", "tls://s:8786", *options])
        with pytest.raises(SystemExit):
            main()
        found = dataclasses.asdict(asked.pop())
        assert {name: found[name] for name in tls} == tls
    overrides = runs.cluster_overrides("tls://s:8786", tls=tls)
    assert overrides[2:] == ("cluster.tls_ca=ca.pem", "cluster.tls_cert=cert.pem", "cluster.tls_key=key.pem")


def no_client() -> Any:
    """What is entered and left, and does nothing."""
    import contextlib

    return contextlib.nullcontext(Console(file=io.StringIO()))
