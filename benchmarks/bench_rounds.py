"""What averaging costs, and what a second worker brings: epochs of one job on one and on two local workers.

    .venv/bin/python benchmarks/bench_rounds.py [--rows 10000000] [--n-factors 16] [--folder …] [--smoke]

The training stage alone is compared: seconds of an epoch without validation, median over epochs, after everything was
prepared and compiled. Averaging is what the busiest worker did not spend in its kernel: pulling, pushing, merging,
moving, waiting. The parameters must come out the same.
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
    parser.add_argument("--averages", default="auto", help="averages per epoch")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/rounds"))
    parser.add_argument("--smoke", action="store_true", help="tiny and untimed: does it still run?")
    arguments = parser.parse_args()
    rows, epochs = (8_000, 1) if arguments.smoke else (arguments.rows, arguments.epochs)
    folder = arguments.folder / f"{rows}"
    print(machine_line())
    job = prepare_log(folder, rows)
    knobs = [
        f"model.n_factors={arguments.n_factors}",
        f"training.n_epochs={epochs}",
        f"training.n_replicas={arguments.replicas}",
        f"training.averages_per_epoch={arguments.averages}",
        "training.early_stopping=false",
    ]
    events(job, [*knobs, "cluster.workers=2"])  # prepares the partitions and compiles
    seconds, digests = {}, {}
    for workers in (1, 2):
        run = events(job, [*knobs, f"cluster.workers={workers}"])
        plan = next(event for event in run if event["event"] == "plan")
        epochs_seen = [event for event in run if event["event"] == "epoch"]
        digests[workers] = run[-1]["parameters_sha256"]
        seconds[workers] = statistics.median(event["seconds"] for event in epochs_seen)
        training = statistics.median(event["training_seconds"] for event in epochs_seen)
        share = statistics.median(event["averaging_seconds"] / event["seconds"] for event in epochs_seen)
        if not arguments.smoke:
            rows_per_round = plan["rows_per_replica"] // plan["rounds_per_epoch"]
            print(
                f"{workers} worker(s): {plan['rows']:,} rows, {plan['rounds_per_epoch']} averages of "
                f"{rows_per_round:,} rows per replica, k = {arguments.n_factors}: "
                f"epoch {seconds[workers]:.2f} s, kernel {training:.2f} s, averaging {share:.1%}, "
                f"{epochs_seen[-1]['bytes_per_round'] / 1e6:.0f} MB pulled and pushed a round"
            )
    if digests[1] != digests[2]:
        raise SystemExit("one and two workers gave different parameters")
    if not arguments.smoke:
        print(f"two workers are {seconds[1] / seconds[2]:.2f} times as fast as one, with the same bytes")


if __name__ == "__main__":
    main()
