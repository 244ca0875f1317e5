"""A search on a cluster: rows are hashed once, and all trials train on the same partitions, a few at a time.

A trial is a training loop of its own. What it came to is written to search.jsonl as it is known; a search that was
killed goes on from there, and repeats at most the epochs of trials that were under way or had yet to go on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from distributed import Client

from dfm.data.snapshots import pins_of
from dfm.distributed.run import Event, OnEvent
from dfm.distributed.trials import Trials, loss_of, open_trials
from dfm.errors import SettingsError
from dfm.events import json_ready, to_json
from dfm.settings.job import Job
from dfm.settings.toml import to_toml
from dfm.storage import files, ownership
from dfm.training.inputs import Inputs
from dfm.training.loop import TrainingLoop
from dfm.training.order import Order
from dfm.training.search import Trial, rungs_of, survivors, trials_of

JOURNAL, BEST = "search.jsonl", "best.toml"
_MARK, _FIRST = "# Written by `dfm search`.", b'{"job"'
"""Beginnings of these files, by which they are known as dfm's."""
_TO_THE_END = 0
"""The rung of the closing trainings with several seeds."""
_AT_A_TIME = 4
"""Trials whose rounds alternate on a cluster: while one is averaged, workers train another."""


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search. losses: validation loss by seed of the best trial ("best"), unless that is the default,
    and of the "default"; best: the job file
    of whichever is better on average; trials: a record per trial and rung.
    """

    best: str
    is_default: bool
    losses: dict[str, list[float]]
    trials: list[Event]


def search(order: Order, client: Client | None = None, on_event: OnEvent | None = None) -> SearchResult:
    """Try the settings of the job's [search] on its data, and write the best as a job file to output.directory.

    SettingsError without rows to validate on, or where the directory holds the journal of another search.
    """
    journal = Journal.of(order.job)
    with open_trials(order, client, on_event, pins_of(journal.tables), journal.begin) as trials:
        return Search(trials, journal).result()


@dataclass
class Journal:
    """The records of a search, in a file of one JSON object a line; the first says whose they are."""

    url: str
    identity: str
    options: files.Options
    records: list[Event] = field(default_factory=list)
    tables: list[dict[str, str]] = field(default_factory=list)
    """The states of tables that are read (`dfm.data.snapshots.Snapshot`), from the first trial to the last."""
    shards: str = ""
    """Digest of the identities of all shards."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, job: Job) -> Journal:
        """The journal in the job's output directory. SettingsError where it is another search's."""
        url = files.join(job.output.directory, JOURNAL)
        found = cls(url, job.fingerprint(), job.data.storage_options)
        ownership.check_replaceable(url, ownership.begins_with(_FIRST), found.options)
        best = files.join(job.output.directory, BEST)
        ownership.check_replaceable(best, ownership.begins_with(_MARK.encode()), found.options)
        if not job.output.resume or not files.exists(url, found.options):
            return found
        lines = [json.loads(line) for line in files.read_bytes(url, found.options).decode().splitlines() if line]
        if not lines or lines[0].get("job") != found.identity:
            raise SettingsError(
                f"{url} holds another search: its data, schema, model or training differ. Choose another "
                "output.directory, or begin anew with --no-resume."
            )
        found.records, found.tables = lines[1:], lines[0].get("tables", [])
        found.shards = lines[0].get("shards", "")
        return found

    def begin(self, inputs: Inputs) -> None:
        """Note the data that the trials see. SettingsError where there are results of other data already."""
        shards = hashlib.sha256(to_json(inputs.identities).encode()).hexdigest()
        if self.shards not in ("", shards):
            raise SettingsError(
                f"{self.url} holds results of other data: a shard was added, changed or is gone since then. Choose "
                "another output.directory, or begin anew with --no-resume."
            )
        self.shards, self.tables = shards, [snapshot.to_dict() for snapshot in inputs.snapshots]

    def add(self, record: Event) -> None:
        """Write one more record."""
        with self._lock:
            self.records.append(json_ready(record))
            first = {"job": self.identity, "shards": self.shards, **({"tables": self.tables} if self.tables else {})}
            lines = [first, *self.records]
            text = "".join(to_json(line) + "\n" for line in lines)
            files.write_bytes(self.url, text.encode(), self.options)

    def loss(self, key: str, rung: int, seed: int = 0) -> float | None:
        """The loss of a trial at a rung; None where that is not known. inf where it diverged."""
        for record in self.records:
            if (record["key"], record["rung"], record["seed"]) == (key, rung, seed):
                return math.inf if record["loss"] is None else float(record["loss"])
        return None


@dataclass(frozen=True)
class Rival:
    """A job that is trained with several seeds in the end: the best trial's, or the search's own, the "default"."""

    key: str
    number: int
    job: Job


