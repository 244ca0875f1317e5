"""Does training stay in constant memory? The largest anonymous memory of any worker, on a log of many rows.

    .venv/bin/python benchmarks/bench_memory.py [--rows 20000000] [--folder benchmarks/output/memory] [--smoke]

Makes a synthetic log (kept in the folder for the next time), runs `dfm train` on it in a process of its own, and reads
RssAnon of every process below that one twice a second: memory that the system cannot take back, unlike the pages of
mapped cache files, which RssFile counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from big_log import prepare_log
from machine import machine_line


def descendants(root: int) -> list[int]:
    """Process numbers of a process and of all below it."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(after_name[1])
    family = {root}
    while True:
        more = {child for child, parent in parents.items() if parent in family} - family
        if not more:
            return sorted(family)
        family |= more


def memory(process: int) -> dict[str, int]:
    """RssAnon and RssFile of a process, in bytes; empty where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "RssFile"))}
    return {name: int(kilobytes) * 1024 for name, kilobytes in found.items()}


def train_and_watch(
    job: Path, poll_seconds: float, knobs: Sequence[str] = ("training.n_epochs=2",)
) -> tuple[dict[int, dict[str, int]], list[dict[str, Any]]]:
    """Peaks by process, and the events of the run."""
    command = [sys.executable, "-m", "dfm", "train", str(job), "--json"]
    command += [word for knob in knobs for word in ("--set", knob)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks: dict[int, dict[str, int]] = {}
    while run.poll() is None:
        for process in descendants(run.pid):
            for name, size in memory(process).items():
                own = peaks.setdefault(process, {})
                own[name] = max(own.get(name, 0), size)
        time.sleep(poll_seconds)
    assert run.stdout is not None
    events = [json.loads(line) for line in run.stdout.read().splitlines()]
    if run.returncode:
        raise SystemExit(f"training failed with exit code {run.returncode}")
    return peaks, events


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/memory"))
    parser.add_argument("--smoke", action="store_true", help="tiny: does it still run?")
    arguments = parser.parse_args()
    rows = 8_000 if arguments.smoke else arguments.rows
    folder = arguments.folder / ("smoke" if arguments.smoke else f"{rows}")
    print(machine_line())
    started = time.perf_counter()
    job = prepare_log(folder, rows)
    size = sum(file.stat().st_size for file in (folder / "clicks").glob("*/*.parquet"))
    print(f"{rows:,} rows, {size / 1e9:.2f} GB of Parquet, made in {time.perf_counter() - started:.0f} s")
    started = time.perf_counter()
    peaks, events = train_and_watch(job, 0.05 if arguments.smoke else 0.5)
    print(f"trained in {time.perf_counter() - started:.0f} s (all stages, hash_bits 22, k 8, 2 workers)")
    for event in events:
        if event["event"] in ("prepared", "epoch"):
            print("  " + ", ".join(f"{key} {event[key]:.4g}" for key in event if isinstance(event[key], float)))
    for process, own in sorted(peaks.items(), key=lambda item: -item[1].get("RssAnon", 0))[:4]:
        print(f"  process {process}: RssAnon {own['RssAnon'] / 1e9:.2f} GB, RssFile {own['RssFile'] / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
