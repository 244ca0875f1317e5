"""CUDA C++ to PTX with NVRTC as PyPI ships it (nvidia-cuda-nvrtc-cu12): a compiler without need of GPU or driver."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path


def find_library() -> Path | None:
    """The shared library, or None where the package is not installed."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        return None
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or () for path in Path(folder).glob("lib/libnvrtc.so.*")]
    return found[0] if found else None


def compile_ptx(source: str, architecture: str, options: Sequence[str] = ()) -> str:
    """PTX of a program for an architecture such as "compute_90". AssertionError with the compiler's log."""
    path = find_library()
    assert path is not None
    library = ctypes.CDLL(str(path))
    program = ctypes.c_void_p()
    code = source.encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), code, b"cupy_gpu.cu", 0, None, None) == 0
    flags = [f"--gpu-architecture={architecture}", "--std=c++17", *options]
    array = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
    status = library.nvrtcCompileProgram(program, len(flags), array)
    log = _text(library, program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")
    assert status == 0, log
    ptx = _text(library, program, "nvrtcGetPTXSize", "nvrtcGetPTX")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, size_of: str, get: str) -> str:
    size = ctypes.c_size_t()
    getattr(library, size_of)(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(library, get)(program, text)
    return text.value.decode()
