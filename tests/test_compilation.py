"""Machine code on disk: found again by the next process, and never mixed up."""

from __future__ import annotations

import cmath
import gc
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numba
import numpy as np
import pytest
from numba.core.compiler import Compiler

from dfm.compilation import compiled, on_disk
from dfm.compilation.made_of import MadeOf
from dfm.compilation.on_disk import _Files
from dfm.solvers.passes import collect, score_rows, take_values

SCRIPT = """
from dfm.storage.xxhash import xxh64
import numpy as np
xxh64(np.zeros(4, np.uint8), 0, 4, np.uint64(0))
print(sum(xxh64.stats.cache_hits.values()), sum(xxh64.stats.cache_misses.values()))
"""


def hits_and_misses(folder, **variables: str) -> list[int]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), **variables}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    return [int(number) for number in run.stdout.split()]


def test_the_second_process_does_not_compile(tmp_path) -> None:
    assert hits_and_misses(tmp_path) == [0, 1]
    assert hits_and_misses(tmp_path) == [1, 0]


CALLING = """
import sys
from dfm.compilation import compiled

@compiled
def inner(x):
    return x * 3 + 1

@compiled
def outer(x):
    return inner(x) + inner(x + 1)

inner(2)
was_read = inner.overloads[inner.signatures[0]].library._shared_module is not None
print(outer(2) if "outer" in sys.argv else "", was_read, sum(inner.stats.cache_hits.values()))
"""


