"""The higher-order factorization machine (Blondel et al. 2016): vectors of their own for pairs, triples, … of features.

    score = w0 + Σ_j w_j x_j + Σ_{t=2…order} Σ_f A^t(p^t_f, x)        A^t(p, x) = Σ_{i<j<…} p_i x_i p_j x_j … (t of it)

The ANOVA kernel A^t is made entry by entry (their equation 8), in O(n t): a_s ← a_s + p_j x_j a_{s-1} with a_0 = 1, so
that a_t becomes A^t. Vectors of all orders are walked together: those of order t begin `order - t` steps further on,
with a_{order-t} = 1 and 0 below, and are at A^t in a_order as well. Their part of the score is then the sum of a_order.

What entry j meets is the kernel of order t - 1 without it, A^{t-1}_{¬j}. Where all x are 1 that is taken as
Σ_m (−p_j)^m A^{t-1-m}, a polynomial in its own number, whose coefficients are a_0 … a_{order-1}, shared by the row. It
subtracts, and an entry that is q times the others together has an error of q^{t-1} roundings: with x of any size, what
comes before an entry and what comes behind it are multiplied instead, which only adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfm.kernels.families import fm
from dfm.kernels.families.family import Family, OnnxPart, OnnxStep

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfm.kernels.cpu.shape import Shape
    from dfm.kernels.tables import Layout

_WIDEST = 16
"""Lanes whose a_0 … a_order are in registers at a time."""


def _degrees(order: int) -> tuple[int, ...]:
    """Vectors for pairs, triples and so on."""
    return tuple(range(2, order + 1))


def _make_read(n: int, step: int, lanes: int) -> Any:
    """read_all(array, at): n vectors of `lanes`, each `step` behind the one before, as a tuple."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import load

    if n == 0:
        return inlined(lambda _array, _at: ())
    before, last = _make_read(n - 1, step, lanes), (n - 1) * step

    @inlined
    def read_all(array, at):  # type: ignore[no-untyped-def]
        return before(array, at) + (load(array, at + last, lanes),)  # noqa: RUF005  Numba unpacks no tuples here

    return read_all


def _make_write(n: int, step: int) -> Any:
    """write_all(array, at, vectors): the first n of a tuple, each `step` behind the one before, in place."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import store

    if n == 0:
        return inlined(lambda _array, _at, _vectors: None)
    before, last = _make_write(n - 1, step), n - 1

    @inlined
    def write_all(array, at, vectors):  # type: ignore[no-untyped-def]
        before(array, at, vectors)
        store(array, at + last * step, vectors[last])

    return write_all


def _make_take(s: int) -> Any:
    """take(a, p): a_0 … a_s after one more entry of p = p_j x_j, from those before it."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma

    if s == 0:
        return inlined(lambda a, _p: (a[0],))
    before = _make_take(s - 1)

    @inlined
    def take(a, p):  # type: ignore[no-untyped-def]
        return before(a, p) + (fma(p, a[s - 1], a[s]),)  # noqa: RUF005  Numba unpacks no tuples here

    return take


def _make_polynomial(n: int) -> Any:
    """polynomial(coefficients, p): c_0 p^n + … + c_n (Horner)."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma

    if n == 0:
        return inlined(lambda coefficients, _p: coefficients[0])
    before = _make_polynomial(n - 1)
    return inlined(lambda coefficients, p: fma(p, before(coefficients, p), coefficients[n]))


def _make_signed(n: int, order: int) -> Any:
    """signed(a, slope, penalty): the coefficients of the gradient, in p, of the first n of a_0 … a_{order-1}."""
    from dfm.kernels.cpu.step_passes import inlined

    if n == 0:
        return inlined(lambda _a, _slope, _penalty: ())
    before, last = _make_signed(n - 1, order), n - 1
    is_odd, is_own = (order - n) % 2 == 1, last == order - 2

    @inlined
    def signed(a, slope, penalty):  # type: ignore[no-untyped-def]
        coefficient = a[last] * (-slope if is_odd else slope)
        if is_own:
            coefficient = coefficient + penalty
        return before(a, slope, penalty) + (coefficient,)  # noqa: RUF005  Numba unpacks no tuples here

    return signed


def _make_unit(n: int, lanes: int) -> Any:
    """unit(): a_0 … a_{n-1} of no entry, 1 and zeros."""
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import splat

    if n == 0:
        return inlined(lambda: ())
    before, last = _make_unit(n - 1, lanes), np.float32(n == 1)
    return inlined(lambda: before() + (splat(last, lanes),))  # noqa: RUF005  Numba unpacks no tuples here


def _make_meeting(n: int, order: int) -> Any:
    """meeting(before, behind): Σ_s before_s behind_{order-1-s} over the first n."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma

    last = n - 1
    if n == 1:
        return inlined(lambda before, behind: before[0] * behind[order - 1])
    rest = _make_meeting(n - 1, order)
    return inlined(lambda before, behind: fma(before[last], behind[order - 1 - last], rest(before, behind)))


