"""Checkpoints of a run on a cluster: workers write the blocks while the next rounds train, the driver commits.

The driver never waits: it offers a snapshot after every average, or stretch of them, and a thread of its own writes the
newest one offered. Checkpoints that would take more than a twentieth of the time are left out, so small rounds are not
slowed down; which ones are left out changes nothing in the parameters.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from distributed import Future, get_worker, secede

from dfm.distributed.cluster.watch import Watch
from dfm.errors import ClusterError, LostParametersError
from dfm.kernels.tables import Layout
from dfm.storage import files
from dfm.training.checkpoint import (
    BlockFile,
    Checkpoint,
    CheckpointFolder,
    Conflict,
    Identity,
    SavedBlock,
    block_name,
    read_block,
    write_block,
)
from dfm.training.exact_rounds import LOST
from dfm.training.executor import Parameters
from dfm.training.loop import Snapshot
from dfm.training.rounds import Block

logger = logging.getLogger(__name__)
LARGEST_SHARE = 0.05
"""Part of the time that checkpoints may take."""
_LAST_WRITE = 5.0
"""Seconds that a checkpoint which is being written when training ends may still take."""
_FIRST = 100
"""Priority of the tasks that save: a block must not wait behind the training tasks of rounds to come."""


class BlockGone(ClusterError, FileNotFoundError):
    """A file of a checkpoint is missing: found when a run begins, the checkpoint is given up; later the run ends."""


def save_block(url: str, name: str, block: Block | None, options: files.Options) -> tuple[BlockFile, float]:
    """Write one block from a worker, beside its training thread; the file and the seconds that it took.
    LostParametersError where there is none.
    """
    if _on_a_worker():
        secede()  # the thread no longer counts: the next training task starts at once
    if block is None:
        raise LostParametersError(LOST)
    started = time.perf_counter()
    saved = SavedBlock(block.start, block.table, block.momentum, block.noise)
    return write_block(url, name, saved, options), time.perf_counter() - started


def load_block(url: str, file: BlockFile, layout: Layout, options: files.Options) -> Block:
    """One block of a checkpoint, checked. DataError where it is damaged, BlockGone where it is not there."""
    try:
        saved = read_block(url, file, layout, options)
    except FileNotFoundError as error:
        raise BlockGone(
            f"{files.join(url, file.name)} is gone, which the parameters of this run come from: another run that "
            "shares its output.directory may have deleted it. Let that one finish, or run the same command again, "
            "which goes on from the newest checkpoint"
        ) from error
    return Block(saved.start, saved.table, saved.momentum, noise=saved.noise)


def _on_a_worker() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True


class Checkpointer:
    """Writes snapshots of one run. `by_workers`: whether the workers can write to the folder, or only this process."""

    def __init__(
        self, watch: Watch, folder: CheckpointFolder, identity: Identity, layout: Layout, by_workers: bool
    ) -> None:
        self._watch, self._folder, self._identity, self._layout = watch, folder, identity, layout
        self._by_workers = by_workers
        self._files: dict[int, tuple[BlockFile, ...]] = {}
        self._written: dict[str, BlockFile] = {}
        """Files of the blocks of the newest checkpoint, by key of their futures: draws stay, and are written once."""
        self._pending: Snapshot | None = None
        self._saving: list[Future] = []
        self._busy = self._closing = self._hurried = False
        self.conflict: Conflict | None = None
        """The reason why nothing is written any more: another run has taken over the folder."""
        self.was_asked = False
        """Whether there was ever a snapshot to write."""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)
        self._thread.start()
        self.committed: Checkpoint | None = None

    def offer(self, snapshot: Snapshot) -> None:
        """Let this snapshot be the next one written. ClusterError where another run has taken over the folder."""
        with self._changed:
            if self.conflict is not None:
                raise ClusterError(str(self.conflict)) from self.conflict
            self._pending, self.was_asked = snapshot, True
            self._changed.notify_all()

    def flush(self, timeout: float = 60.0) -> None:
        """Wait until the newest snapshot is written, or could not be."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._busy and self._pending is None, timeout)
            self._hurried = False

    def close(self) -> None:
        """End the thread. A snapshot that waits is not written any more, one that is being written if it takes long."""
        with self._changed:
            self._closing, self._pending = True, None
            self._changed.notify_all()
        self._thread.join(timeout=_LAST_WRITE)
        if self._thread.is_alive():  # where no worker is left, its tasks would wait for one
            self._watch.client.cancel(self._saving, force=True)
            self._thread.join(timeout=60.0 - _LAST_WRITE)

    def withdraw(self) -> None:
        """End the thread, and delete the checkpoints that it has written."""
        self.close()
        self._folder.withdraw()

    def load(self, checkpoint: Checkpoint) -> tuple[list[Future], list[Future]]:
        """Futures of the blocks of a checkpoint and of its best blocks; they depend on its files alone."""
        self.committed = checkpoint
        self._folder.origin = frozenset(checkpoint.files)
        self._files[checkpoint.state["progress"]["blocks_at"]] = checkpoint.blocks
        if checkpoint.state["best"] is not None:
            self._files[checkpoint.state["best"]["at"]] = checkpoint.best
        loaded = {file: self._load(file) for file in dict.fromkeys((*checkpoint.blocks, *checkpoint.best))}
        self._written = {future.key: file for file, future in loaded.items()}
        return [loaded[file] for file in checkpoint.blocks], [loaded[file] for file in checkpoint.best]

    def instead_of(self, checkpoint: Checkpoint, reason: Exception) -> list[Checkpoint]:
        """The checkpoints to go on from, newest first, in place of one that could not be loaded.

        It is deleted as damaged, unless another run that is at work in the folder took its files away: then there are
        newer ones, or none any more. SettingsError where they are of another job.
        """
        self.committed = None
        self._files, self._written, self._folder.origin = {}, {}, frozenset()
        found = self._folder.found()
        if found[:1] and found[0].name == checkpoint.name:
            self._folder.discard(checkpoint, reason)
            return found[1:]
        if found:
            self._identity.check(found[0].identity, self._folder.url)
        return found

    def renew(self, rounds_done: int, blocks: Parameters, best: Parameters) -> tuple[Parameters, Parameters] | None:
        """Futures of the same parameters that depend on files alone; None where the newest snapshot is another."""
        self.flush()
        checkpoint = self.committed
        if checkpoint is None or checkpoint.rounds_done != rounds_done:
            return None
        return self.load(checkpoint)

    def _load(self, file: BlockFile) -> Future:
        arguments = self._folder.url, file, self._layout, self._folder.options
        if self._by_workers:
            return self._watch.submit(load_block, *arguments)
        return self._watch.keep(load_block(*arguments))

    # ------------------------------------------------------------------------------------ in the thread ----

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closing)
                if self._closing:
                    return
                snapshot, self._pending, self._busy = self._pending, None, True
            assert snapshot is not None
            cost = self._write_safely(snapshot)
            del snapshot  # the futures of its blocks are let go
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                if self.conflict is not None:
                    return
                pause = cost * (1 / LARGEST_SHARE - 1)
                self._changed.wait_for(lambda: self._closing or self._hurried, pause)

    def _write_safely(self, snapshot: Snapshot) -> float:
        try:
            return self._write(snapshot)
        except Conflict as conflict:
            self.conflict = conflict
        except Exception as error:
            if not self._closing:
                logger.warning(
                    "no checkpoint after round %d: %s: %s; training goes on",
                    *(snapshot.rounds_done, type(error).__name__, error),
                )
        return 1.0

    def _write(self, snapshot: Snapshot) -> float:
        """Write what is not written yet and commit; returns the seconds spent."""
        if self.committed is not None and self.committed.rounds_done == snapshot.rounds_done:
            return 0.0  # the run stands where it went on from, and ends there once more
        blocks, cost = self._save(snapshot.blocks_at, snapshot.blocks)
        best, cost_of_best = self._save(snapshot.best_at, snapshot.best_blocks) if snapshot.best_blocks else ((), 0.0)
        started = time.perf_counter()
        checkpoint = Checkpoint(self._identity, snapshot.state, snapshot.rounds_done, blocks, best)
        self._folder.commit(checkpoint)
        self._files = {snapshot.blocks_at: blocks} | ({snapshot.best_at: best} if best else {})
        futures = (*snapshot.blocks, *snapshot.best_blocks)
        self._written = {future.key: file for future, file in zip(futures, (*blocks, *best), strict=True)}
        self.committed = checkpoint
        return cost + cost_of_best + time.perf_counter() - started

    def _save(self, rounds_done: int, blocks: Sequence[Future]) -> tuple[tuple[BlockFile, ...], float]:
        if rounds_done in self._files:
            return self._files[rounds_done], 0.0
        url, options = self._folder.url, self._folder.options
        names = [block_name(self._folder.prefix, rounds_done, number) for number in range(len(blocks))]
        new = {block.key: (name, block) for name, block in zip(names, blocks, strict=True)}
        new = {key: each for key, each in new.items() if key not in self._written}
        if self._by_workers:
            self._saving = [
                self._watch.submit(save_block, url, name, block, options, priority=_FIRST)
                for name, block in new.values()
            ]
            saved = self._watch.client.gather(self._saving)
            self._saving = []
        else:
            saved = [save_block(url, name, block.result(), options) for name, block in new.values()]
        self._written |= {key: file for key, (file, _) in zip(new, saved, strict=True)}
        files_of = tuple(self._written[block.key] for block in blocks)
        return files_of, max((seconds for _, seconds in saved), default=0.0)
