"""The part of CuPy that dfm uses, on a processor: so that `CupyDevice` itself runs without a GPU.

Names and arguments are CuPy's (13 and 14). Copies are delayed until somebody waits, as a GPU may delay them: what is
changed too early, or read too early, is then wrong here too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.support.host_gpu import library_of


class OutOfMemoryError(MemoryError):
    """Of the device."""


class CUDARuntimeError(RuntimeError):
    """Of the driver."""


class Stream:
    """Work that waits to be done, in order."""

    current: Stream | None = None

    def __init__(self, non_blocking: bool = False) -> None:
        self.ptr = id(self)
        self.work: list[Callable[[], None]] = []
        STREAMS[self.ptr] = self

    def synchronize(self) -> None:
        while self.work:
            self.work.pop(0)()

    def wait_event(self, event: Event) -> None:
        self.work.append(event.synchronize)

    def __enter__(self) -> Stream:
        Stream.current = self
        return self

    def __exit__(self, *_: object) -> None:
        Stream.current = None


STREAMS: dict[int, Stream] = {}


class Event:
    """A point in a stream."""

    def __init__(self, disable_timing: bool = False) -> None:
        self.is_reached = True
        self.stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        self.stream, self.is_reached = stream, False
        stream.work.append(self._reach)

    def _reach(self) -> None:
        self.is_reached = True

    def synchronize(self) -> None:
        while not self.is_reached:
            assert self.stream is not None
            self.stream.work.pop(0)()


POOL: dict[int, list[Any]] = {}


class _Memory:
    """Of the device. As in CuPy's pool, what is dropped is handed out again at once, even if work on it still waits."""

    def __init__(self, n_bytes: int) -> None:
        self.size = -(-n_bytes // 4096) * 4096
        free = POOL.setdefault(self.size, [])
        self.room = free.pop() if free else (ctypes.c_char * (self.size + 256))()
        self.ptr = ctypes.addressof(self.room) + -ctypes.addressof(self.room) % 256

    def __del__(self) -> None:
        POOL[self.size].append(self.room)


class Device:
    """A context manager."""

    compute_capability = "90"

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class RawModule:
    """Kernels of the program, compiled by the system's compiler."""

    def __init__(self, code: str = "", *, path: str = "", options: tuple[str, ...] = ()) -> None:
        assert bool(code) != bool(path)
        self.library = library_of(code or Path(path).read_text())

    def get_function(self, name: str) -> Any:
        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[np.uint64], *, shared_mem: int) -> None:
            (address,), stream = arguments, Stream.current
            assert stream is not None
            assert isinstance(address, np.uint64)

            def work() -> None:
                where = ctypes.c_void_p(int(address))
                assert self.library.run(name.encode(), grid[0], block[0], shared_mem, where) == 0

            stream.work.append(work)

        launch.num_regs = 112  # type: ignore[attr-defined]
        return launch


class Nvrtc:
    """The compiler: its machine code is the source, and it remembers with which options it was asked."""

    def __init__(self) -> None:
        self.options: tuple[str, ...] = ()

    def createProgram(self, source: str, name: str, headers: list[str], names: list[str]) -> list[str]:
        return [source]

    def compileProgram(self, program: list[str], options: tuple[str, ...]) -> None:
        assert program
        self.options = options

    def getCUBIN(self, program: list[str]) -> bytes:
        return program[0].encode()

    def destroyProgram(self, program: list[str]) -> None:
        program.clear()


def make(free: int = 1 << 30) -> Any:
    """A module `cupy` with one device of that much memory."""

    def alloc(n_bytes: int) -> Any:
        if n_bytes > free:
            raise OutOfMemoryError
        return _Memory(n_bytes)

    def copy(target: int, source: int, n_bytes: int, kind: int, stream: int) -> None:
        assert kind in (1, 2)
        STREAMS[stream].work.append(lambda: ctypes.memmove(target, source, n_bytes) and None)

    properties = {
        "name": b"a fake",
        "multiProcessorCount": 2,
        "maxThreadsPerMultiProcessor": 2048,
        "sharedMemPerMultiprocessor": 233472,
    }
    runtime = SimpleNamespace(
        getDeviceProperties=lambda number: properties,
        getDeviceCount=lambda: 1,
        memGetInfo=lambda: (free, free),
        memcpyAsync=copy,
        memcpyHostToDevice=1,
        memcpyDeviceToHost=2,
        CUDARuntimeError=CUDARuntimeError,
    )
    cuda = SimpleNamespace(
        runtime=runtime, alloc=alloc, alloc_pinned_memory=pinned, Stream=Stream, Event=Event, Device=Device,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError), nvrtc=Nvrtc(),
    )  # fmt: skip
    pool = SimpleNamespace(free_bytes=lambda: 0, free_all_blocks=lambda: None)
    return SimpleNamespace(cuda=cuda, RawModule=RawModule, get_default_memory_pool=lambda: pool)


def pinned(n_bytes: int) -> Any:
    """Host memory that numpy.frombuffer takes and that has an address."""

    class Pinned(np.ndarray):
        ptr: int

    memory = np.full(n_bytes, 0xEE, np.uint8).view(Pinned)
    memory.ptr = memory.ctypes.data
    return memory
