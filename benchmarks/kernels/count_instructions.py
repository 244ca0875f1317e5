"""Instructions per row of training and scoring, which no other work on the machine can change.

    python benchmarks/kernels/count_instructions.py             # needs valgrind
    python benchmarks/kernels/count_instructions.py --families  # the others beside a factorization machine

Two runs under callgrind differ in the rows they walk alone: the difference of their counts, per row of difference.
Valgrind knows no AVX-512, so the kernels are compiled for AVX2: 16 factors take two instructions instead of one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile

ROWS = 2_000
PROGRAM = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import click_data
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.tables import InitialValues, initialise
what, family, k, n_rows = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
rng = np.random.default_rng(0)
drawn = rng.integers(0, 100, (22_000, 39)).astype(np.uint32) + np.arange(39, dtype=np.uint32) * 100
rows = click_data.as_rows(drawn[:n_rows], np.zeros(n_rows, np.float32))
spec = KernelSpec("logistic", "adagrad", k, family=family)
table = initialise(spec.layout, np.arange(3900, dtype=np.uint32), 3900, InitialValues(1))
kernels = compile_kernels(spec)
if what == "train":
    kernels.run_round(rows, table, Step(0.05, 0.05))
else:
    kernels.scores(rows, table)
"""


def instructions(what: str, family: str, k: int, n_rows: int, environment: dict[str, str]) -> int:
    """Of a whole process that walks the rows once; a first call without valgrind fills the compilation cache."""
    folder = os.path.dirname(os.path.abspath(__file__))
    python = [sys.executable, "-c", PROGRAM, folder, what, family, str(k), str(n_rows)]
    subprocess.run(python, env=environment, check=True)
    callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    output = subprocess.run(callgrind + python, env=environment, check=True, capture_output=True, text=True).stderr
    found = re.search(r"Collected : (\d+)", output)
    if found is None:
        raise RuntimeError(f"callgrind did not report a count: {output[-500:]}")
    return int(found[1])


def main(families: bool) -> None:
    """Prints a table: of factorization machines, or of the families that ask nothing of fields beside them."""
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ, "NUMBA_CACHE_DIR": cache, "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "",
            "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        cases = [("fm", 16), ("fm", 32), ("hofm", 16), ("polynomial", 16)] if families else [("fm", 8), ("fm", 16)]
        print("| family | k | what | instructions per row | per entry |\n| :--- | ---: | :--- | ---: | ---: |")
        for family, k in cases:
            for what in ("train", "score"):
                few, many = (instructions(what, family, k, n * ROWS, environment) for n in (1, 11))
                per_row = (many - few) / (10 * ROWS)
                print(f"| {family} | {k} | {what} | {per_row:.0f} | {per_row / 39:.1f} |", flush=True)


if __name__ == "__main__":
    main(families="--families" in sys.argv[1:])
