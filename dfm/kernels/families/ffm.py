"""The field-aware factorization machine (Juan et al. 2016) with groups of fields: a vector for each group it meets.

    score = w0 + Σ_j w_j x_j + Σ_{i<j} <V_{i,g(j)}, V_{j,g(i)}> x_i x_j

g(j) is the group of feature j's field. With one group it is a factorization machine, with a group for each field that
of the paper, and pairs within a group count too. As sums S_ab = Σ_{i in a} x_i V_{i,b} over groups (the pairs of rows
are then not walked one by one) the last term is

    ½ Σ_ab <S_ab, S_ba> − ½ Σ_i x_i² |V_{i,g(i)}|²
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfm.kernels.families import fm
from dfm.kernels.families.family import Family, OnnxPart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfm.kernels.cpu.shape import Shape
    from dfm.kernels.tables import Layout

_LONGEST_PIECE = 64
"""Numbers of a vector that are held in registers at a time."""


def _size_of_piece(shape: Shape) -> int:
    """Numbers of a group's vector that are taken at a time."""
    n_factors = shape.n_factors // shape.n_groups
    return max(size for size in range(1, _LONGEST_PIECE + 1) if n_factors % size == 0)


def _make_own_square(shape: Shape) -> Any:
    """own_square(table, scratch, group, owner, squares): one piece of squares + x_i² V_{i,group}²."""
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, load, read

    implicit, piece, n_factors = shape.implicit, _size_of_piece(shape), shape.n_factors // shape.n_groups

    @inlined
    def own_square(table, scratch, group, owner, squares):  # type: ignore[no-untyped-def]
        at = read(scratch.owners, owner) * table.factor_width + group * n_factors
        for first in range(0, n_factors, piece):
            own = load(table.factors, at + first, piece)
            if not implicit:
                own = own * read(scratch.owner_values, owner)
            squares = fma(own, own, squares)
        return squares

    return own_square


def _make_sums_of(shape: Shape) -> Any:
    """sums_of(table, scratch, group, column, squares): one vector of Σ_{i in group} x_i V_i, and at column 0 one piece
    of squares + Σ_{i in group} x_i² V_{i,group}², else squares.
    """
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import load, read, splat

    implicit, vector, own_square = shape.implicit, shape.vector, _make_own_square(shape)

    @inlined
    def part_of(table, scratch, owner, column):  # type: ignore[no-untyped-def]
        factors = load(table.factors, read(scratch.owners, owner) * table.factor_width + column, vector)
        return factors if implicit else factors * read(scratch.owner_values, owner)

    @inlined
    def sums_of(table, scratch, group, column, squares):  # type: ignore[no-untyped-def]
        sums = splat(np.float32(0), vector)
        for owner in range(read(scratch.first_owners, group), read(scratch.first_owners, group + 1)):
            sums = sums + part_of(table, scratch, owner, column)
            if column == 0:
                squares = own_square(table, scratch, group, owner, squares)
        return sums, squares

    return sums_of


def _make_turn(shape: Shape) -> Any:
    """turn(sums): one piece of ½ Σ_ab <S_ab, S_ba>, and each pair of S_ab and S_ba changes places, in place."""
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, load, splat, store

    lanes, piece, n_groups = shape.lanes, _size_of_piece(shape), shape.n_groups
    n_factors = shape.n_factors // n_groups

    @inlined
    def turn(sums):  # type: ignore[no-untyped-def]
        of_groups, of_pairs = splat(np.float32(0), piece), splat(np.float32(0), piece)
        for group in range(n_groups):
            for first in range(0, n_factors, piece):
                own = load(sums, group * (lanes + n_factors) + first, piece)
                of_groups = fma(own, own, of_groups)
                for other in range(group):
                    here, there = group * lanes + other * n_factors + first, other * lanes + group * n_factors + first
                    to_other, from_other = load(sums, here, piece), load(sums, there, piece)
                    of_pairs = fma(to_other, from_other, of_pairs)
                    store(sums, here, from_other)
                    store(sums, there, to_other)
        return fma(of_groups, np.float32(0.5), of_pairs)

    return turn


def _pairs(shape: Shape) -> Any:
    """pairs(rows, table, scratch, n_owners): the last term of the score.

    Leaves in scratch.sums, for each group a, the numbers S_ba of all groups b: what a vector of a feature in a meets.
    """
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import reduce_add, splat, store, write

    lanes, vector, piece, n_groups = shape.lanes, shape.vector, _size_of_piece(shape), shape.n_groups
    sums_of, turn = _make_sums_of(shape), _make_turn(shape)

    @inlined
    def pairs(_rows, table, scratch, n_owners):  # type: ignore[no-untyped-def]
        if n_groups == 1:
            write(scratch.first_owners, 1, n_owners)
        squares = splat(np.float32(0), piece)
        for group in range(n_groups):
            for column in range(0, lanes, vector):
                sums, squares = sums_of(table, scratch, group, column, squares)
                store(scratch.sums, group * lanes + column, sums)
        return reduce_add(turn(scratch.sums)) - np.float32(0.5) * reduce_add(squares)

    return pairs


