"""Parameters from one unit of the label to another: what is trained on labels of deviation 1 predicts in their own."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from dfm.data.units import LabelUnit
from dfm.kernels.blocks import LABELS
from dfm.kernels.tables import ParameterTable, aligned_zeros
from dfm.model.fm_model import FMModel


def in_own_unit(trained: ParameterTable, unit: LabelUnit) -> ParameterTable:
    """The parameters, without optimizer state, of a model that predicts in the labels' own unit.

    A score s of the training becomes s * scale + mean, which pairs of factors take as sqrt(scale) each: every block
    says of itself how its numbers go with the unit, and of vectors their degrees do.
    """
    table = trained.without_state()
    for block in table.layout.blocks:
        values, factor = table.values(block), unit.scale**block.unit_power
        if block.is_vector:
            factors = [np.float32(unit.scale ** (1 / degree)) for degree in table.layout.degrees]
            values *= np.repeat(factors, table.layout.n_factors)
        elif block.is_shared:  # few, and in float64, as what is added is
            moved = unit.mean if block.start == LABELS else 0.0
            values[...] = values.astype(np.float64) * factor + moved
        else:
            values *= np.float32(factor)
    return table


def of_full_stream(table: ParameterTable, negative_rate: float) -> ParameterTable:
    """The table of a log that kept this share of its negative rows, for the stream that it was taken from.

    Fewer negative rows multiply the odds of all others by 1 / negative_rate, whatever their features: the bias alone
    changes, by ln(negative_rate); all other arrays are shared. Of 1 / negative_rate: back again.
    """
    if negative_rate == 1.0:
        return table
    bias = aligned_zeros(table.bias.shape)
    bias[...] = table.bias
    moved = ParameterTable(table.layout, {**table.arrays, "bias": bias})
    moved.values(moved.layout.block("bias"))[...] += np.float32(math.log(negative_rate))
    return moved


def of_thinned_log(model: FMModel, negative_rate: float) -> FMModel:
    """A model that was published for the full stream, for the log that kept this share of its negative rows."""
    if negative_rate == 1.0:
        return model
    table, calibration = of_full_stream(model.table, 1 / negative_rate), model.calibration
    if calibration is not None:
        calibration = calibration.moved(-math.log(negative_rate))
    return dataclasses.replace(model, table=table, calibration=calibration)
