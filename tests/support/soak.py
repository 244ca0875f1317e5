"""Trainings on a real cluster to which something happens every few seconds; each has to end as if nothing had.

    python -m tests.support.soak [--minutes 30] [--every 15] [--faults 120] [--seed 0] [--kinds worker-killed,…]

A scheduler, three workers and the driver, each a command of its own; workers behind links that can be cut, and shards,
cache and output on a small disk that can be filled, where this process may make such things (root). Whoever ends is
started again: the driver with the same command. A training that ends is compared with the one to which nothing
happened: parameters, rows. Drivers may end with an exit code that dfm documents and no traceback. Prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfm.data import synthetic
from tests.support.network import Network, NotAllowed, network_of
from tests.support.real_processes import PATIENCE, disturbed_job, free_port, start_training, write_job

WORKERS = ("worker-1", "worker-2", "worker-3")
_DISK = "256m"
_DOCUMENTED = {4: "cluster (4)", 8: "disk or store (8)", 130: "interrupted (130)"}
_LONGEST = 300.0
"""Seconds that a driver may take; after that it hangs."""
_ENVIRONMENT = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "15s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "15s",
    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "60s",
}
Undo = Callable[[], None]


@dataclass
class World:
    """The processes, and what they stand on."""

    folder: Path
    """On the small disk where there is one."""
    network: Network | None
    disk: bool
    processes: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.host = self.network.gateway if self.network else "127.0.0.1"
        self.port = free_port()
        self.address = f"tcp://{self.host}:{self.port}"
        self.logs = Path(tempfile.mkdtemp(prefix="soak-"))
        self.lock = threading.RLock()

    def start(self, name: str) -> None:
        """Start the scheduler or a worker, and let go of the one before."""
        if name == "scheduler":
            words = ["dask_scheduler", "--host", self.host, "--port", str(self.port), "--no-dashboard", "--no-show"]
            prefix: list[str] = []
        else:
            here = self.logs / name
            words = [
                *("dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", name),
                *("--local-directory", str(here), "--death-timeout", "20", "--memory-limit", "2GB"),
            ]
            prefix = []
            if self.network:
                prefix, words = self.network.inside(name), [*words, "--host", self.network.hosts[name]]
        log = (self.logs / f"{name}.log").open("ab")
        with log:
            self.processes[name] = subprocess.Popen(
                [*prefix, sys.executable, "-m", f"distributed.cli.{words[0]}", *words[1:]],
                stdout=log, stderr=log, env={**os.environ, **_ENVIRONMENT}, start_new_session=True,
            )  # fmt: skip

    def look_after(self) -> None:
        """Start again whoever ended."""
        with self.lock:
            for name in ("scheduler", *WORKERS):
                if name not in self.processes or self.processes[name].poll() is not None:
                    self.start(name)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait."""
        with contextlib.suppress(ProcessLookupError):
            self.processes[name].kill()
        self.processes[name].wait(PATIENCE)

    def close(self) -> None:
        """End all."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(PATIENCE)
        shutil.rmtree(self.logs, ignore_errors=True)


class Driver:
    """`dfm train`, again and again, and what it gave."""

    def __init__(self, world: World, log: Path) -> None:
        self._world, self._n = world, 0
        self._log = log
        self.ends: Counter[str] = Counter()
        self.problems: list[str] = []
        self.trainings = 0
        self.expected: tuple[str, Any] | None = None
        self.process: subprocess.Popen[str] | None = None
        self.since = ""
        """How the driver ended last: what the fault before is told to have done."""

    def undisturbed(self) -> None:
        """Train once without faults."""
        self._run()
        assert self.expected, self.problems
        self.ends.clear()
        self.trainings = 0

    def run(self, stopped: threading.Event) -> None:
        """Train until told to stop, then to the end."""
        while not stopped.is_set() or self._is_in_mid_training():
            self._run()

    def _is_in_mid_training(self) -> bool:
        return (self._world.folder / "out").exists()

    def _run(self) -> None:
        job = write_job(self._world.folder.parent / "job.toml", self._tables())
        self.process = start_training(job, "--scheduler", self._world.address)
        try:
            out, err = self.process.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler, where it is on, says where it was
            self.process.kill()
            out, err = self.process.communicate()
            self.problems.append(f"a driver hung for {_LONGEST:.0f} s: {err[-3000:]}")
        code = self.process.returncode
        if code == 0:
            self._judge(json.loads(out.splitlines()[-1]))
            self.since = "done"
        elif code == -signal.SIGKILL:
            self.since = "killed"
        elif code in _DOCUMENTED and "Traceback" not in err:
            self.since = _DOCUMENTED[code]
        else:
            self.since = f"unexpected ({code})"
            self.problems.append(f"exit code {code}: {err[-3000:]}")
        self.ends[self.since] += 1

    def _tables(self) -> Any:
        return disturbed_job(
            self._log, self._world.folder,
            cluster={"worker_timeout": 30.0}, output={"report": False, "directory": str(self._world.folder / "out")},
        )  # fmt: skip

    def _judge(self, done: dict[str, Any]) -> None:
        got = (done["parameters_sha256"], done["rows"])
        self.expected = self.expected or got
        self.trainings += 1
        if got != self.expected:
            self.problems.append(f"other bytes or rows: {got}")
        left = [path.name for path in (self._world.folder / "out").glob("checkpoint/*")]
        if left:
            self.problems.append(f"left behind: {left}")
        shutil.rmtree(self._world.folder / "out")
        self._n += 1
        if self._n % 3 == 0:  # every third one hashes its rows again
            shutil.rmtree(self._world.folder / "cache", ignore_errors=True)


# ------------------------------------------------------------------------------------------------ faults ----


def worker_killed(world: World, _driver: Driver, draw: random.Random) -> Undo:
    """SIGKILL to a worker; another one takes its place."""
    world.kill(draw.choice(WORKERS))
    return lambda: None


def all_workers_killed(world: World, _driver: Driver, _draw: random.Random) -> Undo:
    """SIGKILL to all of them."""
    for name in WORKERS:
        world.kill(name)
    return lambda: None


def worker_stalled(world: World, _driver: Driver, draw: random.Random) -> Undo:
    """SIGSTOP to a worker, for a while that the scheduler may or may not bear."""
    process = world.processes[draw.choice(WORKERS)]
    process.send_signal(signal.SIGSTOP)
    return lambda: process.send_signal(signal.SIGCONT)


def worker_cut_off(world: World, _driver: Driver, draw: random.Random) -> Undo:
    """A worker's link is down for a while."""
    assert world.network
    network, name = world.network, draw.choice(WORKERS)
    network.cut(name)
    return lambda: network.mend(name)


