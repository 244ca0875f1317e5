"""Every vector operation against its plain-Python twin, bit for bit, and what LLVM makes of the kernels elsewhere."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import config, njit, typeof
from numpy.typing import NDArray

from dfm.kernels import simd
from dfm.kernels.contract import KernelSpec
from dfm.kernels.cpu.backend import example_arguments
from dfm.kernels.cpu.row_passes import Shape, make_walk
from dfm.kernels.tables import Layout

needs_compiler = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")

Floats = NDArray[np.float32]
LANES = [4, 16, 48]


def program(operations: dict[str, Any], lanes: int) -> Callable[..., None]:
    """A function that uses every operation on vectors of `lanes`; out float32[16, lanes]."""
    load, store, splat, fma = (operations[name] for name in ("load", "store", "splat", "fma"))
    read, write, address, prefetch = (operations[name] for name in ("read", "write", "address", "prefetch"))
    minimum, maximum, sqrt, guess = (operations[n] for n in ("minimum", "maximum", "sqrt", "rsqrt_guess"))
    every, interleave, reduce_add = (operations[name] for name in ("every", "interleave", "reduce_add"))

    two_vectors = 2 * lanes

    def run(source: Floats, out: Floats) -> None:
        memory = address(source)
        prefetch(memory, 0)
        a, b, c = load(memory, 0, lanes), load(memory, lanes, lanes), load(source, 2 * lanes, lanes)
        scalar = read(memory, 1)
        store(out, 0, fma(a, b, c))
        store(out, lanes, fma(a, scalar, -c))
        store(out, 2 * lanes, a + b * scalar - c)
        store(out, 3 * lanes, a / sqrt(maximum(b, scalar)))
        store(out, 4 * lanes, minimum(a, b) + splat(scalar, lanes))
        store(out, 5 * lanes, guess(b * b))
        store(out, 6 * lanes, every(load(memory, 0, two_vectors), 1, 2))
        store(out, 7 * lanes, interleave(a, b, c, 3))
        store(out, 10 * lanes, interleave(a, b, c, 2))
        write(out, 12 * lanes, reduce_add(a))
        write(out, 12 * lanes + 1, fma(scalar, scalar, read(memory, 2)))
        write(out, 12 * lanes + 2, sqrt(scalar * scalar) + minimum(scalar, read(memory, 3)))

    return run


@needs_compiler
@pytest.mark.parametrize("lanes", LANES)
def test_compiled_operations_give_the_bytes_of_their_twins(lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    compiled_program = njit(program(simd.INTRINSICS, lanes))
    for _ in range(20):
        source = (rng.normal(size=3 * lanes) * 10.0 ** rng.integers(-6, 7, 3 * lanes)).astype(np.float32)
        compiled, plain = np.zeros((2, 16, lanes), np.float32)
        with np.errstate(all="ignore"):
            program(simd.TWINS, lanes)(source, plain)
            compiled_program(source, compiled)
        assert compiled.tobytes() == plain.tobytes()


def test_the_plain_fma_rounds_once_where_two_roundings_would_go_astray() -> None:
    # The sum lies 2^-70 below half way between two float32; float64 loses that and would round to even, upwards.
    a, b, c = np.float32(2**-12 * (1 + 2**-23)), np.float32(2**-12 * (1 - 2**-23)), np.float32(1 + 2**-23)
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) == np.float32(1 + 2**-22)
    assert simd.TWINS["fma"](a, b, c) == c


def test_every_operation_has_a_twin() -> None:
    assert simd.TWINS.keys() == simd.INTRINSICS.keys()


TARGETS = {
    "avx-512": ("x86_64-unknown-linux-gnu", "skylake-avx512"),
    "avx2": ("x86_64-unknown-linux-gnu", "haswell"),
    "sse2": ("x86_64-unknown-linux-gnu", "x86-64"),
    "neon": ("aarch64-unknown-linux-gnu", "generic"),
}
PACKED = {
    "avx-512": r"vfn?m(add|sub)\d+ps.*%zmm",
    "avx2": r"vfn?m(add|sub)\d+ps.*%ymm",
    "sse2": r"\bmulps\b",
    "neon": r"\bfml[as]\tv\d+\.4s",
}
EMIT = """
import sys
import llvmlite.binding as llvm
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
triple, cpu = sys.argv[1:]
machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3, codemodel="default")
print(machine.emit_assembly(llvm.parse_assembly(sys.stdin.read())))
"""


@functools.cache
def adagrad_walk() -> str:
    """LLVM code of the AdaGrad walk, compiled anew: machine code that was kept on disk comes without it."""
    spec, layout = KernelSpec("logistic", "adagrad", 16), Layout("adagrad", 16)
    shape = Shape(16, layout.lanes, layout.factor_width, layout.linear_width, implicit=True)
    walk = make_walk(shape, layout, spec, n_arrays=0)
    walk.compile(tuple(typeof(argument) for argument in example_arguments(layout, for_training=True)))
    return str(next(iter(walk.inspect_llvm().values())))


def assembly_for(target: str) -> str:
    """Assembly of the AdaGrad walk for another processor.

    Run apart, since LLVM aborts on what a target cannot do; counting references is such a thing, and no concern here.
    """
    triple, cpu = TARGETS[target]
    code = adagrad_walk()
    code = re.sub(r'target triple = ".*"', f'target triple = "{triple}"', code)
    code = re.sub(r'target datalayout = ".*"\n', "", code)
    code = re.sub(r'"target-(cpu|features)"="[^"]*"', "", code)
    code = re.sub(r"= (tail )?call i8 @llvm\.x86\.atomic\.sub\.cc.*", "= add i8 0, 0", code)
    code = re.sub(r"declare i8 @llvm\.x86.*\n", "", code)
    run = subprocess.run(
        [sys.executable, "-c", EMIT, triple, cpu], input=code, capture_output=True, text=True, check=True
    )
    return run.stdout


def loops(assembly: str) -> list[str]:
    """Innermost loops: the code from a label to a jump back to it that holds no other such loop."""
    lines = assembly.splitlines()
    labels = {line.split(":")[0]: number for number, line in enumerate(lines) if line.startswith(".L")}
    ranges = []
    for number, line in enumerate(lines):
        jump = re.match(r"\s+(?:j\w+|b[.\w]*|cbn?z\s+\w+,|tbn?z\s+\w+, #\d+,)\s+(\.L\w+)", line)
        if jump and labels.get(jump[1], number) < number:
            ranges.append((labels[jump[1]], number))
    inner = [r for r in ranges if not any(r != s and r[0] <= s[0] and s[1] <= r[1] for s in ranges)]
    return ["\n".join(lines[start : stop + 1]) for start, stop in inner]


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
def test_the_factor_loop_is_packed_on_every_processor(target: str) -> None:
    assembly = assembly_for(target)
    factor_loops = [loop for loop in loops(assembly) if len(re.findall(PACKED[target], loop)) >= 4]
    assert factor_loops
    for loop in factor_loops:
        assert not re.search(r"vfn?m(add|sub)\d+ss|\bfmadd\b", loop)
        assert not re.search(r"\bcall|\bbl\b", loop)
    assert "fmaf" not in assembly


BYTES = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import reference
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.cpu.backend import compile_kernels
from dfm.kernels.tables import InitialValues, Layout, initialise
digest = hashlib.sha256()
cases = (("logistic", "adagrad", 16), ("squared", "ftrl", 5), ("logistic", "adagrad-row", 80))
for loss, optimizer, n_factors in cases:
    rows = reference.random_rows(120, 60, 25, n_implicit=60, weighted=True)
    layout = Layout(optimizer, n_factors)
    table = initialise(layout, np.arange(60, dtype=np.uint32), 45, InitialValues(7, 0.3))
    kernels = compile_kernels(KernelSpec(loss, optimizer, n_factors))
    tally = kernels.run_round(rows, table, Step(0.05, 0.02, 0.02, 0.05, seed=1))
    digest.update(table.linear.tobytes() + table.factors.tobytes() + table.bias.tobytes())
    digest.update(kernels.scores(rows, table).tobytes() + repr(tally.loss).encode())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_plain_python_and_an_older_processor_give_the_same_bytes(request: pytest.FixtureRequest) -> None:
    folder = str(request.config.rootpath / "tests")

    def digest(**environment: str) -> str:
        run = subprocess.run(
            [sys.executable, "-c", BYTES, folder],
            env={**clean, **environment}, cwd=request.config.rootpath,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return run.stdout

    clean = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    here = digest()
    assert digest(NUMBA_DISABLE_JIT="1") == here
    assert digest(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="") == here
