"""Nothing that was trained is lost when something fails after it: the state is saved, and the error says what to do."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import CancelledError

from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError

from dfm.distributed.checkpointing import Checkpointer
from dfm.errors import ClusterError, DfmError, DivergenceError, ModelError, RunCancelled
from dfm.training.loop import TrainingLoop

logger = logging.getLogger(__name__)
PATIENCE_OF_A_USER = 15.0
"""Seconds that a run which was told to stop, or whose cluster is in trouble, may spend on its last checkpoint."""
_PATIENCE = 300.0
"""The same where everything is up: a table of gigabytes takes its time, and training it took longer."""
OF_THE_CLUSTER = (ClusterError, KilledWorker, NoValidWorkerError, CommClosedError, CancelledError)
"""Signs that workers, or the scheduler, are in trouble; `cluster.client_of` puts it into words."""


@contextlib.contextmanager
def kept(loop: TrainingLoop, checkpointer: Checkpointer, publishing: bool = False) -> Iterator[None]:
    """Save what was trained when the block fails, then raise its error with what to do now.

    publishing: an error of the block means that there is no model, and is raised as one of dfm. Errors that training
    itself explains pass: it diverged, or it was cancelled, after which it has saved its own state.
    """
    try:
        yield
    except DivergenceError:
        raise
    except RunCancelled:
        if publishing:  # training has saved its own state; what came of it is worth the same
            _save(loop, checkpointer, PATIENCE_OF_A_USER)
        raise
    except Exception as error:
        of_the_cluster = isinstance(error, OF_THE_CLUSTER)
        advice = _save(loop, checkpointer, PATIENCE_OF_A_USER if of_the_cluster else _PATIENCE)
        if isinstance(error, DfmError):  # one line at the command line, so that the advice has to be part of it
            raise type(error)(f"{error}; {advice}") from error
        if publishing and not of_the_cluster:
            raise ModelError(f"the model could not be published ({type(error).__name__}: {error}); {advice}") from error
        error.add_note(advice)
        raise
    except KeyboardInterrupt as error:
        error.add_note(_save(loop, checkpointer, PATIENCE_OF_A_USER))
        raise


def _save(loop: TrainingLoop, checkpointer: Checkpointer, patience: float) -> str:
    """Save the state; what there is to tell of it. Where saving fails too, the first error is the one to raise."""
    if loop.checkpointer is None and not loop.is_trained:
        return 'nothing was kept, as output.checkpoint_every = "never" asks'
    try:
        loop.keep_result(checkpointer)
        checkpointer.flush(patience)
    except Exception as trouble:
        logger.warning("the state of training could not be saved: %s: %s", type(trouble).__name__, trouble)
    committed = checkpointer.committed
    if committed is None:
        return "nothing could be kept: see that output.directory can be written, and run the same command again"
    whole = loop.is_trained and committed.rounds_done >= loop.at.rounds_done
    what = "publishes the model without training again" if whole else "goes on from there"
    return f"what was trained is kept as a checkpoint: remove the cause, and the same command {what}"


@contextlib.contextmanager
def tolerated(what: str) -> Iterator[None]:
    """An error of the block is told in a warning: the model is published, and this was but cleaning up."""
    try:
        yield
    except Exception as error:
        logger.warning("the model is published; %s: %s: %s", what, type(error).__name__, error)
