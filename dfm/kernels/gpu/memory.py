"""Contents of a GPU between launches: pieces of rows, and other arrays, that stay as long as they fit.

Nothing here knows CuPy: `Device` says what is needed of a GPU, `cupy_device.CupyDevice` gives it, and tests give it on
the processor.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from dfm.kernels.contract import KernelSpec, RowsLike, check_rows
from dfm.kernels.gpu.plan import Facts, Piece, facts_of, piece_bytes

ALIGNMENT = 256
TRAIN, COPY, FETCH = "train", "copy", "fetch"
"""The queues of a device. Work of one queue is done in order: kernels run in TRAIN, rows arrive in COPY, and what lives
on the device leaves it in FETCH, whatever the others do."""


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

    def compile(self, source: str, exact: bool = False) -> Program:
        """CUDA C++ to kernels; `exact`: products and sums are rounded one by one, as processors do it."""

    def allocate(self, n_bytes: int) -> Buffer:
        """Memory with any contents. ClusterError where there is none left."""

    def send(self, array: NDArray[Any], buffer: Buffer, offset: int, queue: str) -> None:
        """Copy an array to `offset` bytes into a buffer. The array may change as soon as this returns."""

    def fetch(self, buffer: Buffer, array: NDArray[Any], offset: int = 0, queue: str = TRAIN) -> None:
        """Fill an array from `offset` bytes into a buffer, in place, after all work in the queue."""

    def mark(self, queue: str) -> Any:
        """A point in a queue's work."""

    def wait(self, queue: str, mark: Any) -> None:
        """Work that is queued from now on in `queue` begins after `mark`."""


@dataclass
class Resident:
    """Rows of a piece on the device: where each array begins, when it has arrived, when it was last used."""

    buffer: Buffer
    offsets: dict[str, int]
    n_bytes: int
    arrived: Any
    used: Any = None
    age: int = 0
    """Larger: asked for later."""

    def address(self, name: str) -> int:
        """The device copy of an array of the piece."""
        return self.buffer.address + self.offsets[name]


Owner = tuple[int, ...]
"""The key that tells partitions apart: the identities of their arrays, and n_implicit."""

_ARRAYS = ("indptr", "indices", "values", "labels", "weights")


