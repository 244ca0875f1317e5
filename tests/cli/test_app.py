"""The command line: what it prints for people and for programs, and the exit codes that a scheduler acts on."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm import jobs
from dfm.cli import runs
from dfm.cli.app import cli, main
from dfm.data import synthetic
from dfm.errors import ClusterError, DataError
from dfm.events import faults_of
from dfm.model.fm_model import FMModel
from dfm.runs import outcome
from dfm.runs.outcome import Outcome
from dfm.settings import job as settings
from tests.support.command_line import Run
from tests.support.small_jobs import EPOCH_KEYS, LAST_DAY, in_process_client, read_log

JOB = """
[data]
train = "{log}"
validation_from = "{last_day}"

[schema]
label = "label"
time = "day"
numeric = ["I*"]
categorical = ["C*"]

[model]
n_factors = 4
hash_bits = 16

[training]
n_replicas = 3
n_epochs = 2
early_stopping = false

[cluster]
workers = 2
worker_timeout = 0.5
cache = "{folder}/cache"

[output]
directory = "{folder}/out"
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 rows of clicks on four days."""
    directory = tmp_path_factory.mktemp("clicks")
    synthetic.generate(directory, rows=6_000, days=4, shards_per_day=2, seed=3)
    return directory


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a scheduler with one worker, both inside this process."""
    with in_process_client(1) as client:
        yield client.scheduler.address


def write_job(log: Path, folder: Path) -> Path:
    path = folder / "job.toml"
    path.write_text(JOB.format(log=log, last_day=LAST_DAY, folder=folder))
    return path


@pytest.fixture
def job(log: Path, tmp_path: Path) -> Path:
    """A job file whose cache and output lie beside it."""
    return write_job(log, tmp_path)


