"""Lines for people, wherever a run is watched from: a terminal, a notebook, a file, or nowhere."""

from __future__ import annotations

import inspect
import io
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import rich.console
from rich.console import Console

from dfm import jobs
from dfm.distributed import beginning
from dfm.pages.page import _cell, read_report, write_report
from dfm.runs.display import Reporter, rejected_text, watched

PLAN = {
    "event": "plan",
    "shards": 1,
    "rows": 1,
    "fields": 1,
    "validation_shards": 1,
    "validation_rows": 1,
    "replicas": 1,
    "rounds_per_epoch": 1,
    "rows_per_replica": 1,
}
ACCOUNT = {"read": 90, "trained": 87, "rejected": 3, "reasons": {"y: label is missing": 2, "price: not a number": 1}}
VOCABULARY = {
    "event": "vocabulary",
    "distinct_features": 5,
    "table_load": 0.1,
    "collided_share": 0.1,
    "features": 4,
    "features_with_factors": 3,
    "parameter_bytes": 99,
    "rows": {"read": 1000, "trained": 1000, "rejected": 0, "reasons": {}},
    "validation_rows": ACCOUNT,
}
PROGRESS = {"event": "progress", "stage": "hash", "total": 200}


def lines_of(*events: dict[str, Any], **more: Any) -> str:
    """What a display writes of events, in one line."""
    sink = io.StringIO()
    with Reporter(Console(file=sink, width=200, **more)) as reporter:
        for event in events:
            reporter(event)
    return " ".join(sink.getvalue().split())


@pytest.mark.parametrize("number", [1, 2])
def test_a_plan_counts_as_people_do(number: int) -> None:
    line = lines_of({name: number if value == 1 else value for name, value in PLAN.items()})
    ends = "" if number == 1 else "s"
    for noun in ("row", "shard", "field", "replica", "average"):
        assert f"{number} {noun}{ends} " in re.sub(r"[(),;]", " ", line), line
    assert f"{number} in {number} shard{ends} to validate on" in line


def test_a_plan_tells_no_number_of_validation_rows_that_nobody_has_counted() -> None:
    by_time = {"validation_rows": None, "validation_shards": 0, "held_out": "the rows from 2026-11-20 on by [ts]"}
    line = lines_of({**PLAN, **by_time})
    assert "1 row in 1 shard (1 field) to train and to validate on; 1 replica of up to 1 row" in line
    assert "validates on the rows from 2026-11-20 on by [ts]" in line


def test_rows_that_validate_are_told_once_they_are_counted_and_bad_ones_in_words() -> None:
    line = lines_of(VOCABULARY)
    assert "1,000 rows train, 87 rows validate" in line
    bad = "3 of 90 rows to validate on left out as bad: y: label is missing (2), price: not a number (1)"
    assert bad in line
    assert rejected_text(ACCOUNT).startswith("3 of 90 rows to train on left out")
    assert "left out" not in lines_of({**VOCABULARY, "validation_rows": {**ACCOUNT, "rejected": 0}})


def test_a_span_of_one_number_is_that_number() -> None:
    shares = [{"rows": 900, "replicas": replicas} for replicas in (1, 1)]
    assert lines_of({"event": "placement", "workers": shares}) == "2 workers with 900 rows and 1 replica each"
    shares[1] = {"rows": 1000, "replicas": 0}
    told = lines_of({"event": "placement", "workers": shares})
    assert told.startswith("2 workers with 900 to 1,000 rows and 0 to 1 replica each; 1 have none")


def test_a_bar_says_for_what_its_first_rows_wait() -> None:
    assert "hashing shards (kernels first)" in lines_of({**PROGRESS, "done": 0}, force_terminal=True)
    assert "kernels" not in lines_of({**PROGRESS, "done": 1}, force_terminal=True)
    assert "kernels first" not in lines_of({**PROGRESS, "stage": "build", "done": 0}, force_terminal=True)


def test_workers_that_compile_are_told_of_beside_the_rows_until_all_are_done() -> None:
    class Task:
        is_done = False

        def done(self) -> bool:
            return self.is_done

    told: list[dict[str, Any]] = []
    tasks = [Task(), Task()]
    run: Any = SimpleNamespace(tell=told.append)
    warm_ups = beginning._WarmUps(run, tasks)  # type: ignore[arg-type]  # as much of a future as is asked for
    warm_ups.tell()
    for task in (None, *tasks):
        if task is not None:
            task.is_done = True
        warm_ups.pass_on({**PROGRESS, "done": 100})
    compiled = [event["done"] for event in told if event.get("stage") == "compile"]
    assert compiled == [0, 1, 2]
    assert sum(event.get("stage") == "hash" for event in told) == 3
    assert "compiling kernels" in lines_of(told[0])
    assert "2/2 workers" in lines_of(*told)


