"""The field-weighted factorization machine (Pan et al. 2018): a strength for each pair of fields.

    score = w0 + Σ_j w_j x_j + Σ_{i<j} r_{F(i)F(j)} <V_i, V_j> x_i x_j

F(j) is the field of feature j. Strengths are learnt and start at 1, so that an untrained model is exactly a
factorization machine; a field has one with itself, for lists. They touch every row, and are averaged as the bias is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfm.kernels.blocks import Block
from dfm.kernels.families import fm
from dfm.kernels.families.family import Family, OnnxPart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfm.kernels.cpu.shape import Shape
    from dfm.kernels.tables import Layout, ParameterTable

_ACCUMULATOR = 0.1
"""Share of AdaGrad's usual start. Slopes of strengths are products of two small vectors: from 1 on they would hardly
move; 0.1 was the best of those tried on planted strengths."""
_RATE = 0.1
"""Step size of strengths under AdaGrad, as if every row made one. Half and twice of it found planted strengths as well;
the rate of the weights, which goes by the entries of a row, is too slow where these are many."""
_PULL = 1e-4
"""L2 on r - 1: pairs of fields of which the rows say nothing go back to those of a factorization machine. With 1e-3
planted strengths were found less well, with 1e-2 not at all."""


def _blocks(n_factors: int) -> tuple[Block, ...]:
    """Those of the factorization machine, and the strengths."""
    strengths = Block(
        "strengths",
        "field pair",
        column="r",
        start=1.0,
        accumulator=_ACCUMULATOR,
        unit_power=0.0,
        own_rate=_RATE,
        pull=_PULL,
    )
    return (*fm.blocks(n_factors), strengths)


def _pairs(shape: Shape) -> Any:
    """pairs(rows, table, scratch, n_owners): ½ Σ_i <V_i, g_i> x_i with g_i = Σ_{j≠i} r_{F(i)F(j)} V_j x_j.

    Leaves g_i of every owner in scratch.sums.
    """
    from dfm.kernels.cpu.field_pairs import make_met, make_slots, make_spread
    from dfm.kernels.cpu.step_passes import inlined

    slots, met, spread = make_slots(shape), make_met(shape.lanes), make_spread(shape)

    @inlined
    def pairs(rows, table, scratch, n_owners):  # type: ignore[no-untyped-def]
        n_slots = slots(rows, table, scratch, n_owners)
        total = met(table.own, scratch.room[:3], scratch.sums, n_slots)
        if n_slots < n_owners:
            total += spread(table, scratch, n_slots)
        return total

    return pairs


def _gradient(shape: Shape, penalty_slope: Any) -> Any:
    """of_group, nothing, and gradient, see `Family`: slope x_j g_j + l2 V_j, of one vector of V_j."""
    import numpy as np

    from dfm.kernels.cpu.step_passes import inlined
    from dfm.kernels.simd import fma, load, read

    implicit, vector, lanes, n_factors = shape.implicit, shape.vector, shape.lanes, shape.n_factors
    is_l2 = penalty_slope is None
    slope_of = inlined(lambda weights, _count: weights) if is_l2 else penalty_slope

    @inlined
    def gradient(rates, scratch, owner, row_step, factors, column, _shared):  # type: ignore[no-untyped-def]
        _start, _n_entries, sample_weight, slope = row_step
        value = np.float32(1) if implicit else read(scratch.owner_values, owner)
        of_loss = load(scratch.sums, owner * lanes + column, vector) * (slope * value)
        return fma(slope_of(factors, n_factors - column), sample_weight * rates.l2_factors, of_loss)

    return inlined(lambda _rates, _scratch, _group, _row_step, _column: None), gradient


def _own_step(shape: Shape, steps: tuple[Any, Any]) -> Any:
    """own_step(rows, table, rates, scratch, n_owners, row_step): steps the strengths that the row touches, in place.

    One step for each pair of fields, by the sum of slope <V_i, V_j> x_i x_j over its pairs of entries, and by the pull
    back to 1.
    """
    from dfm.kernels.cpu.field_pairs import make_strength_step

    return make_strength_step(shape, steps)


def _unfold(table: ParameterTable) -> NDArray[np.float32]:
    from dfm.kernels.cpu.field_pairs import unfold

    return unfold(table, "strengths")


def _fold(unfolded: NDArray[np.float32], table: ParameterTable) -> None:
    from dfm.kernels.cpu.field_pairs import fold

    fold(unfolded, table, "strengths")


def _room(capacity: int, layout: Layout, n_fields: int, seed: int | None) -> tuple[NDArray[Any], ...]:
    from dfm.kernels.cpu.field_pairs import room

    between = _rows_between(n_fields)
    return tuple(room(capacity, layout, n_fields, 1 if seed is None else seed % between, between))


def _rows_between(n_fields: int) -> int:
    """Rows from one step of strengths to the next: a step goes with the square of the fields, and costs as much as a
    row does without. Strengths are few, and all rows speak of them.

    Odd, so that it is other rows in another epoch: blocks of rows have a power of two.
    """
    return n_fields | 1


def _sums(capacity: int, layout: Layout) -> NDArray[np.float32]:
    """g of every owner."""
    from dfm.kernels.tables import aligned_zeros

    return aligned_zeros((capacity * layout.lanes,))


def _onnx(values: dict[str, NDArray[np.float32]], fields: NDArray[np.uint16], _layout: Layout) -> OnnxPart:
    """½ (Σ_ij r_ij <s_i, s_j> − Σ_i r_ii <s_i, m_i>) of scaled vectors s and merged ones m."""
    import numpy as np

    n_fields = int(fields.max(initial=0)) + 1
    low, high = np.sort(np.indices((n_fields, n_fields)).reshape(2, -1), axis=0)
    strengths = values["strengths"][high * (high + 1) // 2 + low]
    constants = {
        "half": np.array(0.5, np.float32),
        "field_of_row": np.append(fields, np.uint16(0)).astype(np.int32),  # the last row has no factors
        "n_fields": np.array(n_fields, np.int32),
        "strengths": strengths,
        "own_strengths": strengths[:: n_fields + 1],
        "middle": np.array([1], np.int64),
        "both": np.array([1, 2], np.int64),
    }
    return constants, [
        ("Gather", ["field_of_row", "factor_row"], "field"),
        ("Unsqueeze", ["field", "last"], "field_column"),
        ("Unsqueeze", ["field", "middle"], "field_row"),
        ("Mul", ["field_column", "n_fields"], "first_of_row"),
        ("Add", ["first_of_row", "field_row"], "pair"),
        ("Gather", ["strengths", "pair"], "strength"),
        ("Transpose", ["scaled"], "turned"),
        ("MatMul", ["scaled", "turned"], "products"),
        ("Mul", ["strength", "products"], "weighted_products"),
        ("ReduceSum", ["weighted_products", "both"], "all_pairs"),
        ("Gather", ["own_strengths", "field"], "own_strength"),
        ("Mul", ["scaled", "merged"], "squares"),
        ("ReduceSum", ["squares", "last"], "norms"),
        ("Mul", ["own_strength", "norms"], "weighted_norms"),
        ("ReduceSum", ["weighted_norms", "entries"], "own_pairs"),
        ("Sub", ["all_pairs", "own_pairs"], "twice"),
        ("Mul", ["twice", "half"], "factor_part"),
    ]


def _sides(
    vectors: NDArray[np.float64], places: NDArray[np.int64], n_places: int, own: dict[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """r_{F(i) f} V_i at every field f and V_j at its own, which meet in r_{F(i)F(j)} <V_i, V_j>."""
    import numpy as np

    low, high = np.sort(np.indices((n_places, n_places)), axis=0)
    strengths = own["strengths"][high * (high + 1) // 2 + low]
    first = strengths[places][:, :, None] * vectors[:, None, :]
    second = np.zeros((len(vectors), n_places, vectors.shape[1]))
    second[np.arange(len(vectors)), places] = vectors
    shape = len(vectors), n_places * vectors.shape[1]
    return first.reshape(shape), second.reshape(shape)


FAMILY = Family(
    name="fwfm",
    summary="one with a learnt strength for each pair of fields",
    blocks=_blocks,
    pairs=_pairs,
    gradient=_gradient,
    unfold=_unfold,
    fold=_fold,
    room=_room,
    own_step=_own_step,
    rows_between=_rows_between,
    sums=_sums,
    onnx=_onnx,
    sides=_sides,
    knows_fields=True,
    most_fields=1024,
    cost_of_fields=0.04,  # measured: 3.7 times a factorization machine's rows at 39 fields, 5 times at 100
)
