"""The factorization machine (Rendle 2010); without factors it is a linear model.

score = w0 + Σ_j w_j x_j + Σ_{i<j} <V_i, V_j> x_i x_j
"""

from __future__ import annotations

from dfm.kernels.blocks import LABELS, RANDOM, Block
from dfm.kernels.families.family import Family


def blocks(n_factors: int) -> tuple[Block, ...]:
    """Bias, linear weights and factors."""
    return (
        Block("bias", "model", column="w", start=LABELS, is_linear=True),
        Block("linear", "feature", column="w", penalty="l2_linear", is_linear=True),
        Block(
            "factors", "frequent feature", n_factors, "V", "factor_learning_rate", penalty="l2_factors", start=RANDOM
        ),
    )


FAMILY = Family("fm", blocks)
