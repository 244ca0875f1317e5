"""A small training whose n-th operation on a file fails, or is its last.

    python -m tests.support.failing_operations [--every 1] [--first 1] [--how once,for-ever,…] [--sample N]

prints a table: the operation, what was seen, and whether the same command then gives the bytes of a training to which
nothing happens. Everything (driver, scheduler, worker) runs in one process, a fork of this one, so that operations have
numbers; two threads of it may change places, and the table names what was met.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import io
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ONCE, FOR_EVER, KILLED_AFTER, KILLED_HALF_WAY = "once", "for-ever", "killed-after", "killed-half-way"
WAYS = ONCE, FOR_EVER, KILLED_AFTER, KILLED_HALF_WAY
_KILLED = 137
FEW_OPERATIONS: dict[str, dict[str, Any]] = {
    "data": {"validation_from": "2026-11-16"},
    "schema": {"numeric": ["I1"], "categorical": ["C1", "C2"]},
    "training": {"n_replicas": 2, "n_epochs": 2, "averages_per_epoch": 1, "early_stopping": False},
}
"""What the tables of a job say of a training that is over in a second, and has all that one has."""
_OF_SYSTEM = (
    *("link", "listdir", "mkdir", "open", "remove", "rename", "replace", "rmdir", "scandir", "stat", "truncate"),
    *("unlink", "utime"),
)


@dataclass
class Operations:
    """Operations on files below some folders; number `at` fails, or ends the process."""

    roots: Sequence[Path]
    at: int = 0
    way: str = ONCE
    met: list[str] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.RLock)

    def run(self, name: str, path: Any, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """An operation. OSError where it is its turn to fail."""
        try:
            text = os.path.abspath(os.fspath(path))
        except TypeError:  # a descriptor
            return act()
        if not any(text.startswith(str(root)) for root in self.roots):
            return act()
        with self._lock:
            self.met.append(f"{name} {self._shown(text)}")
            turn = len(self.met)
        self._before(turn, text, half)
        try:
            return act()
        finally:
            if turn == self.at and self.way == KILLED_AFTER:
                os._exit(_KILLED)

    def _before(self, turn: int, path: str, half: Callable[[], Any] | None) -> None:
        fails = turn == self.at if self.way == ONCE else 0 < self.at <= turn if self.way == FOR_EVER else False
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if turn == self.at and self.way == KILLED_HALF_WAY:
            if half is not None:
                half()
            os._exit(_KILLED)

    def _shown(self, path: str) -> str:
        for root in self.roots:
            path = path.replace(f"{root}/", "").replace(str(root), root.name)
        return re.sub(r"[0-9a-f]{16,}", "…", path)

    def install(self) -> None:
        """Watch from here on."""
        for name in _OF_SYSTEM:
            setattr(os, name, self._watched(name, getattr(os, name)))
        original = io.open

        def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if not set(mode) & set("wax+") or isinstance(file, int) or "opener" in more:
                return self.run("read", file, lambda: original(file, mode, *rest, **more))
            raw = self.run("create", file, lambda: _Raw(file, mode.replace("b", "").replace("t", "")))
            raw.operations = self
            buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, more.get("encoding"))

        io.open = builtins.open = opened  # type: ignore[assignment]
        self._watch_arrays()

    def _watched(self, name: str, function: Any) -> Any:
        def call(path: Any = ".", *rest: Any, **more: Any) -> Any:
            return self.run(name, path, lambda: function(path, *rest, **more))

        return call

    def _watch_arrays(self) -> None:
        from dfm.storage import arrays

        save = arrays.save_file

        def saved(tensors: Any, path: Any, *rest: Any, **more: Any) -> None:
            def half() -> None:
                save(tensors, path, *rest, **more)
                os.truncate(path, os.path.getsize(path) // 2)

            self.run("save", path, lambda: save(tensors, path, *rest, **more), half)

        arrays.save_file = saved


class _Raw(io.FileIO):
    """A file whose writes are operations."""

    operations: Operations | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        write = super().write
        if self.operations is None or not view.nbytes:
            return write(view)
        half = view[: view.nbytes // 2]
        done: int = self.operations.run("write", self.name, lambda: write(view), lambda: write(half))
        return done


# ------------------------------------------------------------------------------------------- one training ----


@dataclass(frozen=True)
class Seen:
    """How a training ended: "same" with its digest, an error of dfm's ("named"), another ("raw"), or "killed"."""

    kind: str
    text: str = ""
    operations: tuple[str, ...] = ()


