"""The errors that dfm raises on purpose, each with the exit code of the command line that meets it."""

from __future__ import annotations

import errno
from typing import ClassVar


class DfmError(Exception):
    """Anything that dfm can explain: the message names the value, what would be legal and the way out."""

    exit_code: ClassVar[int] = 1
    sat_out: ClassVar[float] = 0.0
    """Seconds for which somebody who waits for something else goes on waiting while he meets this error."""


class SettingsError(DfmError):
    """The job file, an override or an argument is wrong; nothing was read or computed yet."""

    exit_code = 2


class DataError(DfmError):
    """Input data breaks the schema: a missing column, a label outside its domain, too many bad rows."""

    exit_code = 3


class ClusterError(DfmError):
    """The Dask cluster cannot do the work: no workers, no memory, a scheduler out of reach."""

    exit_code = 4


class OutOfMemoryError(ClusterError):
    """Workers were ended because their memory ran out."""


class LostParametersError(ClusterError):
    """Parameters went with the workers that had them, and nothing is left to make them of but a checkpoint."""


class SupersededError(ClusterError):
    """Another run has taken the place of this one, and has published its model."""


class DamagedTransferError(ClusterError, OSError):
    """Arrays of another process that arrived with other bits.

    A worker of Dask that meets an OSError while it receives takes the connection for broken, and fetches again.
    """


class DivergenceError(DfmError):
    """Training left the finite numbers, or the loss exploded."""

    exit_code = 5


class ModelError(DfmError):
    """A model folder is incomplete, damaged, of a format that this version cannot read, or was replaced meanwhile."""

    exit_code = 6


class RunCancelled(DfmError):
    """Somebody asked the run to stop; its checkpoint stays, and the same job goes on from there."""

    exit_code = 7


class StorageError(DfmError):
    """A disk is full, or a store throttles, is out of reach or denies access; nothing is wrong with the job itself."""

    exit_code = 8
    sat_out = 900.0


class GateError(DfmError):
    """A model may not become the champion, or an alias has none to go back to."""

    exit_code = 9


def want_of_memory(error: BaseException) -> BaseException | None:
    """The error itself, or the one among its causes, that tells of memory: an allocation, a thread's stack, a mapping.

    Causes too, since the error may be of another kind: Dask says that it could not serialize a task. None: none does.
    """
    chain: BaseException | None = error
    seen: set[int] = set()
    while chain is not None and id(chain) not in seen:  # an error may be its own cause
        seen.add(id(chain))
        if isinstance(chain, MemoryError) or getattr(chain, "errno", None) == errno.ENOMEM:
            return chain
        if isinstance(chain, RuntimeError) and "can't start new thread" in str(chain):
            return chain
        chain = chain.__cause__
    return None
