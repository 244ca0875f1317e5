"""Histories of a training: drivers that train on a simulated cluster, die, and are started again, until one ends.

    python -m tests.support.histories [--seeds 200] [--first 0] [--seed N --trace]

A seed gives one history. However it goes, it has one right end: the bytes and the row account of a training to which
nothing happens, and nothing left behind. Drivers that end with an error end with one that dfm documents.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import logging
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
import types
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from distributed.scheduler import KilledWorker

from dfm import jobs
from dfm.data import synthetic
from dfm.distributed import beginning, checkpointing, loops, monitoring, prepare, stretches, train
from dfm.distributed.cluster import connect
from dfm.errors import ClusterError, DfmError
from dfm.runs import log, record
from dfm.storage import files
from tests.support.simulated_cluster import Chances, DriverDied, SimulatedCluster, SimulatedWatch
from tests.support.small_jobs import job_tables

_LIVES = 6


@dataclass
class Life:
    """A driver: how its cluster fared, how many rounds it began together, how it ended ("done", "died" or the name of
    an error of dfm).
    """

    n_workers: int
    chances: Chances
    stretch: int = 1
    end: str = ""
    trace: list[str] = field(default_factory=list)


@dataclass
class History:
    """Drivers, one after the other, and what the last one gave."""

    seed: int
    play: str
    lives: list[Life] = field(default_factory=list)
    listings: dict[str, list[str]] = field(default_factory=dict)
    digest: str = ""
    digests: set[str] = field(default_factory=set)
    rows: str = ""
    problems: list[str] = field(default_factory=list)


class _Aside:
    """In place of a thread of the driver: nothing by itself."""

    def __init__(self, *_arguments: Any, **_more: Any) -> None:
        pass

    def start(self) -> None:
        """Does nothing."""

    def join(self, timeout: float | None = None) -> None:
        """Does nothing."""

    def is_alive(self) -> bool:
        """Never."""
        return False


_THREADING = types.SimpleNamespace(
    Thread=_Aside, **{name: getattr(threading, name) for name in ("Condition", "Event", "Lock")}
)


class _Checkpointer(checkpointing.Checkpointer):
    """Writes when the play says so, not in a thread of its own."""

    cluster: SimulatedCluster

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.cluster.between.append(self._write_now)

    def _write_now(self) -> None:
        if self._pending is not None and not self._busy and self.conflict is None:
            snapshot, self._pending, self._busy = self._pending, None, True
            try:
                self._write_safely(snapshot)
            finally:
                self._busy = False

    def flush(self, timeout: float = 60.0) -> None:
        """What waits is written now."""
        self._write_now()

    def close(self) -> None:
        """What waits is not written any more."""
        self._pending = None
        if self._write_now in self.cluster.between:
            self.cluster.between.remove(self._write_now)


@contextlib.contextmanager
def on(cluster: SimulatedCluster, stretch: int = 1) -> Iterator[None]:
    """Trainings of this block run on a simulated cluster. stretch: rounds that they begin together."""
    watch = SimulatedWatch(cluster)
    own = type("Own", (_Checkpointer,), {"cluster": cluster})

    @contextlib.contextmanager
    def client_of(_settings: Any, _client: Any) -> Iterator[Any]:
        try:
            yield watch.client
        except (KilledWorker, CancelledError) as error:
            raise ClusterError("the cluster was lost") from error

    with contextlib.ExitStack() as stack:
        for place, name, stand_in in (
            (beginning, "Watch", lambda _client, _timeout: watch),
            (loops, "Checkpointer", own),
            (loops, "rounds_together", lambda _run, _prepared, _n_blocks: stretch),
            (stretches, "least_memory", lambda _client: 0),
            (connect, "client_of", client_of),
            (connect, "shares_disk", lambda _client: True),
            (connect, "cache_directory", lambda settings, _client: settings.cache),
            (prepare, "cache_directory", lambda settings, _client: settings.cache),
            (monitoring, "_send", lambda _client, _event: None),
            (checkpointing, "threading", _THREADING),
            (log, "threading", _THREADING),
            (log, "_LAST_PAUSES", (0.0,) * 9),
            (files, "names_in", cluster.names_in),
            (record, "_utc_now", cluster.now),
            (train, "time", types.SimpleNamespace(time=lambda: cluster.now().timestamp(), monotonic=time.monotonic)),
            *(
                (files, name, functools.partial(cluster.change, getattr(files, name), name != "remove"))
                for name in ("write_bytes", "create_bytes", "remove")
            ),
        ):
            stack.enter_context(mock.patch.object(place, name, stand_in))
        yield


PLAYS: dict[str, dict[str, Any]] = {
    "averages": {},
    "momentum": {"optimizer": "adam", "outer_momentum": 0.5, "learning_rate": 0.05},
    "rollbacks": {
        **{"optimizer": "adam", "outer_momentum": 0.5, "early_stopping": True, "patience": 2, "rollbacks": 1},
        **{"validate": "average", "learning_rate": 0.05},
    },
    "plateau": {"schedule": "plateau", "n_epochs": 6, "averages_per_epoch": 1, "early_stopping": None},
    "mcmc": {"solver": "mcmc", "n_epochs": 4, "draws": 2, "burn_in": 1},
}
"""Settings of training, by the name of the play."""
_UNJUDGED = "momentum"
"""The play in which no rows validate, so that what comes last is published."""
_SGD = {"n_replicas": 3, "n_epochs": 5, "averages_per_epoch": 2, "early_stopping": False, "backend": "numba"}


class Theatre:
    """One small log, and histories of jobs on it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._log = folder, folder / "log"
        synthetic.generate(self._log, rows=400, days=3, shards_per_day=2, seed=3)
        self._right: dict[str, History] = {}
        self._trees: dict[str, set[str]] = {}

    def undisturbed(self, play: str) -> History:
        """The training of a play to which nothing happens."""
        if play not in self._right:
            history, here = History(-1, play), self._folder / play
            self._live(history, here, Life(1, Chances()), 0)
            assert history.digest, (history.lives[0].end, history.lives[0].trace[-3:])
            self._right[play], self._trees[play] = history, _tree(here)
        return self._right[play]

    def play(self, seed: int) -> History:
        """The history of a seed."""
        draw = random.Random(seed)
        history = History(seed, draw.choice(sorted(PLAYS)))
        self.undisturbed(history.play)
        here = self._folder / f"seed-{seed}"
        for number in range(_LIVES):
            n_workers, chances = draw.choice([1, 2, 3, 5]), _chances(draw, is_last=number == _LIVES - 1)
            life = Life(n_workers, chances, draw.choice([1, 1, 2, 3]))
            self._live(history, here, life, draw.getrandbits(32))
            is_told = _state(here) == "finished"
            if life.end == "done" and not is_told and "a rival begins" not in life.trace:
                history.problems.append(f"a driver came to its end, and the record says {_state(here)}")
            if history.problems or (life.end == "done" and is_told):
                break
        self._judge(history, here)
        shutil.rmtree(here, ignore_errors=True)
        return history

    def _tables(self, history: History, here: Path) -> dict[str, Any]:
        own = PLAYS[history.play]
        shared = {"n_replicas": 3, "n_epochs": 3} if "solver" in own else _SGD
        training = {key: value for key, value in {**shared, **own}.items() if value is not None}
        tables = job_tables(
            self._log,
            here,
            data={"validation_from": "2026-11-16"},
            schema={"numeric": ["I1"], "categorical": ["C1", "C2"]},
            output={"report": False},
        )
        if history.play == _UNJUDGED:
            del tables["data"]["validation_from"]
        return {**tables, "training": training}

    def _live(self, history: History, here: Path, life: Life, seed: int) -> None:
        history.lives.append(life)
        cluster = SimulatedCluster(seed, life.n_workers, life.chances, history.listings)
        life.trace = cluster.trace
        if life.chances.rival:
            rival = Life(2, dataclasses.replace(life.chances, rival=0.0))
            cluster.rival = lambda: self._live(history, here, rival, seed + 1)
        try:
            with on(cluster, life.stretch):
                result = jobs.train(self._tables(history, here), progress=False)
            life.end, history.digest = "done", result.parameters_sha256
            history.rows = repr(dataclasses.asdict(result.rows))
            history.digests.add(result.parameters_sha256)
        except DriverDied:
            life.end = "died"
        except DfmError as error:
            life.end = type(error).__name__
            life.trace.append(f"{life.end}: {error}")
        except Exception as error:
            life.end = "!"
            life.trace += traceback.format_exception(error)
            history.problems.append(f"{type(error).__name__}: {error}")

    def _judge(self, history: History, here: Path) -> None:
        right = self._right[history.play]
        if history.digests != {right.digest}:
            history.problems.append(f"other bytes, or none: {history.digests}")
        if history.rows != right.rows:
            history.problems.append(f"other rows: {history.rows}")
        if left := _tree(here) - self._trees[history.play]:
            history.problems.append(f"left behind: {sorted(left)[:5]}")
        if _state(here) != "finished":
            history.problems.append(f"the record says {_state(here)}")


