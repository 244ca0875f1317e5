"""A user's loss or regulariser: taken as it is at that moment, checked, and compiled with its derivative beside it.

The record holds code, not a reference to a module: workers need no copy of the user's files, and a function from a
notebook travels like any other. Two records of the same code are equal, in every process, so they share their kernels.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import linecache
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar, Self

from numba import config, njit, types

from dfm.errors import SettingsError
from dfm.kernels.custom.dual import SUPPORTED, PlainDual, dual, for_plain_duals, make, slope, value
from dfm.kernels.custom.snapshot import fingerprint, linked, snapshot

_OPTIONS = {"nogil": True, "forceinline": True, "error_model": "numpy", "no_cfunc_wrapper": True}
_SCORES = (-30.0, -3.0, -0.7, 0.0, 0.3, 2.0, 30.0)
_WEIGHTS = (-3.0, -0.1, 0.0, 0.1, 3.0)


@dataclass(frozen=True, eq=False, repr=False)
class UserFunction:
    """A function of numbers, differentiable by the first: made by `of`, picklable, equal where the code is.

    function: a copy, with copies of what it refers to. fingerprint: sha256 (hex) of the code and of that.
    """

    kind: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]]
    name: str
    function: Callable[..., Any]
    fingerprint: str

    @classmethod
    def of(cls, function: Any, **options: Any) -> Self:
        """The record of a user's function, compiled and tried out. SettingsError where nothing can be trained with it.

        options: the other fields of the record.
        """
        if isinstance(function, cls):
            return function
        plain = getattr(function, "py_func", function)
        shown = f"the {cls.kind} {getattr(plain, '__name__', repr(plain))}"
        if not isinstance(plain, FunctionType):
            raise SettingsError(f"{shown} is a {type(plain).__name__}; pass a function (def or lambda) {cls._call()}")
        _check_arity(shown, plain, len(cls.arguments), cls._call())
        copy = snapshot(plain, shown)
        made = cls(plain.__name__, copy, fingerprint(copy), **options)
        made._check_result(shown)
        return made

    @classmethod
    def _call(cls) -> str:
        return f"of {' and '.join(cls.arguments)}"

    @functools.cached_property
    def on_duals(self) -> Any:
        """The function for a dual first argument, as other compiled functions can call it."""
        if config.DISABLE_JIT:
            return linked(self.function, lambda plain: plain, for_plain_duals)
        return linked(self.function, njit(**_OPTIONS))

    @functools.cached_property
    def value(self) -> Any:
        """value(*arguments): float64, compiled. Made of the same arithmetic as the slope, on any machine."""
        function = self.on_duals
        if len(self.arguments) == 1:
            return njit(**_OPTIONS)(lambda weight: value(function(make(weight, 0.0))))
        return njit(**_OPTIONS)(lambda score, label: value(function(make(score, 0.0), label)))

    @functools.cached_property
    def slope(self) -> Any:
        """slope(*arguments): derivative by the first, float64, compiled."""
        function = self.on_duals
        if len(self.arguments) == 1:
            return njit(**_OPTIONS)(lambda weight: slope(function(make(weight, 1.0))))
        return njit(**_OPTIONS)(lambda score, label: slope(function(make(score, 1.0), label)))

    def try_at(self, points: Sequence[tuple[float, ...]]) -> None:
        """SettingsError where value or slope is not finite at one of the points, or the slope is 0 at all of them."""
        is_flat = True
        for point in points:
            where = ", ".join(f"{name} = {number:g}" for name, number in zip(self.arguments, point, strict=True))
            try:
                results = {"value": float(self.value(*point)), "slope": float(self.slope(*point))}
            except Exception as error:
                raise SettingsError(f"the {self.kind} {self.name} raises {error!r} at {where}") from error
            for what, result in results.items():
                if not math.isfinite(result):
                    raise SettingsError(
                        f"the {what} of the {self.kind} {self.name} is {result} at {where}; it must be finite for any "
                        f"{self.arguments[0]}: bound what overflows or is divided by, for example with max or min"
                    )
            is_flat = is_flat and results["slope"] == 0.0
        if is_flat:
            raise SettingsError(
                f"the {self.kind} {self.name} has slope 0 at {self.arguments[0]} = "
                f"{', '.join(f'{point[0]:g}' for point in points)}: nothing can be learnt from it; "
                f"it must depend on the {self.arguments[0]}, and not by steps"
            )

    def _defaults(self) -> list[Any]:
        """Defaults of the arguments that dfm does not pass."""
        parameters = list(inspect.signature(self.function).parameters.values())[len(self.arguments) :]
        return [one.default for one in parameters]

    def _check_result(self, shown: str) -> None:
        """SettingsError where the function cannot be compiled or does not give one number."""
        if config.DISABLE_JIT:
            found: Any = self.on_duals(make(0.3, 1.0), *[1.0] * (len(self.arguments) - 1))
            is_number, is_missing = isinstance(found, PlainDual | float | int), found is None
        else:
            try:
                left_out = [types.Omitted(default) for default in self._defaults()]
                self.on_duals.compile((dual, *[types.float64] * (len(self.arguments) - 1), *left_out))
            except Exception as error:  # Numba's own errors have no common base
                raise SettingsError(_explained(shown, self.function, error)) from error
            found = next(iter(self.on_duals.overloads.values())).signature.return_type
            is_number = found is dual or isinstance(found, types.Float | types.Integer | types.Boolean)
            is_missing = isinstance(found, types.Optional | types.NoneType)
        if is_missing:
            raise SettingsError(f"{shown} returns None for some {self.arguments[0]}: does a branch lack its return?")
        if not is_number:
            raise SettingsError(f"{shown} returns {found}; return one number")

    def __repr__(self) -> str:
        options = [getattr(self, field.name) for field in dataclasses.fields(self)[3:]]
        return f"{type(self).__name__}{(self.name, self.fingerprint, *options)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UserFunction) and repr(other) == repr(self)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __getstate__(self) -> bytes:
        """The fields, without what was compiled of them. Not for model files: reading it executes code."""
        import cloudpickle  # scoring does without

        return bytes(cloudpickle.dumps({field.name: getattr(self, field.name) for field in dataclasses.fields(self)}))

    def __setstate__(self, state: bytes) -> None:
        import cloudpickle

        self.__dict__.update(cloudpickle.loads(state))


@dataclass(frozen=True, eq=False, repr=False)
class CustomLoss(UserFunction):
    """A loss(score, y) that a user wrote: `CustomLoss.of(function, link="")`.

    link: a name in `losses.LINKS`, how scores become predictions; empty: "sigmoid" for classification, else "identity".
    """

    kind = "loss"
    arguments = ("score", "y")
    link: str = ""

    def check_labels(self, labels: Sequence[float]) -> None:
        """SettingsError where the loss is not fit for one of these labels."""
        self.try_at([(score, label) for label in labels for score in _SCORES])


@dataclass(frozen=True, eq=False, repr=False)
class CustomRegularizer(UserFunction):
    """A penalty regularizer(w) of one weight that a user wrote: `CustomRegularizer.of(function)`."""

    kind = "regularizer"
    arguments = ("w",)

    @classmethod
    def of(cls, function: Any, **options: Any) -> Self:
        made = super().of(function, **options)
        made.try_at([(weight,) for weight in _WEIGHTS])
        return made


def _check_arity(shown: str, function: FunctionType, n_arguments: int, call: str) -> None:
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        raise SettingsError(f"{shown} yields or awaits; write it as a plain function {call} that returns a number")
    signature = inspect.signature(function)
    try:
        signature.bind(*[0.0] * n_arguments)
    except TypeError:
        raise SettingsError(
            f"{shown}{signature} cannot be called with {n_arguments} numbers; it must be {call}"
        ) from None
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in signature.parameters.values()):
        raise SettingsError(f"{shown}{signature} takes any number of arguments; name them: it must be {call}")


# --- what Numba says, for people -----------------------------------------------------------------------------

_SAYINGS = (
    (r"Unknown attribute '(\w+)' of type Module\(<module '([\w.]+)'.*", r"uses \2.\1, which cannot be compiled"),
    (r"Unknown attribute '(\w+)' of type dual", r"uses .\1 of the score"),
    (r"module '([\w.]+)' has no attribute '(\w+)'", r"uses \1.\2, which does not exist"),
    (r"NameError: name '(\w+)' is not defined", r"uses \1, which is not defined"),
    (r"Cannot unify (.+) and (.+) for '([\w.]+?)(?:\.\d+)?'.*", r"makes \3 a \1 in one branch and a \2 in another"),
    (r"Use of unsupported opcode \(IMPORT_\w+\).*", "imports inside of the function (import at the top of the file)"),
    (r"Use of unsupported opcode \((\w+)\).*", r"uses a construct that cannot be compiled (\1)"),
    (r"The '(.+)' construct is not supported.*", r"uses \1"),
)
_CALL = re.compile(r">>> (\w+)\((.*)\)")


def _explained(shown: str, function: Callable[..., Any], error: Exception) -> str:
    """The construct, its line and a way out."""
    said = [line.strip() for line in str(error).splitlines() if line.strip() and "pipeline (step" not in line]
    first = re.sub(r"Literal\[(\w+)\]\(.*?\)", r"\1", said[0]) if said else type(error).__name__
    call = next((_CALL.search(line) for line in said if _CALL.search(line)), None)
    construct = f'cannot be compiled: "{first}"'
    for pattern, meaning in _SAYINGS:
        if re.match(pattern, first):
            construct = re.sub(pattern, meaning, first).replace("a dual", "a number")
            break
    else:
        if call is not None:
            verb = "has no derivative here" if "dual" in call[2] else "cannot be compiled"
            arguments = call[2].replace("dual", "score").replace("<iv=None>", "")
            construct = f"uses {call[1]}({arguments}), which {verb}"
    return f"{shown} {construct}{_line_of(function, error)}. Write it with {SUPPORTED}"


def _line_of(function: Any, error: Exception) -> str:
    """Line and text of the user's file that the error speaks of."""
    file = function.__code__.co_filename
    number = getattr(getattr(error, "loc", None), "line", None) or function.__code__.co_firstlineno
    named = re.findall(rf"{re.escape(file)} \((\d+)\)", str(error)) or re.findall(r"line (\d+)", str(error))
    if named:
        number = int(named[0])
    text = linecache.getline(file, number).strip()
    return f", line {number}" + (f": {text}" if text else "")