def worker_without_memory(world: World, _driver: Driver, draw: random.Random) -> Undo:
    """No further allocation of a worker succeeds, until it is killed."""
    name = draw.choice(WORKERS)
    take_memory(world.processes[name].pid)
    return lambda: world.kill(name)


def scheduler_killed(world: World, _driver: Driver, _draw: random.Random) -> Undo:
    """SIGKILL to the scheduler; its workers end with it."""
    world.kill("scheduler")
    return lambda: None


def scheduler_stalled(world: World, _driver: Driver, _draw: random.Random) -> Undo:
    """SIGSTOP to the scheduler for a while: it takes connections, and says nothing."""
    process = world.processes["scheduler"]
    process.send_signal(signal.SIGSTOP)
    return lambda: process.send_signal(signal.SIGCONT)


def driver_killed(_world: World, driver: Driver, _draw: random.Random) -> Undo:
    """SIGKILL to the driver."""
    _signal(driver, signal.SIGKILL)
    return lambda: None


def driver_stalled(_world: World, driver: Driver, _draw: random.Random) -> Undo:
    """SIGSTOP to the driver for a while."""
    process = driver.process
    _signal(driver, signal.SIGSTOP)

    def go_on() -> None:
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)

    return go_on


def disk_full(world: World, _driver: Driver, _draw: random.Random) -> Undo:
    """The disk of shards, cache and output is full for a while."""
    filler = world.folder.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"\0" * (1 << 16))
    return lambda: filler.unlink(missing_ok=True)


def _signal(driver: Driver, number: int) -> None:
    if driver.process is not None and driver.process.poll() is None:
        driver.process.send_signal(number)


def take_memory(pid: int) -> None:
    """Let no process have another page of memory beside those that it has."""
    with contextlib.suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))


Fault = Callable[[World, Driver, random.Random], Undo]
KINDS: dict[str, tuple[Fault, int, tuple[float, float]]] = {
    "worker-killed": (worker_killed, 4, (0.0, 0.0)),
    "all-workers-killed": (all_workers_killed, 1, (0.0, 0.0)),
    "worker-stalled": (worker_stalled, 2, (1.0, 30.0)),
    "worker-cut-off": (worker_cut_off, 2, (1.0, 25.0)),
    "worker-without-memory": (worker_without_memory, 1, (2.0, 6.0)),
    "scheduler-killed": (scheduler_killed, 1, (0.0, 0.0)),
    "scheduler-stalled": (scheduler_stalled, 1, (1.0, 40.0)),
    "driver-killed": (driver_killed, 2, (0.0, 0.0)),
    "driver-stalled": (driver_stalled, 1, (1.0, 20.0)),
    "disk-full": (disk_full, 1, (1.0, 6.0)),
}
"""What may happen, how often beside the others, and for how many seconds."""


@dataclass
class Tale:
    """What happened in a soak."""

    faults: Counter[str] = field(default_factory=Counter)
    followed: dict[str, Counter[str]] = field(default_factory=dict)
    """By kind: how the driver that was there at the fault ended."""


def soak(world: World, driver: Driver, arguments: argparse.Namespace, kinds: list[str]) -> Tale:
    """Let faults happen until there were enough, or time is over."""
    draw, tale = random.Random(arguments.seed), Tale()
    stopped, at_work = threading.Event(), threading.Event()
    keeper = threading.Thread(target=_keep, args=(world, at_work), daemon=True)
    training = threading.Thread(target=driver.run, args=(stopped,), daemon=True)
    keeper.start()
    training.start()
    weights = [KINDS[kind][1] for kind in kinds]
    ends = time.monotonic() + arguments.minutes * 60
    while time.monotonic() < ends and tale.faults.total() < arguments.faults:
        time.sleep(arguments.every * draw.uniform(0.5, 1.5))
        (kind,) = draw.choices(kinds, weights)
        act, _, (shortest, longest) = KINDS[kind]
        met, before = driver.process, driver.ends.total()
        with world.lock:
            undo = act(world, driver, draw)
        tale.faults[kind] += 1
        time.sleep(draw.uniform(shortest, longest))
        with contextlib.suppress(ProcessLookupError):
            undo()
        tale.followed.setdefault(kind, Counter())[_what_followed(driver, met, before)] += 1
        print(f"{time.strftime('%H:%M:%S')} {tale.faults.total()} {kind}; trainings {driver.trainings}", flush=True)
        for problem in driver.problems:
            print(f"  PROBLEM {problem}", flush=True)
    stopped.set()
    training.join(_LONGEST * 3)
    if training.is_alive():
        driver.problems.append("the last training did not end")
    at_work.set()
    keeper.join()
    return tale


def _what_followed(driver: Driver, met: Any, before: int) -> str:
    """In the seconds after a fault: did the driver that met it go on, or how did it end?"""
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        if driver.process is not met or (met is not None and met.poll() is not None):
            time.sleep(0.2)
            return driver.since if driver.ends.total() > before else "between two"
        time.sleep(0.05)
    return "went on"


def _keep(world: World, stopped: threading.Event) -> None:
    while not stopped.wait(0.5):
        world.look_after()


@contextlib.contextmanager
def small_disk() -> Iterator[tuple[Path, bool]]:
    """A folder, and whether it is a disk of its own."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = (
            os.getuid() == 0
            and not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "dfm-soak", folder], capture_output=True
            ).returncode
        )
        try:
            yield Path(folder), mounted
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", folder], check=False)


@contextlib.contextmanager
def a_world() -> Iterator[World]:
    """Processes on a network and a disk of their own, as far as this process may make such things."""
    with contextlib.ExitStack() as stack:
        folder, is_disk = stack.enter_context(small_disk())
        try:
            network = stack.enter_context(network_of(WORKERS))
        except NotAllowed as reason:
            print(f"no worker is cut off: {reason}")
            network = None
        world = World(folder / "run", network, is_disk)
        stack.callback(world.close)
        yield world


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two faults, on average")
    parser.add_argument("--faults", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="these only, separated by commas")
    arguments = parser.parse_args()
    with a_world() as world:
        kinds = [kind for kind in arguments.kinds.split(",") if kind] or list(KINDS)
        kinds = [
            kind
            for kind in kinds
            if (world.network or kind != "worker-cut-off") and (world.disk or kind != "disk-full")
        ]
        log = world.folder.parent / "log"
        synthetic.generate(log, rows=8_000, days=4, shards_per_day=4, seed=3)
        world.folder.mkdir()
        world.look_after()
        driver = Driver(world, log)
        driver.undisturbed()
        started = time.monotonic()
        tale = soak(world, driver, arguments, kinds)
        print(
            f"{tale.faults.total()} faults in {(time.monotonic() - started) / 60:.0f} min; {driver.trainings} trainings"
        )
        print("| fault | times | the driver that met it, two seconds after |\n|---|---|---|")
        for kind, times in sorted(tale.faults.items()):
            print(f"| {kind} | {times} | {', '.join(f'{how} {n}' for how, n in tale.followed[kind].most_common())} |")
        print(f"drivers: {dict(driver.ends)}")
        print(f"{len(driver.problems)} problems")
        for problem in driver.problems:
            print(problem)
        sys.exit(bool(driver.problems))


if __name__ == "__main__":
    main()
