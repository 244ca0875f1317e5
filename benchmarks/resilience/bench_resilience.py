"""What a killed worker or driver costs: dfm, and XGBoost's and LightGBM's Dask trainers under the same kill.

    .venv/bin/python benchmarks/resilience/bench_resilience.py [--kills 20] [--rows 400000] [--smoke]

Workers: two local processes; while a job trains, one of them is killed with SIGKILL, chosen at random, at a random
moment. Drivers: `dfm train` is killed with SIGKILL at a random moment and the same command run again. Each run's
parameters and row account are compared with those of a run to which nothing happened. XGBoost and LightGBM are tried
where they are installed (the extra `bench`): one run undisturbed, one with the same kill in its middle.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from big_log import prepare_log
from machine import machine_line

PATIENCE = 120.0
"""Seconds after which a trainer that has not come back counts as hanging."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of workers; a quarter as many of drivers")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/resilience"))
    parser.add_argument("--smoke", action="store_true", help="tiny and untimed: does it still run?")
    arguments = parser.parse_args()
    kills, rows = (1, 8_000) if arguments.smoke else (arguments.kills, arguments.rows)
    print(machine_line())
    job = prepare_log(arguments.folder / f"{rows}", rows)
    knobs = ["training.early_stopping=false", "training.n_epochs=10", "training.averages_per_epoch=8"]
    told_of_workers(job, knobs, kills)
    told_of_drivers(job, knobs, max(1, kills // 4))
    if not arguments.smoke:
        for name, train in (("xgboost", train_xgboost), ("lightgbm", train_lightgbm)):
            told_of_peer(name, train)


# --- dfm ------------------------------------------------------------------------------------------------


def told_of_workers(job: Path, knobs: list[str], kills: int) -> None:
    """Kill one of two workers in each of so many runs."""
    from dfm import jobs
    from dfm.distributed.cluster import connect
    from dfm.settings.tables import ClusterSettings

    choose = random.Random(1)
    with connect.connect(ClusterSettings(workers=2)) as client:
        jobs.train(job, client, overrides=knobs)  # prepares and compiles
        started = time.perf_counter()
        expected = jobs.train(job, client, overrides=knobs)
        undisturbed = time.perf_counter() - started
        extra, differing, lost, injected = [], 0, 0, 0
        for _ in range(kills):
            timer = threading.Timer(choose.uniform(0.1, 0.9) * undisturbed, kill_a_worker, (client, choose))
            timer.start()
            started = time.perf_counter()
            result = jobs.train(job, client, overrides=knobs)
            extra.append(time.perf_counter() - started - undisturbed)
            timer.join()
            injected += 1
            differing += result.parameters_sha256 != expected.parameters_sha256
            lost += expected.rows.accepted - result.rows.accepted
            client.wait_for_workers(2, timeout=PATIENCE)
    print(
        f"dfm, worker killed: {injected} faults, {len(extra)} runs completed, rows lost {lost}, runs with differing "
        f"bytes {differing}; undisturbed {undisturbed:.1f} s, extra per fault {summary(extra)}"
    )


def kill_a_worker(client: Any, choose: random.Random) -> None:
    """SIGKILL to one worker process of the client's cluster."""
    os.kill(choose.choice(sorted(client.run(os.getpid).values())), signal.SIGKILL)


def summary(seconds: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(seconds):.1f} s (from {min(seconds):.1f} to {max(seconds):.1f})"


def told_of_drivers(job: Path, knobs: list[str], kills: int) -> None:
    """Kill `dfm train` at random moments, run it again each time until it ends."""
    choose = random.Random(2)
    command = [sys.executable, "-m", "dfm", "train", str(job), "--json"]
    command += [word for knob in knobs for word in ("--set", knob)]
    started = time.perf_counter()
    expected = last_event(command)
    undisturbed = time.perf_counter() - started
    extra, differing, lost, injected = [], 0, 0, 0
    for _ in range(kills):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(choose.uniform(0.1, 0.9) * undisturbed)
        process.kill()
        process.wait()
        injected += 1
        done = last_event(command)
        extra.append(time.perf_counter() - started - undisturbed)
        differing += done["parameters_sha256"] != expected["parameters_sha256"]
        lost += expected["rows"]["trained"] - done["rows"]["trained"]
    print(
        f"dfm, driver killed: {injected} faults, {len(extra)} runs completed after a restart, rows lost {lost}, runs "
        f"with differing bytes {differing}; undisturbed {undisturbed:.1f} s, extra per fault {summary(extra)}"
    )


def last_event(command: list[str]) -> dict[str, Any]:
    """The last event of a run that ends well."""
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    event: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return event


# --- peers ----------------------------------------------------------------------------------------------


def told_of_peer(name: str, train: Callable[[Any, int], None]) -> None:
    """One run undisturbed, one with a worker killed in its middle."""
    if importlib.util.find_spec(name) is None or importlib.util.find_spec("pandas") is None:
        print(f"{name}: not installed (pip install 'dask-fm[bench]')")
        return
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local, Client(local) as client:
        train(client, 5)
        started = time.perf_counter()
        train(client, 60)
        undisturbed = time.perf_counter() - started
        timer = threading.Timer(0.5 * undisturbed, kill_a_worker, (client, random.Random(3)))
        timer.start()
        started = time.perf_counter()
        ended = threading.Event()
        said: list[str] = ["completed"]

        def attempt() -> None:
            try:
                train(client, 60)
            except Exception as error:
                said[0] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
            ended.set()

        threading.Thread(target=attempt, daemon=True).start()
        outcome = said[0] if ended.wait(PATIENCE) else f"had not come back after {PATIENCE:.0f} s"
        seconds = time.perf_counter() - started
        outcome = said[0] if ended.is_set() else outcome
    print(f"{name}, worker killed: undisturbed {undisturbed:.1f} s; {outcome} ({seconds:.1f} s)")


def random_rows(client: Any) -> tuple[Any, Any]:
    """200,000 rows of 20 dense columns, in four chunks on the workers."""
    import dask.array as da

    x = da.random.random((200_000, 20), chunks=(50_000, 20))
    y = (x.sum(axis=1) > 10).astype("int32")
    x, y = client.persist([x, y])
    return x, y


def train_xgboost(client: Any, rounds: int) -> None:
    """Boosted trees; the work is of the length of a few seconds."""
    import xgboost.dask as xgb

    x, y = random_rows(client)
    xgb.train(client, {"objective": "binary:logistic", "max_depth": 8}, xgb.DaskDMatrix(client, x, y), rounds * 10)


def train_lightgbm(client: Any, rounds: int) -> None:
    """Boosted trees; the work is of the length of a few seconds."""
    import lightgbm

    x, y = random_rows(client)
    lightgbm.DaskLGBMClassifier(client=client, n_estimators=rounds * 10, num_leaves=63, verbose=-1).fit(x, y)


if __name__ == "__main__":
    main()