def _make_entry(shape: Shape, width: int) -> Any:
    """entry(table, scratch, owner, column): p_j x_j of some lanes."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import load, read

    implicit = shape.implicit

    @inlined
    def entry(table, scratch, owner, column):  # type: ignore[no-untyped-def]
        factors = load(table.factors, read(scratch.owners, owner) * table.factor_width + column, width)
        return factors if implicit else factors * read(scratch.owner_values, owner)

    return entry


def _make_met(shape: Shape, width: int) -> Any:
    """met(table, scratch, n_owners, column): leaves A^{t-1}_{¬j} of every owner in scratch.sums, where the a before it
    are; from the last to the first, with the a of those behind.
    """
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import store

    lanes, order = shape.lanes, shape.order
    before, meeting = _make_read(order, width, width), _make_meeting(order, order)
    unit, take, entry = _make_unit(order, width), _make_take(order - 1), _make_entry(shape, width)
    first = 2 * order * lanes

    @inlined
    def met(table, scratch, n_owners, column):  # type: ignore[no-untyped-def]
        behind, kept = unit(), first + n_owners * lanes
        for back in range(n_owners):
            owner = n_owners - 1 - back
            others = meeting(before(scratch.sums, kept + owner * (order * width)), behind)
            store(scratch.sums, first + owner * lanes + column, others)
            behind = take(behind, entry(table, scratch, owner, column))

    return met


def _pairs(shape: Shape) -> Any:
    """pairs(rows, table, scratch, n_owners): Σ_t Σ_f A^t. Leaves in scratch.sums what gradients are made of."""
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import reduce_add, splat

    lanes, order, width = shape.lanes, shape.order, min(shape.lanes, _WIDEST)
    begin, keep, take = _make_read(order, lanes, width), _make_write(order, lanes), _make_take(order)
    entry, met, keep_before = _make_entry(shape, width), _make_met(shape, width), _make_write(order, width)
    wants_each, first = not (shape.implicit or shape.only_scores), 2 * order * lanes

    @inlined
    def pairs(_rows, table, scratch, n_owners):  # type: ignore[no-untyped-def]
        total = splat(np.float32(0), width)
        for column in range(0, lanes, width):
            a = begin(scratch.sums, column) + (splat(np.float32(0), width),)  # noqa: RUF005  as above
            for owner in range(n_owners):
                if wants_each:
                    keep_before(scratch.sums, first + n_owners * lanes + owner * (order * width), a)
                a = take(a, entry(table, scratch, owner, column))
            if wants_each:
                met(table, scratch, n_owners, column)
            else:
                keep(scratch.sums, order * lanes + column, a)
            total = total + a[order]
        return reduce_add(total)

    return pairs


def _gradient(shape: Shape, penalty_slope: Any) -> Any:
    """of_group and gradient, see `Family`: slope x_j A^{t-1}_{¬j} + l2 p_j."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, load, read

    if shape.implicit:
        return _gradient_of_ones(shape, penalty_slope)
    vector, n_factors, order, lanes = shape.vector, shape.n_factors, shape.order, shape.lanes
    slope_of = penalty_slope or inlined(lambda factors, _count: factors)

    @inlined
    def gradient(rates, scratch, owner, row_step, factors, column, _shared):  # type: ignore[no-untyped-def]
        _start, _n_entries, sample_weight, slope = row_step
        others = load(scratch.sums, (2 * order + owner) * lanes + column, vector)
        of_loss = others * (slope * read(scratch.owner_values, owner))
        return fma(slope_of(factors, n_factors - column), sample_weight * rates.l2_factors, of_loss)

    return inlined(lambda _rates, _scratch, _group, _row_step, _column: None), gradient


