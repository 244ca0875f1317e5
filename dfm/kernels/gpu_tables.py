"""A GPU of this process, and parameter tables that stay on it: they come to the host when somebody looks at them.

A table that a worker's own GPU goes on with never leaves it. One that travels, is saved or published is fetched, by the
act of looking at its arrays or of pickling it, and arrives elsewhere as an ordinary `ParameterTable`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.errors import ClusterError
from dfm.kernels.gpu_memory import COPY, FETCH, TRAIN, Buffer, Device, Residents
from dfm.params import Floats, Layout, ParameterTable, empty_table

_NAMES = ("bias", "linear", "factors")


@dataclass(frozen=True)
class TableBuffers:
    """A parameter table's arrays on a device, and room for V in 16 bits where it is trained so."""

    bias: Buffer
    linear: Buffer
    factors: Buffer
    halves: Buffer | None = None


@dataclass
class Gpu:
    """A device of this process, what lies on it, and whose turn it is."""

    device: Device
    residents: Residents = field(init=False)
    turn: threading.Lock = field(default_factory=threading.Lock)
    _tables: weakref.WeakValueDictionary[int, GpuTable] = field(default_factory=weakref.WeakValueDictionary)
    """Those whose arrays are on the device, or were, by the number of their last use."""
    _copies: dict[int, GpuTable] = field(default_factory=dict)
    """Of tables that came from elsewhere, by the identity of the original."""
    _in_use: list[GpuTable] = field(default_factory=list)
    _clock: Iterator[int] = field(default_factory=itertools.count)
    _fetching: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.residents = Residents(self.device, self.allocate)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """The device, for one round, scoring or merge at a time."""
        with self.turn, self.device.active():
            # Memory that was given back since the last turn may still be read by what TRAIN has to do.
            self.device.wait(COPY, self.device.mark(TRAIN))
            try:
                yield
            finally:
                self._in_use.clear()

    def allocate(self, n_bytes: int) -> Buffer:
        """Memory of the device; where there is none left, rows make room, then tables that were not used for longest.

        Whoever calls has the device.
        """
        while True:
            try:
                return self.device.allocate(n_bytes)
            except ClusterError:
                if not self.make_room():
                    raise

    def make_room(self) -> bool:
        """Give back the memory of something that can be sent again; False where there is nothing."""
        return self.residents.evict_one() or self.spill_one()

    def spill_one(self) -> bool:
        """Fetch the table that was not used for longest, and give back its memory; False where there is none."""
        for number in sorted(self._tables.keys()):
            table = self._tables.pop(number, None)
            if table is not None and not any(table is other for other in self._in_use) and table.is_on_device:
                table.spill()
                return True
            if table is not None:
                self._tables[number] = table
        return False

    def table(self, table: ParameterTable) -> GpuTable:
        """The table itself if it belongs to this GPU, else a copy that is kept as long as the original is.

        The original must not change: parameters that are passed between tasks never do.
        """
        if isinstance(table, GpuTable) and table.gpu is self:
            return table
        if id(table) not in self._copies:
            self._copies[id(table)] = GpuTable.of_host(self, table)
            weakref.finalize(table, self._copies.pop, id(table), None).atexit = False
        return self._copies[id(table)]

    def use(self, table: ParameterTable) -> TableBuffers:
        """The table's arrays on the device, until this turn ends."""
        ours = self.table(table)
        buffers = ours.send()
        self._tables.pop(ours.number, None)
        ours.number = next(self._clock)
        self._tables[ours.number] = ours
        self._in_use.append(ours)
        return buffers

    def send(self, array: NDArray[Any]) -> Buffer:
        """An array in memory of its own, on its way in TRAIN."""
        buffer = self.allocate(array.nbytes)
        self.device.send(array, buffer, 0, TRAIN)
        return buffer

    def fetch(self, after: Any, *parts: tuple[Buffer, NDArray[Any], int]) -> None:
        """Fill arrays from buffers, from an offset in bytes on, after a mark in TRAIN; while others have the device."""
        with self._fetching, self.device.active():
            self.device.wait(FETCH, after)
            for buffer, array, offset in parts:
                self.device.fetch(buffer, array, offset, FETCH)


