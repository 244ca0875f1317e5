"""The demo at a size for tests: it ends with a model that is worth something, and writes below its folder only."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dfm.cli.app import cli
from dfm.cli.demo import DemoResult, comparison, own_command, run_demo
from dfm.data import synthetic

ROWS = 20_000


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty working directory."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    """What the demo told."""
    return []


@pytest.fixture(scope="module")
def demo(home: Path, events: list[dict[str, Any]]) -> DemoResult:
    """The demo in `home`, with a relative output folder as `dfm demo` has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return run_demo("here", ROWS, 0, events.append, workers=1)


def test_everything_lies_below_the_output_folder(demo: DemoResult, home: Path) -> None:
    assert demo.rows_scored > 0
    assert [path.name for path in home.iterdir()] == ["here"]
    assert {path.name for path in (home / "here").iterdir()} >= {"clicks", "job.toml", "results", "cache"}


def test_the_last_day_is_held_out(demo: DemoResult, home: Path) -> None:
    days = sorted(path.name for path in (home / "here" / "clicks").glob("day=*"))
    assert len(days) == 8
    job = tomllib.loads((home / "here" / "job.toml").read_text())
    assert days[-1] == f"day={job['data']['validation_from']}" == f"day={demo.truth.day}"
    assert demo.run.rows.accepted == ROWS - demo.truth.rows
    assert demo.run.validation["rows"] == demo.truth.rows == ROWS // 8


def test_the_model_is_between_the_click_rate_and_the_truth(demo: DemoResult) -> None:
    log_loss = demo.run.validation["log_loss"]
    assert demo.truth.log_loss < log_loss < demo.truth.click_rate_log_loss
    assert 0.5 < demo.run.validation["auc"] < demo.truth.auc
    way = demo.truth.click_rate_log_loss - demo.truth.log_loss
    assert demo.recovered == pytest.approx((demo.truth.click_rate_log_loss - log_loss) / way)
    assert demo.recovered > 0.1


def test_the_closing_table_puts_the_model_between_worst_and_best(demo: DemoResult) -> None:
    names, losses, aucs = zip(*comparison(demo), strict=True)
    assert names == ("always the click rate", "this model", "the planted truth")
    assert list(losses) == sorted(losses, reverse=True)
    assert list(aucs) == sorted(aucs)
    assert losses[1] == f"{demo.run.validation['log_loss']:.4f}"


def test_a_shard_and_single_rows_were_scored_by_the_loaded_model(demo: DemoResult, home: Path) -> None:
    shard = sorted((home / "here" / "clicks" / f"day={demo.truth.day}").glob("*.parquet"))[0]
    assert demo.rows_scored == pq.ParquetFile(shard).metadata.num_rows
    assert 0 < demo.seconds_per_row < 0.1


def test_every_stage_and_epoch_is_told(demo: DemoResult, events: list[dict[str, Any]]) -> None:
    stages = {event["stage"] for event in events if event["event"] == "progress"}
    assert stages == {"synth", "compile", "hash", "build", "pilot", "report"}
    epochs = [event["epoch"] for event in events if event["event"] == "epoch"]
    assert epochs == list(range(1, len(demo.run.history) + 1))
    assert events[-1]["event"] == "done"


@pytest.mark.parametrize("place", ["on the path", "elsewhere", "module"])
def test_the_commands_to_try_next_can_be_typed_where_dfm_was_started(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "a folder" / "dfm"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(script.parent if place == "on the path" else tmp_path))
    monkeypatch.setattr(sys, "argv", ["/any/dfm/__main__.py" if place == "module" else str(script)])
    expected = {"on the path": "dfm", "elsewhere": f"'{script}'", "module": "python -m dfm"}
    assert own_command() == expected[place]


def test_the_log_is_made_again_only_for_other_rows(
    demo: DemoResult, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dfm.cli.demo import _click_log

    monkeypatch.setattr(synthetic, "generate", lambda *_, **options: options)
    assert _click_log(home / "here", ROWS, 0, 1, print).rows == ROWS
    for rows, seed in ((ROWS + 1, 0), (ROWS, 1)):
        assert _click_log(home / "here", rows, seed, 1, print)["overwrite"]


def test_commands_to_copy_stand_on_a_line_each_however_narrow_the_terminal(
    demo: DemoResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("dfm.cli.demo.run_demo", lambda *_: demo)
    lines = CliRunner().invoke(cli, ["demo", "--output", "here"], standalone_mode=False).output.splitlines()
    commands = lines[lines.index("Try next:") + 1 :]
    assert [line.split()[len(own_command().split())] for line in commands] == [
        "inspect",
        "train",
        "evaluate",
        "predict",
    ]
    assert commands[-1].endswith(" --output here/predictions")
