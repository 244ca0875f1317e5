"""Functions by value: a copy with everything that it refers to, and a fingerprint that is the same in every process."""

from __future__ import annotations

import builtins
import dis
import hashlib
import math
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from dfm.errors import SettingsError

_MODULES = (math, np, builtins)
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)


def snapshot(function: FunctionType, shown: str) -> FunctionType:
    """A copy whose globals are the names that the code uses, with copies of the plain functions among them.

    SettingsError (`shown` says whose) where it refers to anything but numbers, arrays, functions, math and numpy.
    """
    return _copied(function, shown, ())


def _copied(function: FunctionType, shown: str, within: tuple[CodeType, ...]) -> FunctionType:
    code = function.__code__
    if code in within:
        raise SettingsError(f"{shown} calls {function.__name__}, which calls itself; write it as a loop")

    def own(name: str, value: Any) -> Any:
        return _owned(name, value, shown, (*within, code))

    known = function.__globals__
    names = {name: own(name, known[name]) for name in sorted(global_names(code)) if name in known}
    closure = [
        CellType(own(name, cell.cell_contents))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
    ]
    defaults = tuple(own("a default", value) for value in function.__defaults__ or ())
    copy = FunctionType(code, names, function.__name__, defaults or None, tuple(closure) or None)
    copy.__kwdefaults__ = {name: own(name, value) for name, value in (function.__kwdefaults__ or {}).items()} or None
    return copy


def _owned(name: str, value: Any, shown: str, within: tuple[CodeType, ...]) -> Any:
    """The stand-in of a value in the copy."""
    value = getattr(value, "py_func", value)  # of a function that the user compiled
    if isinstance(value, FunctionType) and not (value.__module__ or "").startswith("numpy"):
        return _copied(value, shown, within)
    if isinstance(value, tuple):
        return tuple(_owned(name, item, shown, within) for item in value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value.copy()
    if isinstance(value, _NUMBERS) or value in _MODULES or _is_standard(value):
        return value
    what = f"the module {value.__name__}" if isinstance(value, ModuleType) else f"a {type(value).__name__}"
    raise SettingsError(
        f"{shown} uses {name}, {what}; it may use numbers, tuples and arrays of numbers, plain functions, math "
        "and numpy"
    )


def _is_standard(value: Any) -> bool:
    """A function or type of builtins, math or numpy."""
    if isinstance(value, np.ufunc):
        return True
    named = isinstance(value, BuiltinFunctionType | FunctionType | type) or hasattr(value, "__wrapped__")
    return named and (getattr(value, "__module__", None) or "").split(".")[0] in ("builtins", "math", "numpy")


def global_names(code: CodeType) -> Iterator[str]:
    """The global names that code reads, that of functions inside of it too."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from global_names(constant)


def linked(
    function: Any, compile: Callable[[FunctionType], Any], names: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> Any:
    """A snapshot compiled, after the functions that it calls; `names` may change what global names mean."""

    def ready(value: Any) -> Any:
        is_user_code = isinstance(value, FunctionType) and not (value.__module__ or "").startswith("numpy")
        return linked(value, compile, names) if is_user_code else value

    known = names({name: ready(value) for name, value in function.__globals__.items()})
    closure = tuple(CellType(ready(cell.cell_contents)) for cell in function.__closure__ or ())
    copy = FunctionType(function.__code__, known, function.__name__, function.__defaults__, closure or None)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__module__ = __name__  # who loads kernels from disk imports the modules of what they call
    return compile(copy)


def fingerprint(function: FunctionType) -> str:
    """sha256 (hex) of a snapshot: its byte code, constants, and all that it refers to; not of names and line numbers.

    Python's byte code changes with its minor version, and so does this.
    """
    return hashlib.sha256(_canonical(function).encode()).hexdigest()


def _canonical(value: Any) -> str:
    if isinstance(value, FunctionType) and not (value.__module__ or "").startswith("numpy"):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, cells, dict(value.__globals__)]
        return f"function({', '.join(map(_canonical, parts))})"
    if isinstance(value, CodeType):
        numbers = (value.co_argcount, value.co_kwonlyargcount, value.co_flags, value.co_code.hex())
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        return f"code({numbers}, {names}, {_canonical(value.co_consts)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_canonical(value[key])}' for key in sorted(value))}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_canonical, value))})"
    if isinstance(value, frozenset):
        return f"set({', '.join(sorted(map(_canonical, value)))})"
    if isinstance(value, np.ndarray):
        return f"array({value.dtype}, {value.shape}, {value.tobytes().hex()})"
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, np.ufunc | BuiltinFunctionType | FunctionType | type) or hasattr(value, "__wrapped__"):
        return f"{getattr(value, '__module__', 'numpy')}.{value.__name__}"
    return f"{type(value).__name__} {value!r}"
