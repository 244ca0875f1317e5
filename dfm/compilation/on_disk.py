"""Numba functions whose machine code is kept on disk, safely for processes that start together.

Numba's own cache numbers its files: two processes that compile different signatures of one function at the same time
both take the next number, and the index of one may then name the machine code of the other. Workers do start together.
Here a file is named by all that its code was made of (`made_of`), and what one process compiles the others wait for.
Numba looks at the source file of the function alone, where an upgrade may change what it calls; and of what a factory
made it pickles what that closes over, which differs in every process if there are functions among it, so that it would
never be found again. Kernels of which that cannot be told give a key of their own. A process that is older than a
change of its sources keeps and finds nothing.

Numba numbers the functions, too, that it compiles, and the number is all that keeps apart the symbols of two that one
factory made for the same types. Two processes that compile different kernels give them the same number, forks of one
process nearly always do, and a third that loads both from disk got the code of the first for the second, or parts of
it: wrong scores, or memory that is written out of bounds (github.com/numba/numba/issues/10486). Here the numbers are
drawn at random, of 63 bits.

An image carries code that was compiled when it was built, for a processor that its nodes have at least (DFM_KERNELS: a
folder, which need not be writable). Where this machine has what that code needs, code is made for that processor here
too, so that it is found; the same image then gives the same bytes on nodes of several kinds.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding import get_host_cpu_features, parse_assembly, parse_bitcode
from numba.core import typed_passes, untyped_passes
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock

from dfm.compilation.made_of import MadeOf

BUILT = "DFM_KERNELS"
TARGET = "target.json"
"""Beside the code in that folder: {"cpu": LLVM's name of the processor, "needs": features it takes for granted}."""


def aim_at_built_code() -> None:
    """Compile for the processor of the image's own code, where this one can run it and nobody chose another."""
    folder = os.environ.get(BUILT)
    if not folder or numba.config.CPU_NAME is not None or not Path(folder, TARGET).is_file():
        return
    target = json.loads(Path(folder, TARGET).read_text())
    present = get_host_cpu_features()
    if all(present.get(feature) for feature in target["needs"]):
        numba.config.CPU_NAME, numba.config.CPU_FEATURES = target["cpu"], ""


aim_at_built_code()


class _Numbers:
    """Numbers of functions that no other process gives, whichever it was forked from."""

    def __next__(self) -> int:
        return secrets.randbits(63)


FunctionIdentity._unique_ids = _Numbers()  # all that Numba does with it is next(…), once for each function


class _Files(IndexDataCacheFile):
    """Data files named by Numba's version, the sources' stamp and the key: there is no index to lose lines of."""

    def load(self, key: Any) -> Any:
        """The data of a key, or None."""
        try:
            return self._load_data(self._name_of(key))
        except FileNotFoundError:
            return None

    def save(self, key: Any, data: Any) -> None:
        """Keep the data of a key, whole or not at all."""
        self._save_data(self._name_of(key), data)

    def lock_of(self, key: Any) -> Path:
        """The file that is locked by who compiles what belongs to a key."""
        return Path(self._data_path(self._name_of(key))).with_suffix(".lock")

    def _name_of(self, key: Any) -> str:
        digest = hashlib.sha256(f"{self._version} {self._source_stamp} {key!r}".encode()).hexdigest()
        return str(self._data_name(int(digest[:15], 16)))


_PATIENCE, _PAUSE = 60.0, 0.02
"""Seconds that a process waits for another's code before it makes its own, and between two looks."""


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until no other process has the turn of this file; at most a minute, and not at all where none can be locked.

    It saves work and nothing depends on it: two that compile the same keep the same. So the file may go at the end,
    though somebody may be about to lock it.
    """
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    except (ImportError, OSError):
        yield
        return
    try:
        begin = time.monotonic()
        while _is_taken(fcntl, descriptor) and time.monotonic() - begin < _PATIENCE:
            time.sleep(_PAUSE)
        yield
        with contextlib.suppress(OSError):
            path.unlink()
    finally:
        os.close(descriptor)


def _is_taken(fcntl: Any, descriptor: int) -> bool:
    """Whether another process has the lock of a file; if not this one has it now, where the disk knows locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """No search for unreachable objects in the block: compiling makes millions that stay, and searching them again and
    again took a tenth of its time, more in a process that has many.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _KeptLibrary(JITCodeLibrary):
    """Machine code from disk. The LLVM code that others could make part of theirs is read when one does."""

    _bitcode = b""

    def _get_module_for_linking(self) -> Any:
        if self._bitcode:
            self._shared_module, self._bitcode = parse_bitcode(self._bitcode), b""
        return super()._get_module_for_linking()


@functools.cache
def _nothing() -> bytes:
    """LLVM code that defines nothing."""
    return bytes(parse_assembly("").as_bitcode())


class _Code(CompileResultCacheImpl):
    """A compiled function, as a file has it: Numba's own, and the names that its LLVM code defines. Numba finds them by
    reading that code, which took half of the time that loading did, and hardly any function is asked for its code.
    """

    def reduce(self, result: Any) -> Any:
        """The contents of a file."""
        (name, kind, (code, bitcode)), *others = super().reduce(result)
        module = result.library._get_module_for_linking()
        found = (*module.functions, *module.global_variables)
        defined = frozenset(value.name for value in found if not value.is_declaration)
        return (name, kind, code, bitcode, defined), others

    def rebuild(self, target: Any, contents: Any) -> Any:
        """The function of a file, ready to be called."""
        (name, kind, code, bitcode, defined), others = contents
        target.codegen()._engine._defined_symbols |= defined
        result = super().rebuild(target, ((name, kind, (code, _nothing())), *others))
        library = result.library
        library.__class__, library._shared_module, library._bitcode = _KeptLibrary, None, bitcode
        return result


class _DiskCache(FunctionCache):
    """Numba's cache of one function, with our files and, where one is given, our key."""

    _impl_class = _Code

    def __init__(self, dispatcher: Any, key: str) -> None:
        super().__init__(dispatcher.py_func)
        self._dispatcher, self._key = dispatcher, key
        self._built: _Files | None = None
        self._is_named = False
        self._locks = contextlib.ExitStack()

    def _name_files(self) -> None:
        """Now that the function is called, all that it calls is defined."""
        made_of = MadeOf(self._dispatcher)
        mark = made_of.mark(__file__)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, mark)
        built = os.path.join(os.environ.get(BUILT) or os.devnull, os.path.basename(self._cache_path))
        self._built = _Files(built, self._impl.filename_base, mark) if os.path.isdir(built) else None
        self._key = self._key or ("told by its mark" if made_of.is_all else "")
        self._is_named = True
        if made_of.has_changed():
            self.disable()  # the code of this process may not be that of the files

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The code that is kept, once a process that is making it has; or None, and others wait until `let_go`."""
        if not self._is_named:
            self._name_files()
        found = super().load_overload(signature, target)
        if found is None and self._enabled:
            lock = self._cache_file.lock_of(self._index_key(signature, target.codegen()))
            self._locks.enter_context(turn(lock))
            found = super().load_overload(signature, target)
            if found is None:
                self._locks.enter_context(_without_collections())
        return found

    def let_go(self) -> None:
        """The end of a turn: what was not found has been compiled and kept, or cannot be."""
        self._locks.close()

    def _load_overload(self, signature: Any, target: Any) -> Any:
        if self._enabled and self._built is not None:
            data = self._built.load(self._index_key(signature, target.codegen()))
            if data is not None:
                return self._impl.rebuild(target, data)
        return super()._load_overload(signature, target)

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        return (signature, codegen.magic_tuple(), self._key) if self._key else super()._index_key(signature, codegen)


def keep_on_disk(dispatcher: Any, key: str = "") -> None:
    """Let a jitted function load its machine code from disk, or leave it there. Numba picks the folder
    (NUMBA_CACHE_DIR, or __pycache__ beside the module, or the user's cache folder where that is not writable).
    """
    if numba.config.DISABLE_JIT:
        return
    try:
        cache = _DiskCache(dispatcher, key)
    except RuntimeError:
        return  # no folder can be written to: then every process compiles
    compile_here, dispatcher._cache = dispatcher.compile, cache

    def compile_once(signature: Any) -> Any:
        with global_compiler_lock:
            try:
                return compile_here(signature)
            finally:
                cache.let_go()

    dispatcher.compile = compile_once


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`numba.njit(nogil=True, …)`, kept on disk. Without nogil a worker could not answer while a kernel runs."""

    def decorate(inner: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(inner, nogil=True, no_cfunc_wrapper=True, **options)
        keep_on_disk(dispatcher)
        return dispatcher

    return decorate if function is None else decorate(function)


class _PartCodegen:
    """Numba's code generator, for functions that are never at an address."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def set_env(self, name: str, environment: Any) -> None:
        """Nothing: the place of a function's Python objects has no address either, and kernels use none."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)


class _PartLibrary(JITCodeLibrary):
    """LLVM code that waits for the kernel that it becomes part of: no machine code, and only a first optimisation,
    without which scoring took a seventh more instructions, whatever the kernel's own did.
    """

    @property
    def codegen(self) -> Any:
        return _PartCodegen(self._codegen)

    def _optimize_final_module(self) -> None:
        codegen = self._codegen
        passes, builder = codegen._module_pass_manager(
            loop_vectorize=codegen._loopvect, slp_vectorize=False, opt=codegen._opt_level, cost="cheap"
        )
        passes.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


_NOT_FOR_PARTS = {
    untyped_passes.WithLifting,
    untyped_passes.InlineClosureLikes,
    untyped_passes.RewriteDynamicRaises,
    untyped_passes.MakeFunctionToJitFunction,
    untyped_passes.InlineInlinables,
    untyped_passes.FindLiterallyCalls,
    untyped_passes.LiteralUnroll,
    untyped_passes.LiteralPropagationSubPipelinePass,
    typed_passes.InlineOverloads,
    typed_passes.NopythonRewrites,
    typed_passes.NoPythonSupportedFeatureValidation,
    typed_passes.DumpParforDiagnostics,
}
"""Steps of Numba's that look for blocks of `with`, closures, expressions of arrays and the like, of which parts have
none, and cost a fifth of the time of compiling them.
"""


class _PartCompiler(Compiler):
    def define_pipelines(self) -> Any:
        self.state.library = _PartLibrary(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            pipeline.passes[:] = [step for step in pipeline.passes if step[0] not in _NOT_FOR_PARTS]
        return pipelines


def part(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`numba.njit` of a function that becomes part of the kernels that call it; Python cannot call it.

    Numba optimises each function by itself, makes machine code of it, and does all of that once more where it stands
    in its caller. Here most of it happens once, in the kernel. A part has no closures, no `with`, no `literal_unroll`,
    no expressions of arrays, and raises nothing that it makes up: Numba's steps for these are left out.
    """
    options = {"nogil": True, "forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, **options}
    decorate = numba.njit(pipeline_class=_PartCompiler, **options)
    return decorate if function is None else decorate(function)
