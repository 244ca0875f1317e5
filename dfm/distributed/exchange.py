"""Values from task to task, worker to worker: what a scheduler need not know, and would hand on in a few milliseconds.

Tasks that run at the same time meet by the name of their meeting. A worker takes what comes for them by a handler of
its own, over the connections that Dask has between workers, with its certificates. Nobody waits for ever: who cannot
reach another, or sees that the task of the other is over, leaves with MemberLost, and all others with him. A worker
process that took the place of another, at the same address, is no member.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import threading
import time
import uuid
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from distributed import Worker, get_worker
from distributed.protocol import to_serialize

from dfm.training.together import Exchange, MemberLost

_GIVE, _ASK = "dfm_give", "dfm_ask"
"""Names of the handlers of a worker."""
ARRIVAL = 30.0
"""Seconds to wait until all have come: the thread of one may have another task, which in turn waits for this one."""
_LOOK_AROUND = 5.0
"""Seconds of waiting after which the others are asked whether they are still there."""
_ANSWER = 20.0
"""Seconds in which a worker says so; a frozen one does not."""
_EXPECTED, _HERE, _OVER = "expected", "here", "over"
"""States of a member: its task has not begun, runs, has ended."""
_MOST_OVER = 1024
"""Members whose end is remembered."""
_KEPT = 20 * ARRIVAL
"""Seconds after which what came for a member whose task never began is thrown away."""
_names: list[str] = []
"""The name of this process, once somebody asked for it."""
os.register_at_fork(after_in_child=_names.clear)  # workers are forked from a process that has imported this


@dataclass(frozen=True)
class Door:
    """A worker whose tasks can take part: its address, and the name of its process."""

    address: str
    process: str


@dataclass
class _Member:
    """A member of a meeting, as its worker sees it: values that came for it, by step and sender.

    since: seconds of the monotonic clock.
    """

    state: str = _EXPECTED
    is_broken: bool = False
    values: dict[tuple[int, int], Any] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)


_ARRIVED = threading.Condition()
_MEMBERS: dict[tuple[str, int], _Member] = {}
_ENDED: collections.OrderedDict[tuple[str, int], None] = collections.OrderedDict()
"""Members whose tasks have ended, the last ones: what comes for them is not kept."""


async def _give(name: str, member: int, process: str, step: int, sender: int, value: Any) -> str:
    """Keep a value for a member, or that another left, and tell the member's state."""
    with _ARRIVED:
        if process != process_name() or (name, member) in _ENDED:
            return _OVER
        if (name, member) not in _MEMBERS:
            _throw_away()
        box = _MEMBERS.setdefault((name, member), _Member())
        if step < 0:
            box.is_broken = True
        else:
            box.values[step, sender] = value
        _ARRIVED.notify_all()
        return box.state


def process_name() -> str:
    """A name that no other process has had."""
    if not _names:
        _names.append(uuid.uuid4().hex)
    return _names[0]


def _throw_away() -> None:
    """Forget members who were expected for too long: their tasks went elsewhere, or to nobody."""
    oldest = time.monotonic() - _KEPT
    for key in [key for key, box in _MEMBERS.items() if box.state == _EXPECTED and box.since < oldest]:
        del _MEMBERS[key]


async def _ask(name: str, member: int, process: str) -> str:
    """The state of a member."""
    with _ARRIVED:
        is_over = process != process_name() or (name, member) in _ENDED
        return _OVER if is_over else _MEMBERS.get((name, member), _Member()).state


def open_door() -> Door | None:
    """Let the worker of this task take values for tasks on it. None where this is no worker's task."""
    try:
        worker = get_worker()
    except ValueError:
        return None
    worker.handlers.update({_GIVE: _give, _ASK: _ask})
    return Door(str(worker.address), process_name())


@dataclass(frozen=True)
class WorkersMeeting:
    """A meeting on workers: member i is a task behind doors[i]."""

    doors: tuple[Door, ...]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def joined(self, number: int) -> contextlib.AbstractContextManager[Exchange]:
        """The exchange, as member `number` sees it. MemberLost where its task came to another worker."""
        return as_member(self, number, get_worker())


@contextlib.contextmanager
def as_member(meeting: WorkersMeeting, number: int, worker: Worker) -> Iterator[Exchange]:
    """The exchange, as its member of this number on this worker sees it."""
    exchange = _WorkersExchange(meeting, number, worker)
    try:
        exchange.come()
        yield exchange
        exchange.see_values_off()
    except BaseException:
        exchange.tell_that_it_leaves()
        raise
    finally:
        exchange.leave()


