"""A search on a cluster: rows are hashed once, and all trials train on the same partitions, a few at a time.

A trial is a training loop of its own. What it came to is written to search.jsonl as it is known; a search that was
killed goes on from there, and repeats at most the epochs of trials that were under way or had yet to go on.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TypeVar

from distributed import Client

from dfm.data.snapshots import pins_of
from dfm.distributed.run import Event, OnEvent
from dfm.distributed.trials import Trials, open_trials
from dfm.errors import DivergenceError, SettingsError
from dfm.events import json_ready, to_json
from dfm.settings.job import Job
from dfm.settings.toml import to_toml
from dfm.storage import files, ownership
from dfm.training.inputs import Inputs
from dfm.training.loop import TrainingLoop
from dfm.training.order import Order
from dfm.training.search import Trial, check_lengths, rungs_of, survivors, trials_of

logger = logging.getLogger(__name__)
JOURNAL, BEST = "search.jsonl", "best.toml"
_MARK, _FIRST = "# Written by `dfm search`.", b'{"job"'
"""Beginnings of these files, by which they are known as dfm's."""
_TO_THE_END = 0
"""The rung of the closing trainings with several seeds."""
_AT_A_TIME = 4
"""Trials whose rounds alternate on a cluster: while one is averaged, or judged, workers train another."""
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search. best: the job file of whichever is better on average, the best trial or the default.
    losses: of the best trial ("best"), unless that is the default, and of the "default", by seed; trials: a record per
    trial and rung; metric: what all losses are on the validation rows, auc and group_auc as 1 less it.
    """

    best: str
    is_default: bool
    losses: dict[str, list[float]]
    trials: list[Event]
    metric: str


def search(
    order: Order, client: Client | None = None, on_event: OnEvent | None = None, resume: bool | None = None
) -> SearchResult:
    """Try the settings of the job's [search] on its data, and write the best as a job file to output.directory.

    resume: whether to go on from an earlier search; None: as output.resume says. SettingsError without rows to validate
    on, or where the directory holds the journal of another search; DivergenceError where no trial has a finite loss.
    """
    check_lengths(order.job)
    resume = order.job.output.resume if resume is None else resume
    journal = Journal.of(order.job, resume)
    try:
        with open_trials(order, client, on_event, pins_of(journal.tables), journal.begin) as trials:
            return Search(trials, journal).result()
    except KeyboardInterrupt as error:
        if journal.records:
            how = "the same command goes on" if resume else "the same command without --no-resume goes on"
            error.add_note(f"what was tried is in {journal.url}; {how}")
        raise


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
    def of(cls, job: Job, resume: bool) -> Journal:
        """The journal in the job's output directory, or a new one. SettingsError where it is another search's."""
        url = files.join(job.output.directory, JOURNAL)
        found = cls(url, job.fingerprint(), job.data.storage_options)
        ownership.check_replaceable(url, ownership.begins_with(_FIRST), found.options)
        best = files.join(job.output.directory, BEST)
        ownership.check_replaceable(best, ownership.begins_with(_MARK.encode()), found.options)
        if not resume or not files.exists(url, found.options):
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

    def loss(self, key: str, rung: int, seed: int) -> float | None:
        """The loss of a trial at a rung; None where that is not known. inf where it diverged."""
        for record in self.records:
            if (record["key"], record["rung"], record["seed"]) == (key, rung, seed):
                return math.inf if record["loss"] is None else float(record["loss"])
        return None

    def reason(self, keys: Sequence[str], rung: int) -> str:
        """Why one of these trials diverged at a rung."""
        there = [record for record in self.records if record["rung"] == rung and record["key"] in keys]
        known = (str(record["reason"]) for record in there if record.get("reason"))
        return next(known, "an earlier dfm did not note why; --no-resume tries them again")


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
    _asked: set[tuple[str, int, int]] = field(init=False, default_factory=set)
    """Key, rung and seed of its own records: the journal may have others, of another space."""

    @property
    def _job(self) -> Job:
        return self.trials.run.job

    def _known(self, key: str, rung: int, seed: int = 0) -> float | None:
        """The loss that the journal has of a record of this search."""
        self._asked.add((key, rung, seed))
        return self.journal.loss(key, rung, seed)

    def result(self) -> SearchResult:
        """All rungs, then the best and the default with several seeds."""
        trials = trials_of(self._job)
        self.trials.warm_up(trials)
        for number, rung in enumerate(rungs_of(len(trials)), start=1):
            losses = self._climb(trials, number, rung.until, rung.n_kept)
            if min(losses.values()) == math.inf:
                reason = self.journal.reason([trial.key for trial in trials], number)
                raise DivergenceError(f"all {len(trials)} trials diverged at rung {number}; one of them: {reason}")
            trials = survivors(trials, losses, rung.n_kept)
        return self._judged(trials[0])

    # ---------------------------------------------------------------------------------------- trials ----

    def _climb(self, trials: Sequence[Trial], rung: int, until: int | None, n_kept: int) -> dict[int, float]:
        """Losses of the trials at a rung, by number. Those that cannot go on give up their parameters at once."""
        losses: dict[int, float] = {}

        def heed(number: int, loss: float) -> None:
            losses[number] = loss
            known = [trial for trial in trials if trial.number in losses]
            kept = {each.number for each in survivors(known, losses, n_kept)}
            for given_up in losses.keys() - kept:
                self._loops.pop(given_up, None)

        calls: dict[int, Callable[[], Event]] = {}
        for trial in trials:
            if (loss := self._known(trial.key, rung)) is None:
                calls[trial.number] = functools.partial(self._train, trial, rung, until)
            else:
                heed(trial.number, loss)
        self._side_by_side(calls, heed)
        return losses

    def _side_by_side(self, calls: Mapping[_Key, Callable[[], Event]], heed: Callable[[_Key, float], None]) -> None:
        """Make the calls, a few at a time, and heed the loss of each record that they return, told in this thread.

        The first error, or Ctrl-C, ends those that are under way where they tell their next event.
        """
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            futures = {pool.submit(call): key for key, call in calls.items()}
            try:
                for future in as_completed(futures):
                    record = future.result()
                    self.trials.run.tell({"event": "trial", "metric": self.trials.metric, **record})
                    heed(futures[future], record["loss"])
            except BaseException:
                self.trials.end()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _train(self, trial: Trial, rung: int, until: int | None) -> Event:
        """Walk a trial on to an epoch, from where it stands or from its start; the record of it, which is noted."""
        started = time.perf_counter()
        loop = self._loops.get(trial.number)
        if loop is None:
            loop = self._loops[trial.number] = self.trials.started(self.trials.job_of(trial))
        settings = {name: value for name, value in dataclasses.asdict(trial).items() if name != "number"}
        begun = {"trial": trial.number, "key": trial.key, "rung": rung, "seed": 0, "settings": settings}
        return self._noted(begun, loop, until, started)

    def _noted(self, begun: Event, loop: TrainingLoop, until: int | None, started: float) -> Event:
        """The record that was begun, with what came of walking on to an epoch."""
        loss, reason = self.trials.walked(loop, until)
        outcome = {"epochs": len(loop.at.history), "loss": loss, "seconds": time.perf_counter() - started}
        record = {**begun, **outcome, **({"reason": reason} if reason else {})}
        self.journal.add(record)
        return record

    # --------------------------------------------------------------------------------------- the end ----

    def _judged(self, winner: Trial) -> SearchResult:
        """The best trial and the default, each with several seeds; whichever is better is written as a job file."""
        default, best = Rival("default", 0, self._job), Rival(winner.key, winner.number, self.trials.job_of(winner))
        rivals = {"default": default} if winner.number == 0 else {"best": best, "default": default}
        seeds = range(self._job.model.seed, self._job.model.seed + self._job.search.n_seeds)
        found = self._closing(rivals, seeds)
        losses = {name: [found[name, seed] for seed in seeds] for name in rivals}
        is_default = winner.number == 0 or (bool(seeds) and sum(losses["default"]) <= sum(losses["best"]))
        url = files.join(self._job.output.directory, BEST)
        text = _as_file(self._job if is_default else best.job)
        files.write_bytes(url, text.encode(), self.journal.options)
        number = 0 if is_default else winner.number
        metric = self.trials.metric
        self.trials.run.tell({"event": "searched", "job": url, "trial": number, "losses": losses, "metric": metric})
        own = [each for each in self.journal.records if (each["key"], each["rung"], each["seed"]) in self._asked]
        return SearchResult(url, is_default, losses, own, metric)

    def _closing(self, rivals: Mapping[str, Rival], seeds: Sequence[int]) -> dict[tuple[str, int], float]:
        """Losses of the rivals with each seed, trained to their ends."""
        found: dict[tuple[str, int], float] = {}
        calls: dict[tuple[str, int], Callable[[], Event]] = {}
        for name, rival in rivals.items():
            for seed in seeds:
                if (known := self._known(rival.key, _TO_THE_END, seed)) is None:
                    calls[name, seed] = functools.partial(self._with_seed, rival, seed)
                else:
                    found[name, seed] = known
        self._side_by_side(calls, found.__setitem__)
        return found

    def _with_seed(self, rival: Rival, seed: int) -> Event:
        """Train a job to its end with another seed on the same partitions; the record of it, which is noted."""
        started = time.perf_counter()
        seeded = dataclasses.replace(rival.job, model=dataclasses.replace(rival.job.model, seed=seed))
        begun = {"trial": rival.number, "key": rival.key, "rung": _TO_THE_END, "seed": seed, "settings": {}}
        return self._noted(begun, self.trials.started(seeded), None, started)


def _as_file(job: Job) -> str:
    """The job as a job file, without its search, and without arguments of a factory, of which any may be a secret."""
    tables = job.to_dict(secrets=True)
    del tables["search"]
    lines = [_MARK]
    if tables["cluster"].pop("factory_options"):
        lines.append("# cluster.factory_options is left out, since it may hold secrets: add it.")
        logger.warning("cluster.factory_options may hold secrets and stays out of %s: add it there", BEST)
    return "\n".join([*lines, "", to_toml(tables)])