def _gradient(shape: Shape, penalty_slope: Any) -> Any:
    """of_group and gradient, see `Family`, of one vector of V_j.

    It is slope x_j (S_ba − [b = a] V_jb x_j) + l2 V_jb for a feature in group a, of the numbers that meet group b.
    """
    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, load, read, splat

    implicit, vector, lanes, n_groups = shape.implicit, shape.vector, shape.lanes, shape.n_groups
    row_factors, n_factors, marks = shape.n_factors, shape.n_factors // n_groups, n_groups * lanes
    is_plain = penalty_slope is None
    slope_of = penalty_slope or inlined(lambda factors, _count: factors)

    @inlined
    def of_group(rates, scratch, group, row_step, column):  # type: ignore[no-untyped-def]
        _start, _n_entries, sample_weight, slope = row_step
        is_own = load(scratch.sums, marks + lanes + column - group * n_factors, vector)
        kept = fma(is_own, -slope, sample_weight * rates.l2_factors) if implicit and is_plain else is_own * -slope
        return kept, load(scratch.sums, group * lanes + column, vector) * slope

    @inlined
    def gradient(rates, scratch, owner, row_step, factors, column, shared):  # type: ignore[no-untyped-def]
        kept, met = shared
        if implicit and is_plain:
            return fma(factors, kept, met)
        penalty = slope_of(factors, row_factors - column) * (row_step[2] * rates.l2_factors)
        if implicit:
            return fma(factors, kept, met + penalty)
        values = splat(read(scratch.owner_values, owner), vector)
        return fma(fma(factors * values, kept, met), values, penalty)

    return of_group, gradient


def _sums(_capacity: int, layout: Layout) -> NDArray[np.float32]:
    """S_ab by groups; then a window of zeros with ones for the numbers of one group, to lay over those of any."""
    from dfm.kernels.tables import aligned_zeros

    marks = layout.n_groups * layout.lanes
    sums = aligned_zeros((marks + 2 * layout.lanes + layout.n_factors,))
    sums[marks + layout.lanes : marks + layout.lanes + layout.n_factors] = 1.0
    return sums


def _onnx(_values: dict[str, NDArray[np.float32]], groups: NDArray[np.uint16], layout: Layout) -> OnnxPart:
    """½ (Σ_ab <S_ab, S_ba> − Σ_i <s_i, m_i> of own groups), of scaled vectors s and merged ones m."""
    import numpy as np

    n_factors, n_groups = layout.n_factors, int(groups.max(initial=0)) + 1
    in_group = np.eye(n_groups, dtype=np.float32)[np.append(groups, np.uint16(0))]
    in_group[-1] = 0.0  # the last row has no factors
    constants = {
        "half": np.array(0.5, np.float32),
        "in_group": in_group,
        "is_own": np.repeat(in_group, n_factors, axis=1),
        "by_group": np.array([-1, n_factors, n_groups], np.int64),
        "of_row": np.array([-1, n_groups, n_groups * n_factors], np.int64),
        "both": np.array([1, 2], np.int64),
    }
    return constants, [
        ("Gather", ["in_group", "factor_row"], "groups"),
        ("Transpose", ["groups"], "members"),
        ("MatMul", ["members", "scaled"], "sums"),
        ("Transpose", ["sums"], "numbers_by_group"),
        ("Reshape", ["numbers_by_group", "by_group"], "vectors_by_group"),
        ("Transpose", ["vectors_by_group"], "met_vectors"),
        ("Reshape", ["met_vectors", "of_row"], "met"),
        ("Mul", ["sums", "met"], "products"),
        ("ReduceSum", ["products", "both"], "all_pairs"),
        ("Gather", ["is_own", "factor_row"], "own"),
        ("Mul", ["scaled", "merged"], "squares"),
        ("Mul", ["squares", "own"], "own_squares"),
        ("ReduceSum", ["own_squares", "both"], "own_pairs"),
        ("Sub", ["all_pairs", "own_pairs"], "twice"),
        ("Mul", ["twice", "half"], "factor_part"),
    ]


def _sides(
    vectors: NDArray[np.float64], places: NDArray[np.int64], n_places: int, _own: dict[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """V_{i,b} at (b, own group) and V_{j,a} at (own group, a), which meet in <V_{i,g(j)}, V_{j,g(i)}>."""
    import numpy as np

    n, k = len(vectors), vectors.shape[1] // n_places
    by_group, rows = vectors.reshape(n, n_places, k), np.arange(n)
    first, second = np.zeros((n, n_places, n_places, k)), np.zeros((n, n_places, n_places, k))
    first[rows, :, places] = by_group
    second[rows, places] = by_group
    width = n_places * n_places * k
    return first.reshape(n, width), second.reshape(n, width)


FAMILY = Family(
    name="ffm",
    summary="one with a vector for each group of fields (groups), field-aware",
    blocks=fm.blocks,
    pairs=_pairs,
    gradient=_gradient,
    sums=_sums,
    onnx=_onnx,
    sides=_sides,
    knows_fields=True,
    has_groups=True,
    texts=("xlearn",),
    n_factors=4,
    init_stdev=0.03,
)