@dataclass
class Search:
    """Trials that climb rungs, and what is known of them."""

    trials: Trials
    journal: Journal
    _loops: dict[int, TrainingLoop] = field(init=False, default_factory=dict)

    @property
    def _job(self) -> Job:
        return self.trials.run.job

    def result(self) -> SearchResult:
        """All rungs, then the best and the default with several seeds."""
        trials = trials_of(self._job)
        self.trials.warm_up(trials)
        for number, rung in enumerate(rungs_of(len(trials)), start=1):
            losses = self._climb(trials, number, rung.until, rung.n_kept)
            trials = survivors(trials, losses, rung.n_kept)
        return self._judged(trials[0])

    # ---------------------------------------------------------------------------------------- trials ----

    def _climb(self, trials: Sequence[Trial], rung: int, until: int | None, n_kept: int) -> dict[int, float]:
        """Losses of the trials at a rung, by number. Those that cannot go on give up their parameters at once."""
        losses: dict[int, float] = {}
        lock = threading.Lock()

        def climb(trial: Trial) -> None:
            loss = self.journal.loss(trial.key, rung)
            if loss is None:
                loss = self._train(trial, rung, until)
            with lock:
                losses[trial.number] = loss
                kept = {each.number for each in survivors([t for t in trials if t.number in losses], losses, n_kept)}
                for number in [number for number in losses if number not in kept]:
                    self._loops.pop(number, None)

        self._side_by_side([lambda trial=trial: climb(trial) for trial in trials])  # type: ignore[misc]
        return losses

    def _side_by_side(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Results of the calls, of which a few run at a time; the first error is raised when those begun are over."""
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            futures = [pool.submit(call) for call in calls]
            try:
                return [future.result() for future in futures]
            finally:  # of an error: what has not begun will not
                pool.shutdown(cancel_futures=True)

    def _train(self, trial: Trial, rung: int, until: int | None) -> float:
        """Walk a trial on to an epoch, from where it stands or from its start; its best validation loss so far."""
        started = time.perf_counter()
        loop = self._loops.get(trial.number)
        if loop is None:
            loop = self._loops[trial.number] = self.trials.started(self.trials.job_of(trial))
        loss = loss_of(loop, until)
        settings = {name: value for name, value in dataclasses.asdict(trial).items() if name != "number"}
        self._tell(
            {
                **{"trial": trial.number, "key": trial.key, "rung": rung, "seed": 0, "epochs": len(loop.at.history)},
                **{"loss": loss, "seconds": time.perf_counter() - started, "settings": settings},
            }
        )
        return loss

    def _tell(self, record: Event) -> None:
        self.journal.add(record)
        self.trials.run.tell({"event": "trial", **record})

    # --------------------------------------------------------------------------------------- the end ----

    def _judged(self, winner: Trial) -> SearchResult:
        """The best trial and the default, each with several seeds; whichever is better is written as a job file."""
        default, best = Rival("default", 0, self._job), Rival(winner.key, winner.number, self.trials.job_of(winner))
        rivals = {"default": default} if winner.number == 0 else {"best": best, "default": default}
        seeds = range(self._job.model.seed, self._job.model.seed + self._job.search.n_seeds)
        found = self._side_by_side(
            [lambda rival=rival, seed=seed: self._with_seed(rival, seed) for rival in rivals.values() for seed in seeds]  # type: ignore[misc]
        )
        losses = {name: found[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(rivals)}
        is_default = winner.number == 0 or (bool(seeds) and sum(losses["default"]) <= sum(losses["best"]))
        job = self._job if is_default else best.job
        url = files.join(self._job.output.directory, BEST)
        tables = {name: table for name, table in job.to_dict().items() if name != "search"}
        files.write_bytes(url, f"{_MARK}\n\n{to_toml(tables)}".encode(), self.journal.options)
        number = 0 if is_default else winner.number
        self.trials.run.tell({"event": "searched", "job": url, "trial": number, "losses": losses})
        return SearchResult(url, is_default, losses, list(self.journal.records))

    def _with_seed(self, rival: Rival, seed: int) -> float:
        """Validation loss of a job trained to its end with another seed on the same partitions."""
        known = self.journal.loss(rival.key, _TO_THE_END, seed)
        if known is not None:
            return known
        seeded = dataclasses.replace(rival.job, model=dataclasses.replace(rival.job.model, seed=seed))
        started = time.perf_counter()
        loop = self.trials.started(seeded)
        loss = loss_of(loop, None)
        self._tell(
            {
                **{"trial": rival.number, "key": rival.key, "rung": _TO_THE_END, "seed": seed, "settings": {}},
                **{"epochs": len(loop.at.history), "loss": loss, "seconds": time.perf_counter() - started},
            }
        )
        return loss