def test_what_was_kept_becomes_part_of_what_is_compiled_later(tmp_path) -> None:
    """The inner function is on disk, the outer one not yet: what the former is made of is read for the latter."""
    script, environment = tmp_path / "script.py", {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    script.write_text(CALLING)

    def told(*words: str) -> list[str]:
        command = [sys.executable, script, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    assert told() == ["True", "0"], "it was compiled"
    assert told() == ["False", "1"]
    assert told("outer") == ["17", "False", "1"]


def test_two_writers_that_know_nothing_of_each_other_lose_and_mix_no_data(tmp_path) -> None:
    """Numba numbers the files and keeps an index: both would write file 1, and the last index would win."""
    first, second = (_Files(str(tmp_path), "kernel", ("stamp", 1)) for _ in range(2))
    assert second.load("signature A") is None
    first.save("signature A", "code A")
    second.save("signature B", "code B")
    for files in (first, second):
        assert {key: files.load(key) for key in ("signature A", "signature B", "signature C")} == {
            "signature A": "code A",
            "signature B": "code B",
            "signature C": None,
        }


COMPILING = """
import time
from dfm.compilation import keep_on_disk
import numba

@numba.njit
def slow(x):
    return x + 1

keep_on_disk(slow)
kept = slow._cache.save_overload
def keeps(signature, data):
    time.sleep(1.0)  # long enough for the other to ask
    kept(signature, data)
slow._cache.save_overload = keeps
slow(1)
print(sum(slow._cache_misses.values()))
"""


def test_what_one_process_compiles_the_others_wait_for(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(COMPILING)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    start = [sys.executable, str(script)]
    both = [subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate()[0].strip() for process in both) == ["0", "1"]
    assert list((tmp_path / "kept").rglob("*.lock")) == []


def test_who_compiles_in_vain_keeps_nobody_waiting(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(on_disk, "_PATIENCE", 3600.0)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    first, second = (compiled(text_and_number) for _ in range(2))
    for function in (first, second):
        with pytest.raises(numba.TypingError):
            function("text", 1)


def text_and_number(text, number):  # type: ignore[no-untyped-def]
    return text + number


def test_changed_source_text_finds_no_old_code(tmp_path) -> None:
    _Files(str(tmp_path), "kernel", ("old stamp", 1)).save("signature", "old code")
    assert _Files(str(tmp_path), "kernel", ("new stamp", 1)).load("signature") is None


KERNELS_OF_A_FACTORY = """
import os, sys
from dfm.compilation import keep_on_disk
import numba
import numpy as np

def make(number):
    @numba.njit
    def inner(x, places):  # too long to become a part of its caller, which calls it twice
        for place in range(places.size):
            x = (x * number + 7) % 1000003
            if x % 2:
                places[place] = x // 2 + number
            elif x % 3:
                places[place] = np.sqrt(x) + np.log1p(x) + number
            else:
                places[place] = np.sin(x) + np.cos(x) * number
        return x + places.sum() + places.min() + places.max()

    @numba.njit
    def kernel(x):
        places = np.zeros(20)
        return inner(x, places) + inner(x + 1, places)

    keep_on_disk(kernel, str(number))
    return kernel

if "fork" in sys.argv:
    for number in (3, 5, 11):
        if os.fork() == 0:
            make(number)(20)
            os._exit(0)
    for _ in range(3):
        os.wait()
kernels = [make(number) for number in (3, 5, 11)]
right = [abs(kernel(20) / kernel.py_func(20) - 1) < 1e-9 for kernel in kernels]
print(right, sum(sum(kernel._cache_misses.values()) for kernel in kernels))
"""


def test_kernels_of_one_factory_that_several_processes_compiled_are_each_its_own(tmp_path) -> None:
    """Numba numbers functions from 1 in every process, and forks go on from one number: their symbols had one name."""
    script = tmp_path / "script.py"
    script.write_text(KERNELS_OF_A_FACTORY)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    for arguments in (["fork"], []):
        start = [sys.executable, str(script), *arguments]
        run = subprocess.run(start, env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "[True, True, True] 0"


FACTORY = """
import numba, numpy as np
from dfm.compilation import compiled

def make(n, dtype):
    @numba.njit
    def inner(x):
        return x + n

    first, second = numba.njit(lambda x: 2 * x if n else x), numba.njit(lambda x: 3 * x)

    @compiled
    def outer(x):
        return dtype(first(inner(x)) + second(x))

    return outer

made = [make(n, dtype) for n in (1, 2) for dtype in (np.float32, np.int64)]
print([float(each(10)) for each in made], sum(sum(each.stats.cache_misses.values()) for each in made))
"""


def test_what_a_factory_made_is_found_again_by_what_it_closes_over(tmp_path) -> None:
    """Numba pickles the functions among it, which differ in every process."""
    script = tmp_path / "script.py"
    script.write_text(FACTORY)
    for misses in (4, 0):
        start = [sys.executable, str(script)]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
        run = subprocess.run(start, env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == f"[52.0, 52.0, 54.0, 54.0] {misses}"


def test_passes_of_exact_solvers_can_be_told() -> None:
    """Each of them would be compiled in every process if not."""
    made = [MadeOf(each) for each in (score_rows(8), collect(3, True, 8), collect(0, True, 8), take_values(3, 8))]
    assert all(each.is_all for each in made)
    assert len({each.text for each in made}) == 4


def _pairs() -> dict[str, tuple[Any, Any]]:
    """Functions of one place that differ in one thing."""

    def with_default(default):  # type: ignore[no-untyped-def]
        inner = numba.njit(lambda x, y=default: x + y)
        return numba.njit(lambda x: inner(x))

    def over(value):  # type: ignore[no-untyped-def]
        return numba.njit(lambda x: value(x) if callable(value) else x)

    def order(first, second):  # type: ignore[no-untyped-def]
        return numba.njit(lambda x: first(x) - second(x))

    def plain(x):  # type: ignore[no-untyped-def]
        return x

    sine, cosine = numba.njit(lambda x: np.sin(x)), numba.njit(lambda x: np.cos(x))
    careful, careless = (numba.njit(plain, error_model=model) for model in ("python", "numpy"))
    return {
        "a default": (with_default(1), with_default(2)),
        "a name": (over(sine), over(cosine)),
        "an order": (order(sine, cosine), order(cosine, sine)),
        "an option": (over(careful), over(careless)),
        "an own option": (careful, careless),
        "a module": (over(math.sqrt), over(cmath.sqrt)),
        "an array": (over(np.arange(3)), over(np.arange(4))),
        "a type": (over(np.float32), over(np.float64)),
        "a type of Numba's": (over(numba.float32), over(numba.int64)),
    }


@pytest.mark.parametrize("what", _pairs())
def test_functions_that_differ_in_anything_are_told_apart(what: str) -> None:
    first, second = (MadeOf(each) for each in _pairs()[what])
    assert first.is_all
    assert second.is_all
    assert first.text != second.text
    assert first.text == MadeOf(_pairs()[what][0]).text


def test_what_cannot_be_told_is_left_to_numba() -> None:
    class Local: ...

    def over(value):  # type: ignore[no-untyped-def]
        return numba.njit(lambda x: x if value else 0)

    assert not MadeOf(over(Local)).is_all
    assert not MadeOf(over(Local())).is_all


def test_a_function_that_closes_over_itself_is_told() -> None:
    @numba.njit
    def countdown(x):  # type: ignore[no-untyped-def]
        return countdown(x - 1) if x > 0 else x

    assert MadeOf(countdown).is_all


MARKS = """
from dfm.averaging import merge
from dfm.compilation.made_of import MadeOf
from dfm.data import hashing, vocabulary
from dfm.kernels import tables
from dfm.solvers import passes, solving

made = [passes.collect(3, True, 8), passes.take_values(3, 8), passes.score_rows(8), hashing._hash_texts, solving.solve]
print([MadeOf(each).mark() for each in made])
"""


def test_marks_are_the_same_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", MARKS], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


class Package:
    """A package of functions that call each other over its files, and processes that call the outermost."""

    FILES: ClassVar = {
        "__init__.py": "",
        "sizes.py": "import numpy as np\nFIVE = np.uint32(5)\nPLACES = np.array([1, 2])\nONE = 1\nLAST = 1\n",
        "middle.py": "from package.sizes import LAST\n",
        "made.py": "import numba\nfrom package.sizes import ONE\ndef make(n):\n    return numba.njit(lambda x: x * n)\n"
        "times_one = make(ONE)\n",
        "inner.py": "import numba\nTEN = 10\n@numba.njit\ndef inner(x):\n    return (x + 1) * TEN\n",
        "outer.py": "from dfm.compilation import compiled\nfrom package import inner, middle\n"
        "from package.made import times_one\nfrom package.sizes import FIVE, PLACES\n"
        "@compiled\ndef outer(x):\n"
        "    return times_one(inner.inner(x)) * np.int64(FIVE) * PLACES[0] * middle.LAST\nimport numpy as np\n",
        "other.py": "",
    }
    PROGRAM = """
from package.outer import outer
import sys
if sys.argv[1:]:
    print("imported", flush=True)
    sys.stdin.readline()
print(outer(1), sum(outer.stats.cache_misses.values()))
"""

    def __init__(self, folder: Path) -> None:
        self.folder, self.package = folder, folder / "package"
        self.package.mkdir()
        for name, text in self.FILES.items():
            (self.package / name).write_text(text)

    def change(self, file: str, before: str, after: str) -> None:
        """Write a file anew, as an upgrade does."""
        (self.package / file).unlink()
        (self.package / file).write_text(self.FILES[file].replace(before, after))

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(self.folder / "kept"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", self.PROGRAM, *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=environment, **pipes)

    def run(self) -> list[int]:
        """The number of a process, and how many functions it compiled."""
        return [int(number) for number in self.begin().communicate()[0].split()]


CHANGES = [
    ("inner.py", "x + 1", "x + 2", 150),
    ("inner.py", "TEN = 10", "TEN = 11", 110),
    ("sizes.py", "uint32(5)", "uint32(6)", 120),
    ("sizes.py", "[1, 2]", "[3, 2]", 300),
    ("sizes.py", "ONE = 1", "ONE = 2", 200),
    ("sizes.py", "LAST = 1", "LAST = 3", 300),
    ("inner.py", "TEN = 10", "TEN = 10  # a rule of Numba's might stand here", 100),
]


@pytest.mark.parametrize(("file", "before", "after", "number"), CHANGES)
def test_code_is_found_only_while_all_that_it_is_made_of_is_the_same(tmp_path, file, before, after, number) -> None:
    package = Package(tmp_path)
    assert package.run() == [100, 1]
    assert package.run() == [100, 0]
    package.change("other.py", "", "# of no interest to it")
    assert package.run() == [100, 0]
    package.change(file, before, after)
    assert package.run() == [number, 1]


@pytest.mark.parametrize(("before", "after", "number"), [("x + 1", "x + 2", 150), ("TEN = 10", "TEN = 10  # new", 100)])
def test_a_process_from_before_an_upgrade_keeps_nothing_for_those_after_it(tmp_path, before, after, number) -> None:
    """Not even where what it has in memory is the same: a rule of Numba's in that file may be another."""
    package = Package(tmp_path)
    with package.begin("waits") as old:
        assert old.stdout is not None
        assert old.stdout.readline() == "imported\n"
        package.change("inner.py", before, after)
        assert old.communicate("go on\n")[0].split() == ["100", "1"]
    assert package.run() == [number, 1]


def target_of(folder, needs: str) -> None:
    folder.mkdir()
    (folder / "target.json").write_text(f'{{"cpu": "generic", "needs": {needs}}}')


def test_code_of_a_folder_that_cannot_be_written_is_used_whatever_the_times_of_its_files_are(tmp_path) -> None:
    built, own = tmp_path / "built", tmp_path / "own"
    target_of(built, "[]")
    environment = {**os.environ, "DFM_KERNELS": str(built), "NUMBA_CACHE_DIR": str(built)}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True, capture_output=True)
    for path in sorted(built.rglob("*"), reverse=True):
        os.utime(path, (0, 0))
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert hits_and_misses(own, DFM_KERNELS=str(built)) == [1, 0]
    assert [path for path in own.rglob("*") if path.is_file()] == []


def test_code_for_a_processor_that_this_one_is_not_is_left_alone(tmp_path) -> None:
    built, own = tmp_path / "built", tmp_path / "own"
    target_of(built, '["a feature of tomorrow"]')
    assert hits_and_misses(own, DFM_KERNELS=str(built)) == [0, 1]
    script = "import dfm.compilation, numba; print(numba.config.CPU_NAME)"
    for environment, name in (({}, "None"), ({"NUMBA_CPU_NAME": "generic"}, "generic")):
        told = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "DFM_KERNELS": str(built), **environment},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert told.stdout.strip() == name


def test_nothing_is_collected_while_code_is_compiled_and_who_collects_nothing_does_not_begin_to(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    seen: list[bool] = []

    def doubled(x):  # type: ignore[no-untyped-def]
        return 2 * x

    on_disk.keep_on_disk(dispatcher := numba.njit(doubled, pipeline_class=seeing(seen)))
    assert gc.isenabled()
    dispatcher(1)
    gc.disable()
    try:
        dispatcher(1.0)
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert seen == [False, False]


def seeing(seen: list[bool]) -> type[Compiler]:
    """A compiler that notes whether garbage is collected when it begins."""

    class Seeing(Compiler):
        def define_pipelines(self) -> Any:
            seen.append(gc.isenabled())
            return super().define_pipelines()

    return Seeing


def test_steps_that_parts_leave_out_are_steps_of_numba() -> None:
    """One that had another name by now would be left out in vain."""
    steps: set[Any] = set()

    class Seeing(Compiler):
        def define_pipelines(self) -> Any:
            pipelines = super().define_pipelines()
            steps.update(step for pipeline in pipelines for step, _ in pipeline.passes)
            return pipelines

    numba.njit(lambda x: x, pipeline_class=Seeing)(1)
    assert steps >= on_disk._NOT_FOR_PARTS
