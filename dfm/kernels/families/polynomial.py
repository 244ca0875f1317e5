"""The polynomial network in its lifted form (Blondel et al. 2016): products of linear functions.

    score = w0 + Σ_j w_j x_j + Σ_f Π_{t=1…order} <u^t_f, x>

A feature meets itself too. There is no constant in the products: where each row has one entry of some field, as logs of
categories do, the weights of that field hold it; numeric rows may have a column of ones.
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

_LONGEST_PIECE = 64
"""Products that are held in registers at a time."""


def _make_products(shape: Shape) -> Any:
    """products(sums): Σ_f Π_t S_tf of the sums S_t = Σ_j u^t_j x_j, which become Π_{s≠t} S_s, in place.

    Products of the sums before each, from the front and from the back: nothing is divided.
    """
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import load, reduce_add, splat, store

    order, lanes = shape.order, shape.lanes
    k = shape.n_factors // order
    piece = max(size for size in range(1, _LONGEST_PIECE + 1) if k % size == 0)

    @inlined
    def products(sums):  # type: ignore[no-untyped-def]
        total = splat(np.float32(0), piece)
        for first in range(0, k, piece):
            product = splat(np.float32(1), piece)
            for t in range(order):
                store(sums, lanes + t * k + first, product)
                product = product * load(sums, t * k + first, piece)
            total = total + product
            behind = splat(np.float32(1), piece)
            for back in range(order):
                at = (order - 1 - back) * k + first
                own = load(sums, at, piece)
                store(sums, at, load(sums, lanes + at, piece) * behind)
                behind = behind * own
        return reduce_add(total)

    return products


def _pairs(shape: Shape) -> Any:
    """pairs(rows, table, scratch, n_owners): Σ_f Π_t <u^t_f, x>. Leaves the products without each t in scratch.sums."""
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import load, read, splat, store

    implicit, vector, lanes, products = shape.implicit, shape.vector, shape.lanes, _make_products(shape)

    @inlined
    def pairs(_rows, table, scratch, n_owners):  # type: ignore[no-untyped-def]
        for column in range(0, lanes, vector):
            sums = splat(np.float32(0), vector)
            for owner in range(n_owners):
                factors = load(table.factors, read(scratch.owners, owner) * table.factor_width + column, vector)
                sums = sums + (factors if implicit else factors * read(scratch.owner_values, owner))
            store(scratch.sums, column, sums)
        return products(scratch.sums)

    return pairs


def _gradient(shape: Shape, penalty_slope: Any) -> Any:
    """of_group and gradient, see `Family`: slope x_j Π_{s≠t} S_s + l2 u^t_j; the owners of a row share the products."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, load, read, splat

    implicit, vector, n_factors = shape.implicit, shape.vector, shape.n_factors
    slope_of = penalty_slope or inlined(lambda factors, _count: factors)
    of_group = inlined(
        lambda _rates, scratch, _group, row_step, column: load(scratch.sums, column, vector) * row_step[3]
    )

    @inlined
    def gradient(rates, scratch, owner, row_step, factors, column, products):  # type: ignore[no-untyped-def]
        of_loss = products if implicit else products * splat(read(scratch.owner_values, owner), vector)
        return fma(slope_of(factors, n_factors - column), row_step[2] * rates.l2_factors, of_loss)

    return of_group, gradient


def _sums(_capacity: int, layout: Layout) -> NDArray[np.float32]:
    """Sums or products of all vectors, then products of those before each."""
    from dfm.kernels.tables import aligned_zeros

    return aligned_zeros((2 * layout.lanes,))


def _onnx(_values: dict[str, NDArray[np.float32]], _fields: NDArray[np.uint16], layout: Layout) -> OnnxPart:
    """Σ_f Π_t of the sums of scaled vectors."""
    import numpy as np

    k, constants = layout.n_factors, dict[str, Any](last_axis=np.array([1], np.int64))
    steps: list[OnnxStep] = [("ReduceSum", ["scaled", "entries"], "all_sums")]
    for t in range(layout.order):
        constants[f"of_vector_{t}"] = np.eye(layout.row_factors, dtype=np.float32)[:, t * k : (t + 1) * k]
        steps.append(("MatMul", ["all_sums", f"of_vector_{t}"], f"sums_{t}"))
        if t:
            before = "sums_0" if t == 1 else f"product_{t - 1}"
            steps.append(("Mul", [before, f"sums_{t}"], f"product_{t}"))
    return constants, [*steps, ("ReduceSum", [f"product_{layout.order - 1}", "last_axis"], "factor_part")]


FAMILY = Family(
    name="polynomial",
    summary="a polynomial network, products of linear functions (order of them)",
    blocks=fm.blocks,
    pairs=_pairs,
    gradient=_gradient,
    sums=_sums,
    onnx=_onnx,
    orders=(2, 3, 4, 5),
    degrees=lambda order: (order,) * order,
    is_pairwise=False,
)
