"""The first line of every benchmark: what it ran on, and how busy that was."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def machine_line() -> str:
    """Processor, cores, memory, Python and library versions, load."""
    import llvmlite
    import numba
    import numpy
    import pyarrow

    model, memory = platform.processor() or platform.machine(), 0
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        family = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("cpu family")]
        model = names[0].split(":")[1].strip() + " family " + family[0].split(":")[1].strip() if names else model
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"machine: {model}, {os.cpu_count()} cores, {memory / 2**30:.0f} GiB, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, numpy {numpy.__version__}, numba {numba.__version__}, "
        f"llvmlite {llvmlite.__version__}, pyarrow {pyarrow.__version__}"
    )


def median_seconds(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median and least seconds of several calls."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), min(seconds)
