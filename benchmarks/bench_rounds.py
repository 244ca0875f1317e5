"""What averaging costs, and what a second worker brings: epochs of one job on one and on two local workers.

    .venv/bin/python benchmarks/bench_rounds.py [--rows 10000000] [--n-factors 16] [--folder …] [--smoke]

The training stage alone is compared: seconds of epochs without validation, after everything was prepared and compiled,
on one and on two workers in turn. Shown are medians over the runs of all epochs together, of the first, which has more
averages, and of the median later one. Averaging is what the busiest worker did not spend in its kernel: pulling,
pushing, merging, moving, waiting. The parameters must come out the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from big_log import prepare_log
from machine import machine_line


def events(job: Path, knobs: list[str]) -> list[dict[str, Any]]:
    """The events of one run of the job with these knobs."""
    command = [sys.executable, "-m", "dfm", "train", str(job), "--json"]
    command += [word for knob in knobs for word in ("--set", knob)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in finished.stdout.splitlines()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--n-factors", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--averages", default="auto", help="averages of the first epoch")
    parser.add_argument("--later-averages", default="auto", help="averages of each later epoch")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="runs on one and on two workers, in turn")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/rounds"))
    parser.add_argument("--smoke", action="store_true", help="tiny and untimed: does it still run?")
    arguments = parser.parse_args()
    rows, epochs = (8_000, 2) if arguments.smoke else (arguments.rows, arguments.epochs)
    folder = arguments.folder / f"{rows}"
    print(machine_line())
    job = prepare_log(folder, rows)
    knobs = [
        f"model.n_factors={arguments.n_factors}",
        f"training.n_epochs={epochs}",
        f"training.n_replicas={arguments.replicas}",
        f"training.averages_per_epoch={arguments.averages}",
        f"training.later_averages={arguments.later_averages}",
        "training.early_stopping=false",
    ]
    plan = events(job, [*knobs, "cluster.workers=2"])[0]  # prepares the partitions and compiles
    runs: dict[int, list[list[dict[str, Any]]]] = {1: [], 2: []}
    digests = set()
    for _ in range(1 if arguments.smoke else arguments.repeats):
        for workers, found in runs.items():
            run = events(job, [*knobs, f"cluster.workers={workers}"])
            found.append([event for event in run if event["event"] == "epoch"])
            digests.add(run[-1]["parameters_sha256"])
    if len(digests) != 1:
        raise SystemExit("one and two workers gave different parameters")
    if arguments.smoke:
        return
    print(
        f"{plan['rows']:,} rows, {plan['replicas']} replicas, k = {arguments.n_factors}, {plan['rounds_per_epoch']} "
        f"averages in the first epoch and {plan['later_rounds_per_epoch']} in each later one; seconds, medians "
        f"of {arguments.repeats} runs (fastest, slowest)"
    )
    shown = {workers: _summary(found) for workers, found in runs.items()}
    print("| | 1 worker | 2 workers | 2 are so many times as fast |")
    print("| :--- | ---: | ---: | ---: |")
    for name in shown[1]:
        one, two = shown[1][name], shown[2][name]
        cells = " | ".join(f"{statistics.median(each):.2f} ({min(each):.2f}, {max(each):.2f})" for each in (one, two))
        print(f"| {name} | {cells} | {statistics.median(one) / statistics.median(two):.2f} |")
    epoch = runs[2][0][-1]
    print(f"pulled and pushed in a round of a later epoch: {epoch['bytes_per_round'] / 1e6:.0f} MB; log loss by epoch "
          + " ".join(f"{event['log_loss']:.5f}" for event in runs[2][0]))  # fmt: skip


def _summary(runs: list[list[dict[str, Any]]]) -> dict[str, list[float]]:
    """What is compared, by run: seconds."""
    later = [epochs[1:] or epochs for epochs in runs]
    return {
        "all epochs": [sum(event["seconds"] for event in epochs) for epochs in runs],
        "first epoch": [epochs[0]["seconds"] for epochs in runs],
        "a later epoch": [statistics.median(event["seconds"] for event in epochs) for epochs in later],
        "of it, in the kernel": [statistics.median(event["training_seconds"] for event in epochs) for epochs in later],
        "of it, averaging": [statistics.median(event["averaging_seconds"] for event in epochs) for epochs in later],
    }


if __name__ == "__main__":
    main()
