"""Minutes of random kills, and rounds by the hundred: nothing fails, differs, hangs or grows. See `make soak`."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dfm import jobs
from dfm.distributed.cluster import connect
from dfm.settings.tables import ClusterSettings
from tests.support.real_processes import disturbed_job, pids_of_workers

pytestmark = pytest.mark.slow
KILLS = 50


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


class RandomKiller(threading.Thread):
    """Kills a random worker process of the local cluster every few seconds until it is told to stop."""

    def __init__(self, seed: int) -> None:
        super().__init__(daemon=True)
        self._choose, self._stopped, self.kills = random.Random(seed), threading.Event(), 0

    def run(self) -> None:
        while not self._stopped.wait(self._choose.uniform(1.0, 5.0)):
            workers = [p for p in psutil.Process().children(recursive=True) if _is_worker(p)]
            if workers:
                os.kill(self._choose.choice(workers).pid, signal.SIGKILL)
                self.kills += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def test_fifty_random_kills_in_a_row_change_nothing(log: Path, undisturbed: jobs.TrainResult, tmp_path: Path) -> None:
    kills = runs = 0
    started = time.monotonic()
    with connect.connect(ClusterSettings(workers=2, worker_timeout=120.0)) as client:
        while kills < KILLS:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            killer = RandomKiller(seed=runs)
            killer.start()
            try:
                result = jobs.train(disturbed_job(log, tmp_path, cluster={"worker_timeout": 120.0}), client)
            finally:
                killer.stop()
            kills, runs = kills + killer.kills, runs + 1
            assert result.parameters_sha256 == undisturbed.parameters_sha256
            assert result.rows == undisturbed.rows
    print(f"{kills} kills in {runs} runs, {time.monotonic() - started:.0f} s")


def test_memory_of_workers_and_driver_stays_flat_over_two_hundred_rounds(log: Path, tmp_path: Path) -> None:
    training = {"n_replicas": 4, "n_epochs": 75, "averages_per_epoch": 4, "early_stopping": False}
    sizes: dict[int, list[int]] = {}

    with connect.connect(ClusterSettings(workers=2)) as client:
        pids = [os.getpid(), *pids_of_workers(client)]

        def measure(event: dict[str, Any]) -> None:
            if event["event"] == "epoch":
                for pid in pids:
                    sizes.setdefault(pid, []).append(psutil.Process(pid).memory_info().rss)

        jobs.train(disturbed_job(log, tmp_path, training=training), client, on_event=measure)
    for found in sizes.values():
        early, late = max(found[20:30]), max(found[65:75])
        assert late < early * 1.1 + 5e6, f"grew from {early / 1e6:.1f} to {late / 1e6:.1f} MB over 200 rounds"
