"""A GPU of this process, and arrays that live on it: they come to the host when somebody looks at them.

A table that a worker's own GPU goes on with never leaves it. One that travels, is saved or published is fetched, by the
act of looking at its arrays or of pickling it, and arrives elsewhere as an ordinary `ParameterTable`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.errors import ClusterError
from dfm.kernels.gpu.memory import COPY, FETCH, TRAIN, Buffer, Device, Residents
from dfm.kernels.gpu.plan import FEWER_BYTES
from dfm.kernels.tables import Floats, Layout, ParameterTable, aligned_room

_MEMORY = 0.98
"""The part of the largest need for memory that is left after another walk."""


@dataclass
class Gpu:
    """A device of this process, what lies on it, and whose turn it is."""

    device: Device
    residents: Residents = field(init=False)
    turn: threading.Lock = field(default_factory=threading.Lock)
    row_limit: int = 0
    """Bytes that rows may take, as the job wants it; 0: what there is."""
    array_bytes: int = 0
    """Bytes of the parameters and summands that are here."""
    most_bytes: int = 0
    """That these took of late."""
    _returned: deque[int] = field(default_factory=deque)
    """Bytes of arrays that are gone: whoever has the device next takes note."""
    _arrays: weakref.WeakValueDictionary[int, GpuArrays] = field(default_factory=weakref.WeakValueDictionary)
    """Those that live here, by the number of their last use."""
    _copies: dict[int, GpuTable] = field(default_factory=dict)
    """Copies of tables that came from elsewhere, by the identity of the original."""
    _in_use: list[GpuArrays] = field(default_factory=list)
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

    # ---------------------------------------------------------------------------------------------- memory ----

    def allocate(self, n_bytes: int) -> Buffer:
        """Memory of the device; where there is none left, rows make room, then arrays that were not used for longest.

        Whoever calls has the device. ClusterError where that is not enough.
        """
        while True:
            try:
                return self.device.allocate(n_bytes)
            except ClusterError as error:
                if not self.make_room():
                    raise ClusterError(
                        f"{error}; rows and older parameters have made room already. {FEWER_BYTES}"
                    ) from error

    def make_room(self) -> bool:
        """Give back the memory of something that can be sent again; False where there is nothing."""
        return self.residents.evict_one() or self.spill_one()

    def spill_one(self) -> bool:
        """Fetch the arrays that were not used for longest, and give back their memory; False where there are none."""
        for number in sorted(self._arrays.keys()):
            arrays = self._arrays.get(number)
            if arrays is not None and arrays.is_on_device and not any(arrays is other for other in self._in_use):
                arrays.spill()
                return True
        return False

    def reserve(self, least: int) -> int:
        """Bytes that arrays other than rows will want beside those that are here: what they once had, or `least`."""
        self._count(0)
        reserve = max(self.most_bytes - self.array_bytes, least)
        self.most_bytes = int(self.most_bytes * _MEMORY)  # another job may want less
        return reserve

    def _count(self, n_bytes: int) -> None:
        """More bytes are taken by arrays; what was given back meanwhile is subtracted."""
        while self._returned:
            self.array_bytes -= self._returned.popleft()
        self.array_bytes += n_bytes
        self.most_bytes = max(self.most_bytes, self.array_bytes)

    def buffers(self, buffers: Mapping[str, Buffer], n_bytes: int) -> Buffers:
        """Buffers of arrays, counted as long as they are there."""
        counted = Buffers(buffers)
        weakref.finalize(counted, self._returned.append, n_bytes).atexit = False
        self._count(n_bytes)
        return counted

    # ---------------------------------------------------------------------------------------- coming and going ----

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

    def use(self, arrays: GpuArrays) -> dict[str, Buffer]:
        """The arrays on the device, until this turn ends."""
        self.hold(arrays)
        return arrays.send()

    def use_table(self, table: ParameterTable) -> dict[str, Buffer]:
        """Those of a table."""
        return self.use(self.table(table).arrays)

    def hold(self, arrays: GpuArrays) -> None:
        """Let the arrays stay where they are until this turn ends."""
        self._arrays.pop(arrays.number, None)
        arrays.number = next(self._clock)
        self._arrays[arrays.number] = arrays
        self._in_use.append(arrays)

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


class Buffers(dict[str, Buffer]):
    """Buffers by name; unlike a plain dict, one can be told when it is gone."""


class GpuArrays(Mapping[str, Floats]):
    """Named float32 arrays on a GPU, on the host, or on both. To look one up is to have it on the host."""

    __eq__, __hash__ = object.__eq__, object.__hash__

    def __init__(self, gpu: Gpu, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.gpu, self.shapes, self.number = gpu, dict(shapes), -1
        self._buffers: Buffers | None = None
        self._host: dict[str, Floats] = {}
        self._ready: Any = None
        self._lock = threading.RLock()

    @classmethod
    def empty(cls, gpu: Gpu, shapes: Mapping[str, tuple[int, ...]]) -> GpuArrays:
        """Arrays of any contents, on the device. Whoever calls has it, fills them, and then says `changed`."""
        arrays = cls(gpu, shapes)
        rooms = {name: gpu.allocate(4 * math.prod(shape)) for name, shape in shapes.items()}
        arrays._buffers = gpu.buffers(rooms, arrays.nbytes)
        arrays._ready = gpu.device.mark(TRAIN)
        gpu.hold(arrays)
        return arrays

    @classmethod
    def of_host(cls, gpu: Gpu, host: Mapping[str, Floats]) -> GpuArrays:
        """Arrays that are sent when they are first used."""
        arrays = cls(gpu, {name: array.shape for name, array in host.items()})
        arrays._host.update(host)
        return arrays

    def __getitem__(self, name: str) -> Floats:
        return self.host(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return 4 * sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def is_on_device(self) -> bool:
        """Whether the device holds them."""
        return self._buffers is not None

    def host_bytes(self) -> int:
        """Bytes of the host's memory that they take."""
        return sum(array.nbytes for array in self._host.values())

    def host(self, name: str) -> Floats:
        """An array, after all that was done to it; all of them are fetched at once."""
        with self._lock:
            if name not in self._host:
                self._fetch()
            return self._host[name]

    def part(self, name: str, first: int, last: int) -> Floats:
        """Some rows of an array; only these are fetched."""
        with self._lock:
            if name in self._host:
                return self._host[name][first:last]
            assert self._buffers is not None
            width = math.prod(self.shapes[name][1:])
            rows = np.empty((last - first, width), np.float32)
            self.gpu.fetch(self._ready, (self._buffers[name], rows, 4 * width * first))
            return rows

    def _fetch(self) -> None:
        assert self._buffers is not None
        missing = {name: aligned_room(shape) for name, shape in self.shapes.items() if name not in self._host}
        self.gpu.fetch(self._ready, *((self._buffers[name], array, 0) for name, array in missing.items()))
        self._host.update(missing)

    def send(self) -> dict[str, Buffer]:
        """The arrays on the device, sent if they are not there. Whoever calls has the device."""
        with self._lock:
            if self._buffers is None:
                sent = {name: self.gpu.send(self._host[name]) for name in self.shapes}
                self._buffers = self.gpu.buffers(sent, self.nbytes)
                self._ready = self.gpu.device.mark(TRAIN)
            return self._buffers

    def spill(self) -> None:
        """Keep them on the host only."""
        with self._lock:
            if len(self._host) < len(self.shapes):
                self._fetch()
            self._buffers = None

    def changed(self) -> None:
        """Work that is queued in TRAIN by now changes the arrays: what the host has of them is no longer true."""
        with self._lock:
            self._host.clear()
            self._ready = self.gpu.device.mark(TRAIN)

    def replace(self, name: str, array: Floats) -> None:
        """Another array in place of one. Whoever calls has the device."""
        self.gpu.device.send(array, self.gpu.use(self)[name], 0, TRAIN)
        with self._lock:
            self._host[name] = array
            self._ready = self.gpu.device.mark(TRAIN)

    def now(self, name: str) -> Floats:
        """An array after all that is queued in TRAIN, fetched by itself. Whoever calls has the device."""
        if name in self._host:
            return self._host[name]
        room = np.empty(self.shapes[name], np.float32)
        self.gpu.device.fetch(self.gpu.use(self)[name], room)
        return room


