"""Vectors of float32 inside Numba kernels, as portable LLVM vector code.

Numba leaves the loop over factors scalar, since it cannot prove that tables and sums do not overlap. These operations
emit LLVM `<lanes x float>` instructions instead, which LLVM lowers to AVX-512, AVX2, SSE2 or NEON, whatever `lanes` is.

A kernel reads like its formula: `fma(gradient, gradient, accumulator)`, `weights - rate * slope`; each name works on
float32 scalars too. Memory is an array or its `address`; it is accessed by the flat offset of an element, unchecked.
`lanes` is a compile-time constant. Every operation is IEEE exact and reductions add in a fixed order: results are the
same bytes on every machine with fused multiply-add instructions (x86 since 2013, every 64-bit ARM). Where there are
none, `fma` rounds twice.

With NUMBA_DISABLE_JIT=1 the same names are plain NumPy functions (`TWINS`), and a vector is a float32[lanes] array.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import config, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model
from numpy.typing import NDArray

_FLOAT, _INT, _LONG, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
_GUESS = 0x5F3759DF
_ALIGNMENT = 4


class Vector(types.Type):
    """Numba type of a vector of `lanes` float32."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"float32x{lanes}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Vector) -> None:
        super().__init__(manager, numba_type, ir.VectorType(_FLOAT, numba_type.lanes))


# What LLVM gets.


def _element(context: Any, builder: Any, memory_type: Any, memory: Any, offset: Any) -> Any:
    """Pointer to the element at a flat offset of an array or of what `address` gave."""
    if isinstance(memory_type, types.Array):
        memory = context.make_array(memory_type)(context, builder, memory).data
    return builder.gep(memory, [offset])


def _broadcast(builder: Any, scalar: Any, lanes: int) -> Any:
    empty = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes))


def _result_type(*operands: Any) -> Any:
    """A vector if any operand is one, else float32; None where the operation is not ours."""
    vectors = {operand for operand in operands if isinstance(operand, Vector)}
    if len(vectors) > 1 or not all(isinstance(operand, (Vector, types.Float)) for operand in operands):
        return None
    return vectors.pop() if vectors else types.float32


def _unify(context: Any, builder: Any, target: Any, operand_types: Any, values: Any) -> list[Any]:
    """The operands as LLVM values of one type: scalars become float32, then vectors if the target is one."""
    unified = []
    for operand, value in zip(operand_types, values, strict=True):
        if not isinstance(operand, Vector):
            value = context.cast(builder, value, operand, types.float32)
            if isinstance(target, Vector):
                value = _broadcast(builder, value, target.lanes)
        unified.append(value)
    return unified


def _elementwise(name: str, n_operands: int, emit: Callable[..., Any]) -> Any:
    """An intrinsic of `n_operands` vectors or float32 scalars, `emit(builder, *values)` gives its LLVM value."""

    def build(_typing_context: Any, *operands: Any) -> Any:
        target = _result_type(*operands)
        if target is None:
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, *_unify(context, builder, target, sig.args, args))

        return target(*operands), codegen

    # Numba reads the arity from the signature of the decorated function.
    arguments = ", ".join("abc"[:n_operands])
    namespace: dict[str, Any] = {"build": build}
    exec(f"def {name}(typing_context, {arguments}): return build(typing_context, {arguments})", namespace)
    return intrinsic(namespace[name])


