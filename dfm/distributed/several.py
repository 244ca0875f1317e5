"""Several models on the same rows: trained side by side, each to its own end, then put together into their mean.

Each is a training loop in a thread of its own, so that workers train one while another is averaged. Their events are
told as if they walked in step, epoch by epoch and, within an epoch, in their order.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from dfm.distributed.keeping import PATIENCE_OF_A_USER
from dfm.distributed.prepare import Prepared
from dfm.distributed.publish import Trained
from dfm.distributed.run import Ended, Event, OnEvent, Run
from dfm.distributed.tuning import chosen_of
from dfm.errors import RunCancelled
from dfm.events import is_passing
from dfm.model.metrics import Tally
from dfm.training import rounds
from dfm.training.loop import Best, TrainingLoop
from dfm.training.rounds import Work

_ALL = 1 << 30
"""More rounds than an epoch has."""


class InStep:
    """The events of trainings that run side by side, passed on as if they walked in step; each tells its seed."""

    def __init__(self, tell: OnEvent, seeds: Sequence[int]) -> None:
        self._tell, self._seeds = tell, seeds
        self._waiting: list[collections.deque[tuple[int, Event]]] = [collections.deque() for _ in seeds]
        self._at = [(1, 0) for _ in seeds]
        """The epoch, and the round in it, in which each training is."""
        self._over: set[int] = set()
        self._ended = False
        self._lock = threading.Lock()

    def teller(self, number: int) -> OnEvent:
        """Who hears of the events of a training."""
        return lambda event: self._take(number, event)

    def leave(self, number: int) -> None:
        """Wait for no more events of a training."""
        with self._lock:
            self._over.add(number)
            self._release()

    def end(self) -> None:
        """Let every training end where it tells the next event."""
        self._ended = True

    def _take(self, number: int, event: Event) -> None:
        if self._ended:
            raise Ended
        with self._lock:
            epoch, round_done = self._at[number]
            epoch = int(event.get("epoch", epoch))
            self._at[number] = epoch, _ALL if event["event"] == "epoch" else int(event.get("round", round_done))
            if not is_passing(event):
                self._waiting[number].append((epoch, {**event, "seed": self._seeds[number]}))
            elif number == self._last():
                self._tell(event)
            self._release()

    def _last(self) -> int:
        """The training that is furthest behind: how far it is, all are."""
        return min((number for number in range(len(self._at)) if number not in self._over), key=self._at.__getitem__)

    def _release(self) -> None:
        """Pass on what no event of another training can come before."""
        while heads := [(waiting[0][0], number) for number, waiting in enumerate(self._waiting) if waiting]:
            silent = [n for n, waiting in enumerate(self._waiting) if not waiting and n not in self._over]
            if any((self._at[number][0], number) < min(heads) for number in silent):
                return
            _, event = self._waiting[min(heads)[1]].popleft()
            self._tell(event)


def side_by_side(run: Run) -> InStep:
    """The events of the trainings of a job's models."""
    return InStep(run.tell, [run.job.model.seed + number for number in range(run.job.model.n_models)])


def train_several(loops: Sequence[TrainingLoop], in_step: InStep) -> bool:
    """Train all to their ends; whether Ctrl-C ended them early, when each had parameters worth publishing.

    The first error that one of them raises ends the others, and is raised once they are over.
    """

    def walk(number: int) -> None:
        with contextlib.suppress(Ended):
            loops[number].run()
        in_step.leave(number)

    interrupted = False
    try:
        with ThreadPoolExecutor(len(loops)) as pool:
            futures = [pool.submit(walk, number) for number in range(len(loops))]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                in_step.end()
        for error in (future.exception() for future in futures):
            interrupted = interrupted or isinstance(error, KeyboardInterrupt)  # of a listener
            if error is not None and not isinstance(error, KeyboardInterrupt):
                raise error
        if interrupted and not all(loop.has_result for loop in loops):
            raise KeyboardInterrupt
    except (KeyboardInterrupt, RunCancelled):
        _flush(loops)
        raise
    if interrupted:
        _flush(loops)
    return interrupted


def _flush(loops: Sequence[TrainingLoop]) -> None:
    for loop in loops:
        if loop.checkpointer is not None:
            loop.checkpointer.flush(PATIENCE_OF_A_USER)


def mean_of(run: Run, prepared: Prepared, loops: Sequence[TrainingLoop], interrupted: bool) -> Trained:
    """The mean of the models, judged on the rows that validate."""
    bests = [loop.best for loop in loops if loop.best is not None]
    blocks = _mean_blocks(run, [best.blocks for best in bests], [loop.executor.bounds for loop in loops])
    metrics = _judged(run, prepared, loops[0].work.of_mean(len(loops)), blocks)
    seeds = [run.job.model.seed + number for number in range(len(loops))]
    models = [
        {
            "seed": seed,
            "best_epoch": best.epoch,
            "chosen": chosen_of(dataclasses.replace(run, number=number), loop.at.pilot),
            "validation": best.metrics,
            **({"start": loop.at.start} if loop.at.start else {}),
        }
        for number, (seed, best, loop) in enumerate(zip(seeds, bests, loops, strict=True))
    ]
    run.tell({"event": "mean", "models": models, "validation": metrics})
    history = [{**event, "seed": seed} for seed, loop in zip(seeds, loops, strict=True) for event in loop.at.history]
    best = Best(blocks, max(each.at for each in bests), max(each.epoch for each in bests), metrics)
    in_order = sorted(history, key=lambda event: (event["epoch"], event["seed"]))
    return Trained(
        best,
        in_order,
        interrupted,
        pilot=loops[0].at.pilot,
        models=models,
        first=bests[0],
    )


def _mean_blocks(run: Run, models: Sequence[Sequence[Any]], bounds: Sequence[Sequence[int]]) -> list[Any]:
    """Futures of the blocks of the mean; one block where the models are not all cut at the same rows."""
    if all(list(each) == list(bounds[0]) for each in bounds):
        return [run.watch.submit(rounds.mean_block, [[block] for block in each]) for each in zip(*models, strict=True)]
    return [run.watch.submit(rounds.mean_block, [list(blocks) for blocks in models])]


def _judged(run: Run, prepared: Prepared, work: Work, blocks: Sequence[Any]) -> dict[str, Any]:
    """Metrics of the mean on the rows that validate; empty without any."""
    if not prepared.validation:
        return {}
    tallies = [run.watch.submit(rounds.evaluate_partitions, work, list(blocks), rows) for rows in prepared.validation]
    tally: Tally = run.watch.result(run.watch.submit(rounds.merge_tallies, tallies))
    return tally.metrics()


def member_runs(run: Run, in_step: InStep) -> list[Run]:
    """The run of each model: the job's with a seed of its own, whose events are told in step."""
    found = []
    for number in range(run.job.model.n_models):
        model = dataclasses.replace(run.job.model, seed=run.job.model.seed + number)
        order = dataclasses.replace(run.order, job=dataclasses.replace(run.job, model=model))
        found.append(dataclasses.replace(run, order=order, tell=in_step.teller(number), number=number))
    return found
