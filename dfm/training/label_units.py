"""Parameters from one unit of the label to another: what is trained on labels of deviation 1 predicts in their own."""

from __future__ import annotations

import numpy as np

from dfm.data.units import LabelUnit
from dfm.kernels.blocks import LABELS
from dfm.kernels.tables import ParameterTable


def in_own_unit(trained: ParameterTable, unit: LabelUnit) -> ParameterTable:
    """The parameters, without optimizer state, of a model that predicts in the labels' own unit.

    A score s of the training becomes s * scale + mean, which pairs of factors take as sqrt(scale) each: every block
    says of itself how its numbers go with the unit.
    """
    table = trained.without_state()
    for block in table.layout.blocks:
        values, factor = table.values(block), unit.scale**block.unit_power
        if block.is_shared:  # few, and in float64, as what is added is
            moved = unit.mean if block.start == LABELS else 0.0
            values[...] = values.astype(np.float64) * factor + moved
        else:
            values *= np.float32(factor)
    return table