class GpuTable(ParameterTable):
    """A parameter table on a GPU, whose arrays are fetched when they are first looked at.

    What changes its `arrays` in place says so to them. Pickled, it is a plain table.
    """

    arrays: GpuArrays

    def __init__(self, layout: Layout, arrays: GpuArrays) -> None:
        # The class that this one is derived from lets nobody assign its fields.
        self.__dict__.update(layout=layout, arrays=arrays)

    @classmethod
    def empty(cls, gpu: Gpu, layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> GpuTable:
        """A table of any contents: see `GpuArrays.empty`."""
        return cls(layout, GpuArrays.empty(gpu, shapes))

    @classmethod
    def of_host(cls, gpu: Gpu, table: ParameterTable) -> GpuTable:
        """A table that is sent when it is first used."""
        return cls(
            table.layout, GpuArrays.of_host(gpu, {block.name: table[block.name] for block in table.layout.blocks})
        )

    @property
    def gpu(self) -> Gpu:
        """The device on which it lives."""
        return self.arrays.gpu

    @property
    def n_features(self) -> int:
        """Rows of blocks that have one per feature."""
        return self.arrays.shapes["linear"][0]

    @property
    def n_factored(self) -> int:
        """Rows of blocks that have one per feature with factors."""
        return self.arrays.shapes["factors"][0]

    @property
    def n_fields(self) -> int:
        """Fields that its shared rows are of; 0 where none are."""
        return max((block.n_fields(self.arrays.shapes[block.name][0]) for block in self.layout.shared), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.arrays.nbytes

    def __repr__(self) -> str:
        return f"GpuTable({self.layout}, {self.n_features} features, {self.n_factored} with factors)"

    __eq__, __hash__ = object.__eq__, object.__hash__

    def __sizeof__(self) -> int:
        """Bytes of the host's memory."""
        return 1000 + self.arrays.host_bytes()

    def __reduce__(self) -> str | tuple[Any, ...]:
        return ParameterTable(self.layout, dict(self.arrays)).__reduce__()