def train_in_fork(tables: Any, at: int = 0, way: str = ONCE) -> Seen:
    """Train in a fork of this process; operation `at` of it fails in some way."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            told = json.dumps(_train(tables, at, way))
        except BaseException as error:  # of the cluster that ends
            told = json.dumps(("raw", repr(error), []))
        with os.fdopen(writing, "w") as stream:
            stream.write(told)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == _KILLED:
        return Seen("killed")
    kind, text, operations = json.loads(told)
    return Seen(kind, text, tuple(operations))


def _train(tables: Any, at: int, way: str) -> tuple[str, str, list[str]]:
    from dfm import jobs
    from dfm.distributed import checkpointing
    from dfm.errors import DfmError
    from tests.support.small_jobs import in_process_client

    checkpointing.LARGEST_SHARE = 1.0  # one after every average
    watched = [Path(tables["cluster"]["cache"]), Path(tables["output"]["directory"]), Path(tables["data"]["train"])]
    operations = Operations(watched, at, way)
    log = io.StringIO()
    with contextlib.redirect_stderr(log), in_process_client(1) as client:
        operations.install()
        try:
            result = jobs.train(tables, client, progress=False)
            return "same", result.parameters_sha256, operations.met
        except DfmError as error:
            return "named", f"{type(error).__name__}: {error}", operations.met
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = next((f"{frame.name}" for frame in reversed(where) if "/dfm/" in frame.filename), "")
            return "raw", f"{type(error).__name__}: {error} in {ours}", operations.met


@dataclass(frozen=True)
class Trial:
    """One operation that failed in one way, and what followed."""

    operation: str
    way: str
    seen: Seen
    after: Seen
    leftovers: tuple[str, ...]

    def row(self) -> str:
        """Cells of a table: the operation, how it failed, what was seen, and after the same command once more."""
        seen, after = (
            each.kind + (f": {re.sub(r'/[^ ]*/', '', each.text)[:160]}" if each.kind in ("named", "raw") else "")
            for each in (self.seen, self.after)
        )
        return f"{self.operation} | {self.way} | {seen} | {after}"


def _tree(*folders: str) -> set[str]:
    found = set()
    for folder in folders:
        for path in Path(folder).rglob("*"):
            if path.is_file():
                found.add(re.sub(r"[0-9a-f]{16,}", "…", str(path.relative_to(Path(folder).parent))))
    return found


class Trials:
    """Trainings of one log, each with an operation that fails."""

    def __init__(self, folder: Path) -> None:
        from dfm.data import synthetic

        self._folder, self._n = folder, 0
        self._log = folder / "log"
        synthetic.generate(self._log, rows=1_200, days=3, shards_per_day=1, seed=3)
        self._load_kernels()
        self.undisturbed = train_in_fork(self._tables())
        assert self.undisturbed.kind == "same", self.undisturbed.text
        self._tree = _tree(*self._places())

    def _load_kernels(self) -> None:
        """Train once in this process, without a thread, so that forks of it find kernels in memory."""
        from dfm import jobs
        from tests.support.histories import on
        from tests.support.simulated_cluster import Chances, SimulatedCluster

        with on(SimulatedCluster(0, 1, Chances())):
            jobs.train(self._tables(), progress=False)

    @property
    def n_operations(self) -> int:
        """Operations of a training to which nothing happens."""
        return len(self.undisturbed.operations)

    def _tables(self) -> dict[str, Any]:
        from tests.support.small_jobs import job_tables

        self._n += 1
        return job_tables(self._log, self._folder / str(self._n), **FEW_OPERATIONS)

    def _places(self) -> list[str]:
        here = self._folder / str(self._n)
        return [str(here / "cache"), str(here / "out")]

    def run(self, at: int, way: str) -> Trial:
        """Fail operation `at`, then run the same command undisturbed.

        Without a report, which takes half of the time, unless one is left half written.
        """
        tables = self._tables()
        seen = train_in_fork(tables, at, way)
        operation = seen.operations[at - 1] if len(seen.operations) >= at else self.undisturbed.operations[at - 1]
        self._age()
        has_report = any((self._folder / str(self._n)).rglob(".report.*.part"))
        after = train_in_fork({**tables, "output": {**tables["output"], "report": has_report}})
        left = tuple(sorted(_tree(*self._places()) - self._tree))
        shutil.rmtree(self._folder / str(self._n))
        return Trial(operation, way, seen, after, left)

    def _age(self) -> None:
        """What a killed process left half written is an hour old when the command is run again."""
        for path in (self._folder / str(self._n)).rglob(".*.part"):
            os.utime(path, (0, 0))

    def is_right(self, trial: Trial) -> bool:
        """Whether a trial ended as it should: the bytes, or a named error or a death and then the bytes."""
        ends = {"same": self.undisturbed.text}
        fine = trial.seen.kind in ("named", "killed") or ends.get(trial.seen.kind) == trial.seen.text
        return fine and (trial.after.kind, trial.after.text) == ("same", self.undisturbed.text) and not trial.leftovers


def _chosen(arguments: argparse.Namespace, n_operations: int) -> Iterator[tuple[int, str]]:
    if arguments.sample:
        step = n_operations // arguments.sample
        for number in range(arguments.sample):
            yield 1 + step // 2 + number * step, WAYS[number % len(WAYS)]
        return
    for at in range(arguments.first, n_operations + 1, arguments.every):
        for way in arguments.how.split(","):
            yield at, way


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--how", default=",".join(WAYS))
    parser.add_argument("--sample", type=int, help="so many operations, each in the next of the ways")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        print(f"{trials.n_operations} operations; {trials.undisturbed.text[:16]}", flush=True)
        wrong = 0
        for at, way in _chosen(arguments, trials.n_operations):
            trial = trials.run(at, way)
            is_right = trials.is_right(trial)
            wrong += not is_right
            print(f"| {at} | {trial.row()} | {'yes' if is_right else f'**no** {trial.leftovers}'} |", flush=True)
        print(f"{wrong} wrong")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