def _call_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # fmuladd, not fma: without FMA instructions the latter becomes one library call per lane.
    suffix = f"v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "f32"
    function_type = ir.FunctionType(a.type, [a.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fmuladd.{suffix}")
    return builder.call(function, [a, b, c])


def _call_sqrt(builder: Any, a: Any) -> Any:
    suffix = f"v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type]), f"llvm.sqrt.{suffix}")
    return builder.call(function, [a])


def _guess_bits(builder: Any, a: Any) -> Any:
    is_vector = isinstance(a.type, ir.VectorType)
    bits = ir.VectorType(_INT, a.type.count) if is_vector else _INT

    def constant(value: int) -> Any:
        return ir.Constant(bits, [value] * a.type.count if is_vector else value)

    half = builder.lshr(builder.bitcast(a, bits), constant(1))
    return builder.bitcast(builder.sub(constant(_GUESS), half), a.type)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _tree_sum(builder: Any, vector: Any) -> Any:
    """Sum of the lanes: blocks of the largest power of two that divides `lanes` in order, then halves onto halves."""
    lanes = vector.type.count
    width = lanes & -lanes
    parts = [_slice(builder, vector, start, width) for start in range(0, lanes, width)]
    total = parts[0]
    for part in parts[1:]:
        total = builder.fadd(total, part)
    while width > 1:
        width //= 2
        total = builder.fadd(_slice(builder, total, 0, width), _slice(builder, total, width, width))
    return builder.extract_element(total, ir.Constant(_INT, 0))


def _slice(builder: Any, vector: Any, start: int, length: int) -> Any:
    return _pick(builder, vector, vector, list(range(start, start + length)))


def _pick(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    """A vector of these lanes of two vectors end to end."""
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


# The operations, as kernels see them.


@intrinsic
def _address(_typing_context, array):  # type: ignore[no-untyped-def]
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.make_array(sig.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic(prefer_literal=True)
def _load(_typing_context, array, offset, lanes):  # type: ignore[no-untyped-def]
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    vector = Vector(lanes.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _element(context, builder, sig.args[0], args[0], args[1])
        target = ir.VectorType(_FLOAT, vector.lanes).as_pointer()
        return builder.load(builder.bitcast(pointer, target), align=_ALIGNMENT)

    return vector(array, types.intp, lanes), codegen


@intrinsic
def _store(_typing_context, array, offset, vector):  # type: ignore[no-untyped-def]
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _element(context, builder, sig.args[0], args[0], args[1])
        builder.store(args[2], builder.bitcast(pointer, args[2].type.as_pointer()), align=_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def _read(_typing_context, array, offset):  # type: ignore[no-untyped-def]
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_element(context, builder, sig.args[0], args[0], args[1]))

    return array.dtype(array, types.intp), codegen


@intrinsic
def _write(_typing_context, array, offset, value):  # type: ignore[no-untyped-def]
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _element(context, builder, sig.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), codegen


@intrinsic(prefer_literal=True)
def _splat(_typing_context, value, lanes):  # type: ignore[no-untyped-def]
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    vector = Vector(lanes.literal_value)

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _broadcast(builder, args[0], vector.lanes)

    return vector(types.float32, lanes), codegen


@intrinsic(prefer_literal=True)
def _every(_typing_context, vector, start, step):  # type: ignore[no-untyped-def]
    if not isinstance(start, types.IntegerLiteral) or not isinstance(step, types.IntegerLiteral):
        return None
    picked = list(range(start.literal_value, vector.lanes, step.literal_value))

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _pick(builder, args[0], args[0], picked)

    return Vector(len(picked))(vector, start, step), codegen


@intrinsic(prefer_literal=True)
def _interleave(_typing_context, first, second, third, width):  # type: ignore[no-untyped-def]
    if not isinstance(width, types.IntegerLiteral) or not 1 <= width.literal_value <= 3:
        return None
    lanes, count = first.lanes, width.literal_value

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        one_and_two = _pick(builder, args[0], args[1], list(range(2 * lanes)))
        three = _pick(builder, args[2], args[2], list(range(2 * lanes)))
        order = [column * lanes + lane for lane in range(lanes) for column in range(count)]
        return _pick(builder, one_and_two, three, order)

    return Vector(lanes * count)(first, second, third, width), codegen


@intrinsic
def _reduce_add(_typing_context, vector):  # type: ignore[no-untyped-def]
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _tree_sum(builder, args[0])

    return types.float32(vector), codegen


@intrinsic
def _map_lanes(typing_context, function, vector, count):  # type: ignore[no-untyped-def]
    of_one = function.get_call_type(typing_context, (types.float32,), {})

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        implementation = context.get_function(function, of_one)
        for library in getattr(implementation, "libs", ()):
            context.active_code_library.add_linking_library(library)
        lanes = args[1].type.count
        memory = cgutils.alloca_once(builder, ir.ArrayType(_FLOAT, 2 * lanes))
        first = builder.gep(memory, [ir.Constant(_LONG, 0), ir.Constant(_LONG, 0)])
        second = builder.gep(first, [ir.Constant(_LONG, lanes)])
        builder.store(args[1], builder.bitcast(first, args[1].type.as_pointer()), align=_ALIGNMENT)
        zeros = ir.Constant(args[1].type, [0.0] * lanes)
        builder.store(zeros, builder.bitcast(second, args[1].type.as_pointer()), align=_ALIGNMENT)
        most = ir.Constant(args[2].type, lanes)
        wanted = builder.select(builder.icmp_signed("<", args[2], most), args[2], most)
        with cgutils.for_range(builder, wanted) as loop:
            mapped = implementation(builder, [builder.load(builder.gep(first, [loop.index]))])
            builder.store(mapped, builder.gep(second, [loop.index]))
        return builder.load(builder.bitcast(second, args[1].type.as_pointer()), align=_ALIGNMENT)

    return vector(function, vector, types.intp), codegen


@intrinsic
def _prefetch(_typing_context, array, offset):  # type: ignore[no-untyped-def]
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _element(context, builder, sig.args[0], args[0], args[1])
        address = builder.bitcast(pointer, _BYTE.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep_near, data = (ir.Constant(_INT, number) for number in (0, 3, 1))
        builder.call(function, [address, read, keep_near, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


def _define_operator(function: Any, instruction: str) -> None:
    """Let an operator take vectors, or a vector and a scalar of any float type (rounded to float32 first)."""

    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args: Any, _keywords: Any) -> Any:
            target = _result_type(*args)
            return signature(target, *args) if isinstance(target, Vector) else None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*_unify(context, builder, sig.return_type, sig.args, args))

    for operands in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector), (Vector,)):
        lower_builtin(function, *operands)(lower)


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")
_define_operator(operator.truediv, "fdiv")
_define_operator(operator.neg, "fneg")

INTRINSICS: dict[str, Any] = {
    "address": _address,
    "load": _load,
    "store": _store,
    "read": _read,
    "write": _write,
    "splat": _splat,
    "fma": _elementwise("fma", 3, _call_fma),
    "sqrt": _elementwise("sqrt", 1, _call_sqrt),
    "minimum": _elementwise("minimum", 2, _smaller),
    "maximum": _elementwise("maximum", 2, _larger),
    "rsqrt_guess": _elementwise("rsqrt_guess", 1, _guess_bits),
    "every": _every,
    "interleave": _interleave,
    "reduce_add": _reduce_add,
    "map_lanes": _map_lanes,
    "prefetch": _prefetch,
}


# The twins: the same operations in NumPy.

Floats = NDArray[np.float32] | np.float32


def _address_twin(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _load_twin(array: NDArray[np.float32], offset: int, lanes: int) -> NDArray[np.float32]:
    return array.reshape(-1)[offset : offset + lanes].copy()


def _store_twin(array: NDArray[np.float32], offset: int, vector: NDArray[np.float32]) -> None:
    array.reshape(-1)[offset : offset + vector.size] = vector


def _read_twin(array: NDArray[Any], offset: int) -> Any:
    return array.reshape(-1)[offset]


def _write_twin(array: NDArray[Any], offset: int, value: Any) -> None:
    array.reshape(-1)[offset] = value


def _splat_twin(value: Any, lanes: int) -> NDArray[np.float32]:
    return np.full(lanes, value, np.float32)


def _fma_twin(a: Floats, b: Floats, c: Floats) -> Any:
    """a * b + c rounded once: in float64, rounded to odd there, so that the second rounding cannot go astray."""
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = np.atleast_1d(product + addend)
    shifted = total - product
    lost = (product - (total - shifted)) + (addend - shifted)
    is_even = (total.view(np.int64) & 1) == 0
    nudged = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    exact = np.where((lost != 0) & is_even, nudged, total).astype(np.float32)
    return exact if np.ndim(product + addend) else np.float32(exact[0])


def _sqrt_twin(a: Floats) -> Any:
    return np.sqrt(a)


def _minimum_twin(a: Floats, b: Floats) -> Any:
    return np.where(np.less(a, b), a, b).astype(np.float32)[()]


def _maximum_twin(a: Floats, b: Floats) -> Any:
    return np.where(np.greater(a, b), a, b).astype(np.float32)[()]


def _rsqrt_guess_twin(a: Floats) -> Any:
    return (np.uint32(_GUESS) - (np.asarray(a).view(np.uint32) >> np.uint32(1))).view(np.float32)[()]


def _every_twin(vector: NDArray[np.float32], start: int, step: int) -> NDArray[np.float32]:
    return vector[start::step]


def _interleave_twin(*arguments: Any) -> NDArray[np.float32]:
    return np.stack(arguments[: arguments[3]], axis=1).reshape(-1)


def _reduce_add_twin(vector: NDArray[np.float32]) -> np.float32:
    width = vector.size & -vector.size
    parts = vector.reshape(-1, width)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    while width > 1:
        width //= 2
        total = total[:width] + total[width:]
    return total[0]


def _map_lanes_twin(function: Any, vector: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    mapped = np.zeros_like(vector)
    for lane in range(min(count, vector.size)):
        mapped[lane] = function(vector[lane])
    return mapped


def _prefetch_twin(_array: NDArray[Any], _offset: int) -> None:
    return None


TWINS: dict[str, Any] = {
    "address": _address_twin,
    "load": _load_twin,
    "store": _store_twin,
    "read": _read_twin,
    "write": _write_twin,
    "splat": _splat_twin,
    "fma": _fma_twin,
    "sqrt": _sqrt_twin,
    "minimum": _minimum_twin,
    "maximum": _maximum_twin,
    "rsqrt_guess": _rsqrt_guess_twin,
    "every": _every_twin,
    "interleave": _interleave_twin,
    "reduce_add": _reduce_add_twin,
    "map_lanes": _map_lanes_twin,
    "prefetch": _prefetch_twin,
}

_operations = TWINS if config.DISABLE_JIT else INTRINSICS
address: Any = _operations["address"]
"""address(array): its memory, as the other operations take it. Unlike an array it is not reference-counted.

Numba counts references of arrays with locked instructions wherever one is passed on, which in a loop over rows costs as
much as the arithmetic. Whoever takes an address keeps the array alive.
"""
load: Any = _operations["load"]
"""load(array, offset, lanes): vector of the `lanes` elements from a flat offset on."""
store: Any = _operations["store"]
"""store(array, offset, vector): the opposite, in place."""
read: Any = _operations["read"]
"""read(array, offset): one element, of any dtype, without a bounds check."""
write: Any = _operations["write"]
"""write(array, offset, value): one element, in place."""
splat: Any = _operations["splat"]
"""splat(value, lanes): a vector of equal lanes."""
fma: Any = _operations["fma"]
"""fma(a, b, c): a * b + c, rounded once."""
sqrt: Any = _operations["sqrt"]
minimum: Any = _operations["minimum"]
maximum: Any = _operations["maximum"]
rsqrt_guess: Any = _operations["rsqrt_guess"]
"""rsqrt_guess(x): 1 / sqrt(x) within 3.5 %, by halving the exponent bits; the same bits on every machine."""
every: Any = _operations["every"]
"""every(vector, start, step): the lanes start, start + step, ..."""
interleave: Any = _operations["interleave"]
"""interleave(a, b, c, width): a0, b0, c0, a1, ... of the first `width` of three vectors."""
reduce_add: Any = _operations["reduce_add"]
"""reduce_add(vector): sum of the lanes along a fixed tree."""
map_lanes: Any = _operations["map_lanes"]
"""map_lanes(function, vector, count): a compiled function of one float32 on each of the first `count` lanes, else 0."""
prefetch: Any = _operations["prefetch"]
"""prefetch(array, offset): ask for that cache line; changes nothing and never faults."""