def _chances(draw: random.Random, is_last: bool) -> Chances:
    """What may happen in a driver's life; the last one is spared."""
    forgets = draw.choice([0.0, 0.02])
    if is_last:
        return Chances(forgets=forgets)
    return Chances(
        lost=draw.choice([0.0, 0.003, 0.01, 0.03]),
        driver=draw.choice([0.0, 0.004, 0.008]),
        scheduler=draw.choice([0.0, 0.0, 0.001]),
        forgets=forgets,
        rival=draw.choice([0.0, 0.0, 0.0, 0.003]),
        full=draw.choice([0.0, 0.0, 0.05]),
        stale=draw.choice([0.0, 0.0, 0.1, 0.5]),
        jumps=draw.choice([0.0, 0.0, 0.01]),
    )


def _state(folder: Path) -> str:
    """The state in the record of a run: of the last driver that began."""
    found = record.read_run(str(folder / "out"))
    return found.state if found else "nothing"


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    """Play histories, and tell of those that do not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    with tempfile.TemporaryDirectory() as folder:
        theatre, bad, ends = Theatre(Path(folder)), 0, Counter[str]()
        for seed in [arguments.seed] if arguments.seed is not None else seeds:
            history = theatre.play(seed)
            if (seed + 1) % 500 == 0:
                print(f"{seed + 1 - seeds.start:,} of {len(seeds):,} histories", flush=True)
            bad += bool(history.problems)
            ends.update(life.end for life in history.lives)
            ends["went on"] += any("load_block" in line for life in history.lives for line in life.trace)
            ends["workers lost"] += sum(" is lost" in line for life in history.lives for line in life.trace)
            if history.problems or arguments.trace:
                print(seed, history.play, [life.end for life in history.lives], history.problems, flush=True)
            if arguments.trace:
                print("\n".join(f"  {n}: {line}" for n, life in enumerate(history.lives) for line in life.trace))
        print(dict(ends))
        print(f"{bad} histories that did not end well")
        sys.exit(bool(bad))


if __name__ == "__main__":
    main()
