"""Text into shards: bytes of text a second and core, of every format, and the memory that it takes.

    .venv/bin/python benchmarks/bench_convert.py [--megabytes 1000] [--formats libsvm,csv,…] [--processes 1] [--smoke]

Files are made of one log of 40 features a row (whole numbers, ascending, by Zipf's law up to a million; weights of
four digits), so that their sizes differ by what a format writes. `dfm convert` runs as a process of its own, whose
seconds of processor and largest memory the system tells.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import machine_line

_ROWS, _FEATURES = 5_000, 40


def libsvm_line(label: int, keys: list[int], weights: list[float]) -> str:
    """A line of the format, as all of these functions."""
    return f"{label} " + " ".join(f"{key}:{weight:.4g}" for key, weight in zip(keys, weights, strict=True))


def libffm_line(label: int, keys: list[int], weights: list[float]) -> str:
    """A feature for each of 40 fields."""
    return f"{label} " + " ".join(f"{i}:{key}:{x:.4g}" for i, (key, x) in enumerate(zip(keys, weights, strict=True)))


def vw_line(label: int, keys: list[int], weights: list[float]) -> str:
    """Four namespaces of ten features."""
    words = [f"f{key}:{weight:.4g}" for key, weight in zip(keys, weights, strict=True)]
    return f"{2 * label - 1} " + " ".join(f"|{name} {' '.join(words[i::4])}" for i, name in enumerate("abcd"))


def criteo_line(label: int, keys: list[int], _weights: list[float]) -> str:
    """Thirteen counts and 26 categories."""
    return "\t".join(
        [
            str(label),
            *(str(key % 1000) for key in keys[:13]),
            *(f"{key * 2654435761 % 2**32:08x}" for key in keys[13:39]),
        ]
    )


def csv_line(label: int, keys: list[int], weights: list[float]) -> str:
    """Twenty categories and twenty numbers."""
    return ",".join([str(label), *(f"v{key}" for key in keys[:20]), *(f"{weight:.4g}" for weight in weights[20:])])


LINES: dict[str, Callable[[int, list[int], list[float]], str]] = {
    "libsvm": libsvm_line,
    "libffm": libffm_line,
    "vw": vw_line,
    "criteo": criteo_line,
    "csv": csv_line,
}


def write_log(path: Path, kind: str, n_bytes: int) -> int:
    """Write a file of about so many bytes; its size. Some thousand rows are drawn, and repeated in other orders."""
    rng = np.random.default_rng(0)
    keys = np.sort(rng.zipf(1.3, (_ROWS, _FEATURES)) % 1_000_000, axis=1).tolist()
    weights = rng.random((_ROWS, _FEATURES)).tolist()
    labels = rng.integers(0, 2, _ROWS).tolist()
    lines = [LINES[kind](*row) + "\n" for row in zip(labels, keys, weights, strict=True)]
    with path.open("w") as file:
        if kind == "csv":
            file.write(",".join(["label", *(f"x{i}" for i in range(_FEATURES))]) + "\n")
        while file.tell() < n_bytes:
            file.write("".join([lines[i] for i in rng.permutation(_ROWS)]))
    return path.stat().st_size


def converted(path: Path, kind: str, processes: int, folder: Path) -> tuple[float, float, int, int]:
    """Seconds on the clock and of processors, largest memory of a process (bytes), bytes of the shards."""
    command = [sys.executable, "-m", "dfm", "convert", str(path), "--to", str(folder), "--format", kind]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*command, "--workers", str(processes), "--overwrite", "--json"], check=True, stdout=subprocess.DEVNULL
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used, after.ru_maxrss << 10, sum(shard.stat().st_size for shard in folder.glob("*.parquet"))


def main() -> None:
    """Measure and print a line per format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--formats", default=",".join(LINES))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="tiny and untimed: does it still run?")
    arguments = parser.parse_args()
    n_bytes = 1_000_000 if arguments.smoke else arguments.megabytes * 1_000_000
    print(machine_line())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in arguments.formats.split(","):
            path = folder / kind
            size = write_log(path, kind, n_bytes)
            if arguments.smoke:
                converted(path, kind, arguments.processes, folder / "shards")
                continue
            small = folder / "small"
            write_log(small, kind, 100_000)
            begin = converted(small, kind, 1, folder / "shards")  # compiles kernels too, where they are not on disk
            begin = converted(small, kind, 1, folder / "shards")
            seconds, used, memory, written = converted(path, kind, arguments.processes, folder / "shards")
            path.unlink()
            print(
                f"{kind:7} {size / 1e6:6.0f} MB: {seconds:6.1f} s, {size / 1e6 / (used - begin[1]):5.0f} MB/s of "
                f"text a second of processor ({begin[1]:.1f} s to begin left out), {memory / 2**20:.0f} MiB, "
                f"shards {written / size:.2f} of it, load {os.getloadavg()[0]:.1f}"
            )


if __name__ == "__main__":
    main()