@pytest.mark.parametrize(
    ("on_terminal", "listens", "progress", "is_shown"),
    [
        (True, False, None, True),
        (True, True, None, False),  # who listens shows it in a way of his own
        (False, False, None, False),
        (False, False, True, True),
        (True, True, True, True),
        (True, False, False, False),
    ],
)
def test_a_call_shows_its_progress_where_somebody_looks_and_nobody_else_listens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_terminal: bool, listens: bool,
    progress: bool | None, is_shown: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if on_terminal else "0")
    heard: list[dict[str, Any]] = []
    with watched(heard.append if listens else None, progress) as told:
        assert (told is not None) == (listens or is_shown)
        if told is not None:
            told(PLAN)
    assert ("to train on" in capsys.readouterr().out) == is_shown
    assert heard == [PLAN] * listens


class Display:
    """A notebook's cell: what was displayed, and how it was redrawn."""

    def __init__(self) -> None:
        self.pictures: list[Any] = []

    def update(self, picture: Any) -> None:
        self.pictures.append(picture)

    def display(self, picture: Any, display_id: bool = False) -> Display:
        self.pictures.append(picture)
        return self


def text_of(picture: Any) -> str:
    console = Console(file=io.StringIO(), force_jupyter=False, width=200)
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Display:
    """A notebook, as far as a display needs one."""
    cell, module = Display(), ModuleType("IPython.display")
    module.display, module.HTML = cell.display, lambda text: f"html {text}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    return cell


def test_a_notebook_has_bars_that_end_full_and_lose_those_of_rounds(cell: Display) -> None:
    with watched(None, None) as told:
        assert told is not None
        for done in (0, 50, 200):
            told({**PROGRESS, "done": done})
    shown = [text_of(picture) for picture in cell.pictures]
    assert any("hashing shards" in text and "0/200" in text for text in shown)
    assert "200/200" in shown[-1]
    with watched(None, None) as told:
        assert told is not None
        told({"event": "round", "epoch": 1, "round": 1, "rounds": 1, "rows_per_second": 1.0})
    assert cell.pictures[-1] == "html "


def test_every_call_that_tells_of_events_takes_progress() -> None:
    tell = {
        name: set(inspect.signature(call).parameters)
        for name, call in vars(jobs).items()
        if inspect.isfunction(call) and call.__module__ == jobs.__name__ and not name.startswith("_")
    }
    assert {name for name, taken in tell.items() if "on_event" in taken} == {
        name for name, taken in tell.items() if "progress" in taken
    }
    assert tell["train"] > {"on_event", "progress"}


def test_cells_of_a_report_have_no_seventeen_digits() -> None:
    bins = [{"predicted": 1 / 3, "observed": 0.25}, {"predicted": 2 / 3, "observed": None}]
    assert _cell({"a<b": 1 / 3, "rows": 12345}) == "a&lt;b 0.33333, rows 12,345"
    rows = "<tr><td class=n>0.33333<td class=n>0.25000<tr><td class=n>0.66667<td>"
    assert _cell(bins) == f"<table><tr><th>predicted<th>observed{rows}</table>"


def test_a_report_leaves_out_what_is_empty_and_breaks_no_number(tmp_path: Path) -> None:
    sections = {"rows": {"read": 25200, "reasons": {}, "weight": "", "rate": 0.25, "before": []}, "gate": None}
    url = write_report(str(tmp_path / "report.html"), "the night", sections)
    page = read_report(url).decode()
    assert page.split("</h1>")[1] == (
        "<h2>rows</h2><table><tr><th>read<td class=n>25,200<tr><th>rate<td class=n>0.25000</table></html>"
    )
    assert "td.n{white-space:nowrap;" in page
    (tmp_path / "report.html").write_text("<html>somebody else's")
    with pytest.raises(ValueError, match="no report of dfm"):
        read_report(url)


