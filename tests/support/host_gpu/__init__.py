"""A GPU that is a processor: cupy_gpu.cu compiled by the system's C++ compiler, behind `gpu_memory.Device`.

Everything but CuPy's own calls is then what runs on a real one: the kernels, the launches, what is sent and evicted.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dfm.errors import ClusterError
from dfm.kernels.contract import Kernels, KernelSpec
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.gpu import device as cupy_device
from dfm.kernels.gpu.backend import build, source_of
from dfm.kernels.gpu.memory import TRAIN, Buffer, Program
from dfm.kernels.gpu.tables import Gpu

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
_folder = tempfile.TemporaryDirectory(prefix="dfm-host-gpu-", ignore_cleanup_errors=True)
_libraries: dict[str, ctypes.CDLL] = {}
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(')


def library_of(source: str) -> ctypes.CDLL:
    """The program as a shared library; each is compiled once per process. Skips the test where no compiler is."""
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    if digest not in _libraries:
        program, target = Path(_folder.name, f"{digest}.cu"), Path(_folder.name, f"{digest}.so")
        program.write_text(source)
        half_bits = "#define FACTOR_BITS 16" in source
        names = [
            name for name in _KERNEL.findall(source) if half_bits or name not in ("narrow_factors", "widen_factors")
        ]
        command = [
            *(
                str(COMPILER),
                "-std=c++17",
                "-O1",
                "-ffp-contract=off",
                "-Wall",
                "-Werror",
                "-Wno-unknown-pragmas",
                "-Wno-unused",
                "-Wno-maybe-uninitialized",
            ),
            *(
                "-shared",
                "-fPIC",
                f'-DCUDA_SOURCE="{program}"',
                "-DKERNELS=" + " ".join(f"X({name})" for name in names),
                str(HERE / "kernels.cpp"),
                "-o",
                str(target),
            ),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
        assert done.returncode == 0, done.stderr
        _libraries[digest] = ctypes.CDLL(str(target))
    return _libraries[digest]


@dataclass
class HostBuffer:
    """Memory that starts out as anything but zeros, and is spoilt when it is given back."""

    memory: NDArray[np.uint8]
    device: HostDevice

    @property
    def address(self) -> int:
        """Where it begins: on 256 bytes, as on a GPU."""
        return self.memory.ctypes.data

    def __del__(self) -> None:
        self.memory[:] = 0xEE
        self.device.in_use -= self.memory.size


@dataclass
class HostProgram:
    """Kernels on fibres."""

    library: ctypes.CDLL
    device: HostDevice

    def launch(self, kernel: str, grid: tuple[int, int], shared_bytes: int, arguments: Buffer) -> None:
        """Run it now."""
        assert 0 < grid[1] <= 256
        assert shared_bytes <= 48 * 1024, "more would have to be asked for"
        self.device.launched.append((kernel, *grid))
        room = ctypes.c_void_p(arguments.address)
        result = self.library.run(kernel.encode(), grid[0], grid[1], shared_bytes, room)
        assert result == 0, {1: f"no kernel {kernel}", 2: "a bad launch", 3: "shared memory was overrun"}[result]

    def most_blocks(self, kernel: str, threads: int, shared_bytes: int) -> int:
        """As the device says."""
        return self.device.blocks_at_a_time


@dataclass
class HostDevice:
    """A device of `capacity` bytes. What it was asked is kept: kernels with their grids, bytes sent and fetched."""

    capacity: int = 1 << 30
    blocks_at_a_time: int = 4
    name: str = "a processor"
    in_use: int = 0
    launched: list[tuple[str, int, int]] = field(default_factory=list)
    sent: list[tuple[str, int]] = field(default_factory=list)
    fetched: list[tuple[str, int]] = field(default_factory=list)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        yield

    def free_bytes(self) -> int:
        return self.capacity - self.in_use

    def compile(self, source: str, exact: bool = False) -> Program:
        return HostProgram(library_of(source), self)

    def allocate(self, n_bytes: int) -> Buffer:
        if n_bytes > self.free_bytes():
            raise ClusterError(f"{n_bytes} bytes do not fit the {self.free_bytes()} that are free")
        room = np.full(n_bytes + 512, 0xEE, np.uint8)
        start = -room.ctypes.data % 256
        self.in_use += n_bytes
        return HostBuffer(room[start : start + n_bytes], self)

    def send(self, array: NDArray[Any], buffer: Buffer, offset: int, queue: str) -> None:
        assert isinstance(buffer, HostBuffer)
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        assert offset + source.size <= buffer.memory.size
        buffer.memory[offset : offset + source.size] = source
        self.sent.append((queue, source.size))

    def fetch(self, buffer: Buffer, array: NDArray[Any], offset: int = 0, queue: str = TRAIN) -> None:
        assert isinstance(buffer, HostBuffer)
        target = array.reshape(-1).view(np.uint8)
        assert offset + target.size <= buffer.memory.size
        target[:] = buffer.memory[offset : offset + target.size]
        self.fetched.append((queue, target.size))

    def mark(self, queue: str) -> Any:
        return queue

    def wait(self, queue: str, mark: Any) -> None:
        assert mark is not None


def host_kernels(spec: KernelSpec, device: HostDevice | None = None) -> Kernels:
    """The GPU's kernels of a spec, on a processor."""
    return build(spec, Gpu(device or HostDevice()))


def as_gpu_of_process(monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    """Let this process find a GPU, which is a processor. Skips the test where no compiler is."""
    library_of(source_of(KernelSpec("logistic", "adagrad", 2)))
    device = HostDevice()
    monkeypatch.setattr(cupy_device, "availability", lambda: (device.name, ""))
    monkeypatch.setattr(cupy_device, "device_count", lambda: 1)
    monkeypatch.setattr(cupy_device, "CupyDevice", lambda number: device)
    monkeypatch.setattr(cupy_gpu, "_gpus", {})
    monkeypatch.setattr(cupy_gpu, "_cache", {})
    return device
