"""The states of a run in one table: who may write which, which of them are final, and what each reader does with them.

A record (`dfm.runs.record`) holds the state that somebody wrote; a reader may conclude another one that nobody can
write, such as "lost". Followers, waiters, workflow engines, cancelling and submitting all decide by this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from dfm.errors import ClusterError, ModelError, RunCancelled

SUBMITTER, DRIVER, SUPERVISOR, CANCELLER = "submitter", "driver", "supervisor", "canceller"
"""Who writes: what hands a job over; the process that trains it; `dfm drive` around that; what ended its driver."""
WAIT, TAKE, AGAIN, GIVE_UP = "wait", "take", "again", "give up"
"""A workflow engine's answers: look again later; use the model; make another try, which resumes; fail for good."""
INTERRUPTED_CODE = 130
WORTH_ANOTHER_TRY = (1, ClusterError.exit_code)
"""Exit codes of a driver after which the same command may do better."""
STALE_SECONDS = 60.0
"""A driver that was not heard of for so long is gone: twenty heartbeats, so that a slow store is no death."""
PAUSED_SECONDS = 180.0
"""The same between two attempts: the longest pause, the start of an interpreter, and those sixty seconds."""

START_SECONDS = 900.0
"""A run of whose driver nothing was heard for so long after it was handed over does not begin; a cluster may have to
grow first."""


@dataclass(frozen=True)
class State:
    """A state of a run.

    writers: who may put it into a record; none: readers conclude it. after: what it may replace in the record of the
    same run ("": there is none); the record of another run is replaced by whatever begins a new one. is_final: nothing
    more happens by itself, so followers and waiters return, and cancelling leaves it alone; else they go on, and
    cancelling asks the driver. silence: seconds without a word until readers conclude "lost" (the record of a run that
    is submitted may tell more); None: they have no right to. exit_code: of a command that waited; None: the record's
    error tells. engine: what a workflow engine does.
    """

    name: str
    meaning: str
    writers: tuple[str, ...]
    after: tuple[str, ...]
    is_final: bool
    silence: float | None
    exit_code: int | None
    engine: str


_ALIVE = ("submitted", "starting", "running", "retrying")
_ENDED = ("interrupted", "cancelled", "failed", "finished")
_ANY = ("", *_ALIVE, *_ENDED)  # a run that is tried again under its name begins anew, however it ended
# fmt: off
STATES = {state.name: state for state in (
    State("submitted", "handed over; no driver was heard of yet", (SUBMITTER, SUPERVISOR), _ANY, False, START_SECONDS,
          None, WAIT),
    State("starting", "its driver waits for a cluster", (DRIVER,), _ANY, False, STALE_SECONDS, None, WAIT),
    State("running", "its driver trains", (DRIVER,), ("starting", "running"), False, STALE_SECONDS, None, WAIT),
    State("retrying", "an attempt failed; its supervisor starts another", (DRIVER, SUPERVISOR),
          ("", *_ALIVE), False, PAUSED_SECONDS, None, WAIT),
    State("interrupted", "told to stop by a signal; the best model so far is published, if there was one",
          (DRIVER, SUPERVISOR), ("", *_ALIVE), True, None, INTERRUPTED_CODE, AGAIN),
    State("cancelled", "stopped on request; its checkpoint stays", (DRIVER, SUPERVISOR, CANCELLER), ("", *_ALIVE),
          True, None, RunCancelled.exit_code, GIVE_UP),
    State("failed", "ended by an error, and nothing tries again", (DRIVER, SUPERVISOR, CANCELLER), ("", *_ALIVE),
          True, None, None, AGAIN),
    State("finished", "succeeded: its model is published", (DRIVER,), ("starting", "running"), True, None, 0, TAKE),
    State("lost", "its driver is gone and did not say why", (), (), True, None, ClusterError.exit_code, AGAIN),
    State("unproven", "its record says finished, its model does not", (), (), True, None, ModelError.exit_code, AGAIN),
    State("unknown", "there is no record of it", (), (), False, None, 1, WAIT),
)}
# fmt: on
WRITTEN = tuple(state.name for state in STATES.values() if state.writers)


def of(name: str) -> State:
    """The state of a name; one that this version does not know, of a later one, is waited for as "unknown" is."""
    return STATES.get(name, STATES["unknown"])


def may_follow(name: str, before: str, writer: str) -> bool:
    """Whether a writer may put a state in place of the state before ("": none) in the record of the same run."""
    state = STATES[name]
    return writer in state.writers and before in state.after