@pytest.fixture(scope="module")
def model(log: Path, scheduler: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model trained by the command."""
    folder = tmp_path_factory.mktemp("trained")
    path = write_job(log, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dfm", "train", str(path), "--scheduler", scheduler, "--json"])
        patch.setattr(logging.getLogger("dfm"), "handlers", [])
        with pytest.raises(SystemExit, match="0"):
            main()
    return str(folder / "out" / "model")


def one_line(text: str) -> str:
    """The text without its final line break, checked to be one line."""
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text[:-1]


# --- help -----------------------------------------------------------------------------------------------


def test_help_names_every_command_and_exit_code(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("train", "evaluate", "predict", "inspect", "synth", "demo", "knobs"):
        assert f"\n  {command} " in out
    for meaning in ("2 wrong settings", "3 bad data", "4 cluster", "5 training diverged", "6 no usable model", "130"):
        assert meaning in " ".join(out.split())


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "inspect", "synth", "demo", "knobs"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(command, "-h")
    assert code == 0
    assert out.startswith(f"Usage: dfm {command}")


def test_version(run: Run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("dfm, version ")


def test_knobs_lists_every_knob(run: Run) -> None:
    code, out, _ = run("knobs")
    assert code == 0
    for one in settings.describe():
        assert one.name in out


def test_knobs_keeps_brackets_that_look_like_markup(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    one = settings.KnobDescription("data.train", "[]", "a list", "see [data] and [/schema]")
    monkeypatch.setattr(settings, "describe", lambda: (one,))
    _, out, _ = run("knobs")
    assert "data.train = []\n    see [data] and [/schema] (a list)\n" in out


@pytest.mark.parametrize("width", [40, 80, 160])
def test_knobs_fit_the_terminal_and_what_matters_first_is_on_top(
    run: Run, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run("knobs")
    lines = out.splitlines()
    assert lines[1] == "what matters first"
    names = [line.split(" = ")[0] for line in lines if " = " in line and not line.startswith(" ")]
    assert tuple(names[: len(settings.MATTER_FIRST)]) == settings.MATTER_FIRST
    assert [*dict.fromkeys(names[len(settings.MATTER_FIRST) :])] == [one.name for one in settings.describe()]
    assert all(len(line) <= width for line in lines if line.startswith(" "))


def test_knobs_of_one_table_and_as_json(run: Run) -> None:
    code, out, _ = run("knobs", "training", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [event["name"] for event in events] == [
        one.name for one in settings.describe() if one.name.startswith("training.")
    ]
    assert [fault for event in events for fault in faults_of(event)] == []
    rate = next(event for event in events if event["name"] == "training.learning_rate")
    assert rate["matters_first"]
    assert rate["legal"].startswith('"auto" or a number above 0')
    assert "[model]" not in run("knobs", "training")[1]
    code, out, err = run("knobs", "traning")
    assert (code, out) == (2, "")
    assert "'traning' is no table of a job; there are data, schema, model, training" in err


# --- storage options ------------------------------------------------------------------------------------


WITH_STORAGE = sorted(
    name for name, command in cli.commands.items() if any("--storage-option" in one.opts for one in command.params)
)
ARGUMENTS = {
    "evaluate": ["m", "d"],
    "predict": ["m", "d", "--output", "o"],
    "publish": ["m", "d", "--alias", "a"],
    "export": ["m", "--format", "libfm", "--output", "o"],
}


def test_every_command_that_reads_urls_takes_storage_options() -> None:
    reading = {
        "evaluate", "predict", "inspect", "importance", "export", "publish", "rollback", "status", "logs", "cancel",
        "list", "report", "convert", "guess",
    }  # fmt: skip
    assert {*WITH_STORAGE} == reading


@pytest.mark.parametrize("command", WITH_STORAGE)
def test_a_secret_among_storage_options_is_refused_and_not_shown(run: Run, command: str) -> None:
    code, out, err = run(command, *ARGUMENTS.get(command, ["x"]), "--storage-option", "client_kwargs.secret=hunter2")
    assert (code, out) == (2, "")
    assert "--storage-option.client_kwargs.secret is a secret" in err
    assert "hunter2" not in err


def test_storage_options_about_runs_are_values_and_tables_beside_those_of_the_job(
    run: Run, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def outcome_of(directory: str, options: dict[str, Any], run_id: str = "") -> Outcome:
        asked.append(options)
        return Outcome("unknown", "", None)

    monkeypatch.setattr(outcome, "outcome_of", outcome_of)
    own = 'default_cache_type = "none"\nclient_kwargs = { a = 1 }'
    job.write_text(f"{job.read_text()}\n[data.storage_options]\n{own}\n")
    options = ("--storage-option", "anon=false", "--storage-option", "client_kwargs.region_name=x")
    run("status", job, *options)
    run("status", job.parent, *options)
    given = {"anon": False, "client_kwargs": {"region_name": "x"}}
    assert asked[0] == {"default_cache_type": "none", "anon": False, "client_kwargs": {"a": 1, "region_name": "x"}}
    assert asked[1] == given


# --- runs elsewhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("submit job.toml --scheduler tcp://a:1 --name x --dry-run", "--name is of use with --kubernetes alone"),
        ("submit job.toml --namespace y", "--namespace is of use with --kubernetes alone"),
        ("submit job.toml --kubernetes --tls-ca ca.pem", "--tls-ca is of no use with --kubernetes"),
        ("submit job.toml --kubernetes --scheduler tcp://a:1", "--scheduler is of no use with --kubernetes"),
        ("status out --namespace q", "--namespace is of use with --kubernetes alone"),
        ("status out --context z", "--context is of use with --kubernetes alone"),
        ("status out --tls-key key.pem", "--tls-key is of use with --scheduler alone"),
        ("status name --kubernetes --scheduler tcp://a:1", "--scheduler is of no use with --kubernetes"),
        ("logs name --kubernetes --json", "--json is of no use with --kubernetes"),
        ("logs name --kubernetes --storage-option anon=true", "--storage-option is of no use with --kubernetes"),
        ("cancel out --context z", "--context is of use with --kubernetes alone"),
        ("list out --scheduler tcp://a:1", "give --scheduler or LOCATIONs, not both"),
        ("list out --kubernetes", "LOCATION is of no use with --kubernetes"),
        ("list --tls-cert cert.pem", "--tls-cert is of use with --scheduler alone"),
    ],
)
def test_an_option_that_a_command_about_runs_would_not_read_is_refused(run: Run, arguments: str, told: str) -> None:
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())


# --- train ----------------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan_and_writes_nothing(run: Run, job: Path) -> None:
    code, out, _ = run("train", job, "--dry-run", "--set", "training.n_replicas=5")
    assert code == 0
    assert out.index("what this job would do") < out.index("what differs from the defaults") < out.index("[training]")
    assert "n_replicas = 5" in out
    assert "l2_linear" not in out
    rows = {cells[1].strip(): cells[2].strip() for line in out.splitlines() if len(cells := line.split("│")) == 4}
    assert rows["rows"] == "4,500"
    assert rows["shards"] == "6"
    assert rows["validation rows"] == "1,500"
    assert rows["replicas"] == "5"
    assert rows["field I1"] == "numeric, auto"
    assert rows["field C26"] == "categorical"
    assert rows["round bytes per replica at most"].endswith("B")
    assert [path.name for path in job.parent.iterdir()] == ["job.toml"]


def test_a_dry_run_for_programs_is_one_object(run: Run, job: Path) -> None:
    code, out, _ = run("train", job, "--dry-run", "--json", "--set", "training.n_replicas=5")
    assert code == 0
    plan = json.loads(one_line(out))
    assert plan["event"] == "plan"
    assert plan["job"]["training"]["n_replicas"] == plan["replicas"] == 5
    assert (plan["rows"], plan["rows_per_replica"]) == (4500, 900)
    assert plan.keys() >= {"parquet_bytes", "parameter_bytes_at_most", "round_bytes_per_replica_at_most", "columns"}
    assert [path.name for path in job.parent.iterdir()] == ["job.toml"]


_NONE_HELD_OUT = "data.validation_from=", "data.validation_fraction=0"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((*_NONE_HELD_OUT, "model.choose=best"), 'model.choose = "best" needs rows to validate on'),
        ((*_NONE_HELD_OUT, "model.calibration=platt"), 'model.calibration = "platt" is fitted on rows to validate on'),
        ((*_NONE_HELD_OUT, "training.stop_on=auc"), 'training.stop_on = "auc" needs rows to validate on'),
        (("training.warm_start=nowhere/model",), "no model at"),
        (("output.directory=taken",), "was not made by dfm"),
    ],
)
def test_a_dry_run_refuses_what_a_training_refuses(
    run: Run, job: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(job.parent)
    (job.parent / "taken" / "model").mkdir(parents=True)
    (job.parent / "taken" / "model" / "model.json").write_text("mine")
    options = [word for override in overrides for word in ("--set", override)]
    before = sorted(job.parent.rglob("*"))
    planned = run("train", job, "--dry-run", *options)
    assert sorted(job.parent.rglob("*")) == before
    assert told in planned[2]
    assert planned == run("train", job, "--scheduler", scheduler, *options)
    submitted = run("submit", job, "--dry-run", "--scheduler", scheduler, *options)
    assert (submitted[0], told in submitted[2]) == (planned[0], True)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ('label = "ts"', "which is not numeric; write numbers, or of a job name another column as schema.label"),
        ('label = "click"\nweight = "tags"', "of a job name another column as schema.weight"),
        ('label = "click"\nnumeric = ["ts"]', "or derive a number: [schema.derive]"),
        ('label = "click"\nlists = ["x"]', "holds double, but the schema calls it a list"),
        ('label = "click"\nderive = { hour = "hour(x)" }', "of which schema.derive cannot tell the time"),
        ('label = "click"\ntime = "tags"', "has no order in time; name another column as schema.time"),
        ('label = "click"\ngroup = "tags"', "slices and groups need one value a row"),
    ],
)
def test_columns_of_types_that_cannot_be_learnt_are_refused_without_a_cluster(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: str, told: str
) -> None:
    n = 2_000
    moments = pa.array(range(n), pa.timestamp("s"))
    numbers = {"click": [row % 2 for row in range(n)], "x": [row / 7 for row in range(n)]}
    pq.write_table(
        pa.table({**numbers, "ts": moments, "tags": [["a", "b"]] * n, "C": ["c"] * n}), tmp_path / "p.parquet"
    )
    (tmp_path / "job.toml").write_text(
        f'[data]\ntrain = "{tmp_path}/p.parquet"\n[schema]\n{schema}\ncategorical = ["C"]\n'
        f'[output]\ndirectory = "{tmp_path}/out"\n'
    )
    planned = run("train", tmp_path / "job.toml", "--dry-run")
    assert planned[0] == DataError.exit_code
    assert f"{tmp_path}/p.parquet: column" in planned[2]
    assert told in planned[2]
    monkeypatch.setattr("distributed.LocalCluster.__init__", lambda *_, **__: pytest.fail("there is no need of one"))
    assert planned == run("train", tmp_path / "job.toml")


def test_a_group_of_training_rows_that_nobody_reads_may_be_of_any_type(run: Run, tmp_path: Path) -> None:
    n = 2_000
    rows = {"click": [row % 2 for row in range(n)], "C": [f"c{row % 7}" for row in range(n)]}
    pq.write_table(pa.table({**rows, "user": [["a", "b"]] * n}), tmp_path / "train.parquet")
    pq.write_table(pa.table({**rows, "user": rows["C"]}), tmp_path / "val.parquet")
    (tmp_path / "job.toml").write_text(
        f'[data]\ntrain = "{tmp_path}/train.parquet"\nvalidation = "{tmp_path}/val.parquet"\n'
        '[schema]\nlabel = "click"\ngroup = "user"\ncategorical = ["C"]\n'
        f'[output]\ndirectory = "{tmp_path}/out"\n'
    )
    assert run("train", tmp_path / "job.toml", "--dry-run")[0] == 0


def test_training_for_programs_tells_one_object_a_line(run: Run, job: Path, scheduler: str) -> None:
    code, out, err = run("train", job, "--json", "--scheduler", scheduler)
    assert (code, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == [
        *("plan", "placement", "vocabulary", "prepared", "settings", "pilot", "epoch", "epoch"),
        *("diagnosis", "saved", "done"),
    ]
    for number, event in enumerate(events[6:8], start=1):
        assert event.keys() >= EPOCH_KEYS
        assert event["epoch"] == number
    done = events[-1]
    assert done.keys() >= {"event", "model", "validation", "rows", "parameters_sha256"}
    assert done["validation"].keys() >= {"log_loss", "auc", "normalized_entropy", "calibration"}
    assert done["rows"] == {"read": 4500, "trained": 4500, "rejected": 0, "reasons": {}}
    assert FMModel.load(done["model"]).parameters_sha256() == done["parameters_sha256"]


def test_training_for_people_prints_a_line_per_epoch(run: Run, job: Path, scheduler: str) -> None:
    code, out, _ = run("train", job, "--scheduler", scheduler)
    assert code == 0
    lines = out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("epoch"))
    assert [line.split()[0] for line in lines[header + 1 : header + 3]] == ["1", "2"]
    assert all(len(line.split()) == 7 for line in lines[header + 1 : header + 3])
    assert "4,500 rows in 6 shards (39 fields)" in out
    assert f"next: dfm inspect {job.parent}/out/model" in out


# --- searching ------------------------------------------------------------------------------------------


def test_a_search_tells_its_trials_and_writes_a_job_that_can_be_trained(
    run: Run, job: Path, scheduler: str, tmp_path: Path
) -> None:
    command = ("search", job, "--trials", "2", "--scheduler", scheduler, "--set", "search.n_seeds=1")
    code, out, err = run(*command, "--json")
    assert (code, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    trials = [(event["trial"], event["rung"]) for event in events if event["event"] == "trial"]
    assert sorted(trials[:2]) == [(0, 1), (1, 1)]
    assert events[-1]["event"] == "searched"
    assert [fault for event in events for fault in faults_of(event)] == []
    assert run("train", events[-1]["job"], "--dry-run")[0] == 0
    code, out, _ = run(*command)  # what is known is not tried again
    assert code == 0
    assert "to the end" not in out
    assert "what was tried" in out
    assert f"next: dfm train {events[-1]['job']}" in out
    drawn = tmp_path / "trials.svg"
    assert run(*command, "--plot", str(drawn))[0] == 0
    assert "learning_rate" in drawn.read_text()


def test_a_search_that_begins_anew_finds_a_job_that_goes_on(run: Run, job: Path, scheduler: str) -> None:
    few = ("--trials", "1", "--scheduler", scheduler, "--set", "search.n_seeds=0")
    for _ in range(2):
        code, out, _ = run("search", job, *few, "--json", "--no-resume")
        events = [json.loads(line) for line in out.splitlines()]
        assert (code, sum(event["event"] == "trial" for event in events)) == (0, 3)
        assert tomllib.loads(Path(events[-1]["job"]).read_text())["output"]["resume"] is True


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--by", "time"), "--by says how folds are cut"),
        (("--folds", "2", "--trials", "3"), "--trials is of trials"),
        (("--folds", "2", "--resume"), "--resume or --no-resume is of trials"),
        (("--folds", "2", "--no-resume"), "--resume or --no-resume is of trials"),
    ],
)
def test_an_option_of_a_search_that_would_do_nothing_is_refused(
    run: Run, job: Path, options: tuple[str, ...], told: str
) -> None:
    code, _, err = run("search", job, *options)
    assert (code, told in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--plot", "trials.gif"), "must end in one of .png"),
        (("--plot", "nowhere/trials.png"), "there is no directory"),
        (("--plot", "trials.png", "--folds", "2"), "leave one of them out"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_refused_before_the_search(
    run: Run, job: Path, scheduler: str, options: tuple[str, ...], told: str
) -> None:
    code, _, err = run("search", job, *options, "--scheduler", scheduler)
    assert code == 2
    assert told in err


def test_folds_are_told_with_their_mean_and_spread(run: Run, job: Path, scheduler: str) -> None:
    command = ("search", job, "--folds", "2", "--scheduler", scheduler, "--set", "data.validation_from=")
    code, out, _ = run(*command)
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("fold ")] == ["fold 1", "fold 2"]
    assert "over 2 folds" in out
    assert run("search", job, "--folds", "2", "--by", "day")[0] == 2


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.hash_bits=31", ["model.hash_bits = 31 is not legal", "from 10 to 30", "default, 20"]),
        ("training.optimizer=lion", ['"lion" is not legal', '"ftrl"']),
        ("training.learning_rat=1", ["training.learning_rat is unknown", 'Did you mean "learning_rate"?']),
        ("modle.n_factors=1", ["[modle] is unknown", 'Did you mean "model"?']),
        ("learning_rate=1", ["expected table.key=value", "training.learning_rate=VALUE"]),
        ("schema.crosses=C1", ['schema.crosses = "C1" is not legal', "[brackets]", "default, []"]),
        ("schema.label=click", ["click", "label"]),
    ],
)
def test_wrong_settings_exit_with_2_and_a_remedy(run: Run, job: Path, override: str, told: list[str]) -> None:
    code, out, err = run("train", job, "--set", override)
    assert (code, out) == (2, "")
    line = one_line(err)
    assert line.startswith("error: ")
    for words in told:
        assert words in line


def test_a_job_file_that_is_missing_or_no_toml_exits_with_2(run: Run, tmp_path: Path) -> None:
    assert run("train", tmp_path / "none.toml")[0] == 2
    (tmp_path / "bad.toml").write_text("[data\ntrain = 1")
    code, _, err = run("train", tmp_path / "bad.toml")
    assert code == 2
    assert "is not TOML" in one_line(err)


def test_wrong_usage_exits_with_2(run: Run, job: Path) -> None:
    code, _, err = run("train", job, "--wrokers", "3")
    assert code == 2
    assert "--wrokers" in err
    assert run("evaluate", "model")[0] == 2


def test_data_that_is_not_there_exits_with_3(run: Run, job: Path) -> None:
    code, _, err = run("train", job, "--set", "data.train=/no/such/[0-9]*.parquet")
    assert code == 3
    assert "no Parquet file at '/no/such/[0-9]*.parquet': check the path" in one_line(err)


@pytest.mark.parametrize("path", ["../x.parquet", "../clicks", "../clicks/day=*/*.parquet"])
def test_a_path_that_is_right_from_the_folder_of_the_job_file_is_told_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "home" / "elsewhere").mkdir(parents=True)
    (tmp_path / "home" / "clicks" / "day=1").mkdir(parents=True)
    for name in ("x.parquet", "clicks/day=1/a.parquet"):
        pq.write_table(pa.table({"label": [0, 1] * 50, "user": ["a", "b"] * 50}), tmp_path / "home" / name)
    job = tmp_path / "home" / "elsewhere" / "job.toml"
    job.write_text(f'[data]\ntrain = "{path}"\n[output]\ndirectory = "out"\n')
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", job, "--dry-run")
    assert code == 3
    assert f"no Parquet file at '{path}' from {tmp_path}: check the path" in one_line(err)
    assert f"There is {tmp_path}/home/{path[3:]}: paths of a job file are relative to the folder" in one_line(err)
    monkeypatch.chdir(job.parent)
    assert run("train", "job.toml", "--dry-run")[0] == 0
    (tmp_path / "home" / "x.parquet").unlink()
    shutil.rmtree(tmp_path / "home" / "clicks")
    code, _, err = run("train", "job.toml", "--dry-run")
    assert (code, "There is" in err) == (3, False)


def test_a_bad_row_exits_with_3_and_is_named(run: Run, job: Path, log: Path, scheduler: str, tmp_path: Path) -> None:
    rows = read_log(log, LAST_DAY)
    labels = rows["label"].to_pylist()
    labels[77] = 9
    rows = rows.set_column(0, "label", pa.array(labels))
    pq.write_table(rows, tmp_path / "bad.parquet")
    path = f"{tmp_path}/bad.parquet"
    overrides = [f"data.train={path}", "data.validation_from="]
    sets = [part for override in overrides for part in ("--set", override)]
    code, _, err = run("train", job, "--scheduler", scheduler, "--json", *sets)
    assert code == 3
    line = err.splitlines()[-1]
    assert line.startswith(f"error: {path}, row group 0, row 77: column 'label': label is neither 0 nor 1")
    assert 'set data.on_bad_rows = "skip"' in line


def test_a_scheduler_that_is_not_there_exits_with_4(run: Run, job: Path) -> None:
    code, _, err = run("train", job, "--scheduler", "tcp://127.0.0.1:9")
    assert code == 4
    assert "no Dask scheduler at tcp://127.0.0.1:9" in err.splitlines()[-1]
    assert "check the address" in err.splitlines()[-1]


def test_training_that_diverges_exits_with_5(run: Run, job: Path, scheduler: str) -> None:
    overrides = ["--set", "training.learning_rate=1e30", "--set", "training.optimizer=sgd"]
    code, _, err = run("train", job, "--scheduler", scheduler, *overrides)
    assert code == 5
    assert "smaller training.learning_rate" in err.splitlines()[-1]


@pytest.mark.parametrize("command", [["inspect"], ["evaluate", "DATA"], ["predict", "DATA", "--output", "OUT"]])
def test_no_model_exits_with_6(run: Run, tmp_path: Path, command: list[str]) -> None:
    name, *rest = command
    code, out, err = run(name, tmp_path / "none", *[tmp_path / part if part.isupper() else part for part in rest])
    assert (code, out) == (6, "")
    assert f"no model at {tmp_path}/none" in one_line(err)
    assert "`dfm train`" in err


# --- with a model ---------------------------------------------------------------------------------------


def test_evaluate_for_programs(run: Run, model: str, log: Path, scheduler: str) -> None:
    code, out, _ = run("evaluate", model, log / f"day={LAST_DAY}", "--scheduler", scheduler, "--json")
    assert code == 0
    found = json.loads(one_line(out))
    assert found["event"] == "evaluated"
    assert found["account"] == {"read": 1500, "evaluated": 1500, "rejected": 0, "reasons": {}}
    assert found["log_loss"] == pytest.approx(FMModel.load(model).metadata["validation"]["log_loss"], rel=1e-6)


def test_evaluate_for_people(run: Run, model: str, log: Path, scheduler: str) -> None:
    code, out, _ = run("evaluate", model, log / f"day={LAST_DAY}", "--scheduler", scheduler)
    assert code == 0
    assert "1,500 rows" in out
    assert "log_loss" in out
    assert "calibration bin 10" in out


def test_bad_rows_that_are_skipped_are_told_with_their_reasons(
    run: Run, model: str, log: Path, scheduler: str, tmp_path: Path
) -> None:
    rows = read_log(log, LAST_DAY)
    numbers = [str(value) if value is not None else None for value in rows["I1"].to_pylist()]
    numbers[:3] = ["many"] * 3
    rows = rows.set_column(rows.column_names.index("I1"), "I1", pa.array(numbers))
    pq.write_table(rows, tmp_path / "bad.parquet")
    skip = ["--on-bad-rows", "skip", "--scheduler", scheduler]
    code, out, _ = run("evaluate", model, tmp_path / "bad.parquet", *skip)
    assert code == 0
    assert "3 of 1,500 rows to evaluate on left out as bad: I1: not a number (3)" in out
    code, out, _ = run("predict", model, tmp_path / "bad.parquet", "--output", tmp_path / "scored", *skip)
    assert code == 0
    assert "3 of 1,500 rows to predict left out as bad: I1: not a number (3)" in out


def test_predict_writes_the_columns_asked_for(run: Run, model: str, log: Path, scheduler: str, tmp_path: Path) -> None:
    arguments = ["predict", model, log / f"day={LAST_DAY}", "--output", tmp_path / "scored", "--scheduler", scheduler]
    code, out, _ = run(*arguments, "--keep", "day, C1", "--json")
    assert code == 0
    told = json.loads(one_line(out))
    assert {record["values"] for record in told.pop("drift")} == {1500}
    assert told == {
        "event": "predicted",
        "event_version": 1,
        "model": model,
        "output": str(tmp_path / "scored"),
        "rows": 1500,
        "predicted": 1500,
        "rejected": 0,
        "reasons": {},
    }
    written = pq.read_table(tmp_path / "scored" / "part-00000.parquet")
    assert written.column_names == ["day", "C1", "prediction"]
    code, _, err = run(*arguments)
    assert code == 2
    assert "choose an empty folder, or add --overwrite" in one_line(err)
    code, out, _ = run(*arguments, "--overwrite")
    assert code == 0
    assert f"1,500 of 1,500 rows scored into {tmp_path}/scored" in out


def test_inspect_shows_what_the_model_learnt(run: Run, model: str, log: Path) -> None:
    first_site = read_log(log)["C9"][0].as_py()
    code, out, _ = run("inspect", model, "--json", "--token", f"C9={first_site}", "--token", "C9=never seen")
    assert code == 0
    found = json.loads(one_line(out))
    assert found["event"] == "model"
    assert found["summary"]["n_factors"] == 4
    assert found["summary"]["parameters_sha256"] == FMModel.load(model).parameters_sha256()
    assert {field["field"] for field in found["fields"]} == {field.name for field in FMModel.load(model).schema.fields}
    known, unknown = found["tokens"]
    assert known["treated_as"] == "itself"
    assert known["seen"] > 0
    assert unknown["treated_as"] == "rare"
    assert unknown["seen"] == 0
    code, out, _ = run("inspect", model, "--token", f"C9={first_site}")
    assert code == 0
    assert "spread of w" in out
    assert f"C9={first_site}" in out


def test_the_weights_that_inspect_shows_are_those_that_score(run: Run, model: str, log: Path, tmp_path: Path) -> None:
    loaded = FMModel.load(model)
    table = loaded.table.copy()
    table.factors[:] = 0.0
    dataclasses.replace(loaded, table=table).save(str(tmp_path))
    seen = read_log(log)["C9"][0].as_py()
    _, out, _ = run("inspect", tmp_path, "--json", "--token", "C9=", "--token", f"C9={seen}")
    missing, known = (token["w"] for token in json.loads(out)["tokens"])
    nothing = {name: [None] for name in loaded.schema.columns}
    flat = FMModel.load(str(tmp_path))
    moved = flat.decision_function({**nothing, "C9": [seen]}) - flat.decision_function(nothing)
    assert known != 0.0
    assert moved[0] == pytest.approx(known - missing, abs=1e-6)


def test_a_token_of_no_field_is_refused(run: Run, model: str) -> None:
    code, _, err = run("inspect", model, "--token", "X1=3")
    assert code == 2
    assert "'X1=3' names no value: write COLUMN=VALUE" in one_line(err)
    assert run("inspect", model, "--token", "I1=3")[0] == 0


def test_inspect_shows_the_top_tokens_of_data_and_cuts_nothing_in_a_pipe(
    run: Run, model: str, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    code, out, _ = run("inspect", model, "--tokens-from", log / f"day={LAST_DAY}", "--top", 3, "--json")
    top = json.loads(one_line(out))["top"]
    assert code == 0
    assert all(sum(record["field"] == name for record in top) <= 3 for name in ("C1", "C9", "I1"))
    values = {f"{value}" for value in read_log(log, LAST_DAY)["C9"].to_pylist()}
    assert {record["value"] for record in top if record["field"] == "C9"} <= values | {"(missing)", "(rare)"}
    code, out, _ = run("inspect", model, "--tokens-from", log / f"day={LAST_DAY}", "--top", 3)
    assert code == 0
    assert "…" not in out
    assert FMModel.load(model).parameters_sha256() in out
    assert not any(len(digits) > 12 for digits in re.findall(r"\d+\.(\d+)", out))
    longest = max(top, key=lambda record: len(record["factors"]))
    assert " ".join(f"{number:.4f}" for number in longest["factors"]) in out


def test_synth_makes_a_log_and_tells_its_truth(run: Run, tmp_path: Path) -> None:
    arguments = ["synth", tmp_path / "clicks", "--rows", 3000, "--days", 2, "--workers", 1]
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    found = json.loads(one_line(out))
    assert found["event"] == "synthesised"
    assert [day["rows"] for day in found["days"]] == [1500, 1500]
    assert all(day["planted_truth"] < day["always_the_click_rate"] for day in found["days"])
    assert read_log(tmp_path / "clicks").num_rows == 3000
    code, _, err = run(*arguments)
    assert code in (2, 3)
    assert "allow overwriting" in one_line(err)
    assert run(*arguments, "--overwrite")[0] == 0


# --- Ctrl-C ---------------------------------------------------------------------------------------------


def start_training(job: Path) -> subprocess.Popen[str]:
    """`dfm train` with worker processes, in a process group of its own, as a terminal starts it: Ctrl-C is heard, even
    if these tests run in the background of a shell, which lets what it starts ignore it.
    """
    command = [sys.executable, "-c", "from dfm.cli import main; main()", "train", str(job), "--json"]
    command += ["--set", "training.n_epochs=900", "--set", "cluster.worker_timeout=60"]
    ignored = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, ignored)


def wait_for(process: subprocess.Popen[str], event: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == event:
            return
    pytest.fail(f"no event {event!r}")


def processes_end(group: int, seconds: float) -> bool:
    """Whether no process of the group is left before the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def training(job: Path) -> Iterator[subprocess.Popen[str]]:
    """A training of 900 epochs; whatever is left of it at the end is killed."""
    process = start_training(job)
    yield process
    if not processes_end(process.pid, 0.1):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("notes", [[], ["what was trained is kept as a checkpoint"]])
def test_ctrl_c_tells_what_was_kept_and_of_nothing_that_nobody_knows(
    run: Run, job: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        error = KeyboardInterrupt()
        for note in notes:
            error.add_note(note)
        raise error

    monkeypatch.setattr(jobs, "train", interrupted)
    code, _, err = run("train", job)
    told = "interrupted" + "".join(f", and nothing was published; {note}" for note in notes)
    assert (code, err.strip()) == (130, f"error: {told}")


@pytest.mark.patient
def test_ctrl_c_keeps_the_best_model_and_leaves_no_worker(training: subprocess.Popen[str], job: Path) -> None:
    wait_for(training, "epoch")
    os.killpg(training.pid, signal.SIGINT)
    out, err = training.communicate(timeout=180)
    assert training.returncode == 130
    done = json.loads(out.splitlines()[-1])
    assert done["event"] == "done"
    assert done["interrupted"] is True
    assert FMModel.load(str(job.parent / "out" / "model")).parameters_sha256() == done["parameters_sha256"]
    assert "Traceback" not in err
    assert processes_end(training.pid, 15)


@pytest.mark.patient
def test_ctrl_c_before_the_first_epoch_publishes_nothing(training: subprocess.Popen[str], job: Path) -> None:
    wait_for(training, "plan")
    os.killpg(training.pid, signal.SIGINT)
    _, err = training.communicate(timeout=180)
    assert training.returncode == 130
    assert "error: interrupted\n" in err
    assert [path.name for path in sorted((job.parent / "out").iterdir())] == ["events.jsonl", "run.json"]
    assert processes_end(training.pid, 15)


def test_a_dry_run_of_submitting_makes_all_checks_and_leaves_nothing(run: Run, job: Path, scheduler: str) -> None:
    before = sorted(job.parent.rglob("*"))
    code, out, _ = run("submit", job, "--dry-run", "--scheduler", scheduler)
    assert code == 0
    assert "4,500" in out
    assert f"its driver would go to {scheduler}, its results to {job.parent}/out; nothing was submitted" in out
    code, out, _ = run("submit", job, "--dry-run", "--scheduler", scheduler, "--json")
    assert json.loads(one_line(out))["rows"] == 4500
    assert sorted(job.parent.rglob("*")) == before
    code, _, err = run("submit", job, "--dry-run")
    assert code == 2
    assert "submitting needs a cluster that stays" in err


@pytest.mark.parametrize("command", [("list",), ("status", "some-run")])
def test_a_scheduler_that_does_not_answer_is_asked_for_a_short_time(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr(runs, "_PATIENCE", 0.3)
    code, _, errors = run(*command, "--scheduler", "tcp://127.0.0.1:9")
    assert code == ClusterError.exit_code
    assert "no Dask scheduler at tcp://127.0.0.1:9" in errors
    assert "after 0.3 s" in errors
