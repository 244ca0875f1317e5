"""Numbers that carry their derivative (forward-mode dual numbers), as a type that Numba compiles.

A dual number is (value, slope), slope = d value / d seed. A function compiled for one computes its derivative beside
its value: exactly, through branches, loops and calls, and at the speed of formulas written by hand, since LLVM sees
nothing but pairs of float64 in registers (Wengert 1964; Griewank and Walther 2008, chapter 3). A plain number has slope
0; where branches give both, Numba makes them dual.

At a kink the slope is that of one side: abs has 0 at 0, max and min follow the argument that they return (the first).
With NUMBA_DISABLE_JIT=1 the same names work on `PlainDual`, and `with_plain_duals` lets a function find them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numba import config, njit, types
from numba.core import cgutils
from numba.core.typeconv import Conversion
from numba.extending import intrinsic, lower_builtin, lower_cast, models, overload, register_model

from dfm.kernels import arithmetic

_inlined = njit(nogil=True, forceinline=True, error_model="numpy")
_OPTIONS = {"error_model": "numpy", "nogil": True, "forceinline": True}
_LOG2_E, _LOG10_E = math.log2(math.e), math.log10(math.e)
_PLAIN = (types.Float, types.Integer, types.Boolean)


class DualType(types.Type):
    """Numba's type of a dual number; every plain number converts to it."""

    def __init__(self) -> None:
        super().__init__(name="dual")

    def can_convert_from(self, _typing_context: Any, other: Any) -> Any:
        """Numba asks this where branches give different types."""
        return Conversion.safe if isinstance(other, _PLAIN) else None


dual = DualType()


@register_model(DualType)
class _DualModel(models.StructModel):
    def __init__(self, manager: Any, numba_type: DualType) -> None:
        super().__init__(manager, numba_type, [("value", types.float64), ("slope", types.float64)])


def _pair(context: Any, builder: Any, value: Any, slope: Any) -> Any:
    made = cgutils.create_struct_proxy(dual)(context, builder)
    made.value, made.slope = value, slope
    return made._getvalue()


@intrinsic
def _make(_typing_context, value, slope):  # type: ignore[no-untyped-def]
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _pair(context, builder, *args)

    return dual(types.float64, types.float64), codegen


def _part(name: str) -> Any:
    """The intrinsic that takes `name` out of a dual number; of a plain one, itself or 0."""

    @intrinsic
    def part(_typing_context, number):  # type: ignore[no-untyped-def]
        if number is not dual and not isinstance(number, _PLAIN):
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            if sig.args[0] is dual:
                return getattr(cgutils.create_struct_proxy(dual)(context, builder, value=args[0]), name)
            if name == "value":
                return context.cast(builder, args[0], sig.args[0], types.float64)
            return context.get_constant(types.float64, 0.0)

        return types.float64(number), codegen

    return part


@lower_cast(types.Float, DualType)
@lower_cast(types.Integer, DualType)
@lower_cast(types.Boolean, DualType)
def _cast(context: Any, builder: Any, source: Any, _target: Any, number: Any) -> Any:
    zero = context.get_constant(types.float64, 0.0)
    return _pair(context, builder, context.cast(builder, number, source, types.float64), zero)


