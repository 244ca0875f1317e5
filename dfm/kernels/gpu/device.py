"""A GPU by CuPy: `gpu_memory.Device` with streams, events and pinned memory.

The only module that imports CuPy, and only where a GPU is looked for. Of CuPy only raw memory, copies and RawModule are
used: it compiles nothing but our own kernels.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.errors import ClusterError
from dfm.kernels.gpu.memory import COPY, FETCH, TRAIN, Buffer, Program
from dfm.version import pip_install

_number = 0
"""The device of this process, among those that it may see."""

EXACT = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""Options by which every operation is rounded as processors round it."""
_ROOM_BYTES = 16 << 20
"""Pinned memory of one transfer; there are two per queue, so that one is filled while the other is copied."""
_REGISTERS = 65536
"""32-bit registers of a multiprocessor, on every GPU since compute capability 5.0."""


def likely_count() -> int:
    """GPUs that this process seems to have where CuPy is there, without a look at them, which would take a second."""
    if importlib.util.find_spec("cupy") is None:
        return 0
    visible, devices = os.environ.get("CUDA_VISIBLE_DEVICES"), Path("/dev")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    if not devices.is_dir():
        return 1
    return len([*devices.glob("nvidia[0-9]*")]) or len([*devices.glob("dxg")])  # the latter: of Windows, under WSL


def use_device(number: int) -> None:
    """Kernels that are compiled from now on run on that device of those that this process may see."""
    global _number
    _number = number


def chosen() -> int:
    """The number of that device."""
    return _number


def device_count() -> int:
    """Number of devices that this process may see; 0 where CuPy or a driver is missing."""
    if not availability()[0]:
        return 0
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def availability() -> tuple[str, str]:
    """Name of the GPU that this process would use, and "": or "", and the reason why there is none."""
    try:
        import cupy
    except ImportError as error:
        return "", f"CuPy is not installed ({error}); {pip_install('cuda12')}, or cuda13, as the driver supports"
    try:
        properties = cupy.cuda.runtime.getDeviceProperties(_number)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return "", f"CuPy finds no usable GPU ({error})"
    return properties["name"].decode(), ""


@dataclass
class _Room:
    """Pinned host memory; `is_read` is the point at which its last copy has been made."""

    memory: Any
    bytes: NDArray[np.uint8]
    is_read: Any


def _take(room: _Room, target: NDArray[np.uint8]) -> None:
    """Fill the target when what was copied into the room is there."""
    room.is_read.synchronize()
    target[:] = room.bytes[: target.size]


