"""A small training on a store whose n-th request fails, is not answered, or is the last of its driver.

    python -m tests.support.failing_requests [--every 1] [--first 1] [--how denied,…] [--sample N]

prints a table: the request, how it failed, how the driver ended, and whether the same command then gives the bytes of a
training to which nothing happens. The store is a moto server behind a proxy; drivers have their worker
inside, and are forks of one process that has loaded the kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfm.data import synthetic
from tests.support.failing_operations import FEW_OPERATIONS
from tests.support.flaky_proxy import ACCESS_KEY, SECRET_KEY, Faults, proxy
from tests.support.real_processes import PATIENCE, free_port
from tests.support.small_jobs import in_process_client, job_tables

WAYS = {
    "refused once": ("slow down", False),
    "done and no answer once": ("done but failed", False),
    "cut off once": ("cut", False),
    "refused from then on": ("slow down", True),
    "denied": ("denied", True),
    "the driver dies before it": ("killed", False),
    "the driver dies after it": ("killed after", False),
}
_ENDED = "ended "
_NURSERY = "import sys; from tests.support.failing_requests import fork_drivers; fork_drivers(sys.argv[1])"


def fork_drivers(log: str) -> None:
    """Drivers of jobs, one for each line of standard input, as forks of this process: kernels are in its memory.

    Told on standard output: the number of the driver's process, how the training ended, how the process did.
    """
    from dfm import jobs
    from dfm.distributed import checkpointing
    from dfm.storage import retry
    from tests.support.histories import on
    from tests.support.simulated_cluster import Chances, SimulatedCluster

    importlib.import_module("s3fs")  # no thread of it runs before it is used
    checkpointing.LARGEST_SHARE = 1.0  # one after every average
    retry._FIRST_DELAY = 0.02
    retry.PATIENCE = 3.0
    with tempfile.TemporaryDirectory() as folder, on(SimulatedCluster(0, 1, Chances())):
        jobs.train(_tables(log, log, Path(folder), folder), progress=False)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            print(os.getpid(), flush=True)
            _drive(json.loads(line))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"{_ENDED}{os.waitstatus_to_exitcode(status)}", flush=True)


def _drive(tables: Any) -> None:
    from dfm import jobs
    from dfm.errors import DfmError

    try:
        with in_process_client(1) as client:
            try:
                result = jobs.train(tables, client, progress=False)
                told = f"same {result.parameters_sha256}"
            except DfmError as error:
                told = f"named {error.exit_code} {type(error).__name__}: {error}"
    except BaseException as error:
        told = f"raw {error!r}"
    print(" ".join(told.split()), flush=True)


def _tables(log: Any, train: str, folder: Path, output: str) -> Any:
    tables = job_tables(log, folder, **FEW_OPERATIONS)
    tables["data"]["train"], tables["output"]["directory"] = train, output
    return tables


@dataclass(frozen=True)
class Trial:
    """A request that failed in one way, and what followed."""

    request: str
    way: str
    seen: str
    after: str
    left: tuple[str, ...]

    def is_right(self, expected: str) -> bool:
        """Whether it ended well, and then gave the bytes."""
        fine = self.seen in (expected, "killed") or self.seen.startswith("named ")
        return fine and self.after == expected and not self.left

    def row(self) -> str:
        """Cells of a table."""
        seen, after = (re.sub(r"(?<=same )(.{8}).*", r"\1", text)[:140] for text in (self.seen, self.after))
        return f"{self.request} | {self.way} | {seen} | {after}"


class Trials:
    """Trainings of one log in one store."""

    def __init__(self, folder: Path, url: str, faults: Faults) -> None:
        self._folder, self._url, self._faults, self._n = folder, url, faults, 0
        self._environment = {
            **os.environ,
            **{"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
            **{"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"},
        }
        self._put_log()
        command = [sys.executable, "-c", _NURSERY, str(folder / "log")]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with (folder / "drivers.log").open("w") as log:
            self._nursery = subprocess.Popen(command, env=self._environment, stderr=log, **pipes)
        self.expected = self._train(self._tables())
        assert self.expected.startswith("same "), self.expected
        self.requests = [_shown(request) for request in faults.met]
        self._kept = self._objects()

    def _put_log(self) -> None:
        log = self._folder / "log"
        synthetic.generate(log, rows=1_200, days=3, shards_per_day=1, seed=3)
        self._filesystem().mkdir("trials")
        self._filesystem().put(str(log), "trials/log", recursive=True)

    def _filesystem(self) -> Any:
        import s3fs

        about: dict[str, Any] = {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": self._url}
        return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, **about)

    def close(self) -> None:
        """No more drivers."""
        self._nursery.kill()
        self._nursery.communicate()

    def _tables(self) -> Any:
        self._n += 1
        own = self._folder / str(self._n)
        return _tables(self._folder / "log", "s3://trials/log", own, f"s3://trials/{self._n}")

    def _train(self, tables: Any, at: int = 0, way: str = "", for_ever: bool = False) -> str:
        asked, told = self._nursery.stdin, self._nursery.stdout
        assert asked
        assert told
        asked.write(f"{json.dumps(tables)}\n")
        self._faults.choose(at, way, for_ever)
        asked.flush()
        number = int(told.readline())
        self._faults.kill = functools.partial(os.kill, number, signal.SIGKILL)
        lines = []
        while not (line := told.readline()).startswith(_ENDED):
            assert line, f"the drivers' parent is gone: {(self._folder / 'drivers.log').read_text()[-2000:]}"
            lines.append(line.strip())
        status = int(line.removeprefix(_ENDED))
        return "killed" if status == -signal.SIGKILL else lines[-1] if lines else f"raw status {status}"

    def _objects(self) -> set[str]:
        prefix = f"trials/{self._n}"
        return {_shown(name.removeprefix(prefix)) for name in self._filesystem().find(prefix)}

    def run(self, at: int, name: str) -> Trial:
        """Fail request `at`, then run the same command undisturbed, without its report."""
        tables = self._tables()
        seen = self._train(tables, at, *WAYS[name])
        request = _shown(self._faults.met[at - 1]) if len(self._faults.met) >= at else self.requests[at - 1]
        self._faults.choose(0)
        after = self._train({**tables, "output": {**tables["output"], "report": False}})
        return Trial(request, name, seen, after, tuple(sorted(self._objects() - self._kept)))


def _shown(request: str) -> str:
    """Without what differs between two runs."""
    return re.sub(r"(?<=trials/)\d+", "…", re.sub(r"[0-9a-f]{16,}|[0-9]{8}T[0-9]{6}\S*", "…", request))


@contextlib.contextmanager
def a_store(folder: Path) -> Iterator[tuple[str, Faults]]:
    """URL of a moto server behind a proxy, and the proxy's faults."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "moto.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                    break
                time.sleep(0.1)
            with proxy(f"127.0.0.1:{port}") as served:
                yield served
        finally:
            server.kill()


def chosen(
    n_requests: int, every: int = 1, first: int = 1, sample: int = 0, names: Sequence[str] = tuple(WAYS)
) -> Iterator[tuple[int, str]]:
    """Which request fails, and how; sample: so many, each in the next of the ways."""
    if sample:
        for number in range(sample):
            yield 1 + number * n_requests // sample, names[number % len(names)]
        return
    for at in range(first, n_requests + 1, every):
        for name in names:
            yield at, name


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--how", type=lambda text: text.split(","), default=list(WAYS), help="by commas")
    parser.add_argument("--sample", type=int, default=0)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        a_store(Path(folder)) as (url, faults),
        contextlib.closing(Trials(Path(folder), url, faults)) as trials,
    ):
        wrong = 0
        print(f"{len(trials.requests)} requests; {trials.expected[:21]}", flush=True)
        chosen_ones = chosen(len(trials.requests), arguments.every, arguments.first, arguments.sample, arguments.how)
        for at, name in chosen_ones:
            trial = trials.run(at, name)
            is_right = trial.is_right(trials.expected)
            wrong += not is_right
            print(f"| {at} | {trial.row()} | {'yes' if is_right else f'**no** {trial.left}'} |", flush=True)
        print(f"{wrong} wrong")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
