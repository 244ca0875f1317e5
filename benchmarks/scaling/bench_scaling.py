"""What a job costs against its rows, its factors, the size of its table and its replicas: seconds and memory.

    .venv/bin/python benchmarks/scaling/bench_scaling.py [--axes rows,factors,hash_bits,replicas] [--rows 1,4,16]
        [--repeats 3] [--folder …] [--smoke]

One job, in which one number at a time is another (`AXES`); two local workers, the log of `dfm synth`. Shown are
preparation (with an empty cache), the median of later epochs, both in seconds per million rows, and the largest
anonymous memory of a worker; beside them the seconds that the cost model foretells (`dfm.averaging.cost_model`). Under
each axis stands how fast cost grows: 1.00 is linear in that number, 0 does not depend on it. Settings take turns.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_memory import train_and_watch
from big_log import prepare_log
from machine import machine_line

from dfm import jobs
from dfm.averaging.cost_model import job_times

WORKERS = 2
AXES: dict[str, tuple[str, Sequence[int]]] = {
    "rows": ("", (1, 4, 16)),
    "factors": ("model.n_factors", (4, 8, 16, 32, 64)),
    "hash_bits": ("model.hash_bits", (18, 20, 22, 24, 26)),
    "replicas": ("training.n_replicas", (1, 2, 4, 8, 16, 32, 64)),
}
"""The knob of each axis and its values; of rows in millions."""
KNOBS = {"model.n_factors": 8, "model.hash_bits": 22, "training.n_replicas": 8}
EPOCHS = 3


@dataclass
class Setting:
    """A job, and what its runs took."""

    value: int
    rows: int
    knobs: dict[str, int]
    runs: list[dict[str, float]] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)

    def run(self, folder: Path) -> None:
        """Train once, with an empty cache."""
        job = prepare_log(folder / f"{self.rows}", self.rows)
        shutil.rmtree(job.parent / "cache", ignore_errors=True)
        words = [f"{name}={value}" for name, value in {**KNOBS, **self.knobs}.items()]
        words += [f"training.n_epochs={EPOCHS}", "training.early_stopping=false", f"cluster.workers={WORKERS}"]
        peaks, events = train_and_watch(job, 0.1, words)
        self.plan = jobs.plan(str(job), words)
        later = [event for event in events if event["event"] == "epoch"][1:]
        (prepared,) = [event for event in events if event["event"] == "prepared"]
        workers = sorted((own.get("RssAnon", 0) for own in peaks.values()), reverse=True)
        epoch, averaging = (statistics.median(each[key] for each in later) for key in ("seconds", "averaging_seconds"))
        self.runs.append({"prepare": prepared["seconds"], "epoch": epoch, "averaging": averaging, "memory": workers[0]})

    def median(self, what: str) -> float:
        """Of all runs."""
        return statistics.median(run[what] for run in self.runs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", type=lambda text: text.split(","), default=list(AXES))
    parser.add_argument("--rows", type=lambda text: [int(each) for each in text.split(",")], help="millions, by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/scaling"))
    parser.add_argument("--smoke", action="store_true", help="tiny and untimed: does it still run?")
    arguments = parser.parse_args()
    print(machine_line())
    for axis in arguments.axes[-1:] if arguments.smoke else arguments.axes:
        knob, values = AXES[axis]
        unit = 8_000 if arguments.smoke else 1_000_000
        values = arguments.rows if axis == "rows" and arguments.rows else values[:2] if arguments.smoke else values
        settings = [Setting(value, unit * (1 if knob else value), {knob: value} if knob else {}) for value in values]
        for _ in range(1 if arguments.smoke else 1 + arguments.repeats):
            for setting in settings:
                setting.run(arguments.folder)
        for setting in settings:
            setting.runs = setting.runs[-arguments.repeats :]  # the first ones compile
        tell(axis, settings)


def tell(axis: str, settings: Sequence[Setting]) -> None:
    """Print an axis as a table."""
    print(f"\n| {axis} | prepare | epoch | of it averaging | foretold: prepare, epoch | memory of a worker |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for setting in settings:
        millions = setting.plan["rows"] / 1e6
        told = job_times(setting.plan, WORKERS, 1)
        cells = [
            f"{setting.value}",
            f"{setting.median('prepare') / millions:.2f}",
            f"{setting.median('epoch') / millions:.3f}",
            f"{100 * setting.median('averaging') / setting.median('epoch'):.0f} %",
            f"{told.preparation / millions:.2f}, {told.later_epoch / millions:.3f}",
            f"{setting.median('memory') / 1e9:.2f} GB",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    for what in ("prepare", "epoch", "memory"):
        powers = [
            math.log(after.median(what) / before.median(what)) / math.log(after.value / before.value)
            for before, after in itertools.pairwise(settings)
        ]
        print(f"{what} grows with {axis} to the power of {', '.join(f'{power:.2f}' for power in powers)}")


if __name__ == "__main__":
    main()