class _CupyBuffer:
    """Memory of CuPy's pool."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer

    @property
    def address(self) -> int:
        """The address at which it begins."""
        return int(self.pointer.ptr)


class CupyDevice:
    """One GPU by its number. Only raw memory, copies and our own kernels are used: CuPy compiles nothing else."""

    def __init__(self, number: int = 0) -> None:
        found, reason = availability()
        if not found:
            raise ClusterError(f'training.backend = "cupy" needs a GPU: {reason}. Use training.backend = "numba" here')
        import cupy

        self.name = found
        self._cuda = cupy.cuda
        self._cupy = cupy
        self._device = cupy.cuda.Device(number)
        self.properties = cupy.cuda.runtime.getDeviceProperties(number)
        with self._device:
            self._streams = {queue: cupy.cuda.Stream(non_blocking=True) for queue in (TRAIN, COPY, FETCH)}
            self._rooms = {queue: itertools.cycle([self._room(), self._room()]) for queue in self._streams}

    def _room(self) -> _Room:
        memory = self._cuda.alloc_pinned_memory(_ROOM_BYTES)
        view = np.frombuffer(memory, np.uint8, _ROOM_BYTES)
        return _Room(memory, view, self._cuda.Event(disable_timing=True))

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes this the thread's device. After an error nothing is left running on memory that is being given back."""
        with self._device:
            try:
                yield
            except BaseException:
                for stream in self._streams.values():
                    stream.synchronize()
                raise

    def free_bytes(self) -> int:
        """Memory that can still be allocated: the driver's, and what CuPy's pool holds unused."""
        return int(self._cuda.runtime.memGetInfo()[0]) + int(self._cupy.get_default_memory_pool().free_bytes())

    def compile(self, source: str, exact: bool = False) -> Program:
        """CUDA C++ to machine code of this GPU; CuPy keeps it on disk unless it is `exact`."""
        if not exact:
            return _CupyProgram(self, self._cupy.RawModule(code=source, options=("-std=c++17",)))
        # RawModule would add an option of its own, by which numbers below 1e-38 become 0.
        nvrtc = self._cuda.nvrtc
        program = nvrtc.createProgram(source, "exact.cu", [], [])
        try:
            nvrtc.compileProgram(program, (*EXACT, f"--gpu-architecture=sm_{self._device.compute_capability}"))
            machine_code = nvrtc.getCUBIN(program)
        finally:
            nvrtc.destroyProgram(program)
        folder = tempfile.mkdtemp(prefix="dfm-gpu-")  # a path of its own: CuPy keeps modules by their path
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder, "exact.cubin")
        path.write_bytes(machine_code)
        return _CupyProgram(self, self._cupy.RawModule(path=str(path)))

    def allocate(self, n_bytes: int) -> Buffer:
        """Device memory. ClusterError where there is none left even after unused memory was given back."""
        try:
            return _CupyBuffer(self._cuda.alloc(max(n_bytes, 1)))
        except self._cuda.memory.OutOfMemoryError:
            self._cupy.get_default_memory_pool().free_all_blocks()
        try:
            return _CupyBuffer(self._cuda.alloc(max(n_bytes, 1)))
        except self._cuda.memory.OutOfMemoryError as error:
            raise ClusterError(
                f"{self.name} is out of memory: {n_bytes:,} more bytes are needed, {self.free_bytes():,} are free"
            ) from error

    def send(self, array: NDArray[Any], buffer: Buffer, offset: int, queue: str) -> None:
        """Host to device, through pinned memory."""
        runtime, stream = self._cuda.runtime, self._streams[queue]
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, source.size, _ROOM_BYTES):
            part, room = source[start : start + _ROOM_BYTES], next(self._rooms[queue])
            room.is_read.synchronize()
            room.bytes[: part.size] = part
            target = buffer.address + offset + start
            runtime.memcpyAsync(target, room.memory.ptr, part.size, runtime.memcpyHostToDevice, stream.ptr)
            room.is_read.record(stream)

    def fetch(self, buffer: Buffer, array: NDArray[Any], offset: int = 0, queue: str = TRAIN) -> None:
        """Device to host, through pinned memory: while a part is taken out of it, the next one is copied."""
        runtime, stream = self._cuda.runtime, self._streams[queue]
        target, waiting = array.reshape(-1).view(np.uint8), None
        for start in range(0, target.size, _ROOM_BYTES):
            part, room = target[start : start + _ROOM_BYTES], next(self._rooms[queue])
            room.is_read.synchronize()
            source = buffer.address + offset + start
            runtime.memcpyAsync(room.memory.ptr, source, part.size, runtime.memcpyDeviceToHost, stream.ptr)
            room.is_read.record(stream)
            if waiting:
                _take(*waiting)
            waiting = room, part
        if waiting:
            _take(*waiting)

    def mark(self, queue: str) -> Any:
        """An event."""
        event = self._cuda.Event(disable_timing=True)
        event.record(self._streams[queue])
        return event

    def wait(self, queue: str, mark: Any) -> None:
        """The wait of one stream for another's event."""
        self._streams[queue].wait_event(mark)

    def launch(self, function: Any, grid: tuple[int, int], shared_bytes: int, arguments: Buffer) -> None:
        """In TRAIN."""
        with self._streams[TRAIN]:
            function((grid[0],), (grid[1],), (np.uint64(arguments.address),), shared_mem=shared_bytes)


@dataclass
class _CupyProgram:
    """Kernels of a RawModule."""

    device: CupyDevice
    module: Any

    def launch(self, kernel: str, grid: tuple[int, int], shared_bytes: int, arguments: Buffer) -> None:
        """Queue a kernel."""
        self.device.launch(self.module.get_function(kernel), grid, shared_bytes, arguments)

    def most_blocks(self, kernel: str, threads: int, shared_bytes: int) -> int:
        """Blocks at a time, by registers, threads and shared memory."""
        properties = self.device.properties
        registers = -(-self.module.get_function(kernel).num_regs // 8) * 8
        each = min(
            _REGISTERS // (registers * threads),
            properties["maxThreadsPerMultiProcessor"] // threads,
            properties["sharedMemPerMultiprocessor"] // (shared_bytes + 1024),
        )
        return int(max(each, 1) * properties["multiProcessorCount"])