def _gradient_of_ones(shape: Shape, penalty_slope: Any) -> Any:
    """`_gradient` of rows whose x are 1: the owners of a row share the coefficients of a polynomial in p_j, among which
    that of p_j itself has l2.
    """
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma

    vector, n_factors, order, lanes = shape.vector, shape.n_factors, shape.order, shape.lanes
    is_plain = penalty_slope is None
    kept, signed = _make_read(order, lanes, vector), _make_signed(order, order)
    polynomial = _make_polynomial(order - 1)

    @inlined
    def of_group(rates, scratch, _group, row_step, column):  # type: ignore[no-untyped-def]
        _start, _n_entries, sample_weight, slope = row_step
        penalty = sample_weight * rates.l2_factors if is_plain else np.float32(0)
        return signed(kept(scratch.sums, order * lanes + column), slope, penalty)

    @inlined
    def gradient(rates, _scratch, _owner, row_step, factors, column, coefficients):  # type: ignore[no-untyped-def]
        of_loss = polynomial(coefficients, factors)
        if is_plain:
            return of_loss
        return fma(penalty_slope(factors, n_factors - column), row_step[2] * rates.l2_factors, of_loss)

    return of_group, gradient


def _sums(capacity: int, layout: Layout) -> NDArray[np.float32]:
    """a_0 … a_{order-1} before the first entry and after the last; A^{t-1}_{¬j} of each owner, and a before it."""
    from dfm.kernels.tables import aligned_zeros

    k, order, lanes = layout.n_factors, layout.order, layout.lanes
    sums = aligned_zeros((2 * order * lanes + capacity * (lanes + order * min(lanes, _WIDEST)),))
    for number, degree in enumerate(layout.degrees):
        start = (order - degree) * lanes + number * k
        sums[start : start + k] = 1.0
    return sums


def _onnx(_values: dict[str, NDArray[np.float32]], _fields: NDArray[np.uint16], layout: Layout) -> OnnxPart:
    """Σ_t Σ_f A^t of power sums (Newton's identities), Σ_i s_i m_i^{t-1} of scaled vectors s and merged ones m.

    In float64, in which what cancels is nothing.
    """
    import numpy as np

    constants: dict[str, Any] = {"last_axis": np.array([1], np.int64), "elementary_0": np.ones(1)}
    steps: list[OnnxStep] = [
        ("Cast", ["scaled"], "wide_scaled"),
        ("Cast", ["merged"], "wide_merged"),
        ("ReduceSum", ["wide_scaled", "entries"], "power_sums_1"),
    ]
    for t in range(2, layout.order + 1):
        before = "wide_scaled" if t == 2 else f"powers_{t - 1}"
        steps.append(("Mul", [before, "wide_merged"], f"powers_{t}"))
        steps.append(("ReduceSum", [f"powers_{t}", "entries"], f"power_sums_{t}"))
    for t in range(1, layout.order + 1):
        steps += _newton(t, constants)
    for degree in layout.degrees:
        constants[f"is_{degree}"] = np.repeat(np.array(layout.degrees) == degree, layout.n_factors).astype(np.float64)
        steps.append(("Mul", [f"elementary_{degree}", f"is_{degree}"], f"own_{degree}"))
    return constants, [
        *steps,
        ("Sum", [f"own_{degree}" for degree in layout.degrees], "wide_factors"),
        ("ReduceSum", ["wide_factors", "last_axis"], "wide_factor_part"),
        ("Cast", ["wide_factor_part"], "factor_part"),
    ]


def _newton(t: int, constants: dict[str, Any]) -> list[OnnxStep]:
    """A^t = 1/t Σ_{i=1…t} (−1)^{i-1} A^{t-i} s_i, of power sums s; its constants are added in place."""
    import numpy as np

    steps: list[OnnxStep] = []
    for i in range(1, t + 1):
        constants[f"share_{t}_{i}"] = np.array((-1.0) ** (i - 1) / t)
        steps.append(("Mul", [f"elementary_{t - i}", f"power_sums_{i}"], f"product_{t}_{i}"))
        steps.append(("Mul", [f"product_{t}_{i}", f"share_{t}_{i}"], f"term_{t}_{i}"))
    return [*steps, ("Sum", [f"term_{t}_{i}" for i in range(1, t + 1)], f"elementary_{t}")]


FAMILY = Family(
    name="hofm",
    summary="one of triples, … too (order), with a vector for each",
    blocks=fm.blocks,
    pairs=_pairs,
    gradient=_gradient,
    sums=_sums,
    onnx=_onnx,
    sides=fm.sides,
    orders=(3, 4, 5),
    degrees=_degrees,
    is_pairwise=False,
)
