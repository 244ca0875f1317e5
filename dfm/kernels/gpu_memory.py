"""What a GPU holds between launches: pieces of rows that stay as long as they fit, and tables for the time of a call.

Nothing here knows CuPy: `Device` says what is needed of a GPU, `cupy_device.CupyDevice` gives it, and tests give it on
the processor.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from dfm.kernels.contract import RowsLike, check_rows
from dfm.kernels.gpu_plan import Facts, Piece, facts_of, piece_bytes
from dfm.params import ParameterTable

ALIGNMENT = 256
TRAIN, COPY = "train", "copy"
"""The two queues of a device. Work of one queue is done in order; kernels run in TRAIN, rows arrive in COPY."""


class Buffer(Protocol):
    """Device memory, given back when the record is dropped."""

    @property
    def address(self) -> int: ...


class Program(Protocol):
    """Compiled kernels, by name."""

    def launch(self, kernel: str, grid: tuple[int, int], shared_bytes: int, arguments: Buffer) -> None:
        """Queue a kernel in TRAIN; grid: blocks and threads of a block."""

    def most_blocks(self, kernel: str, threads: int, shared_bytes: int) -> int:
        """Blocks that the device runs at a time."""


class Device(Protocol):
    """A GPU. Calls return before the work is done, except `fetch`."""

    @property
    def name(self) -> str: ...

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """Makes this the thread's device; what runs out of memory inside becomes a ClusterError."""

    def free_bytes(self) -> int: ...
    def compile(self, source: str) -> Program: ...
    def allocate(self, n_bytes: int) -> Buffer: ...

    def send(self, array: NDArray[Any], buffer: Buffer, offset: int, queue: str) -> None:
        """Copy an array to `offset` bytes into a buffer. The array may change as soon as this returns."""

    def fetch(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """Fill an array from a buffer, in place, after all work in TRAIN."""

    def mark(self, queue: str) -> Any:
        """A point in a queue's work."""

    def wait(self, queue: str, mark: Any) -> None:
        """What is queued from now on in `queue` begins after `mark`."""


@dataclass
class Resident:
    """Rows of a piece on the device: where each array begins, when it has arrived, when it was last used."""

    buffer: Buffer
    offsets: dict[str, int]
    n_bytes: int
    arrived: Any
    used: Any = None

    def address(self, name: str) -> int:
        """Of an array of the piece."""
        return self.buffer.address + self.offsets[name]


Owner = tuple[int, ...]
"""What tells partitions apart: the identities of their arrays, and n_implicit."""

_ARRAYS = ("indptr", "indices", "values", "labels", "weights")


class Residents:
    """The pieces on a device, least recently used first. Pieces of a partition that is gone go too."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.budget = 0
        self.n_bytes = 0
        self._pieces: OrderedDict[tuple[Owner, int], Resident] = OrderedDict()
        self._facts: dict[Owner, Facts] = {}
        self._gone: deque[Owner] = deque()

    def facts(self, rows: RowsLike) -> Facts:
        """Facts of a partition; its arrays are checked when it is first seen."""
        self._forget()
        owner = self._owner(rows)
        if owner not in self._facts:
            self._facts[owner] = facts_of(rows, check_rows(rows))
            for array in (getattr(rows, name) for name in _ARRAYS):
                # An identity may be given to another array once this one is gone; finalizers may run in any thread.
                if array.size:  # empty arrays are shared, and outlive all
                    weakref.finalize(array, self._gone.append, owner).atexit = False
        return self._facts[owner]

    def limit(self, budget: int) -> None:
        """Hold at most `budget` bytes from now on."""
        self.budget = budget
        self._make_room(0)

    def get(self, rows: RowsLike, piece: Piece) -> Resident:
        """The piece on the device, or on its way there: TRAIN must wait for `arrived`."""
        self._forget()
        key = self._owner(rows), piece.first
        if key not in self._pieces:
            n_bytes = piece_bytes(rows, piece.first, piece.last) + ALIGNMENT * len(_ARRAYS)
            self._make_room(n_bytes)
            self._pieces[key] = _send_piece(self.device, rows, piece, n_bytes)
            self.n_bytes += n_bytes
        self._pieces.move_to_end(key)
        return self._pieces[key]

    @staticmethod
    def _owner(rows: RowsLike) -> Owner:
        return (*(id(getattr(rows, name)) for name in _ARRAYS), int(rows.n_implicit))

    def _forget(self) -> None:
        """Drops what belongs to partitions that are gone."""
        while self._gone:
            owner = self._gone.popleft()
            self._facts.pop(owner, None)
            for key in [key for key in self._pieces if key[0] == owner]:
                self._evict(key)

    def _make_room(self, n_bytes: int) -> None:
        while self._pieces and self.n_bytes + n_bytes > self.budget:
            self._evict(next(iter(self._pieces)))

    def _evict(self, key: tuple[Owner, int]) -> None:
        piece = self._pieces.pop(key)
        self.n_bytes -= piece.n_bytes
        # The memory may be handed out again at once, and be written to by COPY while TRAIN still reads it.
        self.device.wait(COPY, piece.used if piece.used is not None else piece.arrived)


def _send_piece(device: Device, rows: RowsLike, piece: Piece, n_bytes: int) -> Resident:
    first, last = piece.first, piece.last
    start, stop = int(rows.indptr[first]), int(rows.indptr[last])
    skipped = int(rows.indptr[rows.n_implicit])
    value = first_value(rows, piece)
    parts: dict[str, NDArray[Any]] = {
        "indptr": rows.indptr[first : last + 1],
        "indices": rows.indices[start:stop],
        "values": rows.values[value - skipped : stop - skipped] if value < stop else rows.values[:0],
        "labels": rows.labels[first:last],
        "weights": rows.weights[first:last],
    }
    buffer, offsets, at = device.allocate(n_bytes), {}, 0
    for name, array in parts.items():
        offsets[name] = at
        device.send(array, buffer, at, COPY)
        at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return Resident(buffer, offsets, n_bytes, device.mark(COPY))


def first_value(rows: RowsLike, piece: Piece) -> int:
    """The partition's entry from which on the piece's rows store their values."""
    return int(rows.indptr[max(piece.first, min(piece.last, rows.n_implicit))])


@dataclass
class DeviceTable:
    """A parameter table on the device, and room for V in 16 bits where it is trained so."""

    bias: Buffer
    linear: Buffer
    factors: Buffer
    halves: Buffer | None

    @classmethod
    def send(cls, device: Device, table: ParameterTable, with_halves: bool) -> DeviceTable:
        """The table, on its way to the device in TRAIN."""
        halves = device.allocate(2 * table.n_factored * table.layout.lanes) if with_halves else None
        return cls(sent(device, table.bias), sent(device, table.linear), sent(device, table.factors), halves)

    def fetch(self, device: Device, table: ParameterTable) -> None:
        """Copy it back, in place on `table`."""
        for buffer, array in ((self.bias, table.bias), (self.linear, table.linear), (self.factors, table.factors)):
            device.fetch(buffer, array)


def sent(device: Device, array: NDArray[Any]) -> Buffer:
    """An array in a buffer of its own, on its way in TRAIN."""
    buffer = device.allocate(array.nbytes)
    device.send(array, buffer, 0, TRAIN)
    return buffer