@lower_builtin(bool, DualType)
def _truth(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
    number = cgutils.create_struct_proxy(dual)(context, builder, value=args[0]).value
    return builder.fcmp_unordered("!=", number, context.get_constant(types.float64, 0.0))


# --- without compilation -------------------------------------------------------------------------------------


class PlainDual:
    """A dual number in plain Python; its operators are set below, from the same rules."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: float, slope: float) -> None:
        self.value, self.slope = value, slope

    def __bool__(self) -> bool:
        return bool(self.value != 0.0)


def _value_twin(number: Any) -> float:
    return number.value if isinstance(number, PlainDual) else float(number)


def _slope_twin(number: Any) -> float:
    return number.slope if isinstance(number, PlainDual) else 0.0


make: Any = PlainDual if config.DISABLE_JIT else _make
"""make(value, slope): a dual number of two float64."""
value: Any = _value_twin if config.DISABLE_JIT else _part("value")
"""value(number): the float64 that it is."""
slope: Any = _slope_twin if config.DISABLE_JIT else _part("slope")
"""slope(number): its derivative; 0 for a plain number."""


# --- rules: what an operation becomes for arguments of which one is dual (their types, or the numbers themselves) --

Rule = Callable[..., Any]


def _any_dual(*arguments: Any) -> bool:
    return any(argument is dual or isinstance(argument, PlainDual) for argument in arguments)


def _add(a: Any, b: Any) -> Any:
    if _any_dual(a, b):
        return lambda a, b: make(value(a) + value(b), slope(a) + slope(b))
    return None


def _subtract(a: Any, b: Any) -> Any:
    if _any_dual(a, b):
        return lambda a, b: make(value(a) - value(b), slope(a) - slope(b))
    return None


def _multiply(a: Any, b: Any) -> Any:
    if _any_dual(a) and _any_dual(b):
        return lambda a, b: make(value(a) * value(b), slope(a) * value(b) + value(a) * slope(b))
    # A plain number's slope is left out, not multiplied: 0 times infinity is no number.
    if _any_dual(a):
        return lambda a, b: make(value(a) * value(b), slope(a) * value(b))
    if _any_dual(b):
        return lambda a, b: make(value(a) * value(b), value(a) * slope(b))
    return None


def _divide(a: Any, b: Any) -> Any:
    if _any_dual(b):

        def divide(a, b):  # type: ignore[no-untyped-def]
            quotient = value(a) / value(b)
            return make(quotient, (slope(a) - quotient * slope(b)) / value(b))

        return divide
    if _any_dual(a):
        return lambda a, b: make(value(a) / value(b), slope(a) / value(b))
    return None


_MOST_SQUARINGS = 64.0


@_inlined
def _raise(base: float, exponent: float) -> Any:
    """base ** exponent: by multiplication for small whole exponents, else by logarithm (nan for a negative base)."""
    if abs(exponent) <= _MOST_SQUARINGS and exponent == math.floor(exponent):
        left, square, product = int(abs(exponent)), base, 1.0
        while left > 0:
            if left % 2 == 1:
                product *= square
            square *= square
            left //= 2
        return product if exponent >= 0.0 else 1.0 / product
    return arithmetic.exp(exponent * arithmetic.log(base))


@_inlined
def _power_slope(base: float, exponent: float) -> Any:
    """d base ** exponent / d base."""
    return exponent * _raise(base, exponent - 1.0) if exponent != 0.0 else 0.0


def _power(a: Any, b: Any) -> Any:
    if _any_dual(b):

        def power(a, b):  # type: ignore[no-untyped-def]
            raised = _raise(value(a), value(b))
            by_base = _power_slope(value(a), value(b)) * slope(a) if slope(a) != 0.0 else 0.0
            return make(raised, by_base + raised * arithmetic.log(value(a)) * slope(b))

        return power
    if _any_dual(a):
        return lambda a, b: make(_raise(value(a), value(b)), _power_slope(value(a), value(b)) * slope(a))
    return None


def _compare(operation: Any) -> Rule:
    def rule(a: Any, b: Any) -> Any:
        return (lambda a, b: operation(value(a), value(b))) if _any_dual(a, b) else None

    return rule


@_inlined
def _chosen(condition, yes, no):  # type: ignore[no-untyped-def]
    return make(value(yes), slope(yes)) if condition else make(value(no), slope(no))


def _larger(a: Any, b: Any) -> Any:
    return (lambda a, b: _chosen(value(b) > value(a), b, a)) if _any_dual(a, b) else None


def _smaller(a: Any, b: Any) -> Any:
    return (lambda a, b: _chosen(value(b) < value(a), b, a)) if _any_dual(a, b) else None


def _largest(a: Any, b: Any, c: Any) -> Any:
    return (lambda a, b, c: max(max(a, b), c)) if _any_dual(a, b, c) else None


def _smallest(a: Any, b: Any, c: Any) -> Any:
    return (lambda a, b, c: min(min(a, b), c)) if _any_dual(a, b, c) else None


def _clip(x: Any, low: Any, high: Any) -> Any:
    return (lambda x, low, high: min(max(x, low), high)) if _any_dual(x, low, high) else None


def _where(condition: Any, x: Any, y: Any) -> Any:
    return (lambda condition, x, y: _chosen(condition, x, y)) if _any_dual(x, y) else None


def _log_of_sum(a: Any, b: Any) -> Any:
    """log(e^a + e^b), of which each argument has the share e^a / (e^a + e^b)."""
    if not _any_dual(a, b):
        return None

    def log_of_sum(a, b):  # type: ignore[no-untyped-def]
        shrunk = arithmetic.exp(-abs(value(a) - value(b)))
        larger, smaller = 1.0 / (1.0 + shrunk), shrunk / (1.0 + shrunk)
        of_a, of_b = (larger, smaller) if value(a) > value(b) else (smaller, larger)
        return make(max(value(a), value(b)) + arithmetic.log1p(shrunk), of_a * slope(a) + of_b * slope(b))

    return log_of_sum


def _negate(x: Any) -> Any:
    return (lambda x: make(-value(x), -slope(x))) if _any_dual(x) else None


def _same(x: Any) -> Any:
    return (lambda x: x) if _any_dual(x) else None


def _absolute(x: Any) -> Any:
    if not _any_dual(x):
        return None

    def absolute(x):  # type: ignore[no-untyped-def]
        return make(abs(value(x)), slope(x) if value(x) > 0.0 else -slope(x) if value(x) < 0.0 else 0.0)

    return absolute


def _of_value(function: Any) -> Rule:
    """The rule of a test, or of what is constant nearly everywhere."""
    compiled = _inlined(function)

    def rule(x: Any) -> Any:
        return (lambda x: compiled(value(x))) if _any_dual(x) else None

    return rule


def _chain(value_of: Any, slope_of: Any) -> Rule:
    """The rule of f with d f(u) = slope_of(u, f(u)) du."""
    inner = value_of if hasattr(value_of, "py_func") else _inlined(value_of)
    outer = _inlined(slope_of)

    def rule(x: Any) -> Any:
        if not _any_dual(x):
            return None

        def chained(x):  # type: ignore[no-untyped-def]
            result = inner(value(x))
            return make(result, outer(value(x), result) * slope(x))

        return chained

    return rule


_TWO_BY_ROOT_PI = 2.0 / math.pi**0.5
_OPERATORS: dict[Any, Rule] = {
    **{operator.add: _add, operator.sub: _subtract, operator.mul: _multiply, operator.truediv: _divide},
    **{operator.iadd: _add, operator.isub: _subtract, operator.imul: _multiply, operator.itruediv: _divide},
    **{operator.pow: _power, operator.ipow: _power, operator.neg: _negate, operator.pos: _same, abs: _absolute},
    **{test: _compare(test) for test in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)},
}
_FUNCTIONS: tuple[tuple[Rule, tuple[Any, ...]], ...] = (
    (_absolute, (math.fabs, np.abs, np.fabs)),
    (_power, (math.pow, np.power)),
    (_larger, (np.maximum, np.fmax)),
    (_smaller, (np.minimum, np.fmin)),
    (_clip, (np.clip,)),
    (_where, (np.where,)),
    (_log_of_sum, (np.logaddexp,)),
    (_of_value(lambda u: u != u), (math.isnan, np.isnan)),
    (_of_value(lambda u: abs(u) < math.inf), (math.isfinite, np.isfinite)),
    (_of_value(lambda u: 1.0 if u > 0.0 else -1.0 if u < 0.0 else u), (np.sign,)),
    (_chain(lambda u: u * u, lambda u, _f: 2.0 * u), (np.square,)),
    (_chain(lambda u: math.sqrt(u), lambda _u, f: 0.5 / f), (math.sqrt, np.sqrt)),
    (_chain(arithmetic.exp, lambda _u, f: f), (math.exp, np.exp)),
    (_chain(arithmetic.expm1, lambda _u, f: f + 1.0), (math.expm1, np.expm1)),
    (_chain(arithmetic.log, lambda u, _f: 1.0 / u), (math.log, np.log)),
    (_chain(arithmetic.log1p, lambda u, _f: 1.0 / (1.0 + u)), (math.log1p, np.log1p)),
    (_chain(lambda u: arithmetic.log(u) * _LOG2_E, lambda u, _f: _LOG2_E / u), (math.log2, np.log2)),
    (_chain(lambda u: arithmetic.log(u) * _LOG10_E, lambda u, _f: _LOG10_E / u), (math.log10, np.log10)),
    (_chain(arithmetic.tanh, lambda _u, f: 1.0 - f * f), (math.tanh, np.tanh)),
    # Of these the C library gives the values, whose last digit may differ between machines.
    (_chain(lambda u: math.sinh(u), lambda u, _f: math.cosh(u)), (math.sinh, np.sinh)),
    (_chain(lambda u: math.cosh(u), lambda u, _f: math.sinh(u)), (math.cosh, np.cosh)),
    (_chain(lambda u: math.sin(u), lambda u, _f: math.cos(u)), (math.sin, np.sin)),
    (_chain(lambda u: math.cos(u), lambda u, _f: -math.sin(u)), (math.cos, np.cos)),
    (_chain(lambda u: math.atan(u), lambda u, _f: 1.0 / (1.0 + u * u)), (math.atan, np.arctan)),
    (_chain(lambda u: math.erf(u), lambda u, _f: _TWO_BY_ROOT_PI * arithmetic.exp(-u * u)), (math.erf,)),
    (_chain(lambda u: math.erfc(u), lambda u, _f: -_TWO_BY_ROOT_PI * arithmetic.exp(-u * u)), (math.erfc,)),
)
SUPPORTED = "+ - * / **, comparisons, if and else, loops, abs, min, max, and of math or numpy " + ", ".join(
    sorted({function.__name__ for _rule, functions in _FUNCTIONS for function in functions} - {"fabs", "fmax", "fmin"})
)
"""Parts that a differentiable function may consist of, for messages."""


def _register() -> None:
    """Tell Numba."""
    for functions, rule in [
        *(((operation,), rule) for operation, rule in _OPERATORS.items()),
        *((functions, rule) for rule, functions in _FUNCTIONS),
        *(((max,), _larger), ((max,), _largest), ((min,), _smaller), ((min,), _smallest)),
        *(((float,), _same), ((bool, operator.truth), _of_value(lambda u: u != 0.0))),
        ((operator.not_,), _of_value(lambda u: u == 0.0)),
    ]:
        for function in functions:
            overload(function, jit_options=_OPTIONS, strict=False)(rule)


def _twin(function: Any, rule: Rule) -> Any:
    """The function in plain Python, for dual numbers too."""

    def twin(*arguments: Any) -> Any:
        return (rule(*arguments) or function)(*arguments)

    return twin


_TWINS: dict[Any, Any] = {}


class _Twins:
    """math or numpy, with functions that take `PlainDual`."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return _TWINS.get(found, found) if callable(found) else found


def _set_twins() -> None:
    """Give PlainDual its operators, and functions their twins."""
    for operation, rule in _OPERATORS.items():
        twin, name = _twin(operation, rule), operation.__name__.strip("_")
        setattr(PlainDual, f"__{name}__", twin)
        if rule in (_add, _subtract, _multiply, _divide, _power):
            setattr(PlainDual, f"__r{name}__", lambda a, b, twin=twin: twin(b, a))
    _TWINS.update({function: _twin(function, rule) for rule, functions in _FUNCTIONS for function in functions})
    _TWINS[float] = _twin(float, _same)


def for_plain_duals(names: dict[str, Any]) -> dict[str, Any]:
    """Global names of a function such that it works on `PlainDual`."""
    found = {
        name: _Twins(known) if known in (math, np) else _TWINS.get(known, known) if callable(known) else known
        for name, known in names.items()
    }
    return {"float": _TWINS[float], **found}


_set_twins() if config.DISABLE_JIT else _register()