class _WorkersExchange:
    """An exchange over the connections of a worker."""

    def __init__(self, meeting: WorkersMeeting, number: int, worker: Worker) -> None:
        self._meeting, self._number, self._worker = meeting, number, worker
        self._key = meeting.name, number
        self._step = 0
        self._sent: list[Future[str]] = []

    @property
    def n_members(self) -> int:
        """Number of members."""
        return len(self._meeting.doors)

    def come(self) -> None:
        """Take part."""
        with _ARRIVED:
            if self._key in _ENDED or Door(self._worker.address, process_name()) != self._meeting.doors[self._number]:
                raise MemberLost
            _MEMBERS.setdefault(self._key, _Member()).state = _HERE

    def leave(self) -> None:
        """Take part no longer."""
        with _ARRIVED:
            _MEMBERS.pop(self._key, None)
            _ENDED[self._key] = None
            if len(_ENDED) > _MOST_OVER:
                _ENDED.popitem(last=False)

    def tell_that_it_leaves(self) -> None:
        """Let the others not wait."""
        with contextlib.suppress(MemberLost):
            for other in range(self.n_members):
                if other != self._number:
                    self._send(other, -1, None)

    def see_values_off(self) -> None:
        """Wait until the last values have arrived: to others this member is over as soon as it leaves."""
        for sent in self._sent:
            with contextlib.suppress(OSError, TimeoutError, CancelledError):
                sent.result(_ANSWER)

    def to_all(self, value: Any) -> list[Any]:
        """The values of all members, in their order."""
        return self.to_each([value] * self.n_members)

    def to_each(self, values: Sequence[Any]) -> list[Any]:
        """The values that all members gave to this one, in their order."""
        if self.n_members == 1:
            return list(values)
        step, self._step = self._step, self._step + 1
        self._check_sent()
        for other, value in enumerate(values):
            if other != self._number:
                self._sent.append(self._send(other, step, value))
        return [
            values[other] if other == self._number else self._received(step, other) for other in range(self.n_members)
        ]

    def _received(self, step: int, sender: int) -> Any:
        started = time.monotonic()
        box = _MEMBERS[self._key]
        while True:
            with _ARRIVED:
                _ARRIVED.wait_for(lambda: box.is_broken or (step, sender) in box.values, timeout=_LOOK_AROUND)
                if box.is_broken:
                    raise MemberLost
                if (step, sender) in box.values:
                    return box.values.pop((step, sender))
            self._check_sent()
            state = self._state_of(sender)
            if state != _HERE and (state != _EXPECTED or time.monotonic() - started > ARRIVAL):
                raise MemberLost

    def _check_sent(self) -> None:
        """Forget what has arrived. MemberLost where something never will."""
        self._sent = [sent for sent in self._sent if not _has_arrived(sent)]

    def _state_of(self, member: int) -> str:
        try:
            return self._run(self._call(member, _ASK)).result(_ANSWER)
        except (OSError, TimeoutError, CancelledError, MemberLost):
            return _OVER

    def _send(self, member: int, step: int, value: Any) -> Future[str]:
        about = {"step": step, "sender": self._number, "value": None if value is None else to_serialize(value)}
        return self._run(self._call(member, _GIVE, **about))

    async def _call(self, member: int, handler: str, **about: Any) -> str:
        door = self._meeting.doors[member]
        about |= {"name": self._meeting.name, "member": member, "process": door.process}
        if door.address == self._worker.address:
            if about.get("value") is not None:
                about["value"] = about["value"].data
            answer: str = await (_give if handler == _GIVE else _ask)(**about)
            return answer
        return str(await getattr(self._worker.rpc(door.address), handler)(**about))

    def _run(self, call: Coroutine[Any, Any, str]) -> Future[str]:
        try:
            return asyncio.run_coroutine_threadsafe(call, self._worker.loop.asyncio_loop)
        except RuntimeError as error:  # an event loop that has ended
            call.close()
            raise MemberLost from error


def _has_arrived(sent: Future[str]) -> bool:
    """Whether a value arrived. MemberLost where it did not, or nobody there wants it any more."""
    if not sent.done():
        return False
    if sent.cancelled() or sent.exception() is not None or sent.result() not in (_EXPECTED, _HERE):
        raise MemberLost
    return True