def test_a_line_is_wrapped_between_words_in_a_terminal_and_whole_in_a_pipe_and_where_a_path_is_long() -> None:
    done = {"event": "done", "interrupted": False, "best_epoch": 2, "model": "s3://models/" + 60 * "x"}
    resumed = {"event": "resumed", "epoch": 2, "round": 1, "rounds": 12}

    def lines(event: dict[str, Any], terminal: bool) -> list[str]:
        console = Console(file=io.StringIO(), width=50, force_terminal=terminal, color_system=None)
        Reporter(console)(event)
        return console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # it is the StringIO

    assert len(lines(resumed, False)) == 1
    wrapped = lines(resumed, True)
    assert len(wrapped) == 2
    assert " ".join(line.strip() for line in wrapped) == lines(resumed, False)[0]
    assert lines(done, True) == lines(done, False) == [f"the model is in {done['model']} (epoch 2)"]


def test_a_log_shows_warnings_and_why_a_run_ended() -> None:
    ended = {"event": "ended", "state": "failed", "error": {"message": "day [3] is empty"}}
    told = lines_of({"event": "log", "level": "WARNING", "message": "[x] joined with other versions"}, ended)
    assert told == "warning: [x] joined with other versions failed: day [3] is empty"
    assert lines_of({"event": "ended", "state": "finished", "error": None}) == ""


def test_what_has_no_metrics_is_shown_without_them() -> None:
    average = {"event": "average", "epoch": 1, "average": 2}
    fold = {"event": "fold", "fold": 1, "rows": 2, "epochs": 3}
    assert lines_of(average, {"event": "start"}, fold) == (
        "average 2 of epoch 1: no metrics the start: no metrics fold 1: no metrics (2 rows, 3 epochs)"
    )


def test_what_was_compared_is_told_by_its_metric() -> None:
    chosen = {"event": "chosen", "losses": {"factors": 0.37817, "linear": 0.3781}, "chosen": "linear"}
    ends = "with factors, {} without them: the linear model is kept"
    assert lines_of({**chosen, "metric": "auc"}) == "auc 0.62183 " + ends.format("auc 0.62190")
    assert lines_of({**chosen, "metric": "log_loss"}) == "log loss 0.37817 " + ends.format("log loss 0.37810")
    assert lines_of(chosen) == "validation loss 0.37817 " + ends.format("validation loss 0.37810")
    unknown = {**chosen, "losses": {"factors": None, "linear": 0.3781}, "metric": "auc"}
    assert lines_of(unknown) == "auc - " + ends.format("auc 0.62190")


def test_trials_of_a_search_are_told_by_the_metric_that_compares_them() -> None:
    trial = {"event": "trial", "trial": 3, "key": "5e", "rung": 1, "epochs": 1, "seconds": 0.5, "metric": "group_auc"}
    assert lines_of({**trial, "loss": 0.3778}) == "trial 3, rung 1: group auc 0.62220 after 1 epoch (0.5 s)"
    assert lines_of({**trial, "loss": math.inf}) == "trial 3, rung 1: diverged after 1 epoch (0.5 s)"
    searched = {"event": "searched", "trial": 3, "job": "best.toml", "losses": {"best": [0.37, 0.38], "default": []}}
    ends = "± 0.00500 over 2 seeds the best is trial 3; its job is in best.toml"
    assert lines_of({**searched, "metric": "group_auc"}) == f"best: group auc 0.62500 {ends}"
    assert lines_of({**searched, "metric": "log_loss"}) == f"best: log loss 0.37500 {ends}"


def test_each_bar_has_its_own_unit_whichever_came_first() -> None:
    console = Console(file=io.StringIO(), width=90, force_terminal=True, color_system=None)
    with Reporter(console) as reporter:
        for stage, done, total in (("compile", 0, 1), ("hash", 0, 3000), ("compile", 1, 1), ("hash", 3000, 3000)):
            reporter({"event": "progress", "stage": stage, "done": done, "total": total})
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO
    assert "1/1 workers" in " ".join(text.split())
    assert "3,000/3,000 rows" in text
    assert "3,000/3,000 workers" not in text


def test_bars_count_in_thousands() -> None:
    console = Console(file=io.StringIO(), width=90, force_terminal=True, color_system=None)
    with Reporter(console) as reporter:
        reporter({"event": "progress", "stage": "hash", "done": 25147, "total": 28000})
    assert "25,147/28,000 rows" in console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO
