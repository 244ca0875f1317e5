"""The averaging laboratory: merge rules, replicas, averages per epoch, rates and the dealing of rows, in one process.

    python benchmarks/averaging/bench_averaging.py --criteo DIRECTORY   # with train/ and validation/ Parquet folders
    python benchmarks/averaging/bench_averaging.py --full               # all combinations, not one factor at a time
    python benchmarks/averaging/bench_averaging.py --smoke              # a few runs on tiny data: does it still work?

Runs are kept in OUTPUT/runs.jsonl and not repeated; table.md and plots are made anew from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

from logs import DENSE_COLUMNS, Log, read_log, synthetic_log
from report import write_report
from simulate import Setting, simulate

from dfm.averaging.rules import ACCUMULATOR_RULES, RATE_SCALINGS, WEIGHT_RULES, MergeRule
from dfm.errors import SettingsError
from dfm.settings.tables import TrainingSettings
from dfm.training.plan import averages

REPLICAS = (1, 2, 4, 8, 16, 32, 64)
AVERAGES = (1, 4, 8, 32)
SEQUENTIAL_RATES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2)
STUDIED_REPLICAS = (8, 32)
ORDERS = ("shuffled", "sorted:C1", "sorted:C14")
"""Beside "time". C1 has 558 (Criteo) or 1,456 values, C14 26 or 27; the commonest of them 25 to 50 % of the rows."""

EXPERIMENTS = ("sequential", "replicas", "averages", "later", "rules", "rates", "momentum", "orders")
Run = tuple[str, str, Setting]


def rules() -> list[MergeRule]:
    """Every legal pair of weights and accumulators; the refused ones diverge."""
    found = []
    for weights, accumulators in itertools.product(WEIGHT_RULES, ACCUMULATOR_RULES):
        try:
            found.append(MergeRule(weights, accumulators))
        except SettingsError:
            continue
    return found


def default(log: Log, n_replicas: int) -> Setting:
    """The defaults of dfm for this log; synthetic logs stop an epoch earlier, long after their best."""
    epochs = 5 if log.name.startswith("criteo") else 4
    training = TrainingSettings(n_replicas=n_replicas)
    first, later = averages(log.train.n_rows, training)
    return Setting(n_replicas=n_replicas, averages=first, later_averages=later, n_epochs=epochs)


def star(log: Log, seed: int) -> Iterator[Run]:
    """The defaults, and one factor changed at a time at W = 8 and 32."""
    for rate in SEQUENTIAL_RATES:
        yield "sequential", f"{rate}", dataclasses.replace(default(log, 1), learning_rate=rate, seed=seed)
    for n_replicas in REPLICAS:
        base = dataclasses.replace(default(log, n_replicas), seed=seed)
        yield "replicas", "default", base
        if n_replicas in (8, 32, 64):
            for number in AVERAGES:
                yield "averages", f"{number}", dataclasses.replace(base, averages=number, later_averages=number)
            halved, eighth = (-(-base.averages // share) for share in (2, 8))
            for number in sorted({base.averages, halved, base.later_averages, eighth, 1}):
                yield "later", f"{number}", dataclasses.replace(base, later_averages=number)
        if n_replicas in STUDIED_REPLICAS:
            yield from _changes(base)


def _changes(base: Setting) -> Iterator[Run]:
    for rule in rules():
        scaling = "none" if rule.weights == "precision" else base.rate_scaling
        name = f"{rule.weights} {rule.accumulators}"
        yield "rules", name, dataclasses.replace(base, rule=rule, rate_scaling=scaling)
    for scaling in RATE_SCALINGS:
        yield "rates", scaling, dataclasses.replace(base, rate_scaling=scaling)
    for momentum, scaling in ((0.5, "none"), (0.7, "none"), (0.3, "sqrt"), (0.5, "sqrt")):
        rule = dataclasses.replace(base.rule, outer_momentum=momentum)
        name = f"{momentum} {scaling}"
        yield "momentum", name, dataclasses.replace(base, rule=rule, rate_scaling=scaling)
    for order in ORDERS:
        yield "orders", order, dataclasses.replace(base, order=order)


def factorial(log: Log, seed: int) -> Iterator[Run]:
    """Everything with everything."""
    for n_replicas, number in itertools.product(REPLICAS, AVERAGES):
        for rule, scaling in itertools.product(rules(), RATE_SCALINGS):
            base = dataclasses.replace(default(log, n_replicas), averages=number, later_averages=number, seed=seed)
            name = f"{rule.weights} {rule.accumulators} {scaling}"
            yield "full", name, dataclasses.replace(base, rule=rule, rate_scaling=scaling)


def read_logs(arguments: argparse.Namespace) -> list[Log]:
    """The logs asked for, hashed."""
    cache = Path(arguments.output) / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    rows = 8_000 if arguments.smoke else arguments.rows
    names, logs = arguments.logs.split(","), []
    if arguments.criteo and "criteo" in names:
        folder = Path(arguments.criteo)
        paths = [str(folder / "train")], [str(folder / "validation")]
        logs.append(read_log("criteo", paths, arguments.hash_bits, cache))
    if "synthetic" in names:
        logs.append(synthetic_log("synthetic", rows, arguments.hash_bits, cache))
    if "dense" in names:
        logs.append(synthetic_log("synthetic-dense", rows, arguments.hash_bits, cache, DENSE_COLUMNS))
    return logs


def perform(log: Log, run: Run) -> dict[str, object]:
    """One run as a line of runs.jsonl."""
    experiment, name, setting = run
    history = dataclasses.asdict(simulate(log, setting))
    return {
        "key": run_key(log, run),
        "log": log.name,
        "experiment": experiment,
        "name": name,
        "setting": dataclasses.asdict(setting),
        "rows": log.train.n_rows,
        **history,
    }


def run_key(log: Log, run: Run) -> str:
    """What tells one run from all others."""
    return json.dumps([log.name, run[0], run[1], dataclasses.asdict(run[2])], sort_keys=True)


def main() -> None:
    """Perform the runs that are missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--criteo", default="", help="folder with train/ and validation/ in Criteo's columns")
    parser.add_argument("--logs", default="criteo,synthetic,dense", help="which of these")
    parser.add_argument("--output", default="benchmarks/output/averaging", help="where runs and the report go")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the synthetic logs")
    parser.add_argument("--hash-bits", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this time")
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS), help="which of them to run")
    parser.add_argument("--full", action="store_true", help="all combinations")
    parser.add_argument("--smoke", action="store_true", help="two runs per log, on tiny data")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    output = Path(arguments.output) / ("smoke" if arguments.smoke else "")
    output.mkdir(parents=True, exist_ok=True)
    lines = output / "runs.jsonl"
    done = {json.loads(line)["key"] for line in lines.open()} if lines.exists() else set()
    for seed in range(1 if arguments.smoke else arguments.seeds):
        for log in read_logs(arguments):
            runs = list(factorial(log, seed) if arguments.full else star(log, seed))
            if not arguments.full:
                runs = [run for run in runs if run[0] in arguments.experiments.split(",")]
            for run in runs[6:9] if arguments.smoke else runs:
                if run_key(log, run) in done or time.monotonic() > deadline:
                    continue
                with lines.open("a") as file:
                    file.write(json.dumps(perform(log, run)) + "\n")
    write_report(lines, output)
    print((output / "table.md").read_text())


if __name__ == "__main__":
    main()