class Residents:
    """The pieces on a device, least recently used first, and other arrays. Those of partitions that are gone go.

    `n_bytes` and `budget` are about pieces, `array_bytes` about the other arrays.
    """

    def __init__(self, device: Device, allocate: Callable[[int], Buffer] | None = None) -> None:
        """allocate: who gives the memory, if not the device itself."""
        self.device = device
        self.allocate = allocate or device.allocate
        self.budget = 0
        self.n_bytes = 0
        self._pieces: OrderedDict[tuple[Owner, int], Resident] = OrderedDict()
        self.array_bytes = 0
        self._arrays: OrderedDict[Owner, Resident] = OrderedDict()
        self._clock = itertools.count(1)
        self._facts: dict[Owner, Facts] = {}
        self._growths: dict[tuple[Owner, KernelSpec], float] = {}
        self._watched: set[Owner] = set()
        self._gone: deque[Owner] = deque()

    def facts(self, rows: RowsLike) -> Facts:
        """Facts of a partition; its arrays are checked when it is first seen."""
        self._forget()
        owner = self._owner(rows)
        if owner not in self._facts:
            self._facts[owner] = facts_of(rows, check_rows(rows))
            self._watch(owner, *(getattr(rows, name) for name in _ARRAYS))
        return self._facts[owner]

    def growth(self, rows: RowsLike, spec: KernelSpec) -> float:
        """Growth of the bias' accumulator per row in the last walk of these rows; 0.0 where that is not known."""
        return self._growths.get((self._owner(rows), spec), 0.0)

    def grew(self, rows: RowsLike, spec: KernelSpec, growth: float) -> None:
        """Remember that growth for the next walk of a known partition."""
        self._growths[self._owner(rows), spec] = growth

    def _watch(self, owner: Owner, *arrays: NDArray[Any]) -> None:
        """Notice when one of the owner's arrays is gone: its identity may then be given to another."""
        if owner in self._watched:
            return
        self._watched.add(owner)
        for array in arrays:
            if array.size:  # an empty one may be shared by many, and others of its owner are not empty
                weakref.finalize(array, self._gone.append, owner).atexit = False  # may run in any thread

    def limit(self, budget: int) -> None:
        """Hold at most `budget` bytes from now on."""
        self.budget = budget
        self._make_room(0)

    def get(self, rows: RowsLike, piece: Piece) -> Resident:
        """The piece on the device, or on its way there: TRAIN must wait for `arrived`."""
        return self._get(rows, piece, self.allocate)

    def get_if_it_fits(self, rows: RowsLike, piece: Piece) -> None:
        """As `get`, but only older pieces make room for it. Nothing comes where it is larger than half of the budget:
        the piece that is being trained would have to go. ClusterError where the device has no room.
        """
        if 2 * piece_bytes(rows, piece.first, piece.last) <= self.budget:
            self._get(rows, piece, self.device.allocate)

    def _get(self, rows: RowsLike, piece: Piece, allocate: Callable[[int], Buffer]) -> Resident:
        self._forget()
        key = self._owner(rows), piece.first
        if key not in self._pieces:
            n_bytes = piece_bytes(rows, piece.first, piece.last) + ALIGNMENT * len(_ARRAYS)
            self._make_room(n_bytes)
            self._pieces[key] = _send_piece(self.device, rows, piece, allocate(n_bytes), n_bytes)
            self.n_bytes += n_bytes
        self._pieces.move_to_end(key)
        self._pieces[key].age = next(self._clock)
        return self._pieces[key]

    def array(self, array: NDArray[Any]) -> Buffer:
        """An array that is used again and again, on the device; it arrives in TRAIN."""
        self._forget()
        if not array.size:
            return self.allocate(0)
        owner = (id(array),)
        if owner not in self._arrays:
            self._watch(owner, array)
            buffer = self.allocate(array.nbytes)
            self.device.send(array, buffer, 0, TRAIN)
            self._arrays[owner] = Resident(buffer, {}, array.nbytes, None)
            self.array_bytes += array.nbytes
        self._arrays.move_to_end(owner)
        self._arrays[owner].age = next(self._clock)
        return self._arrays[owner].buffer

    def evict_one(self) -> bool:
        """Give back the memory of the piece or array that was not used for longest; False without any."""
        piece, array = next(iter(self._pieces), None), next(iter(self._arrays), None)
        if piece and (not array or self._pieces[piece].age < self._arrays[array].age):
            self._evict(piece)
            return True
        return self.evict_array()

    def evict_array(self) -> bool:
        """Give back the memory of the array that was not used for longest; False without any."""
        if self._arrays:
            self._drop(next(iter(self._arrays)))
            return True
        return False

    @staticmethod
    def _owner(rows: RowsLike) -> Owner:
        return (*(id(getattr(rows, name)) for name in _ARRAYS), int(rows.n_implicit))

    def _forget(self) -> None:
        """Drops what belongs to partitions that are gone."""
        while self._gone:
            owner = self._gone.popleft()
            self._facts.pop(owner, None)
            for known in [known for known in self._growths if known[0] == owner]:
                del self._growths[known]
            self._watched.discard(owner)
            if owner in self._arrays:
                self._drop(owner)
            for key in [key for key in self._pieces if key[0] == owner]:
                self._evict(key)

    def _make_room(self, n_bytes: int) -> None:
        while self._pieces and self.n_bytes + n_bytes > self.budget:
            self._evict(next(iter(self._pieces)))

    # Memory that is given back may be handed out again at once. So COPY waits until TRAIN has read it, and TRAIN until
    # COPY has written it: a piece may be evicted before anybody used it.

    def _evict(self, key: tuple[Owner, int]) -> None:
        piece = self._pieces.pop(key)
        self.n_bytes -= piece.n_bytes
        self.device.wait(TRAIN, piece.arrived)
        if piece.used is not None:
            self.device.wait(COPY, piece.used)

    def _drop(self, owner: Owner) -> None:
        self.array_bytes -= self._arrays.pop(owner).n_bytes
        self.device.wait(COPY, self.device.mark(TRAIN))


def _send_piece(device: Device, rows: RowsLike, piece: Piece, buffer: Buffer, n_bytes: int) -> Resident:
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
    offsets, at = {}, 0
    for name, array in parts.items():
        offsets[name] = at
        device.send(array, buffer, at, COPY)
        at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return Resident(buffer, offsets, n_bytes, device.mark(COPY))


def first_value(rows: RowsLike, piece: Piece) -> int:
    """The partition's entry from which on the piece's rows store their values."""
    return int(rows.indptr[max(piece.first, min(piece.last, rows.n_implicit))])
