"""The factorization machine (Rendle 2010); without factors it is a linear model.

score = w0 + Σ_j w_j x_j + Σ_{i<j} <V_i, V_j> x_i x_j
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfm.kernels.blocks import LABELS, RANDOM, Block
from dfm.kernels.families.family import Family, OnnxPart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfm.kernels.cpu.shape import Shape
    from dfm.kernels.tables import Layout


def blocks(n_factors: int) -> tuple[Block, ...]:
    """Bias, linear weights and factors: what every family begins with."""
    return (
        Block("bias", "model", column="w", start=LABELS, is_linear=True),
        Block("linear", "feature", column="w", penalty="l2_linear", is_linear=True),
        Block(
            "factors",
            "frequent feature",
            n_factors,
            column="V",
            rate="factor_learning_rate",
            penalty="l2_factors",
            start=RANDOM,
        ),
    )


def _pairs(shape: Shape) -> Any:
    """pairs(rows, table, scratch, n_owners): ½ Σ_f ((Σ_j v_jf x_j)² − Σ_j v_jf² x_j²) (Rendle 2010, lemma 3.1).

    Leaves Σ_j V_j x_j in scratch.sums.
    """
    if shape.paired:
        return _difference(shape)
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, load, read, reduce_add, splat, store

    implicit, vector, lanes = shape.implicit, shape.vector, shape.lanes

    @inlined
    def factors_of(table, scratch, owner, column):  # type: ignore[no-untyped-def]
        factors = load(table.factors, read(scratch.owners, owner) * table.factor_width + column, vector)
        return factors if implicit else factors * read(scratch.owner_values, owner)

    @inlined
    def pairs(_rows, table, scratch, n_owners):  # type: ignore[no-untyped-def]
        total = np.float32(0)
        for column in range(0, lanes, vector):
            sums = splat(np.float32(0), vector)
            squares = splat(np.float32(0), vector)
            more_sums, more_squares = sums, squares
            for pair in range(n_owners // 2):
                first = factors_of(table, scratch, 2 * pair, column)
                second = factors_of(table, scratch, 2 * pair + 1, column)
                sums, squares = sums + first, fma(first, first, squares)
                more_sums, more_squares = more_sums + second, fma(second, second, more_squares)
            if n_owners % 2:
                last = factors_of(table, scratch, n_owners - 1, column)
                sums, squares = sums + last, fma(last, last, squares)
            sums, squares = sums + more_sums, squares + more_squares
            store(scratch.sums, column, sums)
            total += reduce_add(fma(sums, sums, -squares))
        return np.float32(0.5) * total

    return pairs


def _difference(shape: Shape) -> Any:
    """The same of the first row of a pair less that of the second: ½ Σ_f ((S − T)(S + T) − Σ_j v_jf² (x_j − z_j)(x_j +
    z_j)) with S = Σ_j V_j x_j and T = Σ_j V_j z_j, which it leaves in scratch.sums, S first.
    """
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, load, read, reduce_add, splat, store

    vector, lanes = shape.vector, shape.lanes

    @inlined
    def difference(_rows, table, scratch, n_owners):  # type: ignore[no-untyped-def]
        total = np.float32(0)
        for column in range(0, lanes, vector):
            sums = splat(np.float32(0), vector)
            others, squares = sums, sums
            for owner in range(n_owners):
                factors = load(table.factors, read(scratch.owners, owner) * table.factor_width + column, vector)
                value, other = read(scratch.owner_values, owner), read(scratch.spare_values, owner)
                sums, others = fma(factors, splat(value, vector), sums), fma(factors, splat(other, vector), others)
                squares = fma(factors * factors, splat((value - other) * (value + other), vector), squares)
            store(scratch.sums, column, sums)
            store(scratch.sums, lanes + column, others)
            total += reduce_add(fma(sums - others, sums + others, -squares))
        return np.float32(0.5) * total

    return difference


def _gradient(shape: Shape, penalty_slope: Any) -> Any:
    """of_group and gradient, see `Family`, of one vector of V_j; the owners of a row share Σ.

    It is slope x_j (Σ − V_j x_j) + l2 V_j, taken as V_j (l2 − slope x_j²) + slope x_j Σ. x_j is spread over a vector
    first, so that explicit values take no scalar arithmetic.
    """
    if shape.paired:
        return _gradient_of_difference(shape, penalty_slope)
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, load, read, splat

    implicit, vector = shape.implicit, shape.vector
    of_group = inlined(lambda _rates, scratch, _group, _row_step, column: load(scratch.sums, column, vector))
    if penalty_slope is not None:
        return of_group, _penalised_gradient(shape, penalty_slope)

    @inlined
    def gradient(rates, scratch, owner, row_step, factors, _column, sums):  # type: ignore[no-untyped-def]
        _start, _n_entries, sample_weight, slope = row_step
        penalty = sample_weight * rates.l2_factors
        if implicit:
            return fma(factors, penalty - slope, sums * slope)
        values = splat(read(scratch.owner_values, owner), vector)
        slope_x = values * slope
        return fma(factors, fma(-slope_x, values, penalty), sums * slope_x)

    return of_group, gradient


def _penalised_gradient(shape: Shape, penalty_slope: Any) -> Any:
    """The gradient with a user's penalty in place of l2 V_j; padding stays without."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, read, splat

    implicit, vector, n_factors = shape.implicit, shape.vector, shape.n_factors

    @inlined
    def gradient(rates, scratch, owner, row_step, factors, column, sums):  # type: ignore[no-untyped-def]
        _start, _n_entries, sample_weight, slope = row_step
        penalty = penalty_slope(factors, n_factors - column)
        if implicit:
            of_loss = fma(factors, -slope, sums * slope)
        else:
            values = splat(read(scratch.owner_values, owner), vector)
            slope_x = values * slope
            of_loss = fma(factors, -slope_x * values, sums * slope_x)
        return fma(penalty, sample_weight * rates.l2_factors, of_loss)

    return gradient