class GpuTable(ParameterTable):
    """A parameter table on a GPU. `bias`, `linear` and `factors` are fetched when they are first looked at.

    What changes it in place says so (`changed`). Pickled, it is a plain table.
    """

    gpu: Gpu
    number: int
    _shape: tuple[int, int]
    _buffers: TableBuffers | None
    _ready: Any
    _lock: threading.RLock

    def __init__(
        self, gpu: Gpu, layout: Layout, n_features: int, n_factored: int, buffers: TableBuffers | None
    ) -> None:
        self.__dict__["layout"] = layout  # the class that this one is derived from lets nobody assign its fields
        self.gpu, self.number, self._shape, self._buffers = gpu, -1, (n_features, n_factored), buffers
        self._ready = gpu.device.mark(TRAIN) if buffers else None
        self._lock = threading.RLock()

    @classmethod
    def empty(cls, gpu: Gpu, layout: Layout, n_features: int, n_factored: int) -> GpuTable:
        """A table of any contents. Whoever calls has the device."""
        n_factored = n_factored if layout.lanes else 0
        sizes = layout.linear_width, n_features * layout.linear_width, n_factored * layout.factor_width
        buffers = TableBuffers(*(gpu.allocate(4 * size) for size in sizes))
        table = cls(gpu, layout, n_features, n_factored, buffers)
        gpu.use(table)
        return table

    @classmethod
    def of_host(cls, gpu: Gpu, table: ParameterTable) -> GpuTable:
        """A table that is sent when it is first used."""
        ours = cls(gpu, table.layout, table.n_features, table.n_factored, None)
        ours.__dict__.update((name, getattr(table, name)) for name in _NAMES)
        return ours

    @property
    def n_features(self) -> int:
        """Rows of the linear table."""
        return self._shape[0]

    @property
    def n_factored(self) -> int:
        """Rows of the factor table."""
        return self._shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all three arrays."""
        layout, (n_features, n_factored) = self.layout, self._shape
        return 4 * (layout.linear_width * (1 + n_features) + layout.factor_width * n_factored)

    @property
    def is_on_device(self) -> bool:
        """Whether the device holds the arrays."""
        return self._buffers is not None

    def __getattr__(self, name: str) -> Floats:
        if name not in _NAMES:
            raise AttributeError(name)
        with self._lock:
            if name not in self.__dict__:
                self._fetch()
            return self.__dict__[name]

    def __sizeof__(self) -> int:
        """Bytes of the host's memory."""
        return 1000 + sum(self.__dict__[name].nbytes for name in _NAMES if name in self.__dict__)

    def __reduce__(self) -> tuple[Callable[..., ParameterTable], tuple[Any, ...]]:
        return ParameterTable, (self.layout, self.bias, self.linear, self.factors)

    def _fetch(self) -> None:
        assert self._buffers is not None
        host = empty_table(self.layout, *self._shape)
        pairs = ((getattr(self._buffers, name), getattr(host, name), 0) for name in _NAMES)
        self.gpu.fetch(self._ready, *pairs)
        self.__dict__.update((name, getattr(host, name)) for name in _NAMES)

    def send(self) -> TableBuffers:
        """The arrays on the device, sent if they are not there. Whoever calls has the device."""
        with self._lock:
            if self._buffers is None:
                self._buffers = TableBuffers(*(self.gpu.send(self.__dict__[name]) for name in _NAMES))
                self._ready = self.gpu.device.mark(TRAIN)
            return self._buffers

    def spill(self) -> None:
        """Keep the arrays on the host only."""
        with self._lock:
            if any(name not in self.__dict__ for name in _NAMES):
                self._fetch()
            self._buffers = None

    def changed(self) -> None:
        """What is queued in TRAIN by now changes the arrays: what the host has of them is no longer true."""
        with self._lock:
            for name in _NAMES:
                self.__dict__.pop(name, None)
            self._ready = self.gpu.device.mark(TRAIN)

    def set_bias(self, bias: Floats) -> None:
        """Give it another bias; the rest is as it is on the device. Whoever calls has the device."""
        self.gpu.device.send(bias, self.gpu.use(self).bias, 0, TRAIN)
        self.changed()
        self.__dict__["bias"] = bias

    def bias_now(self) -> Floats:
        """The bias' record after all that is queued in TRAIN. Whoever calls has the device."""
        if "bias" in self.__dict__:
            return self.__dict__["bias"]
        room = np.empty(self.layout.linear_width, np.float32)
        self.gpu.device.fetch(self.gpu.use(self).bias, room)
        return room
