"""The main job on data of its own: a planted click log, an embedded cluster, a model, and what it is worth."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dfm import jobs
from dfm.data import synthetic
from dfm.data.synthetic import DayTruth
from dfm.distributed.processes import n_of_text
from dfm.distributed.train import OnEvent, TrainResult
from dfm.errors import DataError
from dfm.model.fm_model import FMModel
from dfm.storage import files, ownership

_JOB = """\
# Written by `dfm demo`; run it again with: dfm train {root}/job.toml

[data]
train = "{root}/clicks"
validation_from = "{last_day}"     # the last day is held out

[schema]
label = "label"
time = "day"                       # comes from the folders day=YYYY-MM-DD
numeric = ["I*"]                   # thirteen counts, bucketed by floor(ln(x)^2)
categorical = ["C*"]               # twenty-six categories, hashed

[model]
hash_bits = 22

[training]
n_replicas = 8
n_epochs = {epochs}

[cluster]
workers = {workers}
cache = "{root}/cache"

[output]
directory = "{root}/results"
"""


@dataclass(frozen=True)
class DemoResult:
    """The demo's findings: the run, the truth about the last day, and how fast one row is scored (seconds)."""

    run: TrainResult
    truth: DayTruth
    recovered: float
    """Share of the way from the click rate's log loss to the planted truth's, 0 to 1."""
    rows_scored: int
    seconds_per_row: float
    seconds: float


def run_demo(
    output: str, rows: int, seed: int, on_event: OnEvent, *, workers: int | None = None, epochs: int = 5
) -> DemoResult:
    """Make `rows` rows of clicks over eight days, train on seven, evaluate on the last; everything below `output`."""
    files.check_named(output, "output")
    started = time.perf_counter()
    root = Path(output)
    job = root / "job.toml"
    ownership.check_replaceable(str(job), ownership.begins_with(_JOB[: _JOB.index(";")].encode()))
    processes = workers or n_of_text()
    log = _click_log(root, rows, seed, processes, on_event)
    last_day = log.days[-1].day
    text = _JOB.format(root=root.as_posix(), last_day=last_day, workers=workers or '"auto"', epochs=epochs)
    files.write_bytes(str(job), text.encode())
    run = jobs.train(job, on_event=on_event)
    truth = log.day(last_day)
    ceiling = truth.click_rate_log_loss - truth.log_loss
    recovered = (truth.click_rate_log_loss - run.validation["log_loss"]) / ceiling
    scored, seconds_per_row = _score_a_shard(run.model_url, root / "clicks" / f"day={last_day}")
    return DemoResult(run, truth, recovered, scored, seconds_per_row, time.perf_counter() - started)


def _click_log(root: Path, rows: int, seed: int, processes: int, on_event: OnEvent) -> synthetic.Truth:
    """The click log, made again unless the one in place is the one asked for."""
    try:
        known = synthetic.read_truth(root / "clicks")
        if (known.rows, known.seed) == (rows, seed):
            return known
    except (OSError, DataError):
        pass

    def progress(done: int) -> None:
        on_event({"event": "progress", "stage": "synth", "done": done, "total": rows})

    return synthetic.generate(
        root / "clicks", rows=rows, days=8, seed=seed, processes=processes, overwrite=True, progress=progress
    )


def _score_a_shard(model_url: str, day: Path) -> tuple[int, float]:
    """Load the model afresh, score a shard of the day, then time single rows. Rows scored, seconds per single row."""
    model = FMModel.load(model_url)
    shard = pq.read_table(sorted(day.glob("*.parquet"))[0], partitioning=None)
    scored = len(model.predict(shard))
    one = {name: column.slice(0, 1).to_pylist() for name, column in zip(shard.column_names, shard.columns, strict=True)}
    return scored, _median_seconds(lambda: model.predict(one))


def _median_seconds(call: Callable[[], Any], repeats: int = 51) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[repeats // 2]


def own_command() -> str:
    """The command that starts this dfm again, in the shell of who started it."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return "python -m dfm"
    found = shutil.which(started.name)
    return started.name if found and os.path.realpath(found) == os.path.realpath(started) else shlex.quote(str(started))


def comparison(result: DemoResult) -> list[tuple[str, str, str]]:
    """Rows of the closing table: who answers, log loss, AUC on the last day."""
    metrics, truth = result.run.validation, result.truth
    return [
        ("always the click rate", f"{truth.click_rate_log_loss:.4f}", "0.5000"),
        ("this model", f"{metrics['log_loss']:.4f}", f"{metrics['auc']:.4f}"),
        ("the planted truth", f"{truth.log_loss:.4f}", f"{truth.auc:.4f}"),
    ]