def _gradient_of_difference(shape: Shape, penalty_slope: Any) -> Any:
    """of_group and gradient, see `Family`, of a pair: slope (x_j S − z_j T − V_j (x_j − z_j)(x_j + z_j)) + l2 V_j."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, load, read, splat

    vector, lanes, n_factors = shape.vector, shape.lanes, shape.n_factors
    of_penalty = penalty_slope or inlined(lambda factors, _count: factors)

    @inlined
    def of_group(_rates, scratch, _group, _row_step, column):  # type: ignore[no-untyped-def]
        return load(scratch.sums, column, vector), load(scratch.sums, lanes + column, vector)

    @inlined
    def gradient(rates, scratch, owner, row_step, factors, column, both):  # type: ignore[no-untyped-def]
        _start, _n_entries, sample_weight, slope = row_step
        value, other = read(scratch.owner_values, owner), read(scratch.spare_values, owner)
        own = splat(-slope * (value - other) * (value + other), vector)
        of_loss = fma(factors, own, both[0] * (slope * value) - both[1] * (slope * other))
        return fma(of_penalty(factors, n_factors - column), splat(sample_weight * rates.l2_factors, vector), of_loss)

    return of_group, gradient


def sums(_capacity: int, layout: Layout) -> NDArray[np.float32]:
    """Σ_j V_j x_j, and room for that of the second row of a pair."""
    from dfm.kernels.tables import aligned_zeros

    return aligned_zeros((2 * layout.lanes,))


def _onnx(_values: dict[str, NDArray[np.float32]], _fields: NDArray[np.uint16], _layout: Layout) -> OnnxPart:
    """½ Σ_f ((Σ_j v_jf x_j)² − Σ_j v_jf² x_j²)."""
    import numpy as np

    constants = {"half": np.array(0.5, np.float32), "factors": np.array([1], np.int64)}
    return constants, [
        ("ReduceSum", ["scaled", "entries"], "factor_sums"),
        ("Mul", ["factor_sums", "factor_sums"], "squared_sums"),
        ("Mul", ["scaled", "merged"], "squares"),
        ("ReduceSum", ["squares", "entries"], "sums_of_squares"),
        ("Sub", ["squared_sums", "sums_of_squares"], "pairs"),
        ("ReduceSum", ["pairs", "factors"], "pair_sum"),
        ("Mul", ["pair_sum", "half"], "factor_part"),
    ]


def sides(
    vectors: NDArray[np.float64], _places: NDArray[np.int64], _n_places: int, _own: dict[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """V and V."""
    return vectors, vectors


_CUDA = """
struct FactorSums {
    float4 columns[STEPS > 0 ? STEPS : 1];  // Σ_j V_j x_j
};

__device__ inline void begin_row(FactorSums &sums) {
    for (int step = 0; step < STEPS; step++) sums.columns[step] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

__device__ inline float take_entry(FactorSums &sums, int step, float4 part) {
    sums.columns[step] = plus(sums.columns[step], part);
    return -dot(part);
}

__device__ inline float finish_row(FactorSums &sums, float pairs, int lane) {
    for (int step = 0; step < STEPS; step++) {
        float4 &column = sums.columns[step];
        column.x = sum_lanes(column.x, GROUP_LANES, 32);
        column.y = sum_lanes(column.y, GROUP_LANES, 32);
        column.z = sum_lanes(column.z, GROUP_LANES, 32);
        column.w = sum_lanes(column.w, GROUP_LANES, 32);
        if (lane < GROUP_LANES) pairs += dot(column);
    }
    return pairs;
}

// slope x_j (Σ − V_j x_j) + l2 V_j, taken as V_j (l2 − slope x_j²) + slope x_j Σ.
__device__ inline float4 factor_gradient(const FactorSums &sums, int step, float4 factors, float own, float slope_x) {
    return fused(factors, own, times(sums.columns[step], slope_x));
}

"""

FAMILY = Family(
    name="fm",
    summary="factorization machine, or a linear model without factors",
    blocks=blocks,
    pairs=_pairs,
    gradient=_gradient,
    sums=sums,
    onnx=_onnx,
    sides=sides,
    texts=("xlearn", "libfm"),
    knows_pairs=True,
    is_default=True,
    cuda=_CUDA,
)
