"""Faults that a training shows only when something happens to it, put in on purpose: does a history find each?

python -m tests.support.deliberate_bugs [--most 1000]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from dfm.distributed import checkpointing, prepare, train
from dfm.storage import files
from dfm.training import checkpoint, rounds
from dfm.training.checkpoint import CheckpointFolder
from dfm.training.exact_work import ExactSchedule
from dfm.training.loop import TrainingLoop
from tests.support.histories import PLAYS, Theatre

Patch = contextlib.AbstractContextManager[Any]


def _merged_in_place() -> Patch:
    merge = rounds.merge_block

    def merge_block(work: Any, block: Any, pushes: Any) -> Any:
        after = merge(work, block, pushes)
        for each in work.layout.blocks:
            old = block.table[each.name]
            if old.flags.writeable:
                old[...] = after.table[each.name]
        return after

    return mock.patch.object(rounds, "merge_block", merge_block)


def _pushes_count_twice() -> Patch:
    seen: set[Any] = set()
    train_replicas = rounds.train_replicas

    def again(work: Any, first: int, *rest: Any) -> Any:
        push, key = train_replicas(work, first, *rest), (work.step.seed, first)
        if key in seen:
            summed = work.averaging.combine_all([push.contribution, push.contribution])
            push = dataclasses.replace(push, contribution=summed)
        seen.add(key)
        return push

    return mock.patch.object(rounds, "train_replicas", again)


def _pushes_in_any_order() -> Patch:
    merge, draw = rounds.merge_block, random.Random(1)

    def merge_block(work: Any, block: Any, pushes: Any) -> Any:
        return merge(work, block, draw.sample(list(pushes), len(pushes)))

    return mock.patch.object(rounds, "merge_block", merge_block)


def _state_ahead_of_blocks() -> Patch:
    offer, before = checkpointing.Checkpointer.offer, {}

    def stale(self: Any, snapshot: Any) -> None:
        blocks = before.get(id(self), snapshot.blocks)
        before[id(self)] = snapshot.blocks
        offer(self, dataclasses.replace(snapshot, blocks=blocks))

    return mock.patch.object(checkpointing.Checkpointer, "offer", stale)


def _after_restoring(change: Callable[[TrainingLoop, Any], None]) -> Patch:
    restore = TrainingLoop.restore

    def restored(self: TrainingLoop, checkpoint: Any, blocks: Any, best: Any) -> None:
        restore(self, checkpoint, blocks, best)
        change(self, blocks)

    return mock.patch.object(TrainingLoop, "restore", restored)


def _leave_a_slice_out(loop: TrainingLoop, _blocks: Any) -> None:
    loop.at.round += 1


def _take_the_last_for_the_best(loop: TrainingLoop, blocks: Any) -> None:
    if loop.best is not None:
        loop.best.blocks = blocks


def _seeds_of_a_life() -> Patch:
    work_of = ExactSchedule.work

    def work(self: Any, work: Any, rounds_done: int, *rest: Any) -> Any:
        vars(self).setdefault("first", rounds_done)
        return work_of(self, work, rounds_done - vars(self)["first"], *rest)

    return mock.patch.object(ExactSchedule, "work", work)


def _without_momentum() -> Patch:
    write = checkpointing.write_block

    def write_block(url: str, name: str, saved: Any, options: Any) -> Any:
        return write(url, name, dataclasses.replace(saved, momentum=None), options)

    return mock.patch.object(checkpointing, "write_block", write_block)


def _rows_count_twice() -> Patch:
    seen: set[Any] = set()
    hash_shard = prepare.hash_shard

    def again(reading: Any, units: Any, *rest: Any) -> Any:
        hashed, key = hash_shard(reading, units, *rest), (reading.cache, repr(units), repr(rest))
        if key in seen:
            hashed = dataclasses.replace(hashed, account=hashed.account + hashed.account)
        seen.add(key)
        return hashed

    return mock.patch.object(prepare, "hash_shard", again)


def _forgets_the_origin() -> Patch:
    prune = CheckpointFolder._prune

    def forgetful(self: CheckpointFolder, names: Any) -> None:
        self.origin = frozenset()
        prune(self, names)

    return mock.patch.object(CheckpointFolder, "_prune", forgetful)


def _any_checkpoint_will_do() -> Patch:
    commit = CheckpointFolder.commit

    def careless(self: CheckpointFolder, found: Any) -> None:
        names = files.names_in(self.url, self.options)
        self._files |= {name: set() for name in self._own(checkpoint._MANIFEST, names) if name not in self._files}
        commit(self, found)

    return mock.patch.object(CheckpointFolder, "commit", careless)


BUGS: dict[str, Callable[[], Patch]] = {
    "a block is changed in place by the merge that makes the next one": _merged_in_place,
    "a push counts twice where its task ran twice": _pushes_count_twice,
    "pushes add up in the order in which they come": _pushes_in_any_order,
    "a checkpoint's state is ahead of its blocks": _state_ahead_of_blocks,
    "a training that goes on leaves a slice out": lambda: _after_restoring(_leave_a_slice_out),
    "a training that goes on takes the last parameters for the best": lambda: _after_restoring(
        _take_the_last_for_the_best
    ),
    "draws are keyed by the iterations of a driver, not of the training": _seeds_of_a_life,
    "checkpoints hold no momentum": _without_momentum,
    "rows that were hashed twice count twice": _rows_count_twice,
    "files that the parameters come from are deleted": _forgets_the_origin,
    "checkpoints of another driver are deleted": _any_checkpoint_will_do,
    "checkpoints stay when a training is over": lambda: mock.patch.object(train, "_clear"),
}


def find(theatre: Theatre, bug: Callable[[], Patch], most: int) -> tuple[int, str] | None:
    """The first seed whose history does not end well with a bug, and how it ended; None where none of so many does."""
    for seed in range(most):
        with bug():
            history = theatre.play(seed)
        if history.problems:
            return seed, history.problems[0]
    return None


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1000)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        theatre = Theatre(Path(folder))
        for play in PLAYS:
            theatre.undisturbed(play)
        for name, bug in BUGS.items():
            found = find(theatre, bug, arguments.most)
            missed += found is None
            seed, how = found or (arguments.most, "not found")
            print(f"| {name} | {seed if found else '-'} | {how.replace(folder, '')[:110]} |", flush=True)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
