"""All that the machine code of a function is made of, in a text that is the same in every process that has the same."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numba
import numpy as np

from dfm.version import BEGUN


class MadeOf:
    """A jitted function by what it and the functions of its package that it calls are, as they are in memory, with the
    numbers, texts and arrays that are global there or that they close over; and by the source files where they stand,
    for what Numba is told elsewhere in them (rules for operators and types).

    files: their paths. is_all: whether every value that a function closes over can be told; where not, two functions
    may have one text.
    """

    def __init__(self, dispatcher: Any) -> None:
        self._package = (dispatcher.py_func.__module__ or "").partition(".")[0]
        self._told: dict[int, int] = {}
        self._kept: list[Any] = []  # or another object might get the number of one that is gone
        self.files, self.is_all = set[str](), True
        self._add_file(dispatcher.py_func)
        self.text = self._of(dispatcher, frozenset())

    def mark(self, *files: str) -> str:
        """sha256 (hex) of the text and of these source files and its own."""
        marks = sorted(_mark_of(path) for path in self.files.union(files))
        return hashlib.sha256(repr([self.text, marks]).encode()).hexdigest()

    def has_changed(self) -> bool:
        """Whether a file may say something else than this process has read: it was written or put there since."""
        for path in self.files:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ctime > BEGUN:
                    return True
        return False

    def _of(self, value: Any, names: frozenset[str]) -> str:
        """The text of a value. names: that code asks for, which of a module are all that counts."""
        if isinstance(value, ModuleType):
            return self._of_module(value, names)
        if isinstance(value, tuple | list):
            return f"({', '.join([self._of(each, names) for each in value])})"
        if (text := _plain(value)) is not None:
            return text
        if isinstance(value, type | np.ufunc | BuiltinFunctionType):
            return self._named(value)
        function = _python_of(value)
        if isinstance(function, FunctionType):
            options = getattr(value, "targetoptions", None) or {}
            return f"{_options(options)} {self._of_function(function)}"
        self.is_all = False
        return type(value).__qualname__

    def _of_module(self, module: ModuleType, names: frozenset[str]) -> str:
        if not self._is_ours(module.__name__):
            return module.__name__
        self._add_file_of(module.__name__)
        found = [f"{name} {self._of(vars(module)[name], names)}" for name in sorted(names & vars(module).keys())]
        return f"{module.__name__} {found}"

    def _of_function(self, function: FunctionType) -> str:
        if id(function) in self._told:
            return f"number {self._told[id(function)]}"
        module = function.__module__
        if module is not None and not self._is_ours(module):
            return f"{module} {function.__qualname__}"
        self._told[id(function)] = len(self._told)
        self._kept.append(function)
        self._add_file(function)
        code, names = function.__code__, frozenset(_names(function.__code__))
        known, was_all = function.__globals__, self.is_all
        found = [f"{name} {self._of(known[name], names)}" for name in sorted(names & known.keys())]
        self.is_all = was_all  # what is global is the same for all that a factory makes
        closed = [self._of(value, names) for value in _closed_over(function)]
        defaults = self._of(function.__defaults__ or (), names)
        told = [function.__qualname__, _of_code(code), found, closed, defaults]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def _named(self, value: Any) -> str:
        name = getattr(value, "__qualname__", value.__name__)
        module = getattr(value, "__module__", None) or ""
        if self._is_ours(module):
            self._add_file_of(module)
        self.is_all &= "<locals>" not in name
        return f"{module} {name}"

    def _add_file(self, function: FunctionType) -> None:
        self.files.add(function.__code__.co_filename)
        self._add_file_of(function.__module__ or "")

    def _add_file_of(self, module: str) -> None:
        if path := getattr(sys.modules.get(module), "__file__", None):
            self.files.add(path)

    def _is_ours(self, module: str) -> bool:
        return module.partition(".")[0] == self._package


def _of_code(code: CodeType) -> list[Any]:
    constants = [_of_code(each) if isinstance(each, CodeType) else _plain(each) for each in code.co_consts]
    return [code.co_firstlineno, code.co_code.hex(), code.co_names, code.co_varnames, constants]


def _names(code: CodeType) -> Iterator[str]:
    """The global names and attributes that a function's code asks for, with what is written within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            yield cell.cell_contents


def _python_of(value: Any) -> Any:
    """The Python function of a jitted one or an intrinsic; anything else itself."""
    return getattr(value, "py_func", None) or getattr(value, "_defn", value)


def _options(options: dict[str, Any]) -> list[str]:
    return [f"{name} {_plain(value) or type(value).__qualname__}" for name, value in sorted(options.items())]


def _plain(value: object) -> str | None:
    """A text of a number, a text, a type of numbers or an array of them; None of anything else."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic | np.dtype):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, numba.types.Type):
        return f"numba {value!r}"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"array {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return None


@functools.cache
def _mark_of(path: str) -> str:
    """The mark of a source file: its contents, for the times of files change on the way through an image."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else ""
