"""Nothing that was trained is lost when something fails after it: the state is saved, and the error says what to do."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass

from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

from dfm.distributed.checkpointing import Checkpointer
from dfm.errors import (
    ClusterError,
    DfmError,
    DivergenceError,
    ModelError,
    RunCancelled,
    SupersededError,
    want_of_memory,
)
from dfm.training.loop import TrainingLoop

logger = logging.getLogger(__name__)
PATIENCE_OF_A_USER = 15.0
"""Seconds that a run which was told to stop, or whose cluster is in trouble, may spend on its last checkpoint."""
_PATIENCE = 300.0
"""The same where everything is up: a table of gigabytes takes its time, and training it took longer."""


@dataclass(frozen=True)
class Training:
    """A training loop, and who saves its state."""

    loop: TrainingLoop
    checkpointer: Checkpointer


OF_THE_CLUSTER = (
    *(ClusterError, KilledWorker, NoWorkerError, NoValidWorkerError),
    *(CommClosedError, CancelledError, ClosedClientError),
)
"""Signs that workers, or the scheduler, are in trouble; `cluster.client_of` puts it into words."""


@contextlib.contextmanager
def kept(trainings: Sequence[Training], publishing: bool = False) -> Iterator[None]:
    """Save what was trained when the block fails, then raise its error with what to do now.

    publishing: an error of the block means that there is no model, and is raised as one of dfm. Errors that training
    itself explains pass: it diverged, or it was cancelled, after which it has saved its own state. Nothing stays where
    the output is another run's by now, whose next job would be refused for a checkpoint of this one.
    """
    try:
        yield
    except DivergenceError:
        raise
    except SupersededError:
        _withdraw(trainings)
        raise
    except RunCancelled:
        if publishing:  # training has saved its own state; what came of it is worth the same
            _save(trainings, PATIENCE_OF_A_USER)
        raise
    except Exception as error:
        of_the_cluster = isinstance(error, OF_THE_CLUSTER) or want_of_memory(error) is not None
        advice = _save(trainings, PATIENCE_OF_A_USER if of_the_cluster else _PATIENCE)
        if advice in str(error):  # that another run has taken over
            raise
        if isinstance(error, DfmError):  # one line at the command line, so that the advice has to be part of it
            raise type(error)(f"{error}; {advice}") from error
        if publishing and not of_the_cluster:
            raise ModelError(f"the model could not be published ({type(error).__name__}: {error}); {advice}") from error
        error.add_note(advice)
        raise
    except KeyboardInterrupt as error:
        error.add_note(_save(trainings, PATIENCE_OF_A_USER))
        raise


def _save(trainings: Sequence[Training], patience: float) -> str:
    """Save the states; what there is to tell of that. Where saving fails too, the first error is the one to raise."""
    told = [_saved(training, patience) for training in trainings]
    return min(told, key=lambda text: _BY_GRAVITY.index(text) if text in _BY_GRAVITY else -1)


def _withdraw(trainings: Sequence[Training]) -> None:
    """Delete the checkpoints that were written; where that fails, the error that led here is the one to raise."""
    for training in trainings:
        try:
            training.checkpointer.withdraw()
        except Exception as trouble:
            logger.warning("checkpoints of this run could not be deleted: %s: %s", type(trouble).__name__, trouble)


def _saved(training: Training, patience: float) -> str:
    loop, checkpointer = training.loop, training.checkpointer
    if loop.checkpointer is None and not loop.is_trained:
        return _NOT_WANTED
    try:
        loop.keep_result(checkpointer)
        checkpointer.flush(patience)
    except Exception as trouble:
        if checkpointer.conflict is None:
            logger.warning("the state of training could not be saved: %s: %s", type(trouble).__name__, trouble)
    if checkpointer.conflict is not None:
        return str(checkpointer.conflict)
    committed = checkpointer.committed
    if committed is None:
        return _NOTHING_KEPT if checkpointer.was_asked else _NOTHING_YET
    return _WHOLE if loop.is_trained and committed.rounds_done >= loop.at.rounds_done else _PART


_KEPT = "what was trained is kept as a checkpoint: the same command"
_NOT_WANTED = 'nothing was kept, as output.checkpoint_every = "never" asks'
_NOTHING_KEPT = "nothing could be kept: see that output.directory can be written, and run the same command again"
_NOTHING_YET = "there was nothing to keep yet"
_PART, _WHOLE = f"{_KEPT} goes on from there", f"{_KEPT} publishes the model without training again"
_BY_GRAVITY = _NOT_WANTED, _NOTHING_KEPT, _NOTHING_YET, _PART, _WHOLE
"""All that there may be to tell of a state, but that another run has taken over; of several, the first of these."""


@contextlib.contextmanager
def tolerated(what: str) -> Iterator[None]:
    """An error of the block, or a word to stop, is told in a warning: the model is published, and this was the rest."""
    try:
        yield
    except (KeyboardInterrupt, RunCancelled):
        logger.warning("the model is published; %s: the run was told to stop", what)
    except Exception as error:
        logger.warning("the model is published; %s: %s: %s", what, type(error).__name__, error)
