"""How long a request takes: of 1 row and of 100, from one client and from several, by each engine.

    python -m pipelines.serving.latency

A model is trained on a synthetic click log of 39 columns and served by a process of its own on this machine, one engine
after the other. Each client sends a request, reads the answer, sends the next, over a connection that stays open.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import math
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq

import dfm
from dfm.data import synthetic
from pipelines.serving.engines import ENGINES

DAYS, LAST_DAY = 4, "2026-11-17"
WARM_UP = 20
"""Requests of each client that are not counted."""


def job(log: Path, folder: Path) -> dict[str, Any]:
    """A job on the synthetic log."""
    return {
        "data": {"train": str(log), "validation_from": LAST_DAY},
        "schema": {"label": "label", "time": "day", "numeric": ["I*"], "categorical": ["C*"]},
        "model": {"n_factors": 16},
        "training": {"n_epochs": 2},
        "cluster": {"workers": 1, "cache": str(folder / "cache")},
        "output": {"directory": str(folder / "out")},
    }


def trained(folder: Path, n_rows: int) -> tuple[str, list[dict[str, Any]]]:
    """A model on a synthetic log, and rows that it has not seen."""
    synthetic.generate(folder / "log", rows=n_rows, days=DAYS, shards_per_day=1, seed=3)
    result = dfm.train(job(folder / "log", folder), progress=False)
    last = pq.ParquetFile(folder / f"log/day={LAST_DAY}/part-00000.parquet").read().drop_columns(["label"])
    return result.model_url, last.slice(0, 2000).to_pylist()


@contextlib.contextmanager
def service(model: str, engine: str) -> Iterator[int]:
    """A service of its own process; its port, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "pipelines.serving.service", model, "--engine", engine, "--port", str(port)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_ready(port, process)
            yield port
        finally:
            process.terminate()


def wait_until_ready(port: int, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    """Return when /health says so. RuntimeError where the service ends, or takes longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the service did not become ready (exit code {process.poll()})")


def bodies(rows: Sequence[dict[str, Any]], n_rows: int) -> list[bytes]:
    """Requests of so many rows each."""
    starts = range(0, len(rows) - n_rows + 1, max(n_rows, 10))
    return [json.dumps({"rows": rows[start : start + n_rows]}).encode() for start in starts]


def client(port: int, sent: Sequence[bytes], seconds: float, times: list[float]) -> None:
    """Send requests one after the other for some seconds; `times` gets the seconds of each."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found, deadline = [], math.inf
    for number, body in enumerate(itertools.cycle(sent)):
        if number == WARM_UP:
            deadline = time.monotonic() + seconds
        started = time.perf_counter()
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        found.append(time.perf_counter() - started)
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer[:500]!r}")
        if time.monotonic() > deadline:
            break
    times += found[WARM_UP:]


def measured(port: int, sent: Sequence[bytes], n_clients: int, seconds: float) -> tuple[list[float], float]:
    """The least, p50, p95 and p99 in milliseconds, and requests a second, of some clients side by side."""
    times: list[float] = []
    threads = [threading.Thread(target=client, args=(port, sent, seconds, times)) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not times:
        raise RuntimeError("no client got an answer")
    return (np.percentile(times, [0, 50, 95, 99]) * 1000).tolist(), n_clients / float(np.mean(times))


def report(model: str, rows: Sequence[dict[str, Any]], n_clients: Sequence[int], seconds: float) -> None:
    """Print a line for each engine, size of a request and number of clients."""
    print(f"{'engine':8}{'rows':>6}{'clients':>9}{'least ms':>10}{'p50':>8}{'p95':>8}{'p99':>8}{'requests/s':>12}")
    for engine in ENGINES:
        with service(model, engine) as port:
            for n_rows, clients in itertools.product((1, 100), n_clients):
                (least, p50, p95, p99), rate = measured(port, bodies(rows, n_rows), clients, seconds)
                print(f"{engine:8}{n_rows:6}{clients:9}{least:10.2f}{p50:8.2f}{p95:8.2f}{p99:8.2f}{rate:12.0f}")


@click.command()
@click.option("--rows", type=click.IntRange(8_000), default=200_000, show_default=True, help="Rows of the log.")
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Seconds for each line.")
@click.option("--clients", type=click.IntRange(1), default=4, show_default=True, help="Clients, beside one alone.")
def main(rows: int, seconds: float, clients: int) -> None:
    """Train a model, serve it, and print how long requests take."""
    with tempfile.TemporaryDirectory(prefix="dfm-serving-") as folder:
        model, asked = trained(Path(folder), rows)
        report(model, asked, sorted({1, clients}), seconds)


if __name__ == "__main__":
    main()
